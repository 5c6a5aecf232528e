"""Entries of the mapping and refcount tables (spec: Cluster mapping, Host cluster management, Bitmap table).

The layouts serve single entries (construct, annotate) and whole tables (numpy) alike. Tables are decoded by `words`.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any, Final

from construct import If, Struct

from formats.annotate import U64, Field, Records
from formats.bitfields import Bit, BitLayout, Bits

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

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


def words(data: bytes | bytearray | memoryview) -> NDArray[np.uint64]:
    """Native uint64 array of a table's big-endian entries; a rest of under 8 bytes is left out."""
    import numpy as np

    usable = len(data) & ~7
    return np.frombuffer(memoryview(data)[:usable], dtype=">u8").astype(np.uint64)


def table_bytes(entries: NDArray[np.uint64]) -> bytes:
    """Inverse of `words`."""
    return entries.astype(">u8").tobytes()


L1_SCHEMA: Final = Struct(
    Field("entry", U64, "Pointer to one L2 table.", MAPPING, bits=L1_ENTRY),
)
L2_SCHEMA: Final = Struct(
    Field(
        "entry",
        U64,
        "What one guest cluster maps to.",
        MAPPING,
        bits=lambda word, params: l2_layout(word, params["cluster_bits"], params.get("extended", False)),
    ),
    Field(
        "subclusters",
        If(lambda context: context._params.get("extended", False), U64),
        "Which of the cluster's 32 subclusters are allocated or zero.",
        EXTENDED,
        bits=SUBCLUSTER_BITMAP,
    ),
)
REFCOUNT_TABLE_SCHEMA: Final = Struct(
    Field("entry", U64, "Pointer to one refcount block.", "qcow2: Host cluster management", bits=REFCOUNT_TABLE_ENTRY),
)
BITMAP_TABLE_SCHEMA: Final = Struct(
    Field("entry", U64, "Pointer to one cluster of bitmap data.", "qcow2: Bitmap table", bits=BITMAP_TABLE_ENTRY),
)

_ENTRY_DOCS: Final = {
    "l1": (8, L1_SCHEMA, "One L1 entry.", MAPPING),
    "l2": (8, L2_SCHEMA, "One L2 entry.", MAPPING),
    "l2-extended": (16, L2_SCHEMA, "One extended L2 entry.", EXTENDED),
    "refcount-table": (8, REFCOUNT_TABLE_SCHEMA, "One refcount table entry.", "qcow2: Host cluster management"),
    "bitmap-table": (8, BITMAP_TABLE_SCHEMA, "One bitmap table entry.", "qcow2: Bitmap table"),
}


@cache
def table_schema(kind: str) -> Any:
    """Schema of a run of entries: kind is l1, l2, l2-extended, refcount-table or bitmap-table."""
    size, schema, doc, spec = _ENTRY_DOCS[kind]
    return Struct(Field("entries", Records(size, Field("row", schema, doc, spec)), "The entries in order.", spec))
