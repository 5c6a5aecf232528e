"""Findings grouped by what most likely caused them, each cause with its evidence. Rules from specific to general.

A finding belongs to at most one cause; what no rule explains stays on its own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from formats.qcow2.tables import distinct
from workbench.check.findings import Findings
from workbench.check.problems import PROBLEMS, Severity
from workbench.check.triage import LeakRun, Triage
from workbench.engine.metadata import Metadata
from workbench.units import Geometry, format_size, many

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Cause:
    """One likely cause.

    confidence: 0 to 1.  evidence: lines for people.  rows: numbers of the findings that it explains.  guest: lost or
    endangered guest ranges (offset, length); host: where the evidence lies (offset, length), bytes.
    """

    code: str
    title: str
    text: str
    confidence: float
    evidence: tuple[str, ...]
    rows: NDArray[np.intp]
    guest: tuple[tuple[int, int], ...] = ()
    host: tuple[tuple[int, int], ...] = ()

    def as_json(self) -> dict[str, Any]:
        return {
            "cause": self.code,
            "title": self.title,
            "text": self.text,
            "confidence": round(self.confidence, 2),
            "evidence": list(self.evidence),
            "findings": int(self.rows.size),
            "guest-ranges": [list(each) for each in self.guest[:64]],
            "host-ranges": [list(each) for each in self.host[:64]],
        }


def find_causes(
    meta: Metadata, geometry: Geometry, findings: Findings, triage: Triage, foreign_kinds: dict[int, str]
) -> tuple[Cause, ...]:
    """Every cause that the findings suggest, likeliest first. foreign_kinds: L1 index -> what its L2 table looks like."""
    return tuple(_Grouping(meta, geometry, findings, triage, foreign_kinds).run())


def header_cause(meta: Metadata, findings: Findings) -> tuple[Cause, ...]:
    """The one cause there is when the header gives no geometry."""
    rows = np.arange(len(findings))
    foreign = meta.foreign
    if foreign is not None:
        text = f"This is {foreign.name}. There is nothing in it to repair as a qcow2 image: {foreign.advice}."
        return (Cause("NOT-QCOW2", "The file is something else", text, 0.95, (), rows),)
    text = (
        "The first cluster does not say how the image is built, so a check cannot look behind it. `qwb repair --dry-run` "
        "searches the file for its tables, and shows what header they would need; write nothing before."
    )
    evidence = tuple(found.message for found in findings[:4])
    return (Cause("HEADER-DAMAGED", "The header is damaged", text, 0.9, evidence, rows),)


class _Grouping:
    def __init__(
        self, meta: Metadata, geometry: Geometry, findings: Findings, triage: Triage, foreign_kinds: dict[int, str]
    ) -> None:
        self.meta, self.geometry, self.findings, self.triage = meta, geometry, findings, triage
        self.foreign_kinds = foreign_kinds
        self.free = np.ones(len(findings), dtype=bool)
        self.causes: list[Cause] = []

    def run(self) -> list[Cause]:
        rules: tuple[Callable[[], None], ...] = (
            self._companions,
            self._truncated,
            self._past_the_end,
            self._l1_overwritten,
            self._lost_tables,
            self._lost_windows,
            self._lost_entries,
            self._luks,
            self._stale_bitmaps,
            self._snapshot_table,
            self._refcounts_lost,
            self._two_writers,
            self._overlaps,
            self._snapshot_deleted,
            self._lazy_crash,
            self._interrupted,
            self._header,
            self._bitmaps,
            self._bit_rot,
            self._refcounts_wrong,
        )
        for rule in rules:
            rule()
        self.causes.sort(key=lambda each: -each.confidence)
        return self.causes

    # -- tools ---------------------------------------------------------------------------------------------------------

    def take(self, *codes: str, where: NDArray[np.bool_] | None = None) -> NDArray[np.intp]:
        """Rows with one of `codes` that no cause has yet; they are taken."""
        rows = self.findings.rows(*codes)
        rows = rows[self.free[rows]]
        if where is not None:
            rows = rows[where[rows]]
        self.free[rows] = False
        return rows

    def inside(self, ranges: list[tuple[int, int]]) -> NDArray[np.bool_]:
        """Which findings start inside one of the host ranges (offset, length)."""
        out = np.zeros(len(self.findings), dtype=bool)
        if not ranges:
            return out
        starts = np.array([start for start, _ in ranges], dtype=np.uint64)
        ends = np.array([start + length for start, length in ranges], dtype=np.uint64)
        order = np.argsort(starts)
        starts, ends = starts[order], np.maximum.accumulate(ends[order])
        offset = self.findings.columns["offset"]
        at = np.searchsorted(starts, offset, side="right")
        out[at > 0] = offset[at > 0] < ends[at[at > 0] - 1]
        return out

    def count(self, rows: NDArray[np.intp]) -> int:
        return int(self.findings.columns["count"][rows].sum())

    def window(self, l1_index: int) -> tuple[int, int]:
        start = int(self.geometry.guest_offset(l1_index, 0))
        return start, max(0, min(self.geometry.l2_coverage, self.meta.header.size - start))

    def window_text(self, l1_index: int) -> str:
        start, length = self.window(l1_index)
        return f"guest range {start:#x} to {start + length:#x} ({format_size(length)})"

    def add(self, code: str, title: str, text: str, confidence: float, rows: NDArray[np.intp], *evidence: str,
            guest: tuple[tuple[int, int], ...] = (), host: tuple[tuple[int, int], ...] = ()) -> None:  # fmt: skip
        self.causes.append(Cause(code, title, text, confidence, tuple(evidence), np.sort(rows), guest, host))

    def data_leaks(self) -> list[LeakRun]:
        return [run for run in self.triage.runs if run.keep]

    # -- rules ---------------------------------------------------------------------------------------------------------

    def _companions(self) -> None:
        """Files that the image names. They say nothing about the image itself."""
        for found in self.findings.of("BACKING-MISSING", "BACKING-CYCLE", "DATA-FILE-MISSING"):
            rows = self.take(found.code)
            if not rows.size:
                continue
            missing = found.numbers.get("missing", "")
            if found.code == "BACKING-CYCLE":
                code, title = "BACKING-CYCLE", "The backing chain runs in a circle"
            elif found.code == "BACKING-MISSING":
                code = "BACKING-FILE-MISSING" if missing else "BACKING-FILE-UNUSABLE"
                title = f"The backing file {missing} is missing" if missing else "The backing file cannot be used"
            else:
                code = "DATA-FILE-MISSING" if missing else "DATA-FILE-UNUSABLE"
                title = (
                    f"The external data file {missing} is missing"
                    if missing
                    else "The external data file cannot be used"
                )
            text = (
                "This image holds the guest's data only together with that file; nothing in the image itself is damaged by "
                "it. Put the file back where the image looks for it."
            )
            if found.code != "DATA-FILE-MISSING":
                text += (
                    " `qwb map --no-backing` and `qwb convert --no-backing` read what the image itself holds, `qwb convert --backing"
                    " PATH` reads with another file in its place; `qemu-img rebase -u -b PATH -F FORMAT` records another name."
                )
            self.add(code, title, text, 0.95, rows, *(self.findings[int(row)].message for row in rows[:4]))

    def _past_the_end(self) -> None:
        """A table of the header's that lies where the file has no bytes."""
        header, end = self.meta.header, self.meta.file_size
        columns = self.findings.columns
        for field, title, offset, lost in (
            ("L1 offset", "The L1 table", header.l1_table_offset, "no part of the disk can be found through it"),
            (
                "refcount table offset",
                "The refcount table",
                header.refcount_table_offset,
                "every cluster counts as free",
            ),
        ):
            here = (columns["offset"] == np.uint64(offset)) & (columns["snapshot"] < 0) & (columns["table"] == 0)
            rows = self.take("REGION-BEYOND-EOF", where=here) if offset >= end else np.zeros(0, np.intp)
            if rows.size:
                self.add(
                    "TABLE-PAST-END", f"{title} lies past the end of the file",
                    f"The header's {field} {offset:#x} lies past the end of the file at {end:#x}, so {lost}. The field was "
                    "damaged or written wrongly, or the file was cut off. What the table named may still be in the file: "
                    "write nothing.",
                    0.9, rows, *(self.findings[int(row)].message for row in rows[:4]),
                )  # fmt: skip

    def _l1_overwritten(self) -> None:
        """Most of what the L1 table names is impossible: not single entries, the table is gone."""
        columns = self.findings.columns
        active = columns["snapshot"] < 0
        wrong = self.findings.rows(*_L1_CODES)
        wrong = wrong[active[wrong]]
        most = max((int(columns["count"][wrong][columns["code"][wrong] == code].sum()) for code in
                    distinct(columns["code"][wrong]).tolist()), default=0)  # fmt: skip
        used = int(np.count_nonzero(self.meta.l1))
        if most < 4 or 2 * most < used:
            return
        rows = self.take(*_L1_CODES, "L1-COPIED-WRONG", where=active)
        self.add(
            "L1-TABLE-OVERWRITTEN", "The L1 table was overwritten",
            f"{most:,} of its {many(used, 'entry', 'entries')} in use cannot be right: something else was written over it. The "
            "guest's ranges that they stood for cannot be found through it. L2 tables and data behind it may be there still: "
            "free nothing, write nothing.",
            0.9, rows, *(self.findings[int(row)].message for row in rows[:4]),
            guest=tuple((int(columns["guest"][row]), int(columns["guest_length"][row])) for row in rows[:1].tolist()),
            host=((self.meta.header.l1_table_offset, self.meta.header.l1_size * 8),),
        )  # fmt: skip

    def _truncated(self) -> None:
        codes = ("L2-ENTRY-BEYOND-EOF", "COMPRESSED-BEYOND-EOF", "L1-ENTRY-BEYOND-EOF", "REGION-BEYOND-EOF",
                 "REFBLOCK-BEYOND-EOF", "BITMAP-ENTRY-BEYOND-EOF")  # fmt: skip
        rows = self.findings.rows(*codes)
        past = self.findings.rows("REFCOUNT-PAST-EOF")
        near = self.findings.columns["value"][rows] & np.uint64((1 << 56) - (1 << 9))
        close = near < np.uint64(max(4 * self.meta.file_size, 1 << 30))
        if self.count(rows) < 4 or not past.size or close.mean() < 0.8:
            return
        taken = np.concatenate([self.take(*codes), self.take("REFCOUNT-PAST-EOF"), self.take("L2-COPIED-WRONG")])
        guest = tuple(
            (int(row["guest"]), int(row["guest_length"]))
            for row in self.findings.columns[taken][:64]
            if row["guest_length"]
        )
        self.add(
            "FILE-TRUNCATED", "The file was cut off",
            "Clusters in use lie past the end of the file: it was copied incompletely, or shrunk. What they held is not in "
            "this file any more; look for a longer copy before anything else.",
            0.9, taken, f"{self.count(rows)} references lead past the end of the file at {self.meta.file_size:#x}",
            "refcounts are recorded for clusters beyond it", guest=guest,
        )  # fmt: skip

    def _lost_tables(self) -> None:
        lost = self.triage.lost
        if not lost:
            return
        size = self.geometry.cluster_size
        runs = [run for run in self.triage.runs if "lost L2 table" in run.reason]
        hosts = [(table.offset, size) for table in lost]
        rows = self.take("CLUSTER-LEAKED", where=self.inside([(run.offset, run.length) for run in runs] + hosts))
        indices = [table.fits[0] for table in lost if table.fits]
        damaged = np.isin(self.findings.columns["index"], indices)
        codes = ("L1-ENTRY-UNALIGNED", "L1-ENTRY-BEYOND-EOF", "L1-ENTRY-OFFSET-ZERO", "L1-ENTRY-RESERVED")
        rows = np.concatenate([rows, self.take(*codes, where=damaged)])
        entries = sum(table.entries for table in lost)
        places = ", ".join(f"{table.offset:#x}" for table in lost[:4]) + (" …" if len(lost) > 4 else "")
        text = (
            f"{many(len(lost), 'L2 table')} with {many(entries, 'entry', 'entries')} {'was' if len(lost) == 1 else 'were'} found at {places}, but no L1 entry refers "
            f"to {'it' if len(lost) == 1 else 'them'}. The guest reads {'its' if len(lost) == 1 else 'their'} range as empty; "
            "the data is still in the file. qemu-img check -r leaks would throw it away."
        )
        if indices:
            shown = "; ".join(f"L1 entry {index}, {self.window_text(index)}" for index in indices[:4])
            text += f" Most likely place: {shown}."
        evidence = [line for table in lost[:4] for line in table.evidence]
        self.add(
            "L1-ENTRY-LOST", "An L1 entry was lost" if len(lost) == 1 else "L1 entries were lost", text,
            max(0.5, *(table.confidence for table in lost), 0.5), rows, *evidence,
            guest=tuple(self.window(index) for index in indices), host=tuple(hosts),
        )  # fmt: skip

    def _lost_windows(self) -> None:
        """Emptied or overwritten L2 tables that explain leaks."""
        gaps = [gap for gap in self.triage.gaps if "L2 table" in gap.why]
        runs = [run for run in self.data_leaks() if "has room for it" in run.reason]
        foreign = self.findings.rows("L2-TABLE-FOREIGN")
        if not gaps or (not runs and not foreign.size):
            return
        clusters = sum(run.length for run in runs) >> self.geometry.cluster_bits
        rows = self.take("CLUSTER-LEAKED", where=self.inside([(run.offset, run.length) for run in runs]))
        tables = np.isin(self.findings.columns["index"], [gap.l1_index for gap in gaps])
        rows = np.concatenate([rows, self.take("L2-TABLE-FOREIGN", "L2-TABLE-EMPTY", where=tables)])
        chosen = set(rows.tolist())
        hosts = [
            (found.table, self.geometry.cluster_size)
            for found in self.findings.of("L2-TABLE-FOREIGN", "L2-TABLE-EMPTY")
            if found.row in chosen
        ]
        entries = np.isin(self.findings.columns["table"], [offset for offset, _ in hosts])
        rows = np.concatenate([rows, self.take(*_L2_CODES, where=entries)])
        kinds = {self.foreign_kinds.get(gap.l1_index, "") for gap in gaps} - {""}
        empty = not kinds
        shown = ", ".join(self.window_text(gap.l1_index) for gap in gaps[:4]) + (" …" if len(gaps) > 4 else "")
        title = "L2 tables were wiped" if empty else "L2 tables were overwritten"
        text = (
            f"{many(len(gaps), 'L2 table')} {'holds' if len(gaps) == 1 else 'hold'} "
            f"{'only zeros' if empty else ' or '.join(sorted(kinds))}. "
            f"Lost to the guest: {shown}. "
        )
        if clusters:
            text += f"The {clusters} leaked clusters are most likely its data, still in the file: do not free them."
        evidence = [f"L1 entry {gap.l1_index}: {gap.why}, {gap.room} clusters fit" for gap in gaps[:8]]
        if clusters:
            evidence.append(f"{clusters} clusters are leaked, which is what the windows have room for")
        self.add(
            "L2-TABLE-WIPED" if empty else "L2-TABLE-OVERWRITTEN", title, text, 0.85 if clusters else 0.7, rows, *evidence,
            guest=tuple(self.window(gap.l1_index) for gap in gaps), host=tuple(hosts),
        )  # fmt: skip

    def _lost_entries(self) -> None:
        runs = [run for run in self.data_leaks() if run.guest is not None]
        rows = self.take("CLUSTER-LEAKED", where=self.inside([(run.offset, run.length) for run in runs]))
        if not rows.size:
            return
        guest = tuple((run.guest or 0, run.length) for run in runs)
        number = self.count(rows)
        lie, they = ("lie", "They are") if number > 1 else ("lies", "It is")
        self.add(
            "L2-ENTRIES-LOST", "L2 entries were lost",
            f"{many(number, 'leaked cluster')} {lie} between or beside mapped clusters, just where the disk now has nothing. {they} most likely the missing data.",
            0.85, rows, *(f"host {run.offset:#x} fits guest {run.guest or 0:#x}" for run in runs[:4]), guest=guest,
        )  # fmt: skip

    def _luks(self) -> None:
        keys = [run for run in self.triage.runs if run.reason == "it holds encryption keys"]
        rows = self.take("LUKS-LENGTH", "LUKS-MAGIC", "LUKS-BEYOND-EOF", "LUKS-UNALIGNED", "ENCRYPTION-EXTENSION",
                         "ENCRYPTION-MISSING", "ENCRYPTION-UNEXPECTED", "LUKS-VERSION", "LUKS-KEY-SLOT", "LUKS-NO-KEY")  # fmt: skip
        leaks = self.take("CLUSTER-LEAKED", where=self.inside([(run.offset, run.length) for run in keys]))
        if rows.size or leaks.size:
            self.add(
                "LUKS-DAMAGED", "The LUKS header or the pointer to it is damaged",
                "Without it the disk cannot be decrypted. Leaked clusters may hold the keys: freeing them loses the disk.",
                0.9, np.concatenate([rows, leaks]), *(self.findings[int(row)].message for row in rows[:3]),
            )  # fmt: skip

    def _stale_bitmaps(self) -> None:
        rows = self.take("BITMAPS-NOT-TRUSTED")
        if rows.size:
            leaks = self.take("CLUSTER-LEAKED")
            self.add(
                "BITMAPS-STALE", "Bitmaps that a writer did not know",
                "A program without support for dirty bitmaps wrote to the image. The bitmaps are out of date, and their "
                "clusters count as leaked. The next backup must be a full one.",
                0.8, np.concatenate([rows, leaks]), "the bitmaps extension is there, its autoclear bit is not",
            )  # fmt: skip

    def _snapshot_table(self) -> None:
        rows = self.take(
            "SNAPSHOT-UNREADABLE", "SNAPSHOT-EXTRA-TOO-LARGE", "SNAPSHOT-EXTRA-TOO-SMALL", "SNAPSHOT-L1-UNALIGNED",
            "SNAPSHOT-L1-TOO-LARGE", "SNAPSHOT-L1-OFFSET", "SNAPSHOTS-TOO-MANY", "SNAPSHOT-TABLE-TOO-LARGE",
            "SNAPSHOT-TABLE-UNALIGNED", "SNAPSHOT-TABLE-OFFSET", "SNAPSHOT-WITH-DATA-FILE",
        )  # fmt: skip
        if rows.size:
            leaks = self.take("CLUSTER-LEAKED", "REFCOUNT-TOO-HIGH")
            self.add(
                "SNAPSHOT-TABLE-DAMAGED", "The snapshot table is damaged",
                "Snapshots cannot be read, so what only they use looks leaked. Freeing it would destroy the snapshots.",
                0.8, np.concatenate([rows, leaks]), *(self.findings[int(row)].message for row in rows[:3]),
            )  # fmt: skip

    def _refcounts_lost(self) -> None:
        rows = self.take("REFBLOCK-MISSING", "REFBLOCK-UNALIGNED", "REFBLOCK-BEYOND-EOF", "REFBLOCK-RESERVED",
                         "REFBLOCK-SHARED", "REFBLOCK-FOREIGN", "REFTABLE-MISSING", "REFTABLE-TOO-LARGE", "REFTABLE-UNALIGNED",
                         "REFTABLE-OFFSET")  # fmt: skip
        zero = self.findings.rows("REFCOUNT-ZERO")
        number = self.count(zero)
        if not rows.size and number <= 16:
            return
        which = many(number, "cluster") if number else "some clusters"
        free = [f"{many(number, 'cluster')} in use {'counts' if number == 1 else 'count'} as free"] if number else []
        more = self.take("REFCOUNT-ZERO", "REFCOUNT-UNREADABLE", "L1-COPIED-WRONG", "L2-COPIED-WRONG")
        self.add(
            "REFCOUNTS-LOST", "Refcounts were lost",
            f"The refcounts of {which} in use are gone. {self._mapping_words()} Nothing may be written before that.",
            0.9, np.concatenate([rows, more]), *free,
            *(self.findings[int(row)].message for row in rows[:4]),
        )  # fmt: skip

    def _mapping_words(self) -> str:
        """What can still be read when refcounts are gone."""
        if self.triage.lost or self.data_leaks() or self.findings.rows(*_MAPPING_CODES).size:
            return (
                "The mapping has faults of its own: what it still leads to can be read, and the refcounts can be worked out "
                "from it and from what nothing refers to."
            )
        return "The mapping is not affected: all data can be read, and the refcounts can be worked out again from it."

    def _two_writers(self) -> None:
        crossed = self.findings.rows("DATA-CROSS-LINKED", "DATA-OVERLAPS-COMPRESSED")
        if self.count(crossed) < 2:
            return
        rows = self.take("DATA-CROSS-LINKED", "DATA-OVERLAPS-COMPRESSED")
        rows = np.concatenate([rows, self.take("REFCOUNT-TOO-LOW", "REFCOUNT-OVERFLOW")])
        dirty = self.findings.rows("IMAGE-DIRTY").size
        self.add(
            "TWO-WRITERS", "Clusters were given away twice",
            "Several guest addresses share a host cluster. That happens when two programs have the image open for writing, or "
            "when writes go on after refcounts were lost. One of the two owners of each cluster has the other's data.",
            0.6 if not dirty else 0.5, rows, f"{self.count(crossed)} clusters have two owners in the active disk",
        )  # fmt: skip

    def _overlaps(self) -> None:
        rows = self.take("METADATA-OVERLAP", "DATA-OVERLAPS-METADATA", "DATA-CROSS-LINKED", "DATA-OVERLAPS-COMPRESSED",
                         "L2-TABLE-SHARED")  # fmt: skip
        if rows.size:
            rows = np.concatenate([rows, self.take("REFCOUNT-TOO-LOW", "REFCOUNT-OVERFLOW")])
            self.add(
                "CLUSTERS-SHARED", "Two owners in one place",
                "A pointer leads to a cluster that belongs to something else: the pointer was damaged, or the cluster counted "
                "as free and was given away.",
                0.6, rows, *(self.findings[int(row)].message for row in rows[:4]),
            )  # fmt: skip

    def _snapshot_deleted(self) -> None:
        high = self.findings.rows("REFCOUNT-TOO-HIGH")
        high = high[self.free[high]]
        copied = self.findings.rows("L2-COPIED-WRONG")
        if self.count(high) < 4 or self.findings.rows("IMAGE-DIRTY").size:
            return
        rows = np.concatenate([self.take("REFCOUNT-TOO-HIGH"), self.take("L2-COPIED-WRONG", "L1-COPIED-WRONG")])
        rows = np.concatenate([rows, self.take("CLUSTER-LEAKED")])
        self.add(
            "SNAPSHOT-HALF-DONE", "A snapshot was created or deleted half-way",
            "Many clusters in use count one reference too many: the snapshot that had it is not there (any more). "
            "Space is wasted and writes are slower; no data is in danger.",
            0.6 if copied.size else 0.7, rows, f"{self.count(high)} clusters are counted more often than they are used",
        )  # fmt: skip

    def _lazy_crash(self) -> None:
        dirty = self.take("IMAGE-DIRTY")
        if not dirty.size:
            return
        rows = self.take("REFCOUNT-ZERO", "REFCOUNT-TOO-LOW", "REFCOUNT-TOO-HIGH", "CLUSTER-LEAKED", "L2-COPIED-WRONG",
                         "L1-COPIED-WRONG")  # fmt: skip
        self.add(
            "LAZY-REFCOUNTS", "A crash with lazy refcounts",
            "The image was in use with lazy refcounts and not closed. Refcounts are out of date, which is expected; the mapping "
            "is right, and the refcounts can be worked out from it.",
            0.85, np.concatenate([dirty, rows]), "the dirty bit is set",
        )  # fmt: skip

    def _interrupted(self) -> None:
        waste = [(run.offset, run.length) for run in self.triage.runs if not run.keep]
        rows = self.take("CLUSTER-LEAKED", where=self.inside(waste))
        if rows.size:
            self.add(
                "INTERRUPTED-WRITES", "Interrupted allocations",
                "Clusters were taken but never put to use: the usual trace of a crash. Space is wasted, nothing else.",
                0.6, rows, "no mapping is missing that could have used them",
            )  # fmt: skip
        rows = self.take("CLUSTER-LEAKED")
        if rows.size:
            self.add(
                "ORPHANS", "Leaked clusters that may hold data",
                "What these clusters hold looks like data or tables, but nothing says where it belongs.",
                0.5, rows, *(f"{run.offset:#x}: {run.reason}" for run in self.data_leaks()[:4]),
            )  # fmt: skip

    def _header(self) -> None:
        columns = self.findings.columns
        codes = [
            number
            for number, code in enumerate(self.findings.codes)
            if PROBLEMS[code].severity.rank <= Severity.WARNING.rank and code not in _HARMLESS
        ]
        end = columns["offset"] + np.minimum(columns["length"], np.uint64(1 << 62))
        inside = (columns["offset"] < end) & (end <= np.uint64(self.geometry.cluster_size))
        rows = np.flatnonzero(self.free & np.isin(columns["code"], codes) & inside)
        if rows.size:
            self.free[rows] = False
            self.add(
                "HEADER-DAMAGED", "The header is damaged",
                "Fields in the first cluster contradict the format, so the image cannot be opened. The tables behind it are "
                "most likely still there.",
                0.8, rows, *(self.findings[int(row)].message for row in rows[:4]),
            )  # fmt: skip

    def _bitmaps(self) -> None:
        codes = [code for code in self.findings.by_code if code.startswith(("BITMAP-", "BITMAPS-"))]
        rows = self.take(*(code for code in codes if code not in ("BITMAP-IN-USE", "BITMAP-TAIL-BITS")))
        if rows.size:
            self.add(
                "BITMAPS-DAMAGED", "Dirty bitmaps are damaged",
                "The bitmaps' directory or tables contradict the format, and qemu may refuse the image for it. Guest data is not "
                "concerned: without the bitmaps the image opens, and the next backup must be a full one.",
                0.8, rows, *(self.findings[int(row)].message for row in rows[:4]),
            )  # fmt: skip

    def _refcounts_wrong(self) -> None:
        rows = self.take("REFCOUNT-ZERO", "REFCOUNT-TOO-LOW", "REFCOUNT-TOO-HIGH", "REFCOUNT-OVERFLOW")
        if rows.size:
            copied = self.take("L1-COPIED-WRONG", "L2-COPIED-WRONG")
            self.add(
                "REFCOUNTS-WRONG", "Single refcounts are wrong",
                "The refcounts of a few clusters do not agree with their references: a bit flipped, or an update was lost. The "
                "mapping is the truth; the refcounts can be set from it.",
                0.5, np.concatenate([rows, copied]), *(self.findings[int(row)].message for row in rows[:4]),
            )  # fmt: skip

    def _bit_rot(self) -> None:
        rows = self.take(*_L2_CODES, "L1-ENTRY-RESERVED", "L1-ENTRY-UNALIGNED", "L1-ENTRY-BEYOND-EOF",
                         "L1-ENTRY-OFFSET-ZERO", "L1-COPIED-WRONG", "REGION-BEYOND-EOF")  # fmt: skip
        if rows.size and self.count(rows) <= 16:
            self.add(
                "ENTRIES-DAMAGED", "Single entries were damaged",
                "Few table entries are wrong and their neighbours are right: a flipped bit or a partly written sector.",
                0.5, rows, *(self.findings[int(row)].message for row in rows[:4]),
            )  # fmt: skip
        elif rows.size:
            self.add(
                "TABLES-DAMAGED", "Mapping tables were damaged",
                "Many entries of the mapping tables make no sense: something else was written over them.",
                0.5, rows, *(self.findings[int(row)].message for row in rows[:4]),
            )  # fmt: skip


