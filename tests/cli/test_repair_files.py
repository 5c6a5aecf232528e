"""`qwb repair` and `qwb undo` among files: copies, interrupted originals, those who stand on an image, sizes, devices."""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from sample_images.qemu import check as qemu_check
from tests.cli.conftest import Run
from tests.conftest import BaseImages
from workbench.repair.casefile import State
from workbench.repair.cases import case_path, open_case
from workbench.repair.session import Guide
from workbench.storage.file import FileStorage

pytestmark = pytest.mark.oracle


@pytest.fixture(autouse=True)
def _state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


@pytest.fixture
def image(base_images: BaseImages, tmp_path: Path) -> Path:
    return base_images.copy(base_images.damaged("refcount-zero-data"), tmp_path / "work")


@pytest.fixture
def clean(qemu_img: str, tmp_path: Path) -> Path:
    path = tmp_path / "clean.qcow2"
    subprocess.run([qemu_img, "create", "-q", "-f", "qcow2", path, "4M"], check=True)
    return path


def cut_off(image: Path, wrote: int) -> bytes:
    """Interrupt a repair after `wrote` of its edits; the image as it is then."""
    with Guide(image) as guide, open_case(image) as casefile:
        change = guide.plan().change()
        session = casefile.begin(
            title="t", image=str(image), size_before=change.size_before, size_after=change.size_after,
            fingerprint=change.fingerprint, plan={}, edits=change.edits(),
        )  # fmt: skip
        casefile.move(session.id, State.WRITING)
        edits = list(casefile.edits(session.id))
    with FileStorage.open(image, writable=True) as storage:
        for edit in edits[:wrote]:
            storage.write(edit.offset, edit.new)
    return image.read_bytes()


# -- copies


@pytest.mark.parametrize("wrote", [0, 1, 100])
@pytest.mark.parametrize("complete", [False, True])
def test_a_copy_of_an_interrupted_image_leaves_the_original_alone(
    qwb: Run, image: Path, tmp_path: Path, wrote: int, complete: bool
) -> None:
    plain = tmp_path / "plain.qcow2"
    assert qwb("repair", image, "--all", "--yes", "--to", plain).exit_code == 0
    left, new = cut_off(image, wrote), image.with_name("new.qcow2")
    before, case = image.stat(), case_path(image).read_bytes()
    done = qwb("repair", image, "--all", "--yes", "--to", new, *(["--complete"] if complete else []))
    assert done.exit_code == 0 and "was interrupted" in done.stderr and "stays as it is" in done.stderr
    after = image.stat()
    assert image.read_bytes() == left and (before.st_mtime_ns, before.st_size) == (after.st_mtime_ns, after.st_size)
    assert case_path(image).read_bytes() == case
    assert new.read_bytes() == plain.read_bytes()
    assert qwb("repair", image, "--recover").exit_code == 0


def test_a_copy_is_not_made_from_an_interrupted_image_that_others_wrote_to(qwb: Run, image: Path) -> None:
    cut_off(image, 1)
    with open(image, "r+b") as file:
        file.seek(0, os.SEEK_END)
        file.write(bytes(100))
    left = image.read_bytes()
    done = qwb("repair", image, "--all", "--yes", "--to", image.with_name("new.qcow2"))
    assert done.exit_code == 1 and not image.with_name("new.qcow2").exists() and image.read_bytes() == left


def test_a_clean_image_is_copied_too(qwb: Run, clean: Path) -> None:
    new = clean.with_name("new.qcow2")
    assert qwb("repair", clean, "--all", "--dry-run", "--to", new).exit_code == 0 and not new.exists()
    found = json.loads(qwb("repair", clean, "--all", "--yes", "--json", "--to", new).stdout)
    assert found["filename"] == str(new) and new.read_bytes() == clean.read_bytes()
    clean.chmod(0o600)
    other = clean.with_name("other.qcow2")
    assert "wrote a copy" in qwb("repair", clean, "--all", "--to", other).stdout  # nothing to confirm
    assert stat.S_IMODE(other.stat().st_mode) == 0o600


