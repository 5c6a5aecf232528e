"""The explanation of what is selected: what it is, what it means here, limits, QEMU, problems, links."""

from __future__ import annotations

from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import BindingType
from textual.containers import VerticalScroll
from textual.content import Content
from textual.widgets import Static

from workbench.tui.commands import navigation_bindings
from workbench.tui.explaining import Explanation

_LEVELS = {"bad": ("✗", "bold $error"), "warn": ("!", "bold $warning"), "good": ("✓", "$success"), "": ("·", "")}


def content_of(explanation: Explanation) -> Content:
    """The explanation as styled text; link targets are addresses that `go to` understands."""
    parts: list[Content | str | tuple[str, str]] = [(explanation.title, "bold $accent")]
    if explanation.where:
        parts += ["\n", (explanation.where, "$text-muted")]
    if explanation.value:
        parts += ["\n", (explanation.value, "bold")]
    for level, text in explanation.problems:
        glyph, style = _LEVELS[level]
        parts += ["\n\n", (f"{glyph} {text}", style)]
    for heading, text in explanation.sections:
        parts.append("\n\n")
        if heading:
            parts.append((f"{heading}  ", "bold $secondary"))
        parts.append(text)
    if explanation.links:
        parts.append("\n")
        for label, target in explanation.links:
            parts += ["\n→ ", link(label, target)]
    if explanation.spec:
        parts += ["\n\n", (explanation.spec, "italic $text-muted")]
    return Content.assemble(*parts)


def link(label: str, target: str) -> Content:
    """Text that leads somewhere when clicked."""
    safe = target.replace("'", "").replace('"', "").replace("[", "").replace("]", "").replace("\\", "")
    return Content.from_markup(f"[@click=screen.jump('{safe}')][u $primary]$label[/][/]", label=label)


class ExplainPane(VerticalScroll):
    """Scrollable; Tab reaches it."""

    BINDINGS: ClassVar[list[BindingType]] = [*navigation_bindings()]
    DEFAULT_CSS = """
    ExplainPane { background: $surface; padding: 0 1; scrollbar-size-vertical: 1; }
    ExplainPane > Static { width: 1fr; height: auto; }
    """

    def compose(self) -> ComposeResult:
        yield Static(id="explanation")

    def on_mount(self) -> None:
        self.shown: Explanation | None = None

    def show(self, explanation: Explanation) -> None:
        """Show another text, from its top."""
        if explanation == self.shown:
            return
        self.shown = explanation
        self.query_one("#explanation", Static).update(content_of(explanation))
        self.scroll_home(animate=False)

    def action_nav_up(self) -> None:
        self.scroll_up(animate=False)

    def action_nav_down(self) -> None:
        self.scroll_down(animate=False)

    def action_nav_left(self) -> None:
        """Text has no left."""

    def action_nav_right(self) -> None:
        """Text has no right."""

    def action_nav_page_up(self) -> None:
        self.scroll_page_up(animate=False)

    def action_nav_page_down(self) -> None:
        self.scroll_page_down(animate=False)

    def action_nav_home(self) -> None:
        self.scroll_home(animate=False)

    def action_nav_end(self) -> None:
        self.scroll_end(animate=False)
