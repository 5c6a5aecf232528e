"""What an image says, as the preservation proof reads it: views, cells, references and stored refcounts.

A walk of its own on purpose: it shares the bit layouts with the rest, and no judgement. All host clusters are numbers of
clusters of the file; guest offsets and lengths are bytes.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from enum import IntEnum, IntFlag
from functools import cached_property
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from formats.qcow2 import limits, refcounts
from formats.qcow2.header import INCOMPATIBLE
from formats.qcow2.snapshots import Snapshot
from formats.qcow2.tables import (
    BITMAP_TABLE_ENTRY,
    COMPRESSED,
    COPIED,
    OFFSET_MASK,
    REFCOUNT_OFFSET_MASK,
    ZERO,
    compressed_range,
    distinct,
    words,
)
from workbench.engine.metadata import Region, load_metadata
from workbench.storage.base import Storage
from workbench.units import SUBCLUSTERS, Geometry, div_round_up

U64 = NDArray[np.uint64]
I64 = NDArray[np.int64]
_OFFSET: Final = np.uint64(OFFSET_MASK)
_PACKED: Final = np.uint64(COMPRESSED)
_COPIED: Final = np.uint64(COPIED)
FULL: Final = 65535
"""Where counts of references stop."""
_BATCH: Final = 1 << 19
_NEAR: Final = 64
"""Changed bytes this close belong to one range."""


class Cell(IntEnum):
    """What the guest finds in one cluster (or subcluster)."""

    HOLE = 0
    ZERO = 1
    DATA = 2
    PACKED = 3
    ERROR = 4


_MOST_PAST: Final = 1 << 15


class Use(IntFlag):
    """What a host cluster is referred to as."""

    DATA = 1
    TABLE = 2
    """A table or record that no other place can replace: header, L1, L2, snapshots, bitmaps, keys."""
    COUNTS = 4
    """Refcount table or block: can be made anew from the rest."""
    FLAGGED = 8
    """An entry of the active disk says COPIED."""
    WRONG = 16
    """Named by an entry that cannot be read: what it meant lies here, or near."""


@dataclass(frozen=True, slots=True)
class View:
    """One disk that can be read: the active one (snapshot None) or a snapshot's. l1: native words.  size: bytes."""

    snapshot: Snapshot | None
    l1: U64
    size: int

    @property
    def name(self) -> str:
        return "" if self.snapshot is None else self.snapshot.id


class Tally:
    """References to host clusters 0 to `size`, by number; counts saturate at 65535."""

    def __init__(self, size: int) -> None:
        self.counts: NDArray[np.uint16] = np.zeros(size, np.uint16)
        self.uses: NDArray[np.uint8] = np.zeros(size, np.uint8)
        self._total = 0
        """Upper bound of any count: below the limit nothing can overflow."""

    def add_run(self, first: int, length: int, weight: int, use: int) -> None:
        """`weight` references to each of `length` clusters from `first`; those outside of the file are left out."""
        where = slice(max(first, 0), min(first + length, self.counts.size))
        if where.start < where.stop:
            self._raise(where, weight, use)

    def add(self, clusters: I64, weight: int, use: int) -> None:
        """`weight` references for each occurrence."""
        clusters = clusters[(clusters >= 0) & (clusters < self.counts.size)]
        if not clusters.size:
            return
        if bool((clusters[1:] > clusters[:-1]).all()):
            self._raise(clusters, weight, use)
        else:
            where, times = np.unique(clusters, return_counts=True)
            self._raise(where, np.minimum(times * min(weight, FULL), FULL), use)

    def mark(self, clusters: I64, use: int) -> None:
        """Another use of clusters, without a reference."""
        self.uses[clusters[clusters < self.uses.size]] |= np.uint8(use)

    def _raise(self, where: Any, amount: Any, use: int) -> None:
        most = amount if isinstance(amount, int) else int(amount.max())
        self._total += most
        if self._total <= FULL:
            self.counts[where] += np.asarray(amount, dtype=np.uint16)
        else:
            summed = self.counts[where].astype(np.uint32) + np.asarray(np.minimum(amount, FULL), dtype=np.uint32)
            self.counts[where] = np.minimum(summed, FULL).astype(np.uint16)
        self.uses[where] |= np.uint8(use)


