"""Tables of entries: schemas of their rows, and their bytes as words (spec: Cluster mapping, Host cluster management, Bitmap table).

The layouts of `layouts` serve single entries (construct, annotate) and whole tables (numpy) alike. Tables are decoded by
`words`; what the words say is told by `entries`.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any, Final

from construct import If, Struct

from formats.annotate import U64, Field, Records
from formats.qcow2.layouts import (
    ALL_ONES,
    BITMAP_TABLE_ENTRY,
    COMPRESSED,
    COPIED,
    EXTENDED,
    L1_ENTRY,
    L2_EXTENDED,
    L2_STANDARD,
    MAPPING,
    OFFSET_MASK,
    REFCOUNT_OFFSET_MASK,
    REFCOUNT_TABLE_ENTRY,
    SUBCLUSTER_BITMAP,
    ZERO,
    compressed_entry,
    compressed_layout,
    compressed_range,
    l2_layout,
)

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

# The masks are named here for the proof of repairs, which reads entries for itself on purpose (see tests/test_structure.py).
__all__ = [
    "ALL_ONES",
    "BITMAP_TABLE_ENTRY",
    "BITMAP_TABLE_SCHEMA",
    "COMPRESSED",
    "COPIED",
    "EXTENDED",
    "L1_ENTRY",
    "L1_SCHEMA",
    "L2_EXTENDED",
    "L2_SCHEMA",
    "L2_STANDARD",
    "MAPPING",
    "OFFSET_MASK",
    "REFCOUNT_OFFSET_MASK",
    "REFCOUNT_TABLE_ENTRY",
    "REFCOUNT_TABLE_SCHEMA",
    "SUBCLUSTER_BITMAP",
    "ZERO",
    "compressed_entry",
    "compressed_layout",
    "compressed_range",
    "l2_layout",
    "table_bytes",
    "table_schema",
    "words",
]


def distinct(values: NDArray[Any]) -> NDArray[Any]:
    """The values of a 1-D array of integers, each once, in order. (`np.unique` hashes them, many times as slow.)"""
    import numpy as np

    ordered = np.sort(values)
    first = np.ones(ordered.size, dtype=bool)
    np.not_equal(ordered[1:], ordered[:-1], out=first[1:])
    return ordered[first]


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
