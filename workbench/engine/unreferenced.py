"""What lies in host clusters that no table refers to: content, and among it tables that lost their place.

Pure reading, a few MiB at a time; holes cost nothing. The write engine keeps counted what this finds, the check reports
it, and the preservation proof asks it whether somebody may need a cluster. Nothing here decides where a table belongs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

from formats.qcow2.tables import (
    COMPRESSED,
    COPIED,
    L1_ENTRY,
    L2_EXTENDED,
    L2_STANDARD,
    OFFSET_MASK,
    ZERO,
    compressed_layout,
    compressed_range,
)
from workbench.engine import codecs
from workbench.errors import CorruptError, UnsupportedError
from workbench.storage.base import Storage
from workbench.units import SUBCLUSTERS

if TYPE_CHECKING:
    from workbench.engine.metadata import Metadata

_READ: Final = 4 << 20
_EVERY: Final = 64
"""A quick look takes one word in so many."""
_STREAMS: Final = 4
"""Compressed entries of a table that are tried."""
_OFFSET: Final = np.uint64(OFFSET_MASK)
_LOW: Final = np.uint64(0xFFFFFFFF)

I64 = NDArray[np.int64]
U64 = NDArray[np.uint64]


@dataclass(frozen=True, slots=True)
class TableLike:
    """A cluster that reads as an L2 table. cluster: its host cluster number.

    used: entries that are not 0.  valid: those that a driver could have written for this file.  copied: those with the
    COPIED flag.  targets: numbers of the host clusters that valid entries name, sorted, each once.  lost: how many of
    them nothing refers to.
    """

    cluster: int
    used: int
    valid: int
    copied: int
    targets: I64
    lost: int

    @property
    def odd(self) -> int:
        """Entries that make no sense."""
        return self.used - self.valid


@dataclass(frozen=True, slots=True)
class L1Like:
    """A cluster whose entries all lead to L2 tables, in use or lost. targets: host cluster numbers of those tables."""

    cluster: int
    targets: I64


@dataclass(frozen=True, slots=True)
class Unreferenced:
    """Result of a scan. content: bool per host cluster: nothing refers to it and it is not all zeros (as far as it was
    looked at).  mapped: bool per host cluster: nothing refers to it, but a lost table maps it.  looked_at: bytes read.
    unseen: clusters that were not looked at.  looked_at_mask: bool per host cluster: referred to, or looked at.
    """

    content: NDArray[np.bool_]
    mapped: NDArray[np.bool_]
    tables: tuple[TableLike, ...]
    l1: tuple[L1Like, ...]
    looked_at: int
    unseen: int
    looked_at_mask: NDArray[np.bool_]

    @property
    def evidence(self) -> NDArray[np.bool_]:
        """Clusters that somebody may need: lost tables, and what they map; bool per host cluster."""
        found = self.mapped.copy()
        found[[each.cluster for each in self.tables] + [each.cluster for each in self.l1]] = True
        return found


def nothing(clusters: int) -> Unreferenced:
    """The result of not having looked at all."""
    none = np.zeros(clusters, dtype=bool)
    return Unreferenced(none, none, (), (), 0, clusters, none)


def scan(
    storage: Storage,
    meta: Metadata,
    referenced: NDArray[np.bool_],
    known_tables: I64 | None = None,
    *,
    limit: int | None = None,
    cancel: Callable[[], bool] | None = None,
) -> Unreferenced:
    """Look into every cluster of the file that nothing refers to.

    referenced: bool per host cluster.  known_tables: numbers of clusters that are L2 tables in use (an old L1 table may
    still name them).  limit: bytes to read at most.  cancel: asked between reads; True ends the scan early.
    Memory: some bytes per cluster. Raises StorageError where the file cannot be read.
    """
    work = _Scan(storage, meta, referenced)
    candidates: list[tuple[int, U64]] = []
    for first, rows in work.clusters(limit, cancel):
        work.content[first : first + len(rows)] |= rows.any(axis=1)
        candidates += [(first + index, rows[index].copy()) for index in work.likely(rows).tolist()]
    judged = [found for cluster, row in candidates if (found := work.table(cluster, row)) is not None]
    l1 = work.l1_tables(candidates, judged, known_tables)
    taken = {each.cluster for each in l1}
    tables = [each for each in judged if each.cluster not in taken and work.is_lost(each)]
    mapped = np.zeros(referenced.size, dtype=bool)
    for each in tables:
        mapped[each.targets[each.targets < mapped.size]] = True
    mapped &= ~referenced
    return Unreferenced(work.content, mapped, tuple(tables), tuple(l1), work.read, work.unseen, work.seen)


class _Scan:
    def __init__(self, storage: Storage, meta: Metadata, referenced: NDArray[np.bool_]) -> None:
        assert meta.geometry is not None
        self.storage, self.meta, self.geometry = storage, meta, meta.geometry
        self.referenced = referenced
        self.external = meta.header.has("data_file")
        self.size = storage.size()
        self.bits = self.geometry.cluster_bits
        self.content = np.zeros(referenced.size, dtype=bool)
        self.seen = np.ones(referenced.size, dtype=bool)
        self.read = self.unseen = 0

    def clusters(self, limit: int | None, cancel: Callable[[], bool] | None) -> Iterator[tuple[int, U64]]:
        """(first cluster, words) of unreferenced runs, holes left out. words: shape (clusters, words per cluster)."""
        free = np.flatnonzero(~self.referenced)
        step, size = max(1, _READ >> self.bits), 1 << self.bits
        for run in np.split(free, np.flatnonzero(np.diff(free) != 1) + 1):
            at, end = (int(run[0]), int(run[-1]) + 1) if run.size else (0, 0)
            while at < end:
                data = self.storage.next_data(at * size)
                if data is None:
                    return
                at = max(at, data // size)
                if at >= end:
                    break
                hole = -(-self.storage.next_hole(at * size) // size)
                last = min(end, at + step, max(hole, at + 1))
                if (limit is not None and self.read >= limit) or (cancel is not None and cancel()):
                    self.unseen += end - at
                    self.seen[at:end] = False
                    break
                raw = self.storage.read(at * size, (last - at) * size).ljust((last - at) * size, b"\0")
                self.read += len(raw)
                yield at, np.frombuffer(raw, dtype=">u8").astype(np.uint64).reshape(last - at, -1)
                at = last

    # -- one table

    def _valid(self, words: U64, bitmaps: U64 | None) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """(entries that a driver could have written, those of them that are compressed), of used entries alone."""
        packed = (words & np.uint64(COMPRESSED)) != 0
        offset = words & _OFFSET
        layout = L2_EXTENDED if self.geometry.extended_l2 else L2_STANDARD
        spare = layout.reserved_mask | (ZERO if self.meta.header.version < 3 else 0)
        inner = np.uint64((1 << self.bits) - 1)
        plain = ~packed & ((words & np.uint64(spare)) == 0) & ((offset & inner) == 0)
        plain &= (offset > 0) | (words == np.uint64(ZERO))
        if not self.external:
            plain &= offset < np.uint64(self.size)
        start, end = compressed_range(words & np.uint64(COPIED - 1), self.bits)
        spare_packed = np.uint64(compressed_layout(self.bits).reserved_mask | COPIED)
        streams = packed & ((words & spare_packed) == 0) & (start > inner) & (start < np.uint64(self.size))
        streams &= end <= np.uint64(-(-self.size // (1 << self.bits)) << self.bits)
        if self.external:
            streams[:] = False
        if bitmaps is not None:
            both = (bitmaps & _LOW & (bitmaps >> np.uint64(SUBCLUSTERS))) != 0
            plain &= ~both
            streams &= bitmaps == 0
        return plain | streams, streams

    def likely(self, rows: U64) -> NDArray[np.intp]:
        """Rows that a quick look does not rule out as tables (L2 or L1)."""
        step = _EVERY if rows.shape[1] >= 32 * _EVERY else 1
        if self.geometry.extended_l2:
            few, maps = rows[:, :: 2 * step], rows[:, 1 :: 2 * step]
        else:
            few, maps = rows[:, ::step], None
        used = few != 0
        flat = few.reshape(-1)
        valid, _ = self._valid(flat, None if maps is None else maps.reshape(-1))
        good = (valid.reshape(few.shape) & used).sum(axis=1)
        if self.geometry.extended_l2:  # an L1 table has no bitmaps: look at it as such, too
            plain = rows[:, ::step]
            fine = ((plain & np.uint64(L1_ENTRY.reserved_mask)) == 0) & ((plain & _OFFSET) < np.uint64(self.size))
            good = np.maximum(good, np.where((fine | (plain == 0)).all(axis=1), plain.any(axis=1), 0))
        sampled = used.sum(axis=1)
        return np.flatnonzero(rows.any(axis=1) & ((good * 2 >= sampled) | (sampled == 0)))

    def table(self, cluster: int, row: U64) -> TableLike | None:
        """The cluster as an L2 table, or None when too little in it could be one."""
        words, bitmaps = (row[0::2], row[1::2]) if self.geometry.extended_l2 else (row, None)
        at = np.flatnonzero(words)
        if bitmaps is not None:
            at = np.flatnonzero((words != 0) | (bitmaps != 0))
        used = words[at]
        valid, streams = self._valid(used, None if bitmaps is None else bitmaps[at])
        valid &= used != 0
        named = valid & (used != np.uint64(ZERO))
        if not named.any() or int(valid.sum()) * 2 <= used.size:
            return None
        offset = used & _OFFSET
        if self.external and not self._one_to_one(at, offset):
            return None
        if streams.any() and not self._unpack(used[streams]):
            return None
        bits = np.uint64(self.bits)
        parts = [(offset[named & ~streams] >> bits).astype(np.int64)]
        if streams.any():
            start, end = compressed_range(used[streams], self.bits)
            first, last = (start >> bits).astype(np.int64), ((end - np.uint64(1)) >> bits).astype(np.int64)
            parts += [first, *((first + more)[first + more <= last] for more in (1, 2))]
        targets = np.unique(np.concatenate(parts))
        copied = int(((used[valid] & np.uint64(COPIED)) != 0).sum())
        inside = targets[targets < self.referenced.size]
        lost = targets.size if self.external else int((~self.referenced[inside]).sum())
        return TableLike(cluster, int(used.size), int(valid.sum()), copied, targets, lost)

    def _one_to_one(self, index: NDArray[np.intp], offset: U64) -> bool:
        """Entries of an external data file: guest and host offsets run in step."""
        base = offset.astype(np.int64) - (index << self.bits)
        values, times = np.unique(base, return_counts=True)
        best = int(times.argmax())
        return (
            int(values[best]) >= 0
            and not int(values[best]) % self.geometry.l2_coverage
            and times[best] * 2 > times.sum()
        )

    def _unpack(self, words: U64) -> bool:
        """Whether compressed entries lead to streams: most of a few that are tried."""
        good = tried = 0
        for word in words[:: max(1, words.size // _STREAMS)][:_STREAMS].tolist():
            start, end = compressed_range(word & (COPIED - 1), self.bits)
            tried += 1
            try:
                data = self.storage.read(start, min(end, self.size) - start)
                codecs.decompress(data, 1 << self.bits, self.meta.header.compression_type)
                good += 1
            except (CorruptError, UnsupportedError):
                continue
        return good * 2 >= tried

    def is_lost(self, table: TableLike) -> bool:
        """Most of what the table maps has no other owner, and it is more than a coincidence of numbers."""
        if table.cluster in table.targets or table.lost * 2 < table.targets.size:
            return False
        if table.copied * 2 > table.valid or self.external:
            return True
        inside = table.targets[table.targets < self.content.size]
        filled = int(self.content[inside].sum()) + int(self.referenced[inside].sum())
        return filled * 2 >= table.targets.size and (table.odd == 0 or table.valid >= 8)

    # -- L1 tables

    def l1_tables(self, candidates: list[tuple[int, U64]], tables: list[TableLike], known: I64 | None) -> list[L1Like]:
        """Candidates whose entries all lead to L2 tables."""
        numbers = {each.cluster for each in tables} | set(() if known is None else known.tolist())
        found = []
        for cluster, row in candidates:
            used = row[row != 0]
            offset = used & _OFFSET
            bad = ((used & np.uint64(L1_ENTRY.reserved_mask)) != 0) | (offset == 0)
            bad |= (offset & np.uint64((1 << self.bits) - 1)) != 0
            if not used.size or bad.any():
                continue
            targets = (offset >> np.uint64(self.bits)).astype(np.int64)
            if all(each in numbers and each != cluster for each in targets.tolist()):
                found.append(L1Like(cluster, np.unique(targets)))
        return found
