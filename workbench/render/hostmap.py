"""The host map's arithmetic: what every host cluster is, and what a cell of many clusters shows. No drawing here.

`HostMap(result)` classifies clusters of a finished check from the census' flags and the metadata's places, a window at a
time. `summarise` counts kinds per block once; any zoom is then a sum of blocks, or a short look at the flags.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

import numpy as np
from numpy.typing import NDArray

from workbench.check import kinds
from workbench.check.kinds import Owner
from workbench.check.overlaps import Intervals, intervals
from workbench.check.passes_refcounts import StoredRefcounts
from workbench.check.result import CheckResult
from workbench.check.triage import LeakRun
from workbench.units import Geometry, div_round_up, format_size

OVERLAP_CODES: Final = (
    "METADATA-OVERLAP", "DATA-OVERLAPS-METADATA", "DATA-CROSS-LINKED", "DATA-OVERLAPS-COMPRESSED", "REFBLOCK-SHARED", "L2-TABLE-SHARED",
)  # fmt: skip
"""Findings that say that a cluster has two owners that must not share it."""
STEP: Final = 1 << 20
"""Clusters classified at a time."""
BLOCKS: Final = 1 << 16
"""Blocks of the summary at most."""
Step = Callable[[int, int], None]
"""Called with (clusters done, clusters in all); may raise to stop."""


class HostKind(IntEnum):
    """What a host cluster is used for, or what is wrong with it. One glyph and one colour each."""

    FREE = 0
    DATA = 1
    COMPRESSED = 2
    INACTIVE = 3
    USED = 4
    ACTIVE_L2 = 5
    INACTIVE_L2 = 6
    REFCOUNT_BLOCK = 7
    BITMAP = 8
    INACTIVE_L1 = 9
    SNAPSHOT_TABLE = 10
    REFCOUNT_TABLE = 11
    ACTIVE_L1 = 12
    LUKS = 13
    HEADER = 14
    LEAK = 15
    LOST = 16
    MISMATCH = 17
    OVERLAP = 18


@dataclass(frozen=True, slots=True)
class Look:
    """How a kind is shown. glyph: one cell.  style: name of a theme style.  title: for legend and text."""

    glyph: str
    style: str
    title: str
    plural: str = ""


LOOKS: Final[dict[HostKind, Look]] = {
    HostKind.FREE: Look("·", "free", "free", "free"),
    HostKind.DATA: Look("■", "data", "guest data", "guest data"),
    HostKind.COMPRESSED: Look("≡", "packed", "compressed", "compressed"),
    HostKind.INACTIVE: Look("□", "inactive", "snapshot data", "snapshot data"),
    HostKind.USED: Look("▒", "data", "in use", "in use"),
    HostKind.ACTIVE_L2: Look("2", "l2", "L2 table", "L2 tables"),
    HostKind.INACTIVE_L2: Look("s", "inactive", "snapshot L2", "snapshot L2"),
    HostKind.REFCOUNT_BLOCK: Look("r", "refcount", "refcount block", "refcount blocks"),
    HostKind.BITMAP: Look("B", "bitmap", "bitmap", "bitmap"),
    HostKind.INACTIVE_L1: Look("S", "inactive", "snapshot L1", "snapshot L1"),
    HostKind.SNAPSHOT_TABLE: Look("T", "inactive", "snapshot table", "snapshot table"),
    HostKind.REFCOUNT_TABLE: Look("R", "refcount", "refcount table", "refcount table"),
    HostKind.ACTIVE_L1: Look("1", "l1", "L1 table", "L1 table"),
    HostKind.LUKS: Look("K", "luks", "LUKS header", "LUKS header"),
    HostKind.HEADER: Look("H", "header", "header", "header"),
    HostKind.LEAK: Look("○", "leak", "leaked", "leaked"),
    HostKind.LOST: Look("◉", "lost", "leaked, may be guest data", "leaked, may be guest data"),
    HostKind.MISMATCH: Look("≠", "mismatch", "refcount wrong", "refcount wrong"),
    HostKind.OVERLAP: Look("╳", "overlap", "overlap", "overlaps"),
}
SPARSE: Final = Look("▖", "data", "less than half in use")
"""A cell of many clusters of which data takes less than half."""
KINDS: Final = len(HostKind)

_PROBLEMS: Final = (HostKind.OVERLAP, HostKind.MISMATCH, HostKind.LOST, HostKind.LEAK)
_LANDMARKS: Final = (
    HostKind.HEADER, HostKind.LUKS, HostKind.ACTIVE_L1, HostKind.REFCOUNT_TABLE, HostKind.SNAPSHOT_TABLE, HostKind.INACTIVE_L1, HostKind.BITMAP,
)  # fmt: skip
_COMMON: Final = (
    HostKind.DATA, HostKind.COMPRESSED, HostKind.INACTIVE, HostKind.USED, HostKind.ACTIVE_L2, HostKind.INACTIVE_L2, HostKind.REFCOUNT_BLOCK,
)  # fmt: skip
_OF_OWNER: Final = {
    Owner.HEADER: HostKind.HEADER,
    Owner.ACTIVE_L1: HostKind.ACTIVE_L1,
    Owner.ACTIVE_L2: HostKind.ACTIVE_L2,
    Owner.REFCOUNT_TABLE: HostKind.REFCOUNT_TABLE,
    Owner.REFCOUNT_BLOCK: HostKind.REFCOUNT_BLOCK,
    Owner.SNAPSHOT_TABLE: HostKind.SNAPSHOT_TABLE,
    Owner.INACTIVE_L1: HostKind.INACTIVE_L1,
    Owner.INACTIVE_L2: HostKind.INACTIVE_L2,
    Owner.BITMAP_DIRECTORY: HostKind.BITMAP,
    Owner.BITMAP_TABLE: HostKind.BITMAP,
    Owner.BITMAP_DATA: HostKind.BITMAP,
    Owner.LUKS_HEADER: HostKind.LUKS,
    Owner.DATA: HostKind.DATA,
    Owner.COMPRESSED: HostKind.COMPRESSED,
    Owner.SNAPSHOT_DATA: HostKind.INACTIVE,
}
_OWNER_KIND: Final = np.array([_OF_OWNER[owner] for owner in Owner], dtype=np.uint8)


def _flag_kinds() -> NDArray[np.uint8]:
    """Kind by the four owner bits of the flag byte. Metadata that no claim names is bitmap data."""
    table = np.zeros(16, dtype=np.uint8)
    for flags in range(16):
        if flags & kinds.METADATA:
            table[flags] = HostKind.OVERLAP if flags & ~kinds.METADATA else HostKind.BITMAP
        elif flags & kinds.PACKED:
            table[flags] = HostKind.OVERLAP if flags & (kinds.DATA | kinds.INACTIVE) else HostKind.COMPRESSED
        elif flags & kinds.DATA:
            table[flags] = HostKind.DATA
        elif flags & kinds.INACTIVE:
            table[flags] = HostKind.INACTIVE
    return table


_FLAG_KINDS: Final = _flag_kinds()


@dataclass(frozen=True, slots=True)
class Spans:
    """Ranges of clusters [first, end), in order of first."""

    first: NDArray[np.int64]
    end: NDArray[np.int64]

    def touches(self, start: int, count: int) -> bool:
        """Whether any range reaches into `count` clusters from `start`."""
        return bool(((self.first < start + count) & (self.end > start)).any())

    def mark(self, start: int, count: int) -> NDArray[np.bool_]:
        """Which of `count` clusters from `start` lie in a range."""
        edges = np.zeros(count + 1, dtype=np.int64)
        chosen = (self.first < start + count) & (self.end > start)
        if not chosen.any():
            return np.zeros(count, dtype=bool)
        np.add.at(edges, np.clip(self.first[chosen] - start, 0, count), 1)
        np.add.at(edges, np.clip(self.end[chosen] - start, 0, count), -1)
        marks: NDArray[np.bool_] = np.cumsum(edges[:-1]) > 0
        return marks


def spans_of(result: CheckResult, geometry: Geometry, codes: tuple[str, ...]) -> Spans:
    """Clusters of the findings with one of `codes`."""
    chosen = result.findings.columns[result.findings.rows(*codes)]
    bits = np.uint64(geometry.cluster_bits)
    limit = np.uint64(geometry.clusters(result.meta.file_size) + 1)
    first = np.minimum(chosen["offset"] >> bits, limit).astype(np.int64)
    length = np.minimum(chosen["length"], np.uint64(1 << 62)) + (
        chosen["offset"] & np.uint64(geometry.cluster_size - 1)
    )
    size = np.minimum((length + np.uint64(geometry.cluster_size - 1)) >> bits, limit).astype(np.int64)
    order = np.argsort(first, kind="stable")
    return Spans(first[order], (first + np.maximum(size, 1))[order])


@dataclass(frozen=True, slots=True)
class CellFacts:
    """What a cell holds. first, clusters: host clusters.  counts: clusters of each HostKind.  kind: the one that is shown.

    at: first cluster of that kind.  owners: structures there, for a cell of one cluster; stored, counted: its refcount and
    references, None where unknown or not one cluster.  verdict: what the leak triage says, empty otherwise.
    """

    first: int
    clusters: int
    counts: tuple[int, ...]
    kind: HostKind
    at: int
    owners: tuple[str, ...] = ()
    stored: int | None = None
    counted: int | None = None
    verdict: str = ""

    @property
    def words(self) -> str:
        """One line: kinds with their numbers, problems first; or the owners and refcounts of the single cluster."""
        if self.clusters == 1:
            parts = [", ".join(self.owners) or LOOKS[self.kind].title]
            if self.verdict:
                parts = [f"leaked, {self.verdict}"]
            elif self.kind in _PROBLEMS and LOOKS[self.kind].title not in parts[0]:
                parts.insert(0, LOOKS[self.kind].title)
            if self.stored is not None or self.counted is not None:
                stored = "unreadable" if self.stored is None else str(self.stored)
                parts.append(f"refcount {stored}, references {'?' if self.counted is None else self.counted}")
            return "; ".join(parts)
        order = [*_PROBLEMS, *_LANDMARKS, *sorted(_COMMON, key=lambda kind: -self.counts[kind]), HostKind.FREE]
        found = [
            f"{self.counts[kind]:,} {LOOKS[kind].title if self.counts[kind] == 1 else LOOKS[kind].plural}"
            for kind in order
            if self.counts[kind]
        ]
        return ", ".join(found)


class HostMap:
    """Kinds of the host clusters of a checked image. Reads refcount blocks where the flags do not say enough: for workers."""

    def __init__(self, result: CheckResult) -> None:
        geometry = result.meta.geometry
        if geometry is None:
            raise ValueError("an image without geometry has no clusters")
        self.result, self.geometry = result, geometry
        self.clusters = max(1, geometry.clusters(result.meta.file_size))
        self.census = result.census
        self.stored = StoredRefcounts(result.meta, geometry)
        self.metadata: Intervals = intervals(geometry, result.claims, result.tables, self.stored, [], self.clusters + 1)
        self._reach = np.maximum.accumulate(self.metadata.last) if self.metadata.last.size else self.metadata.last
        self._overlaps = spans_of(result, geometry, OVERLAP_CODES)
        self._leaks = spans_of(result, geometry, ("CLUSTER-LEAKED",))
        self._wrong = spans_of(
            result,
            geometry,
            ("REFCOUNT-ZERO", "REFCOUNT-TOO-LOW", "REFCOUNT-TOO-HIGH", "REFCOUNT-UNREADABLE", "REFCOUNT-OVERFLOW"),
        )
        self.orphans: tuple[LeakRun, ...] = tuple(result.orphans)
        self._lost = self._orphan_spans()
        self.block = 1
        self.summary: NDArray[np.uint32] | None = None
        """Clusters of each kind per block of `block` clusters, shape (blocks, KINDS); None before `summarise`."""

    def _orphan_spans(self) -> Spans:
        """Leaked runs that the triage takes for guest data."""
        size = self.geometry.cluster_size
        runs = [run for run in self.orphans if run.keep]
        first = np.array([run.offset // size for run in runs], dtype=np.int64)
        end = np.array([div_round_up(run.offset + run.length, size) for run in runs], dtype=np.int64)
        order = np.argsort(first, kind="stable")
        return Spans(first[order], end[order])

    # Single clusters

    def uses_of(self, start: int, count: int) -> NDArray[np.uint8]:
        """HostKind by use alone, whatever is wrong with the clusters, uint8."""
        if self.census is None:
            values, _ = self.stored.range(start, count)
            found: NDArray[np.uint8] = np.where(values != 0, np.uint8(HostKind.USED), np.uint8(HostKind.FREE))
        else:
            flags = self.census.flags[start - self.census.first : start - self.census.first + count]
            found = _FLAG_KINDS[flags & np.uint8(15)]
            found[found == HostKind.OVERLAP] = HostKind.DATA
        self._put_metadata(found, start, count)
        return found

    def kinds_of(self, start: int, count: int) -> NDArray[np.uint8]:
        """HostKind of the clusters start … start + count - 1 (inside the file), problems first, uint8."""
        if self.census is None:
            return self._kinds_without_census(start, count)
        flags = self.census.flags[start - self.census.first : start - self.census.first + count]
        counts = self.census.counts[start - self.census.first : start - self.census.first + count]
        if not flags.any():
            return np.zeros(count, dtype=np.uint8)
        found: NDArray[np.uint8] = _FLAG_KINDS[flags & np.uint8(15)]
        overlap = ((found == HostKind.OVERLAP) | ((flags & np.uint8(kinds.CROSSED)) != 0)) | self._overlaps.mark(
            start, count
        )
        self._put_metadata(found, start, count)
        state = flags & np.uint8(kinds.STORED | kinds.STORED_ONE)
        leak = ((flags & np.uint8(kinds.STORED)) != 0) & (counts == 0)
        wrong = (flags & np.uint8(kinds.UNREADABLE)) != 0
        wrong |= (state == 0) & (counts != 0)
        wrong |= (state == (kinds.STORED | kinds.STORED_ONE)) & (counts > 1)
        many = (state == kinds.STORED) & (counts > 0)
        if many.any():
            wrong |= many & self._differs(start, count, np.flatnonzero(many))
        found[wrong] = HostKind.MISMATCH
        found[overlap] = HostKind.OVERLAP
        found[leak] = HostKind.LEAK
        if self._lost.first.size and leak.any():
            found[leak & self._lost.mark(start, count)] = HostKind.LOST
        return found

    def _differs(self, start: int, count: int, places: NDArray[np.intp]) -> NDArray[np.bool_]:
        """Which clusters at `places` have a stored refcount other than their references; False elsewhere."""
        assert self.census is not None
        out = np.zeros(count, dtype=bool)
        clusters = places.astype(np.int64) + start
        found = np.minimum(self.census.references_at(clusters), np.uint64(self.geometry.refcount_max))
        values, bad = self.stored.at(clusters)
        out[places] = (values != found) & ~bad
        return out

    def _kinds_without_census(self, start: int, count: int) -> NDArray[np.uint8]:
        """For files that were counted in windows: use by the stored refcounts, problems by the findings."""
        if self._nothing(start, count):
            return np.zeros(count, dtype=np.uint8)
        values, bad = self.stored.range(start, count)
        found: NDArray[np.uint8] = np.where(values != 0, np.uint8(HostKind.USED), np.uint8(HostKind.FREE))
        self._put_metadata(found, start, count)
        found[bad | self._wrong.mark(start, count)] = HostKind.MISMATCH
        found[self._overlaps.mark(start, count)] = HostKind.OVERLAP
        leak = self._leaks.mark(start, count)
        found[leak] = HostKind.LEAK
        found[leak & self._lost.mark(start, count)] = HostKind.LOST
        return found

    def _nothing(self, start: int, count: int) -> bool:
        """Whether no refcount block, structure or finding concerns these clusters: quickly said for the holes of a huge file."""
        if self.census is not None:
            return not self.census.flags[start - self.census.first : start - self.census.first + count].any()
        entries = self.stored.entries
        if self.stored.blocks[start // entries : div_round_up(start + count, entries)].any():
            return False
        if int(np.searchsorted(self._reach, start)) < int(np.searchsorted(self.metadata.first, start + count)):
            return False
        return not any(spans.touches(start, count) for spans in (self._wrong, self._overlaps, self._leaks))

    def _put_metadata(self, found: NDArray[np.uint8], start: int, count: int) -> None:
        """Write the kinds of the metadata structures over what the flags gave."""
        table = self.metadata
        low = int(np.searchsorted(self._reach, start))
        high = int(np.searchsorted(table.first, start + count))
        if low >= high:
            return
        first, last = table.first[low:high] - start, table.last[low:high] - start
        kind = _OWNER_KIND[table.owner[low:high]]
        single = (first == last) & (first >= 0)
        found[first[single]] = kind[single]
        for row in np.flatnonzero(~single & (last >= 0)).tolist():
            found[max(0, int(first[row])) : min(count, int(last[row]) + 1)] = kind[row]

    # Cells

    def summarise(self, step: Step | None = None) -> None:
        """Count the kinds of every block of clusters: once, a megacluster at a time."""
        block = 64
        while block * BLOCKS < self.clusters:
            block *= 2
        blocks = div_round_up(self.clusters, block)
        summary = np.zeros((blocks, KINDS), dtype=np.uint32)
        stride = max(STEP, block)
        for at in range(0, self.clusters, stride):
            if step is not None:
                step(at, self.clusters)
            count = min(stride, self.clusters - at)
            self._count(at, count, block, summary)
        self.block, self.summary = block, summary

    def _count(self, start: int, count: int, block: int, out: NDArray[np.uint32]) -> None:
        first, rows = start // block, div_round_up(count, block)
        if (
            self.census is not None
            and not self.census.flags[start - self.census.first : start - self.census.first + count].any()
        ):
            out[first : first + rows, HostKind.FREE] = block
            out[first + rows - 1, HostKind.FREE] = count - (rows - 1) * block
            return
        found = self.kinds_of(start, count)
        if (found == found[0]).all():
            out[first : first + rows, found[0]] = block
            out[first + rows - 1, found[0]] = count - (rows - 1) * block
            return
        out[first : first + rows] = count_kinds(found, block)

    def cells(self, start: int, cell: int, count: int) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
        """(HostKind shown, mostly free) of `count` cells of `cell` clusters (a power of two) from cluster `start`."""
        count = min(count, max(0, div_round_up(self.clusters - start, cell)))
        if count <= 0:
            return np.zeros(0, np.uint8), np.zeros(0, bool)
        if cell == 1:
            found = self.kinds_of(start, count)
            return found, np.zeros(count, dtype=bool)
        counts = self.counts(start, cell, count)
        return shown(counts), mostly_free(counts)

    def counts(self, start: int, cell: int, count: int) -> NDArray[np.int64]:
        """Clusters of each kind per cell, shape (count, KINDS). `start` is a multiple of `cell`."""
        end = min(self.clusters, start + cell * count)
        if self.summary is not None and cell >= self.block:
            low, high = start // self.block, div_round_up(end, self.block)
            rows = self.summary[low:high].astype(np.int64)
            per = cell // self.block
            edges = np.arange(0, rows.shape[0], per)
            total: NDArray[np.int64] = np.add.reduceat(rows, edges, axis=0)
            return total
        parts = []
        stride = max(cell, STEP // cell * cell)
        for at in range(start, end, stride):
            size = min(stride, end - at)
            parts.append(count_kinds(self.kinds_of(at, size), cell))
        return np.concatenate(parts)

    def facts(self, first: int, cell: int) -> CellFacts:
        """What the cell that begins at cluster `first` holds."""
        clusters = min(cell, self.clusters - first)
        counts = self.counts(first, cell, 1)
        kind = HostKind(int(shown(counts)[0]))
        numbers = tuple(int(each) for each in counts[0])
        if clusters > 1:
            return CellFacts(first, clusters, numbers, kind, self._first_of(kind, first, clusters))
        values, bad = self.stored.range(first, 1)
        counted = int(self.census.references(first, 1)[0]) if self.census is not None else None
        stored = None if bad[0] else int(values[0])
        return CellFacts(first, 1, numbers, kind, first, self.owners(first), stored, counted, self.verdict(first))

    def _first_of(self, kind: HostKind, first: int, clusters: int) -> int:
        """The first cluster of a kind in a range, looked for a piece at a time."""
        at, end = first, first + clusters
        while at < end:
            if self.summary is not None and at % self.block == 0 and not self.summary[at // self.block, kind]:
                at += self.block
                continue
            size = min(self.block if self.summary is not None else STEP, end - at)
            hit = np.flatnonzero(self.kinds_of(at, size) == kind)
            if hit.size:
                return at + int(hit[0])
            at += size
        return first

    def owners(self, cluster: int) -> tuple[str, ...]:
        """Names of the structures on a cluster; guest data without its table (that needs a search)."""
        table = self.metadata
        low = int(np.searchsorted(self._reach, cluster))
        high = int(np.searchsorted(table.first, cluster, side="right"))
        names = [table.title(row) for row in range(low, min(high, low + 4096)) if table.last[row] >= cluster]
        if self.census is not None:
            flags = int(self.census.flags[cluster - self.census.first])
            if flags & kinds.METADATA and not names:
                names.append(Owner.BITMAP_DATA.title)
            named = ((kinds.DATA, Owner.DATA), (kinds.PACKED, Owner.COMPRESSED), (kinds.INACTIVE, Owner.SNAPSHOT_DATA))
            names += [owner.title for flag, owner in named if flags & flag]
        return tuple(dict.fromkeys(names))

    def verdict(self, cluster: int) -> str:
        """What the leak triage says of the run that a cluster is in."""
        offset = cluster * self.geometry.cluster_size
        run = next((each for each in self.orphans if each.offset <= offset < each.offset + each.length), None)
        return orphan_words(run) if run is not None else ""


def orphan_words(run: LeakRun) -> str:
    """A leaked run's verdict with its reason."""
    sure = f"{run.verdict.value} ({run.confidence:.0%} sure)"
    return f"{sure}: {run.reason}" if run.reason else sure


