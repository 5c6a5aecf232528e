"""Tables of entries as views: where they are, what an entry means, and runs of entries that say the same.

A table may have a million entries; runs are found in numpy, window by window, and come out as few values.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from enum import Enum
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Final

from formats.annotate import Node, annotate
from formats.bitfields import BitLayout
from formats.qcow2 import limits
from formats.qcow2.entries import offset_of
from formats.qcow2.refcounts import unpack
from formats.qcow2.tables import (
    BITMAP_TABLE_ENTRY,
    L1_ENTRY,
    REFCOUNT_TABLE_ENTRY,
    l2_layout,
    table_schema,
    words,
)
from workbench.engine.metadata import Metadata, Region
from workbench.units import GuestOffset, HostOffset

if TYPE_CHECKING:
    from numpy.typing import NDArray

_WINDOW: Final = 1 << 16
"""Entries that are looked at in one go."""


class TableKind(Enum):
    """The sorts of table an image has; the value names the schema of its entries."""

    L1 = "l1"
    L2 = "l2"
    REFCOUNT_TABLE = "refcount-table"
    REFCOUNT_BLOCK = "refcount-block"
    BITMAP_TABLE = "bitmap-table"


@dataclass(frozen=True, slots=True)
class Run:
    """Neighbouring entries that say the same, or whose offsets follow on from each other.

    first, count: entries.  words: raw value of the first entry (two for extended L2 entries).  step: how much the raw
    value grows from one entry to the next (0: all equal; cluster size: neighbouring clusters).  missing: the file ends
    before these entries; they read as zeros.
    """

    first: int
    count: int
    words: tuple[int, ...]
    step: int = 0
    missing: bool = False

    @property
    def last(self) -> int:
        return self.first + self.count - 1


@dataclass(frozen=True, slots=True)
class Table:
    """A table in the image file. region: the bytes it claims.  entries: as claimed, cut at QEMU's limits.

    number: which table of its sort (L1 index for an L2 table, refcount table index for a block, bitmap index).
    base: first guest offset (L1, L2) or host offset (refcount structures) that the table describes.
    snapshot: index of the snapshot it belongs to; None for the active disk.
    """

    kind: TableKind
    name: str
    region: Region
    entries: int
    number: int = 0
    base: int = 0
    snapshot: int | None = None

    def entry_bits(self, meta: Metadata) -> int:
        """Bits per entry."""
        assert meta.geometry is not None
        if self.kind is TableKind.REFCOUNT_BLOCK:
            return meta.geometry.refcount_bits
        return meta.geometry.l2_entry_size * 8 if self.kind is TableKind.L2 else 64

    def coverage(self, meta: Metadata) -> int:
        """Bytes (guest for L1, L2 and bitmap tables, host for refcount structures) that one entry describes.

        0 for a bitmap whose granularity makes no sense.
        """
        geometry = meta.geometry
        assert geometry is not None
        if self.kind is TableKind.BITMAP_TABLE:
            bitmap = meta.bitmap_directory.bitmaps[self.number]
            return geometry.cluster_size * 8 * bitmap.granularity if bitmap.granularity_bits < 64 else 0
        return {
            TableKind.L1: geometry.l2_coverage,
            TableKind.L2: geometry.cluster_size,
            TableKind.REFCOUNT_TABLE: geometry.refcount_block_coverage,
            TableKind.REFCOUNT_BLOCK: geometry.cluster_size,
        }[self.kind]

    def entry_offset(self, meta: Metadata, index: int) -> HostOffset:
        """Host offset of the byte that entry `index` starts in."""
        return HostOffset(self.region.offset + index * self.entry_bits(meta) // 8)

    def readable(self, meta: Metadata) -> int:
        """Entries that the file has bytes for."""
        room = max(0, meta.file_size - self.region.offset)
        return min(self.entries, room * 8 // self.entry_bits(meta))

    def columns(self, meta: Metadata, first: int, count: int) -> NDArray[Any]:
        """Raw entries `first`..: uint64 array of shape (n, 1), (n, 2) for extended L2; n is cut at the file's end.

        first must be a multiple of 8 for refcounts narrower than a byte.
        """
        bits = self.entry_bits(meta)
        count = max(0, min(count, self.readable(meta) - first))
        data = meta.storage.read(self.region.offset + first * bits // 8, (count * bits + 7) // 8)
        if self.kind is TableKind.REFCOUNT_BLOCK:
            assert meta.geometry is not None
            return unpack(data, meta.geometry.refcount_order)[:count].astype("u8").reshape(-1, 1)
        raw = words(data)
        width = bits // 64
        return raw[: raw.size // width * width].reshape(-1, width)

    def runs(self, meta: Metadata, first: int = 0, count: int | None = None, *, fold: bool = True) -> Iterator[Run]:
        """The entries `first`.. in order, folded into runs (one run per entry without `fold`)."""
        assert meta.geometry is not None
        end = self.entries if count is None else min(self.entries, first + count)
        readable = min(end, self.readable(meta))
        step = meta.geometry.cluster_size if self.kind is not TableKind.REFCOUNT_BLOCK else 0
        pending: Run | None = None
        at = first & ~7
        while at < readable:
            hole = self.hole(meta, at, readable) if fold else 0
            block = self.columns(meta, at, 0 if hole else min(_WINDOW, readable - at))
            if not len(block) and not hole:
                break
            skip = max(0, first - at)
            found = [Run(at + skip, hole - skip, (0,) * block.shape[1])] if hole > skip else None
            for run in found or _runs_of(block[skip:], at + skip, step, fold):
                if pending is None:
                    pending = run
                elif fold and (joined := _join(pending, run)):
                    pending = joined
                else:
                    yield pending
                    pending = run
            at += hole or len(block)
        if pending is not None:
            yield pending
        start = max(first, min(at, readable))
        if start < end:
            yield Run(start, end - start, (0,), 0, missing=True)

    def hole(self, meta: Metadata, at: int, end: int) -> int:
        """Entries from `at` on that lie in a hole of the file: zeros that need not be read. 0 for a short one."""
        bits = self.entry_bits(meta)
        start = self.region.offset + at * bits // 8
        data = meta.storage.next_data(start)
        clear = end - at if data is None else min(end - at, (data - start) * 8 // bits & ~7)
        return clear if clear >= _WINDOW else 0

    def layout(self, meta: Metadata, word: int) -> BitLayout | None:
        """Bit layout of an entry with this value; None for refcounts."""
        geometry = meta.geometry
        assert geometry is not None
        if self.kind is TableKind.L2:
            return l2_layout(word, geometry.cluster_bits, geometry.extended_l2)
        return _LAYOUTS.get(self.kind)

    def annotate(self, meta: Metadata, first: int, count: int) -> Node:
        """Annotated tree of `count` entries (for a few of them: one Python object per bit field)."""
        geometry = meta.geometry
        assert geometry is not None
        bits = self.entry_bits(meta)
        start = self.entry_offset(meta, first)
        data = meta.storage.read(start, (count * bits + 7) // 8)
        if self.kind is TableKind.REFCOUNT_BLOCK:
            from formats.qcow2.refcounts import REFCOUNT_BLOCK_SCHEMA

            return annotate(
                REFCOUNT_BLOCK_SCHEMA, data, name=self.kind.value, base=start, refcount_order=geometry.refcount_order
            )
        kind = "l2-extended" if self.kind is TableKind.L2 and geometry.extended_l2 else self.kind.value
        return annotate(
            table_schema(kind),
            data,
            name=self.kind.value,
            base=start,
            cluster_bits=geometry.cluster_bits,
            extended=geometry.extended_l2,
        )


_LAYOUTS: Final = {
    TableKind.L1: L1_ENTRY,
    TableKind.REFCOUNT_TABLE: REFCOUNT_TABLE_ENTRY,
    TableKind.BITMAP_TABLE: BITMAP_TABLE_ENTRY,
}


def _runs_of(block: NDArray[Any], base: int, step: int, fold: bool) -> Iterator[Run]:
    import numpy as np

    total = len(block)
    if not fold or total < 2:
        for index, row in enumerate(block.tolist()):
            yield Run(base + index, 1, tuple(row))
        return
    difference = block[1:, 0] - block[:-1, 0]
    same_rest = (block[1:, 1:] == block[:-1, 1:]).all(axis=1)
    sort = np.zeros(total - 1, dtype=np.uint8)
    sort[(difference == 0) & same_rest] = 1
    if step:
        mapped = offset_of(block[:-1, 0]) != 0
        sort[(difference == np.uint64(step)) & same_rest & mapped] = 2
    cuts = np.concatenate(([0], np.flatnonzero(sort[1:] != sort[:-1]) + 1, [total - 1])).tolist()
    at = 0  # first entry that no run has yet
    for left, right in pairwise(cuts):
        kind = int(sort[left])
        if kind == 0:
            for index in range(at, right):
                yield Run(base + index, 1, tuple(block[index].tolist()))
            at = max(at, right)
        elif at <= right:
            yield Run(base + at, right + 1 - at, tuple(block[at].tolist()), step if kind == 2 and right > at else 0)
            at = right + 1
    if at < total:
        yield Run(base + at, 1, tuple(block[at].tolist()))


def _join(left: Run, right: Run) -> Run | None:
    """One run out of two from neighbouring windows, when they go on in the same way."""
    if left.first + left.count != right.first or left.words[1:] != right.words[1:]:
        return None
    step = left.step or right.step
    if (left.count > 1 and left.step != step) or (right.count > 1 and right.step != step):
        return None
    if right.words[0] != left.words[0] + step * left.count:
        return None
    return replace(left, count=left.count + right.count, step=step)


# Which tables there are -----------------------------------------------------------------------------------------------


def l1_table(meta: Metadata, snapshot: int | None = None) -> Table:
    """The active L1 table, or that of snapshot number `snapshot`. IndexError when there is no such snapshot."""
    if snapshot is None:
        region, name = meta.l1_region, "L1"
    else:
        entry = meta.snapshots[snapshot]
        region, name = Region(entry.l1_table_offset, entry.l1_size * 8), f"snapshot {snapshot} L1"
    entries = min(region.length, limits.MAX_L1_SIZE) // 8
    return Table(TableKind.L1, name, region, entries, snapshot=snapshot)


def l2_table(meta: Metadata, l1_index: int, offset: int, snapshot: int | None = None) -> Table:
    """The L2 table at host `offset`, for L1 entry `l1_index`."""
    geometry = meta.geometry
    assert geometry is not None
    name = f"L2[{l1_index}]" if snapshot is None else f"snapshot {snapshot} L2[{l1_index}]"
    base = GuestOffset(l1_index * geometry.l2_coverage)
    return Table(
        TableKind.L2, name, Region(offset, geometry.cluster_size), geometry.l2_entries, l1_index, base, snapshot
    )


def refcount_table(meta: Metadata) -> Table:
    """The refcount table, cut at QEMU's 8 MiB."""
    region = meta.refcount_table_region
    entries = min(region.length, limits.MAX_REFCOUNT_TABLE_SIZE) // 8
    return Table(TableKind.REFCOUNT_TABLE, "refcount table", region, entries)


