"""`qwb measure` against `qemu-img measure`: the same bytes for every size, option and disk, and the same exit codes."""

from __future__ import annotations

import itertools
import json
import os
from pathlib import Path
from typing import Any

import pytest

from sample_images.bases import BASES
from sample_images.qemu import source_arguments
from sample_images.recipes import RECIPES
from tests.oracle.disks import build, qemu, qwb

pytestmark = pytest.mark.oracle

SIZES = ("0", "1", "512", "65535", "65537", "1M", "1.5M", "1G", "5T", "63P", "9E")
CLUSTERS = ("512", "4k", "64k", "2M")
SHAPES = (
    *(f"cluster_size={size}" for size in CLUSTERS),
    *(f"cluster_size={size},extended_l2=on" for size in ("16k", "64k", "1M")),
    *(f"refcount_bits={bits},cluster_size={size}" for bits in (1, 2, 4, 8, 32, 64) for size in ("512", "64k")),
    "compat=0.10",
    "compat=0.10,cluster_size=1k",
    "compat=0.10,extended_l2=on",
    "preallocation=off",
    "preallocation=metadata",
    "preallocation=falloc",
    "preallocation=full,cluster_size=512",
    "lazy_refcounts=on,compression_type=zstd",
    "nocow=on",
    "encryption=on",
    "encrypt.format=aes",
    "backing_file=some.raw",
    "size=5M",
    "data_file=some.raw,data_file_raw=on",
)
BAD = (
    "cluster_size=3k",
    "cluster_size=256",
    "cluster_size=4M",
    "cluster_size=8k,extended_l2=on",
    "compat=0.9",
    "compat=0.10,refcount_bits=1",
    "refcount_bits=3",
    "refcount_bits=128",
    "extended_l2=maybe",
    "encryption=maybe",
    "preallocation=some",
    "colour=red",
    "encrypt.colour=red",
)

_UNLIKE = {
    *("bitmap-entry-unaligned", "bitmap-entry-reserved", "bitmap-entry-flag-offset", "bitmap-table-over-l2"),
    "l2-zero-unaligned",
}
"""QEMU does not open a disk when the data of a bitmap cannot be found, we do; and it steps over the one bad entry."""
DAMAGES = [each for each in RECIPES if each.startswith(("l1-", "l2-", "bitmap")) and each not in _UNLIKE]


def both(*words: object, cwd: Path) -> tuple[Any, Any]:
    """(theirs, ours): exit code and stdout, for humans and as JSON values."""
    theirs, ours = [], []
    for output in ("human", "json"):
        for said, found in ((qemu, theirs), (qwb, ours)):
            arguments = ("measure", "--output", output, *words)
            code, out, err = said(*arguments, cwd=cwd) if said is qemu else said(*arguments)
            assert bool(err) == bool(code), (arguments, err)
            found.append((code, json.loads(out) if output == "json" and out else out))
    return theirs, ours


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("target", ["raw", "qcow2"])
def test_an_empty_disk_of_any_size(size: str, target: str, tmp_path: Path, qemu_img: str) -> None:
    theirs, ours = both("--size", size, "-O", target, cwd=tmp_path)
    assert ours == theirs


@pytest.mark.parametrize("options", SHAPES)
def test_an_empty_disk_with_any_option(options: str, tmp_path: Path, qemu_img: str) -> None:
    for size in ("1", "10M", "3G", "10T"):
        theirs, ours = both("--size", size, "-O", "qcow2", "-o", options, cwd=tmp_path)
        assert ours == theirs, size


@pytest.mark.parametrize("cipher", ["aes-128", "aes-256", "serpent-192", "twofish-256", "cast5-128"])
@pytest.mark.parametrize("mode", ["xts", "cbc"])
@pytest.mark.parametrize("cluster", ["512", "64k", "2M"])
def test_an_encrypted_disk_needs_room_for_its_keys(cipher: str, mode: str, cluster: str, tmp_path: Path) -> None:
    if cipher.endswith("192") and mode != "xts":
        pytest.skip("qemu-img 7.2 crashes")
    options = f"encrypt.format=luks,encrypt.cipher-alg={cipher},encrypt.cipher-mode={mode},cluster_size={cluster}"
    words = ["measure", "--output", "json", "--size", "10M", "-O", "qcow2", "-o", options]
    secret = ["--object", "secret,id=s,data=x", "-o", "encrypt.key-secret=s,encrypt.iter-time=10"]
    for _ in range(5):  # it cannot always time its key derivation on a busy machine
        theirs = qemu(*words, *secret, cwd=tmp_path)
        if "CPU usage" not in theirs[2]:
            break
    ours = qwb(*words)
    assert ours[0] == theirs[0]
    if not ours[0]:
        assert json.loads(ours[1]) == json.loads(theirs[1])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, qemu_img: str) -> Path:
    path = tmp_path_factory.mktemp("disks")
    build(path)
    os.sync()
    return path


