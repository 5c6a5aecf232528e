"""Damage to refcounts, refcount blocks and the refcount table."""

from __future__ import annotations

from collections.abc import Callable

from sample_images.editor import Editor
from sample_images.kit import K, noise
from sample_images.owners import DATA, FAR, GUEST_DATA, MANY, METADATA, C
from sample_images.recipe import Recipes

FOUND = Recipes()
add, recipe = FOUND.add, FOUND.recipe

BLOCKS = "refcount-blocks"  # 512-byte clusters, 64-bit refcounts: many refcount blocks of 64 entries


def _set(where: Callable[[Editor], int], change: Callable[[int], int]) -> Callable[[Editor], None]:
    def apply(e: Editor) -> None:
        e.set_refcount(where(e), change(e.refcount(where(e))))

    return apply


for _owner in (*METADATA, *GUEST_DATA):
    add(
        f"refcount-zero-{_owner.name}",
        _owner.base,
        f"Refcount 0 on {_owner.words}",
        f"The refcount of {_owner.words} is 0: the next allocation would overwrite it.",
        "refcount low",
        _set(_owner.where, lambda count: 0),
    )
    add(
        f"refcount-high-{_owner.name}",
        _owner.base,
        f"Refcount too high on {_owner.words}",
        f"The refcount of {_owner.words} is one higher than its references.",
        "refcount high leak",
        _set(_owner.where, lambda count: count + 1),
    )
add(
    "refcount-low-shared",
    "snapshots",
    "Refcount 1 on a cluster shared with snapshots",
    "A cluster used by the disk and two snapshots counts 1: a write would change the snapshots.",
    "refcount low snapshots",
    _set(lambda e: e.host_of(DATA), lambda count: 1),
)
add(
    "refcount-low-shared-l2",
    "snapshots-many",
    "Refcount 1 on a shared L2 table",
    "An L2 table used by the disk and its last snapshot counts 1.",
    "refcount low snapshots",
    _set(lambda e: e.l2_table(0), lambda count: 1),
)


@recipe(
    "leak-tail",
    MANY,
    "Leaked clusters at the end",
    "Three clusters count 1 and nobody refers to them.",
    "refcount leak",
)
def _leak_tail(e: Editor) -> None:
    for fill in (b"", noise(C, 60), b"left over by a crashed write\n" * 100):
        e.append_cluster(fill)


