"""Repaired copies: as private as the original, in nobody's place, and only where there is room."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from workbench.errors import StorageError
from workbench.repair import copying
from workbench.repair.copying import write_copy
from workbench.storage import space
from workbench.storage.file import FileStorage
from workbench.storage.overlay import Overlay


@pytest.fixture
def original(tmp_path: Path) -> Path:
    path = tmp_path / "original"
    path.write_bytes(os.urandom(300_000))
    return path


def copy(original: Path, target: Path, tail: bytes = b"repaired") -> bytes:
    with FileStorage.open(original) as base:
        view = Overlay(base)
        view.write(1000, b"new")
        view.write(base.size(), tail)
        wanted = view.read(0, view.size())
        write_copy(view, target, like=original)
    return wanted


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o644, 0o400])
def test_a_copy_has_the_originals_mode_whatever_the_umask(original: Path, mode: int) -> None:
    original.chmod(mode)
    before = os.umask(0)
    try:
        wanted = copy(original, original.with_name("new"))
    finally:
        os.umask(before)
    assert original.with_name("new").read_bytes() == wanted
    assert stat.S_IMODE(original.with_name("new").stat().st_mode) == mode
    assert sorted(os.listdir(original.parent)) == ["new", "original"]


def test_a_draft_is_never_open_to_others(original: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original.chmod(0o600)
    seen = []
    real = copying.copy_image

    def watch(source: FileStorage, target: FileStorage) -> None:
        seen.append(stat.S_IMODE(os.fstat(target.fileno()).st_mode))
        real(source, target)

    monkeypatch.setattr(copying, "copy_image", watch)
    monkeypatch.setattr(copying, "_cloned", lambda *_: False)
    copy(original, original.with_name("new"))
    assert seen == [0o600]


@pytest.mark.parametrize("kind", ["file", "dangling link", "link", "folder", "itself"])
def test_a_name_that_is_taken_is_refused_and_kept(original: Path, kind: str) -> None:
    target = original.with_name("new")
    if kind == "file":
        target.write_text("precious")
    elif kind == "dangling link":
        target.symlink_to("elsewhere")
    elif kind == "link":
        target.symlink_to(original)
    elif kind == "folder":
        target.mkdir()
    else:
        target = original
    names, before = sorted(os.listdir(original.parent)), original.read_bytes()
    with pytest.raises(StorageError, match="exists already"):
        copy(original, target)
    assert sorted(os.listdir(original.parent)) == names and original.read_bytes() == before


@pytest.mark.parametrize("links", [True, False])
def test_a_name_that_is_taken_meanwhile_is_kept(original: Path, monkeypatch: pytest.MonkeyPatch, links: bool) -> None:
    target = original.with_name("new")

    def slow(source: FileStorage, other: FileStorage) -> None:
        target.write_text("precious")

    def no_links(*_: object, **__: object) -> None:
        raise PermissionError(1, "no links here")

    monkeypatch.setattr(copying, "copy_image", slow)
    monkeypatch.setattr(copying, "_cloned", lambda *_: False)
    if not links:
        monkeypatch.setattr(os, "link", no_links)
    with pytest.raises(StorageError, match="exists already"):
        copy(original, target)
    assert target.read_text() == "precious" and sorted(os.listdir(original.parent)) == ["new", "original"]


def test_where_there_are_no_links_a_copy_is_made_all_the_same(original: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_links(*_: object, **__: object) -> None:
        raise PermissionError(1, "no links here")

    monkeypatch.setattr(os, "link", no_links)
    wanted = copy(original, original.with_name("new"))
    assert original.with_name("new").read_bytes() == wanted


@pytest.mark.parametrize("name", ["new.part", ".new.part", "new.partial", "new.tmp", ".new.partial"])
def test_files_with_names_like_drafts_are_left_alone(original: Path, name: str) -> None:
    original.with_name(name).write_text("three years of work")
    copy(original, original.with_name("new"))
    with pytest.raises(StorageError):
        copy(original, original.with_name("new"))
    assert original.with_name(name).read_text() == "three years of work"
    assert sorted(os.listdir(original.parent)) == sorted(["new", "original", name])


def test_missing_room_is_named_before_the_copy(original: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(copying, "_cloned", lambda *_: False)
    for module in (space, copying):
        monkeypatch.setattr(module, "free_bytes", lambda _: 200_000)
    monkeypatch.setattr(copying, "copy_image", lambda *_: pytest.fail("written"))
    with pytest.raises(StorageError, match=r"the copy \(\d+ bytes\): \d+ bytes .* are missing"):
        copy(original, original.with_name("new"))
    assert os.listdir(original.parent) == ["original"]


def test_a_copy_of_a_device_is_a_sparse_file_that_only_its_owner_reads(
    tmp_path: Path, loop: Callable[[Path], Path]
) -> None:
    file = tmp_path / "disk"
    file.write_bytes(b"x" * 65536 + bytes(8 << 20) + b"y" * 65536)
    wanted = copy(loop(file), tmp_path / "new", b"z" * 100_000)
    found = (tmp_path / "new").stat()
    assert (tmp_path / "new").read_bytes() == wanted
    assert stat.S_IMODE(found.st_mode) == 0o600 and found.st_blocks * 512 < 1 << 20
