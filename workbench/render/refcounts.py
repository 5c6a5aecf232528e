"""Refcounts side by side: stored against counted, a row per host cluster, or per cluster where the two differ."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Final

import numpy as np
from numpy.typing import NDArray

from workbench.check.result import CheckResult
from workbench.render.hostmap import LOOKS, HostKind, HostMap
from workbench.units import div_round_up

MISMATCHES: Final = ("REFCOUNT-ZERO", "REFCOUNT-TOO-LOW", "REFCOUNT-UNREADABLE", "REFCOUNT-TOO-HIGH", "CLUSTER-LEAKED")
TILE: Final = 512
"""Rows read together."""
_STEP: Final = 1 << 20
UNKNOWN: Final = (1 << 64) - 1
"""In `counted`: the file was counted in windows, and the cluster lies in a finding of many clusters."""


@dataclass(frozen=True, slots=True)
class RefcountTile:
    """Rows of the list. clusters int64; stored, counted uint64; unreadable bool; kind, use uint8 (HostKind)."""

    first: int
    clusters: NDArray[np.int64]
    stored: NDArray[np.uint64]
    counted: NDArray[np.uint64]
    unreadable: NDArray[np.bool_]
    kind: NDArray[np.uint8]
    use: NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class RefcountRow:
    """One host cluster. stored: None when unreadable.  counted: references, None where unknown.

    kind: what the host map shows (problems first).  use: what it is used for, all the same.
    """

    cluster: int
    stored: int | None
    counted: int | None
    kind: HostKind
    use: HostKind

    @property
    def level(self) -> str:
        if self.stored is None:
            return "bad"
        if self.counted is None or self.stored == self.counted:
            return ""
        return "warn" if self.stored > self.counted else "bad"

    @property
    def words(self) -> str:
        """The comparison in words."""
        if self.stored is None:
            return "✗ unreadable"
        if self.counted is None:
            return "? not counted one by one"
        if self.stored == self.counted:
            return "= agrees" if self.stored else "· free"
        if not self.counted:
            return "○ leaked: may be guest data" if self.kind is HostKind.LOST else "○ leaked"
        if not self.stored:
            return "✗ in use, counts as free"
        return "▲ too high" if self.stored > self.counted else "▼ too low"

    @property
    def owner(self) -> str:
        """What the cluster is used for; empty for one that nothing uses."""
        overlap = ", overlap" if self.kind is HostKind.OVERLAP else ""
        return "" if self.use is HostKind.FREE else LOOKS[self.use].title + overlap


class RefcountRows:
    """The list. only_wrong keeps the clusters whose refcount differs from their references. Tiles are read in a worker."""

    def __init__(self, world: HostMap, *, only_wrong: bool = False) -> None:
        self.world, self.only_wrong = world, only_wrong
        self.result: CheckResult = world.result
        self.first, self.sizes = self._wrong_runs()
        self.ends = np.cumsum(self.sizes)
        self.wrong = int(self.ends[-1]) if self.ends.size else 0
        self.total = self.wrong if only_wrong else world.clusters

    def __len__(self) -> int:
        return self.total

    def _wrong_runs(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """(first cluster, clusters) of the runs of mismatches, in order; rows that stand for scattered clusters are resolved."""
        findings = self.result.findings
        chosen = findings.columns[findings.rows(*MISMATCHES)]
        bits = np.uint64(self.world.geometry.cluster_bits)
        first = (chosen["offset"] >> bits).astype(np.int64)
        size = np.maximum(1, (chosen["length"] >> bits).astype(np.int64))
        inside = first < self.world.clusters
        first, size, count = first[inside], size[inside], chosen["count"][inside].astype(np.int64)
        scattered = count < size
        if scattered.any() and self.world.census is not None:
            exact = self._exact(int(first[scattered].min()), int((first + size)[scattered].max()))
            low, high = (int(exact[0][0]), int(exact[0][-1] + exact[1][-1])) if exact[0].size else (0, 0)
            outside = ~scattered & ((first < low) | (first >= high))
            first, size = np.concatenate([first[outside], exact[0]]), np.concatenate([size[outside], exact[1]])
        order = np.argsort(first, kind="stable")
        first, size = first[order], np.minimum(size[order], self.world.clusters - first[order])
        return first, size

    def _exact(self, low: int, high: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Runs of clusters in [low, high) that differ, from the census and the stored refcounts."""
        census = self.world.census
        assert census is not None
        parts = []
        for at in range(low, min(high, self.world.clusters), _STEP):
            count = min(_STEP, min(high, self.world.clusters) - at)
            stored, bad = self.world.stored.range(at, count)
            counted = np.minimum(census.references(at, count), np.uint64(self.world.geometry.refcount_max))
            parts.append(np.flatnonzero((stored != counted) | bad).astype(np.int64) + at)
        clusters = np.concatenate(parts) if parts else np.zeros(0, np.int64)
        if not clusters.size:
            return clusters, clusters
        starts = np.flatnonzero(np.append(True, np.diff(clusters) != 1))
        return clusters[starts], np.diff(np.append(starts, clusters.size)).astype(np.int64)

    def cluster(self, row: int) -> int:
        """Host cluster of a row."""
        if not self.only_wrong:
            return row
        run = int(np.searchsorted(self.ends, row, side="right"))
        return int(self.first[run]) + row - int(self.ends[run] - self.sizes[run])

    def row_of(self, cluster: int) -> int:
        """The row of a cluster, or of the next one that is listed."""
        if not self.only_wrong:
            return max(0, min(cluster, self.total - 1))
        run = int(np.searchsorted(self.first, cluster, side="right")) - 1
        if run < 0:
            return 0
        inside = cluster - int(self.first[run])
        start = int(self.ends[run] - self.sizes[run])
        return min(self.total - 1, start + min(inside, int(self.sizes[run])))

    def tile(self, number: int) -> RefcountTile:
        """Read rows number * TILE …; reads refcount blocks."""
        low, high = number * TILE, min(self.total, (number + 1) * TILE)
        if self.only_wrong:
            rows = np.arange(low, high)
            runs = np.searchsorted(self.ends, rows, side="right")
            clusters = self.first[runs] + rows - (self.ends - self.sizes)[runs]
        else:
            clusters = np.arange(low, high, dtype=np.int64)
        stored, bad = self.world.stored.at(clusters)
        kind, use = np.zeros(clusters.size, dtype=np.uint8), np.zeros(clusters.size, dtype=np.uint8)
        breaks = [0, *(np.flatnonzero(np.diff(clusters) != 1) + 1).tolist(), clusters.size]
        for start, end in pairwise(breaks):
            if end > start:
                kind[start:end] = self.world.kinds_of(int(clusters[start]), end - start)
                use[start:end] = self.world.uses_of(int(clusters[start]), end - start)
        return RefcountTile(low, clusters, stored, self._counted(clusters, stored), bad, kind, use)

    def _counted(self, clusters: NDArray[np.int64], stored: NDArray[np.uint64]) -> NDArray[np.uint64]:
        if self.world.census is not None:
            return self.world.census.references_at(clusters)
        # Without a census: what the check did not complain about agrees; a finding of one kind of run knows its number.
        counted = stored.copy()
        findings = self.result.findings
        rows = findings.columns[findings.rows(*MISMATCHES)]
        size = np.uint64(self.world.geometry.cluster_size)
        low, high = np.uint64(int(clusters[0])) * size, np.uint64(int(clusters[-1]) + 1) * size
        for row in rows[(rows["offset"] < high) & (rows["offset"] + rows["length"] > low)][: TILE * 4]:
            first = int(row["offset"] // size)
            hit = (clusters >= first) & (clusters < first + div_round_up(int(row["length"]), int(size)))
            counted[hit] = row["other"] if int(row["count"]) * int(size) == int(row["length"]) else np.uint64(UNKNOWN)
        return counted


def row_of_tile(tile: RefcountTile, row: int) -> RefcountRow:
    """A row of a tile, decoded."""
    at = row - tile.first
    counted = int(tile.counted[at])
    return RefcountRow(
        int(tile.clusters[at]),
        None if tile.unreadable[at] else int(tile.stored[at]),
        None if counted == UNKNOWN else counted,
        HostKind(int(tile.kind[at])),
        HostKind(int(tile.use[at])),
    )
