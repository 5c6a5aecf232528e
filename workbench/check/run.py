"""The check itself: structures, then windows of host clusters (count, compare), then findings, causes and triage."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import numpy as np

from formats.qcow2.entries import is_copied, offset_of
from formats.qcow2.header import field as header_field
from workbench.check import kinds
from workbench.check.census import WINDOW, Census, as_clusters
from workbench.check.extras import MOST, UNCOUNTED, log_tail, log_unused, table_notes
from workbench.check.findings import FindingLog
from workbench.check.luks import check_luks
from workbench.check.overlaps import find_overlaps, intervals, missing_blocks
from workbench.check.passes_l2 import L2Pass, MappingStats
from workbench.check.passes_refcounts import (
    StoredRefcounts,
    compare,
    count_blocks,
    judge_blocks,
    log_foreign_blocks,
    log_overflow,
)
from workbench.check.pipeline import Pipeline
from workbench.check.problems import Severity
from workbench.check.regions import Regions, RegionWalk, log_l1
from workbench.check.result import Cancel, CheckCancelled, CheckResult, Progress, ProgressSink, Stats
from workbench.check.shape import counted_end, likelier_cluster_bits, with_cluster_bits
from workbench.check.tables import ACTIVE, L1Table, L2Set, empty_set, plan_batches
from workbench.engine.metadata import Metadata
from workbench.engine.opening import refusal_of
from workbench.units import Geometry, div_round_up

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from workbench.check.causes import Cause
    from workbench.check.findings import Findings
    from workbench.check.passes_l2 import Flags
    from workbench.check.triage import LeakRun, LostTable, Triage
    from workbench.engine.unreferenced import Unreferenced

_FEWER = 4
"""Another cluster size must leave at most a quarter of the corruptions for the header's to be in doubt."""
_COUNTED_IN_REGIONS = {
    "SNAPSHOT-EXTRA-TOO-SMALL", "SNAPSHOT-L1-UNALIGNED", "SNAPSHOT-L1-TOO-LARGE", "REGION-BEYOND-EOF",
}  # fmt: skip


def check(
    meta: Metadata,
    *,
    fast: bool = False,
    deep: bool = False,
    progress: ProgressSink | None = None,
    cancel: Cancel | None = None,
    window: int = WINDOW,
    threads: int = 1,
    log: FindingLog | None = None,
    aborted: str | None = None,
    known: CheckResult | None = None,
) -> CheckResult:
    """Check an image. Never writes, never raises on content.

    fast: no content probes (leak triage without reading leaked clusters).  deep: read every cluster that nothing refers to,
    however many there are (before a repair lets anything go).  progress: called now and then from this thread.  cancel: asked often; CheckCancelled when it says yes.  window: host clusters counted at a time.
    log, aborted: findings and the reason for exit code 1 from outside the image (see companions.py).  known: an earlier
    check of the storage, or of what it stages changes on, which is as it was then: what that read of unreferenced content is
    not read again.
    """
    run = _Check(meta, fast, deep, progress, cancel, window, threads)
    run.known = known.unreferenced if known is not None else None
    if log is not None:
        run.log = log
    return run.run(aborted)


