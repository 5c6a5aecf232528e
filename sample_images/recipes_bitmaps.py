"""Damage to persistent bitmaps and to LUKS headers."""

from __future__ import annotations

from collections.abc import Callable

from sample_images.editor import EXT_BITMAPS, EXT_CRYPTO, MASK_OFFSET, Editor
from sample_images.kit import noise
from sample_images.owners import FAR, LUKS
from sample_images.recipe import Recipes

FOUND = Recipes()
add, recipe = FOUND.add, FOUND.recipe

MAPS = "bitmaps"  # 4k clusters; bitmaps daily (64k), fine (512), frozen (disabled, 1M)


def _bitmap(name: str, title: str, wrong: str, field: str, value: Callable[[Editor], int], tags: str = "") -> None:
    add(name, MAPS, title, wrong, "bitmap " + tags, lambda e: e.set_bitmap(e.bitmaps()[0], field, value(e)))


def _extension(name: str, title: str, wrong: str, field: str, value: Callable[[Editor], int], tags: str = "") -> None:
    add(name, MAPS, title, wrong, "bitmap extension " + tags, lambda e: e.set_bitmap_extension(field, value(e)))


def _table(name: str, title: str, wrong: str, value: Callable[[Editor], int], tags: str = "") -> None:
    add(name, MAPS, title, wrong, "bitmap " + tags, lambda e: e.put(e.bitmaps()[0].table_offset, value(e)))


def _directory(e: Editor) -> int:
    return e.number(e.extension(EXT_BITMAPS).data + 16)


