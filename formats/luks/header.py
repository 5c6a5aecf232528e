"""LUKS1 partition header and its eight key slots (LUKS1 On-Disk Format Specification 1.2.3, sections 2.1, 2.2)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from construct import Array, Bytes, Struct

from formats.annotate import U16, U32, Field

MAGIC: Final = b"LUKS\xba\xbe"
HEADER_SIZE: Final = 592
KEY_SLOTS: Final = 8
SLOT_ACTIVE: Final = 0x00AC71F3
SLOT_INACTIVE: Final = 0x0000DEAD
SLOT_STATES: Final = {SLOT_ACTIVE: "active", SLOT_INACTIVE: "inactive"}
SECTOR: Final = 512
ALIGNMENT: Final = 4096
"""Key material starts at multiples of this in headers that QEMU and cryptsetup write, in bytes."""
STRIPES: Final = 4000
"""Stripes of a split key in every header that they write."""

_HEADER = "LUKS1: 2.1 The partition header"
_SLOT = "LUKS1: 2.2 Key slot"

KEY_SLOT_SCHEMA: Final = Struct(
    Field("state", U32, "Whether the slot holds a key.", _SLOT, symbols=SLOT_STATES),
    Field("iterations", U32, "PBKDF2 iterations for the passphrase.", _SLOT, unit="iterations"),
    Field("salt", Bytes(32), "PBKDF2 salt of the slot.", _SLOT, unit="bytes"),
    Field("key_material_offset", U32, "Where the split key starts, from the LUKS header.", _SLOT, unit="sectors"),
    Field("stripes", U32, "Anti-forensic stripes of the split key.", _SLOT, unit="stripes"),
)
LUKS_SCHEMA: Final = Struct(
    Field("magic", Bytes(6), "'LUKS' and 0xba 0xbe.", _HEADER),
    Field("version", U16, "LUKS version; 1.", _HEADER),
    Field("cipher_name", Bytes(32), "Cipher of the payload.", _HEADER, text="ascii"),
    Field("cipher_mode", Bytes(32), "Mode and IV generator.", _HEADER, text="ascii"),
    Field("hash_spec", Bytes(32), "Hash of PBKDF2 and the anti-forensic splitter.", _HEADER, text="ascii"),
    Field(
        "payload_offset", U32, "Start of the payload on a plain LUKS volume; unused in qcow2.", _HEADER, unit="sectors"
    ),
    Field("key_bytes", U32, "Length of the master key.", _HEADER, unit="bytes"),
    Field("mk_digest", Bytes(20), "Checksum of the master key.", _HEADER, unit="bytes"),
    Field("mk_digest_salt", Bytes(32), "PBKDF2 salt of that checksum.", _HEADER, unit="bytes"),
    Field("mk_digest_iterations", U32, "PBKDF2 iterations of that checksum.", _HEADER, unit="iterations"),
    Field("uuid", Bytes(40), "UUID of the volume.", _HEADER, text="ascii"),
    Field(
        "key_slots",
        Array(KEY_SLOTS, Field("slot", KEY_SLOT_SCHEMA, "One key slot.", _SLOT)),
        "The eight key slots.",
        _SLOT,
    ),
)


@dataclass(frozen=True, slots=True)
class KeySlot:
    """One key slot. key_material_offset: 512-byte sectors from the start of the LUKS header."""

    state: int
    iterations: int
    salt: bytes
    key_material_offset: int
    stripes: int

    @property
    def active(self) -> bool:
        return self.state == SLOT_ACTIVE


@dataclass(frozen=True, slots=True)
class LuksHeader:
    """A decoded LUKS1 header. key_bytes in bytes, payload_offset in sectors."""

    magic: bytes
    version: int
    cipher_name: str
    cipher_mode: str
    hash_spec: str
    payload_offset: int
    key_bytes: int
    mk_digest: bytes
    mk_digest_salt: bytes
    mk_digest_iterations: int
    uuid: str
    key_slots: tuple[KeySlot, ...]

    @property
    def valid(self) -> bool:
        """Magic and version are LUKS1's."""
        return self.magic == MAGIC and self.version == 1


def _text(raw: bytes) -> str:
    return raw.split(b"\0")[0].decode("ascii", "replace")


def parse_luks(data: bytes) -> LuksHeader:
    """Decode the first 592 bytes; data that ends early reads as zeros. Never raises on content."""
    got: Any = LUKS_SCHEMA.parse(data[:HEADER_SIZE].ljust(HEADER_SIZE, b"\0"))
    return LuksHeader(
        magic=got.magic,
        version=got.version,
        cipher_name=_text(got.cipher_name),
        cipher_mode=_text(got.cipher_mode),
        hash_spec=_text(got.hash_spec),
        payload_offset=got.payload_offset,
        key_bytes=got.key_bytes,
        mk_digest=got.mk_digest,
        mk_digest_salt=got.mk_digest_salt,
        mk_digest_iterations=got.mk_digest_iterations,
        uuid=_text(got.uuid),
        key_slots=tuple(
            KeySlot(slot.state, slot.iterations, slot.salt, slot.key_material_offset, slot.stripes)
            for slot in got.key_slots
        ),
    )


def space_for(key_bytes: int) -> int:
    """Bytes in front of the payload of a header as QEMU writes it: the header, then eight split keys of `key_bytes`."""
    material = -(-key_bytes * STRIPES // ALIGNMENT) * ALIGNMENT
    return ALIGNMENT + KEY_SLOTS * material
