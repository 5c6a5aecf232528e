"""Who references a host cluster: a targeted scan, without the census of a whole check.

Every table of the image is looked through in numpy, in the order of the file. Time and memory are bounded by the file:
a pointer is followed only when it is cluster aligned and inside the file, each L2 table once, holes are skipped, and no
more L1 bytes are read than tables that do not overlap could take.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from enum import Enum
from itertools import islice
from typing import TYPE_CHECKING, Final

from formats.qcow2 import limits
from formats.qcow2.entries import (
    ClusterType,
    L2Entries,
    Pointers,
    PointerTable,
    block_of,
    offset_of,
    packed_range,
    read_l2,
)
from formats.qcow2.extensions import ExtensionType
from formats.qcow2.header import field as header_field
from formats.qcow2.tables import words as decode
from workbench.engine import tables
from workbench.engine.metadata import Metadata, Region
from workbench.engine.tables import Table
from workbench.units import GuestOffset, HostOffset

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Progress = Callable[[int, int], None]
"""Called with (L2 tables looked at, L2 tables there are)."""
Cancel = Callable[[], bool]

_BATCH_BYTES: Final = 4 << 20
_DEFAULT_LIMIT: Final = 10_000


class OwnerKind(Enum):
    """What a cluster is used as."""

    HEADER = "header"
    L1_TABLE = "active L1 table"
    SNAPSHOT_L1 = "snapshot L1 table"
    L2_TABLE = "L2 table"
    DATA = "guest data"
    COMPRESSED = "compressed guest data"
    REFCOUNT_TABLE = "refcount table"
    REFCOUNT_BLOCK = "refcount block"
    SNAPSHOT_TABLE = "snapshot table"
    BITMAP_DIRECTORY = "bitmap directory"
    BITMAP_TABLE = "bitmap table"
    BITMAP_DATA = "bitmap data"
    LUKS = "LUKS header and keys"


@dataclass(frozen=True, slots=True)
class Owner:
    """One reference to a cluster.

    at: host offset of the field that holds the pointer.  table, index: its table's name and the entry in it.
    target: host bytes referenced.  guest: first guest offset that it stands for (L2 tables, data).
    snapshot: index of the snapshot through which it is referenced; None for the active disk (or no disk at all).
    """

    kind: OwnerKind
    at: HostOffset
    table: str
    index: int | None
    target: Region
    guest: GuestOffset | None = None
    snapshot: int | None = None


def owners_of(
    meta: Metadata,
    cluster: int,
    progress: Progress | None = None,
    cancel: Cancel | None = None,
    *,
    limit: int = _DEFAULT_LIMIT,
) -> list[Owner]:
    """Every reference to host cluster number `cluster`, at most `limit`; [] when the image has no geometry.

    `cancel` is asked between batches; what was found until then is returned.
    """
    if meta.geometry is None:
        return []
    scan = _Scan(meta, cluster, progress, cancel, limit)
    found: list[Owner] = []
    for owner in scan.run():
        found.append(owner)
        if len(found) >= limit:
            break
    return found


@dataclass(slots=True)
class _Source:
    """An L1 table's offsets, the entries whose L2 table lies on our cluster, and who uses it (None: the active disk)."""

    offsets: NDArray[np.uint64]
    hits: list[int]
    snapshots: list[int | None] = field(default_factory=list)


