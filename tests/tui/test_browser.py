"""What a person does in the browser: look, follow, go, search, mark, come back, open, be told what is wrong."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.tui.conftest import Drive, browser, go, settle
from workbench.tui.place import View
from workbench.tui.screens.dialogs import ChooseDialog, TextDialog
from workbench.tui.screens.gallery import GalleryScreen
from workbench.tui.screens.problem import ProblemScreen
from workbench.tui.state import State
from workbench.tui.widgets.chrome import TitleLine, ViewTabs
from workbench.tui.widgets.explain import ExplainPane
from workbench.tui.widgets.hexview import HexView
from workbench.tui.widgets.structure import StructureTree

Sample = Callable[[str], Path]


async def test_title_tells_name_sizes_version_and_state(drive: Drive, sample: Sample) -> None:
    for name, state in (
        ("plain", "clean"),
        ("dirty", "dirty"),
        ("corrupt", "marked corrupt"),
        ("bad-refcount-table", "damaged refcount table"),
        ("extension-overrun", "damaged header"),
    ):
        async with drive(sample(name)) as (app, _):
            text = browser(app).query_one(TitleLine).text
            assert f"{name}.qcow2" in text and "v3" in text and state in text


async def test_a_field_selected_lights_its_bytes_and_is_explained(drive: Drive, sample: Sample) -> None:
    async with drive(sample("plain")) as (app, pilot):
        screen = browser(app)
        screen.focus_view()
        await pilot.press("down", "down", "down", "down")
        await settle(app, pilot)
        assert (screen.place.offset, screen.place.length, screen.place.path) == (20, 4, "header.cluster_bits")
        shown = screen.query_one(ExplainPane).shown
        assert shown is not None and "4 KiB" in shown.value
        await pilot.press("2")
        await settle(app, pilot)
        hexview = screen.query_one("#view-hex", HexView)
        assert hexview.lit == (20, 24) and hexview.name_at(21) == "cluster_bits"


async def test_enter_follows_pointers_from_header_to_guest_bytes_and_backspace_returns(
    drive: Drive, sample: Sample
) -> None:
    async with drive(sample("plain")) as (app, pilot):
        screen = browser(app)
        screen.focus_view()
        for _ in range(8):
            await pilot.press("down")
        await settle(app, pilot)
        assert screen.place.path == "header.l1_table_offset"
        await pilot.press("enter")
        await settle(app, pilot)
        assert screen.place.node == "l1" and screen.place.view is View.ENTRIES
        await pilot.press("tab", "tab", "enter")
        screen.focus_view()
        await pilot.press("enter")
        await settle(app, pilot)
        assert screen.place.node == "l2:0"
        await pilot.press("down", "up", "enter")
        await settle(app, pilot)
        assert screen.place.view is View.HEX and screen.place.offset == 0x5000
        await pilot.press("backspace")
        await settle(app, pilot)
        assert screen.place.node == "l2:0"
        await pilot.press("alt+right")
        await settle(app, pilot)
        assert screen.place.offset == 0x5000


async def test_guest_offset_to_host_bytes_and_who_refers(drive: Drive, sample: Sample) -> None:
    """The question of a newcomer: which bytes hold this guest offset, and who else refers to that cluster."""
    async with drive(sample("cross-linked"), size=(80, 24)) as (app, pilot):
        await pilot.press("g", *"g:0", "enter")
        await settle(app, pilot)
        screen = browser(app)
        assert screen.place.view is View.TRANSLATION
        assert screen.prepared is not None and "Stored at host offset" in screen.prepared.explanation.value
        await pilot.press("x")
        await settle(app, pilot)
        assert isinstance(app.screen, ChooseDialog)
        assert any("referenced by" in label for _, label in app.screen.options)


@pytest.mark.parametrize(
    ("address", "node", "offset", "view"),
    [
        ("0x200", "unused", 0x200, View.HEX),
        ("4k", "refcount-table", 0x1000, View.HEX),
        ("c:4", "l2:0", 0x4000, View.HEX),
        ("l1:0", "l1", 0x3000, View.ENTRIES),
        ("l2:0.5", "l2:0", 0x4028, View.ENTRIES),
        ("rb:0.2", "refcount-block:0", 0x2004, View.ENTRIES),
        ("header", "header", 0, View.FIELDS),
        ("g:20k", "disk", 0, View.TRANSLATION),
    ],
)  # fmt: skip
async def test_go_to_understands_every_form(
    drive: Drive, sample: Sample, address: str, node: str, offset: int, view: View
) -> None:
    async with drive(sample("plain")) as (app, pilot):
        await pilot.press("ctrl+g", *address, "enter")
        await settle(app, pilot)
        place = browser(app).place
        assert (place.node, place.offset, place.view) == (node, offset, view)


async def test_go_to_previews_completes_and_says_what_is_wrong(drive: Drive, sample: Sample) -> None:
    async with drive(sample("plain")) as (app, pilot):
        await pilot.press("g", *"l2:0.5")
        await settle(app, pilot)
        assert isinstance(app.screen, TextDialog)
        assert "L2[0]" in str(app.screen.query_one("#preview").render())
        app.screen.query_one("#input").value = "refcount-t"
        await settle(app, pilot)
        await pilot.press("tab")
        assert app.screen.query_one("#input").value == "refcount-table"
        app.screen.query_one("#input").value = "l2:99"
        await settle(app, pilot)
        assert "there is no 99" in str(app.screen.query_one("#preview").render())


async def test_search_finds_text_bytes_and_values(drive: Drive, sample: Sample) -> None:
    async with drive(sample("plain")) as (app, pilot):
        screen = browser(app)
        await pilot.press("slash", *"x:5a5a5a", "enter")
        await settle(app, pilot)
        first = screen.place.offset
        assert screen.place.view is View.HEX and sample("plain").read_bytes()[first : first + 3] == b"ZZZ"
        await pilot.press("n")
        await settle(app, pilot)
        assert screen.place.offset == first + 1
        await pilot.press("N")
        await settle(app, pilot)
        assert screen.place.offset == first
        await go(app, pilot, "l2:0")
        screen.focus_view()
        await pilot.press("slash", "ctrl+u", *"=0xc000", "enter")
        await settle(app, pilot)
        assert screen.place.path == "[10]"


async def test_filter_keeps_what_was_asked_for(drive: Drive, sample: Sample) -> None:
    async with drive(sample("unaligned-entry")) as (app, pilot):
        screen = await go(app, pilot, "l2:0")
        view = screen.current_view()
        before = view.row_count()
        await pilot.press("f", *"suspicious", "enter")
        await settle(app, pilot)
        assert view.row_count() == 1 < before
        assert "UNALIGNED" in "".join(text for text, _ in view.row_parts(0, 120))
        await pilot.press("f", "ctrl+u", "enter")
        await settle(app, pilot)
        assert view.row_count() == before


async def test_damaged_nodes_are_marked_and_say_why(drive: Drive, sample: Sample) -> None:
    async with drive(sample("bad-refcount-table")) as (app, pilot):
        screen = browser(app)
        marked = [
            node.data for node in screen.query_one(StructureTree).root.children if node.data and node.data.mark == "bad"
        ]
        assert any(item.key == "refcount-table" and "not cluster aligned" in item.why for item in marked)
        await go(app, pilot, "refcount-table")
        shown = screen.query_one(ExplainPane).shown
        assert shown is not None and any("aligned" in text for _, text in shown.problems)


async def test_marking_a_range_shows_its_length_and_hash(drive: Drive, sample: Sample) -> None:
    import hashlib

    path = sample("plain")
    async with drive(path) as (app, pilot):
        screen = await go(app, pilot, "0x0")
        screen.focus_view()
        await pilot.press("m")
        await go(app, pilot, "0xfff")
        await pilot.press("m")
        await settle(app, pilot)
        assert screen.session.mark == (0, 0x1000)
        assert screen.session.mark_hash == hashlib.sha256(path.read_bytes()[:0x1000]).hexdigest()
        assert "4 KiB" in screen.mark_note()


async def test_copy_gives_offset_value_and_hex(drive: Drive, sample: Sample) -> None:
    async with drive(sample("plain")) as (app, pilot):
        screen = browser(app)
        screen.focus_view()
        await pilot.press("down", "up")
        await settle(app, pilot)
        for key, expected in (("o", "0x0"), ("h", "51 46 49 fb"), ("v", "0x514649fb  QFI\\xfb")):
            await pilot.press("y")
            await settle(app, pilot)
            await pilot.press(key)
            await settle(app, pilot)
            assert app.clipboard == expected


async def test_encrypted_data_asks_for_the_passphrase(drive: Drive, sample: Sample) -> None:
    async with drive(sample("luks"), at="g:0x0") as (app, pilot):
        screen = browser(app)
        await pilot.press("5")
        await settle(app, pilot)
        assert isinstance(app.screen, TextDialog)
        await pilot.press(*"wrong", "enter")
        await settle(app, pilot)
        assert isinstance(app.screen, TextDialog) and "passphrase" in app.screen.note.lower()
        app.screen.dismiss("open sesame")
        await settle(app, pilot)
        await settle(app, pilot)
        assert screen.session.guest_pages is not None
        data = screen.session.guest_pages.peek(0, 8)
        assert data is not None and data == b"00000000"


async def test_backing_files_are_shown_and_asked_for(drive: Drive, sample: Sample) -> None:
    async with drive(sample("backing-chain"), at="g:0x0") as (app, pilot):
        await pilot.press("5")
        await pilot.pause(0.3)
        asked = []
        for _ in range(4):
            if isinstance(app.screen, ChooseDialog):
                asked.append(app.screen.note)
                await pilot.press("enter")
                await pilot.pause(0.3)
        await settle(app, pilot)
        assert len(asked) == 2 and "backing-chain-middle.qcow2" in asked[0]
        session = browser(app).session
        assert session.image is not None and len(session.image.chain) == 3


async def test_a_backing_layer_can_be_entered_as_a_tab(drive: Drive, sample: Sample) -> None:
    async with drive(sample("backing-chain"), at="backing-name") as (app, pilot):
        browser(app).focus_view()
        await pilot.press("enter")
        await pilot.pause(0.2)
        await pilot.press("enter")
        await settle(app, pilot)
        assert [each.session.title for each in app.browsers] == ["backing-chain.qcow2", "backing-chain-middle.qcow2"]
        await pilot.press("ctrl+pageup")
        await settle(app, pilot)
        assert browser(app).session.title == "backing-chain.qcow2"
        await pilot.press("ctrl+w")
        await settle(app, pilot)
        assert len(app.browsers) == 1


async def test_what_cannot_be_browsed_is_explained_and_its_bytes_shown(drive: Drive, tmp_path: Path) -> None:
    raw, empty, short = tmp_path / "disk.raw", tmp_path / "empty", tmp_path / "short.qcow2"
    raw.write_bytes(b"\0" * 510 + b"\x55\xaa" + b"\0" * 4096)
    empty.write_bytes(b"")
    short.write_bytes(b"QFI\xfb\0\0\0\3")
    for path, words in (
        (raw, "not a qcow2"),
        (empty, "is empty"),
        (short, "inside the header"),
        (tmp_path, "directory"),
        (tmp_path / "no", "no such file"),
    ):
        async with drive(path) as (app, pilot):
            assert isinstance(app.screen, ProblemScreen)
            assert words in str(app.screen.query_one("#what").render())
            if path in (raw, short):
                await pilot.press("enter")
                await settle(app, pilot)
                assert browser(app).place.view is View.HEX


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
async def test_a_file_one_may_not_read_says_so(drive: Drive, sample: Sample) -> None:
    path = sample("plain")
    path.chmod(0)
    async with drive(path) as (app, _):
        assert isinstance(app.screen, ProblemScreen) and "may not" in str(app.screen.query_one("#what").render())


async def test_a_file_that_changes_underneath_is_noticed_and_read_again(drive: Drive, sample: Sample) -> None:
    path = sample("plain")
    async with drive(path) as (app, pilot):
        screen = browser(app)
        with open(path, "r+b") as file:
            file.truncate(path.stat().st_size + 4096)
        screen.watch_file()
        await settle(app, pilot)
        assert screen.session.changed_underneath == "The file grew"
        await pilot.press("f5")
        await settle(app, pilot)
        assert screen.session.changed_underneath == "" and screen.session.meta.file_size == path.stat().st_size
        path.unlink()
        screen.watch_file()
        await settle(app, pilot)
        assert "gone" in screen.session.changed_underneath


async def test_place_and_layout_come_back(drive: Drive, sample: Sample, tmp_path: Path) -> None:
    memory = State(tmp_path / "memory.json")
    async with drive(sample("plain"), memory=memory) as (app, pilot):
        await go(app, pilot, "l2:0.5")
        await pilot.press("e")
        await pilot.press("q")
        await pilot.pause()
    async with drive(sample("plain"), memory=State.load(tmp_path / "memory.json")) as (app, _):
        screen = browser(app)
        assert screen.place.node == "l2:0" and screen.place.path == "[5]" and screen.has_class("no-explain")


async def test_gallery_opens_samples_and_files(drive: Drive, sample: Sample) -> None:
    async with drive(size=(80, 24)) as (app, pilot):
        assert isinstance(app.screen, GalleryScreen)
        await pilot.press("enter")
        await settle(app, pilot)
        assert browser(app).session.title == "plain.qcow2"
        await pilot.press("o", "slash", *str(sample("dirty")), "enter")
        await settle(app, pilot)
        assert browser(app).session.title == "dirty.qcow2" and len(app.browsers) == 2


@pytest.mark.parametrize("size", [(60, 20), (80, 24), (250, 80)])
async def test_every_view_draws_at_every_size(drive: Drive, sample: Sample, size: tuple[int, int]) -> None:
    async with drive(sample("subclusters"), size=size) as (app, pilot):
        screen = await go(app, pilot, "l2:0.1")
        for view in screen.prepared.views if screen.prepared else ():
            await go(app, pilot, "l2:0.1")
            screen.to_view(view)
            await settle(app, pilot)
            assert screen.place.view is view and screen.query_one(ViewTabs).text
            screen.focus_view()
            await pilot.press("f10", "pagedown", "f10")
            await settle(app, pilot)
        await pilot.resize_terminal(60, 20)
        await pilot.resize_terminal(130, 50)
        await settle(app, pilot)


async def test_every_byte_of_an_8_tib_file_can_be_reached_at_once(drive: Drive, tmp_path: Path, sample: Sample) -> None:
    path = tmp_path / "huge.qcow2"
    path.write_bytes(sample("plain").read_bytes())
    try:
        os.truncate(path, 8 << 40)
        with open(path, "r+b") as file:
            file.seek((8 << 40) - 1)
            file.write(b"\x7e")
    except OSError:
        pytest.skip("this file system has no files of 8 TiB")
    async with drive(path) as (app, pilot):
        screen = await go(app, pilot, "file")
        screen.focus_view()
        await pilot.press("end")
        await settle(app, pilot)
        view = screen.current_view()
        assert isinstance(view, HexView) and view.at == (8 << 40) - 1
        assert "7e" in "".join(text for text, _ in view.row_parts(view.cursor, 100))
        await pilot.press("up", "pageup", "home", "end")
        await settle(app, pilot)
        assert screen.place.offset == (8 << 40) - 1


async def test_clicks_select_and_follow(drive: Drive, sample: Sample) -> None:
    async with drive(sample("plain")) as (app, pilot):
        screen = browser(app)
        await pilot.click("#view-fields", offset=(5, 3))
        await settle(app, pilot)
        assert screen.place.path == "header.backing_file_offset"
        await pilot.click(ViewTabs, offset=(12, 0))
        await settle(app, pilot)
        assert screen.place.view is View.HEX
        await pilot.click("#view-hex", offset=(14, 2))
        await settle(app, pilot)
        assert screen.place.offset != 8
