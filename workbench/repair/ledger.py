"""The ledger: how often each host cluster ought to be counted, by the tables as they stand in a workspace.

Unlike the check's census it is exact and whole (9 bytes per cluster): it is what refcounts are rebuilt from. It follows
only references that make sense; a fix that finds others removes them and the ledger is made anew.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from formats.qcow2 import limits, refcounts
from formats.qcow2.entries import (
    Fault,
    Pointers,
    PointerTable,
    is_compressed,
    offset_of,
    one_run_tables,
    packed_range,
)
from formats.qcow2.tables import distinct
from workbench.check.kinds import Owner
from workbench.check.tables import ACTIVE, Batch, Collector, L1Table, L2Set, empty_set, read_batch
from workbench.engine.metadata import Metadata
from workbench.errors import UnsupportedError
from workbench.units import div_round_up

if TYPE_CHECKING:
    from workbench.repair.workspace import Workspace

MAX_CLUSTERS: Final = 1 << 28
META, DATA, PACKED, CROSSED, OLD_DATA = 1, 2, 4, 8, 16
"""Flags: metadata; standard cluster of the active disk; compressed data; two of the former; snapshot's cluster."""


@dataclass(frozen=True, slots=True)
class Claim:
    """A metadata structure's place. index: L1 or refcount table index; snapshot: number, -1 without one."""

    owner: Owner
    offset: int
    length: int
    index: int = -1
    snapshot: int = -1

    def overlaps(self, start: int, end: int) -> bool:
        """Whether it has a byte of [start, end)."""
        return self.offset < end and start < self.offset + self.length


@dataclass(slots=True)
class Ledger:
    """counts: uint32 references per host cluster of the file.  flags: uint8, see above.  stored: the refcounts as the
    image has them (unsigned, as wide as they are there; 0 where unknown), known: where they could be read.  tables: every
    L2 table once.

    wild: numbers of the clusters past the end of the file that references name, int64, each once, in order.
    """

    cluster_bits: int
    counts: NDArray[np.uint32]
    flags: NDArray[np.uint8]
    stored: NDArray[Any]
    known: NDArray[np.bool_]
    tables: L2Set
    claims: list[Claim] = field(default_factory=list)
    wild: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    _past: list[NDArray[np.int64]] = field(default_factory=list)

    @property
    def clusters(self) -> int:
        return int(self.counts.size)

    def unreferenced(self, offset: int) -> bool:
        """True for a cluster of the file that no table refers to."""
        at = offset >> self.cluster_bits
        return at < self.clusters and not self.counts[at]

    def leaked(self, offset: int) -> bool:
        """Unreferenced, though its refcount says that it is in use (or cannot be read)."""
        at = offset >> self.cluster_bits
        return self.unreferenced(offset) and (not self.known[at] or bool(self.stored[at]))

    def leaks(self) -> NDArray[np.int64]:
        """Numbers of the unreferenced clusters whose stored refcount is known and not 0."""
        return np.flatnonzero((self.counts == 0) & (self.stored > 0)).astype(np.int64)

    def maybe_leaked(self) -> NDArray[np.int64]:
        """Numbers of the unreferenced clusters that are counted as in use, or whose refcount cannot be read."""
        return np.flatnonzero((self.counts == 0) & (~self.known | (self.stored > 0))).astype(np.int64)

    def claims_at(self, offset: int) -> list[Claim]:
        """Metadata structures (L2 tables excepted) in the cluster at `offset`."""
        size = 1 << self.cluster_bits
        start = offset & -size
        return [each for each in self.claims if each.overlaps(start, start + size)]

    # -- making it

    def settle(self) -> None:
        """Everything was added."""
        self.wild = distinct(np.concatenate([self.wild, *self._past]))
        self._past.clear()

    def add_range(self, offset: int, length: int, flag: int) -> None:
        first = offset >> self.cluster_bits
        last = min(div_round_up(offset + length, 1 << self.cluster_bits), self.clusters)
        if length > 0 and first < last:
            self.counts[first:last] += 1
            self.flags[first:last] |= np.uint8(flag)

    def add(self, numbers: NDArray[np.int64], weight: int, flag: int) -> None:
        """`weight` references for each occurrence; those past the end, as far as a file can reach, are wild ones."""
        past = numbers[(numbers >= self.clusters) & (numbers < MAX_CLUSTERS)]
        if past.size:
            self._past.append(distinct(past))
        numbers = numbers[(numbers >= 0) & (numbers < self.clusters)]
        if not numbers.size or not weight:
            return
        if bool((numbers[1:] > numbers[:-1]).all()):
            unique, times = numbers, np.ones(1, dtype=np.int64)
        else:
            unique, times = np.unique(numbers, return_counts=True)
        flags = self.flags[unique]
        if flag == DATA:
            flags[((flags & DATA) != 0) | (times > 1)] |= np.uint8(CROSSED)
        self.counts[unique] += (times * weight).astype(np.uint32)
        self.flags[unique] = flags | np.uint8(flag)

    def add_run(self, first: int, clusters: int, weight: int, flag: int) -> None:
        """`weight` references to each of `clusters` neighbours inside the file from number `first` on."""
        where = slice(first, first + clusters)
        flags = self.flags[where]
        if flag == DATA:
            flags[(flags & DATA) != 0] |= np.uint8(CROSSED)
        flags |= np.uint8(flag)
        self.counts[where] += np.uint32(weight)


