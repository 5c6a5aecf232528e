"""The first blocks of file systems, as far as they say what they are and how long: ext2/3/4, XFS, NTFS, FAT, btrfs, swap.

Every `parse_*` takes the bytes at its own place and gives a `Volume` only when the block is consistent with itself.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from construct import Bytes, Struct

from formats.annotate import L16, L32, L64, U8, U16, U32, U64, Field

_EXT = "ext4: Super Block"
_XFS = "XFS: Superblocks"
_NTFS = "NTFS: boot sector"
_FAT = "FAT: 3.1 BPB"
_BTRFS = "btrfs: Superblock"
_SWAP = "Linux: mm/swapfile, swap header"

EXT_MAGIC: Final = 0xEF53
EXT_64BIT: Final = 0x80
EXT_EXTENTS: Final = 0x40
EXT_JOURNAL: Final = 0x04

EXT_SCHEMA: Final = Struct(
    Field("inodes", L32, "Number of inodes.", _EXT),
    Field("blocks_low", L32, "Number of blocks, low half.", _EXT, unit="blocks"),
    Field("reserved_blocks", L32, "Blocks kept for root.", _EXT, unit="blocks"),
    Field("free_blocks", L32, "Free blocks.", _EXT, unit="blocks"),
    Field("free_inodes", L32, "Free inodes.", _EXT),
    Field("first_data_block", L32, "The block that holds the superblock.", _EXT, unit="blocks"),
    Field("log_block_size", L32, "Block size is 1024 shifted left by this.", _EXT),
    Field("log_cluster_size", L32, "The same for clusters (bigalloc).", _EXT),
    Field("blocks_per_group", L32, "Blocks of a group.", _EXT, unit="blocks"),
    Field("clusters_per_group", L32, "Clusters of a group.", _EXT),
    Field("inodes_per_group", L32, "Inodes of a group.", _EXT),
    Field("times", Bytes(12), "Mount and write time, counts.", _EXT),
    Field("magic", L16, "0xef53.", _EXT),
    Field("state", L16, "Clean or not.", _EXT),
    Field("errors", L16, "What to do about errors.", _EXT),
    Field("minor", L16, "Minor revision.", _EXT),
    Field("checks", Bytes(16), "When it was checked, who made it.", _EXT),
    Field("revision", L32, "0, or 1 for dynamic inode sizes.", _EXT),
    Field("owners", Bytes(8), "Default owner, first inode.", _EXT),
    Field("inode_size", L16, "Bytes of an inode.", _EXT, unit="bytes"),
    Field("group", L16, "The block group that holds this copy.", _EXT),
    Field("compatible", L32, "Compatible features.", _EXT),
    Field("incompatible", L32, "Incompatible features.", _EXT),
    Field("read_only", L32, "Features that allow reading.", _EXT),
    Field("uuid", Bytes(16), "UUID of the file system.", _EXT),
    Field("rest", Bytes(216), "Names, hashes, journal.", _EXT),
    Field("blocks_high", L32, "Number of blocks, high half.", _EXT, unit="blocks"),
)
XFS_SCHEMA: Final = Struct(
    Field("magic", Bytes(4), "'XFSB'.", _XFS),
    Field("block_size", U32, "Bytes of a block.", _XFS, unit="bytes"),
    Field("blocks", U64, "Number of blocks.", _XFS, unit="blocks"),
    Field("realtime", Bytes(16), "Realtime device.", _XFS),
    Field("uuid", Bytes(16), "UUID of the file system.", _XFS),
    Field("roots", Bytes(36), "Log and inodes.", _XFS),
    Field("group_blocks", U32, "Blocks of an allocation group.", _XFS, unit="blocks"),
    Field("groups", U32, "Number of allocation groups.", _XFS),
    Field("maps", Bytes(8), "Realtime bitmap, log.", _XFS),
    Field("version", U16, "Version and features.", _XFS),
    Field("sector_size", U16, "Bytes of a sector.", _XFS, unit="bytes"),
)
NTFS_SCHEMA: Final = Struct(
    Field("jump", Bytes(3), "Jump to the boot code.", _NTFS),
    Field("name", Bytes(8), "'NTFS    '.", _NTFS),
    Field("sector_size", L16, "Bytes of a sector.", _NTFS, unit="bytes"),
    Field("cluster_sectors", U8, "Sectors of a cluster.", _NTFS, unit="sectors"),
    Field("zeros", Bytes(26), "Fields of FAT.", _NTFS),
    Field("sectors", L64, "Sectors of the volume but its last, the boot sector's copy.", _NTFS, unit="sectors"),
    Field("table", L64, "First cluster of $MFT.", _NTFS, unit="clusters"),
    Field("mirror", L64, "First cluster of $MFTMirr.", _NTFS, unit="clusters"),
)
FAT_SCHEMA: Final = Struct(
    Field("jump", Bytes(3), "Jump to the boot code.", _FAT),
    Field("name", Bytes(8), "Who made it.", _FAT),
    Field("sector_size", L16, "Bytes of a sector.", _FAT, unit="bytes"),
    Field("cluster_sectors", U8, "Sectors of a cluster.", _FAT, unit="sectors"),
    Field("reserved", L16, "Sectors before the first table.", _FAT, unit="sectors"),
    Field("tables", U8, "Number of allocation tables.", _FAT),
    Field("root_entries", L16, "Entries of the root directory; 0 for FAT32.", _FAT),
    Field("sectors_16", L16, "Sectors of the volume, if they fit.", _FAT, unit="sectors"),
    Field("media", U8, "Media byte.", _FAT),
    Field("table_sectors_16", L16, "Sectors of a table; 0 for FAT32.", _FAT, unit="sectors"),
    Field("geometry", Bytes(4), "Sectors of a track, heads.", _FAT),
    Field("hidden", L32, "Sectors before the volume.", _FAT, unit="sectors"),
    Field("sectors_32", L32, "Sectors of the volume otherwise.", _FAT, unit="sectors"),
    Field("table_sectors_32", L32, "Sectors of a table of FAT32.", _FAT, unit="sectors"),
)
BTRFS_AT: Final = 0x10000
"""Where the superblock lies, from the start of the volume in bytes."""
BTRFS_SCHEMA: Final = Struct(
    Field("checksum", Bytes(32), "Checksum of the rest.", _BTRFS),
    Field("fsid", Bytes(16), "UUID of the file system.", _BTRFS),
    Field("place", L64, "Where this block lies.", _BTRFS, unit="bytes"),
    Field("flags", L64, "Flags.", _BTRFS),
    Field("magic", Bytes(8), "'_BHRfS_M'.", _BTRFS),
    Field("generation", L64, "Generation.", _BTRFS),
    Field("roots", Bytes(32), "Trees.", _BTRFS),
    Field("total", L64, "Bytes of all devices.", _BTRFS, unit="bytes"),
    Field("used", L64, "Bytes in use.", _BTRFS, unit="bytes"),
    Field("root_directory", L64, "Object of the root directory.", _BTRFS),
    Field("devices", L64, "Number of devices.", _BTRFS),
)
SWAP_AT: Final = 1024
SWAP_SCHEMA: Final = Struct(
    Field("version", L32, "1.", _SWAP),
    Field("last_page", L32, "The last page.", _SWAP, unit="pages"),
    Field("bad_pages", L32, "Number of bad pages.", _SWAP, unit="pages"),
)
_PAGE: Final = 4096

Read = Callable[[int, int], bytes]
"""(offset in bytes from the volume's start, length) -> up to that many bytes."""


@dataclass(frozen=True, slots=True)
class Volume:
    """A file system or swap area. name: as people call it.  length: bytes that it spans."""

    name: str
    length: int


def _power(value: int, least: int, most: int) -> bool:
    return least <= value <= most and not value & (value - 1)


def parse_ext(data: bytes) -> Volume | None:
    """An ext superblock; data: from 1,024 bytes into the volume on."""
    if len(data) < EXT_SCHEMA.sizeof():
        return None
    got: Any = EXT_SCHEMA.parse(data)
    if got.magic != EXT_MAGIC or got.log_block_size > 6 or not got.blocks_per_group or not got.inodes_per_group:
        return None
    blocks = got.blocks_low | (got.blocks_high << 32 if got.incompatible & EXT_64BIT else 0)
    if blocks <= got.first_data_block or (got.free_blocks > got.blocks_low and not got.incompatible & EXT_64BIT):
        return None
    return Volume(ext_name(got), blocks * (1024 << got.log_block_size))


def ext_name(got: Any) -> str:
    """ext2, ext3 or ext4, of a parsed superblock."""
    return "ext4" if got.incompatible & EXT_EXTENTS else "ext3" if got.compatible & EXT_JOURNAL else "ext2"


def parse_xfs(data: bytes) -> Volume | None:
    """An XFS superblock; data: from the volume's start on."""
    if len(data) < XFS_SCHEMA.sizeof() or data[:4] != b"XFSB":
        return None
    got: Any = XFS_SCHEMA.parse(data)
    groups = -(-got.blocks // got.group_blocks) if got.group_blocks else 0
    if not _power(got.block_size, 512, 65536) or not groups or groups != got.groups:
        return None
    return Volume("XFS", got.blocks * got.block_size)


def parse_ntfs(data: bytes) -> Volume | None:
    """An NTFS boot sector."""
    if len(data) < 512 or data[3:11] != b"NTFS    " or data[510:512] != b"\x55\xaa":
        return None
    got: Any = NTFS_SCHEMA.parse(data)
    if not _power(got.sector_size, 256, 4096) or not got.sectors or not got.cluster_sectors:
        return None
    return Volume("NTFS", (got.sectors + 1) * got.sector_size)


def parse_fat(data: bytes) -> Volume | None:
    """A FAT boot sector (12, 16 or 32)."""
    if len(data) < 512 or data[510:512] != b"\x55\xaa" or data[0] not in (0xEB, 0xE9):
        return None
    got: Any = FAT_SCHEMA.parse(data)
    sectors = got.sectors_16 or got.sectors_32
    tables = got.tables * (got.table_sectors_16 or got.table_sectors_32)
    sane = _power(got.sector_size, 512, 4096) and _power(got.cluster_sectors, 1, 128) and 1 <= got.tables <= 2
    if not sane or got.media < 0xF0 or not got.reserved or not tables or got.reserved + tables >= sectors:
        return None
    return Volume("FAT", sectors * got.sector_size)


def parse_btrfs(data: bytes) -> Volume | None:
    """A btrfs superblock; data: from 64 KiB into the volume on. Of several devices its own length is not known: None."""
    if len(data) < BTRFS_SCHEMA.sizeof() or data[64:72] != b"_BHRfS_M":
        return None
    got: Any = BTRFS_SCHEMA.parse(data)
    return Volume("btrfs", got.total) if got.place == BTRFS_AT and got.devices == 1 else None


def parse_swap(data: bytes) -> Volume | None:
    """A swap area of Linux with 4 KiB pages; data: from the volume's start on."""
    if len(data) < _PAGE or data[_PAGE - 10 : _PAGE] != b"SWAPSPACE2":
        return None
    got: Any = SWAP_SCHEMA.parse(data[SWAP_AT:])
    return Volume("swap", (got.last_page + 1) * _PAGE) if got.version == 1 and got.last_page else None


def recognise(read: Read) -> Volume | None:
    """The file system or swap area that begins where `read` counts from; None when nothing known does."""
    head = read(0, _PAGE)
    return (
        parse_ext(head[1024:])
        or parse_xfs(head)
        or parse_ntfs(head)
        or parse_fat(head)
        or parse_swap(head)
        or parse_btrfs(read(BTRFS_AT, _PAGE))
    )
