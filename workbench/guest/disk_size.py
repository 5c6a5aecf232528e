"""The disk's size where the header does not say it: between what is mapped and what the L1 table can map.

The guest's own structures (partition table, file systems) say how far the disk must go; only a GPT says where it ends.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from formats.qcow2.entries import offset_of
from workbench.engine.chain import Opening, open_top
from workbench.engine.gate import forbid_all
from workbench.engine.metadata import Metadata, Region, as_if, load_metadata
from workbench.engine.reading import read_chain
from workbench.errors import ImageError, QwbError
from workbench.guest.reach import Reach, reaches
from workbench.storage.base import Storage
from workbench.units import Geometry


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


def disk_size(image: Storage, used: int, room: int) -> DiskSize:
    """The size of the disk of an image whose header has all but a size to trust.

    used: L1 entries that the disk has for certain.  room: L1 entries that it can have at most.
    """
    meta = load_metadata(image)
    geometry = meta.geometry
    if geometry is None:
        raise ImageError("the header gives no cluster size", path=image.path)
    coverage = geometry.l2_coverage
    most = max(used, room) * coverage
    mapped = Reach(_mapped_end(meta, geometry, used), exact=False, who="the last cluster that is mapped")
    said = [each for each in (*_said(image, used * coverage), *_snapshots(meta)) if each.end <= most]
    least = max([mapped, *said], key=lambda each: each.end)
    exact = next((each for each in said if each.exact and each.end >= least.end), None)
    if exact is not None:
        return DiskSize(exact.end, exact.end, exact.who, exact.end)
    return DiskSize(max(used, geometry.l1_entries_for(least.end)) * coverage, least.end, least.who, most)


def _mapped_end(meta: Metadata, geometry: Geometry, used: int) -> int:
    """End of the last guest cluster with an entry, in bytes."""
    cluster = geometry.cluster_size
    tables = offset_of(meta.read_words(Region(meta.header.l1_table_offset, used * 8), used * 8))
    for index in np.flatnonzero(tables)[::-1].tolist():
        words = meta.read_words(Region(int(tables[index]), cluster), cluster)
        found = np.flatnonzero(words.reshape(-1, geometry.l2_entry_size // 8).any(axis=1))
        if found.size:
            end: int = index * geometry.l2_coverage + (int(found[-1]) + 1) * cluster
            return end
    return 0


def _snapshots(meta: Metadata) -> list[Reach]:
    """How large the disk was when snapshots were made; it may have grown since."""
    return [
        Reach(each.disk_size, exact=False, who=f"snapshot {each.id!r}") for each in meta.snapshots if each.disk_size
    ]


def _said(image: Storage, length: int) -> tuple[Reach, ...]:
    """What the guest's structures say; nothing where the disk cannot be read (encrypted, in a file of its own)."""
    try:
        layer = open_top(as_if(image, size=length), Opening(forbid_all, tolerant=True, lock=False), None)
    except QwbError:
        return ()
    if layer.meta.header.crypt_method:
        return ()

    def read(offset: int, size: int) -> bytes:
        buffer = bytearray(max(0, min(size, length - offset)))
        try:
            read_chain([layer], offset, memoryview(buffer))
        except QwbError:  # an entry that leads nowhere: what is there says nothing
            return bytes(len(buffer))
        return bytes(buffer)

    return reaches(read)
