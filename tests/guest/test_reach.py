"""What the guest's partition table and file systems say of the disk's length."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import pytest

from formats.guest.filesystems import parse_fat, recognise
from formats.guest.partitions import parse_gpt, parse_mbr
from tests.campaigns.preservation_filesystems import find, run
from workbench.guest.reach import Reach, reaches

MAKERS = {
    "ext2": ("mke2fs", "-q", "-F", "-t", "ext2"),
    "ext4": ("mke2fs", "-q", "-F", "-t", "ext4"),
    "XFS": ("mkfs.xfs", "-q", "-f"),
    "NTFS": ("mkfs.ntfs", "-Q", "-F", "-q"),
    "FAT": ("mkfs.vfat",),
    "btrfs": ("mkfs.btrfs", "-q", "-f"),
    "swap": ("mkswap", "-q"),
}


def says(disk: bytes) -> tuple[Reach, ...]:
    return reaches(lambda at, length: disk[at : at + length])


def mbr(*partitions: tuple[int, int, int]) -> bytes:
    """A boot record of (type, first sector, sectors)."""
    entries = b"".join(struct.pack("<B3sB3sII", 0, b"", kind, b"", first, length) for kind, first, length in partitions)
    return bytes(446) + entries.ljust(64, b"\0") + b"\x55\xaa"


def gpt(sectors: int, first: int, last: int) -> bytes:
    """Protective record, header and entries of a disk with one partition."""
    entries = (bytes(range(1, 33)) + struct.pack("<QQQ", first, last, 0)).ljust(128 * 128, b"\0")
    fields = (1, sectors - 1, 34, sectors - 34, bytes(16), 2, 128, 128, zlib.crc32(entries))
    header = bytearray(struct.pack("<8sIIIIQQQQ16sQIII", b"EFI PART", 0x10000, 92, 0, 0, *fields))
    header[16:20] = struct.pack("<I", zlib.crc32(header))
    return mbr((0xEE, 1, sectors - 1)) + bytes(header).ljust(512, b"\0") + entries


@pytest.mark.parametrize("name", MAKERS)
def test_a_file_system_says_how_long_it_is(name: str, tmp_path: Path) -> None:
    if find(MAKERS[name][0]) is None:
        pytest.skip(f"{MAKERS[name][0]} is not installed")
    path, size = tmp_path / "disk", 320 << 20
    with open(path, "wb") as file:
        file.truncate(size)
    run(*MAKERS[name], path)
    with open(path, "rb") as file:

        def read(at: int, length: int) -> bytes:
            file.seek(at)
            return file.read(length)

        volume = recognise(read)
        assert volume is not None
        assert volume.name == name
        assert size - (64 << 10) < volume.length <= size
        assert [each.exact for each in reaches(read)] == [False]


def test_the_last_partition_is_reached_logical_ones_included() -> None:
    disk = bytearray(3000 * 512)
    disk[:512] = mbr((0x83, 64, 100), (0x05, 1000, 1500))
    disk[1000 * 512 : 1001 * 512] = mbr((0x83, 63, 200), (0x05, 500, 900))
    disk[1500 * 512 : 1501 * 512] = mbr((0x83, 63, 700))
    assert max(each.end for each in says(bytes(disk))) == 2500 * 512
    assert (1500 + 63 + 700) * 512 in {each.end for each in says(bytes(disk))}


def test_a_chain_of_logical_partitions_that_returns_to_itself_ends() -> None:
    disk = bytearray(3000 * 512)
    disk[:512] = mbr((0x05, 1000, 1500))
    disk[1000 * 512 : 1001 * 512] = mbr((0x83, 63, 200), (0x05, 0, 900), (0x05, 500, 900))
    disk[1500 * 512 : 1501 * 512] = mbr((0x83, 63, 200), (0x05, 500, 900))
    assert max(each.end for each in says(bytes(disk))) == 2500 * 512


def test_a_gpt_names_the_last_sector() -> None:
    disk = gpt(8192, 2048, 6000)
    assert says(disk)[0] == Reach(8192 * 512, exact=True, who="the GPT header")
    assert says(disk)[1].end == 6001 * 512


def test_a_header_with_a_wrong_checksum_says_nothing() -> None:
    block = bytearray(gpt(8192, 2048, 6000)[512:1024])
    assert parse_gpt(bytes(block)) is not None
    block[40] ^= 1
    assert parse_gpt(bytes(block)) is None


def test_a_boot_sector_is_no_partition_table() -> None:
    assert parse_mbr(mbr((0x83, 64, 100))) is not None
    assert parse_mbr(b"\xeb\x58\x90mkfs.fat" + b"text in the boot code " * 22 + b"\x55\xaa") is None
    assert parse_mbr(bytes(512)) is None
    assert parse_fat(mbr((0x83, 64, 100))) is None


def test_noise_says_nothing() -> None:
    import random

    assert says(random.Random(3).randbytes(256 << 10)) == ()
