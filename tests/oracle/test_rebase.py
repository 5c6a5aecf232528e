"""`qwb rebase` against `qemu-img rebase`: the same disk, the same clusters allocated, header, words and exit code."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from sample_images.bases import BASES
from sample_images.qemu import run_img, run_io, source_arguments
from tests.oracle.disks import MIB, build, qemu, qwb

pytestmark = pytest.mark.oracle

BACKINGS = (
    *("data.raw", "other.raw", "sparse.raw", "hole.raw", "shorter.raw", "longer-data.raw", "odd.raw", "empty.raw"),
    *("data.qcow2", "small-clusters.qcow2", "packed.qcow2", "old.qcow2", "subclusters.qcow2", "longer.qcow2"),
    *("blank.qcow2", "zeroed.qcow2", "overlay.qcow2", "overlay-zero.qcow2", "overlay-long.qcow2"),
    *("overlay-short.qcow2", "overlay-two.qcow2", "subclusters-over.qcow2"),
)
TOPS: dict[str, tuple[str, int]] = {
    "plain": ("cluster_size=64k", MIB),
    "4k": ("cluster_size=4k", MIB),
    "512": ("cluster_size=512", MIB),
    "2M": ("cluster_size=2M", MIB),
    "v2": ("compat=0.10", MIB),
    "extended": ("extended_l2=on", MIB),
    "extended-16k": ("extended_l2=on,cluster_size=16k", MIB),
    "lazy": ("lazy_refcounts=on", MIB),
    "preallocated": ("preallocation=metadata", MIB),
    "shorter": ("cluster_size=64k", 640 << 10),
    "longer": ("cluster_size=64k", 2 * MIB),
    "uneven": ("cluster_size=64k", MIB - 512 * 7),
    "uneven-extended": ("extended_l2=on", MIB + 512 * 7),
    "1bit": ("refcount_bits=1", MIB),
}
WRITES = ("write -P 3 64k 100k", "write -z 320k 128k", "write -P 0 520k 4k", "discard 448k 64k", "write -P 4 12345 10")
"""What each top image holds itself; the discard leaves zeros."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, qemu_img: str) -> Path:
    path = tmp_path_factory.mktemp("disks")
    build(path)
    os.sync()
    return path


def form(name: str) -> str:
    return name.rpartition(".")[2]


def make_top(folder: Path, name: str, shape: str, backing: str) -> None:
    options, size = TOPS[shape]
    words = ["-b", backing, "-F", form(backing)] if backing else []
    if backing and "preallocation" in options:
        options = "cluster_size=8k"
    run_img("create", "-q", "-f", "qcow2", "-o", options, *words, name, str(size), cwd=folder)
    for each in WRITES:
        run_io("-f", "qcow2", "-c", each, name, cwd=folder)


def copies(folder: Path, shape: str, backing: str) -> tuple[str, str, str]:
    """(ours, theirs, what the disk shows as a raw file) of a new top image, in the folder."""
    for each in folder.glob("top-*"):
        each.unlink()
    make_top(folder, "top-ours", shape, backing)
    shutil.copy(folder / "top-ours", folder / "top-theirs")
    run_img("convert", "-f", "qcow2", "-O", "raw", "top-ours", "top-want", cwd=folder)
    return "top-ours", "top-theirs", "top-want"


def said(name: str, folder: Path) -> Any:
    """qemu-img's info without what tells name and size of the file."""
    info = json.loads(qemu("info", "--output=json", "-f", "qcow2", name, cwd=folder)[1])
    for key in ("filename", "actual-size", "children", "full-backing-filename"):
        info.pop(key, None)
    return info


def allocated(name: str, folder: Path) -> list[list[int]]:
    """[start, end) that an image holds itself, by qemu-img's map; ours has zero clusters where QEMU's may have data."""
    run_img("rebase", "-u", "-b", "", name, cwd=folder)
    found: list[list[int]] = []
    for row in json.loads(qemu("map", "--output=json", "-f", "qcow2", name, cwd=folder)[1]):
        if row["present"] and (row["data"] or row["zero"]):
            if found and found[-1][1] == row["start"]:
                found[-1][1] += row["length"]
            else:
                found.append([row["start"], row["start"] + row["length"]])
    return found


