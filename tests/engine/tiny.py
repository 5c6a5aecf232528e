"""Smallest qcow2 images in memory, built from bare L2 words: header, refcounts (one block, all ones), L1, L2, data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from formats.qcow2.header import Header, build_header
from workbench.storage.memory import MemoryStorage

HEADER, REFTABLE, REFBLOCK, L1, L2, DATA = range(6)
"""Clusters of the parts; data starts at cluster 5."""


def tiny(
    words: Sequence[int],
    *,
    cluster_bits: int = 16,
    version: int = 3,
    size: int | None = None,
    incompatible: int = 0,
    l1: Sequence[int] | None = None,
    data: Mapping[int, bytes] | None = None,
    clusters: int = 10,
    header: Mapping[str, int] | None = None,
) -> MemoryStorage:
    """An image whose first L2 table starts with `words`; `data`: host cluster -> bytes at its start."""
    cluster = 1 << cluster_bits
    entries = list(l1) if l1 is not None else [L2 * cluster | 1 << 63]
    values = {
        "version": version,
        "cluster_bits": cluster_bits,
        "size": size if size is not None else 16 * cluster,
        "l1_size": len(entries),
        "l1_table_offset": L1 * cluster,
        "refcount_table_offset": REFTABLE * cluster,
        "refcount_table_clusters": 1,
        "incompatible_features": incompatible,
        "header_length": 104 if version >= 3 else 72,
        **(header or {}),
    }
    storage = MemoryStorage(bytes(clusters * cluster))
    storage.write(0, build_header(Header(**values)))  # type: ignore[arg-type]
    storage.write(REFTABLE * cluster, (REFBLOCK * cluster).to_bytes(8, "big"))
    storage.write(REFBLOCK * cluster, b"\0\1" * clusters)
    storage.write(L1 * cluster, b"".join(word.to_bytes(8, "big") for word in entries))
    storage.write(L2 * cluster, b"".join(word.to_bytes(8, "big") for word in words))
    for index, content in (data or {}).items():
        storage.write(index * cluster, content)
    return storage
