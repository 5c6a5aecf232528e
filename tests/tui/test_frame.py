"""The frame around the views: what the title says, what the footer offers, how the panes share the screen."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from sample_images.qemu import find_qemu_io
from tests.tui.conftest import Drive, browser, go, settle
from workbench.tui.place import View
from workbench.tui.screens.problem import ProblemScreen
from workbench.tui.session import change_between
from workbench.tui.widgets.chrome import Footer, TitleLine, ViewTabs
from workbench.tui.widgets.explain import ExplainPane
from workbench.tui.widgets.rows import Rows

Sample = Callable[[str], Path]


def title(app: object) -> str:
    return browser(app).query_one(TitleLine).text  # type: ignore[arg-type]


@pytest.mark.parametrize("width", [80, 120])
async def test_the_title_keeps_sizes_and_version_beside_the_verdict(drive: Drive, sample: Sample, width: int) -> None:
    for name, verdict in (
        ("plain", "✓ clean"),
        ("wiped-l2", "! 6 leaks ("),
        ("unaligned-entry", "✗ 2 corruptions"),
    ):
        async with drive(sample(name), size=(width, 24), auto_check=True) as (app, _):
            assert verdict in title(app) and "KiB file · v3" in title(app), title(app)


async def test_leaks_that_may_be_data_are_said_so_on_every_width(drive: Drive, sample: Sample) -> None:
    for width, words in ((80, "(data?)"), (120, "(may be guest data)")):
        async with drive(sample("wiped-l2"), size=(width, 24), auto_check=True) as (app, _):
            assert words in title(app)


async def test_the_title_tells_of_encryption_and_of_the_part_that_is_damaged(drive: Drive, sample: Sample) -> None:
    for name, words in (
        ("luks", "· LUKS"),
        ("aes", "· AES"),
        ("bad-refcount-table", "damaged refcount table"),
        ("snapshot-table-astray", "damaged snapshot table"),
    ):
        async with drive(sample(name)) as (app, _):
            assert words in title(app)


async def test_a_damaged_image_seen_for_the_first_time_shows_its_findings(drive: Drive, sample: Sample) -> None:
    async with drive(sample("wiped-l2"), auto_check=True) as (app, pilot):
        await pilot.pause(0.2)
        await settle(app, pilot)
        assert browser(app).place.view is View.FINDINGS
        await pilot.press("backspace")
        await settle(app, pilot)
        assert browser(app).place.node == "header"
    async with drive(sample("plain"), auto_check=True) as (app, _):
        assert browser(app).place.view is View.FIELDS
    async with drive(sample("wiped-l2"), auto_check=True, at="l1") as (app, _):
        assert browser(app).place.node == "l1" and browser(app).place.view is View.ENTRIES


async def test_the_tabs_stay_where_they_are_and_mute_what_is_not_there(drive: Drive, sample: Sample) -> None:
    async with drive(sample("plain"), size=(80, 24)) as (app, pilot):
        tabs = browser(app).query_one(ViewTabs)
        before = tabs.text
        assert before == "1 Fields 2 Hex 3 Entries 4 Map 5 Data 6 Path 7 Host 8 Findings 9 Refs 0 Overlap "
        assert len(before) <= 80
        muted = {value for _, style, value in tabs._lines[0] if style == "dim"}
        assert muted == {""}  # the header is no table: 3 is shown, and does nothing
        await go(app, pilot, "l1")
        assert tabs.text == before
        assert not [style for _, style, _ in tabs._lines[0] if style == "dim"]


async def test_the_footer_offers_what_leads_somewhere(drive: Drive, sample: Sample) -> None:
    async with drive(sample("plain"), size=(200, 40)) as (app, pilot):
        screen = browser(app)
        footer = screen.query_one(Footer)
        screen.focus_view()
        await pilot.press("down")
        await settle(app, pilot)
        assert "follow" not in footer.text  # the version is no pointer
        for _ in range(8):
            await pilot.press("down")
        await settle(app, pilot)
        assert screen.place.path == "header.refcount_table_offset" and "follow" in footer.text
        assert "repair" not in footer.text and "undo" not in footer.text and "quit" in footer.text
        await pilot.press("4")
        await settle(app, pilot)
        assert "closer" not in footer.text and "wider" not in footer.text  # 64 clusters are shown one by one


async def test_what_the_footer_leaves_out_is_answered_all_the_same(drive: Drive, sample: Sample) -> None:
    async with drive(sample("entry-past-eof"), at="l2:0.0") as (app, pilot):
        screen = browser(app)
        screen.focus_view()
        await pilot.press("enter")
        await settle(app, pilot)
        assert screen.place.path == "[0]"
        assert any("past the end of the file" in note.message for note in app._notifications)


async def test_a_short_table_leaves_its_rows_to_the_explanation(drive: Drive, sample: Sample) -> None:
    async with drive(sample("snapshots"), size=(120, 40)) as (app, pilot):
        screen = await go(app, pilot, "l1")
        explain = screen.query_one(ExplainPane)
        short = explain.size.height
        await go(app, pilot, "refcount-block:0")
        screen.focus_view()
        await pilot.press("z")
        await settle(app, pilot)
        assert explain.size.height < short
        assert isinstance(screen.current_view(), Rows) and screen.current_view().size.height > 15


async def test_a_zoomed_pane_takes_the_whole_screen_and_the_footer_says_how_to_leave(
    drive: Drive, sample: Sample
) -> None:
    async with drive(sample("plain"), size=(120, 40)) as (app, pilot):
        screen = browser(app)
        screen.query_one(ExplainPane).focus()
        await pilot.press("f10")
        await settle(app, pilot)
        assert screen.query_one(ExplainPane).size.height > 30
        assert screen.query_one(Footer).text.startswith(" F10 all panes")
        await pilot.press("f10")
        await settle(app, pilot)
        assert screen.query_one(ExplainPane).size.height < 30


async def test_on_the_narrowest_terminals_a_view_key_shows_the_view(drive: Drive, sample: Sample) -> None:
    async with drive(sample("plain"), size=(60, 20)) as (app, pilot):
        screen = browser(app)
        assert screen.has_class("in-tree")
        await pilot.press("4")
        await settle(app, pilot)
        assert screen.place.view is View.GUEST_MAP and screen.current_view() is screen.focused


async def test_walking_the_tree_shows_each_structure_in_its_own_view(drive: Drive, sample: Sample) -> None:
    async with drive(sample("plain")) as (app, pilot):
        screen = browser(app)
        await pilot.press("home", "down")
        await settle(app, pilot)
        assert (screen.place.node, screen.place.view) == ("header", View.FIELDS)  # the file before it was in hex
        await pilot.press("2", "down")
        await settle(app, pilot)
        assert (screen.place.node, screen.place.view) == ("features", View.HEX)  # hex was asked for


@pytest.mark.oracle
@pytest.mark.skipif(find_qemu_io() is None, reason="qemu-io is not installed")
async def test_an_image_that_a_vm_uses_says_so(drive: Drive, sample: Sample) -> None:
    path = sample("plain")
    tool = find_qemu_io()
    assert tool is not None
    with subprocess.Popen([tool, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as guest:
        assert guest.stdin is not None and guest.stdout is not None
        guest.stdin.write("read 0 512\n")
        guest.stdin.flush()
        guest.stdout.readline()  # it has the image open, and locked
        async with drive(path) as (app, pilot):
            assert "in use by another process" in title(app)
            guest.stdin.write("quit\n")
            guest.stdin.flush()
            guest.wait(10)
            await pilot.press("f5")
            await settle(app, pilot)
            assert "in use" not in title(app)


async def test_a_file_one_may_not_read_says_so(drive: Drive, sample: Sample, tmp_path: Path) -> None:
    path = sample("plain")
    path.chmod(0)
    as_root = os.geteuid() == 0
    if as_root:  # root may read everything: be nobody for a while
        for folder in (tmp_path, *tmp_path.parents):
            if str(folder).startswith("/tmp/") and folder.owner() == "root":
                folder.chmod(folder.stat().st_mode | 0o055)
        os.setresuid(65534, 65534, 0)
    try:
        async with drive(path) as (app, _):
            assert isinstance(app.screen, ProblemScreen)
            assert "may not" in str(app.screen.query_one("#what").render())
    finally:
        if as_root:
            os.setresuid(0, 0, 0)


async def test_a_file_replaced_by_another_is_noticed_although_it_has_the_same_size(
    drive: Drive, sample: Sample, tmp_path: Path
) -> None:
    path = sample("plain")
    async with drive(path) as (app, pilot):
        stamp = path.stat()
        shutil.copy(path, tmp_path / "other")
        os.utime(tmp_path / "other", ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
        os.replace(tmp_path / "other", path)
        browser(app).watch_file()
        await settle(app, pilot)
        assert browser(app).session.changed_underneath == "Another file has taken its name"
        assert "changed since it was read" in title(app)


@pytest.mark.parametrize(
    ("was", "now", "words"),
    [
        ((10, 1, 7), (10, 1, 7), ""),
        ((10, 1, 7), (20, 2, 7), "The file grew"),
        ((10, 1, 7), (5, 2, 7), "The file shrank"),
        ((10, 1, 7), (10, 2, 7), "The file changed"),
        ((10, 1, 7), (10, 1, 8), "Another file has taken its name"),
        ((10, 1, 7), (0, 0, 0), "The file is gone"),
    ],
)
def test_changes_of_a_file_in_words(was: tuple[int, int, int], now: tuple[int, int, int], words: str) -> None:
    assert change_between(was, now) == words
