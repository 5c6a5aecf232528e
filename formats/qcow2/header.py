"""The image header (spec: Header): 72 bytes in version 2, at least 104 in version 3, longer ones kept whole."""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import cache
from typing import Any, Final

from construct import Bytes, If, Struct, this

from formats.annotate import U8, U32, U64, Field
from formats.bitfields import Bit, BitLayout, Bits

MAGIC: Final = 0x514649FB
V2_LENGTH: Final = 72
V3_LENGTH: Final = 104
HEADER = "qcow2: Header"
ADDITIONAL = "qcow2: Additional fields (version 3 and higher)"

CRYPT_METHODS: Final = {0: "none", 1: "aes", 2: "luks"}
COMPRESSION_TYPES: Final = {0: "zlib", 1: "zstd"}

INCOMPATIBLE: Final = BitLayout(
    "incompatible_features",
    64,
    (
        Bit("dirty", 0, "Refcounts may be out of date; they must be rebuilt before the image is used.", HEADER),
        Bit("corrupt", 1, "Some structure is damaged; the image must not be written except to repair it.", HEADER),
        Bit("data_file", 2, "Guest clusters live in an external data file.", HEADER),
        Bit("compression_type", 3, "Compressed clusters use a method other than zlib.", HEADER),
        Bit("extended_l2", 4, "L2 entries are 128 bits wide and carry subcluster bitmaps.", HEADER),
        Bits("unknown", 5, 63, "Reserved: an image with any of these set must not be opened.", HEADER, reserved=True),
    ),
)
COMPATIBLE: Final = BitLayout(
    "compatible_features",
    64,
    (
        Bit("lazy_refcounts", 0, "Refcount updates may be postponed while the dirty bit is set.", HEADER),
        Bits("unknown", 1, 63, "Reserved: can safely be ignored.", HEADER, reserved=True),
    ),
)
AUTOCLEAR: Final = BitLayout(
    "autoclear_features",
    64,
    (
        Bit("bitmaps", 0, "The bitmaps extension is consistent with the image.", HEADER),
        Bit("data_file_raw", 1, "The external data file can be read on its own as a raw image.", HEADER),
        Bits(
            "unknown", 2, 63, "Reserved: cleared by software that writes without knowing them.", HEADER, reserved=True
        ),
    ),
)


def _v3(subcon: Any) -> Any:
    return If(this.version >= 3, subcon)


def _beyond(length: int, subcon: Any) -> Any:
    """Present when the header says that it is longer than `length` bytes."""
    return If(lambda context: context.version >= 3 and context.header_length > length, subcon)


HEADER_SCHEMA: Final = Struct(
    Field("magic", U32, "Says that this is a qcow2 image: 'QFI' and 0xfb.", HEADER, symbols={MAGIC: "QFI\\xfb"}),
    Field("version", U32, "Format version: 2, or 3 with feature bits.", HEADER),
    Field("backing_file_offset", U64, "Where the backing file name is stored; 0 without one.", HEADER, unit="bytes"),
    Field("backing_file_size", U32, "Length of the backing file name, at most 1023.", HEADER, unit="bytes"),
    Field("cluster_bits", U32, "Clusters are 1 << cluster_bits bytes; 9 to 21 in practice.", HEADER, unit="bits"),
    Field("size", U64, "Virtual disk size.", HEADER, unit="bytes"),
    Field("crypt_method", U32, "How guest data is encrypted.", HEADER, symbols=CRYPT_METHODS),
    Field("l1_size", U32, "Entries in the active L1 table.", HEADER, unit="entries"),
    Field("l1_table_offset", U64, "Where the active L1 table starts; cluster aligned.", HEADER, unit="bytes"),
    Field("refcount_table_offset", U64, "Where the refcount table starts; cluster aligned.", HEADER, unit="bytes"),
    Field("refcount_table_clusters", U32, "Clusters that the refcount table occupies.", HEADER, unit="clusters"),
    Field("nb_snapshots", U32, "Internal snapshots in the snapshot table.", HEADER, unit="entries"),
    Field("snapshots_offset", U64, "Where the snapshot table starts; cluster aligned.", HEADER, unit="bytes"),
    Field("incompatible_features", _v3(U64), "Features that must be understood to open.", HEADER, bits=INCOMPATIBLE),
    Field("compatible_features", _v3(U64), "Features that may be ignored.", HEADER, bits=COMPATIBLE),
    Field("autoclear_features", _v3(U64), "Features a writer must clear if unknown to it.", HEADER, bits=AUTOCLEAR),
    Field("refcount_order", _v3(U32), "Refcounts are 1 << refcount_order bits wide; at most 6.", HEADER, unit="bits"),
    Field("header_length", _v3(U32), "Length of this header; a multiple of 8.", HEADER, unit="bytes"),
    Field(
        "compression_type",
        _beyond(V3_LENGTH, U8),
        "Method of all compressed clusters.",
        ADDITIONAL,
        symbols=COMPRESSION_TYPES,
    ),
    Field(
        "additional",
        _beyond(V3_LENGTH + 1, Bytes(this.header_length - V3_LENGTH - 1)),
        "Padding to a multiple of 8, or fields of a later specification; kept as found.",
        "qcow2: Header padding",
        unit="bytes",
    ),
)


