"""Bitmap directory entries (spec: Bitmap directory): a fixed part, extra data, name, padding to a multiple of 8."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from construct import Bytes, Struct, this

from formats.annotate import U8, U16, U32, U64, Field
from formats.bitfields import Bit, BitLayout, Bits

DIRECTORY = "qcow2: Bitmap directory"
FIXED_SIZE: Final = 24
BITMAP_TYPES: Final = {1: "dirty tracking bitmap"}

BITMAP_FLAGS: Final = BitLayout(
    "bitmap-flags",
    32,
    (
        Bit("in_use", 0, "Was not saved properly; its content may be out of date.", DIRECTORY),
        Bit("auto", 1, "Enabled: must record every write to the virtual disk.", DIRECTORY),
        Bit("extra_data_compatible", 2, "May be used although its extra data is not understood.", DIRECTORY),
        Bits("reserved", 3, 31, "Must be zero.", DIRECTORY, reserved=True),
    ),
)

BITMAP_SCHEMA: Final = Struct(
    Field("bitmap_table_offset", U64, "Where the bitmap table starts; cluster aligned.", DIRECTORY, unit="bytes"),
    Field("bitmap_table_size", U32, "Entries in the bitmap table.", DIRECTORY, unit="entries"),
    Field("flags", U32, "State of the bitmap.", DIRECTORY, bits=BITMAP_FLAGS),
    Field("type", U8, "Sort of the bitmap; 1 is the only one defined.", DIRECTORY, symbols=BITMAP_TYPES),
    Field("granularity_bits", U8, "One bit stands for 1 << granularity_bits guest bytes.", DIRECTORY, unit="bits"),
    Field("name_size", U16, "Length of the name, 1 to 1023.", DIRECTORY, unit="bytes"),
    Field("extra_data_size", U32, "Length of the extra data; 0 today.", DIRECTORY, unit="bytes"),
    Field("extra_data", Bytes(this.extra_data_size), "Type-specific data; kept.", DIRECTORY, unit="bytes"),
    Field("name", Bytes(this.name_size), "Name, unique in the image.", DIRECTORY, text="utf-8"),
    Field(
        "padding",
        Bytes(lambda ctx: -(FIXED_SIZE + ctx.extra_data_size + ctx.name_size) % 8),
        "Up to the next multiple of 8; must be zero.",
        DIRECTORY,
        unit="bytes",
    ),
)


@dataclass(frozen=True, slots=True)
class Bitmap:
    """One directory entry as stored. offset: host byte offset of the entry.  table_size: entries."""

    offset: int
    table_offset: int
    table_size: int
    flags: int
    type: int
    granularity_bits: int
    extra_data: bytes
    name: str
    raw: bytes

    @property
    def in_use(self) -> bool:
        return bool(self.flags & 1)

    @property
    def auto(self) -> bool:
        return bool(self.flags & 2)

    @property
    def granularity(self) -> int:
        """Guest bytes per bit."""
        return 1 << self.granularity_bits

    def data_size(self, virtual_size: int) -> int:
        """Bytes of bitmap data for a disk of `virtual_size` bytes."""
        bits = -(-virtual_size // self.granularity)
        return -(-bits // 8)


@dataclass(frozen=True, slots=True)
class BitmapDirectory:
    """The walk's result. broken: (index, offset, reason) of the entry that leaves the directory."""

    bitmaps: tuple[Bitmap, ...]
    end: int
    broken: tuple[int, int, str] | None = None


def entry_size(extra: int, name_size: int) -> int:
    """Bytes of an entry, padding included."""
    return (FIXED_SIZE + extra + name_size + 7) & ~7


def parse_bitmap_directory(data: bytes, count: int, base: int) -> BitmapDirectory:
    """Walk up to `count` entries in `data`, which stands at host offset `base`. Never raises on content."""
    found: list[Bitmap] = []
    position = 0
    for index in range(count):
        fixed = data[position : position + FIXED_SIZE]
        if len(fixed) < FIXED_SIZE:
            return BitmapDirectory(
                tuple(found), base + position, (index, base + position, "entry beyond the directory")
            )
        extra, name_size = int.from_bytes(fixed[20:24], "big"), int.from_bytes(fixed[18:20], "big")
        size = entry_size(extra, name_size)
        if position + size > len(data):
            return BitmapDirectory(
                tuple(found), base + position, (index, base + position, "entry beyond the directory")
            )
        raw = data[position : position + size]
        got = BITMAP_SCHEMA.parse(raw)
        found.append(
            Bitmap(
                offset=base + position,
                table_offset=got.bitmap_table_offset,
                table_size=got.bitmap_table_size,
                flags=got.flags,
                type=got.type,
                granularity_bits=got.granularity_bits,
                extra_data=got.extra_data,
                name=got.name.decode("utf-8", "surrogateescape"),
                raw=raw,
            )
        )
        position += size
    return BitmapDirectory(tuple(found), base + position)


def build_bitmap(bitmap: Bitmap) -> bytes:
    """The entry's bytes from its fields; padding kept where its length fits, zeros otherwise."""
    name = bitmap.name.encode("utf-8", "surrogateescape")
    body = (
        bitmap.table_offset.to_bytes(8, "big")
        + bitmap.table_size.to_bytes(4, "big")
        + bitmap.flags.to_bytes(4, "big")
        + bytes((bitmap.type, bitmap.granularity_bits))
        + len(name).to_bytes(2, "big")
        + len(bitmap.extra_data).to_bytes(4, "big")
        + bitmap.extra_data
        + name
    )
    padding = bitmap.raw[len(body) :] if len(bitmap.raw) == (len(body) + 7) & ~7 else bytes(-len(body) % 8)
    return body + padding
