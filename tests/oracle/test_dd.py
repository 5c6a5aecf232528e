"""`qwb dd` against `qemu-img dd`: the same image, words and exit code, for every window and format."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from sample_images.bases import BASES
from sample_images.qemu import source_arguments
from tests.oracle.disks import build, qemu, qwb

pytestmark = pytest.mark.oracle

WINDOWS = (
    [],
    ["bs=64k"],
    ["bs=1M"],
    ["bs=1000"],
    ["bs=64k", "skip=3"],
    ["bs=64k", "count=4"],
    ["bs=64k", "skip=3", "count=5"],
    ["bs=64k", "skip=5", "count=5"],
    ["bs=64k", "skip=6", "count=5"],
    ["bs=777", "skip=10", "count=100"],
    ["skip=1"],
    ["count=1"],
    ["count=0"],
    ["skip=2", "bs=512k", "count=1073741824"],
    ["skip=8070450532247928832", "bs=1M"],
    ["count=8070450532247928832", "bs=1M"],
    ["bs=64k", "bs=512", "count=3"],
)
SOURCES = (
    *("data.raw", "sparse.raw", "odd.raw", "empty.raw", "data.qcow2", "packed.qcow2", "subclusters.qcow2"),
    *("overlay-two.qcow2", "overlay-short.qcow2", "blank.qcow2", "none.qcow2", "zeroed.qcow2", "reserved.qcow2"),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, qemu_img: str) -> Path:
    path = tmp_path_factory.mktemp("disks")
    build(path)
    os.sync()
    return path


def as_told(image: Path) -> tuple[Any, Any]:
    """(info without names and sizes on disk, map without places) of a qcow2 image, by qemu-img.

    Data that is zero as well lies in holes of the file: how a writer leaves the end of a cluster is its own business.
    """
    info = json.loads(qemu("info", "--output=json", "-f", "qcow2", image, cwd=image.parent)[1])
    for key in ("filename", "actual-size", "children"):
        info.pop(key, None)
    rows = json.loads(qemu("map", "--output=json", "-f", "qcow2", image, cwd=image.parent)[1])
    merged: list[list[Any]] = []
    for row in rows:
        what = [row["depth"], row["present"], row["data"], row["zero"] and not row["data"]]
        if merged and merged[-1][1:] == what:
            merged[-1][0] += row["length"]
        else:
            merged.append([row["length"], *what])
    return info, merged


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("target", ["raw", "qcow2"])
def test_every_window_comes_out_as_from_qemu_img(
    folder: Path, source: str, target: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    mine, other = tmp_path / "mine", tmp_path / "theirs"
    for window in WINDOWS:
        words = ["dd", "-f", source.rpartition(".")[2], "-O", target, *window, f"if={source}"]
        theirs, ours = qemu(*words, f"of={other}", cwd=folder), qwb(*words, f"of={mine}")
        assert (ours[:2], ours[2].removeprefix("qwb: ")) == (theirs[:2], theirs[2].removeprefix("qemu-img: ")), window
        assert ours[0] == 0
        if target == "raw":
            assert mine.read_bytes() == other.read_bytes(), window
        else:
            assert qemu("check", "-f", "qcow2", mine, cwd=tmp_path)[0] == 0
            assert qemu("compare", "-f", "qcow2", "-F", "qcow2", mine, other, cwd=tmp_path)[0] == 0, window
            assert as_told(mine) == as_told(other), window
    assert sorted(each.name for each in tmp_path.iterdir()) == ["mine", "theirs"]


@pytest.mark.parametrize(
    "name", ["luks-aes-256-xts-plain64", "aes", "backing-chain", "data-file", "snapshots", "converted"]
)
def test_special_images_are_copied_as_by_qemu_img(
    name: str, base_images: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, image = BASES[name], base_images.get(name)
    monkeypatch.chdir(image.parent)
    mine, other = tmp_path / "mine", tmp_path / "theirs"
    copy, secret = tmp_path / "copy.raw", list[object]()
    source = list(map(str, source_arguments(image, base.secret))) if base.secret else ["-f", "qcow2", str(image)]
    if base.secret:
        (tmp_path / "secret").write_text(base.secret)
        secret = ["--secret-file", tmp_path / "secret"]
    assert qemu("convert", "-O", "raw", *source, copy, cwd=image.parent)[0] == 0
    window = ["bs=3000", "skip=7", "count=600"]
    assert qemu("dd", "-f", "raw", *window, f"if={copy}", f"of={other}", cwd=tmp_path)[0] == 0
    assert qwb("dd", *secret, *window, f"if={image}", f"of={mine}") == (0, "", "")
    assert mine.read_bytes() == other.read_bytes()


ERRORS = (
    [],
    ["if=data.raw"],
    ["of=new"],
    ["if=data.raw", "of=new", "foo"],
    ["if=data.raw", "of=new", "foo=1"],
    ["if=data.raw", "of=new", "IF=x"],
    *(["if=data.raw", "of=new", each] for each in ("bs=0", "bs=2G", "bs=x", "bs=", "bs=-1", "count=-1", "skip=1Q")),
    ["if=none.raw", "of=new"],
    ["if=data.raw", "of=missing/new"],
    ["if=data.raw", "of=."],
    ["-f", "bogus", "if=data.raw", "of=new"],
    ["-f", "qcow2", "if=data.raw", "of=new"],
    ["-O", "bogus", "if=data.raw", "of=new"],
    ["--bogus", "if=data.raw", "of=new"],
)


@pytest.mark.parametrize("words", ERRORS, ids=" ".join)
def test_wrong_usage_is_exit_1_and_makes_nothing(
    folder: Path, words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    before = sorted(each.name for each in folder.iterdir())
    theirs, ours = qemu("dd", *words, cwd=folder), qwb("dd", *words)
    assert (ours[:2], bool(ours[2])) == (theirs[:2], bool(theirs[2])) == ((1, ""), True)
    assert sorted(each.name for each in folder.iterdir()) == before


def test_an_input_in_use_is_read_only_when_shared(folder: Path, tmp_path: Path) -> None:
    from workbench.storage.file import FileStorage
    from workbench.storage.locks import LockMode, acquire

    source = folder / "data.qcow2"
    with FileStorage.open(source, writable=True) as held, acquire(held, LockMode.WRITE):
        for more, code in (((), 1), (("-U",), 0)):
            words = ("dd", *more, f"if={source}")
            assert qwb(*words, f"of={tmp_path / 'ours'}")[0] == code
            assert qemu(*words, f"of={tmp_path / 'theirs'}", cwd=tmp_path)[0] == code
    assert (tmp_path / "ours").read_bytes() == (tmp_path / "theirs").read_bytes()
