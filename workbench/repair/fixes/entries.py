"""Entries of L1 and L2 tables that make no sense: reserved bits, unaligned, beyond the end, aimed at metadata.

Only tables that the rows name, entry by entry: one odd entry does not make a table foreign. Where the right value can be
derived (an offset whose low bits were hit leads to a cluster that nobody else owns), it is; else the entry stops pointing,
and what it pointed at stays where it is, and counted. A table in which most leads nowhere is replaced, never overwritten.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from formats.qcow2.entries import (
    ALL_ZERO,
    Fault,
    L2Entries,
    Pointers,
    PointerTable,
    as_plain,
    has_zero_flag,
    interleaved,
    is_compressed,
    is_copied,
    l2_faults,
    moved_to,
    offset_of,
    packed_range,
    pointing_to,
    subclusters,
    without_copied,
    without_zero_flag,
    zero_entry,
)
from formats.qcow2.tables import distinct, table_bytes
from workbench.check.kinds import Owner
from workbench.check.problems import Tier
from workbench.check.tables import ACTIVE, L1Table, L2Set
from workbench.repair.fixes.base import Alternative, Rule, codes
from workbench.repair.ledger import DATA, OLD_DATA, PACKED, Ledger, l1_tables, named_claims
from workbench.repair.probe import content_of, l2_content, l2_masks
from workbench.repair.workspace import Workspace

_SAMPLE = 256
"""L2 tables by which an L1 table is judged."""
_NO_DATA = {Owner.HEADER, Owner.REFCOUNT_TABLE, Owner.ACTIVE_L1}
"""Structures that the header names: an entry of a foreign table that leads there means none of the guest's data."""
_LOST = (
    Alternative(
        "unallocated",
        "Mark as unallocated",
        "the guest reads the backing file there, or zeros where there is none",
    ),
    Alternative("zero", "Mark as zeros", "the guest reads zeros there, never older data of the backing file (v3 only)"),
)


def _lost_choice(space: Workspace) -> str:
    """Without a backing file both read as zeros; with one, old data must not pass for current data."""
    backed = bool(space.meta.header.backing_file_offset)
    chosen = space.policy.choice(
        FOREIGN.id if space.fix == FOREIGN.id else "entries", "zero" if backed else "unallocated"
    )
    return chosen if space.meta.header.version >= 3 else "unallocated"


# -- L1 ----------------------------------------------------------------------------------------------------------------


def run_l1(space: Workspace) -> None:
    """Mend the entries of the L1 tables that the rows name, the active one's and the snapshots'."""
    named = set(space.rows.tables().tolist())
    if space.rows.has("METADATA-OVERLAP"):
        for table in list(l1_tables(space)):
            _part_from_others(space, table)
    for table in list(l1_tables(space)):
        if table.offset not in named or not table.entries.any() or table.snapshot >= len(space.meta.snapshots):
            continue
        if _shared_with_structures(space, table):
            space.note(f"the L1 table at {table.offset:#x} overlaps other metadata: its entries are left alone")
            continue
        if _is_elsewhere(space, table):
            space.note(f"what is called an L1 table at {table.offset:#x} is none: nothing is written there")
            continue
        _mend_l1(space, table)


def _shared_with_structures(space: Workspace, table: L1Table) -> bool:
    """Another structure that cannot be made anew lies in the table's clusters: writing entries would damage it."""
    fragile = {
        Owner.HEADER,
        Owner.SNAPSHOT_TABLE,
        Owner.LUKS_HEADER,
        Owner.BITMAP_DIRECTORY,
        Owner.ACTIVE_L1,
        Owner.INACTIVE_L1,
    }
    start, end = table.offset, table.offset + table.entries.size * 8
    flags = space.ledger.flags[start >> space.ledger.cluster_bits : -(-end >> space.ledger.cluster_bits)]
    if (flags & np.uint8(DATA | OLD_DATA | PACKED)).any():
        return True  # the guest's data moves away first
    found = [
        each
        for each in space.ledger.claims
        if each.owner in fragile and each.offset < end and start < each.offset + each.length
    ]
    return len({(each.offset, each.owner) for each in found}) > 1


