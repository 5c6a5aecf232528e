"""Damage to L1 and L2 tables, compressed descriptors, subclusters and external data files."""

from __future__ import annotations

from sample_images.editor import COMPRESSED, COPIED, ZERO, Editor
from sample_images.kit import K, M, noise
from sample_images.owners import DATA, FAR, FREE, MANY, METADATA, PACKED, ZERO_KEPT, C, Owner
from sample_images.recipe import Recipes

FOUND = Recipes()
add, recipe = FOUND.add, FOUND.recipe

# -- lost tables -------------------------------------------------------------------------------------------------------


@recipe(
    "l2-zeroed",
    MANY,
    "L2 table wiped with zeros",
    "The second L2 table is all zeros; its clusters leak.",
    "l2 lost data-loss",
)
def _l2_zeroed(e: Editor) -> None:
    e.wipe(e.l2_table(1))


@recipe(
    "l2-zeroed-first",
    MANY,
    "First L2 table wiped",
    "The L2 table of the first 2 MiB is all zeros.",
    "l2 lost data-loss",
)
def _l2_zeroed_first(e: Editor) -> None:
    e.wipe(e.l2_table(0))


@recipe(
    "l2-half-zeroed", MANY, "Half an L2 table wiped", "The first sectors of an L2 table are zeros.", "l2 lost data-loss"
)
def _l2_half(e: Editor) -> None:
    e.wipe(e.l2_table(0), 64)


@recipe(
    "l1-entry-zeroed", MANY, "L1 entry lost", "An L1 entry is zero; its L2 table still exists.", "l1 lost data-loss"
)
def _l1_zeroed(e: Editor) -> None:
    e.set_l1(1, 0)


@recipe(
    "l1-zeroed",
    MANY,
    "L1 table wiped",
    "The whole L1 table is zeros; every L2 table still exists.",
    "l1 lost data-loss",
)
def _l1_wiped(e: Editor) -> None:
    e.wipe(e.l1_offset, 8 * e.get("l1_size"))


@recipe(
    "l2-overwritten-by-l2",
    MANY,
    "L2 table overwritten with another L2 table",
    "Two L2 tables hold the same entries.",
    "l2 lost",
)
def _l2_by_l2(e: Editor) -> None:
    e.copy(e.l2_table(3), e.l2_table(1))


@recipe(
    "l2-overwritten-by-refcounts",
    MANY,
    "L2 table overwritten with a refcount block",
    "An L2 table holds refcounts.",
    "l2 lost",
)
def _l2_by_refcounts(e: Editor) -> None:
    e.copy(e.rt(0), e.l2_table(1))


@recipe(
    "l2-overwritten-by-fs",
    MANY,
    "L2 table overwritten with file-system data",
    "An L2 table holds an ext4 superblock.",
    "l2 lost",
)
def _l2_by_fs(e: Editor) -> None:
    block = bytearray(C)
    block[0x38:0x3A] = b"\x53\xef"
    block[0x78:0x88] = b"rootfs".ljust(16, b"\0")
    block[0:8] = (131072).to_bytes(4, "little") + (524288).to_bytes(4, "little")
    e.write(e.l2_table(1), bytes(block))


@recipe(
    "l2-overwritten-by-noise",
    MANY,
    "L2 table overwritten with random bytes",
    "An L2 table holds random bytes.",
    "l2 lost",
)
def _l2_by_noise(e: Editor) -> None:
    e.write(e.l2_table(3), noise(C, 50))


@recipe(
    "l2-overwritten-by-text",
    MANY,
    "L2 table overwritten with guest text",
    "An L2 table holds text of the guest.",
    "l2 lost",
)
def _l2_by_text(e: Editor) -> None:
    e.copy(e.host_of(DATA), e.l2_table(1))


# -- single entries ----------------------------------------------------------------------------------------------------


def _l1_value(name: str, title: str, wrong: str, tags: str, change: int, *, at: int = 1, keep: bool = True) -> None:
    def apply(e: Editor) -> None:
        e.set_l1(at, (e.l1(at) | change) if keep else change)

    add(name, MANY, title, wrong, "l1 " + tags, apply)


