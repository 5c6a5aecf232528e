"""What an entry of a mapping, refcount or bitmap table means in this image (spec: Cluster mapping and following)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from formats.qcow2.entries import (
    NO_HOST,
    ClusterType,
    PointerKind,
    PointerTable,
    Shape,
    block_of,
    offset_bits,
    offset_of,
    packed_range,
    read_l2,
    read_pointer,
    subclusters,
)
from workbench.teach.filling import Facts, UnknownFactError, both, number, size, span
from workbench.teach.here_header import where


def _range(facts: Facts, kind: str = "Guest") -> str:
    """`Guest 0x0 … 0xffff (64 KiB)`, or the empty string when the entry's place is not known."""
    if "range_start" not in facts or "range_length" not in facts:
        return ""
    start, length = number(facts, "range_start"), number(facts, "range_length")
    return f"{kind} {span(start, length)} ({size(length)})"


def _word(facts: Facts) -> int:
    return number(facts, "word" if "word" in facts else "value")


def _shape(facts: Facts) -> Shape:
    """The image's shape, as far as the facts tell it."""
    bits, version = facts.get("cluster_bits"), facts.get("version")
    return Shape(
        bits if isinstance(bits, int) and 9 <= bits <= 21 else 16,
        bool(facts.get("extended_l2")),
        version if isinstance(version, int) else 3,
        bool(facts.get("flag_data_file")),
    )


def _backing(facts: Facts) -> str:
    if "backing_name" in facts:
        return "reads come from the backing file"
    return "reads as zeros, as there is no backing file"


def _l1_entry(facts: Facts) -> str:
    place, offset = _range(facts) or "Its part of the disk", offset_of(_word(facts))
    if not offset:
        return f"{place} has no L2 table: it {_backing(facts)}."
    return f"{place} is described by the L2 table at {offset:#x}. {where(facts, offset, number(facts, 'cluster_size'), named=True)}"


def _l2_entry(facts: Facts) -> str:
    place = _range(facts) or "This guest cluster"
    kind, offset, _, _ = read_l2(_word(facts), _shape(facts))
    if kind is ClusterType.ZERO_ALLOC:
        return f"{place} reads as zeros; the host cluster at {offset:#x} is kept for it."
    if kind is ClusterType.ZERO_PLAIN:
        return f"{place} reads as zeros and takes no space."
    if kind is ClusterType.UNALLOCATED:
        return f"{place} is unallocated: it {_backing(facts)}."
    if facts.get("flag_data_file"):
        return f"{place} is stored in the external data file at {offset:#x}."
    return f"{place} is stored at host {offset:#x}. {where(facts, offset, number(facts, 'cluster_size'), named=True)}"


def _l2_extended(facts: Facts) -> str:
    place, offset = _range(facts) or "This guest cluster", offset_of(_word(facts))
    if not offset:
        return f"{place} has no host cluster; its subcluster bitmap says which parts read as zeros, and the rest {_backing(facts)}."
    return f"{place} has the host cluster at {offset:#x}, in 32 subclusters of {size(number(facts, 'subcluster_size'))}; the bitmap says which are in use."


def _split(facts: Facts) -> int:
    bits = number(facts, "cluster_bits")
    if not 9 <= bits <= 21:
        raise UnknownFactError("cluster_bits")
    return offset_bits(Shape(bits))


def _compressed(facts: Facts) -> str:
    _split(facts)  # no words without a cluster size
    offset, end = packed_range(_word(facts), _shape(facts))
    place = _range(facts) or "This guest cluster"
    text = f"{place} is compressed; its data begin at host {offset:#x} and end by {end:#x}: at most {both(end - offset)} instead of {size(number(facts, 'cluster_size'))}."
    return text + (" **The file ends before that.**" if offset >= number(facts, "file_size") else "")


def _compressed_offset(facts: Facts) -> str:
    unit, value = number(facts, "cluster_size"), number(facts, "value")
    return f"The data begin {value % unit:,} bytes into host cluster {value // unit:,}. The field is {_split(facts)} bits wide with clusters of {size(unit)}."


def _sectors(facts: Facts) -> str:
    value, split = number(facts, "value"), _split(facts)
    return f"{value:,} sectors beyond the first: {value + 1:,} × 512 = {(value + 1) * 512:,} bytes, counted from the sector boundary at or before the offset. The field is {62 - split} bits wide here."


def _pointer(facts: Facts) -> str:
    value = number(facts, "value")
    return where(facts, value, number(facts, "cluster_size")) if value else "0: there is none."


def _subclusters(facts: Facts) -> str:
    value, unit = number(facts, "value"), number(facts, "subcluster_size")
    allocated, zero = subclusters(value)
    neither = 32 - (allocated | zero).bit_count()
    text = f"Of 32 subclusters of {size(unit)}: {allocated.bit_count()} with data, {zero.bit_count()} zero, {neither} unallocated."
    both_set = allocated & zero
    return text + (f" **Both at once, which is not allowed: {_indices(both_set)}.**" if both_set else "")


def _subcluster_half(facts: Facts) -> str:
    value = number(facts, "value")
    return f"Subclusters {_indices(value)} ({value.bit_count()} of 32)." if value else "No subcluster."


