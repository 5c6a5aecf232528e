"""Findings and refcounts as lists: groups, folding, filters, a million rows."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from sample_images import sample_path
from workbench.check import CheckResult, check
from workbench.check.findings import FindingLog
from workbench.check.problems import PROBLEMS, Severity
from workbench.engine.metadata import load_metadata
from workbench.errors import ArgumentError
from workbench.render.findings import (
    GLYPHS,
    FindingRows,
    chosen_rows,
    parse_finding_filter,
    problem_sections,
    verdict_words,
)
from workbench.render.hostmap import HostMap
from workbench.render.refcounts import RefcountRows, row_of_tile
from workbench.storage.file import FileStorage


def checked(name: str) -> CheckResult:
    return check(load_metadata(FileStorage.open(sample_path(name))))


def many(count: int) -> CheckResult:
    """A result with `count` rows of one code."""
    log = FindingLog()
    offsets = np.arange(count, dtype=np.uint64) * np.uint64(8)
    log.add_columns("L2-ENTRY-UNALIGNED", count, offset=offsets, length=8, value=offsets + np.uint64(513))
    return replace(checked("plain"), findings=log.freeze(), causes=())


def test_causes_come_first_with_evidence_and_hold_their_findings() -> None:
    rows = FindingRows(checked("data-over-l2"))
    lines = [rows.line(number) for number in range(len(rows))]
    assert lines[0].group.cause is not None and lines[0].finding is None
    assert any(line.text and line.text.startswith("· ") for line in lines)
    assert sorted(line.finding for line in lines if line.finding is not None) == list(range(len(rows.findings)))


def test_rows_of_findings_and_back() -> None:
    rows = FindingRows(checked("data-over-l2"))
    for number in range(len(rows)):
        finding = rows.line(number).finding
        if finding is not None:
            assert rows.row_of(finding) == number


def test_folding_hides_the_findings_of_a_group() -> None:
    rows = FindingRows(checked("data-over-l2"))
    size, group = len(rows), rows.groups[0]
    rows.fold(group)
    assert len(rows) == size - len(group.lines) - group.rows.size
    assert rows.row_of(int(group.rows[0])) is None
    rows.fold_all()
    assert len(rows) == len(rows.groups)
    rows.fold_all()
    assert len(rows) == size


def test_a_million_findings_are_a_folded_line_and_open_at_once() -> None:
    rows = FindingRows(many(1_000_000))
    assert len(rows) == 1
    rows.fold(rows.groups[0])
    assert len(rows) == 1_000_001
    assert rows.line(700_001).finding == 700_000
    assert rows.row_of(123) == 124


@pytest.mark.parametrize(
    ("text", "codes"),
    [
        ("leak", {"CLUSTER-LEAKED"}),
        ("corruption", {"REFCOUNT-TOO-LOW"}),
        ("warning leak", {"CLUSTER-LEAKED", "DATA-OVERLAPS-METADATA"}),
        ("overlaps", {"DATA-OVERLAPS-METADATA"}),
        ("code:REFCOUNT", {"REFCOUNT-TOO-LOW", "CLUSTER-LEAKED"}),
        ("0x6000", {"CLUSTER-LEAKED"}),
        ("host:0x6000-0x7000", {"CLUSTER-LEAKED"}),
        ("guest data", {"DATA-OVERLAPS-METADATA"}),
        ("nothing-like-it", set()),
    ],
)
def test_filters(text: str, codes: set[str]) -> None:
    findings = checked("data-over-l2").findings
    found = chosen_rows(findings, parse_finding_filter(text))
    assert {findings[int(row)].code for row in found} == codes


def test_a_bad_range_is_said() -> None:
    with pytest.raises(ArgumentError, match="no range"):
        parse_finding_filter("host:xyz")


def test_an_empty_filter_keeps_all() -> None:
    assert not parse_finding_filter("  ")
    assert len(chosen_rows(many(100).findings, parse_finding_filter(""))) == 100


def test_every_severity_has_a_glyph_of_its_own_and_every_problem_its_sections() -> None:
    assert len(set(GLYPHS.values())) == len(Severity)
    for problem in PROBLEMS.values():
        sections = problem_sections(problem)
        assert any(heading.startswith("Fix") for heading, _ in sections)
        assert all(f"({fix.tier.value})" in str(sections) for fix in problem.fixes)


@pytest.mark.parametrize(
    ("sample", "words", "level"),
    [
        ("plain", "no errors", "good"),
        ("leaked", "3 leaks", "warn"),
        ("data-over-l2", "1 corruption, 1 leak (may be guest data), 1 warning", "bad"),
        ("lost-l1-entry", "2 corruptions, 7 leaks (may be guest data), 1 warning", "bad"),
        ("unaligned-entry", "2 corruptions, 1 warning", "bad"),
        ("snapshots", "no errors, 1 note", "good"),
    ],
)
def test_verdicts(sample: str, words: str, level: str) -> None:
    assert verdict_words(checked(sample)) == (words, level)


def test_refcounts_side_by_side() -> None:
    world = HostMap(checked("data-over-l2"))
    rows = RefcountRows(world)
    assert (len(rows), rows.wrong) == (world.clusters, 2)
    tile = rows.tile(0)
    low, leak = row_of_tile(tile, 4), row_of_tile(tile, 6)
    assert (low.stored, low.counted, low.words, low.level) == (1, 2, "▼ too low", "bad")
    assert (leak.stored, leak.counted, leak.level) == (1, 0, "warn")
    assert row_of_tile(tile, 0).words == "= agrees"


def test_only_mismatches() -> None:
    rows = RefcountRows(HostMap(checked("leaked")), only_wrong=True)
    assert [rows.cluster(row) for row in range(len(rows))] == [33, 34, 35]
    assert [rows.row_of(cluster) for cluster in (0, 33, 34, 35, 40)] == [0, 0, 1, 2, 2]
    assert [row_of_tile(rows.tile(0), row).words for row in range(3)] == ["○ leaked"] * 3


def test_findings_that_stand_for_scattered_clusters_are_resolved() -> None:
    result = checked("leaked")
    columns = result.findings.columns.copy()
    at = int(result.findings.rows("CLUSTER-LEAKED")[0])
    size = 4096
    columns[at]["offset"], columns[at]["length"], columns[at]["count"] = 20 * size, 16 * size, 3
    result.findings.columns = columns
    rows = RefcountRows(HostMap(result), only_wrong=True)
    assert [rows.cluster(row) for row in range(len(rows))] == [33, 34, 35]


def test_without_a_census_the_counts_come_from_the_findings() -> None:
    rows = RefcountRows(HostMap(replace(checked("data-over-l2"), census=None)))
    tile = rows.tile(0)
    assert row_of_tile(tile, 4).counted == 2
    assert row_of_tile(tile, 6).counted == 0
    assert row_of_tile(tile, 1).words == "= agrees"
