"""Addresses as people type them, for `qwb dump`, `qwb explain` and the workbench's go-to.

0x50000  12M  4096     host offset            g:0x1000  guest:12M      guest offset
c:123  cluster:123     host cluster           l1:3                     entry 3 of the active L1 table
l2:3                   L2 table 3             l2:3.17                  its entry 17
rt:0  refcount-table:0 refcount table entry   rb:0.5  refcount-block:0.5   entry 5 of refcount block 0
snapshot:1  bitmap:0  bitmap-table:0.2  extension:1
snapshot:1/l1:3  snapshot:1/l2:3.17           the same tables of a snapshot
header  extensions  backing-name  l1  refcount-table  snapshots  bitmaps  luks
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Final

from formats.qcow2.entries import block_of, offset_of
from workbench.engine import tables
from workbench.engine.metadata import Metadata, Region
from workbench.engine.structures import Part, Structure, block_structure, l1_structure, l2_structure, structures
from workbench.errors import ArgumentError
from workbench.units import GuestOffset, HostOffset, parse_size


class AddressKind(Enum):
    """What an address names."""

    HOST = "host"
    CLUSTER = "c"
    GUEST = "g"
    L1 = "l1"
    L2 = "l2"
    REFCOUNT_TABLE = "rt"
    REFCOUNT_BLOCK = "rb"
    SNAPSHOT = "snapshot"
    BITMAP = "bitmap"
    BITMAP_TABLE = "bitmap-table"
    EXTENSION = "extension"
    NAMED = "name"


_PREFIXES: Final = {kind.value: kind for kind in AddressKind if kind is not AddressKind.NAMED} | {
    "cluster": AddressKind.CLUSTER,
    "guest": AddressKind.GUEST,
    "h": AddressKind.HOST,
    "refcount-table": AddressKind.REFCOUNT_TABLE,
    "refcount-block": AddressKind.REFCOUNT_BLOCK,
    "bt": AddressKind.BITMAP_TABLE,
}
NAMES: Final = ("header", "extensions", "backing-name", "l1", "refcount-table", "snapshots", "bitmaps", "luks")
_WITH_ENTRY: Final = {AddressKind.L2, AddressKind.REFCOUNT_BLOCK, AddressKind.BITMAP_TABLE}
_OF_SNAPSHOT: Final = {AddressKind.L1, AddressKind.L2, AddressKind.GUEST}
_HINT: Final = "try 0x50000, c:5, g:12M, l1:3, l2:3.17, rt:0, rb:0.5, header, snapshots"


@dataclass(frozen=True, slots=True)
class Address:
    """A parsed address. value: offset in bytes or number of the table; entry: entry in it; name: for NAMED.

    snapshot: index of the snapshot whose tables are meant; None for the active disk.
    """

    kind: AddressKind
    value: int = 0
    entry: int | None = None
    name: str = ""
    snapshot: int | None = None

    def __str__(self) -> str:
        if self.kind is AddressKind.NAMED:
            text = self.name
        elif self.kind in (AddressKind.HOST, AddressKind.GUEST):
            text = f"{self.value:#x}" if self.kind is AddressKind.HOST else f"g:{self.value:#x}"
        else:
            text = f"{self.kind.value}:{self.value}" + (f".{self.entry}" if self.entry is not None else "")
        return text if self.snapshot is None else f"snapshot:{self.snapshot}/{text}"


def parse_address(text: str) -> Address:
    """The address that `text` names (grammar: see this module). Raises ArgumentError."""
    cleaned = text.strip().lower()
    snapshot: int | None = None
    if cleaned.startswith(("snapshot:", "s:")) and "/" in cleaned:
        head, _, cleaned = cleaned.partition("/")
        snapshot = _number(head.partition(":")[2], text)
    if cleaned in NAMES:
        if snapshot is not None and cleaned != "l1":
            raise ArgumentError(f"{text!r}: only l1:…, l2:… and g:… exist for a snapshot", hint=_HINT)
        return Address(AddressKind.NAMED, name=cleaned, snapshot=snapshot)
    prefix, colon, rest = cleaned.partition(":")
    kind = _PREFIXES.get(prefix) if colon else AddressKind.HOST
    if kind is None:
        raise ArgumentError(f"{text!r} is no address", hint=_HINT)
    if snapshot is not None and kind not in _OF_SNAPSHOT:
        raise ArgumentError(f"{text!r}: only l1:…, l2:… and g:… exist for a snapshot", hint=_HINT)
    if kind in (AddressKind.HOST, AddressKind.GUEST):
        return Address(kind, _size(rest if colon else cleaned, text), snapshot=snapshot)
    number, dot, entry = rest.partition(".")
    if dot and kind not in _WITH_ENTRY:
        raise ArgumentError(f"{text!r}: {kind.value}:N takes no entry", hint=_HINT)
    return Address(kind, _number(number, text), _number(entry, text) if dot else None, snapshot=snapshot)


def _number(digits: str, text: str) -> int:
    try:
        value = int(digits, 0) if digits.startswith("0x") else int(digits)
    except ValueError:
        raise ArgumentError(f"{text!r} is no address", hint=_HINT) from None
    if not 0 <= value < 1 << 64:
        raise ArgumentError(f"{text!r}: {value} is out of range", hint=_HINT)
    return value


def _size(digits: str, text: str) -> int:
    try:
        value = parse_size(digits)
    except (ValueError, OverflowError):
        raise ArgumentError(f"{text!r} is no address", hint=_HINT) from None
    if not 0 <= value < 1 << 64:
        raise ArgumentError(f"{text!r} is out of range", hint=_HINT)
    return value


@dataclass(frozen=True, slots=True)
class Place:
    """What an address leads to. region: host bytes (None for a guest offset).  structure/entry: the table and entry meant."""

    address: Address
    region: Region | None
    structure: Structure | None = None
    entry: int | None = None
    guest: GuestOffset | None = None

    @property
    def host(self) -> HostOffset | None:
        return HostOffset(self.region.offset) if self.region is not None else None


def resolve(meta: Metadata, address: Address) -> Place:
    """Find the address in this image. Raises ArgumentError when the image has no such thing."""
    kind = address.kind
    if kind is AddressKind.HOST:
        return Place(address, Region(address.value, 1))
    if kind is AddressKind.GUEST:
        return Place(address, None, guest=GuestOffset(address.value))
    if kind is AddressKind.NAMED and address.name == "header":
        return _named(meta, address)
    if meta.geometry is None:
        raise ArgumentError(
            "the header makes no sense, so nothing but `header` and offsets can be found", path=_path(meta)
        )
    if kind is AddressKind.CLUSTER:
        size = meta.geometry.cluster_size
        return Place(address, Region(address.value * size, size))
    if kind is AddressKind.NAMED:
        return _named(meta, address)
    structure, entry = _structure(meta, address)
    if entry is None or structure.table is None:
        return Place(address, structure.region, structure)
    table = structure.table
    if entry >= table.entries:
        raise ArgumentError(f"{table.name} has {table.entries} entries, there is no {entry}", path=_path(meta))
    start = table.entry_offset(meta, entry)
    return Place(address, Region(start, max(1, table.entry_bits(meta) // 8)), structure, entry)


def _path(meta: Metadata) -> str:
    return meta.storage.path


def _named(meta: Metadata, address: Address) -> Place:
    if address.name == "l1":
        found: Structure | None = l1_structure(meta, _snapshot(meta, address))
    else:
        found = next((each for each in structures(meta).children() if each.part.value == address.name), None)
    if found is None:
        raise ArgumentError(f"the image has no {address.name}", path=_path(meta))
    return Place(address, found.region, found)


def _snapshot(meta: Metadata, address: Address) -> int | None:
    if address.snapshot is not None and address.snapshot >= len(meta.snapshots):
        raise ArgumentError(
            f"there is no snapshot {address.snapshot}: {len(meta.snapshots)} can be read, counted from 0",
            path=_path(meta),
        )
    return address.snapshot


def _structure(meta: Metadata, address: Address) -> tuple[Structure, int | None]:
    kind, number = address.kind, address.value
    snapshot = _snapshot(meta, address)
    if kind is AddressKind.L1:
        return l1_structure(meta, snapshot), number
    if kind is AddressKind.L2:
        offset = offset_of(_pointer(meta, tables.l1_table(meta, snapshot), number))
        if not offset:
            raise ArgumentError(
                f"L1[{number}] points to no L2 table (its guest range is unallocated)", path=_path(meta)
            )
        return l2_structure(meta, number, offset, snapshot), address.entry
    table = tables.refcount_table(meta)
    if kind is AddressKind.REFCOUNT_TABLE:
        return Structure(
            meta, Part.REFCOUNT_TABLE, "refcount-table", "refcount table", table.region, table=table
        ), number
    if kind is AddressKind.REFCOUNT_BLOCK:
        offset = block_of(_pointer(meta, table, number))
        if not offset:
            raise ArgumentError(f"refcount table entry {number} points to no refcount block", path=_path(meta))
        return block_structure(meta, number, offset), address.entry
    return _listed(meta, address), address.entry


def _listed(meta: Metadata, address: Address) -> Structure:
    """Snapshots, bitmaps, extensions: things counted in a list."""
    part, parent = {
        AddressKind.SNAPSHOT: (Part.SNAPSHOT, Part.SNAPSHOTS),
        AddressKind.BITMAP: (Part.BITMAP, Part.BITMAPS),
        AddressKind.BITMAP_TABLE: (Part.BITMAP, Part.BITMAPS),
        AddressKind.EXTENSION: (Part.EXTENSION, Part.EXTENSIONS),
    }[address.kind]
    group = next((each for each in structures(meta).children() if each.part is parent), None)
    found = group.children(address.value, 1) if group is not None else []
    if not found:
        raise ArgumentError(f"the image has no {part.value} {address.value}", path=_path(meta))
    return found[0].children()[0] if address.kind is AddressKind.BITMAP_TABLE else found[0]


def _pointer(meta: Metadata, table: tables.Table, index: int) -> int:
    if index >= table.entries:
        raise ArgumentError(f"the {table.name} has {table.entries} entries, there is no {index}", path=_path(meta))
    words = tables.read_entry(meta, table, index)
    if words is None:
        raise ArgumentError(f"the file ends before entry {index} of the {table.name}", path=_path(meta))
    return words[0]
