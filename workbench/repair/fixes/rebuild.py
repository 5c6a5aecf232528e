"""A header made anew from what the file still holds: only where the old one is beyond derivation.

The refcount structure describes itself: its table names a block that counts the table, the block and the header, and
that ends where the file ends. That fixes cluster size and refcount width; the L1 table is then found as always.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from formats.qcow2 import limits, refcounts
from formats.qcow2.header import INCOMPATIBLE, V3_LENGTH, Header, build_header
from workbench.check.problems import Tier
from workbench.guest.disk_size import DiskSize, disk_size
from workbench.repair.fixes.base import Rule, codes
from workbench.repair.fixes.snapshots import find_table, write_table
from workbench.repair.probe import find_l1, find_luks
from workbench.repair.workspace import WHOLE, Workspace

_BITS: Final = (16, 12, *(bits for bits in range(9, 22) if bits not in (12, 16)))
_ORDERS: Final = (4, 3, 5, 6, 2, 1, 0)
_MOST: Final = 64 << 20
"""Bytes of the file in which the refcount table is looked for."""


@dataclass(frozen=True, slots=True)
class _Shape:
    """A refcount structure that explains the file. slack: clusters of the file that it leaves out; lower is better."""

    bits: int
    order: int
    table: int
    slack: int


def run(space: Workspace) -> None:
    """Write a new header when the old one names neither a cluster size nor a table that exists."""
    header = space.meta.header
    if space.meta.geometry is not None and not _useless(space):
        return
    shapes = [found for bits in _BITS for found in _shapes(space, bits)]
    if not shapes:
        space.note("nothing in the file shows what its header was: no refcount structure was found")
        return
    best = min(shapes, key=lambda each: (each.slack, _BITS.index(each.bits)))
    trial = space.trial()
    draft = Header(
        cluster_bits=best.bits,
        refcount_order=best.order,
        refcount_table_offset=best.table,
        refcount_table_clusters=1,
        size=0,
    )
    trial.put(0, _bytes(draft), code="-", title="-", kind="header")
    entries = (1 << best.bits) // 8
    found = _l1(trial, draft, entries)
    if found is None:
        space.note("a refcount structure was found, but no L1 table: the header cannot be made anew")
        return
    draft, offset, used = found
    luks = find_luks(trial) is not None
    final = replace(draft, crypt_method=2 if luks else 0, l1_table_offset=offset, l1_size=used)
    trial.put(0, _bytes(final), code="-", title="-", kind="header")
    room = _room(trial, offset, used)
    size = _old_size(header, trial, used, room) or disk_size(trial.overlay, used, room)
    final = replace(final, size=size.size, l1_size=max(used, trial.geometry.l1_entries_for(size.size)))
    title = f"write a new header: {1 << best.bits}-byte clusters, tables found at {best.table:#x} and {offset:#x}"
    space.put(
        0,
        _bytes(final),
        code="HEADER-MAGIC",
        title=title,
        kind="header",
        tier=Tier.JUDGEMENT,
        guest=[(0, final.size)],
        places=WHOLE,
    )
    if size.note:
        space.note(size.note)
    snapshots = find_table(space, 0)
    if snapshots and all(space.ledger.leaked(each.l1_table_offset) for each in snapshots):
        write_table(space, snapshots, "SNAPSHOT-TABLE-OFFSET")


def _useless(space: Workspace) -> bool:
    """Neither table of the header lies in the file."""
    header, cluster = space.meta.header, space.cluster
    tables = (header.l1_table_offset, header.refcount_table_offset)
    return all(offset % cluster or not 0 < offset < space.size for offset in tables)


def _bytes(header: Header) -> bytes:
    return build_header(header).ljust(V3_LENGTH + 8, b"\0")


def _room(trial: Workspace, offset: int, used: int) -> int:
    """L1 entries from `offset` on that a table with `used` ones can have: zeros to the end of its last cluster."""
    clusters = -(-used * 8 // trial.cluster)
    return clusters * trial.cluster // 8


def _old_size(header: Header, trial: Workspace, used: int, room: int) -> DiskSize | None:
    """The old header's disk size, where the L1 table that was found is the one for it."""
    needed = trial.geometry.l1_entries_for(header.size)
    fits = header.size > 0 and header.size % 512 == 0 and needed <= room
    if fits and (needed == used or (needed > used and needed == header.l1_size)):
        return DiskSize(header.size, header.size, "the header", header.size)
    return None


def _shapes(space: Workspace, bits: int) -> list[_Shape]:
    """Refcount structures for one cluster size, the best of each width."""
    cluster, size = 1 << bits, space.size
    total = -(-size // cluster)
    if total < 3:
        return []
    count = min(total, _MOST // cluster, 1 << 16)
    heads = np.frombuffer(space.read(0, count * cluster), dtype=">u8").reshape(count, -1)[:, :2].astype(np.uint64)
    first, second = heads[:, 0], heads[:, 1]
    mask = np.uint64(cluster - 1)
    good = (
        (first > 0)
        & ((first & mask) == 0)
        & (first < np.uint64(size))
        & ((second & mask) == 0)
        & (second < np.uint64(size))
    )
    good[0] = False
    found = []
    for number in np.flatnonzero(good).tolist():
        words = space.words(number * cluster, cluster // 8)
        used = words[words != 0]
        if ((used & mask) != 0).any() or (used >= np.uint64(size)).any():
            continue
        block = space.read(int(first[number]), cluster)
        for order in _ORDERS:
            slack = _slack(refcounts.unpack(block, order), number, int(first[number]) >> bits, total)
            if slack is not None:
                found.append(_Shape(bits, order, number * cluster, slack))
    return found


def _slack(counts: np.ndarray[tuple[int], np.dtype[np.uint64]], table: int, block: int, total: int) -> int | None:
    """Clusters that the block leaves out at the file's end; None when it cannot be this file's first block."""
    if counts.size < min(total, 4) or max(table, block) >= counts.size:
        return None
    if not (counts[0] == 1 and counts[table] == 1 and counts[block] == 1) or int(counts.max()) > 4096:
        return None
    used = int(np.flatnonzero(counts)[-1]) + 1
    if used > total:
        return None
    covered = min(total, counts.size)
    slack = covered - used
    return None if slack * 4 > covered else slack


def _l1(trial: Workspace, draft: Header, entries: int) -> tuple[Header, int, int] | None:
    """(header with the entry width that fits, L1 offset, entries in use)."""
    best: tuple[int, Header, int, int] | None = None
    for features in (0, INCOMPATIBLE["extended_l2"].mask):
        if features and draft.cluster_bits < limits.MIN_EXTENDED_L2_CLUSTER_BITS:
            continue
        trial.set_header("incompatible_features", features, code="-", title="-")
        for score, offset in find_l1(trial, entries, {0, draft.refcount_table_offset})[:1]:
            used = int(np.flatnonzero(trial.words(offset, entries))[-1]) + 1
            if best is None or score > best[0]:
                best = (score, replace(draft, incompatible_features=features), offset, used)
    return None if best is None else best[1:]


RULES = (
    Rule(
        "header-rebuild",
        "Write a new header from what the file holds",
        codes("HEADER-MAGIC", "HEADER-VERSION", "HEADER-CLUSTER-BITS", "HEADER-TRUNCATED"),
        Tier.JUDGEMENT,
        run,
        needs_shape=False,
    ),
)
