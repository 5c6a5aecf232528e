"""Which L1 and L2 tables there are, each L2 table once with its number of users, and reading them in large pieces."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np

from formats.qcow2 import limits
from formats.qcow2.entries import L2Entries, offset_of, one_run_tables
from workbench.engine.metadata import Metadata, Region
from workbench.errors import StorageError
from workbench.units import Geometry

if TYPE_CHECKING:
    from numpy.typing import NDArray

BATCH_BYTES: Final = 1 << 19
ACTIVE: Final = -1


@dataclass(frozen=True, slots=True)
class L1Table:
    """One L1 table to look at. entries: native uint64.  users: snapshots that share it.  snapshot: first, -1 active."""

    offset: int
    entries: NDArray[np.uint64]
    snapshot: int
    users: int = 1


@dataclass(slots=True)
class L2Set:
    """Every L2 table once, by host offset. Columns of equal length; times: references from active and snapshot L1s.

    snapshot, index: the first L1 entry that refers to it (-1: the active L1 table).
    """

    offset: NDArray[np.uint64]
    active: NDArray[np.uint32]
    inactive: NDArray[np.uint32]
    snapshot: NDArray[np.int32]
    index: NDArray[np.uint32]

    def __len__(self) -> int:
        return int(self.offset.size)


def empty_set() -> L2Set:
    return L2Set(
        np.zeros(0, np.uint64),
        np.zeros(0, np.uint32),
        np.zeros(0, np.uint32),
        np.zeros(0, np.int32),
        np.zeros(0, np.uint32),
    )


@dataclass(slots=True)
class Collector:
    """Merges L1 tables into an L2Set without keeping them."""

    parts: list[L2Set] = field(default_factory=list)
    rows: int = 0

    def add(self, table: L1Table) -> None:
        entries = table.entries
        index = np.flatnonzero(entries)
        offset = offset_of(entries[index])
        times = np.full(index.size, table.users, dtype=np.uint32)
        none = np.zeros(index.size, dtype=np.uint32)
        is_active = table.snapshot == ACTIVE
        part = L2Set(
            offset,
            times if is_active else none,
            none if is_active else times,
            np.full(index.size, table.snapshot, dtype=np.int32),
            index.astype(np.uint32),
        )
        self.parts.append(part)
        self.rows += index.size
        if self.rows > 1 << 20 and len(self.parts) > 1:
            merged = self.result()
            self.parts, self.rows = [merged], 0

    def result(self) -> L2Set:
        """All tables so far, by host offset, each once."""
        if not self.parts:
            return empty_set()
        columns = [np.concatenate([getattr(part, name) for part in self.parts]) for name in L2Set.__slots__]
        offset, active, inactive, snapshot, index = columns
        order = np.lexsort((index, snapshot, offset))
        offset, active, inactive, snapshot, index = (each[order] for each in columns)
        starts = np.flatnonzero(np.append(True, offset[1:] != offset[:-1])) if offset.size else np.zeros(0, np.intp)
        if starts.size == offset.size:
            return L2Set(offset, active, inactive, snapshot, index)
        return L2Set(
            offset[starts],
            np.add.reduceat(active, starts),
            np.add.reduceat(inactive, starts),
            snapshot[starts],
            index[starts],
        )


def read_l1(meta: Metadata, offset: int, size: int) -> NDArray[np.uint64]:
    """An L1 table of `size` entries; zeros past the end of the file; at most QEMU's 32 MiB, and never more than the
    file can hold (entries past its end are zero anyway)."""
    room = max(0, meta.file_size - offset)
    length = min(size * 8, limits.MAX_L1_SIZE, (room + 7) & ~7)
    return meta.read_words(Region(offset, length), limits.MAX_L1_SIZE)


@dataclass(frozen=True, slots=True)
class Batch:
    """Some L2 tables in memory. rows: their numbers in the L2Set.  words: uint64, native, shape (tables, entries).

    bitmaps: subcluster bitmaps of the same shape, or None without extended L2 entries.
    """

    rows: NDArray[np.intp]
    words: NDArray[np.uint64]
    bitmaps: NDArray[np.uint64] | None


def plan_batches(tables: L2Set, geometry: Geometry, file_size: int) -> Iterator[NDArray[np.intp]]:
    """Row numbers of the tables to read together; tables past the end of the file read as zeros and are left out."""
    rows = np.flatnonzero(tables.offset < np.uint64(file_size))
    step = max(1, BATCH_BYTES // geometry.cluster_size)
    for at in range(0, rows.size, step):
        yield rows[at : at + step]


def read_batch(
    meta: Metadata,
    tables: L2Set,
    rows: NDArray[np.intp],
    geometry: Geometry,
    buffer: NDArray[np.uint8] | None = None,
) -> Batch:
    """Read and byte-swap the tables `rows`; neighbours with one call. StorageError on I/O errors.

    buffer: memory to read into (the batch is a view of it); its own without one.
    """
    size = geometry.cluster_size
    if buffer is None:
        buffer = np.empty(rows.size * size, dtype=np.uint8)
    raw = buffer[: rows.size * size].reshape(rows.size, size)
    flat = memoryview(raw.reshape(-1).data)
    offsets = tables.offset[rows].astype(np.int64)
    breaks = np.flatnonzero(np.diff(offsets) != size) + 1
    edges = [0, *breaks.tolist(), rows.size]
    starts = offsets.tolist()
    for first, last in pairwise(edges):
        piece = flat[first * size : last * size]
        got = meta.storage.readinto(starts[first], piece)
        if got < len(piece):
            raw.reshape(-1)[first * size + got : last * size] = 0
    words: NDArray[Any] = raw.view(np.uint64)
    if sys.byteorder == "little":
        words.byteswap(inplace=True)
    if not geometry.extended_l2:
        return Batch(rows, words, None)
    return Batch(rows, np.ascontiguousarray(words[:, 0::2]), np.ascontiguousarray(words[:, 1::2]))


class Mapped(NamedTuple):
    """An L2 entry that names host clusters which are looked for. row: of the `L2Set`.  clusters: numbers of those."""

    row: int
    column: int
    word: int
    packed: bool
    clusters: list[int]


def entries_of(
    meta: Metadata,
    tables: L2Set,
    geometry: Geometry,
    wanted: NDArray[np.int64],
    cancelled: Callable[[], None] | None = None,
) -> Iterator[Mapped]:
    """Every L2 entry that names one of the host clusters `wanted` (numbers, sorted). Unreadable tables are left out.

    cancelled: raises when nobody wants to know any more.
    """
    bits = np.uint64(geometry.cluster_bits)
    for rows in plan_batches(tables, geometry, meta.file_size):
        if cancelled is not None:
            cancelled()
        try:
            batch = may_map(read_batch(meta, tables, rows, geometry), wanted, meta)
        except StorageError:
            continue  # reported as READ-ERROR by the check itself
        words, each = batch.words, L2Entries(batch.words, meta.shape)
        packed = each.packed
        start, end = each.range
        low = np.searchsorted(wanted, (start >> bits).astype(np.int64))
        high = np.searchsorted(wanted, ((end - np.uint64(1)) >> bits).astype(np.int64), side="right")
        for row, col in np.argwhere((high > low) & (packed | each.placed)).tolist():
            clusters = wanted[low[row, col] : high[row, col]].tolist()
            yield Mapped(int(batch.rows[row]), col, int(words[row, col]), bool(packed[row, col]), clusters)


def may_map(batch: Batch, clusters: NDArray[np.int64], meta: Metadata) -> Batch:
    """The tables of a batch that may map one of `clusters` (numbers, sorted): those that are one run of others are left out."""
    runs = one_run_tables(batch.words, None, meta.shape, meta.file_size)
    first = (offset_of(batch.words[:, 0]) >> np.uint64(meta.shape.cluster_bits)).astype(np.int64)
    low, high = (np.searchsorted(clusters, first + more) for more in (0, batch.words.shape[1]))
    rest = ~(runs & (low == high))
    return batch if rest.all() else Batch(batch.rows[rest], batch.words[rest], None)
