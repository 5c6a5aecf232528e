"""One plan on trial: both images as the proof reads them, what changes, what is declared, and who refers to what."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

from formats.qcow2.header import field
from workbench.repair.preserve.account import Ledger, Ranges
from workbench.repair.preserve.keeping import Keeper, refers
from workbench.repair.preserve.walk import Reading, References, Sparse, Tally, changed_ranges
from workbench.repair.workspace import Step
from workbench.storage.base import Storage
from workbench.storage.overlay import Overlay


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
        b.past |= {number for number in a.past if number >= b.clusters}
        shared = set(common)
        found = []
        for reading, tables in ((a, one), (b, other)):
            own = Sparse()
            reading.count(((each, *tables[each]) for each in sorted(tables) if each not in shared), own)
            reading.count_structures(own)
            found.append(References(tally, own, clusters if alike else reading.clusters))
        self.refs, self.refs_after = found
        b.gaps |= a.gaps

    @cached_property
    def shown(self) -> Keeper | None:
        """The base under the header as it would be, where that reads it in another shape; None when it reads nothing."""
        a, b = self.base, self.after
        shown = Overlay(a.storage)
        shown.write(0, b.read(0, 1 << b.bits))
        if b.meta.header.refcount_table_offset >= a.size:
            # Made anew: where the old one was, only the old header can say.
            for name in ("refcount_table_offset", "refcount_table_clusters"):
                at, length = field(name)
                shown.write(at, a.storage.read(at, length).ljust(length, b"\0"))
        reading = Reading(shown)
        if reading.geometry is None or reading.shape != b.shape:
            return None
        return Keeper(reading, refers(reading))

    @cached_property
    def keeper(self) -> Keeper:
        """What the base says of clusters that go free."""
        return Keeper(self.base, self.refs)
