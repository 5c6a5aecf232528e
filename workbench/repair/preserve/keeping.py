"""Why a host cluster of an image must not go free: what the base's own tables, and its unreferenced content, say.

The proof asks this of each cluster that a plan lets go; the refcount fix asks it before it lets anything go.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from formats.qcow2 import limits, refcounts
from formats.qcow2.entries import block_of
from formats.qcow2.tables import COMPRESSED, COPIED, OFFSET_MASK, compressed_range, words
from workbench.engine import unreferenced
from workbench.repair.preserve.walk import Reading, References, Sparse, Tally, Use, nonzero
from workbench.units import div_round_up

_OFFSET: Final = np.uint64(OFFSET_MASK)
_MANY: Final = 128
"""Clusters with content that interrupted writes leave at most; more than that, and a mapping was lost."""


class Keeper:
    """Knows one image. refs: who refers to its clusters (`refers` counts them anew).  known: an earlier scan of the same
    storage, whose bytes need not be read again."""

    def __init__(self, reading: Reading, refs: References, known: unreferenced.Unreferenced | None = None) -> None:
        self.reading, self.refs, self.known = reading, refs, known

    @cached_property
    def found(self) -> unreferenced.Unreferenced:
        """What lies where nothing refers to: reads all of it, once."""
        reading, referenced = self.reading, self.refs.referenced(self.reading.clusters)
        return unreferenced.scan(
            reading.storage, reading.shape, referenced, external=reading.external, known=self.known
        )

    @cached_property
    def evidence(self) -> NDArray[np.bool_]:
        """Clusters that are a lost table, or mapped by one; bool per host cluster."""
        return (self.found.mapped | self.found.is_table) & ~self.refs.referenced(self.reading.clusters)

    @cached_property
    def unread(self) -> bool:
        """A snapshot cannot be read, or its L1 table lies about without a name."""
        lost = any(self.stored(each.offset >> self.reading.bits) != 0 for each in self.found.l1)
        return self.reading.meta.snapshots_hidden or lost

    @cached_property
    def hidden(self) -> bool:
        """Clusters may be in use, or shared, by what cannot be read: a snapshot, or entries of one that lead nowhere."""
        return self.unread or (bool(self.reading.meta.snapshots) and (self.reading.gaps or self._strays))

    @cached_property
    def gap(self) -> str:
        """Why content that nothing refers to may be somebody's; empty when nothing says so."""
        if self.reading.gaps:
            return "a part of the mapping is damaged: it may belong there"
        if self._strays:
            return "an entry points where it should not: what it meant may be this"
        if self.hidden:
            return "a snapshot that cannot be read may need it"
        if self.reading.blank:
            return "no cluster of the disk is mapped at all: its L1 table may be lost"
        if int(self.found.content.sum()) > _MANY:
            return "more content has no owner than interrupted writes leave"
        return ""

    @cached_property
    def _strays(self) -> bool:
        """Some cluster is referred to more often than its refcount says, which other clusters' refcounts do not share."""
        per_block = self.reading.shape.refcount_block_entries
        clusters = self.reading.clusters
        for index in range(div_round_up(clusters, per_block)):
            values = self.block(index)
            if values is None:
                continue  # lost, not wrong: the rebuild says nothing about the mapping
            counts, _ = self.refs.span(index * per_block, min((index + 1) * per_block, clusters))
            if (counts > np.minimum(values[: counts.size], np.uint64(1 << 40)).astype(np.int64)).any():
                return True
        return False

    def reason(self, number: int) -> str:
        """Why cluster `number`, to which the image as it would be does not refer, must stay; empty when it may go.

        Clusters that entries name rightly may go: whether the guest still reads them is for the views to judge.
        """
        uses = self.refs.one(number)[1]
        if uses & Use.WRONG:
            return "an entry that cannot be read means it"
        if uses & Use.TABLE and not self.superseded(number):
            return "it was a table that cannot be read"
        if uses & Use.COUNTS and not uses & Use.DATA and not self.holds_counts(number):
            return self.gap
        if uses:
            return ""
        if number < self.evidence.size and bool(self.evidence[number]):
            return "it is, or is mapped by, a lost table"
        return self.gap

    def content(self, number: int) -> int:
        """Bytes of the cluster in 512-byte units that are not all zero."""
        return nonzero(self.reading, number)

    def superseded(self, number: int) -> bool:
        """Whether a table or record could be read, so that its content is compared as a view or an object."""
        offset = number << self.reading.bits
        if offset not in self._tables:
            return not any(low <= offset < high for low, high in self._wrong_l1)
        found = self.reading.table(offset)
        return found is not None and not foreign(self.reading, found[0])

    @cached_property
    def _wrong_l1(self) -> list[tuple[int, int]]:
        """Host bytes [start, end) of what is called an L1 table, though most of what it names is guest data: several
        entries, or a single one with more behind it than a table of its length has."""
        reading, found = self.reading, []
        header, size = reading.meta.header, 1 << reading.bits
        for view in reading.views():
            named = np.unique(view.l1[(view.l1 & _OFFSET) != 0] & _OFFSET)[:_MANY].tolist()
            tables = [reading.table(each) for each in named]
            wrong = sum(
                each is None or (foreign(reading, each[0]) and bool(self.refs.one(place >> reading.bits)[1] & Use.DATA))
                for place, each in zip(named, tables, strict=True)
            )
            start, entries = (
                (view.snapshot.l1_table_offset, view.snapshot.l1_size)
                if view.snapshot is not None
                else (header.l1_table_offset, header.l1_size)
            )
            length = min(entries * 8, limits.MAX_L1_SIZE)
            if wrong * 2 > len(tables) and (len(tables) > 2 or any(reading.read(start + length, -length % size))):
                found.append((start, start + max(length, 1)))
        return found

    @cached_property
    def _tables(self) -> dict[int, tuple[int, bool]]:
        return self.reading.l2_tables()

    def block(self, index: int) -> NDArray[Any] | None:
        """Refcounts of one block; None where they cannot be read, or where the block's cluster holds guest data as well
        (an entry that leads there astray leaves the block counting itself, once).

        A block that is not there, or empty, although clusters of its range are in use is lost: it does not say that
        they are free.
        """
        place = int(self._blocks[index]) if index < self._blocks.size else 0
        found = self.reading.stored(index, self._blocks)
        if found is None or not refcounts.may_be_refcounts(found):
            return None
        if not found.any():
            per_block = self.reading.shape.refcount_block_entries
            low, high = (min(each * per_block, self.reading.clusters) for each in (index, index + 1))
            return None if low < high and self.refs.span(low, high)[0].any() else found
        if place > 1 and self.refs.one(place >> self.reading.bits)[1] & Use.DATA:
            holder, inner = divmod(place >> self.reading.bits, self.reading.shape.refcount_block_entries)
            return found if holder == index and int(found[inner]) == 1 else None
        return found

    def holds_counts(self, number: int) -> bool:
        """Whether the cluster of a refcount block holds what can be refcounts, in the width of the image.

        Or the first one of the refcount table what can be its entries.
        """
        reading, order = self.reading, self.reading.meta.header.refcount_order
        table = reading.meta.refcount_table_region
        if order > limits.MAX_REFCOUNT_ORDER:
            return True
        if table.offset == number << reading.bits:
            return self._may_be_refcount_table(number)
        if table.offset < number << reading.bits < table.offset + table.length:
            return True  # the header's length may be wrong: what lies behind the first cluster is judged entry by entry
        data = reading.read(number << reading.bits, 1 << reading.bits)
        return refcounts.may_be_refcounts(refcounts.unpack(data, order))

    def _may_be_refcount_table(self, number: int) -> bool:
        reading = self.reading
        entries = words(reading.read(number << reading.bits, 1 << reading.bits))
        used = block_of(entries[entries != 0])
        good = (used > 0) & (used % np.uint64(1 << reading.bits) == 0) & (used < np.uint64(max(reading.size, 1)))
        return bool(used.size <= 2 or np.count_nonzero(good) * 2 >= used.size)

    def stored(self, cluster: int) -> int | None:
        """The refcount of a cluster as the image has it, None where it cannot be read."""
        index, inner = divmod(cluster, self.reading.shape.refcount_block_entries)
        values = self.block(index)
        return None if values is None else int(values[inner])

    def stored_many(self, clusters: NDArray[np.int64]) -> NDArray[np.int64]:
        """Refcounts of many clusters, of any shape; -1 where they cannot be read."""
        out = np.full(clusters.size, -1, dtype=np.int64)
        blocks, inner = np.divmod(clusters.reshape(-1), self.reading.shape.refcount_block_entries)
        order = np.argsort(blocks, kind="stable")
        for here in np.split(order, np.flatnonzero(np.diff(blocks[order])) + 1):
            values = self.block(int(blocks[here[0]])) if here.size and blocks[here[0]] >= 0 else None
            if values is not None:
                out[here] = np.minimum(values[inner[here]], np.uint64(1 << 40)).astype(np.int64)
        return out.reshape(clusters.shape)

    def stored_all(self, clusters: int) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        """(refcounts of the clusters 0 to `clusters`, 2^40 for higher ones; whether they can be read: 0 stands where not)."""
        shape = self.reading.shape
        values = np.zeros(clusters, dtype=refcounts.unpack(b"", shape.refcount_order).dtype)
        known = np.zeros(clusters, dtype=bool)
        for index in range(div_round_up(clusters, shape.refcount_block_entries)):
            first, found = index * shape.refcount_block_entries, self.block(index)
            if found is not None:
                part = slice(first, first + shape.refcount_block_entries)
                known[part] = True
                values[part] = np.minimum(found, np.uint64(1 << 40))[: values[part].size]
        return values, known

    @cached_property
    def _blocks(self) -> NDArray[np.uint64]:
        return self.reading.block_offsets()


def refers(reading: Reading) -> References:
    """Count all references of one image."""
    tally, tables = Tally(reading.clusters), reading.l2_tables()
    reading.count(((each, *tables[each]) for each in sorted(tables)), tally)
    own = Sparse()
    reading.count_structures(own)
    return References(tally, own, reading.clusters)


def foreign(reading: Reading, entries: NDArray[np.uint64]) -> bool:
    """Most of what is in the table is no entry that any driver writes."""
    used = entries[entries != 0]
    plain = (used & np.uint64(COMPRESSED)) == 0
    offset = used & _OFFSET
    odd = plain & ((offset & np.uint64((1 << reading.bits) - 1)) != 0)
    if not reading.external:
        odd |= plain & (offset >= np.uint64(max(reading.size, reading.meta.counted_reach)))
    start, _ = compressed_range(used & np.uint64(~COPIED & ((1 << 64) - 1)), reading.bits)
    odd |= ~plain & (start >= np.uint64(reading.size))
    return bool(used.size) and int(odd.sum()) * 2 > used.size
