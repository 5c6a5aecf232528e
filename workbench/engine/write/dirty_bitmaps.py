"""Persistent dirty bitmaps of an image that is written (spec: Bitmaps; QEMU: qcow2-bitmap.c).

Enabled ones record every change. While the image is being changed they are marked in use on disk, so a crash leaves
bitmaps that nobody trusts; `store` brings them up to date and takes the mark away.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final

from formats.qcow2.bitmaps import Bitmap, build_bitmap
from formats.qcow2.entries import offset_of
from workbench.engine.bitmap_bits import stored_bits
from workbench.errors import UnsupportedError
from workbench.units import round_up

if TYPE_CHECKING:
    from workbench.engine.write.core import Core

_IN_USE: Final = 1


class TrackedBitmap:
    """One bitmap with its place in the directory. Its bits are written in place."""

    def __init__(self, core: Core, entry: Bitmap) -> None:
        self._core = core
        self.entry = entry
        self.bits = stored_bits(core.meta, entry, core.header.size, core.file.read)

    def write_chunks(self) -> list[int]:
        """Write changed chunks, into new clusters where the table has none yet. Returns table entries to be written."""
        core, size, fresh, bits = self._core, self._core.cluster_size, [], self.bits
        for number in sorted(bits.changed):
            host = offset_of(bits.table[number])
            if not host:
                host = core.allocator.allocate(size)
                bits.table[number] = host
                fresh.append(number)
                core.references_changed()
            core.guard.check("dirty bitmap data", host, size)
            core.file.write(host, bits.chunks[number])
        bits.changed.clear()
        return fresh


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
            each.bits.mark(offset, length)

    def store(self) -> None:
        """Write all bits, then take the marks away. Guest data must be flushed before."""
        if not self._marked:
            return
        self._write_bits(self.tracked)
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
                bitmap = self._bitmap(entry)
                bitmap.bits.resize(size)
                self._write_bits([bitmap])
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

    def _write_bits(self, bitmaps: list[TrackedBitmap]) -> None:
        """Changed chunks durably, then the table entries of new ones."""
        core = self._core
        fresh = [(each, each.write_chunks()) for each in bitmaps]
        core.settle_references()
        core.file.sync()
        for each, numbers in fresh:
            for number in numbers:
                core.file.write(each.entry.table_offset + number * 8, each.bits.table[number].to_bytes(8, "big"))
        core.file.sync()

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

    def _bitmap(self, entry: Bitmap) -> TrackedBitmap:
        """The one that records, if it does."""
        found = next((each for each in self.tracked if each.entry.offset == entry.offset), None)
        return found or TrackedBitmap(self._core, entry)

    def _resize_one(self, index: int, size: int) -> None:
        core, entry = self._core, self.entries[index]
        bitmap = self._bitmap(entry)
        count = core.geometry.clusters(entry.data_size(size))
        gone = bitmap.bits.table[count:]
        bitmap.bits.resize(size)
        bitmap.write_chunks()
        length = round_up(count * 8, core.cluster_size)
        place = core.allocator.allocate(length)
        core.guard.check("a bitmap table", place, length)
        data = b"".join(word.to_bytes(8, "big") for word in bitmap.bits.table)
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