_L1_CODES = ("L1-ENTRY-RESERVED", "L1-ENTRY-UNALIGNED", "L1-ENTRY-BEYOND-EOF", "L1-ENTRY-OFFSET-ZERO")
_HARMLESS = {"BACKING-FORMAT-MISSING", "IMAGE-CORRUPT-BIT", "DATA-OVERLAPS-METADATA", "METADATA-OVERLAP"}
_L2_CODES = (
    "L2-ENTRY-RESERVED", "L2-ENTRY-UNALIGNED", "L2-ENTRY-BEYOND-EOF", "L2-COPIED-WRONG", "L2-COPIED-UNALLOCATED",
    "L2-ZERO-FLAG-V2", "L2-ENTRY-BIT0-EXTENDED", "COMPRESSED-COPIED", "COMPRESSED-BEYOND-EOF", "COMPRESSED-RESERVED",
    "COMPRESSED-WITH-DATA-FILE", "COMPRESSED-WITH-SUBCLUSTERS", "SUBCLUSTER-CONFLICT", "SUBCLUSTER-UNALLOCATED",
)  # fmt: skip
_MAPPING_CODES = (
    *_L1_CODES, "L1-TABLE-OFFSET", "L1-TABLE-TOO-SMALL", "L1-TABLE-UNALIGNED", "REGION-BEYOND-EOF", "L2-TABLE-FOREIGN",
    *(code for code in _L2_CODES if code not in ("L2-COPIED-WRONG", "L2-COPIED-UNALLOCATED", "COMPRESSED-COPIED")),
)  # fmt: skip
"""Faults of the mapping by which the guest may miss something."""
