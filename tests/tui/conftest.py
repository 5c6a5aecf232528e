"""Driving the workbench without a terminal: samples copied to a private folder, nothing remembered between tests."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from textual.pilot import Pilot

from sample_images import find_sample
from workbench.tui.app import Workbench
from workbench.tui.keymap import Keymap
from workbench.tui.screens.browser import BrowserScreen
from workbench.tui.state import State

Drive = Callable[..., AbstractAsyncContextManager[tuple[Workbench, Pilot[None]]]]


@pytest.fixture
def sample(tmp_path: Path) -> Callable[[str], Path]:
    """A private copy of a sample with its companions."""

    def get(name: str) -> Path:
        found = find_sample(name)
        for each in found.files:
            if (found.path.parent / each).exists():
                shutil.copy(found.path.parent / each, tmp_path / each)
        return tmp_path / found.file

    return get


@pytest.fixture
def make_app(tmp_path: Path) -> Callable[..., Workbench]:
    """An app with default keys and an empty memory."""

    def make(*images: Path | str, **more: Any) -> Workbench:
        options: dict[str, Any] = {
            "keymap": Keymap(),
            "memory": State(tmp_path / "state.json"),
            "auto_check": False,
            **more,
        }
        return Workbench(tuple(str(each) for each in images), **options)

    return make


@pytest.fixture
def drive(make_app: Callable[..., Workbench]) -> Drive:
    """Run an app headless: `async with drive(path, size=(80, 24)) as (app, pilot)`; settled at the start."""

    @asynccontextmanager
    async def run(
        *images: Path | str, size: tuple[int, int] = (120, 40), **more: Any
    ) -> AsyncIterator[tuple[Workbench, Pilot[None]]]:
        app = make_app(*images, **more)
        async with app.run_test(size=size) as pilot:
            await settle(app, pilot)
            yield app, pilot
            for screen in app.browsers:
                screen.session.close()

    return run


async def settle(app: Workbench, pilot: Pilot[None]) -> None:
    """Until everything asked for has been read and drawn."""
    await pilot.pause()
    await app.settled()
    await pilot.pause()


def browser(app: Workbench) -> BrowserScreen:
    """The image in front."""
    assert app.front is not None
    return app.front


async def go(app: Workbench, pilot: Pilot[None], address: str) -> BrowserScreen:
    """Jump to an address and wait."""
    screen = browser(app)
    screen.jump(address)
    await settle(app, pilot)
    return screen
