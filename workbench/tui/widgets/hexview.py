"""Bytes of any source: absolute or relative offsets, tinted fields, the field under the cursor named."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from textual.message import Message

from workbench.tui.background import Pages
from workbench.tui.widgets.rows import Part, Rows

_HEX = [f"{value:02x}" for value in range(256)]
_CHR = [chr(value) if 32 <= value < 127 else "·" for value in range(256)]


@dataclass(frozen=True, slots=True)
class Tint:
    """A named range of the source. name: shown when the cursor is in it."""

    start: int
    end: int
    name: str


class HexView(Rows):
    """Rows of 16 or 8 bytes. The cursor is a byte; `top` and `cursor` (rows) follow it."""

    head_height = 1

    class ByteMoved(Message):
        """The byte cursor moved, by the person's doing."""

        def __init__(self, view: HexView, offset: int) -> None:
            super().__init__()
            self.view, self.offset = view, offset

        @property
        def control(self) -> HexView:
            return self.view

    def __init__(self, **more: object) -> None:
        super().__init__(**more)
        self._pages: Pages | None = None
        self._total = 0
        self.at = 0
        self.lit: tuple[int, int] = (0, 0)
        self.marked: tuple[int, int] | None = None
        self.origin = 0
        self.relative = False
        self._tints: list[Tint] = []
        self._starts: list[int] = []
        self.namer: Callable[[int], str] | None = None
        self.footnote: Callable[[int], str] | None = None
        self.instead: Callable[[], str] | None = None

    # Content

    def show(self, pages: Pages | None, size: int, *, origin: int = 0, tints: Sequence[Tint] = ()) -> None:
        """Show another source, or other tints. origin: where relative offsets count from."""
        self._pages, self._total, self.origin = pages, size, origin
        self._tints = sorted(tints, key=lambda tint: tint.start)
        self._starts = [tint.start for tint in self._tints]
        self.refresh()

    def select(self, start: int, length: int, *, at: int | None = None) -> None:
        """Light a range and put the cursor on its first byte (or on `at`), without telling anyone."""
        self.lit = (start, start + length)
        self.at = max(0, min(start if at is None else at, max(0, self._total - 1)))
        self.set_reactive(Rows.cursor, self.at // self.width_bytes)
        self.show_row(self.at // self.width_bytes, middle=True)
        self.refresh()

    @property
    def total(self) -> int:
        """Bytes of the source."""
        return self._total

    @property
    def digits(self) -> int:
        """Hex digits of an offset."""
        return max(8, len(f"{max(0, self._total - 1):x}"))

    @property
    def width_bytes(self) -> int:
        """Bytes to a row: 16 when they fit, 8 or 4 on narrow panes."""
        room = self.inner_width - self.digits - 3
        return 16 if room >= 16 * 4 + 2 else 8 if room >= 8 * 4 + 1 else 4

    def row_count(self) -> int:
        return -(-self._total // self.width_bytes)

    def empty_text(self) -> str:
        return (self.instead() if self.instead is not None else "") or "No bytes."

    def marks_row(self) -> bool:
        return False

    def show_row(self, row: int, *, middle: bool = False) -> None:
        """As everywhere; what is jumped to comes near the top, for what follows it matters more than what is before."""
        if middle and not self.top <= row < self.top + self.page:
            self.top = row - min(2, self.page // 3)
        super().show_row(row, middle=middle)

    def tint_at(self, offset: int) -> tuple[int, Tint] | None:
        """The innermost tint around a byte, with its number."""
        index = bisect_right(self._starts, offset) - 1
        if index >= 0 and self._tints[index].start <= offset < self._tints[index].end:
            return index, self._tints[index]
        return None

    def name_at(self, offset: int) -> str:
        """Name of what the byte belongs to."""
        if self.namer is not None:
            return self.namer(offset)
        found = self.tint_at(offset)
        return found[1].name if found else ""

    # Drawing

    def head_parts(self, line: int, width: int) -> Iterable[Part]:
        if not self._total:
            return
        shown = self.at - self.origin if self.relative else self.at
        sign = "-" if shown < 0 else ""
        where = f"{'+' if self.relative and shown >= 0 else sign}{abs(shown):#x}"
        name = self.name_at(self.at)
        note = self.footnote(self.at) if self.footnote else ""
        yield f" {where} ", ""
        if name:
            yield f" {name} ", "accent"
        if note:
            yield f" {note}", ""

    def row_parts(self, row: int, width: int) -> Iterable[Part]:
        step = self.width_bytes
        start = row * step
        data = self._pages.peek(start, min(step, self._total - start)) if self._pages is not None else b""
        shown = start - self.origin if self.relative else start
        sign = "-" if shown < 0 else "+" if self.relative else " "
        yield f"{sign}{abs(shown):0{self.digits}x} ", "dim" if not row % 2 else ""
        if data is None:
            yield " " + "·· " * step, "dim"
            return
        if not data:
            yield self._failure(row, width - self.digits - 4), "bad"
            return
        if len(data) == step and not self._styled(start, start + step):
            half = step // 2
            yield f" {data[:half].hex(' ')}  {data[half:].hex(' ')}  ", ""
            yield "".join([_CHR[value] for value in data]), "dim" if not any(data) else ""
            return
        styles = [self._style_name(start + index) for index in range(len(data))]
        yield " ", ""
        for index, value in enumerate(data):
            style = styles[index]
            joined = index + 1 < len(data) and styles[index + 1] == style and style not in ("cursor",)
            yield _HEX[value], style
            gap = "  " if index + 1 == step // 2 else " "
            yield gap, style if joined and style else ""
        yield "   " * (step - len(data)) + ("" if len(data) >= step // 2 else " ") + " ", ""
        for index, value in enumerate(data):
            yield _CHR[value], styles[index] or ("dim" if value == 0 else "")

    def _failure(self, row: int, width: int) -> str:
        """Why there are no bytes, over as many rows as it takes from the first one shown; then signs that say the same."""
        from textwrap import wrap

        step, pages = self.width_bytes, self._pages
        reason = pages.error_at(row * step) if pages is not None else ""
        pieces = wrap(reason or "past the end of the file", max(12, width))
        above = 0
        while (
            above < len(pieces)
            and row - above > self.top
            and pages
            and pages.error_at((row - above - 1) * step) == reason
        ):
            above += 1
        return f" {pieces[above]}" if above < len(pieces) else " " + "?? " * step

    def _styled(self, start: int, end: int) -> bool:
        """Whether any byte of a row looks different from plain ones."""
        ranges = [(self.at, self.at + 1), self.lit]
        if self.marked:
            ranges.append(self.marked)
        index = bisect_right(self._starts, end - 1) - 1
        if index >= 0:
            ranges.append((self._tints[index].start, self._tints[index].end))
        return any(low < end and high > start for low, high in ranges)

    def _style_name(self, offset: int) -> str:
        if offset == self.at:
            return "lit" if self.has_focus else "select"
        if self.marked and self.marked[0] <= offset < self.marked[1]:
            return "mark"
        if self.lit[0] <= offset < self.lit[1]:
            return "select"
        found = self.tint_at(offset)
        return ("tint-a", "tint-b")[found[0] % 2] if found else ""

    # Moving

    def _go(self, offset: int) -> None:
        offset = max(0, min(offset, self._total - 1))
        if offset == self.at or self._total == 0:
            return
        self.at = offset
        self.set_reactive(Rows.cursor, offset // self.width_bytes)
        self.show_row(offset // self.width_bytes)
        self.refresh()
        self.post_message(self.ByteMoved(self, offset))

    def on_resize(self) -> None:
        row = self.at // self.width_bytes
        self.set_reactive(Rows.cursor, row)
        self.show_row(row, middle=True)
        self.refresh()

    def action_nav_up(self) -> None:
        if self.at >= self.width_bytes:
            self._go(self.at - self.width_bytes)

    def action_nav_down(self) -> None:
        if self.at + self.width_bytes < self._total:
            self._go(self.at + self.width_bytes)

    def action_nav_left(self) -> None:
        self._go(self.at - 1)

    def action_nav_right(self) -> None:
        self._go(self.at + 1)

    def _page(self, direction: int) -> None:
        step = self.page * self.width_bytes
        self.top = self.top + direction * self.page
        target = self.at + direction * step
        self._go(target if 0 <= target < self._total else (0 if direction < 0 else self._total - 1))

    def action_nav_home(self) -> None:
        self._go(0)

    def action_nav_end(self) -> None:
        self._go(self._total - 1)

    def clicked(self, x: int, row: int) -> None:
        offset = self.byte_at_cell(x, row)
        if offset is not None:
            self._go(offset)

    def byte_at_cell(self, x: int, row: int) -> int | None:
        """The byte drawn at cell `x` of a row, in the hex or the text column."""
        step = self.width_bytes
        left = self.digits + 3
        hex_width = step * 3 + 1
        column = x - left
        if column < 0:
            return None
        if column < hex_width:
            index = column // 3 if column < step // 2 * 3 else (column - 1) // 3
        else:
            index = column - hex_width - 1
        offset = row * step + index
        return offset if 0 <= index < step and offset < self._total else None
