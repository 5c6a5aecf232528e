"""Unlocking a LUKS1 header: passphrase -> key slot -> master key -> sector cipher (LUKS1 On-Disk Format, sections 2-5).

Every number in the header is a stranger's: work and memory are bounded before anything is derived from it.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from formats.luks.header import SECTOR, KeySlot, LuksHeader
from workbench.engine.crypto.ciphers import CipherSpec, SectorCipher, check_hash, parse_spec
from workbench.errors import CorruptError, PassphraseError, UnsupportedError

MAX_ITERATIONS: Final = 50_000_000
"""PBKDF2 iterations done without being asked to: some 20 to 60 s. QEMU's default of 2 s asks for 1 to 8 million."""
MAX_SPLIT_BYTES: Final = 4 << 20
"""Bound of key_bytes * stripes; what everybody writes is 64 * 4000."""
_DIGEST_BYTES: Final = 20

ReadMaterial = Callable[[int, int], bytes]
"""(offset, length) in bytes, counted from the start of the LUKS header -> bytes, fewer where it ends."""


@dataclass(frozen=True, slots=True, repr=False)
class Unlocked:
    """An opened header: the slot that fitted and the cipher of the payload. The key is not shown by repr."""

    slot: int
    spec: CipherSpec
    master_key: bytes

    def cipher(self) -> SectorCipher:
        """The payload's cipher. In qcow2 the sector number is the host offset / 512."""
        return SectorCipher(self.spec, self.master_key)

    def __repr__(self) -> str:
        return f"Unlocked(slot={self.slot}, spec={self.spec.name})"


@dataclass(frozen=True, slots=True)
class SlotProblem:
    """Why a key slot was not tried."""

    slot: int
    reason: str
    forceable: bool


def cipher_spec(header: LuksHeader) -> CipherSpec:
    """What the header asks for. CorruptError when it is no LUKS1 header, UnsupportedError for unknown ciphers."""
    if not header.valid:
        what = "no LUKS1 header" if header.version == 1 else f"no LUKS1 header (version {header.version})"
        raise CorruptError(f"{what} where the image says it is", table="LUKS header")
    check_hash(header.hash_spec)
    return parse_spec(header.cipher_name, header.cipher_mode, header.key_bytes)


def slot_problem(header: LuksHeader, index: int, *, max_iterations: int | None = MAX_ITERATIONS) -> SlotProblem | None:
    """Why key slot `index` cannot be tried with the limits given, or None."""
    slot = header.key_slots[index]
    if slot.iterations == 0:
        return SlotProblem(index, "asks for 0 iterations", forceable=False)
    if slot.stripes == 0 or header.key_bytes * slot.stripes > MAX_SPLIT_BYTES:
        return SlotProblem(index, f"has {slot.stripes} stripes", forceable=False)
    if max_iterations is not None and slot.iterations > max_iterations:
        return SlotProblem(index, f"asks for {slot.iterations} iterations", forceable=True)
    return None


def unlock(
    header: LuksHeader,
    read: ReadMaterial,
    passphrase: bytes,
    *,
    max_iterations: int | None = MAX_ITERATIONS,
    path: str | None = None,
    before_slot: Callable[[int], None] | None = None,
) -> Unlocked:
    """Try the active key slots in order; the first whose master key has the right digest wins.

    `read` gives key material. `max_iterations` None lifts the bound on PBKDF2 work. `before_slot` is called with each
    slot's number before its work starts (progress; it may raise to cancel).
    Raises PassphraseError when no slot opens, UnsupportedError when what is asked for is beyond the limits,
    CorruptError when the header or all its slots are unusable.
    """
    spec = cipher_spec(header)
    digest_work = header.mk_digest_iterations
    if digest_work == 0:
        raise CorruptError("the master key digest asks for 0 iterations", path=path, table="LUKS header")
    if max_iterations is not None and digest_work > max_iterations:
        raise _too_much_work("the master key digest", digest_work, max_iterations, path)
    active = [i for i, slot in enumerate(header.key_slots) if slot.active]
    if not active:
        hint = "without a copy of the header the data cannot be decrypted"
        raise PassphraseError("no key slot is active", path=path, hint=hint)
    problems: list[SlotProblem] = []
    for index in active:
        problem = slot_problem(header, index, max_iterations=max_iterations)
        if problem is None:
            if before_slot is not None:
                before_slot(index)
            material = _material(header, header.key_slots[index], read)
            if material is None:
                problem = SlotProblem(index, "has its key material past the end", forceable=False)
            else:
                key = _open_slot(header, header.key_slots[index], material, spec, passphrase)
                if key is not None:
                    return Unlocked(index, spec, key)
        if problem is not None:
            problems.append(problem)
    raise _nothing_opened(header, active, problems, max_iterations, path)


