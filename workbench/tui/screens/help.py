"""Help and palette: both read the table of commands, so they cannot disagree with the keys."""

from __future__ import annotations

from collections.abc import Sequence
from textwrap import wrap
from typing import TYPE_CHECKING, Final

from rich.text import Text
from textual import on
from textual.app import ComposeResult
from textual.containers import Vertical
from textual.widgets import Input, OptionList, Static
from textual.widgets.option_list import Option

from workbench.tui.commands import COMMANDS, NAVIGATION, Command, key_name, key_names
from workbench.tui.screens.dialogs import Dialog

if TYPE_CHECKING:
    from workbench.tui.app import Workbench


SIGNS: Final = (
    ("✗ ✗2", "corruption; with a number: how many in this structure"),
    ("○ ○6", "leaked clusters"),
    ("! !1", "warning"),
    ("‡ ‡9", "could not be checked"),
    ("·", "a note: nothing is wrong"),
    ("?", "nothing is wrong here by itself, but the likely cause of other findings lies here"),
    ("■ ≡ 0 ▤ →", "entries: data, compressed, zero, subclusters, a pointer to a table"),
)

BOX_WIDTH: Final = 76
BOX_FRAME: Final = 8
"""What app.tcss takes of it: frames, paddings, the scroll bar."""
INDENT: Final = " " * 6


class ListDialog(Dialog):
    """A text field over a list that it filters."""

    app: Workbench
    hints = ""

    def compose(self) -> ComposeResult:
        with Vertical(id="box"):
            yield Static(self.heading, id="box-title", markup=False)
            yield Input(placeholder="type to filter", id="input")
            yield OptionList(id="choices")
            yield Static(self.hints, id="hints", markup=False)

    def on_mount(self) -> None:
        for field in self.query(Input):  # none when it was closed at once
            field.focus()
            self.fill("")

    @on(Input.Changed)
    def changed(self, event: Input.Changed) -> None:
        self.fill(event.value)

    def fill(self, wanted: str) -> None:
        """Show what matches."""

    def put(self, options: Sequence[Option]) -> None:
        """Replace the list; the first that can be chosen is."""
        found = self.query_one(OptionList)
        found.clear_options()
        found.add_options(options)
        found.highlighted = next((index for index, each in enumerate(options) if not each.disabled), None)

    @on(Input.Submitted)
    def submitted(self) -> None:
        self.query_one(OptionList).action_select()

    @on(OptionList.OptionSelected)
    def chosen(self, event: OptionList.OptionSelected) -> None:
        self.dismiss(event.option.id)

    def key_down(self) -> None:
        if isinstance(self.focused, Input):
            self.query_one(OptionList).focus()
            self.query_one(OptionList).action_cursor_down()


class HelpDialog(ListDialog):
    """Every command with its keys, by group; Enter runs it."""

    hints = "Type to filter   ⏎ runs it   - not now   Esc closes   keys.toml remaps"

    def __init__(self, available: frozenset[str]) -> None:
        super().__init__("Keys and commands")
        self.available = available

    def fill(self, wanted: str) -> None:
        words = wanted.lower().split()
        options: list[Option] = []
        width = 17
        for group in dict.fromkeys(each.group for each in COMMANDS):
            rows = [
                each for each in COMMANDS if each.group == group and _matches(words, each, self.app.keys_of(each.id))
            ]
            if rows:
                options.append(Option(Text(group, style="bold"), disabled=True))
                for each in rows:
                    mark = " " if each.id in self.available else "-"
                    line = Text(f"{mark} {key_names(self.app.keys_of(each.id)):<{width}} {each.title}")
                    options.append(Option(line.append(self._indented(each.help), "dim"), id=each.id))
        moves = [each for each in NAVIGATION if all(word in f"{each.title} {each.keys}".lower() for word in words)]
        if moves:
            options.append(Option(Text("In every pane", style="bold"), disabled=True))
            options += [
                Option(
                    Text(f"  {key_names(self.app.keys_of(f'nav.{each.id}')):<{width}} {each.title}"),
                    id=f"nav.{each.id}",
                )
                for each in moves
            ]
        signs = [each for each in SIGNS if all(word in " ".join(each).lower() for word in words)]
        if signs:
            options.append(Option(Text("Signs in tree, lists and maps", style="bold"), disabled=True))
            options += [Option(Text(f"  {sign:<{width}} {meaning}"), disabled=True) for sign, meaning in signs]
        self.put(options or [Option(Text("No command matches."), disabled=True)])

    def _indented(self, text: str) -> str:
        """Lines below a command. Wrapped here: one plain text per command is drawn in half the time of a group of them."""
        room = min(BOX_WIDTH, self.app.size.width * 96 // 100) - BOX_FRAME
        return "".join(f"\n{INDENT}{line}" for line in wrap(text, max(20, room - len(INDENT))))


class PaletteDialog(ListDialog):
    """Every command and every structure by name."""

    hints = "⏎ does it   Esc closes"

    def __init__(self, commands: Sequence[Command], structures: Sequence[tuple[str, str]]) -> None:
        super().__init__("Commands and structures")
        self.commands, self.structures = commands, structures

    def fill(self, wanted: str) -> None:
        words = wanted.lower().split()
        options = []
        for each in self.commands:
            keys = self.app.keys_of(each.id)
            if _matches(words, each, keys):
                options.append(
                    Option(
                        Text(f"{each.title}  ") + Text(key_name(keys.split(",")[0]), style="dim"),
                        id=f"command {each.id}",
                    )
                )
        for address, label in self.structures:
            if all(word in f"{address} {label}".lower() for word in words):
                options.append(Option(Text(f"Go to {label}  ") + Text(address, style="dim"), id=f"jump {address}"))
            if len(options) > 300:
                break
        if wanted.strip() and not options:
            options.append(Option(Text(f"Go to address {wanted.strip()}"), id=f"jump {wanted.strip()}"))
        self.put(options)


def _matches(words: Sequence[str], command: Command, keys: str) -> bool:
    text = f"{command.title} {command.label} {command.help} {command.group} {key_names(keys)}".lower()
    return all(word in text for word in words)
