"""What do these bytes look like? Probes of a cluster's content, cheap first. Pure: bytes in, a verdict out."""

from __future__ import annotations

from typing import Final

import numpy as np

from formats.qcow2.entries import Fault, L2Entries, Shape, packed_range
from formats.qcow2.tables import distinct, words
from workbench.engine.codecs import is_stream

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
_MOSTLY: Final = 0.9
"""Share of right entries over which something looks like a table."""
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


def is_table_like(data: bytes, file_size: int, cluster_bits: int) -> bool:
    """Whether `data` looks like an L2 table: more than nine of ten entries lead into a file of `file_size` bytes.

    Standard entries must have no reserved bits and be cluster aligned; compressed ones must not carry COPIED.
    """
    table = words(data)
    used = table[table != 0]
    if not used.size:
        return False
    each, cluster = L2Entries(used, Shape(cluster_bits)), 1 << cluster_bits
    if used.size < 8 and each.packed.mean() > 0.5:
        return False
    good = each.standard & ~each.fault(Fault.RESERVED) & ~each.fault(Fault.UNALIGNED)
    good &= (each.offset < file_size) & ((each.offset != 0) | (used == 1))
    if (good | each.packed).mean() <= _MOSTLY:
        return False
    start, end = packed_range(used, each.shape)
    good |= each.packed & ~each.copied & (start >= cluster) & (end <= file_size + cluster)
    if good.mean() <= _MOSTLY:
        return False
    # Distinct entries: a pattern repeated over a cluster is no table.
    return used.size <= 4 or distinct(used).size * 2 >= used.size or not (used > 1).any()


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
    if is_table_like(data, file_size, cluster_bits):
        return "an L2 table"
    if is_stream(data, 1 << cluster_bits, cut=True):
        return "a compressed stream"
    sample = data[:4096]
    if len(sample.translate(None, _UNPRINTABLE)) > 0.95 * len(sample):
        return "text"
    return "data"
