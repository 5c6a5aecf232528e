"""Runs of table entries in words and as JSON: what `qwb dump l2:3` prints, one line a run."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

from formats.qcow2.entries import (
    NO_HOST,
    ClusterType,
    Fault,
    PointerKind,
    PointerTable,
    is_copied,
    past_end,
    read_l2,
    read_pointer,
    reserved_bits,
    subclusters,
)
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


PAST_END = "BEYOND THE END OF THE FILE"


class Sort(StrEnum):
    """What an entry stands for; the value is the word for it in a column."""

    MISSING = "not in file"
    UNALLOCATED = "unallocated"
    DATA = "data"
    ZERO = "zero"
    ZERO_ALLOCATED = "zero alloc"
    COMPRESSED = "compressed"
    SUBCLUSTERS = "subclusters"
    L2_TABLE = "L2 table"
    REFCOUNT_BLOCK = "block"
    BITMAP_DATA = "bitmap data"
    ALL_ONES = "all ones"
    ALL_ZEROS = "all zeros"
    FREE = "free"
    IN_USE = "in use"


@dataclass(frozen=True, slots=True)
class Meaning:
    """What the entries of a run say. host, end: host bytes that they name (end inclusive, of the whole run), None without.

    value: a refcount, -1 elsewhere.  detail: which subclusters, in words.  flags: as the specification names them.
    oddities: what is wrong with the entry by itself, in capitals.
    """

    sort: Sort
    host: int | None = None
    end: int | None = None
    value: int = -1
    detail: str = ""
    flags: tuple[str, ...] = ()
    oddities: tuple[str, ...] = ()


def meaning(meta: Metadata, table: Table, run: Run) -> Meaning:
    """Decode a run; what is wrong with it is told, never raised."""
    if run.missing:
        return Meaning(Sort.MISSING)
    if table.kind is TableKind.REFCOUNT_BLOCK:
        return Meaning(Sort.IN_USE if run.words[0] else Sort.FREE, value=run.words[0])
    if table.kind is TableKind.L2:
        return _l2_meaning(meta, table, run)
    word = run.words[0]
    found = read_pointer(word, POINTERS[table.kind], meta.shape)
    sort = _POINTER_SORTS[table.kind][found.kind]
    host = found.start if found.kind is PointerKind.CLUSTER else None
    return _with_flags(meta, table, run, Meaning(sort, host, _end(meta, run, host)), found.faults)


POINTERS = {
    TableKind.L1: PointerTable.L1,
    TableKind.REFCOUNT_TABLE: PointerTable.REFCOUNT,
    TableKind.BITMAP_TABLE: PointerTable.BITMAP,
}
_POINTER_SORTS = {
    TableKind.L1: {PointerKind.CLUSTER: Sort.L2_TABLE, PointerKind.NONE: Sort.UNALLOCATED},
    TableKind.REFCOUNT_TABLE: {PointerKind.CLUSTER: Sort.REFCOUNT_BLOCK, PointerKind.NONE: Sort.FREE},
    TableKind.BITMAP_TABLE: {
        PointerKind.CLUSTER: Sort.BITMAP_DATA,
        PointerKind.ONES: Sort.ALL_ONES,
        PointerKind.NONE: Sort.ALL_ZEROS,
    },
}


def _l2_meaning(meta: Metadata, table: Table, run: Run) -> Meaning:
    bitmap = run.words[1] if len(run.words) == 2 else 0
    found = read_l2(run.words[0], meta.shape, bitmap)
    if found.kind is ClusterType.COMPRESSED:
        return _with_flags(meta, table, run, Meaning(Sort.COMPRESSED, found.start, found.end - 1), found.faults)
    host = found.start if found.start != NO_HOST else None
    if len(run.words) == 2:
        detail, host = _subcluster_words(bitmap), host or None
        sort = Sort.SUBCLUSTERS if detail else Sort.UNALLOCATED
    else:
        detail, sort = "", _L2_SORTS[found.kind]
    return _with_flags(meta, table, run, Meaning(sort, host, _end(meta, run, host), detail=detail), found.faults)


_L2_SORTS = {
    ClusterType.UNALLOCATED: Sort.UNALLOCATED,
    ClusterType.ZERO_PLAIN: Sort.ZERO,
    ClusterType.ZERO_ALLOC: Sort.ZERO_ALLOCATED,
    ClusterType.NORMAL: Sort.DATA,
}


def _subcluster_words(bitmap: int) -> str:
    allocated, zero = subclusters(bitmap)
    both = "both data and zero: INVALID"
    masks = ((allocated, "data"), (zero, "zero"), (allocated & zero, both))
    return "; ".join(
        f"subcluster{'s' if mask.bit_count() > 1 else ''} {bit_ranges(mask)} {name}" for mask, name in masks if mask
    )


def _end(meta: Metadata, run: Run, offset: int | None) -> int | None:
    """Last host byte that a run names: its entries' clusters follow on from each other, or are one and the same."""
    if offset is None or meta.geometry is None:
        return None
    return offset + (run.step * run.count if run.step else meta.geometry.cluster_size) - 1


