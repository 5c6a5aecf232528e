"""What stands in the structure tree: kinds of structures and items with stable keys."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from formats.qcow2.header import field
from workbench.engine.structures import Part

GROUP: Final = 64
MAX_LUKS_SHOWN: Final = 8 << 20


class Kind(StrEnum):
    """What sort of structure an item is; decides its views."""

    FILE = "file"
    HEADER = "header"
    FEATURES = "features"
    EXTENSIONS = "extensions"
    EXTENSION = "extension"
    BACKING = "backing"
    LAYER = "layer"
    DATA_FILE = "data-file"
    L1 = "l1"
    L2 = "l2"
    SNAPSHOTS = "snapshots"
    SNAPSHOT = "snapshot"
    REFCOUNT_TABLE = "refcount-table"
    REFCOUNT_BLOCK = "refcount-block"
    BITMAPS = "bitmaps"
    BITMAP = "bitmap"
    BITMAP_TABLE = "bitmap-table"
    LUKS = "luks"
    KEY_SLOT = "key-slot"
    UNUSED = "unused"
    TAIL = "tail"
    GROUP = "group"
    DISK = "disk"


FEATURE_BYTES: Final = field("incompatible_features", "autoclear_features")
"""Where the three words of feature bits are in a version 3 header."""

PARTS: Final = {
    Kind.HEADER: Part.HEADER,
    Kind.FEATURES: Part.HEADER,
    Kind.EXTENSION: Part.EXTENSION,
    Kind.BACKING: Part.BACKING_NAME,
    Kind.SNAPSHOT: Part.SNAPSHOT,
    Kind.BITMAP: Part.BITMAP,
    Kind.LUKS: Part.LUKS,
    Kind.KEY_SLOT: Part.LUKS,
}


def share_words(part: int, whole: int) -> str:
    """`3% full`; never 0% of something, never 100% of less than all."""
    percent = part * 100 // max(1, whole)
    return "full" if part >= whole else f"{percent}% full" if percent else "<1% full"


CHAINED: Final = {Kind.BACKING, Kind.LAYER}
TABLES: Final = {Kind.L1, Kind.L2, Kind.REFCOUNT_TABLE, Kind.REFCOUNT_BLOCK, Kind.BITMAP_TABLE}


@dataclass(frozen=True, slots=True)
class Item:
    """One node. offset, length: host bytes (a length of 0: nothing in the file).  note: said beside the label.

    mark: "" fine, "warn", "bad"; why: the reason of the mark.  index: position in the table that points here, -1 without.
    """

    key: str
    label: str
    kind: Kind
    offset: int = 0
    length: int = 0
    note: str = ""
    mark: str = ""
    why: str = ""
    branch: bool = False
    index: int = -1

    @property
    def end(self) -> int:
        return self.offset + self.length
