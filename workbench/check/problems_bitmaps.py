"""Catalogue: persistent dirty bitmaps."""

from __future__ import annotations

from workbench.check import fixes as fix
from workbench.check.problem import Catalogue, Severity

SPEC = "qcow2: Bitmaps"
ERROR, CORRUPTION, LEAK, WARNING, NOTE = Severity
OVERWRITTEN = "The bitmap directory or its header extension was overwritten."
CLOSED = "qemu refuses to open the image, although only a bitmap is damaged."
FULL = "An incremental backup from this bitmap may be incomplete."
CATALOGUE = Catalogue(SPEC)
p = CATALOGUE.told

p(
    "BITMAPS-BIT-WITHOUT-EXTENSION",
    WARNING,
    "Bitmaps bit without a bitmaps extension",
    "The autoclear bit says that bitmaps are up to date, but there are none.",
    "The header extension was lost.",
    "None.",
    fix.CLEAR_FEATURE,
)
p(
    "BITMAPS-NOT-TRUSTED",
    WARNING,
    "Bitmaps without their autoclear bit",
    "The image was written by a program that does not know bitmaps, so they are out of date. qemu-img counts all their "
    "clusters as leaked.",
    "A program without bitmap support wrote to the image, or the header was overwritten.",
    FULL,
    fix.RESTORE_BITMAPS_BIT,
    fix.DROP_BITMAPS,
)
p(
    "BITMAPS-EXTENSION",
    ERROR,
    "Bitmaps extension is invalid",
    "Its size, reserved field or bitmap count is not allowed.",
    OVERWRITTEN,
    CLOSED,
    fix.DERIVE_FIELD,
    fix.DROP_BITMAPS,
)
p(
    "BITMAP-DIRECTORY-UNALIGNED",
    ERROR,
    "Bitmap directory not aligned",
    "The directory must start at a cluster.",
    OVERWRITTEN,
    CLOSED,
    fix.FIND_TABLE,
    fix.DROP_BITMAPS,
)
p(
    "BITMAP-DIRECTORY-SIZE",
    ERROR,
    "Bitmap directory has the wrong size",
    "The directory's size does not fit its entries.",
    OVERWRITTEN,
    CLOSED,
    fix.DERIVE_FIELD,
    fix.DROP_BITMAPS,
)
p(
    "BITMAP-UNREADABLE",
    ERROR,
    "Bitmap directory entry cannot be read",
    "An entry leaves the directory.",
    OVERWRITTEN,
    CLOSED,
    fix.DROP_BITMAPS,
)
for _code, _title, _meaning in (
    (
        "BITMAP-TABLE-SIZE",
        "Bitmap table has the wrong size",
        "The table does not have the entries that the disk needs.",
    ),
    ("BITMAP-TABLE-UNALIGNED", "Bitmap table not aligned", "The table must start at a cluster, and not at the header."),
    ("BITMAP-NAME", "Bitmap name too long or empty", "A name has 1 to 1023 bytes."),
    ("BITMAP-FLAGS", "Reserved bitmap flags", "Flags 3 to 31 must be zero."),
    ("BITMAP-TYPE", "Unknown bitmap type", "Type 1, dirty tracking, is the only one."),
    ("BITMAP-GRANULARITY", "Impossible bitmap granularity", "One bit stands for 512 bytes to 2 GiB."),
    ("BITMAP-EXTRA-DATA", "Bitmap has extra data", "Nothing defines extra data yet."),
    ("BITMAP-DUPLICATE-NAME", "Two bitmaps with one name", "Names must be unique."),
):
    p(_code, ERROR, _title, _meaning, OVERWRITTEN, CLOSED, fix.DROP_BITMAP)
p(
    "BITMAP-IN-USE",
    NOTE,
    "Bitmap in use",
    "The bitmap was not saved properly: what it records may be out of date.",
    "The program that had the image open crashed or was killed, or has it open now.",
    FULL,
    fix.CLEAR_IN_USE,
    fix.DROP_BITMAP,
)
p(
    "BITMAP-ENTRY-RESERVED",
    CORRUPTION,
    "Reserved bits in a bitmap table entry",
    "Bits 1 to 8 and 56 to 63 must be zero, and bit 0 as well when there is an offset.",
    "The bitmap table was overwritten.",
    "qemu cannot load the bitmap.",
    fix.CLEAR_BITMAP_ENTRY,
    fix.DROP_BITMAP,
    template="bitmap {bitmap}: table entry {index} has reserved bits set: {value:#x}",
)
p(
    "BITMAP-ENTRY-UNALIGNED",
    CORRUPTION,
    "Bitmap data not aligned",
    "A bitmap table entry does not point to the start of a cluster.",
    "The bitmap table was overwritten.",
    "qemu cannot load the bitmap.",
    fix.CLEAR_BITMAP_ENTRY,
    fix.DROP_BITMAP,
    template="bitmap {bitmap}: table entry {index} is not cluster aligned: {value:#x}",
)
p(
    "BITMAP-ENTRY-BEYOND-EOF",
    CORRUPTION,
    "Bitmap data past the end of the file",
    "A bitmap table entry points to where the file has no bytes.",
    "The file was truncated, or the bitmap table was overwritten.",
    FULL,
    fix.CLEAR_BITMAP_ENTRY,
    fix.DROP_BITMAP,
    template="ERROR: counting reference for region exceeding the end of the file by one cluster or more: bitmap {bitmap}, "
    "table entry {index} ({value:#x})",
)
p(
    "BITMAP-TAIL-BITS",
    WARNING,
    "Bits set beyond the end of the disk",
    "The bitmap's last cluster has bits for guest addresses that do not exist.",
    "A resize that did not trim the bitmap.",
    "None with qemu.",
    fix.CLEAR_BITMAP_ENTRY,
    template="bitmap {bitmap}: {count} bits are set beyond the end of the disk",
)
