"""Room on file systems: what a piece of work will take, held against what is free, before anything is written."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from workbench.errors import StorageError
from workbench.storage.base import Storage
from workbench.units import format_size

_BLOCK = 64 << 10
_READ = 4 << 20
_ZEROS = memoryview(bytes(_BLOCK))


@dataclass(frozen=True, slots=True)
class Want:
    """Bytes that something will take in a folder (or in the folder of a file), and what for."""

    where: Path
    length: int
    what: str


def free_bytes(folder: str | os.PathLike[str]) -> int | None:
    """What this user may still write on the folder's file system; None where that cannot be known."""
    try:
        found = os.statvfs(folder)
    except OSError:
        return None
    if not found.f_blocks:  # file systems that keep no count
        return None
    return (found.f_bavail if os.geteuid() else found.f_bfree) * found.f_frsize


def require_room(wants: Iterable[Want], *, path: str, hint: str | None = None) -> None:
    """StorageError naming the bytes missing when what is wanted on one file system, together, does not fit."""
    grouped: dict[int, list[Want]] = {}
    for want in wants:
        if want.length > 0:
            folder = existing_folder(want.where)
            grouped.setdefault(os.stat(folder).st_dev, []).append(Want(folder, want.length, want.what))
    for each in grouped.values():
        free, needed = free_bytes(each[0].where), sum(want.length for want in each)
        if free is None or needed <= free:
            continue
        what = " and ".join(f"{want.what} ({want.length} bytes)" for want in each)
        missing = needed - free
        raise StorageError(
            f"not enough space in {each[0].where} for {what}: {missing} bytes ({format_size(missing)}) are missing",
            path=path,
            hint=hint or "nothing was written; free some space and repeat",
        )


def existing_folder(path: Path) -> Path:
    """`path` when it is a folder, else the nearest folder above it that is there."""
    for each in (path, *path.absolute().parents):
        if each.is_dir():
            return each
    return Path("/")


def content_bytes(source: Storage, enough: int | None = None) -> int:
    """What a sparse copy of `source` takes, in bytes. enough: free bytes; when all of it fits there, nothing is read.

    Where the source keeps holes they are believed; else it is read, and blocks of zeros are left out.
    """
    size = source.size()
    total, position = 0, source.next_data(0)
    ranges = []
    while position is not None and position < size:
        end = min(source.next_hole(position), size)
        ranges.append((position, end))
        total += end - position
        position = source.next_data(end) if end < size else None
    if enough is None or total <= enough:
        return total
    return sum(len(data) for low, high in ranges for _, data in data_runs(source, low, high))


def data_runs(source: Storage, start: int, end: int) -> Iterator[tuple[int, memoryview]]:
    """(offset, bytes) of a range, 4 MiB at a time and without its blocks of 64 KiB that are all zeros."""
    for at in range(start, end, _READ):
        data = memoryview(source.read(at, min(_READ, end - at)))
        low = 0
        while low < len(data):
            high = low
            while high < len(data) and data[high : high + _BLOCK] != _ZEROS[: min(_BLOCK, len(data) - high)]:
                high = min(high + _BLOCK, len(data))
            if high > low:
                yield at + low, data[low:high]
            low = high + _BLOCK if high < len(data) else high
