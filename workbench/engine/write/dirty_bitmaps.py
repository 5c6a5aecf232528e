"""Persistent dirty bitmaps of an image that is written (spec: Bitmaps; QEMU: qcow2-bitmap.c).

Enabled ones record every change. While the image is being changed they are marked in use on disk, so a crash leaves
bitmaps that nobody trusts; `store` brings them up to date and takes the mark away.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final

from formats.qcow2.bitmaps import Bitmap, build_bitmap
from formats.qcow2.entries import PointerKind, PointerTable, offset_of, read_pointer
from workbench.engine.metadata import Region
from workbench.errors import UnsupportedError
from workbench.units import round_up

if TYPE_CHECKING:
    from workbench.engine.write.core import Core

_IN_USE: Final = 1


class TrackedBitmap:
    """One enabled bitmap. Chunks of a cluster of bits are loaded when one of their bits is first set."""

    def __init__(self, core: Core, entry: Bitmap) -> None:
        self._core = core
        self.entry = entry
        self.table: list[int] = core.meta.read_words(
            Region(entry.table_offset, entry.table_size * 8), entry.table_size * 8
        ).tolist()
        self.chunks: dict[int, bytearray] = {}
        self._changed: set[int] = set()

    def mark(self, offset: int, length: int) -> None:
        """Set the bits of a guest range."""
        shift = self.entry.granularity_bits
        first, last = offset >> shift, (offset + length - 1) >> shift
        per_chunk = self._core.cluster_size * 8
        while first <= last:
            number, bit = divmod(first, per_chunk)
            stop = min(last + 1, (number + 1) * per_chunk)
            chunk = self.chunks.get(number)
            if chunk is None:
                chunk = self.chunks[number] = self._load(number)
            if stop - first == 1:
                if not chunk[bit >> 3] >> (bit & 7) & 1:
                    chunk[bit >> 3] |= 1 << (bit & 7)
                    self._changed.add(number)
            else:
                _set_bits(chunk, bit, bit + stop - first)
                self._changed.add(number)
            first = stop

    def write_chunks(self) -> list[int]:
        """Write changed chunks, into new clusters where the table has none yet. Returns table entries to be written."""
        core, size, fresh = self._core, self._core.cluster_size, []
        for number in sorted(self._changed):
            host = offset_of(self.table[number])
            if not host:
                host = core.allocator.allocate(size)
                self.table[number] = host
                fresh.append(number)
                core.references_changed()
            core.guard.check("dirty bitmap data", host, size)
            core.file.write(host, self.chunks[number])
        self._changed.clear()
        return fresh

    def _load(self, number: int) -> bytearray:
        size = self._core.cluster_size
        found = read_pointer(self.table[number], PointerTable.BITMAP, self._core.shape)
        if found.kind is PointerKind.CLUSTER:
            return bytearray(self._core.file.read(found.start, size))
        return bytearray(b"\xff" * size if found.kind is PointerKind.ONES else size)


class DirtyBitmaps:
    """All bitmaps of one image. `tracked`: those that record."""

    def __init__(self, core: Core) -> None:
        self._core = core
        header, meta = core.header, core.meta
        usable = header.has("bitmaps") and meta.bitmaps_extension is not None
        self.entries: list[Bitmap] = list(meta.bitmap_directory.bitmaps) if usable else []
        self.tracked = [TrackedBitmap(core, each) for each in self.entries if each.auto and not each.in_use]
        if self.tracked:
            core.before_change.append(self._begin)
        self._marked: set[int] = set()

    def mark(self, offset: int, length: int) -> None:
        """A guest range was changed."""
        for each in self.tracked:
            each.mark(offset, length)

    def store(self) -> None:
        """Write all bits, then take the marks away. Guest data must be flushed before."""
        core = self._core
        if not self._marked:
            return
        fresh = [(each, each.write_chunks()) for each in self.tracked]
        core.settle_references()
        core.file.sync()
        for each, numbers in fresh:
            for number in numbers:
                core.file.write(each.entry.table_offset + number * 8, each.table[number].to_bytes(8, "big"))
        core.file.sync()
        self._set_marks(self._marked, on=False)
        self._marked = set()

    def resize(self, size: int) -> None:
        """All bitmaps for a disk of `size` bytes: their bits beyond a smaller disk are cleared, new ones are clear.

        To be called when the header has the new size and `suspend` was called before. They end marked in use until
        `store`.
        """
        core = self._core
        for index, entry in enumerate(self.entries):
            if entry.table_size != core.geometry.clusters(entry.data_size(size)):
                self._resize_one(index, size)
            else:
                tracked = next((each for each in self.tracked if each.entry.offset == entry.offset), None)
                _clear_tail(core, tracked or TrackedBitmap(core, entry), size)
        for each in self.tracked:
            each.entry = next(e for e in self.entries if e.offset == each.entry.offset)

    def suspend(self) -> None:
        """Before a resize: everything stored and marked in use. UnsupportedError when a bitmap is in use already."""
        for each in self.entries:
            if each.in_use:
                raise UnsupportedError(
                    f"the image cannot be resized: its bitmap {each.name!r} was not saved properly",
                    path=self._core.path,
                    hint="remove that bitmap first",
                )
        if self.entries:
            self.store()
            self._mark_all({each.offset for each in self.entries})

    # -- inside

    def _begin(self) -> None:
        self._mark_all({each.entry.offset for each in self.tracked})

    def _mark_all(self, offsets: set[int]) -> None:
        self._marked |= offsets
        self._set_marks(offsets, on=True)

    def _set_marks(self, offsets: set[int], *, on: bool) -> None:
        """Change the in-use flag of directory entries in place: 4 bytes each, never across a sector."""
        core = self._core
        for entry in self.entries:
            if entry.offset in offsets:
                flags = (entry.flags & ~_IN_USE) | (_IN_USE if on else 0)
                core.file.write(entry.offset + 12, flags.to_bytes(4, "big"))
        core.file.sync()

    def _resize_one(self, index: int, size: int) -> None:
        core, entry = self._core, self.entries[index]
        tracked = next((each for each in self.tracked if each.entry.offset == entry.offset), None)
        bitmap = tracked or TrackedBitmap(core, entry)
        count = core.geometry.clusters(entry.data_size(size))
        gone = bitmap.table[count:]
        bitmap.table = bitmap.table[:count] + [0] * (count - len(bitmap.table))
        if tracked is not None:
            tracked.chunks = {number: chunk for number, chunk in tracked.chunks.items() if number < count}
        _clear_tail(core, bitmap, size)
        length = round_up(count * 8, core.cluster_size)
        place = core.allocator.allocate(length)
        core.guard.check("a bitmap table", place, length)
        data = b"".join(word.to_bytes(8, "big") for word in bitmap.table)
        core.file.write(place, data.ljust(length, b"\0"))
        core.references_changed()
        core.settle_references()
        core.file.sync()
        changed = replace(entry, table_offset=place, table_size=count, flags=entry.flags | _IN_USE)
        core.file.write(entry.offset, build_bitmap(changed)[:16])
        core.file.sync()
        self.entries[index] = replace(changed, flags=entry.flags)
        core.allocator.free(entry.table_offset, entry.table_size * 8)
        for word in gone:
            if offset_of(word):
                core.allocator.free(offset_of(word), core.cluster_size)


def _clear_tail(core: Core, bitmap: TrackedBitmap, size: int) -> None:
    """Clear the bits of the last chunk that lie beyond a disk of `size` bytes."""
    bits = -(-size // bitmap.entry.granularity)
    number, used = divmod(bits, core.cluster_size * 8)
    if not used or number >= len(bitmap.table):
        return
    if read_pointer(bitmap.table[number], PointerTable.BITMAP, core.shape).kind is PointerKind.NONE:
        return
    chunk = bitmap.chunks.setdefault(number, bitmap._load(number))
    whole = -(-used // 8)
    if used % 8:
        chunk[whole - 1] &= (1 << used % 8) - 1
    chunk[whole:] = bytes(len(chunk) - whole)
    bitmap._changed.add(number)
    bitmap.write_chunks()


def _set_bits(chunk: bytearray, first: int, end: int) -> None:
    """Set bits [first, end), counted from the least significant bit of byte 0."""
    low, high = first >> 3, end >> 3
    if low == high:
        chunk[low] |= ((1 << (end & 7)) - 1) & ~((1 << (first & 7)) - 1)
        return
    chunk[low] |= 0xFF & ~((1 << (first & 7)) - 1)
    chunk[low + 1 : high] = b"\xff" * (high - low - 1)
    if end & 7:
        chunk[high] |= (1 << (end & 7)) - 1
