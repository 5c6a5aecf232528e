"""A cache of table pieces: L2 slices or whole refcount blocks (QEMU: qcow2-cache.c).

Least recently used pieces leave first; a dirty one is stored before it leaves. What must be durable before a dirty
piece may reach the disk is the business of `before_store`, which the owner of the ordering rules supplies.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from workbench.errors import QwbError

T = TypeVar("T")


@dataclass(slots=True)
class CacheCounters:
    """What a cache has done so far. stores: dirty pieces written; flushes: times that all dirty ones were written."""

    hits: int = 0
    misses: int = 0
    evictions: int = 0
    stores: int = 0
    flushes: int = 0


class Piece(Generic[T]):
    """One cached piece. offset: host byte offset; data: decoded table entries, changed in place."""

    __slots__ = ("data", "dirty", "offset", "round")

    def __init__(self, offset: int, data: T, turn: int) -> None:
        self.offset = offset
        self.data = data
        self.dirty = False
        self.round = turn


class TableCache(Generic[T]):
    """At most `capacity` pieces of `piece_size` bytes each, found by their host offset.

    A piece got from here may leave at the next `get`: change it and call `mark_dirty` before asking for another.
    """

    def __init__(
        self,
        capacity: int,
        piece_size: int,
        *,
        load: Callable[[int], T],
        store: Callable[[int, T], None],
        before_store: Callable[[], None] | None = None,
        clean_interval: int = 600,
    ) -> None:
        self.capacity = capacity
        self.piece_size = piece_size
        self.counters = CacheCounters()
        self.pieces: OrderedDict[int, Piece[T]] = OrderedDict()
        self._dirty: dict[int, Piece[T]] = {}
        self._load, self._store, self._before_store = load, store, before_store
        self._clean_interval = clean_interval
        self._next_clean = time.monotonic() + clean_interval if clean_interval else float("inf")
        self._round = 0

    @property
    def any_dirty(self) -> bool:
        return bool(self._dirty)

    @property
    def dirty_count(self) -> int:
        """Pieces changed and not yet written."""
        return len(self._dirty)

    def get(self, offset: int) -> Piece[T]:
        """The piece at host `offset`, loaded when it is not here."""
        piece = self.pieces.get(offset)
        if piece is not None:
            self.counters.hits += 1
            piece.round = self._round
            self.pieces.move_to_end(offset)
            return piece
        self.counters.misses += 1
        data = self._load(offset)
        return self.put(offset, data)

    def put(self, offset: int, data: T) -> Piece[T]:
        """Take in a piece whose content is known (a new table). It counts as clean."""
        self._make_room()
        piece = Piece(offset, data, self._round)
        self.pieces[offset] = piece
        return piece

    def mark_dirty(self, piece: Piece[T]) -> None:
        """The piece was changed: it is written before it leaves."""
        if self.pieces.get(piece.offset) is not piece:
            raise QwbError("internal error: a table piece was changed after it left the cache", offset=piece.offset)
        if not piece.dirty:
            piece.dirty = True
            self._dirty[piece.offset] = piece

    def write_dirty(self) -> None:
        """Store all dirty pieces in file order; the file is not flushed."""
        if self._dirty:
            self._store_pieces(sorted(self._dirty))
            self.counters.flushes += 1
        self.clean_up()

    def forget(self, offset: int, length: int) -> None:
        """Drop pieces in host range [offset, offset + length), dirty or not: the table is gone."""
        if length // self.piece_size <= len(self.pieces):
            for at in range(offset, offset + length, self.piece_size):
                self._drop(at)
        else:
            for at in [each for each in self.pieces if offset <= each < offset + length]:
                self._drop(at)

    def empty(self) -> None:
        """Write what is dirty, then drop everything."""
        self.write_dirty()
        self.pieces.clear()

    def clean_up(self, *, now: float | None = None) -> int:
        """Every clean_interval seconds: drop pieces not used since the last time. Returns how many were dropped."""
        now = time.monotonic() if now is None else now
        if now < self._next_clean:
            return 0
        self._next_clean = now + self._clean_interval
        old = [piece.offset for piece in self.pieces.values() if not piece.dirty and piece.round < self._round]
        for offset in old:
            del self.pieces[offset]
        self._round += 1
        return len(old)

    # -- inside

    def _drop(self, offset: int) -> None:
        if self.pieces.pop(offset, None) is not None:
            self._dirty.pop(offset, None)

    def _make_room(self) -> None:
        while len(self.pieces) >= self.capacity:
            oldest = next(iter(self.pieces.values()))
            if oldest.dirty:
                # What must come first costs a flush of the file: let the other old dirty pieces share it.
                old = [each.offset for each in self.pieces.values() if each.dirty]
                self._store_pieces(sorted(old[: max(1, len(old) // 2)]))
                continue  # storing may itself have moved pieces about
            del self.pieces[oldest.offset]
            self.counters.evictions += 1

    def _store_pieces(self, offsets: list[int]) -> None:
        if self._before_store is not None:
            self._before_store()
        for offset in offsets:
            piece = self._dirty.get(offset)
            if piece is None:
                continue
            self._store(offset, piece.data)
            piece.dirty = False
            self._dirty.pop(offset, None)
            self.counters.stores += 1
