"""`qwb commit` against `qemu-img commit`: every file of the chain shows the same afterwards; words and exit codes too."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from sample_images.bases import BASES
from sample_images.qemu import run_img, run_io, source_arguments
from tests.oracle.disks import MIB, content, qemu, qwb

pytestmark = pytest.mark.oracle

BASE_KINDS: dict[str, tuple[str, ...]] = {
    "raw": ("raw",),
    "qcow2": ("qcow2",),
    "packed": ("qcow2", "-c"),
    "v2": ("qcow2", "-o", "compat=0.10"),
    "extended": ("qcow2", "-o", "extended_l2=on"),
    "4k": ("qcow2", "-o", "cluster_size=4k"),
    "512": ("qcow2", "-o", "cluster_size=512"),
    "lazy": ("qcow2", "-o", "lazy_refcounts=on"),
}
TOPS = ("cluster_size=64k", "cluster_size=4k", "compat=0.10", "extended_l2=on", "cluster_size=2M", "lazy_refcounts=on")
SIZES = {"same": MIB, "shorter": 640 << 10, "longer": 3 * MIB, "uneven": MIB + 512 * 5}
WRITES = (
    *("write -P 3 64k 100k", "write -z 320k 128k", "write -P 0 520k 4k", "discard 448k 64k", "write -P 4 12345 10"),
    "write -z -u 600k 40k",
)


def overlay(folder: Path, name: str, backing: str, options: str, size: int, writes: tuple[str, ...] = WRITES) -> None:
    form = "raw" if backing.endswith(".raw") else "qcow2"
    run_img("create", "-q", "-f", "qcow2", "-o", options, "-F", form, "-b", backing, name, str(size), cwd=folder)
    for each in writes:
        run_io("-f", "qcow2", "-c", each, name, cwd=folder)


def based(folder: Path, kind: str) -> str:
    """A base of this kind with content; its name."""
    (folder / "source").write_bytes(content())
    form, *more = BASE_KINDS[kind]
    name = f"base.{form}"
    run_img("convert", "-f", "raw", "-O", form, *more, "source", name, cwd=folder)
    return name


def twice(folder: Path) -> tuple[Path, Path]:
    """The folder's files in two folders: for ours and for theirs."""
    for each in ("ours", "theirs"):
        (folder.parent / each).mkdir()
        for file in folder.iterdir():
            shutil.copy(file, folder.parent / each / file.name)
    return folder.parent / "ours", folder.parent / "theirs"


def mapped(image: Path) -> list[list[Any]]:
    rows = json.loads(qemu("map", "--output=json", "-f", "qcow2", image.name, cwd=image.parent)[1])
    return [[row["start"], row["length"]] for row in rows if row["depth"] == 0 and row["present"]]


def same_files(ours: Path, theirs: Path, *, emptied: str | None = None) -> None:
    """Every image shows the same in both folders, and is clean."""
    for file in sorted(theirs.iterdir()):
        form = "qcow2" if file.read_bytes()[:4] == b"QFI\xfb" else "raw"
        words = ["compare", "-f", form, "-F", form, ours / file.name, file]
        assert qemu(*words, cwd=theirs)[0] == 0, file.name
        if form == "qcow2":
            assert qemu("check", "-f", form, file.name, cwd=ours)[0] == 0, file.name
    if emptied is not None:
        assert mapped(ours / emptied) == mapped(theirs / emptied) == []


def both(ours: Path, theirs: Path, *words: str, image: str = "top.qcow2") -> int:
    here, there = qwb("commit", *words, ours / image), qemu("commit", *words, image, cwd=theirs)
    assert here[:2] == there[:2], (here, there)
    return here[0]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("kind", BASE_KINDS)
def test_one_overlay_is_committed_as_by_qemu_img(tmp_path: Path, kind: str, size: str) -> None:
    turn = list(BASE_KINDS).index(kind) + list(SIZES).index(size)
    for number, options in enumerate(TOPS[turn % 3 :: 3]):
        folder = tmp_path / str(number) / "start"
        folder.mkdir(parents=True)
        overlay(folder, "top.qcow2", based(folder, kind), options, SIZES[size])
        ours, theirs = twice(folder)
        run_img("convert", "-O", "raw", "top.qcow2", folder / "want", cwd=ours)
        assert both(ours, theirs) == 0
        same_files(ours, theirs, emptied="top.qcow2")
        words = ("compare", "-f", "qcow2", "-F", "raw", "top.qcow2", folder / "want")
        assert qemu(*words, cwd=ours)[0] == 0
        shutil.rmtree(tmp_path / str(number))


