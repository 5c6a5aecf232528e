"""L2 tables that are mostly nonsense: judged whole, one finding per kind, so that garbage costs little more than order."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from formats.qcow2.entries import Fault, L2Entries, reserved_columns

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from workbench.check.passes_l2 import L2Pass


def is_dense(work: L2Pass, words: NDArray[np.uint64]) -> NDArray[np.bool_]:
    """Which tables (rows of `words`) have faults or compressed clusters in most entries, and reserved bits in many."""
    odd: NDArray[np.bool_] = np.count_nonzero(L2Entries(words, work.shape).odds, axis=1) * 2 > words.shape[1]
    if odd.any():
        odd &= np.count_nonzero(reserved_columns(words), axis=1) * 4 > words.shape[1]
    return odd


def judge_table(work: L2Pass, table: int, words: NDArray[np.uint64]) -> NDArray[np.intp]:
    """Log the faults of one table (number `table`), standard entries, no data file; add to the statistics.

    Returns the entries that lead to where the file or its refcounts are: those still want counting, and their COPIED
    flags a look. Wrong COPIED flags of all others are logged here.
    """
    size = work.geometry.cluster_size
    each = L2Entries(words, work.shape)
    packed, mapped, offset = each.packed, each.placed, each.offset
    beyond = each.beyond(work.file_size)
    known = np.uint64(max(work.file_size, work.refcounts_end))
    near = mapped & (offset < known)
    faults = {
        "L2-ENTRY-RESERVED": each.fault(Fault.RESERVED) & each.standard,
        "L2-ENTRY-UNALIGNED": each.fault(Fault.UNALIGNED),
        "COMPRESSED-COPIED": each.fault(Fault.COPIED_COMPRESSED),
        "L2-ENTRY-BEYOND-EOF": beyond & mapped,
        "COMPRESSED-BEYOND-EOF": beyond & packed,
    }
    tables = work.tables
    weight = int(tables.active[table]) + int(tables.inactive[table])
    for code, chosen in faults.items():
        _log(work, table, words, code, chosen, weight)
    looked_at = int(work.copied_weight[table])
    if looked_at:
        _log(work, table, words, "L2-COPIED-WRONG", mapped & each.copied & ~near, looked_at)
    active = int(tables.active[table])
    if active:
        used = offset[mapped]
        many = int(np.count_nonzero(packed))
        work.stats.allocated += active * (used.size + many)
        work.stats.compressed += active * many
        jumps = int(np.count_nonzero(used[1:] != used[:-1] + np.uint64(size)))
        work.stats.fragmented += active * (many + jumps)
    return np.flatnonzero(near | (packed & ~beyond))


def _log(
    work: L2Pass, table: int, words: NDArray[np.uint64], code: str, chosen: NDArray[np.bool_], weight: int
) -> None:
    count = int(np.count_nonzero(chosen))
    if not count:
        return
    first = int(chosen.argmax())
    last = chosen.size - 1 - int(chosen[::-1].argmax())
    tables, geometry = work.tables, work.geometry
    base = int(tables.offset[table])
    work.log.add(
        code,
        base + first * 8,
        (last - first + 1) * 8,
        count=count,
        counted=count * weight,
        table=base,
        index=first,
        guest=int(geometry.guest_offset(int(tables.index[table]), first)),
        guest_length=(last - first + 1) << geometry.cluster_bits,
        value=int(words[first]),
        snapshot=int(tables.snapshot[table]),
    )
