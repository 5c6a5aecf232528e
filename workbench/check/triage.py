"""Triage of what nothing refers to: waste, or guest data whose mapping was lost? And lost L2 tables, with where they fit.

A stored refcount says which clusters are leaked, not which matter: where refcounts cannot be trusted, or something of the
mapping is missing, what counts as free is judged as well. Waste is only what was looked at, and is empty or has no evidence
of a gap that it could have come from; what was not looked at is called that.

Evidence, strongest first: a leaked L2 table maps the clusters; the leak fits exactly between the host clusters of two
guest neighbours; an emptied, foreign or unreachable L2 table leaves a guest window that has room for it; its content is
a table, a compressed stream or a recognisable file system.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from formats.luks.header import HEADER_SIZE as LUKS_HEADER_SIZE
from formats.luks.header import MAGIC as LUKS_MAGIC
from formats.luks.header import parse_luks
from formats.qcow2 import limits
from formats.qcow2.entries import offset_of
from formats.qcow2.tables import distinct, words
from workbench.check import content, kinds
from workbench.check.census import Census
from workbench.check.findings import Findings
from workbench.check.neighbours import guest_of_clusters, is_unmapped
from workbench.check.passes_refcounts import StoredRefcounts
from workbench.check.tables import L2Set
from workbench.engine.metadata import Metadata
from workbench.engine.unreferenced import (
    Decoded,
    Grade,
    TableLike,
    Unreferenced,
    own_place,
    read_table,
    references_of,
    runs_of,
    scan,
)
from workbench.errors import StorageError
from workbench.units import Geometry

if TYPE_CHECKING:
    from numpy.typing import NDArray

MAX_RUNS: Final = 4096
"""Leaked runs that are judged one by one."""
MAX_PROBES: Final = 1024
"""Clusters whose content is described."""
PROBE_BYTES: Final = 256 << 20
"""Bytes of unreferenced clusters that a plain check reads; a repair reads them all."""
_MOST_FITS: Final = 64
_MANY_CLUSTERS: Final = 64
_MANY_BYTES: Final = 8 << 20
"""Leaks that are more, in both, are more than interrupted writes leave."""
_PROBE: Final = 72 << 10
_DOUBTFUL: Final = 0.4
"""Confidence of a table that may as well be a remnant."""
_LIKELY: Final = 0.6
"""Confidence of what is not certain: no repair links it unasked."""


_HARMLESS_SNAPSHOT_CODES: Final = {"SNAPSHOT-DUPLICATE-ID", "SNAPSHOT-DISK-SIZE", "SNAPSHOT-WITH-DATA-FILE"}
_EVIDENCE: Final = {
    "L1-TABLE-UNALIGNED": "the L1 table is not where the header says",
    "L1-TABLE-OFFSET": "the L1 table is not where the header says",
    "L1-TABLE-TOO-SMALL": "the L1 table is shorter than the disk needs",
    "L1-TABLE-TOO-LARGE": "the L1 table has an impossible size",
    "REGION-BEYOND-EOF": "a table lies past the end of the file",
    "READ-ERROR": "a table cannot be read",
    "L1-ENTRY-RESERVED": "an L1 entry is damaged",
    "L2-TABLE-SHARED": "two L1 entries lead to one L2 table",
    "L2-ENTRY-UNALIGNED": "an L2 entry cannot be read",
    "L2-ENTRY-BEYOND-EOF": "an L2 entry leads past the end of the file",
    "L2-ENTRY-RESERVED": "an L2 entry is damaged",
    "L2-COPIED-UNALLOCATED": "an L2 entry has lost its offset",
    "SUBCLUSTER-UNALLOCATED": "an L2 entry has lost its offset",
    "COMPRESSED-BEYOND-EOF": "a compressed cluster's entry leads past the end of the file",
    "COMPRESSED-COPIED": "a compressed cluster's entry is damaged",
    "COMPRESSED-RESERVED": "a compressed cluster's entry is damaged",
    "COMPRESSED-WITH-SUBCLUSTERS": "a compressed cluster's entry is damaged",
    "METADATA-OVERLAP": "a table lies where another one is",
    "DATA-OVERLAPS-METADATA": "an L2 entry leads to a table",
    "DATA-CROSS-LINKED": "two L2 entries lead to one cluster",
    "DATA-OVERLAPS-COMPRESSED": "two L2 entries lead to one cluster",
}
"""Findings by which something of the mapping is missing, though no whole L2 table is; the reason as a clause."""
_REFCOUNTS_DOUBTFUL: Final = {
    "IMAGE-CORRUPT-BIT",
    "IMAGE-DIRTY",
    "REFBLOCK-MISSING",
    "REFBLOCK-UNALIGNED",
    "REFBLOCK-BEYOND-EOF",
    "REFBLOCK-RESERVED",
    "REFBLOCK-SHARED",
    "REFBLOCK-FOREIGN",
    "REFTABLE-MISSING",
    "REFTABLE-TOO-LARGE",
    "REFTABLE-UNALIGNED",
    "REFTABLE-OFFSET",
    "REFCOUNT-ZERO",
    "REFCOUNT-UNREADABLE",
}
"""Findings after which a stored refcount of 0 does not mean that a cluster is free."""


class Verdict(Enum):
    """What a leaked run most likely is."""

    WASTE = "waste"
    POSSIBLE_DATA = "possible guest data"
    UNKNOWN = "not looked at"


@dataclass(frozen=True, slots=True)
class LeakRun:
    """Neighbouring clusters that nothing refers to. offset, length: host bytes.  content: what the first ones hold.

    confidence: 0 to 1, in the verdict.  guest: where in the active disk it fits, or None.  counted: they are leaked, that
    is their refcounts say that they are in use; else they count as free.
    """

    offset: int
    length: int
    verdict: Verdict
    confidence: float
    reason: str
    content: str
    guest: int | None = None
    counted: bool = True

    @property
    def keep(self) -> bool:
        """A repair must not free it unless told to."""
        return self.verdict is not Verdict.WASTE

    def as_json(self) -> dict[str, Any]:
        out: dict[str, Any] = {
            "offset": self.offset,
            "length": self.length,
            "verdict": self.verdict.value,
            "confidence": round(self.confidence, 2),
            "reason": self.reason,
            "content": self.content,
        }
        if self.guest is not None:
            out["guest-offset"] = self.guest
        if not self.counted:
            out["counts-as-free"] = True
        return out


@dataclass(frozen=True, slots=True)
class LostTable:
    """A cluster that holds an L2 table which no L1 entry refers to. offset: host bytes.

    entries: entries in use; leaked: how many of the clusters that they map nothing else refers to.  fits: L1 indices of the active disk that it
    may belong to, best first; confidence is that of the first one.  evidence: lines for people.
    """

    offset: int
    entries: int
    leaked: int
    fits: tuple[int, ...]
    confidence: float
    evidence: tuple[str, ...]

    @property
    def certain(self) -> bool:
        """No other place is possible: a repair may link it unasked."""
        return self.confidence >= 0.85

    @property
    def doubtful(self) -> bool:
        """It may as well be what a deleted snapshot, or an image before this one, left behind."""
        return self.confidence <= _DOUBTFUL

    def as_json(self) -> dict[str, Any]:
        return {
            "offset": self.offset,
            "entries": self.entries,
            "leaked-clusters": self.leaked,
            "fits-l1-entries": list(self.fits[:16]),
            "confidence": round(self.confidence, 2),
            "evidence": list(self.evidence),
        }


@dataclass(frozen=True, slots=True)
class Gap:
    """A guest window that lost its mapping. l1_index, room: guest clusters that could be in it.  why: one clause."""

    l1_index: int
    room: int
    why: str


@dataclass(slots=True)
class Triage:
    """The outcome. gaps: windows without mapping that look like losses.  found: what lies in unreferenced clusters, None
    when nobody looked."""

    runs: list[LeakRun] = field(default_factory=list)
    lost: list[LostTable] = field(default_factory=list)
    gaps: list[Gap] = field(default_factory=list)
    old_l1: list[int] = field(default_factory=list)
    found: Unreferenced | None = None


class Judge:
    """Judges the leaks of one check."""

    def __init__(
        self,
        meta: Metadata,
        geometry: Geometry,
        findings: Findings,
        census: Census,
        tables: L2Set,
        active_l1: NDArray[np.uint64],
        empty: NDArray[np.intp],
        foreign: NDArray[np.intp],
        *,
        limit: int | None,
        cancelled: Callable[[], None],
        known: Unreferenced | None = None,
    ) -> None:
        """limit: bytes of unreferenced clusters to read; 0: none, None: all.  known: as in `scan`."""
        self.meta, self.geometry, self.census, self.tables = meta, geometry, census, tables
        self.findings = findings
        self.l1 = active_l1
        self.empty, self.foreign = empty, foreign
        self.limit = limit
        self.cancelled = cancelled
        self.known = known
        self.bits = geometry.cluster_bits
        self.needed = min(geometry.l1_entries_for(meta.header.size), active_l1.size)
        self.contents: dict[int, str] = {}
        self.spans: list[tuple[int, int, int]] = []
        self.out = Triage()
        self._free: NDArray[np.intp] | None = None
        self._named: list[tuple[int, int]] = []
        self.clusters = min(geometry.clusters(meta.file_size), len(census))
        self.blank = self.needed > 0 and not active_l1[: self.needed].any()
        self.snapshots = any(
            code.startswith("SNAPSHOT") and code not in _HARMLESS_SNAPSHOT_CODES for code in findings.by_code
        )
        self.missing = next((why for code, why in _EVIDENCE.items() if code in findings.by_code), "")
        self.distrusted = any(code in findings.by_code for code in _REFCOUNTS_DOUBTFUL)

    def run(self) -> Triage:
        starts, ends = self._runs()
        self.out.gaps = self._gaps()
        suspicious = bool(self.out.gaps) or self.snapshots or bool(self.missing) or self.distrusted or self.blank
        if not starts.size and not suspicious:
            return self.out
        if self.limit is None or self.limit > 0:
            self._look()
            self._describe(starts, ends)
            self._weigh(suspicious=suspicious)
        self._judge(starts, ends, counted=True)
        if suspicious and self.out.found is not None:
            self._judge(*self._free_runs(self.out.found), counted=False)
        return self.out

    def _look(self) -> None:
        """Read what nothing refers to, as far as the limit allows."""
        found = self.out.found = scan(
            self.meta.storage,
            self.geometry,
            self.census.counts[: self.clusters] != 0,
            external=self.meta.header.has("data_file"),
            limit=self.limit,
            cancel=self.cancelled,
            known=self.known,
        )
        if any(
            (self.census.flags[each >> self.bits] & kinds.STORED) or self.distrusted for each in found.snapshot_tables
        ):
            self.snapshots = True

    def _free_runs(self, found: Unreferenced) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Runs that count as free and are not empty, as host clusters [start, end): those with evidence of their own
        (tables, and what they map); all of them when no refcount can be trusted and something of the mapping is gone."""
        free = (self.census.flags[: self.clusters] & kinds.STORED) == 0
        free &= self.census.counts[: self.clusters] == 0
        chosen = found.mapped | found.is_table
        if self.out.gaps or self.missing or self.snapshots:
            chosen |= found.content
        rows = runs_of(free & chosen)
        return rows[:, 0], rows[:, 1]

    def _runs(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Leaked runs as host clusters [start, end)."""
        rows = self.findings.rows("CLUSTER-LEAKED")
        columns = self.findings.columns[rows]
        start = (columns["offset"] >> np.uint64(self.bits)).astype(np.int64)
        end = start + (columns["length"] >> np.uint64(self.bits)).astype(np.int64)
        order = np.argsort(start)
        start, end = start[order], end[order]
        if start.size:
            fresh = np.append(True, start[1:] > np.maximum.accumulate(end)[:-1])
            first = np.flatnonzero(fresh)
            start, end = start[first], np.maximum.reduceat(end, first)
        return start, end

    # -- windows without a mapping -------------------------------------------------------------------------------------

    def _gaps(self) -> list[Gap]:
        entries = self.geometry.l2_entries
        gaps: dict[int, Gap] = {}
        for code, why in (
            ("L1-ENTRY-UNALIGNED", "its L1 entry is not aligned"),
            ("L1-ENTRY-BEYOND-EOF", "its L1 entry points past the end of the file"),
            ("L1-ENTRY-OFFSET-ZERO", "its L1 entry has lost its offset"),
        ):
            for found in self.findings.of(code):
                if found.snapshot < 0:
                    for index in range(found.index, min(found.index + found.count, found.index + MAX_RUNS)):
                        gaps[index] = Gap(index, entries, why)
        for rows, why in ((self.foreign, "its L2 table holds something else"), (self.empty, "its L2 table is empty")):
            for row in rows[:MAX_RUNS].tolist():
                if self.tables.active[row]:
                    index = int(self.tables.index[row])
                    gaps.setdefault(index, Gap(index, entries, why))
        return [gaps[index] for index in sorted(gaps)]

    def _free_l1(self) -> NDArray[np.intp]:
        """L1 indices of the disk that refer to no L2 table, or to one that is lost."""
        if self._free is not None:
            return self._free
        free = set(np.flatnonzero(self.l1[: self.needed] == 0).tolist())
        free |= {gap.l1_index for gap in self.out.gaps if gap.l1_index < self.needed}
        self._free = np.array(sorted(free), dtype=np.intp)
        self._named = [(index, offset_of(int(self.l1[index]))) for index in sorted(free) if self.l1[index]]
        return self._free

    def named(self) -> list[tuple[int, int]]:
        """(L1 index, host offset) of the tables that free L1 entries of the disk still name."""
        self._free_l1()
        return self._named

    # -- content -------------------------------------------------------------------------------------------------------

    def _describe(self, starts: NDArray[np.int64], ends: NDArray[np.int64]) -> None:
        """Say what leaked clusters hold: all that are not empty, or a spread of MAX_PROBES."""
        assert self.out.found is not None
        filled = self.out.found.content
        some = [np.flatnonzero(filled[a:b]) + a for a, b in zip(starts.tolist(), ends.tolist(), strict=True)]
        firsts = np.array([each[0] for each in some if each.size], dtype=np.int64)
        every = np.concatenate([np.zeros(0, dtype=np.int64), *some])
        if every.size > MAX_PROBES:
            position = np.linspace(0, every.size - 1, MAX_PROBES // 2).astype(np.int64)
            every = distinct(np.concatenate([firsts[:: -(-firsts.size // (MAX_PROBES // 2))], every[position]]))
        for number, cluster in enumerate(every.tolist()):
            if number % 64 == 0:
                self.cancelled()
            try:
                data = self._first_bytes(cluster)
            except StorageError:
                self.contents[cluster] = "what cannot be read"
                continue
            self.contents[cluster] = content.describe(data, self.meta.file_size, self.bits)

    def _first_bytes(self, cluster: int) -> bytes:
        """What a cluster holds, from its first part that is not zero. Raises StorageError."""
        start, end, data = cluster << self.bits, (cluster + 1) << self.bits, b""
        for at in range(start, end, _PROBE):
            data = self.meta.storage.read(at, min(end - at, _PROBE))
            if data.strip(b"\0"):
                break
        return data

    def _is_leaked(self, clusters: NDArray[np.int64]) -> NDArray[np.bool_]:
        here = (clusters >= self.census.first) & (clusters < self.census.end)
        out = np.zeros(clusters.size, dtype=bool)
        at = clusters[here] - self.census.first
        out[here] = (self.census.counts[at] == 0) & ((self.census.flags[at] & kinds.STORED) != 0)
        return out

    def _weigh(self, *, suspicious: bool) -> None:
        """Which of the tables found are lost ones. Those whose clusters count as free are so only where the refcounts or
        the mapping give reason to doubt that; else they are what a deleted snapshot left behind."""
        found = self.out.found
        assert found is not None
        storage, external = self.meta.storage, self.meta.header.has("data_file")
        old = []
        for each in found.l1:
            self.out.old_l1.append(each.offset)
            self.contents[each.offset >> self.bits] = "an L1 table"
            length = min(each.length, limits.MAX_L1_SIZE)
            old.append((each.offset >> self.bits, words(storage.read(each.offset, length))))
        for table in found.tables:
            cluster = table.offset >> self.bits
            read = read_table(storage, self.geometry, table.offset, external=external)
            targets = read[1] if read is not None else np.zeros(0, dtype=np.int64)
            self.contents[cluster] = "an L2 table"
            if targets.size:
                self.spans.append((int(targets[0]), int(targets[-1]), cluster))
            leaked = int(self._is_leaked(targets).sum())
            counted = leaked > 0 or bool(self.census.flags[cluster] & kinds.STORED)
            if not counted and not (suspicious and table.grade is Grade.CERTAIN):
                continue
            owed = read is not None and self._is_owed(table, read[0])
            if table.unreferenced * 2 < table.targets and not owed:
                continue
            own = own_place(read[0], self.geometry) if external and read is not None else None
            if own is not None:
                lost = self._at_own_place(table, own)
            else:
                lost = self._fit(cluster, table, leaked, old, owed=owed)
            if table.grade is Grade.GUESS and not owed:
                lost = replace(lost, confidence=min(lost.confidence, _DOUBTFUL))
            elif not counted and not self._near(cluster):
                evidence = (*lost.evidence, "its clusters count as free: it may be a remnant of a deleted snapshot")
                lost = replace(lost, confidence=min(lost.confidence, _DOUBTFUL), evidence=evidence)
            self.out.lost.append(lost)
        self._share_out()

    def _is_owed(self, table: TableLike, found: Decoded) -> bool:
        """Every cluster that a table maps, and its own, is counted for just the references more that it would make, and its
        COPIED flags say which of them nobody shares: the references that are missing are this table's.

        Compressed entries have no flags: there no snapshot may have lost an L1 entry where the disk has.
        """
        clusters, times = references_of(found, self.geometry)
        if table.odd or int(times.sum()) < 2 or self.distrusted or self.meta.header.has("data_file"):
            return False
        own = np.append(clusters, table.offset >> self.bits)
        if int(own.max()) >= self.clusters:
            return False
        stored, bad = StoredRefcounts(self.meta, self.geometry).at(own)
        wanted = self.census.references_at(own) + np.append(times, 1).astype(np.uint64)
        if bad.any() or (stored != wanted).any():
            return False
        alone = stored[np.searchsorted(clusters, found.standard)] == 1
        if found.copied != int(np.count_nonzero(alone)):
            return False
        return found.copied > 0 or not self._snapshots_lack_tables()

    def _snapshots_lack_tables(self) -> bool:
        """Some snapshot has no table either for an L1 entry that the disk has free."""
        free = self._free_l1()
        for each in self.meta.snapshots:
            words = self.meta.snapshot_l1(each)
            if (words[free[free < words.size]] == 0).any() or (free >= words.size).any():
                return True
        return False

    def _counted(self, cluster: int) -> bool:
        """Whether the refcount says that a cluster is in use."""
        return cluster < self.clusters and bool(self.census.flags[cluster] & kinds.STORED)

    def _share_out(self) -> None:
        """Lost tables with the same choice of L1 entries get different first ones, in the order they have in the file."""
        wanted = Counter(table.fits[0] for table in self.out.lost if table.fits)
        taken: set[int] = set()
        shared: list[LostTable] = []
        for table in sorted(self.out.lost, key=lambda each: each.offset):
            first = next((index for index in table.fits if index not in taken), None)
            if first is not None:
                taken.add(first)
                rest = tuple(index for index in table.fits if index != first)
                confidence = table.confidence if wanted[table.fits[0]] == 1 else min(table.confidence, _LIKELY)
                shared.append(replace(table, fits=(first, *rest), confidence=confidence))
            else:
                shared.append(table)
        self.out.lost = shared

    def _at_own_place(self, table: TableLike, index: int) -> LostTable:
        """A table whose entries lead to their own guest offsets in the data file."""
        where = f"its entries lead to the places in the data file that L1 entry {index} is for"
        if index in self._free_l1():
            return LostTable(table.offset, table.used, 0, (index,), 0.95, (where,))
        return LostTable(table.offset, table.used, 0, (), 0.0, (where, "that entry has a table"))

    def _fit(
        self,
        cluster: int,
        table_like: TableLike,
        leaked: int,
        old: list[tuple[int, NDArray[np.uint64]]],
        *,
        owed: bool,
    ) -> LostTable:
        """Which L1 entries a lost table can belong to."""
        offset, entries = cluster << self.bits, table_like.used
        loose = table_like.unreferenced
        state = "leaked" if leaked == loose else "in use by nothing else"
        evidence = [f"{loose} of the {table_like.targets} clusters that it maps are {state}"]
        if table_like.odd:
            evidence.append(f"{table_like.odd} of its {entries} entries are damaged")
        leaked = loose
        free = self._free_l1()
        limit = 1.0 if owed or (table_like.grade is Grade.CERTAIN and loose == table_like.targets) else _LIKELY
        if owed and loose < table_like.targets:
            evidence.append("each of the others is counted for one reference more than there is")
        unmarked = (table_like.copied + table_like.packed) * 2 <= table_like.valid
        if unmarked and not owed and not self.meta.header.has("data_file"):
            evidence.append("its entries are not marked as the only reference (COPIED): it may be a snapshot's, or old")
            limit = _LIKELY
        for copy, table in old:
            at = np.flatnonzero(offset_of(table) == np.uint64(offset))
            at = at[np.isin(at, free)]
            if at.size and self._counted(copy):
                evidence.append(
                    f"the L1 table at {copy << self.bits:#x}, which nobody names, has it: a snapshot's, maybe"
                )
                limit = _LIKELY
            elif at.size:
                evidence.append(f"an old L1 table at {copy << self.bits:#x} has it in entry {int(at[0])}")
                return LostTable(offset, entries, leaked, (int(at[0]),), min(0.97, limit), tuple(evidence))
        near = self._near(cluster)
        if near:
            evidence.append(
                f"the damaged L1 entry {near[0]} ({int(self.l1[near[0]]):#x}) differs only a little from it"
            )
            return LostTable(offset, entries, leaked, tuple(near), 0.95, tuple(evidence))
        if free.size == 0:
            evidence.append("no L1 entry of the disk is free")
            return LostTable(offset, entries, leaked, (), 0.0, tuple(evidence))
        if free.size == 1:
            evidence.append(f"L1 entry {int(free[0])} is the only one without a table")
            return LostTable(offset, entries, leaked, (int(free[0]),), min(0.9, limit), tuple(evidence))
        damaged = [gap.l1_index for gap in self.out.gaps if gap.l1_index < self.needed]
        ordered = self._by_order(offset, free)
        inside, hurt = set(ordered), set(damaged)
        ranked = [index for index in damaged if index in inside]
        ranked += [index for index in ordered[: _MOST_FITS + len(hurt)] if index not in hurt]
        known = set(ranked)
        ranked += [index for index in free[: _MOST_FITS + len(known)].tolist() if index not in known]
        if len(damaged) == 1:
            evidence.append(f"L1 entry {damaged[0]} is the only damaged one")
            ranked = damaged + [index for index in ranked if index != damaged[0]]
            return LostTable(offset, entries, leaked, tuple(ranked[:_MOST_FITS]), min(0.85, limit), tuple(evidence))
        if len(ordered) == 1:
            evidence.append(f"L2 tables lie in the order of their L1 entries, and entry {ordered[0]} is free there")
            return LostTable(offset, entries, leaked, tuple(ranked[:_MOST_FITS]), min(0.75, limit), tuple(evidence))
        evidence.append(f"{free.size} L1 entries are free; {len(ordered)} fit the order of the tables in the file")
        confidence = min(1 / max(1, len(ordered) or free.size), _LIKELY)
        return LostTable(offset, entries, leaked, tuple(ranked[:_MOST_FITS]), confidence, tuple(evidence))

    def _near(self, cluster: int) -> list[int]:
        """Free L1 entries, damaged ones, that still name this cluster or differ from it in one bit."""
        offset = cluster << self.bits
        return [
            index for index, place in self.named() if place >> self.bits == cluster or (place ^ offset).bit_count() == 1
        ]

    def _by_order(self, offset: int, free: NDArray[np.intp]) -> list[int]:
        """Free L1 entries between the tables whose host offsets are just below and above `offset`."""
        used = np.flatnonzero(self.l1[: self.needed])
        used = used[~np.isin(used, free)]
        if not used.size:
            return list(map(int, free))
        offsets = offset_of(self.l1[used])
        below, above = used[offsets < np.uint64(offset)], used[offsets > np.uint64(offset)]
        low = int(below.max()) if below.size else -1
        high = int(above.min()) if above.size else self.needed
        return list(map(int, free[(free > low) & (free < high)]))

    # -- verdicts ------------------------------------------------------------------------------------------------------

    def _judge(self, starts: NDArray[np.int64], ends: NDArray[np.int64], *, counted: bool) -> None:
        """A verdict for each run [start, end) of host clusters. counted: their refcounts say that they are in use."""
        total = int((ends - starts).sum())
        fits = bool(self.out.gaps) and total <= sum(gap.room for gap in self.out.gaps) + len(self.out.gaps)
        neighbours = self._neighbours(starts, ends) if not fits and counted else ({}, {})
        judge = _Verdicts(self, fits=fits, neighbours=neighbours, many=self._many(starts, ends))
        for start, end in zip(starts.tolist()[:MAX_RUNS], ends.tolist()[:MAX_RUNS], strict=True):
            self.out.runs.append(replace(judge.of(start, end), counted=counted))
        if starts.size > MAX_RUNS:
            first, last = int(starts[MAX_RUNS]), int(ends[-1])
            held = judge.holds(first, last)
            waste = held == "zeros"
            self.out.runs.append(
                LeakRun(
                    first << self.bits,
                    (last - first) << self.bits,
                    Verdict.WASTE if waste else Verdict.UNKNOWN,
                    0.9 if waste else 0.5,
                    f"{starts.size - MAX_RUNS} more {'leaked ' if counted else ''}runs, not judged one by one",
                    held,
                    counted=counted,
                )
            )

    def _many(self, starts: NDArray[np.int64], ends: NDArray[np.int64]) -> bool:
        """More content is leaked than interrupted writes leave, and the disk has ranges without a table."""
        if self.out.found is None:
            return False
        filled = self.out.found.content
        number = sum(int(np.count_nonzero(filled[a:b])) for a, b in zip(starts.tolist(), ends.tolist(), strict=True))
        enough = number >= _MANY_CLUSTERS and number << self.bits >= _MANY_BYTES
        return enough and bool((self.l1[: self.needed] == 0).any())

    def _key_areas(self) -> list[tuple[int, int]]:
        """Host clusters [start, end) of LUKS headers with their key material, where the header says or a leak shows one."""
        places = [cluster << self.bits for cluster, kind in self.contents.items() if kind == "LUKS header"]
        if self.meta.encryption is not None:
            places.append(self.meta.encryption.offset)
        areas = []
        for offset in places[:64]:
            luks = (
                parse_luks(self.meta.storage.read(offset, LUKS_HEADER_SIZE)) if offset < self.meta.file_size else None
            )
            if luks is not None and luks.magic == LUKS_MAGIC:
                slots = [each.key_material_offset * 512 + luks.key_bytes * each.stripes for each in luks.key_slots]
                length = min(max(luks.payload_offset * 512, *slots), limits.MAX_LUKS_HEADER_SIZE)
                areas.append((offset >> self.bits, self.geometry.clusters(offset + length)))
        return areas

    def _neighbours(self, starts: NDArray[np.int64], ends: NDArray[np.int64]) -> tuple[dict[int, int], dict[int, int]]:
        """Run start -> guest offset: (exactly between two guest neighbours, beside one with nothing mapped there).

        The last clusters in use are left out of the second: an interrupted write leaves its leak there.
        """
        few = slice(0, MAX_RUNS)
        wanted = distinct(np.concatenate([starts[few] - 1, ends[few]]))
        guest = guest_of_clusters(self.meta, self.tables, self.geometry, wanted)
        size = self.geometry.cluster_size
        last = int(self.census.end - 1 - np.argmax((self.census.counts != 0)[::-1])) if len(self.census) else 0
        exact: dict[int, int] = {}
        beside: dict[int, int] = {}
        for start, end in zip(starts[few].tolist(), ends[few].tolist(), strict=True):
            before, after = guest.get(start - 1), guest.get(end)
            length = (end - start) * size
            if before is not None and after is not None and after - before == length + size:
                exact[start] = before + size
            elif start < last:
                places = [before + size] if before is not None else []
                places += [after - length] if after is not None and after >= length else []
                for place in places:
                    if is_unmapped(self.meta, self.geometry, self.l1, place):
                        beside[start] = place
                        break
        return exact, beside


class _Verdicts:
    """The rules for one run, strongest evidence first."""

    def __init__(
        self, judge: Judge, *, fits: bool, neighbours: tuple[dict[int, int], dict[int, int]], many: bool
    ) -> None:
        self.judge, self.fits, self.many = judge, fits, many
        self.exact, self.beside = neighbours
        self.keys = judge._key_areas()
        self.missing = judge.missing or ("no cluster of the disk is mapped at all" if judge.blank else "")
        self.stale = "BITMAPS-NOT-TRUSTED" in judge.findings.by_code
        found = judge.out.found
        self.known = np.flatnonzero(found.mapped | found.is_table) if found is not None else np.zeros(0, dtype=np.int64)

    def holds(self, start: int, end: int) -> str:
        """What a run holds, in a word or two."""
        found = self.judge.out.found
        if found is None or any(low < end and start < high for low, high in found.not_looked_at.tolist()):
            return "not read"
        filled = found.content[start:end]
        if not filled.any():
            return "zeros"
        first = start + int(filled.argmax())
        contents = self.judge.contents
        return next((contents[each] for each in range(first, min(end, first + 64)) if each in contents), "data")

    def _only(self, start: int, end: int, kind: str) -> bool:
        """All clusters of a run that are not empty hold the same kind of thing."""
        found = self.judge.out.found
        filled = np.flatnonzero(found.content[start:end]) + start if found is not None else np.zeros(0, dtype=np.int64)
        return all(self.judge.contents.get(each) == kind for each in filled.tolist())

    def _table(self, start: int, end: int) -> int | None:
        """The first cluster of a run that is a lost table's, or mapped by one: that table's cluster."""
        place = int(np.searchsorted(self.known, start))
        if place >= self.known.size or int(self.known[place]) >= end:
            return None
        cluster = int(self.known[place])
        found = self.judge.out.found
        if found is not None and found.is_table[cluster]:
            return cluster
        return next((table for low, high, table in self.judge.spans if low <= cluster <= high), cluster)

    def _room(self, start: int) -> str:
        """The L1 entry that a run may belong to: the one whose lost table lies right before it, or any."""
        gaps, bits = self.judge.out.gaps, self.judge.bits
        before = next((index for index, place in self.judge.named() if place >> bits == start - 1), None)
        gap = next((each for each in gaps if each.l1_index == before), gaps[0])
        some = "" if len(gaps) == 1 or gap.l1_index == before else f"one of {len(gaps)} entries that lost their table, "
        return f"{some}L1 entry {gap.l1_index} has room for it: {gap.why}"

    def of(self, start: int, end: int) -> LeakRun:
        judge, kind = self.judge, self.holds(start, end)
        verdict, confidence, guest = Verdict.POSSIBLE_DATA, 0.8, None
        table = self._table(start, end)
        if table is not None and kind != "an L1 table":
            reason = f"it is mapped by, or is, the lost L2 table at {table << judge.bits:#x}"
            confidence = 0.97
        elif kind == "LUKS header" or any(start < high and low < end for low, high in self.keys):
            reason, confidence = "it holds encryption keys", 0.99
        elif start in self.exact:
            guest, confidence = self.exact[start], 0.9
            reason = f"it lies between the clusters of guest neighbours: guest {guest:#x} has lost its mapping"
        elif judge.out.gaps and (self.fits or kind != "zeros"):
            reason = self._room(start)
            confidence = 0.5 if kind == "zeros" or not self.fits else 0.8
        elif judge.snapshots and kind != "zeros":
            reason = "a snapshot, or the table of snapshots, cannot be read"
        elif self.stale:
            reason, confidence = "the bitmaps, which are not trusted, may be in it", 0.5
        elif kind == "not read":
            verdict, confidence, reason = Verdict.UNKNOWN, 0.5, "its content was not looked at"
        elif kind == "zeros":
            verdict, confidence, reason = Verdict.WASTE, 0.9, "it is empty"
        elif start in self.beside and kind not in ("a refcount block", "an L1 table"):
            guest, confidence = self.beside[start], 0.6
            reason = f"it lies beside mapped clusters, and the guest has nothing at {guest:#x}, where it would fit"
        elif kind == "a refcount block" and self._only(start, end, kind):
            verdict, confidence = Verdict.WASTE, 0.9
            reason = "it is a refcount block that is no longer used"
        elif self.missing:
            reason, confidence = f"it may be what is missing: {self.missing}", 0.6
        elif kind not in ("data", "text"):
            reason, confidence = f"it holds {kind}", 0.7
        elif self.many:
            reason = "more is leaked than interrupted writes leave, and the disk has ranges without a table"
            confidence = 0.6
        else:
            verdict, confidence = Verdict.WASTE, 0.6
            reason = "no mapping is missing: most likely a write that was interrupted before it was recorded"
        return LeakRun(start << judge.bits, (end - start) << judge.bits, verdict, confidence, reason, kind, guest)
