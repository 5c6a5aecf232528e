"""The frame around the panes: title and breadcrumb, view tabs, the footer with the keys that do something here."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from rich.segment import Segment
from rich.style import Style
from textual import events
from textual.message import Message
from textual.strip import Strip
from textual.widget import Widget

from workbench.tui.commands import Command, key_name
from workbench.tui.place import VIEW_LABELS, View
from workbench.tui.widgets.rows import overlay

_BADGES = ("badge-good", "badge-warn", "badge-bad", "badge-dim")
LEVEL_GLYPH = {"good": "✓", "warn": "!", "bad": "✗", "": "·"}


class Line(Widget):
    """A widget of a few lines made of (text, style name, click value) pieces."""

    ALLOW_SELECT = False
    COMPONENT_CLASSES: ClassVar[set[str]] = {
        f"line--{name}" for name in ("name", "dim", "good", "warn", "bad", "key", "here", "tab", "busy", *_BADGES)
    }
    DEFAULT_CSS = """
    Line { height: 1; width: 1fr; background: $panel; }
    Line > .line--name { text-style: bold; color: $foreground; }
    Line > .line--dim { color: $text-muted; }
    Line > .line--good { color: $success; text-style: bold; }
    Line > .line--warn { color: $warning; text-style: bold; }
    Line > .line--bad { color: $error; text-style: bold; }
    Line > .line--key { color: $accent; text-style: bold; }
    Line > .line--here { color: $background; background: $primary; text-style: bold; }
    Line > .line--tab { color: $foreground; }
    Line > .line--busy { color: $accent; }
    Line > .line--badge-good { color: $background; background: $success; text-style: bold; }
    Line > .line--badge-warn { color: $background; background: $warning; text-style: bold; }
    Line > .line--badge-bad { color: $background; background: $error; text-style: bold; }
    Line > .line--badge-dim { color: $foreground; background: $boost; }
    """

    class Hit(Message):
        """A piece with a click value was clicked."""

        def __init__(self, line: Line, value: str) -> None:
            super().__init__()
            self.line, self.value = line, value

        @property
        def control(self) -> Line:
            return self.line

    def __init__(self, **more: object) -> None:
        super().__init__(**more)  # type: ignore[arg-type]
        self._lines: list[list[tuple[str, str, str]]] = [[]]

    def put(self, *lines: Sequence[tuple[str, str, str]]) -> None:
        """Show these lines: pieces of (text, style name, click value)."""
        fresh = [list(line) for line in lines]
        if fresh != self._lines:
            self._lines = fresh
            self.refresh()

    @property
    def text(self) -> str:
        """All that is shown, for tests."""
        return "\n".join("".join(piece[0] for piece in line) for line in self._lines)

    def _style(self, name: str) -> Style:
        return self.rich_style + overlay(self, f"line--{name}") if name else self.rich_style

    def render_line(self, y: int) -> Strip:
        pieces = self._lines[y] if y < len(self._lines) else []
        return Strip([Segment(text, self._style(style)) for text, style, _ in pieces]).adjust_cell_length(
            self.size.width, self.rich_style
        )

    def on_click(self, event: events.Click) -> None:
        at = event.get_content_offset(self)
        if at is None or at.y >= len(self._lines):
            return
        position = 0
        for text, _, value in self._lines[at.y]:
            position += len(text)
            if at.x < position:
                if value:
                    self.post_message(self.Hit(self, value))
                return


class TitleLine(Line):
    """File name, sizes, state in words; below it the breadcrumb and what is running."""

    DEFAULT_CSS = "TitleLine { height: 2; background: $panel; }"

    def show(
        self,
        name: str,
        summary: str,
        condition: tuple[str, str],
        crumbs: Sequence[tuple[str, str]],
        right: str,
        verdict: tuple[str, str],
    ) -> None:
        """name; summary; condition and check verdict as (word, level); crumbs as (label, key); right: progress or a note.

        A condition or verdict without a word is not shown.
        """
        width = self.size.width or 80
        tail = _badges(condition, verdict)
        for other in ((_brief(verdict[0]), verdict[1]), ("", "")):  # sizes are worth more than the verdict in full
            crowded = sum(len(text) for text, _, _ in tail) + len(name) + len(summary) + 5 > width
            if crowded and (condition[1] == "bad" or other[0]):
                tail = _badges(condition, other)
        room = width - sum(len(text) for text, _, _ in tail) - 1
        short = _shortened(name, max(12, room - 2 if len(name) > room // 2 else room // 2))
        middle = next(
            (each for each in (summary, summary.partition(" · ")[0]) if len(short) + len(each) + 4 <= room), ""
        )
        first = [(f" {short}", "name", ""), (f"  {middle}" if middle else "", "dim", "")]
        used = sum(len(text) for text, _, _ in first)
        first += [(" " * max(1, room + 1 - used), "", ""), *tail]
        trail: list[tuple[str, str, str]] = [(" ", "", "")]
        room = width - (len(right) + 2 if right else 0) - 1
        shown = list(crumbs)
        while len(shown) > 1 and sum(len(label) + 3 for label, _ in shown) > room:
            shown.pop(0)
        for index, (label, key) in enumerate(shown):
            if index or len(shown) < len(crumbs):
                trail.append((" › " if index else "… › ", "dim", ""))
            last = index == len(shown) - 1
            trail.append((label[: max(4, room)], "name" if last else "", "" if last else key))
        if right:
            used = sum(len(text) for text, _, _ in trail)
            trail.append((" " * max(1, width - used - len(right) - 1), "", ""))
            trail.append((right, "busy", "stop"))
        self.put(first, trail)


def _badges(condition: tuple[str, str], verdict: tuple[str, str]) -> list[tuple[str, str, str]]:
    """Condition and verdict as filled labels, a space between them."""
    found = [
        (f" {LEVEL_GLYPH[level]} {word} ", f"badge-{level or 'dim'}", target)
        for (word, level), target in ((condition, ""), (verdict, "findings"))
        if word
    ]
    if len(found) > 1:
        found.insert(1, (" ", "", ""))
    return found


def _brief(verdict: str) -> str:
    """`7 leaks (may be guest data), 1 warning` -> `7 leaks (data?)`: the worst of it, for narrow lines."""
    return verdict.split(", ", maxsplit=1)[0].replace("may be guest data", "data?")


def _shortened(name: str, room: int) -> str:
    """A file name in `room` columns: cut in the middle, so that its beginning and its ending stay."""
    if len(name) <= room:
        return name
    end = max(4, room // 2 - 1)
    return name[: max(1, room - end - 1)] + "…" + name[-end:]


class ViewTabs(Line):
    """The views with their keys, always in the same places; those that the selected structure does not have are muted."""

    def show(self, views: Sequence[View], current: View, keys: dict[View, str]) -> None:
        """Labels shrink to what fits: whole names, one word each, three letters; on the narrowest lines only the keys."""
        width = self.size.width or 80
        shown = [view for view in View if view in views] if len(views) < _FEW else list(View)
        for here, others, gap in _TAB_STYLES:
            pieces = []
            for view in shown:
                text = _tab_text(here if view is current else others, keys[view], view)
                style = "here" if view is current else "tab" if view in views else "dim"
                pieces.append((gap + text + " ", style, view.value if view in views else ""))
            if sum(len(text) for text, _, _ in pieces) <= width:
                break
        self.put(pieces)


_FEW = 4
"""Fewer views than this: a file that is no image, where muted tabs would only raise questions."""

_TAB_STYLES = (
    ("name", "name", " "),
    ("name", "word", " "),
    ("word", "word", " "),
    ("word", "word", ""),
    ("word", "letters", ""),
    ("letters", "letters", ""),
    ("word", "key", ""),
)
"""The form of the current tab, that of the others, and what goes before each, from the widest to the narrowest."""

_WORDS = {
    View.FIELDS: ("Fields", "Fld"),
    View.HEX: ("Hex", "Hex"),
    View.ENTRIES: ("Entries", "Ent"),
    View.GUEST_MAP: ("Map", "Map"),
    View.GUEST_HEX: ("Data", "Dat"),
    View.TRANSLATION: ("Path", "Pth"),
    View.HOST_MAP: ("Host", "Hst"),
    View.FINDINGS: ("Findings", "Fnd"),
    View.REFCOUNTS: ("Refs", "Ref"),
    View.OVERLAPS: ("Overlap", "Ovl"),
}
"""A word and three letters for each view, where its name has no room."""


def _tab_text(form: str, key: str, view: View) -> str:
    word, letters = _WORDS[view]
    texts = {"name": f"{key} {VIEW_LABELS[view]}", "word": f"{key} {word}", "letters": f"{key} {letters}"}
    return texts.get(form, key)


class Footer(Line):
    """The commands that do something here, best first, as many as fit. Click or press."""

    DEFAULT_CSS = "Footer { dock: bottom; height: 1; background: $panel; }"

    def show(self, commands: Sequence[Command], keys: dict[str, str]) -> None:
        """keys: command id -> comma-separated keys."""
        width = self.size.width or 80
        pieces: list[tuple[str, str, str]] = []
        used = 0
        for command in commands:
            key = key_name(keys[command.id].split(",")[0])
            size = len(key) + len(command.label) + 3
            if used + size > width:
                continue
            pieces += [(f" {key}", "key", command.id), (f" {command.label} ", "dim", command.id)]
            used += size
        self.put(pieces)


class ImageTabs(Line):
    """Open images, when there is more than one."""

    def show(self, names: Sequence[str], current: int) -> None:
        self.put([(f" {name} ", "here" if index == current else "tab", str(index)) for index, name in enumerate(names)])
        self.display = len(names) > 1
