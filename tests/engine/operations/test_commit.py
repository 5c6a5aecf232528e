"""Committing: the base gets what the overlays hold, the overlay shows the same before, afterwards and after any cut."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.engine.operations.cuts import Journal, assert_sound, settled
from workbench.engine.ahead import Cancelled
from workbench.engine.create import CreateOptions, create_file
from workbench.engine.gate import no_backing
from workbench.engine.image import Image
from workbench.engine.metadata import load_metadata
from workbench.engine.operations.commit import Throttle, commit
from workbench.engine.operations.commit_base import Base, ImageBase, RawBase, open_for_commit
from workbench.engine.operations.rebase import change_backing
from workbench.engine.snapshots import create_snapshot
from workbench.errors import ArgumentError, LockedError, QwbError, StorageError, UnsupportedError
from workbench.storage.file import FileStorage
from workbench.storage.locks import LockMode, acquire
from workbench.storage.memory import MemoryStorage
from workbench.units import round_up

K = 1024
SIZE = 256 * K
NOISE = random.Random(5).randbytes(SIZE)


def image(path: Path, size: int, below: str | None = None, **options: Any) -> Path:
    form = None if below is None else "raw" if below.endswith(".raw") else "qcow2"
    settings = {"cluster_size": 8192, "backing_file": below, "backing_format": form, **options}
    create_file(str(path), CreateOptions(size, **settings))
    return path


def chain(folder: Path, base: str, base_size: int, **options: Any) -> Path:
    """top.qcow2 over mid.qcow2 (shorter) over the base; data, zeros and holes in each."""
    data = NOISE[:base_size]
    if base.endswith(".raw"):
        (folder / base).write_bytes(data)
    else:
        with Image.open(image(folder / base, base_size, **options), writable=True) as disk:
            disk.write(0, data)
    with Image.open(image(folder / "mid.qcow2", 128 * K, base, **options), writable=True) as disk:
        disk.write(8 * K, b"m" * 24 * K)
        disk.write_zeroes(64 * K, 16 * K)
    with Image.open(image(folder / "top.qcow2", SIZE, "mid.qcow2", **options), writable=True) as disk:
        disk.write(16 * K, b"t" * 8 * K)
        disk.write_zeroes(24 * K, 8 * K)
        disk.write(72 * K + 100, b"u" * 9)
        disk.write(250 * K, b"end")
    return folder / "top.qcow2"


def content(path: Path) -> bytes:
    if path.suffix == ".raw":
        return path.read_bytes()
    with Image.open(path) as disk:
        return disk.read(0, disk.size)


def own_bytes(path: Path) -> int:
    """Guest bytes that an image holds itself."""
    with Image.open(path) as disk:
        return sum(each.length for each in disk.layer_extents() if each.present)


SHAPES: dict[str, dict[str, Any]] = {
    "plain": {},
    "64k": {"cluster_size": 65536},
    "512": {"cluster_size": 512},
    "v2": {"compat": 2},
    "extended": {"cluster_size": 16384, "extended_l2": True},
    "lazy": {"lazy_refcounts": True},
}


@pytest.mark.parametrize("base_size", [96 * K, 192 * K, 2 * SIZE], ids=["shorter", "between", "longer"])
@pytest.mark.parametrize("base", ["base.raw", "base.qcow2"])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("target", [None, "base"])
def test_the_base_gets_everything_and_the_overlay_shows_the_same(
    tmp_path: Path, shape: str, base: str, base_size: int, target: str | None
) -> None:
    path = chain(tmp_path, base, base_size, **SHAPES[shape])
    names = {"base": base, None: "mid.qcow2"}
    into = tmp_path / names[target]
    before, below = content(path), content(into)
    expected = before + below[len(before) :]
    held = path.read_bytes()
    with open_for_commit(path, base if target else None, empty=target is None) as (top, opened):
        result = commit(top, opened, empty=target is None)
    assert content(into) == expected and content(path) == before
    assert result.copied > 0 and result.base_size_before == len(below)
    if target:
        assert path.read_bytes() == held
    else:
        assert own_bytes(path) == 0
    for each in tmp_path.glob("*.qcow2"):
        assert_sound(MemoryStorage(each.read_bytes()))


def test_an_emptied_overlay_is_as_small_as_a_new_one(tmp_path: Path) -> None:
    path = chain(tmp_path, "base.raw", SIZE)
    image(tmp_path / "new.qcow2", SIZE, "mid.qcow2")
    with open_for_commit(path) as (top, base):
        commit(top, base)
    assert path.stat().st_size == round_up((tmp_path / "new.qcow2").stat().st_size, 8192)


@contextmanager
def recorded(journal: Journal, folder: Path, base: Path) -> Iterator[tuple[Image, Base]]:
    """Top and base as `open_for_commit` gives them, their writes written down."""
    top = folder / "top.qcow2"
    with Image.open(top, writable=True, gate=no_backing, storage=journal.file(str(top), top.read_bytes())) as image:
        storage = journal.file(str(base), base.read_bytes())
        if base.suffix == ".raw":
            yield image, RawBase(storage)
            return
        with Image.open(base, writable=True, storage=storage) as below:
            yield image, ImageBase(below)


@pytest.mark.parametrize("base_size", [96 * K, SIZE], ids=["grows", "fits"])
@pytest.mark.parametrize("name", ["base.raw", "base.qcow2"])
@pytest.mark.parametrize("shape", SHAPES)
def test_a_cut_at_any_write_leaves_the_disk_as_it_was(tmp_path: Path, shape: str, name: str, base_size: int) -> None:
    base = tmp_path / name
    path = chain(tmp_path, name, base_size, **SHAPES[shape])
    with open_for_commit(tmp_path / "mid.qcow2") as (mid, below):  # leaves top straight over the base
        commit(mid, below)
    with Image.open(path, writable=True) as disk:
        change_backing(disk, name, "raw" if base.suffix == ".raw" else "qcow2")
    before = content(path)
    journal = Journal()
    with recorded(journal, tmp_path, base) as (top, below):
        commit(top, below)
    emptied = False
    for state in journal.cuts(per_cut=1):
        base.write_bytes(settled(str(base), state[str(base)]).getvalue() if name != "base.raw" else state[str(base)])
        storage = settled(str(path), state[str(path)])
        with Image.open(path, storage=storage) as disk:
            assert disk.read(0, disk.size) == before
            emptied = not any(each.present for each in disk.layer_extents())
        assert_sound(storage)
        if name != "base.raw":
            assert_sound(MemoryStorage(base.read_bytes()))
    assert emptied


def test_snapshots_and_bitmaps_of_the_overlay_stay(tmp_path: Path) -> None:
    path = chain(tmp_path, "base.raw", SIZE)
    with Image.open(path, writable=True) as disk:
        create_snapshot(disk, "one")
        disk.write(16 * K, b"later" * 100)
    before = content(path)
    with open_for_commit(path) as (top, base):
        commit(top, base)
    assert own_bytes(path) == 0 and content(path) == before
    assert_sound(MemoryStorage(path.read_bytes()))
    with Image.open(path, snapshot="one") as kept:
        assert kept.read(16 * K, 8 * K) == b"t" * 8 * K


def test_bitmaps_of_the_base_record_what_was_committed(tmp_path: Path, base_images: Any) -> None:
    base = base_images.copy(base_images.get("bitmaps"), tmp_path)
    with Image.open(base) as disk:
        size = disk.size
    path = image(tmp_path / "top.qcow2", size, base.name)
    with Image.open(path, writable=True) as disk:
        disk.write(size - 8192, b"x" * 8192)
    with open_for_commit(path) as (top, below):
        commit(top, below)
    assert content(base)[-8192:] == b"x" * 8192
    meta = load_metadata(MemoryStorage(base.read_bytes()))
    assert meta.bitmap_directory.bitmaps and not [each for each in meta.bitmap_directory.bitmaps if each.in_use]
    assert_sound(MemoryStorage(base.read_bytes()))


def test_a_base_that_somebody_uses_is_not_touched(tmp_path: Path) -> None:
    for name in ("base.raw", "base.qcow2"):
        chain(tmp_path, name, SIZE)
        with Image.open(tmp_path / "mid.qcow2", writable=True) as disk:
            disk.write(0, b"new" * 100)
        before = {each: each.read_bytes() for each in tmp_path.iterdir()}
        for mode in (LockMode.READ, LockMode.WRITE):
            with (
                FileStorage.open(tmp_path / name, writable=True) as held,
                acquire(held, mode),
                pytest.raises(LockedError),
            ):
                opening(tmp_path / "mid.qcow2")
        assert {each: each.read_bytes() for each in tmp_path.iterdir()} == before
        for each in tmp_path.iterdir():
            each.unlink()


def test_a_file_is_never_its_own_base(tmp_path: Path) -> None:
    """Also where no locks tell."""
    path = chain(tmp_path, "base.qcow2", SIZE)
    (tmp_path / "link.qcow2").hardlink_to(path)
    (tmp_path / "mid-link.qcow2").symlink_to("mid.qcow2")
    before = {each: each.read_bytes() for each in tmp_path.iterdir()}
    for name in ("link.qcow2", "mid-link.qcow2"):
        itself = MemoryStorage(bytes(SIZE), path=str(tmp_path / name))
        with Image.open(path) as top, pytest.raises(ArgumentError, match="is read by this very commit"):
            commit(top, RawBase(itself), empty=False)
        assert itself.getvalue() == bytes(SIZE)
    with Image.open(tmp_path / "base.qcow2", writable=True) as disk:
        change_backing(disk, "link.qcow2", "qcow2")
    circle = (tmp_path / "base.qcow2").read_bytes()
    for base in ("base.qcow2", "mid.qcow2", None):
        for empty in (True, False):
            with pytest.raises(QwbError), open_for_commit(path, base, empty=empty):
                pass
    assert {each: each.read_bytes() for each in tmp_path.iterdir()} == before | {tmp_path / "base.qcow2": circle}


def opening(path: Path, base: str | None = None) -> None:
    with open_for_commit(path, base):
        pass


def test_the_base_must_be_in_the_chain_and_be_something_that_can_be_written(tmp_path: Path) -> None:
    path = chain(tmp_path, "base.raw", SIZE)
    with pytest.raises(ArgumentError, match="Did not find 'top\\.qcow2' in the backing chain"):
        opening(path, "top.qcow2")
    with pytest.raises(ArgumentError, match="does not have a backing file"):
        opening(image(tmp_path / "alone.qcow2", SIZE))
    (tmp_path / "x.vmdk").write_bytes(b"KDMV" + bytes(SIZE))
    with Image.open(image(tmp_path / "over.qcow2", SIZE, "base.raw"), writable=True) as disk:
        change_backing(disk, "x.vmdk", "vmdk")
    with pytest.raises(UnsupportedError, match="format 'vmdk' cannot be written"):
        opening(tmp_path / "over.qcow2")


def test_a_raw_base_of_no_recorded_format_keeps_looking_raw(tmp_path: Path) -> None:
    """Else the next open would take the guest's bytes for an image."""
    storage = MemoryStorage(NOISE)
    base = RawBase(storage, guessed=True)
    base.write(512, memoryview(b"QFI\xfb" * 128))
    with pytest.raises(ArgumentError, match="look like qcow2"):
        base.write(0, memoryview(b"QFI\xfb\0\0\0\3" + bytes(504)))
    assert storage.getvalue()[:512] == NOISE[:512]
    RawBase(storage).write(0, memoryview(b"QFI\xfb\0\0\0\3" + bytes(504)))
    assert storage.getvalue()[:4] == b"QFI\xfb"


def test_an_error_or_a_stop_leaves_the_overlay_full(tmp_path: Path) -> None:
    class Failing(RawBase):
        def write(self, offset: int, data: memoryview) -> None:
            raise StorageError("No space left on device")

    path = chain(tmp_path, "base.raw", SIZE)
    held = path.read_bytes()
    with open_for_commit(path) as (top, _), pytest.raises(StorageError):
        commit(top, Failing(MemoryStorage(bytes(128 * K))))
    with open_for_commit(path) as (top, base), pytest.raises(Cancelled):
        commit(top, base, cancel=lambda: True)
    assert path.read_bytes() == held


def test_a_rate_is_kept_by_waiting_for_what_was_too_early() -> None:
    now, slept = [0.0], list[float]()
    throttle = Throttle(100, clock=lambda: now[0], sleep=slept.append)
    throttle.spent(50)
    now[0] = 1.0
    throttle.spent(50)
    throttle.spent(25)
    Throttle(0, clock=lambda: 0.0, sleep=slept.append).spent(1 << 40)
    assert slept == [0.5, 0.25]