def count_kinds(found: NDArray[np.uint8], cell: int) -> NDArray[np.int64]:
    """Clusters of each kind per `cell` clusters, shape (cells, KINDS); the last cell may be short."""
    cells = div_round_up(found.size, cell)
    place = np.arange(found.size, dtype=np.int64) // cell * KINDS + found
    return np.bincount(place, minlength=cells * KINDS).reshape(cells, KINDS)


def shown(counts: NDArray[np.int64]) -> NDArray[np.uint8]:
    """The kind that stands for each cell: a problem if there is one, then rare structures, then what takes most room."""
    common = np.array(_COMMON)
    most = common[np.argmax(counts[:, common], axis=1)]
    out = np.where(counts[:, common].sum(axis=1) > 0, most, int(HostKind.FREE)).astype(np.uint8)
    for kind in (*reversed(_LANDMARKS), *reversed(_PROBLEMS)):
        out[counts[:, kind] > 0] = kind
    return out


def mostly_free(counts: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Cells of which less than half is in use."""
    total = counts.sum(axis=1)
    found: NDArray[np.bool_] = counts[:, HostKind.FREE] * 2 > total
    return found


def cell_text(cell: int, cluster_size: int) -> str:
    """`1 cell = 64 KiB`, `1 cell = 4 MiB (64 clusters)`."""
    size = f"1 cell = {format_size(cell * cluster_size)}"
    return f"{size} (1 cluster)" if cell == 1 else f"{size} ({cell:,} clusters)"


def whole_file_cell(clusters: int, columns: int, rows: int) -> int:
    """Clusters per cell (a power of two) at which the whole file fits into columns × rows cells."""
    cell = 1
    while div_round_up(div_round_up(clusters, cell), max(1, columns)) > max(1, rows):
        cell *= 2
    return cell
