"""The active L1 table and the cache of L2 slices, for changing (spec: Cluster mapping; QEMU: qcow2-cluster.c).

Slices are `array('Q')` in native byte order: a single entry is read and set in well under a microsecond.
"""

from __future__ import annotations

import sys
from array import array
from typing import TYPE_CHECKING

from formats.qcow2.entries import is_copied, offset_of, pointing_to
from workbench.engine.write.cache import Piece, TableCache
from workbench.engine.write.guard import Kind

if TYPE_CHECKING:
    from workbench.engine.write.core import Core

_SECTOR_WORDS = 64
_SWAP = sys.byteorder == "little"


def decode_words(data: bytes) -> array[int]:
    """Native words of big-endian table bytes."""
    words = array("Q", data)
    if _SWAP:
        words.byteswap()
    return words


def encode_words(words: array[int]) -> bytes:
    """Big-endian bytes of native words."""
    copy = words[:]
    if _SWAP:
        copy.byteswap()
    return copy.tobytes()


class Tables:
    """L1 in memory, L2 in slices. Entry numbers within a slice are counted in entries, not words."""

    def __init__(self, core: Core) -> None:
        self._core = core
        geometry, piece = core.geometry, core.sizes.l2_piece_size
        self.l1 = array("Q", core.meta.l1.tobytes())
        self._dirty_sectors: set[int] = set()
        self.width = geometry.l2_entry_size // 8
        self.slice_entries = piece // geometry.l2_entry_size
        self.slice_shift = geometry.cluster_bits + self.slice_entries.bit_length() - 1
        self.l1_shift = geometry.l2_bits + geometry.cluster_bits
        self.index_mask = self.slice_entries - 1
        self._slices_mask = (1 << (self.l1_shift - self.slice_shift)) - 1
        self._piece_bits = piece.bit_length() - 1
        self.cluster_bits = geometry.cluster_bits
        self.cache: TableCache[array[int]] = TableCache(
            core.sizes.l2_pieces,
            piece,
            load=self._load,
            store=self._store,
            before_store=core.settle_references,
            clean_interval=core.sizes.clean_interval,
        )

    # -- finding

    def slice_at(self, guest: int) -> Piece[array[int]] | None:
        """The slice that describes guest offset `guest`, for reading; None when there is no L2 table."""
        l1_index = guest >> self.l1_shift
        table = offset_of(self.l1[l1_index]) if l1_index < len(self.l1) else 0
        if not table:
            return None
        if table & (self._core.cluster_size - 1):
            self._unaligned(table, l1_index)
        return self.cache.get(table + (((guest >> self.slice_shift) & self._slices_mask) << self._piece_bits))

    def own_slice(self, guest: int) -> Piece[array[int]]:
        """The slice for changing: its L2 table exists and belongs to the active disk alone afterwards."""
        l1_index = guest >> self.l1_shift
        entry = self.l1[l1_index]
        if not is_copied(entry) or not offset_of(entry):
            self._own_table(l1_index)
            entry = self.l1[l1_index]
        table = offset_of(entry)
        if table & (self._core.cluster_size - 1):
            self._unaligned(table, l1_index)
        return self.cache.get(table + (((guest >> self.slice_shift) & self._slices_mask) << self._piece_bits))

    def entry_at(self, guest: int) -> tuple[int, int]:
        """(L2 entry, subcluster bitmap) for a guest offset; (0, 0) when nothing is there."""
        piece = self.slice_at(guest)
        if piece is None:
            return 0, 0
        index = (guest >> self.cluster_bits) & self.index_mask
        if self.width == 1:
            return piece.data[index], 0
        return piece.data[2 * index], piece.data[2 * index + 1]

    def table_offsets(self) -> list[int]:
        """Host offsets of the active L2 tables."""
        import numpy as np

        offsets = offset_of(np.frombuffer(self.l1, dtype=np.uint64))
        found: list[int] = np.unique(offsets[offsets != 0]).tolist()
        return found

    def left_in_slice(self, guest: int) -> int:
        """Clusters from that of `guest` to the end of its slice."""
        return self.slice_entries - ((guest >> self.cluster_bits) & self.index_mask)

    def whole_table(self, offset: int) -> array[int]:
        """All words of the L2 table at host `offset`, with what is in the cache and not on disk."""
        words = decode_words(self._core.file.read(offset, self._core.cluster_size))
        step = self.cache.piece_size
        for at in range(0, self._core.cluster_size, step):
            piece = self.cache.pieces.get(offset + at)
            if piece is not None:
                words[at // 8 : (at + step) // 8] = piece.data
        return words

    # -- L1

    def set_l1(self, index: int, entry: int) -> None:
        """Change one L1 entry; it is written with the next flush."""
        self.l1[index] = entry
        self._dirty_sectors.add(index // _SECTOR_WORDS)

    @property
    def l1_dirty(self) -> bool:
        return bool(self._dirty_sectors)

    def write_l1(self) -> None:
        """Write changed L1 sectors. All L2 slices that they lead to must be durable."""
        core, base = self._core, self._core.header.l1_table_offset
        for sector in sorted(self._dirty_sectors):
            part = self.l1[sector * _SECTOR_WORDS : (sector + 1) * _SECTOR_WORDS]
            offset = base + sector * _SECTOR_WORDS * 8
            core.guard.check("the active L1 table", offset, len(part) * 8, Kind.ACTIVE_L1)
            core.file.write(offset, encode_words(part))
            self._dirty_sectors.discard(sector)

    # -- inside

    def _own_table(self, l1_index: int) -> None:
        """A new L2 table: empty, or a copy of the one shared with a snapshot."""
        core, size = self._core, self._core.cluster_size
        entry = self.l1[l1_index]
        old = offset_of(entry)
        if old & (size - 1):
            self._unaligned(old, l1_index)
        new = core.allocator.allocate(size)
        try:
            core.guard.check("a new L2 table", new, size)
            # The old table is shared and therefore never changed in the cache: the file has it as it is.
            core.file.write(new, core.file.read(old, size) if old else bytes(size))
            core.references_changed()
        except BaseException:
            if core.dead is None:
                core.allocator.release(new, size)
            raise
        self.set_l1(l1_index, pointing_to(new))
        core.guard.add(Kind.ACTIVE_L2, new, size)
        if old:
            core.guard.remove(Kind.ACTIVE_L2, old, size)
            if not core.allocator.contradicts(entry):
                core.allocator.free(old, size)

    def _unaligned(self, table: int, l1_index: int) -> None:
        self._core.corrupted(
            f"L2 table offset {table:#x} is not cluster aligned (L1 index {l1_index:#x})",
            table,
        )

    def _load(self, offset: int) -> array[int]:
        return decode_words(self._core.file.read(offset, self.cache.piece_size))

    def _store(self, offset: int, data: array[int]) -> None:
        self._core.guard.check("an L2 table", offset, self.cache.piece_size, Kind.ACTIVE_L2)
        self._core.file.write(offset, encode_words(data))
