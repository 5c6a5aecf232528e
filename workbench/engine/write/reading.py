"""Guest bytes as the writer sees them: its own slices first, then the layers below (for reads of an image that is open
for writing, and for copy-on-write)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from formats.qcow2.entries import (
    NO_HOST,
    SUBCLUSTERS,
    ClusterType,
    Fault,
    descriptor_of,
    driver_kind,
    l2_faults,
    offset_of,
    plain_run,
)
from workbench.engine.layers import fill_zeros
from workbench.engine.mapping import diagnose
from workbench.engine.reading import read_chain
from workbench.errors import CorruptError

if TYPE_CHECKING:
    from workbench.engine.write.core import Core


def cluster_kind(core: Core, entry: int, bitmap: int, sub: int, guest: int) -> ClusterType:
    """What an L2 entry says about subcluster `sub` (0 without extended entries). CorruptError when a driver would stop."""
    base = guest & -core.cluster_size
    kind = driver_kind(entry, bitmap, sub, base, core.shape)
    if kind is ClusterType.INVALID:
        reason = diagnose(entry, bitmap, base, core.layer.rules)
        host = offset_of(entry)
        if l2_faults(entry, core.shape) & Fault.UNALIGNED:
            core.corrupted(
                f"guest offset {guest:#x}: {reason}",
                host,
                fatal=core.layer.storage.writable,
            )
        raise CorruptError(f"guest offset {guest:#x}: {reason}", path=core.path, hint=f"see `qwb check {core.path}`")
    return kind


def read_guest(core: Core, offset: int, view: memoryview) -> None:
    """Fill `view` with guest bytes from `offset`, all within the disk."""
    tables, size = core.tables, core.cluster_size
    at, end = offset, offset + len(view)
    plain = core.cipher is None
    while at < end:
        piece = tables.slice_at(at)
        if piece is None:
            stop = min(end, ((at >> tables.l1_shift) + 1) << tables.l1_shift)
            _read_below(core, at, view[at - offset : stop - offset])
            at = stop
            continue
        data = piece.data
        index = (at >> tables.cluster_bits) & tables.index_mask
        inside = at & (size - 1)
        if tables.width == 1:
            # Plain data: as many neighbours as lie behind one another in the file.
            most = min(tables.index_mask - index + 1, (end - at + inside + size - 1) >> tables.cluster_bits)
            host, count = plain_run(data, index, most, core.shape)
            if count and (not core.external or host == at - inside):
                stop = min(at - inside + count * size, end)
                host += inside
                if plain:
                    core.data.readinto(host, view[at - offset : stop - offset])
                else:
                    core.layer.read_run(at, ClusterType.NORMAL, host, view[at - offset : stop - offset])
                at = stop
                continue
        stop = _read_one(core, at, end, view[at - offset :])
        at = stop


def _read_one(core: Core, at: int, end: int, view: memoryview) -> int:
    """Read up to the end of one cluster, or of the run of subclusters of one kind within it; returns where it stopped."""
    size, unit = core.cluster_size, core.geometry.subcluster_size
    entry, bitmap = core.tables.entry_at(at)
    inside = at & (size - 1)
    sub = inside // unit if core.geometry.extended_l2 else 0
    kind = cluster_kind(core, entry, bitmap, sub, at)
    stop = at - inside + size
    if core.geometry.extended_l2 and kind is not ClusterType.COMPRESSED:
        after = sub + 1
        while after < SUBCLUSTERS and cluster_kind(core, entry, bitmap, after, at) is kind:
            after += 1
        stop = at - inside + after * unit
    stop = min(stop, end)
    view = view[: stop - at]
    if kind in (ClusterType.UNALLOCATED, ClusterType.UNALLOCATED_ALLOC):
        _read_below(core, at, view)
    elif kind is ClusterType.NORMAL:
        core.layer.read_run(at, kind, offset_of(entry) + inside, view)
    elif kind is ClusterType.COMPRESSED:
        core.layer.read_run(at, kind, descriptor_of(entry), view)
    else:
        core.layer.read_run(at, kind, NO_HOST, view)
    return stop


def _read_below(core: Core, at: int, view: memoryview) -> None:
    if core.backed:
        read_chain(core.chain, at, view, 1)
    else:
        fill_zeros(view)


def is_zero(core: Core, offset: int, length: int) -> bool:
    """Whether the guest range is known to read as zeros without looking at data of this image (QEMU: is_zero)."""
    at, end = offset, min(offset + length, core.layer.size)
    size, unit = core.cluster_size, core.geometry.subcluster_size
    while at < end:
        entry, bitmap = core.tables.entry_at(at)
        inside = at & (size - 1)
        kind = cluster_kind(core, entry, bitmap, inside // unit if core.geometry.extended_l2 else 0, at)
        stop = min(end, at - at % unit + unit)
        if kind in (ClusterType.UNALLOCATED, ClusterType.UNALLOCATED_ALLOC):
            if core.backed and not _below_is_zero(core, at, stop):
                return False
        elif kind not in (ClusterType.ZERO_PLAIN, ClusterType.ZERO_ALLOC):
            return False
        at = stop
    return True


def _below_is_zero(core: Core, start: int, end: int) -> bool:
    from workbench.engine.reading import ZERO as IS_ZERO
    from workbench.engine.reading import flatten

    end = min(end, core.chain[1].size)
    if start >= end:
        return True
    return all(bool((flat.flags & IS_ZERO).all()) for flat in flatten(core.chain, start, end, index=1))
