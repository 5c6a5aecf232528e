"""A repair plan in words and rows: verdicts, risks, what stays and why, before and after as bytes. No drawing here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from workbench.check.problems import PROBLEMS, Severity, Tier
from workbench.render.sizes import count, span
from workbench.render.text import printable
from workbench.repair.fixes import rules_for
from workbench.repair.plan import Plan, Verdict
from workbench.repair.policy import Mode
from workbench.units import format_size

TIER_GLYPHS: Final = {Tier.SAFE: "✓", Tier.JUDGEMENT: "?", Tier.DESTRUCTIVE: "▲"}
TIER_WORDS: Final = {Tier.SAFE: "safe", Tier.JUDGEMENT: "judgement", Tier.DESTRUCTIVE: "drops data"}
TIER_LEVELS: Final = {Tier.SAFE: "good", Tier.JUDGEMENT: "accent", Tier.DESTRUCTIVE: "bad"}
TIER_TEXTS: Final = {
    Tier.SAFE: "Safe: there is one right answer, and it loses nothing.",
    Tier.JUDGEMENT: "A judgement: more than one answer is possible. The default is the one that loses nothing.",
    Tier.DESTRUCTIVE: "Drops something for good as far as the image goes (undo still brings it back).",
}
ROW: Final = 16
"""Bytes to a row of a diff."""


def verdict_text(verdict: Verdict | dict[str, Any] | None) -> str:
    """A verdict (or its JSON values from the case file) as a clause: `2 corruptions, 1 leaked cluster`."""
    if verdict is None:
        return "not checked"
    values = verdict.as_json() if isinstance(verdict, Verdict) else verdict
    companion = printable(str(values.get("companion", "")))
    if not values.get("openable", True) and not companion:
        return "cannot be opened"
    parts = []
    for key, noun in (("check-errors", "check error"), ("corruptions", "corruption")):
        if values.get(key):
            parts.append(count(int(values[key]), noun))
    leaks, kept = int(values.get("leaks", 0)), int(values.get("orphans-kept", 0))
    if leaks:
        note = " (possible guest data)" if kept == leaks else f" ({kept:,} possible guest data)" if kept else ""
        parts.append(count(leaks, "leaked cluster") + note)
    if companion:
        return f"{', '.join(parts)}; {companion}" if parts else f"clean in itself, but {companion}"
    return ", ".join(parts) or "clean"


def verdict_level(verdict: Verdict, *, kept: bool = False) -> str:
    """good, warn or bad, for colours. kept: orphans stay on purpose and are nothing to warn of."""
    if not verdict.openable or verdict.corruptions or verdict.check_errors or verdict.companion:
        return "bad"
    return "warn" if verdict.leaks > (verdict.orphans if kept else 0) else "good"


def after_text(plan: Plan) -> str:
    """The simulated verdict: what the image would be."""
    after = plan.after
    if not after.openable:
        return "could not be opened"
    more = f"; {printable(after.companion)}" if after.companion else ""
    if after.clean and after.leaks:
        return f"would be sound; {count(after.leaks, 'leaked cluster')} kept, possible guest data{more}"
    if after.clean:
        return f"would be clean{' in itself' if more else ''}{more}"
    return f"would be left with {verdict_text(after)}"


@dataclass(frozen=True, slots=True)
class Left:
    """Something that the plan leaves. title: what and how much.  why: the reason, for people."""

    title: str
    why: str
    severity: Severity


def left_over(plan: Plan) -> list[Left]:
    """What a check of the repaired image would still find, worst first, each with its reason."""
    found = []
    for code, (items, counted) in plan.result_after.findings.by_code.items():
        problem = PROBLEMS[code]
        if problem.severity is Severity.NOTE:
            continue
        title = f"{problem.title} ({max(items, counted):,})"
        found.append(Left(title, _why_left(plan, code), problem.severity))
    return sorted(found, key=lambda each: each.severity.rank)


def _why_left(plan: Plan, code: str) -> str:
    if code == "CLUSTER-LEAKED" and plan.after.orphans:
        return (
            "Kept on purpose: these clusters may hold guest data whose mapping was lost. They only cost space, "
            "and can be copied out; freeing them could destroy the last copy."
        )
    if any(step.code == "BY-HAND" for step in plan.steps):
        return "An edit by hand changes nothing else; r repairs what can be repaired."
    rules = rules_for(code)
    if not rules:
        return f"No repair is offered for this. {PROBLEMS[code].guest_impact}"
    if plan.policy.mode is Mode.CODES and code not in plan.policy.codes:
        return "Not chosen for this repair."
    if all(rule.on_request for rule in rules):
        return "Repaired only when it is asked for: the image works without."
    if all(rule.tier is Tier.DESTRUCTIVE for rule in rules) and not plan.policy.destructive:
        return "Only a repair that drops something would end this, and that was not chosen."
    return "No answer is certain enough to write it; the notes say what was seen."


# Bytes ---------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class DiffRow:
    """Up to 16 bytes before and after; None where the file has none there. skipped: equal bytes left out instead."""

    offset: int
    old: bytes | None
    new: bytes | None
    skipped: int = 0

    def changed(self, index: int) -> bool:
        """Whether byte `index` of the row differs."""
        old = self.old[index : index + 1] if self.old is not None else b""
        new = self.new[index : index + 1] if self.new is not None else b""
        return old != new


def diff_rows(offset: int, before: bytes, after: bytes, *, width: int = ROW) -> list[DiffRow]:
    """Rows that differ, aligned to `width` bytes; runs of equal rows become one row with `skipped`."""
    rows: list[DiffRow] = []
    end = offset + max(len(before), len(after))
    at = offset
    while at < end:
        stop = min(end, at - at % width + width)
        old, new = before[at - offset : stop - offset], after[at - offset : stop - offset]
        if old != new:
            rows.append(DiffRow(at, old or None, new or None))
        elif rows and rows[-1].skipped:
            rows[-1] = DiffRow(rows[-1].offset, None, None, rows[-1].skipped + len(old))
        else:
            rows.append(DiffRow(at, None, None, len(old)))
        at = stop
    return rows


# The cost ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Cost:
    """What writing a plan changes. places: byte ranges.  bytes: in them.  sizes: length of the file before and after.

    appended: bytes that come to lie behind the old end.  guest: ranges concerned as (start, length), joined.
    """

    places: int
    bytes: int
    appended: int
    sizes: tuple[int, int]
    guest: tuple[tuple[int, int], ...]
    snapshots: tuple[str, ...]


def cost_of(plan: Plan) -> Cost:
    """Measure a plan; walks its edits (reads the overlay): for workers."""
    places = total = appended = 0
    before, after = plan.sizes
    for edit in plan.edits():
        places += 1
        total += max(len(edit.old), len(edit.new))
        appended += max(0, edit.offset + len(edit.new) - max(before, edit.offset))
    guest = joined([each for step in plan.steps for each in step.guest])
    snapshots = tuple(dict.fromkeys(each for step in plan.steps for each in step.snapshots))
    return Cost(places, total, appended, (before, after), guest, snapshots)


def joined(ranges: Sequence[tuple[int, int]]) -> tuple[tuple[int, int], ...]:
    """(start, length) ranges in order, neighbours and overlaps made one."""
    out: list[tuple[int, int]] = []
    for start, length in sorted(ranges):
        if out and start <= out[-1][0] + out[-1][1]:
            out[-1] = (out[-1][0], max(out[-1][1], start + length - out[-1][0]))
        else:
            out.append((start, length))
    return tuple(out)


def size_words(sizes: tuple[int, int]) -> str:
    """What becomes of the file's length."""
    before, after = sizes
    if before == after:
        return f"The file keeps its length of {format_size(before)}."
    word = "grows" if after > before else "shrinks"
    return f"The file {word} by {format_size(abs(after - before))} to {format_size(after)}."


def cost_words(cost: Cost) -> str:
    """`48 bytes change in 2 places`."""
    return f"{count(cost.bytes, 'byte')} change{'s' if cost.bytes == 1 else ''} in {count(cost.places, 'place')}"


def ranges_words(ranges: Sequence[tuple[int, int]], most: int = 3) -> str:
    """Guest ranges in short."""
    shown = ", ".join(f"{span(start, length)} ({format_size(length)})" for start, length in ranges[:most])
    return shown + (f" and {len(ranges) - most:,} more" if len(ranges) > most else "")
