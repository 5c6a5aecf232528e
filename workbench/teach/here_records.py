"""What extensions, snapshots, bitmaps, key slots and gaps mean in this image."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Final

from formats.qcow2 import limits
from workbench.teach.filling import Facts, UnknownFactError, both, code, number, size
from workbench.teach.here_header import where

_SECTOR: Final = 512


def _pointer(facts: Facts) -> str:
    return where(facts, number(facts, "value"))


def _extension_type(facts: Facts) -> str:
    from formats.qcow2.extensions import EXTENSION_NAMES

    value = number(facts, "value")
    names = {int(kind): name for kind, name in EXTENSION_NAMES.items()}
    return f"{value:#010x}: {names.get(value, 'an extension this program does not know; it is kept as it is')}."


def _padding(facts: Facts) -> str:
    raw = facts.get("raw")
    if not isinstance(raw, bytes):
        raise UnknownFactError("raw")
    if not raw:
        return "No padding was needed."
    return f"{len(raw):,} byte{'s' if len(raw) > 1 else ''}, {'not all zero' if any(raw) else 'zero'}."


def _gap(facts: Facts) -> str:
    return f"{both(number(facts, 'length'))} from {number(facts, 'offset'):#x}; {_content(facts)}."


def _content(facts: Facts) -> str:
    raw = facts.get("raw")
    if not isinstance(raw, bytes):
        raise UnknownFactError("raw")
    return "not all zero, so somebody wrote there" if any(raw) else "all zero"


def _snapshot_l1_size(facts: Facts) -> str:
    value, coverage = number(facts, "value"), number(facts, "l2_coverage")
    text = f"{value:,} × {size(coverage)} cover {size(value * coverage)}."
    disk = facts.get("its_virtual_disk_size", facts.get("virtual_size"))
    if isinstance(disk, int) and value * coverage < disk:
        text += f" **Too few for a disk of {size(disk)}.**"
    return text


def _date(facts: Facts) -> str:
    moment = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(seconds=number(facts, "value") & 0xFFFF_FFFF)
    return f"{moment:%Y-%m-%d %H:%M:%S} UTC."


def _nanoseconds(facts: Facts) -> str:
    value = number(facts, "value")
    return f"{value:,} ns = {value / 1e9:.3f} s." + (" **More than a second.**" if value >= 1_000_000_000 else "")


def _clock(facts: Facts) -> str:
    value = number(facts, "value")
    return f"The guest had run for {value / 1e9:,.3f} s." if value else "0: taken while no guest was running."


def _vm_state(facts: Facts) -> str:
    value = number(facts, "value")
    return (
        f"{both(value)} of VM state, stored behind the end of the virtual disk."
        if value
        else "0: the disk alone was saved."
    )


def _extra_size(facts: Facts) -> str:
    value = number(facts, "value")
    text = f"{value:,} bytes" + (
        f": {'VM state size and disk size' if value == 16 else 'those and the instruction count'}."
        if value in (16, 24)
        else "."
    )
    if facts.get("version") == 3 and value < limits.MIN_SNAPSHOT_EXTRA_DATA_V3:
        text += " **Too short for version 3.**"
    return text + (" **More than QEMU takes.**" if value > limits.MAX_SNAPSHOT_EXTRA_DATA else "")


def _disk_size(facts: Facts) -> str:
    value, now = number(facts, "value"), number(facts, "virtual_size")
    text = f"The disk was {both(value)} when the snapshot was taken"
    return text + (", as it is now." if value == now else f"; now it is {size(now)}.")


def _granularity(facts: Facts) -> str:
    value = number(facts, "value")
    if not 9 <= value <= 31:
        return f"**{value} is outside QEMU's 9 … 31.**"
    disk, unit = number(facts, "virtual_size"), 1 << value
    bits = -(-disk // unit)
    return f"One bit stands for 1 << {value} = {both(unit)}; the disk of {size(disk)} needs {bits:,} bits, {both(-(-bits // 8))}."


def _bitmap_table_size(facts: Facts) -> str:
    value, unit = number(facts, "value"), number(facts, "cluster_size")
    text = f"{value:,} entr{'y' if value == 1 else 'ies'}, each for a cluster of {size(unit)} = {unit * 8:,} bits"
    grain = facts.get("its_granularity_bits")
    if isinstance(grain, int) and grain < 64:
        return f"{text}: {size(value * unit * 8 << grain)} of the disk."
    return f"{text}."


def _slot(facts: Facts) -> str:
    state = facts.get("its_state")
    return {0x00AC71F3: "It holds a key.", 0x0000DEAD: "It is empty."}.get(state, "") if isinstance(state, int) else ""


def _slot_state(facts: Facts) -> str:
    value = number(facts, "value")
    known = {0x00AC71F3: "active: one passphrase opens this slot.", 0x0000DEAD: "inactive: no key here."}
    return f"{value:#010x}: {known.get(value, '**neither active nor inactive; the slot is damaged.**')}"


def _iterations(facts: Facts) -> str:
    value = number(facts, "value")
    if not value:
        return (
            "0: an unused slot." if facts.get("its_state") == 0x0000DEAD else "**0 iterations: no key can be derived.**"
        )
    return f"Each guess at the passphrase costs {value:,} rounds of the hash."


def _material(facts: Facts) -> str:
    value = number(facts, "value")
    text = f"{value:,} × 512 = {both(value * _SECTOR)} into the encryption header"
    if "luks_offset" in facts:
        text += f", at {number(facts, 'luks_offset') + value * _SECTOR:#x} of the file"
    return f"{text}."


def _stripes(facts: Facts) -> str:
    value = number(facts, "value")
    text = f"{value:,} stripes"
    if "luks_key_bytes" in facts:
        keylength = number(facts, "luks_key_bytes")
        text += f" × {keylength} bytes of key = {both(value * keylength)} of key material"
    return f"{text}." + ("" if value == 4000 else " LUKS1 always uses 4,000.")


def _payload(facts: Facts) -> str:
    value = number(facts, "value")
    return f"{value:,} sectors ({both(value * _SECTOR)}). Guest data do not begin there but where the L2 tables say."


def _key_bytes(facts: Facts) -> str:
    value, mode = number(facts, "value"), facts.get("its_cipher_mode", facts.get("luks_cipher", ""))
    text = f"{value} bytes = {value * 8} bits"
    return f"{text}; XTS splits them into two keys of {value * 4} bits." if "xts" in str(mode) else f"{text}."


def _text(facts: Facts) -> str:
    value = facts.get("value")
    if not isinstance(value, (str, bytes)):
        raise UnknownFactError("value")
    return f"{code(value)}, {len(value.encode('utf-8', 'replace') if isinstance(value, str) else value):,} bytes."


def _luks_length(facts: Facts) -> str:
    value, start, end = number(facts, "value"), number(facts, "luks_offset"), number(facts, "file_size")
    text = f"{both(value)}, up to {start + value:#x}."
    return text + (" **The file ends before that.**" if start + value > end else "")


def _directory_size(facts: Facts) -> str:
    return f"{both(number(facts, 'value'))} for {number(facts, 'nb_bitmaps'):,} bitmap{'' if facts['nb_bitmaps'] == 1 else 's'}."


def _reserved(facts: Facts) -> str:
    value = number(facts, "value")
    return f"**{value:#x}**, where zeros must be." if value else "Zero, as it must be."


def _feature_type(facts: Facts) -> str:
    value = number(facts, "value")
    kinds = {0: "incompatible", 1: "compatible", 2: "autoclear"}
    return f"{value}: a bit of the {kinds[value]} features." if value in kinds else f"**{value} is no feature word.**"


HERE: Final[Mapping[str, Callable[[Facts], str]]] = {
    "gap": _gap,
    "unused": _gap,
    "tail": _gap,
    "extension.type": _extension_type,
    "extension.padding": _padding,
    "extension.data.reserved": _reserved,
    "extension.data.offset": _pointer,
    "extension.data.length": _luks_length,
    "extension.data.bitmap_directory_offset": _pointer,
    "extension.data.bitmap_directory_size": _directory_size,
    "extension.data.features.feature.feature_type": _feature_type,
    "extension.data.features.feature.name": _text,
    "extension.data.format": _text,
    "extension.data.name": _text,
    "backing-name.name": _text,
    "snapshot.l1_table_offset": _pointer,
    "snapshot.l1_size": _snapshot_l1_size,
    "snapshot.date_seconds": _date,
    "snapshot.date_nanoseconds": _nanoseconds,
    "snapshot.vm_clock": _clock,
    "snapshot.vm_state_size": _vm_state,
    "snapshot.extra.vm_state_size_large": _vm_state,
    "snapshot.extra_data_size": _extra_size,
    "snapshot.extra.virtual_disk_size": _disk_size,
    "snapshot.id": _text,
    "snapshot.name": _text,
    "snapshot.padding": _padding,
    "bitmap.bitmap_table_offset": _pointer,
    "bitmap.bitmap_table_size": _bitmap_table_size,
    "bitmap.granularity_bits": _granularity,
    "bitmap.flags.reserved": _reserved,
    "bitmap.name": _text,
    "bitmap.padding": _padding,
    "luks.cipher_name": _text,
    "luks.cipher_mode": _text,
    "luks.hash_spec": _text,
    "luks.uuid": _text,
    "luks.payload_offset": _payload,
    "luks.key_bytes": _key_bytes,
    "luks.mk_digest_iterations": _iterations,
    "luks.key_slots.slot": _slot,
    "luks.key_slots.slot.state": _slot_state,
    "luks.key_slots.slot.iterations": _iterations,
    "luks.key_slots.slot.key_material_offset": _material,
    "luks.key_slots.slot.stripes": _stripes,
}
