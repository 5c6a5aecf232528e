"""Tables as rows: columns that fit, runs with their refcounts, subclusters as a picture, an entry picked out of its run."""

from __future__ import annotations

from pathlib import Path

import pytest

from formats.qcow2.tables import COPIED
from sample_images import sample_path
from tests.tui.conftest import Drive, go, settle
from workbench.check.run import check
from workbench.engine.metadata import Metadata, load_metadata
from workbench.engine.tables import Run, Table, bitmap_table, l1_table, l2_table, refcount_block
from workbench.render.entries import Sort, covered, covers, meaning, run_words
from workbench.storage.file import FileStorage
from workbench.tui.entries import EntryRows, parse_filter
from workbench.tui.outline import Outline
from workbench.tui.outline_items import Kind
from workbench.tui.place import Place, View
from workbench.tui.prepare import crossing, find_address, guest_side, prepare
from workbench.tui.widgets.entries import Column, EntriesView, Width, layout


def meta_of(name: str) -> Metadata:
    return load_metadata(FileStorage.open(sample_path(name)))


def l2_of(meta: Metadata, index: int = 0) -> Table:
    return l2_table(meta, index, int(meta.l1[index]) & ((1 << 56) - 1) & ~0x1FF)


def shown(meta: Metadata, table: Table, width: int, row: int, **more: object) -> str:
    view = EntriesView()
    view.model = EntryRows(meta, table, **more)  # type: ignore[arg-type]
    view.refcount = lambda _offset, clusters: f"r{clusters}"
    text = "".join(part for part, _ in view.row_parts(row, width))
    assert len(text) <= width + 1, text
    return text


def test_columns_by_importance_each_at_its_least_before_any_at_its_best() -> None:
    widths = {
        Column.INDEX: Width(12, 8),
        Column.SORT: Width(12, 12),
        Column.RANGE: Width(20, 9),
        Column.RAW: Width(17, 17),
    }
    assert layout(widths, 30) == {Column.INDEX: 8, Column.SORT: 12, Column.RANGE: 9}
    assert layout(widths, 41) == {Column.INDEX: 8, Column.SORT: 12, Column.RANGE: 20}
    assert list(layout(widths, 80)) == [Column.INDEX, Column.RAW, Column.SORT, Column.RANGE]


@pytest.mark.parametrize("width", [30, 51, 83, 140])
def test_a_row_says_type_place_range_refcount_and_flags(width: int) -> None:
    meta = meta_of("plain")
    text = shown(meta, l2_of(meta), width, 0)
    assert "[0..3]" in text and "data" in text
    if width >= 51:
        assert "0x5000" in text and "0x0" in text and "r4" in text and "copied" in text
    if width >= 83:
        assert "0x5000..0x8fff" in text and "0x0..0x3fff" in text
    assert ("8000000000005000" in text) is (width >= 140)


def test_ranges_end_where_the_disk_ends() -> None:
    meta = meta_of("plain")
    table = l2_of(meta)
    last = len(EntryRows(meta, table)) - 1
    assert "0x1a000..0x3ffff" in shown(meta, table, 120, last)
    beyond = EntryRows(meta, table, fold=False)
    assert beyond.run(100).first == 100
    assert "past the disk" in shown(meta, table, 120, 100, fold=False)


def test_what_is_wrong_with_an_entry_takes_the_place_of_its_last_columns() -> None:
    meta = meta_of("entry-past-eof")
    text = shown(meta, l2_of(meta), 83, 0)
    assert text.startswith("✗ [0]") and text.rstrip().endswith("PAST EOF") and "0x0..0xfff" in text


def test_subclusters_are_a_picture() -> None:
    meta = meta_of("subclusters")
    rows = EntryRows(meta, l2_of(meta))
    half = next(row for row in range(len(rows)) if rows.run(row).first == 5)
    assert "■" * 16 + "·" * 16 in shown(meta, l2_of(meta), 51, half)
    packed = next(row for row in range(len(rows)) if rows.run(row).first == 16)
    assert "compressed" in shown(meta, l2_of(meta), 51, packed)


