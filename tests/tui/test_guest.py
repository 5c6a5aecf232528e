"""What the guest sees: data with its source, files asked about, translations through the chain."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from workbench.tui.paths import complete_path
from workbench.tui.place import View
from workbench.tui.screens.dialogs import ChooseDialog, TextDialog
from workbench.tui.widgets.hexview import HexView
from workbench.tui.widgets.lines import LinesView

from .conftest import Drive, browser, go, settle

Sample = Callable[[str], Path]


async def _asked(pilot, app) -> ChooseDialog:  # type: ignore[no-untyped-def]
    await settle(app, pilot)
    assert isinstance(app.screen, ChooseDialog)
    return app.screen


def _lines(screen) -> str:  # type: ignore[no-untyped-def]
    view = screen.current_view()
    assert isinstance(view, LinesView)
    return "\n".join("".join(text for text, _ in view.row_parts(row, 80)) for row in range(view.row_count()))


async def test_external_data_is_named_with_the_byte_under_the_cursor(drive: Drive, sample: Sample) -> None:
    async with drive(sample("data-file"), at="g:0x3010") as (app, pilot):
        await pilot.press("5")
        dialog = await _asked(pilot, app)
        assert "data-file-data.raw" in dialog.note and "512 KiB" in dialog.note
        await pilot.press("o")
        await settle(app, pilot)
        screen = browser(app)
        await pilot.press("right")
        await settle(app, pilot)
        assert screen.guest_note(0x3011) == "external data: byte 0x3011 of data-file-data.raw"


async def test_bytes_of_each_kind_say_where_they_are(drive: Drive, sample: Sample) -> None:
    async with drive(sample("plain"), at="g:0x3010", view="guest_hex") as (app, pilot):
        screen = browser(app)
        notes = {}
        for at in range(0, 0x40000, 0x1000):
            screen.guest_note(at + 0x10)
            await settle(app, pilot)
            notes[at] = screen.guest_note(at + 0x10)
        assert notes[0x3000] == "data: byte 0x8010 of this image"
        kinds = {note.split(" ")[0].rstrip(":,") for note in notes.values()}
        assert {"data", "zeros", "compressed", "not"} <= kinds
        packed = next(note for note in notes.values() if note.startswith("compressed"))
        assert "in bytes 0x" in packed and packed.endswith("of this image")


async def test_leaving_the_question_is_no_answer_and_refusing_is_one(drive: Drive, sample: Sample) -> None:
    async with drive(sample("backing-chain"), at="g:0x3010") as (app, pilot):
        screen = browser(app)
        await pilot.press("5")
        await _asked(pilot, app)
        await pilot.press("escape")
        await settle(app, pilot)
        view = screen.current_view()
        assert isinstance(view, HexView) and view.row_count() == 0
        assert "Enter asks again" in view.empty_text() and not screen.session.allowed
        await pilot.press("enter")
        await _asked(pilot, app)
        await pilot.press("n")
        await settle(app, pilot)
        screen.guest_note(0x3010)
        await settle(app, pilot)
        assert "backing-chain-middle.qcow2 would say, and is not open" in screen.guest_note(0x3010)
        await pilot.press("f5")
        await _asked(pilot, app)


async def test_a_missing_backing_file_is_said_to_be_missing_and_another_may_be_chosen(
    drive: Drive, sample: Sample, tmp_path: Path
) -> None:
    (tmp_path / "found.raw").write_bytes(b"here it is" + bytes(1 << 20))
    async with drive(sample("backing-missing"), at="g:0") as (app, pilot):
        screen = browser(app)
        await pilot.press("5")
        dialog = await _asked(pilot, app)
        assert "no such file" in dialog.note and str(tmp_path / "nowhere.raw") in dialog.note
        assert "yes" not in dict(dialog.options)
        await pilot.press("c")
        await settle(app, pilot)
        assert isinstance(app.screen, TextDialog)
        await pilot.press("escape")
        await _asked(pilot, app)
        await pilot.press("c")
        await settle(app, pilot)
        await pilot.press("f", "o", "tab")
        await settle(app, pilot)
        await pilot.press("enter")
        await settle(app, pilot)
        assert screen.session.image is not None
        assert screen.session.image.chain[1].path == str(tmp_path / "found.raw")


async def test_encrypted_data_waits_and_says_for_what(drive: Drive, sample: Sample) -> None:
    async with drive(sample("luks"), at="g:0") as (app, pilot):
        await pilot.press("5")
        await settle(app, pilot)
        await pilot.press("escape")
        await settle(app, pilot)
        view = browser(app).current_view()
        assert isinstance(view, HexView) and "Enter asks for the passphrase" in view.empty_text()
        await pilot.press("enter")
        await settle(app, pilot)
        assert isinstance(app.screen, TextDialog) and app.screen.password


async def test_old_aes_does_not_pretend_to_know_the_passphrase(drive: Drive, sample: Sample) -> None:
    async with drive(sample("aes"), at="g:0x1000", view="guest_hex", secret=b"wrong") as (app, pilot):
        screen = browser(app)
        screen.guest_note(0x1000)
        await settle(app, pilot)
        note = screen.guest_note(0x1000)
        assert note.startswith("data: byte 0x") and "takes any passphrase" in note


async def test_translation_goes_on_through_the_chain(drive: Drive, sample: Sample, tmp_path: Path) -> None:
    async with drive(sample("backing-chain"), at="g:0x3010") as (app, pilot):
        await pilot.press("6")
        await settle(app, pilot)
        screen = browser(app)
        assert "In the backing file" not in _lines(screen)
        await pilot.press("end", "enter")
        for _ in range(2):
            await _asked(pilot, app)
            await pilot.press("o")
            await settle(app, pilot)
        text = _lines(screen)
        assert "In the backing file backing-chain-middle.qcow2:" in text
        assert "stored at offset 0x3010 of backing-chain-base.raw" in text
        view = screen.current_view()
        assert isinstance(view, LinesView)
        row = next(
            row for row in range(view.row_count()) if (view._lines[row].target or "").startswith("in-file l2:0.3 ")
        )
        view.move_to(row)
        await pilot.press("enter")
        await settle(app, pilot)
        assert browser(app).session.title == "backing-chain-middle.qcow2"
        assert (browser(app).place.node, browser(app).place.path) == ("l2:0", "[3]")


async def test_every_step_leads_somewhere_and_the_arrows_go_from_link_to_link(drive: Drive, sample: Sample) -> None:
    for name, at in (("plain", "g:0x3010"), ("compressed", "g:0x10"), ("subclusters", "g:0x3010"), ("luks", "g:0x10")):
        async with drive(sample(name), at=at, view="translation") as (app, pilot):
            screen = browser(app)
            view = screen.current_view()
            assert isinstance(view, LinesView)
            steps = [line for line in view._source if line.text[:1].isdigit()]
            assert steps and all(line.target for line in steps)
            for line in steps:
                screen.jump(line.target)
                await settle(app, pilot)
                assert len(app._notifications) == 0, line
            await go(app, pilot, at)
            view = screen.current_view()
            assert isinstance(view, LinesView)
            seen = set()
            for _ in range(60):
                if view.current is not None and view.current.target:
                    seen.add(view.current.target)
                await pilot.press("down")
            assert {line.target for line in view._source if line.target} <= seen


async def test_view_keys_of_the_whole_image_take_the_keys_along(drive: Drive, sample: Sample) -> None:
    async with drive(sample("plain")) as (app, pilot):
        screen = browser(app)
        screen.query_one("#tree").focus()
        for key in ("1", "2"):
            await pilot.press(key)
            await settle(app, pilot)
            assert screen.focused_tree()
        await pilot.press("4")
        await settle(app, pilot)
        assert screen.place.view is View.GUEST_MAP and screen.focused is screen.current_view()


def test_paths_complete_with_folders_first_and_say_what_they_are(tmp_path: Path) -> None:
    (tmp_path / "disks").mkdir()
    (tmp_path / "disk.qcow2").write_bytes(bytes(2048))
    (tmp_path / ".hidden").write_bytes(b"")
    told, found = complete_path("", str(tmp_path))
    assert told == "" and [value for value, _ in found] == ["disks/", "disk.qcow2"]
    told, found = complete_path("disk.", str(tmp_path))
    assert told.startswith("?") and found == [("disk.qcow2", "disk.qcow2  2 KiB")]
    assert complete_path("disk.qcow2", str(tmp_path))[0].startswith("2 KiB file")
    assert complete_path("disks", str(tmp_path))[0].startswith("? a folder")
    assert [value for value, _ in complete_path(".h", str(tmp_path))[1]] == [".hidden"]
    assert complete_path("no/such/place", str(tmp_path)) == ("? no such file", [])
