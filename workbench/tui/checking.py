"""The check of one open image: what runs, what came of it, counts for the tree, and what there is to say about findings."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from formats.qcow2.entries import block_of, offset_of
from workbench.check import CheckResult, check
from workbench.check.causes import Cause
from workbench.check.companions import companions
from workbench.check.findings import Finding, FindingLog
from workbench.check.problems import PROBLEMS, Severity
from workbench.check.result import Progress
from workbench.engine.metadata import Metadata
from workbench.engine.owners import Owner, owners_of
from workbench.render.findings import (
    GLYPHS,
    FindingRows,
    Group,
    group_text,
    problem_sections,
    severity_words,
    where_text,
)
from workbench.render.hostmap import LOOKS, CellFacts, HostKind, HostMap
from workbench.render.refcounts import RefcountRow
from workbench.render.sizes import count, span
from workbench.render.text import printable
from workbench.tui.background import Job
from workbench.tui.explaining import Explanation
from workbench.tui.place import Place
from workbench.tui.widgets.overlaps import OwnerLine
from workbench.units import format_size

SEVERITIES: Final = tuple(Severity)
EXPLAIN_LEVEL: Final = {
    Severity.ERROR: "bad", Severity.CORRUPTION: "bad", Severity.LEAK: "warn", Severity.WARNING: "warn", Severity.NOTE: "",
}  # fmt: skip
MOST_OWNERS: Final = 64


@dataclass(frozen=True, slots=True)
class Checked:
    """All that a finished check gave, ready to be shown. world: None when the header gives no geometry."""

    result: CheckResult
    rows: FindingRows
    badges: Badges
    world: HostMap | None


def run_check(meta: Metadata, job: Job) -> Checked:
    """Check and prepare everything for showing; for a worker. Raises Cancelled or CheckCancelled when told to stop."""

    def progress(now: Progress) -> None:
        job.step(now.done, now.total, now.phase)

    log = FindingLog()
    aborted = companions(meta, log)
    result = check(meta, progress=progress, cancel=lambda: job.cancelled, log=log, aborted=aborted)
    world = None
    if meta.geometry is not None:
        world = HostMap(result)
        world.summarise(lambda done, total: job.step(done, total, "map"))
    return Checked(result, FindingRows(result), Badges(result), world)


class Badges(dict[str, str]):
    """Counts of findings for items of the tree, by their keys: worst severity's glyph and the number. Notes do not count.

    Made on demand from arrays by table index, so that an image with a million findings costs no million texts.
    """

    def __init__(self, result: CheckResult) -> None:
        super().__init__()
        meta, columns = result.meta, result.findings.columns
        ranks = np.array([PROBLEMS[code].severity.rank for code in result.findings.codes] or [0], dtype=np.uint8)
        rank = ranks[columns["code"]]
        self._fixed: dict[str, NDArray[np.int64]] = {}
        self._tables: dict[str, NDArray[np.int64]] = {}
        self._used: dict[str, NDArray[np.intp]] = {}
        self.suspects = suspects(result)
        geometry = meta.geometry
        left = rank < Severity.NOTE.rank
        number = np.maximum(columns["count"], np.uint64(1)).astype(np.int64)
        self._fixed["file"] = self._sum(rank, number, left)
        if geometry is None:
            self._fixed["header"] = self._fixed["file"]
            return
        offset = np.where(columns["table"] != 0, columns["table"], columns["offset"])
        # Refcounts of clusters belong to the block that holds them.
        counts = np.array(
            [code.startswith(("REFCOUNT-", "CLUSTER-LEAKED")) for code in result.findings.codes] or [False]
        )
        of_block = counts[columns["code"]] & left
        block = (columns["offset"] >> np.uint64(geometry.cluster_bits)) // np.uint64(geometry.refcount_block_entries)
        self._by_index(
            "refcount-block",
            "refcount-table",
            block_of(meta.refcount_table),
            block,
            rank,
            number,
            of_block,
        )
        left &= ~of_block
        for key, targets in (("l2", offset_of(meta.l1)), ("refcount-block", block_of(meta.refcount_table))):
            index, hit = _index_of(targets, offset & ~np.uint64(geometry.cluster_size - 1))
            chosen = hit & left
            self._by_index(key, {"l2": "l1"}.get(key, "refcount-table"), targets, index, rank, number, chosen)
            left &= ~chosen
        regions = [
            ("l1", meta.l1_region.offset, meta.l1_region.length),
            ("refcount-table", meta.refcount_table_region.offset, meta.refcount_table_region.length),
        ]
        if meta.header.nb_snapshots:
            regions.append(
                (
                    "snapshots",
                    meta.header.snapshots_offset,
                    max(1, meta.snapshot_table.end - meta.header.snapshots_offset),
                )
            )
        if meta.bitmaps_extension is not None:
            regions.append(("bitmaps", meta.bitmaps_extension.directory_offset, meta.bitmaps_extension.directory_size))
        if meta.encryption is not None:
            regions.append(("luks", meta.encryption.offset, meta.encryption.length))
        regions += [
            ("header", 0, meta.header_length),
            ("extensions", meta.header_length, max(0, meta.area.end - meta.header_length)),
        ]
        regions.append(("header", 0, geometry.cluster_size))
        for key, start, length in regions:
            low, high = np.uint64(min(start, 1 << 63)), np.uint64(min(start + length, 1 << 63))
            chosen = left & (offset >= low) & (offset < high)
            self._fixed[key] = self._fixed.get(key, np.zeros(len(SEVERITIES), np.int64)) + self._sum(
                rank, number, chosen
            )
            left &= ~chosen

    @staticmethod
    def _sum(rank: NDArray[np.uint8], number: NDArray[np.int64], chosen: NDArray[np.bool_]) -> NDArray[np.int64]:
        """Items per severity rank."""
        return np.bincount(rank[chosen], weights=number[chosen], minlength=len(SEVERITIES)).astype(np.int64)

    def _by_index(
        self, key: str, parent: str, targets: NDArray[np.uint64], index: NDArray[Any], rank: NDArray[np.uint8], number: NDArray[np.int64],
        chosen: NDArray[np.bool_],
    ) -> None:  # fmt: skip
        """Add findings to the tables that entry `index` of the parent table points at, and to the parent."""
        chosen = chosen & (index < targets.size)
        self._fixed[parent] = self._fixed.get(parent, np.zeros(len(SEVERITIES), np.int64)) + self._sum(
            rank, number, chosen
        )
        if not targets.size or not chosen.any():
            return
        place = index[chosen].astype(np.int64) * len(SEVERITIES) + rank[chosen]
        found = np.bincount(place, weights=number[chosen], minlength=targets.size * len(SEVERITIES)).astype(np.int64)
        table = found.reshape(targets.size, len(SEVERITIES))
        self._tables[key] = self._tables[key] + table if key in self._tables else table
        self._used[parent] = np.flatnonzero(targets)

    def get(self, key: str, default: Any = None) -> Any:
        """The badge of an item, `?` where the likely cause lies; `default` without findings."""
        numbers = self._numbers(key)
        if numbers is None or not numbers.any():
            return "?" if key in self.suspects else default
        worst = SEVERITIES[int(np.flatnonzero(numbers)[0])]
        return f"{GLYPHS[worst]}{_short(int(numbers.sum()))}"

    def words(self, key: str) -> str:
        """What the badge of an item counts: `7 leaks, 1 warning`; empty without findings."""
        numbers = self._numbers(key)
        if numbers is None:
            return ""
        return ", ".join(
            severity_words(severity, int(number))
            for severity, number in zip(SEVERITIES, numbers, strict=True)
            if number
        )

    def _numbers(self, key: str) -> NDArray[np.int64] | None:
        if key in self._fixed:
            return self._fixed[key]
        base, sharp, part = key.partition("#")
        if sharp:
            table = self._tables.get({"l1": "l2", "refcount-table": "refcount-block"}.get(base, ""))
            if table is None or base not in self._used:
                return None
            low, _, high = part.partition("-")
            found: NDArray[np.int64] = table[self._used[base][int(low) : int(high)]].sum(axis=0)
            return found
        name, _, index = key.partition(":")
        table = self._tables.get(name)
        if table is None or not index.isdigit() or int(index) >= len(table):
            return None
        numbers: NDArray[np.int64] = table[int(index)]
        return numbers


def suspects(result: CheckResult) -> dict[str, str]:
    """Items in which the likely cause of leaks lies, although nothing in them is wrong by itself -> the cause's title."""
    found: dict[str, str] = {}
    l1 = offset_of(result.meta.l1) if result.meta.geometry is not None else np.zeros(0, np.uint64)
    for cause in result.causes:
        if cause.code in ("L1-ENTRY-LOST", "L2-TABLE-WIPED"):
            found["l1"] = cause.title
        if cause.code == "L2-TABLE-WIPED":
            for start, _ in cause.host[:256]:
                found |= {f"l2:{index}": cause.title for index in np.flatnonzero(l1 == np.uint64(start)).tolist()}
    return found


