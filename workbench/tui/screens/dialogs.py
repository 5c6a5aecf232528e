"""Dialogs: a line of text with a preview, a choice from a list, the passphrase, yes or no."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import ClassVar

from rich.text import Text
from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.events import Key
from textual.screen import ModalScreen
from textual.widgets import Input, OptionList, Static
from textual.widgets.option_list import Option

from workbench.tui.standing import stands

Answer = Callable[[str, Sequence[tuple[str, str]]], None]
"""What a preview calls: (text, completions). A text that begins with `?` says that there is no such thing."""


class Dialog(ModalScreen[str | None]):
    """A box in the middle. Escape answers None."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape", "cancel", "Cancel")]
    HORIZONTAL_BREAKPOINTS = [(0, "-narrow"), (76, "-medium"), (112, "-wide")]  # noqa: RUF012 - Textual's declaration
    VERTICAL_BREAKPOINTS = [(0, "-short"), (22, "-tall"), (34, "-high")]  # noqa: RUF012

    def __init__(self, title: str, note: str = "") -> None:
        super().__init__()
        self.heading, self.note = title, note

    def action_cancel(self) -> None:
        self.dismiss(None)


class TextDialog(Dialog):
    """Asks for one line. preview: called with each text; gives lines to show and the completions that fit."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("down", "into_list", "List", show=False),
        Binding("tab", "complete", "Complete", show=False, priority=True),
    ]

    def __init__(
        self,
        title: str,
        *,
        note: str = "",
        value: str = "",
        placeholder: str = "",
        password: bool = False,
        hints: str = "⏎ go   Esc cancel",
        preview: Callable[[str, Answer], None] | None = None,
    ) -> None:
        super().__init__(title, note)
        self.value, self.placeholder, self.password, self.preview = value, placeholder, password, preview
        self.hints = hints
        self.refused = False

    def compose(self) -> ComposeResult:
        with Vertical(id="box"):
            yield Static(self.heading, id="box-title", markup=False)
            if self.note:
                yield Static(self.note, id="note", markup=False)
            yield Input(self.value, placeholder=self.placeholder, password=self.password, id="input")
            if self.preview is not None:
                yield Static("", id="preview", markup=False)
                yield OptionList(id="choices")
            yield Static(self.hints + ("   Tab completes   ↓ list" if self.preview else ""), id="hints", markup=False)

    def on_mount(self) -> None:
        for field in self.query(Input):  # none when it was closed at once
            field.focus()
        if self.preview is not None:
            self.preview(self.value, self.show)

    @on(Input.Changed)
    def changed(self, event: Input.Changed) -> None:
        if self.preview is not None:
            self.refused = False
            self.query_one("#preview").remove_class("refused")
            self.preview(event.value, self.show)

    def show(self, text: str, choices: Sequence[tuple[str, str]]) -> None:
        """The preview's answer: a text (beginning with `?` when there is no such place), and (value, label) completions."""
        if not stands(self):
            return
        self.refused = text.startswith("?")
        self.query_one("#preview", Static).update(text)
        options = self.query_one("#choices", OptionList)
        options.clear_options()
        options.add_options([Option(Text(label), id=value) for value, label in choices])
        options.display = bool(choices)

    @on(Input.Submitted)
    def submitted(self, event: Input.Submitted) -> None:
        """What was typed; where it leads nowhere the first completion, and without one the dialog stays and says why."""
        if not self.refused or not event.value.strip():
            self.dismiss(event.value)
        elif self.query_one(OptionList).option_count:
            self.dismiss(self.query_one(OptionList).get_option_at_index(0).id)
        else:
            self.query_one("#preview").add_class("refused")

    @on(OptionList.OptionSelected)
    def chosen(self, event: OptionList.OptionSelected) -> None:
        self.dismiss(event.option.id)

    def action_into_list(self) -> None:
        found = self.query(OptionList)
        if found and found.first().option_count:
            found.first().focus()
            if found.first().highlighted is None:
                found.first().highlighted = 0

    def action_complete(self) -> None:
        found = self.query(OptionList)
        if found and found.first().option_count:
            first = found.first().get_option_at_index(found.first().highlighted or 0)
            field = self.query_one(Input)
            field.value = str(first.id)
            field.cursor_position = len(field.value)


class ChooseDialog(Dialog):
    """Asks for one of several. options: (value, label); a letter in front of a label chooses it at once."""

    def __init__(
        self, title: str, options: Sequence[tuple[str, str]], *, note: str = "", empty: str = "Nothing."
    ) -> None:
        super().__init__(title, note)
        self.options, self.empty = list(options), empty

    def compose(self) -> ComposeResult:
        with Vertical(id="box"):
            yield Static(self.heading, id="box-title", markup=False)
            if self.note:
                yield Static(self.note, id="note", markup=False)
            if self.options:
                yield OptionList(
                    *(Option(Text(label), id=f"{index}") for index, (_, label) in enumerate(self.options)), id="choices"
                )
            else:
                yield Static(self.empty, markup=False)
            yield Static("⏎ choose   Esc cancel" if self.options else "Esc closes", id="hints", markup=False)

    def on_mount(self) -> None:
        for listing in self.query(OptionList):  # none without options, or when it was closed at once
            listing.focus()
            listing.highlighted = 0

    @on(OptionList.OptionSelected)
    def chosen(self, event: OptionList.OptionSelected) -> None:
        self.dismiss(self.options[int(event.option.id or "0")][0])

    def on_key(self, event: Key) -> None:
        """A letter chooses the option whose label begins with it in brackets: `(o) …`."""
        for value, label in self.options:
            if len(event.key) == 1 and label.startswith(f"({event.key})"):
                event.stop()
                event.prevent_default()
                self.dismiss(value)
                return
