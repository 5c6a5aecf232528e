"""Overlaps: clusters with two owners, and below each the entries that lead there, looked up when the cursor comes by."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from workbench.check.findings import Finding, Findings
from workbench.render.findings import GLYPHS, LEVELS
from workbench.render.hostmap import OVERLAP_CODES
from workbench.render.text import printable
from workbench.tui.widgets.rows import Part, Rows, cut
from workbench.units import format_size


@dataclass(frozen=True, slots=True)
class OwnerLine:
    """One owner of a cluster. text: path and guest range.  target: the address of the entry that refers, empty for none."""

    text: str
    target: str = ""


class OverlapsView(Rows):
    """One row per overlap, its owners indented below once they have been looked up."""

    head_height = 1

    def __init__(self, **more: object) -> None:
        super().__init__(**more)
        self.findings: Findings | None = None
        self.note = ""
        self._rows: NDArray[np.intp] = np.zeros(0, np.intp)
        self._owners: dict[int, Sequence[OwnerLine]] = {}
        self._opened: list[int] = []

    def show(self, findings: Findings | None, note: str = "") -> None:
        """Show the overlaps among findings; None while there is no result, with the reason in `note`."""
        if findings is not self.findings:
            self._owners, self._opened = {}, []
            self._rows = findings.rows(*OVERLAP_CODES) if findings is not None else np.zeros(0, np.intp)
            self.set_reactive(Rows.cursor, 0)
            self.set_reactive(Rows.top, 0)
        self.findings, self.note = findings, note
        self.refresh()

    def set_owners(self, finding: int, lines: Sequence[OwnerLine]) -> None:
        """Show who refers to the cluster of a finding."""
        at = int(np.searchsorted(self._rows, finding))
        if at >= self._rows.size or int(self._rows[at]) != finding:
            return
        here = self._split(self.cursor)
        if at not in self._owners:
            insort(self._opened, at)
        self._owners[at] = lines
        self.set_reactive(Rows.cursor, self._join(here[0], min(here[1], len(self._owners.get(here[0], ())))))
        self.show_row(self.cursor)
        self.refresh()

    def has_owners(self, finding: int) -> bool:
        """Whether the owners of a finding are known or being looked for."""
        at = int(np.searchsorted(self._rows, finding))
        return at in self._owners

    # Rows are overlaps with their owners in between.

    def _split(self, row: int) -> tuple[int, int]:
        """(overlap, 0 for itself or the owner's number from 1) of a row."""
        extra = 0
        for at in self._opened:
            if at + extra >= row:
                break
            size = len(self._owners[at])
            if row <= at + extra + size:
                return at, row - at - extra
            extra += size
        return row - extra, 0

    def _join(self, at: int, owner: int) -> int:
        return at + owner + sum(len(self._owners[each]) for each in self._opened[: bisect_left(self._opened, at)])

    def row_count(self) -> int:
        return int(self._rows.size) + sum(len(lines) for lines in self._owners.values())

    @property
    def finding(self) -> Finding | None:
        """The overlap that the cursor is on or below."""
        if self.findings is None or not self._rows.size:
            return None
        at, _ = self._split(self.cursor)
        return self.findings[int(self._rows[min(at, self._rows.size - 1)])]

    @property
    def owner(self) -> OwnerLine | None:
        """The owner under the cursor."""
        at, number = self._split(self.cursor)
        lines = self._owners.get(at, ())
        return lines[number - 1] if 0 < number <= len(lines) else None

    def owners(self, finding: int) -> Sequence[OwnerLine]:
        """What is known of an overlap's owners."""
        return self._owners.get(int(np.searchsorted(self._rows, finding)), ())

    def step_overlap(self, direction: int) -> None:
        """To the next overlap."""
        at, _ = self._split(self.cursor)
        self.move_to(self._join(max(0, min(at + direction, self._rows.size - 1)), 0))

    def empty_text(self) -> str:
        return self.note if self.findings is None else "No cluster has two owners that must not share it."

    def head_parts(self, line: int, width: int) -> Iterable[Part]:
        if self.findings is None:
            yield " Overlaps", ""
        else:
            many = f"{self._rows.size:,} overlap{'s' if self._rows.size != 1 else ''}"
            yield cut(f" {many}; Enter goes to the bytes, or to the entry that leads there", width), ""

    def row_parts(self, row: int, width: int) -> Iterable[Part]:
        if self.findings is None:
            return
        at, number = self._split(row)
        if number:
            line = self._owners[at][number - 1]
            yield "    → " if line.target else "      ", "link" if line.target else ""
            yield cut(printable(line.text), width - 6), ""
            return
        finding = self.findings[int(self._rows[at])]
        level = LEVELS[finding.severity]
        yield f" ╳{GLYPHS[finding.severity]} ", level
        yield cut(f"{finding.offset:#x}", 13), "accent"
        yield cut(f"{format_size(finding.length)}", 9), "dim"
        first, second = finding.numbers.get("first"), finding.numbers.get("second")
        text = f"{first}  ╳  {second}" if first and second else finding.message
        yield cut(printable(text), width - 26), ""
