"""Entries of L1 and L2 tables that make no sense: reserved bits, unaligned, beyond the end, aimed at metadata.

Whole tables at a time. Where the right value can be derived (an offset whose low bits were hit leads to a cluster that
nobody else owns), it is; else the entry stops pointing, and what it pointed at stays where it is.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from formats.qcow2.tables import (
    COMPRESSED,
    COPIED,
    L1_ENTRY,
    L2_EXTENDED,
    L2_STANDARD,
    OFFSET_MASK,
    ZERO,
    compressed_layout,
)
from workbench.check.kinds import Owner
from workbench.check.problems import Tier
from workbench.check.tables import ACTIVE, L1Table
from workbench.repair.fixes.base import Alternative, Rule, codes
from workbench.repair.ledger import DATA, batches, l1_tables
from workbench.repair.probe import bitmap_trouble, content_of, l2_content, l2_masks
from workbench.repair.workspace import Workspace

_ALL = (1 << 64) - 1
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
    chosen = space.policy.choice("entries", "zero" if backed else "unallocated")
    return chosen if space.meta.header.version >= 3 else "unallocated"


# -- L1 ----------------------------------------------------------------------------------------------------------------


def run_l1(space: Workspace) -> None:
    """Mend the entries of the active L1 table and of the snapshots'."""
    for table in list(l1_tables(space)):
        if table.entries.any() and table.snapshot < len(space.meta.snapshots):
            if _shared_with_structures(space, table):
                space.note(f"the L1 table at {table.offset:#x} overlaps other metadata: its entries are left alone")
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
    found = [
        each
        for each in space.ledger.claims
        if each.owner in fragile and each.offset < end and start < each.offset + each.length
    ]
    return len({(each.offset, each.owner) for each in found}) > 1


def _mend_l1(space: Workspace, table: L1Table) -> None:
    ledger, cluster = space.ledger, space.cluster
    words = table.entries.copy()
    snapshots = () if table.snapshot == ACTIVE else (space.meta.snapshots[table.snapshot].id,)

    def put(new: NDArray[np.uint64], code: str, title: str, tier: Tier = Tier.SAFE) -> NDArray[np.uint64]:
        index = np.flatnonzero(new != words)
        if index.size:
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
            )
        return new

    reserved = np.uint64(L1_ENTRY.reserved_mask)
    words = put(words & ~reserved, "L1-ENTRY-RESERVED", "clear the reserved bits of L1 entry{}")
    offset = words & np.uint64(OFFSET_MASK)
    unaligned = np.flatnonzero((offset & np.uint64(cluster - 1)) != 0)
    if unaligned.size:
        new, taken = words.copy(), set[int]()
        for index in unaligned.tolist():
            aligned = int(offset[index]) & -cluster
            fits = ledger.leaked(aligned) and aligned not in taken and l2_content(space, aligned).plausible
            new[index] = np.uint64(COPIED | aligned) if fits else np.uint64(0)
            if fits:
                taken.add(aligned)
        words = put(new, "L1-ENTRY-UNALIGNED", "point L1 entry{} at its table again, or at none", Tier.JUDGEMENT)
    offset = words & np.uint64(OFFSET_MASK)
    beyond = offset >= np.uint64(space.end)
    words = put(
        np.where(beyond, np.uint64(0), words),
        "L1-ENTRY-BEYOND-EOF",
        "drop L1 entry{}: it points past the end of the file",
        Tier.JUDGEMENT,
    )
    nowhere = (words != 0) & ((words & np.uint64(OFFSET_MASK)) == 0)
    words = put(np.where(nowhere, np.uint64(0), words), "L1-ENTRY-OFFSET-ZERO", "clear L1 entry{}, which has no table")
    owned = np.array([_is_not_l2(space, int(word) & OFFSET_MASK) for word in _suspects(space, words)], dtype=bool)
    suspects = _suspects(space, words)
    if owned.any():
        drop = np.isin(words, suspects[owned])
        put(
            np.where(drop, np.uint64(0), words),
            "METADATA-OVERLAP",
            "drop L1 entry{}: another structure owns its table's cluster",
            Tier.JUDGEMENT,
        )


