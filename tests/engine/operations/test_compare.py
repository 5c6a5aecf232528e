"""Comparing: the first difference in guest order, whatever stores it, and errors told with their place."""

from __future__ import annotations

from pathlib import Path

import pytest

from workbench.engine.ahead import Cancelled
from workbench.engine.convert import Source
from workbench.engine.create import CreateOptions, create_file
from workbench.engine.image import Image
from workbench.engine.layers import RawLayer
from workbench.engine.operations.compare import CHUNK, Outcome, compare
from workbench.errors import StorageError
from workbench.storage.memory import MemoryStorage

C = 1 << 16


def raw(data: bytes) -> Source:
    layer = RawLayer(MemoryStorage(data))
    return Source((layer,), layer.size)


def image(path: Path, size: int, *writes: tuple[int, bytes], **options: object) -> Path:
    create_file(str(path), CreateOptions(size, **options))  # type: ignore[arg-type]
    with Image.open(path, writable=True) as disk:
        for offset, data in writes:
            disk.write(offset, data)
    return path


def test_the_first_different_sector_is_told_wherever_it_lies() -> None:
    data = bytes(range(256)) * (3 * CHUNK // 256)
    for at in (0, 511, 512, CHUNK - 1, CHUNK, 3 * CHUNK - 1):
        other = bytearray(data)
        other[at] ^= 1
        found = compare(raw(data), raw(bytes(other))).finding
        assert found is not None and (found.outcome, found.offset) == (Outcome.CONTENT, at // 512 * 512)


def test_the_earliest_difference_wins_though_later_ones_are_read_first() -> None:
    data = bytes(16 * CHUNK)
    other = bytearray(data)
    for n in range(1, 16):
        other[n * CHUNK + 5000] = n
    for threads in (1, 4):
        found = compare(raw(b"\1" + data[1:]), raw(b"\1" + bytes(other[1:])), threads=threads).finding
        assert found is not None and found.offset == CHUNK + 4608


def test_a_longer_disk_is_identical_only_with_zeros_behind_the_end_of_the_other(tmp_path: Path) -> None:
    short = raw(b"x" * 4096)
    assert compare(short, raw(b"x" * 4096 + bytes(4096))).outcome is Outcome.IDENTICAL
    result = compare(raw(b"x" * 4096 + bytes(1024) + b"y"), short)
    assert result.finding is not None and (result.outcome, result.finding.offset) == (Outcome.CONTENT, 5120)
    assert result.common_part_is_equal
    strict = compare(short, raw(b"x" * 4096 + bytes(4096)), strict=True)
    assert strict.outcome is Outcome.SIZE and not strict.common_part_is_equal


def test_unallocated_and_zeros_are_equal_unless_strict(tmp_path: Path) -> None:
    blank = image(tmp_path / "blank.qcow2", 8 * C)
    written = image(tmp_path / "written.qcow2", 8 * C, (2 * C, bytes(C)))
    with Image.open(blank) as one, Image.open(written) as two:
        pair = Source(one.chain, one.size), Source(two.chain, two.size)
        assert compare(*pair).outcome is Outcome.IDENTICAL
        found = compare(*pair, strict=True).finding
        assert found is not None and (found.outcome, found.offset) == (Outcome.STATUS, 0)  # the run ends earlier


def test_what_reads_as_zeros_in_both_is_never_read() -> None:
    class Deaf(RawLayer):
        def read_run(self, start: int, kind: int, host: int, view: memoryview) -> None:
            raise AssertionError("read")

        def runs(self, start, end):  # type: ignore[no-untyped-def]
            from formats.qcow2.entries import ClusterType
            from workbench.engine.mapping import one_run

            yield one_run(start, end - start, ClusterType.ZERO_ALLOC, start)

    deaf = Deaf(MemoryStorage(bytes(C)))
    assert compare(Source((deaf,), C), Source((deaf,), C)).outcome is Outcome.IDENTICAL


def test_errors_are_told_with_disk_and_chunk() -> None:
    class Failing(RawLayer):
        def read_run(self, start: int, kind: int, host: int, view: memoryview) -> None:
            if start >= CHUNK:
                raise StorageError("Input/output error")
            super().read_run(start, kind, host, view)

    data = b"z" * (2 * CHUNK)
    failing = Source((Failing(MemoryStorage(data)),), len(data))
    found = compare(raw(data), failing).finding
    assert found is not None and (found.outcome, found.offset, found.side) == (Outcome.UNREADABLE, CHUNK, 1)
    assert compare(raw(b"y" + data[1:]), failing).outcome is Outcome.CONTENT  # an earlier difference comes first


def test_a_comparison_can_be_stopped_and_tells_its_progress() -> None:
    data = b"z" * (16 * CHUNK)
    seen: list[tuple[int, int]] = []
    assert compare(raw(data), raw(data), progress=lambda done, total: seen.append((done, total))).finding is None
    assert seen == sorted(seen) and seen[-1] == (len(data), len(data))
    with pytest.raises(Cancelled):
        compare(raw(data), raw(data), cancel=lambda: True)