def test_a_subcluster_that_is_data_and_zero_at_once_is_marked() -> None:
    meta = meta_of("subclusters-contradict")
    rows = EntryRows(meta, l2_of(meta))
    texts = [shown(meta, l2_of(meta), 83, row) for row in range(len(rows))]
    assert any("✗" in text[10:] and "INVALID" in text for text in texts)


def test_refcounts_are_numbers() -> None:
    meta = meta_of("snapshots")
    table = refcount_block(meta, 0, int(meta.refcount_table[0]))
    texts = [shown(meta, table, 83, row) for row in range(len(EntryRows(meta, table)))]
    assert any(" 12 " in text and "in use" in text for text in texts)


def test_the_entries_of_a_bitmap_table_describe_guest_ranges() -> None:
    meta = meta_of("bitmaps")
    table = bitmap_table(meta, 0)
    start, length = covered(meta, table, Run(0, 1, (0,)))
    bitmap = meta.bitmap_directory.bitmaps[0]
    assert meta.geometry is not None
    assert (start, length) == (0, meta.geometry.cluster_size * 8 << bitmap.granularity_bits)
    assert covers(meta, table, Run(0, 1, (0,))).startswith("guest 0x0..")


def test_an_entry_in_a_run_can_have_a_row_of_its_own() -> None:
    meta = meta_of("plain")
    rows = EntryRows(meta, l2_of(meta), pin=2)
    assert [(rows.run(row).first, rows.run(row).count) for row in range(3)] == [(0, 2), (2, 1), (3, 1)]
    assert rows.run(0).step and rows.shows(2) and not EntryRows(meta, l2_of(meta)).shows(2)


def test_a_filter_says_how_many_entries_pass() -> None:
    meta = meta_of("plain")
    rows = EntryRows(meta, l2_of(meta), chosen=parse_filter("data"))
    assert (rows.kept, rows.total) == (10, 512)
    view = EntriesView()
    view.model = rows
    assert view.head_height == 2
    assert "10 of 512 entries: data" in "".join(part for part, _ in view.head_parts(0, 80))


def test_meanings_and_words_agree() -> None:
    meta = meta_of("plain")
    table = l2_of(meta)
    for run in table.runs(meta, fold=True):
        found, words = meaning(meta, table, run), run_words(meta, table, run)
        assert words.startswith({Sort.ZERO_ALLOCATED: "zero, allocated"}.get(found.sort, found.sort.value))
        assert (f"{found.host:#x}" in words) if found.host is not None else "0x" not in words
        assert ("copied" in words) is bool(run.words[0] & COPIED and found.sort is not Sort.COMPRESSED)


# Groups


async def test_a_group_is_a_slice_of_its_table(drive: Drive, tmp_path: Path) -> None:
    path = tmp_path / "many.qcow2"
    _create(path, "1G", 4096)
    async with drive(path) as (app, pilot):
        screen = await go(app, pilot, "l1")
        outline = screen.session.outline
        l1 = outline.find("l1")
        assert l1 is not None
        groups = outline.children(l1)
        assert [each.kind for each in groups] == [Kind.GROUP] * 8
        second = outline.find("l1#64-128")
        assert second == groups[1] and second.label == "L2[64…127]"
        assert (second.offset, second.length) == (l1.offset + 64 * 8, 64 * 8)
        assert outline.parents("l1#64-128") == ["l1"]
        screen = await go(app, pilot, "l1#64-128")
        assert [label for label, _ in screen.prepared.crumbs] == ["L1 table", "L2[64…127]"]
        view = screen.current_view()
        assert isinstance(view, EntriesView) and view.current is not None and view.current.first == 64
        screen.focus_view()
        await pilot.press("down")
        await settle(app, pilot)
        assert (screen.place.node, screen.place.path) == ("l1", "[65]")


def _create(path: Path, size: str, cluster: int) -> None:
    from click.testing import CliRunner

    from workbench.cli.main import cli

    options = f"cluster_size={cluster},preallocation=metadata"
    done = CliRunner().invoke(cli, ["create", "-o", options, str(path), size])
    assert done.exit_code == 0, done.output


