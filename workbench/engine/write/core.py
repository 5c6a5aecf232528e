"""What the parts of the write engine share, and the order in which things reach the disk.

    guest data, refcount increments  ->  flush  ->  L2 slices  ->  flush  ->  L1 entries  ->  flush  ->  frees

An L2 entry is written only when the refcounts and the data that it needs are durable; an L1 entry only when its L2
table is; and a cluster becomes free only when nothing on disk refers to it any more. So a cut at any instant leaves
leaks at most, and every sector of the guest is either old or new.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Final, NoReturn

from formats.qcow2.entries import offset_of
from formats.qcow2.header import AUTOCLEAR, INCOMPATIBLE, build_header, field
from formats.qcow2.snapshots import Snapshot
from workbench.engine.metadata import Metadata, load_metadata
from workbench.engine.write.allocator import Allocator
from workbench.engine.write.cache_sizes import cache_sizes
from workbench.engine.write.guard import Guard, guard_kinds
from workbench.engine.write.host import HostFile
from workbench.engine.write.refcounts import Refcounts
from workbench.engine.write.tables import Tables
from workbench.errors import CorruptError, ImageError

if TYPE_CHECKING:
    from workbench.engine.layers import Layer, Qcow2Layer

_FIELDS: Final = {
    name: field(name)
    for name in (
        "backing_file_offset",
        "backing_file_size",
        "size",
        "l1_size",
        "l1_table_offset",
        "refcount_table_offset",
        "refcount_table_clusters",
        "nb_snapshots",
        "snapshots_offset",
        "incompatible_features",
        "compatible_features",
        "autoclear_features",
        "refcount_order",
    )
}
"""Header fields that are changed in place: (offset, size) in bytes. Those changed together stand in one sector."""


class Core:
    """State of one image open for writing; see the module's text. Not thread-safe: `Writer` holds the lock."""

    def __init__(self, layer: Qcow2Layer, chain: tuple[Layer, ...], options: Mapping[str, object]) -> None:
        """Raises ArgumentError for bad options. Nothing is written yet."""
        self.layer = layer
        self.chain = chain
        self.header = layer.meta.header
        self.path = layer.path
        self.geometry = layer.rules.geometry
        self.shape = layer.rules.shape
        self.cluster_size = self.geometry.cluster_size
        self.external = self.header.has("data_file")
        self.raw_external = self.external and self.header.has("data_file_raw")
        if layer.data is None:
            raise layer.data_error or ImageError("the external data file is not open", path=self.path)
        self.file = HostFile(layer.storage)
        self.data = HostFile(layer.data) if self.external else self.file
        self.cipher = layer.cipher()
        self.crypt_by_host = self.header.crypt_method == 2
        self.backed = len(chain) > 1
        self.lazy = self.header.version >= 3 and _wants_lazy(self.header.has("lazy_refcounts"), options)
        self.reftable_place = (
            self.header.refcount_table_offset,
            self.header.refcount_table_clusters * self.cluster_size,
        )
        self._options = options
        self.sizes = cache_sizes(self.geometry, self.header.size, options)
        self.dead: str | None = None
        self.allocator = Allocator(self)
        self.allocator.punch = options.get("discard", "ignore") in (True, "on", "unmap")
        self.refcounts = Refcounts(self)
        self.tables = Tables(self)
        self.guard = Guard(self, guard_kinds(options))
        self.before_change: list[Callable[[], None]] = []
        """Called once, before the first change of the image (dirty bitmaps are marked in use here)."""
        self._begun = False
        self._references_changed = False
        self._clean_features = self.header.incompatible_features

    # -- before and after changes

    def begin(self) -> None:
        """To be called before every change. Raises ImageError when the image was found corrupt meanwhile."""
        if self.dead is not None:
            raise ImageError(
                f"the image was marked corrupt and refuses further writes: {self.dead}",
                path=self.path,
                hint=f"see `qwb check {self.path}`",
            )
        if not self._begun:
            self._begun = True
            unknown = AUTOCLEAR["unknown"].mask & self.header.autoclear_features
            if unknown:
                self.write_header_fields(autoclear_features=self.header.autoclear_features & ~unknown)
            for step in self.before_change:
                step()

    def expect_change(self) -> None:
        """The next change counts as the first one again: `before_change` runs before it."""
        self._begun = False

    def references_changed(self) -> None:
        """Call before tables are made to refer to something new: with lazy refcounts, the dirty bit goes first."""
        self._references_changed = True
        if self.lazy and not self.header.has("dirty"):
            dirty = INCOMPATIBLE["dirty"].mask
            self.write_header_fields(incompatible_features=self.header.incompatible_features | dirty)

    def settle_references(self) -> None:
        """Everything that L2 entries in the cache refer to is durable when this returns: data and refcounts."""
        if not self._references_changed:
            return
        if not self.lazy:
            self.refcounts.write_back()
        self.data.sync()
        self.file.sync()
        self._references_changed = False

    def flush(self) -> None:
        """Everything done so far is durable, and what was given back is free."""
        if self.dead is not None:
            return
        tables = self.tables
        self.settle_references()
        tables.cache.write_dirty()
        if tables.l1_dirty:
            self.file.sync()
            tables.write_l1()
        self.data.sync()
        self.file.sync()
        if self.allocator.pending:
            self.allocator.settle()
            if not self.lazy:
                self.refcounts.write_back()

    def finish(self) -> None:
        """Flush, refcounts too, and take the dirty bit away."""
        if self.dead is not None:
            return
        self.flush()
        self.refcounts.write_back()
        self.data.sync()
        self.file.sync()
        if self.lazy and self.header.has("dirty"):
            dirty = INCOMPATIBLE["dirty"].mask
            self.write_header_fields(incompatible_features=self.header.incompatible_features & ~dirty)

    def relieve(self) -> None:
        """Flush when too much waits to be freed. To be called between operations."""
        if self.allocator.overdue:
            self.flush()

    def resized(self, size: int) -> None:
        """The disk has `size` bytes now: the L2 cache covers that much."""
        self.layer.size = size
        self.sizes = cache_sizes(self.geometry, size, self._options)
        self.tables.cache.capacity = max(self.tables.cache.capacity, self.sizes.l2_pieces)

    @property
    def meta(self) -> Metadata:
        """The metadata as it was read last; the layer has it."""
        return self.layer.meta

    def reload(self) -> None:
        """Metadata was changed on disk: read it anew."""
        self.layer.meta = load_metadata(self.layer.storage)
        self.layer.walker.l1 = self.meta.l1
        self.header = self.meta.header
        self.reftable_place = (
            self.header.refcount_table_offset,
            self.header.refcount_table_clusters * self.cluster_size,
        )
        self.tables.l1 = array("Q", self.meta.l1.tobytes())
        self.tables.cache.pieces.clear()
        self.refcounts.cache.pieces.clear()
        self.guard = Guard(self, self.guard.kinds)
        self.resized(self.header.size)

    # -- the header

    def write_header_fields(self, **values: int) -> None:
        """Change header fields on disk, durably, with one write within a sector."""
        header = replace(self.header, **values)  # type: ignore[arg-type] # `additional`, the one field of bytes, is not in _FIELDS
        places = [_FIELDS[name] for name in values]
        start, end = min(at for at, _ in places), max(at + size for at, size in places)
        self.file.write(start, build_header(header)[start:end])
        self.header = self.meta.header = header
        self.file.sync()

    # -- damage

    def corrupted(self, what: str, offset: int, *, fatal: bool = True) -> NoReturn:
        """Metadata contradicts itself: raise CorruptError. fatal: mark the image corrupt first and refuse all further
        writes."""
        hint = f"see `qwb check {self.path}`"
        if fatal:
            self.dead = what
            if self.header.version >= 3:
                corrupt = INCOMPATIBLE["corrupt"].mask
                self.write_header_fields(incompatible_features=self.header.incompatible_features | corrupt)
                hint = f"the image is marked corrupt now; {hint}"
        raise CorruptError(what, path=self.path, offset=offset, hint=hint)

    # -- snapshots

    def snapshot_tables(self, snapshot: Snapshot) -> list[int]:
        """Host offsets of a snapshot's L2 tables."""
        import numpy as np

        offsets = offset_of(self.meta.snapshot_l1(snapshot))
        found: list[int] = np.unique(offsets[offsets != 0]).tolist()
        return found


def _wants_lazy(stored: bool, options: Mapping[str, object]) -> bool:
    value = options.get("lazy-refcounts", stored)
    return value in (True, "on")
