"""Refcounts counted anew: what opening a dirty image for writing needs (lazy refcounts; QEMU: qcow2_check_refcounts).

QEMU frees what nothing refers to; here it stays counted unless it is empty.  Only images that are otherwise sound are mended here. Anything else is for `qwb repair`, which shows its plan first.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from formats.qcow2 import limits
from formats.qcow2.entries import is_compressed, is_copied, offset_of, packed_range, set_copied
from formats.qcow2.snapshots import Snapshot
from formats.qcow2.tables import table_bytes, words
from workbench.engine.metadata import Region
from workbench.engine.write.guard import Kind
from workbench.errors import CorruptError
from workbench.units import div_round_up

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from workbench.engine.write.core import Core


def rebuild_refcounts(core: Core) -> int:
    """Make all refcounts, and the active disk's COPIED flags, what the tables say. Returns how many refcounts changed.

    Nothing loses its count on a guess. What nothing refers to keeps its count when it is not zero, or when a lost table
    maps it; where the stored count is 0 (lazy refcounts), lost tables and what they map are counted once. They are
    counted rather than the opening refused, because only that makes the file safe: refused, it would stay dirty, and the
    next program that opens it for writing would free them. The price of a wrong guess is a leak, which a repair names.
    Refcounts of clusters in use are not lowered while an L1 table that nothing refers to is about (a lost snapshot may
    need them). The opening is refused, nothing written, where snapshots or bitmaps cannot be read as a whole: nobody can
    tell what they need.

    Raises CorruptError for that, and when a table or cluster lies outside the file. Memory: 11 bytes per cluster of the
    file. Time: a read of all data that nothing refers to.
    """
    import numpy as np

    size = core.cluster_size
    _require_readable(core)
    census = _Census(core)
    counts = census.count()
    counts = _kept(core, counts, gap=census.empty_table)
    refcounts, changed = core.refcounts, 0
    limit = core.geometry.refcount_max
    if len(counts) and int(counts.max()) > limit:
        raise CorruptError(
            f"a cluster is used more often than {core.geometry.refcount_bits} bits can count",
            path=core.path,
            hint=_way_out(core),
        )
    used = np.flatnonzero(counts)
    core.allocator.taken(0, int(used[-1]) + 1 if len(used) else 0)
    for index in range(len(refcounts.table)):
        if refcounts.table[index]:
            changed += _fix_block(core, index, counts)
    for index in range(div_round_up(len(counts), refcounts.per_block)):
        low = index * refcounts.per_block
        needed = counts[low : low + refcounts.per_block]
        if needed.any() and (index >= len(refcounts.table) or not refcounts.table[index]):
            while refcounts.ensure_blocks(low, len(needed)):
                pass
            piece = refcounts.cache.get(refcounts.table[index])
            # A new block may describe itself: what it says so far is added to what was counted.
            piece.data[: len(needed)] += needed.astype(piece.data.dtype)
            refcounts.cache.mark_dirty(piece)
            changed += int(np.count_nonzero(needed))
    refcounts.write_back()
    core.file.sync()
    _fix_copied(core, size)
    core.file.sync()
    return changed


def _way_out(core: Core) -> str:
    return f"nothing was changed; see `qwb check {core.path}`, then `qwb repair {core.path}`"


def _require_readable(core: Core) -> None:
    """Refuse where counting anew would overlook references: snapshots, their L1 tables or bitmaps that cannot be read."""
    meta, header = core.meta, core.header
    table = meta.snapshot_table
    what, offset = "", header.snapshots_offset
    if table.broken is not None or len(table.snapshots) != header.nb_snapshots:
        what = f"only {len(table.snapshots)} of its {header.nb_snapshots} snapshots can be read"
    for number, each in enumerate(table.snapshots):
        if each.l1_size * 8 > limits.MAX_L1_SIZE or each.l1_table_offset % core.cluster_size:
            what, offset = f"the L1 table of snapshot {number} cannot be read", each.l1_table_offset
    directory = meta.bitmap_directory
    extension = meta.bitmaps_extension
    lost = directory.broken is not None or (extension is not None and len(directory.bitmaps) != extension.nb_bitmaps)
    if extension is not None and header.has("bitmaps") and lost:
        what, offset = "its bitmap directory cannot be read", extension.directory_offset
    if what:
        raise CorruptError(
            f"the image is dirty and {what}: its refcounts cannot be counted anew",
            path=core.path,
            offset=offset,
            hint=_way_out(core),
        )


def _kept(core: Core, counts: NDArray[np.int64], *, gap: bool) -> NDArray[np.int64]:
    """`counts`, with what must not lose its count though nothing refers to it.

    gap: a table of the active disk lost its entries: then anything that is not zero may be what they led to.
    """
    import numpy as np

    from workbench.engine.unreferenced import read_table, scan

    stored = _stored(core, len(counts))
    referenced = counts > 0
    found = scan(core.file.storage, core.geometry, referenced, external=core.external)
    lone = ~referenced & (found.content | found.mapped)
    counts[lone] = stored[lone]
    evident = ~referenced & (found.mapped | found.is_table)
    if gap:
        evident |= found.content
    counts[evident] = np.maximum(counts[evident], 1)
    if found.l1:
        counts[referenced] = np.maximum(counts[referenced], stored[referenced])
        for table in found.tables:
            if table.via_l1 and stored[table.offset >> core.geometry.cluster_bits] and core.geometry.refcount_max > 1:
                read = read_table(core.file.storage, core.geometry, table.offset, external=core.external)
                shared = read[1][referenced[read[1]]] if read is not None else np.zeros(0, dtype=np.int64)
                counts[shared] = np.maximum(counts[shared], 2)
    return counts


def _stored(core: Core, clusters: int) -> NDArray[np.int64]:
    """The refcounts as they are on disk; what is absurdly large counts as the most that fits."""
    import numpy as np

    refcounts = core.refcounts
    out = np.zeros(clusters, dtype=np.int64)
    for index, offset in enumerate(refcounts.table):
        low = index * refcounts.per_block
        if offset and low < clusters:
            part = refcounts.cache.get(offset).data[: clusters - low]
            out[low : low + len(part)] = np.minimum(part.astype(np.uint64), np.uint64((1 << 63) - 1)).astype(np.int64)
    return out


def _fix_block(core: Core, index: int, counts: NDArray[np.int64]) -> int:
    import numpy as np

    refcounts = core.refcounts
    low = index * refcounts.per_block
    wanted = np.zeros(refcounts.per_block, dtype=np.uint64)
    part = counts[low : low + refcounts.per_block]
    wanted[: len(part)] = part.astype(np.uint64)
    piece = refcounts.cache.get(refcounts.table[index])
    different = piece.data.astype(np.uint64) != wanted
    if not different.any():
        return 0
    piece.data[:] = wanted.astype(piece.data.dtype)
    refcounts.cache.mark_dirty(piece)
    return int(np.count_nonzero(different))


def _fix_copied(core: Core, size: int) -> None:
    """COPIED is set where, and only where, the refcount is one."""
    import numpy as np

    tables, step = core.tables, core.geometry.l2_entry_size // 8
    tables.cache.empty()
    for index, entry in enumerate(tables.l1):
        offset = offset_of(entry)
        if not offset:
            continue
        once = core.refcounts.get(offset // size) == 1
        if once != is_copied(entry):
            tables.set_l1(index, set_copied(entry, once))
        if core.external:
            continue
        table = words(core.file.read(offset, size))
        entries = table[::step]
        places = offset_of(entries)
        plain = np.flatnonzero((places != 0) & ~is_compressed(entries))
        single = np.array([core.refcounts.get(int(p) // size) == 1 for p in places[plain]], dtype=bool)
        if (single != is_copied(entries[plain])).any():
            entries[plain] = set_copied(entries[plain], single)  # a view of the table
            core.guard.check("an L2 table", offset, size, Kind.ACTIVE_L2)
            core.file.write(offset, table_bytes(table))
    core.file.sync()
    if tables.l1_dirty:
        tables.write_l1()


class _Census:
    """How often every cluster of the file is referred to."""

    def __init__(self, core: Core) -> None:
        import numpy as np

        self._core = core
        self._size = core.cluster_size
        self._total = div_round_up(core.file.storage.size(), self._size)
        self._counts: NDArray[np.int64] = np.zeros(self._total, dtype=np.int64)
        self.empty_table = False
        """An L2 table of the active disk has no entry at all: a healthy writer leaves none such."""

    def count(self) -> NDArray[np.int64]:
        core, header, meta = self._core, self._core.header, self._core.meta
        self._range(0, self._size, "the header")
        self._range(header.l1_table_offset, header.l1_size * 8, "the active L1 table")
        self._range(*core.reftable_place, "the refcount table")
        self._many(core.refcounts.block_offsets(), "a refcount block")
        self._disk(list(core.tables.l1), active=True)
        if header.nb_snapshots:
            table = meta.snapshot_table
            self._range(header.snapshots_offset, table.end - header.snapshots_offset, "the snapshot table")
            for each in table.snapshots:
                self._snapshot(each)
        if meta.encryption is not None:
            self._range(meta.encryption.offset, meta.encryption.length, "the LUKS header")
        self._bitmaps()
        return self._counts

    def _snapshot(self, snapshot: Snapshot) -> None:
        self._range(snapshot.l1_table_offset, snapshot.l1_size * 8, "a snapshot's L1 table")
        self._disk(self._core.meta.snapshot_l1(snapshot).tolist())

    def _disk(self, l1: list[int], *, active: bool = False) -> None:
        """The L2 tables of one L1 table, and what they refer to."""

        core = self._core
        offsets = [offset for entry in l1 if (offset := offset_of(entry))]
        self._many(offsets, "an L2 table")
        step = core.geometry.l2_entry_size // 8
        for offset in offsets:
            table = words(core.file.read(offset, self._size))
            entries = table[::step]
            self.empty_table |= active and not table.any()
            packed = is_compressed(entries)
            if packed.any():
                self._packed(*packed_range(entries[packed], core.shape))
            if not core.external:
                places = offset_of(entries[~packed])
                self._many(places[places != 0], "a data cluster")

    def _packed(self, start: Any, end: Any) -> None:
        import numpy as np

        first = (start // np.uint64(self._size)).astype(np.int64)
        last = ((end - np.uint64(1)) // np.uint64(self._size)).astype(np.int64)
        if len(first) and int(first.max()) >= self._total:
            self._outside("compressed data", int(start.max()))
        np.add.at(self._counts, first, 1)
        two = (last > first) & (last < self._total)  # the last sector may reach past the end of the file
        np.add.at(self._counts, last[two], 1)

    def _bitmaps(self) -> None:
        core, meta = self._core, self._core.meta
        extension = meta.bitmaps_extension
        if extension is None or not core.header.has("bitmaps"):
            return
        self._range(extension.directory_offset, extension.directory_size, "the bitmap directory")
        for each in meta.bitmap_directory.bitmaps:
            self._range(each.table_offset, each.table_size * 8, "a bitmap table")
            table = meta.read_words(Region(each.table_offset, each.table_size * 8), each.table_size * 8)
            places = offset_of(table)
            self._many(places[places != 0], "bitmap data")

    def _range(self, offset: int, length: int, what: str) -> None:
        if length <= 0:
            return
        first, last = offset // self._size, (offset + length - 1) // self._size
        if last >= self._total:
            self._outside(what, offset)
        self._counts[first : last + 1] += 1

    def _many(self, offsets: Iterable[int], what: str) -> None:
        import numpy as np

        places = np.asarray(offsets if isinstance(offsets, np.ndarray) else list(offsets), dtype=np.uint64)
        if not len(places):
            return
        clusters = (places // np.uint64(self._size)).astype(np.int64)
        if int(clusters.max()) >= self._total or (places & np.uint64(self._size - 1)).any():
            bad = places[(clusters >= self._total) | ((places & np.uint64(self._size - 1)) != 0)]
            self._outside(what, int(bad[0]))
        if len(clusters) < self._total // 8:
            np.add.at(self._counts, clusters, 1)
        else:
            self._counts += np.bincount(clusters, minlength=self._total)

    def _outside(self, what: str, offset: int) -> None:
        raise CorruptError(
            f"the image is dirty and {what} at {offset:#x} is misplaced: its refcounts cannot be counted anew",
            path=self._core.path,
            offset=offset,
            hint=_way_out(self._core),
        )
