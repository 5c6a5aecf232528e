"""What a file is that does not begin with a qcow2 header: known by its magic, and by what the magic leads to.

Formats of disks, archives and texts are told from their first bytes alone. A partition table or a file system may also
be the guest's first cluster, written over the header of a qcow2 image by mistake; it makes the file a raw disk only when
it leads to something of its own further on, or when no table of a qcow2 image is left.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import Enum
from typing import Any, Final

from formats.guest import filesystems
from formats.guest.partitions import parse_gpt, parse_gpt_entries, parse_mbr
from formats.qcow2 import limits
from formats.qcow2.entries import offset_of
from formats.qcow2.header import MAGIC

Read = Callable[[int, int], bytes]
"""(offset, length in bytes) -> up to that many bytes; fewer at the end of the file."""

HEAD: Final = 1 << 20
"""Bytes from the start that are looked at."""
_OWN: Final = 1 << 16
"""What lies before this may have been written over the header's cluster; what lies behind is the file's own."""
_ZEROS: Final = 64 << 20
"""A longer file is not read to the end only to find that it is all zeros."""
_FAR: Final = 16 << 20
"""As far as tables of large clusters are looked for."""
_SECTOR: Final = 512


class Sort(Enum):
    """How a foreign file is to be taken."""

    DISK = "disk format"
    """A virtual disk of another program; qemu-img converts most of them."""
    RAW = "raw disk"
    """A disk without any format around it: the guest's bytes are the file's."""
    PACKED = "archive"
    """Something that must be unpacked first."""
    TEXT = "text"
    """No disk at all, nor a part of one."""
    EMPTY = "nothing"
    """No bytes, or zeros only."""
    SHIFTED = "qcow2, not at its start"
    """A qcow2 image with something before it, `offset` bytes in."""


@dataclass(frozen=True, slots=True)
class Foreign:
    """What a file is. name: a noun phrase.  format: qemu's name of the format, if it has one.  offset: bytes, where it begins."""

    sort: Sort
    name: str
    format: str | None = None
    offset: int = 0

    @property
    def advice(self) -> str:
        """What to do with it, in a clause."""
        if self.sort is Sort.DISK:
            return f"convert it with `qemu-img convert -f {self.format} -O qcow2`" if self.format else "it is not qcow2"
        return {
            Sort.RAW: "use it as format raw; do not let anything write a qcow2 header over it",
            Sort.PACKED: "unpack it first",
            Sort.TEXT: "look where the file came from, and fetch the image itself",
            Sort.EMPTY: "there is nothing to read in it",
            Sort.SHIFTED: f"copy it from byte {self.offset} on to a file of its own",
        }[self.sort]


_DISKS: Final = (
    (0, b"KDMV", "a VMware disk (vmdk)", "vmdk"),
    (0, b"COWD", "a VMware ESX disk (vmdk)", "vmdk"),
    (0, b"# Disk DescriptorFile", "a VMware disk's descriptor (vmdk)", "vmdk"),
    (64, b"\x7f\x10\xda\xbe", "a VirtualBox disk (vdi)", "vdi"),
    (0, b"vhdxfile", "a Hyper-V disk (vhdx)", "vhdx"),
    (0, b"conectix", "a Virtual PC disk (vhd)", "vpc"),
    (0, b"QED\0", "a QED disk", "qed"),
    (0, b"WithoutFreeSpace", "a Parallels disk", "parallels"),
    (0, b"WithouFreSpacExt", "a Parallels disk", "parallels"),
    (0, b"Bochs Virtual HD Image", "a Bochs disk", "bochs"),
    (0, b"EVF\x09\x0d\x0a\xff\0", "an EnCase image (ewf)", None),
    (0, b"AFF10\r\n\0", "an AFF image", None),
)  # fmt: skip
_PACKED: Final = (
    (b"\x1f\x8b\x08", "gzip"), (b"\xfd7zXZ\0", "xz"), (b"\x28\xb5\x2f\xfd", "zstd"), (b"BZh", "bzip2"),
    (b"PK\x03\x04", "zip"), (b"7z\xbc\xaf\x27\x1c", "7-Zip"), (b"Rar!\x1a\x07", "RAR"), (b"\x04\x22\x4d\x18", "lz4"),
    (b"LZIP", "lzip"),
)  # fmt: skip


