"""The pure parts under the workbench: history, outline, entries, guest map, search, state, session."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from sample_images import load_manifest, sample_path
from workbench.engine.image import Image
from workbench.engine.metadata import Metadata, load_metadata
from workbench.engine.structures import structures
from workbench.engine.tables import l1_table, l2_table
from workbench.errors import ArgumentError
from workbench.storage.file import FileStorage
from workbench.storage.memory import MemoryStorage
from workbench.tui.entries import EntryRows, parse_filter
from workbench.tui.guestmap import Fill, measure
from workbench.tui.outline import Outline
from workbench.tui.outline_items import Kind
from workbench.tui.place import History, Place, View
from workbench.tui.prepare import find_address, prepare
from workbench.tui.search import find_bytes, parse_query
from workbench.tui.state import RECENT_LIMIT, State
from workbench.tui.widgets.structure import fitting


def meta_of(name: str) -> Metadata:
    return load_metadata(FileStorage.open(sample_path(name)))


def test_history_goes_back_and_forth_and_forgets_the_future() -> None:
    history = History()
    a, b, c = (Place("header", offset, 1) for offset in (1, 2, 3))
    history.leave(a)
    assert history.back(b) == a and history.forward(a) == b
    history.leave(b)
    assert history.back(c) == b and history.back(b) == a and history.back(a) is None
    history.leave(c)
    assert not history.can_forward


def test_a_place_survives_the_state_file_and_nonsense_does_not() -> None:
    place = Place("l2:0", 0x4000, 8, "[0]", View.ENTRIES, 0x1000)
    assert Place.from_json(place.to_json()) == place
    assert Place.from_json({"node": "x"}) is None
    assert Place.from_json({**place.to_json(), "view": "nonsense"}) is None


def test_state_keeps_the_latest_files_and_ignores_garbage(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "state.json"
    state = State(path)
    for number in range(RECENT_LIMIT + 5):
        state.remember(f"/images/{number}")
    state.remember("/images/7", {"place": {}})
    assert state.save()
    again = State.load(path)
    assert again.recent[0] == "/images/7" and len(again.recent) == RECENT_LIMIT and "/images/7" in again.places
    path.write_text("[1, 2")
    assert State.load(path).recent == []


def test_two_workbenches_at_once_keep_each_others_files(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    before = State(path)
    before.remember("/images/old", {"place": "old"})
    assert before.save()
    one, other = State.load(path), State.load(path)
    one.remember("/images/1", {"place": 1})
    one.remember("/images/old", {"place": "new"})
    other.remember("/images/2", {"place": 2})
    assert one.save() and other.save()
    last = State.load(path)
    assert last.recent == ["/images/2", "/images/old", "/images/1"]
    assert last.places == {"/images/old": {"place": "new"}, "/images/1": {"place": 1}, "/images/2": {"place": 2}}


@pytest.mark.parametrize("name", [sample.name for sample in load_manifest() if sample.path.exists()])
def test_every_item_is_found_again_by_its_key_and_its_way_leads_there(name: str) -> None:
    outline = Outline(meta_of(name))
    known = {each.path for each in structures(outline.meta).children()}
    keys = {item.key for item in outline.roots()}
    assert known <= keys, "the tree shows everything that the engine knows"

    def visit(items: list, above: list[str]) -> None:
        for item in items:
            if item.kind is not Kind.GROUP:
                assert outline.find(item.key) == item
                assert outline.parents(item.key) == above
            if item.branch:
                visit(outline.children(item), [*above, item.key])

    visit(outline.roots(), [])


def test_wide_tables_are_put_in_groups() -> None:
    header = bytearray(sample_path("tiny-clusters").read_bytes()[:512])
    count, start = 5000, 0x10000
    header[24:32] = (count * (512 // 8) * 512).to_bytes(8, "big")
    header[36:40] = count.to_bytes(4, "big")
    header[40:48] = start.to_bytes(8, "big")
    content = header.ljust(start, b"\0") + np.full(count, 1 << 63 | 0x200, dtype=">u8").tobytes()
    outline = Outline(load_metadata(MemoryStorage(bytes(content))))
    l1 = outline.find("l1")
    assert l1 is not None
    groups = outline.children(l1)
    assert len(groups) == 2 and all(group.kind is Kind.GROUP for group in groups)
    assert len(outline.children(groups[0])) == 64
    way = outline.parents("l2:4321")
    assert way[0] == "l1" and len(way) == 3
    last = outline.find(way[-1])
    assert last is not None and any(item.key == "l2:4321" for item in outline.children(last))


@pytest.mark.parametrize("name", ["plain", "compressed", "subclusters", "fragmented"])
def test_rows_cover_every_entry_once_folded_or_not(name: str) -> None:
    meta = meta_of(name)
    for table in (l1_table(meta), l2_table(meta, 0, int(meta.l1[0]) & 0x00FFFFFFFFFFFE00)):
        for fold in (True, False):
            rows = EntryRows(meta, table, fold=fold)
            runs = [rows.run(row) for row in range(len(rows))]
            assert runs[0].first == 0 and runs[-1].last == table.entries - 1
            assert all(one.last + 1 == other.first for one, other in pairwise(runs))
            assert fold or all(run.count == 1 for run in runs)
            assert all(rows.row_of(run.first) == row and rows.row_of(run.last) == row for row, run in enumerate(runs))


def test_filters_pick_by_type_and_range() -> None:
    meta = meta_of("plain")
    table = l2_table(meta, 0, int(meta.l1[0]) & 0x00FFFFFFFFFFFE00)

    def picked(text: str) -> list[int]:
        rows = EntryRows(meta, table, fold=False, chosen=parse_filter(text))
        return [rows.run(row).first for row in range(len(rows))]

    assert picked("compressed") == [16, 17, 18, 19]
    assert picked("zero") == [9, 12, 13]
    assert picked("index:4-6") == [4, 5]
    assert picked("guest:20k-24k") == [5]
    assert picked("data host:0x5000-0x7000") == [0, 1]
    assert picked("suspicious") == []
    with pytest.raises(ArgumentError):
        parse_filter("nonsense")
    with pytest.raises(ArgumentError):
        parse_filter("index:x-y")


@pytest.mark.parametrize("name", ["plain", "compressed", "snapshots", "subclusters", "fragmented"])
@pytest.mark.parametrize("cells", [1, 7, 64])
def test_guest_cells_add_up_to_the_map_of_the_image(name: str, cells: int) -> None:
    meta = meta_of(name)
    size = meta.header.size
    per_cell = -(-size // cells)
    found = measure(meta, 0, per_cell, cells, None, lambda _done, _total: None)
    assert found.counts.sum() == size
    with Image.open(sample_path(name)) as image:
        data = sum(extent.length for extent in image.layer_extents() if extent.data and not extent.compressed)
        packed = sum(extent.length for extent in image.layer_extents() if extent.compressed)
    assert found.counts[:, Fill.DATA].sum() == data
    assert found.counts[:, Fill.COMPRESSED].sum() == packed


def test_search_finds_over_window_borders_and_backwards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("workbench.tui.search.WINDOW", 8)
    storage = MemoryStorage(b"..needle......needle.....")

    def look(start: int, backwards: bool = False) -> int | None:
        return find_bytes(storage, b"needle", start, lambda _done, _total: None, backwards=backwards)

    assert look(0) == 2 and look(3) == 14 and look(15) == 2
    assert look(14, True) == 2 and look(2, True) == 14
    assert find_bytes(storage, b"absent", 0, lambda _done, _total: None) is None
    assert (
        parse_query("x:51 46").needle == b"QF"
        and parse_query("QF").needle == b"QF"
        and parse_query("=0x10").value == 16
    )
    for bad in ("", "x:5", "=ten"):
        with pytest.raises(ArgumentError):
            parse_query(bad)


def test_an_address_of_every_kind_is_prepared_with_words() -> None:
    outline = Outline(meta_of("snapshots"))
    here = Place("header", 0, 0)
    for text in (
        "0x0",
        "c:3",
        "g:4k",
        "l1:0",
        "l2:0.1",
        "rt:0",
        "rb:0.1",
        "snapshot:0",
        "snapshot:0/l1:0",
        "header",
        "l1",
        "snapshots",
    ):
        found = prepare(outline, find_address(outline, text, here))
        assert found.explanation.title and found.crumbs and found.views
    for text in ("l2:99", "g:1P", "0x7fffffffffff", "nonsense", "snapshot:9"):
        with pytest.raises(ArgumentError):
            find_address(outline, text, here)


def test_screenshot_is_written_without_a_terminal(tmp_path: Path, make_app: Callable[..., object]) -> None:
    from click.testing import CliRunner

    from workbench.cli.browse import command

    target = tmp_path / "out.svg"
    result = CliRunner().invoke(
        command, [str(sample_path("plain")), "--at", "l2:0", "--size", "80x24", "--screenshot", str(target)]
    )
    assert result.exit_code == 0, result.output
    assert "L2[0]" in target.read_text().replace("&#160;", " ")
    result = CliRunner().invoke(command, [str(sample_path("plain")), "--screenshot", str(target), "--size", "huge"])
    assert result.exit_code == 1 and "no screen size" in result.output


@pytest.mark.parametrize(
    ("note", "room", "said"),
    [
        ("512 entries", 13, "512 entries"),
        ("512 entries", 12, "512"),
        ("from 2 MiB, 1% full", 14, "from 2 MiB"),
        ("5 MiB", 6, ""),
    ],
)
def test_a_note_in_the_tree_is_shortened_by_whole_parts(note: str, room: int, said: str) -> None:
    assert fitting(note, room) == said
