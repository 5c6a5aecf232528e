"""What lies in the clusters that nothing refers to: content, lost L2 tables, lost or old L1 tables. Only reads.

A refcount of 0 proves nothing (lazy refcounts, lost blocks), so refcounts are not looked at: the caller says which
clusters something refers to, and this says what is in the others. It errs on the side of keeping: a cluster wrongly taken
for a table costs a leak, one wrongly taken for waste costs the guest's data.

Memory: a byte per cluster of the file for each of `content`, `mapped` and `is_table` (touched only where something is
found), records for the first MAX_RECORDS tables. Time: one read of the unreferenced data (holes cost nothing), another of
what looks like a table. Measured at 350-600 MiB/s of one core, whatever the content.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import Enum, IntFlag
from typing import TYPE_CHECKING, Final, Protocol

import numpy as np

from formats.qcow2 import limits
from formats.qcow2.entries import (
    Fault,
    Pointers,
    PointerTable,
    Shape,
    has_zero_flag,
    impossible_bits,
    is_compressed,
    is_copied,
    offset_of,
    packed_range,
    reserved_columns,
    subclusters,
)
from formats.qcow2.refcounts import unpack
from formats.qcow2.tables import distinct, words
from workbench.engine.codecs import is_stream
from workbench.errors import StorageError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from workbench.units import Geometry

RUN_BYTES: Final = 4 << 20
"""Bytes read at once."""
MAX_RECORDS: Final = 1 << 17
"""Tables described one by one; further ones are in `is_table` and `mapped` alone."""
MAX_HEADS: Final = 1024
"""Clusters that may begin a snapshot table and are looked at more closely."""
_SLICE_BYTES: Final = 256 << 10
"""Bytes judged at once: as much as stays in the processor's cache with what is computed from it."""
_SEPARATE_RUNS: Final = 16
"""With more unreferenced runs than this in one read, what lies between them is read along."""
_FEW_ROWS: Final = 16
"""Rows up to which each is counted for itself."""
_STREAMS: Final = 8
"""Compressed clusters of a candidate that are unpacked to see whether they are streams."""
_SAMPLED_TABLES: Final = 32
"""Targets of a likely L1 table that are read to see whether they are L2 tables."""


class Source(Protocol):
    """The part of a Storage that is needed here. Offsets and sizes in bytes."""

    def size(self) -> int: ...

    def read(self, offset: int, length: int) -> bytes: ...

    def next_data(self, offset: int) -> int | None: ...

    def next_hole(self, offset: int) -> int: ...


class Grade(Enum):
    """How sure it is that a cluster holds a lost table."""

    CERTAIN = "certain"
    LIKELY = "likely"
    GUESS = "guess"


@dataclass(frozen=True, slots=True)
class TableLike:
    """A cluster that reads as an L2 table and that nothing refers to. offset: host bytes.

    used: entries that are not zero, `valid` and `odd` ones together; copied: those with the COPIED flag; packed: valid
    compressed ones.  targets: host clusters that it maps, those under compressed streams and under odd entries whose
    offset still makes sense included; of these `unreferenced` are referred to by nothing else, and `filled` are so and
    not zero (or were not looked at).  via_l1: a lost or old L1 table leads to it.
    """

    offset: int
    used: int
    valid: int
    odd: int
    copied: int
    packed: int
    targets: int
    unreferenced: int
    filled: int
    grade: Grade
    via_l1: bool = False


@dataclass(frozen=True, slots=True)
class L1Like:
    """Neighbouring clusters that read as an L1 table. offset, length: host bytes; used: entries that are not zero.

    seen: targets that were read; tables: those that read as L2 tables.  unreferenced: targets that nothing else refers to.
    """

    offset: int
    length: int
    used: int
    seen: int
    tables: int
    unreferenced: int


@dataclass(frozen=True, slots=True, eq=False)
class Looked:
    """What a first look at clusters has shown, for the next scan of the same bytes. storage: that was read.

    masks: the bits that the look tested.  facts: of `_Fact` for each host cluster.
    """

    storage: Source
    masks: bytes
    facts: NDArray[np.uint8]

    def about(self, storage: Source, masks: bytes, bits: int, total: int) -> NDArray[np.uint8]:
        """The facts that hold for the first `total` clusters of `storage`: the one that was looked at, or overlays on it,
        which hide what they stage. A copy, but for the same storage."""
        from workbench.storage.overlay import Overlay

        if storage is self.storage and masks == self.masks and total == self.facts.size:
            return self.facts
        facts = np.zeros(total, dtype=np.uint8)
        stale: list[tuple[int, int]] = []
        while storage is not self.storage:
            if not isinstance(storage, Overlay):
                return facts
            stale += storage.hidden_ranges
            storage = storage.base
        if masks == self.masks:
            known = self.facts[:total]
            facts[: known.size] = known
            for start, end in stale:
                facts[start >> bits : -(-end >> bits)] = 0
        return facts