def recognise(read: Read, size: int, next_data: Callable[[int], int | None] | None = None) -> Foreign | None:
    """What a file of `size` bytes is; None for a qcow2 image, however damaged, and for what nothing is known of.

    next_data: offset of the next byte that is stored at or after an offset (holes of a sparse file), or None.
    """
    if not size:
        return Foreign(Sort.EMPTY, "an empty file")
    head = read(0, min(HEAD, size))
    if head[:4] == MAGIC.to_bytes(4, "big"):
        return Foreign(Sort.DISK, "a qcow image of version 1", "qcow") if _is_qcow1(head) else None
    if _is_qcow2_header(head):  # all but its magic
        return None
    found = _disk(head) or _tar(head) or _shifted(read, head, size)
    if found is not None:
        return found
    left = has_tables(read, head, size)
    found = _raw(read, head, size, left=left)
    if found is not None or left:
        return found
    return _packed(head) or _fixed(read, size) or _text(head) or _zeros(read, head, size, next_data)


# -- qcow and qcow2 ----------------------------------------------------------------------------------------------------


def disk_format(head: bytes) -> str | None:
    """qemu's name of a disk format that it tells by a file's first bytes (LUKS too); None for raw ones."""
    if head[:4] == MAGIC.to_bytes(4, "big"):
        return "qcow2" if int.from_bytes(head[4:8], "big") >= 2 else "qcow"
    if head[:6] == b"LUKS\xba\xbe":
        return "luks"
    return next((form for at, magic, _, form in _DISKS if head[at : at + len(magic)] == magic), None)


def _is_qcow1(head: bytes) -> bool:
    """A version 1 header whose fields agree; a damaged version number of a qcow2 image does not look so."""
    if len(head) < 48 or int.from_bytes(head[4:8], "big") != 1:
        return False
    name_length = int.from_bytes(head[16:20], "big")
    size, cluster_bits, l2_bits = int.from_bytes(head[24:32], "big"), head[32], head[33]
    crypt, l1 = int.from_bytes(head[36:40], "big"), int.from_bytes(head[40:48], "big")
    fits = 9 <= cluster_bits <= 16 and 6 <= l2_bits <= 13 and crypt <= 1 and name_length <= limits.MAX_BACKING_NAME
    return fits and size > 0 and l1 >= 48 and l1 % 8 == 0


def _is_qcow2_header(head: bytes) -> bool:
    """Version, cluster size and table offsets of a qcow2 header; the magic is not looked at."""
    if len(head) < 72:
        return False
    version, cluster_bits = int.from_bytes(head[4:8], "big"), int.from_bytes(head[20:24], "big")
    if version not in (2, 3) or not limits.MIN_CLUSTER_BITS <= cluster_bits <= limits.MAX_CLUSTER_BITS:
        return False
    tables = (int.from_bytes(head[40:48], "big"), int.from_bytes(head[48:56], "big"))
    return all(offset % (1 << cluster_bits) == 0 for offset in tables) and any(tables)


def has_tables(read: Read, head: bytes, size: int) -> bool:
    """Whether tables of a qcow2 image are left behind the first sector of a file that begins with `head`."""
    if _has_entries(head[_SECTOR:], size) or any(_is_refcount_table(read, head, at, size) for at in _places(head)):
        return True
    far = range(HEAD, min(size, _FAR), HEAD) if len(head) == HEAD else ()
    return any(_has_entries(read(at, _SECTOR), size) for at in far)


def _has_entries(data: bytes, size: int) -> bool:
    """L1 or L2 entries: COPIED, and an aligned offset inside the file."""
    usable = len(data) & ~7
    if not any(data[:usable:8]):  # the byte that holds COPIED
        return False
    return any(
        word >> 56 == 0x80 and word & 0x1FF == 0 and 0 < offset_of(word) < size
        for (word,) in struct.iter_unpack(">Q", data[:usable])
    )


def _places(head: bytes) -> Iterator[int]:
    """Where the second cluster begins, for each size of clusters."""
    for bits in range(limits.MIN_CLUSTER_BITS, limits.MAX_CLUSTER_BITS):
        if 1 << bits < len(head):
            yield 1 << bits


def _is_refcount_table(read: Read, head: bytes, at: int, size: int) -> bool:
    """A table whose first entry leads to 16-bit refcounts of the first clusters."""
    first = int.from_bytes(head[at : at + 8], "big")
    if not 0 < first < size or first % at:
        return False
    return read(first, 4) == b"\0\1\0\1"


