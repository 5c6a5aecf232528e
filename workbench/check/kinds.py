"""Who can own a host cluster, and the flag byte that the census keeps per cluster."""

from __future__ import annotations

from enum import IntEnum
from typing import Final


class Owner(IntEnum):
    """Kinds of owners of host clusters. `bit` is the owner's place in a mask of kinds (16 bits)."""

    HEADER = 0
    ACTIVE_L1 = 1
    ACTIVE_L2 = 2
    REFCOUNT_TABLE = 3
    REFCOUNT_BLOCK = 4
    SNAPSHOT_TABLE = 5
    INACTIVE_L1 = 6
    INACTIVE_L2 = 7
    BITMAP_DIRECTORY = 8
    BITMAP_TABLE = 9
    BITMAP_DATA = 10
    LUKS_HEADER = 11
    DATA = 12
    COMPRESSED = 13
    SNAPSHOT_DATA = 14

    @property
    def bit(self) -> int:
        return 1 << self.value

    @property
    def title(self) -> str:
        """Name for people, QEMU's where it has one."""
        return _TITLES[self]


_TITLES: Final = {
    Owner.HEADER: "header",
    Owner.ACTIVE_L1: "active L1 table",
    Owner.ACTIVE_L2: "active L2 table",
    Owner.REFCOUNT_TABLE: "refcount table",
    Owner.REFCOUNT_BLOCK: "refcount block",
    Owner.SNAPSHOT_TABLE: "snapshot table",
    Owner.INACTIVE_L1: "inactive L1 table",
    Owner.INACTIVE_L2: "inactive L2 table",
    Owner.BITMAP_DIRECTORY: "bitmap directory",
    Owner.BITMAP_TABLE: "bitmap table",
    Owner.BITMAP_DATA: "bitmap data",
    Owner.LUKS_HEADER: "LUKS header",
    Owner.DATA: "guest data",
    Owner.COMPRESSED: "compressed guest data",
    Owner.SNAPSHOT_DATA: "snapshot data",
}

# The census' flag byte per host cluster.
METADATA: Final = 0x01
"""Some metadata structure lies here; which one is looked up among the claims."""
DATA: Final = 0x02
"""Referenced as a standard cluster by the active L2 tables."""
PACKED: Final = 0x04
"""Referenced by a compressed cluster descriptor (active or snapshot)."""
INACTIVE: Final = 0x08
"""Referenced as a standard cluster by a snapshot's L2 tables."""
STORED_ONE: Final = 0x10
"""The stored refcount is exactly 1."""
STORED: Final = 0x20
"""The stored refcount is not 0."""
UNREADABLE: Final = 0x40
"""The stored refcount cannot be read."""
CROSSED: Final = 0x80
"""Two standard clusters of the active disk lie here."""