def test_every_disk_into_every_target(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    targets = (
        ["-O", "raw"],
        ["-O", "qcow2"],
        ["-O", "qcow2", "-o", "cluster_size=512"],
        ["-O", "qcow2", "-o", "cluster_size=2M,extended_l2=on"],
        ["-O", "qcow2", "-o", "compat=0.10,backing_file=data.raw"],
        ["-O", "qcow2", "-o", "preallocation=full,size=77G"],
    )
    names = sorted(each.name for each in folder.iterdir())
    wrong = []
    for name, target in itertools.product(names, targets):
        theirs, ours = both(*target, "-f", name.rpartition(".")[2], name, cwd=folder)
        if ours != theirs:
            wrong.append((name, target, theirs, ours))
    assert not wrong


@pytest.mark.parametrize("name", list(BASES))
def test_every_base_image(name: str, base_images: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    base, image = BASES[name], base_images.get(name)
    monkeypatch.chdir(image.parent)
    source = list(map(str, source_arguments(image, base.secret))) if base.secret else ["-f", "qcow2", image.name]
    for target in (["-O", "raw"], ["-O", "qcow2"], ["-O", "qcow2", "-o", "cluster_size=4k"]):
        words = ["measure", "--output", "json", *target]
        theirs, ours = qemu(*words, *source, cwd=image.parent), qwb(*words, image.name)
        assert ours[0] == theirs[0] == 0
        assert json.loads(ours[1]) == json.loads(theirs[1]), target


@pytest.mark.parametrize("name", DAMAGES)
def test_damaged_images_are_measured_or_refused_as_by_qemu_img(name: str, base_images: Any, tmp_path: Path) -> None:
    image = base_images.copy(base_images.damaged(name), tmp_path)
    words = ["measure", "--output", "json", "-O", "qcow2", "-f", "qcow2", image]
    theirs, ours = qemu(*words, cwd=tmp_path), qwb(*words)
    assert ours[0] == theirs[0]
    if not ours[0]:
        assert json.loads(ours[1]) == json.loads(theirs[1])


def test_a_snapshot_is_measured_by_its_id_or_name(base_images: Any, tmp_path: Path) -> None:
    image = base_images.copy(base_images.get("snapshots"), tmp_path)
    known = json.loads(qemu("info", "--output=json", image, cwd=tmp_path)[1])["snapshots"]
    words = ["measure", "-O", "qcow2"]
    for each in known:
        spelled = (each["id"], each["name"], f"snapshot.id={each['id']}", f"snapshot.name={each['name']}")
        for one in spelled:
            assert qwb(*words, "-l", one, image)[:2] == qemu(*words, "-l", one, image, cwd=tmp_path)[:2], one
    for one in ("none", "snapshot.id=99", "snapshot.colour=red"):
        assert qwb(*words, "-l", one, image)[0] == qemu(*words, "-l", one, image, cwd=tmp_path)[0] == 1, one


@pytest.mark.parametrize("options", BAD)
def test_options_that_make_no_sense_are_refused(options: str, tmp_path: Path, qemu_img: str) -> None:
    theirs, ours = both("--size", "1M", "-O", "qcow2", "-o", options, cwd=tmp_path)
    assert ours == theirs == [(1, ""), (1, "")]


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["-O", "qcow2"],
        ["--size", "x"],
        ["--size", "-1"],
        ["--size", "1M", "data.raw"],
        ["data.raw", "data.qcow2"],
        ["none.raw"],
        ["-f", "bogus", "data.raw"],
        ["-f", "qcow2", "data.raw"],
        ["-f", "raw", "--size", "1M"],
        ["-l", "some", "--size", "1M"],
        ["-l", "some", "-f", "raw", "data.raw"],
        ["-O", "bogus", "--size", "1M"],
        ["-O", "vmdk", "--size", "1M"],
        ["--output", "xml", "--size", "1M"],
        ["-O", "raw", "-o", "cluster_size=512", "--size", "1M"],
    ],
    ids=" ".join,
)
def test_wrong_usage_is_exit_1(folder: Path, words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    theirs, ours = qemu("measure", *words, cwd=folder), qwb("measure", *words)
    assert (ours[:2], bool(ours[2])) == (theirs[:2], bool(theirs[2])) == ((1, ""), True)
