"""Schema + bytes -> tree of nodes.

`Field` is construct's `Renamed` with a description. When the parse context carries a `_trace` list (see `annotate`)
each field appends a `Node` for the bytes that it consumed; the nodes that its parts appended become its children. So one
object parses, builds and annotates, offsets stay right behind variable-length fields, and on truncated input the tree
holds everything up to the failing field. Bytes that no field claims become nodes of kind GAP.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any

from construct import (
    Construct,
    ConstructError,
    FormatField,
    IfThenElse,
    Renamed,
    Struct,
    Subconstruct,
    Switch,
)

from formats.bitfields import BitLayout

U8 = FormatField(">", "B")
U16 = FormatField(">", "H")
U32 = FormatField(">", "L")
U64 = FormatField(">", "Q")
L16 = FormatField("<", "H")
L32 = FormatField("<", "L")
L64 = FormatField("<", "Q")


class NodeKind(Enum):
    """What a node stands for."""

    STRUCT = "struct"
    FIELD = "field"
    BITS = "bits"
    GAP = "gap"
    FAULT = "fault"


@dataclass(frozen=True, slots=True)
class Node:
    """A named byte range with its meaning.

    path: dotted schema path with list indices (`header.cluster_bits`, `extensions[1].data.name`).  offset: host byte
    offset; size: bytes; for BITS nodes `bits` is (low, high) inside the parent's word.  raw: the bytes (of the whole word
    for BITS).  value: int, bytes, str or None for structures.  symbol: name of the value where it has one.
    schema: the path without indices, the key of explanations.
    """

    name: str
    path: str
    offset: int
    size: int
    raw: bytes
    value: Any
    kind: NodeKind
    doc: str = ""
    spec: str = ""
    unit: str = ""
    symbol: str = ""
    schema: str = ""
    bits: tuple[int, int] | None = None
    children: tuple[Node, ...] = ()

    @property
    def end(self) -> int:
        """Host offset just past the node."""
        return self.offset + self.size

    def walk(self) -> Iterator[Node]:
        """The node and everything below it, depth first."""
        yield self
        for child in self.children:
            yield from child.walk()

    def find(self, path: str) -> Node | None:
        """The node below (or at) this one whose path ends in `path`."""
        for node in self.walk():
            if node.path == path or node.path.endswith("." + path):
                return node
        return None


class Field(Renamed):  # type: ignore[misc]
    """A named, documented part of a structure.

    unit: what a number counts.  bits: layout of a word's bit fields, or a choice made from (word, parse parameters).  symbols: names of values.
    text: how bytes are shown ("utf-8" for names).
    """

    def __init__(
        self,
        name: str,
        subcon: Construct,
        doc: str,
        spec: str,
        *,
        unit: str = "",
        bits: BitLayout | Callable[[int, Any], BitLayout] | None = None,
        symbols: Mapping[int, str] | None = None,
        text: str = "",
    ) -> None:
        super().__init__(subcon, newname=name, newdocs=doc)
        self.doc = doc
        self.spec = spec
        self.unit = unit
        self.bits = bits
        self.symbols = symbols or {}
        self.text = text

    def _parse(self, stream: io.BytesIO, context: Any, path: str) -> Any:
        trace: list[Node] | None = context_params(context).get("_trace")
        if trace is None:
            return super()._parse(stream, context, path)
        start, mark = stream.tell(), len(trace)
        try:
            value = super()._parse(stream, context, path)
        except ConstructError:
            self._record(trace, mark, stream, start, None, context, failed=True)
            raise
        self._record(trace, mark, stream, start, value, context)
        return value

    def _record(
        self,
        trace: list[Node],
        mark: int,
        stream: io.BytesIO,
        start: int,
        value: Any,
        context: Any,
        failed: bool = False,
    ) -> None:
        children = tuple(trace[mark:])
        del trace[mark:]
        end = stream.seek(0, io.SEEK_END) if failed else stream.tell()
        if value is None and end <= start and not failed:
            return  # a conditional field that is absent here
        raw = context_params(context)["_data"][start:end]
        if isinstance(self.bits, BitLayout):
            layout: BitLayout | None = self.bits
        else:
            layout = (
                self.bits(value, context_params(context)) if self.bits is not None and isinstance(value, int) else None
            )
        if layout is not None and not failed and isinstance(value, int):
            children = tuple(_bit_nodes(layout, value, start, raw))
        plain = isinstance(value, (int, bytes, str)) and not isinstance(value, bool)
        if plain and self.text and isinstance(value, bytes):
            value = value.decode(self.text, "replace").rstrip("\0")
        kind = NodeKind.FAULT if failed else NodeKind.STRUCT if children and layout is None else NodeKind.FIELD
        trace.append(
            Node(
                name=self.name,
                path=self.name,
                offset=start,
                size=end - start,
                raw=raw,
                value=value if plain else None,
                kind=kind,
                doc=self.doc if not failed else f"{self.doc} (the data ends inside this field)",
                spec=self.spec,
                unit=self.unit,
                symbol=self.symbols.get(value, "") if isinstance(value, int) else "",
                children=children,
            )
        )


def context_params(context: Any) -> Any:
    """The keyword arguments of the outermost parse call, from anywhere inside it."""
    return context.get("_params", context)


class Records(Subconstruct):  # type: ignore[misc]
    """As many whole records of `size` bytes as the stream holds; a shorter rest is left unread (it shows as a gap)."""

    def __init__(self, size: int, subcon: Construct) -> None:
        super().__init__(subcon)
        self.size = size

    def _parse(self, stream: io.BytesIO, context: Any, path: str) -> list[Any]:
        start = stream.tell()
        count = len(stream.read()) // self.size
        stream.seek(start)
        return [self.subcon._parsereport(stream, context, f"{path}[{index}]") for index in range(count)]

    def _build(self, obj: Any, stream: io.BytesIO, context: Any, path: str) -> Any:
        return [self.subcon._build(each, stream, context, f"{path}[{index}]") for index, each in enumerate(obj)]


def _bit_nodes(layout: BitLayout, word: int, offset: int, raw: bytes) -> Iterator[Node]:
    for each in layout:
        value = each.get(word)
        yield Node(
            name=each.name,
            path=each.name,
            offset=offset,
            size=len(raw),
            raw=raw,
            value=value,
            kind=NodeKind.BITS,
            doc=each.doc,
            spec=each.spec,
            unit=each.unit,
            symbol=each.symbols.get(value, ""),
            bits=(each.low, each.high),
        )


def annotate(schema: Construct, data: bytes, *, name: str, base: int = 0, doc: str = "", **params: Any) -> Node:
    """Parse `data` (which stands at host offset `base`) and return the tree of what every byte means.

    schema may be partial over the data: unclaimed bytes become GAP nodes. Never raises on content: a field that the
    data ends in becomes a FAULT node, what follows it a gap. params reach the schema's context (`this._params.…`).
    """
    trace: list[Node] = []
    stream = io.BytesIO(data)
    try:
        schema.parse_stream(stream, _trace=trace, _data=data, **params)
    except ConstructError as error:
        if not any(node.kind is NodeKind.FAULT for top in trace for node in top.walk()):
            at = stream.tell()
            trace.append(
                Node(
                    f"unreadable: {type(error).__name__}",
                    "unreadable",
                    at,
                    0,
                    b"",
                    None,
                    NodeKind.FAULT,
                    doc=str(error),
                )
            )
    root = Node(name, name, 0, len(data), data, None, NodeKind.STRUCT, doc=doc, schema=name, children=tuple(trace))
    return _finish(root, data, name, name, base)


def _finish(node: Node, data: bytes, path: str, schema: str, base: int) -> Node:
    """Sorted children with gaps filled in, full paths and host offsets."""
    if node.kind in (NodeKind.FIELD, NodeKind.BITS, NodeKind.GAP) or not node.children:
        bits = tuple(
            replace(child, path=f"{path}.{child.name}", schema=f"{schema}.{child.name}", offset=child.offset + base)
            for child in node.children
        )
        return replace(node, path=path, schema=schema, offset=node.offset + base, children=bits)
    done: list[Node] = []
    position, seen = node.offset, dict[str, int]()
    repeated = {c.name for c in node.children if sum(1 for other in node.children if other.name == c.name) > 1}
    for child in sorted(node.children, key=lambda c: (c.offset, c.size == 0)):
        if child.offset > position:
            done.append(_gap(data, position, child.offset, path, base))
        label = child.name
        if child.name in repeated:
            label = f"{child.name}[{seen.get(child.name, 0)}]"
            seen[child.name] = seen.get(child.name, 0) + 1
        done.append(_finish(child, data, f"{path}.{label}", f"{schema}.{child.name}", base))
        position = max(position, child.offset + child.size)
    if position < node.offset + node.size:
        done.append(_gap(data, position, node.offset + node.size, path, base))
    return replace(node, path=path, schema=schema, offset=node.offset + base, children=tuple(done))


def _gap(data: bytes, start: int, end: int, path: str, base: int) -> Node:
    raw = data[start:end]
    doc = "Not described by any field; all zero." if not any(raw) else "Not described by any field; not zero."
    return Node(
        "gap", f"{path}.gap@{start:#x}", start + base, end - start, raw, raw, NodeKind.GAP, doc=doc, schema="gap"
    )


def fields_of(schema: Construct, prefix: str) -> Iterator[tuple[str, Field]]:
    """Every (schema path, Field) that `schema` can produce, whichever way its conditions go. For documentation and tests."""
    if isinstance(schema, Field):
        path = f"{prefix}.{schema.name}"
        yield path, schema
        yield from fields_of(schema.subcon, path)
    elif isinstance(schema, Struct):
        for sub in schema.subcons:
            yield from fields_of(sub, prefix)
    elif isinstance(schema, IfThenElse):
        yield from fields_of(schema.thensubcon, prefix)
        yield from fields_of(schema.elsesubcon, prefix)
    elif isinstance(schema, Switch):
        for sub in schema.cases.values():
            yield from fields_of(sub, prefix)
        yield from fields_of(schema.default, prefix)
    elif isinstance(schema, Subconstruct):
        yield from fields_of(schema.subcon, prefix)


__all__ = [
    "U8",
    "U16",
    "U32",
    "U64",
    "Field",
    "Node",
    "NodeKind",
    "Records",
    "annotate",
    "fields_of",
]
