"""Does this cluster hold what a pointer says? Plausibility of table contents, and scans for tables that were lost."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from formats.luks.header import MAGIC as LUKS_MAGIC
from formats.qcow2.entries import Fault, L2Entries, Pointers, PointerTable, offset_of, packed_range
from formats.qcow2.tables import distinct

if TYPE_CHECKING:
    from workbench.repair.workspace import Workspace

_SAMPLE: Final = 256
"""L2 tables that are looked at to judge an L1 table."""
SCAN_LIMIT: Final = 2 << 30
"""Bytes that one scan reads at most."""


@dataclass(frozen=True, slots=True)
class Content:
    """What an L2 table's content looks like. Numbers of entries; targets: host cluster offsets of its entries."""

    valid: int
    foreign: int
    """Entries with reserved bits, an unaligned offset, or COPIED beside COMPRESSED: no driver writes them."""
    beyond: int
    """Entries that point past the end of the file."""
    targets: NDArray[np.uint64]
    readable: int
    """Entries that lead into the file (or read as zeros), whatever flags stand beside the offset."""
    cut: int
    """Of those beyond: entries that were right before the file was cut off."""

    @property
    def plausible(self) -> bool:
        """At least one entry, and nothing that a driver would not write."""
        return self.valid > 0 and self.foreign == 0 and self.beyond * 4 <= self.valid

    @property
    def is_foreign(self) -> bool:
        """So many entries lead nowhere that something else most likely overwrote it; single ones may still be right."""
        return self.unreadable >= 4 and self.unreadable > self.readable + self.cut

    @property
    def may_be_table(self) -> bool:
        """Something in it can be right."""
        return self.empty or self.readable + self.cut > 0

    @property
    def unreadable(self) -> int:
        """Entries that never led anywhere."""
        return self.valid + self.foreign + self.beyond - self.readable - self.cut

    @property
    def empty(self) -> bool:
        return self.valid + self.foreign + self.beyond == 0


@dataclass(frozen=True, slots=True)
class Masks:
    """Boolean columns over the entries of one or more L2 tables (of the words' shape)."""

    packed: NDArray[np.bool_]
    reserved: NDArray[np.bool_]
    unaligned: NDArray[np.bool_]
    beyond: NDArray[np.bool_]
    null_copied: NDArray[np.bool_]
    packed_copied: NDArray[np.bool_]
    offset: NDArray[np.uint64]


def l2_masks(space: Workspace, words: NDArray[np.uint64], *, wide: bool | None = None) -> Masks:
    """Sort the entries of L2 tables by what is wrong with them. words: uint64 without subcluster bitmaps.

    wide: take them for extended entries or not, whatever the header says.
    """
    shape = space.meta.shape if wide is None else replace(space.meta.shape, extended_l2=wide)
    each = L2Entries(words, shape)
    beyond = each.standard & (each.offset >= np.uint64(space.end)) & (not shape.data_file)
    start, end = packed_range(words, shape)
    beyond |= each.packed & ((start >= np.uint64(space.size)) | (end > np.uint64(space.end)))
    return Masks(
        each.packed,
        each.standard & (each.fault(Fault.RESERVED) | each.fault(Fault.BIT_0)),
        each.fault(Fault.UNALIGNED),
        beyond,
        each.fault(Fault.COPIED_NOWHERE),
        each.fault(Fault.COPIED_COMPRESSED),
        each.offset,
    )