def with_badge(explanation: Explanation, badges: Badges, key: str) -> Explanation:
    """An explanation of a whole structure, with what its badge in the tree stands for."""
    more: list[tuple[str, str]] = []
    words = badges.words(key)
    if words:
        more.append(("", f"The check found here: {words}. Key 8 lists everything."))
    if key in badges.suspects:
        more.append(("warn", f"Likely cause here: {badges.suspects[key]}. Key 8 tells why."))
    return replace(explanation, problems=(*explanation.problems, *more)) if more else explanation


def _index_of(targets: NDArray[np.uint64], wanted: NDArray[np.uint64]) -> tuple[NDArray[np.intp], NDArray[np.bool_]]:
    """(first index in `targets` with that value, whether there is one); zero targets do not count."""
    used = np.flatnonzero(targets)
    if not used.size:
        return np.zeros(wanted.size, np.intp), np.zeros(wanted.size, bool)
    order = used[np.argsort(targets[used], kind="stable")]
    at = np.minimum(np.searchsorted(targets[order], wanted), order.size - 1)
    return order[at], targets[order[at]] == wanted


def _short(number: int) -> str:
    return (
        f"{number:,}"
        if number < 10_000
        else f"{number // 1000:,}k"
        if number < 10_000_000
        else f"{number // 1_000_000:,}M"
    )


