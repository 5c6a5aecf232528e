"""Lines of text with links: translation steps, summaries, lists of references."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from workbench.tui.widgets.rows import Part, Rows


@dataclass(frozen=True, slots=True)
class TextLine:
    """text in `style`; target: the address it leads to, empty for none."""

    text: str
    style: str = ""
    target: str = ""


class LinesView(Rows):
    """Lines one after the other; Enter on a line with a target goes there. Long lines are wrapped."""

    def __init__(self, **more: object) -> None:
        super().__init__(**more)
        self._source: Sequence[TextLine] = ()
        self._lines: list[TextLine] = []
        self._note = ""
        self._width = 0

    def show(self, lines: Sequence[TextLine], note: str = "") -> None:
        """Show other lines; `note` when there are none."""
        changed = list(lines) != list(self._source)
        self._source, self._note = lines, note
        self._wrap()
        if changed:
            self.set_reactive(Rows.cursor, next((i for i, line in enumerate(self._lines) if line.target), 0))
            self.set_reactive(Rows.top, 0)
        self.refresh()

    def _wrap(self) -> None:
        from textwrap import wrap

        self._width = max(20, self.inner_width - 3)
        self._lines = []
        for line in self._source:
            indent = " " * (len(line.text) - len(line.text.lstrip()))
            pieces = wrap(line.text, self._width, subsequent_indent=indent + "  ", drop_whitespace=True, replace_whitespace=False) or [""]
            for number, piece in enumerate(pieces):
                text = indent + piece.lstrip() if not number else piece
                self._lines.append(TextLine(text, line.style, line.target))

    def on_resize(self) -> None:
        if self.inner_width - 3 != self._width:
            self._wrap()
        self.cursor = self.validate_cursor(self.cursor)
        if self.cursor < self.page:
            self.top = 0
        self.show_row(self.cursor)
        self.refresh()

    @property
    def current(self) -> TextLine | None:
        return self._lines[self.cursor] if 0 <= self.cursor < len(self._lines) else None

    def row_count(self) -> int:
        return len(self._lines)

    def empty_text(self) -> str:
        return self._note

    def row_parts(self, row: int, width: int) -> Iterable[Part]:
        line = self._lines[row]
        yield "→ " if line.target else "  ", "link" if line.target else ""
        yield line.text, line.style

    def step_target(self, direction: int) -> None:
        """To the next line with a target."""
        row = self.cursor + direction
        while 0 <= row < len(self._lines):
            if self._lines[row].target:
                self.move_to(row)
                return
            row += direction
