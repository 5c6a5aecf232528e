"""How far a disk must reach: what its partition table and its file systems say of their own ends.

Nothing is decided here; each `Reach` is what one structure of the guest says.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from formats.guest.filesystems import Read, recognise
from formats.guest.partitions import (
    EXTENDED,
    GPT_LENGTH,
    PROTECTIVE,
    SECTOR,
    Partition,
    parse_gpt,
    parse_gpt_entries,
    parse_mbr,
)

_SECTORS: Final = (512, 4096)
_MOST_LOGICAL: Final = 64
_MOST: Final = 1 << 62


@dataclass(frozen=True, slots=True)
class Reach:
    """The disk goes on to `end` (bytes) at least; exact: it ends there.  who: what says so, a noun phrase."""

    end: int
    exact: bool
    who: str


def reaches(read: Read) -> tuple[Reach, ...]:
    """What the guest's own structures say of the disk's length. read: guest bytes; zeros or less where there are none."""
    found = list(_whole_disk(read))
    for partition, sector, kind in partitions(read):
        found.append(Reach(partition.end * sector, exact=False, who=f"the {kind} partition table"))
        start = partition.first * sector
        volume = recognise(lambda at, length, start=start: read(start + at, length))  # type: ignore[misc]
        if volume is not None:
            found.append(Reach(start + volume.length, exact=False, who=f"the {volume.name} file system at {start:#x}"))
    return tuple(each for each in found if 0 < each.end < _MOST)


def _whole_disk(read: Read) -> Iterator[Reach]:
    """A GPT names the disk's last sector; a file system without partitions fills the disk, to a block or a cluster."""
    for sector in _SECTORS:
        header = parse_gpt(read(sector, max(GPT_LENGTH, sector)))
        if header is not None and header.place == 1:
            yield Reach((header.alternate + 1) * sector, exact=True, who="the GPT header")
    volume = recognise(read)
    if volume is not None:
        yield Reach(volume.length, exact=False, who=f"the {volume.name} file system")


def partitions(read: Read) -> Iterator[tuple[Partition, int, str]]:
    """(partition, bytes of a sector, "GPT" or "MBR") of the table at the disk's start, logical partitions included."""
    for sector in _SECTORS:
        header = parse_gpt(read(sector, max(GPT_LENGTH, sector)))
        if header is not None:
            for each in parse_gpt_entries(header, read(header.entries * sector, header.entries_size)):
                yield each, sector, "GPT"
            return
    for each in parse_mbr(read(0, SECTOR)) or ():
        if each.type == PROTECTIVE:
            continue
        yield each, SECTOR, "MBR"
        if each.type in EXTENDED:
            yield from ((logical, SECTOR, "MBR") for logical in _logical(read, each.first))


def _logical(read: Read, first: int) -> Iterator[Partition]:
    """The logical partitions of an extended one: a chain of boot records, each with one partition and the next record."""
    at, seen = first, set[int]()
    while at not in seen and len(seen) < _MOST_LOGICAL:
        seen.add(at)
        onward = None
        for each in parse_mbr(read(at * SECTOR, SECTOR)) or ():
            if each.type in EXTENDED:
                onward = first + each.first
            else:
                yield Partition(at + each.first, each.length, each.type)
        if onward is None:
            return
        at = onward
