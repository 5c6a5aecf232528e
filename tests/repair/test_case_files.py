"""Case files: private, found by every name, recovered when cut off, and never advised away."""

from __future__ import annotations

import os
import shutil
import sqlite3
import stat
import subprocess
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest

from tests.repair.cuts import change_of
from workbench.errors import StorageError
from workbench.repair.apply import apply
from workbench.repair.casefile import ByteEdit, CaseFile, State
from workbench.repair.cases import case_path, find_case, open_case, peek
from workbench.repair.places import new_place, remember
from workbench.repair.recovery import recover
from workbench.repair.undo import Truth, sessions, undo
from workbench.storage import space
from workbench.storage.identity import identity_of

OLD = bytes(20) + (16).to_bytes(4, "big") + bytes(range(232)) + bytes(range(256)) * 1023
NEW = OLD[:1000] + b"changed" + OLD[1007:200_000] + b"more" + OLD[200_004:] + b"appended" * 100


@pytest.fixture
def image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    path = tmp_path / "disk" / "image.qcow2"
    path.parent.mkdir()
    path.write_bytes(OLD)
    return path


def names_of(image: Path, tmp_path: Path) -> dict[str, Path]:
    """Other names of an image: links of both kinds, here and elsewhere."""
    far = tmp_path / "far"
    far.mkdir()
    names = {
        "symlink beside": image.with_name("link"),
        "symlink elsewhere": far / "link",
        "hard link beside": image.with_name("hard"),
        "hard link elsewhere": far / "hard",
        "through a folder link": tmp_path / "folder" / image.name,
    }
    for name, path in names.items():
        if name.startswith("symlink"):
            path.symlink_to(image)
        elif name.startswith("hard"):
            os.link(image, path)
    (tmp_path / "folder").symlink_to(image.parent)
    return names


def cut_off(image: Path) -> None:
    """A session that is writing, half done."""
    change = change_of(OLD, NEW)
    with open_case(image) as casefile:
        session = casefile.begin(
            title="t", image=str(image), size_before=len(OLD), size_after=len(NEW),
            fingerprint=change.fingerprint, plan={}, edits=change.edits(),
        )  # fmt: skip
        casefile.move(session.id, State.WRITING)
    with open(image, "r+b") as file:
        file.write(NEW[:2000])


# -- found by every name


def test_an_interrupted_session_is_found_by_every_name_whichever_was_used(image: Path, tmp_path: Path) -> None:
    names = {"itself": image, **names_of(image, tmp_path)}
    for used in names.values():
        cut_off(used)
        for name, other in names.items():
            assert peek(other) is not None, (used, name)
        assert recover(names["hard link elsewhere"]) is not None
        assert image.read_bytes() == OLD
        assert all(peek(each) is None for each in names.values())
        assert len(sessions(image)) == 1
        os.unlink(case_path(image))
        shutil.rmtree(tmp_path / "state")


def test_a_repair_by_one_name_is_undone_by_another(image: Path, tmp_path: Path) -> None:
    for other in names_of(image, tmp_path).values():
        apply(change_of(OLD, NEW), other)
        assert undo(image).truth is Truth.EXACT
        assert image.read_bytes() == OLD


def test_a_renamed_image_keeps_its_case_file(image: Path) -> None:
    cut_off(image)
    moved = image.rename(image.with_name("renamed.qcow2"))
    assert peek(moved) is not None
    assert recover(moved) is not None and moved.read_bytes() == OLD


def test_a_new_file_with_the_inode_of_an_old_one_is_another_file(image: Path) -> None:
    cut_off(image)
    case = case_path(image)
    other = image.with_name("other.qcow2")
    for content in (os.urandom(len(OLD)), OLD[:1000] + b"?" + OLD[1001:], OLD + b"longer"):
        other.write_bytes(content)
        image.unlink(missing_ok=True)
        with CaseFile(case) as casefile:  # as if the number had been given anew
            casefile._fact("files", [list(identity_of(other.stat())[1:])])
        remember(other, case)
        assert find_case(other) is None and peek(other) is None, content[:10]
    other.write_bytes(OLD)  # the very content: it was renamed
    assert find_case(other) == case


