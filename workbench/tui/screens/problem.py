"""What to show when a file cannot be browsed as an image: what is the matter, and what can be done."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Final

from rich.text import Text
from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.screen import Screen
from textual.widgets import OptionList, Static
from textual.widgets.option_list import Option

from workbench.tui.commands import BY_ID, bindings
from workbench.tui.paths import guess_format
from workbench.tui.screens.gallery import GalleryScreen
from workbench.tui.session import Loaded, Trouble
from workbench.tui.standing import stands
from workbench.tui.widgets.chrome import Footer, Line

if TYPE_CHECKING:
    from workbench.tui.app import Workbench

ADVICE: Final = {
    Trouble.MISSING: (
        "There is no such file",
        "Check the name. A relative name starts in the folder where the program was started.",
    ),
    Trouble.DIRECTORY: ("This is a directory", "An image is a file. Pick one of the files in it."),
    Trouble.PERMISSION: (
        "You may not read this file",
        "Run the program as a user who may, or copy the file to where you may read it. The workbench only reads.",
    ),
    Trouble.UNREADABLE: (
        "The file cannot be read",
        "If the disk underneath is failing, copy what can be read with ddrescue first and look at the copy.",
    ),
    Trouble.EMPTY: (
        "The file is empty",
        "It has no bytes at all: a copy or a download that never started, or a file that was truncated to nothing.",
    ),
    Trouble.TRUNCATED: (
        "The file ends inside the header",
        "A qcow2 header has at least 72 bytes. What is there can be looked at; the rest is gone.",
    ),
    Trouble.NOT_QCOW2: (
        "This is not a qcow2 image",
        "A qcow2 image begins with the bytes 51 46 49 fb ('QFI' and 0xfb). This may be a raw disk, another format, or an image whose first bytes were overwritten.",
    ),
}
_COMMANDS: Final = ("open", "help", "quit")


class ProblemScreen(Screen[None]):
    """Explains, and offers ways on."""

    BINDINGS: ClassVar[list[BindingType]] = [
        *bindings([BY_ID[ident] for ident in ("open", "help", "palette", "quit", "theme")]),
        Binding("escape", "leave", "back"),
    ]
    DEFAULT_CSS = """
    ProblemScreen { align: center middle; }
    ProblemScreen > #box { width: 72; max-width: 96%; height: auto; border: round $error; padding: 1 2; background: $surface; }
    ProblemScreen #what { color: $error; text-style: bold; }
    ProblemScreen OptionList { border: none; height: auto; background: $surface; margin: 1 0 0 0; }
    ProblemScreen OptionList:focus { border: none; }
    """

    app: Workbench

    def __init__(self, loaded: Loaded, title: str) -> None:
        super().__init__()
        self.loaded, self.name_shown = loaded, title

    def compose(self) -> ComposeResult:
        what, advice = ADVICE[self.loaded.trouble]
        with Vertical(id="box"):
            yield Static(f"✗ {what}", id="what", markup=False)
            yield Static(self.name_shown, markup=False)
            yield Static("", markup=False)
            yield Static(self.detail(), markup=False)
            yield Static(advice, markup=False)
            yield OptionList(*(Option(Text(label), id=value) for value, label in self.ways()), id="choices")
        yield Footer(id="footer")

    def detail(self) -> str:
        """The particulars: the system's reason, or what the first bytes look like."""
        if self.loaded.trouble is Trouble.NOT_QCOW2 and self.loaded.meta is not None:
            head = self.loaded.meta.head[:16]
            guess = guess_format(self.loaded.meta.head)
            return f"It begins with {head.hex(' ')}." + (f" That looks like {guess}." if guess else "") + "\n"
        told = self.loaded.trouble in (Trouble.UNREADABLE, Trouble.PERMISSION)
        return f"{self.loaded.what[:1].upper()}{self.loaded.what[1:]}.\n" if told else ""

    def ways(self) -> list[tuple[str, str]]:
        """What can be done from here."""
        found = []
        if self.loaded.meta is not None and self.loaded.meta.file_size:
            found.append(("bytes", "Look at the bytes"))
            if self.loaded.trouble is Trouble.NOT_QCOW2:
                found.append(("repair", "It should be a qcow2 image: see whether it can be repaired"))
        if self.loaded.trouble is Trouble.DIRECTORY:
            found.append(("files", "Pick a file in it"))
        found += [("again", "Try again"), ("open", "Open something else")]
        if self.app.browsers:
            found.append(("leave", f"Back to {self.app.browsers[-1].session.title}"))
        return [*found, ("quit", "Quit")]

    def on_mount(self) -> None:
        if not stands(self):
            return
        self.query_one(OptionList).focus()
        self.query_one(OptionList).highlighted = 0
        self.query_one(Footer).put(
            [(" ↑↓", "key", ""), (" move ", "dim", ""), (" ⏎", "key", ""), (" choose ", "dim", "")]
            + [
                piece
                for ident in _COMMANDS
                for piece in ((f" {self.app.key_of(ident)}", "key", ident), (f" {BY_ID[ident].label} ", "dim", ident))
            ]
            + [(" Esc", "key", "leave"), (" back ", "dim", "leave")]
        )

    @on(OptionList.OptionSelected)
    def chosen(self, event: OptionList.OptionSelected) -> None:
        value = event.option.id
        if value in ("bytes", "repair"):
            self.dismiss(None)
            self.app.browse(self.loaded, self.name_shown)
            if value == "repair":
                browser = self.app.browsers[-1]
                browser.call_after_refresh(browser.do_repair)  # by itself: this screen is gone when the answer comes
        elif value == "again":
            self.dismiss(None)
            self.app.open_image(self.loaded.path)
        elif value == "files":
            self.app.do_open(self.loaded.path)
        elif value == "leave":
            self.action_leave()
        else:
            self.app.run_command(str(value))

    @on(Line.Hit)
    def hit(self, event: Line.Hit) -> None:
        if event.value == "leave":
            self.action_leave()
        else:
            self.app.run_command(event.value)

    def action_leave(self) -> None:
        """Back to the image that is open, else to where one can be chosen."""
        self.dismiss(None)
        if self.app.browsers:
            self.app.show_image(len(self.app.browsers) - 1)
        elif not isinstance(self.app.screen, GalleryScreen):
            self.app.do_open()

    def action_command(self, ident: str) -> None:
        """Run a command of the table."""
        self.app.run_command(ident)