def _shifted(read: Read, head: bytes, size: int) -> Foreign | None:
    """A qcow2 header further on, with no table of another qcow2 image before it."""
    magic = MAGIC.to_bytes(4, "big")
    at = head.find(magic, _SECTOR)
    while at >= 0:
        if at % _SECTOR == 0 and _is_qcow2_header(head[at : at + 112]):
            if has_tables(read, head[:at], size):
                return None
            return Foreign(Sort.SHIFTED, f"a qcow2 image that begins at byte {at}, behind something else", "qcow2", at)
        at = head.find(magic, at + 1)
    return None


# -- raw disks ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _System:
    """A file system's first block. proof: (offset, bytes) of something else that it must have, or None.  length: bytes."""

    name: str
    proof: tuple[int, bytes] | None = None
    length: int = 0


def _raw(read: Read, head: bytes, size: int, *, left: bool) -> Foreign | None:
    """A raw disk: partitioned, or one file system. left: tables of a qcow2 image are in the file, too."""
    parts = list(_partitions(head))
    if parts:
        for start, kind in parts:
            found = _system(read(start, 4096 + 128), read, start) if start < size else None
            if found is not None and start + 512 >= _OWN:
                return Foreign(
                    Sort.RAW, f"a raw disk with a {kind} partition table ({found.name} at {start:#x})", "raw"
                )
        if not left:
            return Foreign(Sort.RAW, f"a raw disk with a {parts[0][1]} partition table", "raw")
        return None
    found = _system(head[: 4096 + 128], read, 0)
    if found is None:
        return None
    if left and not _proven(found, read, size):
        return None
    return Foreign(Sort.RAW, f"a raw disk: {found.name}", "raw")


def _proven(system: _System, read: Read, size: int) -> bool:
    """It is as long as the file, or has something else of its own where it says."""
    if 0 <= size - system.length < 4096:
        return True
    if system.proof is None or system.proof[0] < _OWN:
        return False
    offset, wanted = system.proof
    return read(offset, len(wanted)) == wanted


def _partitions(head: bytes) -> Iterator[tuple[int, str]]:
    """(start in bytes, kind of table) of every partition that the first blocks name; sizes 512 and 4096 for sectors.

    The table may be damaged: a GPT is taken without its checksum.
    """
    for sector in (512, 4096):
        header = parse_gpt(head[sector : 2 * sector], checked=False)
        if header is not None:
            entries = head[header.entries * sector : header.entries * sector + header.entries_size]
            yield from ((each.first * sector, "GPT") for each in parse_gpt_entries(header, entries))
            return
    yield from ((each.first * _SECTOR, "MBR") for each in parse_mbr(head[:_SECTOR]) or ())


_VOLUMES: Final = (
    (0, b"LUKS\xba\xbe", "a LUKS encrypted volume"),
    (0, b"LABELONE", "an LVM physical volume"),
    (_SECTOR, b"LABELONE", "an LVM physical volume"),
    (3, b"EXFAT   ", "an exFAT file system"),
    (4086, b"SWAPSPACE2", "a swap area"),
    (4086, b"SWAP-SPACE", "a swap area"),
    (0x10040, b"_BHRfS_M", "a btrfs file system"),
    (0x8001, b"CD001", "an ISO 9660 file system (a CD)"),
)


def _system(block: bytes, read: Read, start: int) -> _System | None:
    """The file system (or volume) whose first bytes are `block`, at byte `start` of the file."""
    block = block.ljust(4096 + 128, b"\0")
    if block[1024 + 56 : 1024 + 58] == b"\x53\xef":
        return _ext(block, read, start)
    if block[:4] == b"XFSB":
        xfs: Any = filesystems.XFS_SCHEMA.parse(block)
        copy = start + xfs.block_size * xfs.group_blocks
        return _System("an XFS file system", (copy, b"XFSB"), xfs.blocks * xfs.block_size)
    if block[3:11] == b"NTFS    ":
        ntfs: Any = filesystems.NTFS_SCHEMA.parse(block)
        table = start + ntfs.table * ntfs.sector_size * ntfs.cluster_sectors
        return _System("an NTFS file system", (table, b"FILE"), (ntfs.sectors + 1) * ntfs.sector_size)
    if block[510:512] == b"\x55\xaa" and (block[54:59] in (b"FAT12", b"FAT16") or block[82:87] == b"FAT32"):
        fat: Any = filesystems.FAT_SCHEMA.parse(block)
        table = start + fat.reserved * fat.sector_size
        sectors = fat.sectors_16 or fat.sectors_32
        return _System("a FAT file system", (table, bytes([fat.media, 0xFF])), sectors * fat.sector_size)
    for at, magic, name in _VOLUMES:
        if (block[at : at + len(magic)] if at < 4096 + 100 else read(start + at, len(magic))) == magic:
            return _System(name, (start + at, magic))
    return None


