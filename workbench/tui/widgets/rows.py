"""Rows by number: the widget under every long list. It asks for the rows that are visible and for no other.

Scrolling is by whole rows with Python integers, so a hex view of an 8 TiB file (2**39 rows) reaches every byte.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar, Final

from rich.segment import Segment
from rich.style import Style
from textual import events
from textual.binding import BindingType
from textual.message import Message
from textual.reactive import reactive
from textual.strip import Strip
from textual.widget import Widget

from workbench.tui.commands import navigation_bindings

WHEEL: Final = 3
THUMB, TRACK = "█", " "

Part = tuple[str, str]
"""(text, style name): a piece of a row; the style names are the widget's component classes without `rows--`."""


def overlay(widget: Widget, component: str) -> Style:
    """A component's style without the widget's own background, its colours mixed with what lies underneath.

    Muted text and tints are translucent; only the full style has them mixed.
    """
    full, part = widget.get_component_rich_style(component), widget.get_component_rich_style(component, partial=True)
    if part.bgcolor is not None:
        return full
    return part + Style(color=full.color) if part.color is not None else part


def rows_classes(*names: str) -> set[str]:
    """Component classes for style names. Each costs time whenever styles are applied anew, so a view declares what it uses."""
    return {f"rows--{name}" for name in names}


