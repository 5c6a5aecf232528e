"""Nobody waits for the screen at 3 a.m.: keys that come before a screen is drawn, or after it was closed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from sample_images import find_sample
from tests.tui.conftest import Drive, browser, settle
from tests.tui.crawl import own_garbage_only
from tests.tui.mash import Mash
from workbench.tui.screens.browser import BrowserScreen
from workbench.tui.screens.dialogs import ChooseDialog
from workbench.tui.screens.gallery import GalleryScreen
from workbench.tui.screens.help import HelpDialog
from workbench.tui.screens.repair import RepairScreen

Sample = Callable[[str], Path]


@pytest.mark.parametrize("opens", ["r", "u", "E", "g", "slash", "b", "f", "o", "f1", "ctrl+p", "x"])
async def test_what_is_closed_by_the_very_next_key_leaves_no_trace(drive: Drive, sample: Sample, opens: str) -> None:
    async with drive(sample("leaked"), at="l2:0", size=(80, 24)) as (app, pilot):
        screen = browser(app)
        for _ in range(3):
            app.simulate_key(opens)
            app.simulate_key("escape")
        await settle(app, pilot)
        await pilot.press("escape", "escape")
        await settle(app, pilot)
        assert app.screen is screen and screen.place.node == "l2:0"


async def test_keys_that_follow_the_closing_of_the_last_tab_are_harmless(drive: Drive, sample: Sample) -> None:
    async with drive(sample("leaked"), size=(80, 24)) as (app, pilot):
        for key in ("ctrl+w", "tab", "z", "down", "2", "g", "escape"):
            app.simulate_key(key)
        await settle(app, pilot)
        assert isinstance(app.screen, GalleryScreen) and not app.browsers


@pytest.mark.parametrize("name", ["disk-16m", "leaked", "backing-missing", "luks", "data-over-l2"])
async def test_careless_hands_break_nothing(tmp_path: Path, name: str) -> None:
    mash = Mash(find_sample(name), tmp_path, seed=len(name))
    with own_garbage_only():
        assert await mash.run(40) == []
    assert all(isinstance(each, BrowserScreen) for each in mash.app.browsers)


async def test_a_key_pressed_twice_opens_one_repair(drive: Drive, sample: Sample) -> None:
    async with drive(sample("leaked"), size=(80, 24)) as (app, pilot):
        app.simulate_key("r")
        app.simulate_key("r")
        await settle(app, pilot)
        assert isinstance(app.screen, RepairScreen)
        await pilot.press("escape", "escape")
        await settle(app, pilot)
        assert app.screen is browser(app)


async def test_an_answer_waits_for_one_who_is_elsewhere(drive: Drive, sample: Sample) -> None:
    async with drive(sample("plain"), at="l2:0", size=(80, 24)) as (app, pilot):
        app.simulate_key("x")
        app.simulate_key("f1")
        await settle(app, pilot)
        assert isinstance(app.screen, HelpDialog)
        await pilot.press("escape")
        await settle(app, pilot)
        assert isinstance(app.screen, ChooseDialog) and app.screen.heading == "Who refers to this cluster"