def _with_flags(meta: Metadata, table: Table, run: Run, found: Meaning, faults: int) -> Meaning:
    assert meta.geometry is not None
    word, size = run.words[0], meta.geometry.cluster_size
    copied = table.kind in (TableKind.L1, TableKind.L2) and is_copied(word)
    odd = []
    reserved = reserved_bits(word, meta.shape, POINTERS.get(table.kind))
    if reserved:
        odd.append(f"RESERVED BITS {reserved:#x}")
    if found.host and found.sort is not Sort.COMPRESSED:
        if faults & Fault.UNALIGNED:
            odd.append("UNALIGNED")
        elsewhere = table.kind is TableKind.L2 and meta.header.has("data_file")
        if past_end(found.host, size, meta.file_size, size) and not elsewhere:
            odd.append(PAST_END)
    return replace(found, flags=("copied",) if copied else (), oddities=tuple(odd))


def run_words(meta: Metadata, table: Table, run: Run) -> str:
    """What the entries of a run say, in words."""
    return meaning_words(meta, table, run, meaning(meta, table, run))


def meaning_words(meta: Metadata, table: Table, run: Run, found: Meaning) -> str:
    """`data at 0x50000  (copied)`; what is wrong stands in capitals at the end."""
    notes = (*found.flags, *found.oddities)
    return _sort_words(table, run, found) + (f"  ({', '.join(notes)})" if notes else "")


def _sort_words(table: Table, run: Run, found: Meaning) -> str:
    sort = found.sort
    if sort is Sort.MISSING:
        return "the file ends before these entries"
    if table.kind is TableKind.REFCOUNT_BLOCK:
        return {0: "free", 1: "in use"}.get(found.value, f"in use {found.value:,} times")
    if sort is Sort.COMPRESSED:
        assert found.host is not None and found.end is not None
        return f"compressed at {found.host:#x}, up to {count(found.end + 1 - found.host, 'byte')}"
    where = _where(run, found)
    if sort is Sort.SUBCLUSTERS or (found.host is not None and sort is Sort.UNALLOCATED and table.kind is TableKind.L2):
        return "; ".join(part for part in (found.detail or sort.value, f"cluster at {where}" if where else "") if part)
    nothing = {
        TableKind.L1: {Sort.UNALLOCATED: "no L2 table: unallocated"},
        TableKind.REFCOUNT_TABLE: {Sort.FREE: "no refcount block: all free"},
    }.get(table.kind, {})
    if sort in nothing:
        return nothing[sort]
    word = {Sort.REFCOUNT_BLOCK: "refcount block", Sort.ZERO_ALLOCATED: "zero, allocated"}.get(sort, sort.value)
    return f"{word} at {where}" if where else word


def _where(run: Run, found: Meaning) -> str:
    if found.host is None:
        return ""
    if run.step:
        return f"{found.host:#x}, then neighbours up to {found.end:#x}"
    return f"{found.host:#x}" + (" in every one" if run.count > 1 else "")


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


def side_of(table: Table) -> str:
    """Which addresses the entries of a table describe: host or guest."""
    return "host" if table.kind in (TableKind.REFCOUNT_TABLE, TableKind.REFCOUNT_BLOCK) else "guest"


def covered(meta: Metadata, table: Table, run: Run) -> tuple[int, int]:
    """(start, length) of the guest or host range that the entries describe, in bytes; length 0 where that makes no sense."""
    step = table.coverage(meta)
    return table.base + run.first * step, run.count * step


def covers(meta: Metadata, table: Table, run: Run) -> str:
    """The guest or host range that the entries describe, in words."""
    start, length = covered(meta, table, run)
    if not length:
        return count(run.count, "entry") if run.count > 1 else ""
    return f"{side_of(table)} {span(start, length)} ({format_size(length)})"


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
    start, length = covered(meta, table, run)
    if length:
        out[side_of(table)] = {"start": start, "length": length}
    layout = table.layout(meta, run.words[0])
    if layout is None:
        return out | {"refcount": run.words[0]}
    out["fields"] = layout.decode(run.words[0])
    if len(run.words) == 2:
        out["subclusters"] = dict(zip(("allocated", "zero"), subclusters(run.words[1]), strict=True))
    return out
