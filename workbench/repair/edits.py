"""Steps for people: the decoded meaning of the bytes before and after, named as the schemas name them."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

from formats.annotate import Node, NodeKind, annotate
from formats.qcow2.bitmaps import BITMAP_SCHEMA
from formats.qcow2.header import HEADER_SCHEMA
from formats.qcow2.refcounts import unpack
from formats.qcow2.snapshots import SNAPSHOT_SCHEMA
from formats.qcow2.tables import table_schema
from workbench.repair.workspace import Step
from workbench.units import Geometry

if TYPE_CHECKING:
    from workbench.repair.plan import Plan
    from workbench.repair.preserve import Proof

_MOST = 8
"""Differing fields listed for one step."""


def describe(
    step: Step, geometry: Geometry | None, head: tuple[bytes, bytes] | None = None
) -> list[tuple[str, str, str]]:
    """(name, value before, value after) of the fields that a step changes; empty where the bytes are plain data.

    head: the header cluster before and after, for steps inside it.
    """
    if step.kind == "refcount-block" and geometry is not None:
        return _refcounts(step, geometry)
    old, new = (
        _nodes(step, step.before, geometry, head and head[0]),
        _nodes(step, step.after, geometry, head and head[1]),
    )
    names = [name for name in new if new[name] != old.get(name)] + [name for name in old if name not in new]
    return [(name, old.get(name, "-"), new.get(name, "-")) for name in names[:_MOST]]


def _nodes(step: Step, data: bytes, geometry: Geometry | None, head: bytes | None) -> dict[str, str]:
    found = _tree(step, data, geometry, head)
    if found is None:
        return {}
    low, high = step.offset, step.offset + step.length
    out = {}
    for node in found.walk():
        if node.kind in (NodeKind.FIELD, NodeKind.BITS) and not node.children and low < node.end and node.offset < high:
            out[node.path.split(".", 1)[-1]] = _value(node)
    return out


def _tree(step: Step, data: bytes, geometry: Geometry | None, head: bytes | None) -> Node | None:
    bits = geometry.cluster_bits if geometry else 16
    extended = bool(geometry and geometry.extended_l2)
    if step.kind == "header":
        return annotate(HEADER_SCHEMA, head[:512], name="header") if head else None
    if step.kind in ("l1", "refcount-table", "bitmap-table"):
        return annotate(table_schema(step.kind), data, name=step.kind, base=step.offset)
    if step.kind == "l2":
        kind = "l2-extended" if extended else "l2"
        if extended and (step.offset % 16 or len(data) % 16):
            kind, extended = "l2", False
        return annotate(table_schema(kind), data, name="l2", base=step.offset, cluster_bits=bits, extended=extended)
    if step.kind == "snapshot":
        return annotate(SNAPSHOT_SCHEMA, data, name="snapshot", base=step.offset)
    if step.kind == "bitmap":
        return annotate(BITMAP_SCHEMA, data, name="bitmap", base=step.offset)
    return None


def _value(node: Node) -> str:
    if node.symbol:
        return node.symbol
    if isinstance(node.value, int):
        return f"{node.value:#x}" if node.unit == "bytes" or node.value > 0xFFFF else str(node.value)
    if isinstance(node.value, bytes):
        return node.value[:24].hex(" ")
    return str(node.value)


def _refcounts(step: Step, geometry: Geometry) -> list[tuple[str, str, str]]:
    old = unpack(step.before, geometry.refcount_order).tolist()
    new = unpack(step.after, geometry.refcount_order).tolist()
    pairs = [(i, a, b) for i, (a, b) in enumerate(zip(old, new, strict=False)) if a != b]
    if len(old) < len(new):
        pairs += [(i, 0, b) for i, b in enumerate(new[len(old) :], len(old)) if b]
    base = step.offset % geometry.cluster_size * 8 // geometry.refcount_bits
    return [(f"refcount[{base + i}]", str(a), str(b)) for i, a, b in pairs[:_MOST]]


def step_json(step: Step, plan: Plan) -> dict[str, Any]:
    """One step as JSON values."""
    meta = plan.result_after.meta
    fields = describe(step, meta.geometry, heads(plan))
    out: dict[str, Any] = {
        "number": step.number,
        "code": step.code,
        "fix": step.fix,
        "title": step.title,
        "risk": step.tier.value,
        "kind": step.kind,
        "offset": step.offset,
        "length": step.length,
        "before": step.before[:64].hex(),
        "after": step.after[:64].hex(),
        "fields": [{"name": name, "before": old, "after": new} for name, old, new in fields],
    }
    if step.guest:
        out["guest"] = [{"start": start, "length": length} for start, length in step.guest]
    if step.snapshots:
        out["snapshots"] = list(step.snapshots)
    if step.choice:
        out["choice"] = step.choice
    return out


def heads(plan: Plan) -> tuple[bytes, bytes]:
    """First bytes of the file before and after the plan."""
    return plan.base.read(0, 512), plan.overlay.read(0, 512)


_SHOWN: Final = 2
"""Steps of one kind that are shown in full when there are more of them."""


def _likeness(step: Step) -> str:
    """The same for steps that do the same in other places."""
    return re.sub(r"0x[0-9a-f]+|\d+", "#", step.title)


def plan_lines(plan: Plan) -> list[str]:
    """The plan as text: verdicts, steps grouped by finding, many of one kind told once, notes."""
    meta = plan.result_after.meta
    lines = [f"now:   {plan.before}", f"after: {plan.after}"]
    if not plan.empty:
        lines += [f"proof: {plan.proof}", *(f"       {each}" for each in proof_lines(plan.proof))]
    if plan.empty:
        lines.append("nothing to do")
    for code, steps in plan.groups().items():
        risk = max((step.tier.value for step in steps), key=("safe", "judgement", "destructive").index)
        lines += ["", f"{code} ({risk})"]
        alike: dict[str, list[Step]] = {}
        for step in steps:
            alike.setdefault(_likeness(step), []).append(step)
        folded = {kind: found for kind, found in alike.items() if len(found) > _SHOWN + 1}
        left_out = {step.number for found in folded.values() for step in found[_SHOWN:]}
        for step in [each for each in steps if each.number not in left_out]:
            lines.append(f"  {step.number:>3}. {step.title}  [{step.kind} at {step.offset:#x}, {step.length} bytes]")
            lines += [
                f"         {name}: {old} -> {new}" for name, old, new in describe(step, meta.geometry, heads(plan))[:4]
            ]
            if step.guest:
                shown = ", ".join(f"{start:#x}+{length:#x}" for start, length in step.guest[:4])
                lines.append(f"         guest: {shown}" + (" …" if len(step.guest) > 4 else ""))
            if step.snapshots:
                lines.append(f"         snapshots: {', '.join(step.snapshots)}")
        lines += [f"       … and {len(found) - _SHOWN:,} more like step {found[0].number}" for found in folded.values()]
    if plan.withheld is not None:
        lines += [
            "",
            f"left out, since it could lose something: {', '.join(plan.withheld.titles)} ({plan.withheld.proof})",
        ]
        lines += [f"       {each}" for each in proof_lines(plan.withheld.proof)]
    if plan.notes:
        lines += ["", *(f"note: {note}" for note in plan.notes)]
    return lines


def proof_lines(proof: Proof, limit: int = 40) -> list[str]:
    """What the proof names, range by range: losses first, then what goes free and what is regained."""
    lines = []
    for word, account in (
        ("given up", proof.gives_up),
        ("not proven", proof.unproven),
        ("freed", proof.frees_content),
        ("regained", proof.regains),
    ):
        for each in account.ranges[:limit]:
            disk = f"guest (snapshot {each.snapshot})" if each.snapshot else "guest" if each.guest else "host"
            lines.append(f"{word}: {disk} {each.start:#x}+{each.length:#x}: {each.reason}")
        if len(account.ranges) > limit:
            lines.append(f"{word}: {len(account.ranges) - limit:,} more ranges")
    return lines
