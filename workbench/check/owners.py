"""Who references these host clusters, exactly: table, index, snapshot, guest offset. One pass over the mapping tables.

For many clusters at once (a repair that moves things); engine/owners.py answers for a single one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from formats.qcow2.entries import offset_of
from formats.qcow2.tables import distinct
from workbench.check.kinds import Owner
from workbench.check.passes_refcounts import StoredRefcounts
from workbench.check.regions import Regions, RegionWalk
from workbench.check.tables import L2Set, entries_of, read_l1
from workbench.engine.metadata import Metadata
from workbench.units import Geometry

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Reference:
    """One reference to a host cluster.

    cluster: host cluster number.  owner: what sort of thing uses it.  table, index: host offset (bytes) of the table that
    holds the pointer, and the entry in it; table 0 when the header or an extension points here.  entry: the raw pointer.
    snapshot: index, -1 the active disk.  guest: guest offset in bytes, or None for metadata.
    """

    cluster: int
    owner: Owner
    table: int
    index: int
    entry: int
    snapshot: int
    guest: int | None


def find_owners(
    meta: Metadata,
    clusters: NDArray[np.int64] | list[int],
    *,
    limit: int = 1 << 16,
    cancelled: Callable[[], None] | None = None,
) -> list[Reference]:
    """Every reference to the given host clusters, by cluster; at most `limit`. Empty without a geometry."""
    from workbench.check.findings import FindingLog

    geometry = meta.geometry
    wanted = distinct(np.asarray(clusters, dtype=np.int64))
    if geometry is None or not wanted.size:
        return []
    regions = RegionWalk(meta, geometry, FindingLog()).run()
    tables = regions.collector.result()
    users = _Users(meta, geometry, regions)
    out = _fixed(meta, geometry, regions, wanted)
    out += _tables(geometry, tables, users, wanted)
    out += _data(meta, geometry, tables, users, wanted, limit, cancelled)
    return sorted(out[:limit], key=lambda each: (each.cluster, each.owner, each.snapshot, each.table, each.index))


class _Users:
    """L1 entries (snapshot, table offset, index, raw entry) that refer to an L2 table."""

    def __init__(self, meta: Metadata, geometry: Geometry, regions: Regions) -> None:
        tables = [(-1, meta.header.l1_table_offset, regions.active_l1)]
        for claim in regions.claims:
            if claim.owner is Owner.INACTIVE_L1:
                tables.append((claim.snapshot, claim.offset, read_l1(meta, claim.offset, claim.length // 8)))
        self.tables = tables

    def of(self, offset: int) -> list[tuple[int, int, int, int]]:
        found = []
        for snapshot, where, entries in self.tables:
            same = np.flatnonzero(offset_of(entries) == np.uint64(offset))
            found += [(snapshot, where, int(i), int(entries[i])) for i in same.tolist() if entries[i]]
        return found


def _within(wanted: NDArray[np.int64], first: int, last: int) -> list[int]:
    low, high = np.searchsorted(wanted, [first, last + 1])
    found: list[int] = wanted[low:high].tolist()
    return found


def _fixed(meta: Metadata, geometry: Geometry, regions: Regions, wanted: NDArray[np.int64]) -> list[Reference]:
    """Header, L1 tables, refcount structures, snapshot table, LUKS header, bitmaps."""
    bits = geometry.cluster_bits
    out = []
    for claim in dict.fromkeys(regions.claims):
        for cluster in _within(wanted, claim.offset >> bits, (claim.end - 1) >> bits):
            out.append(Reference(cluster, claim.owner, 0, max(claim.index, 0), claim.offset, claim.snapshot, None))
    stored = StoredRefcounts(meta, geometry)
    blocks = (stored.blocks >> np.uint64(bits)).astype(np.int64)
    for index in np.flatnonzero(np.isin(blocks, wanted) & (stored.blocks != 0)).tolist():
        entry = int(stored.table[index])
        base = meta.refcount_table_region.offset
        out.append(Reference(int(blocks[index]), Owner.REFCOUNT_BLOCK, base, index, entry, -1, None))
    for number, clusters in regions.bitmap_data:
        for cluster in clusters[np.isin(clusters, wanted)].tolist():
            out.append(Reference(cluster, Owner.BITMAP_DATA, 0, number, cluster << bits, -1, None))
    return out


def _tables(geometry: Geometry, tables: L2Set, users: _Users, wanted: NDArray[np.int64]) -> list[Reference]:
    bits = geometry.cluster_bits
    first = (tables.offset >> np.uint64(bits)).astype(np.int64)
    last = ((tables.offset + np.uint64(geometry.cluster_size - 1)) >> np.uint64(bits)).astype(np.int64)
    low, high = np.searchsorted(wanted, first), np.searchsorted(wanted, last, side="right")
    out = []
    for row in np.flatnonzero(high > low).tolist():
        for snapshot, where, index, entry in users.of(int(tables.offset[row])):
            owner = Owner.ACTIVE_L2 if snapshot < 0 else Owner.INACTIVE_L2
            guest = int(geometry.guest_offset(index, 0))
            for cluster in wanted[low[row] : high[row]].tolist():
                out.append(Reference(cluster, owner, where, index, entry, snapshot, guest))
    return out


def _data(
    meta: Metadata,
    geometry: Geometry,
    tables: L2Set,
    users: _Users,
    wanted: NDArray[np.int64],
    limit: int,
    cancelled: Callable[[], None] | None,
) -> list[Reference]:
    if meta.header.has("data_file"):
        return []
    out: list[Reference] = []
    for each in entries_of(meta, tables, geometry, wanted, cancelled):
        table = int(tables.offset[each.row])
        for snapshot, _, index, _ in users.of(table):
            plain = Owner.DATA if snapshot < 0 else Owner.SNAPSHOT_DATA
            owner = Owner.COMPRESSED if each.packed else plain
            guest = int(geometry.guest_offset(index, each.column))
            for cluster in each.clusters:
                out.append(Reference(cluster, owner, table, each.column, each.word, snapshot, guest))
        if len(out) >= limit:
            break
    return out
