"""AES over runs of 512-byte sectors, in the modes and with the IV generators of LUKS1 and of QEMU's old AES.

One library call per sector would be slow, so whole runs go through AES-ECB in one call, and what makes the mode (XTS
tweaks, CBC chaining, IVs) is done for all sectors at once in numpy.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from enum import Enum
from typing import Final

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, CipherContext, algorithms, modes
from numpy.typing import NDArray

from workbench.errors import ArgumentError, UnsupportedError

SECTOR: Final = 512
"""Bytes per encryption sector, whatever the cluster size."""
_BLOCKS: Final = SECTOR // 16
_STEP: Final = 512
"""Sectors per round: 256 KiB, so that tweaks and text stay in the processor's cache."""
_U64: Final = np.dtype("<u8")

HASHES: Final = ("sha1", "sha224", "sha256", "sha384", "sha512", "ripemd160")
_KNOWN_ELSEWHERE: Final = ("serpent", "twofish", "cast5")


class Mode(Enum):
    """Block cipher mode."""

    XTS = "xts"
    CBC = "cbc"
    ECB = "ecb"


class IvKind(Enum):
    """How a sector number becomes an initialisation vector."""

    PLAIN = "plain"
    PLAIN64 = "plain64"
    ESSIV = "essiv"
    NONE = "null"


@dataclass(frozen=True, slots=True)
class CipherSpec:
    """What a LUKS header's cipher_name and cipher_mode ask for. key_bytes: the whole key (XTS uses two halves)."""

    mode: Mode
    iv: IvKind
    key_bytes: int
    iv_hash: str | None = None

    @property
    def name(self) -> str:
        """As `aes-256-xts-plain64`."""
        bits = self.key_bytes * 8 // (2 if self.mode is Mode.XTS else 1)
        return f"aes-{bits}-{self.mode.value}-{self.iv.value}" + (f":{self.iv_hash}" if self.iv_hash else "")


def check_hash(name: str) -> str:
    """The hash's name in lower case; UnsupportedError when it is unknown, or missing in this system's OpenSSL."""
    lower = name.lower()
    if lower not in HASHES:
        raise UnsupportedError(f"hash {name[:32]!r} is not known", hint=f"known: {', '.join(HASHES)}")
    if lower not in hashlib.algorithms_available:
        raise UnsupportedError(f"hash {lower} is not offered by this system's OpenSSL")
    return lower


def parse_spec(cipher_name: str, cipher_mode: str, key_bytes: int) -> CipherSpec:
    """Read LUKS1's pair of texts, as ("aes", "xts-plain64") or ("aes", "cbc-essiv:sha256").

    Raises UnsupportedError for ciphers, modes, IV generators, hashes and key lengths that are not supported.
    """
    if cipher_name != "aes":
        known = cipher_name in _KNOWN_ELSEWHERE
        what = f"cipher {cipher_name} is not supported" if known else f"cipher {cipher_name[:32]!r} is not known"
        raise UnsupportedError(f"{what} (only aes)", hint="convert the image with qemu-img" if known else None)
    mode_name, dash, rest = cipher_mode.partition("-")
    iv_name, _, iv_hash = rest.partition(":")
    try:
        mode = Mode(mode_name)
        iv = IvKind(iv_name) if dash else IvKind.NONE
    except ValueError:
        raise UnsupportedError(f"cipher mode {cipher_mode[:32]!r} is not known") from None
    if iv is IvKind.NONE and mode is not Mode.ECB:
        raise UnsupportedError(f"cipher mode {cipher_mode[:32]!r} names no IV generator")
    halves = 2 if mode is Mode.XTS else 1
    if key_bytes not in (16 * halves, 24 * halves, 32 * halves):
        raise UnsupportedError(f"a key of {key_bytes} bytes does not fit aes-{mode.value}")
    if iv is not IvKind.ESSIV:
        return CipherSpec(mode, iv, key_bytes)  # a hash named with plain IVs is ignored, as dm-crypt and QEMU do
    digest = hashlib.new(check_hash(iv_hash)).digest_size
    if digest not in (16, 24, 32):
        raise UnsupportedError(f"essiv:{iv_hash} gives {digest} bytes, which is no AES key")
    return CipherSpec(mode, iv, key_bytes, iv_hash.lower())


