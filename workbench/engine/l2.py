"""Walking L1 -> L2: tables are read in large neighbouring reads, decoded whole, and remembered within a bound.

Used by everything that asks where guest data is. A writer plugs in through `load_table`, `l1` and `invalidate`.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Final

from formats.qcow2.tables import OFFSET_MASK, words
from workbench.engine.mapping import ClusterType, MappingRules, Runs, decode_l2, join, one_run
from workbench.storage.base import Storage

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

CACHE_BYTES: Final = 16 << 20
"""Bound of the decoded tables kept for short reads."""
BATCH_BYTES: Final = 256 << 10
"""L2 bytes read and decoded at once on long walks: as much as stays in the processor's cache."""
BATCH_RUNS: Final = 1 << 16
"""Runs handed out at once; a badly fragmented table gives that many by itself."""
_SHORT: Final = 4
"""Walks over at most so many L2 tables go through the cache."""
_SLICE_BYTES: Final = 64 << 10


class L2Walker:
    """The mapping of one image, or of one of its snapshots.

    l1: 1-D native uint64, as on disk; a writer may replace or change it (then call `invalidate`).
    load_table: (l1_index, host offset) -> the whole table as native uint64 words; a writer sets it to serve tables that
    are not on disk yet. None: read from `storage`; what lies past the end of the file reads as zeros, as in QEMU.
    """

    def __init__(self, storage: Storage, l1: NDArray[np.uint64], rules: MappingRules) -> None:
        self.storage = storage
        self.l1 = l1
        self.rules = rules
        self.load_table: Callable[[int, int], NDArray[np.uint64]] | None = None
        self._cache: OrderedDict[int, Runs] = OrderedDict()
        self._cached_bytes = 0
        self._lock = threading.Lock()

    def invalidate(self, l1_index: int | None = None) -> None:
        """Forget what was decoded of one L2 table, or of all."""
        with self._lock:
            if l1_index is None:
                self._cache.clear()
                self._cached_bytes = 0
            else:
                gone = self._cache.pop(l1_index, None)
                self._cached_bytes -= gone.nbytes if gone is not None else 0

    def table_offset(self, l1_index: int) -> int:
        """Host offset of an L2 table; 0 when there is none (also past the end of the L1 table)."""
        return int(self.l1[l1_index]) & OFFSET_MASK if l1_index < len(self.l1) else 0

    def table_words(self, l1_index: int) -> NDArray[np.uint64]:
        """One L2 table, native uint64; empty when there is none."""
        offset = self.table_offset(l1_index)
        if not offset:
            return words(b"")
        if self.load_table is not None:
            return self.load_table(l1_index, offset)
        return words(self._read(offset, self.rules.geometry.cluster_size))

    def runs(self, start: int, end: int) -> Iterator[Runs]:
        """Runs that cover guest bytes [start, end) without gaps, in order, in batches."""
        coverage = self.rules.geometry.l2_coverage
        first, last = start // coverage, -(-end // coverage)
        if start >= end:
            return
        if last - first <= _SHORT:
            for index in range(first, last):
                found = self._cached_table(index)
                if found is None:
                    low, high = max(start, index * coverage), min(end, (index + 1) * coverage)
                    yield self._gap(index, low, high)
                else:
                    yield found.clip(start, end)
            return
        for batch in self._walk(first, last):
            clipped = batch.clip(start, end)
            if len(clipped):
                yield clipped

    # -- inside

    def _read(self, offset: int, length: int) -> bytes:
        data = self.storage.read(offset, length)
        return data if len(data) == length else data.ljust(length, b"\0")

    def _gap(self, index: int, start: int, end: int) -> Runs:
        """Where no table can be used: unallocated, or invalid under an L1 entry with a bad offset."""
        bad = self.table_offset(index) % self.rules.geometry.cluster_size
        return one_run(start, end - start, ClusterType.INVALID if bad else ClusterType.UNALLOCATED)

    def _cached_table(self, index: int) -> Runs | None:
        offset = self.table_offset(index)
        if not offset or offset % self.rules.geometry.cluster_size:
            return None
        with self._lock:
            found = self._cache.get(index)
            if found is not None:
                self._cache.move_to_end(index)
                return found
        found = join(list(self._decode_table(index)))
        with self._lock:
            if index not in self._cache:
                self._cache[index] = found
                self._cached_bytes += found.nbytes
            while self._cached_bytes > CACHE_BYTES and len(self._cache) > 1:
                _, gone = self._cache.popitem(last=False)
                self._cached_bytes -= gone.nbytes
        return found

    def _decode_table(self, index: int) -> Iterator[Runs]:
        """One table in slices, so that subcluster columns stay small."""
        guest = self.rules.geometry.guest_offset(index, 0)
        yield from self._decode_words(self.table_words(index), guest)

    def _decode_words(self, table: NDArray[np.uint64], guest: int) -> Iterator[Runs]:
        geometry = self.rules.geometry
        step = _SLICE_BYTES // 8 if geometry.extended_l2 else len(table)
        per_word = geometry.cluster_size * 8 // geometry.l2_entry_size
        for at in range(0, len(table), max(step, 1)):
            yield decode_l2(table[at : at + step], guest + at * per_word, self.rules)

    def _walk(self, first: int, last: int) -> Iterator[Runs]:
        """All tables of L1 entries first..last-1, neighbours on disk and in the guest read in one go."""
        import numpy as np

        geometry = self.rules.geometry
        cluster, coverage = geometry.cluster_size, geometry.l2_coverage
        entries = self.l1[first : min(last, len(self.l1))] & np.uint64(OFFSET_MASK)
        per_batch = max(1, BATCH_BYTES // cluster)
        # Groups: L1 entries that go on from one to the next (tables adjacent on disk, or no table at all).
        adjacent = (entries[1:] - entries[:-1] == np.uint64(cluster)) & (entries[:-1] != 0)
        empty = (entries[1:] == 0) & (entries[:-1] == 0)
        edges = (np.flatnonzero(~(adjacent | empty)) + 1).tolist()
        pending: list[Runs] = []
        count = 0
        for low, high in zip([0, *edges], [*edges, len(entries)], strict=True):
            if low >= high:
                continue
            offset = int(entries[low])
            guest = (first + low) * coverage
            if not offset or offset % cluster:
                kind = ClusterType.UNALLOCATED if not offset else ClusterType.INVALID
                pending.append(one_run(guest, (high - low) * coverage, kind))
                continue
            for at in range(low, high, per_batch):
                upto = min(at + per_batch, high)
                if self.load_table is None:
                    data = self._read(offset + (at - low) * cluster, (upto - at) * cluster)
                    tables = words(data)
                else:
                    tables = np.concatenate([self.table_words(first + each) for each in range(at, upto)])
                for runs in self._decode_words(tables, (first + at) * coverage):
                    pending.append(runs)
                    count += len(runs)
                    if count > BATCH_RUNS:
                        yield join(pending)
                        pending, count = [], 0
        rest = max(first + len(entries), first)
        if rest < last:
            pending.append(one_run(rest * coverage, (last - rest) * coverage, ClusterType.UNALLOCATED))
        if pending:
            yield join(pending)