def refcount_block(meta: Metadata, number: int, offset: int) -> Table:
    """The refcount block at host `offset`, for entry `number` of the refcount table."""
    geometry = meta.geometry
    assert geometry is not None
    base = number * geometry.refcount_block_coverage
    region = Region(offset, geometry.cluster_size)
    return Table(
        TableKind.REFCOUNT_BLOCK, f"refcount block {number}", region, geometry.refcount_block_entries, number, base
    )


def bitmap_table(meta: Metadata, number: int) -> Table:
    """The table of bitmap `number`. IndexError when there is no such bitmap."""
    bitmap = meta.bitmap_directory.bitmaps[number]
    entries = min(bitmap.table_size, limits.MAX_BITMAP_TABLE_ENTRIES)
    region = Region(bitmap.table_offset, bitmap.table_size * 8)
    return Table(TableKind.BITMAP_TABLE, f"bitmap table {number}", region, entries, number)


def read_entry(meta: Metadata, table: Table, index: int) -> tuple[int, ...] | None:
    """Raw words of one entry without reading the rest; None past the end of the table or the file."""
    if not 0 <= index < table.readable(meta):
        return None
    block = table.columns(meta, index & ~7, (index & 7) + 1)
    return tuple(block[index & 7].tolist()) if len(block) > (index & 7) else None