# From the guest's side to the file's, and back


def test_a_guest_offset_leads_to_its_entry_and_its_bytes() -> None:
    outline = Outline(meta_of("plain"))
    place = Place("disk", 0, 0, "", View.TRANSLATION, 0x5123)
    entry = crossing(outline, place, View.ENTRIES)
    assert (entry.node, entry.path, entry.guest) == ("l2:0", "[5]", 0x5123)
    there = crossing(outline, place, View.HEX)
    assert (there.offset, there.view, there.guest) == (0x9123, View.HEX, 0x5123)
    packed = crossing(outline, Place("disk", 0, 0, "", View.GUEST_HEX, 0x10000), View.HEX)
    assert packed.offset == 0x10000 and packed.length > 1
    empty = crossing(outline, Place("disk", 0, 0, "", View.GUEST_MAP, 0x4000), View.HEX)
    assert (empty.node, empty.path) == ("l2:0", "[4]")  # nothing is stored: the entry that says so


def test_without_an_l2_table_a_guest_offset_leads_to_the_l1_entry() -> None:
    outline = Outline(meta_of("wiped-l2"))
    entry = crossing(outline, Place("disk", 0, 0, "", View.TRANSLATION, 0x400000), View.ENTRIES)
    assert (entry.node, entry.path) == ("l1", "[2]")


def test_a_table_or_an_entry_leads_to_what_it_describes() -> None:
    outline = Outline(meta_of("wiped-l2"))
    for address, guest in (("l2:3", 3 << 21), ("l2:3.7", (3 << 21) + 7 * 4096), ("l1:7", 7 << 21), ("header", 0)):
        found = prepare(outline, find_address(outline, address, Place("file", 0, 0)))
        side = guest_side(outline, found, View.GUEST_MAP)
        assert (side.node, side.guest) == ("disk", guest), address


def test_a_snapshot_has_a_guest_side_of_its_own() -> None:
    outline = Outline(meta_of("snapshots"))
    found = prepare(outline, find_address(outline, "snapshot:1/l2:0.3", Place("file", 0, 0)))
    side = guest_side(outline, found, View.TRANSLATION)
    assert (side.node, side.guest) == ("snapshot:1/l1", 3 * 4096)
    back = crossing(outline, side, View.ENTRIES)
    assert (back.node, back.path) == ("snapshot:1/l2:0", "[3]")
    assert l1_table(outline.meta, 1).snapshot == 1


async def test_view_keys_cross_from_the_file_to_the_disk_and_back(drive: Drive, tmp_path: Path) -> None:
    path = tmp_path / "plain.qcow2"
    path.write_bytes(sample_path("plain").read_bytes())
    async with drive(path) as (app, pilot):
        screen = await go(app, pilot, "l2:0.5")
        screen.focus_view()
        for key, node, view, guest in (
            ("4", "disk", View.GUEST_MAP, 0x5000),
            ("6", "disk", View.TRANSLATION, 0x5000),
            ("3", "l2:0", View.ENTRIES, 0x5000),
            ("2", "l2:0", View.HEX, 0x5000),
            ("5", "disk", View.GUEST_HEX, 0x5000),
        ):
            await pilot.press(key)
            await settle(app, pilot)
            assert (screen.place.node, screen.place.view, screen.place.guest) == (node, view, guest), key


@pytest.mark.parametrize("name", ["subclusters-contradict", "unaligned-entry", "entry-past-eof"])
def test_the_filter_for_suspicious_entries_keeps_those_that_check_finds_fault_with(name: str) -> None:
    meta = meta_of(name)
    table = l2_of(meta)
    codes = ("L2-ENTRY", "COMPRESSED-", "SUBCLUSTER-", "L2-ZERO", "L2-COPIED-UNALLOCATED")
    reported = {
        row.index + step
        for row in check(meta).findings
        if row.code.startswith(codes) and row.table == table.region.offset
        for step in range(row.count)
    }
    rows = EntryRows(meta, table, fold=False, chosen=parse_filter("suspicious"))
    assert {rows.run(row).first for row in range(len(rows))} == reported != set()
