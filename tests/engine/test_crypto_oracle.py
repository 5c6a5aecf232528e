"""Encrypted images made by real QEMU are unlocked and decrypted here, and what is encrypted here QEMU reads."""

from __future__ import annotations

import random
import struct
import subprocess
from pathlib import Path

import pytest

from formats.luks.header import parse_luks
from workbench.engine.crypto.ciphers import SectorCipher
from workbench.engine.crypto.legacy import legacy_cipher
from workbench.engine.crypto.luks import cipher_spec, unlock
from workbench.errors import PassphraseError, UnsupportedError

pytestmark = pytest.mark.oracle

CLUSTER = 65536
LUKS_EXTENSION = 0x0537BE77
SECRET = "hunter2 \u00e4\u00f6"


class Image:
    """As much of a qcow2 reader as these tests need, kept apart from the code under test."""

    def __init__(self, path: Path) -> None:
        self.content = path.read_bytes()
        self.luks_offset = self.luks_length = 0
        position = struct.unpack_from(">I", self.content, 100)[0]
        while True:
            kind, length = struct.unpack_from(">II", self.content, position)
            if kind == 0:
                break
            if kind == LUKS_EXTENSION:
                self.luks_offset, self.luks_length = struct.unpack_from(">QQ", self.content, position + 8)
            position += 8 + -(-length // 8) * 8

    def luks_read(self, offset: int, length: int) -> bytes:
        end = self.luks_offset + self.luks_length
        return self.content[self.luks_offset + offset : min(self.luks_offset + offset + length, end)]

    def host_offset(self, guest: int) -> int:
        mask = 0x00FFFFFFFFFFFE00
        l1 = struct.unpack_from(">Q", self.content, 40)[0]
        l2 = struct.unpack_from(">Q", self.content, l1)[0] & mask
        return int(struct.unpack_from(">Q", self.content, l2 + guest // CLUSTER * 8)[0] & mask)


def secret_options(path: Path) -> tuple[list[str], str]:
    file = path.with_suffix(".secret")
    file.write_text(SECRET)
    return ["--object", f"secret,id=s,file={file}"], f"driver=qcow2,file.filename={path},encrypt.key-secret=s"


def make(qemu_img: str, qemu_io: str, path: Path, options: str) -> dict[int, bytes]:
    """An encrypted image with three clusters written out of order: {guest offset: plain bytes}."""
    objects, target = secret_options(path)
    command = [
        qemu_img,
        "create",
        "-q",
        "-f",
        "qcow2",
        *objects,
        "-o",
        f"encrypt.key-secret=s,{options}",
        str(path),
        "1M",
    ]
    for _ in range(10):
        made = subprocess.run(command, capture_output=True, text=True, check=False)
        if "CPU usage" not in made.stderr:  # QEMU times PBKDF2; on a busy machine that may fail
            break
    if made.returncode:
        pytest.skip(made.stderr.strip() or f"qemu-img died: {made.returncode}")
    plain = {}
    writes = []
    for number, guest in enumerate((5 * CLUSTER, 0, 3 * CLUSTER)):
        plain[guest] = random.Random(number).randbytes(CLUSTER)
        source = path.with_suffix(f".data{number}")
        source.write_bytes(plain[guest])
        writes += ["-c", f"write -s {source} {guest} {CLUSTER}"]
    subprocess.run([qemu_io, *objects, "--image-opts", *writes, target], check=True, capture_output=True)
    return plain


def check_data(image: Image, cipher: SectorCipher, plain: dict[int, bytes], *, by_host: bool) -> None:
    for guest, wanted in plain.items():
        host = image.host_offset(guest)
        secret = image.content[host : host + CLUSTER]
        sector = (host if by_host else guest) // 512
        assert cipher.decrypt(secret, sector) == wanted
        assert cipher.encrypt(wanted, sector) == secret


VARIANTS = [
    "aes-256,xts,plain64,,sha256",
    "aes-128,xts,essiv,sha256,sha1",
    "aes-256,xts,plain,,sha512",
    "aes-128,cbc,essiv,sha256,sha224",
    "aes-256,cbc,plain64,,sha384",
    "aes-128,cbc,plain,,ripemd160",
    "aes-128,ecb,plain64,,sha256",
]


@pytest.mark.parametrize("variant", VARIANTS)
def test_luks_images_of_real_qemu_are_read(variant: str, qemu_img: str, qemu_io: str, tmp_path: Path) -> None:
    cipher, mode, iv, iv_hash, kdf_hash = variant.split(",")
    options = (
        f"encrypt.format=luks,encrypt.iter-time=20,encrypt.cipher-alg={cipher},encrypt.cipher-mode={mode},"
        f"encrypt.ivgen-alg={iv},encrypt.hash-alg={kdf_hash}"
        + (f",encrypt.ivgen-hash-alg={iv_hash}" if iv_hash else "")
    )
    path = tmp_path / "i.qcow2"
    plain = make(qemu_img, qemu_io, path, options)
    image = Image(path)
    header = parse_luks(image.luks_read(0, 592))
    if kdf_hash == "ripemd160":
        try:
            cipher_spec(header)
        except UnsupportedError as error:
            pytest.skip(str(error))
    found = unlock(header, image.luks_read, SECRET.encode())
    assert found.slot == 0
    assert found.spec.name.startswith(f"{cipher}-{mode}-{iv}")
    check_data(image, found.cipher(), plain, by_host=True)
    with pytest.raises(PassphraseError):
        unlock(header, image.luks_read, b"wrong")
    check_reading_back(qemu_img, path, found.cipher(), image.host_offset(0))


def check_reading_back(qemu_img: str, path: Path, cipher: SectorCipher, host: int) -> None:
    """QEMU reads, at the cluster stored at `host`, what is encrypted here."""
    fresh, raw = random.Random(99).randbytes(CLUSTER), path.with_suffix(".raw")
    with path.open("r+b") as file:
        file.seek(host)
        file.write(cipher.encrypt(fresh, host // 512))
    objects, target = secret_options(path)
    subprocess.run([qemu_img, "convert", *objects, "--image-opts", "-O", "raw", target, str(raw)], check=True)
    assert raw.read_bytes()[:CLUSTER] == fresh


@pytest.mark.parametrize("cipher", ["serpent-256"])
def test_ciphers_of_others_are_named(cipher: str, qemu_img: str, qemu_io: str, tmp_path: Path) -> None:
    path = tmp_path / "i.qcow2"
    make(qemu_img, qemu_io, path, f"encrypt.format=luks,encrypt.iter-time=20,encrypt.cipher-alg={cipher}")
    with pytest.raises(UnsupportedError, match=cipher.partition("-")[0]):
        cipher_spec(parse_luks(Image(path).luks_read(0, 592)))


def test_a_legacy_image_of_real_qemu_is_read(qemu_img: str, qemu_io: str, tmp_path: Path) -> None:
    path = tmp_path / "i.qcow2"
    plain = make(qemu_img, qemu_io, path, "encrypt.format=aes")
    check_data(Image(path), legacy_cipher(SECRET.encode()), plain, by_host=False)
