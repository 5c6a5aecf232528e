"""Refcounts counted anew: what opening a dirty image for writing needs (lazy refcounts; QEMU: qcow2_check_refcounts).

Only images that are otherwise sound are mended here. Anything else is for `qwb repair`, which shows its plan first.
QEMU frees whatever no table refers to. We do not: content without an owner may be data whose mapping was lost, so it stays
counted where it was counted, and is counted where a lost table maps it. Only what is all zeros goes free.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from formats.qcow2.snapshots import Snapshot
from formats.qcow2.tables import COMPRESSED, COPIED, OFFSET_MASK, compressed_range, words
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

    Raises CorruptError when a table or cluster lies outside the file, or snapshots cannot be read, whose clusters would
    pass for free: then nothing was written.  Memory: some 12 bytes per cluster of the file.
    """
    import numpy as np

    size = core.cluster_size
    if core.meta.snapshots_hidden:
        raise CorruptError(
            "the image is dirty and its snapshots cannot all be read: their clusters would be counted as free",
            path=core.path,
            hint=f"see `qwb check {core.path}`, then `qwb repair {core.path}`",
        )
    census = _Census(core)
    counts = _with_orphans(core, census.count(), census.tables)
    refcounts, changed = core.refcounts, 0
    limit = core.geometry.refcount_max
    if len(counts) and int(counts.max()) > limit:
        raise CorruptError(
            f"a cluster is used more often than {core.geometry.refcount_bits} bits can count", path=core.path
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


def _with_orphans(core: Core, counts: NDArray[np.int64], tables: NDArray[np.int64]) -> NDArray[np.int64]:
    """`counts`, where content that nothing refers to stays counted, and lost tables with what they map are counted.

    Beside an L1 table that nobody names any more no refcount goes down: a lost snapshot may share the cluster.
    """
    import numpy as np

    from workbench.engine.unreferenced import scan

    found = scan(core.file.storage, core.meta, counts > 0, tables)
    stored = np.zeros_like(counts)
    per_block, refcounts = core.refcounts.per_block, core.refcounts
    for index in range(min(len(refcounts.table), div_round_up(len(counts), per_block))):
        if refcounts.table[index]:
            part = stored[index * per_block : (index + 1) * per_block]
            values = refcounts.cache.get(refcounts.table[index]).data[: len(part)]
            part[:] = np.minimum(values.astype(np.uint64), np.uint64(1 << 62)).astype(np.int64)
    kept = (counts == 0) & (((stored > 0) & found.content) | found.evidence)
    out = counts.copy()
    out[kept] = np.maximum(stored[kept], 1)
    if any(stored[each.cluster] for each in found.l1):
        out = np.maximum(out, stored)
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
        offset = entry & OFFSET_MASK
        if not offset:
            continue
        want = offset | (COPIED if core.refcounts.get(offset // size) == 1 else 0)
        if want != entry & (OFFSET_MASK | COPIED):
            tables.set_l1(index, (entry & ~COPIED) | want)
        if core.external:
            continue
        table = words(core.file.read(offset, size))
        entries = table[::step]
        places = entries & np.uint64(OFFSET_MASK)
        plain = np.flatnonzero((places != 0) & (entries & np.uint64(COMPRESSED) == 0))
        single = np.array([core.refcounts.get(int(p) // size) == 1 for p in places[plain]], dtype=bool)
        flagged = (entries[plain] & np.uint64(COPIED)) != 0
        wrong = plain[single != flagged]
        if len(wrong):
            table[wrong * step] ^= np.uint64(COPIED)
            core.guard.check("an L2 table", offset, size, Kind.ACTIVE_L2)
            core.file.write(offset, table.astype(">u8").tobytes())
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
        self._l2: list[int] = []

    @property
    def tables(self) -> NDArray[np.int64]:
        """Host cluster numbers of the L2 tables that were counted."""
        import numpy as np

        return np.array(self._l2, dtype=np.int64) // self._size

    def count(self) -> NDArray[np.int64]:
        core, header, meta = self._core, self._core.header, self._core.meta
        self._range(0, self._size, "the header")
        self._range(header.l1_table_offset, header.l1_size * 8, "the active L1 table")
        self._range(*core.reftable_place, "the refcount table")
        self._many(core.refcounts.block_offsets(), "a refcount block")
        self._disk(list(core.tables.l1))
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

    def _disk(self, l1: list[int]) -> None:
        """The L2 tables of one L1 table, and what they refer to."""
        import numpy as np

        core = self._core
        offsets = [entry & OFFSET_MASK for entry in l1 if entry & OFFSET_MASK]
        self._many(offsets, "an L2 table")
        self._l2 += offsets
        step = core.geometry.l2_entry_size // 8
        for offset in offsets:
            entries = words(core.file.read(offset, self._size))[::step]
            packed = (entries & np.uint64(COMPRESSED)) != 0
            if packed.any():
                start, end = compressed_range(entries[packed], core.geometry.cluster_bits)
                self._packed(start, end)
            if not core.external:
                places = entries[~packed] & np.uint64(OFFSET_MASK)
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
            self._many([int(word) & OFFSET_MASK for word in table if int(word) & OFFSET_MASK], "bitmap data")

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
            hint=f"see `qwb check {self._core.path}`",
        )