def both(folder: Path, ours: str, theirs: str, *words: object) -> int:
    """Run both; exit code and stdout are the same. The exit code."""
    here, there = qwb("rebase", *words, folder / ours), qemu("rebase", *words, theirs, cwd=folder)
    assert here[:2] == there[:2], (here, there)
    return here[0]


def same_disk(folder: Path, *names: str, want: str) -> None:
    for name in names:
        assert qemu("compare", "-f", "qcow2", "-F", "raw", name, want, cwd=folder)[0] == 0, name
        assert qemu("check", "-f", "qcow2", name, cwd=folder)[0] == 0, name


def rebased_alike(folder: Path, shape: str, old: str, new: str) -> None:
    ours, theirs, want = copies(folder, shape, old)
    words = ["-b", new, *(["-F", form(new)] if new else [])]
    assert both(folder, ours, theirs, *words) == 0
    same_disk(folder, ours, theirs, want=want)
    assert said(ours, folder) == said(theirs, folder)
    assert allocated(ours, folder) == allocated(theirs, folder)


@pytest.mark.parametrize("old", BACKINGS)
def test_from_every_backing_file_to_others(folder: Path, old: str) -> None:
    for new in ("", *BACKINGS[BACKINGS.index(old) % 5 :: 5]):
        rebased_alike(folder, "plain", old, new)


@pytest.mark.parametrize("shape", TOPS)
def test_every_shape_of_image_is_rebased_as_by_qemu_img(folder: Path, shape: str) -> None:
    pairs = (
        ("", "data.raw"),
        ("", "subclusters-over.qcow2"),
        ("data.raw", "other.raw"),
        ("data.raw", "subclusters.qcow2"),
        ("shorter.raw", "longer.qcow2"),
        ("overlay-two.qcow2", "overlay-long.qcow2"),
        ("overlay-two.qcow2", ""),
        ("hole.raw", "data.raw"),
        ("packed.qcow2", "blank.qcow2"),
    )
    for old, new in pairs:
        if shape != "v2" or old:
            rebased_alike(folder, shape, old, new)


def test_an_old_image_that_stood_alone_keeps_its_zeros_where_qemu_img_loses_them(folder: Path) -> None:
    """Version 2 has no flag for zeros: they must be written where the new backing file has data."""
    ours, theirs, want = copies(folder, "v2", "")
    assert both(folder, ours, theirs, "-b", "data.raw", "-F", "raw") == 0
    same_disk(folder, ours, want=want)
    assert qemu("compare", "-f", "qcow2", "-F", "raw", theirs, want, cwd=folder)[0] == 1


def test_an_image_never_comes_to_lie_under_itself(folder: Path) -> None:
    ours, theirs, want = copies(folder, "plain", "data.raw")
    run_img("create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", ours, "top-over", cwd=folder)
    for new in (ours, "top-over"):
        assert qwb("rebase", "-u", "-b", new, "-F", "qcow2", folder / ours)[0] == 1
    same_disk(folder, ours, want=want)
    assert qemu("rebase", "-u", "-b", theirs, "-F", "qcow2", theirs, cwd=folder)[0] == 0
    chain = qemu("info", "--backing-chain", theirs, cwd=folder)
    assert chain[0] == 1 and "infinite loop" in chain[2]


def test_zeros_are_taken_over_as_zeros_not_as_data(folder: Path) -> None:
    ours, theirs, want = copies(folder, "plain", "zeros.raw")
    assert both(folder, ours, theirs, "-b", "data.raw", "-F", "raw") == 0
    same_disk(folder, ours, theirs, want=want)
    assert (folder / ours).stat().st_size < (folder / theirs).stat().st_size


