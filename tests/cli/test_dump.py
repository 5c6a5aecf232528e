"""`qwb dump`: every part, folding, JSON."""

from __future__ import annotations

import json

import pytest

from sample_images import sample_path

PARTS = {
    "plain": [
        "header",
        "extensions",
        "l1",
        "l1:0",
        "l2:0",
        "l2:0.3",
        "refcount-table",
        "rt:0",
        "rb:0",
        "rb:0.1",
        "c:0",
        "0x0",
        "all",
    ],
    "snapshots": ["snapshots", "snapshot:1", "snapshot:1/l1", "snapshot:1/l2:2", "snapshot:1/l2:2.5"],
    "bitmaps": ["bitmaps", "bitmap:0", "bitmap-table:0", "bitmap-table:0.0", "extension:0"],
    "backing-chain": ["backing-name"],
    "luks": ["luks"],
}


@pytest.mark.parametrize(("name", "part"), [(name, part) for name, parts in PARTS.items() for part in parts])
def test_every_part_is_dumped(name: str, part: str, qwb) -> None:  # type: ignore[no-untyped-def]
    result = qwb("dump", sample_path(name), part)
    assert result.exit_code == 0 and result.stdout.startswith("== ")
    value = json.loads(qwb("dump", "--json", sample_path(name), part).stdout)
    assert value


@pytest.mark.parametrize(
    "part", ["l2:99", "rb:7", "snapshot:9", "bitmap:0", "nonsense", "g:0", "l1:99999", "l2:0.99999", "c:-1"]
)
def test_what_is_not_there_is_one_line(part: str, qwb) -> None:  # type: ignore[no-untyped-def]
    result = qwb("dump", sample_path("plain"), "--", part)
    assert (result.exit_code, result.stdout) == (1, "") and result.stderr.count("\n") == 1


def test_header_names_values_and_raw_bytes(qwb) -> None:  # type: ignore[no-untyped-def]
    lines = qwb("dump", sample_path("plain"), "header", "--width", 160).stdout.splitlines()
    line = next(each for each in lines if " cluster_bits " in each)
    assert line.split()[:6] == ["0x00000014", "00", "00", "00", "0c", "cluster_bits"]
    assert "12 (4 KiB)" in line and "Clusters are 1 << cluster_bits bytes" in line


def test_json_tree_covers_every_byte(qwb) -> None:  # type: ignore[no-untyped-def]
    value = json.loads(qwb("dump", "--json", sample_path("plain"), "header").stdout)
    at = 0
    for child in value["tree"]["children"]:
        assert child["offset"] == at
        at += child["size"]
    assert at == value["length"]


def test_runs_are_folded_and_full_unfolds_them(qwb) -> None:  # type: ignore[no-untyped-def]
    folded = json.loads(qwb("dump", "--json", sample_path("plain"), "l2:0").stdout)
    full = json.loads(qwb("dump", "--json", "--full", sample_path("plain"), "l2:0").stdout)
    assert len(full["runs"]) == 512 > len(folded["runs"])
    assert sum(run["count"] for run in folded["runs"]) == 512
    unfolded = []
    for run in folded["runs"]:
        unfolded += [f"{int(run['raw'], 16) + i * run.get('step', 0):016x}" for i in range(run["count"])]
    assert unfolded == [run["raw"] for run in full["runs"]]


def test_cluster_dump_says_whose_it_is(qwb) -> None:  # type: ignore[no-untyped-def]
    assert "belongs to: header" in qwb("dump", sample_path("plain"), "c:0").stdout


def test_tables_shared_with_snapshots_are_shown_once(qwb) -> None:  # type: ignore[no-untyped-def]
    text = qwb("dump", sample_path("snapshots"), "all").stdout
    assert "the same table as " in text


def test_bytes_of_a_foreign_file_can_be_looked_at(qwb, tmp_path) -> None:  # type: ignore[no-untyped-def]
    path = tmp_path / "text"
    path.write_bytes(b"hello world")
    assert "hello world" in qwb("dump", path, "0x0").stdout
