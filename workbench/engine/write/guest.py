"""Guest writes: in place where the cluster is ours alone, else into new clusters with copy-on-write around the data
(QEMU: qcow2_alloc_host_offset, handle_copied, handle_alloc, perform_cow, qcow2_alloc_cluster_link_l2)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from formats.qcow2.entries import (
    SUBCLUSTERS,
    ClusterType,
    has_zero_flag,
    holds_cluster,
    is_compressed,
    is_copied,
    offset_of,
    plain_run,
    pointing_to,
    subclusters,
)
from workbench.engine.write.reading import cluster_kind, is_zero, read_guest
from workbench.units import SECTOR_SIZE

if TYPE_CHECKING:
    from workbench.engine.write.core import Core

_MAX_RUN: Final = 64 << 20
"""Bytes of new clusters taken at once (bounds the memory of the merged copy-on-write buffer)."""


def write_guest(core: Core, offset: int, data: memoryview) -> None:
    """Write guest bytes; the range is within the disk and `core.begin` was called.

    Encrypted disks take whole sectors: what is missing around the data is read first.
    """
    if core.cipher is not None and (offset % SECTOR_SIZE or len(data) % SECTOR_SIZE):
        start = offset - offset % SECTOR_SIZE
        buffer = bytearray(-(-(offset + len(data)) // SECTOR_SIZE) * SECTOR_SIZE - start)
        view = memoryview(buffer)
        read_guest(core, start, view[: min(len(buffer), core.layer.size - start)])
        view[offset - start : offset - start + len(data)] = data
        offset, data = start, view
    tables, size = core.tables, core.cluster_size
    done, length = 0, len(data)
    while done < length:
        at = offset + done
        piece = tables.own_slice(at)
        index = (at >> tables.cluster_bits) & tables.index_mask
        inside = at & (size - 1)
        if tables.width == 1:
            # In place: COPIED and an offset are set, and no other bit.
            left = length - done
            most = min(tables.index_mask - index + 1, (left + inside + size - 1) >> tables.cluster_bits)
            host, count = plain_run(piece.data, index, most, core.shape, owned=True)
            if count:
                if core.external and host != at - inside:
                    cluster_kind(core, piece.data[index], 0, 0, at)
                run = count * size - inside
                if run >= left:
                    run = left
                    part = data[done:] if done else data
                else:
                    part = data[done : done + run]
                put_plain(core, at, host + inside, part)
                done += run
                continue
        done += _write_new(core, at, data[done:])


def put_plain(core: Core, guest: int, host: int, data: memoryview | bytes | bytearray) -> None:
    """Write (encrypted, when the image is) to a host offset of the data file, past the overlap guard."""
    if core.cipher is not None:
        number = (host if core.crypt_by_host else guest) // SECTOR_SIZE
        data = core.cipher.encrypt(data, number)
    if not core.external:
        core.guard.check("guest data", host, len(data))
    core.data.write(host, data)


class _Region:
    """Neighbouring clusters that are written with one I/O and then linked. Guest bytes; `copy_*` is what is written."""

    __slots__ = ("copy_end", "copy_start", "count", "fresh", "guest", "host", "linked")

    def __init__(self, guest: int, count: int, host: int, *, fresh: bool) -> None:
        self.guest = guest
        self.count = count
        self.host = host
        self.fresh = fresh
        self.linked = False
        self.copy_start = self.copy_end = 0


def _write_new(core: Core, at: int, data: memoryview) -> int:
    """Write the clusters from `at` on that cannot simply be overwritten (or, with subclusters, the run that can).
    Returns the guest bytes done: they end within one slice."""
    size, tables = core.cluster_size, core.tables
    inside = at & (size - 1)
    most = min(-(-(inside + len(data)) // size), tables.left_in_slice(at), max(1, _MAX_RUN // size))
    sorts: list[int] = []
    for number in range(most):
        sort = _sort(core, at - inside + number * size)
        if number and (sort != sorts[0] or (sort != _ALLOCATE and not _follows(core, at - inside, number))):
            break
        sorts.append(sort)
    count, sort = len(sorts), sorts[0]
    length = min(len(data), count * size - inside)
    data = data[:length]
    guest = at - inside
    if sort == _IN_PLACE:
        entry, _ = tables.entry_at(at)
        region = _Region(guest, count, offset_of(entry), fresh=False)
    elif core.external:
        region = _Region(guest, count, guest, fresh=True)
    else:
        region = _Region(guest, count, core.allocator.allocate(count * size), fresh=True)
    try:
        _copy_range(core, region, at, length)
        _put(core, region, at, data)
        _link(core, region, keep=sort == _IN_PLACE)
    except BaseException:
        if region.fresh and not region.linked and not core.external and core.dead is None:
            core.allocator.release(region.host, count * size)
        raise
    return length


_IN_PLACE, _ALLOCATE = 1, 2


def _sort(core: Core, guest: int) -> int:
    """_IN_PLACE when the cluster at `guest` has a host cluster of its own (zero clusters too), else _ALLOCATE."""
    entry, bitmap = core.tables.entry_at(guest)
    if entry == 0 and bitmap == 0:
        return _ALLOCATE
    kind = cluster_kind(core, entry, bitmap, 0, guest)
    if is_copied(entry) and kind not in (ClusterType.COMPRESSED, ClusterType.UNALLOCATED, ClusterType.ZERO_PLAIN):
        return _IN_PLACE
    return _ALLOCATE


def _follows(core: Core, guest: int, number: int) -> bool:
    """Whether cluster `number` after `guest` lies `number` clusters behind it in the file."""
    first, _ = core.tables.entry_at(guest)
    entry, _ = core.tables.entry_at(guest + number * core.cluster_size)
    return offset_of(entry) == offset_of(first) + number * core.cluster_size


def _copy_range(core: Core, region: _Region, at: int, length: int) -> None:
    """Decide how much around the data must be written too (QEMU: calculate_l2_meta)."""
    end = at + length
    first_entry = core.tables.entry_at(at)
    last_entry = core.tables.entry_at(end - 1)
    region.copy_start = _copy_start(core, region, at, *first_entry)
    region.copy_end = _copy_end(core, region, end, *last_entry)


def _copy_start(core: Core, region: _Region, at: int, entry: int, bitmap: int) -> int:
    size, unit = core.cluster_size, core.geometry.subcluster_size
    base = at & -size
    if not core.geometry.extended_l2:
        return at if not region.fresh and not has_zero_flag(entry) else base
    sub = (at - base) // unit
    kind = cluster_kind(core, entry, bitmap, sub, at)
    if not region.fresh:
        return at if kind is ClusterType.NORMAL else base + sub * unit
    if kind is ClusterType.COMPRESSED:
        return base
    if kind in (ClusterType.UNALLOCATED, ClusterType.ZERO_PLAIN):
        return base + sub * unit
    allocated, _ = subclusters(bitmap)
    lowest = (allocated & -allocated).bit_length() - 1 if allocated else SUBCLUSTERS
    return base + min(sub, lowest) * unit


def _copy_end(core: Core, region: _Region, end: int, entry: int, bitmap: int) -> int:
    size, unit = core.cluster_size, core.geometry.subcluster_size
    last = end - 1
    base = last & -size
    if not core.geometry.extended_l2:
        return end if not region.fresh and not has_zero_flag(entry) else base + size
    sub = (last - base) // unit
    kind = cluster_kind(core, entry, bitmap, sub, last)
    if not region.fresh:
        return end if kind is ClusterType.NORMAL else base + (sub + 1) * unit
    if kind is ClusterType.COMPRESSED:
        return base + size
    if kind in (ClusterType.UNALLOCATED, ClusterType.ZERO_PLAIN):
        return base + (sub + 1) * unit
    highest = subclusters(bitmap)[0].bit_length() - 1
    return base + (max(sub, highest) + 1) * unit


def _put(core: Core, region: _Region, at: int, data: memoryview) -> None:
    """Head, data and tail in one write. Where nothing but zeros surrounds the data and the file ends before, only the
    data is written: what the file has never had reads as zeros."""
    start, stop, end = region.copy_start, region.copy_end, at + len(data)
    if start == at and stop == end:
        put_plain(core, at, region.host + at - region.guest, data)
        return
    host = region.host + start - region.guest
    if region.fresh and core.cipher is None and _surrounded_by_zeros(core, start, at, end, stop):
        place = region.host + at - region.guest
        if not core.external:
            core.guard.check("guest data", host, stop - start)
        behind = core.data.storage.size() <= host
        if not behind and stop - start - len(data) >= _ZERO_WORTH:
            core.data.write_zeroes(host, stop - start)
            behind = True
        if behind:
            core.data.write(place, data)
            return
    buffer = bytearray(stop - start)
    view = memoryview(buffer)
    _read_around(core, start, view[: at - start])
    view[at - start : end - start] = data
    _read_around(core, end, view[end - start :])
    put_plain(core, start, host, buffer)


_ZERO_WORTH: Final = 256 << 10


def _surrounded_by_zeros(core: Core, start: int, at: int, end: int, stop: int) -> bool:
    return is_zero(core, start, at - start) and is_zero(core, end, stop - end)


def _read_around(core: Core, guest: int, view: memoryview) -> None:
    """Guest bytes for copy-on-write; zeros past the end of the disk."""
    within = max(0, min(len(view), core.layer.size - guest))
    if within < len(view):
        view[within:] = bytes(len(view) - within)
    if within:
        read_guest(core, guest, view[:within])


def _link(core: Core, region: _Region, *, keep: bool) -> None:
    """Make the L2 entries refer to what was written. keep: the host clusters were the entries' own."""
    if keep and not core.geometry.extended_l2 and not has_zero_flag(core.tables.entry_at(region.guest)[0]):
        return
    core.references_changed()
    tables, size = core.tables, core.cluster_size
    piece = tables.own_slice(region.guest)
    words, width = piece.data, tables.width
    first = (region.guest >> tables.cluster_bits) & tables.index_mask
    replaced = []
    tables.cache.mark_dirty(piece)
    region.linked = True
    for number in range(region.count):
        at = (first + number) * width
        old = words[at]
        words[at] = pointing_to(region.host + number * size)
        if width == 2:
            words[at + 1] = _written(core, region, number, 0 if is_compressed(old) else words[at + 1])
        if not keep and not core.external and holds_cluster(old, core.shape):
            replaced.append(old)
    for old in replaced:
        core.allocator.free_entry(old)


def _written(core: Core, region: _Region, number: int, bitmap: int) -> int:
    """The subcluster bitmap of one cluster after the write: what was written is allocated and no longer zero."""
    unit, size = core.geometry.subcluster_size, core.cluster_size
    base = region.guest + number * size
    low = max(region.copy_start - base, 0) // unit
    high = min(-(-(region.copy_end - base) // unit), SUBCLUSTERS)
    mask = ((1 << high) - 1) & ~((1 << low) - 1)
    return (bitmap | mask) & ~(mask << SUBCLUSTERS)
