"""Apply, undo and recovery: durable, reversible bit for bit, and never in between."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.repair.cuts import apply_with_cuts, change_of, undo_with_cuts
from workbench.errors import ArgumentError, ImageError, LockedError, StorageError
from workbench.repair.apply import Phase, Progress, apply, apply_to
from workbench.repair.casefile import PIECE, ByteEdit, CaseFile, State
from workbench.repair.cases import case_path, peek
from workbench.repair.recovery import interrupted, recover
from workbench.repair.undo import sessions, undo
from workbench.storage.file import FileStorage
from workbench.storage.locks import LockMode, acquire
from workbench.storage.memory import MemoryStorage
from workbench.storage.recording import Faulty, OpKind


def _content(size: int, seed: int) -> bytes:
    return random.Random(seed).randbytes(size)


def _pair(seed: int = 1, *, size: int = 200_000, grow: int = 9_000) -> tuple[bytes, bytes]:
    """An image and what it becomes: a few changed ranges (one in the header), and a longer or shorter file."""
    rng = random.Random(seed)
    old = _content(size, seed)
    new = bytearray(old)
    for _ in range(6):
        at = rng.randrange(0, size - 700)
        new[at : at + 600] = rng.randbytes(600)
    new[24:32] = b"\1" * 8
    return old, bytes(new + rng.randbytes(grow)) if grow >= 0 else bytes(new[:grow])


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "image.qcow2"
    path.write_bytes(_pair()[0])
    return path


@pytest.mark.parametrize("grow", [9_000, 0, -5_000])
def test_apply_then_undo_gives_back_every_byte_and_the_length(image: Path, grow: int) -> None:
    old, new = _pair(grow=grow)
    image.write_bytes(old)
    done = apply(change_of(old, new), image)
    assert image.read_bytes() == new
    assert done.session.state is State.DONE
    assert undo(image).state is State.UNDONE
    assert image.read_bytes() == old


def test_progress_tells_each_phase_in_order(image: Path) -> None:
    seen: list[Progress] = []
    apply(change_of(*_pair()), image, progress=seen.append, recheck=lambda storage: {"clean": True})
    phases = list(dict.fromkeys(each.phase for each in seen))
    assert phases == [Phase.FINGERPRINT, Phase.PROOF, Phase.JOURNAL, Phase.WRITE, Phase.FLUSH, Phase.CHECK]
    assert max(each.done for each in seen) == next(each.total for each in seen if each.total)


def test_apply_refuses_an_image_that_changed_since_the_plan(image: Path) -> None:
    change = change_of(*_pair())
    with open(image, "r+b") as file:
        file.seek(100)
        file.write(b"changed")
    before = image.read_bytes()
    with pytest.raises(ImageError, match="changed since the plan"):
        apply(change, image)
    assert image.read_bytes() == before
    assert interrupted(image) is None


def test_undo_refuses_when_the_image_changed_since_and_names_where(image: Path) -> None:
    old, new = _pair()
    apply(change_of(old, new), image)
    with open(image, "r+b") as file:
        file.seek(26)
        file.write(b"\7")
    with pytest.raises(ImageError, match="changed since session 1") as caught:
        undo(image)
    assert caught.value.offset == 26
    assert undo(image, force=True).state is State.UNDONE
    assert image.read_bytes() == old


def test_sessions_are_undone_in_reverse_order(image: Path) -> None:
    old, middle = _pair()
    new = bytearray(middle)
    new[5000:5100] = bytes(100)
    apply(change_of(old, middle), image)
    apply(change_of(middle, bytes(new)), image)
    with pytest.raises(ArgumentError, match="followed by 2"):
        undo(image, 1)
    assert undo(image).id == 2
    assert undo(image).id == 1
    assert image.read_bytes() == old
    assert [each.state for each in sessions(image)] == [State.UNDONE, State.UNDONE]


def test_nothing_to_undo_is_an_error_that_says_so(image: Path) -> None:
    with pytest.raises(StorageError, match="no case file"):
        undo(image)
    assert not case_path(image).exists()


def test_apply_and_undo_refuse_while_somebody_holds_the_image(image: Path) -> None:
    old, new = _pair()
    with FileStorage.open(image, writable=True) as other, acquire(other, LockMode.WRITE), pytest.raises(LockedError):
        apply(change_of(old, new), image)
    apply(change_of(old, new), image)
    with FileStorage.open(image, writable=True) as other, acquire(other, LockMode.WRITE), pytest.raises(LockedError):
        undo(image)
    assert image.read_bytes() == new


@pytest.mark.parametrize("seed", range(3))
def test_a_power_cut_at_any_operation_of_an_apply_can_be_rolled_back_or_completed(tmp_path: Path, seed: int) -> None:
    old, new = _pair(seed, size=150_000, grow=(3_000, -2_000, 0)[seed])
    assert len(list(apply_with_cuts(old, new, tmp_path))) > 10


@pytest.mark.parametrize("seed", range(2))
def test_a_power_cut_at_any_operation_of_an_undo_can_be_rolled_back_or_completed(tmp_path: Path, seed: int) -> None:
    old, new = _pair(seed, size=150_000, grow=(3_000, -2_000)[seed])
    assert len(list(undo_with_cuts(old, new, tmp_path))) > 5


@pytest.mark.parametrize("fail_at", [0, 3, 7])
def test_a_write_error_rolls_back_at_once(tmp_path: Path, fail_at: int) -> None:
    old, new = _pair(4, size=100_000)
    memory = MemoryStorage(old)
    faulty = Faulty(memory, fail_at, on=(OpKind.WRITE,), sticky=False, partial=100)
    with CaseFile(tmp_path / "case") as casefile:
        with pytest.raises(StorageError, match="rolled back"):
            apply_to(faulty, casefile, change_of(old, new))
        assert casefile.sessions()[0].state is State.ROLLED_BACK
    assert memory.getvalue() == old


def test_a_write_error_that_stays_leaves_the_session_for_recovery(tmp_path: Path) -> None:
    old, new = _pair(5, size=100_000)
    memory = MemoryStorage(old)
    with CaseFile(tmp_path / "case") as casefile:
        with pytest.raises(StorageError, match="could not be rolled back"):
            apply_to(Faulty(memory, 4, on=(OpKind.WRITE,)), casefile, change_of(old, new))
        cut = casefile.interrupted()
        assert cut is not None and cut.state is State.WRITING
        from workbench.repair.recovery import recover_in

        recover_in(memory, casefile)
    assert memory.getvalue() == old


_CHILD = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from tests.repair.cuts import change_of
from workbench.repair import apply as module
from workbench.repair.casefile import CaseFile
from workbench.repair.cases import case_path
from workbench.repair.undo import undo_in
from workbench.storage.recording import Recording
image, at, what = Path(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
class Killing(Recording):
    def _op(self, op):
        if len(self.ops) >= at:
            os.kill(os.getpid(), signal.SIGKILL)
        super()._op(op)
with module.open_locked(image) as storage, CaseFile(case_path(image)) as casefile:
    if what == "apply":
        old, new = (Path(each).read_bytes() for each in sys.argv[5:7])
        module.apply_to(Killing(storage), casefile, change_of(old, new))
    else:
        undo_in(Killing(storage), casefile)
"""