@pytest.mark.parametrize("sizes", [(1, 1, 1), (1, 2, 3), (3, 2, 1), (2, 1, 3), (3, 1, 2), (1, 3, 2)])
@pytest.mark.parametrize("kind", ["raw", "qcow2", "extended"])
def test_a_chain_is_committed_into_each_of_its_files(tmp_path: Path, kind: str, sizes: tuple[int, ...]) -> None:
    folder = tmp_path / "start"
    folder.mkdir()
    below = based(folder, kind)
    for name, size, options in zip(("low", "mid", "top"), sizes, TOPS, strict=False):
        shift = {"low": 0, "mid": 128, "top": 256}[name]
        last = (size << 10) - 64
        writes = (f"write -P {size} {shift}k 200k", f"write -z {shift + 300}k 64k", f"write -P 9 {last}k 4k")
        overlay(folder, f"{name}.qcow2", below, options, size * MIB, writes)
        below = f"{name}.qcow2"
    for words in ((), ("-d",), ("-b", "mid.qcow2"), ("-b", "low.qcow2"), ("-b", f"base.{BASE_KINDS[kind][0]}")):
        ours, theirs = twice(folder)
        before = (ours / "top.qcow2").read_bytes()
        assert both(ours, theirs, *words) == 0
        same_files(ours, theirs, emptied=None if words else "top.qcow2")
        assert not words or (ours / "top.qcow2").read_bytes() == before
        shutil.rmtree(ours)
        shutil.rmtree(theirs)


@pytest.mark.parametrize("words", [["-q"], ["-p"], ["-p", "-q"], ["-r", "1G"], ["-t", "none"], ["-f", "qcow2"]])
def test_options_change_what_is_said_as_in_qemu_img(tmp_path: Path, words: list[str]) -> None:
    folder = tmp_path / "start"
    folder.mkdir()
    overlay(folder, "top.qcow2", based(folder, "qcow2"), "cluster_size=64k", MIB)
    ours, theirs = twice(folder)
    here, there = qwb("commit", *words, ours / "top.qcow2"), qemu("commit", *words, "top.qcow2", cwd=theirs)
    ends = [[said[1][:20], said[1][-36:]] for said in (here, there)]
    assert here[0] == there[0] == 0 and ends[0] == ends[1]
    same_files(ours, theirs, emptied="top.qcow2")


def test_snapshots_of_both_images_are_kept_as_by_qemu_img(tmp_path: Path) -> None:
    folder = tmp_path / "start"
    folder.mkdir()
    overlay(folder, "top.qcow2", based(folder, "qcow2"), "cluster_size=4k", 2 * MIB)
    for name in ("base.qcow2", "top.qcow2"):
        run_img("snapshot", "-c", "one", name, cwd=folder)
        run_io("-f", "qcow2", "-c", "write -P 8 80k 300k", name, cwd=folder)
    ours, theirs = twice(folder)
    assert both(ours, theirs) == 0
    same_files(ours, theirs, emptied="top.qcow2")
    for name in ("base.qcow2", "top.qcow2"):
        for where in (ours, theirs):
            run_img("convert", "-l", "one", "-O", "raw", name, f"{name}.one", cwd=where)
        assert (ours / f"{name}.one").read_bytes() == (theirs / f"{name}.one").read_bytes()


