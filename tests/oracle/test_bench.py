"""`qwb bench` against `qemu-img bench`: the same words, exit code and written disk for every option; times are not compared."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest

from sample_images.qemu import qemu_version, run_img, run_io
from tests.oracle.disks import qemu, qwb

pytestmark = pytest.mark.oracle

USES = (
    ["-c", "10"],
    ["-c", "0x10", "-d", "1"],
    ["-c", "010", "-d", "2"],
    ["-c", "20", "-s", "64k", "-S", "1000", "-o", "5"],
    ["-c", "30", "-s", "100", "-S", "40000"],
    ["-c", "3", "-o", "1M"],
    ["-c", "3", "-o", "1044480"],
    ["-c", "3", "-s", "2M"],
    ["-c", "10", "-w"],
    ["-c", "10", "-w", "--pattern", "0x41", "-s", "777", "-S", "70000"],
    ["-c", "10", "-w", "--pattern=255", "-d", "1", "--flush-interval", "3"],
    ["-c", "16", "-w", "--flush-interval=4", "-d", "4", "--no-drain"],
    ["-c", "10", "-w", "--flush-interval=4"],
    ["-c", "10", "--flush-interval=4", "-d", "2"],
    ["-c", "10", "--pattern", "3"],
    ["-c", "10", "-t", "none"],
    ["-c", "10", "-t", "unsafe", "-i", "threads", "-q"],
    ["-c", "10", "-t", "bogus"],
    ["-c", "10", "-i", "bogus"],
    ["-c", "10", "-U"],
    ["-c", "10", "-U", "-w"],
    *(["-c", each] for each in ("x", "-1", "", "3x", "2147483648", "1k")),
    *(["-d", each] for each in ("x", "-1", "2147483648")),
    *(["-s", each] for each in ("x", "-1", "2G", "4E")),
    *(["-S", each] for each in ("x", "-1", "2G")),
    *(["-o", each] for each in ("x", "-1")),
    *(["-w", "--pattern", each] for each in ("256", "x", "-1")),
    *(["-w", "--flush-interval", each] for each in ("x", "-1")),
    ["--bogus"],
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, qemu_img: str) -> Path:
    path = tmp_path_factory.mktemp("bench")
    run_img("create", "-q", "-f", "qcow2", "a.qcow2", "1M", cwd=path)
    run_io("-f", "qcow2", "-c", "write -P 5 100k 300k", "a.qcow2", cwd=path)
    (path / "a.raw").write_bytes(b"r" * (1 << 20))
    run_img("create", "-q", "-f", "qcow2", "-b", "a.raw", "-F", "raw", "over.qcow2", cwd=path)
    return path


@pytest.mark.parametrize("image", ["a.qcow2", "a.raw", "over.qcow2"])
def test_the_same_requests_are_sent(folder: Path, image: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for words in USES:
        said = []
        for who in ("theirs", "ours"):
            place = tmp_path / who
            shutil.rmtree(place, ignore_errors=True)
            shutil.copytree(folder, place)
            monkeypatch.chdir(place)
            arguments = ["bench", "-f", image.partition(".")[2], *words, image]
            code, out, err = qemu(*arguments, cwd=place) if who == "theirs" else qwb(*arguments)
            assert bool(err) == bool(code), (who, words, err)
            said.append((code, re.sub(r"\d+\.\d{3} seconds", "some seconds", out)))
        assert said[1] == said[0], words
        if "-s" not in words or said[0][0] == 0:  # which requests are done before one fails is a matter of luck there
            form = image.partition(".")[2]
            names = [str(tmp_path / who / image) for who in ("theirs", "ours")]
            assert qemu("compare", "-f", form, "-F", form, *names, cwd=tmp_path)[0] == 0, words


def test_wrong_usage_is_exit_1(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    for words in ([], ["a.qcow2", "a.raw"], ["none.qcow2"], ["-f", "bogus", "a.qcow2"], ["-f", "qcow2", "a.raw"]):
        theirs, ours = qemu("bench", *words, cwd=folder), qwb("bench", *words)
        assert (ours[:2], bool(ours[2])) == (theirs[:2], bool(theirs[2])) == ((1, ""), True), words


def test_what_makes_qemu_img_hang_or_die_is_refused(folder: Path, tmp_path: Path) -> None:
    run_img("create", "-q", "-f", "qcow2", tmp_path / "none.qcow2", "0")
    assert qemu("bench", "-c", "1", tmp_path / "none.qcow2", cwd=tmp_path)[0] != 0
    for words in (["-c", "0"], ["-s", "0"]):
        assert qemu("bench", "-c", "1", *words, folder / "a.qcow2", cwd=tmp_path)[0] == (qemu_version() >= (10,))
        assert qwb("bench", "-c", "1", *words, folder / "a.qcow2")[:2] == (1, "")
    assert qwb("bench", "-c", "1", tmp_path / "none.qcow2")[0] == 1
    assert qwb("bench", "-c", "1", "-d", "0", folder / "a.qcow2")[:2] == (1, "")


def test_json_tells_what_was_sent_and_how_long_it_took(folder: Path) -> None:
    said = json.loads(qwb("bench", "--json", "-c", "8", "-s", "4k", folder / "a.qcow2")[1])
    assert said["seconds"] >= 0
    assert (said["schema"], said["format"], said["write"], said["bytes"]) == (1, "qcow2", False, 8 * 4096)
