"""How much space a new image will need for a disk, reckoned as `qemu-img measure` does: nothing is read but the map."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from formats.luks.header import space_for
from formats.qcow2.bitmaps import entry_size
from formats.qcow2.limits import MAX_L1_SIZE
from workbench.engine.convert import Source
from workbench.engine.create import CreateOptions
from workbench.engine.metadata import Metadata
from workbench.engine.reading import DATA, INVALID, ZERO, Flat, flatten
from workbench.engine.write.prealloc import Preallocation
from workbench.errors import ArgumentError, CorruptError
from workbench.units import SECTOR_SIZE, Geometry, div_round_up, round_up

if TYPE_CHECKING:
    from workbench.engine.layers import Layer

_ENTRY: Final = 8
"""Bytes of an entry of the L1, refcount and bitmap tables."""


@dataclass(frozen=True, slots=True)
class Measure:
    """Bytes of a file. required: with what the disk holds now.  fully_allocated: with every cluster written.

    bitmaps: more, for the disk's persistent bitmaps; None where source or target cannot have any.
    """

    required: int
    fully_allocated: int
    bitmaps: int | None = None


def measure_raw(size: int) -> Measure:
    """A raw file of `size` bytes, holes counted."""
    whole = round_up(size, SECTOR_SIZE)
    return Measure(whole, whole)


def measure_qcow2(options: CreateOptions, source: Source | None = None, *, luks_key_bytes: int = 0) -> Measure:
    """A qcow2 image of `options.size` bytes, or with the content of `source` (then of its size).

    luks_key_bytes: length of the LUKS master key, 0 for an image that is not encrypted with LUKS. Of the options only
    those that decide about space count. Raises ArgumentError with QEMU's words, CorruptError where the map is damaged.
    """
    options.check_shape()
    geometry = options.geometry
    cluster = geometry.cluster_size
    if geometry.l1_entries_for(options.size) * _ENTRY > MAX_L1_SIZE:
        raise ArgumentError("The image size is too large (try using a larger cluster size)")
    size = round_up(options.size if source is None else source.size, cluster)
    reserved = options.preallocation in (Preallocation.FALLOC, Preallocation.FULL)
    if reserved or (source is not None and options.backing_file):
        data = size  # how much a backing file would share is not known
    else:
        data = 0 if source is None else _data_clusters(source, cluster) * cluster
    luks = round_up(space_for(luks_key_bytes), cluster) if luks_key_bytes else 0
    full = luks + _full_size(geometry, size)
    return Measure(full - size + data, full)


def bitmaps_size(meta: Metadata, cluster_size: int) -> int:
    """Bytes that the image's persistent bitmaps take in a new image: each in full, its table, and the directory."""
    if not meta.header.has("bitmaps"):
        return 0  # without this flag nothing vouches for them, and they are not copied
    total, directory = 0, 0
    for each in meta.bitmap_directory.bitmaps:
        clusters = div_round_up(each.data_size(meta.header.size), cluster_size)
        total += clusters * cluster_size + round_up(clusters * _ENTRY, cluster_size)
        directory += entry_size(0, len(each.name.encode("utf-8", "surrogateescape")))
    return total + round_up(directory, cluster_size)


def _full_size(geometry: Geometry, size: int) -> int:
    """Bytes of a fully allocated image: header, L2 and L1 tables in whole clusters, refcounts of all that, and the data."""
    cluster = geometry.cluster_size
    entries = round_up(size // cluster, geometry.l2_entries)
    l2 = entries * geometry.l2_entry_size
    l1 = round_up(l2 // cluster * _ENTRY, cluster)
    counted = cluster + l2 + l1 + size
    return counted + _refcount_clusters(geometry, counted // cluster) * cluster


def _refcount_clusters(geometry: Geometry, clusters: int) -> int:
    """Refcount blocks and table for `clusters` others and for themselves."""
    blocks, table = 0, 0
    while True:
        more = div_round_up(clusters + blocks + table, geometry.refcount_block_entries)
        wider = div_round_up(more * _ENTRY, geometry.cluster_size)
        if (more, wider) == (blocks, table):
            return blocks + table
        blocks, table = more, wider


def _data_clusters(source: Source, cluster: int) -> int:
    """Clusters of a new image that hold data of the disk; what is said to be zeros needs none."""
    found, done = 0, 0
    for flat in flatten(source.layers, 0, source.size):
        _require_sound(flat, source.layers)
        more, done = _touched(flat, cluster, done)
        found += more
    return found


def _touched(flat: Flat, cluster: int, done: int) -> tuple[int, int]:
    """(clusters with data in these rows from number `done` on, number behind the last one seen)."""
    import numpy as np

    rows = np.flatnonzero((flat.flags & (DATA | ZERO)) == DATA)
    if not len(rows):
        return 0, done
    first = flat.start[rows] // cluster
    behind = (flat.start[rows] + flat.length[rows] - 1) // cluster + 1
    seen = np.maximum(np.concatenate([[done], behind[:-1]]), done)
    return int((behind - np.maximum(first, seen)).clip(min=0).sum()), int(max(behind[-1], done))


def _require_sound(flat: Flat, layers: Sequence[Layer]) -> None:
    import numpy as np

    bad = np.flatnonzero(flat.flags & INVALID)
    if len(bad):
        path = layers[int(flat.depth[bad[0]])].path
        where = int(flat.start[bad[0]])
        hint = f"see `qwb check {path}`"
        raise CorruptError(f"the mapping of guest offset {where:#x} is damaged", path=path, hint=hint)
