"""Every part of every structure has an explanation, and it renders with the numbers of real images."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from formats.annotate import Node, fields_of
from formats.bitfields import BitLayout
from formats.luks.header import LUKS_SCHEMA
from formats.qcow2.bitmaps import BITMAP_FLAGS, BITMAP_SCHEMA
from formats.qcow2.extensions import EXTENSION_SCHEMA
from formats.qcow2.header import AUTOCLEAR, COMPATIBLE, HEADER_SCHEMA, INCOMPATIBLE
from formats.qcow2.refcounts import REFCOUNT_BLOCK_SCHEMA
from formats.qcow2.snapshots import SNAPSHOT_SCHEMA
from formats.qcow2.tables import (
    BITMAP_TABLE_ENTRY,
    L1_ENTRY,
    L2_EXTENDED,
    L2_STANDARD,
    REFCOUNT_TABLE_ENTRY,
    SUBCLUSTER_BITMAP,
    compressed_layout,
    table_schema,
)
from sample_images import IMAGES, load_manifest
from workbench.engine.metadata import Metadata, load_metadata
from workbench.engine.structures import BACKING_NAME_SCHEMA, Part, Structure, structures
from workbench.engine.tables import Table
from workbench.storage.memory import MemoryStorage
from workbench.teach import Explanation, explain, facts_of, facts_of_node, facts_of_table, keys, resolve, sections
from workbench.teach.filling import PLACEHOLDER, UnknownFactError, code, fill
from workbench.teach.here import HERE
from workbench.teach.texts import parse

SCHEMAS: tuple[tuple[str, Any], ...] = (
    ("header", HEADER_SCHEMA),
    ("extension", EXTENSION_SCHEMA),
    ("backing-name", BACKING_NAME_SCHEMA),
    ("snapshot", SNAPSHOT_SCHEMA),
    ("bitmap", BITMAP_SCHEMA),
    ("luks", LUKS_SCHEMA),
    ("refcount-block", REFCOUNT_BLOCK_SCHEMA),
    ("l1", table_schema("l1")),
    ("l2", table_schema("l2")),
    ("l2", table_schema("l2-extended")),
    ("refcount-table", table_schema("refcount-table")),
    ("bitmap-table", table_schema("bitmap-table")),
)
LAYOUTS = (
    INCOMPATIBLE, COMPATIBLE, AUTOCLEAR, BITMAP_FLAGS, L1_ENTRY, L2_STANDARD, L2_EXTENDED, SUBCLUSTER_BITMAP,
    REFCOUNT_TABLE_ENTRY, BITMAP_TABLE_ENTRY, compressed_layout(9), compressed_layout(16), compressed_layout(21),
)  # fmt: skip
PLACES = (
    "disk",
    "group",
    "features",
    "data-file",
    "backing-chain",
    "bitmap-data",
    "unused",
    "tail",
    "gap",
    "unreadable",
)
_ENTRY_PATHS = re.compile(r"^(l1|l2|refcount-table|bitmap-table)\.entries\.row\.(entry|subclusters)")


def schema_paths() -> Iterator[str]:
    for prefix, schema in SCHEMAS:
        for path, field in fields_of(schema, prefix):
            yield path
            if isinstance(field.bits, BitLayout):
                yield from (f"{path}.{bit.name}" for bit in field.bits)


def layout_paths() -> Iterator[str]:
    for layout in LAYOUTS:
        yield layout.name
        yield from (f"{layout.name}.{bit.name}" for bit in layout)


def loaded(name: str) -> Metadata:
    sample = next(each for each in load_manifest() if each.name == name)
    return load_metadata(MemoryStorage((IMAGES / sample.file).read_bytes()))


def assert_renders(explanation: Explanation) -> None:
    text = explanation.markdown()
    assert explanation.key != "unknown"
    assert explanation.title and explanation.what and explanation.spec
    assert not PLACEHOLDER.search(text), text
    assert "None" not in explanation.here.split(), text
    assert "\n" not in explanation.here
    assert "  " not in text


@pytest.mark.parametrize("path", sorted({*schema_paths(), *layout_paths(), *PLACES, *(part.value for part in Part)}))
def test_every_schema_path_has_its_own_text(path: str) -> None:
    key = resolve(path)
    assert_renders(explain(path))
    if _ENTRY_PATHS.match(path):
        assert (
            key.partition(".")[2] == path.split(".")[4]
            if path.count(".") > 3
            else "entry" in key or "subcluster" in key
        )
    elif path.partition(".")[0] not in {layout.name for layout in LAYOUTS}:
        assert key == path


def test_every_kind_of_the_outline_has_a_text() -> None:
    outline = pytest.importorskip("workbench.tui.outline")
    for kind in outline.Kind:
        assert_renders(explain(kind.value))


def test_every_text_is_used_and_every_function_has_a_text() -> None:
    reached = {resolve(path) for path in (*schema_paths(), *layout_paths(), *PLACES, *(part.value for part in Part))}
    assert set(keys()) - reached == {"unknown"}
    assert set(HERE) <= set(keys())


def test_texts_have_no_unknown_labels() -> None:
    for section in sections().values():
        assert not re.search(r"\b(Here|Limits|QEMU|Here if \w+): ", section.what), section.key
        assert section.what.endswith((".", ")")), section.key


def visit(part: Structure, facts: dict[str, object], seen: set[str]) -> None:
    assert_renders(explain(part.part.value, facts | (facts_of_table(part.meta, part.table) if part.table else {})))
    root = part.annotate()
    if root is not None:
        for node in root.walk():
            check_node(node, root, facts, seen)
    if part.table is not None and part.table.readable(part.meta):
        visit_entries(part.meta, part.table, facts, seen)
    for child in part.children(0, 20):
        visit(child, facts, seen)


def visit_entries(meta: Metadata, table: Table, facts: dict[str, object], seen: set[str]) -> None:
    count = min(16, table.readable(meta))
    for index in range(0, count, 8 if table.kind.value == "refcount-block" else 1):
        root = table.annotate(meta, index, 1)
        for node in root.walk():
            check_node(node, root, facts | facts_of_table(meta, table, index), seen)


def check_node(node: Node, root: Node, facts: dict[str, object], seen: set[str]) -> None:
    explanation = explain(node.schema, facts | facts_of_node(node, root))
    assert_renders(explanation)
    if explanation.here:
        seen.add(explanation.key)


def test_every_node_of_every_sample_is_explained_with_its_numbers() -> None:
    seen: set[str] = set()
    for sample in load_manifest():
        meta = load_metadata(MemoryStorage((IMAGES / sample.file).read_bytes()))
        visit(structures(meta), facts_of(meta), seen)
    silent = {key for key in HERE if "." in key} - seen
    # No sample has these: 512-byte clusters' reserved bits, unknown compressed data.
    assert silent <= {"l2-entry-compressed.reserved"}, silent


@pytest.mark.parametrize("value", [0, 1, 7, 9, 63, 64, 1 << 31, (1 << 32) - 1, (1 << 63), (1 << 64) - 1])
def test_no_value_breaks_an_explanation(value: int) -> None:
    for facts in ({}, facts_of(loaded("plain")), facts_of(loaded("luks")), facts_of(loaded("tiny-clusters"))):
        full = facts | {"value": value, "word": value, "offset": value, "length": 8, "raw": b"\xff" * 8, "index": 3}
        for key in keys():
            assert not PLACEHOLDER.search(explain(key, full).markdown())


def test_numbers_of_the_image_stand_in_the_text() -> None:
    facts = facts_of(loaded("plain"))
    here = explain("header.cluster_bits", facts | {"value": 16}).here
    assert "65,536 bytes (64 KiB)" in here and "512 MiB" in here
    assert "outside" in explain("header.cluster_bits", facts | {"value": 40}).here
    assert "too small" in explain("header.l1_size", facts | {"value": 0}).here
    assert "beyond the end" in explain("header.l1_table_offset", facts | {"value": 1 << 40}).here
    assert "not cluster aligned" in explain("header.l1_table_offset", facts | {"value": 0x10200}).here


def test_an_l2_entry_is_explained_by_the_layout_that_its_word_has() -> None:
    path, extended = "l2.entries.row.entry", facts_of(loaded("subclusters"))
    assert resolve(f"{path}.copied", {"word": 1 << 63}) == "l2-entry.copied"
    assert resolve(f"{path}.copied", {"word": 1 << 62}) == "l2-entry-compressed.copied"
    assert resolve(f"{path}.copied", extended | {"word": 1 << 63}) == "l2-entry-extended.copied"
    assert resolve("l1.entries.row[3].entry.copied") == "l1-entry.copied"
    assert resolve("snapshot.l1.entries.row.entry.copied") == "l1-entry.copied"


def test_unknown_paths_get_the_nearest_text() -> None:
    assert resolve("header.cluster_bits.more") == "header.cluster_bits"
    assert resolve("some.where.header.version") == "header.version"
    assert resolve("header.unreadable: StreamError") == "unreadable"
    assert resolve("nothing of the kind") == "unknown"
    assert explain("nothing of the kind").markdown()


def test_paragraphs_are_plain_text() -> None:
    found = explain("header.incompatible_features.dirty", {"value": 1})
    assert [label for label, _ in found.paragraphs] == ["", "Here", "QEMU"]
    assert dict(found.paragraphs)["Here"].startswith("Set. ")
    assert "**" in found.markdown() and not any("**" in text or "`" in text for _, text in found.paragraphs)
    assert dict(explain("backing-name.name", {"value": "a**b"}).paragraphs)["Here"].startswith("a**b,")


def test_names_from_the_image_cannot_leave_their_code_span() -> None:
    assert code("a`b\n**c**\x1b[31m") == "`a'b\\x0a**c**\\x1b[31m`"
    assert len(code("x" * 5000)) < 300
    assert "\x1b" not in explain("backing-name.name", {"value": "\x1b]0;x\x07"}).markdown()


def test_templates_know_names_and_forms_only() -> None:
    assert fill("{a} {a:hex} {a:size} {a:both}", {"a": 65536}) == "65,536 0x10000 64 KiB 65,536 bytes (64 KiB)"
    assert fill("{a.__class__}", {"a": 1}) == "{a.__class__}"
    with pytest.raises(UnknownFactError):
        fill("{missing}", {})


def test_a_malformed_file_is_told_by_name() -> None:
    with pytest.raises(ValueError, match=r"x\.md: not a section heading"):
        parse("## no title\n\ntext", "x.md")


def test_importing_the_explanations_is_light() -> None:
    program = "import sys, workbench.teach as t; t.explain('header.size', {'value': 1}); print(*sys.modules)"
    modules = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.split()
    assert not {"textual", "numpy", "construct", "rich"} & set(modules)


def test_copied_alone_is_a_place_only_in_an_external_data_file() -> None:
    facts = {"word": 1 << 63, "value": 1 << 63, "cluster_size": 65536, "cluster_bits": 16, "file_size": 1 << 20}
    assert "is unallocated" in HERE["l2-entry"](facts)
    assert "external data file at 0x0" in HERE["l2-entry"](facts | {"flag_data_file": True})
