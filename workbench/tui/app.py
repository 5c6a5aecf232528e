"""The workbench as an application: themes, images open as tabs, keys, what lasts between runs."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

from textual.app import App
from textual.binding import BindingType

from workbench.tui.commands import BY_ID, bindings
from workbench.tui.keymap import Keymap, load_keymap
from workbench.tui.place import Place, View
from workbench.tui.screens.browser import BrowserScreen
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
        """view, theme: to begin with.  remember: keep places and recent files between runs.  secret: passphrase to try."""
        super().__init__()
        self.images, self.at, self.first_view, self.secret = images, at, view, secret
        self.auto_check, self.remember = auto_check, remember
        self.user_keys = keymap if keymap is not None else load_keymap()
        self.memory = memory if memory is not None else State.load() if remember else State(Path())
        self.browsers: list[BrowserScreen] = []
        for each in OWN_THEMES:
            self.register_theme(each)
        wanted = theme or self.memory.theme
        self.theme = wanted if wanted in self.available_themes else "qwb-dark"

    def on_mount(self) -> None:
        self.set_keymap(self.user_keys.keys)
        for complaint in self.user_keys.complaints:
            self.notify(complaint.replace("[", "\\["), severity="warning")
        for path in self.images:
            self.open_image(path)

    # Images

    def open_image(self, path: str, title: str | None = None) -> None:
        """Open an image as a new tab; what cannot be opened gets a screen that says why."""
        self.opened(load(path), title)

    def opened(self, loaded: Loaded, title: str | None = None) -> None:
        """Show what `load` gave."""
        if loaded.trouble is Trouble.NONE:
            self.add_browser(Session(loaded, title=title))

    def add_browser(self, session: Session) -> None:
        """Put an image in front."""
        session.secret = self.secret
        screen = BrowserScreen(session)
        self.browsers.append(screen)
        self.push_screen(screen)

    def start_place(self, session: Session) -> Place | str | None:
        """Where to begin in an image: the place asked for, or where one was the last time."""
        if self.at is not None:
            at, self.at = self.at, None
            return at
        found = self.memory.places.get(os.path.abspath(session.path))
        return Place.from_json(found["place"]) if found and isinstance(found.get("place"), dict) else None

    def start_view(self) -> View | None:
        """The view asked for, for the first image only."""
        wanted, self.first_view = self.first_view, None
        return View(wanted) if wanted in list(View) else None

    def show_image(self, index: int) -> None:
        """Bring an open image to the front."""

    def update_image_tabs(self, screen: BrowserScreen) -> None:
        """The strip of open images."""
        from workbench.tui.widgets.chrome import ImageTabs

        current = self.browsers.index(screen) if screen in self.browsers else 0
        screen.query_one(ImageTabs).show([each.session.title for each in self.browsers], current)

    # Commands

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

    def do_quit(self) -> None:
        for screen in self.browsers:
            self.memory.remember(os.path.abspath(screen.session.path), screen.leave())
            screen.session.close()
        if self.remember:
            self.memory.save()
        self.exit()

    def do_interrupt(self) -> None:
        self.do_quit()

    # Pictures and tests

    async def settled(self) -> None:
        """Wait until everything asked for has been read and drawn."""
        for _ in range(6):
            for screen in self.browsers:
                await screen.session.background.idle()
            await asyncio.sleep(0.01)


def take_picture(app: Workbench, target: Path, size: tuple[int, int]) -> None:
    """Run the app without a terminal, wait until it is idle, and write an SVG of its screen."""

    async def run() -> None:
        async with app.run_test(size=size) as pilot:
            await pilot.pause()
            await app.settled()
            await pilot.pause()
            target.write_text(app.export_screenshot(title="qwb"), encoding="utf-8")

    asyncio.run(run())