class Sparse:
    """The same for few clusters: rows of (cluster, weight, use), summed when they are asked for."""

    def __init__(self) -> None:
        self._rows: list[tuple[I64, int, int]] = []
        self._marks: list[tuple[I64, int]] = []

    def add_run(self, first: int, length: int, weight: int, use: int) -> None:
        self._rows.append((np.arange(first, first + length, dtype=np.int64), weight, use))

    def add(self, clusters: I64, weight: int, use: int) -> None:
        self._rows.append((clusters, weight, use))

    def mark(self, clusters: I64, use: int) -> None:
        self._marks.append((clusters, use))

    def rows(self) -> tuple[I64, I64, NDArray[np.uint8]]:
        """(clusters in order, weights, uses), each cluster once."""
        every = [*self._rows, *((clusters, 0, use) for clusters, use in self._marks)]
        if not every:
            none = np.zeros(0, np.int64)
            return none, none, none.astype(np.uint8)
        clusters = np.concatenate([each[0] for each in every])
        weights = np.concatenate([np.full(each[0].size, min(each[1], FULL), np.int64) for each in every])
        uses = np.concatenate([np.full(each[0].size, each[2], np.uint8) for each in every])
        order = np.argsort(clusters, kind="stable")
        clusters, weights, uses = clusters[order], weights[order], uses[order]
        if not clusters.size:
            return clusters, weights, uses
        starts = np.flatnonzero(np.append(True, clusters[1:] != clusters[:-1]))
        return clusters[starts], np.add.reduceat(weights, starts), np.bitwise_or.reduceat(uses, starts)


class References:
    """Who refers to what in one image: a tally shared with the other image, and this one's own few rows."""

    def __init__(self, shared: Tally, own: Sparse, clusters: int) -> None:
        self.clusters = clusters
        self._shared = shared
        self.rows, self._weights, self._uses = own.rows()
        inside = (self.rows >= 0) & (self.rows < clusters)
        self.rows, self._weights, self._uses = self.rows[inside], self._weights[inside], self._uses[inside]

    def span(self, first: int, end: int) -> tuple[I64, NDArray[np.uint8]]:
        """(counts, uses) of the clusters first to end (exclusive)."""
        counts, uses = np.zeros(end - first, np.int64), np.zeros(end - first, np.uint8)
        part = self._shared.counts[first:end]
        counts[: part.size], uses[: part.size] = part, self._shared.uses[first:end]
        low, high = np.searchsorted(self.rows, (first, end))
        at = self.rows[low:high] - first
        counts[at] += self._weights[low:high]
        uses[at] |= self._uses[low:high]
        return counts, uses

    def at(self, clusters: I64) -> tuple[I64, NDArray[np.uint8]]:
        """(counts, uses) of these clusters; nothing for those outside of the file."""
        counts, uses = np.zeros(clusters.shape, np.int64), np.zeros(clusters.shape, np.uint8)
        inside = (clusters >= 0) & (clusters < self._shared.counts.size)
        counts[inside], uses[inside] = self._shared.counts[clusters[inside]], self._shared.uses[clusters[inside]]
        if self.rows.size:
            place = np.minimum(np.searchsorted(self.rows, clusters), self.rows.size - 1)
            hit = self.rows[place] == clusters
            counts[hit] += self._weights[place[hit]]
            uses[hit] |= self._uses[place[hit]]
        return counts, uses

    def one(self, cluster: int) -> tuple[int, int]:
        """(count, uses) of a cluster."""
        counts, uses = self.at(np.array([cluster], dtype=np.int64))
        return int(counts[0]), int(uses[0])

    def referenced(self, clusters: int) -> NDArray[np.bool_]:
        """Whether anything refers to the clusters 0 to `clusters`."""
        out = np.zeros(clusters, dtype=bool)
        part = self._shared.counts[:clusters]
        out[: part.size] = part > 0
        out[self.rows[(self.rows < clusters) & (self._weights > 0)]] = True
        return out


