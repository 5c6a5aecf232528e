"""Compressed clusters: does a descriptor lead to a stream, and how long is it really?"""

from __future__ import annotations

import zlib

import numpy as np

from formats.qcow2.entries import is_compressed, packed_entry, packed_range
from workbench.check.problems import Tier
from workbench.repair.fixes.base import Rule, codes
from workbench.repair.ledger import PACKED, batches
from workbench.repair.workspace import Workspace


def stream_length(space: Workspace, data: bytes, kind: int | None = None) -> int | None:
    """Bytes of `data` that a compressed cluster takes, or None when it is no stream of one whole cluster.

    kind: compression type (0 zlib, 1 zstd), the header's by default.
    """
    kind = space.meta.header.compression_type if kind is None else kind
    return _zstd_length(data, space.cluster) if kind == 1 else _zlib_length(data, space.cluster)


def _zlib_length(data: bytes, size: int) -> int | None:
    stream = zlib.decompressobj(-15)
    try:
        out = stream.decompress(data, size)
        if len(out) == size and not stream.eof:
            out += stream.decompress(stream.unconsumed_tail, 1)
    except zlib.error:
        return None
    return (
        len(data) - len(stream.unused_data) - len(stream.unconsumed_tail) if len(out) == size and stream.eof else None
    )


def _zstd_length(data: bytes, size: int) -> int | None:
    import zstandard

    stream = zstandard.ZstdDecompressor(max_window_size=1 << 27).decompressobj()
    try:
        out = stream.decompress(data)
    except zstandard.ZstdError:
        return None
    return len(data) - len(stream.unused_data) if len(out) == size and stream.eof else None


def inflates(space: Workspace, word: int, kind: int | None = None) -> bool:
    """Whether a descriptor leads to a readable stream."""
    start, end = packed_range(word, space.meta.shape)
    return (
        start < space.size
        and stream_length(space, space.overlay.read(start, min(end, space.size) - start), kind) is not None
    )


def run(space: Workspace) -> None:
    """Shorten descriptors that reach into clusters of other owners to the length of their stream."""
    ledger = space.ledger
    bits, shape = space.geometry.cluster_bits, space.meta.shape
    named = space.rows.clusters(bits, ledger.clusters)
    width = space.geometry.l2_entry_size // 8
    for batch in batches(space, ledger.tables):
        packed = is_compressed(batch.words)
        if not packed.any():
            continue
        start, end = packed_range(batch.words, shape)
        first, last = (
            (start >> np.uint64(bits)).astype(np.int64),
            ((end - np.uint64(1)) >> np.uint64(bits)).astype(np.int64),
        )
        last = np.minimum(last, ledger.clusters - 1)
        inside = packed & (first < last) & (last < ledger.clusters)
        inside &= named[np.minimum(first, last)] | named[last]
        # The tail reaches a cluster that is not packed for anyone else, or holds something else.
        odd = inside & (
            ((ledger.flags[last] & ~np.uint8(PACKED)) != 0)
            | ((ledger.counts[last] == 1) & ledger.known[last] & (ledger.stored[last] == 0))
        )
        over = inside & (ledger.known[last]) & (ledger.counts[last] > ledger.stored[last])
        for row, column in np.argwhere(odd | over).tolist():
            word = int(batch.words[row, column])
            begin, stop = packed_range(word, shape)
            data = space.overlay.read(begin, min(stop, space.size) - begin)
            length = stream_length(space, data)
            if length is None:
                continue
            new = packed_entry(begin, length, shape)
            table = int(ledger.tables.offset[batch.rows[row]])
            guest = int(ledger.tables.index[batch.rows[row]]) * space.geometry.l2_coverage + column * space.cluster
            if new != word:
                space.put(
                    table + column * width * 8,
                    new.to_bytes(8, "big"),
                    code="DATA-OVERLAPS-COMPRESSED",
                    title="shorten a compressed cluster's descriptor to the length of its stream",
                    kind="l2",
                    guest=[(guest, space.cluster)],
                )


RULES = (
    Rule(
        "compressed-length",
        "Correct compressed lengths",
        codes("DATA-OVERLAPS-COMPRESSED"),
        Tier.SAFE,
        run,
        reads_tables=True,
    ),
)
