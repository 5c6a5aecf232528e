"""A disk's map as text, from columns: as fast as Python can write a million rows."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from formats.qcow2.entries import NO_HOST, ClusterType
from workbench.engine.reading import COMPRESSED, DATA, INVALID, PRESENT, ZERO, Flat
from workbench.render.text import printable
from workbench.units import format_size

_PORTION = 1 << 14
"""Rows that are made into text at a time."""

_NAMES = {
    ClusterType.UNALLOCATED: "unallocated",
    ClusterType.UNALLOCATED_ALLOC: "unallocated",
    ClusterType.ZERO_PLAIN: "zero",
    ClusterType.ZERO_ALLOC: "zero",
    ClusterType.NORMAL: "data",
    ClusterType.COMPRESSED: "compressed",
    ClusterType.INVALID: "invalid",
}


def type_name(flags: int, kind: int, raw: bool) -> str:
    """data, compressed, zero (said so by the image), hole (in a raw file), unallocated, invalid."""
    if flags & INVALID:
        return "invalid"
    if flags & COMPRESSED:
        return "compressed"
    if raw:
        return "hole" if flags & ZERO else "data"
    return "unallocated" if not flags & PRESENT else _NAMES[ClusterType(kind)]


def json_rows(flats: Iterable[Flat], raw_depths: Sequence[bool], *, start: int = 0) -> Iterator[str]:
    """Text pieces of the JSON array, laid out as qemu-img does it; keys of ours: compressed, type.

    start: guest offset that was asked for; an empty range comes out as one empty element there, as in qemu-img.
    """
    tails: dict[tuple[int, int, int], tuple[str, str]] = {}
    lead = "["
    for flat in flats:
        for at in range(0, len(flat), _PORTION):
            rows = slice(at, at + _PORTION)
            columns = (flat.start, flat.length, flat.flags, flat.depth, flat.host, flat.kind)
            pieces = []
            for first, length, flags, depth, host, kind in zip(*(c[rows].tolist() for c in columns), strict=True):
                key = (flags, depth, kind)
                tail = tails.get(key)
                if tail is None:
                    tail = tails[key] = _json_tail(flags, depth, kind, raw_depths[depth])
                if host == NO_HOST:
                    pieces.append(f'{{ "start": {first}, "length": {length}, {tail[0]}{tail[1]}}}')
                else:
                    pieces.append(f'{{ "start": {first}, "length": {length}, {tail[0]}, "offset": {host}{tail[1]}}}')
            if pieces:
                yield lead + ",\n".join(pieces)
                lead = ",\n"
    if lead == "[":
        none, rest = _json_tail(0, 0, ClusterType.UNALLOCATED, False)
        yield f'[{{ "start": {start}, "length": 0, {none}{rest}}}'
    yield "]\n"


def _json_tail(flags: int, depth: int, kind: int, raw: bool) -> tuple[str, str]:
    def word(bit: int) -> str:
        return "true" if flags & bit else "false"

    return (
        f'"depth": {depth}, "present": {word(PRESENT)}, "zero": {word(ZERO)}, "data": {word(DATA)}',
        f', "compressed": {word(COMPRESSED)}, "type": "{type_name(flags, kind, raw)}"',
    )


def table_rows(flats: Iterable[Flat], paths: Sequence[str], raw_depths: Sequence[bool]) -> Iterator[str]:
    """Lines of the table for people; sizes of ranges in words. Ends with a line of totals."""
    yield f"{'Offset':<16}{'Length':<16}{'Mapped to':<16}{'Type':<12}{'Size':<10}File"
    totals: dict[str, int] = {}
    for flat in flats:
        columns = (flat.start, flat.length, flat.flags, flat.depth, flat.host, flat.kind)
        for at in range(0, len(flat), _PORTION):
            rows = slice(at, at + _PORTION)
            for start, length, flags, depth, host, kind in zip(*(c[rows].tolist() for c in columns), strict=True):
                name = type_name(flags, kind, raw_depths[depth])
                totals[name] = totals.get(name, 0) + length
                where = "-" if host == NO_HOST else f"{host:#x}"
                file = printable(paths[depth]) if flags & PRESENT else "-"
                yield f"{start:<#16x}{length:<#16x}{where:<16}{name:<12}{format_size(length):<10}{file}"
    if totals:
        yield "Total: " + ", ".join(f"{format_size(size)} {name}" for name, size in sorted(totals.items()))