@pytest.mark.parametrize("shape", ["plain", "4k", "extended", "v2", "uneven"])
def test_compressed_clusters_read_back(folder: Path, shape: str) -> None:
    """Only QEMU 8.2 and later knows -c; all read what comes of it."""
    knows = b"--compress" in subprocess.run(["qemu-img", "rebase", "--help"], capture_output=True, check=False).stdout
    for old, new in (("data.raw", "blank.qcow2"), ("overlay-two.qcow2", ""), ("subclusters-over.qcow2", "hole.raw")):
        ours, theirs, want = copies(folder, shape, old)
        words = ["-c", "-b", new, *(["-F", form(new)] if new else [])]
        assert qwb("rebase", *words, folder / ours) == (0, "", "")
        same_disk(folder, ours, want=want)
        packed = json.loads(qemu("check", "--output=json", "-f", "qcow2", ours, cwd=folder)[1])["compressed-clusters"]
        assert packed
        if knows and shape != "extended":  # there QEMU 10.0 aborts
            assert qemu("rebase", *words, theirs, cwd=folder)[0] == 0
            assert allocated(ours, folder) == allocated(theirs, folder)


def test_unsafe_rebasing_changes_the_header_alone(folder: Path) -> None:
    for shape in TOPS:
        for said_words in (
            ["-b", "missing.qcow2", "-F", "qcow2"],
            ["-b", "data.raw", "-F", "raw"],
            ["-b", "x.vmdk", "-F", "vmdk"],
            ["-b", "nbd:localhost:1", "-F", "raw"],
            ["-b", "a" * 300, "-F", "raw"],
            ["-b", ""],
            ["-b", "", "-F", "raw"],
            [],
        ):
            words = ["-b", "gone.raw", "-F", "raw"] if shape == "512" else said_words
            ours, theirs, _ = copies(folder, shape, "data.raw")
            before = (folder / ours).read_bytes()
            assert both(folder, ours, theirs, "-u", *words) == 0, words
            after = (folder / ours).read_bytes()
            first = 512 if shape == "512" else 4096
            assert after[first:] == before[first:] and said(ours, folder) == said(theirs, folder), words


@pytest.mark.parametrize("name", ["luks-aes-256-xts-plain64", "aes", "data-file", "snapshots", "bitmaps"])
def test_special_images_are_rebased_as_by_qemu_img(name: str, base_images: Any, tmp_path: Path) -> None:
    base = BASES[name]
    here, there = (base_images.copy(base_images.get(name), tmp_path / each) for each in ("ours", "theirs"))
    (tmp_path / "secret").write_text(base.secret or "")
    words = ["--secret-file", tmp_path / "secret"] if base.secret else []
    for image in (here, there):
        run_img("create", "-q", "-f", "raw", "new.raw", "4M", cwd=image.parent)
        run_io("-f", "raw", "-c", "write -P 7 0 3M", "new.raw", cwd=image.parent)
    source = source_arguments(there, base.secret) if base.secret else ["-f", "qcow2", there]
    where = {"cwd": there.parent}
    os.chdir(here.parent)
    run_img("convert", "-O", "raw", *source, tmp_path / "want", **where)
    assert qwb("rebase", *words, "-b", "new.raw", "-F", "raw", here)[:2] == (0, "")
    assert qemu("rebase", *source[:-1], "-b", there.parent / "new.raw", "-F", "raw", source[-1], **where)[0] == 0
    source = source_arguments(here, base.secret) if base.secret else ["-f", "qcow2", here]
    run_img("convert", "-O", "raw", *source, tmp_path / "got", cwd=here.parent)
    assert (tmp_path / "got").read_bytes() == (tmp_path / "want").read_bytes()
    assert qemu("check", *(["-f", "qcow2", here] if not base.secret else source), cwd=here.parent)[0] == 0


