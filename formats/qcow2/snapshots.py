"""Snapshot table entries (spec: Snapshots): a fixed part, extra data, ID, name, padding to a multiple of 8."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final

from construct import Bytes, FixedSized, FormatField, GreedyBytes, If, Struct, this

from formats.annotate import U16, U32, U64, Field
from formats.qcow2 import limits

SNAPSHOTS = "qcow2: Snapshots"
FIXED_SIZE: Final = 40
TABLE_TOO_LARGE: Final = f"the table reaches past the limit of {limits.MAX_SNAPSHOT_TABLE_SIZE} bytes"
EXTRA_TOO_LARGE: Final = "more extra data than the limit of 1024 bytes"


def _extra(minimum: int, subcon: object) -> object:
    return If(this._.extra_data_size >= minimum, subcon)


SNAPSHOT_EXTRA_SCHEMA: Final = Struct(
    Field(
        "vm_state_size_large", _extra(8, U64), "Size of the VM state; replaces vm_state_size.", SNAPSHOTS, unit="bytes"
    ),
    Field("virtual_disk_size", _extra(16, U64), "Virtual disk size of the snapshot.", SNAPSHOTS, unit="bytes"),
    Field(
        "icount",
        _extra(24, U64),
        "Instruction count at the snapshot (QEMU record/replay).",
        SNAPSHOTS,
        unit="instructions",
    ),
    Field("unknown", GreedyBytes, "Extra data of a later specification; kept.", SNAPSHOTS, unit="bytes"),
)

SNAPSHOT_SCHEMA: Final = Struct(
    Field("l1_table_offset", U64, "Where the snapshot's L1 table starts; cluster aligned.", SNAPSHOTS, unit="bytes"),
    Field("l1_size", U32, "Entries in the snapshot's L1 table.", SNAPSHOTS, unit="entries"),
    Field("id_size", U16, "Length of the unique ID.", SNAPSHOTS, unit="bytes"),
    Field("name_size", U16, "Length of the name.", SNAPSHOTS, unit="bytes"),
    Field("date_seconds", U32, "When it was taken, since 1970-01-01 UTC.", SNAPSHOTS, unit="seconds"),
    Field("date_nanoseconds", U32, "Subsecond part of that time.", SNAPSHOTS, unit="nanoseconds"),
    Field("vm_clock", U64, "How long the guest had been running.", SNAPSHOTS, unit="nanoseconds"),
    Field("vm_state_size", U32, "Size of the VM state; 0 without one.", SNAPSHOTS, unit="bytes"),
    Field("extra_data_size", U32, "Length of the extra data; at least 16 in version 3.", SNAPSHOTS, unit="bytes"),
    Field("extra", FixedSized(this.extra_data_size, SNAPSHOT_EXTRA_SCHEMA), "Fields added later.", SNAPSHOTS),
    Field("id", Bytes(this.id_size), "Unique ID of the snapshot.", SNAPSHOTS, text="utf-8"),
    Field("name", Bytes(this.name_size), "Name of the snapshot.", SNAPSHOTS, text="utf-8"),
    Field(
        "padding",
        Bytes(lambda ctx: -(FIXED_SIZE + ctx.extra_data_size + ctx.id_size + ctx.name_size) % 8),
        "Up to the next multiple of 8; kept.",
        SNAPSHOTS,
        unit="bytes",
    ),
)


_FIXED_PART: Final = tuple(each for each in SNAPSHOT_SCHEMA.subcons if isinstance(each.subcon, FormatField))
_FIXED: Final = struct.Struct(">" + "".join(each.subcon.fmtstr[1:] for each in _FIXED_PART))
"""The fixed part's layout, taken from the schema: a hostile table holds 65,536 entries, too many for construct one by one."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """One entry as stored. offset: host byte offset of the entry.  l1_size: entries.  Sizes in bytes.

    disk_size is None when the entry's extra data has no virtual disk size (version 2).
    """

    offset: int
    l1_table_offset: int
    l1_size: int
    id: str
    name: str
    date_seconds: int
    date_nanoseconds: int
    vm_clock: int
    vm_state_size: int
    extra_data: bytes
    disk_size: int | None
    icount: int | None
    raw: bytes
    extra_data_size: int

    @property
    def end(self) -> int:
        return self.offset + len(self.raw)


@dataclass(frozen=True, slots=True)
class SnapshotTable:
    """The walk's result. broken: (index, offset, reason) of the entry that could not be read; the walk stops there."""

    snapshots: tuple[Snapshot, ...]
    end: int
    broken: tuple[int, int, str] | None = None


def entry_size(extra: int, id_size: int, name_size: int) -> int:
    """Bytes of an entry, padding included."""
    return (FIXED_SIZE + extra + id_size + name_size + 7) & ~7


