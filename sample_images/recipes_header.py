"""Damage to the header, its extensions and feature bits, the file's length, and backing file references."""

from __future__ import annotations

import struct
from collections.abc import Callable

from sample_images.editor import (
    CORRUPT,
    DATA_FILE,
    DIRTY,
    EXT_BACKING_FORMAT,
    EXT_BITMAPS,
    EXT_CRYPTO,
    EXT_DATA_FILE,
    EXT_FEATURE_NAMES,
    EXTENDED_L2,
    Editor,
)
from sample_images.kit import M, noise
from sample_images.owners import FAR, MANY, C
from sample_images.recipe import Recipes

FOUND = Recipes()
add, recipe = FOUND.add, FOUND.recipe

BACKED = "backing-raw"


def _field(
    name: str, title: str, wrong: str, field: str, value: Callable[[Editor], int], tags: str = "", base: str = MANY
) -> None:
    add(name, base, title, wrong, "header " + tags, lambda e: e.set(field, value(e)))


_field("magic-wrong", "Magic overwritten", "The file does not begin with QFI\\xfb.", "magic", lambda e: 0x12345678)
_field("version-unknown", "Unknown version", "The version is 9.", "version", lambda e: 9)
_field(
    "version-downgraded",
    "Version 2 in a version 3 image",
    "Feature bits and zero flags are not seen.",
    "version",
    lambda e: 2,
)
_field("cluster-bits-small", "Cluster size too small", "cluster_bits is 3.", "cluster_bits", lambda e: 3)
_field("cluster-bits-large", "Cluster size too large", "cluster_bits is 40.", "cluster_bits", lambda e: 40)
_field(
    "cluster-bits-wrong",
    "Cluster size doubled",
    "cluster_bits is 13, the image was made with 12.",
    "cluster_bits",
    lambda e: 13,
)
_field("size-huge", "Disk size absurd", "The disk is said to be 2^62 bytes.", "size", lambda e: 1 << 62)
_field(
    "size-grown",
    "Disk larger than its L1 table",
    "The disk is twice what the L1 table maps.",
    "size",
    lambda e: e.get("size") * 2,
    "l1",
)
_field(
    "size-shrunk",
    "Disk size too small",
    "The disk is cut to 1 MiB; data lies behind its end.",
    "size",
    lambda e: 1 * M,
    "lost",
)
_field("crypt-unknown", "Unknown encryption method", "crypt_method is 7.", "crypt_method", lambda e: 7)
_field(
    "crypt-luks-no-header",
    "LUKS without a LUKS header",
    "crypt_method is 2, but the extension is missing.",
    "crypt_method",
    lambda e: 2,
    "luks",
)
_field(
    "l1-offset-unaligned",
    "L1 table not aligned",
    "The header's L1 offset is not a cluster's.",
    "l1_table_offset",
    lambda e: e.l1_offset + 512,
    "l1 unaligned",
)
_field(
    "l1-offset-past-eof",
    "L1 table past the end",
    "The header's L1 offset is far past the end.",
    "l1_table_offset",
    lambda e: FAR,
    "l1 eof",
)
_field(
    "l1-offset-zero",
    "L1 table offset 0",
    "The header names itself as L1 table.",
    "l1_table_offset",
    lambda e: 0,
    "l1 overlap",
)
_field(
    "l1-offset-l2",
    "L1 offset aimed at an L2 table",
    "The header's L1 offset names an L2 table.",
    "l1_table_offset",
    lambda e: e.l2_table(0),
    "l1 overlap",
)
_field(
    "l1-offset-data",
    "L1 offset aimed at data",
    "The header's L1 offset names guest data.",
    "l1_table_offset",
    lambda e: e.host_of(0),
    "l1 overlap",
)
_field("l1-size-small", "L1 table too short", "l1_size is 2; the disk needs 8.", "l1_size", lambda e: 2, "l1 lost")
_field("l1-size-zero", "L1 table of no entries", "l1_size is 0.", "l1_size", lambda e: 0, "l1 lost")
_field("l1-size-huge", "L1 table too large", "l1_size is 2^31.", "l1_size", lambda e: 1 << 31, "l1")
_field(
    "l1-size-over-neighbour",
    "L1 table reaches into its neighbours",
    "l1_size is 1024: two clusters.",
    "l1_size",
    lambda e: 1024,
    "l1 overlap",
)
_field("refcount-order-large", "Refcount width unknown", "refcount_order is 7.", "refcount_order", lambda e: 7)
_field(
    "refcount-order-wrong",
    "Refcount width wrong",
    "refcount_order says 8 bits, the blocks have 16.",
    "refcount_order",
    lambda e: 3,
    "refcount",
)
_field("header-length-small", "Header length too small", "header_length is 72.", "header_length", lambda e: 72)
_field("header-length-unaligned", "Header length odd", "header_length is 107.", "header_length", lambda e: 107)
_field(
    "header-length-huge", "Header longer than its cluster", "header_length is 8192.", "header_length", lambda e: 8192
)
_field(
    "compression-type-unknown",
    "Unknown compression type",
    "compression_type is 9.",
    "compression_type",
    lambda e: 9,
    base="zstd-4k",
)
_field(
    "compression-type-reset",
    "zstd bit with zlib type",
    "The feature bit says not zlib, the field says zlib.",
    "compression_type",
    lambda e: 0,
    base="zstd-4k",
)
_field(
    "compression-bit-missing",
    "zstd without its feature bit",
    "compression_type is zstd, the bit is clear.",
    "incompatible_features",
    lambda e: 0,
    base="zstd-4k",
)


