"""Bit layouts of the entries of mapping, refcount and bitmap tables (spec: Cluster mapping, Host cluster management, Bitmap
table), and the masks that follow from them. `entries` reads with them, `tables` makes schemas of them; nothing else
should need a mask.
"""

from __future__ import annotations

from functools import cache
from typing import Any, Final

from formats.bitfields import Bit, BitLayout, Bits

MAPPING = "qcow2: Cluster mapping"
EXTENDED = "qcow2: Extended L2 Entries"

OFFSET_MASK: Final = 0x00FF_FFFF_FFFF_FE00
"""Bits 9-55: the host offset in L1, standard L2 and bitmap table entries."""
REFCOUNT_OFFSET_MASK: Final = 0xFFFF_FFFF_FFFF_FE00
"""Bits 9-63: the host offset in refcount table entries."""
COPIED: Final = 1 << 63
COMPRESSED: Final = 1 << 62
ZERO: Final = 1
ALL_ONES: Final = 1

L1_ENTRY: Final = BitLayout(
    "l1-entry",
    64,
    (
        Bits("reserved_low", 0, 8, "Must be zero.", MAPPING, reserved=True),
        Bits("offset", 9, 55, "Where the L2 table starts; 0: all of its range is unallocated.", MAPPING, "bytes", True),
        Bits("reserved_high", 56, 62, "Must be zero.", MAPPING, reserved=True),
        Bit("copied", 63, "The L2 table's refcount is exactly one, so it may be written in place.", MAPPING),
    ),
)
L2_STANDARD: Final = BitLayout(
    "l2-entry",
    64,
    (
        Bit("zero", 0, "The cluster reads as zeros, whatever the offset says.", MAPPING),
        Bits("reserved_low", 1, 8, "Must be zero.", MAPPING, reserved=True),
        Bits("offset", 9, 55, "Host offset of the cluster; 0: unallocated.", MAPPING, "bytes", True),
        Bits("reserved_high", 56, 61, "Must be zero.", MAPPING, reserved=True),
        Bit("compressed", 62, "0: a standard cluster.", MAPPING),
        Bit("copied", 63, "The cluster's refcount is exactly one, so it may be written in place.", MAPPING),
    ),
)
L2_EXTENDED: Final = BitLayout(
    "l2-entry-extended",
    64,
    (
        Bits("reserved_low", 0, 8, "Must be zero; subclusters carry the zero state.", EXTENDED, reserved=True),
        *L2_STANDARD.fields[2:],
    ),
)
SUBCLUSTER_BITMAP: Final = BitLayout(
    "subcluster-bitmap",
    64,
    (
        Bits("allocated", 0, 31, "Bit x: subcluster x has data at the host offset.", EXTENDED, "subclusters"),
        Bits("zero", 32, 63, "Bit x: subcluster x reads as zeros.", EXTENDED, "subclusters"),
    ),
)
REFCOUNT_TABLE_ENTRY: Final = BitLayout(
    "refcount-table-entry",
    64,
    (
        Bits("reserved", 0, 8, "Must be zero.", "qcow2: Host cluster management", reserved=True),
        Bits(
            "offset",
            9,
            63,
            "Where the refcount block starts; 0: all of its clusters are free.",
            "qcow2: Host cluster management",
            "bytes",
            True,
        ),
    ),
)
BITMAP_TABLE_ENTRY: Final = BitLayout(
    "bitmap-table-entry",
    64,
    (
        Bit("all_ones", 0, "With offset 0: the cluster reads as ones instead of zeros.", "qcow2: Bitmap table"),
        Bits("reserved_low", 1, 8, "Must be zero.", "qcow2: Bitmap table", reserved=True),
        Bits(
            "offset", 9, 55, "Host offset of a cluster of bitmap data; 0: none.", "qcow2: Bitmap table", "bytes", True
        ),
        Bits("reserved_high", 56, 63, "Must be zero.", "qcow2: Bitmap table", reserved=True),
    ),
)


@cache
def compressed_layout(cluster_bits: int) -> BitLayout:
    """Layout of a compressed cluster descriptor: the split x = 62 - (cluster_bits - 8) moves with the cluster size."""
    split = 62 - (cluster_bits - 8)
    spec = "qcow2: Compressed Clusters Descriptor"
    offset_top = min(split - 1, 55)
    parts = [Bits("offset", 0, offset_top, "Host offset of the compressed data; any byte.", spec, "bytes")]
    if offset_top < split - 1:
        parts.append(Bits("reserved", offset_top + 1, split - 1, "Must be zero.", spec, reserved=True))
    parts += [
        Bits("sectors", split, 61, "512-byte sectors beyond the one with the offset.", spec, "sectors"),
        Bit("compressed", 62, "1: a compressed cluster.", spec),
        Bit("copied", 63, "Must be zero for compressed clusters.", spec),
    ]
    return BitLayout("l2-entry-compressed", 64, tuple(parts))


def compressed_range(entry: Any, cluster_bits: int) -> tuple[Any, Any]:
    """(host offset, end) in bytes that a compressed descriptor's sectors cover; ints or uint64 arrays.

    The length runs to the end of the last sector, so it is an upper bound of the compressed data.
    """
    split = 62 - (cluster_bits - 8)
    offset_mask = (1 << split) - 1
    if isinstance(entry, int):
        offset = entry & offset_mask
        sectors = (entry >> split) & ((1 << (62 - split)) - 1)
        return offset, (offset & ~511) + (sectors + 1) * 512
    import numpy as np

    offset = entry & np.uint64(offset_mask)
    sectors = (entry >> np.uint64(split)) & np.uint64((1 << (62 - split)) - 1)
    return offset, (offset & np.uint64(~511 & ((1 << 64) - 1))) + (sectors + np.uint64(1)) * np.uint64(512)


def compressed_entry(offset: int, length: int, cluster_bits: int) -> int:
    """Descriptor for `length` bytes of compressed data at host `offset`."""
    split = 62 - (cluster_bits - 8)
    sectors = ((offset + length - 1) >> 9) - (offset >> 9)
    return COMPRESSED | (sectors << split) | offset


def l2_layout(word: int, cluster_bits: int, extended: bool) -> BitLayout:
    """The layout that applies to this L2 entry word."""
    if word & COMPRESSED:
        return compressed_layout(cluster_bits)
    return L2_EXTENDED if extended else L2_STANDARD