def parse_snapshot(raw: bytes, offset: int = 0) -> Snapshot:
    """Decode one entry whose bytes are complete (the last one's padding may be missing)."""
    fixed = dict(zip((each.name for each in _FIXED_PART), _FIXED.unpack_from(raw), strict=True))
    extra_size, id_size, name_size = fixed.pop("extra_data_size"), fixed.pop("id_size"), fixed.pop("name_size")
    extra = raw[FIXED_SIZE : FIXED_SIZE + extra_size]
    known = [int.from_bytes(extra[at : at + 8], "big") if len(extra) >= at + 8 else None for at in (0, 8, 16)]
    large, disk_size, icount = known
    names = FIXED_SIZE + extra_size
    if large is not None:
        fixed["vm_state_size"] = large
    return Snapshot(
        offset=offset,
        id=raw[names : names + id_size].decode("utf-8", "surrogateescape"),
        name=raw[names + id_size : names + id_size + name_size].decode("utf-8", "surrogateescape"),
        extra_data=extra,
        disk_size=disk_size,
        icount=icount,
        raw=raw[: entry_size(extra_size, id_size, name_size)],
        extra_data_size=extra_size,
        **fixed,
    )


def parse_snapshot_table(data: bytes, count: int, base: int) -> SnapshotTable:
    """Walk up to `count` entries in `data`, which stands at host offset `base`. Never raises on content."""
    found: list[Snapshot] = []
    position = 0
    for index in range(min(count, limits.MAX_SNAPSHOTS)):
        position = (position + 7) & ~7
        fixed = data[position : position + FIXED_SIZE]
        if position + FIXED_SIZE > limits.MAX_SNAPSHOT_TABLE_SIZE:
            return SnapshotTable(tuple(found), base + position, (index, base + position, TABLE_TOO_LARGE))
        if len(fixed) < FIXED_SIZE:
            return SnapshotTable(tuple(found), base + position, (index, base + position, "entry beyond the data"))
        extra, id_size, name_size = (
            int.from_bytes(fixed[36:40], "big"),
            int.from_bytes(fixed[12:14], "big"),
            int.from_bytes(fixed[14:16], "big"),
        )
        if extra > limits.MAX_SNAPSHOT_EXTRA_DATA and position + FIXED_SIZE + extra > len(data):
            return SnapshotTable(tuple(found), base + position, (index, base + position, EXTRA_TOO_LARGE))
        unpadded = FIXED_SIZE + extra + id_size + name_size
        if position + unpadded > limits.MAX_SNAPSHOT_TABLE_SIZE:
            return SnapshotTable(tuple(found), base + position, (index, base + position, TABLE_TOO_LARGE))
        if position + unpadded > len(data):
            return SnapshotTable(tuple(found), base + position, (index, base + position, "entry beyond the data"))
        size = entry_size(extra, id_size, name_size)
        found.append(parse_snapshot(data[position : position + size], base + position))
        position += size
    return SnapshotTable(tuple(found), base + position)


def build_snapshot(snapshot: Snapshot) -> bytes:
    """The entry's bytes, from its fields (extra data beyond the known fields included). Padding is zeros."""
    extra = bytearray(snapshot.extra_data)
    small = snapshot.vm_state_size
    if len(extra) >= 8:
        extra[0:8] = snapshot.vm_state_size.to_bytes(8, "big")
        small = min(snapshot.vm_state_size, 0xFFFFFFFF)
        stored = int.from_bytes(snapshot.raw[32:36], "big") if len(snapshot.raw) >= 36 else small
        small = stored if snapshot.raw else small
    if len(extra) >= 16 and snapshot.disk_size is not None:
        extra[8:16] = snapshot.disk_size.to_bytes(8, "big")
    if len(extra) >= 24 and snapshot.icount is not None:
        extra[16:24] = snapshot.icount.to_bytes(8, "big")
    ident, name = (text.encode("utf-8", "surrogateescape") for text in (snapshot.id, snapshot.name))
    fixed = (
        snapshot.l1_table_offset.to_bytes(8, "big")
        + snapshot.l1_size.to_bytes(4, "big")
        + len(ident).to_bytes(2, "big")
        + len(name).to_bytes(2, "big")
        + snapshot.date_seconds.to_bytes(4, "big")
        + snapshot.date_nanoseconds.to_bytes(4, "big")
        + snapshot.vm_clock.to_bytes(8, "big")
        + small.to_bytes(4, "big")
        + len(extra).to_bytes(4, "big")
    )
    body = fixed + bytes(extra) + ident + name
    padding = snapshot.raw[len(body) :] if len(snapshot.raw) == (len(body) + 7) & ~7 else bytes(-len(body) % 8)
    return body + padding
