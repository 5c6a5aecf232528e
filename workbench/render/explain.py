"""Translations and owners in words and as JSON."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from workbench.engine.explain import HostFacts, Outcome, Step, StepKind, Translation, Use
from workbench.engine.metadata import Metadata
from workbench.engine.owners import Owner, OwnerKind
from workbench.render.sizes import count, span
from workbench.render.text import quoted
from workbench.units import format_size

_TITLES = {
    StepKind.RANGE: "Is it on the disk?",
    StepKind.L1_INDEX: "Which L1 entry?",
    StepKind.L1_ENTRY: "Read the L1 entry",
    StepKind.L2_INDEX: "Which L2 entry?",
    StepKind.L2_ENTRY: "Read the L2 entry",
    StepKind.SUBCLUSTER: "Which subcluster?",
    StepKind.COMPRESSED: "Decode the compressed descriptor",
    StepKind.DATA: "Add the offset in the cluster",
}


def step_title(step: Step) -> str:
    """The question that the step answers."""
    return _TITLES[step.kind]


def step_lines(meta: Metadata, step: Step) -> list[str]:
    """The step's arithmetic with the numbers filled in."""
    n = step.numbers
    if step.kind is StepKind.RANGE:
        sign = "<" if step.result else ">="
        return [f"{n['guest']:#x} {sign} virtual size {n['size']:#x} ({format_size(n['size'])})"]
    if step.kind is StepKind.L1_INDEX:
        return [
            f"one L2 table describes {format_size(n['coverage'])} of the disk",
            f"L1 index = {n['guest']:#x} // {n['coverage']:#x} = {step.result}",
        ]
    if step.kind is StepKind.L2_INDEX:
        return [
            f"L2 index = ({n['guest']:#x} // {n['cluster_size']:#x}) mod {n['entries']} = {step.result}",
        ]
    if step.kind in (StepKind.L1_ENTRY, StepKind.L2_ENTRY):
        return _entry_lines(meta, step)
    if step.kind is StepKind.SUBCLUSTER:
        state = ", ".join(name for name, key in (("data", "allocated"), ("zero", "zero")) if n[key]) or "unallocated"
        return [f"subcluster = {n['within']:#x} // {n['size']:#x} = {step.result}: {state}"]
    if step.kind is StepKind.COMPRESSED:
        return [
            f"data starts at host {n['offset']:#x} and spans {count(n['sectors'], 'sector')} of 512 bytes: at most {count(n['length'], 'byte')}"
        ]
    return [f"host offset = {n['offset']:#x} + {n['within']:#x} = {step.result:#x}"]


def _entry_lines(meta: Metadata, step: Step) -> list[str]:
    n = step.numbers
    at = step.where.offset if step.where else 0
    raw = " ".join(f"{word:#018x}" for word in step.words)
    lines = [f"entry is at {n['table']:#x} + {n['index']} * {n['size']} = {at:#x}; it holds {raw}"]
    return [*lines, f"-> {_entry_meaning(meta, step)}"]


def _entry_meaning(meta: Metadata, step: Step) -> str:
    from workbench.engine.tables import Run, l1_table, l2_table
    from workbench.render.entries import run_words

    table = l1_table(meta) if step.kind is StepKind.L1_ENTRY else l2_table(meta, 0, 0)
    return run_words(meta, table, Run(step.numbers["index"], 1, step.words))


def outcome_words(found: Translation) -> str:
    """The translation's end in one sentence."""
    if found.outcome is Outcome.DATA:
        where = f"host offset {found.host:#x}"
        return f"stored at {where}" + (f" of the external data file {quoted(found.external)}" if found.external else "")
    if found.outcome is Outcome.COMPRESSED and found.run is not None:
        return f"compressed, in host bytes {span(found.run.offset, found.run.length)}"
    if found.outcome is Outcome.ZERO:
        return "reads as zeros (zero flag)"
    if found.outcome is Outcome.BEYOND_END:
        return "beyond the end of the virtual disk"
    if found.outcome is Outcome.BROKEN:
        return f"BROKEN: {found.problem}"
    if found.backing is not None:
        return f"not in this image: read from the backing file {quoted(found.backing)} at the same offset"
    return "not allocated: reads as zeros"


def translation_lines(meta: Metadata, found: Translation) -> Iterator[str]:
    """The whole way of a guest offset."""
    view = (
        ""
        if found.snapshot is None
        else f" of snapshot {found.snapshot} ({quoted(meta.snapshots[found.snapshot].name)})"
    )
    yield f"guest offset {found.guest:#x} ({found.guest}){view}: {outcome_words(found)}"
    for number, step in enumerate(found.steps, 1):
        yield ""
        yield f"{number}. {step_title(step)}"
        for line in step_lines(meta, step):
            yield f"   {line}"
    yield ""
    yield f"=> {outcome_words(found)}"


def translation_json(meta: Metadata, found: Translation) -> dict[str, Any]:
    """guest, outcome, steps with numbers; host, length, data-file, backing, problem where they apply."""
    out: dict[str, Any] = {"guest": found.guest, "outcome": found.outcome.value}
    if found.snapshot is not None:
        out["snapshot"] = found.snapshot
    if found.host is not None:
        out["host"] = found.host
    if found.run is not None:
        out |= {"host": found.run.offset, "length": found.run.length}
    for key, value in (("data-file", found.external), ("backing", found.backing), ("problem", found.problem)):
        if value is not None:
            out[key] = value
    out["steps"] = [
        {
            "step": step.kind.value,
            **{key.replace("_", "-"): value for key, value in step.numbers.items()},
            "result": step.result,
            **({"at": step.where.offset} if step.where else {}),
            **({"raw": [f"{word:016x}" for word in step.words]} if step.words else {}),
            "text": step_lines(meta, step),
        }
        for step in found.steps
    ]
    return out


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
    yield f"   cluster = {facts.host:#x} // {size:#x} = {facts.cluster}, {span(facts.cluster * size, size)}"
    if facts.beyond_end:
        yield f"   BEYOND THE END OF THE FILE, which has {meta.file_size:#x} bytes"
    yield ""
    yield f"Refcount: {_refcount_words(facts)}"
    per_block = meta.geometry.refcount_block_entries
    for (table, index), what in zip(facts.trail, ("//", "mod"), strict=False):
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
