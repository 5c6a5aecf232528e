"""Sector ciphers against the library's own, LUKS headers good and hostile; real images in test_crypto_oracle."""

from __future__ import annotations

import hashlib
import os
import time
from dataclasses import replace

import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from hypothesis import given, settings
from hypothesis import strategies as st

from formats.luks.header import MAGIC, SLOT_ACTIVE, SLOT_INACTIVE, KeySlot, LuksHeader
from workbench.engine.crypto.ciphers import SectorCipher, parse_spec
from workbench.engine.crypto.legacy import legacy_cipher
from workbench.engine.crypto.luks import MAX_ITERATIONS, _diffuse, _xor, unlock
from workbench.errors import ArgumentError, CorruptError, PassphraseError, QwbError, UnsupportedError


def reference(mode: str, key: bytes, sector: int, plain: bytes) -> bytes:
    """One sector, encrypted by the library."""
    kind, _, iv_kind = mode.partition("-")
    iv = sector.to_bytes(16, "little")
    if iv_kind == "plain":
        iv = (sector & 0xFFFFFFFF).to_bytes(16, "little")
    elif iv_kind.startswith("essiv"):
        salt = hashlib.new(iv_kind.partition(":")[2], key).digest()
        iv = Cipher(algorithms.AES(salt), modes.ECB()).encryptor().update(iv)
    if kind == "xts":
        return Cipher(algorithms.AES(key), modes.XTS(iv)).encryptor().update(plain)
    if kind == "cbc":
        return Cipher(algorithms.AES(key), modes.CBC(iv)).encryptor().update(plain)
    return Cipher(algorithms.AES(key), modes.ECB()).encryptor().update(plain)


