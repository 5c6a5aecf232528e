"""Partition tables: the master boot record, and the GUID partition table (UEFI specification 2.10, chapter 5)."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from construct import Array, Bytes, Struct

from formats.annotate import L32, L64, U8, Field

SECTOR: Final = 512
GPT_MAGIC: Final = b"EFI PART"
GPT_LENGTH: Final = 92
MBR_SIGNATURE: Final = b"\x55\xaa"
PROTECTIVE: Final = 0xEE
EXTENDED: Final = (0x05, 0x0F, 0x85)
"""MBR types of the partitions that hold a chain of logical ones."""

_MBR = "UEFI: 5.2.1 Legacy MBR"
_GPT = "UEFI: 5.3.2 GPT Header"
_ENTRY = "UEFI: 5.3.3 GPT Partition Entry Array"

MBR_ENTRY_SCHEMA: Final = Struct(
    Field("status", U8, "0x80 for the one that is booted, else 0.", _MBR),
    Field("first_chs", Bytes(3), "Where it starts, as cylinder, head and sector.", _MBR),
    Field("type", U8, "What it holds; 0 for none.", _MBR, symbols={PROTECTIVE: "GPT", 0x83: "Linux", 0x07: "NTFS"}),
    Field("last_chs", Bytes(3), "Where it ends, as cylinder, head and sector.", _MBR),
    Field("first", L32, "Where it starts.", _MBR, unit="sectors"),
    Field("length", L32, "How long it is.", _MBR, unit="sectors"),
)
MBR_SCHEMA: Final = Struct(
    Field("code", Bytes(440), "Boot code.", _MBR),
    Field("disk_id", L32, "The disk's number.", _MBR),
    Field("reserved", Bytes(2), "Zeros.", _MBR),
    Field("partitions", Array(4, MBR_ENTRY_SCHEMA), "The four primary partitions.", _MBR),
    Field("signature", Bytes(2), "0x55 0xaa.", _MBR),
)
GPT_SCHEMA: Final = Struct(
    Field("magic", Bytes(8), "'EFI PART'.", _GPT),
    Field("revision", L32, "0x00010000.", _GPT),
    Field("length", L32, "Length of this header.", _GPT, unit="bytes"),
    Field("checksum", L32, "CRC-32 of the header, itself taken as 0.", _GPT),
    Field("reserved", L32, "0.", _GPT),
    Field("place", L64, "The sector that holds this header.", _GPT, unit="sectors"),
    Field("alternate", L64, "The sector that holds the other header; the disk's last in the first one.", _GPT, unit="sectors"),
    Field("first_usable", L64, "First sector that partitions may use.", _GPT, unit="sectors"),
    Field("last_usable", L64, "Last sector that partitions may use.", _GPT, unit="sectors"),
    Field("disk_guid", Bytes(16), "The disk's GUID.", _GPT),
    Field("entries", L64, "Where the entries start.", _GPT, unit="sectors"),
    Field("count", L32, "Number of entries.", _GPT),
    Field("entry_length", L32, "Length of an entry.", _GPT, unit="bytes"),
    Field("entries_checksum", L32, "CRC-32 of the entries.", _GPT),
)  # fmt: skip
GPT_ENTRY_SCHEMA: Final = Struct(
    Field("type", Bytes(16), "GUID of what it holds; zeros for an unused entry.", _ENTRY),
    Field("guid", Bytes(16), "The partition's own GUID.", _ENTRY),
    Field("first", L64, "First sector.", _ENTRY, unit="sectors"),
    Field("last", L64, "Last sector.", _ENTRY, unit="sectors"),
    Field("flags", L64, "Attributes.", _ENTRY),
    Field("name", Bytes(72), "Name in UTF-16.", _ENTRY),
)
_MOST_ENTRIES: Final = 1024


@dataclass(frozen=True, slots=True)
class Partition:
    """A partition: sectors from `first` on, `length` of them.  type: the MBR's number, or 0 in a GPT."""

    first: int
    length: int
    type: int = 0

    @property
    def end(self) -> int:
        return self.first + self.length


@dataclass(frozen=True, slots=True)
class Gpt:
    """A GPT header. Places in sectors of the size under which it was read."""

    place: int
    alternate: int
    entries: int
    count: int
    entry_length: int
    entries_checksum: int

    @property
    def entries_size(self) -> int:
        """Bytes of the entries; 0 when their number or length is absurd."""
        sane = 128 <= self.entry_length <= 4096 and 0 < self.count <= _MOST_ENTRIES
        return self.count * self.entry_length if sane else 0


def parse_mbr(sector: bytes) -> tuple[Partition, ...] | None:
    """The partitions that a boot record names; None when these 512 bytes are no boot record with a table in it.

    Boot sectors of file systems carry the same signature: their "table" is code or text, whose status bytes are not 0 or 0x80.
    """
    if len(sector) < SECTOR or sector[510:512] != MBR_SIGNATURE:
        return None
    got: Any = MBR_SCHEMA.parse(sector[:SECTOR])
    found = []
    for each in got.partitions:
        if each.status & 0x7F:
            return None
        if each.type and each.first and each.length:
            found.append(Partition(each.first, each.length, each.type))
        elif each.type or each.first or each.length:
            return None
    return tuple(found) or None


def parse_gpt(block: bytes, *, checked: bool = True) -> Gpt | None:
    """A GPT header whose own checksum is right (or, not `checked`, whatever it is); None for anything else."""
    if len(block) < GPT_LENGTH or block[:8] != GPT_MAGIC:
        return None
    got: Any = GPT_SCHEMA.parse(block)
    sound = GPT_LENGTH <= got.length <= len(block)
    if checked and not (sound and zlib.crc32(block[:16] + bytes(4) + block[20 : got.length]) == got.checksum):
        return None
    return Gpt(got.place, got.alternate, got.entries, got.count, got.entry_length, got.entries_checksum)


def parse_gpt_entries(header: Gpt, data: bytes) -> Iterator[Partition]:
    """The partitions in use among a GPT's entries; entries that the data does not hold are left out."""
    for at in range(0, min(len(data), header.entries_size), header.entry_length or 1):
        entry = data[at : at + 128]
        if len(entry) < 128 or not any(entry[:16]):
            continue
        got: Any = GPT_ENTRY_SCHEMA.parse(entry)
        if got.first <= got.last:
            yield Partition(got.first, got.last - got.first + 1)
