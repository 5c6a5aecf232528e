"""Requests against the clock: where they go, what they write, when they flush."""

from __future__ import annotations

import pytest

from tests.engine.write.kit import disk, fresh, opened
from workbench.engine.operations.bench import Load, RawDisk, bench, offsets
from workbench.errors import ArgumentError, ImageError
from workbench.storage.memory import MemoryStorage
from workbench.storage.recording import OpKind, Recording

C = 1 << 16


def test_requests_start_again_behind_the_end() -> None:
    assert list(offsets(Load(6, 512, 1000, 5), 4096)) == [5, 1005, 2005, 3005, 4005, 909]
    assert list(offsets(Load(3, 512, 512, 9000), 4096)) == [9000, 9512 % 4096, (9512 + 512) % 4096]


def test_writing_writes_the_byte_and_flushes_in_between() -> None:
    storage = Recording(MemoryStorage(bytes(8 * 512)))
    result = bench(RawDisk(storage), Load(5, 512, 1024, write=0x41, flush_interval=2), iter((1.0, 3.5)).__next__)
    assert [op.offset if op.kind is OpKind.WRITE else "flush" for op in storage.ops] == [
        *(0, "flush", 1024, 2048, "flush", 3072, 0, "flush")
    ]
    assert storage.read(0, 2048) == (b"A" * 512 + bytes(512)) * 2
    assert (result.seconds, result.requests, result.flushes) == (2.5, 5, 3)


def test_an_image_is_read_and_written_as_a_disk() -> None:
    storage = fresh(4 * C)
    with opened(storage) as image:
        bench(image, Load(3, 700, C, 1, write=7))
        bench(image, Load(9, 512, 512))
    expected = bytearray(4 * C)
    for at in (1, C + 1, 2 * C + 1):
        expected[at : at + 700] = b"\7" * 700
    assert disk(storage) == expected


def test_a_request_over_the_end_fails_and_those_before_it_are_done() -> None:
    storage = MemoryStorage(bytes(3 * 512))
    with pytest.raises(ImageError, match="1024 bytes at 1024"):
        bench(RawDisk(storage), Load(9, 1024, 1024, write=1))
    assert storage.getvalue() == b"\1" * 1024 + bytes(512)


def test_a_raw_file_has_whole_sectors() -> None:
    raw = RawDisk(MemoryStorage(b"abc"))
    buffer = bytearray(b"x" * 512)
    raw.readinto(0, memoryview(buffer))
    assert (raw.size, bytes(buffer)) == (512, b"abc" + bytes(509))


def test_a_disk_without_a_size_is_refused() -> None:
    with pytest.raises(ArgumentError):
        bench(RawDisk(MemoryStorage()), Load(1, 512, 512))
