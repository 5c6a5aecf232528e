"""`qwb bitmap` against `qemu-img bitmap`: the same directory, bits, check and exit code for every sequence of actions, and
each reads what the other wrote."""

from __future__ import annotations

import json
import random
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from sample_images.qemu import find_qemu_io, qemu_version, run_img, run_io
from tests.oracle.disks import qemu, qwb
from workbench.engine.metadata import load_metadata
from workbench.engine.operations.bitmaps import list_bitmaps
from workbench.storage.file import FileStorage

pytestmark = pytest.mark.oracle

SIZE = 3 << 20
SHAPES = {
    "plain": "cluster_size=64k",
    "4k": "cluster_size=4k",
    "512": "cluster_size=512,refcount_bits=64",
    "2M": "cluster_size=2M,lazy_refcounts=on",
    "extended": "cluster_size=16k,extended_l2=on",
    "data-file": "data_file=data.raw",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, qemu_img: str) -> Path:
    """Images with the bitmaps fine (512, recording), wide (1M, disabled) and full (all dirty); `broken` was not closed."""
    path = tmp_path_factory.mktemp("bitmaps")
    noise = random.Random(3)
    writes = [f"write -P 1 {noise.randrange(SIZE // 512 - 16) * 512} {noise.randrange(1, 16) * 512}" for _ in range(40)]
    for name, options in SHAPES.items():
        image = f"{name}.qcow2"
        run_img("create", "-q", "-f", "qcow2", "-o", options, image, str(SIZE), cwd=path)
        run_img("bitmap", "--add", "-g", "512", image, "fine", cwd=path)
        run_img("bitmap", "--add", "-g", "1M", image, "wide", cwd=path)
        run_img("bitmap", "--add", image, "full", cwd=path)
        run_io("-f", "qcow2", *(word for each in writes[:20] for word in ("-c", each)), image, cwd=path)
        run_img("bitmap", "--disable", image, "wide", cwd=path)
        run_io("-f", "qcow2", *(word for each in writes[20:] for word in ("-c", each)), image, cwd=path)
    run_io("-f", "qcow2", "-c", f"write 0 {SIZE}", "plain.qcow2", cwd=path)
    shutil.copy(path / "plain.qcow2", path / "broken.qcow2")
    subprocess.run(
        [str(find_qemu_io()), "-f", "qcow2", "-c", "write 0 64k", "-c", "abort", path / "broken.qcow2"],
        capture_output=True,
        check=False,
    )
    run_img("bitmap", "--add", "broken.qcow2", "sound", cwd=path)
    run_img("create", "-q", "-f", "qcow2", "blank.qcow2", str(SIZE), cwd=path)
    run_img("create", "-q", "-f", "qcow2", "-o", "compat=0.10", "old.qcow2", str(SIZE), cwd=path)
    run_img("create", "-q", "-f", "qcow2", "-b", "blank.qcow2", "-F", "qcow2", "over.qcow2", cwd=path)
    run_img("create", "-q", "-f", "qcow2", "other-size.qcow2", "1M", cwd=path)
    run_img("bitmap", "--add", "other-size.qcow2", "fine", cwd=path)
    (path / "disk.raw").write_bytes(bytes(SIZE))
    return path


def states(image: Path) -> list[Any]:
    """Name, granularity, flags and dirty ranges of the bitmaps, by our reader."""
    with FileStorage.open(image) as storage:
        return list_bitmaps(load_metadata(storage))


def without_places(image: Path) -> list[Any]:
    return [(each.name, each.granularity, each.enabled, each.inconsistent, each.ranges) for each in states(image)]


def told(image: Path) -> Any:
    """What qemu-img says of the bitmaps, and that it finds nothing wrong."""
    code, out, err = qemu("check", "-f", "qcow2", image, cwd=image.parent)
    assert code == 0, out + err
    info = json.loads(qemu("info", "--output=json", "-f", "qcow2", image, cwd=image.parent)[1])
    return info["format-specific"]["data"].get("bitmaps")


def as_qemu_reads(image: Path, name: str, scratch: Path) -> Any:
    """The dirty ranges of a bitmap that qemu-img merged into a new one of the finest granularity."""
    scratch.unlink(missing_ok=True)
    run_img("create", "-q", "-f", "qcow2", scratch, str(SIZE))
    run_img("bitmap", "--add", "-g", "512", "--merge", name, "-b", image, "-F", "qcow2", scratch, "seen")
    return states(scratch)[0].ranges


