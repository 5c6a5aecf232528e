"""Where a guest offset is stored, and what a host offset is for: the facts, step by step, without wording."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

from formats.qcow2.entries import (
    ClusterType,
    Entry,
    Fault,
    first_blocking,
    offset_bits,
    offset_of,
    past_end,
    read_l2,
    subcluster_kind,
    subclusters,
)
from workbench.engine import tables
from workbench.engine.metadata import Metadata, Region
from workbench.engine.owners import Cancel, Owner, OwnerKind, Progress, owners_of, refcount_of
from workbench.engine.tables import Table
from workbench.errors import ImageError
from workbench.units import SECTOR_SIZE, GuestOffset, HostOffset


class StepKind(Enum):
    """Steps of an address translation, in order."""

    RANGE = "range"
    L1_INDEX = "l1-index"
    L1_ENTRY = "l1-entry"
    L2_INDEX = "l2-index"
    L2_ENTRY = "l2-entry"
    SUBCLUSTER = "subcluster"
    COMPRESSED = "compressed"
    DATA = "data"
    DECRYPT = "decrypt"


class Outcome(Enum):
    """Where the byte comes from in the end."""

    DATA = "data"
    ZERO = "zero"
    COMPRESSED = "compressed"
    UNALLOCATED = "unallocated"
    BEYOND_END = "beyond-end"
    BROKEN = "broken"


@dataclass(frozen=True, slots=True)
class Step:
    """One step: the numbers that go in, the number that comes out, and the host bytes that were looked at.

    words: raw value of the table entry read in this step.
    """

    kind: StepKind
    numbers: dict[str, int]
    result: int
    where: Region | None = None
    words: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Translation:
    """A guest offset's way through the tables.

    host: host byte (of the external data file when `external`), None where no byte is stored as such.
    run: host bytes of the compressed data.  problem: why the way ends, for BROKEN.  backing: backing file name that an
    unallocated cluster is read from, None for zeros.
    """

    guest: GuestOffset
    outcome: Outcome
    steps: tuple[Step, ...]
    snapshot: int | None = None
    host: HostOffset | None = None
    run: Region | None = None
    external: str | None = None
    backing: str | None = None
    problem: str | None = None


@dataclass(slots=True)
class _Walk:
    meta: Metadata
    guest: int
    snapshot: int | None
    steps: list[Step] = field(default_factory=list)

    def add(
        self,
        kind: StepKind,
        result: int,
        where: Region | None = None,
        words: tuple[int, ...] = (),
        **numbers: int,
    ) -> None:
        self.steps.append(Step(kind, numbers, result, where, words))

    def end(
        self,
        outcome: Outcome,
        *,
        host: int | None = None,
        run: Region | None = None,
        problem: str | None = None,
    ) -> Translation:
        external = None
        if host is not None and self.meta.header.has("data_file"):
            external = self.meta.data_file_name or "(external data file without a name)"
        backing = self.meta.backing_name if outcome is Outcome.UNALLOCATED else None
        where = HostOffset(host) if host is not None else None
        return Translation(
            GuestOffset(self.guest),
            outcome,
            tuple(self.steps),
            self.snapshot,
            where,
            run,
            external,
            backing,
            problem,
        )


def explain_guest(meta: Metadata, guest: int, snapshot: int | None = None) -> Translation:
    """Translate guest offset `guest` (bytes) through this image's own tables.

    Never raises on the tables' content; ImageError when the header gives no geometry.
    """
    geometry = meta.geometry
    if geometry is None:
        raise ImageError("the header makes no sense, so no guest offset can be translated", path=meta.storage.path)
    walk = _Walk(meta, guest, snapshot)
    size = meta.header.size
    if snapshot is not None:
        size = meta.snapshots[snapshot].disk_size or size
    walk.add(StepKind.RANGE, int(guest < size), guest=guest, size=size)
    if guest >= size:
        return walk.end(Outcome.BEYOND_END)
    l1 = tables.l1_table(meta, snapshot)
    index = geometry.l1_index(guest)
    walk.add(StepKind.L1_INDEX, index, guest=guest, coverage=geometry.l2_coverage)
    words = tables.read_entry(meta, l1, index)
    if words is None:
        return walk.end(Outcome.BROKEN, problem=_no_entry(meta, l1, index))
    at, offset = l1.entry_offset(meta, index), offset_of(words[0])
    walk.add(StepKind.L1_ENTRY, offset, Region(at, 8), words, table=l1.region.offset, index=index, size=8)
    if not offset:
        return walk.end(Outcome.UNALLOCATED)
    if offset % geometry.cluster_size:
        return walk.end(Outcome.BROKEN, problem=f"the L2 table's offset {offset:#x} is not cluster aligned")
    return _through_l2(walk, tables.l2_table(meta, index, offset, snapshot))


def _no_entry(meta: Metadata, table: Table, index: int) -> str:
    if index >= table.entries:
        return f"the {table.name} table has {table.entries} entries, there is no {index}"
    return f"the file ends before entry {index} of the {table.name} table"


def _through_l2(walk: _Walk, table: Table) -> Translation:
    meta, geometry = walk.meta, walk.meta.geometry
    assert geometry is not None
    index = geometry.l2_index(walk.guest)
    walk.add(
        StepKind.L2_INDEX,
        index,
        guest=walk.guest,
        cluster_size=geometry.cluster_size,
        entries=geometry.l2_entries,
    )
    words = tables.read_entry(meta, table, index)
    if words is None:
        return walk.end(Outcome.BROKEN, problem=_no_entry(meta, table, index))
    word, at = words[0], table.entry_offset(meta, index)
    size = geometry.l2_entry_size
    walk.add(
        StepKind.L2_ENTRY,
        offset_of(word),
        Region(at, size),
        words,
        table=table.region.offset,
        index=index,
        size=size,
    )
    bitmap = words[1] if geometry.extended_l2 else 0
    entry = read_l2(word, meta.shape, bitmap, walk.guest - walk.guest % geometry.cluster_size)
    if geometry.extended_l2 and entry.kind is not ClusterType.COMPRESSED:
        return _subcluster(walk, words, entry)
    problem = _problem(entry)
    if problem is not None:
        return walk.end(Outcome.BROKEN, problem=problem)
    if entry.kind is ClusterType.COMPRESSED:
        low, high = entry.start, entry.end
        walk.add(
            StepKind.COMPRESSED,
            low,
            Region(low, high - low),
            words,
            offset=low,
            length=high - low,
            sectors=(high - (low & ~511)) >> 9,
            offset_bits=offset_bits(meta.shape),
        )
        return walk.end(Outcome.COMPRESSED, run=Region(low, high - low))
    return _end(walk, entry.kind, entry)


def _problem(entry: Entry) -> str | None:
    """Why a driver stops at the entry (contradictions of subclusters apart), None when it does not."""
    fault = first_blocking(entry.faults)
    if fault is Fault.UNALIGNED:
        return f"the cluster's offset {entry.start:#x} is not cluster aligned"
    if fault is Fault.ELSEWHERE:
        return f"the offset {entry.start:#x} in the external data file differs from the guest offset"
    return _PROBLEMS.get(fault) if fault is not None else None


_PROBLEMS = {
    Fault.COMPRESSED_EXTERNAL: "a compressed cluster in an image with an external data file",
    Fault.ZERO_VERSION_2: "a zero flag in a version 2 image: QEMU refuses to read it",
}


def _subcluster(walk: _Walk, words: tuple[int, ...], entry: Entry) -> Translation:
    geometry = walk.meta.geometry
    assert geometry is not None
    within = walk.guest % geometry.cluster_size
    number = within // geometry.subcluster_size
    allocated, zero = (half >> number & 1 for half in subclusters(words[1]))
    walk.add(
        StepKind.SUBCLUSTER,
        number,
        Region(walk.steps[-1].where.offset + 8, 8) if walk.steps[-1].where is not None else None,
        words,
        within=within,
        size=geometry.subcluster_size,
        allocated=allocated,
        zero=zero,
    )
    problem = _problem(entry)
    # A driver looks at a whole cluster's bitmap before it believes any of it.
    if entry.faults & Fault.SUBCLUSTER_BOTH:
        which = f"subcluster {number}" if allocated and zero else "another subcluster of the cluster"
        problem = f"{which} is marked both as data and as zero"
    elif entry.faults & Fault.SUBCLUSTER_NOWHERE:
        which = f"subcluster {number}" if allocated else "another subcluster of the cluster"
        problem = f"{which} is allocated but the entry has no offset"
    if problem is not None:
        return walk.end(Outcome.BROKEN, problem=problem)
    return _end(walk, subcluster_kind(words[0], words[1], number, walk.meta.shape), entry)


def _end(walk: _Walk, kind: ClusterType, entry: Entry) -> Translation:
    """The end of the way for a cluster or subcluster that a driver reads."""
    if kind in (ClusterType.UNALLOCATED, ClusterType.UNALLOCATED_ALLOC):
        return walk.end(Outcome.UNALLOCATED)
    if kind in (ClusterType.ZERO_PLAIN, ClusterType.ZERO_ALLOC):
        return walk.end(Outcome.ZERO)
    meta, geometry = walk.meta, walk.meta.geometry
    assert geometry is not None
    external = meta.header.has("data_file")
    offset, size = entry.start, geometry.cluster_size
    within = walk.guest % size
    host = offset + within
    walk.add(StepKind.DATA, host, Region(offset, size), offset=offset, within=within)
    if not external and past_end(offset, size, meta.file_size, size):
        return walk.end(Outcome.BROKEN, host=host, problem="the cluster lies beyond the end of the file")
    if meta.header.crypt_method:
        # LUKS numbers its sectors by their place in the file, the old AES by their place on the guest's disk.
        counted = host if meta.header.crypt_method == 2 else walk.guest
        walk.add(
            StepKind.DECRYPT, counted // SECTOR_SIZE, method=meta.header.crypt_method, offset=counted, size=SECTOR_SIZE
        )
    return walk.end(Outcome.DATA, host=host)


def stored_bytes(meta: Metadata, found: Translation, length: int = 16) -> bytes:
    """Up to `length` bytes as the image's own file holds them where the translation ends; empty where none are there.

    Bytes of the same cluster only; still compressed or encrypted. StorageError when they cannot be read.
    """
    at = found.run.offset if found.run is not None else found.host
    if at is None or found.external is not None or meta.geometry is None or found.outcome is Outcome.BROKEN:
        return b""
    end = found.run.end if found.run is not None else at - at % meta.geometry.cluster_size + meta.geometry.cluster_size
    return meta.storage.read(at, min(length, end - at))


# Host offsets ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Use:
    """One owner of the cluster, seen from the byte asked about.

    entry: index of the table entry that the byte is part of, when the owner is a table.
    guest: guest byte that the host byte holds, for plain data; the range's start for tables and compressed data.
    """

    owner: Owner
    entry: int | None = None
    guest: GuestOffset | None = None


@dataclass(frozen=True, slots=True)
class HostFacts:
    """What a host byte belongs to. refcount: as stored, None when it cannot be read.  trail: entries read to find it.

    complete: False when the owners were cut at the limit.
    """

    host: HostOffset
    cluster: int
    within: int
    beyond_end: bool
    refcount: int | None
    trail: tuple[tuple[Table, int], ...]
    uses: tuple[Use, ...]
    complete: bool


def explain_host(
    meta: Metadata,
    host: int,
    progress: Progress | None = None,
    cancel: Cancel | None = None,
    *,
    limit: int = 1000,
) -> HostFacts:
    """What host offset `host` (bytes) belongs to, who references its cluster, and its refcount.

    ImageError when the header gives no geometry.
    """
    geometry = meta.geometry
    if geometry is None:
        raise ImageError("the header makes no sense, so clusters cannot be told apart", path=meta.storage.path)
    cluster, within = divmod(host, geometry.cluster_size)
    refcount, trail = refcount_of(meta, cluster)
    owners = owners_of(meta, cluster, progress, cancel, limit=limit)
    uses = tuple(_use(meta, owner, host) for owner in owners)
    return HostFacts(
        HostOffset(host), cluster, within, host >= meta.file_size, refcount, tuple(trail), uses, len(owners) < limit
    )


_ENTRY_SIZES = {
    OwnerKind.L1_TABLE: 8,
    OwnerKind.SNAPSHOT_L1: 8,
    OwnerKind.REFCOUNT_TABLE: 8,
    OwnerKind.BITMAP_TABLE: 8,
}


def _use(meta: Metadata, owner: Owner, host: int) -> Use:
    geometry = meta.geometry
    assert geometry is not None
    inside = owner.target.offset <= host < owner.target.end
    delta = host - owner.target.offset
    if owner.kind is OwnerKind.DATA:
        return Use(owner, None, GuestOffset((owner.guest or 0) + delta) if inside else owner.guest)
    if not inside:
        return Use(owner, None, owner.guest)
    if owner.kind is OwnerKind.L2_TABLE:
        entry = delta // geometry.l2_entry_size
        return Use(owner, entry, GuestOffset((owner.guest or 0) + entry * geometry.cluster_size))
    if owner.kind is OwnerKind.REFCOUNT_BLOCK:
        return Use(owner, delta * 8 // geometry.refcount_bits)
    size = _ENTRY_SIZES.get(owner.kind)
    return Use(owner, delta // size if size else None, owner.guest)
