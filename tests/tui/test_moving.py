"""Going to places: the dialog that does not let go of a wrong address, searches, marks, the chain of backing files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from sample_images import sample_path
from tests.tui.conftest import Drive, browser, go, settle
from workbench.engine.image import Image
from workbench.engine.metadata import Metadata, load_metadata
from workbench.errors import ArgumentError
from workbench.storage.file import FileStorage
from workbench.tui.outline import Outline
from workbench.tui.outline_items import Kind
from workbench.tui.place import View
from workbench.tui.screens.dialogs import ChooseDialog, TextDialog
from workbench.tui.screens.help import HelpDialog
from workbench.tui.search import GuestSource, find_bytes, parse_query
from workbench.tui.widgets.structure import StructureTree

Sample = Callable[[str], Path]


def meta_of(name: str) -> Metadata:
    return load_metadata(FileStorage.open(sample_path(name)))


# Go to


async def test_an_address_that_leads_nowhere_leaves_the_dialog_open(drive: Drive, sample: Sample) -> None:
    async with drive(sample("plain")) as (app, pilot):
        await pilot.press("g", *"l2:99")
        await settle(app, pilot)
        await pilot.press("enter")
        await settle(app, pilot)
        assert isinstance(app.screen, TextDialog)
        preview = app.screen.query_one("#preview")
        assert "there is no 99" in str(preview.render()) and preview.has_class("refused")
        await pilot.press("backspace", "backspace", "0")
        await settle(app, pilot)
        assert not preview.has_class("refused")
        await pilot.press("enter")
        await settle(app, pilot)
        assert browser(app).place.node == "l2:0"


async def test_a_number_past_the_file_is_taken_for_a_guest_offset(drive: Drive, sample: Sample) -> None:
    async with drive(sample("wiped-l2"), at="header") as (app, pilot):
        await pilot.press("g", *"5M")
        await settle(app, pilot)
        assert "g:5M" in str(app.screen.query_one("#preview").render())
        await pilot.press("enter")
        await settle(app, pilot)
        place = browser(app).place
        assert (place.view, place.guest) == (View.TRANSLATION, 5 << 20)


async def test_a_number_inside_the_file_is_a_place_in_it_and_the_dialog_names_the_other_meaning(
    drive: Drive, sample: Sample
) -> None:
    async with drive(sample("plain")) as (app, pilot):
        await pilot.press("g", *"0x5010")
        await settle(app, pilot)
        told = str(app.screen.query_one("#preview").render())
        assert "byte 0x5010 of the file" in told and "g:0x5010" in told
        await pilot.press("down", "enter")
        await settle(app, pilot)
        assert browser(app).place.guest == 0x5010


async def test_a_bad_address_at_the_start_leaves_one_at_the_header(drive: Drive, sample: Sample) -> None:
    async with drive(sample("plain"), at="g:0x99999999") as (app, _):
        assert browser(app).place.node == "header" and browser(app).prepared is not None
        assert any("virtual disk ends" in note.message for note in app._notifications)


# Who refers


async def test_a_cluster_with_one_reference_is_said_to_have_no_other(drive: Drive, sample: Sample) -> None:
    async with drive(sample("plain"), at="l2:0.0") as (app, pilot):
        await pilot.press("x")
        await settle(app, pilot)
        assert isinstance(app.screen, ChooseDialog) and "Nobody else refers to it" in app.screen.note


# Search


def test_a_number_is_a_value_where_a_table_is_shown_and_text_elsewhere() -> None:
    assert parse_query("0x5000", table=True).value == 0x5000
    assert parse_query("0x5000").needle == b"0x5000"
    assert parse_query("=7").value == 7
    with pytest.raises(ArgumentError):
        parse_query("=seven", table=True)


def test_the_guests_disk_is_searched_decompressed_and_without_what_is_not_there() -> None:
    with Image.open(sample_path("compressed")) as image:
        source = GuestSource(image)
        first = next(each for each in image.extents() if each.compressed)
        needle = image.read(first.start, 24)
        steps: list[int] = []
        found = find_bytes(source, needle, 0, lambda done, _total: steps.append(done))
        assert found is not None and image.read(found, 24) == needle
        assert needle not in sample_path("compressed").read_bytes()
        assert find_bytes(source, b"\x01 no such bytes \x02", 0, lambda *_: None) is None


async def test_search_in_guest_data_finds_guest_offsets(drive: Drive, sample: Sample) -> None:
    async with drive(sample("plain"), at="g:0") as (app, pilot):
        await pilot.press("5")
        await settle(app, pilot)
        screen = browser(app)
        assert screen.session.image is not None
        target = screen.session.image.read(0x5000, 12)
        await pilot.press("slash")
        await settle(app, pilot)
        assert isinstance(app.screen, TextDialog) and "guest" in app.screen.heading
        app.screen.dismiss("x:" + target.hex())
        await settle(app, pilot)
        assert screen.place.view is View.GUEST_HEX
        found = screen.place.guest
        assert found is not None and screen.session.image.read(found, 12) == target


# Marks


async def test_an_entry_is_marked_whole_and_a_new_mark_takes_the_place_of_the_old(drive: Drive, sample: Sample) -> None:
    async with drive(sample("plain"), at="l2:0.2") as (app, pilot):
        screen = browser(app)
        screen.focus_view()
        await pilot.press("m")
        await settle(app, pilot)
        assert screen.mark_note() == "marked from 0x4010"
        await go(app, pilot, "l2:0.5")
        await pilot.press("m")
        await settle(app, pilot)
        assert screen.session.mark == (0x4010, 0x4030)
        await go(app, pilot, "l2:0.9")
        await pilot.press("m")
        await settle(app, pilot)
        assert screen.session.mark is None and screen.session.mark_from == 0x4048
        await pilot.press("m")
        await settle(app, pilot)
        assert screen.session.mark == (0x4048, 0x4050)
        await pilot.press("m")
        assert screen.session.mark is None and screen.session.mark_from is None


# What is in the tree


def test_feature_bits_are_a_structure_with_their_names() -> None:
    outline = Outline(meta_of("subclusters"))
    item = outline.find("features")
    assert item is not None and (item.offset, item.length, item.note) == (72, 24, "extended_l2")
    node = outline.annotation(item)
    assert node is not None
    assert [child.name for child in node.children] == [
        "incompatible_features",
        "compatible_features",
        "autoclear_features",
    ]
    assert Outline(meta_of("version-2")).find("features") is None
    assert Outline(meta_of("plain")).find("features").note == "none set"  # type: ignore[union-attr]


def test_the_tail_is_what_lies_behind_the_last_used_cluster() -> None:
    plain = Outline(meta_of("plain"))
    tail = plain.find("tail")
    assert tail is not None and tail.kind is Kind.TAIL
    assert tail.end == plain.meta.file_size and tail.length == plain.meta.file_size % 4096
    raw = bytearray(sample_path("plain").read_bytes())
    from workbench.storage.memory import MemoryStorage

    grown = Outline(load_metadata(MemoryStorage(bytes(raw) + bytes(8192))))
    tail = grown.find("tail")
    assert tail is not None and "not counted as used" in tail.note and tail.length > 4096


@pytest.mark.parametrize("offset", [1 << 63, (1 << 64) - 512, 1 << 50])
def test_refcounts_that_lie_nowhere_leave_the_tail_its_plain_note(tmp_path: Path, offset: int) -> None:
    raw = sample_path("plain").read_bytes()
    table = int.from_bytes(raw[48:56], "big")
    for place in (48, table):  # the header's pointer to the table, the table's to its block
        damaged = tmp_path / f"{place}.qcow2"
        damaged.write_bytes(raw[:place] + offset.to_bytes(8, "big") + raw[place + 8 :])
        with FileStorage.open(damaged) as storage:
            tail = Outline(load_metadata(storage)).find("tail")
        assert tail is not None and "part of a cluster" in tail.note


async def test_the_backing_chain_unfolds_in_the_tree_after_asking(drive: Drive, sample: Sample) -> None:
    async with drive(sample("backing-chain"), at="backing-name", size=(120, 40)) as (app, pilot):
        screen = browser(app)
        tree = screen.query_one(StructureTree)
        tree.focus()
        for number, name in ((1, "backing-chain-middle.qcow2"), (2, "backing-chain-base.raw")):
            await pilot.press("right")
            await pilot.pause(0.2)
            await settle(app, pilot)
            assert isinstance(app.screen, ChooseDialog)
            await pilot.press("enter")
            await pilot.pause(0.2)
            await settle(app, pilot)
            await pilot.press("right")
            await settle(app, pilot)
            assert screen.place.node == f"layer:{number}"
            assert screen.prepared is not None and screen.prepared.item.label == name
            assert f"Layer {number}" in screen.prepared.explanation.title
        assert screen.session.outline.parents("layer:2") == ["backing-name", "layer:1"]
        await pilot.press("enter")
        await settle(app, pilot)
        await settle(app, pilot)
        assert app.screen.__class__.__name__ in ("ProblemScreen", "BrowserScreen")
        assert "backing-chain-base.raw" in str(getattr(app.screen, "name_shown", ""))


async def test_the_signs_of_the_tree_are_explained_in_the_help(drive: Drive, sample: Sample) -> None:
    async with drive(sample("wiped-l2")) as (app, pilot):
        await pilot.press("f1")
        await settle(app, pilot)
        assert isinstance(app.screen, HelpDialog)
        await pilot.press(*"leaked")
        await settle(app, pilot)
        prompts = [str(option.prompt) for option in app.screen.query_one("#choices").options]
        assert any("leaked clusters" in prompt for prompt in prompts)
