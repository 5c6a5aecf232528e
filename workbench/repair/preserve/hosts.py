"""The host's side of the proof: no cluster with content is written over, uncounted or unprotected without a word."""

from __future__ import annotations

from functools import cached_property
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from formats.qcow2 import refcounts
from formats.qcow2.tables import OFFSET_MASK, distinct
from workbench.repair.preserve.account import Fate
from workbench.repair.preserve.case import Case
from workbench.repair.preserve.walk import Cell, Use, nonzero
from workbench.units import div_round_up

_OFFSET: Final = np.uint64(OFFSET_MASK)


class Hosts:
    """Judges the host clusters of a case."""

    def __init__(self, case: Case) -> None:
        self.case = case
        self.after, self.ledger = case.after, case.ledger
        # Where clusters have another size they have other numbers: then the base is what its new header makes of it.
        self.keeper = (case.shown if case.base.bits != case.after.bits else None) or case.keeper
        self.base, self.refs = self.keeper.reading, self.keeper.refs

    def counts(self) -> None:
        """Stored refcounts against references, block by block where anything changed."""
        a, b = self.base, self.after
        blocks, blocks_after = a.block_offsets(), b.block_offsets()
        refs, later = self.refs, self.case.refs_after
        per_block = b.shape.refcount_block_entries
        total = div_round_up(max(later.clusters, 1), per_block)
        alike = a.shape == b.shape
        padded = [np.pad(each, (0, max(0, total - each.size)))[:total] for each in (blocks, blocks_after)]
        look = padded[0] != padded[1] if alike else np.ones(total, dtype=bool)
        size = 1 << b.bits
        for index in np.flatnonzero(padded[1] > 1).tolist():
            place = int(padded[1][index])
            look[index] |= self.case.changed.touch(place, place + size) or place + size > a.size
        rows = np.union1d(refs.rows, later.rows)
        (had, uses), (need, uses_after) = refs.at(rows), later.at(rows)
        look[distinct(rows[(had != need) | (uses_after & ~uses & Use.FLAGGED > 0)] // per_block)] = True
        for index in np.flatnonzero(look).tolist():
            low = index * per_block
            part = slice(low, min(low + per_block, later.clusters))
            count = part.stop - low
            stored = b.stored(index, blocks_after)
            known = self.keeper.block(index) if alike else None
            if known is None and alike:
                known = self._found_block(int(blocks_after[index]) if index < blocks_after.size else 0)
            self._block(part, None if known is None else known[:count], None if stored is None else stored[:count])

    def _found_block(self, place: int) -> NDArray[Any] | None:
        """Counts of a block that the base has, nothing else refers to, and its refcount table does not name."""
        a = self.base
        if not 1 < place < a.size or self.refs.one(place >> a.bits)[1]:
            return None
        values = refcounts.unpack(a.read(place, 1 << a.bits), a.shape.refcount_order)
        return values if values.any() and refcounts.may_be_refcounts(values) else None

    def _block(self, part: slice, known: NDArray[Any] | None, stored: NDArray[Any] | None) -> None:
        size, low = 1 << self.after.bits, part.start
        had, uses = self.refs.span(part.start, part.stop)
        need, uses_after = self.case.refs_after.span(part.start, part.stop)
        if stored is None:
            if known is not None and need.any():
                self.ledger.add(Fate.UNPROVEN, low * size, need.size * size, "their refcounts could not be read")
            return
        now = np.minimum(stored, np.uint64(1 << 40)).astype(np.int64)
        then = None if known is None else np.minimum(known, np.uint64(1 << 40)).astype(np.int64)
        missing = need - now
        short = missing > 0
        if then is not None:
            short &= ~((missing <= had - then) & (had > then))
        self._hosts(Fate.UNPROVEN, low + np.flatnonzero(short), "a refcount below the number of references")
        inside = np.arange(part.start, part.stop) < self.base.clusters  # what lies behind is new, and nobody's
        spare = None if then is None else then - had
        if spare is not None:
            lowered = (spare > 0) & (now < then) & (now - need < spare) & (now > 0)
            if lowered.any():
                self._lowered(low + np.flatnonzero(lowered))
        elif need.any() and self.keeper.unread:
            both = ((uses_after & Use.DATA) != 0) & (had > 0) & (now > 0) & (now <= need) & inside
            reason = "counted anew, although a snapshot that cannot be read may share it"
            self._hosts(Fate.UNPROVEN, low + np.flatnonzero(both), reason)
        flagged = (uses_after & Use.FLAGGED) != 0
        wrong = flagged & (now > 1)
        if then is not None:
            wrong &= ~(((uses & Use.FLAGGED) != 0) & (then > 1))
        self._hosts(Fate.UNPROVEN, low + np.flatnonzero(wrong), "marked as not shared (COPIED), although it is")
        fresh = flagged & ((uses & Use.FLAGGED) == 0) & (had > 0) & inside
        if fresh.any() and self.keeper.hidden:
            bad = fresh if then is None else fresh & (then != 1)
            reason = "marked as not shared (COPIED), although a snapshot that cannot be read may share it"
            self._hosts(Fate.UNPROVEN, low + np.flatnonzero(bad), reason)
        gone = (now == 0) & (need == 0)
        gone &= (had > 0) if then is None else ((had > 0) | (then > 0))
        if then is None:
            gone |= (now == 0) & (need == 0)
        for number in (low + np.flatnonzero(gone)).tolist():
            if number < self.base.clusters:
                self._let_go(number)
        if (now != (then if then is not None else 0)).any():
            forgotten = (now == 0) & (need == 0) & (had == 0) & ~gone & self._evidence(part)
            for number in (low + np.flatnonzero(forgotten)).tolist():
                self._let_go(number)

    def _evidence(self, part: slice) -> NDArray[np.bool_]:
        """The evidence of the clusters `part`, which may reach past the base's end."""
        found = self.keeper.evidence[part]
        return np.pad(found, (0, part.stop - part.start - found.size))

    def _hosts(self, fate: Fate, clusters: NDArray[np.int64], reason: str) -> None:
        size = 1 << self.after.bits
        for run in np.split(clusters, np.flatnonzero(np.diff(clusters) != 1) + 1):
            if run.size:
                self.ledger.add(fate, int(run[0]) * size, int(run.size) * size, reason)

    def _lowered(self, clusters: NDArray[np.int64]) -> None:
        if self.keeper.hidden:
            reason = "its refcount goes down, although a snapshot that cannot be read may share it"
            self._hosts(Fate.UNPROVEN, clusters, reason)
            return
        size = 1 << self.after.bits
        bare = [each for each in clusters.tolist() if not self.case.frees.cover(each * size, size)]
        self._hosts(Fate.UNPROVEN, np.array(bare, dtype=np.int64), "its refcount goes down without a word")

    def _let_go(self, number: int, what: str = "it would go free") -> None:
        """A cluster that would be neither referred to nor counted (or is written over)."""
        content = self.keeper.content(number)
        if not content:
            return
        size = 1 << self.base.bits
        start, uses = number * size, self.refs.one(number)[1]
        why = self.keeper.reason(number)
        if number in self.case.unread:
            why = why or "a compressed entry that cannot be unpacked means it"
        if why:
            fate, reason = Fate.GIVEN_UP, f"{what}, although {why}"
        elif uses and (uses & (Use.DATA | Use.TABLE) or self.keeper.holds_counts(number)):
            return
        elif self.case.frees.cover(start, size):
            fate, reason = Fate.FREED, "nothing refers to it, and nothing suggests that anybody needs it"
        else:
            fate, reason = Fate.UNPROVEN, f"{what} without a word"
        self.ledger.add(fate, start, size, reason, size=content)

    def overwritten(self) -> None:
        """Content under changed bytes that is neither guest data (compared above) nor a table that was readable."""
        a, size = self.base, 1 << self.base.bits
        for start, end in zip(self.case.changed.starts.tolist(), self.case.changed.ends.tolist(), strict=True):
            for number in range(start >> a.bits, ((end - 1) >> a.bits) + 1):
                uses = self.refs.one(number)[1]
                if uses & Use.DATA:
                    continue
                if uses & Use.COUNTS and not uses & Use.TABLE:
                    if not self.keeper.holds_counts(number):
                        what = "something else than refcounts lies there, and would be written over"
                        self.ledger.add(Fate.GIVEN_UP, number * size, size, what, size=self.keeper.content(number))
                    continue
                old = a.read(max(start, number * size), min(end, (number + 1) * size) - max(start, number * size))
                if not uses and self._is_mended(number):
                    continue
                if any(old) and (not uses or not self.keeper.superseded(number)):
                    self._let_go(number, "it would be written over")

    def _is_mended(self, number: int) -> bool:
        """A lost table that has its place again, and in which nothing else changed than entries that led nowhere."""
        a, b, offset = self.base, self.after, number << self.base.bits
        if a.shape != b.shape or offset not in self._tables_after:
            return False
        before, later = a.table(offset), b.table(offset)
        if before is None or later is None:
            return False
        (kinds, hosts), (kinds_after, hosts_after) = a.cells(*before, 0), b.cells(*later, 0)
        stored = (kinds == Cell.DATA) | (kinds == Cell.PACKED)
        nowhere = (kinds == Cell.ERROR) | ((kinds == Cell.DATA) & (hosts >= np.uint64(a.size)))
        return bool((nowhere | ((kinds == kinds_after) & (~stored | (hosts == hosts_after)))).all())

    @cached_property
    def _tables_after(self) -> dict[int, tuple[int, bool]]:
        return self.after.l2_tables()

    def past_end(self) -> None:
        """Clusters past the end of the file that entries still mean: free, the next write would be given them."""
        base, after = self.keeper, self.after
        meant = np.array(sorted(after.past), dtype=np.int64)
        if not meant.size or self.base.shape != after.shape:
            return
        blocks, per_block = after.block_offsets(), after.shape.refcount_block_entries
        for number in meant[base.stored_many(meant) > 0].tolist():
            stored = after.stored(number // per_block, blocks)
            if stored is not None and not int(stored[number % per_block]):
                reason = "an entry leads there, past the end of the file, and it would count as free"
                self.ledger.add(Fate.UNPROVEN, number << after.bits, 1 << after.bits, reason)

    def next_open(self) -> None:
        """With the dirty bit set, QEMU frees at its next open whatever nothing refers to."""
        b = self.after
        if not b.meta.header.has("dirty") or self.base.geometry is None:
            return
        blocks, per_block = b.block_offsets(), b.shape.refcount_block_entries
        clusters = self.case.refs_after.clusters
        for index in range(div_round_up(clusters, per_block)):
            stored = b.stored(index, blocks)
            if stored is None:
                continue
            part, _ = self.case.refs_after.span(index * per_block, min((index + 1) * per_block, clusters))
            kept = np.flatnonzero((part == 0) & (stored[: part.size] > 0)) + index * per_block
            for number in kept.tolist():
                if number < self.base.clusters and nonzero(self.base, number):
                    reason = "kept, but the image stays marked dirty: QEMU would free it at its next open"
                    self.ledger.add(Fate.UNPROVEN, number << b.bits, 1 << b.bits, reason)
