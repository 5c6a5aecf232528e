"""Does the image still hold what a plan was made from? Size, hashes of all metadata, and hints of identity.

Metadata tables are hashed in named regions, so that a refusal can say where the image changed. Guest data is not hashed
(except where a repair touches it: there the bytes themselves are compared).
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from formats.qcow2.entries import block_of, offset_of
from formats.qcow2.tables import distinct
from workbench.engine.metadata import Metadata, load_metadata
from workbench.storage.base import Storage

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_LIMIT: Final = 1 << 30
"""Bytes hashed at most; tables beyond are covered by size and time stamps alone."""
_RUN: Final = 4 << 20


@dataclass(frozen=True, slots=True)
class Changed:
    """One place where the image is not what it was. offset and length in bytes of the file."""

    what: str
    offset: int
    length: int

    def __str__(self) -> str:
        return f"{self.what} at {self.offset:#x}" if self.length else self.what


def take(storage: Storage) -> dict[str, Any]:
    """The fingerprint of an image: plain JSON values. Reads all metadata (128 MiB for 1 TiB in 64 KiB clusters)."""
    regions = []
    for name, offset, length in _regions(load_metadata(storage)):
        regions.append([name, offset, length, _digest(storage, offset, length)])
    return {"size": storage.size(), **stamp(storage), "regions": regions}


def compare(storage: Storage, fingerprint: dict[str, Any]) -> list[Changed]:
    """Where the image differs from the fingerprint; empty when it fits. Time stamps and inode are hints, not judged."""
    found = []
    if storage.size() != fingerprint["size"]:
        what = f"the file's length ({storage.size()} bytes, was {fingerprint['size']})"
        found.append(Changed(what, min(storage.size(), fingerprint["size"]), 0))
    for name, offset, length, digest in fingerprint["regions"]:
        if _digest(storage, offset, length) != digest:
            found.append(Changed(name, offset, length))
    return found


def touched_since(storage: Storage, fingerprint: dict[str, Any]) -> bool:
    """True when the time of last change or the file's identity differs: worth a note, not a refusal."""
    now = stamp(storage)
    return any(now.get(key) != fingerprint.get(key) for key in ("mtime_ns", "inode", "device"))


def stamp(storage: Storage) -> dict[str, int]:
    """Time of last change and identity of the file behind a storage; empty when there is none."""
    try:
        found = os.stat(storage.path)
    except (OSError, ValueError):
        return {}
    return {"mtime_ns": found.st_mtime_ns, "inode": found.st_ino, "device": found.st_dev}


def _digest(storage: Storage, offset: int, length: int) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for start in range(0, length, _RUN):
        digest.update(storage.read(offset + start, min(_RUN, length - start)))
    return digest.hexdigest()


def _regions(meta: Metadata) -> Iterator[tuple[str, int, int]]:
    size, geometry = meta.file_size, meta.geometry
    yield "the header", 0, min(len(meta.head) or 512, size)
    if geometry is None:
        return
    cluster, left = geometry.cluster_size, _LIMIT
    plain = [
        ("the active L1 table", meta.l1_region.offset, meta.l1.size * 8),
        ("the refcount table", meta.refcount_table_region.offset, meta.refcount_table.size * 8),
    ]
    if meta.snapshots:
        plain.append(("the snapshot table", meta.header.snapshots_offset, _snapshot_end(meta)))
    for each in meta.snapshots:
        plain.append((f"the L1 table of snapshot {each.id}", each.l1_table_offset, min(each.l1_size * 8, 32 << 20)))
    extension = meta.bitmaps_extension
    if extension is not None:
        plain.append(("the bitmap directory", extension.directory_offset, min(extension.directory_size, 1 << 24)))
    for name, offset, claimed in plain:
        length = min(claimed, size - offset, left)
        if length > 0:
            left -= length
            yield name, offset, length
    for name, starts in _tables(meta, cluster):
        for offset, run in _runs(starts, cluster):
            length = min(run, size - offset, left)
            if length <= 0:
                return
            left -= length
            yield name, offset, length


def _snapshot_end(meta: Metadata) -> int:
    return meta.snapshot_table.end - meta.header.snapshots_offset


def _tables(meta: Metadata, cluster: int) -> Iterator[tuple[str, NDArray[np.uint64]]]:
    import numpy as np

    def places(found: NDArray[np.uint64]) -> NDArray[np.uint64]:
        good = (found > 0) & ((found & np.uint64(cluster - 1)) == 0) & (found < np.uint64(meta.file_size))
        return distinct(found[good])

    l1s = [meta.l1, *(meta.snapshot_l1(each) for each in meta.snapshots)]
    yield "L2 tables", distinct(np.concatenate([places(offset_of(each)) for each in l1s]))
    yield "refcount blocks", places(block_of(meta.refcount_table))


def _runs(starts: NDArray[np.uint64], cluster: int) -> Iterator[tuple[int, int]]:
    """Neighbouring clusters joined, at most _RUN bytes each; (offset, length)."""
    begin = end = -1
    for start in starts.tolist():
        if start == end and end - begin < _RUN:
            end += cluster
            continue
        if begin >= 0:
            yield begin, end - begin
        begin, end = start, start + cluster
    if begin >= 0:
        yield begin, end - begin
