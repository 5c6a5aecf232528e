"""What do these bytes look like? Probes of a cluster's content, cheap first. Pure: bytes in, a verdict out."""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING, Final

import numpy as np

from formats.qcow2.tables import COMPRESSED, COPIED, L1_ENTRY, L2_STANDARD, OFFSET_MASK, compressed_range, words

if TYPE_CHECKING:
    from numpy.typing import NDArray

_MAGICS: Final = (  # (offset, bytes, name)
    (0, b"LUKS\xba\xbe", "LUKS header"),
    (0, b"QFI\xfb", "qcow2 header"),
    (3, b"NTFS    ", "NTFS file system"),
    (0x36, b"FAT", "FAT file system"),
    (0x52, b"FAT32", "FAT file system"),
    (3, b"EXFAT   ", "exFAT file system"),
    (0, b"XFSB", "XFS file system"),
    (0x438, b"\x53\xef", "ext file system"),
    (512, b"EFI PART", "GPT partition table"),
    (0x218, b"LVM2 001", "LVM physical volume"),
    (0x10040, b"_BHRfS_M", "btrfs file system"),
    (4096 - 10, b"SWAPSPACE2", "swap space"),
    (0x8001, b"CD001", "ISO 9660 file system"),
    (0, b"hsqs", "squashfs file system"),
    (0, b"FILE0", "NTFS file record"),
    (0, b"INDX", "NTFS index"),
    (0, b"XD2D", "XFS directory"),
    (0, b"IN\x41", "XFS inodes"),
    (0, b"SQLite format 3\0", "SQLite database"),
    (0, b"\x7fELF", "ELF program"),
    (0, b"\x1f\x8b\x08", "gzip data"),
    (0, b"PK\x03\x04", "zip archive"),
    (0, b"\x89PNG", "PNG picture"),
    (0, b"\xff\xd8\xff", "JPEG picture"),
    (0, b"%PDF-", "PDF document"),
    (0, b"\xfd7zXZ", "xz data"),
    (0, b"\x28\xb5\x2f\xfd", "zstd stream"),
)
_EXT_SUPER: Final = 0x438
_UNPRINTABLE: Final = bytes(byte for byte in range(256) if not 32 <= byte < 127 and byte not in b"\t\n\r")


def magic_of(data: bytes) -> str | None:
    """Name of a recognisable file system or file at the start of `data`, or None."""
    for offset, magic, name in _MAGICS:
        if data[offset : offset + len(magic)] == magic:
            if offset == _EXT_SUPER and not 0 < int.from_bytes(data[0x418:0x41C], "little") < 8:
                continue  # two bytes alone are no proof: the block size must make sense too
            return name
    if data[510:512] == b"\x55\xaa" and any(data[:440]):
        return "boot sector"
    return None


def is_deflate(data: bytes, cluster_size: int) -> bool:
    """Whether a raw deflate stream (as qemu writes compressed clusters) starts here."""
    if not data or data[0] & 6 == 6:
        return False
    stream = zlib.decompressobj(-15)
    try:
        out = stream.decompress(data, cluster_size)
    except zlib.error:
        return False
    # A run of stored bytes passes for a stream too easily.
    return len(out) >= min(cluster_size, 4 * 512) and data[0] & 6 != 0


def table_likeness(data: bytes, file_size: int, cluster_bits: int) -> tuple[float, NDArray[np.int64]]:
    """How much `data` looks like an L2 table: (0 to 1, host clusters that its standard entries point to).

    Entries must have no reserved bits, be cluster aligned and inside the file, and carry COPIED or be few.
    """
    table = words(data)
    used = table[table != 0]
    none = np.zeros(0, dtype=np.int64)
    if not used.size:
        return 0.0, none
    packed = (used & np.uint64(COMPRESSED)) != 0
    reserved = np.uint64(L2_STANDARD["reserved_low"].mask | L2_STANDARD["reserved_high"].mask)
    offset = used & np.uint64(OFFSET_MASK)
    low = np.uint64((1 << cluster_bits) - 1)
    good = (
        ~packed
        & ((used & reserved) == 0)
        & ((offset & low) == 0)
        & (offset < np.uint64(file_size))
        & ((offset != 0) | (used == np.uint64(1)))
    )
    start, end = compressed_range(used, cluster_bits)
    whole = packed & ((used & np.uint64(COPIED)) == 0) & (end <= np.uint64(file_size + (1 << cluster_bits)))
    good |= whole & (start > low)
    if packed.mean() > 0.5 and used.size < 8:
        return 0.0, none
    standard = good & ~packed & (offset != 0)
    clusters = (offset[standard] >> np.uint64(cluster_bits)).astype(np.int64)
    # Distinct targets: a pattern repeated over a cluster is no table.
    variety = np.unique(used).size / used.size
    if used.size > 4 and variety < 0.5 and (used > 1).any():
        return 0.0, none
    return float(good.mean()), clusters


def l1_likeness(data: bytes, file_size: int, cluster_bits: int) -> NDArray[np.uint64]:
    """Offsets that `data` holds as an L1 table would; empty when it does not look like one."""
    table = words(data)
    used = table[table != 0]
    reserved = np.uint64(L1_ENTRY["reserved_low"].mask | L1_ENTRY["reserved_high"].mask)
    offset = used & np.uint64(OFFSET_MASK)
    good = ((used & reserved) == 0) & (offset != 0) & (offset < np.uint64(file_size))
    good &= (offset & np.uint64((1 << cluster_bits) - 1)) == 0
    if not used.size or good.mean() < 1:
        return np.zeros(0, dtype=np.uint64)
    return table


def refcounts_likeness(data: bytes) -> bool:
    """Whether this looks like a block of 16-bit refcounts: small numbers, most of them the same."""
    values = np.frombuffer(data[: len(data) & ~1], dtype=">u2")
    used = values[values != 0]
    return bool(used.size >= 2 and (used <= 16).all() and (used == 1).mean() > 0.5)


def describe(data: bytes, file_size: int, cluster_bits: int) -> str:
    """One or two words for what a cluster holds."""
    if data.count(0) == len(data):
        return "zeros"
    found = magic_of(data)
    if found:
        return found
    if refcounts_likeness(data):
        return "a refcount block"
    if table_likeness(data, file_size, cluster_bits)[0] > 0.9:
        return "an L2 table"
    if is_deflate(data, 1 << cluster_bits):
        return "a compressed stream"
    sample = data[:4096]
    if len(sample.translate(None, _UNPRINTABLE)) > 0.95 * len(sample):
        return "text"
    return "data"
