"""The repair flow by keys: five of them mend a leaked image; every step says what it does; undo gives every byte back."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from shutil import which
from typing import Any

import pytest
from textual.pilot import Pilot
from textual.widgets import Input, Static

from tests.tui.conftest import Drive, browser, go, settle
from workbench.engine.create import CreateOptions, create_file
from workbench.engine.metadata import load_metadata
from workbench.repair import undo
from workbench.repair.apply import Phase, Progress
from workbench.repair.casefile import CaseFile, State
from workbench.repair.cases import case_path
from workbench.repair.session import Guide
from workbench.tui.app import Workbench
from workbench.tui.place import View
from workbench.tui.screens.browser import BrowserScreen
from workbench.tui.screens.dialogs import ChooseDialog
from workbench.tui.screens.repair import RepairScreen
from workbench.tui.screens.repair_hand import EditScreen
from workbench.tui.screens.repair_history import HistoryScreen
from workbench.tui.screens.repair_steps import At
from workbench.tui.screens.repair_texts import write_text
from workbench.tui.widgets.editdiff import EditDiffView
from workbench.tui.widgets.hostmap import HostMapView

Sample = Callable[[str], Path]
SIZES = [(80, 24), (120, 40)]


async def keys(app: Workbench, pilot: Pilot[None], *pressed: str) -> None:
    """Press keys, waiting for all that each one starts."""
    for key in pressed:
        await pilot.press(key)
        for _ in range(2):
            await settle(app, pilot)


def shown(app: Workbench) -> str:
    """The screen as text."""
    lines = app.screen._compositor.render_strips()
    return "\n".join("".join(segment.text for segment in line) for line in lines)


def flat(app: Workbench) -> str:
    """The screen's words, however they are wrapped."""
    return " ".join(shown(app).split())


def at(app: Workbench) -> At:
    assert isinstance(app.screen, RepairScreen)
    return app.screen.at


def qemu_clean(path: Path) -> bool:
    found = which("qemu-img")
    if found is None:
        return True
    return subprocess.run([found, "check", "-q", str(path)], capture_output=True, check=False).returncode == 0


# The two stories -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", SIZES)
async def test_five_keys_mend_a_leaked_image_and_undo_gives_every_byte_back(
    drive: Drive, sample: Sample, size: tuple[int, int]
) -> None:
    path = sample("leaked")
    before = path.read_bytes()
    async with drive(path, size=size, auto_check=True) as (app, pilot):
        await keys(app, pilot, "r", "enter", "enter", "enter")
        assert at(app) is At.DONE
        assert "the image is clean" in flat(app)
        await keys(app, pilot, "enter")
        assert isinstance(app.screen, BrowserScreen)
        assert browser(app).verdict()[1] == "good"
        assert qemu_clean(path)
        after = path.read_bytes()
        assert after != before
        await keys(app, pilot, "u")
        assert isinstance(app.screen, HistoryScreen)
        assert "takes session 1 back" in flat(app)
        await keys(app, pilot, "u")
        assert "Everything has been taken back" in flat(app)
        await keys(app, pilot, "escape")
        assert "leak" in browser(app).verdict()[0]
    assert path.read_bytes() == before


async def test_a_lost_l1_entry_is_found_and_linked_again(drive: Drive, sample: Sample) -> None:
    path = sample("lost-l1-entry")
    before = path.read_bytes()
    async with drive(path, size=(80, 24), auto_check=True) as (app, pilot):
        await keys(app, pilot, "r")
        assert "L1 entry beyond the end" in flat(app) or "past the end" in flat(app)
        await keys(app, pilot, "enter")
        diff = app.screen.query_one(EditDiffView).text
        assert "0x10000000000 → 0x12000" in diff
        assert "0x200000..0x3fffff" in diff
        await keys(app, pilot, "enter", "y")
        assert at(app) is At.DONE
        await keys(app, pilot, "enter")
        assert qemu_clean(path)
    changed = [index for index, (old, new) in enumerate(zip(before, path.read_bytes(), strict=True)) if old != new]
    assert changed
    assert min(changed) >= 0x3008
    assert max(changed) < 0x3010
    undo.undo(path)
    assert path.read_bytes() == before


