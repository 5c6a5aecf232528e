"""Every command of the table works by each of its keys and from the palette, and the footer shows only what works."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from textual.pilot import Pilot

from tests.tui.conftest import Drive, browser, go, settle
from workbench.tui.app import Workbench
from workbench.tui.commands import BY_ID, COMMANDS, NAVIGATION, key_name
from workbench.tui.place import View
from workbench.tui.screens.browser import BrowserScreen
from workbench.tui.screens.core import BrowserCore
from workbench.tui.screens.help import HelpDialog, PaletteDialog
from workbench.tui.widgets.chrome import Footer

LAST = {"quit", "interrupt", "close_tab", "open"}


async def to_context(app: Workbench, pilot: Pilot[None], where: tuple[str, ...]) -> None:
    """Bring the browser to where a command works."""
    screen = browser(app)
    if screen.contexts().intersection(where) or not where:
        return
    word = where[0]
    if word == "has-back":
        await go(app, pilot, "l1")
    elif word == "has-forward":
        await go(app, pilot, "l1")
        screen.do_back()
    elif word == "has-search":
        screen._search_done("x:51 46 49 fb")
    elif word == "has-bookmarks":
        screen.do_bookmark()
    elif word == "map":
        screen.to_view(View.GUEST_MAP)
    elif word in ("filterable", "foldable", "view-entries"):
        await go(app, pilot, "l2:0")
    elif word == "hex":
        screen.to_view(View.HEX)
    elif word == "busy":
        screen.session.background.submit(_wait_for_cancel, lambda _result: None, title="waiting", long=True)
    elif word.startswith("view-"):
        await go(app, pilot, "header")
    await settle_unless(app, pilot, word == "busy")
    assert screen.contexts().intersection(where), f"no way to {where}"


def _wait_for_cancel(job: Any) -> None:
    import time

    while True:
        job.step(0, 0)
        time.sleep(0.005)


async def settle_unless(app: Workbench, pilot: Pilot[None], busy: bool) -> None:
    if busy:
        await pilot.pause()
    else:
        await settle(app, pilot)


async def close_dialogs(app: Workbench, pilot: Pilot[None]) -> None:
    """Back to the image in front."""
    for _ in range(4):
        if isinstance(app.screen, BrowserScreen):
            return
        await pilot.press("escape")
        await pilot.pause()
    raise AssertionError(f"{app.screen} does not close")


async def test_every_key_of_every_command_reaches_it(
    drive: Drive, sample: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[str] = []
    original = BrowserCore.action_command

    def record(self: BrowserCore, ident: str) -> None:
        ran.append(ident)
        original(self, ident)

    monkeypatch.setattr(BrowserCore, "action_command", record)
    monkeypatch.chdir(sample("luks").parent)
    async with drive(sample("luks"), sample("bad-l1-size"), size=(100, 30)) as (app, pilot):
        for command in COMMANDS:
            if command.id in LAST:
                continue
            for key in command.keys.split(","):
                want = (
                    0
                    if "encrypted" in command.where
                    else 1
                    if "has-problems" in command.where
                    else app.browsers.index(browser(app))
                )
                app.show_image(want)
                await settle(app, pilot)
                await to_context(app, pilot, command.where)
                if command.id == "follow":
                    screen = await go(app, pilot, "header")
                    screen.focus_view()
                ran.clear()
                await pilot.press(key)
                await settle(app, pilot)
                assert command.id in ran, f"{key} did not reach {command.id}"
                await close_dialogs(app, pilot)


async def test_every_palette_action_runs(
    drive: Drive, sample: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(sample("plain").parent)
    async with drive(sample("plain")) as (app, pilot):
        await go(app, pilot, "l2:0")
        for command in browser(app).available():
            if command.id in LAST | {"palette", "help"}:
                continue
            await pilot.press("ctrl+p")
            await settle(app, pilot)
            assert isinstance(app.screen, PaletteDialog)
            app.screen.dismiss(f"command {command.id}")
            await settle(app, pilot)
            await close_dialogs(app, pilot)
            await settle(app, pilot)


async def test_palette_lists_every_structure_and_goes_there(drive: Drive, sample: Callable[[str], Path]) -> None:
    async with drive(sample("snapshots")) as (app, pilot):
        await pilot.press("ctrl+p")
        await settle(app, pilot)
        await pilot.press(*"snapshot:1", "enter")
        await settle(app, pilot)
        assert browser(app).place.node == "snapshot:1"


async def test_footer_shows_only_commands_that_work_here(drive: Drive, sample: Callable[[str], Path]) -> None:
    async with drive(sample("plain"), size=(200, 40)) as (app, pilot):
        screen = browser(app)
        assert "back" not in screen.query_one(Footer).text
        await go(app, pilot, "l2:0")
        text = screen.query_one(Footer).text
        assert "back" in text and "filter" in text
        assert "passphrase" not in text and "closer" not in text


async def test_help_lists_every_command_with_its_keys_and_filters(drive: Drive, sample: Callable[[str], Path]) -> None:
    async with drive(sample("plain"), size=(100, 40)) as (app, pilot):
        await pilot.press("question_mark")
        await settle(app, pilot)
        assert isinstance(app.screen, HelpDialog)
        listed = {option.id for option in app.screen.query_one("#choices").options}
        assert {command.id for command in COMMANDS} | {f"nav.{nav.id}" for nav in NAVIGATION} <= listed
        await pilot.press(*"who refers")
        await settle(app, pilot)
        listed = {option.id for option in app.screen.query_one("#choices").options if option.id}
        assert listed == {"references"}
        await pilot.press("enter")
        await settle(app, pilot)
        assert app.screen.__class__.__name__ == "ChooseDialog"


async def test_q_quits_and_ctrl_c_asks_only_when_something_runs(drive: Drive, sample: Callable[[str], Path]) -> None:
    async with drive(sample("plain")) as (app, pilot):
        job = browser(app).session.background.submit(_wait_for_cancel, lambda _result: None, title="waiting", long=True)
        await pilot.press("ctrl+c")
        await pilot.pause()
        assert app.is_running and app.screen.__class__.__name__ == "ChooseDialog"
        await pilot.press("escape")
        job.cancel()
        await settle(app, pilot)
        await pilot.press("ctrl+c")
        await pilot.pause()
        assert not app.is_running
    async with drive(sample("plain")) as (app, pilot):
        await pilot.press("q")
        await pilot.pause()
        assert not app.is_running


async def test_keys_can_be_changed(drive: Drive, sample: Callable[[str], Path], tmp_path: Path) -> None:
    from workbench.tui.keymap import load_keymap

    source = tmp_path / "keys.toml"
    source.write_text('[keys]\ngoto = "ctrl+j"\nzoom = ["f9", "Z"]\n"nav.down" = "s"\nnonsense = "x"\n')
    keymap = load_keymap(source)
    assert keymap.of("goto") == "ctrl+j" and keymap.of("zoom") == "f9,Z" and keymap.of("quit") == "q"
    assert len(keymap.complaints) == 1 and "nonsense" in keymap.complaints[0]
    async with drive(sample("plain"), keymap=keymap) as (app, pilot):
        await pilot.press("g")
        await settle(app, pilot)
        assert isinstance(app.screen, BrowserScreen)
        await pilot.press("f9")
        assert browser(app).has_class("zoomed")
        await pilot.press("f9", "s")
        await settle(app, pilot)
        await pilot.press("ctrl+j")
        await settle(app, pilot)
        assert not isinstance(app.screen, BrowserScreen)


def test_no_two_commands_share_a_key() -> None:
    seen: dict[str, str] = {}
    for command in COMMANDS:
        for key in command.keys.split(","):
            assert key not in seen, f"{key}: {seen[key]} and {command.id}"
            seen[key] = command.id
    moves = {key for nav in NAVIGATION for key in nav.keys.split(",")}
    assert not moves & set(seen)


def test_every_command_has_a_method_and_words() -> None:
    for command in COMMANDS:
        assert hasattr(BrowserScreen, f"do_{command.id}") or hasattr(Workbench, f"do_{command.id}"), command.id
        assert command.title and command.label and key_name(command.keys.split(",")[0])
    assert set(BY_ID) == {command.id for command in COMMANDS}
