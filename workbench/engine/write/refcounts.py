"""Refcounts of host clusters: looked up, changed and grown (spec: Host cluster management; QEMU: qcow2-refcount.c).

On disk a refcount block holds increments early (before the L2 entries that need them) and decrements late (see
`allocator`), so at any instant the file's refcounts are at least what the tables on disk need.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from formats.qcow2 import limits
from formats.qcow2.entries import block_of
from formats.qcow2.refcounts import pack, unpack
from workbench.engine.write.cache import Piece, TableCache
from workbench.engine.write.guard import Kind
from workbench.errors import UnsupportedError
from workbench.units import div_round_up

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from workbench.engine.write.core import Core

_SECTOR_WORDS = 64


class Refcounts:
    """The refcount table (host offsets of blocks) and a cache of whole blocks, decoded to native unsigned arrays."""

    def __init__(self, core: Core) -> None:
        self._core = core
        geometry = core.geometry
        self.per_block = geometry.refcount_block_entries
        self.table = array("Q", block_of(core.meta.refcount_table).tobytes())
        self.cache: TableCache[NDArray[Any]] = TableCache(
            core.sizes.refcount_blocks,
            geometry.cluster_size,
            load=self._load,
            store=self._store,
            clean_interval=core.sizes.clean_interval,
        )
        self._dirty_words: set[int] = set()

    # -- looking

    def get(self, cluster: int) -> int:
        """Refcount of one host cluster; 0 where no block describes it."""
        index, inside = divmod(cluster, self.per_block)
        if index >= len(self.table) or not self.table[index]:
            return 0
        return int(self._block(index).data[inside])

    def block_offsets(self) -> list[int]:
        """Host offsets of all refcount blocks."""
        return [offset for offset in self.table if offset]

    def find_free(self, count: int, start: int) -> int:
        """First of `count` neighbouring clusters with refcount 0, from cluster `start` on. Nothing is changed."""
        import numpy as np

        per_block, table = self.per_block, self.table
        run_start, at = start, start
        while at - run_start < count:
            index, inside = divmod(at, per_block)
            if index >= len(table):
                return run_start  # nothing is described from here on
            if not table[index]:
                at = (index + 1) * per_block
                continue
            data = self._block(index).data
            need = count - (at - run_start)
            # The usual case: the clusters right here are free.
            near = data[inside : inside + need]
            if not near.any():
                at += len(near)
                continue
            used = np.flatnonzero(data[inside:])
            first = int(used[0])
            if first >= need:
                return run_start
            edges = np.append(used, per_block - inside)
            wide = np.flatnonzero(np.diff(edges) > count)
            if len(wide):
                return at + int(used[wide[0]]) + 1
            run_start = at + int(used[-1]) + 1
            at += per_block - inside
        return run_start

    def last_used(self, end: int) -> int:
        """The last cluster below `end` whose refcount is not 0 (0 when there is none)."""
        import numpy as np

        for index in range(min(len(self.table), div_round_up(end, self.per_block)) - 1, -1, -1):
            if self.table[index]:
                used = np.flatnonzero(self._block(index).data[: end - index * self.per_block])
                if len(used):
                    return index * self.per_block + int(used[-1])
        return 0

    # -- changing

    def ensure_blocks(self, first: int, count: int) -> bool:
        """Make sure that blocks describe clusters [first, first + count). True when one had to be made: what was found
        free before may be taken by it."""
        for index in range(first // self.per_block, (first + count - 1) // self.per_block + 1):
            if index >= len(self.table) or not self.table[index]:
                self._create_block(index)
                return True
        return False

    def change(self, first: int, count: int, delta: int) -> None:
        """Add `delta` to the refcounts of clusters [first, first + count); all of them or, on an error, none.

        Raises UnsupportedError on overflow; marks the image corrupt where a refcount would become negative.
        """
        limit = self._core.geometry.refcount_max
        pieces = list(self._pieces(first, count))
        for index, low, high in pieces:
            if index >= len(self.table) or not self.table[index]:
                self._negative(index * self.per_block + low)
            values = self._block(index).data[low:high]
            if delta > 0 and int(values.max()) > limit - delta:
                raise UnsupportedError(
                    f"refcount of a cluster would exceed {limit}, the most that {self._core.geometry.refcount_bits}"
                    " bits can hold",
                    path=self._core.path,
                    offset=(index * self.per_block + low) * self._core.cluster_size,
                )
            if delta < 0 and int(values.min()) < -delta:
                self._negative(index * self.per_block + low + int(values.argmin()))
        for index, low, high in pieces:
            piece = self._block(index)
            self.cache.mark_dirty(piece)
            values = piece.data[low:high]
            if delta > 0:
                values += values.dtype.type(delta)
            else:
                values -= values.dtype.type(-delta)

    def drop(self, clusters: NDArray[np.int64], counts: NDArray[np.int64]) -> tuple[NDArray[np.int64], list[int]]:
        """Take `counts` off the refcounts of `clusters` (sorted, unique). Returns (clusters now free, clusters whose
        refcount was too low already: those end at 0)."""
        import numpy as np

        freed: list[NDArray[np.int64]] = []
        low: list[int] = []
        blocks = clusters // self.per_block
        edges = np.flatnonzero(np.diff(blocks)) + 1
        for part, by in zip(np.split(clusters, edges), np.split(counts, edges), strict=True):
            if not len(part):
                continue
            index = int(part[0]) // self.per_block
            if index >= len(self.table) or not self.table[index]:
                low.extend(part.tolist())
                continue
            piece = self._block(index)
            inside = part - index * self.per_block
            before = piece.data[inside].astype(np.uint64)
            short = before < by.astype(np.uint64)
            low.extend(part[short].tolist())
            after = np.where(short, np.uint64(0), before - by.astype(np.uint64))
            self.cache.mark_dirty(piece)
            piece.data[inside] = after.astype(piece.data.dtype)
            freed.append(part[(after == 0) & ~(before == 0)])
        return (np.concatenate(freed) if freed else np.empty(0, np.int64)), low

    def write_back(self) -> None:
        """Write dirty blocks, then the table entries that lead to new ones. The last step is not flushed."""
        self.cache.write_dirty()
        if self._dirty_words:
            self._core.file.sync()
            self._write_table()

    @property
    def any_dirty(self) -> bool:
        return self.cache.any_dirty or bool(self._dirty_words)

    # -- inside

    def _negative(self, cluster: int) -> None:
        self._core.corrupted(
            f"refcount of the cluster at {cluster * self._core.cluster_size:#x} would become negative",
            cluster * self._core.cluster_size,
            fatal=False,
        )

    def _pieces(self, first: int, count: int) -> Iterator[tuple[int, int, int]]:
        """(block index, first entry, end entry) of a cluster range."""
        at, end = first, first + count
        while at < end:
            index, inside = divmod(at, self.per_block)
            take = min(end - at, self.per_block - inside)
            yield index, inside, inside + take
            at += take

    def _block(self, index: int) -> Piece[NDArray[Any]]:
        offset = self.table[index]
        piece = self.cache.pieces.get(offset)
        if piece is not None:
            return self.cache.get(offset)
        if offset & (self._core.cluster_size - 1):
            self._core.corrupted(
                f"refcount block offset {offset:#x} is not cluster aligned (refcount table index {index:#x})",
                offset,
            )
        return self.cache.get(offset)

    def _load(self, offset: int) -> NDArray[Any]:
        return unpack(self._core.file.read(offset, self._core.cluster_size), self._core.geometry.refcount_order)

    def _store(self, offset: int, data: NDArray[Any]) -> None:
        self._core.guard.check("a refcount block", offset, self._core.cluster_size, Kind.REFCOUNT_BLOCK)
        self._core.file.write(offset, pack(data, self._core.geometry.refcount_order))

    def _create_block(self, index: int) -> None:
        """A block for refcount table entry `index`, or for the one where the new block itself comes to lie."""
        core = self._core
        cluster = core.allocator.peek()
        home = cluster // self.per_block
        if max(index, home) >= len(self.table):
            self._grow_table(max(index, home))
            return
        if home != index and not self.table[home]:
            index = home  # first the block that describes the new one; the caller comes again
        offset = cluster * core.cluster_size
        core.guard.check("a new refcount block", offset, core.cluster_size)
        data = self._empty_block()
        if home == index:
            data[cluster % self.per_block] = 1
        self.cache.mark_dirty(self.cache.put(offset, data))
        if home != index:
            try:
                self.change(cluster, 1, 1)
            except BaseException:
                self.cache.forget(offset, core.cluster_size)
                raise
        core.allocator.taken(cluster, 1)
        self.table[index] = offset
        self._dirty_words.add(index // _SECTOR_WORDS)
        core.guard.add(Kind.REFCOUNT_BLOCK, offset, core.cluster_size)

    def _empty_block(self) -> NDArray[Any]:
        return unpack(bytes(self._core.cluster_size), self._core.geometry.refcount_order)

    def _grow_table(self, needed: int) -> None:
        """A larger table, in an area that starts where entry `needed` begins and describes itself: new blocks, then the
        table. It becomes valid with one 12-byte write to the header."""
        core, size, per_block = self._core, self._core.cluster_size, self.per_block
        words = size // 8
        entries, blocks, clusters = max(needed + 1, len(self.table) * 3 // 2), 0, 0
        while True:
            clusters = div_round_up(entries, words)
            blocks = div_round_up(clusters + max(blocks, 1), per_block)
            if entries >= needed + blocks:
                break
            entries = needed + blocks
        if clusters * size > limits.MAX_REFCOUNT_TABLE_SIZE:
            raise UnsupportedError("the refcount table would exceed 8 MiB: the image file is too large", path=core.path)
        start, used = needed * per_block, blocks + clusters
        area, table_offset = start * size, (start + blocks) * size
        core.guard.check("a new refcount table", area, used * size)
        new = array("Q", self.table)
        new.extend([0] * (clusters * words - len(new)))
        for each in range(blocks):
            new[needed + each] = area + each * size
            data = self._empty_block()
            data[: max(0, min(used - each * per_block, per_block))] = 1
            core.file.write(area + each * size, pack(data, core.geometry.refcount_order))
        core.file.write(table_offset, _big_endian(new))
        self.cache.write_dirty()  # the copied entries may lead to blocks that are not on disk yet
        core.file.sync()
        core.write_header_fields(refcount_table_offset=table_offset, refcount_table_clusters=clusters)
        old_offset, old_size = core.reftable_place
        core.reftable_place = (table_offset, clusters * size)
        self.table, self._dirty_words = new, set()
        core.guard.remove(Kind.REFCOUNT_TABLE, old_offset, old_size)
        core.guard.add(Kind.REFCOUNT_TABLE, table_offset, clusters * size)
        core.guard.add(Kind.REFCOUNT_BLOCK, area, blocks * size)
        if old_size:
            core.allocator.free(old_offset, old_size)

    def _write_table(self) -> None:
        core = self._core
        base = core.reftable_place[0]
        for sector in sorted(self._dirty_words):
            part = self.table[sector * _SECTOR_WORDS : (sector + 1) * _SECTOR_WORDS]
            offset = base + sector * _SECTOR_WORDS * 8
            core.guard.check("the refcount table", offset, len(part) * 8, Kind.REFCOUNT_TABLE)
            core.file.write(offset, _big_endian(part))
        self._dirty_words.clear()


def _big_endian(words: array[int]) -> bytes:
    swapped = array("Q", words)
    swapped.byteswap()
    return swapped.tobytes()
