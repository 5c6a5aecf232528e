"""What there is to say about a place: the lesson with this image's numbers, problems, pointers. Pure; reads a few bytes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from formats.annotate import Node, NodeKind
from formats.qcow2.entries import has_zero_flag, is_compressed
from workbench import teach
from workbench.engine.explain import StepKind, explain_guest
from workbench.engine.faults import Refusal
from workbench.engine.metadata import Metadata
from workbench.engine.tables import Run, Table, TableKind, read_entry
from workbench.render.entries import covers, run_raw, run_words
from workbench.render.sizes import span
from workbench.render.text import printable, quoted
from workbench.render.translation import outcome_words
from workbench.render.tree import value_text
from workbench.tui.outline import Outline
from workbench.tui.outline_items import TABLES, Item, Kind
from workbench.units import format_size

_POINTERS = {
    "header.l1_table_offset": "l1",
    "header.refcount_table_offset": "refcount-table",
    "header.snapshots_offset": "snapshots",
    "header.backing_file_offset": "backing-name",
    "extension.data.bitmap_directory_offset": "bitmaps",
    "extension.data.offset": "luks",
}


_WORDS = {Kind.FILE: "image", Kind.DISK: "disk", Kind.GROUP: "group"}


@dataclass(frozen=True, slots=True)
class Explanation:
    """title: what it is.  where: its bytes.  value: what it says.  problems: (level, text).  sections: (heading, text).

    links: (label, address as go-to takes it).  spec: where the specification treats it.
    """

    title: str
    where: str = ""
    value: str = ""
    problems: tuple[tuple[str, str], ...] = ()
    sections: tuple[tuple[str, str], ...] = ()
    links: tuple[tuple[str, str], ...] = ()
    spec: str = ""


def told(key: str, facts: Mapping[str, Any]) -> tuple[str, tuple[tuple[str, str], ...], str]:
    """Title, paragraphs and specification of the lesson on a schema path."""
    found = teach.explain(key, facts)
    return found.title, found.paragraphs, found.spec


def explain_node(outline: Outline, item: Item, node: Node) -> Explanation:
    """One field of a record."""
    meta = outline.meta
    facts = {**outline.facts, **_item_facts(outline, item), **teach.facts_of_node(node)}
    title, sections, spec = told(node.schema, facts)
    where = span(node.offset, node.size)
    if node.bits is not None:
        low, high = node.bits
        where += f", bit {low}" if low == high else f", bits {low} to {high}"
    else:
        where += f"  ({node.size:,} byte{'s' if node.size != 1 else ''})"
    if not sections and node.doc:
        sections = (("", node.doc),)
    return Explanation(
        title=f"{node.name}: {title}" if title and title != node.name else node.name,
        where=where,
        value="" if node.kind is NodeKind.STRUCT else value_text(node),
        problems=tuple(_problems(meta, node.offset, node.size)),
        sections=sections,
        links=tuple(_node_links(meta, node)),
        spec=node.spec or spec,
    )


def explain_item(outline: Outline, item: Item) -> Explanation:
    """A structure as a whole."""
    meta = outline.meta
    facts = {**outline.facts, **_item_facts(outline, item)}
    if item.kind is Kind.LAYER:
        return _explain_layer(outline, item, facts)
    title, sections, spec = told(_WORDS.get(item.kind, item.kind.value), facts)
    problems = [("bad" if item.mark == "bad" else "warn", item.why)] if item.mark else []
    if item.kind is Kind.FILE:
        problems += [("bad" if fault.refusal >= Refusal.OPEN else "warn", fault.what) for fault in meta.faults[:20]]
    elif item.length:
        problems += [each for each in _problems(meta, item.offset, item.length) if each[1] != item.why]
    where = f"{span(item.offset, item.length)}  ({format_size(item.length)})" if item.length else ""
    return Explanation(
        title or item.label,
        where,
        item.note if title == item.label else f"{item.label}{', ' + item.note if item.note else ''}",
        tuple(problems[:12]),
        sections,
        (),
        spec,
    )


def _explain_layer(outline: Outline, item: Item, facts: Mapping[str, Any]) -> Explanation:
    """Another file of the backing chain."""
    layer = outline.layers[item.index - 1]
    _title, sections, spec = told("backing-chain", {**facts, "backing_name": layer.backing_name})
    about = [("File", printable(layer.path)), ("Named as", f"{quoted(layer.stored_name)}, format {layer.format}")]
    if not layer.problem:
        about.append(("Size", f"disk {format_size(layer.size)}, file {format_size(layer.file_size)}"))
    return Explanation(
        f"Layer {layer.number} of the backing chain",
        value=f"{item.label}, {item.note}",
        problems=((("bad", layer.problem),) if layer.problem else ()),
        sections=(("", "Enter opens it as an image of its own, in a tab."), *about, *sections),
        spec=spec,
    )


def explain_entry(outline: Outline, item: Item, table: Table, index: int) -> Explanation:
    """One entry of a table."""
    meta = outline.meta
    words = read_entry(meta, table, index)
    run = Run(index, 1, words or (0,), missing=words is None)
    facts: dict[str, Any] = {**outline.facts, **teach.facts_of_table(meta, table, index)}
    key, says, covered = entry_lesson(table, words), run_words(meta, table, run), covers(meta, table, run)
    if words is not None:
        facts |= {"word": words[0], "value": words[0]}
    title, sections, spec = told(key, facts)
    size = max(1, table.entry_bits(meta) // 8)
    offset = table.entry_offset(meta, index)
    layout = table.layout(meta, words[0]) if words else None
    rows = []
    if layout is not None and words is not None:
        for bit in layout:
            value = bit.get(words[0])
            if value or not bit.reserved:
                shown = (
                    ("yes" if value else "no") if bit.unit == "flag" else f"{value:#x}" if bit.in_place else f"{value}"
                )
                rows.append(
                    f"{bit.name} (bit{'' if bit.low == bit.high else 's'} {bit.low}{'' if bit.low == bit.high else f'-{bit.high}'}): {shown}"
                )
    if rows:
        sections = (*sections, ("Bits", "; ".join(rows)))
    problems = [("bad", part) for part in oddities(says)]
    return Explanation(
        f"{table.name}[{index}]: {title}" if title else f"{table.name}[{index}]",
        f"{span(offset, size)}  raw {run_raw(meta, table, run)}",
        says,
        tuple(problems),
        (*((("", f"Describes {covered}."),) if covered else ()), *sections),
        tuple(entry_links(meta, table, index, words)),
        spec,
    )


def explain_place(outline: Outline, item: Item, guest: int, snapshot: int | None) -> Explanation:
    """A guest offset: where it is stored, and the way there."""
    meta = outline.meta
    found = explain_guest(meta, guest, snapshot)
    _title, sections, spec = told("disk", {**outline.facts, "value": guest})
    prefix = f"snapshot:{snapshot}/" if snapshot is not None else ""
    links = []
    if found.host is not None and not found.external:
        links.append((f"bytes of the file at {found.host:#x}", f"{found.host:#x}"))
    elif found.run is not None:
        links.append((f"compressed bytes at {found.run.offset:#x}", f"{found.run.offset:#x}"))
    for step in found.steps:
        if step.kind is StepKind.L2_INDEX:
            index = meta.geometry.l1_index(guest) if meta.geometry else 0
            links.append((f"L2[{index}], entry {step.result}", f"{prefix}l2:{index}.{step.result}"))
        elif step.kind is StepKind.L1_INDEX:
            links.append((f"L1 entry {step.result}", f"{prefix}l1:{step.result}"))
    return Explanation(
        f"Guest offset {guest:#x}", f"{format_size(guest)} into the virtual disk", outcome_words(found).capitalize(),
        (("bad", found.problem),) if found.problem else (), sections, tuple(links), spec,
    )  # fmt: skip


def oddities(says: str) -> list[str]:
    """The words in capitals that render.entries puts behind a suspicious entry."""
    found = []
    for word, text in (
        ("RESERVED BITS", "Reserved bits are set; they must be zero."),
        ("UNALIGNED", "The offset is not cluster aligned: a driver stops here."),
        ("BEYOND THE END", "The offset lies past the end of the file."),
        ("INVALID", "A subcluster is marked both allocated and zero."),
        ("file ends before", "The file ends before this entry."),
    ):
        if word in says:
            found.append(text)
    return found


def entry_lesson(table: Table, words: tuple[int, ...] | None) -> str:
    """Key of the lesson on such an entry."""
    if table.kind is TableKind.L2 and words is not None:
        word = words[0]
        if is_compressed(word):
            return "entry.l2-compressed"
        if len(words) == 2:
            return "entry.l2-extended"
        if has_zero_flag(word):
            return "entry.l2-zero"
        return "entry.l2-data" if word else "entry.l2-unallocated"
    return f"entry.{table.kind.value}"


def entry_links(meta: Metadata, table: Table, index: int, words: tuple[int, ...] | None) -> Iterator[tuple[str, str]]:
    """Where an entry leads: (label, address)."""
    if words is None or meta.geometry is None:
        return
    layout = table.layout(meta, words[0])
    prefix = f"snapshot:{table.snapshot}/" if table.snapshot is not None else ""
    if table.kind is TableKind.REFCOUNT_BLOCK:
        cluster = table.base // meta.geometry.cluster_size + index
        yield f"the cluster it counts: {cluster} at {cluster * meta.geometry.cluster_size:#x}", f"c:{cluster}"
        return
    offset = layout["offset"].get(words[0]) if layout is not None else 0
    in_this_file = not (table.kind is TableKind.L2 and meta.header.has("data_file"))
    if in_this_file and offset >= max(1, meta.file_size):
        return  # it leads nowhere, which is told as a problem
    if table.kind is TableKind.L1 and offset:
        yield f"L2 table {index} at {offset:#x}", f"{prefix}l2:{index}"
    elif table.kind is TableKind.REFCOUNT_TABLE and offset:
        yield f"refcount block {index} at {offset:#x}", f"rb:{index}"
    elif offset and in_this_file:
        yield f"bytes at {offset:#x}", f"{offset:#x}"
    if table.kind in (TableKind.L1, TableKind.L2):
        guest = table.base + index * table.coverage(meta)
        yield f"guest data at {guest:#x}", f"{prefix}g:{guest:#x}"


def _node_links(meta: Metadata, node: Node) -> Iterator[tuple[str, str]]:
    target = _POINTERS.get(node.schema)
    if target and node.value:
        yield f"{target} at {node.value:#x}", target
    elif (
        node.name.endswith("offset")
        and node.unit == "bytes"
        and isinstance(node.value, int)
        and 0 < node.value < meta.file_size
    ):
        yield f"bytes at {node.value:#x}", f"{node.value:#x}"


def _item_facts(outline: Outline, item: Item) -> Mapping[str, Any]:
    """Facts of a table item as a whole, or of a numbered part."""
    table = outline.table(item) if item.kind in TABLES else None
    if table is not None:
        return teach.facts_of_table(outline.meta, table)
    return {"index": item.index} if item.index >= 0 else {}


def _problems(meta: Metadata, offset: int, size: int) -> Iterator[tuple[str, str]]:
    for fault in meta.faults:
        if offset <= fault.offset < offset + max(1, size) and fault.length <= max(size, 8):
            yield ("bad" if fault.refusal else "warn", f"{fault.what} [{fault.code}]")
