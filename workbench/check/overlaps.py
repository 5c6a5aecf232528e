"""Overlaps: two owners in one place. Worked out from the claims and the census' flags, without a pass over the tables.

qemu-img sees most of these only as refcounts that are too low; here both owners are named.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from formats.qcow2.tables import distinct
from workbench.check import kinds
from workbench.check.census import Census, Claim
from workbench.check.findings import FindingLog
from workbench.check.kinds import Owner
from workbench.check.passes_refcounts import StoredRefcounts
from workbench.check.tables import L2Set, entries_of
from workbench.engine.metadata import Metadata
from workbench.units import Geometry

if TYPE_CHECKING:
    from numpy.typing import NDArray

MOST: Final = 4096
"""Overlaps that are listed one by one."""
NAMED: Final = 256
"""Of those, the ones whose owners are looked up."""
OWNERS: Final = 4
"""Owners of one cluster that are named."""
_DATA_FLAGS: Final = np.uint8(kinds.DATA | kinds.PACKED | kinds.INACTIVE)


@dataclass(frozen=True, slots=True)
class Intervals:
    """Every metadata structure as host clusters [first, last], sorted by first. owner: numbers of kinds.Owner."""

    first: NDArray[np.int64]
    last: NDArray[np.int64]
    owner: NDArray[np.uint8]
    index: NDArray[np.int64]
    snapshot: NDArray[np.int32]

    def title(self, row: int, geometry: Geometry | None = None) -> str:
        """The structure's name with its index; with `geometry` the guest offset that an L2 table begins with, too."""
        owner = Owner(int(self.owner[row]))
        index, snapshot = int(self.index[row]), int(self.snapshot[row])
        if owner is Owner.INACTIVE_L1:
            return f"L1 table of snapshot {snapshot}"
        if owner in (Owner.ACTIVE_L2, Owner.INACTIVE_L2):
            where = f" of snapshot {snapshot}" if snapshot >= 0 else ""
            guest = f", guest {int(geometry.guest_offset(index, 0)):#x}" if geometry is not None else ""
            return f"{owner.title} (L1 entry {index}{where}{guest})"
        return f"{owner.title} {index}" if index >= 0 else owner.title


def intervals(
    geometry: Geometry,
    claims: tuple[Claim, ...] | list[Claim],
    tables: L2Set,
    stored: StoredRefcounts,
    bitmap_data: list[tuple[int, NDArray[np.int64]]],
    total_clusters: int,
) -> Intervals:
    """All metadata structures inside the file."""
    bits = geometry.cluster_bits
    parts: list[
        tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.uint8], NDArray[np.int64], NDArray[np.int32]]
    ] = []

    def add(
        first: NDArray[np.int64], last: NDArray[np.int64], owner: NDArray[np.uint8] | int, index: NDArray[np.int64] | int,
        snapshot: NDArray[np.int32] | int,
    ) -> None:  # fmt: skip
        shape = first.shape
        parts.append((
            first, last, np.broadcast_to(np.asarray(owner, np.uint8), shape),
            np.broadcast_to(np.asarray(index, np.int64), shape), np.broadcast_to(np.asarray(snapshot, np.int32), shape),
        ))  # fmt: skip

    for claim in dict.fromkeys(claims):
        add(
            np.array([claim.offset >> bits]), np.array([(claim.end - 1) >> bits]), int(claim.owner), claim.index,
            claim.snapshot,
        )  # fmt: skip
    inside = tables.offset < np.uint64(total_clusters << bits)
    offset = tables.offset[inside]
    owner = np.where(tables.active[inside] > 0, int(Owner.ACTIVE_L2), int(Owner.INACTIVE_L2)).astype(np.uint8)
    first = (offset >> np.uint64(bits)).astype(np.int64)
    last = ((offset + np.uint64(geometry.cluster_size - 1)) >> np.uint64(bits)).astype(np.int64)
    add(first, last, owner, tables.index[inside].astype(np.int64), tables.snapshot[inside])
    blocks = np.flatnonzero(stored.blocks)
    blocks = blocks[(stored.blocks[blocks] < np.uint64(total_clusters << bits)) & ~stored.unaligned[blocks]]
    first = (stored.blocks[blocks] >> np.uint64(bits)).astype(np.int64)
    add(first, first, int(Owner.REFCOUNT_BLOCK), blocks.astype(np.int64), -1)
    for number, clusters in bitmap_data:
        add(clusters, clusters, int(Owner.BITMAP_DATA), number, -1)
    columns = [np.concatenate([part[number] for part in parts]) for number in range(5)]
    order = np.lexsort((columns[1], columns[0]))
    return Intervals(*(column[order] for column in columns))


