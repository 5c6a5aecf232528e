"""Is the cluster size the header's? Tables read with another one look damaged, and mending them would damage them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from formats.qcow2 import limits, refcounts
from formats.qcow2.entries import Pointers, PointerTable
from workbench.engine.metadata import Metadata, as_if, load_metadata

if TYPE_CHECKING:
    from collections.abc import Iterator

_FAR: Final = 4
"""The clusters in use end a quarter of the file's length, or more, from its end."""
_NEAR: Final = 2
"""Clusters between the last one in use and the end of the file where the cluster size is right."""


def counted_end(meta: Metadata) -> int:
    """Where the last cluster ends whose refcount is not 0, in bytes; 0 when no refcount can be read."""
    geometry = meta.geometry
    if geometry is None:
        return 0
    size, order = geometry.cluster_size, geometry.refcount_order
    each = Pointers(meta.refcount_table, PointerTable.REFCOUNT, meta.shape)
    for index in np.flatnonzero(each.inside(meta.file_size))[::-1].tolist():
        values = refcounts.unpack(meta.storage.read(int(each.offset[index]), size).ljust(size, b"\0"), order)
        used = np.flatnonzero(values)
        if used.size and refcounts.may_be_refcounts(values):
            return int(index * geometry.refcount_block_entries + int(used[-1]) + 1) * size
    return 0


def other_cluster_sizes(meta: Metadata) -> Iterator[int]:
    """cluster_bits other than the header's to which the offsets of its L1 and refcount table are aligned."""
    header = meta.header
    for bits in range(limits.MIN_CLUSTER_BITS, limits.MAX_CLUSTER_BITS + 1):
        aligned = not (header.l1_table_offset | header.refcount_table_offset) & ((1 << bits) - 1)
        if bits != header.cluster_bits and aligned:
            yield bits


def with_cluster_bits(meta: Metadata, bits: int) -> Metadata:
    """The same file under another cluster size."""
    return load_metadata(as_if(meta.storage, cluster_bits=bits))


def likelier_cluster_bits(meta: Metadata, end: int) -> int | None:
    """The one cluster size under which the clusters in use end where the file does, when under the header's they end far
    from there. end: where those are, in bytes."""
    if abs(meta.file_size - end) * _FAR < meta.file_size:
        return None
    found = []
    for bits in other_cluster_sizes(meta):
        other = with_cluster_bits(meta, bits)
        if other.geometry is not None and not _misses(other, counted_end(other)):
            found.append(bits)
    return found[0] if len(found) == 1 else None


def _misses(meta: Metadata, end: int) -> bool:
    return abs(meta.file_size - end) > _NEAR << meta.header.cluster_bits