def _bits(name: str, title: str, wrong: str, field: str, mask: int, base: str = MANY, tags: str = "") -> None:
    add(name, base, title, wrong, "feature " + tags, lambda e: e.set_bits(field, mask))


_bits(
    "dirty",
    "Dirty bit set",
    "Refcounts may be stale: the image was not closed.",
    "incompatible_features",
    DIRTY,
    "lazy-refcounts",
    "dirty",
)
_bits(
    "corrupt",
    "Corrupt bit set",
    "QEMU saw damage and refuses to write.",
    "incompatible_features",
    CORRUPT,
    tags="corrupt",
)
_bits(
    "dirty-corrupt",
    "Dirty and corrupt bits set",
    "Both bits are set.",
    "incompatible_features",
    DIRTY | CORRUPT,
    tags="dirty corrupt",
)
_bits(
    "feature-incompatible-unknown",
    "Unknown incompatible feature",
    "Bit 45 is set: nobody may open it.",
    "incompatible_features",
    1 << 45,
)
_bits(
    "feature-autoclear-unknown",
    "Unknown autoclear feature",
    "Bit 50 is set; a writer clears it.",
    "autoclear_features",
    1 << 50,
)
_bits(
    "feature-data-file-alone",
    "Data file bit without a name",
    "The bit is set, the extension is missing.",
    "incompatible_features",
    DATA_FILE,
)
_bits(
    "feature-data-raw-alone",
    "Raw data file bit without a data file",
    "An autoclear bit makes no sense alone.",
    "autoclear_features",
    2,
)
_bits(
    "feature-extended-alone",
    "Extended L2 bit on standard tables",
    "Entries are read as 16 bytes.",
    "incompatible_features",
    EXTENDED_L2,
    "v3-16k",
)
_bits(
    "feature-bitmaps-alone",
    "Bitmaps bit without its extension",
    "The autoclear bit stands alone.",
    "autoclear_features",
    1,
)


@recipe(
    "dirty-stale",
    "lazy-refcounts",
    "Crash with lazy refcounts",
    "The dirty bit is set and refcounts are behind.",
    "feature dirty low",
)
def _dirty_stale(e: Editor) -> None:
    e.set_bits("incompatible_features", DIRTY)
    for guest in e.guests("data")[-3:]:
        e.set_refcount(e.host_of(guest), 0)


@recipe(
    "extension-overrun", MANY, "Header extension overruns", "Its length reaches past the header cluster.", "extension"
)
def _ext_overrun(e: Editor) -> None:
    e.write(e.extensions_end, struct.pack(">II", 0x51574232, 1 << 20))


@recipe(
    "extension-overrun-backing",
    BACKED,
    "Header extension over the backing name",
    "Its length covers the name.",
    "extension backing",
)
def _ext_over_name(e: Editor) -> None:
    e.put(e.extension(EXT_BACKING_FORMAT).offset + 4, 5000, 4)


@recipe(
    "extension-double",
    BACKED,
    "Backing format given twice",
    "Two extensions of one type disagree.",
    "extension backing",
)
def _ext_double(e: Editor) -> None:
    e.add_extension(EXT_BACKING_FORMAT, b"qcow2")


@recipe(
    "extension-bitmaps-double", "bitmaps", "Bitmaps extension twice", "Two bitmaps extensions.", "extension bitmaps"
)
def _bitmaps_double(e: Editor) -> None:
    ext = e.extension(EXT_BITMAPS)
    e.add_extension(EXT_BITMAPS, e.read(ext.data, ext.length))


@recipe(
    "extension-feature-names-odd",
    "v3-16k",
    "Feature name table of odd length",
    "Its length is no multiple of 48.",
    "extension",
)
def _names_odd(e: Editor) -> None:
    e.put(e.extension(EXT_FEATURE_NAMES).offset + 4, 380, 4)


@recipe(
    "extension-noise",
    "v3-16k",
    "Header extensions overwritten",
    "Random bytes stand where extensions were.",
    "extension",
)
def _ext_noise(e: Editor) -> None:
    e.write(e.header_length, noise(64, 70))


@recipe(
    "extension-data-file-lost",
    "data-file",
    "Data file name lost",
    "The bit is set, the name is gone.",
    "extension data-file",
)
def _data_lost(e: Editor) -> None:
    e.remove_extension(EXT_DATA_FILE)


