"""Which clusters that nothing refers to must be counted all the same: whatever somebody may need, whatever their refcount.

Evidence counts from the image as it was found: mending a damaged entry takes away the gap that explains a leak.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from formats.qcow2.entries import is_compressed, packed_range
from workbench.check import CheckResult
from workbench.repair.ledger import PACKED, Ledger, batches
from workbench.repair.preserve.keeping import Keeper, refers
from workbench.repair.preserve.walk import Cell, Reading
from workbench.repair.workspace import Workspace

_MOST_LOOSE: Final = 4096
"""Clusters of compressed data with a count that is too high, whose bytes are looked at."""


def keeper_of(space: Workspace) -> Keeper:
    """What is known of the image as it was found; of the image at hand while the header gave no shape then."""
    if space.keeper is not None:
        return space.keeper
    reading = Reading(space.base)
    if reading.geometry is None:
        now = Reading(space.overlay)
        return Keeper(now, refers(now))
    space.keeper = Keeper(reading, refers(reading), space.found.unreferenced if space.found is not None else None)
    return space.keeper


def orphans(space: Workspace, ledger: Ledger) -> NDArray[np.bool_]:
    """True for each cluster of the file that nothing refers to, and that must stay (or become) counted."""
    keeper = keeper_of(space)
    kept = np.zeros(ledger.clusters, dtype=bool)
    if keeper.reading.bits != ledger.cluster_bits:
        return kept
    size = min(ledger.clusters, keeper.reading.clusters)
    before = keeper.refs.referenced(size)
    unused = ledger.counts[:size] == 0
    dropped = np.flatnonzero(unused & before)
    for number in dropped.tolist():
        kept[number] = bool(keeper.reason(number)) and keeper.content(number) > 0
    loose = unused & ~before
    if loose.any():
        kept[:size] |= loose & keeper.evidence[:size]
        loose &= keeper.found.content[:size]
        some = np.flatnonzero(loose)
        loose[some] = keeper.stored_many(some) != 0  # as the image was found: in use, or not known
        if loose.any() and (keeper.gap or space.policy.cautious):
            kept[:size] |= loose
        elif loose.any() and space.found is not None:
            kept[:size] |= loose & _judged(space.found, ledger)[:size]
    return kept


def sharing_lost(space: Workspace, ledger: Ledger) -> NDArray[np.bool_]:
    """Clusters that count as shared more often than tables show, where another disk of the image has nothing.

    Snapshots share a cluster at one place of the disk. Where one of them has a hole there, its entry may be lost: then
    the count is the only trace, and a write in place would change what the snapshot held. A count that is higher than
    all of them together would make it is wrong by itself. bool per cluster.
    """
    kept = np.zeros(ledger.clusters, dtype=bool)
    excess = (ledger.counts > 0) & (ledger.stored > ledger.counts)
    if space.found is not None and space.found.meta.header.nb_snapshots > len(space.meta.snapshots):
        return excess  # those that were not found again may share any of them
    reading = Reading(space.overlay)
    if not excess.any() or reading.geometry is None or reading.external:
        return kept
    kept |= _with_loose_streams(space, ledger, excess)
    if len(reading.meta.snapshots) == 0:
        return kept
    views = list(reading.views())
    for index in range(max(view.l1.size for view in views)):
        found = [reading.table(int(view.l1[index]) if index < view.l1.size else 0) for view in views]
        cells = [
            reading.cells(*each, index * reading.shape.l2_coverage) if each is not None else None for each in found
        ]
        known = [each for each in cells if each is not None]
        if len({id(each) for each in known}) < 2 and len(known) == len(cells):
            continue
        holes = np.zeros(known[0][0].shape if known else 0, dtype=np.uint64)
        for each in cells:
            holes += (each[0] == Cell.HOLE) if each is not None else np.uint64(1)
        for kinds, hosts in known:
            chosen = (holes > 0) & (kinds == Cell.DATA)
            numbers = (hosts[chosen] >> np.uint64(ledger.cluster_bits)).astype(np.int64)
            inside = numbers < ledger.clusters
            numbers, room = numbers[inside], holes[chosen][inside]
            kept[numbers[ledger.stored[numbers] <= ledger.counts[numbers] + room]] = True
    return kept & excess


def _with_loose_streams(space: Workspace, ledger: Ledger, excess: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Which clusters that count too often hold compressed data, and bytes between that no stream takes: one may have lost
    its entry."""
    kept = np.zeros(ledger.clusters, dtype=bool)
    numbers = np.flatnonzero(excess & ((ledger.flags & np.uint8(PACKED)) != 0))[:_MOST_LOOSE]
    if not numbers.size:
        return kept
    sectors, bits = space.cluster // 512, ledger.cluster_bits
    taken = np.zeros((numbers.size, sectors), dtype=bool)
    for batch in batches(space, ledger.tables):
        start, end = packed_range(batch.words[is_compressed(batch.words)], space.meta.shape)
        first, last = (
            (start >> np.uint64(bits)).astype(np.int64),
            ((end - np.uint64(1)) >> np.uint64(bits)).astype(np.int64),
        )
        for row, number in enumerate(numbers.tolist()):
            base = number << bits
            for at in np.flatnonzero((first <= number) & (number <= last)).tolist():
                low, high = (
                    max(int(start[at]) - base, 0) // 512,
                    -(-(min(int(end[at]), base + space.cluster) - base) // 512),
                )
                taken[row, low:high] = True
    for row, number in enumerate(numbers.tolist()):
        content = np.frombuffer(space.read_cluster(number << bits), np.uint8).reshape(sectors, 512).any(axis=1)
        kept[number] = bool((content & ~taken[row]).any())
    return kept


def _judged(result: CheckResult, ledger: Ledger) -> NDArray[np.bool_]:
    """Leaks that the check calls possible guest data."""
    out = np.zeros(ledger.clusters, dtype=bool)
    geometry = result.meta.geometry
    if geometry is not None and geometry.cluster_bits == ledger.cluster_bits:
        for each in result.orphans:
            if each.keep:
                first = each.offset >> ledger.cluster_bits
                out[first : first + (each.length >> ledger.cluster_bits)] = True
    return out
