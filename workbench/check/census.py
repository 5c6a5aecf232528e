"""The census: how often each host cluster is referenced, and by which sorts of owner, in two bytes per cluster.

Counts saturate at 255 in a byte array; what exceeds that is kept exactly in a side table. The other byte holds the flags
of `kinds.py`. A census covers a window [first, end) of host clusters, so that a file of any size can be counted.
"""

from __future__ import annotations

from dataclasses import dataclass
from threading import Lock
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from workbench.check import kinds
from workbench.check.kinds import Owner

if TYPE_CHECKING:
    from numpy.typing import NDArray

WINDOW: Final = 1 << 30
"""Clusters per window: 2 GiB of memory at most."""
FULL: Final = 255
_CONSOLIDATE: Final = 1 << 18


@dataclass(frozen=True, slots=True)
class Claim:
    """A metadata structure's host range. offset, length in bytes; index: L1 or refcount table index, or -1."""

    owner: Owner
    offset: int
    length: int
    index: int = -1
    snapshot: int = -1

    @property
    def end(self) -> int:
        return self.offset + self.length


class Census:
    """Reference counts and flags of the host clusters [first, end).

    counts: uint8, saturated (see `counted`).  flags: uint8 of kinds.py.  total_clusters: clusters of the whole file.
    """

    def __init__(self, first: int, end: int, total_clusters: int, refcount_max: int) -> None:
        self.first = first
        self.end = end
        self.total_clusters = total_clusters
        self.refcount_max = refcount_max
        self.counts: NDArray[np.uint8] = np.zeros(end - first, dtype=np.uint8)
        self.flags: NDArray[np.uint8] = np.zeros(end - first, dtype=np.uint8)
        self._excess: list[tuple[NDArray[np.int64], NDArray[np.int64]]] = []
        self._pending = 0
        self.lock = Lock()

    def __len__(self) -> int:
        return self.end - self.first

    def add_run(self, start: int, clusters: int, weight: int, flag: int) -> None:
        """`weight` more references to each of `clusters` clusters from `start` (only those in the window)."""
        low, high = max(start, self.first) - self.first, min(start + clusters, self.end) - self.first
        if low >= high or weight == 0:
            return
        flags = self.flags[low:high]
        if flag == kinds.DATA and (flags & kinds.DATA).any():
            flags[(flags & kinds.DATA) != 0] |= kinds.CROSSED
        flags |= np.uint8(flag)
        counts = self.counts[low:high]
        if weight < FULL and int(counts.max()) + weight <= FULL:
            counts += np.uint8(weight)
        else:
            self._raise(np.arange(low, high, dtype=np.int64), np.full(high - low, weight, dtype=np.int64))

    def add(self, clusters: NDArray[np.int64], weight: int, flag: int) -> None:
        """`weight` more references for each occurrence in `clusters` (any order, repeated or not, any window)."""
        if weight == 0 or not clusters.size:
            return
        if self.first or int(clusters.max()) >= self.end:
            clusters = clusters[(clusters >= self.first) & (clusters < self.end)]
            if not clusters.size:
                return
        places = clusters - self.first if self.first else clusters
        if places.size > 1 and not (places[1:] > places[:-1]).all():
            ordered = np.sort(places)
            edge = np.empty(ordered.size, dtype=bool)
            edge[0] = True
            np.not_equal(ordered[1:], ordered[:-1], out=edge[1:])
            starts = np.flatnonzero(edge)
            places = ordered[starts]
            times = np.diff(np.append(starts, ordered.size))
            repeated = times > 1
        else:
            times, repeated = np.ones(1, dtype=np.int64), None
        flags = self.flags[places]
        if flag == kinds.DATA:
            crossed = (flags & kinds.DATA) != 0
            if repeated is not None:
                crossed |= repeated
            if crossed.any():
                flags[crossed] |= kinds.CROSSED
        self.flags[places] = flags | np.uint8(flag)
        if repeated is None or not repeated.any():
            counts = self.counts[places]
            if weight < FULL and int(counts.max()) + weight <= FULL:
                self.counts[places] = counts + np.uint8(weight)
                return
        self._raise(places, np.broadcast_to(times * weight, places.shape).astype(np.int64))

    def _raise(self, places: NDArray[np.int64], amounts: NDArray[np.int64]) -> None:
        """Exact addition for distinct places; what does not fit the byte goes to the side table."""
        now = self.counts[places].astype(np.int64) + amounts
        self.counts[places] = np.minimum(now, FULL).astype(np.uint8)
        over = now > FULL
        if over.any():
            self._excess.append((places[over], now[over] - FULL))
            self._pending += int(over.sum())
            if self._pending > _CONSOLIDATE + 2 * self._excess[0][0].size:
                self._consolidate()

    def _consolidate(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The side table as (places sorted, excess over 255)."""
        if not self._excess:
            empty = np.zeros(0, dtype=np.int64)
            return empty, empty
        if len(self._excess) > 1:
            places = np.concatenate([part[0] for part in self._excess])
            amounts = np.concatenate([part[1] for part in self._excess])
            order = np.argsort(places, kind="stable")
            places, amounts = places[order], amounts[order]
            starts = np.flatnonzero(np.append(True, places[1:] != places[:-1]))
            self._excess = [(places[starts], np.add.reduceat(amounts, starts))]
        elif self._excess[0][0].size > 1:
            places, amounts = self._excess[0]
            if not (places[1:] > places[:-1]).all():
                order = np.argsort(places)
                self._excess = [(places[order], amounts[order])]
        self._pending = 0
        return self._excess[0]

    def references(self, start: int, clusters: int) -> NDArray[np.uint64]:
        """Exact reference counts of a range within the window, uint64."""
        low = start - self.first
        out = self.counts[low : low + clusters].astype(np.uint64)
        places, amounts = self._consolidate()
        if places.size:
            a, b = np.searchsorted(places, [low, low + clusters])
            out[places[a:b] - low] += amounts[a:b].astype(np.uint64)
        return out

    def references_at(self, clusters: NDArray[np.int64]) -> NDArray[np.uint64]:
        """Exact reference counts of single clusters (inside the window), uint64."""
        at = clusters - self.first
        out = self.counts[at].astype(np.uint64)
        places, amounts = self._consolidate()
        if places.size and at.size:
            found = np.minimum(np.searchsorted(places, at), places.size - 1)
            hit = places[found] == at
            out[hit] += amounts[found[hit]].astype(np.uint64)
        return out

    def overflowing(self) -> tuple[NDArray[np.int64], NDArray[np.uint64]]:
        """(clusters, references) that are referenced more often than the refcount width can say."""
        if self.refcount_max < FULL:
            places = np.flatnonzero(self.counts > self.refcount_max).astype(np.int64)
        else:
            places = self._consolidate()[0]
        clusters = places + self.first
        found = self.references_at(clusters)
        over = found > np.uint64(self.refcount_max)
        return clusters[over], found[over]

    def has(self, cluster: int) -> bool:
        return self.first <= cluster < self.end


def as_clusters(offsets: NDArray[np.uint64], cluster_bits: int) -> NDArray[np.int64]:
    """Host cluster numbers of byte offsets (below 2^63), int64."""
    out: NDArray[Any] = (offsets >> np.uint64(cluster_bits)).astype(np.int64)
    return out
