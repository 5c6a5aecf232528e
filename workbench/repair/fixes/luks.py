"""The pointer to the LUKS header: offset and length from the LUKS header itself, found by its magic if need be."""

from __future__ import annotations

import itertools

from formats.luks.header import HEADER_SIZE, KEY_SLOTS, MAGIC, SECTOR, SLOT_ACTIVE, LuksHeader, parse_luks
from formats.qcow2.extensions import ExtensionType
from workbench.check.problems import Tier
from workbench.repair.fixes.base import Rule, codes
from workbench.repair.fixes.extensions import add_extension
from workbench.repair.probe import find_luks
from workbench.repair.workspace import Workspace

_SLOTS_AT = 208
_SLOT_SIZE = 48


def run(space: Workspace) -> None:
    """Find the LUKS header, then its length; and mend what of it can be derived."""
    if space.meta.header.crypt_method != 2:
        return
    pointer, extension = space.meta.encryption, space.meta.extension(ExtensionType.ENCRYPTION)
    offset = pointer.offset if pointer else -1
    if pointer is None or not _is_luks(space, offset):
        found = find_luks(space)
        if found is None:
            space.note(
                "no LUKS header was found in the file: without it (or a backup of it) the data cannot be decrypted"
            )
            return
        offset = found
    _mend_header(space, offset)
    luks = parse_luks(space.read(offset, HEADER_SIZE))
    length = header_length(luks)
    if pointer is not None and pointer.offset == offset and pointer.length == length:
        return
    if (
        pointer is not None
        and pointer.offset == offset
        and length <= pointer.length <= space.size - offset + space.cluster
    ):
        return  # longer than needed, and in the file: harmless
    code = _code(space, extension is not None, offset)
    title = f"let the encryption extension name the LUKS header at {offset:#x}, {length} bytes"
    add_extension(
        space, ExtensionType.ENCRYPTION, offset.to_bytes(8, "big") + length.to_bytes(8, "big"), code=code, title=title
    )


def header_length(luks: LuksHeader) -> int:
    """Bytes from the LUKS header's start to the end of its key material, as QEMU allots them."""
    ends = [
        slot.key_material_offset * SECTOR + luks.key_bytes * slot.stripes for slot in luks.key_slots if slot.stripes
    ]
    return max(luks.payload_offset * SECTOR, *ends) if luks.payload_offset < 1 << 20 else max(ends, default=HEADER_SIZE)


def _is_luks(space: Workspace, offset: int) -> bool:
    return offset % space.cluster == 0 and offset < space.size and space.read(offset, 6) == MAGIC


def _code(space: Workspace, has_extension: bool, offset: int) -> str:
    pointer = space.meta.encryption
    if not has_extension or pointer is None:
        return "ENCRYPTION-MISSING"
    if pointer.offset % space.cluster:
        return "LUKS-UNALIGNED"
    if pointer.offset >= space.size:
        return "LUKS-BEYOND-EOF"
    return "LUKS-MAGIC" if pointer.offset != offset else "LUKS-LENGTH"


def _mend_header(space: Workspace, offset: int) -> None:
    luks = parse_luks(space.read(offset, HEADER_SIZE))
    has = space.rows.has
    if luks.version != 1 and has("LUKS-VERSION"):
        space.put(
            offset + 6,
            b"\0\1",
            code="LUKS-MAGIC",
            title="set the LUKS version to 1, the only one in qcow2",
            kind="luks",
            tier=Tier.JUDGEMENT,
        )
    if has("LUKS-KEY-SLOT"):
        _mend_slots(space, offset, luks)
    if has("LUKS-NO-KEY") and luks.key_slots and not any(slot.active for slot in luks.key_slots):
        for number, slot in enumerate(luks.key_slots):
            material = space.read(offset + slot.key_material_offset * SECTOR, 512)
            if slot.iterations and any(slot.salt) and any(material):
                title = f"mark key slot {number} active again: it holds a key, and no other slot does"
                space.put(
                    offset + _SLOTS_AT + number * _SLOT_SIZE,
                    SLOT_ACTIVE.to_bytes(4, "big"),
                    code="LUKS-MAGIC",
                    title=title,
                    kind="luks",
                    tier=Tier.JUDGEMENT,
                )


def _mend_slots(space: Workspace, offset: int, luks: LuksHeader) -> None:
    """Key material lies at a constant stride; one slot out of line is put back."""
    places = [slot.key_material_offset for slot in luks.key_slots]
    strides = [b - a for a, b in itertools.pairwise(places)]
    stride = max(set(strides), key=strides.count)
    anchors = [place - number * stride for number, place in enumerate(places)]
    first = max(set(anchors), key=anchors.count)
    if anchors.count(first) < KEY_SLOTS - 2 or stride <= 0:
        return
    for number, place in enumerate(places):
        right = first + number * stride
        if place != right:
            title = f"point key slot {number} at its key material again"
            space.put(
                offset + _SLOTS_AT + number * _SLOT_SIZE + 40,
                right.to_bytes(4, "big"),
                code="LUKS-MAGIC",
                title=title,
                kind="luks",
                tier=Tier.JUDGEMENT,
            )


RULES = (
    Rule(
        "luks-pointer",
        "Find the LUKS header",
        codes(
            "ENCRYPTION-MISSING",
            "ENCRYPTION-EXTENSION",
            "LUKS-UNALIGNED",
            "LUKS-BEYOND-EOF",
            "LUKS-LENGTH",
            "LUKS-MAGIC",
            "LUKS-VERSION",
            "LUKS-KEY-SLOT",
            "LUKS-NO-KEY",
        ),
        Tier.SAFE,
        run,
    ),
)
