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
        self._moved = False

    def show(self, lines: Sequence[TextLine], note: str = "") -> None:
        """Show other lines; `note` when there are none."""
        changed = list(lines) != list(self._source)
        self._source, self._note = lines, note
        self._wrap()
        if changed:
            self._moved = False
        self._start()
        self.refresh()

    def _wrap(self) -> None:
        from textwrap import wrap

        self._width = max(20, self.inner_width - 3)
        self._lines = []
        for line in self._source:
            indent = " " * (len(line.text) - len(line.text.lstrip()))
            pieces = wrap(
                line.text, self._width, subsequent_indent=indent + "  ", drop_whitespace=True, replace_whitespace=False
            ) or [""]
            for number, piece in enumerate(pieces):
                text = indent + piece.lstrip() if not number else piece
                self._lines.append(TextLine(text, line.style, line.target))

    def on_resize(self) -> None:
        if self.inner_width - 3 != self._width:
            self._wrap()
        self._start()
        self.refresh()

    def _start(self) -> None:
        """Until the person moves: the top, with the cursor on the first line that leads somewhere."""
        if not self._moved:
            self.set_reactive(Rows.cursor, next((i for i, line in enumerate(self._lines) if line.target), 0))
            self.set_reactive(Rows.top, 0)

    def show_row(self, row: int, *, middle: bool = False) -> None:
        """As everywhere, but a text that nobody moved in stays at its beginning."""
        if self._moved:
            super().show_row(row, middle=middle)

    def move_to(self, row: int, *, tell: bool = True) -> None:
        """Put the cursor on `row` and make it visible."""
        self._moved = True
        super().move_to(row, tell=tell)

    def action_nav_up(self) -> None:
        self._step(-1)

    def action_nav_down(self) -> None:
        self._step(1)

    def _step(self, direction: int) -> None:
        """To the next line that leads somewhere, scrolling on the way: a screenful without one is read row by row."""
        count = self.row_count()
        at = self.cursor + direction
        while 0 <= at < count and not self._leads(at):
            at += direction
        if not 0 <= at < count or abs(at - self.cursor) >= self.page:
            at = self.cursor + direction
        self.move_to(at)

    def _leads(self, row: int) -> bool:
        """Whether a row is the first one of a line with a target."""
        line = self._lines[row]
        return bool(line.target) and (
            not row or self._lines[row - 1].target != line.target or not line.text[:1].isspace()
        )

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
