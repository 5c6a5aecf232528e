"""`qwb compare` against `qemu-img compare`: exit code and text, over pairs of disks stored in every way."""

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
_MET = ("l1-", "l2-", "compressed-", "subcluster-", "truncated-", "data-file-", "data-over-l2", "size-")
DAMAGES = [name for name in RECIPES if name.startswith(_MET) and name != "truncated-snapshots"]
"""Damage that a reader meets: in tables, in compressed data, in sizes. (Snapshots cut off keep us from opening.)"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, qemu_img: str) -> Path:
    path = tmp_path_factory.mktemp("disks")
    build(path)
    os.sync()  # block status looks at what the file system has placed
    return path


def form(name: str) -> str:
    return name.rpartition(".")[2]


@pytest.mark.parametrize("options", [(), ("-s",)], ids=["plain", "strict"])
def test_every_pair_of_disks_is_judged_as_qemu_img_judges_it(
    folder: Path, options: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    names = sorted(each.name for each in folder.iterdir())
    assert len(names) > 30
    wrong, verdicts = [], set()
    for one, two in itertools.combinations_with_replacement(names, 2):
        words = ("compare", *options, "-f", form(one), "-F", form(two), one, two)
        theirs, ours = qemu(*words, cwd=folder), qwb(*words)
        verdicts.add(theirs[1].partition(" at ")[0])
        if ours != theirs:
            wrong.append((one, two, theirs, ours))
    assert not wrong
    assert len(verdicts) >= 3  # the disks do differ in more than one way


def test_the_order_of_the_disks_does_not_matter_to_the_verdict(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    for one, two in [
        ("data.raw", "longer-data.raw"),
        ("blank.qcow2", "zeroed.qcow2"),
        ("odd.raw", "data.raw"),
        ("words.raw", "data.raw"),
    ]:
        for pair in ((one, two), (two, one)):
            for options in ((), ("-s",), ("-q",), ("-U",)):
                words = ("compare", *options, *pair)
                assert qwb(*words) == qemu(*words, cwd=folder), words


@pytest.mark.parametrize("name", list(BASES))
def test_every_base_image_equals_its_copy_and_strictly_itself(
    name: str, base_images: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, image = BASES[name], base_images.get(name)
    monkeypatch.chdir(image.parent)
    source = list(map(str, source_arguments(image, base.secret))) if base.secret else ["-f", "qcow2", str(image)]
    if int(json.loads(qwb("info", "--json", image)[1])["virtual-size"]) > 1 << 30:
        pytest.skip("reading it whole takes too long")
    secret: list[object] = []
    if base.secret:
        (tmp_path / "secret").write_text(base.secret)
        secret = ["--secret-file", tmp_path / "secret"]
    copy = tmp_path / "copy.raw"
    assert qemu("convert", "-O", "raw", *source, copy, cwd=image.parent)[0] == 0
    assert qwb("compare", *secret, "-f", "qcow2", "-F", "raw", image, copy) == (0, "Images are identical.\n", "")
    assert qwb("compare", "-s", *secret, image, image) == (0, "Images are identical.\n", "")
    with open(copy, "r+b") as file:
        file.seek(max(copy.stat().st_size // 2, 0))
        byte = file.read(1)
        if byte:
            file.seek(-1, os.SEEK_CUR)
            file.write(bytes([byte[0] ^ 0x40]))
    if byte:
        at = copy.stat().st_size // 2 // 512 * 512
        said = f"Content mismatch at offset {at}!\n"
        assert qwb("compare", *secret, "-F", "raw", image, copy) == (1, said, "")


@pytest.mark.parametrize(
    ("words", "code", "speaks"),
    [
        (["none.raw", "data.raw"], 2, True),
        (["data.raw", "none.raw"], 2, True),
        (["-f", "bogus", "data.raw", "data.raw"], 2, True),
        (["-F", "bogus", "data.raw", "data.raw"], 2, True),
        (["-f", "qcow2", "data.raw", "data.raw"], 2, True),
        (["-T", "bogus", "data.raw", "data.raw"], 2, True),
        (["-T", "unsafe", "data.raw", "data.qcow2"], 0, False),
        (["data.raw"], 1, True),
        (["data.raw", "data.raw", "data.raw"], 1, True),
        (["--bogus", "data.raw", "data.raw"], 1, True),
        (["-f", "raw", "data.qcow2", "data.raw"], 1, False),
        (["-q", "data.raw", "other.raw"], 1, False),
        (["-p", "data.raw", "other.raw"], 1, False),
        (["-p", "-q", "data.raw", "data.raw"], 0, False),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else str(value),
)
def test_errors_have_qemu_imgs_exit_codes(
    folder: Path, words: list[str], code: int, speaks: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """speaks: there is a line on stderr."""
    monkeypatch.chdir(folder)
    theirs, ours = qemu("compare", *words, cwd=folder), qwb("compare", *words)
    assert ours[:2] == theirs[:2]
    assert (ours[0], bool(ours[2]), bool(theirs[2])) == (code, speaks, speaks)


@pytest.mark.parametrize("name", DAMAGES)
def test_damage_ends_a_comparison_as_qemu_img_ends_it(name: str, base_images: Any, tmp_path: Path) -> None:
    image = base_images.copy(base_images.damaged(name), tmp_path)
    sound = base_images.get(RECIPES[name].base)
    (tmp_path / "blank.raw").touch()
    os.truncate(tmp_path / "blank.raw", json.loads(qwb("info", "--json", sound)[1])["virtual-size"])
    for other, kind in ((sound, "qcow2"), (tmp_path / "blank.raw", "raw")):
        words = ("compare", "-f", "qcow2", "-F", kind, image, other)
        theirs, ours = qemu(*words, cwd=tmp_path), qwb(*words)
        assert ours[:2] == theirs[:2], name
        assert bool(ours[2]) == (theirs[0] > 1)


def test_an_image_in_use_is_an_error_of_opening_unless_shared(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from workbench.storage.file import FileStorage
    from workbench.storage.locks import LockMode, acquire

    monkeypatch.chdir(folder)
    with FileStorage.open(folder / "data.qcow2", writable=True) as held, acquire(held, LockMode.WRITE):
        words = ("compare", "data.qcow2", "data.raw")
        assert (qwb(*words)[0], qemu(*words, cwd=folder)[0]) == (2, 2)
        shared = ("compare", "-U", "data.qcow2", "data.raw")
        assert qwb(*shared)[:2] == qemu(*shared, cwd=folder)[:2] == (0, "Images are identical.\n")
