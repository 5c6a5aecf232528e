"""Leak triage: is a leaked cluster waste, or guest data whose mapping was lost? And lost L2 tables, with where they fit.

Evidence, strongest first: a leaked L2 table maps the clusters; the leak fits exactly between the host clusters of two
guest neighbours; an emptied, foreign or unreachable L2 table leaves a guest window that has room for it; its content is
a table, a compressed stream or a recognisable file system.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from enum import Enum
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from formats.luks.header import HEADER_SIZE as LUKS_HEADER_SIZE
from formats.luks.header import MAGIC as LUKS_MAGIC
from formats.luks.header import parse_luks
from formats.qcow2 import limits
from formats.qcow2.tables import OFFSET_MASK
from workbench.check import content, kinds
from workbench.check.census import Census
from workbench.check.findings import Findings
from workbench.check.neighbours import guest_of_clusters, is_unmapped
from workbench.check.tables import L2Set
from workbench.engine.metadata import Metadata
from workbench.engine.unreferenced import Grade, TableLike, Unreferenced, read_table
from workbench.units import Geometry

if TYPE_CHECKING:
    from numpy.typing import NDArray

MAX_RUNS: Final = 4096
"""Leaked runs that are judged one by one."""
MAX_PROBES: Final = 1024
"""Leaked runs whose content is described."""
MANY: Final = 128
"""Leaked clusters with content that interrupted writes leave at most; more, and a mapping was lost."""
_LIKELY: Final = 0.6
"""Confidence of what is not certain: no repair links it unasked."""
_PROBE: Final = 72 << 10


class Verdict(Enum):
    """What a leaked run most likely is."""

    WASTE = "waste"
    POSSIBLE_DATA = "possible guest data"


@dataclass(frozen=True, slots=True)
class LeakRun:
    """Neighbouring leaked clusters. offset, length: host bytes.  content: what its first cluster holds.

    confidence: 0 to 1, in the verdict.  guest: where in the active disk it fits, or None.
    """

    offset: int
    length: int
    verdict: Verdict
    confidence: float
    reason: str
    content: str
    guest: int | None = None

    @property
    def keep(self) -> bool:
        """A repair must not free it unless told to."""
        return self.verdict is Verdict.POSSIBLE_DATA

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
        return out


@dataclass(frozen=True, slots=True)
class LostTable:
    """A cluster that holds an L2 table which no L1 entry refers to. offset: host bytes.

    entries: entries in use; leaked: how many of their clusters are leaked.  fits: L1 indices of the active disk that it
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
    """The outcome. gaps: windows without mapping that look like losses."""

    runs: list[LeakRun] = field(default_factory=list)
    lost: list[LostTable] = field(default_factory=list)
    gaps: list[Gap] = field(default_factory=list)
    old_l1: list[int] = field(default_factory=list)


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
        unreferenced: Unreferenced,
        *,
        fast: bool,
        cancelled: Callable[[], None],
    ) -> None:
        self.meta, self.geometry, self.census, self.tables = meta, geometry, census, tables
        self.findings = findings
        self.unreferenced = unreferenced
        self.l1 = active_l1
        self.empty, self.foreign = empty, foreign
        self.fast = fast
        self.cancelled = cancelled
        self.bits = geometry.cluster_bits
        self.needed = min(geometry.l1_entries_for(meta.header.size), active_l1.size)
        self.contents: dict[int, str] = {}
        self.claimed: dict[int, int] = {}
        self.out = Triage()

    def run(self) -> Triage:
        starts, ends = self._runs()
        self.out.gaps = self._gaps()
        if not self.fast:
            self._probe(starts, ends)
            self._lost_tables()
        if starts.size:
            self._judge(starts, ends)
        return self.out

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
        free = set(np.flatnonzero(self.l1[: self.needed] == 0).tolist())
        free |= {gap.l1_index for gap in self.out.gaps if gap.l1_index < self.needed}
        return np.array(sorted(free), dtype=np.intp)

    # -- content -------------------------------------------------------------------------------------------------------

    def _probe(self, starts: NDArray[np.int64], ends: NDArray[np.int64]) -> None:
        """What the first cluster of each leaked run holds, for people: of at most MAX_PROBES runs, spread over all."""
        lost = {each.offset >> self.bits for each in self.unreferenced.tables}
        old = {each.offset >> self.bits for each in self.unreferenced.l1}
        for number, cluster in enumerate(starts[:: max(1, -(-starts.size // MAX_PROBES))].tolist()):
            if number % 64 == 0:
                self.cancelled()
            data = self.meta.storage.read(cluster << self.bits, min(self.geometry.cluster_size, _PROBE))
            self.contents[cluster] = content.describe(data, self.meta.file_size, self.bits)
        self.contents.update(dict.fromkeys(lost, "an L2 table"))
        self.contents.update(dict.fromkeys(old, "an L1 table"))

    def _lost_tables(self) -> None:
        """The tables among what nothing refers to, and where each may belong."""
        self.out.old_l1 = [each.offset for each in self.unreferenced.l1]
        external = self.meta.header.has("data_file")
        for each in self.unreferenced.tables[:MAX_RUNS]:
            found = read_table(self.meta.storage, self.geometry, each.offset, external=external)
            for target in found[1].tolist() if found is not None else ():
                self.claimed.setdefault(target, each.offset >> self.bits)
            self.out.lost.append(self._fit(each))
        self._share_out()

    def _counted(self, cluster: int) -> bool:
        """Whether the refcount says that a cluster is in use."""
        here = self.census.first <= cluster < self.census.end
        return here and bool(self.census.flags[cluster - self.census.first] & kinds.STORED)

    def _share_out(self) -> None:
        """Lost tables with the same choice of L1 entries get different first ones, in the order they have in the file.

        Which of them belongs to an entry that several could fill is then no more than likely.
        """
        wanted = Counter(table.fits[0] for table in self.out.lost if table.fits)
        taken: set[int] = set()
        shared: list[LostTable] = []
        for table in sorted(self.out.lost, key=lambda each: each.offset):
            first = next((index for index in table.fits if index not in taken), None)
            if first is None:
                shared.append(table)
                continue
            taken.add(first)
            rest = tuple(index for index in table.fits if index != first)
            confidence = table.confidence if wanted[table.fits[0]] == 1 else min(table.confidence, _LIKELY)
            shared.append(replace(table, fits=(first, *rest), confidence=confidence))
        self.out.lost = shared

    def _fit(self, table: TableLike) -> LostTable:
        """Which L1 entries a lost table can belong to."""
        offset = table.offset
        counted = self._counted(offset >> self.bits)
        evidence = [f"nothing else refers to {table.unreferenced} of the {table.targets} clusters that it maps"]
        if not counted:
            evidence.append("it lies in a cluster that is counted as free")
        if table.odd:
            evidence.append(f"{table.odd} of its {table.used} entries are damaged")
        free, limit = self._free_l1(), 1.0 if table.grade is Grade.CERTAIN else _LIKELY
        if not self.meta.header.has("data_file") and (table.copied + table.packed) * 2 <= table.valid:
            evidence.append("its entries are not marked as the only reference (COPIED): it may be a snapshot's, or old")
            limit = _LIKELY
        if table.unreferenced < table.targets:
            limit = _LIKELY
        named = self._named(offset)
        if named is not None and self._counted(named[0] >> self.bits):
            evidence.append(f"the L1 table at {named[0]:#x}, which nobody names, has it: it may be a snapshot's")
            limit = _LIKELY
        elif named is not None and counted and named[1] in free:
            evidence.append(f"an old L1 table at {named[0]:#x} has it in entry {named[1]}")
            return self._lost(table, (named[1],), min(0.97, limit), evidence)
        near = [
            index for index in free.tolist()
            if self.l1[index] and (
                (int(self.l1[index]) & OFFSET_MASK) >> self.bits == offset >> self.bits
                or ((int(self.l1[index]) & OFFSET_MASK) ^ offset).bit_count() == 1
            )
        ]  # fmt: skip
        if near:
            word = int(self.l1[near[0]])
            evidence.append(f"the damaged L1 entry {near[0]} ({word:#x}) differs only a little from it")
            return self._lost(table, tuple(near), 0.95, evidence)
        if free.size == 0:
            evidence.append("no L1 entry of the disk is free")
            return self._lost(table, (), 0.0, evidence)
        if free.size == 1:
            evidence.append(f"L1 entry {int(free[0])} is the only one without a table")
            return self._lost(table, (int(free[0]),), min(0.9, limit), evidence)
        damaged = [gap.l1_index for gap in self.out.gaps if gap.l1_index in set(free.tolist())]
        ordered = self._by_order(offset, free)
        ranked = [index for index in damaged if index in ordered] + [index for index in ordered if index not in damaged]
        ranked += [index for index in free.tolist() if index not in set(ranked)]
        if len(damaged) == 1:
            ranked = damaged + [index for index in ranked if index != damaged[0]]
            evidence.append(f"L1 entry {damaged[0]} is the only damaged one")
            return self._lost(table, tuple(ranked[:64]), min(0.85, limit), evidence)
        if len(ordered) == 1:
            evidence.append(f"L2 tables lie in the order of their L1 entries, and entry {ordered[0]} is free there")
            return self._lost(table, tuple(ranked[:64]), min(_LIKELY, limit), evidence)
        evidence.append(f"{free.size} L1 entries are free; {len(ordered)} fit the order of the tables in the file")
        return self._lost(table, tuple(ranked[:64]), min(1 / max(1, len(ordered) or free.size), limit), evidence)

    def _lost(self, table: TableLike, fits: tuple[int, ...], confidence: float, evidence: list[str]) -> LostTable:
        return LostTable(table.offset, table.used, table.unreferenced, fits, confidence, tuple(evidence))

    def _named(self, offset: int) -> tuple[int, int] | None:
        """(host offset, entry) of an L1 table that nobody names and that leads to the L2 table at `offset`."""
        for each in self.unreferenced.l1:
            place = each.offset
            data = self.meta.storage.read(place, each.length)
            words = np.frombuffer(data, dtype=">u8").astype(np.uint64) & np.uint64(OFFSET_MASK)
            at = np.flatnonzero(words == np.uint64(offset))
            if at.size:
                return place, int(at[0])
        return None

    def _by_order(self, offset: int, free: NDArray[np.intp]) -> list[int]:
        """Free L1 entries between the tables whose host offsets are just below and above `offset`."""
        used = np.flatnonzero(self.l1[: self.needed])
        used = used[~np.isin(used, free)]
        if not used.size:
            return [int(index) for index in free]
        offsets = self.l1[used] & np.uint64(OFFSET_MASK)
        below, above = used[offsets < np.uint64(offset)], used[offsets > np.uint64(offset)]
        low = int(below.max()) if below.size else -1
        high = int(above.min()) if above.size else self.needed
        return [int(index) for index in free if low < index < high]

    # -- verdicts ------------------------------------------------------------------------------------------------------

    def _judge(self, starts: NDArray[np.int64], ends: NDArray[np.int64]) -> None:
        total = int((ends - starts).sum())
        room = sum(gap.room for gap in self.out.gaps)
        explained = bool(self.out.gaps) and total <= room + len(self.out.gaps)
        neighbours = self._neighbours(starts, ends) if not explained else ({}, {})
        snapshots = any(True for _ in self.findings.of("SNAPSHOT-L1-UNALIGNED", "SNAPSHOT-L1-TOO-LARGE"))
        stale = any(True for _ in self.findings.of("BITMAPS-NOT-TRUSTED"))
        known = sorted({*self.claimed, *(table.offset >> self.bits for table in self.out.lost)})
        exact, beside = neighbours
        keys = self._key_areas()
        for start, end in zip(starts.tolist()[:MAX_RUNS], ends.tolist()[:MAX_RUNS], strict=True):
            kind = next(
                (self.contents[c] for c in range(start, min(end, start + 64)) if c in self.contents), "not read"
            )
            verdict, confidence, reason, guest = Verdict.WASTE, 0.7, "nothing suggests that it was in use", None
            place = bisect_left(known, start)
            if place < len(known) and known[place] < end and not self.fast:
                table = self.claimed.get(known[place], known[place])
                reason = f"it is mapped by, or is, the lost L2 table at {table << self.bits:#x}"
                verdict, confidence = Verdict.POSSIBLE_DATA, 0.97
            elif kind == "LUKS header" or any(start < high and low < end for low, high in keys):
                verdict, confidence, reason = Verdict.POSSIBLE_DATA, 0.99, "it holds encryption keys"
            elif start in exact:
                guest = exact[start]
                reason = f"it lies between the clusters of guest neighbours: guest {guest:#x} has lost its mapping"
                verdict, confidence = Verdict.POSSIBLE_DATA, 0.9
            elif explained:
                gap = self.out.gaps[0]
                reason = f"L1 entry {gap.l1_index} has room for it: {gap.why}"
                verdict, confidence = Verdict.POSSIBLE_DATA, 0.5 if kind == "zeros" else 0.8
            elif snapshots:
                verdict, confidence, reason = Verdict.POSSIBLE_DATA, 0.8, "a snapshot's L1 table cannot be read"
            elif stale:
                reason = "the bitmaps, which are not trusted, may be in it"
                verdict, confidence = Verdict.POSSIBLE_DATA, 0.5
            elif kind == "zeros":
                confidence, reason = 0.9, "it is empty"
            elif start in beside and kind not in ("a refcount block", "an L1 table"):
                guest = beside[start]
                reason = f"it lies beside mapped clusters, and the guest has nothing at {guest:#x}, where it would fit"
                verdict, confidence = Verdict.POSSIBLE_DATA, 0.6
            elif kind == "a refcount block":
                confidence, reason = 0.9, "it is a refcount block that is no longer used"
            else:
                verdict, confidence, reason = self._unexplained(start, end, kind)
            self.out.runs.append(
                LeakRun(start << self.bits, (end - start) << self.bits, verdict, confidence, reason, kind, guest)
            )
        if starts.size > MAX_RUNS:
            rest = starts[MAX_RUNS]
            gaps = bool(self.out.gaps or self.out.lost or snapshots or self._much)
            self.out.runs.append(
                LeakRun(
                    int(rest) << self.bits,
                    int(ends[-1] - rest) << self.bits,
                    Verdict.POSSIBLE_DATA if gaps else Verdict.WASTE,
                    0.5,
                    f"{starts.size - MAX_RUNS} more leaked runs, not judged one by one",
                    "not read",
                )
            )

    @cached_property
    def _much(self) -> bool:
        """More content has no owner than interrupted writes leave."""
        return int(self.unreferenced.content.sum()) > MANY

    def _unexplained(self, start: int, end: int, kind: str) -> tuple[Verdict, float, str]:
        """The verdict on a run for which no mapping is known to be missing."""
        if kind not in ("data", "text", "not read"):
            return Verdict.POSSIBLE_DATA, 0.7, f"it holds {kind}"
        if self.fast:
            return Verdict.WASTE, 0.5, "its content was not looked at"
        if any(low < end and start < high for low, high in self.unreferenced.not_looked_at.tolist()):
            return Verdict.POSSIBLE_DATA, 0.5, "it was not looked at"
        if not self.unreferenced.content[start:end].any():
            return Verdict.WASTE, 0.9, "it is empty"
        if self._much:
            return Verdict.POSSIBLE_DATA, 0.6, "more content has no owner than interrupted writes leave"
        reason = "no mapping is missing: most likely a write that was interrupted before it was recorded"
        return Verdict.WASTE, 0.6, reason

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
        wanted = np.unique(np.concatenate([starts[few] - 1, ends[few]]))
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
