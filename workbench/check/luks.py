"""Rules on the LUKS header that qemu applies when it opens an image, as far as they need no passphrase."""

from __future__ import annotations

from typing import Final

from formats.luks.header import HEADER_SIZE, MAGIC
from workbench.check.findings import FindingLog
from workbench.engine.metadata import Metadata

_SECTOR: Final = 512


def check_luks(meta: Metadata, log: FindingLog) -> str | None:
    """Log what is wrong with the LUKS header; returns why qemu could not open the image, or None."""
    pointer, luks = meta.encryption, meta.luks
    if meta.geometry is None or meta.header.crypt_method != 2 or pointer is None:
        return None
    if luks is None or luks.magic != MAGIC:
        return "there is no LUKS header where the image says"  # logged as LUKS-BEYOND-EOF or LUKS-MAGIC
    place = (pointer.offset, HEADER_SIZE)
    if luks.version != 1:
        log.add("LUKS-VERSION", *place, value=luks.version)
        return f"LUKS version {luks.version} is not supported"
    if pointer.length < HEADER_SIZE:
        log.add("LUKS-LENGTH", *place, numbers={"what": f"LUKS header length {pointer.length} is too short"})
        return "the LUKS header is said to be shorter than a LUKS header"
    slots = luks.key_slots
    active = [slot for slot in slots if slot.active]
    reason: str | None = None
    ends = []
    for number, slot in enumerate(slots):
        start = slot.key_material_offset * _SECTOR
        length = -(-luks.key_bytes * slot.stripes // _SECTOR) * _SECTOR
        ends.append((start, start + length))
        outside = start < HEADER_SIZE or start + length > luks.payload_offset * _SECTOR
        crossing = any(start < end and other < start + length for other, end in ends[:-1])
        if slot.stripes != 4000 or outside or crossing:
            log.add("LUKS-KEY-SLOT", *place, index=number, value=start, other=luks.payload_offset * _SECTOR)
            reason = reason or f"LUKS key slot {number} is damaged"
    if not active:
        log.add("LUKS-NO-KEY", *place)
        reason = reason or "no LUKS key slot is in use: no passphrase can open the image"
    needed = max((end for slot, (_, end) in zip(slots, ends, strict=True) if slot.active), default=0)
    if not reason and pointer.length < needed:
        what = f"LUKS header length {pointer.length} leaves out key material up to {needed}"
        log.add("LUKS-LENGTH", *place, numbers={"what": what})
        reason = what
    return reason
