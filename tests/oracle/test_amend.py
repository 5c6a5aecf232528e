"""`qwb amend` against `qemu-img amend`: the same exit code, options, content and snapshots for every option and image."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from sample_images.qemu import run_img, run_io
from tests.oracle.disks import qemu, qwb

pytestmark = pytest.mark.oracle

OPTIONS = (
    "compat=0.10",
    "compat=v2",
    "compat=1.1",
    "compat=v3,lazy_refcounts=on",
    "compat=v3,size=5M",
    "compat=0.10,size=5M",
    "compat=0.10,lazy_refcounts=off",
    "compat=0.10,lazy_refcounts=on",
    "compat=0.10,refcount_bits=8",
    "compat=0.10,refcount_bits=16",
    "compat=1.1,refcount_bits=64,size=6M,lazy_refcounts=on",
    *(f"refcount_bits={bits}" for bits in (1, 2, 4, 8, 16, 32, 64)),
    "refcount_bits=0",
    "refcount_bits=3",
    "refcount_bits=128",
    "refcount_bits=x",
    "lazy_refcounts=on",
    "lazy_refcounts=off",
    "lazy_refcounts",
    "lazy_refcounts=maybe",
    "size=0",
    "size=4M",
    "size=8M",
    "size=1000",
    "size=9E",
    "size=x",
    "backing_file=base.raw",
    "backing_file=base.raw,backing_fmt=raw",
    "backing_file=,backing_fmt=",
    "backing_fmt=raw",
    "backing_file=other.raw,backing_fmt=raw",
    "data_file=data.raw",
    "data_file=new.raw",
    "data_file=",
    "data_file_raw=on",
    "data_file_raw=off",
    "data_file_raw=off,data_file=new.raw,refcount_bits=8",
    "cluster_size=4k",
    "preallocation=full",
    "compression_type=zstd",
    "encrypt.state=active",
    "nothing=1",
    "compat=0.9",
    "",
    ",",
)
SHAPES = {
    "plain": "compat=1.1",
    "old": "compat=0.10",
    "narrow": "refcount_bits=2,cluster_size=512",
    "lazy": "lazy_refcounts=on,cluster_size=4k",
    "extended": "extended_l2=on",
    "zstd": "compression_type=zstd",
    "data-file": "data_file=data.raw,data_file_raw=on",
    "overlay": "backing_file=base.raw,backing_fmt=raw",
    "old-overlay": "backing_file=base.raw,backing_fmt=raw,compat=0.10",
    "snapshots": "cluster_size=4k",
    "old-snapshots": "compat=0.10",
    "snapshots-overlay": "backing_file=base.raw,backing_fmt=raw,cluster_size=8k",
    "packed": "compression_type=zstd",
    "prealloc": "preallocation=metadata",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, qemu_img: str) -> Path:
    path = tmp_path_factory.mktemp("amend")
    (path / "base.raw").write_bytes(b"base" * (1 << 20))
    for name, options in SHAPES.items():
        image = f"{name}.qcow2"
        run_img("create", "-q", "-f", "qcow2", "-o", options, image, "4M", cwd=path)
        lines = ["write -P 1 0 300k", "write -P 2 1M 100k", "write -z 64k 128k", "write -z 2M 64k", "write -z -u 1M 8k"]
        if name == "packed":
            lines.append("write -c -P 3 3M 64k")
        run_io("-f", "qcow2", *(word for line in lines for word in ("-c", line)), image, cwd=path)
        if "snapshots" in name:
            for each in ("one", "two"):
                run_img("snapshot", "-c", each, image, cwd=path)
                run_io("-f", "qcow2", "-c", "write -P 4 32k 16k", "-c", "write -z 40k 8k", image, cwd=path)
    return path


def told(image: Path, *, sound: bool = True) -> Any:
    """Options and snapshots, by qemu-img. sound: it must find nothing wrong."""
    code, out, err = qemu("check", "-f", "qcow2", image.name, cwd=image.parent)
    assert code == 0 or not sound, out + err
    info = json.loads(qemu("info", "--output=json", "-f", "qcow2", image.name, cwd=image.parent)[1])
    for key in ("actual-size", "children"):
        info.pop(key, None)
    return info


@pytest.mark.parametrize("shape", SHAPES)
def test_every_option_does_the_same(folder: Path, shape: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = [f"{shape}.qcow2", "base.raw", *(["data.raw"] if shape == "data-file" else [])]
    for number, options in enumerate(OPTIONS):
        if shape not in ("plain", "old", "snapshots") and "=" in options and number % 3 and "compat" not in options:
            continue  # the rest of the matrix is a third of it
        said = []
        for who in ("theirs", "ours"):
            place = tmp_path / who
            shutil.rmtree(place, ignore_errors=True)
            place.mkdir()
            for each in names:
                shutil.copy(folder / each, place / each)
            monkeypatch.chdir(place)
            arguments = ["amend", "-f", "qcow2", "-o", options, names[0]]
            code, out, err = qemu(*arguments, cwd=place) if who == "theirs" else qwb(*arguments)
            assert (out, bool(err)) == ("", bool(code)), (who, options, err)
            said.append(code)
        assert said[1] == said[0], options
        theirs, ours = tmp_path / "theirs" / names[0], tmp_path / "ours" / names[0]
        if "data_file=" in options and said[0] == 0:
            for each in (theirs, ours):
                (each.parent / "new.raw").write_bytes((each.parent / "data.raw").read_bytes())
        if options == "data_file=" and said[0] == 0:
            assert theirs.read_bytes()[:104] == ours.read_bytes()[:104]
            continue  # neither opens any more
        if said[0] == 0:
            corrupts = "snapshots" in shape and options.startswith(
                ("compat=0.10", "compat=v2")
            )  # see the test on a snapshot's data
            assert told(ours) == told(theirs, sound=not corrupts), options
        else:
            assert ours.read_bytes() == (folder / names[0]).read_bytes(), options
            continue  # qemu-img may have done a part
        alike = ["compare", "-f", "qcow2", "-F", "qcow2", names[0]]
        assert qemu(*alike, str(folder / names[0]), cwd=ours.parent)[0] == 0 or "size" in options, options
        assert qemu(*alike, str(theirs), cwd=ours.parent)[0] == 0, options
        for snapshot in ("one", "two") if "snapshots" in shape else ():
            copies = []
            for place in (folder, ours.parent):
                raw = tmp_path / f"{len(copies)}.raw"
                assert qemu("convert", "-l", snapshot, "-O", "raw", names[0], raw, cwd=place)[0] == 0
                copies.append(raw.read_bytes())
            assert copies[0][: 4 << 20] == copies[1][: 4 << 20], (options, snapshot)


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["plain.qcow2"],
        ["-o", "compat=1.1"],
        ["-o", "compat=1.1", "plain.qcow2", "old.qcow2"],
        ["-o", "compat=1.1", "none.qcow2"],
        ["-o", "compat=1.1", "base.raw"],
        ["-o", "compat=1.1", "-f", "raw", "base.raw"],
        ["-o", "compat=1.1", "-f", "bogus", "plain.qcow2"],
        ["-o", "compat=1.1", "-t", "bogus", "plain.qcow2"],
        ["-o", "compat=1.1", "--bogus", "plain.qcow2"],
        ["-o", "compat=1.1", "-t", "none", "-q", "-p", "plain.qcow2"],
        ["-o", "compat=0.10", "-o", "compat=1.1", "plain.qcow2"],
        ["-o", "compat=1.1,", "plain.qcow2"],
        ["-o", ",compat=1.1", "plain.qcow2"],
    ],
    ids=lambda words: " ".join(words) or "nothing",
)
def test_usage(folder: Path, words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    theirs, ours = qemu("amend", *words, cwd=folder), qwb("amend", *words)
    assert (ours[:2], bool(ours[2])) == (theirs[:2], bool(theirs[2]))


def test_help_names_every_option_but_key_slots(folder: Path) -> None:
    def names(text: str) -> set[str]:
        return {line.partition("=")[0].strip() for line in text.splitlines()[1:]}

    theirs, ours = qemu("amend", "-f", "qcow2", "-o", "help", cwd=folder), qwb("amend", "-f", "qcow2", "-o", "help")
    assert ours[0] == theirs[0] == 0
    assert ours[1].splitlines()[0] == theirs[1].splitlines()[0]
    assert names(ours[1]) == {each for each in names(theirs[1]) if not each.startswith("encrypt.")}


def test_bitmaps_are_lost_by_qemu_img_and_kept_by_us(tmp_path: Path, qemu_img: str) -> None:
    for name in ("theirs", "ours"):
        run_img("create", "-q", "-f", "qcow2", f"{name}.qcow2", "1M", cwd=tmp_path)
        run_img("bitmap", "--add", f"{name}.qcow2", "b", cwd=tmp_path)
    assert qemu("amend", "-o", "compat=0.10", "theirs.qcow2", cwd=tmp_path)[0] == 0
    assert qemu("check", "theirs.qcow2", cwd=tmp_path)[0] == 3  # leaks are all that is left of them
    assert qwb("amend", "-o", "compat=0.10", tmp_path / "ours.qcow2")[0] == 1
    assert len(told(tmp_path / "ours.qcow2")["format-specific"]["data"]["bitmaps"]) == 1


def test_a_disk_shrinks_only_with_force(folder: Path, tmp_path: Path) -> None:
    for name in ("theirs", "ours"):
        shutil.copy(folder / "plain.qcow2", tmp_path / f"{name}.qcow2")
    words = ("amend", "-o", "size=1M")
    assert qemu(*words, "theirs.qcow2", cwd=tmp_path)[0] == 0
    assert qwb(*words, tmp_path / "ours.qcow2")[0] == 1
    assert told(tmp_path / "ours.qcow2")["virtual-size"] == 4 << 20
    assert qwb(*words, "--force", tmp_path / "ours.qcow2")[0] == 0
    theirs, ours = (told(tmp_path / f"{name}.qcow2") for name in ("theirs", "ours"))
    assert theirs | {"filename": ""} == ours | {"filename": ""}


def test_zeros_over_a_snapshots_data_cost_the_snapshot_with_qemu_img_and_not_with_us(
    tmp_path: Path, qemu_img: str
) -> None:
    (tmp_path / "base.raw").write_bytes(bytes(1 << 20))
    run_img("create", "-q", "-f", "qcow2", "-b", "base.raw", "-F", "raw", "a.qcow2", cwd=tmp_path)
    run_io("-f", "qcow2", "-c", "write -P 7 0 64k", "a.qcow2", cwd=tmp_path)
    run_img("snapshot", "-c", "s", "a.qcow2", cwd=tmp_path)
    run_io("-f", "qcow2", "-c", "write -z 0 64k", "a.qcow2", cwd=tmp_path)
    seen = {}
    for name in ("theirs", "ours"):
        shutil.copy(tmp_path / "a.qcow2", tmp_path / f"{name}.qcow2")
        words = ("amend", "-o", "compat=0.10", f"{name}.qcow2")
        code = qemu(*words, cwd=tmp_path)[0] if name == "theirs" else qwb(*words[:3], tmp_path / words[3])[0]
        assert code == 0
        run_img("convert", "-l", "s", "-O", "raw", f"{name}.qcow2", f"{name}.raw", cwd=tmp_path)
        seen[name] = (tmp_path / f"{name}.raw").read_bytes()[: 64 << 10]
    assert seen["ours"] == b"\7" * (64 << 10)
    assert seen["theirs"] != seen["ours"]