@recipe(
    "extension-data-file-alone",
    "data-file",
    "Data file name without its bit",
    "Offsets are taken as this file's.",
    "extension data-file",
)
def _data_bit_lost(e: Editor) -> None:
    e.clear_bits("incompatible_features", DATA_FILE)


@recipe("extension-crypto-alone", MANY, "LUKS extension without encryption", "crypt_method is 0.", "extension luks")
def _crypto_alone(e: Editor) -> None:
    e.add_extension(EXT_CRYPTO, struct.pack(">QQ", C, 2 * C))


@recipe(
    "extension-backing-format-alone",
    MANY,
    "Backing format without a backing file",
    "The extension stands alone.",
    "extension backing",
)
def _format_alone(e: Editor) -> None:
    e.add_extension(EXT_BACKING_FORMAT, b"raw")


# -- backing files -----------------------------------------------------------------------------------------------------


def _rename_backing(e: Editor, name: bytes) -> None:
    e.write(e.get("backing_file_offset"), name)
    e.set("backing_file_size", len(name))


@recipe("backing-missing", BACKED, "Backing file missing", "The header names a file that is not there.", "backing")
def _missing(e: Editor) -> None:
    _rename_backing(e, b"nowhere.raw")


@recipe(
    "backing-cyclic",
    "backing-qcow2",
    "Image backed by itself",
    "The backing chain is a circle.",
    "backing cycle qemu-hangs",
)
def _cyclic(e: Editor) -> None:
    _rename_backing(e, e.path.name.encode())


@recipe(
    "backing-format-lost",
    BACKED,
    "Backing format not recorded",
    "The format is guessed: a guest could choose it.",
    "backing security",
)
def _format_lost(e: Editor) -> None:
    e.remove_extension(EXT_BACKING_FORMAT)


@recipe("backing-format-wrong", BACKED, "Backing format wrong", "The base is raw, the header says qcow2.", "backing")
def _format_wrong(e: Editor) -> None:
    e.remove_extension(EXT_BACKING_FORMAT)
    e.add_extension(EXT_BACKING_FORMAT, b"qcow2")


@recipe(
    "backing-format-unknown", BACKED, "Backing format unknown", "The header names a format nobody knows.", "backing"
)
def _format_unknown(e: Editor) -> None:
    e.remove_extension(EXT_BACKING_FORMAT)
    e.add_extension(EXT_BACKING_FORMAT, b"qcow9")


_field(
    "backing-name-long",
    "Backing name too long",
    "Its length is 4000 bytes.",
    "backing_file_size",
    lambda e: 4000,
    "backing",
    BACKED,
)
_field(
    "backing-name-outside",
    "Backing name outside the header",
    "Its offset is far away.",
    "backing_file_offset",
    lambda e: FAR,
    "backing",
    BACKED,
)
_field(
    "backing-name-empty",
    "Backing name of no bytes",
    "An offset is given, the length is 0.",
    "backing_file_size",
    lambda e: 0,
    "backing",
    BACKED,
)


# -- the file's length -------------------------------------------------------------------------------------------------


def _cut(name: str, title: str, wrong: str, size: Callable[[Editor], int], base: str = MANY) -> None:
    add(name, base, title, wrong, "truncated", lambda e: e.truncate(size(e)))


_cut("truncated-half", "File cut in half", "The second half of the file is gone.", lambda e: e.file_size // 2 // C * C)
_cut(
    "truncated-last-cluster",
    "Last cluster lost",
    "The file ends one cluster early.",
    lambda e: (e.file_size - 1) // C * C,
)
_cut(
    "truncated-mid-cluster",
    "File cut inside a cluster",
    "The last cluster is incomplete.",
    lambda e: (e.file_size - 1) // C * C + 1024,
)
_cut("truncated-after-l1", "File cut behind the L1 table", "Every L2 table is gone.", lambda e: e.l1_offset + C)
_cut("truncated-in-l1", "File cut inside the L1 table", "The L1 table is incomplete.", lambda e: e.l1_offset + 24)
_cut("truncated-header", "Only the header left", "The file ends behind its header.", lambda e: 112)
_cut("truncated-in-header", "Half a header", "The file has 60 bytes.", lambda e: 60)
_cut("truncated-empty", "Empty file", "The file has no bytes.", lambda e: 0)
_cut(
    "truncated-snapshots",
    "File cut before the snapshot table",
    "The snapshot table is gone.",
    lambda e: e.get("snapshots_offset"),
    "snapshots",
)


@recipe("tail-garbage", MANY, "Garbage behind the end", "Bytes were appended that nothing refers to.", "tail")
def _tail(e: Editor) -> None:
    e.write(-(-e.file_size // C) * C, noise(5 * C + 100, 71))


@recipe("tail-zeros", MANY, "Zeros behind the end", "The file is longer than the image.", "tail")
def _tail_zeros(e: Editor) -> None:
    e.truncate(-(-e.file_size // C) * C + 20 * C)


@recipe("header-wiped", MANY, "Header wiped", "The first 512 bytes are zeros.", "header lost")
def _wiped(e: Editor) -> None:
    e.wipe(0, 512)