@pytest.mark.parametrize("name", ["luks-aes-256-xts-plain64", "aes", "data-file", "bitmaps", "snapshots"])
def test_special_images_are_committed_into_as_by_qemu_img(name: str, base_images: Any, tmp_path: Path) -> None:
    base = BASES[name]
    (tmp_path / "secret").write_text(base.secret or "")
    here, there = (base_images.copy(base_images.get(name), tmp_path / each) for each in ("ours", "theirs"))
    size = str(json.loads(qemu("info", "-U", "--output=json", here.name, cwd=here.parent)[1])["virtual-size"])
    for image in (here, there):
        run_img(
            "create", "-q", "-f", "qcow2", "-u", "-F", "qcow2", "-b", image.name, "top.qcow2", size, cwd=image.parent
        )
    writing = Path(here.parent, "top.qcow2")
    from workbench.engine.gate import no_backing
    from workbench.engine.image import Image

    with Image.open(writing, writable=True, gate=no_backing) as disk:
        disk.write(70000 // 65536 * 65536, b"top" * 65536)
        disk.write_zeroes(0, 65536)
    shutil.copy(writing, there.parent)
    secret = ["--secret-file", str(tmp_path / "secret")] if base.secret else []
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(here.parent)
        assert qwb("commit", *secret, writing)[0] == 0
    source = source_arguments(there, base.secret)
    spec = f"json:{{'driver':'qcow2','file.filename':'top.qcow2','backing.driver':'qcow2','backing.file.filename':'{there.name}'"
    if base.secret:
        spec += ",'backing.encrypt.key-secret':'sec0'"
    assert qemu("commit", *source[: 2 if base.secret else 0], spec + "}", cwd=there.parent)[0] == 0
    got = []
    for image in (here, there):
        words = source_arguments(image, base.secret)
        run_img("convert", "-O", "raw", *words, tmp_path / "got", cwd=image.parent)
        got.append((tmp_path / "got").read_bytes())
        plain = ["-f", "qcow2", image.name] if not base.secret else words
        assert qemu("check", *plain, cwd=image.parent)[0] == 0
    assert got[0] == got[1]


ERRORS: tuple[list[str], ...] = (
    [],
    ["top.qcow2", "base.qcow2"],
    ["missing"],
    ["base.qcow2"],
    ["-f", "raw", "top.qcow2"],
    ["-f", "bogus", "top.qcow2"],
    ["-b", "zz", "top.qcow2"],
    ["-b", "top.qcow2", "top.qcow2"],
    ["-b", "../start/nothing", "top.qcow2"],
    ["-r", "x", "top.qcow2"],
    ["-r", "-1", "top.qcow2"],
    ["-t", "bogus", "top.qcow2"],
    ["--bogus", "top.qcow2"],
)


@pytest.mark.parametrize("words", ERRORS, ids=lambda words: " ".join(words)[:60])
def test_wrong_usage_is_exit_1_and_changes_nothing(
    tmp_path: Path, words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    overlay(tmp_path, "top.qcow2", based(tmp_path, "qcow2"), "cluster_size=64k", MIB)
    monkeypatch.chdir(tmp_path)
    before = {each: each.read_bytes() for each in tmp_path.iterdir()}
    theirs, ours = qemu("commit", *words, cwd=tmp_path), qwb("commit", *words)
    assert (ours[:2], bool(ours[2])) == (theirs[:2], bool(theirs[2])) == ((1, ""), True)
    assert {each: each.read_bytes() for each in tmp_path.iterdir()} == before


def test_what_qemu_img_refuses_to_write_is_refused(tmp_path: Path) -> None:
    """A base in use, too old to grow over snapshots, raw by a guess that the guest would end; and one that is marked
    corrupt, which QEMU goes on writing to."""
    from workbench.storage.file import FileStorage
    from workbench.storage.locks import LockMode, acquire

    def case(name: str, kind: str, size: int = MIB) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        overlay(folder, "top.qcow2", based(folder, kind), "cluster_size=64k", size)
        return folder

    grown = case("grown", "v2", 2 * MIB)
    run_img("snapshot", "-c", "one", "base.qcow2", cwd=grown)
    corrupt = case("corrupt", "qcow2")
    with open(corrupt / "base.qcow2", "r+b") as file:
        file.seek(79)
        file.write(b"\2")
    guessed = case("guessed", "raw")
    run_img("rebase", "-u", "-b", "base.raw", "-F", "raw", "top.qcow2", cwd=guessed)
    with open(guessed / "top.qcow2", "r+b") as file:  # forget the format, as old tools did
        data = file.read(65536)
        at = data.index(b"\xe2\x79\x2a\xca")
        file.seek(at)
        file.write(b"\xaa\xbb\xcc\xdd")
    source = Path(case("inner", "qcow2"), "base.qcow2")
    run_io("-f", "qcow2", "-c", f"write -s {source} 0 64k", "top.qcow2", cwd=guessed)
    for folder in (grown, corrupt, guessed):
        before = (folder / "top.qcow2").read_bytes()
        assert qwb("commit", folder / "top.qcow2")[0] == 1, folder
        assert (folder / "top.qcow2").read_bytes() == before
        assert qemu("commit", "top.qcow2", cwd=folder)[0] == (0 if folder == corrupt else 1), folder
    used = case("used", "qcow2")
    with FileStorage.open(used / "base.qcow2") as held, acquire(held, LockMode.READ):
        assert both(used, used) == 1