@pytest.mark.parametrize("which", ["image", "clean"])
def test_a_name_that_is_taken_is_refused_before_anything_else(
    qwb: Run, which: str, request: pytest.FixtureRequest
) -> None:
    path: Path = request.getfixturevalue(which)
    link = path.with_name("link")
    link.symlink_to("elsewhere")
    done = qwb("repair", path, "--all", "--yes", "--to", link)
    assert done.exit_code == 1 and "exists already" in done.stderr and done.stdout == ""
    assert link.is_symlink() and not link.exists()


def test_a_saved_plan_goes_to_the_copy_too(qwb: Run, image: Path, tmp_path: Path) -> None:
    before, plan, new = image.read_bytes(), tmp_path / "plan.json", image.with_name("new.qcow2")
    plan.write_text(qwb("repair", image, "--all", "--dry-run", "--json").stdout)
    assert qwb("repair", image, "--apply-plan", plan, "--yes", "--to", new).exit_code == 0
    assert image.read_bytes() == before and qemu_check(new).code == 0


def test_orphans_are_copied_out_as_private_as_the_image(qwb: Run, base_images: BaseImages, tmp_path: Path) -> None:
    image = base_images.copy(base_images.damaged("l2-zeroed"), tmp_path / "lost")
    image.chmod(0o600)
    assert qwb("repair", image, "--export-orphans", tmp_path / "out").exit_code == 0
    found = [each for each in (tmp_path / "out").iterdir() if each.suffix == ".raw"]
    assert found and all(stat.S_IMODE(each.stat().st_mode) == 0o600 for each in found)


# -- undo


def test_a_forced_undo_after_guest_writes_does_not_claim_what_is_not_true(qwb: Run, image: Path, qemu_io: str) -> None:
    assert qwb("repair", image, "--all", "--yes").exit_code == 0
    subprocess.run([qemu_io, "-f", "qcow2", "-c", "write -P 9 0 512k", image], check=True, stdout=subprocess.DEVNULL)
    written = image.read_bytes()
    refused = qwb("undo", image, "--yes")
    assert refused.exit_code == 1 and "has changed since" in refused.stderr and image.read_bytes() == written
    forced = qwb("undo", image, "--yes", "--force")
    assert forced.exit_code == 0 and "is undone" in forced.stdout and "NOT what it was" in forced.stdout
    assert "is what it was before" not in forced.output


def test_an_undo_says_in_json_whether_the_image_is_as_before(qwb: Run, image: Path) -> None:
    before = image.read_bytes()
    qwb("repair", image, "--all", "--yes")
    found = json.loads(qwb("undo", image, "--yes", "--json").stdout)
    assert found["state"] == "undone" and found["as-before"] is True and image.read_bytes() == before


def test_the_list_shows_what_each_session_and_the_case_file_take(qwb: Run, image: Path) -> None:
    assert "no repairs" in qwb("undo", image, "--list").stdout
    assert json.loads(qwb("undo", image, "--list", "--json").stdout) == []
    qwb("repair", image, "--all", "--yes")
    size = case_path(image).stat().st_size
    shown = qwb("undo", image, "--list").stdout
    assert "done" in shown and f"({size} bytes)" in shown and shown.count("KiB") >= 2
    (row,) = json.loads(qwb("undo", image, "--list", "--json").stdout)
    assert 0 < row["bytes"] < row["case-file-bytes"] == size


def test_pruning_drops_what_was_taken_back_and_asks_first(qwb: Run, image: Path) -> None:
    for _ in range(2):
        qwb("repair", image, "--all", "--yes")
        qwb("undo", image, "--yes")
    qwb("repair", image, "--all", "--yes")
    repaired = image.read_bytes()
    unsure = qwb("undo", image, "--prune")
    assert unsure.exit_code == 1 and "--yes" in unsure.stderr
    assert len(json.loads(qwb("undo", image, "--list", "--json").stdout)) == 3
    assert json.loads(qwb("undo", image, "--prune", "--yes", "--json").stdout)["dropped"] == [1, 2]
    assert "nothing to drop" in qwb("undo", image, "--prune").stdout
    assert image.read_bytes() == repaired
    assert qwb("undo", image, "--yes").exit_code == 0


# -- found by every name


