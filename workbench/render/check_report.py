"""A check's outcome as text: the verdict, the causes, the findings in ranges, the figures. Lines, made lazily."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Final

import numpy as np

from workbench.check.findings import NOWHERE
from workbench.render.text import printable
from workbench.units import format_size

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from workbench.check import CheckResult
    from workbench.check.problems import Problem

WIDTH = 100
_REFCOUNTS_UNKNOWN: Final = {"REFCOUNT-UNREADABLE", "REFTABLE-MISSING", "REFTABLE-UNALIGNED", "REFTABLE-OFFSET"}
MOST_ALIKE: Final = 3
"""Rows of one code and one cause that are told one by one."""
_OF_SINGLE_FAULTS: Final = {"ENTRIES-DAMAGED", "REFCOUNTS-WRONG", "HEADER-DAMAGED", "ORPHANS", "CLUSTERS-SHARED"}
"""Causes whose findings are one fault each."""


def verdict(result: CheckResult) -> list[str]:
    """What qemu-img would say, in its words, and what it cannot say."""
    lines = []
    if result.aborted is not None:
        lines.append(f"Check failed: {result.aborted}")
        if result.corruptions or result.leaks:
            lines.append("The rest of the image was looked at all the same.")
    if result.check_errors:
        lines.append(f"{result.check_errors} internal errors have occurred during the check.")
    if result.corruptions:
        lines.append(f"{result.corruptions} errors were found on the image.")
        lines.append("Data may be corrupted, or further writes to the image may corrupt it.")
    if result.leaks:
        lines.append(f"{result.leaks} leaked clusters were found on the image.")
        if result.kept_leaks:
            lines.append(
                f"{result.kept_leaks} of them may be guest data that lost its place: do not free them (see below)."
            )
        elif result.orphans:
            lines.append("This means waste of disk space, but no harm to data.")
    if result.unsafe_to_write:
        lines.append(
            "Do not open this image for writing: that would free clusters that may hold guest data. `qwb repair` keeps them."
        )
    if not lines:
        lines.append("No errors were found on the image.")
        if len(result.findings):
            lines.append("There are remarks that qemu-img does not make (see below).")
    return lines


def certainty(confidence: float) -> str:
    """A confidence in a word."""
    return "certain" if confidence >= 0.95 else "likely" if confidence >= 0.7 else "possible"


def report(result: CheckResult, *, limit: int | None = 100) -> Iterator[str]:
    """The whole report; nothing in it can steer a terminal. limit: most findings and leaked runs to list (None: all)."""
    return map(printable, _report(result, limit))


def _report(result: CheckResult, limit: int | None) -> Iterator[str]:
    yield from verdict(result)
    if result.causes:
        yield ""
        yield "Causes"
        for number, cause in enumerate(result.causes, 1):
            yield f"{number:3}. {printable(cause.title)} ({certainty(cause.confidence)})"
            yield from textwrap.wrap(printable(cause.text), WIDTH, initial_indent="     ", subsequent_indent="     ")
            for line in cause.evidence:
                yield from textwrap.wrap(printable(line), WIDTH, initial_indent="     - ", subsequent_indent="       ")
    if result.lost_tables:
        yield ""
        yield "Lost L2 tables"
        for table in result.lost_tables[:limit]:
            fits = ", ".join(str(index) for index in table.fits[:4]) or "none"
            yield (
                f"  {table.offset:#x}: {table.entries} entries, {table.leaked} of their clusters used by nothing else; "
                f"L1 entries it fits: {fits} ({certainty(table.confidence)})"
            )
    if result.orphans:
        yield ""
        yield "Leaked clusters" if all(run.counted for run in result.orphans) else "Clusters that nothing refers to"
        known = _REFCOUNTS_UNKNOWN.isdisjoint(result.findings.by_code)
        uncounted = "; it counts as free" if known else "; no refcount that can be read says that it is in use"
        for run in result.orphans[:limit]:
            yield (
                f"  {run.offset:#x}-{run.offset + run.length:#x} ({format_size(run.length)}): {run.verdict.value} "
                f"({certainty(run.confidence)}), {_holds(run.content)}: {run.reason}"
                f"{'' if run.counted else uncounted}"
            )
        if limit is not None and len(result.orphans) > limit:
            yield f"  … {len(result.orphans) - limit} more"
    yield from _findings(result, limit)
    yield from figures(result)


def _findings(result: CheckResult, limit: int | None) -> Iterator[str]:
    total = len(result.findings)
    if not total:
        return
    yield ""
    yield "Findings"
    groups = {} if limit is None else _alike(result)
    single = np.ones(total, dtype=bool)
    for rows in groups.values():
        single[rows[1:]] = False
    lines = np.flatnonzero(single)[:limit]
    for index in lines.tolist():
        found = result.findings[index]
        mark = "" if found.counted else " (not counted by qemu-img)"
        if index in groups:
            yield f"  {found.severity.value:<10} {found.code}: {_together(result, groups[index])}{mark}"
            continue
        where = ""
        if found.guest is not None:
            where = f" [guest {found.guest:#x}-{found.guest + found.guest_length:#x}]"
        yield f"  {found.severity.value:<10} {found.code}: {printable(found.message)}{where}{mark}"
    if groups:
        yield "  (--limit 0 lists each range by itself)"
    left = int(single.sum()) - lines.size
    if left:
        yield f"  … {left} more rows; by code:"
        for code, (items, counted) in result.findings.by_code.items():
            yield f"    {code}: {items} found, {counted} counted"


def _alike(result: CheckResult) -> dict[int, NDArray[np.intp]]:
    """Rows that one cause put in many places: first row -> all of one code. Rows with words of their own stay apart."""
    columns = result.findings.columns
    out = {}
    for cause in result.causes:
        rows = cause.rows[columns["note"][cause.rows] < 0] if cause.code not in _OF_SINGLE_FAULTS else cause.rows[:0]
        for code in np.unique(columns["code"][rows]).tolist():
            mine = rows[columns["code"][rows] == code]
            if mine.size > MOST_ALIKE:
                out[int(mine[0])] = mine
    return out


def _together(result: CheckResult, rows: NDArray[np.intp]) -> str:
    """What many rows of one code say, in one line."""
    first, chosen = result.findings[int(rows[0])], result.findings.columns[rows]
    end = int((chosen["offset"] + chosen["length"]).max())
    text = (
        f"{replace(first, count=min(first.count, 1)).message if '{count' not in first.problem.template else first.message}"
        f" and so on up to {end:#x}: {rows.size:,} ranges, {int(chosen['count'].sum()):,} in all"
    )
    guests = chosen["guest"] != np.uint64(NOWHERE)
    if guests.all():
        low, high = int(chosen["guest"].min()), int((chosen["guest"] + chosen["guest_length"]).max())
        text += f" [between guest {low:#x} and {high:#x}]"
    return printable(text)


def figures(result: CheckResult) -> Iterator[str]:
    """qemu-img's last lines."""
    stats = result.stats
    if stats.total_clusters and stats.allocated_clusters:
        yield ""
        yield (
            f"{stats.allocated_clusters}/{stats.total_clusters} = "
            f"{stats.allocated_clusters * 100 / stats.total_clusters:.2f}% allocated, "
            f"{stats.fragmented_clusters * 100 / stats.allocated_clusters:.2f}% fragmented, "
            f"{stats.compressed_clusters * 100 / stats.allocated_clusters:.2f}% compressed clusters"
        )
    if stats.image_end_offset:
        yield f"Image end offset: {stats.image_end_offset}"
        yield from _free_inside(result)