@pytest.mark.parametrize("what", ["apply", "undo"])
@pytest.mark.parametrize("complete", [False, True])
def test_a_killed_process_leaves_a_session_that_ends_either_way(tmp_path: Path, what: str, complete: bool) -> None:
    old, new = _pair(6, size=120_000, grow=2_000)
    (tmp_path / "old").write_bytes(old)
    (tmp_path / "new").write_bytes(new)
    root = str(Path(__file__).parents[2])
    for at in (0, 2, 5):
        image = tmp_path / f"{what}{at}.qcow2"
        image.write_bytes(old)
        if what == "undo":
            apply(change_of(old, new), image)
        done = subprocess.run(
            [
                sys.executable,
                "-c",
                _CHILD,
                root,
                str(image),
                str(at),
                what,
                str(tmp_path / "old"),
                str(tmp_path / "new"),
            ],
            check=False,
            env={**os.environ, "PYTHONPATH": root},
        )
        assert done.returncode == -signal.SIGKILL
        assert interrupted(image) is not None
        with pytest.raises(StorageError, match="interrupted"):
            apply(change_of(image.read_bytes(), new + b"x"), image)
        ended = recover(image, complete=complete)
        assert ended is not None and ended.completed is complete
        assert image.read_bytes() == (new if complete else old)
        assert interrupted(image) is None and recover(image) is None


def test_recovery_refuses_bytes_that_are_neither_old_nor_new(image: Path) -> None:
    old, new = _pair()
    with CaseFile(case_path(image)) as casefile:
        change = change_of(old, new)
        session = casefile.begin(
            title="t", image=str(image), size_before=len(old), size_after=len(new),
            fingerprint=change.fingerprint, plan={}, edits=change.edits(),
        )  # fmt: skip
        casefile.move(session.id, State.WRITING)
        first = next(iter(casefile.edits(session.id)))
    strange = bytearray(old)
    index = next(i for i in range(len(first.old)) if first.old[i] != first.new[i])
    strange[first.offset + index] = next(b for b in range(256) if b not in (first.old[index], first.new[index]))
    image.write_bytes(strange)
    with pytest.raises(ImageError, match="neither the old nor the new"):
        recover(image)
    assert recover(image, force=True) is not None
    assert image.read_bytes() == old


def test_big_edits_are_stored_in_pieces_and_zeros_take_no_room(tmp_path: Path) -> None:
    old, new = bytes(3 * PIECE + 10), _content(3 * PIECE + 10, 9)
    with CaseFile(tmp_path / "case") as casefile:
        session = casefile.begin(
            title="t", image="i", size_before=len(old), size_after=len(new), fingerprint={}, plan={},
            edits=[ByteEdit(0, old, new)],
        )  # fmt: skip
        found = list(casefile.edits(session.id))
    assert len(found) == 4 == session.edits
    assert b"".join(each.new for each in found) == new and b"".join(each.old for each in found) == old
    assert (tmp_path / "case").stat().st_size < 4 * PIECE


def test_looking_for_interrupted_sessions_writes_nothing(image: Path) -> None:
    assert peek(image) is None
    assert not case_path(image).exists()
    apply(change_of(*_pair()), image)
    before = case_path(image).stat()
    assert peek(image) is None
    assert case_path(image).stat() == before