@recipe(
    "leak-past-eof",
    MANY,
    "Refcounts past the end of the file",
    "Clusters that do not exist are counted.",
    "refcount leak eof",
)
def _leak_past(e: Editor) -> None:
    for step in range(4):
        e.set_refcount(-(-e.file_size // C) * C + step * C, 1)


@recipe(
    "leak-orphan-l2",
    MANY,
    "A leaked L2 table",
    "A cluster full of valid L2 entries is referred to by nobody.",
    "refcount leak",
)
def _leak_l2(e: Editor) -> None:
    e.append_cluster(e.read(e.l2_table(0), C))


@recipe("leaks-many", "full-disk", "Half the disk leaked", "Every second L2 entry was lost.", "refcount leak data-loss")
def _leaks_many(e: Editor) -> None:
    for guest in e.guests("data")[::2]:
        e.set_l2(guest, 0)


@recipe(
    "refcount-one-bit-zero", "refcount-1", "Refcount 0 in a one-bit image", "A data cluster counts 0.", "refcount low"
)
def _one_bit(e: Editor) -> None:
    e.set_refcount(e.host_of(DATA), 0)


@recipe("refcount-64-bit-huge", "refcount-64", "Absurd 64-bit refcount", "A data cluster counts 2^63.", "refcount high")
def _huge(e: Editor) -> None:
    e.set_refcount(e.host_of(DATA), 1 << 63)


@recipe(
    "refcount-two-bit-full",
    "refcount-2",
    "Refcount at the limit",
    "A data cluster counts 3 in a 2-bit image.",
    "refcount high",
)
def _full(e: Editor) -> None:
    e.set_refcount(e.host_of(DATA), 3)


# -- refcount blocks ---------------------------------------------------------------------------------------------------


def _block(
    name: str, title: str, wrong: str, tags: str, value: Callable[[Editor], int], base: str = BLOCKS, at: int = 1
) -> None:
    add(name, base, title, wrong, "refcount-block " + tags, lambda e: e.set_rt(at, value(e)))


_block(
    "block-missing",
    "Refcount block missing",
    "A refcount table entry is 0 though its clusters are used.",
    "low",
    lambda e: 0,
)
_block("block-missing-only", "The only refcount block missing", "Every cluster counts 0.", "low", lambda e: 0, MANY, 0)
_block(
    "block-unaligned",
    "Refcount block not aligned",
    "A table entry points into a cluster.",
    "unaligned",
    lambda e: e.rt(0) + 512,
    MANY,
    0,
)
_block("block-past-eof", "Refcount block past the end", "A table entry points far past the end.", "eof", lambda e: FAR)
_block(
    "block-past-eof-only",
    "The only refcount block past the end",
    "No refcount can be read.",
    "eof",
    lambda e: FAR,
    MANY,
    0,
)
_block(
    "block-reserved",
    "Reserved bits in the refcount table",
    "Bit 4 of an entry is set.",
    "reserved",
    lambda e: e.rt(1) | 16,
)
_block(
    "block-double",
    "Two entries on one refcount block",
    "Two parts of the file share refcounts.",
    "crosslink",
    lambda e: e.rt(0),
)
_block(
    "block-over-data",
    "Refcount block over data",
    "A table entry names a data cluster.",
    "overlap",
    lambda e: e.host_of(0),
)
_block(
    "block-over-l1",
    "Refcount block over the L1 table",
    "A table entry names the L1 table.",
    "overlap",
    lambda e: e.l1_offset,
    MANY,
)
_block(
    "block-over-l2",
    "Refcount block over an L2 table",
    "A table entry names an L2 table.",
    "overlap",
    lambda e: e.l2_table(0),
    MANY,
)
_block(
    "block-over-header",
    "Refcount block over the header",
    "The first block is said to be inside the header.",
    "overlap",
    lambda e: 512,
    MANY,
)
_block(
    "block-over-table",
    "Refcount block over the refcount table",
    "An entry names its own table.",
    "overlap",
    lambda e: e.rt_offset,
    MANY,
)
_block(
    "block-beyond-needed",
    "Refcount block for what is not there",
    "A block far past the end exists.",
    "leak",
    lambda e: e.append_cluster(),
    MANY,
    100,
)


@recipe("block-wiped", MANY, "Refcount block wiped", "Every refcount is 0.", "refcount-block low")
def _block_wiped(e: Editor) -> None:
    e.wipe(e.rt(0))


@recipe(
    "block-noise", MANY, "Refcount block overwritten", "The refcounts are random numbers.", "refcount-block high low"
)
def _block_noise(e: Editor) -> None:
    e.write(e.rt(0), noise(C, 61))


# -- refcount table ----------------------------------------------------------------------------------------------------


def _header(name: str, title: str, wrong: str, tags: str, field: str, value: Callable[[Editor], int]) -> None:
    add(name, MANY, title, wrong, "refcount-table " + tags, lambda e: e.set(field, value(e)))


_RT = "refcount_table_offset"
_header(
    "rt-unaligned",
    "Refcount table not aligned",
    "The header's offset is not a cluster's.",
    "unaligned",
    _RT,
    lambda e: e.rt_offset + 512,
)
_header(
    "rt-past-eof", "Refcount table past the end", "The header's offset is far past the end.", "eof", _RT, lambda e: FAR
)
_header(
    "rt-offset-zero",
    "Refcount table offset 0",
    "The header names itself as refcount table.",
    "overlap",
    _RT,
    lambda e: 0,
)
_header(
    "rt-over-l2",
    "Refcount table aimed at an L2 table",
    "The header's offset names an L2 table.",
    "overlap",
    _RT,
    lambda e: e.l2_table(0),
)
_header(
    "rt-over-data",
    "Refcount table aimed at data",
    "The header's offset names guest data.",
    "overlap",
    _RT,
    lambda e: e.host_of(DATA),
)
_RTC = "refcount_table_clusters"
_header("rt-size-zero", "Refcount table of no clusters", "The header says 0 clusters.", "size", _RTC, lambda e: 0)
_header("rt-size-huge", "Refcount table too large", "The header says 2^31 clusters.", "size", _RTC, lambda e: 1 << 31)
_header(
    "rt-size-many",
    "Refcount table reaches into its neighbours",
    "The header says 3 clusters.",
    "size overlap",
    _RTC,
    lambda e: 3,
)


@recipe("rt-wiped", MANY, "Refcount table wiped", "Every entry is 0; the blocks still exist.", "refcount-table low")
def _rt_wiped(e: Editor) -> None:
    e.wipe(e.rt_offset)


@recipe("rt-noise", MANY, "Refcount table overwritten", "The entries are random numbers.", "refcount-table")
def _rt_noise(e: Editor) -> None:
    e.write(e.rt_offset, noise(2 * K, 62))


@recipe(
    "rt-entry-self",
    MANY,
    "Refcount block in the block's place twice",
    "Entries 0 and 5 name one block.",
    "refcount-table crosslink",
)
def _rt_self(e: Editor) -> None:
    e.set_rt(5, e.rt(0))