def _mend_l1(space: Workspace, table: L1Table) -> None:
    ledger, cluster = space.ledger, space.cluster
    words = table.entries.copy()
    has = space.rows.has
    snapshots = () if table.snapshot == ACTIVE else (space.meta.snapshots[table.snapshot].id,)

    def put(
        new: NDArray[np.uint64],
        code: str,
        title: str,
        tier: Tier = Tier.SAFE,
        *,
        placed: NDArray[np.intp] | None = None,
    ) -> NDArray[np.uint64]:
        index = np.flatnonzero(new != words)
        if index.size and not has(code):
            return words
        if index.size:
            coverage = space.geometry.l2_coverage
            guest = [(int(i) * space.geometry.l2_coverage, space.geometry.l2_coverage) for i in index[:16]]
            more = f" ({index.size} entries)" if index.size > 1 else f" {int(index[0])}"
            space.put_words(
                table.offset,
                new,
                code=code,
                title=title.format(more),
                kind="l1",
                tier=tier,
                guest=guest,
                snapshots=snapshots,
                places=[(int(i) * coverage, coverage) for i in placed.tolist()] if placed is not None else (),
            )
        return new

    cleaned = Pointers(words, PointerTable.L1, space.meta.shape).cleaned
    words = put(cleaned, "L1-ENTRY-RESERVED", "clear the reserved bits of L1 entry{}")
    offset = offset_of(words)
    unaligned = np.flatnonzero((offset & np.uint64(cluster - 1)) != 0)
    if unaligned.size:
        new, taken, placed = words.copy(), set[int](), []
        for index in unaligned.tolist() if has("L1-ENTRY-UNALIGNED") else []:
            aligned = int(offset[index]) & -cluster
            fits = ledger.leaked(aligned) and aligned not in taken and l2_content(space, aligned).plausible
            if fits:
                taken.add(aligned)
                placed.append(index)
                new[index] = pointing_to(aligned)
            else:
                space.keep(aligned, 2 * cluster)
                new[index] = np.uint64(_nowhere(space, "L1-ENTRY-UNALIGNED", index))
        words = put(
            new,
            "L1-ENTRY-UNALIGNED",
            "point L1 entry{} at its table again, or at none",
            Tier.JUDGEMENT,
            placed=np.array(placed, dtype=np.intp),
        )
    offset = offset_of(words)
    beyond = offset >= np.uint64(space.end)
    words = put(
        np.where(beyond, np.uint64(0), words),
        "L1-ENTRY-BEYOND-EOF",
        "drop L1 entry{}: it points past the end of the file",
        Tier.JUDGEMENT,
    )
    nowhere = (words != 0) & (offset_of(words) == 0)
    put(np.where(nowhere, np.uint64(0), words), "L1-ENTRY-OFFSET-ZERO", "clear L1 entry{}, which has no table")


def _part_from_others(space: Workspace, table: L1Table) -> None:
    """L1 entries on clusters that other structures own: nothing is read there, or a copy of it, as now."""
    words = table.entries.copy()
    suspects = _suspects(space, words)
    suspects = suspects[[_is_not_l2(space, offset_of(int(word))) for word in suspects]]
    tables = [int(word) for word in suspects if _may_be_copied(space, offset_of(int(word)))]
    snapshots = () if table.snapshot == ACTIVE else (space.meta.snapshots[table.snapshot].id,)
    cover = space.geometry.l2_coverage
    why: Any = {"code": "METADATA-OVERLAP", "tier": Tier.JUDGEMENT, "snapshots": snapshots}
    new = words.copy()
    for chosen, title in (
        (tables, "point L1 {} at copies of their own: their clusters are other structures'"),
        (
            [int(word) for word in suspects if int(word) not in tables],
            "drop L1 {}: no L2 table, but another structure's cluster",
        ),
    ):
        rows = np.flatnonzero(np.isin(words, np.array(chosen, dtype=np.uint64)))
        for index in rows.tolist():
            if chosen is tables:
                source, target = offset_of(int(words[index])), space.append()
                what = f"copy what L1 entry {index} takes for an L2 table"
                space.put(
                    target, space.read_cluster(source), title=what, kind="l2", guest=[(index * cover, cover)], **why
                )
                new[index] = pointing_to(target)
            else:
                new[index] = _nowhere(space, "METADATA-OVERLAP", index)
        if rows.size:
            which = (
                f"entry {int(rows[0])}"
                if rows.size == 1
                else f"entries {int(rows[0])} to {int(rows[-1])} ({rows.size})"
            )
            guest = [(index * cover, cover) for index in rows.tolist()]
            space.put_words(table.offset, new, title=title.format(which), kind="l1", guest=guest, **why)


