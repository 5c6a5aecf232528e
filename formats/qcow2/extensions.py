"""Header extensions (spec: Header extensions): typed records between the header and the backing file name."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, Final

from construct import Bytes, FixedSized, GreedyBytes, Struct, Switch, this

from formats.annotate import U8, U32, U64, Field, Records
from formats.qcow2 import limits

EXTENSIONS = "qcow2: Header extensions"


class ExtensionType(IntEnum):
    """Known extension types."""

    END = 0x00000000
    BACKING_FORMAT = 0xE2792ACA
    FEATURE_NAMES = 0x6803F857
    BITMAPS = 0x23852875
    ENCRYPTION = 0x0537BE77
    DATA_FILE = 0x44415441


EXTENSION_NAMES: Final = {
    ExtensionType.END: "end of extensions",
    ExtensionType.BACKING_FORMAT: "backing file format",
    ExtensionType.FEATURE_NAMES: "feature name table",
    ExtensionType.BITMAPS: "bitmaps",
    ExtensionType.ENCRYPTION: "full disk encryption header pointer",
    ExtensionType.DATA_FILE: "external data file name",
}

FEATURE_NAME_SIZE: Final = 48
FEATURE_KINDS: Final = {0: "incompatible", 1: "compatible", 2: "autoclear"}

FEATURE_NAME_SCHEMA: Final = Struct(
    Field("feature_type", U8, "Which feature word the bit is in.", "qcow2: Feature name table", symbols=FEATURE_KINDS),
    Field("bit", U8, "Bit number in that word, 0 to 63.", "qcow2: Feature name table", unit="bit"),
    Field("name", Bytes(46), "Name for messages, padded with zeros.", "qcow2: Feature name table", text="utf-8"),
)
BITMAPS_SCHEMA: Final = Struct(
    Field("nb_bitmaps", U32, "Bitmaps in the directory, at least 1.", "qcow2: Bitmaps extension", unit="entries"),
    Field("reserved", U32, "Must be zero.", "qcow2: Bitmaps extension"),
    Field("bitmap_directory_size", U64, "Length of the bitmap directory.", "qcow2: Bitmaps extension", unit="bytes"),
    Field(
        "bitmap_directory_offset",
        U64,
        "Where the bitmap directory starts; cluster aligned.",
        "qcow2: Bitmaps extension",
        unit="bytes",
    ),
)
ENCRYPTION_SCHEMA: Final = Struct(
    Field(
        "offset",
        U64,
        "Where the encryption header starts; cluster aligned.",
        "qcow2: Full disk encryption header pointer",
        unit="bytes",
    ),
    Field(
        "length",
        U64,
        "Length of the encryption header.",
        "qcow2: Full disk encryption header pointer",
        unit="bytes",
    ),
)


DATA_SCHEMAS: Final[dict[int, Any]] = {
    ExtensionType.BACKING_FORMAT: Struct(
        Field("format", GreedyBytes, "Format of the backing file.", "qcow2: String header extensions", text="utf-8")
    ),
    ExtensionType.DATA_FILE: Struct(
        Field("name", GreedyBytes, "External data file name.", "qcow2: String header extensions", text="utf-8")
    ),
    ExtensionType.BITMAPS: BITMAPS_SCHEMA,
    ExtensionType.ENCRYPTION: ENCRYPTION_SCHEMA,
    ExtensionType.FEATURE_NAMES: Struct(
        Field(
            "features",
            Records(
                FEATURE_NAME_SIZE,
                Field("feature", FEATURE_NAME_SCHEMA, "Name of one feature bit.", "qcow2: Feature name table"),
            ),
            "The names, 48 bytes each.",
            "qcow2: Feature name table",
        )
    ),
}


def _payload() -> Any:
    unknown = Struct(
        Field("bytes", GreedyBytes, "Data of an extension this program does not know; kept.", EXTENSIONS, unit="bytes")
    )
    return Switch(this.type, DATA_SCHEMAS, default=unknown)


EXTENSION_SCHEMA: Final = Struct(
    Field("type", U32, "What the extension is.", EXTENSIONS, symbols={int(k): v for k, v in EXTENSION_NAMES.items()}),
    Field("length", U32, "Length of the data, without padding.", EXTENSIONS, unit="bytes"),
    Field("data", FixedSized(this.length, _payload()), "The extension's data.", EXTENSIONS),
    Field(
        "padding",
        Bytes(lambda ctx: -ctx.length % 8),
        "Up to the next multiple of 8; content has no meaning but is kept.",
        EXTENSIONS,
        unit="bytes",
    ),
)


@dataclass(frozen=True, slots=True)
class Extension:
    """One extension as found. offset: host byte offset of its type field; data and padding as stored."""

    offset: int
    type: int
    data: bytes
    padding: bytes = b""

    @property
    def end(self) -> int:
        return self.offset + 8 + len(self.data) + len(self.padding)

    @property
    def name(self) -> str:
        return EXTENSION_NAMES.get(self.type, f"unknown {self.type:#010x}")  # type: ignore[call-overload,no-any-return]


@dataclass(frozen=True, slots=True)
class FeatureName:
    """A row of the feature name table."""

    kind: int
    bit: int
    name: str


@dataclass(frozen=True, slots=True)
class BitmapsExtension:
    """Where the bitmap directory is. directory_size, directory_offset in bytes."""

    nb_bitmaps: int
    reserved: int
    directory_size: int
    directory_offset: int


@dataclass(frozen=True, slots=True)
class EncryptionExtension:
    """Where the LUKS header is. Both in bytes."""

    offset: int
    length: int


@dataclass(frozen=True, slots=True)
class ExtensionArea:
    """The walk's result. end: host offset behind the last extension read; ended: an END record was found.

    overrun: the record whose declared length leaves the area, as (offset, type, declared length).
    """

    extensions: tuple[Extension, ...]
    end: int
    ended: bool
    overrun: tuple[int, int, int] | None = None


def parse_extensions(data: bytes, start: int, end: int) -> ExtensionArea:
    """Walk the extension area `start`..`end` (byte offsets into `data`, which begins at file offset 0).

    Never raises on content; stops at the END record, at the end of the area or at a record that overruns it.
    """
    found: list[Extension] = []
    position, inside, end = start, end <= len(data), min(end, len(data))
    while position + 8 <= end and len(found) < limits.MAX_HEADER_EXTENSIONS:
        kind = int.from_bytes(data[position : position + 4], "big")
        length = int.from_bytes(data[position + 4 : position + 8], "big")
        # Before the END record is recognised: QEMU refuses an END whose length leaves the header, too.
        if length > end - position - 8:
            return ExtensionArea(tuple(found), position, False, (position, kind, length))
        if kind == ExtensionType.END:
            return ExtensionArea(tuple(found), position + 8, True)
        body = position + 8
        padded = min(end, body + length + (-length % 8))
        found.append(Extension(position, kind, data[body : body + length], data[body + length : padded]))
        position = padded
    if inside and position < end < position + 8 <= len(data):
        # QEMU reads type and length across the end of the area, and refuses the record, whatever they say.
        kind, length = (int.from_bytes(data[at : at + 4], "big") for at in (position, position + 4))
        return ExtensionArea(tuple(found), position, False, (position, kind, length))
    return ExtensionArea(tuple(found), position, False)


def build_extensions(extensions: Iterable[Extension]) -> bytes:
    """The area's bytes, END record included; padding kept where it has the right length, zeros otherwise."""
    out = bytearray()
    for each in extensions:
        want = -len(each.data) % 8
        padding = each.padding if len(each.padding) == want else bytes(want)
        out += each.type.to_bytes(4, "big") + len(each.data).to_bytes(4, "big") + each.data + padding
    return bytes(out + bytes(8))


