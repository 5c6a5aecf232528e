"""Nodes of an annotated structure as JSON values."""

from __future__ import annotations

from typing import Any

from formats.annotate import Node, NodeKind

RAW_LIMIT = 4096
"""Longest raw value that is written out, in bytes; longer ones carry their length only."""


def node_to_json(node: Node, *, docs: bool = True) -> dict[str, Any]:
    """name, path, offset, size, kind, value, symbol, unit, raw (hex), bits, doc, spec, children; empty ones left out."""
    out: dict[str, Any] = {
        "name": node.name,
        "path": node.path,
        "kind": node.kind.value,
        "offset": node.offset,
        "size": node.size,
    }
    if node.value is not None and node.kind is not NodeKind.GAP:
        out["value"] = node.value.hex() if isinstance(node.value, bytes) else node.value
    if node.kind is not NodeKind.STRUCT and node.kind is not NodeKind.BITS:
        out["raw"] = node.raw[:RAW_LIMIT].hex()
    if node.bits is not None:
        out["bits"] = list(node.bits)
    for key in ("symbol", "unit"):
        if getattr(node, key):
            out[key] = getattr(node, key)
    if docs:
        for key in ("doc", "spec"):
            if getattr(node, key):
                out[key] = getattr(node, key)
    if node.children:
        out["children"] = [node_to_json(child, docs=docs) for child in node.children]
    return out
