"""Findings that qemu-img has no eye for: wiped or foreign L2 tables, the file's tail, bitmap tails, fragmentation."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np

from formats.qcow2.entries import offset_of
from workbench.check.findings import FindingLog
from workbench.check.passes_l2 import MappingStats
from workbench.check.passes_refcounts import StoredRefcounts
from workbench.check.regions import Regions
from workbench.check.tables import L2Set
from workbench.engine.metadata import Metadata, Region
from workbench.units import Geometry

if TYPE_CHECKING:
    from numpy.typing import NDArray

MOST: Final = 4096
UNCOUNTED: Final = (
    "REFCOUNT-UNREADABLE", "REFBLOCK-UNALIGNED", "REFBLOCK-BEYOND-EOF", "REFBLOCK-RESERVED", "REGION-BEYOND-EOF", "READ-ERROR",
    "REFTABLE-MISSING", "REFTABLE-TOO-LARGE", "REFTABLE-UNALIGNED", "REFTABLE-OFFSET",
)  # fmt: skip
"""With one of these nobody can say that a cluster is not used: its refcount, or what refers to it, cannot be read."""


def _first_users(active_l1: NDArray[np.uint64], places: NDArray[np.uint64]) -> dict[int, list[int]]:
    """Host offset of each of these tables -> the first four entries of the L1 table that lead there."""
    offset = offset_of(active_l1)
    users = np.flatnonzero(np.isin(offset, places))
    users = users[np.argsort(offset[users], kind="stable")]
    offset = offset[users]
    firsts = np.searchsorted(offset, places)
    ends = np.minimum(np.searchsorted(offset, places, side="right"), firsts + 4)
    spans = zip(places.tolist(), firsts.tolist(), ends.tolist(), strict=True)
    return {place: users[first:end].tolist() for place, first, end in spans}


def table_notes(
    meta: Metadata,
    geometry: Geometry,
    tables: L2Set,
    empty: NDArray[np.intp],
    foreign: NDArray[np.intp],
    active_l1: NDArray[np.uint64],
    log: FindingLog,
) -> dict[int, str]:
    """Log L2 tables that are empty, foreign, or used by two L1 entries; returns L1 index -> what a foreign one is."""
    size = geometry.cluster_size
    kinds: dict[int, str] = {}

    def place(row: int) -> dict[str, Any]:
        index = int(tables.index[row])
        return {
            "table": int(tables.offset[row]),
            "index": index,
            "guest": int(geometry.guest_offset(index, 0)),
            "guest_length": geometry.l2_coverage,
            "snapshot": int(tables.snapshot[row]),
        }

    for row in empty[tables.offset[empty] != 0][:MOST].tolist():
        log.add("L2-TABLE-EMPTY", int(tables.offset[row]), size, **place(row))
    foreign = foreign[tables.offset[foreign] != 0]
    for number, row in enumerate(foreign[:MOST].tolist()):
        offset = int(tables.offset[row])
        kind = "something else"
        if number < 32:
            from workbench.check import content

            data = meta.storage.read(offset, min(size, 72 << 10))
            kind = content.describe(data, meta.file_size, geometry.cluster_bits)
            kind = {"data": "other data", "zeros": "zeros"}.get(kind, kind)
        if tables.snapshot[row] < 0:
            kinds[int(tables.index[row])] = kind
        log.add("L2-TABLE-FOREIGN", offset, size, numbers={"kind": kind}, **place(row))
    shared = np.flatnonzero(tables.active > 1)[:MOST]
    first_users = _first_users(active_l1, tables.offset[shared]) if shared.size else {}
    for row in shared.tolist():
        if 0 < int(tables.offset[row]) < meta.file_size:  # beyond there is no table to share
            users = first_users[int(tables.offset[row])]
            named = " and ".join(
                f"L1 entry {index} (guest {int(geometry.guest_offset(index, 0)):#x})" for index in users
            )
            log.add(
                "L2-TABLE-SHARED", int(tables.offset[row]), size, other=int(tables.active[row]), numbers={"owners": f": {named}"},
                **place(row),
            )  # fmt: skip
    return kinds


def log_tail(
    meta: Metadata,
    geometry: Geometry,
    stored: StoredRefcounts,
    regions: Regions,
    mapping: MappingStats,
    log: FindingLog,
) -> None:
    """Refcounts past the end of the file, bits beyond the end of the disk in bitmaps, and strong fragmentation."""
    total = geometry.clusters(meta.file_size)
    size = geometry.cluster_size
    first = total // stored.entries
    for index in (np.flatnonzero(stored.blocks[first:])[:64] + first).tolist():
        values = None if stored.unreadable[index] else stored.block(index)
        if values is None:
            continue
        used = np.flatnonzero(values) + index * stored.entries
        used = used[used > total]
        if used.size:
            start, end = int(used[0]), int(used[-1]) + 1
            log.add(
                "REFCOUNT-PAST-EOF", start * size, (end - start) * size, count=used.size, other=meta.file_size,
                table=stored.meta.refcount_table_region.offset, index=index,
            )  # fmt: skip
    plain = mapping.allocated - mapping.compressed
    jumps = mapping.fragmented - mapping.compressed
    if plain >= 256 and jumps * 2 > plain:
        log.add("IMAGE-FRAGMENTED", 0, 0, value=jumps, other=plain, numbers={"percent": 100 * jumps / plain})
    _bitmap_tails(meta, geometry, log)


def _bitmap_tails(meta: Metadata, geometry: Geometry, log: FindingLog) -> None:
    size = geometry.cluster_size
    if meta.bitmaps_extension is None or not meta.header.has("bitmaps"):
        return
    for index, each in enumerate(meta.bitmap_directory.bitmaps):
        if each.in_use or not each.table_size or not 9 <= each.granularity_bits <= 31:
            continue
        bits = -(-meta.header.size // each.granularity)
        last = each.table_size - 1
        tail = bits - last * size * 8
        if not 0 <= tail < size * 8:
            continue
        words = meta.read_words(Region(each.table_offset + last * 8, 8), 8)
        offset = offset_of(int(words[0]))
        if not offset or offset % size or offset >= meta.file_size:
            continue
        data = np.frombuffer(meta.storage.read(offset + tail // 8, size - tail // 8), dtype=np.uint8)
        spare = int(np.unpackbits(data, bitorder="little")[tail % 8 :].sum())
        if spare:
            log.add(
                "BITMAP-TAIL-BITS", offset + tail // 8, size - tail // 8, count=spare, table=each.table_offset,
                index=last, numbers={"bitmap": index},
            )  # fmt: skip


def log_unused(meta: Metadata, geometry: Geometry, highest: int, log: FindingLog) -> None:
    """The end of the file behind the last cluster in use."""
    end = (highest + 1) * geometry.cluster_size
    if meta.file_size - end >= geometry.cluster_size:
        log.add("FILE-TAIL-UNUSED", end, meta.file_size - end)
