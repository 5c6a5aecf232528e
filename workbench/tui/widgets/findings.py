"""Findings as a list: causes with their evidence first, then what no cause explains; folded, filtered, any number of them."""

from __future__ import annotations

from collections.abc import Iterable

from workbench.check.findings import Finding
from workbench.render.findings import GLYPHS, LEVELS, FindingRows, Group, Line, group_text, severity_words
from workbench.render.text import printable
from workbench.tui.widgets.rows import Part, Rows, cut


class FindingsView(Rows):
    """Rows of a FindingRows model: headings, evidence, findings. A finding is decoded when its row is drawn."""

    DEFAULT_CSS = "FindingsView > .rows--head { text-style: none; }"

    foldable = True

    def __init__(self, **more: object) -> None:
        super().__init__(**more)
        self.model: FindingRows | None = None
        self.note = ""

    def show(self, model: FindingRows | None, note: str = "") -> None:
        """Show a list; None while there is none, with the reason in `note`."""
        fresh = model is not self.model
        self.model, self.note = model, note
        if fresh:
            self.set_reactive(Rows.cursor, 0)
            self.set_reactive(Rows.top, 0)
        self.refresh()

    def select(self, finding: int) -> None:
        """Put the cursor on a finding, opening its group; tells no one."""
        if self.model is None:
            return
        row = self.model.row_of(finding)
        if row is None:
            for group in self.model.groups:
                if not group.open and finding in group.rows:
                    self.model.fold(group, True)
            row = self.model.row_of(finding)
        if row is not None:
            self.show_row(row, middle=True)
            self.move_to(row, tell=False)

    @property
    def head_height(self) -> int:  # type: ignore[override]
        """Totals, and the filter when there is one."""
        return 2 if self.model is not None and self.model.chosen else 1

    @property
    def current(self) -> Line | None:
        """The row under the cursor."""
        count = self.row_count()
        return self.model.line(min(self.cursor, count - 1)) if self.model is not None and count else None

    @property
    def finding(self) -> Finding | None:
        """The finding under the cursor."""
        line = self.current
        return (
            self.model.findings[line.finding]
            if self.model is not None and line is not None and line.finding is not None
            else None
        )

    def next_finding(self, direction: int) -> bool:
        """To the next row that is a finding; False at the end."""
        if self.model is None:
            return False
        row = self.cursor + direction
        while 0 <= row < len(self.model):
            line = self.model.line(row)
            if line.finding is not None:
                self.move_to(row)
                return True
            if not line.group.open and line.group.rows.size and line.text is None:
                self.model.fold(line.group, True)
                row = self.model.heading_row(line.group) + (
                    0 if direction > 0 else 1 + len(line.group.lines) + int(line.group.rows.size)
                )
            row += direction
        return False

    # Folding

    def toggle(self, group: Group | None = None) -> None:
        """Open or close a group (that of the cursor's row)."""
        line = self.current
        if self.model is None or line is None:
            return
        chosen = group or line.group
        self.model.fold(chosen)
        self.move_to(self.model.heading_row(chosen))
        self.refresh()

    def toggle_all(self) -> None:
        """Close all groups, or open all."""
        if self.model is not None:
            self.model.fold_all()
            self.move_to(0)
            self.refresh()

    def action_nav_left(self) -> None:
        """To the heading; on it: close."""
        line = self.current
        if self.model is None or line is None:
            return
        heading = self.model.heading_row(line.group)
        if self.cursor != heading:
            self.move_to(heading)
        elif line.group.open:
            self.toggle()

    def action_nav_right(self) -> None:
        """On a heading: open, then go in."""
        line = self.current
        if self.model is None or line is None or self.cursor != self.model.heading_row(line.group):
            return
        if not line.group.open:
            self.toggle()
        else:
            self.next_finding(1)

    # Drawing

    def row_count(self) -> int:
        if self.model is None:
            return 0
        if self.model.width != self.inner_width and self.size.width > 0:
            self.model.layout(self.inner_width)
        return len(self.model)

    def empty_text(self) -> str:
        if self.model is None:
            return self.note
        return "No finding passes the filter: f changes it." if self.model.chosen else "No findings: everything agrees."

    def on_resize(self) -> None:
        if self.model is not None and self.size.width > 0:
            line = self.current
            self.model.layout(self.inner_width)
            self.set_reactive(Rows.cursor, self.validate_cursor(self.cursor))
            if line is not None and line.finding is not None:
                self.select(line.finding)
        super().on_resize()

    def head_parts(self, line: int, width: int) -> Iterable[Part]:
        if self.model is None:
            yield " Findings", ""
            return
        if line == 1:
            shown = f"{self.model.matching:,} of {len(self.model.findings):,} shown"
            yield cut(f" filter: {self.model.chosen.text}   {shown}, f changes it", width), "accent"
            return
        yield " ", ""
        if not self.model.numbers:
            yield "nothing found", "good"
        words = [severity_words(severity, number) for severity, number in self.model.numbers]
        if sum(len(each) + 3 for each in words) > width:  # keep the worst one's word, and every number
            words = [words[0], *(each.rpartition(" ")[0] for each in words[1:])]
        for (severity, _), text in zip(self.model.numbers, words, strict=True):
            yield text, LEVELS[severity]
            yield "   ", ""

    def row_parts(self, row: int, width: int) -> Iterable[Part]:
        if self.model is None:
            return
        line = self.model.line(row)
        if line.finding is not None:
            yield from self._finding_parts(self.model.findings[line.finding], line.group, width)
        elif line.text is not None:
            yield cut("    " + line.text, width), "dim"
        else:
            yield from self._heading_parts(line.group, width)

    def _heading_parts(self, group: Group, width: int) -> Iterable[Part]:
        yield "▾ " if group.open else "▸ ", "accent"
        if group.cause is not None:
            yield group.glyph + " ", group.level
            yield group.title, "accent"
        else:
            yield group.glyph + " ", group.level
            severity = self.model.worst(group.rows).value if self.model is not None else ""
            yield f"{severity} {group.code}" if width >= 60 else group.code, group.level
            if width >= 76:
                yield f"  {group.title}", ""
        yield f"  {group_text(group)}", "dim"

    def _finding_parts(self, finding: Finding, group: Group, width: int) -> Iterable[Part]:
        level = LEVELS[finding.severity]
        yield f"  {GLYPHS[finding.severity]} ", level
        used = 4
        if width >= 96:
            yield cut(finding.severity.value, 11), level
            used += 11
        if width >= 70 and group.cause is not None:
            code = 25 if width >= 84 else 18
            yield cut(finding.code, code) + " ", level
            used += code + 1
        where = 12 if finding.offset < 1 << 36 else 16
        yield cut(f"{finding.offset:#x}", where), "dim"
        yield cut(printable(finding.message), width - used - where), ""

    def clicked(self, x: int, row: int) -> None:
        if self.model is None or not 0 <= row < len(self.model):
            return
        line = self.model.line(row)
        if line.finding is None and line.text is None and (x < 2 or row == self.cursor):
            self.move_to(row)
            self.toggle()
        else:
            super().clicked(x, row)
