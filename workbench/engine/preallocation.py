"""QEMU's guess whether an image was preallocated: more clusters counted in the refcounts than its file takes on disk.

Then `qemu-img map` and convert look for holes of the image file within data clusters (QEMU:
qcow2_detect_metadata_preallocation), and so do we: a terabyte of preallocated nothing is copied in no time.
"""

from __future__ import annotations

from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

from formats.qcow2.entries import block_of
from formats.qcow2.refcounts import unpack
from workbench.engine.metadata import Metadata
from workbench.storage.base import Storage

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from workbench.engine.layers import Qcow2Layer

_known: WeakKeyDictionary[Metadata, bool] = WeakKeyDictionary()


def is_preallocated(layer: Qcow2Layer) -> bool:
    """Whether the file is so sparse that data clusters must lie in its holes; asked once per image."""
    found = _known.get(layer.meta)
    if found is None:
        found = _known[layer.meta] = _detect(layer.meta)
    return found


def _detect(meta: Metadata) -> bool:
    geometry = meta.geometry
    assert geometry is not None
    cluster = geometry.cluster_size
    real = meta.storage.allocated_size() // cluster
    threshold = max(real * 10 // 9, real + 2)
    end = geometry.clusters(meta.file_size)
    if end < threshold:
        return False
    counted, block_entries = 0, geometry.refcount_block_entries
    blocks = block_of(meta.refcount_table)[: -(-end // block_entries)]
    for index, offset in enumerate(blocks.tolist()):
        if not offset or offset % cluster:
            continue
        counts = unpack(meta.storage.read(offset, cluster), geometry.refcount_order)
        counted += int((counts[: end - index * block_entries] != 0).sum())
        if counted >= threshold:
            return True
    return False


def split_by_file(
    storage: Storage, host: NDArray[np.int64], length: NDArray[np.int64]
) -> tuple[NDArray[np.intp], NDArray[np.int64], NDArray[np.int64], NDArray[np.bool_]]:
    """Host ranges cut at the borders of the file's holes: (row, shift into it, length, is a hole), row by row in order.

    host, length: bytes. A hole of the file that holds many whole ranges is asked for once.
    """
    import numpy as np

    rows: list[int] = []
    shifts: list[int] = []
    lengths: list[int] = []
    zeros: list[bool] = []
    size = storage.size()
    low, high, hole = 0, 0, False  # what is known: [low, high) of the file is a hole, or is data
    for row, (start, count) in enumerate(zip(host.tolist(), length.tolist(), strict=True)):
        at, end = start, start + count
        while at < end:
            if not low <= at < high:
                low, high, hole = _piece(storage, at, size)
            stop = min(high, end)
            rows.append(row)
            shifts.append(at - start)
            lengths.append(stop - at)
            zeros.append(hole)
            at = stop
    return (
        np.array(rows, dtype=np.intp),
        np.array(shifts, dtype=np.int64),
        np.array(lengths, dtype=np.int64),
        np.array(zeros, dtype=bool),
    )


def _piece(storage: Storage, at: int, size: int) -> tuple[int, int, bool]:
    """(start, end, is a hole) of the piece of the file at `at`; past its end all is hole."""
    if at >= size:
        return at, 1 << 63, True
    data = storage.next_data(at)
    if data is None:
        return at, 1 << 63, True
    if data > at:
        return at, data, True
    return at, max(storage.next_hole(at), at + 1), False
