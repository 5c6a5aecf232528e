"""Opening an image: samples and what each shows, recent files, any file by name or from the file system."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

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
from workbench.render.sizes import count
from workbench.tui.commands import BY_ID, bindings
from workbench.tui.paths import common_start, complete_path, describe_file
from workbench.tui.standing import stands
from workbench.tui.widgets.chrome import Footer, Line

if TYPE_CHECKING:
    from workbench.tui.app import Workbench

_COMMANDS = ("help", "quit", "theme", "palette")
_RECENT_SHOWN = 8


def _name_first(path: str) -> Text:
    """A file by its name, then its folder: on a narrow screen the folder is what is cut."""
    return Text.assemble(f"  {os.path.basename(path)}", (f"  {os.path.dirname(path)}", "dim"))


class GalleryScreen(Screen[None]):
    """`qwb` without an image, and `o`. Files are looked at in workers."""

    BINDINGS: ClassVar[list[BindingType]] = [
        *bindings([BY_ID[ident] for ident in _COMMANDS]),
        Binding("slash", "type", "type a name", id="gallery.type"),
        Binding("f", "files", "pick a file", id="gallery.files"),
        Binding("backspace", "above", "folder above", id="gallery.above"),
        Binding("tab", "complete", show=False, priority=True),
        Binding("j,k", "none", show=False),
        Binding("escape", "leave", "back", id="gallery.leave"),
    ]
    HORIZONTAL_BREAKPOINTS = [(0, "-narrow"), (76, "-medium"), (112, "-wide")]  # noqa: RUF012 - Textual's declaration

    app: Workbench

    def __init__(self, folder: str | None = None) -> None:
        super().__init__()
        self.folder = os.path.abspath(folder or os.curdir)
        self.starts_with_files = folder is not None
        self.samples: dict[str, Sample] = {}

    def compose(self) -> ComposeResult:
        yield Static(
            "qwb  look into qcow2 images  —  choose a sample, or open a file of yours", id="gallery-head", markup=False
        )
        with Horizontal(id="path-line"):
            yield Static("File ", id="path-label")
            yield Input(placeholder="name of an image: / to type, Tab completes, f to pick from folders", id="path")
        yield Static("", id="path-told", markup=False)
        with Horizontal(id="gallery"):
            yield OptionList(id="gallery-list")
            yield DirectoryTree(self.folder, id="gallery-files")
            yield Static(id="gallery-text")
        yield Footer(id="footer")

    def on_mount(self) -> None:
        if not stands(self):
            return
        recent = list(self.app.memory.recent)

        def look() -> tuple[list[str], list[Sample]]:
            return (
                [path for path in recent if os.path.exists(path)][:_RECENT_SHOWN],
                [sample for sample in load_manifest() if sample.path.exists()],
            )

        self.query_one("#gallery-list", OptionList).focus()
        self.update_keys()
        self.in_worker(look, lambda found: self.fill(*found))
        if self.starts_with_files:
            self.action_files()

    def in_worker(self, look: Callable[[], Any], done: Callable[[Any], None]) -> None:
        """Run `look` in a thread, then `done` with its answer here, unless the screen is gone by then."""

        def work() -> None:
            found = look()
            self.app.call_from_thread(lambda: done(found) if stands(self) else None)

        self.run_worker(work, thread=True, group="open")

    def fill(self, recent: list[str], samples: list[Sample]) -> None:
        """List the recent files and the samples."""
        self.samples = {sample.name: sample for sample in samples}
        options: list[Option] = []
        if recent:
            options.append(Option(Text("Recent", style="bold"), disabled=True))
            options += [Option(_name_first(path), id=f"file {path}") for path in recent]
        for heading, healthy, sign in (("Healthy samples", True, "✓"), ("Damaged samples", False, "✗")):
            rows = [sample for sample in samples if sample.healthy is healthy]
            if rows:
                options.append(Option(Text(heading, style="bold"), disabled=True))
                options += [Option(Text(f"  {sign} {sample.title}"), id=f"sample {sample.name}") for sample in rows]
        found = self.query_one("#gallery-list", OptionList)
        found.clear_options()
        found.add_options(options)
        found.highlighted = next((index for index, each in enumerate(options) if not each.disabled), None)

    def update_keys(self) -> None:
        """The footer: what the keys do where one is."""
        files = self.query_one(DirectoryTree).display
        keys = [("⏎", "", "open"), ("/", "type", "type a name")]
        keys.append(("f", "files", "samples" if files else "pick a file"))
        if files:
            keys.append(("⌫", "above", "folder above"))
        keys += [(self.app.key_of(ident), ident, BY_ID[ident].label) for ident in _COMMANDS[:2]]
        if self.app.browsers or files:
            keys.append(("Esc", "leave", "back"))
        self.query_one(Footer).put(
            [piece for key, value, label in keys for piece in ((f" {key}", "key", value), (f" {label} ", "dim", value))]
        )

    # What the highlighted one is

    @on(OptionList.OptionHighlighted, "#gallery-list")
    def highlighted(self, event: OptionList.OptionHighlighted) -> None:
        kind, _, name = str(event.option.id).partition(" ")
        if kind == "sample":
            self.query_one("#gallery-text", Static).update(_about(self.samples[name]))
        elif kind == "file":
            self.describe(name)

    @on(DirectoryTree.NodeHighlighted)
    def file_highlighted(self, event: DirectoryTree.NodeHighlighted[Any]) -> None:
        entry = event.node.data
        if entry is not None and self.query_one(DirectoryTree).display:
            self.describe(str(entry.path))

    def describe(self, path: str) -> None:
        """Say what a file is: it may be slow to say, and by then another one may be highlighted."""
        self._described = path
        shown = self.query_one("#gallery-text", Static)
        shown.update(Content.assemble((Path(path).name, "bold $accent"), "\n\n", path))

        def done(told: str) -> None:
            if self._described == path:
                shown.update(
                    Content.assemble((Path(path).name, "bold $accent"), f"\n\n{told}\n\n", (path, "$text-muted"))
                )

        self.in_worker(lambda: describe_file(path), done)

    # Opening

    @on(OptionList.OptionSelected, "#gallery-list")
    def chosen(self, event: OptionList.OptionSelected) -> None:
        kind, _, name = str(event.option.id).partition(" ")
        if kind == "sample":
            self.in_worker(lambda: self._copy(name), self._copied)
        elif kind == "file":
            self.app.open_image(name)

    def _copy(self, name: str) -> Path | str:
        """In a thread: the copy of a sample, or why there is none."""
        try:
            return self.app.practice.copy_of(name)
        except OSError as error:
            return f"The sample could not be copied to {error.filename}: {error.strerror}"

    def _copied(self, found: Path | str) -> None:
        if isinstance(found, Path):
            self.app.open_image(str(found))
        else:
            self.notify(found, severity="warning", markup=False)

    @on(Input.Submitted, "#path")
    def typed(self, event: Input.Submitted) -> None:
        """Open what was typed; a folder is shown, and a name that leads nowhere is said to, here."""
        text, folder = event.value.strip(), self.folder
        if not text:
            return

        def done(found: tuple[str, Any]) -> None:
            told, path = found[0], os.path.join(folder, os.path.expanduser(text))
            if told.startswith("? a folder"):
                self.show_folder(path)
            elif told.startswith("?"):
                self.tell(f"✗ {told.removeprefix('? ')}: {path}")
            else:
                self.app.open_image(path)

        self.in_worker(lambda: complete_path(text, folder), done)

    @on(Input.Changed, "#path")
    def changed(self) -> None:
        self.tell("")

    def tell(self, text: str) -> None:
        """A line under the name."""
        line = self.query_one("#path-told", Static)
        line.update(text)
        line.display = bool(text)

    def action_complete(self) -> None:
        """Complete the name as far as it is certain, and show what it can be; elsewhere Tab goes to the next pane."""
        field, folder = self.query_one("#path", Input), self.folder
        if self.focused is not field:
            self.focus_next()
            return
        before = field.value

        def done(found: tuple[str, list[tuple[str, str]]]) -> None:
            names = [value for value, _ in found[1]]
            if field.value != before:
                return
            with field.prevent(Input.Changed):
                field.value = common_start(names) if names else before
            field.cursor_position = len(field.value)
            shown = "   ".join(os.path.basename(name.rstrip("/")) + "/" * name.endswith("/") for name in names)
            self.tell(shown if len(names) > 1 else "" if names else "✗ nothing begins like that")

        self.in_worker(lambda: complete_path(before, folder), done)

    @on(DirectoryTree.FileSelected)
    def picked(self, event: DirectoryTree.FileSelected) -> None:
        self.app.open_image(str(event.path))

    def show_folder(self, path: str) -> None:
        """The file system from this folder on."""
        self.folder = os.path.abspath(path)
        tree = self.query_one(DirectoryTree)
        tree.path = self.folder
        if not tree.display:
            self.action_files()
        tree.focus()

    @on(Line.Hit)
    def hit(self, event: Line.Hit) -> None:
        if event.value in ("type", "files", "above", "leave"):
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
        self.update_keys()

    def action_above(self) -> None:
        """The folder that holds the one shown."""
        if self.query_one(DirectoryTree).display:
            self.show_folder(os.path.dirname(self.folder))

    def action_leave(self) -> None:
        """Back to the list, or to the image underneath."""
        if isinstance(self.focused, Input):
            tree = self.query_one(DirectoryTree)
            (tree if tree.display else self.query_one("#gallery-list")).focus()
        elif self.query_one(DirectoryTree).display:
            self.action_files()
        elif self.app.browsers:
            self.app.show_image(len(self.app.browsers) - 1)

    def action_command(self, ident: str) -> None:
        """Run a command of the table."""
        self.app.run_command(ident)


def _about(sample: Sample) -> Content:
    """What a sample shows, in the order in which one wants to know."""
    parts: list[str | tuple[str, str]] = [(sample.title, "bold $accent"), "\n\n", sample.shows]
    if sample.wrong:
        parts += ["\n\n", ("✗ What is wrong  ", "bold $error"), sample.wrong]
    parts += ["\n\n", ("Look at  ", "bold $secondary"), sample.look_at]
    if sample.passphrase:
        parts += ["\n\n", ("Passphrase  ", "bold $secondary"), sample.passphrase]
    check = sample.check
    said = "could not check it"
    if check.exit_code == 0:
        said = "clean"
    elif check.exit_code in (2, 3):
        said = f"{count(check.corruptions, 'corruption')}, {count(check.leaks, 'leak')}"
    parts += ["\n\n", (f"qemu-img check said: {said}", "$text-muted")]
    parts += ["\n\n", ("Opens as a copy of its own: repair it as you like.", "$text-muted")]
    return Content.assemble(*parts)