class _Fact(IntFlag):
    """What is known of a cluster's bytes, whoever refers to it."""

    SEEN = 1
    FILLED = 2
    SHAPED = 4
    """It may be an L2 table."""
    HEAD = 8
    """It may begin a snapshot table, in a file of any size."""


@dataclass(frozen=True, slots=True, eq=False)
class Unreferenced:
    """What `scan` found. content, mapped, is_table: bool for each host cluster.

    content: unreferenced and not zero, or not readable.  mapped: a lost table maps it (whether referenced or not);
    is_table: holds a lost L2 or L1 table.  looked_at: bytes of unreferenced clusters that were read or are known to be
    holes; not_looked_at: host clusters [start, end) left out because of the limit, one row each; unreadable: clusters
    that could not be read.  snapshot_tables: host offsets (bytes) of what reads as a snapshot table.  looked: for further scans.
    """

    content: NDArray[np.bool_]
    mapped: NDArray[np.bool_]
    is_table: NDArray[np.bool_]
    tables: tuple[TableLike, ...]
    l1: tuple[L1Like, ...]
    looked_at: int
    not_looked_at: NDArray[np.int64]
    unreadable: int = 0
    more_tables: int = 0
    snapshot_tables: tuple[int, ...] = ()
    looked: Looked | None = None

    @property
    def complete(self) -> bool:
        """Everything was looked at."""
        return not self.not_looked_at.size

    def runs(self) -> NDArray[np.int64]:
        """Host clusters [start, end) of `content`, one row each, in order."""
        return runs_of(self.content)


@dataclass(frozen=True, slots=True, eq=False)
class Decoded:
    """One cluster read as an L2 table, in the order of the table.

    standard: host clusters of the valid standard entries with data, index: their numbers in the table; packed: [start,
    end) in bytes of the compressed ones; stray: host clusters that odd entries still name.
    """

    used: int
    valid: int
    copied: int
    standard: NDArray[np.int64]
    index: NDArray[np.int64]
    packed: tuple[NDArray[np.uint64], NDArray[np.uint64]]
    stray: NDArray[np.int64]

    @property
    def odd(self) -> int:
        return self.used - self.valid

    @property
    def plausible(self) -> bool:
        """Half of the entries or more are right, some lead somewhere, and (almost) no two to the same place."""
        leads = self.standard.size + self.packed[0].size
        if not leads or self.valid * 2 < self.used:
            return False
        different = distinct(self.standard).size + distinct(self.packed[0]).size
        return bool(different * 4 >= leads * 3)