_bitmap(
    "bitmap-granularity-small",
    "Bitmap granularity too small",
    "granularity_bits is 3.",
    "granularity_bits",
    lambda e: 3,
)
_bitmap(
    "bitmap-granularity-large",
    "Bitmap granularity too large",
    "granularity_bits is 40.",
    "granularity_bits",
    lambda e: 40,
)
_bitmap(
    "bitmap-granularity-wrong",
    "Bitmap granularity wrong",
    "The table does not fit the granularity.",
    "granularity_bits",
    lambda e: 9,
)
_bitmap(
    "bitmap-flags-reserved", "Reserved bitmap flags", "Flag bit 9 is set.", "flags", lambda e: 2 | 1 << 9, "reserved"
)
_bitmap(
    "bitmap-flag-in-use", "Bitmap left in use", "The bitmap was not saved: it is stale.", "flags", lambda e: 3, "in-use"
)
_bitmap("bitmap-type-unknown", "Unknown bitmap type", "The type is 7.", "type", lambda e: 7)
_bitmap("bitmap-name-empty", "Bitmap without a name", "name_size is 0.", "name_size", lambda e: 0, "name")
_bitmap("bitmap-name-long", "Bitmap name too long", "name_size is 2000.", "name_size", lambda e: 2000, "name")
_bitmap("bitmap-extra-data", "Bitmap with unknown extra data", "extra_data_size is 8.", "extra_data_size", lambda e: 8)
_bitmap(
    "bitmap-table-unaligned",
    "Bitmap table not aligned",
    "Its offset is no cluster's.",
    "bitmap_table_offset",
    lambda e: e.bitmaps()[0].table_offset + 512,
    "unaligned",
)
_bitmap(
    "bitmap-table-past-eof",
    "Bitmap table past the end",
    "It cannot be read.",
    "bitmap_table_offset",
    lambda e: FAR,
    "eof",
)
_bitmap(
    "bitmap-table-zero",
    "Bitmap table at offset 0",
    "It overlaps the header.",
    "bitmap_table_offset",
    lambda e: 0,
    "overlap",
)
_bitmap(
    "bitmap-table-shared",
    "Two bitmaps on one table",
    "daily and fine share a table.",
    "bitmap_table_offset",
    lambda e: e.bitmaps()[1].table_offset,
    "crosslink",
)
_bitmap("bitmap-table-huge", "Bitmap table too large", "It has 2^30 entries.", "bitmap_table_size", lambda e: 1 << 30)
_bitmap(
    "bitmap-table-size-zero", "Bitmap table of no entries", "bitmap_table_size is 0.", "bitmap_table_size", lambda e: 0
)
_bitmap(
    "bitmap-table-size-wrong",
    "Bitmap table of wrong size",
    "It has one entry too many.",
    "bitmap_table_size",
    lambda e: e.bitmaps()[0].table_size + 1,
)
_table(
    "bitmap-entry-unaligned",
    "Bitmap table entry not aligned",
    "It points into a cluster.",
    lambda e: e.number(e.bitmaps()[0].table_offset) | 512,
    "unaligned",
)
_table(
    "bitmap-entry-reserved",
    "Reserved bits in a bitmap table entry",
    "Bit 60 is set.",
    lambda e: e.number(e.bitmaps()[0].table_offset) | 1 << 60,
    "reserved",
)
_table("bitmap-entry-past-eof", "Bitmap data past the end", "It cannot be read.", lambda e: FAR, "eof")
_table(
    "bitmap-entry-data",
    "Bitmap over guest data",
    "A table entry names a data cluster.",
    lambda e: e.host_of(0),
    "overlap",
)
_table("bitmap-entry-lost", "Bitmap data lost", "A table entry is zero; its cluster leaks.", lambda e: 0, "leak lost")
_table(
    "bitmap-entry-flag-offset",
    "All-ones flag beside an offset",
    "Bit 0 is reserved when an offset is given.",
    lambda e: e.number(e.bitmaps()[0].table_offset) | 1,
    "reserved",
)
_extension("bitmaps-count-wrong", "Fewer bitmaps than counted", "The extension says 4.", "nb_bitmaps", lambda e: 4)
_extension("bitmaps-count-small", "More bitmaps than counted", "The extension says 2.", "nb_bitmaps", lambda e: 2)
_extension("bitmaps-count-zero", "No bitmaps counted", "The extension says 0.", "nb_bitmaps", lambda e: 0)
_extension("bitmaps-count-huge", "Too many bitmaps", "The extension says 2^31.", "nb_bitmaps", lambda e: 1 << 31)
_extension(
    "bitmaps-reserved", "Reserved field of the bitmaps extension", "It is not 0.", "reserved", lambda e: 5, "reserved"
)
_extension("bitmaps-directory-small", "Bitmap directory cut", "directory_size is 40.", "directory_size", lambda e: 40)
_extension(
    "bitmaps-directory-large",
    "Bitmap directory too long",
    "directory_size is 64 bytes more.",
    "directory_size",
    lambda e: e.number(e.extension(EXT_BITMAPS).data + 8) + 64,
)
_extension(
    "bitmaps-directory-huge", "Bitmap directory absurd", "directory_size is 2^50.", "directory_size", lambda e: 1 << 50
)
_extension(
    "bitmaps-directory-unaligned",
    "Bitmap directory not aligned",
    "Its offset is no cluster's.",
    "directory_offset",
    lambda e: _directory(e) + 512,
    "unaligned",
)
_extension(
    "bitmaps-directory-past-eof",
    "Bitmap directory past the end",
    "It cannot be read.",
    "directory_offset",
    lambda e: FAR,
    "eof",
)
_extension(
    "bitmaps-directory-data",
    "Bitmap directory aimed at data",
    "Guest data is read as directory.",
    "directory_offset",
    lambda e: e.host_of(0),
    "overlap",
)


