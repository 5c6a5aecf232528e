"""Findings as rows to look at: grouped by cause, folded and filtered, a million of them without an object for each."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from textwrap import wrap
from typing import Final

import numpy as np
from numpy.typing import NDArray

from workbench.check.causes import Cause
from workbench.check.findings import NOWHERE, Finding, Findings
from workbench.check.problems import PROBLEMS, Problem, Severity
from workbench.check.result import CheckResult
from workbench.errors import ArgumentError
from workbench.render.sizes import count, span
from workbench.render.text import printable
from workbench.units import format_size, parse_size

Step = Callable[[int, int], None]
GLYPHS: Final = {
    Severity.ERROR: "‡", Severity.CORRUPTION: "✗", Severity.LEAK: "○", Severity.WARNING: "!", Severity.NOTE: "·",
}  # fmt: skip
LEVELS: Final = {
    Severity.ERROR: "bad", Severity.CORRUPTION: "bad", Severity.LEAK: "warn", Severity.WARNING: "warn", Severity.NOTE: "dim",
}  # fmt: skip
OPEN_AT_MOST: Final = 2000
"""A group with more findings begins folded."""
_NUMERIC: Final = re.compile(r"[0-9a-fx,()=:.;]+")
"""What the numbers of a message may look like, with what stands beside them."""
_FIELDS: Final = re.compile(r"\{[^}]*\}")
_WORDS: Final = {
    Severity.ERROR: ("error", "errors"), Severity.CORRUPTION: ("corruption", "corruptions"), Severity.LEAK: ("leak", "leaks"),
    Severity.WARNING: ("warning", "warnings"), Severity.NOTE: ("note", "notes"),
}  # fmt: skip

_COMPANIONS: Final = {
    "BACKING-FILE-MISSING": "backing file missing", "BACKING-FILE-UNUSABLE": "backing file unusable",
    "BACKING-CYCLE": "backing chain in a circle", "DATA-FILE-MISSING": "data file missing", "DATA-FILE-UNUSABLE": "data file unusable",
}  # fmt: skip


def severity_words(severity: Severity, number: int) -> str:
    """`✗ 3 corruptions`."""
    return f"{GLYPHS[severity]} {number:,} {_WORDS[severity][number != 1]}"


@dataclass(frozen=True, slots=True)
class FindingFilter:
    """What to keep. severities: any of them.  words: every one of them, in code, title or message, or an address inside."""

    text: str = ""
    severities: frozenset[Severity] = frozenset()
    words: tuple[str, ...] = ()
    host: tuple[int, int] | None = None
    guest: tuple[int, int] | None = None

    def __bool__(self) -> bool:
        return bool(self.severities or self.words or self.host or self.guest)


def parse_finding_filter(text: str) -> FindingFilter:
    """`corruption`, `leak warning`, `copied`, `L2-ENTRY`, `0x50000`, `host:1M-2M`, `guest:5M-`. Raises ArgumentError."""
    severities, words, ranges = set[Severity](), list[str](), dict[str, tuple[int, int]]()
    names = {name: severity for severity, both in _WORDS.items() for name in both}
    for word in text.split():
        name, colon, rest = word.lower().partition(":")
        if word.lower() in names:
            severities.add(names[word.lower()])
        elif colon and name in ("host", "guest"):
            low, dash, high = rest.partition("-")
            try:
                first = parse_size(low) if low else 0
                ranges[name] = (first, parse_size(high) if dash and high else (1 << 63 if dash else first + 1))
            except ValueError:
                raise ArgumentError(f"{word!r} is no range", hint="such as host:0x10000-1M, guest:5M-") from None
        else:
            words.append(word.lower().removeprefix("code:"))
    return FindingFilter(text.strip(), frozenset(severities), tuple(words), ranges.get("host"), ranges.get("guest"))


def chosen_rows(findings: Findings, chosen: FindingFilter, step: Step | None = None) -> NDArray[np.intp]:
    """Row numbers that pass the filter. Messages are made only for rows whose code does not decide already."""
    columns = findings.columns
    keep = np.ones(len(findings), dtype=bool)
    codes = columns["code"]
    if chosen.severities:
        wanted = [number for number, code in enumerate(findings.codes) if PROBLEMS[code].severity in chosen.severities]
        keep &= np.isin(codes, wanted)
    for limits, start, length in ((chosen.host, "offset", "length"), (chosen.guest, "guest", "guest_length")):
        if limits is not None:
            low, high = np.uint64(limits[0]), np.uint64(limits[1])
            keep &= (columns[start] < high) & (columns[start] + np.maximum(columns[length], np.uint64(1)) > low)
            if start == "guest":
                keep &= columns["guest"] != np.uint64(NOWHERE)
    for word in chosen.words:
        keep &= _has_word(findings, word, keep, step)
    return np.flatnonzero(keep)


def _has_word(findings: Findings, word: str, among: NDArray[np.bool_], step: Step | None) -> NDArray[np.bool_]:
    """Rows with a word in code or title, an address inside, or the word in their message."""
    columns = findings.columns
    wanted = [
        n for n, code in enumerate(findings.codes) if word in code.lower() or word in PROBLEMS[code].title.lower()
    ]
    found: NDArray[np.bool_] = np.isin(columns["code"], wanted)
    try:
        value = parse_size(word) if word[:1].isdigit() else None
    except ValueError:
        value = None
    if value is not None and value < 1 << 63:
        at = np.uint64(value)
        found |= (columns["offset"] <= at) & (at < columns["offset"] + np.maximum(columns["length"], np.uint64(1)))
        return found
    spelled = [n for n, code in enumerate(findings.codes) if word in _FIELDS.sub("\0", PROBLEMS[code].template).lower()]
    found |= np.isin(columns["code"], spelled)
    if word == "snapshot":
        found |= columns["snapshot"] >= 0
    rest = among & ~found
    if not _NUMERIC.fullmatch(word):
        rest &= columns["note"] >= 0  # numbers cannot spell it: only names that a finding carries can
    rows = np.flatnonzero(rest)
    for number, row in enumerate(rows.tolist()):
        if step is not None and number % 4096 == 0:
            step(number, rows.size)
        if word in findings[row].message.lower():
            found[row] = True
    return found


@dataclass(slots=True)
class Group:
    """Findings under one heading. cause: None for findings of one code that no cause explains.  rows: finding numbers."""

    title: str
    level: str
    glyph: str
    rows: NDArray[np.intp]
    items: int
    cause: Cause | None = None
    code: str = ""
    open: bool = True
    lines: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Line:
    """One row of the list: a heading (neither text nor finding), a line of evidence, or a finding's number."""

    group: Group
    text: str | None = None
    finding: int | None = None