ERRORS: tuple[list[str], ...] = (
    [],
    ["top"],
    ["-u", "top", "data.raw"],
    ["-b", "other.raw", "top"],
    ["-u", "-b", "other.raw", "top"],
    ["-b", "other.raw", "-F", "bogus", "top"],
    ["-u", "-b", "other.raw", "-F", "bogus", "top"],
    ["-b", "missing", "-F", "raw", "top"],
    ["-b", "other.raw", "-F", "qcow2", "top"],
    ["-b", "other.raw", "-F", "raw", "missing"],
    ["-b", "other.raw", "-F", "raw", "-f", "bogus", "top"],
    ["-b", "other.raw", "-F", "raw", "-f", "qcow2", "data.raw"],
    ["-b", "other.raw", "-F", "raw", "-f", "raw", "data.raw"],
    ["-u", "-b", "other.raw", "-F", "raw", "-f", "raw", "data.raw"],
    ["-t", "bogus", "-b", "other.raw", "-F", "raw", "top"],
    ["-T", "bogus", "-b", "other.raw", "-F", "raw", "top"],
    ["-u", "-b", "n" * 1024, "-F", "raw", "top"],
    ["-b", "top", "-F", "qcow2", "top"],
    ["--bogus", "-b", "other.raw", "-F", "raw", "top"],
)


@pytest.mark.parametrize("words", ERRORS, ids=lambda words: " ".join(words)[:60])
def test_wrong_usage_is_exit_1_and_changes_nothing(
    folder: Path, words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    copies(folder, "plain", "data.raw")
    shutil.copy("top-ours", "top")
    start = Path("top").read_bytes()
    ours = qwb("rebase", *words)
    assert Path("top").read_bytes() == start
    theirs = qemu("rebase", *words, cwd=folder)
    assert (ours[:2], bool(ours[2])) == (theirs[:2], bool(theirs[2])) == ((1, ""), True)


def test_a_missing_old_backing_file_is_an_error_but_for_unsafe_mode(folder: Path) -> None:
    ours, theirs, want = copies(folder, "plain", "data.raw")
    for name in (ours, theirs):
        run_img("rebase", "-u", "-b", "gone.raw", "-F", "raw", name, cwd=folder)
    assert both(folder, ours, theirs, "-b", "other.raw", "-F", "raw") == 1
    assert both(folder, ours, theirs, "-b", "", "-F", "raw") == 1
    assert both(folder, ours, theirs, "-u", "-b", "data.raw", "-F", "raw") == 0
    same_disk(folder, ours, theirs, want=want)


def test_progress_and_quiet_are_qemu_imgs(folder: Path) -> None:
    for words in (["-p"], ["-q"], ["-p", "-q"], ["-t", "none", "-T", "unsafe"]):
        ours, theirs, _ = copies(folder, "plain", "data.raw")
        here = qwb("rebase", *words, "-b", "other.raw", "-F", "raw", folder / ours)
        there = qemu("rebase", *words, "-b", "other.raw", "-F", "raw", theirs, cwd=folder)
        ends = [[text[1][:20], text[1][-20:]] for text in (here, there)]
        assert here[0] == there[0] == 0 and ends[0] == ends[1]


def test_an_image_or_backing_file_in_use_is_told_as_by_qemu_img(folder: Path) -> None:
    from workbench.storage.file import FileStorage
    from workbench.storage.locks import LockMode, acquire

    ours, theirs, _ = copies(folder, "plain", "data.raw")
    for name, more, code in (("data.qcow2", (), 1), ("data.qcow2", ("-U",), 0)):
        with FileStorage.open(folder / name, writable=True) as held, acquire(held, LockMode.WRITE):
            assert both(folder, ours, theirs, *more, "-b", name, "-F", "qcow2") == code
    with (
        FileStorage.open(folder / ours) as held,
        acquire(held, LockMode.READ),
        FileStorage.open(folder / theirs) as other,
        acquire(other, LockMode.READ),
    ):
        assert both(folder, ours, theirs, "-b", "", "-F", "raw") == 1
