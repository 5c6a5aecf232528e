"""One plan on trial: both images as the proof reads them, what changes, what is declared, and who refers to what."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from formats.qcow2.tables import COPIED, OFFSET_MASK
from workbench.engine import unreferenced
from workbench.repair.preserve.account import Ledger, Ranges
from workbench.repair.preserve.walk import Reading, References, Sparse, Tally, Use, changed_ranges
from workbench.repair.workspace import Step
from workbench.storage.base import Storage
from workbench.storage.overlay import Overlay


@dataclass(frozen=True, slots=True)
class Lost:
    """evidence: bool per host cluster that nothing refers to: it is a lost table, or mapped by one.

    old_l1: an L1 table is among them: a snapshot, or the disk itself, may have lost its record.
    """

    evidence: NDArray[np.bool_]
    old_l1: bool


class Case:
    """base, after: readings of the image and of the overlay.  changed: the base's bytes that differ."""

    def __init__(self, base: Storage, after: Overlay, steps: Sequence[Step]) -> None:
        self.base, self.after = Reading(base), Reading(after)
        self.ledger = Ledger()
        self.changed = Ranges((start, end - start) for start, end in changed_ranges(base, after))
        self.frees = Ranges(each for step in steps for each in step.frees)
        places: dict[str, list[tuple[int, int]]] = {}
        for step in steps:
            for name in step.snapshots or ("",):
                places.setdefault(name, []).extend(step.places)
        self.unread: set[int] = set()
        """Host clusters of compressed data that cannot be unpacked, and whose entry the plan drops."""
        self.places = {name: Ranges(ranges) for name, ranges in places.items()}

    def count_references(self) -> None:
        """Count both images, what they share once."""
        a, b = self.base, self.after
        one, other = a.l2_tables(), b.l2_tables()
        alike = a.shape == b.shape and a.external == b.external
        size = 1 << a.bits
        common = [
            each for each, users in one.items()
            if alike and other.get(each) == users and not self.changed.touch(each, each + size)
        ]  # fmt: skip
        clusters = max(a.clusters, b.clusters)
        tally = Tally(clusters if alike else 0)
        a.count(((offset, *one[offset]) for offset in sorted(common)), tally)
        shared = set(common)
        found = []
        for reading, tables in ((a, one), (b, other)):
            own = Sparse()
            reading.count(((each, *tables[each]) for each in sorted(tables) if each not in shared), own)
            for offset, length, use in reading.structures():
                if length > 0 and offset < reading.size:
                    first, last = offset >> reading.bits, (min(offset + length, reading.size) - 1) >> reading.bits
                    own.add_run(first, last - first + 1, 1, use)
            for view in reading.views():
                if view.snapshot is None:
                    marked = view.l1[(view.l1 & np.uint64(COPIED)) != 0] & np.uint64(OFFSET_MASK)
                    own.mark((marked >> np.uint64(reading.bits)).astype(np.int64), Use.FLAGGED)
            found.append(References(tally, own, clusters if alike else reading.clusters))
        self.refs, self.refs_after = found
        b.gaps |= a.gaps

    @cached_property
    def evidence(self) -> NDArray[np.bool_]:
        """Host clusters that nothing refers to and that are a lost table, or mapped by one; bool per cluster."""
        return self.unreferenced_content.evidence

    @cached_property
    def unreferenced_content(self) -> Lost:
        referenced = self.refs.referenced(self.base.clusters)
        tables = np.array(sorted(self.base.l2_tables()), dtype=np.int64) >> self.base.bits
        found = unreferenced.scan(self.base.storage, self.base.meta, referenced, tables)
        evidence = np.zeros(max(self.refs.clusters, self.refs_after.clusters), dtype=bool)
        evidence[: referenced.size] = found.evidence & ~referenced
        return Lost(evidence, any(self._counted(each.cluster) for each in found.l1))

    def _counted(self, cluster: int) -> bool:
        """Whether the base counts a cluster as in use, or cannot say."""
        index, inner = divmod(cluster, self.base.shape.refcount_block_entries)
        stored = self.base.stored(index, self.base.block_offsets())
        return stored is None or bool(stored[inner])

    @cached_property
    def hidden(self) -> bool:
        """Clusters may be in use by snapshots that cannot be read."""
        return self.base.hidden_references() or self.unreferenced_content.old_l1

    @cached_property
    def gap(self) -> str:
        """Why content that nothing refers to may be somebody's; empty when nothing says so."""
        if self.hidden:
            return "a snapshot that cannot be read may need it"
        if self.base.gaps:
            return "a part of the mapping is damaged: it may belong there"
        return ""