def l2_content(space: Workspace, offset: int) -> Content:
    """Judge the cluster at `offset` as an L2 table."""
    words = space.words(offset, space.cluster // 8)
    if not space.geometry.extended_l2:
        return content_of(space, words)
    found = content_of(space, words[0::2])
    used = words[0::2] != 0
    each = L2Entries(words[0::2], space.meta.shape, words[1::2])
    odd = int((_bitmap_trouble(each) & used).sum())
    return Content(
        max(0, found.valid - odd), found.foreign + odd, found.beyond, found.targets, found.readable, found.cut
    )


def _bitmap_trouble(each: L2Entries) -> NDArray[np.bool_]:
    """Extended entries whose subcluster bitmap contradicts itself or the entry."""
    conflict = each.fault(Fault.SUBCLUSTER_BOTH) | each.fault(Fault.SUBCLUSTER_NOWHERE)
    return conflict | each.fault(Fault.COMPRESSED_BITMAP)


def content_of(space: Workspace, words: NDArray[np.uint64], *, wide: bool | None = None) -> Content:
    """Judge table content (without subcluster bitmaps). wide: as in `l2_masks`."""
    used = words[words != 0]
    masks = l2_masks(space, used, wide=wide)
    foreign = masks.reserved | masks.unaligned | masks.packed_copied  # COPIED alone is harmless
    beyond = masks.beyond & ~foreign
    good = ~foreign & ~masks.beyond
    plain = good & ~masks.packed & (masks.offset > 0)
    packed_start, _ = packed_range(used[good & masks.packed], space.meta.shape)
    targets = np.concatenate([masks.offset[plain], packed_start & np.uint64(-space.cluster & ((1 << 64) - 1))])
    readable = int((~masks.unaligned & ~masks.beyond).sum())
    cut = int((beyond & ~masks.packed & (masks.offset < np.uint64(space.meta.counted_reach))).sum())
    return Content(int(good.sum()), int(foreign.sum()), int(beyond.sum()), distinct(targets), readable, cut)


def fresh_targets(space: Workspace, content: Content) -> int:
    """How many of the table's clusters nobody else refers to, although they are counted as in use."""
    ledger = space.ledger
    numbers = (content.targets >> np.uint64(space.geometry.cluster_bits)).astype(np.int64)
    numbers = numbers[numbers < ledger.clusters]
    return int(((ledger.counts[numbers] == 0) & (~ledger.known[numbers] | (ledger.stored[numbers] > 0))).sum())


def l1_score(space: Workspace, offset: int, entries: int) -> tuple[int, int]:
    """(entries that lead to a plausible L2 table, entries that make no sense) of an L1 table at `offset`.

    Of a long table a few hundred targets, spread over it, are looked at.
    """
    words = space.words(offset, entries)
    used = words[words != 0]
    if not used.size:
        return 0, 0
    bad = l1_bad(space, used)
    strong, wrong = 0, int(bad.sum())
    targets = distinct(offset_of(used[~bad]))
    for target in targets[:: max(1, targets.size // _SAMPLE)].tolist():
        content = l2_content(space, target)
        strong += content.plausible
        wrong += content.is_foreign or (not content.plausible and not content.empty and content.valid == 0)
    return strong, wrong


def l1_bad(space: Workspace, words: NDArray[np.uint64]) -> NDArray[np.bool_]:
    """L1 entries (not 0) with reserved bits, an unaligned offset, offset 0 or one past the end of the file."""
    each = Pointers(words, PointerTable.L1, space.meta.shape)
    return each.fault(Fault.RESERVED) | ~each.inside(space.end)


def leads_nowhere(space: Workspace, words: NDArray[np.uint64]) -> bool:
    """Every L1 entry in use leads to something that is no L2 table: the words are no L1 table at all."""
    used = words[words != 0]
    if not used.size:
        return False
    bad = l1_bad(space, used)
    targets = distinct(offset_of(used[~bad])).tolist()
    return not any(l2_content(space, target).may_be_table for target in targets)


def find_l1(
    space: Workspace, entries: int, taken: set[int], numbers: NDArray[np.int64] | None = None
) -> list[tuple[int, int]]:
    """(score, offset) of clusters that look like an L1 table of `entries` entries, best first. taken: offsets to leave out.

    An L1 table points at L2 tables, which point at data: a candidate counts by its entries that lead to plausible L2
    tables, and must have none that leads elsewhere. numbers: host clusters to look at (all without).
    """
    found = []
    span = max(entries, 1) * 8
    for offset, head in clusters(space, numbers):
        if offset in taken:
            continue
        words = head[: min(span, space.cluster) // 8] if span <= space.cluster else space.words(offset, entries)
        used = words[words != 0]
        if not used.size or l1_bad(space, used).any():
            continue
        if space.cluster > span and head[span // 8 :].any() and l1_bad(space, head[head != 0]).any():
            continue  # an L1 table fills the rest of its cluster with zeros, or was larger once
        strong, wrong = l1_score(space, offset, entries)
        if strong and not wrong:
            found.append((strong, offset))
    return sorted(found, key=lambda each: (-each[0], not space.ledger.leaked(each[1]), each[1]))


def clusters(space: Workspace, numbers: NDArray[np.int64] | None = None) -> Iterator[tuple[int, NDArray[np.uint64]]]:
    """(offset, content as native words) of the clusters `numbers` (all of the file without), all-zero ones left out.

    Reads at most SCAN_LIMIT bytes; holes cost nothing.
    """
    size, step = space.cluster, max(1, (4 << 20) // space.cluster)
    read = 0
    for first, count in _runs(space, numbers, step):
        if read >= SCAN_LIMIT:
            space.note(f"the search for lost tables stopped after {SCAN_LIMIT >> 30} GiB")
            return
        read += count * size
        raw = space.read(first * size, count * size)
        table: NDArray[Any] = np.frombuffer(raw, dtype=">u8").astype(np.uint64).reshape(count, -1)
        for row in np.flatnonzero(table.any(axis=1)).tolist():
            yield (first + row) * size, table[row]


def _runs(space: Workspace, numbers: NDArray[np.int64] | None, step: int) -> Iterator[tuple[int, int]]:
    size = space.cluster
    if numbers is not None:
        edges = np.flatnonzero(np.diff(numbers) != 1) + 1
        for part in np.split(numbers, edges):
            for at in range(0, part.size, step):
                yield int(part[at]), min(step, part.size - at)
        return
    position: int | None = 0
    while position is not None and position < space.size:
        position = space.overlay.next_data(position)
        if position is None:
            return
        first, end = position // size, -(-space.overlay.next_hole(position) // size)
        for at in range(first, end, step):
            yield at, min(step, end - at)
        position = max(end * size, position + 1)


def find_luks(space: Workspace) -> int | None:
    """Offset of a cluster that starts with a LUKS1 header, outside of anything that is referred to as guest data."""
    magic = int.from_bytes(LUKS_MAGIC + b"\0\1", "big")
    for offset, words in clusters(space):
        if int(words[0]) == magic:
            return offset
    return None