# Explanations


def explain_finding(meta: Metadata, finding: Finding) -> Explanation:
    """One finding: the catalogue's text with this image's numbers."""
    problem = finding.problem
    return Explanation(
        title=problem.title,
        where=where_text(finding),
        value=printable(finding.message),
        problems=((EXPLAIN_LEVEL[problem.severity], f"{problem.severity.value} {problem.code}"),),
        sections=problem_sections(problem),
        links=tuple(finding_links(meta, finding)),
        spec=problem.spec,
    )


def finding_links(meta: Metadata, finding: Finding) -> list[tuple[str, str]]:
    """Where a finding leads: its bytes, where the entry points, the refcount, the guest range."""
    links = []
    geometry = meta.geometry
    if finding.offset < meta.file_size:
        links.append((f"the bytes at {finding.offset:#x}", f"{finding.offset:#x}"))
    if finding.code.startswith(("L1-", "L2-")) and not finding.code.startswith("L2-TABLE"):
        target = offset_of(finding.value)
        if 0 < target < meta.file_size:
            links.append((f"where the entry points: {target:#x}", f"{target:#x}"))
    if geometry is not None and finding.code.startswith(("REFCOUNT-", "CLUSTER-")):
        cluster = finding.offset >> geometry.cluster_bits
        block, entry = divmod(cluster, geometry.refcount_block_entries)
        links.append((f"its refcount: block {block}, entry {entry}", f"rb:{block}.{entry}"))
    if finding.guest is not None and finding.guest < meta.header.size:
        links.append((f"guest range at {finding.guest:#x}", f"g:{finding.guest:#x}"))
    return links


