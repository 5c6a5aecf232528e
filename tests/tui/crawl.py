"""A crawler for the workbench: opens an image headless and visits every tree node in its views, timing each step."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from workbench.tui.app import Workbench
from workbench.tui.keymap import Keymap
from workbench.tui.outline import Item, Outline
from workbench.tui.place import View
from workbench.tui.prepare import default_view, place_of, views_of
from workbench.tui.screens.browser import BrowserScreen
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


async def crawl(path: Path, state: Path, *, auto_check: bool = False) -> Report:
    """Open `path` and visit its nodes; the first node in every view, the others in those that show their own bytes."""
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
        for number, item in enumerate(items_of(outline)):
            report.nodes += 1
            for view in views_of(outline, item):
                if number and view is not default_view(item) and (number > 4 or view not in CHEAP):
                    continue
                begin = time.perf_counter()
                screen.select(place_of(item).seen_in(view))
                await app.settled(1)
                taken = time.perf_counter() - begin
                report.steps += 1
                if taken > report.slowest:
                    report.slowest, report.slowest_at = taken, f"{item.key} in {view.value}"
                while len(app.screen_stack) > 2:  # a dialog asks for a passphrase or a backing file
                    app.screen.dismiss(None)
                    await pilot.pause()
        report.errors = [f"{type(error).__name__}: {error}" for error in failures if type(error).__module__ == "builtins"]
        for each in app.browsers:
            each.session.close()
    return report
