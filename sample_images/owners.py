"""Where things lie in the base images that most damage starts from: guest offsets, and one cluster of each kind of owner."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from sample_images.editor import MASK_OFFSET, Editor
from sample_images.kit import K

MANY = "many-l2"  # 4k clusters; L1 entries 0, 1, 3 and 7 have an L2 table of 512 entries
LUKS = "luks-aes-128-cbc-plain64"
C = 4 * K
FAR = 1 << 40  # a host offset far past the end of any sample

# Guest offsets in the standard content of MANY (see Kit.fill).
DATA, PATTERN, ZERO_KEPT, ZERO_PLAIN, PACKED, FREE = 0, 8 * C, 9 * C, 12 * C, 16 * C, 30 * C


@dataclass(frozen=True, slots=True)
class Owner:
    """A kind of owner of a host cluster: words for it, a base that has one, and its host offset there."""

    name: str
    words: str
    base: str
    where: Callable[[Editor], int]


def _snapshot_l2(e: Editor) -> int:
    return e.number(e.snapshots()[0].l1_offset) & MASK_OFFSET


def _bitmap_data(e: Editor) -> int:
    return e.number(e.bitmaps()[0].table_offset) & MASK_OFFSET


METADATA: tuple[Owner, ...] = (
    Owner("header", "the header", MANY, lambda e: 0),
    Owner("l1", "the L1 table", MANY, lambda e: e.l1_offset),
    Owner("l2", "an L2 table", MANY, lambda e: e.l2_table(0)),
    Owner("refcount-table", "the refcount table", MANY, lambda e: e.rt_offset),
    Owner("refcount-block", "a refcount block", MANY, lambda e: e.rt(0)),
    Owner("snapshot-table", "the snapshot table", "snapshots", lambda e: e.get("snapshots_offset")),
    Owner("snapshot-l1", "a snapshot's L1 table", "snapshots", lambda e: e.snapshots()[0].l1_offset),
    Owner("snapshot-l2", "a snapshot's L2 table", "snapshots", _snapshot_l2),
    Owner("bitmap-directory", "the bitmap directory", "bitmaps", lambda e: e.bitmaps()[0].offset),
    Owner("bitmap-table", "a bitmap table", "bitmaps", lambda e: e.bitmaps()[0].table_offset),
    Owner("bitmap-data", "bitmap data", "bitmaps", _bitmap_data),
    Owner("luks-header", "the LUKS header", LUKS, lambda e: e.luks()[0]),
)

GUEST_DATA: tuple[Owner, ...] = (
    Owner("data", "a data cluster", MANY, lambda e: e.host_of(DATA)),
    Owner("zero", "a preallocated zero cluster", MANY, lambda e: e.host_of(ZERO_KEPT)),
    Owner("compressed", "a cluster of compressed data", MANY, lambda e: e.compressed(PACKED)[0]),
)