def explain_group(meta: Metadata, group: Group) -> Explanation:
    """A heading of the findings: a cause with its evidence, or a kind of problem."""
    if group.cause is not None:
        return explain_cause(meta, group.cause, group_text(group))
    problem = PROBLEMS[group.code]
    return Explanation(
        title=problem.title, value=f"{group_text(group)}: {problem.code}", problems=((EXPLAIN_LEVEL[problem.severity], problem.severity.value),),
        sections=problem_sections(problem), spec=problem.spec,
    )  # fmt: skip


def explain_cause(meta: Metadata, cause: Cause, value: str) -> Explanation:
    """A cause: what happened, why one thinks so, which ranges it concerns."""
    sections = [("", printable(cause.text)), *(("Evidence", printable(each)) for each in cause.evidence)]
    links = [
        (f"guest {span(start, length)} ({format_size(length)})", f"g:{start:#x}")
        for start, length in cause.guest[:8]
        if start < meta.header.size
    ]
    links += [
        (f"host {span(start, length)}", f"{start:#x}") for start, length in cause.host[:8] if start < meta.file_size
    ]
    return Explanation(title=f"Likely cause: {cause.title}", value=value, sections=tuple(sections), links=tuple(links))


def explain_cell(world: HostMap, facts: CellFacts, owners: tuple[OwnerLine, ...] | None = None) -> Explanation:
    """A cell of the host map."""
    size = world.geometry.cluster_size
    length = min(facts.clusters * size, max(1, world.result.meta.file_size - facts.first * size))
    problems = []
    if facts.kind in (HostKind.OVERLAP, HostKind.MISMATCH):
        problems.append(("bad", KIND_TEXTS[facts.kind]))
    elif facts.kind in (HostKind.LEAK, HostKind.LOST):
        problems.append(("warn", KIND_TEXTS[facts.kind]))
    sections: list[tuple[str, str]] = []
    if facts.clusters > 1:
        title = f"{count(facts.clusters, 'cluster')} from {facts.first:,}"
        sections.append(("Holds", facts.words))
        if not problems:
            sections.append((f"{LOOKS[facts.kind].glyph} {LOOKS[facts.kind].title}", KIND_TEXTS[facts.kind]))
    else:
        title = f"Cluster {facts.first:,}: {LOOKS[facts.kind].title}"
        if not problems:
            sections.append(("", KIND_TEXTS[facts.kind]))
        sections += _refcount_words(facts.stored, facts.counted)
    sections += [("", line.text) for line in owners or () if not line.target]
    links = [(line.text, line.target) for line in owners or () if line.target]
    what = "the bytes" if facts.clusters == 1 else f"the first {LOOKS[facts.kind].title} of them"
    links.append((f"{what}, at {facts.at * size:#x}", f"{facts.at * size:#x}"))
    where = f"{span(facts.first * size, length)} ({format_size(length)})"
    return Explanation(
        title, where, facts.words if facts.clusters == 1 else "", tuple(problems), tuple(sections), tuple(links)
    )


def _refcount_words(stored: int | None, counted: int | None) -> list[tuple[str, str]]:
    if counted is None:
        return []
    text = f"stored {'unreadable' if stored is None else stored}, counted {counted}"
    return [("Refcount", text + (": they agree." if stored == counted else ": they differ."))]


KIND_TEXTS: Final = {
    HostKind.FREE: "Nothing refers to it and its refcount is 0: the next write may take it.",
    HostKind.DATA: "Guest data of the active disk.",
    HostKind.COMPRESSED: "Compressed guest data; several guest clusters may share one host cluster.",
    HostKind.INACTIVE: "Guest data that only snapshots refer to.",
    HostKind.USED: "In use by its refcount. The file is so large that references were counted in windows and not kept.",
    HostKind.ACTIVE_L2: "An L2 table of the active disk: maps guest clusters to host clusters.",
    HostKind.INACTIVE_L2: "An L2 table that only snapshots use.",
    HostKind.REFCOUNT_BLOCK: "A refcount block: how often each cluster of a range is used.",
    HostKind.BITMAP: "Dirty bitmaps: their directory, a table, or the bits themselves.",
    HostKind.INACTIVE_L1: "The L1 table of a snapshot.",
    HostKind.SNAPSHOT_TABLE: "The snapshot table: names and L1 tables of the snapshots.",
    HostKind.REFCOUNT_TABLE: "The refcount table: where the refcount blocks are.",
    HostKind.ACTIVE_L1: "The active L1 table: where the L2 tables are.",
    HostKind.LUKS: "The LUKS header with the key slots: without it the disk cannot be decrypted.",
    HostKind.HEADER: "The header cluster: header, extensions, backing file name.",
    HostKind.LEAK: "Leaked: the refcount says it is used, nothing refers to it. Most likely waste.",
    HostKind.LOST: "Leaked, but it may be guest data whose mapping was lost. Do not free it before that is settled.",
    HostKind.MISMATCH: "The stored refcount is not the number of references. Too low, and the cluster may be overwritten while in use.",
    HostKind.OVERLAP: "Two owners that must not share it: what one writes destroys the other.",
}