def _suspects(space: Workspace, words: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """L1 entries whose cluster has more owners than L1 tables account for."""
    ledger = space.ledger
    used = np.unique(words[words != 0])
    numbers = ((used & np.uint64(OFFSET_MASK)) >> np.uint64(ledger.cluster_bits)).astype(np.int64)
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
    content = l2_content(space, offset)
    if owners - {Owner.REFCOUNT_BLOCK, Owner.REFCOUNT_TABLE}:
        return True
    if owners:
        return not content.plausible
    shared = bool(ledger.flags[offset >> ledger.cluster_bits] & DATA)
    return shared and not content.plausible and not content.empty


# -- L2 ----------------------------------------------------------------------------------------------------------------


def run_subclusters(space: Workspace) -> None:
    """Mend the subcluster bitmaps of extended L2 entries."""
    if not space.geometry.extended_l2:
        return
    for batch in batches(space, space.ledger.tables):
        if batch.bitmaps is None:
            continue
        for at in np.flatnonzero(bitmap_trouble(batch.words, batch.bitmaps).any(axis=1)).tolist():
            _L2Mender(space, int(batch.rows[at]), set()).run_bitmaps()


def run_l2(space: Workspace) -> None:
    """Mend the entries of every L2 table, shared ones once."""
    ledger = space.ledger
    taken: set[int] = set()
    for batch in batches(space, ledger.tables):
        columns = l2_masks(space, batch.words)
        bad = columns.reserved | columns.unaligned | columns.beyond | columns.null_copied | columns.packed_copied
        odd = bad.any(axis=1)
        for at in np.flatnonzero(odd).tolist():
            _L2Mender(space, int(batch.rows[at]), taken).run()


class _L2Mender:
    """One L2 table: what is wrong with it is put right reason by reason, each a step of its own."""

    def __init__(self, space: Workspace, row: int, taken: set[int]) -> None:
        self.space = space
        self.taken = taken
        self.ledger = space.ledger
        tables = self.ledger.tables
        self.offset = int(tables.offset[row])
        self.first_guest = int(tables.index[row]) * space.geometry.l2_coverage
        active = bool(tables.active[row])
        snapshot = int(tables.snapshot[row])
        self.snapshots = () if snapshot == ACTIVE else (space.meta.snapshots[snapshot].id,)
        self.where = "" if active else " of a snapshot"
        self.wide = space.geometry.extended_l2
        self.raw = space.words(self.offset, space.cluster // 8)

    @property
    def words(self) -> NDArray[np.uint64]:
        return self.raw[0::2] if self.wide else self.raw

    def put(
        self, entries: NDArray[np.uint64], code: str, title: str, tier: Tier = Tier.SAFE,
        bitmaps: NDArray[np.uint64] | None = None, choice: str = "",
    ) -> None:  # fmt: skip
        """Stage new entries (and bitmaps)."""
        new = self.raw.copy()
        if self.wide:
            new[0::2] = entries
            if bitmaps is not None:
                new[1::2] = bitmaps
        else:
            new = entries
        width = 2 if self.wide else 1
        changed = np.unique(np.flatnonzero(new != self.raw) // width)
        if not changed.size:
            return
        size = self.space.cluster
        runs = np.split(changed, np.flatnonzero(np.diff(changed) != 1) + 1)[:16]
        guest = [(self.first_guest + int(run[0]) * size, run.size * size) for run in runs]
        more = f"{changed.size} L2 entries" if changed.size > 1 else "an L2 entry"
        self.space.put_words(
            self.offset, new, code=code, title=title.format(more + self.where), kind="l2", tier=tier, guest=guest,
            snapshots=self.snapshots, choice=choice,
        )  # fmt: skip
        self.raw = new

    def run(self) -> None:
        content = content_of(self.space, self.words)
        if content.is_foreign:
            self._foreign()
            return
        self._reserved()
        self._packed_copied()
        self._unaligned()
        self._beyond()
        masks = l2_masks(self.space, self.words)
        nulls = np.where(masks.null_copied, self.words & np.uint64(~COPIED & _ALL), self.words)
        self.put(nulls, "L2-COPIED-UNALLOCATED", "clear COPIED in {}, where nothing is allocated")

    def _foreign(self) -> None:
        """Not an L2 table at all: stop reading nonsense. Its old bytes are in the case file."""
        lost = _lost_choice(self.space)
        words = np.zeros_like(self.words)
        bitmaps = None
        if lost == "zero":
            if self.wide:
                bitmaps = np.full_like(words, np.uint64(0xFFFFFFFF << 32))
            else:
                words[:] = np.uint64(ZERO)
        elif self.wide:
            bitmaps = np.zeros_like(words)
        title = "empty the L2 table" + self.where + ": foreign content lies in it ({} dropped)"
        self.put(words, "L2-TABLE-FOREIGN", title, Tier.JUDGEMENT, bitmaps, lost)

    def _reserved(self) -> None:
        layout = L2_EXTENDED if self.wide else L2_STANDARD
        plain = (self.words & np.uint64(COMPRESSED)) == 0
        clean = self.words & np.uint64(~layout.reserved_mask & _ALL)
        code = (
            "L2-ENTRY-BIT0-EXTENDED"
            if self.wide and bool((plain & ((self.words & np.uint64(1)) != 0)).any())
            else "L2-ENTRY-RESERVED"
        )
        self.put(np.where(plain, clean, self.words), code, "clear reserved bits of {}")
        spare = np.uint64(compressed_layout(self.space.geometry.cluster_bits).reserved_mask)
        dirty = ~plain & ((self.words & spare) != 0)
        if dirty.any():
            new = np.where(dirty, self.words & ~spare, self.words)
            self.put(new, "COMPRESSED-RESERVED", "clear reserved bits of {}, which is compressed")
            plain = (self.words & np.uint64(COMPRESSED)) == 0
        if self.space.meta.header.version < 3:
            clean = self.words & np.uint64(~ZERO & _ALL)
            self.put(
                np.where(plain, clean, self.words),
                "L2-ZERO-FLAG-V2",
                "clear the zero flag of {}, which version 2 does not have",
                Tier.JUDGEMENT,
            )

    def _packed_copied(self) -> None:
        """COPIED beside COMPRESSED: one of the two is wrong; the content tells which."""
        masks = l2_masks(self.space, self.words)
        for index in np.flatnonzero(masks.packed_copied).tolist()[:65536]:
            new = self.words.copy()
            word = int(new[index])
            offset = word & OFFSET_MASK
            as_plain = (
                offset % self.space.cluster == 0
                and not word & L2_STANDARD.reserved_mask & ~COMPRESSED
                and (self.ledger.leaked(offset) or self._only_mine(offset))
                and not self._inflates(word & ~COPIED & _ALL)
            )
            new[index] = np.uint64(word & ~(COMPRESSED if as_plain else COPIED) & _ALL)
            what = "compressed flag" if as_plain else "COPIED flag"
            self.put(new, "COMPRESSED-COPIED", f"clear the {what} of {{}}", Tier.JUDGEMENT if as_plain else Tier.SAFE)

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
        new, lost, bitmaps = self.words.copy(), [], None
        for at in index.tolist():
            aligned = int(masks.offset[at]) & -self.space.cluster
            if aligned and self.ledger.leaked(aligned) and aligned not in self.taken:
                self.taken.add(aligned)
                new[at] = np.uint64((int(new[at]) & ~OFFSET_MASK & _ALL) | aligned)
            else:
                lost.append(at)
        self.put(
            new, "L2-ENTRY-UNALIGNED", "point {} at the start of the cluster again", Tier.JUDGEMENT, choice="align"
        )
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
            if index.size:
                new, bitmaps = self._without(index)
                title = "drop {}: the data would lie past the end of the file"
                self.put(new, code, title, Tier.JUDGEMENT, bitmaps, _lost_choice(self.space))

    def _without(self, index: NDArray[np.intp]) -> tuple[NDArray[np.uint64], NDArray[np.uint64] | None]:
        """The entries with those at `index` not pointing any more."""
        zero = _lost_choice(self.space) == "zero"
        new = self.words.copy()
        if not self.wide:
            keep_zero = (new[index] & np.uint64(ZERO | COMPRESSED)) == np.uint64(ZERO)
            new[index] = np.where(
                keep_zero & (self.space.meta.header.version >= 3), np.uint64(ZERO), np.uint64(ZERO if zero else 0)
            )
            return new, None
        new[index] = 0
        bitmaps = self.raw[1::2].copy()
        bitmaps[index] = np.uint64(0xFFFFFFFF << 32) if zero else bitmaps[index] & np.uint64(0xFFFFFFFF << 32)
        return new, bitmaps

    def run_bitmaps(self) -> None:
        """Make bitmaps and entries agree; where a subcluster is both, the data shows (or zeros, if chosen)."""
        words, bitmaps = self.words, self.raw[1::2].copy()
        high, low = np.uint64(0xFFFFFFFF << 32), np.uint64(0xFFFFFFFF)
        packed = (words & np.uint64(COMPRESSED)) != 0
        self.put(
            words,
            "COMPRESSED-WITH-SUBCLUSTERS",
            "clear the subcluster bitmap of {}, which is compressed",
            Tier.SAFE,
            np.where(packed, np.uint64(0), bitmaps),
        )
        bitmaps = self.raw[1::2].copy()
        nowhere = ~packed & ((words & np.uint64(OFFSET_MASK)) == 0)
        self.put(
            words,
            "SUBCLUSTER-UNALLOCATED",
            "clear allocated subclusters of {}, which has no cluster",
            Tier.SAFE,
            np.where(nowhere, bitmaps & high, bitmaps),
        )
        bitmaps = self.raw[1::2].copy()
        both = (bitmaps & low & (bitmaps >> np.uint64(32))) << np.uint64(32)
        if self.space.policy.choice("subclusters", "data") == "data":
            new, what = bitmaps & ~np.where(packed, np.uint64(0), both), "show the data"
        else:
            new, what = bitmaps & ~np.where(packed, np.uint64(0), both >> np.uint64(32)), "read zeros"
        self.put(words, "SUBCLUSTER-CONFLICT", f"let the contradicting subclusters of {{}} {what}", Tier.JUDGEMENT, new)


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
            "L2-ENTRY-RESERVED", "L2-ENTRY-BIT0-EXTENDED", "L2-ENTRY-UNALIGNED", "L2-ENTRY-BEYOND-EOF", "L2-ZERO-FLAG-V2",
            "L2-COPIED-UNALLOCATED", "COMPRESSED-COPIED", "COMPRESSED-RESERVED", "COMPRESSED-BEYOND-EOF",
            "L2-TABLE-FOREIGN",
        ),
        Tier.JUDGEMENT,
        run_l2,
        alternatives=_LOST, reads_tables=True),
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