def _ext(block: bytes, read: Read, start: int) -> _System | None:
    """ext2, 3 or 4; its proof is a copy of the superblock, or the root directory's inode."""
    got: Any = filesystems.EXT_SCHEMA.parse(block[1024:])
    if got.log_block_size > 6:
        return None
    size = 1024 << got.log_block_size
    name, length = f"an {filesystems.ext_name(got)} file system", got.blocks_low * size
    copy = start + (got.first_data_block + got.blocks_per_group) * size
    if read(copy + 56, 2) == b"\x53\xef":
        return _System(name, (copy + 56, b"\x53\xef"), length)
    descriptor = read(start + (got.first_data_block + 1) * size, 12)
    root = start + int.from_bytes(descriptor[8:12], "little") * size + (got.inode_size or 128)
    is_directory = len(mode := read(root, 2)) == 2 and mode[1] >> 4 == 4
    return _System(name, (root, mode) if is_directory else None, length)


# -- archives, texts, nothing ------------------------------------------------------------------------------------------


def _disk(head: bytes) -> Foreign | None:
    for at, magic, name, form in _DISKS:
        if head[at : at + len(magic)] == magic:
            return Foreign(Sort.DISK, name, form)
    return None


def _fixed(read: Read, size: int) -> Foreign | None:
    """A raw disk with the footer that makes it a fixed VHD."""
    if size >= _SECTOR and read(size - _SECTOR, 8) == b"conectix":
        return Foreign(Sort.DISK, "a Virtual PC disk of fixed size (vhd)", "vpc")
    return None


def _packed(head: bytes) -> Foreign | None:
    name = next((name for prefix, name in _PACKED if head.startswith(prefix)), None)
    return Foreign(Sort.PACKED, f"a file packed with {name}") if name else None


def _tar(head: bytes) -> Foreign | None:
    """A tar header with the right checksum."""
    block = head[:_SECTOR]
    if len(block) < _SECTOR or block[257:262] != b"ustar":
        return None
    try:
        stored = int(block[148:156].rstrip(b" \0") or b"0", 8)
    except ValueError:
        return None
    if sum(block[:148]) + 8 * 0x20 + sum(block[156:]) != stored:
        return None
    return Foreign(Sort.PACKED, "a tar archive (an OVA holds its disks in one)")


def _text(head: bytes) -> Foreign | None:
    sample = head[:4096]
    if sample.startswith(b"version https://git-lfs.github.com/spec/"):
        return Foreign(Sort.TEXT, "a Git LFS pointer, not the file that it stands for")
    start = sample.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if start.startswith((b"<!doctype html", b"<html")):
        return Foreign(Sort.TEXT, "an HTML page")
    if start.startswith(b"<?xml"):
        return Foreign(Sort.TEXT, "an XML document")
    try:
        text = sample.decode("utf-8")
    except UnicodeDecodeError as error:
        if error.start < len(sample) - 3:
            return None
        text = sample[: error.start].decode("utf-8")
    # A qcow2 image whose header was overwritten goes on with tables; a text goes on with text.
    if text and all(char.isprintable() or char in "\t\r\n\f" for char in text) and 0 not in head:
        return Foreign(Sort.TEXT, "a text")
    return None


def _zeros(read: Read, head: bytes, size: int, next_data: Callable[[int], int | None] | None) -> Foreign | None:
    if any(head):
        return None
    at, looked = 0, 0
    while at < size:
        where = next_data(at) if next_data is not None else at
        if where is None:
            break
        piece = read(where, 1 << 20)
        looked += len(piece)
        if any(piece) or looked > _ZEROS:
            return None
        if not piece:
            break
        at = where + len(piece)
    return Foreign(Sort.EMPTY, "a file of zeros only")
