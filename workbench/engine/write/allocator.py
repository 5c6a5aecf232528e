"""Host clusters taken and given back.

Taking is immediate. Giving back what a table on disk may still refer to waits until the change of that table is
durable: until then the cluster keeps its refcount, so nothing else can be written into it. A crash in between leaves a
leak, never a cross-link. Clusters that no table ever referred to go back at once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from formats.qcow2.entries import is_compressed, is_copied, offset_of, packed_range
from workbench.errors import StorageError
from workbench.units import div_round_up, round_up

if TYPE_CHECKING:
    from workbench.engine.write.core import Core

_PENDING_BYTES: Final = 32 << 20
_PENDING_COUNT: Final = 4096
"""Beyond this much given back but not yet free, the tables are made durable without waiting for the next flush."""
_MAX_OFFSET: Final = 1 << 56


class Allocator:
    """Takes and frees clusters of one image. Offsets and lengths are host bytes."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._next = 0
        self._packed_at = 0
        """Where the next compressed cluster may be packed behind the last one; 0: nowhere."""
        self._pending: list[tuple[int, int]] = []
        self._pending_bytes = 0
        self.punch = False
        """Give freed space back to the file system too."""
        self.complaints: list[str] = []
        """Refcounts that contradicted the tables when something was freed (a damaged image)."""

    # -- taking

    def peek(self) -> int:
        """A free cluster (its number); it is not taken."""
        return self._core.refcounts.find_free(1, self._next)

    def taken(self, first: int, count: int) -> None:
        """Somebody else took these clusters: look behind them from now on."""
        self._next = max(self._next, first + count)

    def restart(self, cluster: int) -> None:
        """Clusters from here on were freed by somebody else; nothing may be packed behind old compressed data."""
        self._next = min(self._next, cluster)
        self._packed_at = 0

    def allocate(self, length: int) -> int:
        """Host offset of neighbouring free clusters for `length` bytes; their refcounts are 1 now.

        Raises CorruptError when the search finds the header's own cluster free, UnsupportedError past QEMU's limits.
        """
        core = self._core
        count = div_round_up(length, core.cluster_size)
        first = self._find(count)
        core.refcounts.change(first, count, 1)
        self._next = first + count
        return first * core.cluster_size

    def allocate_packed(self, length: int) -> int:
        """Host byte offset for `length` (at most a cluster) bytes of compressed data, packed behind the last ones where
        they fit. Every cluster touched counts one reference more."""
        core, size = self._core, self._core.cluster_size
        at = self._packed_at
        if at and core.refcounts.get(at // size) >= core.geometry.refcount_max:
            at = 0
        room = size - at % size if at else 0
        if length > room:
            cluster = self._find(1)
            if not at or round_up(at, size) != cluster * size:
                at = cluster * size  # not right behind: start afresh
            self._next = cluster + 1
        first, last = at // size, (at + length - 1) // size
        core.refcounts.change(first, last - first + 1, 1)
        end = at + length
        self._packed_at = end if end % size else 0
        return at

    def _find(self, count: int) -> int:
        core = self._core
        while True:
            first = core.refcounts.find_free(count, self._next)
            if first == 0:
                core.corrupted(
                    "the first cluster counts as free: a new cluster there overlaps with the qcow2_header at 0x0",
                    0,
                )
            if (first + count) * core.cluster_size > _MAX_OFFSET:
                raise StorageError("no host offset left for new clusters", path=core.path)
            if not core.refcounts.ensure_blocks(first, count):
                return first

    # -- giving back

    def release(self, offset: int, length: int) -> None:
        """Give back at once what no table has ever referred to (a write that failed)."""
        core = self._core
        first = offset // core.cluster_size
        count = div_round_up(offset + length, core.cluster_size) - first
        core.refcounts.change(first, count, -1)
        self._next = min(self._next, first)
        if self._packed_at and first <= self._packed_at // core.cluster_size < first + count:
            self._packed_at = 0

    def free(self, offset: int, length: int) -> None:
        """Drop one reference to every cluster that the range touches, once the tables that had it are durable."""
        core = self._core
        first = offset // core.cluster_size
        count = div_round_up(offset + length, core.cluster_size) - first
        self._pending.append((first, count))
        self._pending_bytes += count * core.cluster_size

    def free_entry(self, entry: int) -> None:
        """Drop the reference that an L2 entry holds: a plain or kept zero cluster, or compressed data."""
        core = self._core
        if is_compressed(entry):
            offset, end = packed_range(entry, core.shape)
            self.free(offset, end - offset)
            return
        offset = offset_of(entry)
        if not offset:
            return
        if core.external:
            if self.punch:
                core.data.write_zeroes(offset, core.cluster_size, punch=True)
            return
        if offset & (core.cluster_size - 1):
            core.corrupted(
                f"cannot free the data cluster at {offset:#x}: not cluster aligned",
                offset,
                fatal=False,
            )
        if not self.contradicts(entry):
            self.free(offset, core.cluster_size)

    def contradicts(self, entry: int) -> bool:
        """The entry says that its cluster is shared (no COPIED), the refcount that nobody else has it.

        One of them is wrong, and freeing it might take it from a snapshot: it is left counted, a leak at worst.
        """
        core = self._core
        offset = offset_of(entry)
        if is_copied(entry) or core.refcounts.get(offset // core.cluster_size) != 1:
            return False
        self.complaints.append(f"the cluster at {offset:#x} has refcount 1, but its entry says that it is shared")
        return True

    @property
    def overdue(self) -> bool:
        """So much waits to be freed that the tables should be made durable now."""
        return self._pending_bytes >= _PENDING_BYTES or len(self._pending) >= _PENDING_COUNT

    @property
    def pending(self) -> bool:
        return bool(self._pending)

    def settle(self) -> None:
        """Free what waits. Only to be called when all tables are durable."""
        if not self._pending:
            return
        import numpy as np

        core, size = self._core, self._core.cluster_size
        waiting, self._pending, self._pending_bytes = self._pending, [], 0
        every = np.concatenate([np.arange(first, first + count, dtype=np.int64) for first, count in waiting])
        clusters, counts = np.unique(every, return_counts=True)
        freed, low = core.refcounts.drop(clusters, counts)
        self.complaints += [f"refcount of the cluster at {each * size:#x} was too low already" for each in low]
        if not len(freed):
            return
        self._next = min(self._next, int(freed[0]))
        edges = np.flatnonzero(np.diff(freed) != 1) + 1
        for run in np.split(freed, edges):
            offset, length = int(run[0]) * size, len(run) * size
            core.tables.cache.forget(offset, length)
            core.refcounts.cache.forget(offset, length)
            if self._packed_at and offset <= self._packed_at < offset + length:
                self._packed_at = 0  # that cluster may hold anything from now on
            if self.punch:
                end = min(offset + length, core.file.storage.size())
                if end > offset:
                    core.file.write_zeroes(offset, end - offset, punch=True)
