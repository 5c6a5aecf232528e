"""Damage to internal snapshots."""

from __future__ import annotations

from collections.abc import Callable

from sample_images.editor import COPIED, MASK_OFFSET, Editor
from sample_images.kit import noise
from sample_images.owners import FAR, C
from sample_images.recipe import Recipes

FOUND = Recipes()
add, recipe = FOUND.add, FOUND.recipe

SNAPS = "snapshots"  # 4k clusters, two snapshots: installed, updated


def _entry(
    name: str, title: str, wrong: str, field: str, value: Callable[[Editor], int], tags: str = "", at: int = 0
) -> None:
    add(name, SNAPS, title, wrong, "snapshot " + tags, lambda e: e.set_snapshot(e.snapshots()[at], field, value(e)))


def _head(name: str, title: str, wrong: str, field: str, value: Callable[[Editor], int]) -> None:
    add(name, SNAPS, title, wrong, "snapshot header", lambda e: e.set(field, value(e)))


_L1 = "l1_table_offset"
_entry(
    "snapshot-l1-unaligned",
    "Snapshot L1 not aligned",
    "A snapshot's L1 offset is not a cluster's.",
    _L1,
    lambda e: e.snapshots()[0].l1_offset + 512,
    "unaligned",
)
_entry(
    "snapshot-l1-past-eof",
    "Snapshot L1 past the end",
    "A snapshot's L1 table is out of the file.",
    _L1,
    lambda e: FAR,
    "eof",
)
_entry(
    "snapshot-l1-zero",
    "Snapshot L1 at offset 0",
    "A snapshot names the header as its L1 table.",
    _L1,
    lambda e: 0,
    "overlap",
)
_entry(
    "snapshot-l1-active",
    "Snapshot on the active L1",
    "A snapshot names the active L1 table as its own.",
    _L1,
    lambda e: e.l1_offset,
    "overlap",
)
_entry(
    "snapshot-l1-data",
    "Snapshot L1 aimed at data",
    "A snapshot names guest data as its L1 table.",
    _L1,
    lambda e: e.host_of(0),
    "overlap",
)
_entry(
    "snapshot-l1-huge", "Snapshot L1 too large", "A snapshot's L1 table has 2^30 entries.", "l1_size", lambda e: 1 << 30
)
_entry(
    "snapshot-l1-size-zero", "Snapshot L1 of no entries", "A snapshot's l1_size is 0.", "l1_size", lambda e: 0, "lost"
)
_entry(
    "snapshot-extra-small",
    "Snapshot extra data too short",
    "Only 8 of 16 bytes are there.",
    "extra_data_size",
    lambda e: 8,
)
_entry(
    "snapshot-extra-large",
    "Snapshot extra data too long",
    "2000 bytes; 1024 are allowed.",
    "extra_data_size",
    lambda e: 2000,
)
_entry(
    "snapshot-disk-size-wrong",
    "Snapshot disk size wrong",
    "Larger than what its L1 table maps.",
    "disk_size",
    lambda e: 1 << 40,
)
_entry("snapshot-disk-size-zero", "Snapshot disk size 0", "The snapshot says it has no disk.", "disk_size", lambda e: 0)
_entry(
    "snapshot-vm-state",
    "Snapshot with VM state that is not there",
    "vm_state_size is 1 GiB.",
    "vm_state_size_large",
    lambda e: 1 << 30,
)
_entry("snapshot-name-long", "Snapshot name too long", "name_size is 60000.", "name_size", lambda e: 60000, at=1)
_head("snapshots-too-many", "Too many snapshots", "The header says 70,000.", "nb_snapshots", lambda e: 70_000)
_head(
    "snapshots-some-more",
    "More snapshots than there are",
    "The header says 4; zeros follow.",
    "nb_snapshots",
    lambda e: 4,
)
_head(
    "snapshots-fewer", "A snapshot forgotten", "The header says 1; the second one leaks.", "nb_snapshots", lambda e: 1
)
_head("snapshots-none", "All snapshots forgotten", "The header says 0; they leak.", "nb_snapshots", lambda e: 0)
_head(
    "snapshots-offset-data",
    "Snapshot table aimed at data",
    "Guest data is read as snapshots.",
    "snapshots_offset",
    lambda e: e.host_of(0),
)
_head(
    "snapshots-offset-l2",
    "Snapshot table aimed at an L2 table",
    "An L2 table is read as snapshots.",
    "snapshots_offset",
    lambda e: e.l2_table(0),
)
_head(
    "snapshots-offset-unaligned",
    "Snapshot table not aligned",
    "Its offset is no cluster's.",
    "snapshots_offset",
    lambda e: e.get("snapshots_offset") + 8,
)
_head(
    "snapshots-offset-past-eof", "Snapshot table past the end", "It cannot be read.", "snapshots_offset", lambda e: FAR
)
_head(
    "snapshots-offset-zero",
    "Snapshot table at offset 0",
    "The header is read as snapshots.",
    "snapshots_offset",
    lambda e: 0,
)


