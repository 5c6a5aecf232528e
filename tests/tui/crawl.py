"""A crawler for the workbench: opens an image headless and visits every tree node in its views, timing each step."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from workbench.tui.app import Workbench
from workbench.tui.keymap import Keymap
from workbench.tui.outline import Outline
from workbench.tui.outline_items import Item
from workbench.tui.place import View
from workbench.tui.prepare import default_view, place_of, views_of
from workbench.tui.screens.browser import BrowserScreen
from workbench.tui.screens.dialogs import Dialog
from workbench.tui.screens.problem import ProblemScreen
from workbench.tui.state import State

MAX_NODES = 60
"""Nodes visited of one image; huge tables of damaged images repeat themselves."""
CHEAP = (View.FIELDS, View.HEX, View.ENTRIES)


@dataclass(slots=True)
class Report:
    """What a crawl met. slowest: seconds that one step kept the interface busy."""

    nodes: int = 0
    steps: int = 0
    errors: list[str] = field(default_factory=list)
    slowest: float = 0.0
    slowest_at: str = ""


def items_of(outline: Outline) -> Iterator[Item]:
    """Every item, depth first, up to MAX_NODES."""
    stack, seen = list(reversed(outline.roots())), 0
    while stack and seen < MAX_NODES:
        item = stack.pop()
        seen += 1
        yield item
        if item.branch:
            stack.extend(reversed(outline.children(item)))


class Watch:
    """Looks on the event loop every 10 ms; a long gap means that the interface was frozen."""

    def __init__(self) -> None:
        self.where, self.longest, self.longest_at = "start", 0.0, ""
        self._task = asyncio.create_task(self._run())

    async def _run(self) -> None:
        while True:
            begin, spent = time.perf_counter(), time.process_time()
            await asyncio.sleep(0.01)
            # Waiting for a processor that others use is no freeze of ours.
            gap = min(time.perf_counter() - begin - 0.01, time.process_time() - spent)
            if gap > self.longest:
                self.longest, self.longest_at = gap, self.where

    def stop(self) -> None:
        """No more looking."""
        self._task.cancel()


async def quiet(app: Workbench) -> None:
    """Until nothing is being read; a dialog (passphrase, backing file) is answered with no."""
    end = time.perf_counter() + 20
    while time.perf_counter() < end:
        await asyncio.sleep(0.005)
        if isinstance(app.screen, Dialog):
            app.screen.dismiss(None)
        elif not any(each.session.background.pending for each in app.browsers):
            return
    raise TimeoutError("still reading after 20 s")


@contextlib.contextmanager
def own_garbage_only() -> Iterator[None]:
    """Keep what other tests left in this process out of the collector's looks, which would take a second there."""
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


async def crawl(path: Path, state: Path, *, auto_check: bool = False) -> Report:
    """Open `path` and visit its nodes; the first node in every view, the others in those that show their own bytes."""
    with own_garbage_only():
        return await _crawl(path, state, auto_check)


async def _crawl(path: Path, state: Path, auto_check: bool) -> Report:
    report = Report()
    app = Workbench((str(path),), keymap=Keymap(), memory=State(state), auto_check=auto_check, remember=False)
    async with app.run_test(size=(100, 30)) as pilot:
        await pilot.pause()
        await app.settled()
        if isinstance(app.screen, ProblemScreen):
            loaded = app.screen.loaded
            if loaded.meta is None or not loaded.meta.file_size:
                return report
            app.screen.dismiss(None)
            app.browse(loaded, "image")
            await pilot.pause()
            await app.settled()
        screen = app.front
        assert isinstance(screen, BrowserScreen)
        failures: list[Exception] = []
        screen.failed = failures.append  # type: ignore[method-assign]
        outline = screen.session.outline
        watch = Watch()
        for number, item in enumerate(items_of(outline)):
            report.nodes += 1
            for view in views_of(outline, item):
                if number and view is not default_view(item) and (number > 4 or view not in CHEAP):
                    continue
                watch.where = f"{item.key} in {view.value}"
                screen.select(place_of(item).seen_in(view))
                await quiet(app)
                report.steps += 1
        watch.stop()
        report.slowest, report.slowest_at = watch.longest, watch.longest_at
        report.errors = [
            f"{type(error).__name__}: {error}" for error in failures if type(error).__module__ == "builtins"
        ]
        for each in app.browsers:
            each.session.close()
    return report
