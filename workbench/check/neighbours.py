"""Host cluster to guest offset in the active disk, for a set of host clusters: one pass over the L2 tables."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from formats.qcow2.entries import L2Entries, offset_of
from workbench.check.tables import L2Set, may_map, plan_batches, read_batch
from workbench.engine.metadata import Metadata
from workbench.errors import StorageError
from workbench.units import Geometry

if TYPE_CHECKING:
    from numpy.typing import NDArray


def guest_of_clusters(meta: Metadata, tables: L2Set, geometry: Geometry, clusters: NDArray[np.int64]) -> dict[int, int]:
    """Guest offsets (bytes) of those of `clusters` (sorted) that a standard entry of the active disk maps."""
    out: dict[int, int] = {}
    if not clusters.size:
        return out
    bits = geometry.cluster_bits
    for rows in plan_batches(tables, geometry, meta.file_size):
        active = rows[tables.active[rows] > 0]
        if not active.size:
            continue
        try:
            batch = read_batch(meta, tables, active, geometry)
        except StorageError:
            continue  # reported as READ-ERROR by the check itself
        batch = may_map(batch, clusters, meta)
        active = batch.rows
        each = L2Entries(batch.words, meta.shape)
        found = (each.offset >> np.uint64(bits)).astype(np.int64)
        place = np.minimum(np.searchsorted(clusters, found), clusters.size - 1)
        hit = (clusters[place] == found) & each.placed
        for row, col in zip(*(axis.tolist() for axis in np.nonzero(hit)), strict=True):
            index = int(tables.index[active[row]])
            if tables.snapshot[active[row]] < 0:
                out.setdefault(int(found[row, col]), int(geometry.guest_offset(index, col)))
    return out


def is_unmapped(meta: Metadata, geometry: Geometry, l1: NDArray[np.uint64], guest: int) -> bool:
    """Whether the active disk has neither data nor zeros at `guest`, though its L2 table exists."""
    if not 0 <= guest < meta.header.size or geometry.l1_index(guest) >= l1.size:
        return False
    table = offset_of(int(l1[geometry.l1_index(guest)]))
    if not table:
        return False
    size = geometry.l2_entry_size
    return not any(meta.storage.read(table + geometry.l2_index(guest) * size, size))