@recipe(
    "snapshots-duplicate-id",
    SNAPS,
    "Two snapshots with one ID",
    "The second snapshot's ID is 1 too.",
    "snapshot duplicate",
)
def _duplicate_id(e: Editor) -> None:
    e.write(e.snapshots()[1].id_offset, b"1")


@recipe(
    "snapshots-duplicate-name",
    "snapshots-many",
    "Two snapshots with one name",
    "day-3 appears twice.",
    "snapshot duplicate",
)
def _duplicate_name(e: Editor) -> None:
    e.write(e.snapshots()[4].name_offset, b"day-3")


@recipe(
    "snapshots-wiped",
    SNAPS,
    "Snapshot table wiped",
    "The table is zeros; the snapshots' clusters leak.",
    "snapshot lost",
)
def _wiped(e: Editor) -> None:
    e.wipe(e.get("snapshots_offset"))


@recipe("snapshots-noise", SNAPS, "Snapshot table overwritten", "The table holds random bytes.", "snapshot lost")
def _noise(e: Editor) -> None:
    e.write(e.get("snapshots_offset"), noise(C, 80))


@recipe(
    "snapshot-half-deleted",
    SNAPS,
    "Snapshot deleted half-way",
    "Its entry is gone, its refcounts are not.",
    "snapshot leak",
)
def _half_deleted(e: Editor) -> None:
    first, second = e.snapshots()
    entry = e.read(second.offset, second.end - second.offset)
    e.write(first.offset, entry.ljust(second.end - first.offset, b"\0"))
    e.set("nb_snapshots", 1)


@recipe(
    "snapshot-l1-entry-unaligned",
    SNAPS,
    "Snapshot L1 entry not aligned",
    "A snapshot's L1 entry is damaged.",
    "snapshot unaligned",
)
def _l1_entry(e: Editor) -> None:
    at = e.snapshots()[0].l1_offset
    e.put(at, e.number(at) | 512)


@recipe("snapshot-l1-wiped", SNAPS, "Snapshot L1 wiped", "A snapshot's L1 table is zeros.", "snapshot lost leak")
def _l1_wiped(e: Editor) -> None:
    e.wipe(e.snapshots()[0].l1_offset)


@recipe(
    "snapshot-l2-entry-past-eof", SNAPS, "Snapshot L2 entry past the end", "Only the snapshot is hit.", "snapshot eof"
)
def _l2_entry(e: Editor) -> None:
    table = e.number(e.snapshots()[0].l1_offset) & MASK_OFFSET
    e.put(table, FAR)


@recipe("snapshot-l2-wiped", SNAPS, "Snapshot L2 wiped", "A snapshot's L2 table is zeros.", "snapshot lost leak")
def _l2_wiped(e: Editor) -> None:
    e.wipe(e.number(e.snapshots()[0].l1_offset) & MASK_OFFSET)


@recipe(
    "snapshot-shared-copied",
    SNAPS,
    "COPIED on a shared cluster",
    "A write would change the snapshots too.",
    "snapshot copied",
)
def _copied(e: Editor) -> None:
    e.set_l2(0, e.l2(0) | COPIED)