class _Check:
    def __init__(
        self,
        meta: Metadata,
        fast: bool,
        deep: bool,
        progress: ProgressSink | None,
        cancel: Cancel | None,
        window: int,
        threads: int,
    ) -> None:
        self.meta = meta
        self.fast, self.deep = fast, deep
        self.progress = progress
        self.cancel = cancel
        self.window = window
        self.threads = threads
        self.log = FindingLog()
        self.check_errors = 0
        self.mapping = MappingStats()
        self.highest = -1
        self.grows = False
        self.companion: str | None = None
        self.known: Unreferenced | None = None
        self.seconds: dict[str, float] = {}
        self.empty = np.zeros(0, np.intp)
        self.foreign = np.zeros(0, np.intp)
        self.foreign_kinds: dict[int, str] = {}

    def run(self, aborted: str | None) -> CheckResult:
        for fault in self.meta.faults:
            if fault.code not in _COUNTED_IN_REGIONS:
                self.log.add(fault.code, fault.offset, fault.length, numbers={**fault.numbers, "what": fault.what})
        self.companion = aborted
        refusal = refusal_of(self.meta, for_check=True)
        refused = refusal.what if refusal is not None else None
        damaged = refused or check_luks(self.meta, self.log)
        geometry = self.meta.geometry
        if geometry is None:
            return self._result(damaged or "not a qcow2 image", refused or aborted, None, Regions(), empty_set())
        regions = RegionWalk(self.meta, geometry, self.log).run()
        damaged = damaged or regions.abort
        self.check_errors += regions.check_errors
        tables = regions.collector.result()
        census = self._count(geometry, regions, tables)
        if not self.fast:
            self._doubt_cluster_size()
        if regions.abort is None and refusal is None and not self.log.has(*UNCOUNTED):
            log_unused(self.meta, geometry, self.highest, self.log)
        return self._result(damaged, refused or aborted or damaged, census, regions, tables)

    def _doubt_cluster_size(self) -> None:
        """Log the cluster size when another one explains the file far better."""
        now = self.log.freeze().counted(Severity.CORRUPTION)
        end = counted_end(self.meta) if now else 0
        bits = likelier_cluster_bits(self.meta, end) if end else None
        if bits is None:
            return
        other = check(with_cluster_bits(self.meta, bits), fast=True)
        if other.corruptions * _FEWER <= now:
            offset, length = header_field("cluster_bits")
            numbers = {"size": 1 << bits, "end": end, "now": now, "then": other.corruptions}
            self.log.add("HEADER-CLUSTER-SIZE-DOUBTFUL", offset, length, index=bits, numbers=numbers)

    # -- counting ------------------------------------------------------------------------------------------------------

    def _count(self, geometry: Geometry, regions: Regions, tables: L2Set) -> Census | None:
        """Count in windows; returns the census when one window holds the whole file."""
        clusters = geometry.clusters(self.meta.file_size)
        total = clusters + 1  # the last cluster may be reached by a region that ends past the end of the file
        stored = StoredRefcounts(self.meta, geometry)
        windows = max(1, div_round_up(total, self.window))
        batches = list(plan_batches(tables, geometry, self.meta.file_size))
        size = geometry.cluster_size
        self.total_bytes = windows * sum(int(rows.size) for rows in batches) * size
        self.done_bytes = 0
        self.grows = regions.grows
        census: Census | None = None
        for number in range(windows):
            first = number * self.window
            census = Census(first, min(total, first + self.window), total, geometry.refcount_max)
            self._window(census, geometry, regions, tables, stored, batches)
        log_foreign_blocks(stored, self.blocks, clusters, self.log)
        return census if windows == 1 else None

    def _window(
        self,
        census: Census,
        geometry: Geometry,
        regions: Regions,
        tables: L2Set,
        stored: StoredRefcounts,
        batches: list[NDArray[np.intp]],
    ) -> None:
        judge = census.first == 0
        started = time.perf_counter()
        stored.load_flags(census)
        self._lap("refcounts", started)
        bits = geometry.cluster_bits
        for claim in regions.claims:
            first = claim.offset >> bits
            census.add_run(first, ((claim.end - 1) >> bits) - first + 1, 1, kinds.METADATA)
        for _, clusters in regions.bitmap_data:
            census.add(clusters, 1, kinds.METADATA)
        self._count_l2_tables(census, geometry, tables)
        copied = self._l1_copied(census, geometry, regions, tables, stored, judge=judge)
        started = time.perf_counter()
        work = L2Pass(
            geometry, self.meta.header.version, self.meta.file_size, self.meta.header.has("data_file"), tables, copied,
            census, stored.one_far, self.log, judge=judge, raw_data_file=self.meta.header.has("data_file_raw"),
            refcounts_end=stored.end, reach=self.meta.counted_reach,
        )  # fmt: skip
        for loaded in Pipeline(self.meta, work, tables, geometry, batches, self.threads):
            self._tick("reading L2 tables", loaded.rows.size * geometry.cluster_size)
            if loaded.batch is not None and loaded.runs is not None:
                work.apply(loaded.batch, loaded.runs)
            elif loaded.error is not None and judge:
                where, what = int(tables.offset[loaded.rows[0]]), loaded.error.what
                self.log.add("READ-ERROR", where, loaded.rows.size, counted=1, numbers={"what": what})
        if judge:
            self.mapping = work.stats
            self.empty = np.concatenate([np.zeros(0, np.intp), *work.empty])
            self.foreign = np.concatenate([np.zeros(0, np.intp), *work.foreign])
            self.grows |= work.grows
            self.blocks = judge_blocks(stored, census.total_clusters - (not self.grows), self.meta.file_size, self.log)
        self._lap("tables", started)
        started = time.perf_counter()
        count_blocks(stored, self.blocks, census, self.log)
        log_overflow(census, bits, self.log)
        end = census.total_clusters - (not self.grows)
        self.highest = max(self.highest, compare(stored, census, end, self.log))
        self._lap("compare", started)
        started = time.perf_counter()
        found = intervals(geometry, regions.claims, tables, stored, regions.bitmap_data, census.total_clusters)
        find_overlaps(found, census, self.meta, geometry, tables, self.log)
        missing_blocks(stored, census, geometry, self.log)
        if judge:
            self.foreign_kinds = table_notes(
                self.meta, geometry, tables, self.empty, self.foreign, regions.active_l1, self.log
            )
            log_tail(self.meta, geometry, stored, regions, self.mapping, self.log)
        self._lap("overlaps", started)

    def _count_l2_tables(self, census: Census, geometry: Geometry, tables: L2Set) -> None:
        """The L2 tables' own clusters (two for an unaligned one)."""
        inside = tables.offset < np.uint64(self.meta.file_size)
        offset = tables.offset[inside]
        times = (tables.active + tables.inactive)[inside]
        clusters = as_clusters(offset, geometry.cluster_bits)
        second = (offset & np.uint64(geometry.cluster_size - 1)) != 0
        for weight in sorted(set(times.tolist())):
            same = times == weight
            census.add(clusters[same], weight, kinds.METADATA)
            census.add(clusters[same & second] + 1, weight, kinds.METADATA)

    def _l1_copied(
        self,
        census: Census,
        geometry: Geometry,
        regions: Regions,
        tables: L2Set,
        stored: StoredRefcounts,
        *,
        judge: bool,
    ) -> NDArray[np.uint32]:
        """How often QEMU looks at each table's COPIED flags; logs wrong ones in the active L1 table itself."""
        weight = np.where(tables.offset != 0, tables.active, 0).astype(np.uint32)
        chosen = np.flatnonzero(weight)
        if not chosen.size:
            return weight
        one, unreadable = self._ones(census, stored, as_clusters(tables.offset[chosen], geometry.cluster_bits))
        weight[chosen[unreadable]] = 0
        if not judge:
            return weight
        used = np.flatnonzero(regions.active_l1)
        words = regions.active_l1[used]
        offset = offset_of(words)
        used, words, offset = used[offset != 0], words[offset != 0], offset[offset != 0]
        one, unreadable = self._ones(census, stored, as_clusters(offset, geometry.cluster_bits))
        wrong = (one != is_copied(words)) & ~unreadable
        if wrong.any():
            table = L1Table(self.meta.header.l1_table_offset, regions.active_l1, ACTIVE)
            log_l1(self.log, geometry, "L1-COPIED-WRONG", table, used[wrong], words[wrong], 1)
        return weight

    @staticmethod
    def _ones(census: Census, stored: StoredRefcounts, clusters: NDArray[np.int64]) -> tuple[Flags, Flags]:
        if not census.first and clusters.size and int(clusters.max()) < census.end:
            flags = census.flags[clusters]
            return (flags & kinds.STORED_ONE) != 0, (flags & kinds.UNREADABLE) != 0
        return stored.one_far(clusters)

    def _cancelled(self) -> None:
        if self.cancel is not None and self.cancel():
            raise CheckCancelled("the check was cancelled", path=self.meta.storage.path)

    def _tick(self, phase: str, amount: int) -> None:
        self._cancelled()
        self.done_bytes += int(amount)
        if self.progress is not None:
            self.progress(Progress(phase, self.done_bytes, self.total_bytes))

    def _lap(self, name: str, started: float) -> None:
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - started

    # -- outcome -------------------------------------------------------------------------------------------------------

    def _result(
        self, refused: str | None, aborted: str | None, census: Census | None, regions: Regions, tables: L2Set
    ) -> CheckResult:
        aborted = aborted or refused
        findings = self.log.freeze()
        corruptions = findings.counted(Severity.CORRUPTION)
        leaks = findings.counted(Severity.LEAK)
        errors = self.check_errors + findings.counted(Severity.ERROR)
        code = 1 if aborted is not None or errors else 2 if corruptions else 3 if leaks else 0
        geometry = self.meta.geometry
        size = geometry.cluster_size if geometry else 0
        stats = Stats(
            total_clusters=div_round_up(self.meta.header.size // 512 * 512, size) if size else 0,
            allocated_clusters=self.mapping.allocated,
            fragmented_clusters=self.mapping.fragmented,
            compressed_clusters=self.mapping.compressed,
            image_end_offset=(max(self.highest, 0) + 1) * size,
            file_size=self.meta.file_size,
        )
        runs: tuple[LeakRun, ...] = ()
        lost: tuple[LostTable, ...] = ()
        causes: tuple[Cause, ...] = ()
        unreferenced: Unreferenced | None = None
        started = time.perf_counter()
        if geometry is not None and (len(findings) or self._blank(census, regions)):
            # Imported here: clean images, the most frequent, do without.
            from workbench.check.causes import find_causes
            from workbench.check.triage import PROBE_BYTES, Judge, Triage

            triage = Triage()
            if census is not None:
                triage = Judge(
                    self.meta, geometry, findings, census, tables, regions.active_l1, self.empty, self.foreign,
                    limit=0 if self.fast else None if self.deep else PROBE_BYTES, cancelled=self._cancelled,
                    known=self.known,
                ).run()  # fmt: skip
            unreferenced = triage.found
            findings = self._with_lost(triage, geometry, self._at_risk(triage, findings, size))
            findings = self._without_tail(triage, findings)
            causes = find_causes(self.meta, geometry, findings, triage, self.foreign_kinds)
            runs, lost = tuple(triage.runs), tuple(triage.lost)
        elif len(findings):
            from workbench.check.causes import header_cause

            causes = header_cause(self.meta, findings)
        self._lap("triage", started)
        return CheckResult(
            self.meta, code, corruptions, leaks, errors, stats, findings, aborted, census, tuple(regions.claims),
            tables, causes, runs, lost, unreferenced, fast=self.fast, seconds=self.seconds, refused=refused,
            companion=self.companion,
        )  # fmt: skip

    def _blank(self, census: Census | None, regions: Regions) -> bool:
        """The disk has no L2 table at all, though the file holds something that nothing refers to."""
        if census is None or self.fast or regions.active_l1.any() or not self.meta.header.size:
            return False
        loose = np.flatnonzero(census.counts[: len(census) - 1] == 0)
        start = self.meta.storage.next_data(int(loose[0]) << self.meta.header.cluster_bits) if loose.size else None
        return start is not None

    def _with_lost(self, triage: Triage, geometry: Geometry, findings: Findings) -> Findings:
        """The findings, with a row for each lost table: qemu-img counts none, but a repair may act on it."""
        for each in triage.lost[:MOST]:
            where = {}
            if each.fits and each.certain:
                guest = int(geometry.guest_offset(each.fits[0], 0))
                where = {"index": each.fits[0], "guest": guest, "guest_length": geometry.l2_coverage}
            numbers = {"entries": each.entries, "lost": each.leaked}
            self.log.add("L2-TABLE-LOST", each.offset, geometry.cluster_size, numbers=numbers, **where)
        return self.log.freeze() if triage.lost else findings

    @staticmethod
    def _without_tail(triage: Triage, findings: Findings) -> Findings:
        """The findings; without the note that nothing uses the end of the file where evidence lies in it."""
        rows = findings.rows("FILE-TAIL-UNUSED")
        if not rows.size:
            return findings
        start = int(findings.columns["offset"][rows[0]])
        last = [each.offset + each.length for each in triage.runs if each.keep] + [
            each.offset + 1 for each in triage.lost
        ]
        return findings.without(rows) if max(last, default=0) > start else findings

    def _at_risk(self, triage: Triage, findings: Findings, size: int) -> Findings:
        """The warning that opening the image for writing would free what may be guest data: one row for all of it."""
        kept = [each for each in triage.runs if each.keep]
        if not self.meta.header.has("dirty") or not (kept or triage.lost):
            return findings
        places = [(each.offset, each.length) for each in kept] or [(each.offset, size) for each in triage.lost]
        first, end = min(at for at, _ in places), max(at + length for at, length in places)
        amount = sum(length for _, length in places)
        self.log.add("OPEN-FREES-DATA", first, end - first, count=max(1, amount // size), numbers={"amount": amount})
        return self.log.freeze()
