"""The check in the workbench: it starts by itself; findings, badges, host map, refcounts, overlaps, explanations."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from textual.pilot import Pilot

from tests.tui.conftest import Drive, browser, settle
from workbench.check.findings import FindingLog
from workbench.engine.create import CreateOptions, create_file
from workbench.render.findings import FindingRows
from workbench.render.hostmap import HostKind
from workbench.tui.app import Workbench
from workbench.tui.checking import Badges
from workbench.tui.place import View
from workbench.tui.screens.browser import BrowserScreen
from workbench.tui.screens.check_feeding import PATIENCE
from workbench.tui.screens.dialogs import TextDialog
from workbench.tui.widgets.chrome import TitleLine
from workbench.tui.widgets.explain import ExplainPane, content_of
from workbench.tui.widgets.findings import FindingsView
from workbench.tui.widgets.hostmap import HostMapView
from workbench.tui.widgets.overlaps import OverlapsView
from workbench.tui.widgets.refcounts import RefcountsView
from workbench.tui.widgets.structure import StructureTree

Sample = Callable[[str], Path]


async def press(app: Workbench, pilot: Pilot[None], *keys: str) -> BrowserScreen:
    for key in keys:
        await pilot.press(key)
        await settle(app, pilot)
    return browser(app)


async def rest(app: Workbench, pilot: Pilot[None]) -> None:
    """Long enough for what happens when the cursor rests."""
    await asyncio.sleep(PATIENCE + 0.1)
    await settle(app, pilot)


def explained(screen: BrowserScreen) -> str:
    shown = screen.query_one(ExplainPane).shown
    return content_of(shown).plain if shown is not None else ""


def text_of(widget: FindingsView | HostMapView | RefcountsView | OverlapsView) -> str:
    """All lines of a list view as text."""
    return "\n".join(
        "".join(part for part, _ in widget.row_parts(row, widget.inner_width)) for row in range(widget.row_count())
    )


@pytest.mark.parametrize(
    ("sample_name", "verdict"),
    [("plain", "✓ clean"), ("lost-l1-entry", "7 leaks"), ("data-over-l2", "1 corruption, 1 leak")],
)
async def test_the_check_starts_by_itself_and_the_title_says_what_came_of_it(
    drive: Drive, sample: Sample, sample_name: str, verdict: str
) -> None:
    async with drive(sample(sample_name), auto_check=True) as (app, _):
        screen = browser(app)
        assert verdict in screen.query_one(TitleLine).text
        assert ("clean" in screen.query_one(TitleLine).text) == (sample_name == "plain")


async def test_badges_count_findings_in_the_tree(drive: Drive, sample: Sample) -> None:
    async with drive(sample("data-over-l2"), auto_check=True) as (app, _):
        badges = browser(app).query_one(StructureTree).badges
        assert badges.get("file") == "✗3"
        assert badges.get("l2:0") == badges.get("l1") == "!1"
        assert badges.get("refcount-table") == badges.get("refcount-block:0") == "✗2"
        assert badges.get("l1#0-2") == "!1" and badges.get("l2:1") is None and badges.get("header") is None


async def test_without_a_check_the_views_say_so_and_c_starts_it(drive: Drive, sample: Sample) -> None:
    async with drive(sample("leaked")) as (app, pilot):
        for key, view in (("7", HostMapView), ("8", FindingsView), ("9", RefcountsView), ("0", OverlapsView)):
            screen = await press(app, pilot, key)
            widget = screen.current_view()
            assert isinstance(widget, view) and "c starts" in widget.empty_text()
        screen = await press(app, pilot, "8", "c")
        assert "3 leaks" in screen.query_one(TitleLine).text
        assert "Leaked cluster" in text_of(screen.query_one(FindingsView))


async def test_a_running_check_shows_progress_and_can_be_stopped(
    drive: Drive, sample: Sample, monkeypatch: pytest.MonkeyPatch
) -> None:
    from workbench.tui import checking

    def slow(_meta: object, job: object) -> None:
        import time

        for done in range(2000):
            job.step(done, 2000)  # type: ignore[attr-defined]
            time.sleep(0.01)

    monkeypatch.setattr(checking, "run_check", slow)
    async with drive(sample("leaked")) as (app, pilot):
        screen = browser(app)
        screen.check_now()
        await pilot.pause(0.4)
        assert "checking" in screen.query_one(TitleLine).text
        screen.to_view(View.FINDINGS)
        await pilot.pause(0.6)
        assert "being checked" in screen.query_one(FindingsView).empty_text()
        await pilot.press("escape")
        await pilot.pause(0.9)
        assert "check stopped" in screen.verdict()[0]
        assert "c starts it again" in screen.query_one(FindingsView).empty_text()


async def test_findings_lead_with_the_cause_and_enter_goes_to_the_bytes(drive: Drive, sample: Sample) -> None:
    async with drive(sample("lost-l1-entry"), auto_check=True) as (app, pilot):
        screen = await press(app, pilot, "8")
        widget = screen.query_one(FindingsView)
        assert screen.focused is widget
        assert "An L1 entry was lost" in text_of(widget).splitlines()[0]
        assert "Likely cause" in explained(screen) and "guest range 0x200000" in explained(screen)
        while widget.finding is None or widget.finding.code != "CLUSTER-LEAKED":
            await press(app, pilot, "down")
        assert (screen.place.offset, screen.place.length) == (0x12000, 7 * 4096)
        for words in ("Meaning", "How it arises", "For the guest", "Fix (safe)", "Fix (destructive)"):
            assert words in explained(screen)
        await press(app, pilot, "enter")
        assert (screen.place.view, screen.place.offset) == (View.HEX, 0x12000)
        await press(app, pilot, "backspace")
        assert screen.place.view is View.FINDINGS and widget.finding is not None


async def test_groups_fold_with_enter_z_and_arrows(drive: Drive, sample: Sample) -> None:
    async with drive(sample("data-over-l2"), auto_check=True) as (app, pilot):
        screen = await press(app, pilot, "8")
        widget = screen.query_one(FindingsView)
        size = widget.row_count()
        for keys in (("enter",), ("z",), ("left",)):
            await press(app, pilot, *keys)
            assert widget.row_count() < size
            await press(app, pilot, "right")
            assert widget.row_count() == size
        await press(app, pilot, "down", "left")
        assert widget.cursor == 0


async def test_findings_are_filtered_in_a_dialog(drive: Drive, sample: Sample) -> None:
    async with drive(sample("data-over-l2"), auto_check=True) as (app, pilot):
        screen = await press(app, pilot, "8", "f")
        assert isinstance(app.screen, TextDialog)
        await press(app, pilot, *"leak", "enter")
        widget = screen.query_one(FindingsView)
        assert widget.model is not None and widget.model.matching == 1
        assert "Leaked cluster" in text_of(widget) and "reference=2" not in text_of(widget)
        screen.filter_findings("host:nonsense")
        await settle(app, pilot)
        assert widget.model.matching == 1
        screen.filter_findings("")
        await settle(app, pilot)
        assert widget.model is not None and widget.model.matching == 3


async def test_brackets_walk_the_problems_in_any_view(drive: Drive, sample: Sample) -> None:
    async with drive(sample("data-over-l2"), auto_check=True) as (app, pilot):
        screen = await press(app, pilot, "2", "right_square_bracket")
        assert (screen.place.view, screen.place.offset) == (View.HEX, 0x4000)
        assert "DATA-OVERLAPS-METADATA" in explained(screen)
        await press(app, pilot, "right_square_bracket")
        assert screen.place.offset == 0x6000
        await press(app, pilot, "left_square_bracket")
        assert screen.place.offset == 0x4000
        await press(app, pilot, "7", "right_square_bracket")
        assert screen.query_one(HostMapView).at == 6


async def test_a_million_findings_scroll_without_a_stutter(drive: Drive, sample: Sample) -> None:
    import time

    async with drive(sample("plain"), auto_check=True, size=(80, 24)) as (app, pilot):
        screen = await press(app, pilot, "8")
        outcome = screen.outcome
        assert outcome is not None
        log, count = FindingLog(), 1_000_000
        log.add_columns("L2-ENTRY-UNALIGNED", count, offset=np.arange(count, dtype=np.uint64), length=8)
        result = replace(outcome.result, findings=log.freeze())
        rows = FindingRows(result)
        rows.fold(rows.groups[0])
        widget = screen.query_one(FindingsView)
        widget.show(rows)
        began = time.perf_counter()
        for row in range(0, count, count // 50):
            widget.top = row
            for y in range(widget.size.height):
                widget.render_line(y)
        assert (time.perf_counter() - began) / 50 < 0.1
        assert Badges(result).get("file") == "✗1,000k"


async def test_the_host_map_tells_moves_zooms_and_follows(drive: Drive, sample: Sample) -> None:
    async with drive(sample("data-over-l2"), auto_check=True, size=(80, 24)) as (app, pilot):
        screen = await press(app, pilot, "7")
        widget = screen.query_one(HostMapView)
        assert widget.world is not None and widget.cell == 1 and "╳" in text_of(widget)
        await press(app, pilot, "home", "right", "right", "right", "right")
        assert widget.at == 4 and widget.facts is not None and widget.facts.kind is HostKind.OVERLAP
        assert (screen.place.offset, screen.place.length, screen.place.node) == (0x4000, 4096, "l2:0")
        assert "Two owners" in explained(screen)
        await rest(app, pilot)
        assert "L2[0][1], guest 0x1000" in explained(screen) and "L1[0]" in explained(screen)
        await press(app, pilot, "enter")
        assert screen.place.node == "l2:0" and screen.place.view is View.ENTRIES
        await press(app, pilot, "backspace", "end")
        assert widget.at == widget.world.clusters - 1


async def test_zoom_keeps_problems_visible_and_returns(drive: Drive, tmp_path: Path, sample: Sample) -> None:
    async with drive(sample("cross-linked"), auto_check=True, size=(80, 24)) as (app, pilot):
        screen = await press(app, pilot, "7")
        widget = screen.query_one(HostMapView)
        widget.cell = 16
        widget._forget()
        widget.select(0)
        await settle(app, pilot)
        assert "╳" in text_of(widget)
        assert widget.facts is not None and widget.facts.at == 5
        await press(app, pilot, "plus", "plus")
        assert (widget.cell, widget.at) == (1, 5)
        await press(app, pilot, "minus")
        assert widget.cell == 1  # the whole file fits already


async def test_every_part_of_an_8_tib_file_is_within_reach(drive: Drive, tmp_path: Path) -> None:
    path = tmp_path / "huge.qcow2"
    create_file(str(path), CreateOptions(size=8 << 40))
    os.truncate(path, 8 << 40)
    async with drive(path, auto_check=True, size=(80, 24)) as (app, pilot):
        screen = await press(app, pilot, "7")
        widget = screen.query_one(HostMapView)
        assert widget.world is not None and widget.world.clusters == 1 << 27
        await press(app, pilot, "end")
        await pilot.press(*["plus"] * 10)
        await settle(app, pilot)
        assert widget.cell == 1
        await press(app, pilot, "end")
        assert widget.at == widget.world.clusters - 1
        assert screen.place.offset == (8 << 40) - 65536
        await pilot.press(*["minus"] * 10)
        await settle(app, pilot)
        assert widget.cell == widget.whole


async def test_the_mouse_over_a_cell_tells_what_it_is(drive: Drive, sample: Sample) -> None:
    async with drive(sample("leaked"), auto_check=True, size=(100, 30)) as (app, pilot):
        screen = await press(app, pilot, "7")
        widget = screen.query_one(HostMapView)
        await pilot.hover(widget, offset=(15 + 3 * widget.pitch, widget.head_height))
        await settle(app, pilot)
        assert widget.hover is not None and widget.hover.first == 3
        assert "L1 table" in "".join(part for part, _ in widget.head_parts(1, 90))
        await pilot.click(widget, offset=(15 + 3 * widget.pitch, widget.head_height))
        await settle(app, pilot)
        assert widget.at == 3


async def test_refcounts_side_by_side_and_only_mismatches(drive: Drive, sample: Sample) -> None:
    async with drive(sample("data-over-l2"), auto_check=True, size=(130, 40)) as (app, pilot):
        screen = await press(app, pilot, "9")
        widget = screen.query_one(RefcountsView)
        assert widget.row_count() == 33 and "too low" in text_of(widget)
        await press(app, pilot, "f")
        assert widget.row_count() == 2
        await press(app, pilot, "home")
        assert "stored 1, counted 2" in explained(screen)
        await press(app, pilot, "down")
        assert widget.cluster == 6 and screen.place.offset == 0x6000
        await press(app, pilot, "enter")
        assert screen.place.view is View.HEX and screen.place.offset == 0x6000


async def test_an_overlap_shows_both_owners_and_each_is_a_link(drive: Drive, sample: Sample) -> None:
    async with drive(sample("data-over-l2"), auto_check=True) as (app, pilot):
        screen = await press(app, pilot, "0")
        await rest(app, pilot)
        widget = screen.query_one(OverlapsView)
        text = text_of(widget)
        assert "L1[0]" in text and "L2[0][1], guest 0x1000..0x1fff" in text
        await press(app, pilot, "down", "down")
        assert widget.owner is not None and widget.owner.target == "0x4008"
        await press(app, pilot, "enter")
        assert screen.place.offset == 0x4008


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("lost-l1-entry", (60, 20)),
        ("cross-linked", (80, 24)),
        ("snapshots", (250, 80)),
        ("bad-l1-size", (60, 20)),
        ("truncated", (80, 24)),
    ],
)
async def test_all_views_draw_at_every_size(drive: Drive, sample: Sample, name: str, size: tuple[int, int]) -> None:
    async with drive(sample(name), auto_check=True, size=size) as (app, pilot):
        for key in "7890":
            screen = await press(app, pilot, key, "down", "right", "end")
            widget = screen.current_view()
            assert widget is not None
            for y in range(widget.size.height):
                assert widget.render_line(y).cell_length == widget.size.width