@pytest.mark.parametrize(
    ("mode", "key_bytes"),
    [
        ("xts-plain64", 32),
        ("xts-plain64", 64),
        ("xts-plain", 64),
        ("xts-essiv:sha256", 32),
        ("cbc-plain64", 16),
        ("cbc-plain64", 24),
        ("cbc-plain", 32),
        ("cbc-essiv:sha256", 16),
        ("cbc-essiv:sha256", 32),
        ("ecb", 32),
        ("ecb-plain64", 16),
    ],
)
def test_every_mode_equals_the_library_sector_by_sector(mode: str, key_bytes: int) -> None:
    key = os.urandom(key_bytes)
    cipher = SectorCipher(parse_spec("aes", mode, key_bytes), key)
    for first, count in ((0, 1), (5, 3), ((1 << 32) - 2, 5), (1 << 55, 2), (77, 1030)):
        plain = os.urandom(count * 512)
        secret = cipher.encrypt(plain, first)
        assert cipher.decrypt(memoryview(secret), first) == plain
        for index in {0, 1, count // 2, count - 1} & set(range(count)):
            piece = slice(index * 512, index * 512 + 512)
            assert secret[piece] == reference(mode, key, first + index, plain[piece])


@settings(max_examples=60, deadline=None)
@given(st.integers(0, (1 << 55) - 100), st.integers(0, 90), st.integers(0, 90))
def test_a_run_may_be_cut_anywhere(sector: int, cut: int, count: int) -> None:
    cipher = SectorCipher(parse_spec("aes", "xts-plain64", 64), bytes(range(64)))
    cut = min(cut, count)
    plain = (bytes(range(256)) * 2) * count
    whole = cipher.encrypt(plain, sector)
    assert whole == cipher.encrypt(plain[: cut * 512], sector) + cipher.encrypt(plain[cut * 512 :], sector + cut)


def test_wrong_lengths_are_refused() -> None:
    with pytest.raises(ArgumentError):
        legacy_cipher(b"x").decrypt(bytes(100), 0)
    with pytest.raises(ArgumentError):
        SectorCipher(parse_spec("aes", "xts-plain64", 64), bytes(32))


def test_a_legacy_key_is_the_passphrase_cut_or_filled_to_16_bytes() -> None:
    plain = os.urandom(512)
    assert legacy_cipher(b"0123456789abcdefXYZ").encrypt(plain, 9) == reference(
        "cbc-plain64", b"0123456789abcdef", 9, plain
    )
    assert legacy_cipher(b"pw").encrypt(plain, 9) == reference("cbc-plain64", b"pw".ljust(16, b"\0"), 9, plain)


@pytest.mark.parametrize(
    ("name", "mode", "key_bytes", "words"),
    [
        ("serpent", "xts-plain64", 64, "serpent is not supported"),
        ("twofish", "xts-plain64", 64, "twofish is not supported"),
        ("rot13", "xts-plain64", 64, "not known"),
        ("aes", "ctr-plain64", 32, "not known"),
        ("aes", "cbc-random", 32, "not known"),
        ("aes", "cbc", 32, "no IV"),
        ("aes", "xts-plain64", 33, "33 bytes"),
        ("aes", "cbc-plain64", 0xFFFFFFFF, "4294967295 bytes"),
        ("aes", "cbc-essiv:sha512", 32, "no AES key"),
        ("aes", "cbc-essiv:md5", 32, "not known"),
        ("aes", "", 32, "not known"),
    ],
)
def test_what_is_not_supported_is_named(name: str, mode: str, key_bytes: int, words: str) -> None:
    with pytest.raises(UnsupportedError, match=words):
        parse_spec(name, mode, key_bytes)


# -- LUKS headers made here

KEY_BYTES, STRIPES = 64, 40
SLOT_SECTORS = KEY_BYTES * STRIPES // 512


def af_split(key: bytes, hash_name: str) -> bytes:
    mixed, made = bytes(len(key)), []
    for _ in range(STRIPES - 1):
        made.append(os.urandom(len(key)))
        mixed = _diffuse(_xor(mixed, made[-1]), hash_name)
    return b"".join([*made, _xor(mixed, key)])


def volume(passphrases: dict[int, bytes], hash_name: str = "sha256") -> tuple[LuksHeader, bytes, bytes]:
    """(header, the bytes after it as one buffer, master key) with a slot for each passphrase."""
    key, salt = os.urandom(KEY_BYTES), os.urandom(32)
    area = bytearray((8 + 8 * SLOT_SECTORS) * 512)
    slots = []
    for index in range(8):
        offset = 8 + index * SLOT_SECTORS
        if index in passphrases:
            slot_key = hashlib.pbkdf2_hmac(hash_name, passphrases[index], salt, 50 + index, KEY_BYTES)
            secret = SectorCipher(parse_spec("aes", "xts-plain64", KEY_BYTES), slot_key).encrypt(
                af_split(key, hash_name), 0
            )
            area[offset * 512 : offset * 512 + len(secret)] = secret
        state = SLOT_ACTIVE if index in passphrases else SLOT_INACTIVE
        slots.append(KeySlot(state, 50 + index, salt, offset, STRIPES))
    digest = hashlib.pbkdf2_hmac(hash_name, key, salt, 30, 20)
    header = LuksHeader(
        MAGIC, 1, "aes", "xts-plain64", hash_name, 4096, KEY_BYTES, digest, salt, 30, "uuid", tuple(slots)
    )
    return header, bytes(area), key


def reader(area: bytes):  # type: ignore[no-untyped-def]
    return lambda offset, length: area[offset : offset + length]


@pytest.mark.parametrize("hash_name", ["sha1", "sha224", "sha256", "sha384", "sha512", "ripemd160"])
def test_every_hash_opens_the_slot_that_fits(hash_name: str) -> None:
    if hash_name not in hashlib.algorithms_available:
        pytest.skip(f"OpenSSL here has no {hash_name}")
    header, area, key = volume({0: b"one", 5: b"five", 7: b""}, hash_name)
    tried: list[int] = []
    found = unlock(header, reader(area), b"five", before_slot=tried.append)
    assert (found.slot, found.master_key, tried) == (5, key, [0, 5])
    assert key.hex() not in repr(found) and repr(key) not in repr(found)
    assert unlock(header, reader(area), b"").slot == 7
    with pytest.raises(PassphraseError, match="opens no key slot"):
        unlock(header, reader(area), b"six")


def with_slot(header: LuksHeader, index: int, **changes: int) -> LuksHeader:
    slots = list(header.key_slots)
    slots[index] = replace(slots[index], **changes)  # type: ignore[arg-type]
    return replace(header, key_slots=tuple(slots))


def test_absurd_work_is_refused_at_once_and_never_hides_a_good_slot() -> None:
    header, area, _ = volume({0: b"one", 1: b"two"})
    endless = with_slot(header, 0, iterations=(1 << 32) - 1)
    start = time.monotonic()
    assert unlock(endless, reader(area), b"two").slot == 1
    with pytest.raises(UnsupportedError, match="key slot 0 asks for 4,294,967,295"):
        unlock(endless, reader(area), b"wrong")
    with pytest.raises(UnsupportedError, match="digest asks for"):
        unlock(replace(header, mk_digest_iterations=MAX_ITERATIONS + 1), reader(area), b"one")
    assert time.monotonic() - start < 5


def test_a_limit_can_be_lifted() -> None:
    header, area, _ = volume({0: b"one"})
    with pytest.raises(UnsupportedError, match="force"):
        unlock(header, reader(area), b"one", max_iterations=49)
    assert unlock(header, reader(area), b"one", max_iterations=None).slot == 0


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        ({"stripes": (1 << 32) - 1}, CorruptError),
        ({"stripes": 0}, CorruptError),
        ({"iterations": 0}, CorruptError),
        ({"key_material_offset": (1 << 32) - 1}, CorruptError),
        ({"state": 0x1234}, PassphraseError),
        ({"stripes": STRIPES - 1}, PassphraseError),
    ],
)
def test_a_damaged_slot_is_an_error_of_the_right_kind(change: dict[str, int], kind: type[QwbError]) -> None:
    header, area, _ = volume({2: b"pw"})
    with pytest.raises(kind) as caught:
        unlock(with_slot(header, 2, **change), reader(area), b"pw")
    assert "\n" not in str(caught.value)


def test_damaged_headers_are_named() -> None:
    header, area, _ = volume({0: b"pw"})
    for changed, kind in (
        (replace(header, magic=b"NOPE\0\0"), CorruptError),
        (replace(header, version=2), CorruptError),
        (replace(header, hash_spec="md5"), UnsupportedError),
        (replace(header, key_bytes=0xFFFFFFFF), UnsupportedError),
        (replace(header, key_bytes=0), UnsupportedError),
        (replace(header, cipher_mode="\ufffd\ufffd"), UnsupportedError),
        (replace(header, mk_digest_iterations=0), CorruptError),
    ):
        with pytest.raises(kind):
            unlock(changed, reader(area), b"pw")