def build_ledger(space: Workspace) -> Ledger:
    """Count everything. Raises UnsupportedError for files of more than 2^28 clusters."""
    geometry = space.geometry
    clusters = space.end >> geometry.cluster_bits
    if clusters > MAX_CLUSTERS:
        raise UnsupportedError(f"{clusters} clusters are too many to repair in one go", path=space.base.path)
    ledger = Ledger(
        geometry.cluster_bits,
        np.zeros(clusters, np.uint32),
        np.zeros(clusters, np.uint8),
        np.zeros(clusters, refcounts.unpack(b"", geometry.refcount_order).dtype),
        np.zeros(clusters, np.bool_),
        empty_set(),
    )
    for claim in named_claims(space):
        ledger.claims.append(claim)
        ledger.add_range(claim.offset, claim.length, META)
    _refcount_blocks(space, ledger)
    _guest_tables(space, ledger)
    _bitmap_data(space, ledger)
    _blocks_without_counts(space, ledger)
    ledger.settle()
    return ledger


def _blocks_without_counts(space: Workspace, ledger: Ledger) -> None:
    """A block that is not there, or empty, says 0 clearly unless clusters of its range are in use: then it is lost."""
    per_block, words = space.geometry.refcount_block_entries, space.meta.refcount_table
    for index in range(min(words.size, -(-ledger.clusters // per_block))):
        part = slice(index * per_block, (index + 1) * per_block)
        if not words[index] or (ledger.known[part].all() and not ledger.stored[part].any()):
            ledger.known[part] = not ledger.counts[part].any()


def plain_claims(meta: Metadata) -> Iterator[Claim]:
    """The structures that header and snapshot table name, as far as they lie in the file; of L1 tables the aligned ones."""
    header, geometry = meta.header, meta.geometry
    assert geometry is not None
    cluster = geometry.cluster_size
    yield Claim(Owner.HEADER, 0, cluster)
    if header.l1_size and header.l1_table_offset < meta.file_size and not header.l1_table_offset % cluster:
        yield Claim(Owner.ACTIVE_L1, header.l1_table_offset, min(header.l1_size * 8, limits.MAX_L1_SIZE))
    snapshots = meta.snapshots if not header.snapshots_offset % cluster else ()
    if snapshots:
        start = header.snapshots_offset
        yield Claim(Owner.SNAPSHOT_TABLE, start, meta.snapshot_table.end - start)
    for number, each in enumerate(snapshots):
        if each.l1_size and each.l1_table_offset < meta.file_size and not each.l1_table_offset % cluster:
            length = min(each.l1_size * 8, limits.MAX_L1_SIZE)
            yield Claim(Owner.INACTIVE_L1, each.l1_table_offset, length, snapshot=number)
    extension = meta.bitmaps_extension
    if extension is not None and header.has("bitmaps") and extension.directory_offset < meta.file_size:
        length = min(extension.directory_size, limits.MAX_BITMAP_DIRECTORY_SIZE)
        yield Claim(Owner.BITMAP_DIRECTORY, extension.directory_offset, length)
        for number, bitmap in enumerate(meta.bitmap_directory.bitmaps):
            if bitmap.table_offset < meta.file_size:
                size = min(bitmap.table_size * 8, meta.file_size - bitmap.table_offset)
                yield Claim(Owner.BITMAP_TABLE, bitmap.table_offset, size, index=number)
    pointer = meta.encryption
    if pointer is not None and header.crypt_method == 2 and pointer.offset < meta.file_size:
        yield Claim(Owner.LUKS_HEADER, pointer.offset, min(pointer.length, limits.MAX_LUKS_HEADER_SIZE))


def named_claims(space: Workspace) -> Iterator[Claim]:
    """`plain_claims`, and the refcount table as far as it lies in the file: all but tables and blocks that tables name."""
    yield from plain_claims(space.meta)
    region = space.meta.refcount_table_region
    if space.meta.refcount_table.size and region.offset < space.size:
        yield Claim(Owner.REFCOUNT_TABLE, region.offset, min(region.length, limits.MAX_REFCOUNT_TABLE_SIZE))


def good_blocks(space: Workspace) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """(refcount table words, offset of each usable block or 0): aligned, in the file, no reserved bits, and with
    content that can be refcounts: what holds something else is never written over."""
    meta = space.meta
    words = meta.refcount_table
    if not meta.header.refcount_table_offset or meta.header.refcount_table_offset % space.cluster:
        return words, np.zeros_like(words)
    each = Pointers(words, PointerTable.REFCOUNT, meta.shape)
    offset, good = each.offset, each.inside(space.end) & ~each.fault(Fault.RESERVED)
    order = space.geometry.refcount_order
    for index in np.flatnonzero(good).tolist():
        good[index] = refcounts.may_be_refcounts(refcounts.unpack(space.read_cluster(int(offset[index])), order))
    return words, np.where(good, offset, np.uint64(0))


def _refcount_blocks(space: Workspace, ledger: Ledger) -> None:
    meta, geometry = space.meta, space.geometry
    words, blocks = good_blocks(space)
    if not words.size or meta.refcount_table_region.offset >= space.size:
        return
    used = np.flatnonzero(blocks)
    ledger.add((blocks[used] >> np.uint64(geometry.cluster_bits)).astype(np.int64), 1, META)
    per_block = geometry.refcount_block_entries
    for index in used.tolist():
        offset = int(blocks[index])
        ledger.claims.append(Claim(Owner.REFCOUNT_BLOCK, offset, geometry.cluster_size, index=index))
        first = index * per_block
        if first < ledger.clusters:
            values = refcounts.unpack(space.read_cluster(offset), geometry.refcount_order)
            count = min(per_block, ledger.clusters - first)
            ledger.stored[first : first + count] = values[:count]
            ledger.known[first : first + count] = True


def l2_set(space: Workspace) -> L2Set:
    """Every L2 table once that an L1 table refers to in a way that makes sense: aligned and in the file."""
    collector = Collector()
    for table in l1_tables(space):
        good = Pointers(table.entries, PointerTable.L1, space.meta.shape).inside(space.end)
        collector.add(L1Table(table.offset, np.where(good, table.entries, np.uint64(0)), table.snapshot))
    return collector.result()


def l1_tables(space: Workspace) -> Iterator[L1Table]:
    """The active L1 table and those of the snapshots, as far as they lie in the file."""
    meta = space.meta
    if meta.header.l1_table_offset % space.cluster == 0:
        yield L1Table(meta.header.l1_table_offset, meta.l1, ACTIVE)
    for number, each in enumerate(meta.snapshots if not meta.header.snapshots_offset % space.cluster else ()):
        if each.l1_size * 8 > limits.MAX_L1_SIZE:
            continue
        if each.l1_table_offset % space.cluster == 0 and 0 < each.l1_table_offset < space.size:
            yield L1Table(each.l1_table_offset, meta.snapshot_l1(each), number)


def batches(space: Workspace, tables: L2Set) -> Iterator[Batch]:
    """The L2 tables in readable pieces."""
    step = max(1, (1 << 20) // space.cluster)
    rows = np.flatnonzero(tables.offset < np.uint64(space.size))
    for at in range(0, rows.size, step):
        yield read_batch(space.meta, tables, rows[at : at + step], space.geometry)


def _guest_tables(space: Workspace, ledger: Ledger) -> None:
    geometry = space.geometry
    bits = np.uint64(geometry.cluster_bits)
    tables = ledger.tables = l2_set(space)
    for table in l1_tables(space):
        offset = offset_of(table.entries)
        far = offset[(offset >= np.uint64(space.end)) & (offset % np.uint64(space.cluster) == 0)]
        ledger.add((far >> bits).astype(np.int64), 1, META)
    times = tables.active.astype(np.int64) + tables.inactive
    for weight in distinct(times).tolist():
        rows = times == weight
        ledger.add((tables.offset[rows] >> bits).astype(np.int64), weight, META)
    if space.meta.header.has("data_file"):
        return
    for batch in batches(space, tables):
        whole = one_run_tables(batch.words, None, space.meta.shape, space.size)
        for at, row in enumerate(batch.rows.tolist()):
            active, weight = bool(tables.active[row]), int(times[row])
            words = batch.words[at]
            first = offset_of(int(words[0])) >> geometry.cluster_bits
            if whole[at] and first + words.size <= ledger.clusters:
                ledger.add_run(first, words.size, weight, DATA if active else OLD_DATA)
                continue
            words = words[words != 0]
            packed = is_compressed(words)
            offset = offset_of(words[~packed])
            offset = offset[(offset > 0) & ((offset & np.uint64(geometry.cluster_size - 1)) == 0)]
            ledger.add((offset >> bits).astype(np.int64), weight, DATA if active else OLD_DATA)
            if packed.any():
                start, end = packed_range(words[packed], space.meta.shape)
                _add_packed(ledger, start, end, weight)


def _add_packed(ledger: Ledger, start: Any, end: Any, weight: int) -> None:
    """Each cluster that a descriptor's sectors touch counts once per descriptor (QEMU: qcow2_inc_refcounts_imrt)."""
    bits = np.uint64(ledger.cluster_bits)
    first, last = (start >> bits).astype(np.int64), ((end - np.uint64(1)) >> bits).astype(np.int64)
    ledger.add(first, weight, PACKED)
    for extra in (1, 2):
        more = first + extra
        ledger.add(more[more <= last], weight, PACKED)


def _bitmap_data(space: Workspace, ledger: Ledger) -> None:
    for claim in [each for each in ledger.claims if each.owner is Owner.BITMAP_TABLE]:
        words = space.words(claim.offset, claim.length // 8)
        offset = offset_of(words)
        offset = offset[(offset > 0) & (offset % np.uint64(space.cluster) == 0)]
        ledger.add((offset >> np.uint64(ledger.cluster_bits)).astype(np.int64), 1, META)
