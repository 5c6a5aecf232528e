"""Two structures on one cluster, beyond plain data over metadata (which recipes_mapping has for every kind)."""

from __future__ import annotations

from sample_images.editor import COPIED, MASK_OFFSET, Editor
from sample_images.owners import DATA, FREE, MANY, METADATA, PACKED, C, Owner
from sample_images.recipe import Recipes

FOUND = Recipes()
add, recipe = FOUND.add, FOUND.recipe


def _compressed_over(owner: Owner) -> None:
    def apply(e: Editor) -> None:
        e.set_compressed(e.guests("compressed")[0], owner.where(e), 1)

    wrong = f"A compressed entry's bytes lie in {owner.words}."
    add(
        f"compressed-over-{owner.name}",
        owner.base,
        f"Compressed data over {owner.words}",
        wrong,
        "l2 overlap compressed",
        apply,
    )


for _owner in METADATA:
    if _owner.name != "luks-header":  # that base has no compressed clusters
        _compressed_over(_owner)


@recipe(
    "compressed-over-data",
    MANY,
    "Compressed data over plain data",
    "A compressed entry names a data cluster.",
    "overlap compressed",
)
def _compressed_over_data(e: Editor) -> None:
    e.set_compressed(PACKED, e.host_of(DATA), 1)


@recipe(
    "snapshot-l2-over-refcounts",
    "snapshots",
    "Snapshot L2 over a refcount block",
    "A snapshot's L1 entry names a refcount block.",
    "snapshot overlap",
)
def _snapshot_l2_block(e: Editor) -> None:
    e.put(e.snapshots()[0].l1_offset, e.rt(0))


@recipe(
    "snapshot-l2-over-l1",
    "snapshots",
    "Snapshot L2 over the active L1",
    "A snapshot's L1 entry names the active L1.",
    "snapshot overlap",
)
def _snapshot_l2_l1(e: Editor) -> None:
    e.put(e.snapshots()[0].l1_offset, e.l1_offset)


@recipe(
    "snapshot-data-over-l2",
    "snapshots",
    "Snapshot data over the active L2",
    "A snapshot's L2 entry names an L2 table.",
    "snapshot overlap",
)
def _snapshot_data(e: Editor) -> None:
    table = e.number(e.snapshots()[0].l1_offset) & MASK_OFFSET
    e.put(table, e.l2_table(0))


@recipe(
    "snapshot-l1-shared",
    "snapshots",
    "Two snapshots on one L1 table",
    "The second snapshot names the first one's L1.",
    "snapshot crosslink",
)
def _snapshot_l1_shared(e: Editor) -> None:
    first, second = e.snapshots()
    e.set_snapshot(second, "l1_table_offset", first.l1_offset)


@recipe(
    "snapshot-l1-over-refcounts",
    "snapshots",
    "Snapshot L1 over a refcount block",
    "A snapshot names it as L1 table.",
    "snapshot overlap",
)
def _snapshot_l1_block(e: Editor) -> None:
    e.set_snapshot(e.snapshots()[0], "l1_table_offset", e.rt(0))


@recipe(
    "snapshot-table-over-refcounts",
    "snapshots",
    "Snapshot table over the refcount table",
    "It is read as snapshots.",
    "snapshot overlap",
)
def _snapshot_table(e: Editor) -> None:
    e.set("snapshots_offset", e.rt_offset)


@recipe(
    "snapshot-shared-l2-copied",
    "snapshots-many",
    "COPIED on a shared L2 table",
    "A write would change a snapshot's table.",
    "snapshot copied l1",
)
def _shared_l2_copied(e: Editor) -> None:
    e.set_l1(0, e.l1(0) | COPIED)


@recipe(
    "bitmap-table-over-l2",
    "bitmaps",
    "Bitmap table over an L2 table",
    "A directory entry names an L2 table.",
    "bitmap overlap",
)
def _bitmap_table_l2(e: Editor) -> None:
    e.set_bitmap(e.bitmaps()[0], "bitmap_table_offset", e.l2_table(0))


@recipe(
    "bitmap-data-over-refcounts",
    "bitmaps",
    "Bitmap data over a refcount block",
    "A table entry names it.",
    "bitmap overlap",
)
def _bitmap_data_block(e: Editor) -> None:
    e.put(e.bitmaps()[0].table_offset, e.rt(0))


@recipe(
    "bitmap-data-over-l1",
    "bitmaps",
    "Bitmap data over the L1 table",
    "A bitmap table entry names it.",
    "bitmap overlap",
)
def _bitmap_data_l1(e: Editor) -> None:
    e.put(e.bitmaps()[0].table_offset, e.l1_offset)


@recipe(
    "bitmap-data-shared",
    "bitmaps",
    "Two bitmaps on one cluster of bits",
    "Two tables name one cluster.",
    "bitmap crosslink",
)
def _bitmap_data_shared(e: Editor) -> None:
    first, second = e.bitmaps()[:2]
    e.put(first.table_offset, e.number(second.table_offset))


@recipe(
    "two-writers",
    MANY,
    "Two programs wrote at once",
    "Both gave the same clusters to different guest data.",
    "crosslink cause",
)
def _two_writers(e: Editor) -> None:
    for step, guest in enumerate(e.guests("data")[:4]):
        e.set_l2(FREE + step * C, COPIED | e.host_of(guest))


@recipe(
    "l2-self-reference", MANY, "L2 table full of itself", "Every entry of an L2 table names that table.", "l2 overlap"
)
def _self(e: Editor) -> None:
    table = e.l2_table(1)
    e.write(table, (COPIED | table).to_bytes(8, "big") * e.l2_entries)


@recipe("l1-all-one-table", MANY, "Every L1 entry on one L2 table", "All L1 entries are the same.", "l1 crosslink")
def _l1_same(e: Editor) -> None:
    for index in range(e.get("l1_size")):
        e.set_l1(index, e.l1(0))


@recipe("l1-noise", MANY, "L1 table overwritten", "The L1 entries are guest text.", "l1 lost data-loss")
def _l1_text(e: Editor) -> None:
    e.copy(e.host_of(DATA), e.l1_offset, 8 * e.get("l1_size"))


@recipe(
    "l1-moved",
    MANY,
    "L1 table moved, header not updated",
    "The header names a wiped L1; a copy lies at the end.",
    "l1 lost data-loss",
)
def _l1_moved(e: Editor) -> None:
    e.append_cluster(e.read(e.l1_offset, 8 * e.get("l1_size")))
    e.wipe(e.l1_offset, 8 * e.get("l1_size"))