# Choosing ------------------------------------------------------------------------------------------------------------


async def test_nothing_is_written_before_the_last_step(drive: Drive, sample: Sample) -> None:
    path = sample("leaked")
    before, when = path.read_bytes(), path.stat().st_mtime_ns
    async with drive(path, auto_check=True) as (app, pilot):
        await keys(app, pilot, "r", "enter", "m", "m", "enter")
        assert at(app) is At.CONFIRM
        await keys(app, pilot, "escape", "escape", "escape")
        assert isinstance(app.screen, BrowserScreen)
    assert path.read_bytes() == before
    assert path.stat().st_mtime_ns == when
    assert not case_path(path).exists()


async def test_ways_are_compared_side_by_side_and_space_takes_one(drive: Drive, sample: Sample) -> None:
    path = sample("entry-past-eof")
    async with drive(path, size=(80, 24), auto_check=True) as (app, pilot):
        await keys(app, pilot, "r", "down", "down", "down")
        assert "( ) Mark as zeros" in flat(app)
        assert "Then: the guest reads zeros there" in flat(app)
        await keys(app, pilot, "space")
        assert "(•) Mark as zeros" in flat(app)
        await keys(app, pilot, "enter")
        assert at(app) is At.PLAN
        screen = app.screen
        assert isinstance(screen, RepairScreen)
        assert screen.flow.plan is not None
        assert dict(screen.flow.plan.policy.choices)["entries"] == "zero"


async def test_a_finding_is_repaired_alone_when_r_is_pressed_on_it(drive: Drive, sample: Sample) -> None:
    path = sample("entry-past-eof")
    async with drive(path, auto_check=True) as (app, pilot):
        screen = browser(app)
        screen.to_view(View.FINDINGS)
        await settle(app, pilot)
        view: Any = screen.current_view()
        row = next(n for n in range(len(view.model)) if view.model.line(n).finding is not None)
        view.move_to(row)
        await settle(app, pilot)
        code = view.finding.code
        await keys(app, pilot, "r")
        assert isinstance(app.screen, RepairScreen)
        assert [each.code for each in app.screen.flow.decisions if each.on] == [code]
        await keys(app, pilot, "a")
        assert all(each.on for each in app.screen.flow.decisions if each.fixable and not each.request)


async def test_a_clean_image_has_nothing_to_repair(drive: Drive, sample: Sample) -> None:
    async with drive(sample("plain"), size=(80, 24), auto_check=True) as (app, pilot):
        await keys(app, pilot, "r")
        assert "There is nothing to repair" in flat(app)
        await keys(app, pilot, "enter")
        assert isinstance(app.screen, BrowserScreen)


async def test_what_may_be_guest_data_stays_and_can_be_copied_out(drive: Drive, sample: Sample, tmp_path: Path) -> None:
    path = sample("wiped-l2")
    async with drive(path, size=(80, 24), auto_check=True) as (app, pilot):
        await keys(app, pilot, "r", "enter")
        assert "Nothing would be changed" in flat(app)
        assert "Kept on purpose" in flat(app)
        await keys(app, pilot, "x")
        app.screen.query_one("#input", Input).value = str(tmp_path / "out")
        await keys(app, pilot, "enter")
        assert "copied out" in flat(app)
        assert (tmp_path / "out" / "orphans.json").exists()
        await keys(app, pilot, "escape", "enter")
        assert isinstance(app.screen, BrowserScreen)


