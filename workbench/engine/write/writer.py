"""The write engine of one open image: what `Image` hands its writes to."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from formats.qcow2.header import INCOMPATIBLE
from workbench.engine.write.cache import CacheCounters
from workbench.engine.write.cache_sizes import CacheSizes
from workbench.engine.write.compressed import check_range, write_compressed_guest
from workbench.engine.write.core import Core
from workbench.engine.write.dirty_bitmaps import DirtyBitmaps
from workbench.engine.write.guest import write_guest
from workbench.engine.write.prealloc import Preallocation
from workbench.engine.write.reading import read_guest
from workbench.engine.write.zero import discard_guest, zero_guest
from workbench.errors import ArgumentError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from workbench.engine.image import Image


DIRTY: Final = INCOMPATIBLE["dirty"].mask


@dataclass(frozen=True, slots=True)
class WriteCounters:
    """What the engine has done: the two caches, and how often the file was made durable."""

    l2: CacheCounters
    refcounts: CacheCounters
    flushes: int


class Writer:
    """Writes to one image. Every method may be called from any thread; they take turns. Offsets are guest bytes."""

    def __init__(self, image: Image) -> None:
        """Nothing is written before the first change, except that a dirty image's refcounts are set right at once.

        Raises ArgumentError for bad options, CorruptError for a dirty image that is damaged too.
        """
        self._image = image
        self._lock = threading.RLock()
        self.core = core = Core(image.top, image.chain, image.options)
        self._closed = False
        self.repaired = 0
        """Refcounts that had to be corrected at open, because the image was left dirty."""
        if core.header.has("dirty"):
            from workbench.engine.write.rebuild import rebuild_refcounts

            self.repaired = rebuild_refcounts(core)
            core.write_header_fields(incompatible_features=core.header.incompatible_features & ~DIRTY)
        self._take_bitmaps()

    # -- what it is

    @property
    def sizes(self) -> CacheSizes:
        """What the caches may hold."""
        return self.core.sizes

    @property
    def counters(self) -> WriteCounters:
        return WriteCounters(
            self.core.tables.cache.counters, self.core.refcounts.cache.counters, self.core.file.flushes
        )

    # -- reading

    def readinto(self, offset: int, buffer: memoryview) -> None:
        """Guest bytes, with everything written so far."""
        with self._lock:
            read_guest(self.core, offset, buffer)

    def publish(self) -> None:
        """Show the tables as they are now to whoever walks the image's mapping (`Image.extents`)."""
        import numpy as np

        with self._lock:
            walker, tables = self._image.top.walker, self.core.tables
            walker.l1 = np.frombuffer(tables.l1, dtype=np.uint64).copy()
            walker.load_table = self._table
            walker.invalidate()

    def _table(self, l1_index: int, offset: int) -> NDArray[np.uint64]:
        import numpy as np

        with self._lock:
            return np.frombuffer(self.core.tables.whole_table(offset), dtype=np.uint64).copy()

    # -- writing

    def write(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        """Write guest bytes. Raises ArgumentError outside the disk, StorageError when the device refuses (then the
        clusters taken for it are free again), ImageError when the image was found corrupt."""
        view = data if isinstance(data, memoryview) and data.format == "B" else memoryview(data).cast("B")
        with self._lock:
            core = self.core
            if offset < 0 or offset + len(view) > core.layer.size:
                self._outside(offset, len(view))
            core.begin()
            if view:
                if self._track is not None:
                    self._track(offset, len(view))
                write_guest(core, offset, view)
                if core.allocator.overdue:
                    core.flush()

    def write_zeroes(self, offset: int, length: int, *, unmap: bool = False, fallback: bool = True) -> None:
        """Make a range read as zeros, by flags in the tables where possible. unmap: give its clusters back.

        fallback: write zeros where flags will not do; else UnsupportedError, with what comes before done.
        """
        with self._lock:
            self._prepare(offset, length)
            if length:
                self._changing(offset, length)
                zero_guest(self.core, offset, length, unmap=unmap, fallback=fallback)

    def discard(self, offset: int, length: int) -> None:
        """Give the whole clusters within the range back; they read as zeros afterwards."""
        with self._lock:
            self._prepare(offset, length)
            if length:
                self._changing(offset, length)
                discard_guest(self.core, offset, length)

    def write_compressed(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        """Write whole clusters compressed. StorageError where plain data is already."""
        view = memoryview(data).cast("B")
        with self._lock:
            self._prepare(offset, len(view))
            check_range(self.core, offset, len(view))
            self._image.top.forget()
            if view:
                self._changing(offset, len(view))
                write_compressed_guest(self.core, offset, view)

    def truncate(self, size: int, preallocation: Preallocation = Preallocation.OFF) -> None:
        """Change the virtual size to `size` bytes; see `workbench.engine.resize`."""
        from workbench.engine.resize import resize

        with self._lock:
            resize(self.core, size, preallocation, self._bitmaps)
            self._image.top.forget()

    def flush(self) -> None:
        """Everything written so far is durable when this returns."""
        with self._lock:
            self.core.flush()

    def close(self) -> None:
        """Flush, and leave the image clean."""
        with self._lock:
            if not self._closed:
                self._closed = True
                self.core.flush()
                if self.core.dead is None:
                    self._bitmaps.store()
                self.core.finish()

    def reload(self) -> None:
        """Take in what a snapshot operation changed below: metadata, L1 table, guard. The caches must be clean."""
        with self._lock:
            self.core.reload()
            self._image.top.forget()

    @contextmanager
    def bitmaps_at_rest(self) -> Iterator[Core]:
        """For whoever changes the image's bitmaps: all are stored and none records meanwhile; then they are read anew."""
        with self._lock:
            core = self.core
            core.flush()
            self._bitmaps.store()
            core.before_change.clear()
            core.begin()
            try:
                yield core
            finally:
                if core.dead is None:
                    core.dead = "its bitmaps could not be read again; open the image again"
                    core.refcounts.write_back()
                    core.file.sync()
                    self.reload()
                    core.expect_change()
                    self._take_bitmaps()
                    core.dead = None

    # -- inside

    def _take_bitmaps(self) -> None:
        self._bitmaps = DirtyBitmaps(self.core)
        self._track = self._bitmaps.mark if self._bitmaps.tracked else None

    def _changing(self, offset: int, length: int) -> None:
        if self._track is not None:
            self._track(offset, length)

    def _prepare(self, offset: int, length: int) -> None:
        if offset < 0 or length < 0 or offset + length > self.core.layer.size:
            self._outside(offset, length)
        self.core.begin()

    def _outside(self, offset: int, length: int) -> None:
        raise ArgumentError(
            f"{length} bytes at {offset:#x} are not within the disk of {self.core.layer.size} bytes",
            path=self.core.path,
        )