def test_without_a_state_directory_hard_links_beside_are_found_all_the_same(
    image: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "nofolder").write_text("")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "nofolder"))
    os.link(image, image.with_name("hard"))
    cut_off(image)
    assert peek(image.with_name("hard")) is not None
    other = image.with_name("other.qcow2")
    other.write_bytes(OLD)
    os.link(other, image.with_name("other-hard"))
    assert find_case(other) is None  # a case file of somebody else


def test_a_case_file_beside_a_link_from_an_earlier_version_is_still_used(image: Path, tmp_path: Path) -> None:
    link = tmp_path / "link.qcow2"
    link.symlink_to(image)
    with CaseFile(f"{link}.qwb-case"):
        pass
    assert case_path(link) == Path(f"{link}.qwb-case")
    assert case_path(image) == Path(f"{image}.qwb-case")


def test_a_named_case_file_is_remembered_too(image: Path, tmp_path: Path) -> None:
    apply(change_of(OLD, NEW), image, case=tmp_path / "mine")
    assert [each.state for each in sessions(image)] == [State.DONE]
    undo(image)
    assert image.read_bytes() == OLD and not Path(f"{image}.qwb-case").exists()


# -- private


def _watched(edits: Iterable[ByteEdit], seen: set[tuple[str, int]], folder: Path) -> Iterator[ByteEdit]:
    for edit in edits:
        yield edit
        seen |= {(each.name, stat.S_IMODE(each.stat().st_mode)) for each in folder.glob("*.qwb-case*")}


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o644, 0o660, 0o400])
@pytest.mark.parametrize("mask", [0o000, 0o022, 0o077])
def test_a_case_file_and_its_journals_are_as_private_as_the_image(image: Path, mode: int, mask: int) -> None:
    if os.geteuid() and not mode & 0o200:
        pytest.skip("only root writes to a file of mode 0400")
    image.chmod(mode)
    seen: set[tuple[str, int]] = set()
    change = change_of(OLD, NEW)
    edits = [ByteEdit(0, b"", os.urandom(3 << 20)), *change.edits()]  # enough to spill
    before = os.umask(mask)
    try:
        with open_case(image) as casefile:
            casefile.begin(
                title="t", image=str(image), size_before=0, size_after=0, fingerprint={}, plan={},
                edits=_watched(edits, seen, image.parent),
            )  # fmt: skip
    finally:
        os.umask(before)
    assert {name for name, _ in seen} == {"image.qcow2.qwb-case", "image.qcow2.qwb-case-journal"}
    assert all(found & ~mode == 0 for _, found in seen), seen


def test_an_older_case_file_is_made_as_private_as_its_image(image: Path) -> None:
    with CaseFile(case_path(image)):
        case_path(image).chmod(0o644)
    image.chmod(0o640)
    apply(change_of(OLD, NEW), image)
    assert stat.S_IMODE(case_path(image).stat().st_mode) == 0o640


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_a_case_file_belongs_to_who_owns_the_image(image: Path) -> None:
    os.chown(image, 4242, 4343)
    image.chmod(0o640)
    apply(change_of(OLD, NEW), image)
    found = case_path(image).stat()
    assert (found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode)) == (4242, 4343, 0o640)


def test_where_an_owner_cannot_be_given_nobody_else_gets_in(image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if os.geteuid():
        pytest.skip("only root gives files away")
    os.chown(image, 4242, 4343)
    image.chmod(0o664)

    def refuse(*_: object) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "fchown", refuse)
    with open_case(image):
        assert stat.S_IMODE(case_path(image).stat().st_mode) == 0o644


# -- cut off in the middle of a commit


def hot(case: Path, folder: Path, work: Callable[[sqlite3.Connection], object]) -> None:
    """Make `case` what a kill leaves while a transaction is being written: pages of it in the file, and its journal."""
    db = sqlite3.connect(case, isolation_level=None)
    db.execute("PRAGMA cache_size=1")
    db.execute("PRAGMA synchronous=FULL")
    db.execute("BEGIN IMMEDIATE")
    work(db)
    for number in range(40):  # more than the cache holds: pages go to the file before the commit
        db.execute("INSERT INTO history VALUES (1, ?, 'x', ?)", (number, "y" * 3000))
    folder.mkdir(exist_ok=True)
    for suffix in ("", "-journal"):
        shutil.copy(f"{case}{suffix}", folder / f"x{suffix}")
    db.execute("ROLLBACK")
    db.close()
    for suffix in ("", "-journal"):
        shutil.copy(folder / f"x{suffix}", f"{case}{suffix}")
    with pytest.raises(sqlite3.OperationalError):
        sqlite3.connect(f"file:{case}?mode=ro", uri=True).execute("SELECT * FROM sessions").fetchall()


