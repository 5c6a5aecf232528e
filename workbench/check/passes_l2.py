"""L2 tables: references of every entry, faults of the entries, COPIED flags, and the fragmentation figures.

Counts as QEMU's check_refcounts_l2 and check_oflag_copied do, but each table once, with the number of its users as weight.
Tables that map one run of clusters (the common case of large images) take a path without any work per entry.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from formats.qcow2.entries import (
    Fault,
    L2Entries,
    Shape,
    is_compressed,
    is_copied,
    offset_of,
    one_run_tables,
    packed_range,
    past_end,
)
from formats.qcow2.tables import distinct
from workbench.check import kinds
from workbench.check.census import Census, as_clusters
from workbench.check.dense import is_dense, judge_table
from workbench.check.findings import FindingLog, runs_of
from workbench.check.tables import Batch, L2Set
from workbench.units import Geometry

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Flags = NDArray[np.bool_]

_USED_ONCE: Final = np.uint8(kinds.STORED | kinds.STORED_ONE)


@dataclass(slots=True)
class MappingStats:
    """What qemu-img prints about the active disk. Clusters."""

    allocated: int = 0
    fragmented: int = 0
    compressed: int = 0


class L2Pass:
    """Applies batches of L2 tables to a census. `judge`: log findings and statistics (first window only)."""

    def __init__(
        self,
        geometry: Geometry,
        version: int,
        file_size: int,
        has_data_file: bool,
        tables: L2Set,
        copied_weight: NDArray[np.uint32],
        census: Census,
        stored_one_far: Callable[[NDArray[np.int64]], tuple[Flags, Flags]],
        log: FindingLog,
        *,
        judge: bool,
        raw_data_file: bool = False,
        refcounts_end: int = 1 << 62,
        reach: int = 0,
    ) -> None:
        self.geometry = geometry
        self.shape = Shape(geometry.cluster_bits, geometry.extended_l2, version, has_data_file)
        self.file_size = file_size
        self.has_data_file = has_data_file
        self.tables = tables
        self.copied_weight = copied_weight
        self.census = census
        self.stored_one_far = stored_one_far
        self.log = log
        self.judge = judge
        self.stats = MappingStats()
        self.grows = False
        self.raw_data_file = raw_data_file
        self.refcounts_end = refcounts_end
        self.reach = np.uint64(reach)
        self._done = np.zeros(0, dtype=bool)
        self.empty: list[NDArray[np.intp]] = []
        self.foreign: list[NDArray[np.intp]] = []

    # -- tables that are one run ---------------------------------------------------------------------------------------

    def find_runs(self, batch: Batch) -> Flags:
        """Which tables of the batch map one run of host clusters in order, all flags alike, inside the file."""
        return one_run_tables(batch.words, batch.bitmaps, self.shape, self.file_size)

    def apply(self, batch: Batch, runs: Flags) -> None:
        """Count the batch. Not thread-safe: one at a time."""
        entries = batch.words.shape[1]
        rest = ~runs
        chosen = np.flatnonzero(runs)
        tables = batch.rows[chosen]
        for row, table, word, active, inactive in zip(
            chosen.tolist(),
            tables.tolist(),
            batch.words[chosen, 0].tolist(),
            self.tables.active[tables].tolist(),
            self.tables.inactive[tables].tolist(),
            strict=True,
        ):
            start = offset_of(word) >> self.geometry.cluster_bits
            if active == 1 and not inactive and is_copied(word) and self._fresh_run(start, entries):
                self.stats.allocated += entries
                continue
            if active:
                self.census.add_run(start, entries, active, kinds.DATA)
                self.stats.allocated += active * entries
                if self.copied_weight[table] and not self._run_copied(start, entries, is_copied(word)):
                    rest[row] = True
            if inactive:
                self.census.add_run(start, entries, inactive, kinds.INACTIVE)
        if rest.any() and self.judge and batch.bitmaps is None and not self.has_data_file:
            self._nonsense(batch, rest & ~runs)
            rest &= ~self._done
        if rest.any():
            rows = np.flatnonzero(rest)
            self._general(batch, rows, counted=runs[rows])

    def _nonsense(self, batch: Batch, rest: Flags) -> None:
        """Tables of garbage, whole; marks them in `_done`."""
        self._done = np.zeros(rest.size, dtype=bool)
        rows = np.flatnonzero(rest)
        for row in rows[is_dense(self, batch.words[rows])].tolist():
            words, number = batch.words[row], batch.rows[row : row + 1]
            self._done[row] = True
            self.foreign.append(number)
            col = judge_table(self, int(number[0]), words)
            if col.size:
                word = words[col]
                self._follow(number, np.zeros(col.size, dtype=np.intp), col, word)

    def _follow(
        self, tables: NDArray[np.intp], row: NDArray[np.intp], col: NDArray[np.intp], word: NDArray[np.uint64]
    ) -> None:
        """Count entries whose faults and statistics are done already, and look at their COPIED flags."""
        packed = is_compressed(word)
        self._compressed_add(tables, row[packed], word[packed])
        row, col, word = row[~packed], col[~packed], word[~packed]
        offset = offset_of(word)
        self._count(tables, row, offset, odd=True)
        self._copied(tables, row, col, word, offset)

    def _fresh_run(self, start: int, entries: int) -> bool:
        """Count a COPIED run of clusters that have refcount 1 and no reference so far; False when it is not that simple."""
        low = start - self.census.first
        if low < 0 or start + entries > self.census.end:
            return False
        counts = self.census.counts[low : low + entries]
        flags = self.census.flags[low : low + entries]
        if counts.any() or not (flags == _USED_ONCE).all():
            return False
        counts.fill(1)
        flags.fill(int(_USED_ONCE) | kinds.DATA)
        return True

    def _run_copied(self, start: int, entries: int, copied: bool) -> bool:
        """Whether the COPIED flag fits every cluster of a run (readable, inside the window)."""
        low = start - self.census.first
        if low < 0 or start + entries > self.census.end:
            return False
        flags = self.census.flags[low : low + entries] & np.uint8(kinds.STORED_ONE | kinds.UNREADABLE)
        if copied:
            return bool((flags == kinds.STORED_ONE).all())
        return not flags.any()

    # -- any table -----------------------------------------------------------------------------------------------------

    def _general(self, batch: Batch, rows: NDArray[np.intp], counted: Flags) -> None:
        """Entries of `rows`. counted: tables whose references are counted already (only their flags are looked at)."""
        words = batch.words if rows.size == batch.words.shape[0] else batch.words[rows]
        if batch.bitmaps is None:
            row, col = np.nonzero(words)
            bitmaps = None
        else:
            chosen = batch.bitmaps if rows.size == batch.words.shape[0] else batch.bitmaps[rows]
            row, col = np.nonzero(words | chosen)
            bitmaps = chosen[row, col]
        if self.judge:
            filled = np.zeros(rows.size, dtype=bool)
            filled[row] = True
            self.empty.append(batch.rows[rows[~filled]])
        if not row.size:
            return
        self._entries(batch.rows[rows], row, col, words[row, col], bitmaps, counted)

    def _entries(
        self,
        tables: NDArray[np.intp],
        row: NDArray[np.intp],
        col: NDArray[np.intp],
        word: NDArray[np.uint64],
        bitmap: NDArray[np.uint64] | None,
        counted: Flags,
    ) -> None:
        each = L2Entries(word, self.shape, bitmap)
        offset, mapped = each.offset, each.placed
        if self.judge:
            self._judge(tables, row, col, each)
        fresh = ~counted[row] if counted.any() else None
        use = mapped if fresh is None else mapped & fresh
        if use.all():
            rows, offsets, words_used, cols = row, offset, word, col
        else:
            rows, offsets, words_used, cols = row[use], offset[use], word[use], col[use]
        if self.judge and rows.size:
            self._fragmentation(tables, rows, cols, offsets)
        if not self.has_data_file:
            self._count(tables, rows, offsets, each.odd)
        if each.odd and each.packed.any():
            self._compressed(tables, row, col, each, each.packed if fresh is None else each.packed & fresh)
        if fresh is not None:
            rows, offsets, words_used, cols = row[mapped], offset[mapped], word[mapped], col[mapped]
        self._copied(tables, rows, cols, words_used, offsets)

    def _count(self, tables: NDArray[np.intp], row: NDArray[np.intp], offset: NDArray[np.uint64], odd: bool) -> None:
        inside = offset < np.uint64(self.file_size)
        if not inside.all():
            row, offset = row[inside], offset[inside]
        clusters = as_clusters(offset, self.geometry.cluster_bits)
        if not clusters.size:
            return
        if odd and self.shape.unaligned_bits:
            second = (offset & np.uint64(self.geometry.cluster_size - 1)) != 0
            if second.any():
                clusters = np.concatenate([clusters, clusters[second] + 1])
                row = np.concatenate([row, row[second]])
                if int(clusters.max()) >= self.census.total_clusters - 1:
                    self.grows = True
        self._add(tables, row, clusters, kinds.DATA, kinds.INACTIVE)

    def _add(
        self, tables: NDArray[np.intp], row: NDArray[np.intp], clusters: NDArray[np.int64], active: int, inactive: int
    ) -> None:
        """References of entries, grouped by how many users their tables have."""
        for column, flag in ((self.tables.active, active), (self.tables.inactive, inactive)):
            weights = column[tables]
            for weight in sorted(set(weights.tolist())):
                if not weight:
                    continue
                same = weights == weight
                self.census.add(clusters if same.all() else clusters[same[row]], weight, flag)

    def _fragmentation(
        self, tables: NDArray[np.intp], row: NDArray[np.intp], col: NDArray[np.intp], offset: NDArray[np.uint64]
    ) -> None:
        active = self.tables.active[tables]
        if not active.any():
            return
        weight = active[row].astype(np.int64)
        self.stats.allocated += int(weight.sum())
        if row.size > 1:
            jump = (offset[1:] != offset[:-1] + np.uint64(self.geometry.cluster_size)) & (row[1:] == row[:-1])
            self.stats.fragmented += int(weight[1:][jump].sum())

    def _compressed(
        self,
        tables: NDArray[np.intp],
        row: NDArray[np.intp],
        col: NDArray[np.intp],
        each: L2Entries,
        packed: Flags,
    ) -> None:
        if self.has_data_file:
            return
        if each.bitmaps is not None:
            packed = packed & ~each.fault(Fault.COMPRESSED_BITMAP)
        rows, cols, words = row[packed], col[packed], each.words[packed]
        if not rows.size:
            return
        start, end = packed_range(words, self.shape)
        beyond = past_end(start, end - start, self.file_size, self.geometry.cluster_size)
        if self.judge:
            weight = self.tables.active[tables][rows].astype(np.int64)
            total = int(weight.sum())
            self.stats.allocated += total
            self.stats.compressed += total
            self.stats.fragmented += total
            self._log("COMPRESSED-BEYOND-EOF", tables, rows, cols, words, beyond)
            reserved = each.fault(Fault.RESERVED)[packed]
            self._log("COMPRESSED-RESERVED", tables, rows, cols, words, reserved & ~beyond, counted=False)
        self._compressed_add(tables, rows[~beyond], words[~beyond])

    def _compressed_add(self, tables: NDArray[np.intp], rows: NDArray[np.intp], words: NDArray[np.uint64]) -> None:
        """References of compressed descriptors inside the file."""
        bits = self.geometry.cluster_bits
        start, end = packed_range(words, self.shape)
        first = as_clusters(start, bits)
        last = as_clusters(end - np.uint64(1), bits)
        if last.size and int(last.max()) >= self.census.total_clusters - 1:
            self.grows = True
        for step in range(3):
            reach = first + step <= last
            if reach.any():
                self._add(tables, rows[reach], first[reach] + step, kinds.PACKED, kinds.PACKED)

    def _copied(
        self,
        tables: NDArray[np.intp],
        row: NDArray[np.intp],
        col: NDArray[np.intp],
        word: NDArray[np.uint64],
        offset: NDArray[np.uint64],
    ) -> None:
        """COPIED flags of active tables; each entry in the window that holds its cluster (far ones in the first)."""
        weight = self.copied_weight[tables]
        if not weight.any() or not row.size:
            return
        if not weight.all():
            chosen = weight[row] != 0
            row, col, word, offset = row[chosen], col[chosen], word[chosen], offset[chosen]
            if not row.size:
                return
        copied = is_copied(word)
        if self.has_data_file:
            if self.judge:
                self._log("L2-COPIED-WRONG", tables, row, col, word, ~copied, weight=weight)
            return
        clusters = as_clusters(offset, self.geometry.cluster_bits)
        census = self.census
        if not census.first and int(clusters.max()) < census.end:
            flags = census.flags[clusters]
            one = (flags & kinds.STORED_ONE) != 0
            wrong = (one != copied) & ((flags & kinds.UNREADABLE) == 0)
        else:
            here = (clusters >= census.first) & (clusters < census.end)
            wrong = np.zeros(clusters.size, dtype=bool)
            flags = census.flags[clusters[here] - census.first]
            wrong[here] = (((flags & kinds.STORED_ONE) != 0) != copied[here]) & ((flags & kinds.UNREADABLE) == 0)
            far = clusters >= census.total_clusters
            if self.judge and far.any():
                one, unreadable = self.stored_one_far(clusters[far])
                wrong[far] = (one != copied[far]) & ~unreadable
        if wrong.any():
            self._log("L2-COPIED-WRONG", tables, row, col, word, wrong, weight=weight)

    # -- findings ------------------------------------------------------------------------------------------------------

    def _judge(self, tables: NDArray[np.intp], row: NDArray[np.intp], col: NDArray[np.intp], each: L2Entries) -> None:
        """Faults of the entries themselves."""
        bad = np.zeros(0, dtype=np.int64)

        def log(code: str, chosen: Flags, counted: bool = True, speaks: Flags | bool = True) -> None:
            """speaks: where the fault makes it likely that the table is something else."""
            nonlocal bad
            if not chosen.any():
                return
            if counted:
                bad = np.append(bad, np.flatnonzero(chosen & speaks))
            self._log(code, tables, row, col, each.words, chosen, counted=counted)

        if each.odd:
            log("L2-ENTRY-RESERVED", each.fault(Fault.RESERVED) & each.standard)
            log("L2-ENTRY-UNALIGNED", each.fault(Fault.UNALIGNED))
            if each.packed.any():
                log("COMPRESSED-COPIED", each.fault(Fault.COPIED_COMPRESSED))
                if self.has_data_file:
                    log("COMPRESSED-WITH-DATA-FILE", each.fault(Fault.COMPRESSED_EXTERNAL))
                elif each.bitmaps is not None:
                    log("COMPRESSED-WITH-SUBCLUSTERS", each.fault(Fault.COMPRESSED_BITMAP))
        if not self.has_data_file:
            size = self.geometry.cluster_size
            log(
                "L2-ENTRY-BEYOND-EOF",
                each.placed & past_end(each.offset, size, self.file_size, size),
                speaks=each.offset >= self.reach,
            )
        if each.bitmaps is not None:
            log("SUBCLUSTER-CONFLICT", each.fault(Fault.SUBCLUSTER_BOTH))
            log("SUBCLUSTER-UNALLOCATED", each.fault(Fault.SUBCLUSTER_NOWHERE))
            # Not counted: with extended entries QEMU lets bit 0 pass.
            log("L2-ENTRY-BIT0-EXTENDED", each.fault(Fault.BIT_0), counted=False)
        elif self.shape.version < 3:
            log("L2-ZERO-FLAG-V2", each.fault(Fault.ZERO_VERSION_2), counted=False)
        if not self.has_data_file:
            log("L2-COPIED-UNALLOCATED", each.fault(Fault.COPIED_NOWHERE), counted=False)
        elif self.raw_data_file:
            self._one_to_one(tables, row, col, each)
        if bad.size >= 4:
            faulty = np.bincount(row[distinct(bad)], minlength=tables.size)
            used = np.bincount(row, minlength=tables.size)
            self.foreign.append(tables[(faulty >= 4) & (faulty * 2 > used)])

    def _one_to_one(
        self, tables: NDArray[np.intp], row: NDArray[np.intp], col: NDArray[np.intp], each: L2Entries
    ) -> None:
        """A raw external data file has every guest byte at its own address (active disk only)."""
        bits = np.uint64(self.geometry.cluster_bits)
        index = self.tables.index[tables][row].astype(np.uint64)
        guest = (index << (bits + np.uint64(self.geometry.l2_bits))) + (col.astype(np.uint64) << bits)
        active = self.tables.snapshot[tables][row] < 0
        elsewhere = L2Entries(each.words, self.shape, each.bitmaps, guest).fault(Fault.ELSEWHERE)
        self._log("DATA-FILE-OFFSET", tables, row, col, each.words, active & elsewhere, counted=False)

    def _log(
        self,
        code: str,
        tables: NDArray[np.intp],
        row: NDArray[np.intp],
        col: NDArray[np.intp],
        word: NDArray[np.uint64],
        chosen: Flags,
        *,
        counted: bool = True,
        weight: NDArray[Any] | None = None,
    ) -> None:
        if not chosen.any():
            return
        rows, cols, words = row[chosen], col[chosen], word[chosen]
        first, last = runs_of(rows, cols)
        entry, geometry = self.geometry.l2_entry_size, self.geometry
        table = tables[rows[first]]
        start, stop = cols[first].astype(np.uint64), cols[last].astype(np.uint64)
        count = (last - first + 1).astype(np.uint64)
        weights = self.tables.active[table] + self.tables.inactive[table] if weight is None else weight[rows[first]]
        base = self.tables.offset[table]
        index = self.tables.index[table].astype(np.uint64)
        span = stop - start + np.uint64(1)
        guest = (index << np.uint64(geometry.l2_bits + geometry.cluster_bits)) + (
            start << np.uint64(geometry.cluster_bits)
        )
        self.log.add_columns(
            code,
            first.size,
            offset=base + start * np.uint64(entry),
            length=span * np.uint64(entry),
            count=count,
            counted=count * weights.astype(np.uint64) if counted else 0,
            table=base,
            index=start,
            guest=guest,
            guest_length=span << np.uint64(geometry.cluster_bits),
            value=words[first],
            snapshot=self.tables.snapshot[table],
        )
