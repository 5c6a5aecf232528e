"""Walking L1 -> L2: tables are read in large neighbouring reads, decoded whole, and remembered within a bound.

Used by everything that asks where guest data is. A writer plugs in through `load_table`, `l1` and `invalidate`.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Final

from formats.qcow2.entries import ClusterType, offset_of
from formats.qcow2.tables import words
from workbench.engine.mapping import MappingRules, Runs, decode_l2, join, one_run
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
        self._local = threading.local()

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
        return offset_of(int(self.l1[l1_index])) if l1_index < len(self.l1) else 0

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
        """All tables of L1 entries first..last-1: neighbours in the guest decoded together, neighbours on disk read together."""
        import numpy as np

        geometry = self.rules.geometry
        cluster, coverage = geometry.cluster_size, geometry.l2_coverage
        entries = offset_of(self.l1[first : min(last, len(self.l1))])
        state = np.where(entries == 0, 0, np.where(entries & np.uint64(cluster - 1) == 0, 1, 2))
        edges = (np.flatnonzero(np.diff(state)) + 1).tolist()
        per_batch = max(1, BATCH_BYTES // cluster)
        pending: list[Runs] = []
        count = 0
        for low, high in zip([0, *edges], [*edges, len(entries)], strict=True):
            if low >= high:
                continue
            if state[low] != 1:
                kind = ClusterType.INVALID if state[low] else ClusterType.UNALLOCATED
                pending.append(one_run((first + low) * coverage, (high - low) * coverage, kind))
                continue
            for at in range(low, high, per_batch):
                tables = self._tables(first + at, entries[at : min(at + per_batch, high)].tolist())
                for runs in self._decode_words(tables, (first + at) * coverage):
                    pending.append(runs)
                    count += len(runs)
                    if count > BATCH_RUNS:
                        yield join(pending)
                        pending, count = [], 0
        rest = first + len(entries)
        if rest < last:
            pending.append(one_run(rest * coverage, (last - rest) * coverage, ClusterType.UNALLOCATED))
        if pending:
            yield join(pending)

    def _tables(self, index: int, offsets: list[int]) -> NDArray[np.uint64]:
        """The L2 tables of consecutive L1 entries one after the other, native uint64."""
        import numpy as np

        if self.load_table is not None:
            return np.concatenate([self.load_table(index + i, offset) for i, offset in enumerate(offsets)])
        cluster, count = self.rules.geometry.cluster_size, len(offsets)
        buffer: bytearray = getattr(self._local, "buffer", bytearray())
        if len(buffer) < count * cluster:
            buffer = self._local.buffer = bytearray(count * cluster)
        view = memoryview(buffer)[: count * cluster]
        at = 0
        while at < count:
            upto = at + 1
            while upto < count and offsets[upto] == offsets[upto - 1] + cluster:
                upto += 1
            part = view[at * cluster : upto * cluster]
            got = self.storage.readinto(offsets[at], part)
            if got < len(part):
                part[got:] = bytes(len(part) - got)
            at = upto
        return words(view)
