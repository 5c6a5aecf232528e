"""Copying a window: where it starts and ends, every byte of it, and nothing left behind when it fails."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest

from workbench.engine.ahead import Cancelled
from workbench.engine.convert import Source
from workbench.engine.image import Image
from workbench.engine.layers import RawLayer
from workbench.engine.operations.dd import CHUNK, Window, copy_window, window_of
from workbench.errors import ArgumentError, StorageError
from workbench.storage.memory import MemoryStorage

DATA = random.Random(3).randbytes(3 * CHUNK + 1024)


def source(kind: type[RawLayer] = RawLayer) -> Source:
    layer = kind(MemoryStorage(DATA))
    return Source((layer,), layer.size)


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ({}, Window(0, 5000)),
        ({"skip": 2}, Window(1024, 5000)),
        ({"count": 3}, Window(0, 1536)),
        ({"count": 3, "skip": 2}, Window(1024, 1536)),
        ({"count": 3, "skip": 3}, Window(1536, 1536)),
        ({"count": 3, "skip": 4}, Window(1536, 1536, beyond=True)),
        ({"block": 1000, "skip": 5}, Window(5000, 5000)),
        ({"block": 1000, "skip": 6}, Window(5000, 5000, beyond=True)),
        ({"block": 1 << 30, "count": 1 << 60}, Window(0, 5000)),
    ],
)
def test_windows_are_qemu_imgs(more: dict[str, int], expected: Window) -> None:
    assert window_of(5000, **more) == expected


@pytest.mark.parametrize("qcow2", [False, True])
@pytest.mark.parametrize("window", [Window(0, len(DATA)), Window(777, CHUNK + 778), Window(5, 6), Window(9, 9)])
def test_every_byte_of_the_window_arrives_and_the_rest_of_the_last_sector_is_zeros(
    tmp_path: Path, window: Window, qcow2: bool
) -> None:
    seen: list[tuple[int, int]] = []
    path = tmp_path / "out"
    path.write_bytes(b"older and longer" * CHUNK)
    copy_window(source(), window, path, qcow2=qcow2, progress=lambda done, total: seen.append((done, total)))
    expected = DATA[window.start : window.end].ljust(window.target_size, b"\0")
    if qcow2:
        with Image.open(path) as image:
            assert image.size == len(expected) and image.read(0, image.size) == expected
    else:
        assert path.read_bytes() == expected
    length = window.end - window.start
    assert not length or seen[-1] == (length, length)
    assert [each.name for each in tmp_path.iterdir()] == ["out"]


def test_zeros_are_written_too(tmp_path: Path) -> None:
    layer = RawLayer(MemoryStorage(bytes(CHUNK)))
    copy_window(Source((layer,), layer.size), Window(0, CHUNK), tmp_path / "out")
    assert (tmp_path / "out").stat().st_blocks * 512 >= CHUNK


def test_a_copy_that_fails_or_is_stopped_leaves_what_was_there(tmp_path: Path) -> None:
    class Failing(RawLayer):
        def read_run(self, start: int, kind: int, host: int, view: memoryview) -> None:
            if start >= CHUNK:
                raise StorageError("Input/output error")
            super().read_run(start, kind, host, view)

    path = tmp_path / "out"
    path.write_bytes(b"old")
    for qcow2 in (False, True):
        with pytest.raises(StorageError):
            copy_window(source(Failing), Window(0, len(DATA)), path, qcow2=qcow2)
        with pytest.raises(Cancelled):
            copy_window(source(), Window(0, len(DATA)), path, qcow2=qcow2, cancel=lambda: True)
    assert path.read_bytes() == b"old" and [each.name for each in tmp_path.iterdir()] == ["out"]


def test_a_device_is_written_in_place_when_it_is_large_enough(tmp_path: Path, loop: Callable[[Path], Path]) -> None:
    file = tmp_path / "disk"
    file.write_bytes(b"x" * CHUNK)
    device = loop(file)
    copy_window(source(), Window(0, 1000), device)
    assert device.read_bytes()[:1024] == DATA[:1000] + b"x" * 24
    with pytest.raises(StorageError, match="the copy needs"):
        copy_window(source(), Window(0, len(DATA)), device)
    with pytest.raises(ArgumentError, match="not to a device"):
        copy_window(source(), Window(0, 1000), device, qcow2=True)