class _Scan:
    def __init__(
        self, meta: Metadata, cluster: int, progress: Progress | None, cancel: Cancel | None, limit: int
    ) -> None:
        assert meta.geometry is not None
        self.meta, self.geometry = meta, meta.geometry
        self.size = meta.geometry.cluster_size
        self.low, self.high = cluster * self.size, (cluster + 1) * self.size
        self.progress, self.cancel, self.limit = progress, cancel, limit
        self.l1_budget = meta.file_size + limits.MAX_L1_SIZE

    def run(self) -> Iterator[Owner]:
        yield from self._fixed()
        yield from self._pointers(tables.refcount_table(self.meta), PointerTable.REFCOUNT, OwnerKind.REFCOUNT_BLOCK)
        yield from self._bitmaps()
        yield from self._mapping()

    def _hits(self, region: Region) -> bool:
        return region.length > 0 and region.offset < self.high and region.end > self.low

    def _fixed(self) -> Iterator[Owner]:
        """What the header, the extensions and the directories point to."""
        meta, header = self.meta, self.meta.header
        found: list[tuple[OwnerKind, int, str, int | None, Region, int | None]] = [
            (OwnerKind.HEADER, 0, "file", None, Region(0, self.size), None),
            (OwnerKind.L1_TABLE, header_field("l1_table_offset")[0], "header", None, meta.l1_region, None),
            (
                OwnerKind.REFCOUNT_TABLE,
                header_field("refcount_table_offset")[0],
                "header",
                None,
                meta.refcount_table_region,
                None,
            ),
        ]
        if header.nb_snapshots and meta.snapshot_table.end > header.snapshots_offset:
            where = Region(header.snapshots_offset, meta.snapshot_table.end - header.snapshots_offset)
            found.append((OwnerKind.SNAPSHOT_TABLE, header_field("snapshots_offset")[0], "header", None, where, None))
        for number, snapshot in enumerate(meta.snapshots):
            where = Region(snapshot.l1_table_offset, snapshot.l1_size * 8)
            found.append((OwnerKind.SNAPSHOT_L1, snapshot.offset, "snapshot table", number, where, number))
        if meta.encryption is not None:
            where = Region(meta.encryption.offset, meta.encryption.length)
            found.append(
                (OwnerKind.LUKS, self._extension(ExtensionType.ENCRYPTION), "header extensions", None, where, None)
            )
        if meta.bitmaps_extension is not None:
            extension = meta.bitmaps_extension
            where = Region(extension.directory_offset, extension.directory_size)
            found.append(
                (
                    OwnerKind.BITMAP_DIRECTORY,
                    self._extension(ExtensionType.BITMAPS),
                    "header extensions",
                    None,
                    where,
                    None,
                )
            )
        for kind, at, table, index, region, snapshot_index in found:
            if self._hits(region):
                yield Owner(kind, HostOffset(at), table, index, region, snapshot=snapshot_index)

    def _extension(self, kind: ExtensionType) -> int:
        return next((each.offset for each in self.meta.extensions if each.type == kind), 0)

    def _pointers(self, table: Table, sort: PointerTable, kind: OwnerKind) -> Iterator[Owner]:
        """Entries of a plain pointer table whose cluster overlaps ours."""
        import numpy as np

        at = 0
        while at < table.readable(self.meta):
            hole = table.hole(self.meta, at, table.readable(self.meta))
            if hole:
                at += hole
                continue
            block = table.columns(self.meta, at, 1 << 16)[:, 0]
            if not block.size:
                return
            offsets = Pointers(block, sort, self.meta.shape).offset
            for index in np.flatnonzero(self._overlaps(offsets)).tolist():
                where = table.entry_offset(self.meta, at + index)
                yield Owner(kind, where, table.name, at + index, Region(int(offsets[index]), self.size))
            at += block.size
            if self.cancel is not None and self.cancel():
                return

    def _overlaps(self, offsets: NDArray[np.uint64]) -> NDArray[np.bool_]:
        """Which offsets begin a cluster that overlaps ours; null pointers do not count."""
        found: NDArray[np.bool_] = (offsets >= max(1, self.low - self.size + 1)) & (offsets < self.high)
        return found

    def _bitmaps(self) -> Iterator[Owner]:
        if not self.meta.header.has("bitmaps"):
            return
        for index, bitmap in enumerate(self.meta.bitmap_directory.bitmaps):
            table = tables.bitmap_table(self.meta, index)
            if self._hits(table.region):
                where = HostOffset(bitmap.offset)
                yield Owner(OwnerKind.BITMAP_TABLE, where, "bitmap directory", index, table.region)
            yield from self._pointers(table, PointerTable.BITMAP, OwnerKind.BITMAP_DATA)

    # L1 and L2 tables

    def _mapping(self) -> Iterator[Owner]:
        import numpy as np

        sources: dict[tuple[int, int], _Source] = {}
        for snapshot in (None, *range(len(self.meta.snapshots))):
            table = tables.l1_table(self.meta, snapshot)
            source = sources.get((table.region.offset, table.entries))
            if source is None:
                self.l1_budget -= table.entries * 8
                if self.l1_budget < 0:
                    break  # overlapping L1 tables: only damage looks like that
                offsets = self._l1_offsets(table)
                source = _Source(offsets, np.flatnonzero(self._overlaps(offsets))[: self.limit].tolist())
                sources[table.region.offset, table.entries] = source
            source.snapshots.append(snapshot)
            for index in source.hits:
                guest = GuestOffset(index * self.geometry.l2_coverage)
                where = table.entry_offset(self.meta, index)
                target = Region(int(source.offsets[index]), self.size)
                yield Owner(OwnerKind.L2_TABLE, where, table.name, index, target, guest, snapshot)
        if not sources:
            return
        every = np.concatenate([self._followed(source.offsets) for source in sources.values()])
        every.sort()  # np.unique would hash them: slower, and ten times the memory
        every = every[np.append(True, every[1:] != every[:-1])[: every.size]]
        known, leading = -1, list[tuple[int | None, int]]()
        for offset, row, words in self._search(every):
            if offset != known:
                known, leading = offset, list(islice(self._leading_to(offset, sources.values()), self.limit))
            yield from self._references(offset, row, words, leading)

    def _leading_to(self, offset: int, sources: Iterable[_Source]) -> Iterator[tuple[int | None, int]]:
        """(snapshot, L1 index) of every L1 entry that points to the L2 table at `offset`."""
        import numpy as np

        for source in sources:
            for index in np.flatnonzero(source.offsets == np.uint64(offset))[: self.limit].tolist():
                for snapshot in source.snapshots:
                    yield snapshot, index

    def _followed(self, offsets: NDArray[np.uint64]) -> NDArray[np.uint64]:
        """Those that lead to an L2 table: not null, cluster aligned, inside the file."""
        import numpy as np

        low = np.uint64(self.size - 1)
        chosen: NDArray[np.uint64] = offsets[
            (offsets != 0) & ((offsets & low) == 0) & (offsets < np.uint64(self.meta.file_size))
        ]
        return chosen

    def _l1_offsets(self, table: Table) -> NDArray[np.uint64]:
        region = Region(table.region.offset, table.entries * 8)
        return offset_of(self.meta.read_words(region, limits.MAX_L1_SIZE))

    def _search(self, offsets: NDArray[np.uint64]) -> Iterator[tuple[int, int, tuple[int, ...]]]:
        """(L2 table offset, entry, its words) of every entry that references our cluster; `offsets` ascend.

        Goes from one stretch of data in the file to the next, so that tables in holes cost nothing.
        """
        import numpy as np

        storage, at = self.meta.storage, 0
        while at < offsets.size:
            start = int(offsets[at])
            data = storage.next_data(start)
            if data is None:
                break
            if data >= start + self.size:
                at = int(np.searchsorted(offsets, np.uint64(data - self.size + 1)))
                continue
            stop = max(at + 1, int(np.searchsorted(offsets, np.uint64(storage.next_hole(max(data, start))))))
            for first, count in self._batches(offsets[at:stop]):
                if self.cancel is not None and self.cancel():
                    return
                yield from self._search_batch(int(offsets[at + first]), count)
                if self.progress is not None:
                    self.progress(at + first + count, offsets.size)
            at = stop
        if self.progress is not None:
            self.progress(offsets.size, offsets.size)

    def _batches(self, offsets: NDArray[np.uint64]) -> Iterator[tuple[int, int]]:
        """(first, count) of tables that lie side by side, a few MiB at a time."""
        import numpy as np

        most = max(1, _BATCH_BYTES // self.size)
        gaps = np.append(np.flatnonzero(np.diff(offsets) != np.uint64(self.size)) + 1, offsets.size)
        first = 0
        for at in range(0, gaps.size, 1 << 14):  # in portions: a million Python numbers take 32 MB
            for gap in gaps[at : at + (1 << 14)].tolist():
                while first < gap:
                    count = min(most, gap - first)
                    yield first, count
                    first += count

    def _search_batch(self, start: int, count: int) -> Iterator[tuple[int, int, tuple[int, ...]]]:
        import numpy as np

        raw = decode(self.meta.storage.read(start, count * self.size))
        width = self.geometry.l2_entry_size // 8
        each = L2Entries(raw[::width], self.meta.shape)
        if self.meta.header.has("data_file"):
            hits = np.zeros(each.words.size, dtype=bool)
        else:
            hits = self._overlaps(each.offset)
        if each.odd and each.packed.any():
            low, high = packed_range(each.words[each.packed], self.meta.shape)
            hits[each.packed] = (low < self.high) & (high > self.low)
        for at in np.flatnonzero(hits).tolist():
            table, row = divmod(at, self.geometry.l2_entries)
            pair = raw[at * width : (at + 1) * width].tolist()
            yield start + table * self.size, row, tuple(pair)

    def _references(
        self, offset: int, row: int, words: tuple[int, ...], leading: list[tuple[int | None, int]]
    ) -> Iterator[Owner]:
        """One owner for each L1 entry (active or snapshot) that leads to the L2 entry."""
        where = HostOffset(offset + row * self.geometry.l2_entry_size)
        entry = read_l2(words[0], self.meta.shape)
        kind = OwnerKind.COMPRESSED if entry.kind is ClusterType.COMPRESSED else OwnerKind.DATA
        target = Region(entry.start, entry.end - entry.start)
        for snapshot, index in leading:
            name = tables.l2_table(self.meta, index, offset, snapshot).name
            yield Owner(kind, where, name, row, target, self.geometry.guest_offset(index, row), snapshot)


def refcount_of(meta: Metadata, cluster: int) -> tuple[int | None, list[tuple[Table, int]]]:
    """(stored refcount, the table entries read to find it). None: the block cannot be read; 0 where there is no block."""
    geometry = meta.geometry
    if geometry is None:
        return None, []
    number, row = divmod(cluster, geometry.refcount_block_entries)
    table = tables.refcount_table(meta)
    trail: list[tuple[Table, int]] = [(table, number)]
    if number >= table.entries:
        return 0, trail
    words = tables.read_entry(meta, table, number)
    offset = block_of(words[0]) if words else 0
    if words is None:
        return None, trail
    if not offset:
        return 0, trail
    block = tables.refcount_block(meta, number, offset)
    trail.append((block, row))
    found = tables.read_entry(meta, block, row)
    return (found[0] if found else None), trail
