"""A check's outcome as text: the verdict, the causes, the findings in ranges, the figures. Lines, made lazily."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from typing import TYPE_CHECKING

from workbench.render.text import printable
from workbench.units import format_size

if TYPE_CHECKING:
    from workbench.check import CheckResult
    from workbench.check.problems import Problem

WIDTH = 100


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
                f"  {table.offset:#x}: {table.entries} entries, {table.leaked} of their clusters leaked; "
                f"L1 entries it fits: {fits} ({certainty(table.confidence)})"
            )
    if result.orphans:
        yield ""
        yield "Leaked clusters" if all(run.counted for run in result.orphans) else "Clusters that nothing refers to"
        for run in result.orphans[:limit]:
            yield (
                f"  {run.offset:#x}-{run.offset + run.length:#x} ({format_size(run.length)}): {run.verdict.value} "
                f"({certainty(run.confidence)}), holds {printable(run.content)}: {run.reason}"
                f"{'' if run.counted else '; it counts as free'}"
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
    shown = total if limit is None else min(limit, total)
    for index in range(shown):
        found = result.findings[index]
        mark = "" if found.counted else " (not counted by qemu-img)"
        where = ""
        if found.guest is not None:
            where = f" [guest {found.guest:#x}-{found.guest + found.guest_length:#x}]"
        yield f"  {found.severity.value:<10} {found.code}: {printable(found.message)}{where}{mark}"
    if shown < total:
        yield f"  … {total - shown} more rows; by code:"
        for code, (items, counted) in result.findings.by_code.items():
            yield f"    {code}: {items} found, {counted} counted"


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


def problem_page(problem: Problem) -> Iterator[str]:
    """One page of the catalogue."""
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
            yield f"  {fix.id} ({fix.tier.value}): {fix.title}"