def find_overlaps(
    found: Intervals, census: Census, meta: Metadata, geometry: Geometry, tables: L2Set, log: FindingLog
) -> None:
    """Log metadata on metadata, guest data on metadata, compressed on plain data, and cross-linked data clusters."""
    _metadata(found, geometry, log)
    on_metadata = _data_on_metadata(found, census)
    shared: list[tuple[str, NDArray[np.int64]]] = []
    for flags, code in (
        (kinds.CROSSED, "DATA-CROSS-LINKED"),
        (kinds.PACKED | kinds.DATA, "DATA-OVERLAPS-COMPRESSED"),
        (kinds.PACKED | kinds.INACTIVE, "DATA-OVERLAPS-COMPRESSED"),
    ):
        clusters = _having(census, flags)
        if code == "DATA-OVERLAPS-COMPRESSED" and flags & kinds.INACTIVE:
            clusters = clusters[(census.flags[clusters - census.first] & kinds.DATA) == 0]
        if clusters.size:
            shared.append((code, clusters))
    starts = np.array([start for _, start, _ in on_metadata[:NAMED]], dtype=np.int64)
    owners = name_owners(meta, geometry, tables, np.concatenate([starts, *(each[:NAMED] for _, each in shared)]))
    _log_on_metadata(found, census, geometry, on_metadata, owners, log)
    for code, clusters in shared:
        _log_shared(code, clusters, census, geometry, owners, log)


def _log_shared(
    code: str, clusters: NDArray[np.int64], census: Census, geometry: Geometry, owners: dict[int, str], log: FindingLog
) -> None:
    """One row for each of the first clusters, named ones with their owners; the rest in one."""
    bits = geometry.cluster_bits
    named = clusters[:NAMED]
    for cluster, references in zip(named.tolist(), census.references_at(named).tolist(), strict=True):
        log.add(
            code, cluster << bits, 1 << bits, other=references, numbers={"owners": owners.get(cluster, "")},
        )  # fmt: skip
    listed = clusters[NAMED:MOST]
    log.add_columns(
        code, listed.size, offset=listed.astype(np.uint64) << np.uint64(bits), length=1 << bits,
        other=census.references_at(listed),
    )  # fmt: skip
    if clusters.size > MOST:
        rest = clusters[MOST:]
        log.add(code, int(rest[0]) << bits, int(rest[-1] - rest[0] + 1) << bits, count=rest.size, other=2)


def name_owners(meta: Metadata, geometry: Geometry, tables: L2Set, clusters: NDArray[np.int64]) -> dict[int, str]:
    """Host cluster -> `: guest 0x… (L2 table 0x…, entry n) and guest …`, of all that map it. One pass over the tables."""
    wanted = distinct(clusters)
    if not wanted.size:
        return {}
    found: dict[int, list[str]] = {}
    for each in entries_of(meta, tables, geometry, wanted):
        snapshot = int(tables.snapshot[each.row])
        text = f"guest {int(geometry.guest_offset(int(tables.index[each.row]), each.column)):#x}"
        text += f" of snapshot {snapshot}" if snapshot >= 0 else ""
        packed = "compressed, " if each.packed else ""
        text += f" ({packed}L2 table {int(tables.offset[each.row]):#x}, entry {each.column})"
        for cluster in each.clusters:
            found.setdefault(cluster, []).append(text)
    return {cluster: _joined(texts) for cluster, texts in found.items()}


def _joined(texts: list[str]) -> str:
    shown = texts[:OWNERS] if len(texts) > OWNERS + 1 else texts
    more = [f"{len(texts) - len(shown)} more"] if len(shown) < len(texts) else []
    *first, last = [*shown, *more]
    return ": " + (f"{', '.join(first)} and {last}" if first else last)


def _having(census: Census, flags: int) -> NDArray[np.int64]:
    """Clusters that have all of `flags`, a part of the window at a time."""
    out = []
    step = 1 << 20
    for at in range(0, len(census), step):
        if not _any_of(census.flags[at : at + step], flags & (kinds.CROSSED | kinds.PACKED)):
            continue
        hit = np.flatnonzero((census.flags[at : at + step] & np.uint8(flags)) == flags)
        if hit.size:
            out.append(hit.astype(np.int64) + at + census.first)
    return np.concatenate(out) if out else np.zeros(0, np.int64)


