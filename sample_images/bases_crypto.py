"""Encrypted bases: LUKS with every cipher, IV generator and hash QEMU writes, and the legacy AES format."""

from __future__ import annotations

from sample_images.base import Bases, Maker
from sample_images.kit import PASSPHRASE, K, Kit, M, text

FOUND = Bases()
add = FOUND.add


def _luks(cipher: str, mode: str, iv: str, hashing: str, *options: str, snapshot: bool = False) -> Maker:
    def make(kit: Kit) -> None:
        generator, _, iv_hash = iv.partition(":")
        settings = [
            "cluster_size=16k",
            "encrypt.format=luks",
            f"encrypt.cipher-alg={cipher}",
            f"encrypt.cipher-mode={mode}",
            f"encrypt.ivgen-alg={generator}",
            f"encrypt.hash-alg={hashing}",
            "encrypt.iter-time=10",
            *options,
        ]
        if iv_hash:
            settings.append(f"encrypt.ivgen-hash-alg={iv_hash}")
        kit.create(1 * M, *settings)
        _content(kit)
        if snapshot:
            kit.snapshot("sealed")
            kit.write(32 * K, text(16 * K, 42))

    return make


def _content(kit: Kit) -> None:
    kit.write(0, text(40 * K, 40))
    kit.io(f"write -q -P 0xcc {100 * K} {20 * K}", f"write -q -z {112 * K} {4 * K}", f"write -q -z {256 * K} {32 * K}")
    kit.write(1 * M - 4 * K, text(4 * K, 41))


def _aes(version: str) -> Maker:
    def make(kit: Kit) -> None:
        kit.create(1 * M, "cluster_size=4k", "encrypt.format=aes", f"compat={version}")
        kit.write(0, text(40 * K, 43))
        kit.io(f"write -q -P 0xcd {100 * K} {20 * K}")

    return make


for _cipher in ("aes-128", "aes-256"):
    for _mode in ("xts", "cbc"):
        for _iv in ("plain", "plain64", "essiv:sha256"):
            _name = f"luks-{_cipher}-{_mode}-{_iv.partition(':')[0]}"
            add(
                _name,
                f"LUKS, {_cipher}-{_mode}-{_iv}, sha256",
                "v3 luks encrypted",
                _luks(_cipher, _mode, _iv, "sha256"),
                PASSPHRASE,
            )
add("luks-sha1", "LUKS with sha1", "v3 luks encrypted", _luks("aes-256", "xts", "plain64", "sha1"), PASSPHRASE)
add("luks-sha512", "LUKS with sha512", "v3 luks encrypted", _luks("aes-256", "xts", "plain64", "sha512"), PASSPHRASE)
add(
    "luks-cbc-sha1",
    "LUKS, aes-128-cbc-plain64, sha1",
    "v3 luks encrypted",
    _luks("aes-128", "cbc", "plain64", "sha1"),
    PASSPHRASE,
)
add(
    "luks-snapshot",
    "LUKS with an internal snapshot",
    "v3 luks encrypted snapshots",
    _luks("aes-128", "xts", "plain64", "sha256", snapshot=True),
    PASSPHRASE,
)
add(
    "luks-extended",
    "LUKS with extended L2",
    "v3 luks encrypted extended-l2",
    _luks("aes-256", "xts", "plain64", "sha256", "extended_l2=on"),
    PASSPHRASE,
)
add("aes", "legacy AES encryption, v3", "v3 aes encrypted", _aes("1.1"), PASSPHRASE)
add("aes-v2", "legacy AES encryption, v2", "v2 aes encrypted", _aes("0.10"), PASSPHRASE)