class SectorCipher:
    """Encrypts and decrypts runs of 512-byte sectors. Safe to use from any number of threads at once."""

    def __init__(self, spec: CipherSpec, key: bytes) -> None:
        """Raises ArgumentError when `key` does not have the length that `spec` asks for."""
        if len(key) != spec.key_bytes:
            raise ArgumentError(f"{spec.name} needs a key of {spec.key_bytes} bytes, not {len(key)}")
        self.spec = spec
        xts = spec.mode is Mode.XTS
        self._data_key = _ecb(key[: len(key) // 2] if xts else key)
        self._tweak_key = _ecb(key[len(key) // 2 :]) if xts else None
        self._iv_key = _ecb(hashlib.new(spec.iv_hash, key).digest()) if spec.iv_hash else None

    def decrypt(self, data: bytes | bytearray | memoryview, sector: int) -> bytes:
        """Plain text of `data`, whose first sector has the number `sector` (in 512-byte units)."""
        return self._run(data, sector, encrypting=False)

    def encrypt(self, data: bytes | bytearray | memoryview, sector: int) -> bytes:
        """Cipher text of `data`, whose first sector has the number `sector` (in 512-byte units)."""
        return self._run(data, sector, encrypting=True)

    # -- inside

    def _run(self, data: bytes | bytearray | memoryview, sector: int, *, encrypting: bool) -> bytes:
        if len(data) % SECTOR:
            raise ArgumentError(f"{len(data)} bytes are not whole 512-byte sectors")
        if self.spec.mode is Mode.ECB:
            context = self._data_key.encryptor() if encrypting else self._data_key.decryptor()
            return context.update(bytes(data))
        source = np.frombuffer(data, dtype=_U64).reshape(-1, _BLOCKS, 2)
        target = np.empty_like(source)
        step = self._cbc_encrypt if encrypting else self._cbc_decrypt
        if self.spec.mode is Mode.XTS:
            step = self._xts
        context = self._data_key.encryptor() if encrypting else self._data_key.decryptor()
        for start in range(0, len(source), _STEP):
            step(context, source[start : start + _STEP], target[start : start + _STEP], sector + start)
        return target.tobytes()

    def _ivs(self, sector: int, count: int) -> NDArray[np.uint64]:
        """IVs of `count` sectors, uint64[count, 2], little-endian."""
        numbers = np.arange(count, dtype=_U64) + np.uint64(sector & (1 << 64) - 1)
        if self.spec.iv is IvKind.PLAIN:
            numbers &= np.uint64(0xFFFFFFFF)
        ivs = np.zeros((count, 2), dtype=_U64)
        ivs[:, 0] = numbers
        return ivs if self._iv_key is None else _through(self._iv_key.encryptor(), ivs)

    def _tweaks(self, sector: int, count: int) -> NDArray[np.uint64]:
        """XTS tweaks, uint64[count, 32, 2]: the encrypted IV times x^j for block j, all j at once.

        Multiplying by x^j shifts left by j; the bits that leave at the top come back times x^7 + x^2 + x + 1.
        """
        assert self._tweak_key is not None
        first = _through(self._tweak_key.encryptor(), self._ivs(sector, count))
        low, high = first[:, 0:1], first[:, 1:2]
        shift = np.arange(_BLOCKS, dtype=_U64)
        back, one = np.uint64(63) - shift, np.uint64(1)
        carry = (high >> one) >> back
        tweaks = np.empty((count, _BLOCKS, 2), dtype=_U64)
        tweaks[:, :, 1] = (high << shift) | ((low >> one) >> back)
        folded = (low << shift) ^ carry
        for power in (1, 2, 7):
            folded ^= carry << np.uint64(power)
        tweaks[:, :, 0] = folded
        return tweaks

    def _xts(self, context: CipherContext, source: NDArray[np.uint64], target: NDArray[np.uint64], sector: int) -> None:
        tweaks = self._tweaks(sector, len(source))
        np.bitwise_xor(source, tweaks, out=target)
        np.bitwise_xor(_through(context, target), tweaks, out=target)

    def _cbc_decrypt(
        self, context: CipherContext, source: NDArray[np.uint64], target: NDArray[np.uint64], sector: int
    ) -> None:
        plain = _through(context, source)
        np.bitwise_xor(plain[:, 1:], source[:, :-1], out=target[:, 1:])
        np.bitwise_xor(plain[:, 0], self._ivs(sector, len(source)), out=target[:, 0])

    def _cbc_encrypt(
        self, context: CipherContext, source: NDArray[np.uint64], target: NDArray[np.uint64], sector: int
    ) -> None:
        """Block j needs block j - 1 of its own sector only: 32 rounds, each over all sectors."""
        previous = self._ivs(sector, len(source))
        for block in range(_BLOCKS):
            previous = _through(context, source[:, block] ^ previous)
            target[:, block] = previous


def _ecb(key: bytes) -> Cipher[modes.ECB]:
    return Cipher(algorithms.AES(key), modes.ECB())


def _through(context: CipherContext, blocks: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """`blocks` through the block function, same shape. ECB keeps no state, so a context may be used again."""
    data = np.ascontiguousarray(blocks).data.cast("B")
    return np.frombuffer(context.update(data), dtype=_U64).reshape(blocks.shape)
