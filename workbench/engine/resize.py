"""Changing the virtual size of an image that is open for writing (QEMU: qcow2_co_truncate)."""

from __future__ import annotations

from array import array
from typing import TYPE_CHECKING

from formats.qcow2 import limits
from formats.qcow2.entries import offset_of
from workbench.engine.write.guard import Kind
from workbench.engine.write.guest import write_guest
from workbench.engine.write.prealloc import Preallocation, preallocate
from workbench.engine.write.reading import is_zero
from workbench.engine.write.tables import encode_words
from workbench.engine.write.zero import discard_guest, zero_guest
from workbench.errors import ArgumentError, UnsupportedError
from workbench.units import SECTOR_SIZE, div_round_up, round_up

if TYPE_CHECKING:
    from workbench.engine.write.core import Core
    from workbench.engine.write.dirty_bitmaps import DirtyBitmaps


def resize(core: Core, size: int, preallocation: Preallocation, bitmaps: DirtyBitmaps) -> None:
    """Set the virtual size to `size` bytes. New space reads as zeros; data past a smaller size is lost.

    Raises ArgumentError for a size that is no multiple of 512 or too large, UnsupportedError where QEMU refuses.
    A crash leaves the old size or the new one.
    """
    if size % SECTOR_SIZE or size < 0:
        raise ArgumentError(f"the new size must be a multiple of {SECTOR_SIZE}", path=core.path)
    old = core.layer.size
    if core.header.nb_snapshots and core.header.version < 3:
        raise UnsupportedError("an image of version 2 with snapshots cannot be resized", path=core.path)
    if size < old and preallocation is not Preallocation.OFF:
        raise ArgumentError("preallocation makes no sense for a smaller size", path=core.path)
    if size == old:
        return
    core.begin()
    core.flush()
    bitmaps.suspend()
    if size > old:
        _grow(core, old, size, preallocation)
    else:
        _shrink(core, old, size)
    bitmaps.resize(size)


def _grow(core: Core, old: int, size: int, preallocation: Preallocation) -> None:
    grow_l1(core, core.geometry.l1_entries_for(size))
    core.resized(size)
    try:
        if core.backed and core.chain[1].size > old:
            # A longer backing file must not show through. As QEMU: explicit zeros up to the next (sub)cluster, then flags.
            head = min(size, round_up(old, core.geometry.subcluster_size))
            if head > old:
                write_guest(core, old, memoryview(bytes(head - old)))
            zero_guest(core, head, size - head, unmap=False)
        else:
            # Nor may what the last cluster holds behind the old end.
            head = min(size, round_up(old, core.cluster_size))
            if head > old and not is_zero(core, old, head - old):
                zero_guest(core, old, head - old, unmap=False)
        if core.external and core.data.storage.size() < size and core.raw_external:
            core.data.truncate(size)
        if core.raw_external and preallocation is Preallocation.OFF:
            preallocation = Preallocation.METADATA  # a raw data file always shows all of the disk
        if preallocation is not Preallocation.OFF:
            preallocate(core, old, size, preallocation)
        core.flush()
    except BaseException:
        core.resized(old)
        raise
    core.write_header_fields(size=size)


def _shrink(core: Core, old: int, size: int) -> None:
    core.write_header_fields(size=size)
    core.resized(size)
    first = round_up(size, core.cluster_size)
    whole = round_up(old, core.cluster_size)
    if first < whole:
        raw, core.raw_external = core.raw_external, False  # the data file is cut below: no zeros need be written
        try:
            discard_guest(core, first, whole - first, full=True)
        finally:
            core.raw_external = raw
    tables = core.tables
    for index in range(core.geometry.l1_entries_for(size), len(tables.l1)):
        entry = tables.l1[index]
        offset = offset_of(entry)
        if entry:
            tables.set_l1(index, 0)
            if offset:
                core.guard.remove(Kind.ACTIVE_L2, offset, core.cluster_size)
                tables.cache.forget(offset, core.cluster_size)
                if not core.allocator.contradicts(entry):
                    core.allocator.free(offset, core.cluster_size)
    core.flush()
    if core.external:
        if core.data.storage.size() > size:
            core.data.truncate(size)
            core.data.sync()
        return
    cut_free_tail(core)


def cut_free_tail(core: Core) -> None:
    """Shorten the file to its last used cluster. Refcounts must be written back."""
    core.refcounts.write_back()
    core.file.sync()
    size = core.cluster_size
    here = core.file.storage.size()
    last = core.refcounts.last_used(div_round_up(here, size))
    if (last + 1) * size < here:
        core.file.truncate((last + 1) * size)
        core.file.sync()


def grow_l1(core: Core, entries: int) -> None:
    """Make the active L1 table at least `entries` long: a copy elsewhere, made valid by one write to the header."""
    tables = core.tables
    if entries <= len(tables.l1):
        return
    length = entries * 8
    if length > limits.MAX_L1_SIZE:
        raise ArgumentError(f"the image would need an L1 table of {length} bytes, more than 32 MiB", path=core.path)
    core.flush()
    new = array("Q", tables.l1)
    new.extend(array("Q", bytes(length - len(new) * 8)))
    offset = core.allocator.allocate(length)
    try:
        core.guard.check("a new L1 table", offset, length)
        core.refcounts.write_back()
        core.file.write(offset, encode_words(new))
        core.file.sync()
    except BaseException:
        if core.dead is None:
            core.allocator.release(offset, length)
        raise
    old_offset, old_length = core.header.l1_table_offset, core.header.l1_size * 8
    core.write_header_fields(l1_size=entries, l1_table_offset=offset)
    tables.l1 = new
    core.guard.remove(Kind.ACTIVE_L1, old_offset, old_length)
    core.guard.add(Kind.ACTIVE_L1, offset, length)
    if old_length:
        core.allocator.free(old_offset, old_length)
        core.flush()