@cache
def _places() -> dict[str, tuple[int, int]]:
    """(offset, size) in bytes of every field of fixed size, as the schema lays them out."""
    found, at = {}, 0
    for each in HEADER_SCHEMA.subcons:
        inner = getattr(each.subcon, "thensubcon", each.subcon)
        if each.name != "additional":
            found[each.name] = at, inner.sizeof()
            at += inner.sizeof()
    return found


def field(name: str, last: str = "") -> tuple[int, int]:
    """(offset, size) in bytes of a header field, or of all fields from `name` to `last`. KeyError for other names."""
    offset, size = _places()[name]
    if last:
        end = _places()[last]
        size = end[0] + end[1] - offset
    return offset, size


@dataclass(frozen=True, slots=True)
class Header:
    """A decoded header; numbers exactly as stored (bytes, entries or clusters as the schema's units say).

    Version 2 images get the values that version 3 fields imply: no features, refcount_order 4, header_length 72.
    additional: everything of the header behind compression_type.
    """

    magic: int = MAGIC
    version: int = 3
    backing_file_offset: int = 0
    backing_file_size: int = 0
    cluster_bits: int = 16
    size: int = 0
    crypt_method: int = 0
    l1_size: int = 0
    l1_table_offset: int = 0
    refcount_table_offset: int = 0
    refcount_table_clusters: int = 0
    nb_snapshots: int = 0
    snapshots_offset: int = 0
    incompatible_features: int = 0
    compatible_features: int = 0
    autoclear_features: int = 0
    refcount_order: int = 4
    header_length: int = V3_LENGTH
    compression_type: int = 0
    additional: bytes = b""

    def has(self, flag: str) -> bool:
        """Whether the named feature bit (`dirty`, `extended_l2`, `lazy_refcounts`, `bitmaps`, …) is set."""
        for layout, word in (
            (INCOMPATIBLE, self.incompatible_features),
            (COMPATIBLE, self.compatible_features),
            (AUTOCLEAR, self.autoclear_features),
        ):
            for bit in layout:
                if bit.name == flag and bit.low == bit.high:
                    return bool(bit.get(word))
        raise KeyError(flag)

    def features(self) -> tuple[str, ...]:
        """Names of the feature bits that are set, incompatible ones first; `unknown` for those without a name."""
        return tuple(
            bit.name
            for layout, word in (
                (INCOMPATIBLE, self.incompatible_features),
                (COMPATIBLE, self.compatible_features),
                (AUTOCLEAR, self.autoclear_features),
            )
            for bit in layout
            if bit.get(word)
        )

    @property
    def cluster_size(self) -> int:
        """Bytes. Only meaningful when cluster_bits is within limits."""
        return 1 << self.cluster_bits


def parse_header(data: bytes) -> Header:
    """Decode a header from the first bytes of an image; data that ends early reads as zeros, as a driver would see it.

    Never raises on content. At most the given data is kept, whatever header_length says.
    """
    padded = bytes(data) + bytes(max(0, V3_LENGTH + 8 - len(data)))
    version = _number(padded, "version")
    length = _number(padded, "header_length") if version >= 3 else V2_LENGTH
    if version >= 3 and length > len(padded):
        at, size = field("header_length")
        padded = padded[:at] + len(padded).to_bytes(size, "big") + padded[at + size :]
    parsed = HEADER_SCHEMA.parse(padded)
    values = {f.name: parsed[f.name] for f in fields(Header) if parsed.get(f.name) is not None}
    if version < 3:
        values |= {"refcount_order": 4}
    return Header(**{**values, "header_length": length})


def _number(data: bytes, name: str) -> int:
    offset, size = field(name)
    return int.from_bytes(data[offset : offset + size], "big")


def build_header(header: Header) -> bytes:
    """The header's bytes: 72 for version 2, header_length for version 3. Inverse of parse_header."""
    values = {f.name: getattr(header, f.name) for f in fields(Header)}
    if header.version >= 3 and header.header_length > V3_LENGTH + 1:
        values["additional"] = header.additional.ljust(header.header_length - V3_LENGTH - 1, b"\0")
    built: bytes = HEADER_SCHEMA.build(values)
    return built
