"""The disk's size where the header does not say it: between what is mapped and what the L1 table can map.

The guest's own structures (partition table, file systems) say how far the disk must go; only a GPT says where it ends.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from formats.qcow2 import entries
from workbench.engine.chain import Opening, open_top
from workbench.engine.gate import forbid_all
from workbench.engine.reading import read_chain
from workbench.errors import QwbError
from workbench.guest.reach import Reach, reaches
from workbench.repair.workspace import Workspace


@dataclass(frozen=True, slots=True)
class DiskSize:
    """The size to take, in bytes. least: what something says or needs (`who`).  most: as far as the L1 table could reach."""

    size: int
    least: int
    who: str
    most: int

    @property
    def note(self) -> str:
        """What is known of it, in a sentence; empty when it is known exactly."""
        if self.least == self.most:
            return ""
        return (
            f"the disk ends somewhere between {self.least:#x} ({self.who}) and {self.most:#x} "
            f"(as far as its L1 table could map): {self.size:#x} is taken"
        )


def disk_size(space: Workspace, used: int, room: int) -> DiskSize:
    """The size of the disk whose header, without a size to trust, is staged on `space`.

    used: L1 entries that the disk has for certain.  room: L1 entries that it can have at most.
    """
    coverage = space.geometry.l2_coverage
    most = max(used, room) * coverage
    mapped = Reach(_mapped_end(space, used), exact=False, who="the last cluster that is mapped")
    said = [each for each in (*_said(space, used * coverage), *_snapshots(space)) if each.end <= most]
    least = max([mapped, *said], key=lambda each: each.end)
    exact = next((each for each in said if each.exact and each.end >= least.end), None)
    if exact is not None:
        return DiskSize(exact.end, exact.end, exact.who, exact.end)
    return DiskSize(max(used, space.geometry.l1_entries_for(least.end)) * coverage, least.end, least.who, most)


def _mapped_end(space: Workspace, used: int) -> int:
    """End of the last guest cluster with an entry, in bytes."""
    geometry = space.geometry
    l1 = space.words(space.meta.header.l1_table_offset, used)
    for index in np.flatnonzero(l1)[::-1].tolist():
        step = 2 if geometry.extended_l2 else 1
        table = space.words(entries.offset_of(int(l1[index])), space.cluster // 8).reshape(-1, step)
        found = np.flatnonzero(table.any(axis=1))
        if found.size:
            end: int = index * geometry.l2_coverage + (int(found[-1]) + 1) * space.cluster
            return end
    return 0


def _snapshots(space: Workspace) -> list[Reach]:
    """How large the disk was when snapshots were made; it may have grown since."""
    return [
        Reach(each.disk_size, exact=False, who=f"snapshot {each.id!r}")
        for each in space.meta.snapshots
        if each.disk_size
    ]


def _said(space: Workspace, length: int) -> tuple[Reach, ...]:
    """What the guest's structures say; nothing where the disk cannot be read (encrypted, in a file of its own)."""
    trial = space.trial()
    trial.set_header("size", length, code="-", title="-")
    try:
        layer = open_top(trial.overlay, Opening(forbid_all, tolerant=True, lock=False), None)
    except QwbError:
        return ()
    if trial.meta.header.crypt_method:
        return ()

    def read(offset: int, size: int) -> bytes:
        buffer = bytearray(max(0, min(size, length - offset)))
        try:
            read_chain([layer], offset, memoryview(buffer))
        except QwbError:  # an entry that leads nowhere: what is there says nothing
            return bytes(len(buffer))
        return bytes(buffer)

    return reaches(read)
