"""Ranges that read as zeros, and ranges given back (QEMU: qcow2_subcluster_zeroize, qcow2_cluster_discard)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from formats.qcow2.entries import ALL_ZERO, SUBCLUSTERS, ClusterType, holds_cluster, is_compressed, with_zero_flag
from workbench.engine.write.guest import write_guest
from workbench.engine.write.reading import cluster_kind, is_zero
from workbench.errors import UnsupportedError
from workbench.units import round_up

if TYPE_CHECKING:
    from workbench.engine.write.core import Core

_STEP: Final = 1 << 20


def zero_guest(core: Core, offset: int, length: int, *, unmap: bool, fallback: bool = True) -> None:
    """Make guest range [offset, offset + length) read as zeros. unmap: allocated clusters are given back.

    Partial (sub)clusters whose rest is zero already become zero as a whole; others get zeros written, or, without
    `fallback`, end in UnsupportedError.
    """
    unit, end = core.geometry.subcluster_size, offset + length
    disk_end = core.layer.size
    first = round_up(offset, unit)
    last = round_up(end, unit) if end == disk_end else end - end % unit
    if first > last:  # within one unit
        _zero_partly(core, offset, length, unmap=unmap, fallback=fallback)
        return
    if offset < first:
        _zero_partly(core, offset, min(first, end) - offset, unmap=unmap, fallback=fallback)
    if first < last:
        _zero_units(core, first, last, unmap=unmap, fallback=fallback)
    if last < end:
        _zero_partly(core, last, end - last, unmap=unmap, fallback=fallback)


def discard_guest(core: Core, offset: int, length: int, *, full: bool = False) -> None:
    """Give the whole clusters within the guest range back; they read as zeros afterwards (version 2: as unallocated).

    full: they fall through to the backing file instead. Version 2 with a backing file: nothing is done, as in QEMU.
    """
    size, end = core.cluster_size, offset + length
    if core.header.version < 3 and core.backed and not full:
        return
    first = round_up(offset, size)
    last = round_up(end, size) if end >= core.layer.size else end - end % size
    at = first
    while at < last:
        at = _discard_slice(core, at, last, full=full)
        core.relieve()


# -- zeros


def _zero_partly(core: Core, offset: int, length: int, *, unmap: bool, fallback: bool) -> None:
    """Zeros in a part of one subcluster."""
    if length <= 0:
        return
    unit = core.geometry.subcluster_size
    start = offset - offset % unit
    stop = min(start + unit, core.layer.size)
    entry, bitmap = core.tables.entry_at(offset)
    sub = (offset & (core.cluster_size - 1)) // unit if core.geometry.extended_l2 else 0
    kind = cluster_kind(core, entry, bitmap, sub, offset)
    holds_data = kind in (ClusterType.NORMAL, ClusterType.COMPRESSED)
    if (
        (core.header.version >= 3 or not core.backed)
        and not holds_data
        and is_zero(core, start, offset - start)
        and is_zero(core, offset + length, stop - offset - length)
    ):
        _zero_units(core, start, start + unit, unmap=unmap, fallback=fallback)
        return
    _write_zeros(core, offset, length, fallback=fallback)


def _write_zeros(core: Core, offset: int, length: int, *, fallback: bool) -> None:
    if not fallback:
        raise UnsupportedError(f"guest range {offset:#x} cannot be made zero without writing zeros", path=core.path)
    zeros = memoryview(bytes(min(length, _STEP)))
    for at in range(offset, offset + length, _STEP):
        write_guest(core, at, zeros[: min(_STEP, offset + length - at)])
        core.relieve()


def _zero_units(core: Core, start: int, end: int, *, unmap: bool, fallback: bool) -> None:
    """Whole subclusters (clusters without extended entries); the last may reach past the end of the disk."""
    if core.raw_external:
        stop = min(end, core.layer.size)
        core.data.write_zeroes(start, stop - start, punch=unmap and core.allocator.punch)
        core.references_changed()
    if core.header.version < 3:
        if not core.backed:
            discard_guest(core, start, end - start)
        else:
            _write_zeros(core, start, min(end, core.layer.size) - start, fallback=fallback)
        return
    size, at = core.cluster_size, start
    while at < end:
        base = at & -size
        if at != base or end - at < size:
            stop = min(end, base + size)
            if not _zero_subclusters(core, at, stop):
                _write_zeros(core, at, min(stop, core.layer.size) - at, fallback=fallback)
            at = stop
        else:
            at = _zero_slice(core, at, end, unmap=unmap)
        core.relieve()


def _zero_slice(core: Core, at: int, end: int, *, unmap: bool) -> int:
    """Whole clusters up to the end of one slice; returns where it stopped."""
    tables, size = core.tables, core.cluster_size
    piece = tables.own_slice(at)
    words, width = piece.data, tables.width
    count = min(tables.left_in_slice(at), (end - at) // size)
    first = (at >> tables.cluster_bits) & tables.index_mask
    for number in range(count):
        word = (first + number) * width
        old = words[word]
        bitmap = words[word + 1] if width == 2 else 0
        drop = is_compressed(old) or (unmap and holds_cluster(old, core.shape))
        new = 0 if drop else old
        if width == 2:
            new_bitmap = ALL_ZERO
        else:
            new = with_zero_flag(new)
            new_bitmap = 0
        if new == old and new_bitmap == bitmap:
            continue
        tables.cache.mark_dirty(piece)  # first: nothing may be freed that an unmarked change gave up
        words[word] = new
        if width == 2:
            words[word + 1] = new_bitmap
        if drop:
            _free(core, old)
    return at + count * size


def _zero_subclusters(core: Core, start: int, end: int) -> bool:
    """Subclusters [start, end) within one cluster; False for a compressed cluster, which has none."""
    tables, unit = core.tables, core.geometry.subcluster_size
    piece = tables.own_slice(start)
    word = ((start >> tables.cluster_bits) & tables.index_mask) * 2
    if is_compressed(piece.data[word]):
        return False
    base = start & -core.cluster_size
    mask = (1 << ((end - base) // unit)) - (1 << ((start - base) // unit))
    bitmap = piece.data[word + 1]
    new = (bitmap | mask << SUBCLUSTERS) & ~mask
    if new != bitmap:
        tables.cache.mark_dirty(piece)
        piece.data[word + 1] = new
    return True


# -- discard


def _discard_slice(core: Core, at: int, end: int, *, full: bool) -> int:
    """Whole clusters up to the end of one slice; returns where it stopped."""
    tables, size = core.tables, core.cluster_size
    if not core.backed and tables.slice_at(at) is None:
        return min(end, ((at >> tables.l1_shift) + 1) << tables.l1_shift)
    count = min(tables.left_in_slice(at), (end - at) // size)
    piece = tables.slice_at(at)
    first = (at >> tables.cluster_bits) & tables.index_mask
    width = tables.width
    if piece is not None:
        span = piece.data[first * width : (first + count) * width]
        if not any(span) and (full or not core.backed):
            return at + count * size
    elif full:
        return at + count * size
    piece = tables.own_slice(at)
    words = piece.data
    for number in range(count):
        word = (first + number) * width
        old = words[word]
        bitmap = words[word + 1] if width == 2 else 0
        new, new_bitmap = old, bitmap
        allocated = holds_cluster(old, core.shape)
        if full:
            new, new_bitmap = 0, 0
        elif core.backed or allocated:
            if width == 2:
                new, new_bitmap = 0, ALL_ZERO
            else:
                new = with_zero_flag(0) if core.header.version >= 3 else 0
        if new == old and new_bitmap == bitmap:
            continue
        if core.raw_external and not full:
            guest = at + number * size
            core.data.write_zeroes(guest, min(size, core.layer.size - guest), punch=core.allocator.punch)
            core.references_changed()
        tables.cache.mark_dirty(piece)
        words[word] = new
        if width == 2:
            words[word + 1] = new_bitmap
        _free(core, old)
    return at + count * size


def _free(core: Core, entry: int) -> None:
    """Give back what an entry held. In a raw external file the range was zeroed already."""
    if not core.raw_external:
        core.allocator.free_entry(entry)
