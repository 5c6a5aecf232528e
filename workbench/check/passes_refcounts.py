"""The stored refcounts: refcount table entries and blocks, and their comparison with the census.

Counts as QEMU's check_refblocks, qcow2_get_refcount and compare_refcounts do.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np

from formats.qcow2 import limits
from formats.qcow2.entries import Fault, Pointers, PointerTable
from formats.qcow2.refcounts import may_be_refcounts, unpack
from workbench.check import kinds
from workbench.check.census import Census, as_clusters
from workbench.check.findings import FindingLog
from workbench.engine.metadata import Metadata
from workbench.errors import StorageError
from workbench.units import Geometry, div_round_up

if TYPE_CHECKING:
    from numpy.typing import NDArray

READ_LIMIT: Final = limits.MAX_OFFSET
"""QEMU cannot read past this offset."""


class StoredRefcounts:
    """Reads stored refcounts the way qcow2_get_refcount does, whole blocks at a time."""

    def __init__(self, meta: Metadata, geometry: Geometry) -> None:
        self.meta = meta
        self.geometry = geometry
        self.table = meta.refcount_table
        self.pointers = Pointers(self.table, PointerTable.REFCOUNT, meta.shape)
        self.blocks = self.pointers.offset
        self.entries = geometry.refcount_block_entries
        size = np.uint64(geometry.cluster_size)
        self.unaligned: NDArray[np.bool_] = self.pointers.fault(Fault.UNALIGNED)
        self.unreadable: NDArray[np.bool_] = self.unaligned | (self.blocks > np.uint64(READ_LIMIT) - size)
        self.foreign: set[int] = set()
        """Entries whose blocks hold something else than refcounts, as far as `load_flags` has read them."""

    @property
    def end(self) -> int:
        """Host offset past which no refcount block exists: every refcount is 0 there."""
        used = np.flatnonzero(self.blocks)
        return (int(used[-1]) + 1) * self.entries << self.geometry.cluster_bits if used.size else 0

    def block(self, index: int) -> NDArray[Any] | None:
        """Refcounts of one block, native unsigned, or None when it cannot be read. Zeros where there is no block."""
        if index >= self.table.size or not self.blocks[index]:
            return np.zeros(self.entries, dtype=np.uint16)
        if self.unreadable[index]:
            return None
        size = self.geometry.cluster_size
        try:
            data = self.meta.storage.read(int(self.blocks[index]), size)
        except StorageError:
            return None
        return unpack(data.ljust(size, b"\0"), self.geometry.refcount_order)

    def at(self, clusters: NDArray[np.int64]) -> tuple[NDArray[np.uint64], NDArray[np.bool_]]:
        """(stored refcount, unreadable) of any host clusters, in the file or past its end."""
        out = np.zeros(clusters.size, dtype=np.uint64)
        bad = np.zeros(clusters.size, dtype=bool)
        index = clusters // self.entries
        known = np.flatnonzero(index < self.table.size)
        known = known[self.blocks[index[known]] != 0]
        bad[known] = self.unreadable[index[known]]
        good = known[~bad[known]]
        # A block past the end of the file reads as zeros, whatever its offset: no need to look.
        good = good[self.blocks[index[good]] < np.uint64(self.meta.file_size)]
        order = good[np.argsort(index[good], kind="stable")]
        edges = np.flatnonzero(np.diff(index[order])) + 1
        for group in np.split(order, edges) if order.size else []:
            values = self.block(int(index[group[0]]))
            if values is None:
                bad[group] = True
            else:
                out[group] = values[clusters[group] % self.entries]
        return out, bad

    def one_far(self, clusters: NDArray[np.int64]) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """(refcount is 1, unreadable) for clusters outside the census."""
        values, bad = self.at(clusters)
        return values == np.uint64(1), bad

    def range(self, start: int, clusters: int) -> tuple[NDArray[np.uint64], NDArray[np.bool_]]:
        """(stored refcounts, unreadable) of host clusters start … start + clusters - 1."""
        out = np.zeros(clusters, dtype=np.uint64)
        bad = np.zeros(clusters, dtype=bool)
        for index in range(start // self.entries, div_round_up(start + clusters, self.entries)):
            if index >= self.table.size:
                break
            low, high = max(start, index * self.entries), min(start + clusters, (index + 1) * self.entries)
            values = self.block(index)
            if values is None:
                bad[low - start : high - start] = True
            else:
                out[low - start : high - start] = values[low - index * self.entries : high - index * self.entries]
        return out, bad

    def load_flags(self, census: Census) -> None:
        """Set STORED, STORED_ONE and UNREADABLE of every cluster in the census' window."""
        order = self.geometry.refcount_order
        size = self.geometry.cluster_size
        low_block, high_block = census.first // self.entries, div_round_up(census.end, self.entries)
        present = np.flatnonzero(self.blocks[low_block:high_block]) + low_block
        ones = b"\0\1" * (size // 2)
        for index in present.tolist():
            low = max(census.first, index * self.entries)
            high = min(census.end, (index + 1) * self.entries)
            flags = census.flags[low - census.first : high - census.first]
            skip = low - index * self.entries
            if self.unreadable[index]:
                flags |= np.uint8(kinds.UNREADABLE)
                continue
            if int(self.blocks[index]) >= self.meta.file_size:
                continue
            try:
                data = self.meta.storage.read(int(self.blocks[index]), size)
            except StorageError:
                flags |= np.uint8(kinds.UNREADABLE)
                continue
            if len(data) < size:
                data = data.ljust(size, b"\0")
            if order == 4 and not skip and high - low == self.entries and data == ones:
                flags |= np.uint8(kinds.STORED_ONE | kinds.STORED)
                continue
            if order == 4:
                raw = np.frombuffer(data, dtype="<u2")[skip : skip + high - low]
                one, some = raw == 0x0100, raw != 0
            else:
                values = unpack(data, order)[skip : skip + high - low]
                one, some = values == 1, values != 0
            if 2 * int(np.count_nonzero(one)) < int(np.count_nonzero(some)) and not may_be_refcounts(
                unpack(data, order)
            ):
                self.foreign.add(index)
            if one.all():
                flags |= np.uint8(kinds.STORED_ONE | kinds.STORED)
            else:
                flags |= one.view(np.uint8) * np.uint8(kinds.STORED_ONE) | some.view(np.uint8) * np.uint8(kinds.STORED)


def judge_blocks(stored: StoredRefcounts, total_clusters: int, file_size: int, log: FindingLog) -> NDArray[np.intp]:
    """Log faults of refcount table entries. Returns the indices whose blocks are inside the image, to be counted.

    total_clusters: as QEMU has it by then (grown by a region that reaches into one cluster more).
    """
    table, blocks = stored.table, stored.blocks
    base = stored.meta.refcount_table_region.offset
    span = stored.entries << stored.geometry.cluster_bits
    used = np.flatnonzero(table)
    if not used.size:
        return used

    def report(code: str, rows: NDArray[np.intp]) -> None:
        for index in rows[:4096].tolist():
            log.add(
                code, base + index * 8, 8, counted=1, table=base, index=index, value=int(table[index]),
                numbers={"covers": index * span, "covers_end": (index + 1) * span},
            )  # fmt: skip
        if rows.size > 4096:
            first, last = int(rows[4096]), int(rows[-1])
            log.add(
                code, base + first * 8, (last - first + 1) * 8, count=rows.size - 4096, counted=rows.size - 4096,
                table=base, index=first, value=int(table[first]), numbers={"covers": first * span, "covers_end": (last + 1) * span},
            )  # fmt: skip

    reserved = stored.pointers.fault(Fault.RESERVED)[used]
    report("REFBLOCK-RESERVED", used[reserved])
    used = used[~reserved]
    unaligned = stored.unaligned[used]
    report("REFBLOCK-UNALIGNED", used[unaligned])
    used = used[~unaligned]
    outside = (blocks[used] >> np.uint64(stored.geometry.cluster_bits)) >= np.uint64(total_clusters)
    report("REFBLOCK-BEYOND-EOF", used[outside])
    used = used[~outside]
    # Only a cluster that another region's overrun added to the image can still be past the end of the file.
    beyond = blocks[used] >= np.uint64(file_size)
    report("REGION-BEYOND-EOF", used[beyond])
    kept: NDArray[np.intp] = used[~beyond]
    return kept


def count_blocks(stored: StoredRefcounts, rows: NDArray[np.intp], census: Census, log: FindingLog) -> None:
    """Add the blocks `rows` to the census; a block whose cluster has other users is reported, as QEMU does."""
    clusters = as_clusters(stored.blocks[rows], stored.geometry.cluster_bits)
    here = (clusters >= census.first) & (clusters < census.end)
    rows, clusters = rows[here], clusters[here]
    if not rows.size:
        return
    before = census.references_at(clusters)
    order = np.argsort(clusters, kind="stable")
    sorted_clusters = clusters[order]
    starts = np.flatnonzero(np.append(True, sorted_clusters[1:] != sorted_clusters[:-1]))
    rank = np.empty(rows.size, dtype=np.uint64)
    lengths = np.diff(np.append(starts, rows.size))
    rank[order] = np.arange(rows.size, dtype=np.uint64) - np.repeat(starts, lengths).astype(np.uint64)
    after = np.minimum(before, np.uint64(census.refcount_max)) + rank + np.uint64(1)
    after = np.minimum(after, np.uint64(census.refcount_max))
    shared = np.flatnonzero(after != 1)
    base = stored.meta.refcount_table_region.offset
    span = stored.entries << stored.geometry.cluster_bits
    for place in shared[:4096].tolist():
        index = int(rows[place])
        log.add(
            "REFBLOCK-SHARED", int(stored.blocks[index]), stored.geometry.cluster_size, counted=1, table=base,
            index=index, value=int(stored.table[index]), other=int(after[place]),
            numbers={"covers": index * span, "covers_end": (index + 1) * span},
        )  # fmt: skip
    if shared.size > 4096:
        index = int(rows[shared[4096]])
        log.add(
            "REFBLOCK-SHARED", int(stored.blocks[index]), stored.geometry.cluster_size, count=shared.size - 4096,
            counted=shared.size - 4096, table=base, index=index, value=int(stored.table[index]),
            other=int(after[shared[4096]]), numbers={"covers": index * span, "covers_end": (index + 1) * span},
        )  # fmt: skip
    census.add(clusters, 1, kinds.METADATA)


def log_foreign_blocks(stored: StoredRefcounts, rows: NDArray[np.intp], clusters: int, log: FindingLog) -> None:
    """Report the blocks among table entries `rows` whose content cannot be refcounts; those within `clusters` were read."""
    base, size = stored.meta.refcount_table_region.offset, stored.geometry.cluster_size
    span = stored.entries << stored.geometry.cluster_bits
    for index in rows.tolist():
        far = index * stored.entries >= clusters
        values = stored.block(index) if far else None
        if index in stored.foreign or (values is not None and not may_be_refcounts(values)):
            log.add(
                "REFBLOCK-FOREIGN", int(stored.blocks[index]), size, table=base, index=index, value=int(stored.table[index]),
                numbers={"covers": index * span, "covers_end": (index + 1) * span},
            )  # fmt: skip


def log_overflow(census: Census, cluster_bits: int, log: FindingLog) -> None:
    """References beyond what the refcount width can say: QEMU counts one corruption for each."""
    clusters, found = census.overflowing()
    if not clusters.size:
        return
    log.add_columns(
        "REFCOUNT-OVERFLOW",
        clusters.size,
        offset=clusters.astype(np.uint64) << np.uint64(cluster_bits),
        length=1 << cluster_bits,
        counted=found - np.uint64(census.refcount_max),
        value=census.refcount_max,
        other=found,
    )


_STEP: Final = 1 << 18
_MOST_RUNS: Final = 1 << 14
_BYTES: Final = np.uint64(0x0101_0101_0101_0101)


def compare(stored: StoredRefcounts, census: Census, end: int, log: FindingLog) -> int:
    """Log every difference between stored refcounts and references in the window up to cluster `end`.

    Returns the highest cluster that is used or referenced, or -1.
    """
    highest = -1
    stop = min(census.end, end)
    bits = stored.geometry.cluster_bits
    for at in range(census.first, stop, _STEP):
        high = min(stop, at + _STEP)
        counts = census.counts[at - census.first : high - census.first]
        flags = census.flags[at - census.first : high - census.first]
        if _all_used_once(counts, flags):
            highest = high - 1
            continue
        if not counts.any() and not flags.any():
            continue
        state = flags & np.uint8(kinds.STORED | kinds.STORED_ONE | kinds.UNREADABLE)
        # Free and unreferenced, or stored 1 and referenced once: fine; anything else needs the exact numbers.
        fine = ((state == 0) & (counts == 0)) | ((state == (kinds.STORED | kinds.STORED_ONE)) & (counts == 1))
        used = ((state & kinds.UNREADABLE) == 0) & ((counts != 0) | ((state & kinds.STORED) != 0))
        if used.any():
            highest = at + (used.size - 1 - int(used[::-1].argmax()))
        if fine.all():
            continue
        # Leaks of refcount 1 need no numbers either, and there may be millions of them.
        leaked = (state == (kinds.STORED | kinds.STORED_ONE)) & (counts == 0)
        if leaked.any():
            _log_leaks(leaked, at, bits, log)
            fine |= leaked
        odd = np.flatnonzero(~fine)
        if not odd.size:
            continue
        if odd.size > used.size // 8:
            values, _ = stored.range(at, high - at)
            values = values[odd]
        else:
            values, _ = stored.at(odd + at)
        found = np.minimum(census.references_at(odd + at), np.uint64(census.refcount_max))
        unreadable = (flags[odd] & kinds.UNREADABLE) != 0
        different = (values != found) & ~unreadable
        _log_mismatches((odd + at)[different], values[different], found[different], bits, log)
        _log_runs("REFCOUNT-UNREADABLE", (odd + at)[unreadable], None, None, bits, log)
    return highest


def _all_used_once(counts: NDArray[np.uint8], flags: NDArray[np.uint8]) -> bool:
    """Whether every cluster is referenced once and has refcount 1; eight clusters at a time."""
    if counts.size % 8:
        return False
    state = kinds.STORED | kinds.STORED_ONE | kinds.UNREADABLE
    if not (counts.view(np.uint64) == _BYTES).all():
        return False
    return bool(
        (
            (flags.view(np.uint64) & (_BYTES * np.uint64(state))) == _BYTES * np.uint64(kinds.STORED | kinds.STORED_ONE)
        ).all()
    )


def _log_leaks(leaked: NDArray[np.bool_], base: int, bits: int, log: FindingLog) -> None:
    """Rows for runs of leaked clusters of refcount 1, from a mask of the clusters from `base` on."""
    edges = np.flatnonzero(leaked[1:] != leaked[:-1]) + 1
    if leaked[0]:
        edges = np.append(0, edges)
    if leaked[-1]:
        edges = np.append(edges, leaked.size)
    first, last = edges[0::2], edges[1::2]
    if first.size > _MOST_RUNS:
        clusters = np.flatnonzero(leaked) + base
        _log_runs("CLUSTER-LEAKED", clusters, None, None, bits, log, value=1)
        return
    length = (last - first).astype(np.uint64)
    log.add_columns(
        "CLUSTER-LEAKED",
        first.size,
        offset=(first + base).astype(np.uint64) << np.uint64(bits),
        length=length << np.uint64(bits),
        count=length,
        counted=length,
        value=1,
    )


def _log_mismatches(
    clusters: NDArray[np.int64], values: NDArray[np.uint64], found: NDArray[np.uint64], bits: int, log: FindingLog
) -> None:
    if not clusters.size:
        return
    leaked, high = (found == 0), (values > found) & (found > 0)
    zero, low = (values == 0), (values < found) & (values > 0)
    for code, chosen in (
        ("CLUSTER-LEAKED", leaked),
        ("REFCOUNT-TOO-HIGH", high),
        ("REFCOUNT-ZERO", zero),
        ("REFCOUNT-TOO-LOW", low),
    ):
        _log_runs(code, clusters[chosen], values[chosen], found[chosen], bits, log)


def _log_runs(
    code: str,
    clusters: NDArray[np.int64],
    values: NDArray[np.uint64] | None,
    found: NDArray[np.uint64] | None,
    bits: int,
    log: FindingLog,
    value: int = 0,
) -> None:
    """One row per run of neighbouring clusters with the same numbers."""
    if not clusters.size:
        return
    edge = np.ones(clusters.size, dtype=bool)
    edge[1:] = clusters[1:] != clusters[:-1] + 1
    if values is not None and found is not None:
        edge[1:] |= (values[1:] != values[:-1]) | (found[1:] != found[:-1])
    first = np.flatnonzero(edge)
    if first.size > _MOST_RUNS:  # noise: one row per 256 clusters instead
        edge[1:] = (clusters[1:] >> 8) != (clusters[:-1] >> 8)
        first = np.flatnonzero(edge)
    last = np.append(first[1:], clusters.size) - 1
    length = (last - first + 1).astype(np.uint64)
    log.add_columns(
        code,
        first.size,
        offset=clusters[first].astype(np.uint64) << np.uint64(bits),
        length=(clusters[last] - clusters[first] + 1).astype(np.uint64) << np.uint64(bits),
        count=length,
        counted=length,
        value=value if values is None else values[first],
        other=0 if found is None else found[first],
    )