@dataclass(eq=False)
class Reading:
    """One image, read tolerantly. geometry None: nothing can be located."""

    storage: Storage
    meta: Any = field(init=False)
    geometry: Geometry | None = field(init=False)
    gaps: bool = False
    """Seen while counting: an entry that leads nowhere, or a table without any entry. Data may have lost its mapping."""
    past: set[int] = field(default_factory=set)
    """Seen while counting: numbers of clusters past the end of the file that entries mean; at most some ten thousand."""

    def __post_init__(self) -> None:
        self.meta = load_metadata(self.storage)
        self.geometry = self.meta.geometry

    @property
    def shape(self) -> Geometry:
        assert self.geometry is not None
        return self.geometry

    @property
    def bits(self) -> int:
        return self.shape.cluster_bits

    @property
    def blank(self) -> bool:
        """The active disk has a size and an L1 table, and no entry in it."""
        return self.meta.header.size > 0 and self.meta.l1.size > 0 and not self.meta.l1.any()

    @property
    def size(self) -> int:
        """Length of the file in bytes."""
        return int(self.meta.file_size)

    @property
    def clusters(self) -> int:
        return div_round_up(self.size, 1 << self.bits)

    @property
    def external(self) -> bool:
        """Guest data lies in another file."""
        return bool(self.meta.header.has("data_file"))

    @property
    def backed(self) -> bool:
        return bool(self.meta.header.backing_file_offset)

    def read(self, offset: int, length: int) -> bytes:
        """Exactly `length` bytes, zeros past the end of the file."""
        return self.storage.read(offset, length).ljust(length, b"\0")

    # -- views

    def views(self) -> Iterator[View]:
        """The active disk, then each snapshot whose L1 table can be located.

        Of an L1 table as much is read as the disk (and the VM state behind it) needs, or as fills its first cluster: a
        damaged length would take the file's other content for tables.
        """
        header, least = self.meta.header, (1 << self.bits) // 8
        if header.l1_table_offset % (1 << self.bits) == 0 and 0 < header.l1_table_offset < self.size:
            yield View(None, self.meta.l1[: max(self.shape.l1_entries_for(header.size), least)], header.size)
        elif not header.l1_size:
            yield View(None, np.zeros(0, dtype=np.uint64), header.size)
        for each in self.meta.snapshots:
            inside = each.l1_table_offset % (1 << self.bits) == 0 and 0 < each.l1_table_offset < self.size
            if inside and each.l1_size * 8 <= limits.MAX_L1_SIZE:
                size = each.disk_size if each.disk_size is not None else header.size
                needed = self.shape.l1_entries_for(size) + self.shape.l1_entries_for(each.vm_state_size) + 1
                yield View(each, self.meta.snapshot_l1(each)[: max(needed, least)], size)

    def table(self, word: int) -> tuple[U64, U64 | None] | None:
        """(entries, subcluster bitmaps) that an L1 entry leads to; None when nothing sensible can be read there.

        That is where QEMU refuses to, and where the table's cluster is the header's or the refcounts'.
        """
        offset = word & OFFSET_MASK
        if offset & ((1 << self.bits) - 1) or (offset and offset in self._fixed_places):
            return None
        count = (1 << self.bits) // 8
        found = np.zeros(count, np.uint64) if not offset else words(self.read(offset, count * 8))
        return (found[0::2], found[1::2]) if self.shape.extended_l2 else (found, None)

    @cached_property
    def own_places(self) -> U64:
        """Offsets of the clusters of refcount table and active L1 table, each where it makes sense; sorted."""
        size, header, places = 1 << self.bits, self.meta.header, [np.zeros(0, dtype=np.uint64)]
        region = self.meta.refcount_table_region
        if not region.offset % size and self._counts_itself:
            places.append(self._clusters_of(region.offset, min(region.length, limits.MAX_REFCOUNT_TABLE_SIZE)))
        used = self.meta.l1[self.meta.l1 != 0] & _OFFSET
        good = (used % np.uint64(size) == 0) & (used < np.uint64(self.size))
        if header.l1_table_offset % size == 0 and int(good.sum()) * 2 > used.size:
            places.append(self._clusters_of(header.l1_table_offset, min(header.l1_size * 8, limits.MAX_L1_SIZE)))
        return distinct(np.concatenate(places))

    def _clusters_of(self, offset: int, length: int) -> U64:
        return np.arange(offset, offset + length, 1 << self.bits, dtype=np.uint64)

    def is_own(self, offset: int) -> bool:
        """Whether a byte of the file is the header's, the refcount table's or the L1 table's: no guest's data lies there,
        though an entry may lead to it."""
        place = np.uint64(offset & -(1 << self.bits))
        return not place or bool((self.own_places == place).any())

    @cached_property
    def _fixed_places(self) -> frozenset[int]:
        """Offsets of clusters that can be no L2 table: refcount structures, and the active L1 table."""
        blocks = self.block_offsets() if self._counts_itself else np.zeros(0, dtype=np.uint64)
        return frozenset([*self.own_places.tolist(), *blocks[blocks > 1].tolist()])

    @cached_property
    def _counts_itself(self) -> bool:
        """The refcount structure counts its table and its first block, as one does that is where the header says."""
        blocks = self.block_offsets()
        used = np.flatnonzero(blocks > 1)
        if not used.size:
            return False
        for place in (self.meta.refcount_table_region.offset, int(blocks[used[0]])):
            index, inner = divmod(place >> self.bits, self.shape.refcount_block_entries)
            values = self.stored(index, blocks)
            if values is None or not int(values[inner]):
                return False
        return True

    def cells(self, entries: U64, bitmaps: U64 | None, guest: int) -> tuple[NDArray[np.uint8], U64]:
        """(Cell, host offset or descriptor) per unit: shape (entries, 32) with extended L2 entries, else (entries, 1).

        guest: offset in the disk that the first entry describes. A data file must have the data at the same offset.
        """
        packed = (entries & _PACKED) != 0
        offset = entries & _OFFSET
        wild = (offset & np.uint64((1 << self.bits) - 1)) != 0
        placed = offset != 0
        if self.external:
            placed |= (entries & _COPIED) != 0
            here = np.uint64(guest) + (np.arange(entries.size, dtype=np.uint64) << np.uint64(self.bits))
            wild |= packed | (placed & (offset != here))
        if bitmaps is None:
            zero = (entries & np.uint64(ZERO)) != 0
            kind = np.where(placed, np.uint8(Cell.DATA), np.uint8(Cell.HOLE))
            kind[zero] = Cell.ZERO if self.meta.header.version >= 3 else Cell.ERROR
            kind[packed] = Cell.PACKED
            kind[wild & (self.external | ~packed)] = Cell.ERROR
            return kind[:, None], np.where(packed, entries & ~_COPIED, offset)[:, None]
        place = np.arange(SUBCLUSTERS, dtype=np.uint64)
        has = ((bitmaps[:, None] >> place) & np.uint64(1)) != 0
        zero = ((bitmaps[:, None] >> (place + np.uint64(SUBCLUSTERS))) & np.uint64(1)) != 0
        kinds = np.where(has, np.uint8(Cell.DATA), np.where(zero, np.uint8(Cell.ZERO), np.uint8(Cell.HOLE)))
        kinds[has & (zero | ~placed[:, None])] = Cell.ERROR
        kinds[packed] = Cell.PACKED
        kinds[wild & (self.external | ~packed)] = Cell.ERROR
        hosts = offset[:, None] + place * np.uint64(self.shape.subcluster_size)
        hosts[packed] = (entries & ~_COPIED)[packed][:, None]
        return kinds, hosts

    # -- references, right or wrong

    def count(self, tables: Iterable[tuple[int, int, bool]], into: Tally | Sparse) -> None:
        """Add the L2 tables (host offset, users, used by the active disk) and all that their entries name."""
        step = max(1, _BATCH >> self.bits)
        rows = [each for each in tables if each[0] < self.size]
        wide, external, size = self.shape.extended_l2, self.external, 1 << self.bits
        at = 0
        while at < len(rows):
            last = at + 1
            while last < len(rows) and last - at < step and rows[last][0] == rows[last - 1][0] + size:
                last += 1
            if rows[at][0] & (size - 1):
                self.gaps = True
                into.mark(np.array([rows[at][0] >> self.bits, (rows[at][0] >> self.bits) + 1]), Use.WRONG)
                at += 1
                continue
            data = words(self.read(rows[at][0], (last - at) * size)).reshape(last - at, -1)
            for row, (offset, users, active) in zip(data, rows[at:last], strict=True):
                into.add_run(offset >> self.bits, 1, users, Use.TABLE)
                if wide or external or not self._one_run(row, users, active, into):
                    self.gaps |= not row.any()
                    self._entries(row[0::2] if wide else row, users, active, into)
                    self._unreadable(row, into)
            at = last

    def _one_run(self, row: U64, users: int, active: bool, into: Tally | Sparse) -> bool:
        """A table whose clusters lie one behind the other, all with the same flag: counted at once. Else False."""
        first, size = int(row[0]), 1 << self.bits
        place = first & OFFSET_MASK & -size
        if not place or first & ~(COPIED | ZERO) != place or (first & ZERO and self.meta.header.version < 3):
            return False
        if int(row[-1]) - first != (row.size - 1) * size or place + row.size * size > self.size:
            return False
        if not bool((row[1:] - row[:-1] == np.uint64(size)).all()):
            return False
        flagged = Use.FLAGGED if first & COPIED and active else 0
        into.add_run(place >> self.bits, row.size, users, Use.DATA | flagged)
        return True

    def _entries(self, entries: U64, users: int, active: bool, into: Tally | Sparse) -> None:
        bits, inner = np.uint64(self.bits), np.uint64((1 << self.bits) - 1)
        is_packed = (entries & _PACKED) != 0
        if self.external:
            return
        plain = entries[~is_packed]
        offset = plain & _OFFSET
        plain, offset = plain[offset != 0], offset[offset != 0]
        clusters = (offset >> bits).astype(np.int64)
        into.add(clusters, users, Use.DATA)
        if active:
            into.mark(clusters[(plain & _COPIED) != 0], Use.FLAGGED)
        if clusters.size and int(clusters.max()) >= self.clusters:
            self.gaps = True
            self.past.update(clusters[clusters >= self.clusters][: max(0, _MOST_PAST - len(self.past))].tolist())
        wild = (offset & inner) != 0
        if wild.any():
            self.gaps = True
            into.add(clusters[wild] + 1, users, Use.DATA)
            into.mark(np.concatenate([clusters[wild], clusters[wild] + 1]), Use.WRONG)
        packed = entries[is_packed] & ~_COPIED
        if packed.size:
            start, end = compressed_range(packed, self.bits)
            low, high = (start >> bits).astype(np.int64), ((end - np.uint64(1)) >> bits).astype(np.int64)
            into.add(low, users, Use.DATA)
            for extra in (1, 2):
                into.add((low + extra)[low + extra <= high], users, Use.DATA)

    def _unreadable(self, row: U64, into: Tally | Sparse) -> None:
        """Mark what entries name that are aligned, but which no reader accepts."""
        if self.external:
            return
        if self.shape.extended_l2:
            bitmaps, entries = row[1::2], row[0::2]
            odd = (bitmaps & (bitmaps >> np.uint64(SUBCLUSTERS)) & np.uint64(0xFFFFFFFF)) != 0
        elif self.meta.header.version < 3:
            entries, odd = row, (row & np.uint64(ZERO)) != 0
        else:
            return
        named = entries[odd & ((entries & _PACKED) == 0)] & _OFFSET
        into.mark((named[named != 0] >> np.uint64(self.bits)).astype(np.int64), Use.WRONG)

    def l2_tables(self) -> dict[int, tuple[int, bool]]:
        """Host offset -> (users, used by the active disk) of every L2 table that any L1 table names."""
        offsets, users, active = [], [], []
        for view in self.views():
            found = view.l1[(view.l1 & _OFFSET) != 0] & _OFFSET
            offsets.append(found)
            users.append(np.ones(found.size, np.int64))
            active.append(np.full(found.size, view.snapshot is None))
        if not offsets:
            return {}
        every = np.concatenate(offsets)
        unique, place = np.unique(every, return_inverse=True)
        times = np.bincount(place, minlength=unique.size)
        ours = np.bincount(place, weights=np.concatenate(active), minlength=unique.size) > 0
        return dict(zip(unique.tolist(), zip(times.tolist(), ours.tolist(), strict=True), strict=True))

    def _records(self) -> tuple[Snapshot, ...]:
        """Snapshots up to the last one whose L1 table can be: a count that is too high reads records out of anything."""
        found, cluster = self.meta.snapshots, 1 << self.bits
        credible = [
            0 < each.l1_size * 8 <= limits.MAX_L1_SIZE
            and 0 < each.l1_table_offset < self.size
            and each.l1_table_offset % cluster == 0
            for each in found
        ]
        return found[: len(found) - credible[::-1].index(True)] if any(credible) else ()

    def structures(self) -> Iterator[tuple[int, int, int]]:
        """(host offset, length, Use) of everything but L2 tables and guest data."""
        meta, header, cluster = self.meta, self.meta.header, 1 << self.bits
        yield 0, cluster, Use.TABLE
        if header.l1_size and header.l1_table_offset:
            yield header.l1_table_offset, min(header.l1_size * 8, limits.MAX_L1_SIZE), Use.TABLE
        records = self._records()
        for each in records:
            yield each.l1_table_offset, min(each.l1_size * 8, limits.MAX_L1_SIZE), Use.TABLE
        if header.nb_snapshots and 0 < header.snapshots_offset < self.size:
            end = records[-1].offset + len(records[-1].raw) if records else header.snapshots_offset + 1
            yield header.snapshots_offset, end - header.snapshots_offset, Use.TABLE
        extension = meta.bitmaps_extension
        if extension is not None and extension.directory_offset < self.size:
            yield (
                extension.directory_offset,
                min(extension.directory_size, limits.MAX_BITMAP_DIRECTORY_SIZE),
                Use.TABLE,
            )
            for each in meta.bitmap_directory.bitmaps:
                table = Region(each.table_offset, each.table_size * 8)
                yield table.offset, min(table.length, max(0, self.size - table.offset)), Use.TABLE
                room = max(0, self.size - table.offset)
                for place in BITMAP_TABLE_ENTRY["offset"].get(meta.read_words(table, room)).tolist():
                    if place:
                        yield place, cluster, Use.TABLE
        if meta.encryption is not None and header.crypt_method == 2:
            yield meta.encryption.offset, min(meta.encryption.length, limits.MAX_LUKS_HEADER_SIZE), Use.TABLE
        region = meta.refcount_table_region
        if region.offset and region.offset < self.size:
            yield region.offset, min(region.length, limits.MAX_REFCOUNT_TABLE_SIZE), Use.COUNTS
        for place in (self.block_offsets()).tolist():
            if place:
                yield place, cluster, Use.COUNTS

    def count_structures(self, into: Sparse) -> None:
        """Add everything but L2 tables and guest data, and mark the L2 tables that the active L1 calls COPIED."""
        for offset, length, use in self.structures():
            if length > 0 and offset < self.size:
                first, last = offset >> self.bits, (min(offset + length, self.size) - 1) >> self.bits
                into.add_run(first, last - first + 1, 1, use)
        for view in self.views():
            if view.snapshot is None:
                marked = view.l1[(view.l1 & _COPIED) != 0] & _OFFSET
                into.mark((marked >> np.uint64(self.bits)).astype(np.int64), Use.FLAGGED)

    # -- refcounts as stored

    def block_offsets(self) -> U64:
        """Offset of each refcount block that can be read, 0 where none is named, odd (1) where it cannot be read."""
        table = self.meta.refcount_table
        where = self.meta.header.refcount_table_offset
        if not where or where % (1 << self.bits):  # in the header there is no table
            return np.ones_like(table)
        place = table & np.uint64(REFCOUNT_OFFSET_MASK)
        bad = ((place & np.uint64((1 << self.bits) - 1)) != 0) | (place >= np.uint64(max(self.size, 1)))
        return np.where(bad, np.uint64(1), place)

    def stored(self, block: int, blocks: U64) -> NDArray[Any] | None:
        """Refcounts of block number `block`; None where they cannot be read. A missing block says 0."""
        per_block = self.shape.refcount_block_entries
        if block >= blocks.size:
            return np.zeros(per_block, np.uint8) if blocks.size else None
        place = int(blocks[block])
        if place == 1 or self.meta.header.refcount_order > limits.MAX_REFCOUNT_ORDER:
            return None
        if not place:
            return np.zeros(per_block, np.uint8)
        return refcounts.unpack(self.read(place, 1 << self.bits), self.shape.refcount_order)


