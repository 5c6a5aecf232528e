"""Renderers are pure: values in, lines out."""

from __future__ import annotations

import json

import pytest

from formats.annotate import NodeKind, annotate
from formats.qcow2.header import HEADER_SCHEMA, Header, build_header
from tests.engine.tiny import tiny
from workbench.engine.metadata import load_metadata
from workbench.engine.tables import Run, l2_table
from workbench.render.entries import bit_ranges, run_words
from workbench.render.hexdump import hexdump
from workbench.render.jsonify import node_to_json
from workbench.render.sizes import count, duration, size_with_bytes, span
from workbench.render.tables import pairs, table
from workbench.render.text import clip, printable, quoted
from workbench.render.tree import number_text, tree_lines, tree_rows


def header_node(cut: int | None = None):  # type: ignore[no-untyped-def]
    return annotate(HEADER_SCHEMA, build_header(Header(size=1 << 30, incompatible_features=1))[:cut], name="header")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain", "plain"),
        ("naïve ✓", "naïve ✓"),
        ("\x1b[2J", "\\x1b[2J"),
        ("a\nb\x00", "a\\x0ab\\x00"),
        (b"\xff".decode("utf-8", "surrogateescape"), "\\xff"),
        ("\u202eevil", "\\u202eevil"),
    ],
)
def test_text_from_images_is_made_harmless(text: str, shown: str) -> None:
    assert printable(text) == shown
    printable(text).encode()


def test_quotes_and_clipping() -> None:
    assert quoted('a"b\\c') == '"a\\"b\\\\c"'
    assert clip("abcdef", 4) == "abc…" and clip("abc", 4) == "abc"


def test_hexdump_folds_equal_lines_and_keeps_the_last() -> None:
    lines = list(hexdump(bytes(160) + b"end", 0x1000))
    assert lines[0].startswith("00001000  00 00") and "9 equal lines" in lines[1]
    assert lines[2].startswith("000010a0") and lines[2].endswith("|end|")
    assert list(hexdump(bytes(64)))[-1].startswith("00000030")
    assert len(list(hexdump(bytes(160), fold=False))) == 10
    assert list(hexdump(b"")) == []


def test_hexdump_columns_line_up() -> None:
    lines = list(hexdump(bytes(range(40))))
    assert len({line.index("|") for line in lines}) == 1


def test_words_for_numbers() -> None:
    assert (count(1, "entry"), count(2, "entry"), count(1234567, "cluster")) == (
        "1 entry",
        "2 entries",
        "1,234,567 clusters",
    )
    assert (span(0x10, 0x10), span(5, 0)) == ("0x10..0x1f", "0x5")
    assert duration(3_723_004_000_000) == "01:02:03.004"
    assert size_with_bytes(100) == "100 bytes" and size_with_bytes(1 << 20) == "1 MiB (1048576 bytes)"


@pytest.mark.parametrize(
    ("name", "value", "unit", "text"),
    [
        ("l1_table_offset", 0x30000, "bytes", "0x30000"),
        ("size", 1 << 30, "bytes", "1073741824 bytes (1 GiB)"),
        ("cluster_bits", 16, "bits", "16 (64 KiB)"),
        ("cluster_bits", 4_000_000_000, "bits", "4000000000 bits"),
        ("refcount_order", 4, "bits", "4 (16 bits)"),
        ("dirty", 1, "flag", "yes"),
        ("l1_size", 1, "entries", "1 entry"),
        ("l1_size", 2, "entries", "2 entries"),
    ],
)
def test_numbers_get_the_notation_that_fits(name: str, value: int, unit: str, text: str) -> None:
    assert number_text(name, value, unit) == text


def test_tree_shows_bits_under_their_word() -> None:
    rows = {row.name: row for row in tree_rows(header_node())}
    assert rows["dirty"].value == "yes" and rows["dirty"].where == "bit 0"
    assert rows["dirty"].depth == rows["incompatible_features"].depth + 1
    assert rows["incompatible_features"].raw == "00 00 00 00 00 00 00 01"
    assert "unknown" not in rows  # reserved bits that are zero say nothing


@pytest.mark.parametrize("width", [40, 80, 120, 200])
def test_tree_lines_keep_the_width_where_the_meaning_is(width: int) -> None:
    lines = list(tree_lines(header_node(), width=width))
    without = list(tree_lines(header_node(), width=width, docs=False))
    assert all(len(line) <= max(width, len(bare)) for line, bare in zip(lines, without, strict=True))


def test_truncated_structure_shows_where_it_is_cut_off() -> None:
    node = header_node(50)
    assert any(each.kind is NodeKind.FAULT for each in node.walk())
    assert any("cut off" in line for line in tree_lines(node))


def test_nodes_become_json() -> None:
    value = json.loads(json.dumps(node_to_json(header_node())))
    first = value["children"][0]
    assert (first["name"], first["raw"], first["value"]) == ("magic", "514649fb", 0x514649FB)
    assert "doc" not in node_to_json(header_node(), docs=False)["children"][0]


def test_tables_are_as_wide_as_their_content() -> None:
    assert list(table(("A", "LONG"), [("xyz", "1"), ("x", "22")], right=[1])) == ["A    LONG", "xyz     1", "x      22"]
    assert list(table((), [])) == []
    assert list(pairs([("a", "1\n2"), ("bcd", "3")])) == ["  a    1", "       2", "  bcd  3"]


def test_bit_ranges() -> None:
    assert [bit_ranges(mask) for mask in (0, 1, 0b1011, 0xFFFFFFFF)] == ["", "0", "0-1,3", "0-31"]


def test_offset_zero_of_an_external_data_file_is_a_place_only_with_copied() -> None:
    meta = load_metadata(tiny([], incompatible=4))
    table = l2_table(meta, 0, 0x40000)
    assert run_words(meta, table, Run(0, 1, (1 << 63,))) == "data at 0x0  (copied)"
    assert run_words(meta, table, Run(0, 1, (2,))) == "unallocated  (RESERVED BITS 0x2)"
