"""Careless hands for the workbench: seeded keys, typing, clicks and new sizes, faster than anything can be drawn."""

from __future__ import annotations

import asyncio
import contextlib
import random
import shutil
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final
from unittest.mock import patch

from textual.pilot import OutOfBounds, Pilot

from sample_images import Sample
from workbench.tui.app import Workbench
from workbench.tui.commands import COMMANDS, NAVIGATION
from workbench.tui.keymap import Keymap
from workbench.tui.screens.core import BrowserCore
from workbench.tui.screens.repair_flow import Flow
from workbench.tui.screens.repair_writing import RepairWriting
from workbench.tui.state import State

KEYS: Final = tuple(
    key for each in (*COMMANDS, *NAVIGATION) for key in each.keys.split(",") if key and each.id != "screenshot"
)
COMMON: Final = ("tab", "enter", "escape", "up", "down", "left", "right", "pageup", "pagedown", "backspace", "space")
TEXTS: Final = (
    "g:5M", "0x0", "c:3", "l2:0.1", "header", "zz", "12M", "ff 00", "a", "*", "-1", "g:", "é", "9" * 20, "rb:0",
)  # fmt: skip
NAMES: Final = {" ": "space", ":": "colon", ".": "full_stop", "/": "slash", "-": "minus", "*": "asterisk"}


@contextlib.contextmanager
def fenced(folder: Path) -> Iterator[None]:
    """Whatever is typed as a name to write to, the file lands in `folder`."""

    def inside(write: Callable[[Any, str], Any]) -> Callable[[Any, str], Any]:
        return lambda self, target: write(self, str(folder / Path(target).name))

    with (
        contextlib.chdir(folder),
        patch.object(Flow, "copy", inside(Flow.copy)),
        patch.object(Flow, "copy_orphans", inside(Flow.copy_orphans)),
    ):
        yield


@contextlib.contextmanager
def swallowed() -> Iterator[list[str]]:
    """Tracebacks of errors that the workbench would only have told in words, but never foresaw."""
    found: list[str] = []

    def listening(tell: Callable[[Any, Exception], None]) -> Callable[[Any, Exception], None]:
        def told(self: Any, error: Exception) -> None:
            if type(error).__module__ == "builtins":
                found.append("".join(traceback.format_exception(error)))
            tell(self, error)

        return told

    with (
        patch.object(BrowserCore, "failed", listening(BrowserCore.failed)),
        patch.object(RepairWriting, "trouble", listening(RepairWriting.trouble)),
    ):
        yield found


class Mash:
    """One run over a private copy of a sample in `folder`. log: what was done, in order."""

    def __init__(self, sample: Sample, folder: Path, seed: int) -> None:
        self.random = random.Random(seed)
        self.log: list[str] = []
        self.folder = folder
        for each in sample.files:
            if (sample.path.parent / each).exists():
                shutil.copy(sample.path.parent / each, folder / each)
        self.app = Workbench(
            (str(folder / sample.file),),
            keymap=Keymap(),
            memory=State(folder / "state.json"),
            auto_check=self.random.random() < 0.7,
        )
        self.app.do_quit = lambda: self.app.notify("Not yet.")  # type: ignore[method-assign]

    async def run(self, steps: int) -> list[str]:
        """Gives what was swallowed; raises what the workbench dies of."""
        app = self.app
        with fenced(self.folder), swallowed() as found:
            async with app.run_test(size=self._size()) as pilot:
                await pilot.pause()
                await app.settled()
                for _ in range(steps):
                    await self._step(pilot)
                    if self.random.random() < 0.4:
                        await asyncio.wait_for(app.settled(1), 40)
                for screen in app.browsers:
                    screen.session.close()
        app.practice.close()
        return found

    def _size(self) -> tuple[int, int]:
        return self.random.randint(60, 250), self.random.randint(20, 80)

    async def _step(self, pilot: Pilot[None]) -> None:
        what, app = self.random.random(), self.app
        if what < 0.7:
            self.log.append(self.random.choice(KEYS + COMMON * 3))
            await pilot.press(self.log[-1])
        elif what < 0.86:  # without waiting for anything between two keys
            word = self.random.choice(TEXTS)
            self.log.append(f"types {word!r}")
            for letter in word:
                app.simulate_key(NAMES.get(letter, letter))
        elif what < 0.95:
            at = self.random.randrange(app.size.width), self.random.randrange(app.size.height)
            self.log.append(f"clicks {at}")
            with contextlib.suppress(OutOfBounds):
                await pilot.click(offset=at, times=self.random.choice((1, 1, 2)))
        else:
            size = self._size()
            self.log.append(f"size {size}")
            await pilot.resize_terminal(*size)