def _any_of(flags: NDArray[np.uint8], bits: int) -> bool:
    """Whether any byte has one of `bits`; eight bytes at a time."""
    whole = flags[: flags.size & ~7].view(np.uint64)
    word = int(np.bitwise_or.reduce(whole)) if whole.size else 0
    word |= int(np.bitwise_or.reduce(flags[flags.size & ~7 :])) if flags.size % 8 else 0
    return bool(word & (bits * 0x0101_0101_0101_0101))


def _metadata(found: Intervals, geometry: Geometry, log: FindingLog) -> None:
    if found.first.size < 2:
        return
    reach = np.maximum.accumulate(found.last)
    rows = np.flatnonzero(found.first[1:] <= reach[:-1]) + 1
    size = geometry.cluster_size
    for row in rows[:MOST].tolist():
        # The partner: the interval before this one that reaches furthest.
        other = int(np.searchsorted(reach[:row], reach[row - 1]))
        start = int(found.first[row])
        end = min(int(found.last[row]), int(found.last[other])) + 1
        log.add(
            "METADATA-OVERLAP", start * size, (end - start) * size, other=int(found.first[other]) * size,
            numbers={"first": found.title(other, geometry), "second": found.title(row, geometry)},
        )  # fmt: skip
    if rows.size > MOST:
        first, last = int(found.first[rows[MOST]]), int(found.last[rows[-1]]) + 1
        log.add(
            "METADATA-OVERLAP", first * size, (last - first) * size, count=rows.size - MOST,
            numbers={"first": "metadata", "second": "other metadata"},
        )  # fmt: skip


def _data_on_metadata(found: Intervals, census: Census) -> list[tuple[int, int, int]]:
    """(row in `found`, first cluster, clusters) of structures in whose clusters guest data is, too."""
    inside = (found.first >= census.first) & (found.last < census.end)
    single = np.flatnonzero(inside & (found.first == found.last))
    hit = single[(census.flags[found.first[single] - census.first] & _DATA_FLAGS) != 0]
    rows = [(int(row), int(found.first[row]), 1) for row in hit[:MOST].tolist()]
    for row in np.flatnonzero(inside & (found.first != found.last)).tolist():
        low = int(found.first[row]) - census.first
        flags = census.flags[low : int(found.last[row]) - census.first + 1]
        used = np.flatnonzero(flags & _DATA_FLAGS)
        if used.size:
            rows.append((row, int(used[0]) + low + census.first, int(used[-1] - used[0]) + 1))
    return rows[:MOST]


def _log_on_metadata(
    found: Intervals, census: Census, geometry: Geometry, rows: list[tuple[int, int, int]], owners: dict[int, str], log: FindingLog
) -> None:  # fmt: skip
    size = geometry.cluster_size
    for row, start, clusters in rows:
        sort = int(np.bitwise_or.reduce(census.flags[start - census.first : start - census.first + clusters]))
        names = [
            owner.title
            for owner, flag in (
                (Owner.DATA, kinds.DATA),
                (Owner.COMPRESSED, kinds.PACKED),
                (Owner.SNAPSHOT_DATA, kinds.INACTIVE),
            )
            if sort & flag
        ]
        log.add(
            "DATA-OVERLAPS-METADATA", start * size, clusters * size, count=clusters,
            numbers={"first": found.title(row, geometry), "second": " and ".join(names), "owners": owners.get(start, "")},
        )  # fmt: skip


def missing_blocks(stored: StoredRefcounts, census: Census, geometry: Geometry, log: FindingLog) -> None:
    """Log refcount table entries that are empty though clusters of their range are referenced."""
    base = stored.meta.refcount_table_region.offset
    size = geometry.cluster_size
    if stored.blocks.size * stored.entries < census.end:
        blocks = np.concatenate(
            [stored.blocks, np.zeros(-(-census.end // stored.entries) - stored.blocks.size, np.uint64)]
        )
    else:
        blocks = stored.blocks
    listed = 0
    step = max(stored.entries, 1 << 20)
    for at in range(census.first // step * step, census.end, step):
        if not census.counts[max(0, at - census.first) : at + step - census.first].any():
            continue
        first, last = at // stored.entries, -(-min(at + step, census.end) // stored.entries)
        for index in (np.flatnonzero(blocks[first:last] == 0) + first).tolist():
            low = max(census.first, index * stored.entries)
            counts = census.counts[low - census.first : (index + 1) * stored.entries - census.first]
            used = np.flatnonzero(counts)
            if used.size and listed < MOST:
                listed += 1
                log.add(
                    "REFBLOCK-MISSING",
                    (low + int(used[0])) * size,
                    (int(used[-1]) - int(used[0]) + 1) * size,
                    count=used.size,
                    table=base,
                    index=index,
                )
