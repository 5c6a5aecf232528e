"""The host map's arithmetic: what clusters are, what cells show, with and without a census."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from sample_images import sample_path
from workbench.check import CheckResult, check
from workbench.engine.metadata import load_metadata
from workbench.render.hostmap import (
    KINDS,
    LOOKS,
    HostKind,
    HostMap,
    Spans,
    count_kinds,
    mostly_free,
    shown,
    whole_file_cell,
)
from workbench.storage.file import FileStorage


def checked(name: str) -> CheckResult:
    return check(load_metadata(FileStorage.open(sample_path(name))))


def picture(world: HostMap) -> str:
    """One glyph per cluster."""
    return "".join(LOOKS[HostKind(kind)].glyph for kind in world.kinds_of(0, world.clusters).tolist())


def test_every_kind_has_a_glyph_of_its_own() -> None:
    glyphs = [look.glyph for look in LOOKS.values()]
    assert len(set(glyphs)) == len(glyphs) == KINDS
    assert all(len(glyph) == 1 for glyph in glyphs)


@pytest.mark.parametrize(
    ("sample", "glyphs"),
    [
        ("leaked", "HRr12■≡○"),
        ("lost-l1-entry", "HRr12■≡◉"),
        ("data-over-l2", "HRr1╳■"),
        ("snapshots", "HRrs1□■≡S2T"),
        ("bitmaps", "HRr12B·"),
        ("luks", "HK"),
    ],
)
def test_samples_show_what_they_hold(sample: str, glyphs: str) -> None:
    assert set(glyphs) <= set(picture(HostMap(checked(sample))))


def test_a_cluster_with_a_wrong_refcount_is_marked() -> None:
    assert LOOKS[HostKind.MISMATCH].glyph in picture(HostMap(checked("refcount-zero")))


def test_cells_from_the_summary_are_those_from_the_clusters() -> None:
    world = HostMap(checked("data-over-l2"))
    before = [world.counts(0, cell, 64) for cell in (1, 2, 16, 64, 128)]
    world.summarise()
    assert world.summary is not None
    assert int(world.summary.sum()) == world.clusters
    for cell, counts in zip((1, 2, 16, 64, 128), before, strict=True):
        assert (world.counts(0, cell, 64) == counts).all()


def test_a_problem_is_visible_at_every_zoom() -> None:
    world = HostMap(checked("cross-linked"))
    world.summarise()
    for cell in (1, 2, 4, 8, 16, 32, 64):
        assert HostKind.OVERLAP in world.cells(0, cell, 64)[0]


def test_facts_of_a_cell_and_of_a_cluster() -> None:
    world = HostMap(checked("data-over-l2"))
    world.summarise()
    whole = world.facts(0, 64)
    assert (whole.kind, whole.at) == (HostKind.OVERLAP, 4)
    assert whole.words.startswith("1 overlap, ")
    one = world.facts(4, 1)
    assert (one.stored, one.counted) == (1, 2)
    assert "L2 table" in one.words and "guest data" in one.words
    assert "may be" in LOOKS[world.facts(6, 1).kind].title and "90% sure" in world.facts(6, 1).words


def test_a_file_counted_in_windows_is_shown_by_its_refcounts() -> None:
    result = checked("leaked")
    world = HostMap(replace(result, census=None))
    world.summarise()
    full = HostMap(result)
    assert picture(world).endswith("○○○")
    assert [glyph == "·" for glyph in picture(world)] == [glyph == "·" for glyph in picture(full)]
    assert world.facts(world.clusters - 1, 1).counted is None


def test_windows_without_anything_cost_nothing() -> None:
    world = HostMap(replace(checked("plain"), census=None))
    world.clusters = 1 << 36
    assert (world.kinds_of(1 << 35, 1000) == HostKind.FREE).all()


def test_shown_prefers_problems_then_landmarks_then_the_most() -> None:
    counts = np.zeros((4, KINDS), dtype=np.int64)
    counts[0, [HostKind.DATA, HostKind.ACTIVE_L2, HostKind.FREE]] = 5, 1, 90
    counts[1, [HostKind.DATA, HostKind.HEADER]] = 500, 1
    counts[2, [HostKind.DATA, HostKind.HEADER, HostKind.LEAK]] = 500, 1, 1
    counts[3, HostKind.FREE] = 10
    assert shown(counts).tolist() == [HostKind.DATA, HostKind.HEADER, HostKind.LEAK, HostKind.FREE]
    assert mostly_free(counts).tolist() == [True, False, False, True]


def test_the_last_cell_may_be_short() -> None:
    assert count_kinds(np.array([1, 1, 0], dtype=np.uint8), 2)[:, :2].tolist() == [[0, 2], [1, 0]]


def test_spans_mark_what_they_cover_and_nothing_else() -> None:
    spans = Spans(np.array([0, 10]), np.array([3, 1 << 40]))
    assert spans.mark(2, 10).tolist() == [True] + [False] * 7 + [True] * 2
    assert not spans.mark(4, 4).any()


@pytest.mark.parametrize("clusters", [1, 33, 4096, 1 << 27, 1 << 37])
def test_the_whole_file_fits(clusters: int) -> None:
    cell = whole_file_cell(clusters, 64, 20)
    assert -(-clusters // cell) <= 64 * 20
    assert cell == 1 or -(-clusters // (cell // 2)) > 64 * 20
