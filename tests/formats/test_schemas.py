"""Every structure: build(parse(x)) == x, documented fields, annotated trees that account for every byte."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from construct import Construct, Struct
from hypothesis import given
from hypothesis import strategies as st

from formats.annotate import Field, Node, NodeKind, annotate, fields_of
from formats.bitfields import BitLayout
from formats.luks.header import HEADER_SIZE, LUKS_SCHEMA, parse_luks
from formats.qcow2 import bitmaps, extensions, header, refcounts, snapshots, tables

SCHEMAS: dict[str, Construct] = {
    "header": header.HEADER_SCHEMA,
    "extension": extensions.EXTENSION_SCHEMA,
    "feature-name": extensions.FEATURE_NAME_SCHEMA,
    "bitmaps-extension": extensions.BITMAPS_SCHEMA,
    "encryption-extension": extensions.ENCRYPTION_SCHEMA,
    "l1": tables.L1_SCHEMA,
    "l2": tables.L2_SCHEMA,
    "refcount-table": tables.REFCOUNT_TABLE_SCHEMA,
    "refcount-block": refcounts.REFCOUNT_BLOCK_SCHEMA,
    "bitmap-table": tables.BITMAP_TABLE_SCHEMA,
    "snapshot": snapshots.SNAPSHOT_SCHEMA,
    "bitmap": bitmaps.BITMAP_SCHEMA,
    "luks": LUKS_SCHEMA,
}
LAYOUTS = [
    header.INCOMPATIBLE,
    header.COMPATIBLE,
    header.AUTOCLEAR,
    tables.L1_ENTRY,
    tables.L2_STANDARD,
    tables.L2_EXTENDED,
    tables.SUBCLUSTER_BITMAP,
    tables.REFCOUNT_TABLE_ENTRY,
    tables.BITMAP_TABLE_ENTRY,
    bitmaps.BITMAP_FLAGS,
    *(tables.compressed_layout(bits) for bits in range(9, 22)),
]


def every_field() -> Iterator[tuple[str, Field]]:
    for name, schema in SCHEMAS.items():
        yield from fields_of(schema, name)


@pytest.mark.parametrize(
    ("path", "field"), list(every_field()), ids=lambda value: value if isinstance(value, str) else ""
)
def test_every_field_has_a_doc_line_a_spec_reference_and_a_unit_where_it_counts(path: str, field: Field) -> None:
    assert field.doc.endswith("."), path
    assert field.spec.startswith(("qcow2: ", "LUKS1: ")), path
    counts = ("_size", "_offset", "_length", "_seconds", "_nanoseconds", "_clusters", "iterations", "stripes")
    if path.endswith(counts):
        assert field.unit, path


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.name)
def test_layouts_cover_their_word_without_overlap_and_are_documented(layout: BitLayout) -> None:
    seen = 0
    for bits in layout:
        assert bits.doc.endswith(".") and bits.spec.startswith("qcow2: "), bits.name
        assert not seen & bits.mask, f"{bits.name} overlaps"
        seen |= bits.mask
    assert seen == (1 << layout.width) - 1


@given(st.integers(0, (1 << 64) - 1))
def test_bit_fields_give_the_same_for_an_int_and_an_array(word: int) -> None:
    for layout in LAYOUTS:
        for bits in layout:
            array = np.array([word], dtype=np.uint64)
            assert int(bits.get(array)[0]) == bits.get(word)
            assert int(bits.put(array, np.uint64(bits.get(word)))[0]) == bits.put(word, bits.get(word)) == word


def header_bytes(version: int) -> st.SearchStrategy[bytes]:
    if version == 2:
        return st.binary(min_size=64, max_size=64).map(lambda b: b"QFI\xfb\0\0\0\2" + b)
    lengths = st.sampled_from([104, 105, 112, 120, 200])
    return lengths.flatmap(
        lambda n: st.binary(min_size=n - 12, max_size=n - 12).map(
            lambda b: b"QFI\xfb\0\0\0\3" + b[:92] + n.to_bytes(4, "big") + b[92:]
        )
    )


@pytest.mark.parametrize("version", [2, 3])
def test_headers_round_trip_whatever_they_hold(version: int) -> None:
    @given(header_bytes(version))
    def check(data: bytes) -> None:
        assert header.build_header(header.parse_header(data)) == data

    check()


@given(st.binary(max_size=80))
def test_a_short_or_foreign_header_parses_without_error(data: bytes) -> None:
    assert header.parse_header(data).magic == int.from_bytes(data.ljust(4, b"\0")[:4], "big")


def test_an_absurd_header_length_costs_nothing() -> None:
    data = b"QFI\xfb\0\0\0\3" + bytes(92) + b"\xff\xff\xff\xff"
    parsed = header.parse_header(data)
    assert parsed.header_length == 0xFFFFFFFF
    assert len(parsed.additional) < 64


RECORDS = st.lists(
    st.tuples(st.sampled_from([0xE2792ACA, 0x6803F857, 0x23852875, 0x44415441, 77]), st.binary(max_size=100)),
    max_size=6,
)


@given(RECORDS, st.randoms())
def test_extensions_round_trip_with_unknown_ones_and_their_padding(records: list[tuple[int, bytes]], rng: Any) -> None:
    made = [extensions.Extension(0, kind, data, rng.randbytes(-len(data) % 8)) for kind, data in records]
    data = extensions.build_extensions(made)
    area = extensions.parse_extensions(data, 0, len(data))
    assert area.ended and area.end == len(data) and area.overrun is None
    assert extensions.build_extensions(area.extensions) == data


def test_an_extension_that_overruns_its_area_is_reported_not_followed() -> None:
    data = (77).to_bytes(4, "big") + (1 << 31).to_bytes(4, "big") + bytes(64)
    area = extensions.parse_extensions(data, 0, len(data))
    assert area.overrun == (0, 77, 1 << 31) and not area.extensions


@pytest.mark.parametrize("order", range(7))
def test_refcount_blocks_round_trip_at_every_width(order: int) -> None:
    data = np.random.default_rng(order).bytes(512)
    values = refcounts.unpack(data, order)
    assert values.size == 512 * 8 >> order
    assert refcounts.pack(values, order) == data
    assert [refcounts.get_one(data, i, order) for i in range(values.size)] == values.tolist()
    copy = bytearray(512)
    for index, value in enumerate(values.tolist()):
        refcounts.set_one(copy, index, order, value)
    assert bytes(copy) == data
    schema = refcounts.REFCOUNT_BLOCK_SCHEMA
    assert schema.build(schema.parse(data, refcount_order=order), refcount_order=order) == data


@pytest.mark.parametrize("order", range(7))
def test_the_last_counted_entry_is_found_at_every_width(order: int) -> None:
    random = np.random.default_rng(order)
    for _ in range(200):
        filled = int(random.integers(0, 33))
        block = random.bytes(filled).ljust(48, b"\0")
        values = refcounts.unpack(block, order)
        entries = int(random.integers(-1, values.size + 9))
        counted = np.flatnonzero(values[: max(0, entries)])
        assert refcounts.last_counted(block, order, entries) == (counted[-1] if counted.size else None)
    assert refcounts.last_counted(b"", order, 8) is None


def test_narrow_refcounts_count_from_the_least_significant_bit() -> None:
    assert refcounts.unpack(b"\x01", 0).tolist() == [1, 0, 0, 0, 0, 0, 0, 0]
    assert refcounts.unpack(b"\xe4", 1).tolist() == [0, 1, 2, 3]
    assert refcounts.unpack(b"\x21", 2).tolist() == [1, 2]


def test_a_refcount_that_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="does not fit"):
        refcounts.set_one(bytearray(8), 0, 0, 2)
    with pytest.raises(ValueError, match="does not fit"):
        refcounts.pack(np.array([4] * 4), 1)


@given(
    st.binary(max_size=60),
    st.text(st.characters(codec="ascii"), max_size=20),
    st.text(max_size=20),
    st.integers(0, (1 << 64) - 1),
)
def test_snapshot_entries_round_trip(extra: bytes, ident: str, name: str, number: int) -> None:
    raw = number.to_bytes(8, "big") + bytes(4) + len(ident.encode()).to_bytes(2, "big")
    raw += len(name.encode()).to_bytes(2, "big") + number.to_bytes(8, "big") * 2 + bytes(3) + b"\7"
    raw += len(extra).to_bytes(4, "big") + extra + ident.encode() + name.encode()
    raw += b"\xee" * (-len(raw) % 8)
    parsed = snapshots.parse_snapshot_table(raw, 1, 4096)
    assert parsed.broken is None and parsed.end == 4096 + len(raw)
    assert snapshots.build_snapshot(parsed.snapshots[0]) == raw
    assert snapshots.SNAPSHOT_SCHEMA.build(snapshots.SNAPSHOT_SCHEMA.parse(raw)) == raw


@given(st.binary(max_size=20), st.text(min_size=1, max_size=30), st.binary(min_size=18, max_size=18))
def test_bitmap_directory_entries_round_trip(extra: bytes, name: str, fixed: bytes) -> None:
    raw = fixed + len(name.encode()).to_bytes(2, "big") + len(extra).to_bytes(4, "big") + extra + name.encode()
    raw += b"\xee" * (-len(raw) % 8)
    parsed = bitmaps.parse_bitmap_directory(raw, 1, 0)
    assert bitmaps.build_bitmap(parsed.bitmaps[0]) == raw
    assert bitmaps.BITMAP_SCHEMA.build(bitmaps.BITMAP_SCHEMA.parse(raw)) == raw


@given(st.binary(min_size=HEADER_SIZE, max_size=HEADER_SIZE))
def test_luks_headers_round_trip(data: bytes) -> None:
    assert LUKS_SCHEMA.build(LUKS_SCHEMA.parse(data)) == data
    assert len(parse_luks(data).key_slots) == 8


@given(st.binary(max_size=256).map(lambda b: b[: len(b) & ~15]), st.booleans(), st.integers(9, 21))
def test_tables_of_entries_round_trip(data: bytes, extended: bool, cluster_bits: int) -> None:
    kinds = ["l2-extended" if extended else "l2", "l1", "refcount-table", "bitmap-table"]
    for kind in kinds:
        schema = tables.table_schema(kind)
        params = {"cluster_bits": cluster_bits, "extended": extended and kind.startswith("l2")}
        assert schema.build(schema.parse(data, **params), **params) == data
        tree = annotate(schema, data, name=kind, base=1 << 40, **params)
        assert_covers(tree)
    assert tables.table_bytes(tables.words(data)) == data


@pytest.mark.parametrize("cluster_bits", range(9, 22))
def test_compressed_descriptors_say_where_their_sectors_end(cluster_bits: int) -> None:
    for offset, length in ((0x10000, 1), (0x101FF, 1), (0x101FF, 2), (0x10007, (1 << cluster_bits) - 1)):
        entry = tables.compressed_entry(offset, length, cluster_bits)
        start, end = tables.compressed_range(entry, cluster_bits)
        assert start == offset and offset + length <= end < offset + length + 512
        array = tables.compressed_range(np.array([entry], dtype=np.uint64), cluster_bits)
        assert (int(array[0][0]), int(array[1][0])) == (start, end)


def assert_covers(node: Node) -> None:
    """Children lie inside their parent, in order, without holes or overlaps (bit fields share their word)."""
    solid = [child for child in node.children if child.kind is not NodeKind.BITS]
    if solid:
        assert solid[0].offset == node.offset and solid[-1].end == node.end, node.path
        for left, right in itertools.pairwise(solid):
            assert left.end == right.offset, (left.path, right.path)
    for child in node.children:
        assert_covers(child)


SAMPLE_HEADER = header.build_header(
    header.Header(size=1 << 30, l1_size=2, header_length=112, incompatible_features=(1 << 63) | 0x10)
)


@pytest.mark.parametrize("cut", range(0, 113, 4))
def test_a_truncated_structure_still_gives_a_tree_that_accounts_for_every_byte(cut: int) -> None:
    tree = annotate(header.HEADER_SCHEMA, SAMPLE_HEADER[:cut], name="header", base=0)
    assert tree.size == cut
    assert_covers(tree)
    if cut < 112:
        assert any(node.kind is NodeKind.FAULT for node in tree.walk())


def test_annotation_names_bits_offsets_and_gaps() -> None:
    tree = annotate(header.HEADER_SCHEMA, SAMPLE_HEADER + b"rest", name="header", base=0)
    word = tree.find("incompatible_features")
    assert word is not None and (word.offset, word.size) == (72, 8)
    flag = tree.find("incompatible_features.extended_l2")
    assert flag is not None and flag.value == 1 and flag.bits == (4, 4) and flag.schema == word.schema + ".extended_l2"
    gap = tree.children[-1]
    assert gap.kind is NodeKind.GAP and gap.raw == b"rest"


def test_every_schema_is_a_plain_struct_so_that_its_parts_can_be_listed() -> None:
    assert all(isinstance(schema, Struct) for schema in SCHEMAS.values())


def test_header_fields_lie_where_the_specification_puts_them() -> None:
    places = {
        "magic": (0, 4), "version": (4, 4), "backing_file_offset": (8, 8), "backing_file_size": (16, 4),
        "cluster_bits": (20, 4), "size": (24, 8), "crypt_method": (32, 4), "l1_size": (36, 4), "l1_table_offset": (40, 8),
        "refcount_table_offset": (48, 8), "refcount_table_clusters": (56, 4), "nb_snapshots": (60, 4),
        "snapshots_offset": (64, 8), "incompatible_features": (72, 8), "compatible_features": (80, 8),
        "autoclear_features": (88, 8), "refcount_order": (96, 4), "header_length": (100, 4), "compression_type": (104, 1),
    }  # fmt: skip
    assert {name: header.field(name) for name in places} == places
    assert header.field("l1_size", "l1_table_offset") == (36, 12)
    assert (
        sum(header.field("snapshots_offset")) == header.V2_LENGTH
        and sum(header.field("header_length")) == header.V3_LENGTH
    )
    with pytest.raises(KeyError):
        header.field("additional")