async def test_what_drops_data_wants_a_word_typed(drive: Drive, sample: Sample) -> None:
    path = sample("half-leaked")
    before = path.read_bytes()
    async with drive(path, size=(80, 24), auto_check=True) as (app, pilot):
        await keys(app, pilot, "r")
        while "Free them" not in str(getattr((app.screen.query_one("#choices").current or (0, None))[1], "title", "")):  # type: ignore[attr-defined]
            await keys(app, pilot, "down")
        await keys(app, pilot, "space", "enter", "enter")
        assert at(app) is At.CONFIRM
        assert "type the word destroy" in flat(app)
        assert app.screen.query_one("#word").region.bottom <= 23
        await keys(app, pilot, "enter")
        assert path.read_bytes() == before
        await pilot.press(*"destroy")
        await keys(app, pilot, "enter")
        assert at(app) is At.DONE
    assert path.read_bytes() != before
    undo.undo(path)
    assert path.read_bytes() == before


async def test_the_last_question_names_the_images_that_stand_on_this_one(drive: Drive, sample: Sample) -> None:
    path = sample("leaked")
    names = [f"over-{number}\x1b[2J.qcow2" for number in range(4)]
    for name in names:
        create_file(
            str(path.with_name(name)), CreateOptions(size=1 << 20, backing_file=path.name, backing_format="qcow2")
        )
    async with drive(path, size=(80, 24), auto_check=True) as (app, pilot):
        await keys(app, pilot, "r", "enter", "enter")
        assert at(app) is At.CONFIRM
        text = str(app.screen.query_one("#confirm-text", Static).render())
        assert "is the backing file of over-0\\x1b[2J.qcow2, over-1" in text
        assert "and 1 more: what a repair changes in the disk shows through there" in text
        assert "\x1b" not in text
    for name in names:
        path.with_name(name).unlink()
    async with drive(path, size=(80, 24), auto_check=True) as (app, pilot):
        await keys(app, pilot, "r", "enter", "enter")
        assert at(app) is At.CONFIRM
        assert "backing file of" not in str(app.screen.query_one("#confirm-text", Static).render())


@pytest.mark.parametrize("phase", Phase)
def test_each_phase_of_the_writing_is_explained(phase: Phase) -> None:
    assert len(write_text(Progress(phase, 1, 2)).splitlines()[2]) > 20


# Looking -------------------------------------------------------------------------------------------------------------


async def test_the_maps_show_before_and_after(drive: Drive, sample: Sample) -> None:
    async with drive(sample("leaked"), size=(120, 40), auto_check=True) as (app, pilot):
        await keys(app, pilot, "r", "enter", "m")
        one, two = (app.screen.query_one(f"#map-{word}", HostMapView) for word in ("before", "after"))
        assert one.world is not None
        assert two.world is not None
        assert one.at == two.at == 33
        assert one.facts is not None
        assert "leaked" in one.facts.words
        assert two.facts is not None
        assert "free" in two.facts.words


async def test_one_looks_around_in_the_repaired_image_before_it_is_written(drive: Drive, sample: Sample) -> None:
    path = sample("lost-l1-entry")
    before = path.read_bytes()
    async with drive(path, auto_check=True) as (app, pilot):
        await keys(app, pilot, "r", "enter", "v")
        tab = browser(app)
        assert len(app.browsers) == 2
        assert tab.session.title.endswith("SIMULATED")
        assert tab.verdict()[1] == "good"
        await go(app, pilot, "l1:1")
        assert tab.prepared is not None
        assert "0x12000" in tab.prepared.explanation.value
        await go(app, pilot, "g:0x200000")
        tab.to_view(View.GUEST_HEX)
        await settle(app, pilot)
        assert tab.session.guest_pages is not None
        for key in ("E", "u", "f5"):
            await keys(app, pilot, key)
            assert app.screen is tab
        await keys(app, pilot, "r")
        assert at(app) is At.PLAN
        await keys(app, pilot, "enter", "enter", "enter")
        assert len(app.browsers) == 1
        assert browser(app).verdict()[1] == "good"
    undo.undo(path)
    assert path.read_bytes() == before


