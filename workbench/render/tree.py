"""Annotated trees as lines: offset, raw bytes, field, value, meaning. Rows are shared by `qwb dump` and the workbench."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from formats.annotate import Node, NodeKind
from workbench.render.hexdump import hex_bytes
from workbench.render.sizes import date, duration
from workbench.render.text import clip, printable, quoted
from workbench.units import format_size

_RAW_WIDTH = 8 * 3 + 1
_NAME_WIDTH = 34
_MIN_MEANING = 16


@dataclass(frozen=True, slots=True)
class Row:
    """One line of a tree. depth: levels below the root.  where: host offset, or bit range for bit fields."""

    node: Node
    depth: int
    where: str
    raw: str
    name: str
    value: str
    meaning: str


def tree_rows(node: Node, *, depth: int = 0, root: bool = True) -> Iterator[Row]:
    """Rows of the tree in byte order; bit fields under their word, unnamed bits that are zero left out."""
    if root:
        yield row_of(node, depth)
    for child in node.children:
        if child.kind is NodeKind.BITS and child.value == 0 and child.name.startswith(("reserved", "unknown")):
            continue
        if child.size == 0 and child.kind is NodeKind.FIELD:
            continue  # padding or extra data that is not there
        yield from tree_rows(child, depth=depth + 1)


def row_of(node: Node, depth: int = 0) -> Row:
    """The row of one node."""
    if node.bits is not None:
        low, high = node.bits
        where = f"bit {low}" if low == high else f"bits {low}-{high}"
        return Row(node, depth, where, "", node.name, value_text(node), node.doc)
    raw = "" if node.kind is NodeKind.STRUCT else hex_bytes(node.raw)
    name = node.name if node.kind is not NodeKind.FAULT or not node.size else f"{node.name} (cut off)"
    index = node.path.rpartition(".")[2]
    if index.startswith(node.name + "[") and node.name:
        name = index
    return Row(node, depth, f"{node.offset:#010x}", raw, printable(name), value_text(node), printable(node.doc))


def value_text(node: Node) -> str:
    """A node's value for people: number with its unit, symbol, quoted text, size of a gap."""
    value = node.value
    if node.kind is NodeKind.STRUCT:
        return _byte_count(node.size)
    if node.kind is NodeKind.FAULT:
        return "unreadable"
    if node.kind is NodeKind.GAP:
        return _byte_count(node.size, zero=not any(node.raw))
    if isinstance(value, str):
        return quoted(value)
    if isinstance(value, bytes):
        return _byte_count(len(value), zero=bool(value) and not any(value))
    if not isinstance(value, int):
        return ""
    text = number_text(node.name, value, node.unit, bool(node.children))
    return f"{text}  {node.symbol}" if node.symbol else text


def number_text(name: str, value: int, unit: str, word: bool = False) -> str:
    """A number in the notation that fits: flags as yes/no, offsets in hex, sizes with their size in words."""
    if unit == "flag":
        return "yes" if value else "no"
    if word or name in ("magic", "type", "state") or unit == "subclusters":
        return f"{value:#x}"
    if name.endswith("offset") and unit == "bytes":
        return f"{value:#x}"
    if unit == "bytes" and value >= 1024:
        return f"{value} bytes ({format_size(value)})"
    if name.endswith("_bits") and unit == "bits" and value < 64:
        return f"{value} ({format_size(1 << value)})"
    if name == "refcount_order" and value < 8:
        return f"{value} ({1 << value} bits)"
    if name == "date_seconds":
        return f"{value} ({date(value)})"
    if name == "vm_clock" and value:
        return f"{value} ({duration(value)})"
    return f"{value} {_one(unit) if value == 1 else unit}".rstrip()


def _byte_count(size: int, *, zero: bool = False) -> str:
    return f"{size} {'byte' if size == 1 else 'bytes'}{', zero' if zero else ''}"


def _one(unit: str) -> str:
    return unit[:-3] + "y" if unit.endswith("ies") else unit.removesuffix("s")


def tree_lines(node: Node, *, width: int = 120, docs: bool = True, color: bool = False) -> Iterator[str]:
    """The tree as text, `width` columns wide; the meaning is cut, or left out where it has no room."""
    for row in tree_rows(node):
        yield row_line(row, width=width, docs=docs, color=color)


def row_line(row: Row, *, width: int = 120, docs: bool = True, color: bool = False) -> str:
    """One row as text."""
    indent = "  " * row.depth
    name = clip(f"{indent}{row.name}", _NAME_WIDTH)
    line = f"{row.where:>12}  {row.raw:<{_RAW_WIDTH}} {name:<{_NAME_WIDTH}} "
    if color:
        line = _paint(line, row.node.kind)
    used = 12 + 2 + _RAW_WIDTH + 1 + _NAME_WIDTH + 1
    room = width - used
    if not docs or not row.meaning or room < len(row.value) + 2 + _MIN_MEANING:
        return (line + row.value).rstrip()
    value = f"{row.value:<28}"
    meaning = clip(row.meaning, room - len(value) - 2) if room - len(value) - 2 >= _MIN_MEANING else ""
    meaning = f"\x1b[2m{meaning}\x1b[0m" if color and meaning else meaning
    return f"{line}{value}  {meaning}".rstrip()


def _paint(text: str, kind: NodeKind) -> str:
    code = {NodeKind.STRUCT: "1", NodeKind.FAULT: "1;31", NodeKind.GAP: "2", NodeKind.BITS: "36"}.get(kind)
    return f"\x1b[{code}m{text}\x1b[0m" if code else text