class FindingRows:
    """The list. Rows are made when they are looked at. Built in a worker; folding is cheap."""

    def __init__(self, result: CheckResult, chosen: FindingFilter | None = None, step: Step | None = None) -> None:
        self.result, self.findings, self.chosen = result, result.findings, chosen or FindingFilter()
        self.width = 0
        self.numbers = self._totals()
        self.groups = self._group(chosen_rows(self.findings, self.chosen, step))
        self.matching = sum(int(group.rows.size) for group in self.groups)
        self._starts: list[int] = []
        self._total = 0
        self.layout(80)

    def _totals(self) -> tuple[tuple[Severity, int], ...]:
        """Items per severity, of all findings."""
        found = dict.fromkeys(Severity, 0)
        for code, (items, _) in self.findings.by_code.items():
            found[PROBLEMS[code].severity] += items
        return tuple((severity, number) for severity, number in found.items() if number)

    def _group(self, rows: NDArray[np.intp]) -> list[Group]:
        keep = np.zeros(len(self.findings), dtype=bool)
        keep[rows] = True
        groups = []
        for cause in self.result.causes:
            mine = np.asarray(cause.rows, dtype=np.intp)
            mine = mine[keep[mine]]
            if mine.size or not self.chosen:
                groups.append(self._cause_group(cause, mine))
            keep[mine] = False
        codes = self.findings.columns["code"]
        rest = np.flatnonzero(keep)
        kinds, first = np.unique(codes[rest], return_index=True)
        for number in kinds[np.argsort(first)].tolist():
            mine = rest[codes[rest] == number]
            problem = PROBLEMS[self.findings.codes[number]]
            level = LEVELS[problem.severity]
            group = Group(problem.title, level, GLYPHS[problem.severity], mine, self._items(mine), code=problem.code)
            group.open = mine.size <= OPEN_AT_MOST
            groups.append(group)
        return groups

    def _cause_group(self, cause: Cause, rows: NDArray[np.intp]) -> Group:
        worst = self.worst(rows)
        group = Group(cause.title, LEVELS[worst], GLYPHS[worst], rows, self._items(rows), cause=cause)
        group.open = rows.size <= OPEN_AT_MOST
        return group

    def worst(self, rows: NDArray[np.intp]) -> Severity:
        """The most severe among rows."""
        codes = np.flatnonzero(np.bincount(self.findings.columns["code"][rows], minlength=1)).tolist()
        return min(
            (PROBLEMS[self.findings.codes[code]].severity for code in codes),
            key=lambda each: each.rank,
            default=Severity.NOTE,
        )

    def _items(self, rows: NDArray[np.intp]) -> int:
        return int(self.findings.columns["count"][rows].sum())

    # Layout

    def layout(self, width: int) -> None:
        """Wrap the causes' evidence for a width in cells, and number the rows."""
        if width != self.width:
            self.width = width
            for group in self.groups:
                if group.cause is not None:
                    room = max(20, width - 6)
                    group.lines = []
                    for each in group.cause.evidence:
                        group.lines += [
                            ("· " if not number else "  ") + piece
                            for number, piece in enumerate(wrap(printable(each), room - 2))
                        ]
        self._starts, at = [], 0
        for group in self.groups:
            self._starts.append(at)
            at += 1 + (len(group.lines) + int(group.rows.size) if group.open else 0)
        self._total = at

    def __len__(self) -> int:
        return self._total

    def line(self, row: int) -> Line:
        """Row number `row` of the list."""
        from bisect import bisect_right

        place = bisect_right(self._starts, row) - 1
        group = self.groups[place]
        at = row - self._starts[place] - 1
        if at < 0:
            return Line(group)
        if at < len(group.lines):
            return Line(group, text=group.lines[at])
        return Line(group, finding=int(group.rows[at - len(group.lines)]))

    def heading_row(self, group: Group) -> int:
        return self._starts[self.groups.index(group)]

    def row_of(self, finding: int) -> int | None:
        """The list's row of a finding; None when it is filtered or folded away."""
        for place, group in enumerate(self.groups):
            at = int(np.searchsorted(group.rows, finding))
            if group.open and at < group.rows.size and int(group.rows[at]) == finding:
                return self._starts[place] + 1 + len(group.lines) + at
        return None

    def fold(self, group: Group, open_: bool | None = None) -> None:
        """Open or close a group."""
        group.open = not group.open if open_ is None else open_
        self.layout(self.width)

    def fold_all(self) -> None:
        """Close all groups, or open all when all are closed."""
        anything = any(group.open for group in self.groups)
        for group in self.groups:
            group.open = not anything
        self.layout(self.width)