async def test_a_repaired_copy_leaves_the_original_alone(drive: Drive, sample: Sample, tmp_path: Path) -> None:
    path = sample("leaked")
    before = path.read_bytes()
    async with drive(path, auto_check=True) as (app, pilot):
        await keys(app, pilot, "r", "enter", "t", "enter")
        assert "was not touched" in flat(app)
    assert path.read_bytes() == before
    assert qemu_clean(tmp_path / "leaked.repaired.qcow2")


# By hand -------------------------------------------------------------------------------------------------------------


async def test_a_flag_flipped_by_hand_goes_through_plan_simulation_word_and_undo(drive: Drive, sample: Sample) -> None:
    path = sample("plain")
    before = path.read_bytes()
    async with drive(path, size=(80, 24), auto_check=True) as (app, pilot):
        await go(app, pilot, "l1:0")
        await keys(app, pilot, "E")
        assert isinstance(app.screen, EditScreen)
        await keys(app, pilot, "tab", "end", "space", "tab", "enter")
        assert at(app) is At.PLAN
        assert "WORSE" in flat(app)
        assert "copied 1 → 0" in flat(app)
        await keys(app, pilot, "enter")
        assert "leaves the image WORSE" in flat(app)
        await pilot.press(*"destroy")
        await keys(app, pilot, "enter")
        assert at(app) is At.DONE
        await keys(app, pilot, "u")
        assert "by hand: L1[0]" in flat(app)
        await keys(app, pilot, "u")
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("address", "view", "typed", "offset", "wanted"),
    [
        ("header", View.FIELDS, "0x7", None, None),
        ("rb:0.3", View.ENTRIES, "2", 0x2006, b"\0\2"),
        ("l2:0.1", View.ENTRIES, "0", 0x4008, bytes(8)),
        ("0x5000", View.HEX, "de ad", 0x5000, b"\xde\xad"),
    ],
)
async def test_values_typed_by_hand_are_written_where_they_belong(
    drive: Drive, sample: Sample, address: str, view: View, typed: str, offset: int | None, wanted: bytes | None
) -> None:
    path = sample("plain")
    before = path.read_bytes()
    async with drive(path, auto_check=True) as (app, pilot):
        screen = await go(app, pilot, address)
        screen.to_view(view)
        await settle(app, pilot)
        await keys(app, pilot, "E")
        if offset is None:  # a whole structure is no single field
            assert app.screen is screen
            return
        assert isinstance(app.screen, EditScreen)
        app.screen.query_one("#value", Input).value = "zzz"
        await keys(app, pilot, "enter")
        assert isinstance(app.screen, EditScreen)
        app.screen.query_one("#value", Input).value = typed
        await keys(app, pilot, "enter", "enter")
        if app.screen.query_one("#word").display:
            await pilot.press(*"destroy")
        await keys(app, pilot, "enter")
        assert at(app) is At.DONE
    assert wanted is not None
    assert path.read_bytes() == before[:offset] + wanted + before[offset + len(wanted) :]
    undo.undo(path)
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("name", "address", "typed", "fields"),
    [
        ("refcount-1", "rb:0.3", 0, {}),
        ("refcount-64", "rb:0.1", 7, {}),
        ("subclusters", "l2:0.1", 5 << 64 | 0xF, {"subclusters allocated": 0xF, "reserved_low": 5}),
    ],
)
def test_entries_of_every_width_are_set_without_touching_their_neighbours(
    sample: Sample, name: str, address: str, typed: int, fields: dict[str, int]
) -> None:
    from workbench.tui.outline import Outline
    from workbench.tui.place import Place
    from workbench.tui.prepare import find_address, prepare
    from workbench.tui.screens.repair_hand import parse_value, target_of

    with Guide(sample(name)) as guide:
        outline = Outline(load_metadata(guide.storage))
        place = find_address(outline, address, Place("file", 0, 0))
        target = target_of(outline, prepare(outline, place), place)
    data = parse_value(target, hex(typed))
    assert len(data) == len(target.data)
    keep = ~(((1 << target.bits) - 1) << target.shift)
    assert (int.from_bytes(data, "big") ^ int.from_bytes(target.data, "big")) & keep == 0
    assert int.from_bytes(data, "big") >> target.shift & (1 << target.bits) - 1 == typed
    for field in target.fields:
        if field.name in fields:
            assert field.get(typed) == fields[field.name]
    with pytest.raises(ValueError, match="does not fit"):
        parse_value(target, hex(1 << target.bits))