def parse_feature_names(data: bytes) -> tuple[FeatureName, ...]:
    """Rows of a feature name table; a partial last row is left out."""
    rows = []
    for at in range(0, len(data) - FEATURE_NAME_SIZE + 1, FEATURE_NAME_SIZE):
        row = FEATURE_NAME_SCHEMA.parse(data[at : at + FEATURE_NAME_SIZE])
        rows.append(FeatureName(row.feature_type, row.bit, row.name.split(b"\0")[0].decode("utf-8", "replace")))
    return tuple(rows)


def parse_bitmaps_extension(data: bytes) -> BitmapsExtension | None:
    """The decoded record; None when the data has the wrong length (24 bytes)."""
    if len(data) != 24:
        return None
    got = BITMAPS_SCHEMA.parse(data)
    return BitmapsExtension(got.nb_bitmaps, got.reserved, got.bitmap_directory_size, got.bitmap_directory_offset)


def build_bitmaps_extension(record: BitmapsExtension) -> bytes:
    """The extension's data. Inverse of `parse_bitmaps_extension`."""
    numbers = ((record.nb_bitmaps, 4), (record.reserved, 4), (record.directory_size, 8), (record.directory_offset, 8))
    return b"".join(value.to_bytes(size, "big") for value, size in numbers)


def parse_encryption_extension(data: bytes) -> EncryptionExtension | None:
    """The decoded record; None when the data has the wrong length (16 bytes)."""
    if len(data) != 16:
        return None
    got = ENCRYPTION_SCHEMA.parse(data)
    return EncryptionExtension(got.offset, got.length)
