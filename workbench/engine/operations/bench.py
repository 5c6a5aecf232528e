"""One request after the other to a disk, against the clock (QEMU: `qemu-img bench`)."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

from workbench.errors import ArgumentError, ImageError
from workbench.storage.base import Storage
from workbench.units import SECTOR_SIZE, round_up


class Disk(Protocol):
    """What is measured. Offsets and lengths in guest bytes."""

    @property
    def size(self) -> int: ...

    def readinto(self, offset: int, buffer: memoryview) -> object: ...

    def write(self, offset: int, data: bytes | bytearray | memoryview) -> object: ...

    def flush(self) -> object: ...


class RawDisk:
    """A raw file as a disk: a last sector that the file only begins is whole, zeros behind."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self.size = round_up(storage.size(), SECTOR_SIZE)
        self.write = storage.write
        self.flush = storage.flush

    def readinto(self, offset: int, buffer: memoryview) -> None:
        got = self._storage.readinto(offset, buffer)
        buffer[got:] = bytes(len(buffer) - got)


@dataclass(frozen=True, slots=True)
class Load:
    """What is sent: `count` requests of `size` bytes, the first at `offset`, each `step` bytes behind the one before, from
    the start again behind the disk's end.

    write: the byte that is written; None to read.  flush_interval: flush after so many writes; 0 for never.
    """

    count: int
    size: int
    step: int
    offset: int = 0
    write: int | None = None
    flush_interval: int = 0


@dataclass(frozen=True, slots=True)
class Result:
    """seconds: for all requests together.  requests: how many were done.  flushes: how many of these."""

    seconds: float
    requests: int
    flushes: int


def offsets(load: Load, disk: int) -> Iterator[int]:
    """Where the requests go on a disk of `disk` bytes."""
    at = load.offset
    for _ in range(load.count):
        yield at
        at = (at + load.step) % disk


def bench(disk: Disk, load: Load, clock: Callable[[], float] = time.perf_counter) -> Result:
    """Send everything and take the time. ImageError when a request reaches behind the disk's end: those before it are done.
    ArgumentError for a disk without a size. Raises what the disk raises."""
    if not disk.size:
        raise ArgumentError("a disk without a size answers no request")
    buffer = memoryview(bytearray(load.size) if load.write is None else bytearray((load.write,)) * load.size)
    flushes, start = 0, clock()
    for number, at in enumerate(offsets(load, disk.size)):
        if at + load.size > disk.size:
            raise ImageError(f"Failed request: {load.size} bytes at {at} are not within the disk of {disk.size} bytes")
        if load.write is None:
            disk.readinto(at, buffer)
        else:
            disk.write(at, buffer)
        if load.flush_interval and not (load.count - 1 - number) % load.flush_interval:
            disk.flush()
            flushes += 1
    return Result(clock() - start, load.count, flushes)
