"""QEMU's old qcow encryption (crypt_method 1): AES-128-CBC, the passphrase itself as key.

The IV is the guest sector number (guest offset / 512), unlike LUKS, which counts from the host offset. Nothing in the
image tells whether a passphrase is right: a wrong one gives noise.
"""

from __future__ import annotations

from workbench.engine.crypto.ciphers import CipherSpec, IvKind, Mode, SectorCipher

KEY_BYTES = 16


def legacy_cipher(passphrase: bytes) -> SectorCipher:
    """Cipher for a passphrase: its first 16 bytes, zeros after a shorter one."""
    key = passphrase[:KEY_BYTES].ljust(KEY_BYTES, b"\0")
    return SectorCipher(CipherSpec(Mode.CBC, IvKind.PLAIN64, KEY_BYTES), key)