def _indices(bits: int) -> str:
    """`0–3, 8, 31` for a word's set bits."""
    found: list[str] = []
    at = 0
    while at < 32:
        if not bits >> at & 1:
            at += 1
            continue
        start = at
        while at < 32 and bits >> at & 1:
            at += 1
        found.append(str(start) if at == start + 1 else f"{start}–{at - 1}")
    return ", ".join(found)


def _reserved(facts: Facts) -> str:
    value = number(facts, "value")
    return f"They hold **{value:#x}**, where zeros must be." if value else "They are zero, as they must be."


def _refcount_table_entry(facts: Facts) -> str:
    offset, place = block_of(_word(facts)), _range(facts, "Host") or "Its part of the file"
    if not offset:
        return f"{place} has no refcount block: all of its clusters count as free."
    return f"{place} is counted by the block at {offset:#x}. {where(facts, offset, number(facts, 'cluster_size'), named=True)}"


def _refcount_block(facts: Facts) -> str:
    text = f"A block holds {number(facts, 'refcount_block_entries'):,} counts of {number(facts, 'refcount_bits')} bits and so covers {size(number(facts, 'refcount_block_coverage'))} of the file."
    if facts.get("table") == "refcount-block" and (place := _range(facts, "host")):
        value = facts.get("value")
        if "index" in facts and isinstance(value, int):
            uses = (
                "free"
                if value == 0
                else "in use once"
                if value == 1
                else f"used {value:,} times; a write to it copies it first"
            )
            return f"The cluster at {place} is {uses}."
        text += f" This one counts {place}."
    return text


def _bitmap_entry(facts: Facts) -> str:
    place = _range(facts) or "Its part of the disk"
    kind, offset, _, _ = read_pointer(_word(facts), PointerTable.BITMAP, _shape(facts))
    if offset != NO_HOST:
        return f"{place} has its bits in the cluster at {offset:#x}. {where(facts, offset, number(facts, 'cluster_size'), named=True)}"
    return f"{place} has no cluster of bits: all of them are {'one (dirty)' if kind is PointerKind.ONES else 'zero (clean)'}."


def _l1(facts: Facts) -> str:
    if "snapshot" in facts:
        return f"The table of snapshot {number(facts, 'snapshot')}: {number(facts, 'table_entries'):,} entries at {number(facts, 'table_offset'):#x}."
    count, coverage = number(facts, "l1_size"), number(facts, "l2_coverage")
    return f"{count:,} entr{'y' if count == 1 else 'ies'} of {size(coverage)} each at {number(facts, 'l1_table_offset'):#x}: room for {size(count * coverage)}; the disk has {size(number(facts, 'virtual_size'))}."


def _l2(facts: Facts) -> str:
    text = f"{number(facts, 'l2_entries'):,} entries of {number(facts, 'l2_entry_size')} bytes, one per cluster of {size(number(facts, 'cluster_size'))}: {size(number(facts, 'l2_coverage'))} in all."
    if facts.get("table") == "l2" and (place := _range(facts, "guest")):
        text += f" This one describes {place}." if "index" not in facts else ""
    return text


def _refcount_table(facts: Facts) -> str:
    count, coverage = number(facts, "refcount_table_entries"), number(facts, "refcount_block_coverage")
    return f"{count:,} entries at {number(facts, 'refcount_table_offset'):#x}, each for {size(coverage)}: enough for a file of {size(count * coverage)}; this one has {size(number(facts, 'file_size'))}."


def _copied(facts: Facts) -> str:
    value = number(facts, "value")
    if "snapshot" in facts:
        return f"{value}, but this is a snapshot's table, where the flag means nothing."
    return (
        "1: refcount one, so a write goes straight to it." if value else "0: unallocated, or a write must copy first."
    )


HERE: Final[Mapping[str, Callable[[Facts], str]]] = {
    "l1": _l1,
    "l2": _l2,
    "refcount-table": _refcount_table,
    "refcount-block": _refcount_block,
    "refcount-block.refcounts": _refcount_block,
    "l1-entry": _l1_entry,
    "l1-entry.offset": _pointer,
    "l1-entry.copied": _copied,
    "l1-entry.reserved_low": _reserved,
    "l1-entry.reserved_high": _reserved,
    "l2-entry": _l2_entry,
    "l2-entry.offset": _l2_entry,
    "l2-entry.copied": _copied,
    "l2-entry.reserved_low": _reserved,
    "l2-entry.reserved_high": _reserved,
    "l2-entry-extended": _l2_extended,
    "l2-entry-extended.offset": _l2_extended,
    "l2-entry-extended.reserved_low": _reserved,
    "l2-entry-extended.reserved_high": _reserved,
    "l2-entry-extended.copied": _copied,
    "l2-entry-compressed": _compressed,
    "l2-entry-compressed.offset": _compressed_offset,
    "l2-entry-compressed.sectors": _sectors,
    "l2-entry-compressed.reserved": _reserved,
    "subcluster-bitmap": _subclusters,
    "subcluster-bitmap.allocated": _subcluster_half,
    "subcluster-bitmap.zero": _subcluster_half,
    "refcount-table-entry": _refcount_table_entry,
    "refcount-table-entry.offset": _refcount_table_entry,
    "refcount-table-entry.reserved": _reserved,
    "bitmap-table-entry": _bitmap_entry,
    "bitmap-table-entry.offset": _bitmap_entry,
    "bitmap-table-entry.reserved_low": _reserved,
    "bitmap-table-entry.reserved_high": _reserved,
}
