"""`qwb rebase` and `qwb commit` on the command line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result

from sample_images import copy_out
from workbench.engine.create import CreateOptions, create_file
from workbench.engine.image import Image
from workbench.engine.snapshots import create_snapshot

C = 1 << 16
Run = Callable[..., Result]


def image(path: Path, size: int, *writes: tuple[int, bytes], below: str | None = None) -> Path:
    form = "qcow2" if below else None
    create_file(str(path), CreateOptions(size, backing_file=below, backing_format=form))
    with Image.open(path, writable=True) as disk:
        for offset, data in writes:
            disk.write(offset, data)
    return path


def content(path: Path) -> bytes:
    with Image.open(path) as disk:
        return disk.read(0, disk.size)


def test_rebase_tells_in_json_what_was_taken_over(qwb: Run, tmp_path: Path) -> None:
    image(tmp_path / "old.qcow2", 4 * C, (0, b"o" * C), (2 * C, b"s" * C))
    image(tmp_path / "new.qcow2", 8 * C, (2 * C, b"s" * C), (3 * C, b"n" * C))
    top = image(tmp_path / "top.qcow2", 4 * C, below="old.qcow2")
    before = content(top)
    result = qwb("rebase", "--json", "-b", "new.qcow2", "-F", "qcow2", top)
    names = {"backing-filename": "new.qcow2", "backing-filename-format": "qcow2"}
    expected = {"schema": 1, "filename": str(top), "format": "qcow2", **names, "mode": "safe"}
    assert json.loads(result.stdout) == {**expected, "compared": 3 * C, "copied": C, "zeroed": C}
    assert content(top) == before
    said = json.loads(qwb("rebase", "--json", "-u", "-b", "old.qcow2", "-F", "qcow2", top).stdout)
    assert said == {**expected, "backing-filename": "old.qcow2", "mode": "unsafe"}
    assert "backing-filename" not in json.loads(qwb("rebase", "--json", "-b", "", top).stdout)
    with Image.open(top) as disk:
        assert disk.meta.backing_name is None


def test_rebase_never_lets_an_image_lie_under_itself_by_any_name(qwb: Run, tmp_path: Path) -> None:
    top = image(tmp_path / "top.qcow2", C, below=image(tmp_path / "base.qcow2", C).name)
    image(tmp_path / "over.qcow2", C, below="top.qcow2")
    (tmp_path / "soft.qcow2").symlink_to("top.qcow2")
    (tmp_path / "hard.qcow2").hardlink_to(top)
    before = top.read_bytes()
    for name in ("top.qcow2", "./top.qcow2", "over.qcow2", "soft.qcow2", "hard.qcow2"):
        for more in ((), ("-u",)):
            result = qwb("rebase", *more, "-b", name, "-F", "qcow2", top)
            assert result.exit_code == 1 and "is read by this very rebase" in result.stderr, name
    assert top.read_bytes() == before


def test_commit_tells_in_json_what_it_wrote(qwb: Run, tmp_path: Path) -> None:
    base = image(tmp_path / "base.qcow2", 2 * C, (0, b"b" * C))
    top = image(tmp_path / "top.qcow2", 4 * C, (C, b"t" * C), below="base.qcow2")
    with Image.open(top, writable=True) as disk:
        disk.write_zeroes(0, C)
    before = content(top)
    said = json.loads(qwb("commit", "--json", "-d", top).stdout)
    below = {"filename": str(base), "format": "qcow2", "virtual-size": 4 * C, "previous-size": 2 * C}
    expected = {"schema": 1, "filename": str(top), "base": below, "copied": C, "zeroed": C, "emptied": False}
    assert said == expected and content(base) == before
    said = json.loads(qwb("commit", "--json", top).stdout)
    assert said == {**expected, "base": {**below, "previous-size": 4 * C}, "emptied": True}
    assert content(top) == before


def test_who_else_sees_the_change_is_told(qwb: Run, tmp_path: Path) -> None:
    base = image(tmp_path / "base.qcow2", C, (0, b"b" * C))
    top = image(tmp_path / "top.qcow2", C, (0, b"t" * C), below="base.qcow2")
    assert qwb("commit", "-d", top).stderr == ""
    other = image(tmp_path / "other.qcow2", C, below="base.qcow2")
    with Image.open(top, writable=True) as disk:
        create_snapshot(disk, "one")
    said = qwb("commit", top)
    assert said.exit_code == 0 and said.stdout == "Image committed.\n"
    assert str(other) in said.stderr and str(base) in said.stderr and "1 internal snapshots" in said.stderr
    assert qwb("commit", "-q", top).output == ""
    assert "1 internal snapshots" in qwb("rebase", "-b", "", top).stderr


def test_encrypted_images_need_their_passphrase_before_anything_is_written(qwb: Run, tmp_path: Path) -> None:
    luks = copy_out("luks", tmp_path)
    (tmp_path / "secret").write_text("open sesame\n")
    with Image.open(luks, secret=b"open sesame") as disk:
        size, before = disk.size, disk.read(0, disk.size)
    image(tmp_path / "new.qcow2", size, (0, b"n" * 4096))
    held = luks.read_bytes()
    words = ("rebase", "-b", "new.qcow2", "-F", "qcow2", luks)
    assert qwb(*words).exit_code == 1 and luks.read_bytes() == held
    assert qwb(*words, "--secret-file", tmp_path / "secret").exit_code == 0
    with Image.open(luks, secret=b"open sesame") as disk:
        assert disk.read(0, size) == before and disk.meta.backing_name == "new.qcow2"
        disk.unlock()
    for more, code in (((), 1), (("--secret-file", tmp_path / "secret"), 0)):
        assert qwb("commit", *more, luks).exit_code == code
        assert (content(tmp_path / "new.qcow2") == before) == (code == 0)


def test_an_interrupted_repair_of_the_base_is_ended_first(
    qwb: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from workbench.cli import commit
    from workbench.errors import StorageError

    base = image(tmp_path / "base.qcow2", C)
    top = image(tmp_path / "top.qcow2", C, (0, b"t" * C), below="base.qcow2")
    before = base.read_bytes()

    def refuse(path: Path, *, writable: bool = False) -> None:
        if writable and path.name == "base.qcow2":
            raise StorageError("the repair was interrupted", path=str(path))

    monkeypatch.setattr(commit, "mind_interrupted", refuse)
    assert qwb("commit", top).exit_code == 1 and base.read_bytes() == before


def test_image_options_are_refused_with_a_word(qwb: Run, tmp_path: Path) -> None:
    for name in ("rebase", "commit"):
        for words in (["--image-opts"], ["--object", "secret,id=a,data=b"]):
            result = qwb(name, *words, tmp_path / "a")
            assert result.exit_code != 0 and "--secret-file" in result.stderr
