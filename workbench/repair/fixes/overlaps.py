"""Two owners on one cluster: each gets its own copy, so that what the guest reads stays as it is everywhere.

Metadata keeps its place; guest data moves away from it. Of two guest clusters on one host cluster the first keeps it.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from formats.qcow2.entries import (
    Pointers,
    PointerTable,
    is_compressed,
    moved_to,
    offset_of,
    packed_range,
    pointing_to,
    set_copied,
)
from workbench.check.kinds import Owner
from workbench.check.problems import Tier
from workbench.check.tables import ACTIVE, Batch
from workbench.repair.fixes.base import Alternative, Rule, codes
from workbench.repair.ledger import CROSSED, DATA, META, OLD_DATA, PACKED, Ledger, batches
from workbench.repair.workspace import Workspace

_J: Final = Tier.JUDGEMENT
_MOST: Final = 1 << 18
"""Clusters copied in one plan at most."""


def run_tables(space: Workspace) -> None:
    """Two active L1 entries on one L2 table: the later one gets a copy."""
    meta = space.meta
    if meta.header.l1_table_offset % space.cluster or not meta.l1.size:
        return
    each = Pointers(meta.l1, PointerTable.L1, meta.shape)
    offset, used = each.offset, np.flatnonzero(each.inside(space.end))
    _, first = np.unique(offset[used], return_index=True)
    again = np.setdiff1d(np.arange(used.size), first)
    place = meta.header.l1_table_offset
    named = set(space.rows.spans("L2-TABLE-SHARED"))
    for index in used[again].tolist()[:4096]:
        source = int(offset[index])
        if (source, source + space.cluster) not in named:
            continue
        new = space.append()
        guest = [(index * space.geometry.l2_coverage, space.geometry.l2_coverage)]
        title = f"copy the L2 table that L1 entry {index} shares with another"
        space.put(new, space.read_cluster(source), code="L2-TABLE-SHARED", title=title, kind="l2", tier=_J, guest=guest)
        title = f"point L1 entry {index} at its own copy"
        space.put(
            place + index * 8,
            pointing_to(new).to_bytes(8, "big"),
            code="L2-TABLE-SHARED",
            title=title,
            kind="l1",
            tier=_J,
            guest=guest,
        )


def run_data(space: Workspace) -> None:
    """Guest data on metadata, on compressed data, or on other guest data."""
    ledger = space.ledger
    wanted = np.flatnonzero(_conflicts(ledger) & space.rows.clusters(ledger.cluster_bits, ledger.clusters))
    if not wanted.size:
        return
    if wanted.size > _MOST:
        space.note(f"{wanted.size} clusters have several owners: too many to copy in one plan")
        return
    if space.meta.header.crypt_method == 2:
        # LUKS ties the ciphertext to its place in the file. A raised refcount does as well: QEMU copies on write.
        space.note("clusters with several owners stay shared (refcount raised): their copies would not decrypt")
        return
    mover = _Mover(space, ledger)
    for batch in batches(space, ledger.tables):
        mover.batch(batch)


def _conflicts(ledger: Ledger) -> NDArray[np.bool_]:
    """Clusters whose data side must move. Those that only refcount structures claim are left to the refcount fix."""
    flags = ledger.flags
    guest = (flags & (DATA | OLD_DATA | PACKED)) != 0
    rebuilt, kept = np.zeros(ledger.clusters, dtype=bool), np.zeros(ledger.clusters, dtype=bool)
    for claim in ledger.claims:
        first = claim.offset >> ledger.cluster_bits
        last = (claim.offset + max(claim.length, 1) - 1) >> ledger.cluster_bits
        mask = rebuilt if claim.owner in (Owner.REFCOUNT_TABLE, Owner.REFCOUNT_BLOCK) else kept
        mask[first : last + 1] = True
    tables = (ledger.tables.offset >> np.uint64(ledger.cluster_bits)).astype(np.int64)
    kept[tables[tables < ledger.clusters]] = True
    hit: NDArray[np.bool_] = guest & ((flags & META) != 0) & ~(rebuilt & ~kept)
    hit |= (flags & CROSSED) != 0
    hit |= ((flags & PACKED) != 0) & ((flags & (DATA | OLD_DATA)) != 0)
    return hit


class _Mover:
    """Walks the L2 tables in file order and gives away copies."""

    def __init__(self, space: Workspace, ledger: Ledger) -> None:
        self.space = space
        self.ledger = ledger
        self.hit = _conflicts(ledger) & space.rows.clusters(ledger.cluster_bits, ledger.clusters)
        self.kept: set[int] = set()
        """Cross-linked clusters whose first owner has been met."""
        self.moved: dict[tuple[int, int], int] = {}

    def batch(self, batch: Batch) -> None:
        packed, offset = is_compressed(batch.words), offset_of(batch.words)
        numbers = (offset >> np.uint64(self.ledger.cluster_bits)).astype(np.int64)
        inside = ~packed & (numbers > 0) & (numbers < self.ledger.clusters)
        at_header = ~packed & (numbers == 0) & (offset != 0)
        chosen = np.zeros(offset.shape, dtype=bool)
        chosen[inside] = self.hit[numbers[inside]]
        chosen |= at_header & bool(self.hit[0])
        tables = self.ledger.tables.offset
        for row in np.flatnonzero(chosen.any(axis=1)).tolist():
            if self.ledger.claims_at(int(tables[batch.rows[row]])):
                chosen[row] = False  # another structure's cluster: its bytes are not entries
        for row, column in np.argwhere(chosen).tolist():
            self._plain(batch, row, column, int(numbers[row, column]))
        if packed.any():
            self._packed(batch, packed)

    def _where(self, batch: Batch, row: int, column: int) -> tuple[int, int, bool, tuple[str, ...]]:
        """(host offset of the entry, guest offset, active, snapshot IDs)."""
        tables, number = self.ledger.tables, int(batch.rows[row])
        place = int(tables.offset[number]) + column * self.space.geometry.l2_entry_size
        guest = int(tables.index[number]) * self.space.geometry.l2_coverage + column * self.space.cluster
        snapshot = int(tables.snapshot[number])
        ids = () if snapshot == ACTIVE else (self.space.meta.snapshots[snapshot].id,)
        return place, guest, bool(tables.active[number]), ids

    def _plain(self, batch: Batch, row: int, column: int, number: int) -> None:
        place, guest, active, ids = self._where(batch, row, column)
        flags = int(self.ledger.flags[number])
        if not flags & (META | PACKED):
            if not active:
                return  # cross-linked within the active disk only: a snapshot shares the first owner's
            if number not in self.kept:
                self.kept.add(number)
                return
        code, what = "DATA-CROSS-LINKED", "another guest cluster"
        if flags & META:
            code, what = "DATA-OVERLAPS-METADATA", self._owner(number)
        elif flags & PACKED:
            code, what = "DATA-OVERLAPS-COMPRESSED", "compressed data"
        word = int(batch.words[row, column])
        new = self.moved.get((number, guest))
        if new is None:
            new = self.space.append()
            title = f"copy the cluster at {number << self.ledger.cluster_bits:#x}, which {what} owns too"
            content = self._original(number << self.ledger.cluster_bits, self.space.cluster)
            self.space.put(
                new,
                content,
                code=code,
                title=title,
                kind="data",
                tier=_J,
                guest=[(guest, self.space.cluster)],
                snapshots=ids,
            )
            self.moved[(number, guest)] = new
        value = moved_to(word, new)
        value = set_copied(value, True) if active else value
        title = f"point guest offset {guest:#x} at its own copy"
        self.space.put(
            place,
            value.to_bytes(8, "big"),
            code=code,
            title=title,
            kind="l2",
            tier=_J,
            guest=[(guest, self.space.cluster)],
            snapshots=ids,
        )

    def _original(self, offset: int, length: int) -> bytes:
        """What the guest reads there: its bytes as the image has them, not as the metadata was mended since."""
        space = self.space
        if any(start <= offset < end for start, end in space.fresh):
            return space.read(offset, length)
        return space.base.read(offset, length).ljust(length, b"\0")

    def _owner(self, number: int) -> str:
        claims = self.ledger.claims_at(number << self.ledger.cluster_bits)
        return f"the {claims[0].owner.title}" if claims else "an L2 table"

    def _packed(self, batch: Batch, packed: NDArray[np.bool_]) -> None:
        bits = self.ledger.cluster_bits
        start, end = packed_range(batch.words, self.space.meta.shape)
        first = (start >> np.uint64(bits)).astype(np.int64)
        last = np.minimum(((end - np.uint64(1)) >> np.uint64(bits)).astype(np.int64), self.ledger.clusters - 1)
        inside = packed & (first < self.ledger.clusters)
        for row, column in np.argwhere(inside).tolist():
            low, high = int(first[row, column]), int(last[row, column])
            if not any(self.hit[n] and self.ledger.flags[n] & META for n in range(low, high + 1)):
                continue
            place, guest, _, ids = self._where(batch, row, column)
            word, begin, stop = int(batch.words[row, column]), int(start[row, column]), int(end[row, column])
            inner = begin & (self.space.cluster - 1)
            new = self.space.append(-(-(inner + stop - begin) // self.space.cluster))
            why = {
                "code": "DATA-OVERLAPS-METADATA",
                "tier": _J,
                "guest": [(guest, self.space.cluster)],
                "snapshots": ids,
            }
            data = self._original(begin, stop - begin)
            self.space.put(new + inner, data, title="copy compressed data out of metadata", kind="data", **why)  # type: ignore[arg-type]
            value = word - begin + new + inner
            title = f"point the compressed cluster of guest offset {guest:#x} at its own copy"
            self.space.put(place, value.to_bytes(8, "big"), title=title, kind="l2", **why)  # type: ignore[arg-type]


_COPY = (Alternative("copy", "Give each owner its own copy", "every owner reads what it reads now"),)
RULES = (
    Rule(
        "shared-tables",
        "Copy shared L2 tables",
        codes("L2-TABLE-SHARED"),
        _J,
        run_tables,
        alternatives=_COPY,
        reads_tables=True,
    ),
    Rule(
        "overlaps",
        "Give every owner its own cluster",
        codes(
            "DATA-CROSS-LINKED",
            "DATA-OVERLAPS-METADATA",
            "DATA-OVERLAPS-COMPRESSED",
            "METADATA-OVERLAP",
            "REFCOUNT-OVERFLOW",
        ),
        _J,
        run_data,
        alternatives=_COPY,
        reads_tables=True,
    ),
)
