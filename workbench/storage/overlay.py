"""Staged writes: what an image would be, while the file stays as it is (DESIGN §2, repair pipeline).

The staged bytes form sorted, disjoint extents; each points into a staging store, or means zeros. Everything else shows
the base. A staged length goes with them.
"""

from __future__ import annotations

import tempfile
import threading
from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO, Final, NamedTuple

from workbench.errors import ArgumentError
from workbench.storage.base import Storage
from workbench.storage.file import storage_error

SPILL_AT: Final = 64 << 20
"""Staged bytes held in memory; what comes after goes to a temporary file."""
_STEP: Final = 1 << 20
_ZERO, _PUNCHED, _BASE = -1, -2, -3


@dataclass(frozen=True, slots=True)
class Edit:
    """One changed range. `old` ends early where the base file ended, `new` where the staged file ends."""

    offset: int
    old: bytes
    new: bytes


class _Extent(NamedTuple):
    end: int
    where: int
    """Offset in the staging store, or _ZERO / _PUNCHED."""


class _Staging:
    """An append-mostly byte store: memory up to a limit, then an unnamed temporary file. Not shared without a lock."""

    def __init__(self, spill_at: int) -> None:
        self._memory = bytearray()
        self._file: IO[bytes] | None = None
        self._spill_at = spill_at
        self.size = 0

    def append(self, data: memoryview) -> int:
        start = self.size
        self.overwrite(start, data)
        self.size += len(data)
        return start

    def overwrite(self, where: int, data: memoryview) -> None:
        in_memory = max(0, min(self._spill_at - where, len(data)))
        if in_memory:
            self._memory[where : where + in_memory] = data[:in_memory]
        if in_memory < len(data):
            try:
                if self._file is None:
                    self._file = tempfile.TemporaryFile(prefix="qwb-overlay-")  # noqa: SIM115 - lives as long as we do
                self._file.seek(where + in_memory)
                self._file.write(data[in_memory:])
            except OSError as error:
                raise storage_error("staging changes failed", error, tempfile.gettempdir()) from error

    def readinto(self, where: int, buffer: memoryview) -> None:
        in_memory = max(0, min(self._spill_at - where, len(buffer)))
        if in_memory:
            buffer[:in_memory] = self._memory[where : where + in_memory]
        if in_memory < len(buffer) and self._file is not None:
            self._file.seek(where + in_memory)
            self._file.readinto(buffer[in_memory:])  # type: ignore[attr-defined]

    def clear(self) -> None:
        self._memory = bytearray()
        self.size = 0
        if self._file is not None:
            self._file.close()
            self._file = None