@recipe(
    "bitmap-tail-bits",
    "bitmap-uneven",
    "Bitmap bits past the disk's end",
    "Bits are set that stand for nothing.",
    "bitmap tail",
)
def _tail(e: Editor) -> None:
    data = e.number(e.bitmaps()[0].table_offset) & MASK_OFFSET
    e.write(data + 513 // 8, b"\xff" * 64)


@recipe("bitmap-duplicate-name", MAPS, "Two bitmaps with one name", "Both directory entries say daily.", "bitmap name")
def _same_name(e: Editor) -> None:
    first, second = e.bitmaps()[:2]
    e.set_bitmap(second, "name_size", len(first.name))
    e.write(second.name_offset, first.name.encode())


@recipe(
    "bitmaps-autoclear-missing",
    MAPS,
    "Bitmaps autoclear bit missing",
    "A writer without bitmaps was here.",
    "bitmap feature leak",
)
def _autoclear(e: Editor) -> None:
    e.clear_bits("autoclear_features", 1)


@recipe("bitmaps-directory-wiped", MAPS, "Bitmap directory wiped", "The directory is zeros.", "bitmap lost")
def _wiped(e: Editor) -> None:
    e.wipe(_directory(e))


@recipe(
    "bitmaps-directory-noise", MAPS, "Bitmap directory overwritten", "The directory holds random bytes.", "bitmap lost"
)
def _noise(e: Editor) -> None:
    e.write(_directory(e), noise(512, 90))


@recipe(
    "bitmaps-extension-lost",
    MAPS,
    "Bitmaps extension lost",
    "The bit is set, the bitmaps leak.",
    "bitmap extension leak",
)
def _lost(e: Editor) -> None:
    e.remove_extension(EXT_BITMAPS)


# -- LUKS --------------------------------------------------------------------------------------------------------------


@recipe("luks-length-huge", LUKS, "LUKS header length too large", "The extension says 2^40 bytes.", "luks eof")
def _length_huge(e: Editor) -> None:
    e.set_luks(length=1 << 40)


@recipe(
    "luks-length-oversized",
    LUKS,
    "LUKS header length past the end",
    "The header is said to reach past the file's end.",
    "luks eof",
)
def _length_over(e: Editor) -> None:
    e.set_luks(length=e.file_size + 16 * e.cluster_size)


@recipe("luks-length-short", LUKS, "LUKS header length too small", "Most of the header counts as leaked.", "luks leak")
def _length_short(e: Editor) -> None:
    e.set_luks(length=1024)


@recipe(
    "luks-offset-past-eof", LUKS, "LUKS header past the end", "The extension's offset is out of the file.", "luks eof"
)
def _offset_far(e: Editor) -> None:
    e.set_luks(offset=FAR)


@recipe(
    "luks-offset-unaligned",
    LUKS,
    "LUKS header not aligned",
    "The extension's offset is no cluster's.",
    "luks unaligned",
)
def _offset_odd(e: Editor) -> None:
    e.set_luks(offset=e.luks()[0] + 512)


@recipe("luks-offset-wrong", LUKS, "LUKS pointer aimed at data", "Guest data is read as LUKS header.", "luks overlap")
def _offset_data(e: Editor) -> None:
    e.set_luks(offset=e.host_of(0))


@recipe(
    "luks-extension-lost", LUKS, "LUKS pointer lost", "crypt_method is LUKS, the extension is gone.", "luks extension"
)
def _pointer_lost(e: Editor) -> None:
    e.remove_extension(EXT_CRYPTO)


@recipe("luks-magic-wiped", LUKS, "LUKS header overwritten", "Its first bytes are zeros.", "luks lost")
def _magic(e: Editor) -> None:
    e.wipe(e.luks()[0], 64)


@recipe("luks-version-wrong", LUKS, "LUKS version unknown", "The version is 9.", "luks")
def _version(e: Editor) -> None:
    e.put(e.luks()[0] + 6, 9, 2)


@recipe("luks-slot-outside", LUKS, "Key material out of the header", "Slot 0 points far away.", "luks")
def _slot(e: Editor) -> None:
    e.put(e.luks()[0] + 208 + 40, 0x7FFFFFFF, 4)


@recipe("luks-slots-disabled", LUKS, "No key slot enabled", "No passphrase can open it.", "luks lost")
def _slots(e: Editor) -> None:
    for slot in range(8):
        e.put(e.luks()[0] + 208 + 48 * slot, 0x0000DEAD, 4)
