"""Opening an image: samples and what each shows, recent files, any file by name or from the file system."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from rich.text import Text
from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal
from textual.content import Content
from textual.screen import Screen
from textual.widgets import DirectoryTree, Input, OptionList, Static
from textual.widgets.option_list import Option

from sample_images import Sample, load_manifest
from workbench.tui.commands import BY_ID, bindings
from workbench.tui.widgets.chrome import Footer, Line

if TYPE_CHECKING:
    from workbench.tui.app import Workbench

_COMMANDS = ("help", "quit", "theme", "palette")


class GalleryScreen(Screen[None]):
    """`qwb` without an image, and `o`."""

    BINDINGS: ClassVar[list[BindingType]] = [
        *bindings([BY_ID[ident] for ident in _COMMANDS]),
        Binding("slash", "type", "type a name", id="gallery.type"),
        Binding("f", "files", "pick a file", id="gallery.files"),
        Binding("j,k", "none", show=False),
        Binding("escape", "leave", "back", id="gallery.leave"),
    ]
    HORIZONTAL_BREAKPOINTS = [(0, "-narrow"), (76, "-medium"), (112, "-wide")]  # noqa: RUF012 - Textual's declaration

    app: Workbench

    def __init__(self, folder: str | None = None) -> None:
        super().__init__()
        self.folder = folder
        self.samples: dict[str, Sample] = {}

    def compose(self) -> ComposeResult:
        yield Static(
            "qwb  look into qcow2 images  —  choose a sample, or open a file of yours", id="gallery-head", markup=False
        )
        yield Input(placeholder="name of an image file ( / to type, f to pick from folders )", id="path")
        with Horizontal(id="gallery"):
            yield OptionList(id="gallery-list")
            yield DirectoryTree(self.folder or str(Path.cwd()), id="gallery-files")
            yield Static(id="gallery-text")
        yield Footer(id="footer")

    def on_mount(self) -> None:
        options: list[Option] = []
        recent = [path for path in self.app.memory.recent if os.path.exists(path)][:8]
        if recent:
            options.append(Option(Text("Recent", style="bold"), disabled=True))
            options += [Option(Text(f"  {path}", no_wrap=True), id=f"file {path}") for path in recent]
        samples = [sample for sample in load_manifest() if sample.path.exists()]
        self.samples = {sample.name: sample for sample in samples}
        for heading, healthy in (("Healthy samples", True), ("Damaged samples", False)):
            rows = [sample for sample in samples if sample.healthy is healthy]
            if rows:
                options.append(Option(Text(heading, style="bold"), disabled=True))
                options += [
                    Option(
                        Text(f"  {'✓' if healthy else '✗'} {sample.title}", no_wrap=True), id=f"sample {sample.name}"
                    )
                    for sample in rows
                ]
        found = self.query_one("#gallery-list", OptionList)
        found.add_options(options)
        found.highlighted = next((index for index, each in enumerate(options) if not each.disabled), None)
        found.focus()
        self.query_one(Footer).put(
            [
                (" ⏎", "key", ""),
                (" open ", "dim", ""),
                (" /", "key", "type"),
                (" type a name ", "dim", "type"),
                (" f", "key", "files"),
                (" pick a file ", "dim", "files"),
            ]
            + [
                piece
                for ident in _COMMANDS[:2]
                for piece in ((f" {self.app.key_of(ident)}", "key", ident), (f" {BY_ID[ident].label} ", "dim", ident))
            ]
            + ([(" Esc", "key", "leave"), (" back ", "dim", "leave")] if self.app.browsers else [])
        )
        if self.folder is not None:
            self.action_files()

    @on(OptionList.OptionHighlighted, "#gallery-list")
    def highlighted(self, event: OptionList.OptionHighlighted) -> None:
        kind, _, name = str(event.option.id).partition(" ")
        text = Content("")
        if kind == "sample":
            sample = self.samples[name]
            parts: list[str | tuple[str, str]] = [(sample.title, "bold $accent"), "\n\n", sample.shows]
            if sample.wrong:
                parts += ["\n\n", ("✗ What is wrong  ", "bold $error"), sample.wrong]
            parts += ["\n\n", ("Look at  ", "bold $secondary"), sample.look_at]
            if sample.passphrase:
                parts += ["\n\n", ("Passphrase  ", "bold $secondary"), sample.passphrase]
            check = sample.check
            said = (
                "clean"
                if check.exit_code == 0
                else f"{check.corruptions} corruptions, {check.leaks} leaks"
                if check.exit_code in (2, 3)
                else "could not check it"
            )
            parts += ["\n\n", (f"qemu-img check said: {said}", "$text-muted")]
            text = Content.assemble(*parts)
        elif kind == "file":
            text = Content.assemble((Path(name).name, "bold $accent"), "\n\n", name)
        self.query_one("#gallery-text", Static).update(text)

    @on(OptionList.OptionSelected, "#gallery-list")
    def chosen(self, event: OptionList.OptionSelected) -> None:
        kind, _, name = str(event.option.id).partition(" ")
        if kind == "sample":
            self.app.open_image(str(self.samples[name].path))
        elif kind == "file":
            self.app.open_image(name)

    @on(Input.Submitted, "#path")
    def typed(self, event: Input.Submitted) -> None:
        if event.value.strip():
            self.app.open_image(os.path.expanduser(event.value.strip()))

    @on(DirectoryTree.FileSelected)
    def picked(self, event: DirectoryTree.FileSelected) -> None:
        self.app.open_image(str(event.path))

    @on(Line.Hit)
    def hit(self, event: Line.Hit) -> None:
        if event.value in ("type", "files", "leave"):
            getattr(self, f"action_{event.value}")()
        elif event.value:
            self.app.run_command(event.value)

    def action_type(self) -> None:
        """Into the name field."""
        self.query_one("#path", Input).focus()

    def action_files(self) -> None:
        """Show the file system in place of the samples, or the samples again."""
        tree, listing = self.query_one(DirectoryTree), self.query_one("#gallery-list")
        showing = not tree.display
        tree.display, listing.display = showing, not showing
        (tree if showing else listing).focus()

    def action_leave(self) -> None:
        """Back to the list, or to the image underneath."""
        if isinstance(self.focused, Input):
            self.query_one("#gallery-list").focus()
        elif self.query_one(DirectoryTree).display:
            self.action_files()
        elif self.app.browsers:
            self.app.show_image(len(self.app.browsers) - 1)

    def action_command(self, ident: str) -> None:
        """Run a command of the table."""
        self.app.run_command(ident)