def _may_be_copied(space: Workspace, offset: int) -> bool:
    """Whether what lies there may be read as an L2 table, as it is now."""
    return l2_content(space, offset).may_be_table and not _is_refcount_table(space, offset)


def _nowhere(space: Workspace, code: str, index: int) -> int:
    """The L1 entry for a range whose table is lost: none, or (data of a backing file must not show) zeros."""
    if not space.meta.header.backing_file_offset or space.meta.header.version < 3:
        return 0
    table, shape, count = space.append(), space.meta.shape, space.geometry.l2_entries
    bitmaps = np.full(count, ALL_ZERO, dtype=np.uint64) if shape.extended_l2 else None
    words = interleaved(np.full(count, zero_entry(shape), dtype=np.uint64), bitmaps)
    title = f"write an L2 table of zero entries for L1 entry {index}: its own is lost"
    space.put(table, table_bytes(words), code=code, title=title, kind="l2", tier=Tier.JUDGEMENT)
    return pointing_to(table)


def _suspects(space: Workspace, words: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """L1 entries whose cluster has more owners than L1 tables account for."""
    ledger = space.ledger
    used = distinct(words[words != 0])
    numbers = (offset_of(used) >> np.uint64(ledger.cluster_bits)).astype(np.int64)
    inside = numbers < ledger.clusters
    used, numbers = used[inside], numbers[inside]
    tables = ledger.tables
    at = np.searchsorted(tables.offset, numbers.astype(np.uint64) << np.uint64(ledger.cluster_bits))
    at = np.minimum(at, max(len(tables) - 1, 0))
    expected = (tables.active + tables.inactive)[at] if len(tables) else np.zeros(numbers.size, np.uint32)
    return used[ledger.counts[numbers] > expected]


def _is_not_l2(space: Workspace, offset: int) -> bool:
    """True when the cluster belongs to somebody else rather than to an L2 table."""
    ledger = space.ledger
    owners = {claim.owner for claim in ledger.claims_at(offset)}
    if owners - {Owner.REFCOUNT_BLOCK, Owner.REFCOUNT_TABLE}:
        return True
    if _is_refcount_table(space, offset):
        return True
    shared = bool(owners) or bool(ledger.flags[offset >> ledger.cluster_bits] & DATA)
    return shared and not l2_content(space, offset).may_be_table


def _is_refcount_table(space: Workspace, offset: int) -> bool:
    """The refcount table's cluster, counted by itself, and its entries are refcount blocks' places, which no writer marks
    as COPIED."""
    owned = bool(space.ledger.stored[offset >> space.ledger.cluster_bits]) and any(
        claim.owner is Owner.REFCOUNT_TABLE for claim in space.ledger.claims_at(offset)
    )
    return owned and not bool(is_copied(space.words(offset, space.cluster // 8)).any())


# -- L2 ----------------------------------------------------------------------------------------------------------------


def _all_named(space: Workspace) -> NDArray[np.intp]:
    return np.flatnonzero(np.isin(space.ledger.tables.offset, space.rows.tables()))


def _named(space: Workspace) -> list[int]:
    """Numbers of the L2 tables that the rows name, and on which no guest data lies: that moves away first."""
    ledger, rows = space.ledger, _all_named(space)
    numbers = (ledger.tables.offset[rows] >> np.uint64(ledger.cluster_bits)).astype(np.int64)
    alone: list[int] = rows[(ledger.flags[numbers] & np.uint8(DATA | OLD_DATA | PACKED)) == 0].tolist()
    return alone


def _is_elsewhere(space: Workspace, table: L1Table) -> bool:
    """Most of what an L1 table names is guest data and no L2 table, of several entries, or of a single one with more behind it than a
    table of its length has: then it is none itself, and its place is what is wrong."""
    each = Pointers(table.entries[table.entries != 0], PointerTable.L1, space.meta.shape)
    bad = each.fault(Fault.RESERVED) | each.fault(Fault.UNALIGNED)
    bad |= each.offset >= max(space.end, space.meta.counted_reach)
    named = np.unique(each.offset[~bad & each.inside(space.end)])[:_SAMPLE]
    flags = space.ledger.flags[(named >> np.uint64(space.ledger.cluster_bits)).astype(np.int64)]
    data = named[
        (flags & np.uint8(DATA | OLD_DATA | PACKED)) != 0
    ]  # other content alone may lie over a table in its place
    wrong = int(bad.sum()) + sum(l2_content(space, place).is_foreign for place in data.tolist())
    behind = table.offset + table.entries.size * 8
    return wrong * 2 > bad.size and (bad.size > 2 or any(space.read(behind, -behind % space.cluster)))


def run_foreign(space: Workspace) -> None:
    """Part L1 entries from tables that hold something else: before anything else counts what such a table seems to name."""
    tables = space.ledger.tables
    credible = [table for table in l1_tables(space) if not _is_elsewhere(space, table)]
    for row in _all_named(space).tolist():
        _L2Mender(space, tables, row, set()).run_foreign(credible)


def run_subclusters(space: Workspace) -> None:
    """Mend the subcluster bitmaps of extended L2 entries."""
    if not space.geometry.extended_l2:
        return
    tables = space.ledger.tables
    for row in _named(space):
        mender = _L2Mender(space, tables, row, set())
        as_standard = content_of(space, mender.raw, wide=False)
        if as_standard.valid and not as_standard.foreign and not as_standard.beyond:
            space.note(
                f"the L2 table at {mender.offset:#x} is without fault when read as standard entries: it is left alone"
            )
            continue
        mender.run_bitmaps()


def run_l2(space: Workspace) -> None:
    """Mend the entries of the L2 tables that are named, shared ones once."""
    taken: set[int] = set()
    tables = space.ledger.tables
    for row in _named(space):
        _L2Mender(space, tables, row, taken).run()


def run_flags(space: Workspace) -> None:
    """Flags that no driver minds: cleared only when that is asked for."""
    tables = space.ledger.tables
    for row in _named(space):
        _L2Mender(space, tables, row, set()).run_flags()


class _L2Mender:
    """One L2 table: what is wrong with it is put right reason by reason, each a step of its own."""

    def __init__(self, space: Workspace, tables: L2Set, row: int, taken: set[int]) -> None:
        self.space = space
        self.taken = taken
        self.offset = int(tables.offset[row])
        self.first_guest = int(tables.index[row]) * space.geometry.l2_coverage
        active = bool(tables.active[row])
        snapshot = int(tables.snapshot[row])
        self.snapshots = () if snapshot == ACTIVE else (space.meta.snapshots[snapshot].id,)
        self.where = "" if active else " of a snapshot"
        self.wide = space.geometry.extended_l2
        self.raw = space.words(self.offset, space.cluster // 8)

    @cached_property
    def ledger(self) -> Ledger:
        """The ledger as it was when it was first asked for."""
        return self.space.ledger

    @property
    def words(self) -> NDArray[np.uint64]:
        return self.raw[0::2] if self.wide else self.raw

    @property
    def bitmaps(self) -> NDArray[np.uint64] | None:
        return self.raw[1::2] if self.wide else None

    @property
    def each(self) -> L2Entries:
        return L2Entries(self.words, self.space.meta.shape, self.bitmaps)

    def put(
        self, entries: NDArray[np.uint64], code: str, title: str, tier: Tier = Tier.SAFE,
        bitmaps: NDArray[np.uint64] | None = None, choice: str = "", places: Sequence[tuple[int, int]] = (),
    ) -> None:  # fmt: skip
        """Stage new entries (and bitmaps)."""
        new = interleaved(entries, self.bitmaps if bitmaps is None else bitmaps)
        width = 2 if self.wide else 1
        changed = distinct(np.flatnonzero(new != self.raw) // width)
        if not changed.size:
            return
        size = self.space.cluster
        runs = np.split(changed, np.flatnonzero(np.diff(changed) != 1) + 1)[:16]
        guest = [(self.first_guest + int(run[0]) * size, run.size * size) for run in runs]
        more = f"{changed.size} L2 entries" if changed.size > 1 else "an L2 entry"
        self.space.put_words(
            self.offset, new, code=code, title=title.format(more + self.where), kind="l2", tier=tier, guest=guest,
            snapshots=self.snapshots, choice=choice, places=places,
        )  # fmt: skip
        self.raw = new

    def run_foreign(self, credible: Sequence[L1Table]) -> None:
        """Most of it is nonsense: what can be right gets a table of its own. credible: L1 tables that are such."""
        if content_of(self.space, self.words).is_foreign:
            self._replace(credible)

    def run(self) -> None:
        if self.has("COMPRESSED-COPIED") or self.has("L2-ENTRY-UNALIGNED"):
            _ = self.ledger  # as it is before anything is changed here
        self._reserved()
        if self.has("COMPRESSED-COPIED"):
            self._packed_copied()
        if self.backed_v2 and (self.has("L2-ENTRY-UNALIGNED") or self.has("L2-ENTRY-BEYOND-EOF")):
            self.space.note(
                f"entries of the L2 table at {self.offset:#x} lead nowhere: they are left alone, since in version 2 the"
                " backing file's data would show in their place"
            )
            return
        if self.has("L2-ENTRY-UNALIGNED"):
            self._unaligned()
        self._beyond()

    def run_flags(self) -> None:
        """COPIED without a cluster, bit 0 of extended entries, and zero flags in version 2."""
        if self.has("L2-COPIED-UNALLOCATED"):
            new = np.where(self.each.fault(Fault.COPIED_NOWHERE), without_copied(self.words), self.words)
            self.put(new, "L2-COPIED-UNALLOCATED", "clear COPIED in {}, where nothing is allocated")
        for code, title in (
            ("L2-ENTRY-BIT0-EXTENDED", "clear bit 0 of {}, which extended entries do not have"),
            ("L2-ZERO-FLAG-V2", "clear the zero flag of {}, which version 2 does not have"),
        ):
            if self.has(code):
                new = np.where(self.each.standard, without_zero_flag(self.words), self.words)
                self.put(new, code, title, Tier.JUDGEMENT)

    def has(self, code: str) -> bool:
        """Whether a row names this table with that code."""
        return self.space.rows.name(self.offset, code)

    @property
    def backed_v2(self) -> bool:
        header = self.space.meta.header
        return header.version < 3 and bool(header.backing_file_offset)

    def _replace(self, credible: Sequence[L1Table]) -> None:
        """Mostly nonsense: a table of its own for what can be right, and the cluster stays as it is, and counted."""
        space, masks = self.space, l2_masks(self.space, self.words)
        good = (self.words != 0) & ~masks.unaligned & ~masks.beyond
        if not self.snapshots:
            good[max(0, -(-(space.meta.header.size - self.first_guest) // space.cluster)) :] = False  # no disk there
        packed = good & masks.packed
        fixed = [each for each in named_claims(space) if each.owner in _NO_DATA]
        for index in np.flatnonzero(good & ~packed & (masks.offset > 0)).tolist():
            start = int(masks.offset[index])
            good[index] = not any(each.overlaps(start, start + space.cluster) for each in fixed)
        for index in np.flatnonzero(packed).tolist():
            good[index] = self._inflates(int(self.words[index]))
        users = [
            (table.offset + index * 8, table.snapshot, index)
            for table in credible
            for index in np.flatnonzero(offset_of(table.entries) == np.uint64(self.offset)).tolist()
        ]
        if not users:
            return
        # Where the backing file shows now it goes on to.
        some = good.any() or (bool(space.meta.header.backing_file_offset) and not self.words.all())
        space.keep(self.offset, space.cluster)
        odd = self.words[~good & ~masks.packed & masks.unaligned]
        space.keep_each(offset_of(odd) & ~np.uint64(space.cluster - 1), 2 * space.cluster)
        code, coverage = "L2-TABLE-FOREIGN", space.geometry.l2_coverage
        for place, snapshot, index in users:
            target = self._rest(good) if some else _nowhere(space, code, index)
            what = "what of it can be right" if some else "none"
            title = f"point L1 entry {index} at {what}: other content lies in its L2 table, and stays there"
            space.put(
                place, target.to_bytes(8, "big"), code=code, title=title, kind="l1", tier=Tier.JUDGEMENT,
                guest=[(index * coverage, coverage)], choice=_lost_choice(space),
                snapshots=() if snapshot == ACTIVE else (space.meta.snapshots[snapshot].id,),
            )  # fmt: skip

    def _rest(self, good: NDArray[np.bool_]) -> int:
        """A new table with the entries that are good; the others say that their data is lost."""
        space = self.space
        lost = ~good & (self.words != 0)
        entries, bitmaps = self._without(np.flatnonzero(lost))
        cleaned = L2Entries(entries, space.meta.shape).cleaned
        cleaned = without_zero_flag(cleaned) if self.wide else cleaned
        whole = interleaved(np.where(good & ~is_compressed(entries), cleaned, entries), bitmaps)
        table = space.append()
        count = int(good.sum())
        what = f"the {count} entries that can be right" if count else "nothing but the holes"
        title = f"write a new L2 table with {what}"
        space.put(table, table_bytes(whole), code="L2-TABLE-FOREIGN", title=title, kind="l2", tier=Tier.JUDGEMENT)
        return pointing_to(table)

    def _reserved(self) -> None:
        each = self.each
        if self.has("L2-ENTRY-RESERVED"):
            new = np.where(each.standard, each.cleaned, self.words)
            self.put(new, "L2-ENTRY-RESERVED", "clear reserved bits of {}")
        if self.has("COMPRESSED-RESERVED") or self.has("COMPRESSED-BEYOND-EOF"):
            new = np.where(each.packed, each.cleaned, self.words)
            self.put(new, "COMPRESSED-RESERVED", "clear reserved bits of {}, which is compressed")

    def _packed_copied(self) -> None:
        """COPIED beside COMPRESSED: one of the two is wrong; the content tells which."""
        for index in np.flatnonzero(self.each.fault(Fault.COPIED_COMPRESSED)).tolist()[:65536]:
            new = self.words.copy()
            word = int(new[index])
            plain, offset = as_plain(word), offset_of(word)
            is_plain = (
                not l2_faults(plain, self.space.meta.shape) & (Fault.RESERVED | Fault.UNALIGNED)
                and (self.ledger.leaked(offset) or self._only_mine(offset))
                and not self._inflates(word)
            )
            new[index] = plain if is_plain else without_copied(word)
            what = "compressed flag" if is_plain else "COPIED flag"
            size = self.space.cluster
            places = [(self.first_guest + index * size, size)] if is_plain else ()
            tier = Tier.JUDGEMENT if is_plain else Tier.SAFE
            self.put(new, "COMPRESSED-COPIED", f"clear the {what} of {{}}", tier, places=places)

    def _only_mine(self, offset: int) -> bool:
        at = offset >> self.ledger.cluster_bits
        return at < self.ledger.clusters and int(self.ledger.counts[at]) <= 1

    def _inflates(self, word: int) -> bool:
        from workbench.repair.fixes.compressed import inflates

        return inflates(self.space, word)

    def _unaligned(self) -> None:
        masks = l2_masks(self.space, self.words)
        index = np.flatnonzero(masks.unaligned)
        if not index.size:
            return
        new, lost, bitmaps = self.words.copy(), list[int](), None
        placed: list[tuple[int, int]] = []
        for at in index.tolist():
            aligned = int(masks.offset[at]) & -self.space.cluster
            if aligned and self.ledger.leaked(aligned) and aligned not in self.taken:
                self.taken.add(aligned)
                placed.append((self.first_guest + at * self.space.cluster, self.space.cluster))
                new[at] = moved_to(int(new[at]), aligned)
            else:
                self.space.keep(aligned, 2 * self.space.cluster)
                lost.append(at)
        title = "point {} at the start of the cluster again"
        self.put(new, "L2-ENTRY-UNALIGNED", title, Tier.JUDGEMENT, choice="align", places=placed)
        if lost:
            new, bitmaps = self._without(np.array(lost))
            self.put(
                new,
                "L2-ENTRY-UNALIGNED",
                "drop the unaligned offset of {}",
                Tier.JUDGEMENT,
                bitmaps,
                _lost_choice(self.space),
            )

    def _beyond(self) -> None:
        masks = l2_masks(self.space, self.words)
        for rows, code in (
            (masks.beyond & ~masks.packed, "L2-ENTRY-BEYOND-EOF"),
            (masks.beyond & masks.packed, "COMPRESSED-BEYOND-EOF"),
        ):
            index = np.flatnonzero(rows)
            if index.size and self.has(code):
                if code == "COMPRESSED-BEYOND-EOF":
                    for word in self.words[index].tolist():
                        self.space.keep(packed_range(word, self.space.meta.shape)[0], self.space.cluster)
                new, bitmaps = self._without(index)
                title = "drop {}: the data would lie past the end of the file"
                self.put(new, code, title, Tier.JUDGEMENT, bitmaps, _lost_choice(self.space))

    def _without(self, index: NDArray[np.intp]) -> tuple[NDArray[np.uint64], NDArray[np.uint64] | None]:
        """The entries with those at `index` not pointing any more."""
        zero = _lost_choice(self.space) == "zero"
        new = self.words.copy()
        if not self.wide:
            was_zero = has_zero_flag(new[index]) & ~is_compressed(new[index])
            new[index] = np.where(was_zero | zero, np.uint64(zero_entry(self.space.meta.shape)), np.uint64(0))
            return new, None
        new[index] = 0
        bitmaps = self.raw[1::2].copy()
        bitmaps[index] = np.uint64(ALL_ZERO) if zero else bitmaps[index] & np.uint64(ALL_ZERO)
        return new, bitmaps

    def run_bitmaps(self) -> None:
        """Make bitmaps and entries agree; where a subcluster is both, the data shows (or zeros, if chosen)."""
        words, each = self.words, self.each
        if self.has("COMPRESSED-WITH-SUBCLUSTERS"):
            new = np.where(each.packed, np.uint64(0), self.raw[1::2])
            title = "clear the subcluster bitmap of {}, which is compressed"
            self.put(words, "COMPRESSED-WITH-SUBCLUSTERS", title, Tier.SAFE, new)
        if self.has("SUBCLUSTER-UNALLOCATED"):
            bitmaps = self.raw[1::2].copy()
            allocated, zero = subclusters(bitmaps)
            zero = zero | allocated if _lost_choice(self.space) == "zero" else zero
            new = np.where(each.standard & ~each.placed, zero << np.uint64(32), bitmaps)
            title = "clear allocated subclusters of {}, which has no cluster"
            self.put(words, "SUBCLUSTER-UNALLOCATED", title, Tier.JUDGEMENT, new)
        if self.has("SUBCLUSTER-CONFLICT"):
            bitmaps = self.raw[1::2].copy()
            allocated, zero = subclusters(bitmaps)
            both = np.where(each.packed, np.uint64(0), allocated & zero)
            shows = self.space.policy.choice("subclusters", "data") == "data"
            new, what = (
                (bitmaps & ~(both << np.uint64(32)), "show the data") if shows else (bitmaps & ~both, "read zeros")
            )
            title = f"let the contradicting subclusters of {{}} {what}"
            size = self.space.cluster
            places = [(self.first_guest + int(index) * size, size) for index in np.flatnonzero(both)] if shows else ()
            self.put(words, "SUBCLUSTER-CONFLICT", title, Tier.JUDGEMENT, new, places=places)


FOREIGN = Rule(
    "foreign-tables",
    "Part from L2 tables that hold something else",
    codes("L2-TABLE-FOREIGN"),
    Tier.JUDGEMENT,
    run_foreign, alternatives=_LOST, reads_tables=True)  # fmt: skip

RULES = (
    Rule(
        "l1-entries",
        "Mend L1 entries",
        codes("L1-ENTRY-RESERVED", "L1-ENTRY-UNALIGNED", "L1-ENTRY-BEYOND-EOF", "L1-ENTRY-OFFSET-ZERO", "METADATA-OVERLAP"),
        Tier.JUDGEMENT,
        run_l1, reads_tables=True),
    Rule(
        "entries",
        "Mend L2 entries",
        codes(
            "L2-ENTRY-RESERVED", "L2-ENTRY-UNALIGNED", "L2-ENTRY-BEYOND-EOF", "COMPRESSED-COPIED", "COMPRESSED-RESERVED",
            "COMPRESSED-BEYOND-EOF",
        ),
        Tier.JUDGEMENT,
        run_l2,
        alternatives=_LOST, reads_tables=True),
    Rule(
        "harmless-flags",
        "Clear flags that nobody minds",
        codes("L2-COPIED-UNALLOCATED", "L2-ENTRY-BIT0-EXTENDED", "L2-ZERO-FLAG-V2"),
        Tier.JUDGEMENT,
        run_flags,
        on_request=True,
        reads_tables=True,
    ),
    Rule(
        "subclusters",
        "Mend subcluster bitmaps",
        codes("COMPRESSED-WITH-SUBCLUSTERS", "SUBCLUSTER-CONFLICT", "SUBCLUSTER-UNALLOCATED"),
        Tier.JUDGEMENT,
        run_subclusters,
        alternatives=(
            Alternative("data", "Show the data", "subclusters that are both allocated and zero read what is stored"),
            Alternative("zero", "Read zeros", "subclusters that are both allocated and zero read as zeros"),
        ), reads_tables=True),
)  # fmt: skip