# Texts


def problem_sections(problem: Problem) -> tuple[tuple[str, str], ...]:
    """(heading, text) of the catalogue's entry: meaning, how it arises, what the guest notices, and the fixes."""
    found = [("Meaning", problem.meaning), ("How it arises", problem.arises), ("For the guest", problem.guest_impact)]
    fixes = [(f"Fix ({fix.tier.value})", f"{fix.title}  [{fix.id}]") for fix in problem.fixes]
    return (
        *((heading, text) for heading, text in found if text),
        *(fixes or [("Fix", "none is offered: it needs a decision, or nothing at all")]),
    )


def where_text(finding: Finding) -> str:
    """The bytes of a finding, and the guest range that it concerns."""
    text = f"{span(finding.offset, finding.length)} ({format_size(finding.length)})"
    if finding.guest is not None:
        text += f", guest {span(finding.guest, finding.guest_length)}"
    return text


def group_text(group: Group) -> str:
    """What a heading says after the title: how much, how sure."""
    if group.cause is None:
        return count(group.items, "item") if group.items != group.rows.size else count(int(group.rows.size), "finding")
    return f"{count(int(group.rows.size), 'finding')}, {group.cause.confidence:.0%} sure"


def companion_words(result: CheckResult) -> str:
    """What is wrong with a file that the image names, for a status line."""
    return next((_COMPANIONS[each.code] for each in result.causes if each.code in _COMPANIONS), "cannot be opened")


def verdict_words(result: CheckResult) -> tuple[str, str]:
    """(a few words, level) for the status line: what the check says of the image."""
    found = result.by_severity()
    if result.aborted is not None and result.aborted != result.companion:
        told = sum(number for severity, number in found.items() if severity is not Severity.NOTE)
        return (f"{count(told, 'problem')}, check cut short" if told else "cannot be checked"), "bad"
    parts = [] if result.companion is None else [companion_words(result)]
    for number, noun in (
        (result.check_errors, "check error"),
        (result.corruptions, "corruption"),
        (result.leaks, "leak"),
    ):
        if number:
            parts.append(count(number, noun))
    if result.kept_leaks:
        parts[-1] += " (may be guest data)"
    if found[Severity.WARNING]:
        parts.append(count(found[Severity.WARNING], "warning"))
    if parts:
        return ", ".join(parts), "bad" if result.check_errors or result.corruptions or result.companion else "warn"
    notes = found[Severity.NOTE]
    return (f"no errors, {count(notes, 'note')}" if notes else "no errors", "good")