# What stands in the way ----------------------------------------------------------------------------------------------


HOLDER = """
import sys, time
from workbench.storage.file import FileStorage
from workbench.storage.locks import LockMode, acquire
storage = FileStorage.open(sys.argv[1], writable=True)
lock = acquire(storage, LockMode.WRITE)
print("held", flush=True)
sys.stdin.read()
"""


@contextmanager
def held(path: Path) -> Iterator[int]:
    """The image open for writing in another process, as a running machine has it."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline().strip() == "held"
        try:
            yield process.pid
        finally:
            process.communicate("")


async def test_an_image_in_use_is_refused_and_the_holder_named(drive: Drive, sample: Sample) -> None:
    path = sample("leaked")
    before = path.read_bytes()
    with held(path) as number:
        async with drive(path, size=(80, 24), auto_check=True) as (app, pilot):
            await keys(app, pilot, "r")
            assert at(app) is At.TROUBLE
            assert "Refused: the image is in use" in flat(app)
            assert f"(process {number}) has this image open" in flat(app)
            await keys(app, pilot, "enter")
            assert isinstance(app.screen, BrowserScreen)
    assert path.read_bytes() == before


async def test_an_image_taken_while_the_plan_is_read_is_not_written(drive: Drive, sample: Sample) -> None:
    path = sample("leaked")
    before = path.read_bytes()
    async with drive(path, auto_check=True) as (app, pilot):
        await keys(app, pilot, "r", "enter", "enter")
        with held(path):
            await keys(app, pilot, "enter")
            assert at(app) is At.TROUBLE
            assert "in use" in flat(app)
    assert path.read_bytes() == before


async def test_an_image_changed_since_the_plan_is_not_written(drive: Drive, sample: Sample) -> None:
    path = sample("leaked")
    async with drive(path, auto_check=True) as (app, pilot):
        await keys(app, pilot, "r", "enter", "enter")
        data = bytearray(path.read_bytes())
        data[0x2045] ^= 1
        path.write_bytes(data)
        await keys(app, pilot, "enter")
        assert at(app) is At.TROUBLE
        assert "has changed since the plan was made" in flat(app)
    assert path.read_bytes() == data


async def test_undo_refuses_an_image_changed_since_until_a_word_is_typed(drive: Drive, sample: Sample) -> None:
    path = sample("leaked")
    before = path.read_bytes()
    with Guide(path) as guide:
        guide.look()
        guide.plan()
        guide.apply()
    data = bytearray(path.read_bytes())
    data[0x2043] ^= 1
    path.write_bytes(data)
    async with drive(path, size=(80, 24), auto_check=True) as (app, pilot):
        await keys(app, pilot, "u", "u")
        assert "was written to after that repair" in flat(app)
        assert path.read_bytes() == data
        await pilot.press(*"overwrite")
        await keys(app, pilot, "enter")
        assert "Everything has been taken back" in flat(app)
    restored = path.read_bytes()
    assert restored[0x2044:0x2048] == before[0x2044:0x2048]


class Stop(BaseException):
    """Where the power went."""


def cut_off(path: Path) -> bytes:
    """A repair that is cut off in the middle of writing; gives the original bytes."""
    before = path.read_bytes()
    moved = CaseFile.move

    def stop(self: CaseFile, session: int, state: State, **more: Any) -> None:
        moved(self, session, state, **more)
        if state is State.WRITING:
            data = bytearray(path.read_bytes())
            data[0x2044:0x2046] = b"\0\0"
            raise Stop

    with Guide(path) as guide, pytest.MonkeyPatch.context() as patch:
        patch.setattr(CaseFile, "move", stop)
        guide.look()
        guide.plan()
        with pytest.raises(Stop):
            guide.apply()
    return before


@pytest.mark.parametrize(("key", "clean"), [("b", False), ("c", True)])
async def test_a_repair_cut_off_is_offered_at_open_and_rolled_back_or_completed(
    drive: Drive, sample: Sample, key: str, clean: bool
) -> None:
    path = sample("leaked")
    before = cut_off(path)
    async with drive(path, size=(80, 24), auto_check=True) as (app, pilot):
        assert isinstance(app.screen, ChooseDialog)
        assert "A repair of this image was interrupted" in flat(app)
        await keys(app, pilot, key)
        assert isinstance(app.screen, BrowserScreen)
        assert (browser(app).verdict()[1] == "good") is clean
    assert (path.read_bytes() == before) is not clean


async def test_a_repair_cut_off_can_be_looked_at_first(drive: Drive, sample: Sample) -> None:
    path = sample("leaked")
    before = cut_off(path)
    async with drive(path, size=(80, 24), auto_check=True) as (app, pilot):
        await keys(app, pilot, "l")
        assert isinstance(app.screen, BrowserScreen)
        await keys(app, pilot, "u")
        assert "INTERRUPTED while writing" in flat(app)
        await keys(app, pilot, "r")
        assert "Everything has been taken back" in flat(app)
    assert path.read_bytes() == before


async def test_a_file_without_its_magic_is_repaired_from_the_problem_screen(drive: Drive, sample: Sample) -> None:
    path = sample("leaked")
    data = bytearray(path.read_bytes())
    data[0:4] = bytes(4)
    path.write_bytes(data)
    async with drive(path, size=(80, 24), auto_check=True) as (app, pilot):
        assert "see whether it can be repaired" in flat(app)
        await keys(app, pilot, "down", "enter", "enter")
        assert "restore the magic number" in flat(app)
        await keys(app, pilot, "enter", "enter", "enter")
        assert browser(app).session.meta.is_qcow2
        assert browser(app).verdict()[1] == "good"
    undo.undo(path)
    assert path.read_bytes() == data


# Cancelling and staying quick ----------------------------------------------------------------------------------------


async def test_escape_stops_the_planning(drive: Drive, sample: Sample, monkeypatch: pytest.MonkeyPatch) -> None:
    import time

    path = sample("leaked")
    async with drive(path, auto_check=True) as (app, pilot):

        def slow(self: Guide, *, on_phase: Any, cancel: Any) -> None:
            while True:
                on_phase("trying fixes")
                time.sleep(0.005)

        monkeypatch.setattr(Guide, "plan", slow)
        await keys(app, pilot, "r")
        await pilot.press("enter")
        await pilot.pause(0.3)
        assert at(app) is At.BUSY
        assert "Trying fixes" in flat(app)
        await keys(app, pilot, "escape")
        assert at(app) is At.CHOOSE
        await keys(app, pilot, "escape")
        assert isinstance(app.screen, BrowserScreen)


@pytest.mark.parametrize(
    "name",
    [
        "bad-l1-size",
        "snapshot-table-wiped",
        "cross-linked",
        "data-over-refcounts",
        "bitmap-in-use",
        "unaligned-entry",
        "luks-length",
    ],
)
async def test_other_samples_go_through_the_flow_and_back(drive: Drive, sample: Sample, name: str) -> None:
    path = sample(name)
    before = path.read_bytes()
    async with drive(path, size=(80, 24), auto_check=True) as (app, pilot):
        await keys(app, pilot, "r", "enter")
        if isinstance(app.screen, RepairScreen) and app.screen.flow.plan is not None and not app.screen.flow.plan.empty:
            assert not app.screen.flow.drops
            await keys(app, pilot, "m", "m", "down", "down", "enter", "enter")
            assert at(app) is At.DONE
            assert str(app.screen.query_one("#done-text", Static).render())
            await keys(app, pilot, "u", "u", "escape")
        assert path.read_bytes() == before