def decode(table: NDArray[np.uint64], geometry: Geometry, file_size: int, *, external: bool) -> Decoded:
    """Native words of one cluster as an L2 table. file_size in bytes; external: data clusters lie in a data file."""
    bits = geometry.cluster_bits
    if geometry.extended_l2:
        entries, bitmaps = table[0::2][: table.size // 2], table[1::2]
        some = np.flatnonzero((entries != 0) | (bitmaps != 0))
        entries, bitmaps = entries[some], bitmaps[some]
    else:
        some = np.flatnonzero(table)
        entries, bitmaps = table[some], None
    compressed, copied, offset = is_compressed(entries), is_copied(entries), offset_of(entries)
    low = np.uint64(geometry.cluster_size - 1)
    limit = np.uint64(1 << 56 if external else max(file_size, 0))
    standard = ~compressed & ~reserved_columns(entries) & ((offset & low) == 0) & (offset < limit)
    if bitmaps is None:
        standard &= (offset != 0) | (entries == 1) | external
    else:
        allocated, zeroed = subclusters(bitmaps)
        standard &= ~has_zero_flag(entries) & ((allocated & zeroed) == 0)
        standard &= (offset != 0) | ((entries == 0) & (allocated == 0)) | external
    start, end = packed_range(entries, Shape(bits))
    streams = compressed & ~copied & (start > low)
    if bitmaps is not None:
        streams &= bitmaps == 0
    streams &= (end <= np.uint64(file_size + geometry.cluster_size)) & (start < np.uint64(max(file_size, 0)))
    streams &= end - (start & ~np.uint64(511)) <= np.uint64(geometry.cluster_size + 1024)
    valid = standard | streams
    data = standard & (offset != 0)
    if external and bitmaps is None:
        data = standard & ((offset != 0) | copied)
    named = ~valid & ~compressed & (offset > low) & (offset < limit)
    none = np.zeros(0, dtype=np.int64)
    return Decoded(
        int(entries.size),
        int(np.count_nonzero(valid)),
        int(np.count_nonzero(data & copied)),
        (offset[data] >> np.uint64(bits)).astype(np.int64),
        some[data].astype(np.int64),
        (start[streams], end[streams]),
        none if external else (offset[named] >> np.uint64(bits)).astype(np.int64),
    )


def targets_of(found: Decoded, geometry: Geometry, clusters: int, *, external: bool = False) -> NDArray[np.int64]:
    """Host clusters that a decoded table maps, each once, in order: data, compressed streams, what odd entries name."""
    parts = [] if external else [found.standard, found.stray]
    every = distinct(np.concatenate([*parts, *_under_streams(found, geometry)]))
    return every[(every > 0) & (every < clusters)]


def references_of(found: Decoded, geometry: Geometry) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(host clusters, how often each is referred to) by a decoded table's valid entries, in order."""
    return np.unique(np.concatenate([found.standard, *_under_streams(found, geometry)]), return_counts=True)


def own_place(found: Decoded, geometry: Geometry) -> int | None:
    """The L1 index of a table that leads into a data file: there each cluster lies where the guest has it. None when its
    entries do not say the same."""
    start = distinct(found.standard - found.index)
    index, rest = divmod(int(start[0]), geometry.l2_entries) if start.size == 1 else (0, 1)
    return index if not rest and found.standard.size > 1 and not found.odd else None


def _under_streams(found: Decoded, geometry: Geometry) -> list[NDArray[np.int64]]:
    """Host clusters that compressed streams touch, once for each stream."""
    start, end = found.packed
    if not start.size:
        return [np.zeros(0, dtype=np.int64)]
    bits = np.uint64(geometry.cluster_bits)
    first, last = (start >> bits).astype(np.int64), ((end - np.uint64(1)) >> bits).astype(np.int64)
    parts = [first, last[last > first]]
    for step in range(1, int((last - first).max())):
        parts.append((first + step)[first + step < last])
    return parts


def read_table(
    storage: Source, geometry: Geometry, offset: int, *, external: bool
) -> tuple[Decoded, NDArray[np.int64]] | None:
    """The cluster at host `offset` read as an L2 table, and the host clusters that it maps; None when it is none."""
    size = storage.size()
    found = decode(words(_whole(storage, offset, geometry.cluster_size)), geometry, size, external=external)
    if not found.plausible:
        return None
    return found, targets_of(found, geometry, geometry.clusters(size), external=external)


def runs_of(mask: NDArray[np.bool_]) -> NDArray[np.int64]:
    """[start, end) of the True runs of `mask`, one row each, in order."""
    edges = np.flatnonzero(mask[1:] != mask[:-1]) + 1 if mask.size else np.zeros(0, dtype=np.int64)
    first = [0] if mask.size and mask[0] else []
    last = [mask.size] if mask.size and mask[-1] else []
    return np.concatenate([first, edges, last]).astype(np.int64).reshape(-1, 2)


def scan(
    storage: Source,
    geometry: Geometry,
    referenced: NDArray[np.bool_],
    *,
    external: bool = False,
    limit: int | None = None,
    cancel: Callable[[], None] | None = None,
    known: Unreferenced | None = None,
) -> Unreferenced:
    """What lies in the clusters that nothing refers to.

    referenced: bool for each host cluster of the file (clusters past its end count as unreferenced).  external: guest
    data lies in a data file.  limit: bytes to read at most (whole reads of RUN_BYTES).  cancel: called now and then; it
    raises to stop.  known: an earlier scan of the storage, or of what it stages changes on: it must be as it was then, and
    its bytes are not read again (but count for the limit).
    """
    looked = known.looked if known is not None else None
    return _Scan(storage, geometry, referenced, external, limit, cancel or (lambda: None), looked).run()


def _count_rows(mask: NDArray[np.bool_]) -> NDArray[np.int64]:
    """How many are True in each row."""
    if len(mask) > _FEW_ROWS:
        counts: NDArray[np.int64] = np.add.reduce(mask, axis=1, dtype=np.int64)
        return counts
    return np.array([np.count_nonzero(row) for row in mask], dtype=np.int64)


def _whole(storage: Source, offset: int, length: int) -> bytes:
    data = storage.read(offset, length)
    return data if len(data) == length else data.ljust(length, b"\0")


class _Scan:
    def __init__(
        self,
        storage: Source,
        geometry: Geometry,
        referenced: NDArray[np.bool_],
        external: bool,
        limit: int | None,
        cancel: Callable[[], None],
        looked: Looked | None,
    ) -> None:
        self.storage, self.geometry, self.external = storage, geometry, external
        self.limit, self.cancel = limit, cancel
        self.size = storage.size()
        self.bits, self.cluster = geometry.cluster_bits, geometry.cluster_size
        self.total = geometry.clusters(self.size)
        if referenced.size < self.total:
            referenced = np.concatenate([referenced, np.zeros(self.total - referenced.size, dtype=bool)])
        self.referenced = referenced[: self.total]
        self.content = np.zeros(self.total, dtype=bool)
        self.mapped = np.zeros(self.total, dtype=bool)
        self.is_table = np.zeros(self.total, dtype=bool)
        self.likely: list[NDArray[np.int64]] = []
        self.tables: list[TableLike] = []
        self.l1: list[L1Like] = []
        self.heads: list[int] = []
        self.more = self.unreadable = self.looked_at = self.read_bytes = 0
        self.end = self.total
        self._known: dict[int, bool] = {}
        masks = self._masks()
        if looked is None:
            looked = Looked(storage, masks, np.zeros(self.total, dtype=np.uint8))
        self.looked, self.facts = looked, looked.about(storage, masks, self.bits, self.total)

    def _masks(self) -> bytes:
        """Bits that no valid entry has, in the byte order of the file."""
        bits = impossible_bits(Shape(self.bits, data_file=self.external), self.size)
        swapped = np.array(bits, dtype=">u8").view(np.uint64)
        self._bad_standard, self._bad_packed, self._packed_bit = swapped
        return bytes(swapped) + bytes([self.bits, self.geometry.extended_l2])

    def run(self) -> Unreferenced:
        self._look()
        if self.likely:
            self._weigh(distinct(np.concatenate(self.likely)))
        rest = runs_of(~self.referenced[self.end :]) + self.end if self.end < self.total else runs_of(np.zeros(0, bool))
        return Unreferenced(
            self.content,
            self.mapped,
            self.is_table,
            tuple(self.tables),
            tuple(self.l1),
            self.looked_at,
            rest,
            self.unreadable,
            self.more,
            tuple(each << self.bits for each in self.heads if self._is_snapshot_table(each)),
            self.looked,
        )

    # -- first pass: what is not zero, what may be a table --------------------------------------------------------------

    def _look(self) -> None:
        """Windows of RUN_BYTES over the file; those without an unreferenced cluster, or in a hole, cost next to nothing."""
        step = max(1, RUN_BYTES >> self.bits)
        at = 0
        while at < self.total:
            ahead = self.referenced[at : at + (1 << 20)]
            if ahead.all():
                at += ahead.size
                continue
            at += int((~ahead).argmax())
            data = self.storage.next_data(at << self.bits)
            first = self.total if data is None else max(at, data >> self.bits)
            if first > at:
                self.looked_at += int(np.count_nonzero(~self.referenced[at:first])) << self.bits
                at = first
                continue
            if self.limit is not None and self.read_bytes >= self.limit:
                self.end = at
                return
            self.cancel()
            hole = self.geometry.clusters(max(self.storage.next_hole(at << self.bits), (at << self.bits) + 1))
            upto = min(at + step, self.total, hole)
            free = ~self.referenced[at:upto]
            self.looked_at += int(np.count_nonzero(free)) << self.bits
            runs = runs_of(free) + at
            if len(runs) > _SEPARATE_RUNS:
                self._window(int(runs[0, 0]), int(runs[-1, 1]))
            else:
                for low, high in runs.tolist():
                    self._window(low, high)
            at = upto

    def _window(self, low: int, high: int) -> None:
        """Clusters [low, high): note the unreferenced ones that are not zero, and those that may be tables."""
        facts, free = self.facts[low:high], ~self.referenced[low:high]
        if not (facts[free] & _Fact.SEEN).all():
            self._learn(low, high)
        self.read_bytes += (high - low) << self.bits
        facts = np.where(free, facts, np.uint8(0))
        self.content[low:high] |= (facts & _Fact.FILLED) != 0
        shaped = np.flatnonzero(facts & _Fact.SHAPED)
        if shaped.size:
            self.likely.append(shaped + low)
        for cluster in (np.flatnonzero(facts & _Fact.HEAD) + low).tolist():
            if len(self.heads) < MAX_HEADS and self._starts_inside(cluster):
                self.heads.append(cluster)

    def _learn(self, low: int, high: int) -> None:
        """Read clusters [low, high) and note the facts about the unreferenced ones."""
        rows = max(1, _SLICE_BYTES >> self.bits)
        for start, data in self._read(low, high):
            whole = np.frombuffer(data, dtype=np.uint64).reshape(-1, self.cluster // 8)
            free = ~self.referenced[start : start + len(whole)]
            facts = np.where(free, np.uint8(_Fact.SEEN), np.uint8(0))
            for at in range(0, len(whole), rows):
                raw = whole[at : at + rows]
                chosen = np.flatnonzero(free[at : at + rows] & (np.bitwise_or.reduce(raw, axis=1) != 0))
                if chosen.size:
                    shaped = self._table_shaped(raw if chosen.size == len(raw) else raw[chosen])
                    facts[chosen + at] |= np.where(
                        shaped, np.uint8(_Fact.FILLED | _Fact.SHAPED), np.uint8(_Fact.FILLED)
                    )
            facts[self._head_shaped(whole[:, :2]) & ((facts & _Fact.FILLED) != 0)] |= np.uint8(_Fact.HEAD)
            self.facts[start : start + len(whole)] |= facts

    def _starts_inside(self, cluster: int) -> bool:
        """Whether the first word of a cluster is an offset in the file."""
        try:
            return int.from_bytes(_whole(self.storage, cluster << self.bits, 8), "big") < self.size
        except StorageError:
            return False

    def _read(self, low: int, high: int) -> Iterator[tuple[int, bytes]]:
        """(first cluster, bytes) of [low, high); where a read fails, cluster by cluster, without those that fail."""
        try:
            yield low, _whole(self.storage, low << self.bits, (high - low) << self.bits)
            return
        except StorageError:
            pass
        for cluster in range(low, high):
            try:
                data = _whole(self.storage, cluster << self.bits, self.cluster)
            except StorageError:
                if not self.referenced[cluster]:
                    self.content[cluster] = True
                    self.unreadable += 1
                continue
            yield cluster, data

    def _head_shaped(self, rows: NDArray[np.uint64]) -> NDArray[np.bool_]:
        """Whether the first two words of clusters, as in the file, could begin a snapshot table: an L1 table in a file of
        any size, its size, lengths of ID and name."""
        offset, sizes = rows.byteswap().T
        good = (offset != 0) & ((offset & np.uint64(self.cluster - 1)) == 0)
        entries, ident, name = (
            sizes >> np.uint64(32),
            (sizes >> np.uint64(16)) & np.uint64(0xFFFF),
            sizes & np.uint64(0xFFFF),
        )
        good &= (entries > 0) & (entries <= np.uint64(limits.MAX_L1_SIZE // 8))
        result: NDArray[np.bool_] = good & (ident > 0) & (ident <= 128) & (name > 0) & (name <= 1024)
        return result

    def _is_snapshot_table(self, cluster: int) -> bool:
        """Whether the first entry has a decimal or printable ID where it should be."""
        try:
            data = self.storage.read(cluster << self.bits, 40 + 1024 + 128)
        except StorageError:
            return False
        extra, length = int.from_bytes(data[36:40], "big"), int.from_bytes(data[12:14], "big")
        ident = data[40 + extra : 40 + extra + length]
        return extra <= 1024 and len(ident) == length and all(32 < byte < 127 for byte in ident)

    def _table_shaped(self, rows: NDArray[np.uint64]) -> NDArray[np.bool_]:
        """Quick test of whole clusters, as in the file: half of the words that are not zero could be entries, as far as
        masks tell. What it refuses has most of its entries wrong.
        """
        out = self._half(rows)
        if self.geometry.extended_l2:
            out |= self._half(rows[:, 0::2])
        return out

    def _half(self, entries: NDArray[np.uint64]) -> NDArray[np.bool_]:
        possible = (entries & self._bad_standard) == 0
        possible |= (entries & self._bad_packed) == self._packed_bit
        zeros = _count_rows(entries == 0)
        fine = _count_rows(possible) - zeros
        result: NDArray[np.bool_] = (fine > 0) & (fine * 2 >= entries.shape[1] - zeros)
        return result

    # -- second pass: the likely ones, now that all content is known ----------------------------------------------------

    def _weigh(self, likely: NDArray[np.int64]) -> None:
        led: list[NDArray[np.int64]] = []
        for number, cluster in enumerate(likely.tolist()):
            if number % 64 == 0:
                self.cancel()
            table = self._words(cluster)
            targets = self._l1_targets(table) if table is not None else None
            if targets is not None and self._is_l1(cluster, targets):
                led.append(targets)
                self.is_table[cluster] = True
        led_to = distinct(np.concatenate(led)) if led else np.zeros(0, dtype=np.int64)
        rest = likely[~self.is_table[likely]]
        extra = led_to[self.content[led_to]] if led_to.size else led_to
        for number, cluster in enumerate(np.union1d(rest, extra).tolist()):
            if number % 64 == 0:
                self.cancel()
            at = int(np.searchsorted(led_to, cluster))
            self._table(cluster, via_l1=at < led_to.size and int(led_to[at]) == cluster)

    def _words(self, cluster: int) -> NDArray[np.uint64] | None:
        """A cluster as native words; None when it cannot be read."""
        try:
            return words(_whole(self.storage, cluster << self.bits, self.cluster))
        except StorageError:
            return None

    def _l1_targets(self, table: NDArray[np.uint64]) -> NDArray[np.int64] | None:
        """Host clusters that the words name as L1 entries; None when most of them cannot be such."""
        used = table[table != 0]
        each = Pointers(used, PointerTable.L1, Shape(self.bits))
        good = each.inside(self.size) & ~each.fault(Fault.RESERVED)
        count = int(np.count_nonzero(good))
        if not count or count * 2 < used.size:
            return None
        targets = distinct((each.offset[good] >> np.uint64(self.bits)).astype(np.int64))
        return targets if targets.size * 4 >= count * 3 else None

    def _is_l1(self, cluster: int, targets: NDArray[np.int64]) -> bool:
        pick = distinct(np.linspace(0, targets.size - 1, min(targets.size, _SAMPLED_TABLES)).astype(np.int64))
        seen = tables = 0
        for target in targets[pick].tolist():
            kind = self._reads_as_table(target)
            if kind is not None:
                seen += 1
                tables += kind
        if not tables or tables * 4 < seen * 3:
            return False
        loose = int(np.count_nonzero(~self.referenced[targets]))
        length = self.cluster
        last = self.l1[-1] if self.l1 else None
        if last is not None and last.offset + last.length == cluster << self.bits:
            self.l1[-1] = L1Like(
                last.offset,
                last.length + length,
                last.used + int(targets.size),
                last.seen + seen,
                last.tables + tables,
                last.unreferenced + loose,
            )
        elif len(self.l1) < MAX_RECORDS:
            self.l1.append(L1Like(cluster << self.bits, length, int(targets.size), seen, tables, loose))
        return True

    def _reads_as_table(self, cluster: int) -> bool | None:
        """Whether a cluster, referenced or not, reads as an L2 table; None when it is all zero or cannot be read."""
        if cluster in self._known:
            return self._known[cluster]
        table = self._words(cluster)
        if table is None or not table.any():
            return None
        found = decode(table, self.geometry, self.size, external=self.external)
        fine = found.plausible and found.valid * 4 >= found.used * 3
        if fine and not found.copied and found.standard.size < 2 and not self._streams(found):
            fine = found.standard.size > 0 and bool((~self.referenced[found.standard]).all())
        if len(self._known) < MAX_RECORDS:
            self._known[cluster] = fine
        return fine

    def _streams(self, found: Decoded) -> bool:
        """Most of the compressed entries lead to streams (a sample is unpacked)."""
        start, end = found.packed
        if not start.size:
            return False
        pick = distinct(np.linspace(0, start.size - 1, min(start.size, _STREAMS)).astype(np.int64))
        good = 0
        for low, high in zip(start[pick].tolist(), end[pick].tolist(), strict=True):
            try:
                good += is_stream(self.storage.read(low, high - low), self.cluster)
            except StorageError:
                good += 1  # what cannot be read may be anything
        return good * 2 >= pick.size

    def _table(self, cluster: int, *, via_l1: bool) -> None:
        table = self._words(cluster)
        if table is None:
            return
        found = decode(table, self.geometry, self.size, external=self.external)
        if not found.plausible or (not self.external and (found.standard == cluster).any()):
            return
        grade, targets = self._grade(found, via_l1)
        if grade is None:
            return
        loose = ~self.referenced[targets]
        self.is_table[cluster] = True
        self.mapped[targets] = True
        if len(self.tables) >= MAX_RECORDS:
            self.more += 1
            return
        self.tables.append(
            TableLike(
                cluster << self.bits,
                found.used,
                found.valid,
                found.odd,
                found.copied,
                int(found.packed[0].size),
                int(targets.size),
                int(np.count_nonzero(loose)),
                int(np.count_nonzero(self._filled(targets))),
                grade,
                via_l1,
            )
        )

    @staticmethod
    def _grade_external(found: Decoded, *, via_l1: bool, flagged: bool) -> Grade | None:
        """A table that leads into a data file: only its own order speaks for it. flagged: COPIED as it should be."""
        steps = found.standard - found.index
        regular = steps.size > 2 and np.count_nonzero(steps == np.median(steps)) * 4 >= steps.size * 3
        if via_l1 or (flagged and regular):
            return Grade.CERTAIN
        return (Grade.LIKELY if found.copied > 2 else Grade.GUESS) if flagged else None

    def _lead_to_refcounts(self, targets: NDArray[np.int64]) -> bool:
        """All of the targets (a sample) hold refcounts of the image's width: small numbers, most of them 1."""
        pick = distinct(np.linspace(0, targets.size - 1, min(targets.size, _SAMPLED_TABLES)).astype(np.int64))
        for target in targets[pick].tolist():
            try:
                data = _whole(self.storage, target << self.bits, self.cluster)
            except StorageError:
                return False
            values = unpack(data, self.geometry.refcount_order)
            used = values[values != 0]
            if not used.size or int(used.max()) > 64 or np.count_nonzero(used == 1) * 2 < used.size:
                return False
            if self.geometry.refcount_order < 3 and np.count_nonzero(values[1:] != values[:-1]) > 64:
                return False  # with so few bits any data are small numbers: then only long runs are refcounts
        return True

    def _filled(self, clusters: NDArray[np.int64]) -> NDArray[np.bool_]:
        filled: NDArray[np.bool_] = self.content[clusters] | (~self.referenced[clusters] & (clusters >= self.end))
        return filled

    def _grade(self, found: Decoded, via_l1: bool) -> tuple[Grade | None, NDArray[np.int64]]:
        """How sure it is that a decoded cluster is a lost table, and what it maps."""
        targets = targets_of(found, self.geometry, self.total, external=self.external)
        packed = int(found.packed[0].size)
        streams = packed > 0 and self._streams(found)
        if packed and not streams and packed * 2 >= found.used:
            return None, targets
        flagged = found.copied * 2 >= found.standard.size > 0
        mostly = found.odd * 4 <= found.used
        if self.external and not packed:
            return self._grade_external(found, via_l1=via_l1, flagged=flagged and mostly), targets
        if not targets.size:
            return None, targets
        loose = int(np.count_nonzero(~self.referenced[targets]))
        filled = int(np.count_nonzero(self._filled(targets)))
        strong = flagged or streams
        # A snapshot's table shares clusters with the disk; what it alone had would pass for waste.
        settled = filled + targets.size - loose
        shares = loose and mostly and targets.size >= 4 and settled * 10 >= targets.size * 9
        if loose * 2 < targets.size:
            weak = Grade.GUESS if via_l1 or shares or (streams and mostly) else None
            return (Grade.LIKELY if via_l1 and loose else weak), targets
        if strong and mostly and (filled * 4 >= targets.size * 3 or via_l1):
            return Grade.CERTAIN, targets
        if via_l1 or (strong and loose * 4 >= targets.size * 3):
            return Grade.LIKELY, targets
        if not strong and self._lead_to_refcounts(targets):
            return None, targets  # an old refcount table
        if filled * 10 >= targets.size * 9:
            return (Grade.LIKELY if mostly and targets.size >= 4 else Grade.GUESS), targets
        return (Grade.GUESS if strong or shares else None), targets
