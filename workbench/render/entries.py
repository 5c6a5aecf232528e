"""Runs of table entries in words and as JSON: what `qwb dump l2:3` prints, one line a run."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from formats.qcow2.tables import COMPRESSED, compressed_range
from workbench.engine.metadata import Metadata
from workbench.engine.tables import Run, Table, TableKind
from workbench.render.sizes import count, span
from workbench.units import format_size


def run_label(table: Table, run: Run) -> str:
    """`[12]` or `[12..8191]`."""
    return f"[{run.first}]" if run.count == 1 else f"[{run.first}..{run.last}]"


def run_raw(meta: Metadata, table: Table, run: Run) -> str:
    """The raw value of the first entry in hex, as wide as an entry."""
    if run.missing:
        return "-"
    digits = min(16, max(1, table.entry_bits(meta) // 4))
    return " ".join(f"{word:0{digits}x}" for word in run.words)


def run_words(meta: Metadata, table: Table, run: Run) -> str:
    """What the entries of a run say, in words."""
    if run.missing:
        return "the file ends before these entries"
    word = run.words[0]
    if table.kind is TableKind.REFCOUNT_BLOCK:
        return {0: "free", 1: "in use"}.get(word, f"in use {word:,} times")
    if table.kind is TableKind.L2:
        return _l2_words(meta, run)
    return _pointer_words(meta, table, run)


def _pointer_words(meta: Metadata, table: Table, run: Run) -> str:
    word = run.words[0]
    layout = table.layout(meta, word)
    assert layout is not None
    offset = layout["offset"].get(word)
    target = {
        TableKind.L1: "L2 table",
        TableKind.REFCOUNT_TABLE: "refcount block",
        TableKind.BITMAP_TABLE: "bitmap data",
    }[table.kind]
    if offset == 0:
        nothing = {
            TableKind.L1: "no L2 table: unallocated",
            TableKind.REFCOUNT_TABLE: "no refcount block: all free",
            TableKind.BITMAP_TABLE: "all ones" if word & 1 else "all zeros",
        }[table.kind]
        return nothing + _oddities(meta, table, word, 0)
    return f"{target} at {_where(meta, run, offset)}" + _oddities(meta, table, word, offset)


def _l2_words(meta: Metadata, run: Run) -> str:
    geometry = meta.geometry
    assert geometry is not None
    word = run.words[0]
    table_kind = Table(TableKind.L2, "", meta.l1_region, 0)
    if word & COMPRESSED:
        offset, end = compressed_range(word, geometry.cluster_bits)
        text = f"compressed at {offset:#x}, up to {count((end - offset), 'byte')}"
        return text + _oddities(meta, table_kind, word, None)
    layout = table_kind.layout(meta, word)
    assert layout is not None
    offset = layout["offset"].get(word)
    parts = []
    if len(run.words) == 2:
        allocated, zero = run.words[1] & 0xFFFFFFFF, run.words[1] >> 32
        kinds = [
            f"subclusters {bit_ranges(mask)} {name}" for mask, name in ((allocated, "data"), (zero, "zero")) if mask
        ]
        if allocated & zero:
            kinds.append(f"subclusters {bit_ranges(allocated & zero)} both data and zero: INVALID")
        parts = kinds or ["unallocated"]
        if offset:
            parts.append(f"cluster at {_where(meta, run, offset)}")
    elif word & 1:
        parts = [f"zero, allocated at {_where(meta, run, offset)}" if offset else "zero"]
    elif offset or (word and meta.header.has("data_file")):
        parts = [f"data at {_where(meta, run, offset)}"]
    else:
        parts = ["unallocated"]
    return "; ".join(parts) + _oddities(meta, table_kind, word, offset)


def _where(meta: Metadata, run: Run, offset: int) -> str:
    if run.step:
        return f"{offset:#x}, then neighbours up to {offset + run.step * run.count - 1:#x}"
    return f"{offset:#x}" + (" in every one" if run.count > 1 else "")


def _oddities(meta: Metadata, table: Table, word: int, offset: int | None) -> str:
    layout = table.layout(meta, word)
    assert layout is not None and meta.geometry is not None
    notes = []
    if any(bit.name == "copied" for bit in layout) and layout["copied"].get(word):
        notes.append("copied")
    if word & layout.reserved_mask:
        notes.append(f"RESERVED BITS {word & layout.reserved_mask:#x}")
    if offset and offset % meta.geometry.cluster_size:
        notes.append("UNALIGNED")
    data_elsewhere = table.kind is TableKind.L2 and meta.header.has("data_file")
    if offset and offset >= meta.file_size and not data_elsewhere:
        notes.append("BEYOND THE END OF THE FILE")
    return f"  ({', '.join(notes)})" if notes else ""


def bit_ranges(mask: int) -> str:
    """`0-3,7` of a bit mask."""
    out, bit = [], 0
    while mask >> bit:
        if mask >> bit & 1:
            end = bit
            while mask >> (end + 1) & 1:
                end += 1
            out.append(str(bit) if end == bit else f"{bit}-{end}")
            bit = end
        bit += 1
    return ",".join(out)


def covers(meta: Metadata, table: Table, run: Run) -> str:
    """The guest or host range that the entries describe."""
    step = table.coverage(meta)
    if not step:
        return count(run.count, "entry") if run.count > 1 else ""
    start, length = table.base + run.first * step, run.count * step
    side = "host" if table.kind in (TableKind.REFCOUNT_TABLE, TableKind.REFCOUNT_BLOCK) else "guest"
    return f"{side} {span(start, length)} ({format_size(length)})"


def table_lines(
    meta: Metadata, table: Table, *, first: int = 0, length: int | None = None, fold: bool = True
) -> Iterator[str]:
    """Offset, raw value, index, what it says, what it covers: one line a run."""
    for run in table.runs(meta, first, length, fold=fold):
        raw = run_raw(meta, table, run)
        label, words = run_label(table, run), run_words(meta, table, run)
        yield f"{table.entry_offset(meta, run.first):#012x}  {raw:<16}  {label:<16} {words:<60}  {covers(meta, table, run)}".rstrip()


def run_json(meta: Metadata, table: Table, run: Run) -> dict[str, Any]:
    """index, count, offset (host, of the first entry), raw, step, fields, subclusters, meaning."""
    out: dict[str, Any] = {
        "index": run.first,
        "count": run.count,
        "offset": table.entry_offset(meta, run.first),
        "raw": run_raw(meta, table, run),
        "meaning": run_words(meta, table, run),
    }
    if run.missing:
        return out | {"missing": True}
    if run.step:
        out["step"] = run.step
    step = table.coverage(meta)
    if step:
        side = "host" if table.kind in (TableKind.REFCOUNT_TABLE, TableKind.REFCOUNT_BLOCK) else "guest"
        out[side] = {"start": table.base + run.first * step, "length": run.count * step}
    layout = table.layout(meta, run.words[0])
    if layout is None:
        return out | {"refcount": run.words[0]}
    out["fields"] = layout.decode(run.words[0])
    if len(run.words) == 2:
        out["subclusters"] = {"allocated": run.words[1] & 0xFFFFFFFF, "zero": run.words[1] >> 32}
    return out
