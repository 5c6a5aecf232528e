"""One change before and after: decoded fields by name, then the bytes, what differs marked by colour and by a line of ^."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from textwrap import wrap

from workbench.check.problems import PROBLEMS
from workbench.render.plan import TIER_GLYPHS, TIER_LEVELS, TIER_WORDS, DiffRow, diff_rows, ranges_words
from workbench.repair.workspace import Step
from workbench.tui.widgets.rows import Part, Rows, cut

Line = list[Part]


def reason(code: str) -> str:
    """Why a step is there, by its finding's title."""
    problem = PROBLEMS.get(code)
    if problem is None:
        return "asked for by hand" if code == "BY-HAND" else f"because of {code}"
    return f"because: {problem.title} ({code})"


class EditDiffView(Rows):
    """Lines of text and bytes; scrolls by lines."""

    def __init__(self, **more: object) -> None:
        super().__init__(**more)
        self._lines: list[Line] = []
        self._step: Step | None = None
        self._fields: Sequence[tuple[str, str, str]] | None = None
        self._plain: Sequence[tuple[str, str]] = ()
        self._width = 0

    def show_step(self, step: Step, fields: Sequence[tuple[str, str, str]] | None) -> None:
        """Show a change. fields: (name, before, after); None while they are being decoded."""
        fresh = step is not self._step
        self._step, self._fields, self._plain = step, fields, ()
        self._rebuild(fresh)

    def show_text(self, text: Sequence[tuple[str, str]]) -> None:
        """Show paragraphs instead: (text, style)."""
        self._step, self._fields, self._plain = None, None, text
        self._rebuild(True)

    @property
    def text(self) -> str:
        """All that is shown, for tests."""
        return "\n".join("".join(part for part, _ in line) for line in self._lines)

    def _rebuild(self, fresh: bool) -> None:
        self._width = self.inner_width
        self._lines = self._step_lines(self._step) if self._step is not None else self._text_lines()
        if fresh:
            self.set_reactive(Rows.top, 0)
        self.top = self.validate_top(self.top)
        self.refresh()

    def on_resize(self) -> None:
        if self.inner_width != self._width:
            self._rebuild(False)

    # Content

    def _wrapped(self, text: str, style: str = "", indent: str = " ") -> list[Line]:
        room = max(20, self.inner_width - len(indent))
        return [[(indent + piece, style)] for piece in wrap(text, room)] or [[("", "")]]

    def _text_lines(self) -> list[Line]:
        lines: list[Line] = []
        for text, style in self._plain:
            lines += self._wrapped(text, style)
        return lines

    def _step_lines(self, step: Step) -> list[Line]:
        lines = self._wrapped(step.title[:1].upper() + step.title[1:] + ".", "")
        lines.append(
            [
                (f" {TIER_GLYPHS[step.tier]} {TIER_WORDS[step.tier]}", TIER_LEVELS[step.tier]),
                (cut(f"  {reason(step.code)}", self.inner_width - 13), "dim"),
            ]
        )
        if step.guest:
            lines += self._wrapped(f"Guest range concerned: {ranges_words(step.guest)}", "accent")
        if step.snapshots:
            lines += self._wrapped(f"Snapshots concerned: {', '.join(step.snapshots)}", "accent")
        lines.append([(cut(f" {step.kind} at {step.offset:#x}, {step.length:,} bytes", self.inner_width), "head")])
        if self._fields is None:
            lines.append([(" decoding …", "dim")])
        for name, old, new in self._fields or ():
            room = max(12, min(34, self.inner_width // 2 - 4))
            lines.append(
                [
                    (" " + cut(name.removeprefix("entries.row."), room), ""),
                    (f" {old}", "bad"),
                    (" → ", "dim"),
                    (new, "good"),
                ]
            )
        lines += self._bytes(step)
        return lines

    def _bytes(self, step: Step) -> list[Line]:
        lines: list[Line] = []
        shown = max(len(step.before), len(step.after))
        width = 16 if self.inner_width >= 14 + 16 * 3 else 8
        for row in diff_rows(step.offset, step.before, step.after, width=width):
            if row.skipped:
                lines.append([(f"   … {row.skipped:,} bytes stay as they are", "dim")])
                continue
            lines.append(self._byte_line(row, row.old, "before", "bad", width))
            lines.append(self._byte_line(row, row.new, "after ", "good", width))
            marks = "".join(
                "^^ " if row.changed(index) else "   " for index in range(max(len(row.old or b""), len(row.new or b"")))
            )
            lines.append([(" " * 13 + marks.rstrip(), "dim")])
        if step.length > shown:
            lines.append([(f"   … and {step.length - shown:,} bytes more", "dim")])
        return lines

    def _byte_line(self, row: DiffRow, data: bytes | None, word: str, style: str, width: int) -> Line:
        where = f" {row.offset:#x}" if word == "before" else ""
        line: Line = [(cut(where, 12) if word == "before" else cut(f"    {word}", 12), "dim"), (" ", "")]
        if data is None:
            line.append(("(the file ends before this)" if word == "before" else "(nothing any more)", "dim"))
            return line
        for index, value in enumerate(data):
            line.append((f"{value:02x}", style if row.changed(index) else ""))
            line.append((" ", ""))
        return line

    # Rows

    def row_count(self) -> int:
        return len(self._lines)

    def row_parts(self, row: int, width: int) -> Iterable[Part]:
        return self._lines[row]

    def marks_row(self) -> bool:
        return False

    def action_nav_up(self) -> None:
        self.top -= 1

    def action_nav_down(self) -> None:
        self.top += 1

    def _page(self, direction: int) -> None:
        self.top += direction * self.page

    def action_nav_home(self) -> None:
        self.top = 0

    def action_nav_end(self) -> None:
        self.top = self.max_top()