def _free_inside(result: CheckResult) -> Iterator[str]:
    """How much of the file below its end is free, where that is much: a copy would be shorter."""
    geometry, census = result.meta.geometry, result.census
    if geometry is None or census is None or not _REFCOUNTS_UNKNOWN.isdisjoint(result.findings.by_code):
        return
    end = min(result.stats.image_end_offset >> geometry.cluster_bits, len(census))
    leaked, _ = result.findings.by_code.get("CLUSTER-LEAKED", (0, 0))
    free = (int(np.count_nonzero(census.counts[:end] == 0)) - leaked - _uncounted(result)) << geometry.cluster_bits
    if free >= max(1 << 20, result.stats.image_end_offset >> 3):
        yield (
            f"Free inside: {format_size(free)}; with its clusters side by side the image would end at "
            f"{result.stats.image_end_offset - free} (`qwb convert -O qcow2` writes such a copy)."
        )


def _uncounted(result: CheckResult) -> int:
    """Clusters that count as free and may be guest data."""
    size = result.meta.geometry.cluster_size if result.meta.geometry else 1
    return sum(run.length for run in result.orphans if run.keep and not run.counted) // size


def problem_page(problem: Problem) -> Iterator[str]:
    """One page of the catalogue."""
    from workbench.repair.fixes.catalogue import choice_of  # a check does without

    yield f"{problem.code} — {problem.title} ({problem.severity.value})"
    for title, text in (
        ("What it means", problem.meaning),
        ("How it arises", problem.arises),
        ("What the guest notices", problem.guest_impact),
    ):
        yield ""
        yield title
        yield from textwrap.wrap(text, WIDTH, initial_indent="  ", subsequent_indent="  ")
    if problem.spec:
        yield ""
        yield f"Specification: {problem.spec}"
    if problem.fixes:
        yield ""
        yield "Fixes"
        for fix in problem.fixes:
            chosen = choice_of(fix.id, problem.code)
            how = f"  [repair --fix {problem.code} --choose {chosen}]" if chosen else ""
            yield f"  {fix.id} ({fix.tier.value}): {fix.title}{how}"


def _holds(content: str) -> str:
    return "not read yet (--deep)" if content == "not read" else f"holds {printable(content)}"