_l1_value(
    "l1-entry-unaligned",
    "L1 entry not cluster-aligned",
    "An L1 entry points 512 bytes into a cluster.",
    "unaligned",
    512,
)
_l1_value(
    "l1-entry-past-eof",
    "L1 entry past the end",
    "An L1 entry points far past the end of the file.",
    "eof",
    COPIED | FAR,
    keep=False,
)
_l1_value("l1-entry-reserved", "Reserved bits in an L1 entry", "Bit 3 of an L1 entry is set.", "reserved", 8)
_l1_value(
    "l1-entry-reserved-high",
    "Reserved high bits in an L1 entry",
    "Bits 56-61 of an L1 entry are set.",
    "reserved",
    0x3F << 56,
)
_l1_value(
    "l1-entry-to-header",
    "L1 entry points at the header",
    "An L1 entry has the COPIED flag and offset 0.",
    "overlap",
    COPIED,
    at=2,
)


@recipe(
    "l1-entry-uncopied",
    MANY,
    "COPIED missing in L1",
    "An L1 entry lacks COPIED though its table has refcount 1.",
    "l1 copied",
)
def _l1_uncopied(e: Editor) -> None:
    e.set_l1(0, e.l1(0) & ~COPIED)


@recipe(
    "l1-entry-just-past-eof",
    MANY,
    "L1 entry at the end of the file",
    "An L1 entry points exactly at the end.",
    "l1 eof",
)
def _l1_at_end(e: Editor) -> None:
    e.set_l1(1, COPIED | -(-e.file_size // C) * C)


@recipe(
    "l1-shared-l2", MANY, "Two L1 entries on one L2 table", "L1 entries 1 and 3 name the same L2 table.", "l1 crosslink"
)
def _l1_shared(e: Editor) -> None:
    e.set_l1(3, e.l1(1))


@recipe(
    "l1-entry-to-data",
    MANY,
    "L1 entry points at guest data",
    "An L1 entry names a data cluster as L2 table.",
    "l1 overlap",
)
def _l1_to_data(e: Editor) -> None:
    e.set_l1(2, COPIED | e.host_of(DATA))


@recipe(
    "l1-entry-to-l1",
    MANY,
    "L1 entry points at the L1 table",
    "An L1 entry names the L1 table as L2 table.",
    "l1 overlap",
)
def _l1_to_l1(e: Editor) -> None:
    e.set_l1(2, COPIED | e.l1_offset)


@recipe(
    "l1-entry-to-refcount-block",
    MANY,
    "L1 entry points at a refcount block",
    "A refcount block is used as L2 table.",
    "l1 overlap",
)
def _l1_to_block(e: Editor) -> None:
    e.set_l1(2, COPIED | e.rt(0))


def _l2_flip(name: str, title: str, wrong: str, tags: str, guest: int, change: int, base: str = MANY) -> None:
    def apply(e: Editor) -> None:
        e.set_l2(guest, e.l2(guest) ^ change)

    add(name, base, title, wrong, "l2 " + tags, apply)


_l2_flip(
    "l2-entry-unaligned",
    "L2 entry not cluster-aligned",
    "A data entry points 512 bytes into a cluster.",
    "unaligned",
    DATA,
    512,
)
_l2_flip(
    "l2-zero-unaligned",
    "Zero entry not cluster-aligned",
    "A zero entry with a cluster is unaligned.",
    "unaligned",
    ZERO_KEPT,
    1024,
)
_l2_flip("l2-entry-reserved", "Reserved bits in an L2 entry", "Bit 5 of an L2 entry is set.", "reserved", DATA, 32)
_l2_flip(
    "l2-entry-reserved-high",
    "Reserved high bits in an L2 entry",
    "Bit 60 of an L2 entry is set.",
    "reserved",
    DATA,
    1 << 60,
)
_l2_flip(
    "l2-entry-uncopied",
    "COPIED missing in L2",
    "An L2 entry lacks COPIED though refcount is 1.",
    "copied",
    DATA,
    COPIED,
)
_l2_flip(
    "l2-zero-uncopied",
    "COPIED missing on a zero cluster",
    "A preallocated zero entry lacks COPIED.",
    "copied",
    ZERO_KEPT,
    COPIED,
)
_l2_flip(
    "l2-zero-flag-v2",
    "Zero flag in a v2 image",
    "Version 2 has no zero flag, but bit 0 is set.",
    "zero v2",
    DATA,
    ZERO,
    "v2-4k",
)
_l2_flip(
    "l2-became-zero",
    "Data entry turned into zeros",
    "Bit 0 of a data entry is set; the guest reads zeros.",
    "zero",
    DATA,
    ZERO,
)
_l2_flip(
    "l2-compressed-flag",
    "Compressed flag on a plain entry",
    "A plain entry reads as compressed garbage.",
    "compressed",
    DATA,
    COMPRESSED,
)
_l2_flip(
    "compressed-copied",
    "COPIED on a compressed entry",
    "A compressed entry must not have COPIED.",
    "compressed copied",
    PACKED,
    COPIED,
)


@recipe(
    "l2-entry-past-eof", MANY, "L2 entry past the end", "A data entry points far past the end of the file.", "l2 eof"
)
def _l2_far(e: Editor) -> None:
    e.set_l2(DATA, COPIED | FAR)


@recipe(
    "l2-entries-past-eof", MANY, "Several L2 entries past the end", "Three data entries point past the end.", "l2 eof"
)
def _l2_far_many(e: Editor) -> None:
    end = -(-e.file_size // C) * C
    for step in range(3):
        e.set_l2(DATA + step * C, COPIED | end + (step + 2) * C)


@recipe("l2-entry-lost", MANY, "One L2 entry lost", "A data entry is zero; its cluster leaks.", "l2 lost data-loss")
def _l2_lost(e: Editor) -> None:
    e.set_l2(DATA, 0)


@recipe(
    "l2-offset-zero-copied", MANY, "COPIED with offset 0", "An entry has COPIED and no cluster.", "l2 copied overlap"
)
def _l2_null(e: Editor) -> None:
    e.set_l2(FREE, COPIED)


@recipe(
    "l2-crosslink", MANY, "Two L2 entries on one cluster", "Two guest clusters share a host cluster.", "l2 crosslink"
)
def _l2_cross(e: Editor) -> None:
    e.set_l2(C, e.l2(DATA))


@recipe(
    "l2-crosslink-free",
    MANY,
    "A free guest cluster linked to used data",
    "A new entry names another's cluster.",
    "l2 crosslink",
)
def _l2_cross_free(e: Editor) -> None:
    e.set_l2(FREE, e.l2(DATA))


@recipe(
    "l2-crosslink-tables",
    MANY,
    "Cross-link between two L2 tables",
    "Entries of two tables share a cluster.",
    "l2 crosslink",
)
def _l2_cross_tables(e: Editor) -> None:
    e.set_l2(2 * M, e.l2(DATA))


@recipe(
    "l2-crosslink-compressed",
    MANY,
    "Data over compressed clusters",
    "A plain entry names a packed cluster.",
    "l2 crosslink compressed",
)
def _l2_cross_packed(e: Editor) -> None:
    e.set_l2(FREE, COPIED | e.compressed(PACKED)[0] // C * C)


def _points_at(owner: Owner) -> None:
    def apply(e: Editor) -> None:
        e.set_l2(e.guests("data")[1], COPIED | owner.where(e))

    wrong = f"A data entry names {owner.words}: a guest write would destroy it."
    add(f"data-over-{owner.name}", owner.base, f"Data over {owner.words}", wrong, "l2 overlap", apply)


for _owner in METADATA:
    _points_at(_owner)


@recipe("data-over-other-l2", MANY, "Data over another L2 table", "A data entry names an L2 table.", "l2 overlap")
def _data_over_other(e: Editor) -> None:
    e.set_l2(C, COPIED | e.l2_table(1))


# -- compressed, subclusters, external data ----------------------------------------------------------------------------


@recipe(
    "compressed-past-eof",
    MANY,
    "Compressed cluster out of the file",
    "Its descriptor points past the end.",
    "compressed eof",
)
def _packed_far(e: Editor) -> None:
    e.set_compressed(PACKED, FAR, 3)


@recipe(
    "compressed-length",
    MANY,
    "Compressed length too large",
    "The descriptor reaches into the next clusters.",
    "compressed overlap",
)
def _packed_long(e: Editor) -> None:
    offset, _ = e.compressed(PACKED)
    e.set_compressed(PACKED, offset, 15)


@recipe(
    "compressed-short",
    MANY,
    "Compressed length too small",
    "The stream is cut; the guest gets an I/O error.",
    "compressed unreadable",
)
def _packed_short(e: Editor) -> None:
    offset, _ = e.compressed(PACKED + C)
    e.set_compressed(PACKED + C, offset, 0)


@recipe(
    "compressed-garbage",
    MANY,
    "Garbage in a compressed cluster",
    "The compressed stream does not decode.",
    "compressed unreadable",
)
def _packed_garbage(e: Editor) -> None:
    e.write(e.compressed(PACKED)[0], noise(256, 51))


@recipe(
    "compressed-zstd-garbage",
    "zstd-4k",
    "Garbage in a zstd cluster",
    "The zstd stream does not decode.",
    "compressed unreadable",
)
def _zstd_garbage(e: Editor) -> None:
    e.write(e.compressed(PACKED)[0], noise(256, 52))


@recipe(
    "subcluster-both",
    "subclusters-16k",
    "Subclusters both allocated and zero",
    "A bitmap says both at once.",
    "extended-l2",
)
def _sub_both(e: Editor) -> None:
    guest = e.guests("data")[0]
    e.set_subclusters(guest, e.subclusters(guest) | 0xF << 32)


@recipe(
    "subcluster-no-cluster",
    "subclusters-16k",
    "Subclusters allocated without a cluster",
    "Bits are set at offset 0.",
    "extended-l2",
)
def _sub_no_cluster(e: Editor) -> None:
    e.set_l2(40 * 16 * K, 0)
    e.set_subclusters(40 * 16 * K, 0xFF)


@recipe(
    "subcluster-compressed",
    "subclusters-16k",
    "Subcluster bitmap on a compressed entry",
    "It must be zero there.",
    "extended-l2 compressed",
)
def _sub_packed(e: Editor) -> None:
    e.set_subclusters(e.guests("compressed")[0], 1 << 33)


@recipe(
    "subcluster-zero-flag",
    "subclusters-16k",
    "Zero flag in an extended entry",
    "Bit 0 is reserved there.",
    "extended-l2 reserved",
)
def _sub_zero_flag(e: Editor) -> None:
    guest = e.guests("data")[0]
    e.set_l2(guest, e.l2(guest) | ZERO)


@recipe(
    "subcluster-lost",
    "subclusters-16k",
    "Subcluster bitmap lost",
    "A cluster is there, but no subcluster is allocated.",
    "extended-l2 lost",
)
def _sub_lost(e: Editor) -> None:
    e.set_subclusters(e.guests("data")[0], 0)


@recipe(
    "data-file-unaligned",
    "data-file",
    "External data offset not aligned",
    "An entry points into a cluster.",
    "data-file unaligned",
)
def _ext_unaligned(e: Editor) -> None:
    e.set_l2(0, e.l2(0) | 512)


@recipe(
    "data-file-crosslink",
    "data-file",
    "External data cross-linked",
    "Two entries share a cluster of the data file.",
    "data-file crosslink",
)
def _ext_cross(e: Editor) -> None:
    e.set_l2(16 * K, e.l2(0))


@recipe(
    "data-file-raw-moved",
    "data-file-raw",
    "Raw data file mapped wrongly",
    "An entry is not 1:1 though the file is raw.",
    "data-file",
)
def _ext_moved(e: Editor) -> None:
    e.set_l2(16 * K, COPIED | 30 * 16 * K)


@recipe(
    "data-file-past-eof",
    "data-file",
    "External data past the end",
    "An entry points past the data file's end.",
    "data-file eof",
)
def _ext_far(e: Editor) -> None:
    e.set_l2(0, COPIED | FAR)


@recipe(
    "data-file-compressed",
    "data-file",
    "Compressed entry with an external data file",
    "That is not allowed.",
    "data-file compressed",
)
def _ext_packed(e: Editor) -> None:
    e.set_l2(0, COMPRESSED | 1 << 54 | 16 * K)