def _format(reading: Reading) -> str | None:
    return reading.meta.backing_format or None if reading.meta.backing_name else None


def same_reading(one: Reading, other: Reading) -> list[str]:
    """Names of the header fields that decide how tables are read and that differ."""
    a, b = one.meta.header, other.meta.header
    data = INCOMPATIBLE["data_file"].mask | INCOMPATIBLE["extended_l2"].mask
    pairs = {
        "cluster_bits": (a.cluster_bits, b.cluster_bits),
        "extended L2 or data file bit": (a.incompatible_features & data, b.incompatible_features & data),
        "encryption method": (a.crypt_method, b.crypt_method),
        "backing file name": (one.meta.backing_name, other.meta.backing_name),
        "backing file format": (_format(one), _format(other)),
        "data file name": (one.meta.data_file_name, other.meta.data_file_name),
    }
    return [name for name, (left, right) in pairs.items() if left != right]


def changed_ranges(base: Storage, after: Any) -> list[tuple[int, int]]:
    """[start, end) of the base's bytes that differ in the overlay `after`, or are cut off there; in file order."""
    size = base.size()
    out: list[tuple[int, int]] = []
    for edit in after.iter_edits():
        length = min(max(len(edit.old), len(edit.new)), size - edit.offset)
        if length <= 0:
            continue
        old, new = (np.frombuffer(each.ljust(length, b"\0")[:length], dtype=np.uint8) for each in (edit.old, edit.new))
        differs = np.flatnonzero(old != new) if len(edit.new) >= length else np.arange(length)
        for run in np.split(differs, np.flatnonzero(np.diff(differs) >= _NEAR) + 1):
            if run.size:
                out.append((edit.offset + int(run[0]), edit.offset + int(run[-1]) + 1))
    return out


def nonzero(reading: Reading, cluster: int) -> int:
    """Bytes of a host cluster in 512-byte units that are not all zero."""
    offset, size = cluster << reading.bits, 1 << reading.bits
    with contextlib.suppress(AttributeError):
        start = reading.storage.next_data(offset)
        if start is None or start >= offset + size:
            return 0
    data = np.frombuffer(reading.read(offset, size), dtype=np.uint64).reshape(-1, 64)
    return int(data.any(axis=1).sum()) * 512