def _to_done(db: sqlite3.Connection) -> None:
    db.execute("UPDATE sessions SET state='done'")


@pytest.mark.parametrize("reader", ["peek", "recover", "sessions", "undo", "apply", "a command"])
def test_a_hot_journal_is_rolled_back_by_whoever_comes_next(image: Path, tmp_path: Path, reader: str) -> None:
    cut_off(image)
    case = case_path(image)
    hot(case, tmp_path / "hot", _to_done)
    if reader == "peek":
        found = peek(image)
        assert found is not None and found.state is State.WRITING
    elif reader == "sessions":
        assert [each.state for each in sessions(image)] == [State.WRITING]
    elif reader == "undo":
        with pytest.raises(Exception, match="interrupted"):
            undo(image)
    elif reader == "apply":
        with pytest.raises(StorageError, match="interrupted"):
            apply(change_of(image.read_bytes(), NEW + b"!"), image)
    elif reader == "a command":
        from workbench.cli.common import mind_interrupted

        with pytest.raises(StorageError, match="was interrupted"):
            mind_interrupted(image, writable=True)
    assert recover(image) is not None
    assert image.read_bytes() == OLD
    assert peek(image) is None and not Path(f"{case}-journal").exists()


def test_a_hot_journal_in_a_folder_that_may_not_be_written_is_read_all_the_same(
    image: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cut_off(image)
    case = case_path(image)
    hot(case, tmp_path / "hot", _to_done)
    real = sqlite3.connect

    def connect(name: str, **more: object) -> sqlite3.Connection:
        if name.endswith("?mode=rw") and str(case) in name:
            name = name.replace("mode=rw", "mode=ro")  # as where the file system is mounted read-only
        return real(name, **more)  # type: ignore[call-overload, no-any-return]

    monkeypatch.setattr(sqlite3, "connect", connect)
    before = case.read_bytes()
    found = peek(image)
    assert found is not None and found.state is State.WRITING
    assert case.read_bytes() == before and Path(f"{case}-journal").exists()


def test_a_journal_cut_off_while_the_very_first_session_is_stored_leaves_nothing(image: Path, tmp_path: Path) -> None:
    case = case_path(image)

    def stop(edits: Iterable[ByteEdit]) -> Iterator[ByteEdit]:
        yield from edits
        for suffix in ("", "-journal"):
            shutil.copy(f"{case}{suffix}", tmp_path / f"x{suffix}")

    with open_case(image) as casefile:
        casefile.begin(
            title="t", image=str(image), size_before=0, size_after=0, fingerprint={}, plan={},
            edits=stop([ByteEdit(0, b"", os.urandom(6 << 20))]),
        )  # fmt: skip
    for suffix in ("", "-journal"):
        shutil.copy(tmp_path / f"x{suffix}", f"{case}{suffix}")
    assert peek(image) is None and sessions(image) == []
    assert recover(image) is None
    apply(change_of(OLD, NEW), image)
    assert image.read_bytes() == NEW


@pytest.mark.parametrize("content", [b"", b"SQLite format 3\0"])
def test_a_case_file_cut_off_when_it_was_made_counts_as_none(image: Path, content: bytes) -> None:
    if content:
        with CaseFile(case_path(image)) as casefile:
            casefile._db.executescript("DROP TABLE sessions; DROP TABLE edits; DROP TABLE history;")
    else:
        case_path(image).write_bytes(b"")
    assert peek(image) is None and sessions(image) == [] and recover(image) is None
    apply(change_of(OLD, NEW), image)


# -- room


def test_missing_room_is_named_before_anything_is_written(image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(space, "free_bytes", lambda _: 100_000)
    with pytest.raises(StorageError, match=r"case file.*\d+ bytes \(.*\) are missing") as caught:
        apply(change_of(OLD, NEW), image)
    assert "nothing was written" in str(caught.value)
    assert image.read_bytes() == OLD and not case_path(image).exists()


@pytest.mark.parametrize("pieces", [1, 200])
def test_the_estimate_of_a_case_file_is_enough_and_not_absurd(image: Path, pieces: int) -> None:
    from workbench.repair.casefile import room_for
    from workbench.repair.cases import open_case

    edits = [
        ByteEdit(1 << 20 | i << 16, os.urandom(4 << 20 >> pieces.bit_length()), bytes(5000)) for i in range(pieces)
    ]
    with open_case(image) as casefile:
        casefile.begin(
            title="t", image=str(image), size_before=0, size_after=0, fingerprint={}, plan={}, edits=edits
        )  # fmt: skip
        assert casefile.size() <= room_for(edits) <= 2 * casefile.size() + (1 << 20)


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MiB."""
    folder = tmp_path / "small"
    folder.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1M", "none", folder], capture_output=True, text=True, check=False
    )
    if done.returncode:
        pytest.skip(f"no small file system here: {done.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "-l", folder], check=False)


@pytest.mark.parametrize("known", [True, False])
def test_a_disk_that_is_really_full_leaves_the_image_alone(
    image: Path, small: Path, monkeypatch: pytest.MonkeyPatch, known: bool
) -> None:
    big = os.urandom(len(OLD))
    here = small / "image.qcow2"
    here.write_bytes(OLD)
    if not known:  # as where a quota is the limit
        monkeypatch.setattr(space, "free_bytes", lambda _: None)
        (small / "ballast").write_bytes(bytes(400_000))
    else:
        (small / "ballast").write_bytes(bytes(300_000))
    with pytest.raises(StorageError) as caught:
        apply(change_of(OLD, big), here)
    assert ("are missing" if known else "full") in str(caught.value) and "free some space" in str(caught.value)
    assert here.read_bytes() == OLD
    (small / "ballast").unlink()
    monkeypatch.undo()
    monkeypatch.setattr(space, "free_bytes", lambda _: None)
    assert peek(here) is None


def _full(*_: object, **__: object) -> None:
    error = sqlite3.OperationalError("database or disk is full")
    error.sqlite_errorcode = sqlite3.SQLITE_FULL
    raise error


@pytest.mark.parametrize("at", [State.WRITING, State.DONE, State.UNDOING, State.UNDONE])
def test_a_disk_that_fills_up_never_has_the_only_undo_moved_away(
    image: Path, monkeypatch: pytest.MonkeyPatch, at: State
) -> None:
    real = CaseFile._note

    def note(self: CaseFile, number: int, state: State, text: str) -> None:
        if state is at:
            _full()
        real(self, number, state, text)

    monkeypatch.setattr(CaseFile, "_note", note)
    with pytest.raises(StorageError) as caught:
        apply(change_of(OLD, NEW), image)
        undo(image)
    said = str(caught.value)
    assert "away" not in said and "space" in said and "keep this file" in said
    monkeypatch.setattr(CaseFile, "_note", real)
    if at is State.UNDOING:
        undo(image)
    else:
        if at is State.DONE:
            assert image.read_bytes() == NEW and "--recover" in said and "--complete" in said
        recover(image)
    assert image.read_bytes() == OLD


@pytest.mark.parametrize("damage", [b"this is no database" * 100, b""], ids=["text", "empty"])
def test_a_damaged_case_file_is_never_advised_away(image: Path, damage: bytes) -> None:
    apply(change_of(OLD, NEW), image)
    content = case_path(image).read_bytes()
    case_path(image).write_bytes(damage or content[:4096] + bytes(len(content) - 4096))
    for work in (lambda: peek(image), lambda: undo(image), lambda: apply(change_of(NEW, OLD), image)):
        with pytest.raises(StorageError) as caught:
            work()
        assert "move" not in str(caught.value) and "--recover" not in str(caught.value)


# -- what an undo says


def _write(image: Path, offset: int, data: bytes) -> None:
    with open(image, "r+b") as file:
        file.seek(offset)
        file.write(data)


def test_an_undo_without_writes_in_between_is_exact(image: Path) -> None:
    apply(change_of(OLD, NEW), image)
    apply(change_of(NEW, OLD + b"third"), image)
    for _ in range(2):
        done = undo(image)
        assert done.truth is Truth.EXACT and "is what it was before" in str(done)
    assert image.read_bytes() == OLD


def test_an_undo_after_writes_elsewhere_keeps_them_and_says_so(image: Path) -> None:
    apply(change_of(OLD, NEW), image)
    os.utime(image, ns=(1, 1))
    _write(image, 100_000, b"guest")
    done = undo(image)
    assert done.truth is Truth.WRITTEN_SINCE and "is what it was before" not in str(done)
    assert image.read_bytes() == OLD[:100_000] + b"guest" + OLD[100_005:]


@pytest.mark.parametrize("growth", [0, 5000])
def test_a_forced_undo_says_what_is_gone_and_what_is_kept(image: Path, growth: int) -> None:
    apply(change_of(OLD, NEW), image)
    _write(image, 1000, b"guestly")
    _write(image, 100_000, b"guest")
    _write(image, len(NEW), b"g" * growth)
    with pytest.raises(Exception, match="changed since"):
        undo(image)
    done = undo(image, force=True)
    assert done.truth is Truth.MIXED and "is what it was before" not in str(done)
    assert done.overwritten == 7 and done.kept == growth and "7 bytes" in str(done)
    found = image.read_bytes()
    assert found[:100_000] == OLD[:100_000] and found[100_000:100_005] == b"guest"
    assert found[200_000:200_004] == OLD[200_000:200_004]
    assert len(found) == (len(NEW) + growth if growth else len(OLD))
    assert found.endswith(b"g" * growth)


def test_recovery_never_cuts_off_what_was_added_since(image: Path) -> None:
    cut_off(image)
    _write(image, len(NEW), b"g" * 5000)
    with pytest.raises(Exception, match="longer than it ever was"):
        recover(image)
    ended = recover(image, force=True)
    assert ended is not None and ended.foreign and "is what it was before" not in str(ended)
    assert image.read_bytes()[: len(OLD)] == OLD and image.read_bytes().endswith(b"g" * 5000)


# -- old sessions


def test_sizes_are_known_and_pruning_keeps_what_can_be_undone(image: Path) -> None:
    big = OLD[:4096] + os.urandom(len(OLD) - 4096)
    apply(change_of(OLD, big), image)
    undo(image)
    apply(change_of(OLD, big), image)
    apply(change_of(big, NEW), image)
    with open_case(image) as casefile:
        sizes, before = casefile.sizes(), casefile.size()
        assert list(sizes) == [1, 2, 3] and all(size > len(OLD) for size in sizes.values())
        assert before > sum(sizes.values())
        assert [each.id for each in casefile.prune()] == [1, 2]
        assert casefile.size() < before // 2 and list(casefile.sizes()) == [3]
        assert casefile.prune() == []
    undo(image)
    assert image.read_bytes() == big
    with open_case(image) as casefile:
        assert [each.id for each in casefile.prune()] == [3] and casefile.sessions() == []


def test_pruning_is_refused_while_a_session_is_open(image: Path) -> None:
    cut_off(image)
    with open_case(image) as casefile, pytest.raises(StorageError, match="--recover"):
        casefile.prune()
    assert recover(image) is not None and image.read_bytes() == OLD


# -- devices


def test_a_device_keeps_its_case_file_in_the_state_directory(
    image: Path, tmp_path: Path, loop: Callable[[Path], Path]
) -> None:
    new = NEW[: len(OLD)]
    device = loop(image)
    assert new_place(device).is_relative_to(tmp_path / "state")
    apply(change_of(OLD, new), device)
    assert not list(Path("/dev").glob(f"{device.name}.qwb*"))
    other = loop(image)  # the same disk under another number, as after a restart
    found = case_path(other)
    assert found == case_path(device) and stat.S_IMODE(found.stat().st_mode) == 0o600
    assert stat.S_IMODE(found.parent.stat().st_mode) == 0o700
    done = undo(device)
    assert done.truth is Truth.UNTOLD and "is what it was before" not in str(done)
    os.sync()
    assert device.read_bytes() == OLD


def test_a_device_that_is_too_small_is_refused_with_the_bytes_missing(
    image: Path, loop: Callable[[Path], Path]
) -> None:
    device = loop(image)
    with pytest.raises(StorageError, match="cannot grow: 800 bytes are missing"):
        apply(change_of(OLD, NEW), device)
    assert not case_path(device).exists() and device.read_bytes() == OLD


def test_an_interrupted_repair_of_a_device_is_found_by_the_file_under_it(
    image: Path, loop: Callable[[Path], Path]
) -> None:
    device = loop(image)
    cut_off(device)
    assert peek(device) is not None and peek(image) is not None
    assert recover(device) is not None
    os.sync()
    assert device.read_bytes() == OLD