class Rows(Widget, can_focus=True):
    """A window on numbered rows with a cursor and a scroll bar of its own.

    Subclasses give `row_count`, `row_parts` and, if they want a heading, `head_parts`.
    """

    ALLOW_SELECT = False
    BINDINGS: ClassVar[list[BindingType]] = [*navigation_bindings()]
    COMPONENT_CLASSES: ClassVar[set[str]] = rows_classes(
        "text", "dim", "head", "cursor", "lit", "tint-a", "tint-b", "good", "warn", "bad", "link", "accent", "bar", "thumb", "mark", "select",
    )  # fmt: skip
    DEFAULT_CSS = """
    Rows { height: 1fr; width: 1fr; }
    Rows > .rows--text { color: $foreground; }
    Rows > .rows--dim { color: $text-muted; }
    Rows > .rows--head { color: $text-muted; text-style: bold; background: $panel; }
    Rows > .rows--cursor { background: $boost; text-style: bold; }
    Rows:focus > .rows--cursor { color: $block-cursor-foreground; background: $block-cursor-background; text-style: bold; }
    Rows > .rows--lit { color: $background; background: $accent; text-style: bold; }
    Rows > .rows--select { color: $background; background: $secondary; }
    Rows > .rows--mark { text-style: underline; background: $panel; }
    Rows > .rows--tint-a { background: $primary 18%; }
    Rows > .rows--tint-b { background: $secondary 18%; }
    Rows > .rows--good { color: $success; }
    Rows > .rows--warn { color: $warning; }
    Rows > .rows--bad { color: $error; text-style: bold; }
    Rows > .rows--link { color: $primary; text-style: underline; }
    Rows > .rows--accent { color: $accent; }
    Rows > .rows--bar { background: $panel; }
    Rows > .rows--thumb { color: $primary; }
    Rows > .rows--data { color: $primary; }
    Rows > .rows--zero { color: $text-muted; }
    Rows > .rows--meta { color: $accent; }
    Rows > .rows--free { color: $text-muted; }
    Rows > .rows--packed { color: $success; }
    Rows > .rows--backing { color: $secondary; }
    """

    top: reactive[int] = reactive(0, init=False)
    cursor: reactive[int] = reactive(0, init=False)
    head_height: int = 0
    greedy = False
    """Whether it can make use of any number of rows (a map), however few it has."""

    class Moved(Message):
        """The cursor is on another row, by the person's doing (or, where `by_person` is False, its row was read)."""

        by_person = True

        def __init__(self, rows: Rows, row: int) -> None:
            super().__init__()
            self.rows, self.row = rows, row

        @property
        def control(self) -> Rows:
            return self.rows

    class Chosen(Message):
        """A row was double-clicked, or Enter pressed on it."""

        def __init__(self, rows: Rows, row: int) -> None:
            super().__init__()
            self.rows, self.row = rows, row

        @property
        def control(self) -> Rows:
            return self.rows

    def __init__(self, **more: object) -> None:
        super().__init__(**more)  # type: ignore[arg-type]
        self._dragging = False
        self._looked_up: dict[str, Style] = {}
        self._base: Style | None = None

    # What subclasses say

    def row_count(self) -> int:
        """How many rows there are now."""
        return 0

    def row_parts(self, row: int, width: int) -> Iterable[Part]:
        """The pieces of row number `row`, left to right; cut at `width` cells."""
        return ()

    def head_parts(self, line: int, width: int) -> Iterable[Part]:
        """The pieces of heading line `line` (there are `head_height`)."""
        return ()

    def empty_text(self) -> str:
        """What to say when there are no rows."""
        return ""

    # Geometry

    @property
    def page(self) -> int:
        """Rows that fit."""
        return max(1, self.size.height - self.head_height)

    @property
    def inner_width(self) -> int:
        """Cells for a row's text; the last column is the scroll bar's."""
        return max(1, self.size.width - 1)

    def max_top(self) -> int:
        return max(0, self.row_count() - self.page)

    def validate_cursor(self, value: int) -> int:
        return max(0, min(value, self.row_count() - 1))

    def validate_top(self, value: int) -> int:
        return max(0, min(value, self.max_top()))

    def watch_cursor(self) -> None:
        self.refresh()

    def watch_top(self) -> None:
        self.refresh()

    def on_resize(self) -> None:
        self.show_row(self.cursor)

    def show_row(self, row: int, *, middle: bool = False) -> None:
        """Scroll so that `row` is visible; in the middle when it was not, if asked."""
        if row < self.top or row >= self.top + self.page:
            if middle:
                self.top = row - self.page // 3
            else:
                self.top = row if row < self.top else row - self.page + 1
        self.top = self.validate_top(self.top)

    def move_to(self, row: int, *, tell: bool = True) -> None:
        """Put the cursor on `row` and make it visible."""
        before = self.cursor
        self.cursor = row
        self.show_row(self.cursor)
        if tell and self.cursor != before:
            self.cursor_moved()

    def cursor_moved(self) -> None:
        """The person moved the cursor; tells the screen."""
        self.post_message(self.Moved(self, self.cursor))

    # Drawing

    def style_of(self, name: str) -> Style:
        """A component style to lay over another one."""
        return self._looked_up.get(name) or self._looked_up.setdefault(name, overlay(self, f"rows--{name}"))

    def notify_style_update(self) -> None:
        super().notify_style_update()
        self._looked_up.clear()
        self._base = None

    def strip_of(self, parts: Iterable[Part], width: int, base: Style, *, over: Style | None = None) -> Strip:
        """Pieces as a strip of exactly `width` cells."""
        segments = []
        for text, name in parts:
            style = base + self.style_of(name) if name else base
            segments.append(Segment(text, style + over if over else style))
        return Strip(segments).adjust_cell_length(width, base + over if over else base)

    def render_line(self, y: int) -> Strip:
        base = self._base
        if base is None:
            base = self._base = self.rich_style
        width = self.inner_width
        if self.size.width <= 0:
            return Strip.blank(0)
        if y < self.head_height:
            head = base + self.style_of("head")
            return self.strip_of(self.head_parts(y, width), self.size.width, head)
        count = self.row_count()
        row = self.top + y - self.head_height
        if count == 0:
            parts: list[Part] = [(" " + self.empty_text(), "dim")] if y == self.head_height else []
            return self.strip_of(parts, self.size.width, base)
        if row >= count:
            line = Strip.blank(width, base)
        else:
            over = self.style_of("cursor") if row == self.cursor and self.marks_row() else None
            line = self.strip_of(self.row_parts(row, width), width, base, over=over)
        return Strip.join([line, self._bar(y - self.head_height, count, base)])

    def marks_row(self) -> bool:
        """Whether the cursor's row is drawn inverted (not in hex, where single bytes are)."""
        return True

    def _bar(self, line: int, count: int, base: Style) -> Strip:
        height = self.page
        if count <= height:
            return Strip([Segment(" ", base)], 1)
        thumb = max(1, height * height // count)
        at = (height - thumb) * self.top // max(1, self.max_top())
        inside = at <= line < at + thumb
        return Strip([Segment(THUMB if inside else TRACK, base + self.style_of("thumb" if inside else "bar"))], 1)

    # Keys and mouse

    def action_nav_up(self) -> None:
        self.move_to(self.cursor - 1)

    def action_nav_down(self) -> None:
        self.move_to(self.cursor + 1)

    def action_nav_left(self) -> None:
        """Nothing to the left of a row; subclasses with columns differ."""

    def action_nav_right(self) -> None:
        """Nothing to the right of a row; subclasses with columns differ."""

    def action_nav_page_up(self) -> None:
        self._page(-1)

    def action_nav_page_down(self) -> None:
        self._page(1)

    def _page(self, direction: int) -> None:
        self.top = self.top + direction * self.page
        self.move_to(self.cursor + direction * self.page)

    def action_nav_home(self) -> None:
        self.move_to(0)

    def action_nav_end(self) -> None:
        self.move_to(self.row_count() - 1)

    def on_mouse_scroll_down(self, event: events.MouseScrollDown) -> None:
        self.top += WHEEL
        event.stop()

    def on_mouse_scroll_up(self, event: events.MouseScrollUp) -> None:
        self.top -= WHEEL
        event.stop()

    def on_mouse_down(self, event: events.MouseDown) -> None:
        at = event.get_content_offset(self)
        if at is None:
            return
        if at.x >= self.inner_width and at.y >= self.head_height:
            self._dragging = True
            self.capture_mouse()
            self._drag_to(at.y)
        elif at.y >= self.head_height:
            self.clicked(at.x, self.top + at.y - self.head_height)
        else:
            self.head_clicked(at.x, at.y)

    def on_mouse_move(self, event: events.MouseMove) -> None:
        if self._dragging:
            self._drag_to(event.y)
        else:
            row = self.top + event.y - self.head_height
            if event.y >= self.head_height and row < self.row_count():
                self.hovered(event.x, row)

    def on_mouse_up(self) -> None:
        if self._dragging:
            self._dragging = False
            self.release_mouse()

    def _drag_to(self, y: int) -> None:
        line = max(0, min(y - self.head_height, self.page - 1))
        self.top = self.max_top() * line // max(1, self.page - 1)

    def clicked(self, x: int, row: int) -> None:
        """A click on a row; `x` in cells."""
        if 0 <= row < self.row_count():
            self.move_to(row)

    def head_clicked(self, x: int, line: int) -> None:
        """A click on a heading."""

    def hovered(self, x: int, row: int) -> None:
        """The mouse is over a row."""

    def on_click(self, event: events.Click) -> None:
        at = event.get_content_offset(self)
        if (
            event.chain == 2
            and at is not None
            and at.y >= self.head_height
            and at.x < self.inner_width
            and self.row_count()
        ):
            self.post_message(self.Chosen(self, self.cursor))


def cut(text: str, width: int) -> str:
    """`text` in exactly `width` cells, with an ellipsis where it is cut (plain characters of one cell each)."""
    if width <= 0:
        return ""
    if len(text) <= width:
        return text.ljust(width)
    return text[: width - 1] + "…"