def both(
    folder: Path, image: str, words: list[str], name: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[Path, Path, int]:
    """Copies that were changed by qemu-img and by us, and the exit code, which is the same."""
    results = []
    for who in ("theirs", "ours"):
        place = tmp_path / who
        shutil.rmtree(place, ignore_errors=True)
        shutil.copytree(folder, place)
        monkeypatch.chdir(place)
        arguments = ["bitmap", *words, image, *([name] if name is not None else [])]
        code, out, err = qemu(*arguments, cwd=place) if who == "theirs" else qwb(*arguments)
        assert (out, bool(err)) == ("", bool(code)), (who, words, err)
        results.append((place / image, code))
    (theirs, code), (ours, our_code) = results
    assert our_code == code, (image, words, name)
    return theirs, ours, code


SEQUENCES = (
    ["--add"],
    ["--add", "--disable"],
    ["--add", "-g", "512"],
    ["--add", "-g", "2G"],
    ["--granularity", "64k", "--disable", "--add"],
    ["--remove"],
    ["--clear"],
    ["--enable"],
    ["--disable"],
    ["--remove", "--add"],
    ["--remove", "--add", "--remove"],
    ["--clear", "--merge", "wide", "--disable"],
    ["--merge", "fine"],
    ["--merge", "wide", "--merge", "full"],
    ["--merge", "none", "--clear"],
    ["--add", "--merge", "fine"],
    ["--add", "--disable", "--merge", "wide", "-g", "4k"],
    ["--add", "--merge", "none"],
    ["--enable", "--add"],
    ["--merge", "fine", "-b", "4k.qcow2"],
    ["--add", "--merge", "fine", "-b", "512.qcow2", "-F", "qcow2", "-g", "8k"],
    ["--merge", "wide", "-b", "plain.qcow2", "--disable"],
)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", ["fine", "wide", "full", "new"])
def test_every_sequence_gives_the_same_bitmaps(
    folder: Path, shape: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = SEQUENCES if shape == "plain" else SEQUENCES[len(shape + name) % 3 :: 3]
    for words in chosen:
        theirs, ours, _ = both(folder, f"{shape}.qcow2", words, name, tmp_path, monkeypatch)
        assert without_places(ours) == without_places(theirs), words
        assert told(ours) == told(theirs), words
        for each in without_places(ours):
            if each[0] == name:
                assert as_qemu_reads(ours, name, tmp_path / "scratch") == each[4], words
    assert qemu("compare", "-f", "qcow2", "-F", "qcow2", theirs, ours, cwd=theirs.parent)[0] == 0


@pytest.mark.parametrize("image", ["blank.qcow2", "over.qcow2", "old.qcow2", "disk.raw"])
def test_images_without_bitmaps(folder: Path, image: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for words in SEQUENCES:
        theirs, ours, _ = both(folder, image, ["-f", image.partition(".")[2], *words], "new", tmp_path, monkeypatch)
        if image.endswith("raw"):
            assert ours.read_bytes() == theirs.read_bytes() == bytes(SIZE)
            continue
        assert without_places(ours) == without_places(theirs), words
        assert told(ours) == told(theirs), words


@pytest.mark.parametrize("name", ["fine", "sound"])
def test_a_bitmap_that_was_not_saved_can_be_removed_and_nothing_else(
    folder: Path, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for words in (*SEQUENCES, ["--merge", "sound"]):
        theirs, ours, code = both(folder, "broken.qcow2", words, name, tmp_path, monkeypatch)
        assert without_places(ours) == without_places(theirs), words
        assert told(ours) == told(theirs), words
        assert name != "fine" or code == (0 if words[0] == "--remove" else 1), words


ODD: tuple[tuple[list[str], str | None], ...] = (
    ([], "fine"),
    (["--add"], None),
    (["--add"], ""),
    (["--add"], "x" * 1023),
    (["--add"], "x" * 1024),
    (["--add"], "ä" * 512),
    (["--add"], "ü b,c"),
    (["--add", "-g", "256"], "new"),
    (["--add", "-g", "3k"], "new"),
    (["--add", "-g", "4G"], "new"),
    (["--add", "-g", "x"], "new"),
    (["--add", "-g", "0"], "new"),
    (["--clear", "-g", "4k"], "fine"),
    (["--clear", "-b", "4k.qcow2"], "fine"),
    (["--clear", "-F", "qcow2"], "fine"),
    (["--merge"], "fine"),
    (["--merge", "fine", "-b", "none.qcow2"], "full"),
    (["--merge", "fine", "-b", "other-size.qcow2"], "full"),
    (["--merge", "fine", "-b", "plain.qcow2"], "full"),
    (["--merge", "fine", "-b", "disk.raw", "-F", "raw"], "full"),
    (["--merge", "fine", "-b", "4k.qcow2", "-F", "bogus"], "full"),
    (["--clear", "-f", "bogus"], "fine"),
    (["--clear", "--bogus"], "fine"),
    (["--clear", "--clear", "--enable", "--enable"], "wide"),
)


@pytest.mark.parametrize(("words", "name"), ODD, ids=map(str, range(len(ODD))))
def test_odd_and_wrong_usage(
    folder: Path, words: list[str], name: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs, ours, _ = both(folder, "plain.qcow2", words, name, tmp_path, monkeypatch)
    assert without_places(ours) == without_places(theirs)
    assert told(ours) == told(theirs)


def test_an_image_in_use_is_left_alone(folder: Path, tmp_path: Path) -> None:
    from workbench.storage.locks import LockMode, acquire

    image = tmp_path / "a.qcow2"
    shutil.copy(folder / "plain.qcow2", image)
    before = image.read_bytes()
    with FileStorage.open(image, writable=True) as held, acquire(held, LockMode.READ):
        assert qwb("bitmap", "--clear", image, "fine")[0] == qemu("bitmap", "--clear", image, "fine", cwd=tmp_path)[0]
    assert image.read_bytes() == before


def test_a_disk_without_a_size_keeps_no_bitmap(tmp_path: Path, qemu_img: str) -> None:
    run_img("create", "-q", "-f", "qcow2", "a.qcow2", "0", cwd=tmp_path)
    code, _, err = qemu("bitmap", "--add", "a.qcow2", "b", cwd=tmp_path)
    assert (code, told(tmp_path / "a.qcow2")) == (qemu_version() >= (10,), None) and err
    assert qwb("bitmap", "--add", tmp_path / "a.qcow2", "b")[0] == 1
    assert told(tmp_path / "a.qcow2") is None