def explain_refcount(world: HostMap, row: RefcountRow) -> Explanation:
    """A row of the refcounts."""
    size = world.geometry.cluster_size
    block, entry = divmod(row.cluster, world.geometry.refcount_block_entries)
    glyph, _, words = row.words.partition(" ")
    problems = ((row.level, words),) if row.level else ()
    links = [
        (f"its refcount: block {block}, entry {entry}", f"rb:{block}.{entry}"),
        (f"the bytes at {row.cluster * size:#x}", f"{row.cluster * size:#x}"),
    ]
    sections = [("", KIND_TEXTS[row.kind]), *_refcount_words(row.stored, row.counted)]
    verdict = world.verdict(row.cluster)
    if verdict:
        sections.append(("Leak", verdict))
    return Explanation(
        f"Cluster {row.cluster:,}: {row.owner or words}", f"{span(row.cluster * size, size)} ({format_size(size)})", "" if problems else words or glyph,
        problems, tuple(sections), tuple(links),
    )  # fmt: skip


def with_problems(explanation: Explanation, result: CheckResult, place: Place) -> Explanation:
    """An explanation with the check's findings inside the place; those it has already are not said twice."""
    columns = result.findings.columns
    if not columns.size or not place.length:
        return explanation
    low, high = np.uint64(place.offset), np.uint64(place.end)
    hit = np.flatnonzero(
        (columns["offset"] < high) & (columns["offset"] + np.maximum(columns["length"], np.uint64(1)) > low)
    )
    if not hit.size:
        return explanation
    said = " ".join(text for _, text in explanation.problems)
    more = []
    for row in hit[:6].tolist():
        finding = result.findings[row]
        if f"[{finding.code}]" not in said:
            title = PROBLEMS[finding.code].title
            more.append((EXPLAIN_LEVEL[finding.severity], f"{title}: {printable(finding.message)} [{finding.code}]"))
    if hit.size > 6:
        more.append(("warn", f"and {count(int(hit.size) - 6, 'finding')} more here: key 8 lists them"))
    return replace(explanation, problems=(*explanation.problems, *more))


# Owners


def owner_lines(meta: Metadata, cluster: int, job: Job) -> tuple[OwnerLine, ...]:
    """Everything that refers to a cluster, with paths and guest ranges; looks through all tables."""
    found = owners_of(meta, cluster, job.step, lambda: job.cancelled, limit=MOST_OWNERS)
    lines = [OwnerLine(owner_text(meta, owner), f"{owner.at:#x}") for owner in found]
    if len(found) == MOST_OWNERS:
        lines.append(OwnerLine("… and maybe more: x lists them all"))
    return tuple(lines) or (OwnerLine("nothing refers to it any more"),)


def owner_text(meta: Metadata, owner: Owner) -> str:
    """`guest data: L2[0] entry 17, guest 0x11000..0x11fff`."""
    text = f"{owner.kind.value}: {owner.table}" + (f"[{owner.index}]" if owner.index is not None else "")
    if owner.guest is not None and meta.geometry is not None:
        covered = meta.geometry.l2_coverage if "L2" in owner.kind.value else meta.geometry.cluster_size
        text += f", guest {span(owner.guest, covered)}"
    if owner.snapshot is not None and "snapshot" not in owner.table:
        text += f", snapshot {owner.snapshot}"
    return text
