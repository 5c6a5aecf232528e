"""Targets are proven to be other files than everything that is read, before any of them is touched."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner

from workbench.cli.main import cli
from workbench.engine.create import CreateOptions, create_file
from workbench.engine.image import Image
from workbench.engine.naming import dependents, named_files
from workbench.errors import QwbError


def qwb(*words: object) -> tuple[int, str]:
    done = CliRunner().invoke(cli, [str(word) for word in words])
    return done.exit_code, done.output


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """base.qcow2 with data, mid.qcow2 and top.qcow2 over it, and more names of each."""
    monkeypatch.chdir(tmp_path)
    create_file("base.qcow2", CreateOptions(1 << 20))
    with Image.open("base.qcow2", writable=True) as image:
        image.write(0, b"precious" * 512)
    create_file("mid.qcow2", CreateOptions(1 << 20, backing_file="base.qcow2", backing_format="qcow2"))
    create_file("top.qcow2", CreateOptions(1 << 20, backing_file="mid.qcow2", backing_format="qcow2"))
    for name in ("base", "mid"):
        os.symlink(f"{name}.qcow2", f"{name}-link")
        os.link(f"{name}.qcow2", f"{name}-hard")
    (tmp_path / "sub").mkdir()
    os.symlink("../base.qcow2", "sub/far")
    return tmp_path


def contents(folder: Path) -> dict[str, bytes]:
    return {each.name: each.read_bytes() for each in sorted(folder.rglob("*")) if each.is_file()}


_NAMES = ("base.qcow2", "./base.qcow2", "base-link", "base-hard", "sub/../base.qcow2", "sub/far")


@pytest.mark.parametrize("name", _NAMES)
@pytest.mark.parametrize("below", ["base.qcow2", "mid.qcow2", "top.qcow2"])
@pytest.mark.parametrize("more", [(), ("-u",)])
def test_an_overlay_is_never_made_over_a_file_of_its_own_chain(
    folder: Path, name: str, below: str, more: tuple[str, ...]
) -> None:
    before = contents(folder)
    code, out = qwb("create", *more, "-b", folder / below, "-F", "qcow2", name, "1M")
    assert code == 1 and "is read by this very create" in out
    assert contents(folder) == before


@pytest.mark.parametrize("name", _NAMES)
def test_a_data_file_is_never_made_over_what_is_read_or_written(folder: Path, name: str) -> None:
    before = contents(folder)
    assert qwb("create", "-b", "mid.qcow2", "-F", "qcow2", "-o", f"data_file={name}", "new.qcow2", "1M")[0] == 1
    code, out = qwb("create", "-o", f"data_file={name}", "base.qcow2", "1M")
    assert code == 1 and "written twice" in out
    for more in ("-c", "-q"):
        words = ["convert", "-O", "qcow2", "-o", f"data_file={name}", "top.qcow2", "new.qcow2"]
        if more == "-c":
            words[1:1] = ["-f", "qcow2"]
        assert qwb(*words)[0] == 1
    assert contents(folder) == before


def test_the_data_file_of_a_conversion_is_not_its_own_target(folder: Path) -> None:
    before = contents(folder)
    assert qwb("convert", "-O", "qcow2", "-o", "data_file=mid.qcow2", "base.qcow2", "mid-link")[0] == 1
    assert contents(folder) == before


@pytest.mark.parametrize("name", _NAMES)
@pytest.mark.parametrize("more", [("-O", "raw"), ("-O", "qcow2"), ("-O", "raw", "-n"), ("-O", "raw", "--no-backing")])
def test_a_conversion_never_writes_over_a_file_of_the_chain(folder: Path, name: str, more: tuple[str, ...]) -> None:
    before = contents(folder)
    code, out = qwb("convert", *more, "top.qcow2", name)
    assert code == 1 and "is read by this very conversion" in out
    assert contents(folder) == before


@pytest.mark.parametrize(
    "words",
    [
        ("-b", "missing.qcow2", "-F", "qcow2"),
        ("-b", "text", "-F", "qcow2"),
        ("-b", "broken.qcow2", "-F", "qcow2"),
        ("-b", "nbd://localhost/x", "-F", "raw"),
        ("-b", "loop.qcow2", "-F", "qcow2"),
        ("-b", "x" * 1100, "-u", "-F", "raw"),
        ("-o", "cluster_size=512", "-u", "-b", "x" * 600, "-F", "raw"),
        ("-o", "cluster_size=512", "--json", "1P"),
        ("-o", "data_file=held", "-q"),
        ("-o", "cluster_size=3k"),
    ],
)
def test_a_create_that_must_fail_leaves_what_was_there(folder: Path, words: tuple[str, ...]) -> None:
    (folder / "text").write_text("no image")
    create_file("gone.qcow2", CreateOptions(1 << 20))
    create_file("broken.qcow2", CreateOptions(1 << 20, backing_file="gone.qcow2", backing_format="qcow2"))
    create_file("loop.qcow2", CreateOptions(1 << 20, backing_file="gone.qcow2", backing_format="qcow2"))
    os.unlink("gone.qcow2")
    os.symlink("loop.qcow2", "gone.qcow2")  # a chain that comes back to itself
    (folder / "held").write_bytes(b"held by somebody")
    from workbench.storage.file import FileStorage
    from workbench.storage.locks import LockMode, acquire

    before = contents(folder)
    with FileStorage.open("held") as other, acquire(other, LockMode.READ):
        *options, last = words
        size = last if last == "1P" else "1M"
        options = options if last == "1P" else [*words]
        assert qwb("create", *options, "mid.qcow2", size)[0] == 1
        assert qwb("create", *options, "new.qcow2", size)[0] == 1
    assert contents(folder) == before


def test_a_held_image_is_not_touched_nor_is_the_data_file_named_with_it(folder: Path) -> None:
    (folder / "data").write_bytes(b"data of another image")
    before = contents(folder)
    with Image.open("mid.qcow2"):
        assert qwb("create", "-o", "data_file=data", "mid.qcow2", "1M")[0] == 1
    assert contents(folder) == before


def test_a_create_that_fails_late_removes_only_what_it_made(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from workbench.engine import create as module

    def fail(*_: object, **__: object) -> None:
        raise OSError("the disk went away")

    monkeypatch.setattr(module, "finish", fail)
    (folder / "data").write_bytes(b"x")
    for image, data in (("mid.qcow2", "data"), ("mid.qcow2", "new"), ("new.qcow2", "data"), ("new.qcow2", "new")):
        with pytest.raises(OSError, match="went away"):
            create_file(image, CreateOptions(1 << 20, data_file=data))
        assert os.path.exists("mid.qcow2") and os.path.exists("data")
        assert not os.path.exists("new.qcow2") and not os.path.exists("new")


def test_space_that_is_to_be_taken_at_once_is_looked_for_first(folder: Path) -> None:
    before = contents(folder)
    code, out = qwb("create", "-o", "preallocation=falloc", "mid.qcow2", "900T")
    assert code == 1 and "are missing" in out
    assert contents(folder) == before


def test_a_conversion_over_a_private_file_stays_private_all_the_time(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from workbench.engine import convert_qcow2 as module

    (folder / "private").write_bytes(b"x")
    (folder / "private").chmod(0o600)
    seen, real = [], module.create_file

    def watch(path: str, *more: object, **options: object) -> None:
        seen.append(os.stat(path).st_mode & 0o777)
        real(path, *more, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "create_file", watch)
    assert qwb("convert", "-O", "qcow2", "top.qcow2", "private")[0] == 0
    assert seen == [0o600] and os.stat("private").st_mode & 0o777 == 0o600


def test_resize_refuses_a_data_file_that_is_also_read(folder: Path) -> None:
    with Image.open("base.qcow2") as image:
        disk = image.read(0, 1 << 20)
    (folder / "base.raw").write_bytes(disk)
    create_file("over.qcow2", CreateOptions(1 << 20, backing_file="base.raw", backing_format="raw", data_file="other"))
    os.unlink("other")
    os.link("base.raw", "other")
    before = contents(folder)
    for more in ((), ("--no-backing",)):
        assert qwb("resize", "--shrink", *more, "over.qcow2", "512k")[0] == 1
    assert contents(folder) == before


def test_all_files_that_an_image_leads_to_are_named(folder: Path) -> None:
    assert [each.name for each in named_files("top.qcow2")] == ["top.qcow2", "mid.qcow2", "base.qcow2"]
    os.unlink("base.qcow2")
    os.symlink("top.qcow2", "base.qcow2")
    assert [each.name for each in named_files("top.qcow2")] == ["top.qcow2", "mid.qcow2", "base.qcow2"]


def test_neighbours_that_stand_on_an_image_are_found_by_their_headers(folder: Path) -> None:
    found, complete = dependents("sub/far")
    assert complete and [each.name for each in found] == ["mid-hard", "mid-link", "mid.qcow2"]
    assert dependents("top.qcow2") == ([], True)
    assert dependents("base.qcow2", limit=2)[1] is False


def test_a_loop_device_over_an_input_is_that_input(folder: Path, loop: Callable[[Path], Path]) -> None:
    before = (folder / "base.qcow2").read_bytes()
    device = loop(folder / "base.qcow2")
    code, out = qwb("convert", "-O", "raw", "-n", "top.qcow2", device)
    assert code == 1 and "is read by this very conversion" in out
    over = CreateOptions(1 << 20, backing_file=str(folder / "mid.qcow2"), backing_format="qcow2")
    with pytest.raises(QwbError, match="read by this very create"):
        create_file(str(device), over)
    subprocess.run(["sync", "-f", folder], check=True)
    assert (folder / "base.qcow2").read_bytes() == before