@pytest.mark.parametrize("way", ["symlink", "hard link"])
def test_other_names_know_of_an_interrupted_repair(qwb: Run, image: Path, tmp_path: Path, way: str) -> None:
    before = image.read_bytes()
    other = tmp_path / "other" / "disk.qcow2"
    other.parent.mkdir()
    if way == "symlink":
        other.symlink_to(image)
    else:
        os.link(image, other)
    other_image = tmp_path / "other.qcow2"
    assert qwb("create", other_image, "1M").exit_code == 0
    for used, asked in ((image, other), (other, image)):
        cut_off(used, 1)
        assert "was interrupted" in qwb("info", asked).stderr
        for words in (
            ["resize", asked, "+1M"],
            ["io", "-c", "write 0 4k", asked],
            ["snapshot", "-c", "x", asked],
            ["create", asked, "1M"],
            ["convert", "-O", "qcow2", other_image, asked],
        ):
            refused = qwb(*words)
            assert refused.exit_code == 1 and "--recover" in refused.stderr
        assert "rolled back" in qwb("repair", asked, "--recover").stderr
        assert image.read_bytes() == before


# -- those who stand on it


def test_a_repair_says_who_has_the_image_as_backing_file(qwb: Run, image: Path, qemu_img: str) -> None:
    os.link(image, image.with_name("base-too"))
    for name, below in (("over.qcow2", image.name), ("far.qcow2", str(image.resolve())), ("hard.qcow2", "base-too")):
        make = [qemu_img, "create", "-q", "-u", "-f", "qcow2", "-b", below, "-F", "qcow2", image.with_name(name), "1M"]
        subprocess.run(make, check=True)
    image.with_name("text.qcow2").write_text("no image")
    os.mkfifo(image.with_name("fifo"))
    for more in (["--dry-run"], ["--yes"]):
        done = qwb("repair", image, "--all", *more)
        assert "is the backing file of" in done.stderr
        for name in ("over.qcow2", "far.qcow2", "hard.qcow2"):
            assert name in done.stderr
    assert "backing file of" not in qwb("repair", image.with_name("over.qcow2"), "--all", "--dry-run").stderr


# -- devices


def on_device(image: Path, room: int, loop: Callable[[Path], Path]) -> Path:
    """A device that holds the image and `room` bytes more."""
    disk = image.with_name("disk.raw")
    shutil.copy(image, disk)
    os.truncate(disk, -(-image.stat().st_size // 65536) * 65536 + room)
    return loop(disk)


def test_a_device_is_repaired_and_undone_with_its_case_file_in_the_state_directory(
    qwb: Run, base_images: BaseImages, tmp_path: Path, loop: Callable[[Path], Path]
) -> None:
    image = base_images.copy(base_images.damaged("refcount-zero-data"), tmp_path / "work")
    device = on_device(image, 0, loop)
    before, here = device.read_bytes(), set(os.listdir("/dev"))
    done = qwb("repair", device, "--all", "--yes")
    assert done.exit_code in (0, 3), done.output
    assert str(tmp_path / "state") in done.stdout
    assert {each for each in set(os.listdir("/dev")) - here if "qwb" in each} == set()
    assert device.read_bytes() != before
    shown = qwb("undo", device, "--yes")
    assert shown.exit_code == 0 and "is what it was before" not in shown.output
    assert device.read_bytes() == before


def test_a_plan_that_a_device_has_no_room_for_is_refused_by_the_dry_run_already(
    qwb: Run, clean: Path, loop: Callable[[Path], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    from workbench.repair import session as module

    device = on_device(clean, 0, loop)
    before, real = device.read_bytes(), module.make_plan

    def needing_more(*args: object, **more: object) -> object:
        plan = real(*args, **more)  # type: ignore[arg-type]
        plan.overlay.write(plan.overlay.size(), b"x" * 65536)
        return plan

    monkeypatch.setattr(module, "make_plan", needing_more)
    for words in (["--dry-run"], ["--yes"]):
        done = qwb("repair", device, "--all", *words)
        assert done.exit_code == 1 and "65536 bytes are missing" in done.stderr and "extend the device" in done.stderr
    assert device.read_bytes() == before
    copy = clean.with_name("copy.qcow2")  # a file has the room
    qwb("repair", device, "--all", "--yes", "--to", copy)
    assert copy.stat().st_size == len(before) + 65536 and stat.S_IMODE(copy.stat().st_mode) == 0o600
