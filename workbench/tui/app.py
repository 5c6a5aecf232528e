"""The workbench as an application: themes, images open as tabs, keys, what lasts between runs."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

from textual.app import App
from textual.binding import BindingType
from textual.events import Event, InputEvent

from workbench.errors import QwbError, StorageError
from workbench.tui.commands import BY_ID, COMMANDS, bindings, key_name
from workbench.tui.keymap import Keymap, load_keymap
from workbench.tui.pauses import Pauses
from workbench.tui.place import Place, View, view_named
from workbench.tui.practice import Practice
from workbench.tui.screens.browser import BrowserScreen
from workbench.tui.screens.core import BrowserCore
from workbench.tui.screens.dialogs import ChooseDialog
from workbench.tui.screens.gallery import GalleryScreen
from workbench.tui.screens.help import HelpDialog, PaletteDialog
from workbench.tui.screens.moving import structure_names
from workbench.tui.screens.problem import ProblemScreen
from workbench.tui.session import Loaded, Session, Trouble, load
from workbench.tui.state import State
from workbench.tui.themes import CYCLE, OWN_THEMES


class Workbench(App[None]):
    """`qwb IMAGE`. images: paths to open; at: address to start at in the first one."""

    TITLE = "qcow2 workbench"
    CSS_PATH = "app.tcss"
    ENABLE_COMMAND_PALETTE = False
    BINDINGS: ClassVar[list[BindingType]] = [*bindings([BY_ID["interrupt"]])]

    def __init__(
        self,
        images: tuple[str, ...] = (),
        *,
        at: str | None = None,
        view: str | None = None,
        theme: str | None = None,
        secret: bytes | None = None,
        remember: bool = True,
        keymap: Keymap | None = None,
        memory: State | None = None,
        auto_check: bool = True,
    ) -> None:
        """view, theme: to begin with.  remember: keep places and recent files between runs.  secret: passphrase to try.

        Raises ArgumentError for a view that there is none of.
        """
        super().__init__()
        self.images, self.at, self.secret = images, at, secret
        self.first_view = view_named(view) if view is not None else None
        self.pauses, self.practice = Pauses(), Practice()
        self.alone = False
        """Whether the process is for this app only."""
        self.auto_check, self.remember = auto_check, remember
        self.user_keys = keymap if keymap is not None else load_keymap()
        self.memory = memory if memory is not None else State.load() if remember else State(Path())
        self.browsers: list[BrowserScreen] = []
        self.refused: QwbError | None = None
        """Why what was asked for at the start could not be shown: a file, or an address in it."""
        for each in OWN_THEMES:
            self.register_theme(each)
        wanted = theme or self.memory.theme
        self.theme = wanted if wanted in self.available_themes else "qwb-dark"

    def on_mount(self) -> None:
        self.set_keymap(self.user_keys.keys)
        for complaint in self.user_keys.complaints:
            self.notify(complaint.replace("[", "\\["), severity="warning")
        if self.alone:
            self.set_timer(1, lambda: self.pauses.begin(self))
            for each in (signal.SIGHUP, signal.SIGTERM):
                asyncio.get_running_loop().add_signal_handler(each, self.told_to_end, each)
        if not self.images:
            self.do_open()
        if self.images:
            self.run_worker(self._open_all, thread=True, group="open")

    async def on_event(self, event: Event) -> None:
        if isinstance(event, InputEvent):
            self.pauses.touched()
        await super().on_event(event)

    # Images

    def open_image(self, path: str, title: str | None = None, *, at: str | None = None) -> None:
        """Open an image as a new tab, reading in a worker; what cannot be opened gets a screen that says why.

        at: address to go to in it.
        """
        for index, screen in enumerate(self.browsers):
            if os.path.abspath(screen.session.path) == os.path.abspath(path):
                self.show_image(index)
                if at is not None:
                    screen.jump(at)
                return
        self.run_worker(lambda: self.call_from_thread(self.opened, load(path), title, at), thread=True, group="open")

    def _open_all(self) -> None:
        """In a thread: the images of the command line in their order, the first one in front."""
        for path in self.images:
            self.call_from_thread(self.opened, load(path))
        if len(self.images) > 1:
            self.call_from_thread(self.show_image, 0)

    def opened(self, loaded: Loaded, title: str | None = None, at: str | None = None) -> None:
        """Show what `load` gave."""
        name = title or Path(loaded.path).name or loaded.path
        if loaded.trouble is Trouble.NONE:
            self.browse(loaded, name, at)
        else:
            if loaded.storage is None:
                self.refused = StorageError(loaded.what, path=loaded.path)
            self.push_screen(ProblemScreen(loaded, name))

    def browse(self, loaded: Loaded, title: str, at: str | None = None) -> None:
        """Put an image in front; also one that is none, for its bytes. at: address to begin at."""
        session = Session(loaded, title=title)
        session.start_at = at
        session.secret = self.secret
        screen = BrowserScreen(session)
        self.browsers.append(screen)
        if not self.practice.holds(loaded.path):
            self.memory.remember(os.path.abspath(loaded.path))
        self._bring(screen)

    def _bring(self, screen: BrowserScreen) -> None:
        """Make a screen the only one above the base, so that tabs do not pile up."""
        name = f"image-{id(screen)}"
        if not self.is_screen_installed(name):
            self.install_screen(screen, name)
        self.pop_to_base()
        self.push_screen(name)

    def pop_to_base(self) -> None:
        """Take away whatever lies above the base screen."""
        while len(self.screen_stack) > 1:
            self.pop_screen()

    def show_image(self, index: int) -> None:
        """Bring an open image to the front."""
        if 0 <= index < len(self.browsers) and self.screen is not self.browsers[index]:
            self._bring(self.browsers[index])

    @property
    def front(self) -> BrowserScreen | None:
        """The image in front (under a dialog, too)."""
        return next((screen for screen in reversed(self.screen_stack) if isinstance(screen, BrowserScreen)), None)

    def do_next_tab(self, step: int = 1) -> None:
        if self.front is not None:
            self.show_image((self.browsers.index(self.front) + step) % len(self.browsers))

    def do_previous_tab(self) -> None:
        self.do_next_tab(-1)

    def do_close_tab(self) -> None:
        screen = self.front
        if screen is None:
            return
        self._remember(screen)
        at = self.browsers.index(screen)
        self.browsers.remove(screen)
        self.pop_to_base()
        self.uninstall_screen(screen)
        screen.session.close()
        screen.remove()
        if self.browsers:
            self.show_image(min(at, len(self.browsers) - 1))
        else:
            self.do_open()

    def do_open(self, folder: str | None = None) -> None:
        self.push_screen(GalleryScreen(folder))

    def _remember(self, screen: BrowserScreen) -> None:
        if not self.practice.holds(screen.session.path):
            self.memory.remember(os.path.abspath(screen.session.path), screen.leave())

    def restore_layout(self, screen: BrowserCore) -> None:
        """The panes as they were the last time."""
        found = self.memory.places.get(os.path.abspath(screen.session.path), {})
        screen.set_pane_classes(found.get("explain") is False, "no-explain")
        screen.fold = found.get("fold") is not False

    def start_place(self, session: Session) -> Place | str | None:
        """Where to begin in an image: the place asked for, or where one was the last time."""
        if session.start_at is not None:
            return session.start_at
        if self.at is not None:
            at, self.at = self.at, None
            return at
        found = self.memory.places.get(os.path.abspath(session.path))
        return Place.from_json(found["place"]) if found and isinstance(found.get("place"), dict) else None

    def start_view(self) -> View | None:
        """The view asked for, for the first image only."""
        wanted, self.first_view = self.first_view, None
        return wanted

    def update_image_tabs(self, screen: BrowserCore) -> None:
        """The strip of open images."""
        from workbench.tui.widgets.chrome import ImageTabs

        current = self.browsers.index(screen) if screen in self.browsers else 0
        screen.query_one(ImageTabs).show([each.session.title for each in self.browsers], current)

    # Commands

    def key_of(self, ident: str) -> str:
        """The first key of a command, as people write it."""
        return key_name(self.keys_of(ident).split(",")[0])

    def keys_of(self, ident: str) -> str:
        """The keys that a command has, comma-separated."""
        return self.user_keys.of(ident)

    def action_command(self, ident: str) -> None:
        """Run a command of the table that works everywhere."""
        self.run_command(ident)

    def run_command(self, ident: str) -> None:
        """Run an application-wide command."""
        method: Callable[[], None] | None = getattr(self, f"do_{ident}", None)
        if method is not None:
            method()

    def do_theme(self) -> None:
        at = CYCLE.index(self.theme) if self.theme in CYCLE else -1
        self.theme = CYCLE[(at + 1) % len(CYCLE)]
        self.memory.theme = self.theme
        self.notify(f"Theme: {self.theme}", timeout=2)

    def do_help(self) -> None:
        front = self.screen
        available = (
            front.available() if isinstance(front, BrowserScreen) else [each for each in COMMANDS if not each.where]
        )
        self.push_screen(HelpDialog(frozenset(each.id for each in available)), self._run_chosen)

    def _run_chosen(self, ident: str | None) -> None:
        if ident is None:
            return
        if ident.startswith("nav."):
            action = getattr(self.screen.focused, f"action_nav_{ident[4:]}", None)
            if action is not None:
                action()
            return
        screen = self.screen
        if isinstance(screen, BrowserScreen):
            if screen.check_action("command", (ident,)):
                screen.action_command(ident)
        else:
            self.run_command(ident)

    def do_palette(self) -> None:
        screen = self.screen
        if not isinstance(screen, BrowserScreen):
            self.push_screen(PaletteDialog([each for each in COMMANDS if not each.where], ()), self._palette_done)
            return
        outline = screen.session.outline

        def show(names: list[tuple[str, str]]) -> None:
            if screen.on_top:  # not when it is there already
                self.push_screen(PaletteDialog(screen.available(), names), self._palette_done)

        screen.session.background.submit(lambda _job: structure_names(outline), show, screen.failed, title="structures")

    def _palette_done(self, value: str | None) -> None:
        kind, _, rest = (value or "").partition(" ")
        if kind == "command":
            self._run_chosen(rest)
        elif kind == "jump" and isinstance(self.screen, BrowserScreen):
            self.screen.jump(rest)

    def do_screenshot(self) -> None:
        """An SVG of the screen in the working directory."""
        number = 1
        while Path(f"qwb-{number}.svg").exists():
            number += 1
        try:
            Path(f"qwb-{number}.svg").write_text(self.export_screenshot(title="qwb"), encoding="utf-8")
        except OSError as error:
            self.notify(f"The picture could not be saved: {error.strerror}", severity="error")
            return
        self.notify(f"Saved qwb-{number}.svg", timeout=4)

    def do_quit(self) -> None:
        self._leave()
        self.exit()

    def _leave(self) -> None:
        """Keep what lasts, and let go of the files."""
        for screen in self.browsers:
            self._remember(screen)
            screen.session.close()
        if self.remember:
            self.memory.save()
        self.practice.close()

    def told_to_end(self, by: signal.Signals) -> None:
        """The terminal was closed, or somebody ended the process: nobody is there to be asked, but nothing is lost."""
        self._leave()
        self.exit(return_code=128 + by)

    def do_interrupt(self) -> None:
        """Quit, but ask first when something is running."""
        busy = next((job for screen in self.browsers if (job := screen.session.background.busy)), None)
        if busy is None:
            self.do_quit()
            return
        if isinstance(self.screen, ChooseDialog):
            return
        options = [("stay", "(s) stay"), ("quit", "(q) quit, and stop it")]
        self.push_screen(
            ChooseDialog(f"Still running: {busy.title}", options),
            lambda value: self.do_quit() if value == "quit" else None,
        )

    # Pictures and tests

    async def settled(self, rounds: int = 3) -> None:
        """Wait until everything asked for has been read and drawn; what is drawn may ask for more, hence the rounds."""
        for _ in range(rounds):
            opening = [each for each in self.workers if each.group == "open"]
            if opening:  # an empty list would mean every worker, and a folder tree has one that never ends
                await self.workers.wait_for_complete(opening)
            for screen in self.browsers:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(screen.session.background.idle(), 30)
            await asyncio.sleep(0.01)


def run(app: Workbench) -> int:
    """Run the app in this terminal, alone in its process; gives its exit code."""
    app.alone = True
    app.run()
    return app.return_code or 0


def take_picture(app: Workbench, target: Path, size: tuple[int, int]) -> None:
    """Run the app without a terminal, wait until it is idle, and write an SVG of its screen.

    Raises why a file or an address that was asked for cannot be shown; then nothing is written.
    """

    async def run() -> None:
        async with app.run_test(size=size) as pilot:
            await pilot.pause()
            await app.settled()
            await pilot.pause()
            for screen in app.browsers:
                screen.session.close()
            if app.refused is not None:
                raise app.refused
            target.write_text(app.export_screenshot(title="qwb"), encoding="utf-8")

    asyncio.run(run())