def _nothing_opened(
    header: LuksHeader, active: list[int], problems: list[SlotProblem], limit: int | None, path: str | None
) -> Exception:
    for problem in problems:
        if problem.forceable and limit is not None:
            return _too_much_work(f"key slot {problem.slot}", header.key_slots[problem.slot].iterations, limit, path)
    if len(problems) == len(active):
        first = problems[0]
        return CorruptError(f"key slot {first.slot} {first.reason}", path=path, table="LUKS key slot", index=first.slot)
    tried = [i for i in active if i not in {problem.slot for problem in problems}]
    slots = ", ".join(map(str, tried))
    return PassphraseError(f"the passphrase opens no key slot (tried {slots})", path=path, hint="check the passphrase")


def _too_much_work(who: str, iterations: int, limit: int, path: str | None) -> UnsupportedError:
    what = f"{who} asks for {iterations:,} PBKDF2 iterations, more than {limit:,}"
    return UnsupportedError(what, path=path, table="LUKS header", hint="a damaged header may; force it if it is meant")


def _material(header: LuksHeader, slot: KeySlot, read: ReadMaterial) -> bytes | None:
    """The split, encrypted key, padded to whole sectors; None when the header ends before it."""
    length = header.key_bytes * slot.stripes
    data = read(slot.key_material_offset * SECTOR, length)
    return data.ljust(-(-length // SECTOR) * SECTOR, b"\0") if len(data) == length else None


def _open_slot(header: LuksHeader, slot: KeySlot, material: bytes, spec: CipherSpec, passphrase: bytes) -> bytes | None:
    """The master key when the passphrase fits this slot. Sections 2.2 (slots) and 4.1 (decryption of the material)."""
    hash_name = check_hash(header.hash_spec)
    slot_key = hashlib.pbkdf2_hmac(hash_name, passphrase, slot.salt, slot.iterations, header.key_bytes)
    split = SectorCipher(spec, slot_key).decrypt(material, 0)
    key = af_merge(split[: header.key_bytes * slot.stripes], header.key_bytes, hash_name)
    found = hashlib.pbkdf2_hmac(hash_name, key, header.mk_digest_salt, header.mk_digest_iterations, _DIGEST_BYTES)
    return key if hmac.compare_digest(found, header.mk_digest) else None


def af_merge(split: bytes, key_bytes: int, hash_name: str) -> bytes:
    """Undo the anti-forensic split: all stripes but the last are mixed in one after the other (section 2.4)."""
    mixed = bytes(key_bytes)
    for start in range(0, len(split) - key_bytes, key_bytes):
        mixed = _diffuse(_xor(mixed, split[start : start + key_bytes]), hash_name)
    return _xor(mixed, split[len(split) - key_bytes :])


def _xor(one: bytes, other: bytes) -> bytes:
    return (int.from_bytes(one, "big") ^ int.from_bytes(other, "big")).to_bytes(len(one), "big")


def _diffuse(block: bytes, hash_name: str) -> bytes:
    """Each digest-sized piece becomes the hash of its number and itself; the last piece is cut to what is needed."""
    make, size = hashlib.new, hashlib.new(hash_name).digest_size
    pieces = [
        make(hash_name, number.to_bytes(4, "big") + block[start : start + size]).digest()
        for number, start in enumerate(range(0, len(block), size))
    ]
    return b"".join(pieces)[: len(block)]
