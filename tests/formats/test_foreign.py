"""What is no qcow2 image is named, and a qcow2 image is never taken for something else, however damaged."""

from __future__ import annotations

import gzip
import io
import lzma
import shutil
import struct
import subprocess
import tarfile
import zipfile
from pathlib import Path

import pytest

from formats.foreign import Foreign, Sort, recognise
from sample_images.qemu import find_qemu_img
from sample_images.recipes import RECIPES
from tests.check.images import Tiny
from tests.conftest import BaseImages
from workbench.engine.metadata import load_metadata
from workbench.storage.file import FileStorage

CLUSTER = 1 << 16


def look(data: bytes) -> Foreign | None:
    """What `recognise` says of these bytes."""
    return recognise(lambda offset, length: data[offset : offset + length], len(data))


def name_of(data: bytes) -> str:
    found = look(data)
    return found.name if found is not None else ""


def image() -> bytes:
    return bytes(Tiny().build())


def _tar() -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        entry = tarfile.TarInfo("disk.qcow2")
        entry.size = len(image())
        tar.addfile(entry, io.BytesIO(image()))
    return out.getvalue()


def _zip() -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr(zipfile.ZipInfo("disk.img"), b"disk" * 100)  # without a time: the tests' names repeat
    return out.getvalue()


def _mbr(start: int, sectors: int) -> bytes:
    return (
        bytes(446)
        + struct.pack("<B3sB3sII", 0x80, b"\0\2\0", 0x83, b"\xff" * 3, start, sectors)
        + bytes(48)
        + b"\x55\xaa"
    )


def _gpt(start: int, sectors: int) -> bytes:
    header = b"EFI PART" + bytes(64) + struct.pack("<QII", 2, 4, 128)
    entry = bytes(range(16)) + bytes(16) + struct.pack("<QQ", start, start + sectors - 1)
    return _mbr(1, 4000)[:446] + bytes(66) + header.ljust(512, b"\0") + entry.ljust(512, b"\0")


def _fat() -> bytes:
    boot = bytearray(512)
    boot[11:13], boot[13], boot[14:16] = (512).to_bytes(2, "little"), 1, (1).to_bytes(2, "little")
    boot[21], boot[54:62], boot[510:512] = 0xF8, b"FAT16   ", b"\x55\xaa"
    return bytes(boot) + b"\xf8\xff" + bytes(4000)


