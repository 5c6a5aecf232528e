"""Guest bytes as the writer sees them: its own slices first, then the layers below (for reads of an image that is open
for writing, and for copy-on-write)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from formats.qcow2.entries import NO_HOST, ClusterType
from formats.qcow2.tables import COMPRESSED, COPIED, OFFSET_MASK, ZERO
from workbench.engine.layers import fill_zeros
from workbench.engine.mapping import diagnose
from workbench.engine.reading import read_chain
from workbench.errors import CorruptError
from workbench.units import SUBCLUSTERS

if TYPE_CHECKING:
    from workbench.engine.write.core import Core

_HALF: Final = (1 << SUBCLUSTERS) - 1
_PLAIN: Final = OFFSET_MASK | COPIED


def cluster_kind(core: Core, entry: int, bitmap: int, sub: int, guest: int) -> ClusterType:
    """What an L2 entry says about subcluster `sub` (0 without extended entries). CorruptError when a driver would stop."""
    host = entry & OFFSET_MASK
    if entry & COMPRESSED and not core.external:
        return ClusterType.COMPRESSED
    bad = bool(entry & COMPRESSED) or bool(host & (core.cluster_size - 1))
    identity = host or entry & COPIED
    if core.geometry.extended_l2:
        bad |= bool(bitmap & (bitmap >> SUBCLUSTERS) & _HALF)
        placed = bool(host) or bool(core.external and identity)
        allocated, zero = bitmap >> sub & 1, bitmap >> (sub + SUBCLUSTERS) & 1
        if not placed:
            bad |= bool(bitmap & _HALF)
            kind = ClusterType.ZERO_PLAIN if zero else ClusterType.UNALLOCATED
        elif zero:
            kind = ClusterType.ZERO_ALLOC
        else:
            kind = ClusterType.NORMAL if allocated else ClusterType.UNALLOCATED_ALLOC
    else:
        placed = bool(host) or bool(core.external and identity)
        if entry & ZERO:
            bad |= core.header.version < 3
            kind = ClusterType.ZERO_ALLOC if placed else ClusterType.ZERO_PLAIN
        else:
            kind = ClusterType.NORMAL if placed else ClusterType.UNALLOCATED
    bad |= core.external and placed and host != guest & -core.cluster_size
    if bad:
        reason = diagnose(entry, bitmap, guest & -core.cluster_size, core.layer.rules)
        if host & (core.cluster_size - 1) and not entry & COMPRESSED:
            core.corrupted(
                f"guest offset {guest:#x}: {reason}",
                host,
                qemu=f"Cluster allocation offset {host:#x} unaligned (guest offset: {guest:#x})",
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
            entry = data[index]
            host = entry & OFFSET_MASK
            if not entry & ~_PLAIN and host and not host & (size - 1) and (not core.external or host == at - inside):
                # Plain data: as many neighbours as lie behind one another in the file.
                stop = at - inside + size
                while stop < end and index < tables.index_mask:
                    index += 1
                    host += size
                    if data[index] & ~COPIED != host:
                        break
                    stop += size
                stop = min(stop, end)
                host = (entry & OFFSET_MASK) + inside
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
        core.layer.read_run(at, kind, (entry & OFFSET_MASK) + inside, view)
    elif kind is ClusterType.COMPRESSED:
        core.layer.read_run(at, kind, entry & ~COPIED & (COMPRESSED - 1), view)
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
