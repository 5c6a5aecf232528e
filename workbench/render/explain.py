"""What a host offset belongs to, and who refers to it, in words and as JSON."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from workbench.engine.explain import HostFacts, Use
from workbench.engine.metadata import Metadata
from workbench.engine.owners import Owner, OwnerKind
from workbench.render.sizes import count, span


def owner_words(owner: Owner) -> str:
    """`guest data, guest 0x30000, by L2[0][3] at 0x4018`."""
    text = owner.kind.value
    if owner.guest is not None and owner.kind is not OwnerKind.L2_TABLE:
        text += f" of guest offset {owner.guest:#x}"
    elif owner.guest is not None:
        text += f" for guest offsets from {owner.guest:#x}"
    if owner.kind is OwnerKind.HEADER:
        return f"{text} (always cluster 0)"
    by = owner.table if owner.index is None else f"{owner.table}[{owner.index}]"
    text += f", referenced by {by} at {owner.at:#x}"
    if owner.kind in (OwnerKind.COMPRESSED, OwnerKind.L1_TABLE, OwnerKind.REFCOUNT_TABLE, OwnerKind.LUKS):
        text += f" ({span(owner.target.offset, owner.target.length)})"
    return text


def owner_json(owner: Owner) -> dict[str, Any]:
    """kind, at, table, index, offset, length; guest and snapshot where they apply."""
    out: dict[str, Any] = {
        "kind": owner.kind.name.lower().replace("_", "-"),
        "at": owner.at,
        "table": owner.table,
        "index": owner.index,
        "offset": owner.target.offset,
        "length": owner.target.length,
    }
    if owner.guest is not None:
        out["guest"] = owner.guest
    if owner.snapshot is not None:
        out["snapshot"] = owner.snapshot
    return out


def use_words(use: Use) -> str:
    """The owner, and which of its entries or which guest byte the host byte is."""
    text = owner_words(use.owner)
    if use.owner.kind is OwnerKind.DATA and use.guest is not None:
        return f"{text}; this byte is guest {use.guest:#x}"
    if use.entry is not None:
        about = f", about guest {use.guest:#x}" if use.guest is not None else ""
        return f"{text}; this byte is in its entry {use.entry}{about}"
    return text


def host_lines(meta: Metadata, facts: HostFacts) -> Iterator[str]:
    """What a host offset belongs to."""
    assert meta.geometry is not None
    size = meta.geometry.cluster_size
    yield f"host offset {facts.host:#x} ({facts.host}): byte {facts.within:#x} of cluster {facts.cluster}"
    yield f"   cluster = {facts.host:#x} ÷ {size:#x} = {facts.cluster}, {span(facts.cluster * size, size)}"
    if facts.beyond_end:
        yield f"   BEYOND THE END OF THE FILE, which has {meta.file_size:#x} bytes"
    yield ""
    yield f"Refcount: {_refcount_words(facts)}"
    per_block = meta.geometry.refcount_block_entries
    for (table, index), what in zip(facts.trail, ("÷", "mod"), strict=False):
        yield f"   {table.name} index = {facts.cluster} {what} {per_block} = {index}, at {table.entry_offset(meta, index):#x}"
    yield ""
    more = "" if facts.complete else "; more were not looked for"
    yield f"Used by: {count(len(facts.uses), 'reference') if facts.uses else 'nobody'}{more}"
    for use in facts.uses:
        yield f"   {use_words(use)}"
    judgement = _judge(facts)
    if judgement:
        yield ""
        yield f"=> {judgement}"


def _refcount_words(facts: HostFacts) -> str:
    if facts.refcount is None:
        return "unreadable"
    if len(facts.trail) < 2:
        return "0 (no refcount block describes this cluster)"
    return str(facts.refcount)


def _judge(facts: HostFacts) -> str:
    """Stored refcount against the references found."""
    if facts.refcount is None or not facts.complete:
        return ""
    used = len(facts.uses)
    if facts.refcount == used:
        return "free" if used == 0 else ""
    if facts.refcount > used:
        leak = "a leak: counted, but nobody refers to it" if not used else "refcount too high"
        return f"{leak} (stored {facts.refcount}, found {used})"
    return f"refcount too low (stored {facts.refcount}, found {used}): a write may destroy shared data"


def host_json(facts: HostFacts) -> dict[str, Any]:
    """host, cluster, offset-in-cluster, refcount, owners."""
    return {
        "host": facts.host,
        "cluster": facts.cluster,
        "offset-in-cluster": facts.within,
        "beyond-end": facts.beyond_end,
        "refcount": facts.refcount,
        "references": len(facts.uses),
        "complete": facts.complete,
        "owners": [
            owner_json(use.owner)
            | ({"entry": use.entry} if use.entry is not None else {})
            | ({"guest-byte": use.guest} if use.guest is not None and use.owner.kind is OwnerKind.DATA else {})
            for use in facts.uses
        ],
    }