@pytest.mark.parametrize(
    ("data", "sort", "word"),
    [
        (b"", Sort.EMPTY, "empty"),
        (bytes(1 << 20), Sort.EMPTY, "zeros"),
        (gzip.compress(image(), 1, mtime=0), Sort.PACKED, "gzip"),
        (lzma.compress(image(), preset=0), Sort.PACKED, "xz"),
        (b"\x28\xb5\x2f\xfd" + bytes(range(256)), Sort.PACKED, "zstd"),
        (b"BZh91AY&SY" + bytes(range(256)), Sort.PACKED, "bzip2"),
        (_tar(), Sort.PACKED, "tar"),
        (_zip(), Sort.PACKED, "zip"),
        (b"<!DOCTYPE html><html><head><title>404 Not Found</title></head></html>", Sort.TEXT, "HTML"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n", Sort.TEXT, "Git LFS"),
        ("Zugriff verweigert: bitte anmelden, über https.\n".encode() * 200, Sort.TEXT, "text"),
        (_mbr(2048, 4096).ljust(4 << 20, b"\0"), Sort.RAW, "MBR"),
        (_gpt(2048, 4096).ljust(4 << 20, b"\0"), Sort.RAW, "GPT"),
        (_fat(), Sort.RAW, "FAT"),
        (b"LUKS\xba\xbe\0\2".ljust(8192, b"\0"), Sort.RAW, "LUKS"),
        (bytes(512) + b"LABELONE".ljust(8192, b"\0"), Sort.RAW, "LVM"),
        (bytes(4086) + b"SWAPSPACE2".ljust(8192, b"\0"), Sort.RAW, "swap"),
        (b"KDMV\1\0\0\0".ljust(4096, b"\0"), Sort.DISK, "VMware"),
        (b"QED\0".ljust(4096, b"\0"), Sort.DISK, "QED"),
        (b"WithouFreSpacExt".ljust(4096, b"\0"), Sort.DISK, "Parallels"),
        (b"some raw bytes".ljust(1 << 16, b"\xee") + b"conectix".ljust(512, b"\0"), Sort.DISK, "fixed"),
        (bytes(4096) + image(), Sort.SHIFTED, "byte 4096"),
        (b"HTTP/1.1 200 OK".ljust(512, b"\n") + image(), Sort.SHIFTED, "byte 512"),
    ],
    ids=lambda value: value if isinstance(value, str) else "" if isinstance(value, bytes) else value.name,
)  # fmt: skip
def test_known_by_its_bytes(data: bytes, sort: Sort, word: str) -> None:
    found = look(data)
    assert found is not None and found.sort is sort and word in found.name
    assert found.advice


@pytest.mark.parametrize("cluster_bits", [9, 12, 16, 21])
@pytest.mark.parametrize(
    "over",
    [
        bytes(512), b"\xff" * 512, b"QFI".ljust(512, b"\0"), _mbr(2048, 1 << 20), _gpt(2048, 1 << 20), _fat()[:512],
        b"LUKS\xba\xbe".ljust(512, b"\0"), b"\x1f\x8b\x08".ljust(512, b"\x55"), b"all of it is text. " * 27, b"BZh9".ljust(512, b"\1"),
    ],
    ids=range(10),
)  # fmt: skip
def test_a_qcow2_image_with_something_over_its_header_stays_one(over: bytes, cluster_bits: int) -> None:
    data = bytearray(Tiny(cluster_bits=cluster_bits).build())
    data[: min(len(over), 512)] = over[:512]
    assert look(bytes(data)) is None


def test_single_wrong_header_fields_are_damage_not_another_format() -> None:
    good = image()
    for offset, value in ((0, b"QFI\0"), (4, b"\0\0\0\1"), (4, b"\0\0\0\4"), (20, b"\0\0\0\x63"), (0, bytes(4))):
        assert look(good[:offset] + value + good[offset + 4 :]) is None


def test_a_nested_image_is_an_image() -> None:
    data = bytearray(image())
    data[5 * CLUSTER : 6 * CLUSTER] = image()[:CLUSTER]
    assert look(bytes(data)) is None
    data[:CLUSTER] = bytes(CLUSTER)
    assert look(bytes(data)) is None, "its header is lost, and the header inside it is not its own"


@pytest.mark.oracle
@pytest.mark.parametrize("form", ["vmdk", "vdi", "vhdx", "vpc", "qed", "qcow", "parallels"])
def test_disks_as_qemu_writes_them(form: str, tmp_path: Path) -> None:
    path = tmp_path / "disk.img"
    subprocess.run([str(find_qemu_img()), "create", "-q", "-f", form, path, "8M"], check=True)
    with FileStorage.open(path) as storage:
        found = load_metadata(storage).foreign
    assert found is not None and found.sort is Sort.DISK and found.format == form


@pytest.mark.parametrize(
    ("command", "word"),
    [("mkfs.ext4 -q -F", "ext4"), ("mkfs.ext2 -q -F", "ext2"), ("mkfs.xfs -q", "XFS"), ("mkfs.ntfs -q -F -Q", "NTFS"), ("mkfs.vfat", "FAT")],
)  # fmt: skip
def test_file_systems_written_over_an_image(command: str, word: str, tmp_path: Path) -> None:
    if shutil.which(command.split(maxsplit=1)[0]) is None:
        pytest.skip(f"{command.split(maxsplit=1)[0]} is not here")
    path = tmp_path / "disk.img"
    for size in (512 << 20, 320 << 20) if word == "XFS" else (3 << 20, 9 << 20):
        for before in (b"", image()):
            path.write_bytes(before)
            with path.open("r+b") as file:
                file.truncate(size)
            subprocess.run([*command.split(), path], check=True, capture_output=True)
            with FileStorage.open(path) as storage:
                found = load_metadata(storage).foreign
            assert found is not None and found.sort is Sort.RAW and word in found.name, (size, bool(before))


@pytest.mark.oracle
def test_no_damaged_image_of_the_recipes_is_foreign(base_images: BaseImages) -> None:
    for name in RECIPES:
        with FileStorage.open(base_images.damaged(name)) as storage:
            assert load_metadata(storage).foreign is None or not storage.size(), name
