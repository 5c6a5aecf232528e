"""Whole-image passes for snapshots: every reference of an L1 table counted, every refcount moved, every COPIED flag set
right, all in numpy over large reads (QEMU: qcow2_update_snapshot_refcount does it entry by entry).

Both table caches must be empty: these passes work on the file.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final

from formats.qcow2.entries import is_compressed, is_copied, offset_of, packed_range, pointing_to, without_copied
from formats.qcow2.refcounts import pack, unpack
from workbench.engine.write.guard import Kind
from workbench.errors import CorruptError, UnsupportedError
from workbench.units import div_round_up

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from workbench.engine.write.core import Core

_BATCH: Final = 4 << 20


def references(core: Core, l1: array[int]) -> NDArray[np.int32]:
    """How often the tree below an L1 table refers to each host cluster; int32 per cluster of the file.

    L2 tables count once, clusters once for each entry. CorruptError for a reference outside the file.
    """
    import numpy as np

    total = div_round_up(core.file.storage.size(), core.cluster_size)
    counts = np.zeros(total, dtype=np.int32)
    step = core.geometry.l2_entry_size // 8
    for offset, raw in _tables(core, l1):
        first = offset // core.cluster_size
        counts[first : first + len(raw) // core.cluster_size] += 1
        words = np.frombuffer(raw, dtype=">u8")[::step].astype(np.uint64)
        packed = is_compressed(words)
        if packed.any():
            start, end = packed_range(words[packed], core.shape)
            size = np.uint64(core.cluster_size)
            low, high = (start // size).astype(np.int64), ((end - np.uint64(1)) // size).astype(np.int64)
            _add(core, counts, low)
            _add(core, counts, high[(high > low) & (high < total)])
            words = words[~packed]
        if core.external:
            continue
        places = offset_of(words)
        _add(core, counts, (places[places != 0] >> np.uint64(core.geometry.cluster_bits)).astype(np.int64))
    return counts


def _add(core: Core, counts: NDArray[np.int32], clusters: NDArray[np.int64]) -> None:
    import numpy as np

    if not len(clusters):
        return
    low, high = int(clusters.min()), int(clusters.max())
    if high >= len(counts):
        raise CorruptError(
            f"a table refers to {high * core.cluster_size:#x}, past the end of the file",
            path=core.path,
            hint=f"see `qwb check {core.path}`",
        )
    if high - low + 1 == len(clusters) and bool((clusters[1:] - clusters[:-1] == 1).all()):
        counts[low : high + 1] += 1
    elif high - low < 16 * len(clusters):
        counts[low : high + 1] += np.bincount(clusters - low, minlength=high - low + 1).astype(np.int32)
    else:
        np.add.at(counts, clusters, 1)


def move_refcounts(
    core: Core,
    change: NDArray[np.int32],
    *,
    down: bool = False,
    dry: bool = False,
    needed: NDArray[np.int32] | None = None,
) -> NDArray[np.uint8]:
    """Add `change` to all refcounts, on disk (not flushed). Returns the new ones, 2 standing for all above 1.

    down: subtract it instead.  dry: only find out whether it can be done.  needed: references that are left afterwards.

    UnsupportedError when one would not fit its width, CorruptError when one would become negative or less than what is
    needed: then nothing is written.
    """
    import numpy as np

    refcounts, per_block = core.refcounts, core.refcounts.per_block
    states = np.zeros(len(change), dtype=np.uint8)
    pending: list[tuple[int, Any]] = []
    for index in range(div_round_up(len(change), per_block)):
        low = index * per_block
        part = change[low : low + per_block]
        offset = refcounts.table[index] if index < len(refcounts.table) else 0
        if not offset:
            if part.any():
                raise CorruptError(
                    f"clusters from {low * core.cluster_size:#x} on are in use but have no refcounts",
                    path=core.path,
                    hint=f"see `qwb check {core.path}`",
                )
            continue
        values = unpack(core.file.read(offset, core.cluster_size), core.geometry.refcount_order)
        if part.any():
            wide = values[: len(part)].astype(np.int64)
            wide += -part if down else part
            if int(wide.max()) > min(core.geometry.refcount_max, (1 << 62)):
                raise UnsupportedError(
                    f"a refcount would exceed {core.geometry.refcount_max}, the most that"
                    f" {core.geometry.refcount_bits} bits can hold",
                    path=core.path,
                )
            if int(wide.min()) < 0:
                at = (low + int(wide.argmin())) * core.cluster_size
                raise CorruptError(
                    f"refcount of the cluster at {at:#x} would become negative",
                    path=core.path,
                    offset=at,
                    hint=f"see `qwb check {core.path}`",
                )
            left = needed[low : low + len(part)] if needed is not None else None
            if left is not None and bool((wide[: len(left)] < left).any()):
                at = (low + int((wide[: len(left)] < left).argmax())) * core.cluster_size
                raise CorruptError(
                    f"the refcount of the cluster at {at:#x} is lower than its references: freeing on that basis would"
                    " lose data",
                    path=core.path,
                    offset=at,
                    hint=f"nothing was changed; see `qwb check {core.path}`, then `qwb repair {core.path}`",
                )
            values[: len(part)] = wide.astype(values.dtype)
            pending.append((offset, pack(values, core.geometry.refcount_order)))
        states[low : low + len(part)] = np.minimum(values[: len(part)], 2)
    for offset, data in [] if dry else pending:
        core.guard.check("a refcount block", offset, core.cluster_size, Kind.REFCOUNT_BLOCK)
        core.file.write(offset, data)
    return states


def set_copied(core: Core, l1: array[int], states: NDArray[np.uint8]) -> None:
    """COPIED in an active L1 table (in memory) and its L2 tables (on disk): set where, and only where, the refcount is
    one. states: as `move_refcounts` returns them."""
    import numpy as np

    bits, step = core.geometry.cluster_bits, core.geometry.l2_entry_size // 8
    for index, entry in enumerate(l1):
        place = offset_of(entry)
        if place:
            l1[index] = pointing_to(entry) if states[place >> bits] == 1 else without_copied(entry)
    if core.external:
        return  # COPIED means something else there and never changes
    for offset, raw in _tables(core, l1):
        words = np.frombuffer(raw, dtype=">u8")[::step].astype(np.uint64)
        if _agrees(words, states, core.cluster_size, bits):
            continue
        places = offset_of(words) >> np.uint64(bits)
        plain = ~is_compressed(words) & (places != 0)
        single = plain & (states[np.where(plain, places, 0).astype(np.int64)] == 1)
        wrong = np.flatnonzero(plain & (single != is_copied(words)))
        if len(wrong):
            core.guard.check("an L2 table", offset, len(raw), Kind.ACTIVE_L2)
            tops = np.frombuffer(raw, dtype=np.uint8)
            tops[wrong * (8 * step)] ^= 0x80
            core.file.write(offset, raw)


def _agrees(words: NDArray[np.uint64], states: NDArray[np.uint8], size: int, bits: int) -> bool:
    """Quick yes for the usual table: clusters one behind the other, all with the same flag, which is right."""
    import numpy as np

    first = int(words[0])
    place = offset_of(first)
    if without_copied(first) != place or not place:
        return False
    if int(words[-1]) - first != (len(words) - 1) * size or not bool((words[1:] - words[:-1] == np.uint64(size)).all()):
        return False
    part = states[place >> bits : (place >> bits) + len(words)]
    return bool((part == 1).all() if is_copied(first) else (part != 1).all())


def _tables(core: Core, l1: array[int]) -> Iterator[tuple[int, bytearray]]:
    """(host offset, bytes) of the L2 tables, neighbours in the file read together."""
    size, limit = core.cluster_size, core.file.storage.size()
    start = length = 0
    for entry in [*(each for each in l1 if offset_of(each)), 0]:
        place = offset_of(entry)
        if place & (size - 1) or place >= limit:
            raise CorruptError(
                f"no L2 table can be at {place:#x}", path=core.path, offset=place, hint=f"see `qwb check {core.path}`"
            )
        if place and length and place == start + length and length < _BATCH:
            length += size
            continue
        if length:
            yield start, bytearray(core.file.read(start, length))
        start, length = place, size