class Overlay:
    """Storage whose writes stay here until `apply_to`. The base is only read, and is not closed by `close`.

    Any number of threads may read; writes take turns with them.
    """

    def __init__(self, base: Storage, *, spill_at: int = SPILL_AT) -> None:
        self.base = base
        self._staging = _Staging(spill_at)
        self._lock = threading.RLock()
        self._starts: list[int] = []
        self._extents: dict[int, _Extent] = {}
        self._size: int | None = None
        self._base_limit: int | None = None
        """Base bytes from here on are gone, since the length was once below them."""

    # -- what it is

    @property
    def path(self) -> str:
        return self.base.path

    @property
    def writable(self) -> bool:
        return True

    @property
    def growable(self) -> bool:
        """As the base: what is staged must fit where it will go. The overlay itself takes any length."""
        return self.base.growable

    @property
    def changed(self) -> bool:
        """Whether anything is staged (it may still equal the base: see `edits`)."""
        return bool(self._starts) or self._size is not None

    @property
    def staged_ranges(self) -> list[tuple[int, int]]:
        """(offset, end) of the staged extents, in order, neighbours joined."""
        with self._lock:
            joined: list[tuple[int, int]] = []
            for start in self._starts:
                end = self._extents[start].end
                if joined and joined[-1][1] == start:
                    joined[-1] = (joined[-1][0], end)
                else:
                    joined.append((start, end))
            return joined

    @property
    def hidden_ranges(self) -> list[tuple[int, int]]:
        """(offset, end) of the base's bytes that do not show: staged over, or cut off."""
        limit, size = self._base_limit, self.base.size()
        return [*self.staged_ranges, *([(limit, size)] if limit is not None and limit < size else [])]

    def size(self) -> int:
        staged = self._size
        return self.base.size() if staged is None else staged

    def allocated_size(self) -> int:
        """That of the base: what the staged state would take is known only after it is applied."""
        return self.base.allocated_size()

    # -- reading

    def read(self, offset: int, length: int) -> bytes:
        if not self.changed:
            return self.base.read(offset, length)
        with self._lock:
            length = min(length, self.size() - offset)
            if length <= 0:
                return b""
            end = offset + length
            if self._only_base(offset, end):
                return self.base.read(offset, length)
            buffer = bytearray(length)
            self._fill(offset, memoryview(buffer))
        return bytes(buffer)

    def readinto(self, offset: int, buffer: memoryview) -> int:
        if not self.changed:
            return self.base.readinto(offset, buffer)
        view = buffer.cast("B") if buffer.format != "B" else buffer
        with self._lock:
            length = min(len(view), self.size() - offset)
            if length <= 0:
                return 0
            if self._only_base(offset, offset + length):
                return self.base.readinto(offset, view[:length])
            self._fill(offset, view[:length])
        return length

    def next_data(self, offset: int) -> int | None:
        with self._lock:
            for start, end, where in self._pieces(offset, self.size()):
                if where >= 0:
                    return start
                if where == _BASE:
                    found = self.base.next_data(start)
                    if found is not None and found < end:
                        return found
        return None

    def next_hole(self, offset: int) -> int:
        with self._lock:
            size = self.size()
            for start, end, where in self._pieces(offset, size):
                if where in (_ZERO, _PUNCHED):
                    return start
                if where == _BASE:
                    found = self.base.next_hole(start)
                    if found < end:
                        return found
            return max(offset, size)

    # -- staging

    def write(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        if not len(data):
            return
        view = memoryview(data).cast("B")
        end = offset + len(view)
        with self._lock:
            self._grow_to(end)
            at = bisect_right(self._starts, offset) - 1
            if at >= 0:
                start = self._starts[at]
                extent = self._extents[start]
                if extent.where >= 0 and end <= extent.end:  # again the same table: no new extent
                    self._staging.overwrite(extent.where + offset - start, view)
                    return
            self._carve(offset, end)
            self._put(offset, end, self._staging.append(view))

    def write_zeroes(self, offset: int, length: int, *, punch: bool = False) -> None:
        if length <= 0:
            return
        with self._lock:
            self._grow_to(offset + length)
            self._carve(offset, offset + length)
            self._put(offset, offset + length, _PUNCHED if punch else _ZERO)

    def truncate(self, size: int) -> None:
        if size < 0:
            raise ArgumentError(f"a file cannot be {size} bytes long", path=self.path)
        with self._lock:
            now = self.size()
            if size < now:
                self._carve(size, now)
                base_end = self.base.size() if self._base_limit is None else self._base_limit
                self._base_limit = min(base_end, size)
            if size != now or self._size is not None:
                self._size = size
                self._freeze_base_limit()

    def allocate(self, offset: int, length: int) -> None:
        """Only the length counts here; space is reserved when the edits are applied."""
        if length > 0:
            with self._lock:
                self._grow_to(offset + length)

    def flush(self) -> None:
        """Nothing to do: staged writes are not meant to survive."""

    def discard(self) -> None:
        """Forget everything staged."""
        with self._lock:
            self._starts.clear()
            self._extents.clear()
            self._staging.clear()
            self._size = self._base_limit = None

    def close(self) -> None:
        """Discard; the base stays open."""
        self.discard()

    # -- results

    @property
    def size_change(self) -> tuple[int, int]:
        """(length of the base, staged length) in bytes."""
        return self.base.size(), self.size()

    def iter_edits(self, step: int = _STEP) -> Iterator[Edit]:
        """Ranges whose bytes differ from the base, in file order, at most `step` bytes each.

        A length change shows as an edit with a shorter side; growth by zeros alone shows in `size_change` only.
        """
        old_size, new_size = self.size_change
        for start, end in self._changed_ranges(old_size, new_size):
            position = start
            while position < end:
                zeros_end = self._zeros_until(position, min(end, new_size))
                if zeros_end > position:
                    # Long zeroed ranges over a sparse file: only what holds data there can differ.
                    data_at = self.base.next_data(position)
                    skip_to = zeros_end if data_at is None else min(max(position, data_at), zeros_end)
                    if skip_to > position:
                        position = skip_to
                        continue
                length = min(step - position % step, end - position)
                old, new = self.base.read(position, length), self.read(position, length)
                if old != new:
                    yield _trimmed(position, old, new)
                position += length

    def edits(self) -> list[Edit]:
        """All of `iter_edits`, neighbours joined up to 1 MiB."""
        joined: list[Edit] = []
        for edit in self.iter_edits():
            last = joined[-1] if joined else None
            if (
                last is not None
                and len(last.old) == len(last.new)
                and last.offset + len(last.new) == edit.offset
                and len(last.new) + len(edit.new) <= _STEP
            ):
                joined[-1] = Edit(last.offset, last.old + edit.old, last.new + edit.new)
            else:
                joined.append(edit)
        return joined

    def apply_to(self, storage: Storage) -> None:
        """Write what is staged into `storage` (as a rule the base, opened writable), set its length, flush it.

        A shorter length comes last, after the new metadata is durable. The overlay keeps its state.
        """
        with self._lock:
            size = self.size()
            base_size = storage.size()
            for start, end, where in list(self._pieces(0, size)):
                if where == _BASE:
                    continue
                if start not in self._extents:  # bytes of the base that were cut off and came back as zeros
                    if start < base_size:
                        storage.write_zeroes(start, min(end, base_size) - start)
                elif where in (_ZERO, _PUNCHED):
                    storage.write_zeroes(start, end - start, punch=where == _PUNCHED)
                else:
                    for position in range(start, end, _STEP):
                        chunk = bytearray(min(_STEP, end - position))
                        self._staging.readinto(where + position - start, memoryview(chunk))
                        storage.write(position, chunk)
            if self._size is not None and storage.size() != size:
                if size < storage.size():
                    storage.flush()
                storage.truncate(size)
            storage.flush()

    # -- inside

    def _freeze_base_limit(self) -> None:
        if self._base_limit is None:
            self._base_limit = self.base.size()

    def _grow_to(self, end: int) -> None:
        if end > self.size():
            self._size = end
            self._freeze_base_limit()

    def _only_base(self, start: int, end: int) -> bool:
        if self._base_limit is not None and end > self._base_limit:
            return False
        at = bisect_right(self._starts, start) - 1
        if at >= 0 and self._extents[self._starts[at]].end > start:
            return False
        return at + 1 >= len(self._starts) or self._starts[at + 1] >= end

    def _pieces(self, start: int, end: int) -> Iterator[tuple[int, int, int]]:
        """[start, end) cut into (start, end, where); where is _BASE for base bytes, _ZERO for a tail past the base."""
        at = max(bisect_right(self._starts, start) - 1, 0)
        position = start
        while position < end:
            while at < len(self._starts) and self._extents[self._starts[at]].end <= position:
                at += 1
            first = self._starts[at] if at < len(self._starts) else end
            if first <= position:
                extent = self._extents[first]
                stop = min(extent.end, end)
                yield position, stop, extent.where + (position - first) if extent.where >= 0 else extent.where
            else:
                stop, limit = min(first, end), self._base_limit
                if limit is not None and position < limit < stop:
                    stop = limit
                yield position, stop, _BASE if limit is None or position < limit else _ZERO
            position = stop

    def _fill(self, offset: int, view: memoryview) -> None:
        for start, end, where in self._pieces(offset, offset + len(view)):
            part = view[start - offset : end - offset]
            if where >= 0:
                self._staging.readinto(where, part)
                continue
            got = self.base.readinto(start, part) if where == _BASE else 0
            if got < len(part):
                part[got:] = bytes(len(part) - got)

    def _carve(self, start: int, end: int) -> None:
        """Take [start, end) out of the extents; what sticks out on either side stays."""
        first = bisect_right(self._starts, start) - 1
        if first < 0 or self._extents[self._starts[first]].end <= start:
            first += 1
        last = bisect_left(self._starts, end, first)
        if first >= last:
            return
        gone = [(s, self._extents.pop(s)) for s in self._starts[first:last]]
        del self._starts[first:last]
        left, right = gone[0], gone[-1]
        if left[0] < start:
            self._put(left[0], start, left[1].where, merge=False)
        if right[1].end > end:
            where = right[1].where + (end - right[0]) if right[1].where >= 0 else right[1].where
            self._put(end, right[1].end, where, merge=False)

    def _put(self, start: int, end: int, where: int, *, merge: bool = True) -> None:
        """Add an extent in free space, joined with the one before it when their bytes follow each other."""
        if merge:
            at = bisect_right(self._starts, start) - 1
            if at >= 0:
                before = self._starts[at]
                extent = self._extents[before]
                expected = extent.where + start - before if extent.where >= 0 else extent.where
                if extent.end == start and expected == where:
                    self._extents[before] = _Extent(end, extent.where)
                    return
        insort(self._starts, start)
        self._extents[start] = _Extent(end, where)

    def _changed_ranges(self, old_size: int, new_size: int) -> list[tuple[int, int]]:
        """Staged ranges, plus base bytes that a shorter length took away (for good or until it grew again)."""
        ranges = self.staged_ranges
        limit = old_size if self._base_limit is None else self._base_limit
        if limit < old_size:
            ranges = [(s, e) for s, e in ranges if s < limit] + [(limit, max(old_size, new_size))]
            if len(ranges) > 1 and ranges[-2][1] > limit:
                ranges[-2:] = [(ranges[-2][0], ranges[-1][1])]
        return ranges

    def _zeros_until(self, position: int, end: int) -> int:
        """End of the piece at `position` when it is staged as zeros; else `position`."""
        with self._lock:
            piece = next(self._pieces(position, end), None)
        return piece[1] if piece is not None and piece[2] in (_ZERO, _PUNCHED) else position


def _trimmed(offset: int, old: bytes, new: bytes) -> Edit:
    """The edit without the bytes that agree at both its ends."""
    common = min(len(old), len(new))
    head = _same_prefix(old, new, common)
    tail = _same_prefix(old[::-1], new[::-1], common - head) if len(old) == len(new) else 0
    return Edit(offset + head, old[head : len(old) - tail], new[head : len(new) - tail])


def _same_prefix(one: bytes, other: bytes, limit: int) -> int:
    """Length of the common start, by halving: compares run at memcmp speed."""
    low, high = 0, limit
    while low < high:
        middle = (low + high + 1) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low
