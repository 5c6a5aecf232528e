"""The header cluster as a whole: fixed part, extensions, backing file name, in the order in which QEMU writes them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Final

from formats.qcow2 import limits
from formats.qcow2.extensions import FEATURE_NAME_SIZE, Extension, ExtensionType, build_extensions
from formats.qcow2.header import AUTOCLEAR, COMPATIBLE, INCOMPATIBLE, V2_LENGTH, V3_LENGTH, Header, build_header
from workbench.errors import ArgumentError

_ORDER: Final = (
    ExtensionType.BACKING_FORMAT,
    ExtensionType.DATA_FILE,
    ExtensionType.ENCRYPTION,
    ExtensionType.FEATURE_NAMES,
    ExtensionType.BITMAPS,
)
_SMALL: Final = 4096
"""Clusters up to this size have no room to spare for feature names (QEMU leaves them out too)."""
_TITLES: Final = {
    "dirty": "dirty bit",
    "corrupt": "corrupt bit",
    "data_file": "external data file",
    "compression_type": "compression type",
    "extended_l2": "extended L2 entries",
    "lazy_refcounts": "lazy refcounts",
    "bitmaps": "bitmaps",
    "data_file_raw": "raw external data",
}


def feature_name_table() -> bytes:
    """Names of all feature bits that we know, as QEMU spells them."""
    table = bytearray()
    for kind, layout in enumerate((INCOMPATIBLE, COMPATIBLE, AUTOCLEAR)):
        for bit in layout:
            if not bit.reserved:
                row = bytes((kind, bit.low)) + _TITLES[bit.name].encode()
                table += row.ljust(FEATURE_NAME_SIZE, b"\0")
    return bytes(table)


def compose_header(header: Header, extensions: Iterable[Extension], backing: bytes | None) -> tuple[Header, bytes]:
    """(the header as it ends up, the bytes of the header cluster).

    extensions: those to keep, unknown ones included; a feature name table is added to version 3 images.
    backing: file name as stored. Fields beyond the known header are kept. ArgumentError when it does not fit a cluster.
    """
    header, area = header_area(header, extensions)
    header, content = with_name(header, area, len(area), backing)
    content += backing or b""
    if len(content) > header.cluster_size:
        raise ArgumentError(
            f"the header needs {len(content)} bytes but a cluster has {header.cluster_size}",
            hint="use larger clusters or shorter names",
        )
    return header, content.ljust(header.cluster_size, b"\0")


def header_area(header: Header, extensions: Iterable[Extension], *, names: bool = True) -> tuple[Header, bytes]:
    """(the header with its length, header and extensions as bytes, END record included). names: with a table of feature
    names, where there is room for one."""
    given = {each.type: each for each in extensions}
    if not names:
        given.pop(ExtensionType.FEATURE_NAMES, None)
    elif header.version >= 3 and header.cluster_size > _SMALL:
        given[ExtensionType.FEATURE_NAMES] = Extension(0, ExtensionType.FEATURE_NAMES, feature_name_table())
    if header.version >= 3:
        header = replace(header, header_length=max(header.header_length, V3_LENGTH + 8))
    ordered = [given.pop(kind) for kind in _ORDER if kind in given]
    length = header.header_length if header.version >= 3 else V2_LENGTH
    return header, build_header(header)[:length] + build_extensions([*ordered, *given.values()])


def with_name(header: Header, area: bytes, place: int, backing: bytes | None) -> tuple[Header, bytes]:
    """Header and area (of `header_area`) that find the backing file name at `place`. ArgumentError for too long a name."""
    if backing and len(backing) > limits.MAX_BACKING_NAME:
        raise ArgumentError(f"backing file name of {len(backing)} bytes, more than {limits.MAX_BACKING_NAME}")
    header = replace(header, backing_file_offset=place if backing else 0, backing_file_size=len(backing or b""))
    start = build_header(header)
    return header, start + area[len(start) :]
