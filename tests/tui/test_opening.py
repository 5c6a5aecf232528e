"""Opening files: the gallery's name field and folders, the screen that says why not, pictures that refuse."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from textual.widgets import DirectoryTree, Input, OptionList, Static

from sample_images import sample_path
from workbench.errors import QwbError
from workbench.tui.app import Workbench, take_picture
from workbench.tui.paths import common_start, describe_file
from workbench.tui.screens.gallery import GalleryScreen
from workbench.tui.screens.problem import ProblemScreen
from workbench.tui.session import Trouble, load

from .conftest import Drive, browser, settle

Sample = Callable[[str], Path]


def _told(screen: GalleryScreen, ident: str) -> str:
    return str(screen.query_one(ident, Static).render())


async def test_tab_completes_a_name_and_enter_opens_it(
    drive: Drive, sample: Sample, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sample("plain")
    (tmp_path / "plans").mkdir()
    monkeypatch.chdir(tmp_path)
    async with drive(size=(80, 24)) as (app, pilot):
        screen = app.screen
        assert isinstance(screen, GalleryScreen)
        await pilot.press("slash", "p", "tab")
        await settle(app, pilot)
        assert screen.query_one("#path", Input).value == "pla"
        assert "plans/" in _told(screen, "#path-told") and "plain.qcow2" in _told(screen, "#path-told")
        await pilot.press("i", "tab")
        await settle(app, pilot)
        assert screen.query_one("#path", Input).value == "plain.qcow2"
        await pilot.press("enter")
        await settle(app, pilot)
        assert browser(app).session.title == "plain.qcow2"


async def test_a_name_that_leads_nowhere_is_said_to_in_place(
    drive: Drive, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    async with drive(size=(80, 24)) as (app, pilot):
        await pilot.press("slash", *"nothing", "enter")
        await settle(app, pilot)
        assert isinstance(app.screen, GalleryScreen)
        assert "no such file" in _told(app.screen, "#path-told")
        await pilot.press("x")
        await settle(app, pilot)
        assert not app.screen.query_one("#path-told").display


async def test_folders_can_be_left_upwards_and_files_are_described(
    drive: Drive, sample: Sample, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sample("plain")
    inner = tmp_path / "inner"
    inner.mkdir()
    monkeypatch.chdir(inner)
    async with drive(size=(80, 24)) as (app, pilot):
        screen = app.screen
        assert isinstance(screen, GalleryScreen)
        await pilot.press("f")
        await settle(app, pilot)
        await pilot.press("backspace")
        await settle(app, pilot)
        tree = screen.query_one(DirectoryTree)
        assert Path(tree.path) == tmp_path and tree.display
        for _ in range(20):
            await pilot.pause(0.05)
            if len(tree.root.children) >= 2:
                break
        await pilot.press("down", "down")
        await settle(app, pilot)
        assert "a qcow2 image" in _told(screen, "#gallery-text")
        await pilot.press("escape")
        await settle(app, pilot)
        assert screen.query_one(OptionList).display and not tree.display


async def test_a_sample_opens_as_a_copy_that_is_gone_afterwards_and_never_listed(drive: Drive) -> None:
    async with drive(size=(80, 24)) as (app, pilot):
        await pilot.press("enter")
        await settle(app, pilot)
        assert app.front is not None
        copy = Path(app.front.session.path)
        assert copy.read_bytes() == sample_path("plain").read_bytes() and copy != sample_path("plain")
        app.do_close_tab()
        await settle(app, pilot)
        await pilot.press("enter")
        await settle(app, pilot)
        assert Path(app.front.session.path) == copy, "what was done to it is still there in this run"
        app.do_quit()
        await pilot.pause()
        assert not copy.exists() and str(copy) not in app.memory.recent and str(copy) not in app.memory.places


async def test_a_sample_that_cannot_be_copied_is_told(drive: Drive, monkeypatch: pytest.MonkeyPatch) -> None:
    async with drive(size=(80, 24)) as (app, pilot):

        def full(_name: str) -> Path:
            raise OSError(28, "No space left on device", "/tmp/qwb")

        monkeypatch.setattr(app.practice, "copy_of", full)
        await pilot.press("enter")
        await settle(app, pilot)
        assert isinstance(app.screen, GalleryScreen)
        assert any("No space left" in each.message for each in app._notifications)


async def test_a_recent_file_is_one_line_that_begins_with_its_name(drive: Drive, tmp_path: Path) -> None:
    folder = tmp_path / ("a-long-folder-name-" * 5)
    folder.mkdir()
    (folder / "disk.qcow2").write_bytes(b"")
    async with drive(size=(80, 24)) as (app, pilot):
        app.memory.remember(str(folder / "disk.qcow2"))
        app.do_open()
        await settle(app, pilot)
        listed = app.screen.query_one("#gallery-list", OptionList)
        lines = ["".join(part.text for part in listed.render_line(row)).rstrip() for row in range(3)]
        assert lines[0].strip() == "Recent"
        assert lines[1].startswith("  disk.qcow2  /") and lines[1].endswith("…")
        assert lines[2].strip() == "Healthy samples"


async def test_narrow_gallery_describes_too(drive: Drive) -> None:
    async with drive(size=(60, 20)) as (app, pilot):
        await settle(app, pilot)
        shown = app.screen.query_one("#gallery-text")
        assert shown.display and shown.size.height >= 5 and "A plain image" in _told(app.screen, "#gallery-text")


async def test_escape_leaves_the_problem_for_the_gallery_or_the_image_underneath(
    drive: Drive, sample: Sample, tmp_path: Path
) -> None:
    empty = tmp_path / "empty.qcow2"
    empty.write_bytes(b"")
    async with drive(empty) as (app, pilot):
        assert isinstance(app.screen, ProblemScreen)
        await pilot.press("escape")
        await settle(app, pilot)
        assert isinstance(app.screen, GalleryScreen)
    async with drive(sample("plain")) as (app, pilot):
        app.open_image(str(empty))
        await settle(app, pilot)
        assert isinstance(app.screen, ProblemScreen)
        assert ("leave", "Back to plain.qcow2") in app.screen.ways()
        await pilot.press("escape")
        await settle(app, pilot)
        assert browser(app) is app.screen


def test_no_permission_says_whose_file_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "secret.qcow2"
    path.write_bytes(bytes(512))
    path.chmod(0o640)

    def refuse(*_args: object, **_more: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("workbench.tui.session.FileStorage.open", refuse)
    found = load(path)
    assert found.trouble is Trouble.PERMISSION
    assert "mode -rw-r-----" in found.what and "you are" in found.what and "belongs to" in found.what


@pytest.mark.parametrize("more", [{"at": "zzz"}, {"at": "g:1T"}, {"images": ("gone.qcow2",)}, {"images": (".",)}])
def test_a_picture_of_what_is_not_there_is_refused_and_not_written(
    make_app: Callable[..., Workbench], sample: Sample, tmp_path: Path, more: dict[str, object]
) -> None:
    images = [str(tmp_path / each) for each in more.pop("images", ())] or [sample("plain")]  # type: ignore[attr-defined]
    target = tmp_path / "out.svg"
    with pytest.raises(QwbError):
        take_picture(make_app(*images, remember=False, **more), target, (80, 24))
    assert not target.exists()


def test_files_are_described_by_their_first_bytes(tmp_path: Path) -> None:
    for name, content, words in (
        ("a", b"KDMV" + bytes(600), "a VMDK image"),
        ("b", bytes(1024), "an area of zeros"),
        ("c", b"", "An empty file"),
        ("d", b"hello" * 100, "no format that is known"),
    ):
        (tmp_path / name).write_bytes(content)
        assert words in describe_file(str(tmp_path / name))
    assert describe_file(str(tmp_path)).startswith("A folder")
    assert describe_file(str(tmp_path / "none")) == "There is no such file."
    os.mkfifo(tmp_path / "pipe")
    assert describe_file(str(tmp_path / "pipe")) == "Not a plain file."


def test_the_common_start_of_names() -> None:
    assert common_start(["disk1", "disk22", "disk2"]) == "disk"
    assert common_start(["one"]) == "one" and common_start(["a", "b"]) == ""
