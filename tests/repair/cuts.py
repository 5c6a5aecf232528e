"""Cutting a repair off at every write: power cuts in memory, for tests and campaigns."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator
from pathlib import Path

from workbench.repair import fingerprint
from workbench.repair.apply import Change, apply_to
from workbench.repair.casefile import ByteEdit, CaseFile, State
from workbench.repair.recovery import recover_in
from workbench.repair.undo import undo_in
from workbench.storage.base import Storage
from workbench.storage.memory import MemoryStorage
from workbench.storage.recording import Op, OpKind, Recording, crash_images


class PowerCut(BaseException):
    """The lights went out; no handler may run."""


class Cutting(Recording):
    """Records, and cuts the power at operation number `at` (not done any more)."""

    def __init__(self, base: Storage, at: int) -> None:
        super().__init__(base)
        self.at = at

    def _op(self, op: Op) -> None:
        if len(self.ops) >= self.at:
            raise PowerCut
        super()._op(op)


def change_of(old: bytes, new: bytes, title: str = "test") -> Change:
    """A change from one content to another, in edits of whole differing 512-byte pieces."""
    edits, step = [], 512
    for at in range(0, max(len(old), len(new)), step):
        a, b = old[at : at + step], new[at : at + step]
        if a != b:
            edits.append(ByteEdit(at, a, b))
    mark = fingerprint.take(MemoryStorage(old))
    return Change(title, lambda: list(edits), len(old), len(new), mark, accept_loss=1 << 62)  # any bytes will do here


def apply_with_cuts(old: bytes, new: bytes, folder: Path, *, every: int = 1) -> Iterator[str]:
    """Cut an apply at every operation and commit; check both ways out of each state. Yields what was tried."""
    change = change_of(old, new)
    for name, states, case in _apply_states(old, change, folder, every):
        for state in states:
            _check_both_ends(state, case, folder, old, new)
            yield name


def _apply_states(old: bytes, change: Change, folder: Path, every: int) -> Iterator[tuple[str, list[bytes], Path]]:
    for stop in (State.JOURNALED, State.WRITING):
        case = _fresh(folder)
        storage = MemoryStorage(old)
        with CaseFile(case) as casefile:
            casefile.on_state = lambda state, stop=stop: _cut_if(state is stop)  # type: ignore[misc]
            _until_cut(lambda storage=storage, casefile=casefile: apply_to(storage, casefile, change))  # type: ignore[misc]
        yield f"after {stop.value}", [storage.getvalue()], case
    total = _count(old, change, folder)
    for at in range(0, total, every):
        case = _fresh(folder)
        memory = MemoryStorage(old)
        cutting = Cutting(memory, at)
        with CaseFile(case) as casefile:
            _until_cut(lambda cutting=cutting, casefile=casefile: apply_to(cutting, casefile, change))  # type: ignore[misc]
        yield f"apply, operation {at}", _states(old, cutting.ops, memory, at), case


def undo_with_cuts(old: bytes, new: bytes, folder: Path, *, every: int = 1) -> Iterator[str]:
    """Apply, then cut the undo at every operation; check both ways out of each state."""
    change = change_of(old, new)
    at = 0
    while True:
        case = _fresh(folder)
        memory = MemoryStorage(old)
        with CaseFile(case) as casefile:
            apply_to(memory, casefile, change)
            applied = memory.getvalue()
            assert applied == new
            cutting = Cutting(memory, at)
            cut = _until_cut(lambda cutting=cutting, casefile=casefile: undo_in(cutting, casefile))  # type: ignore[misc]
        if not cut:
            assert memory.getvalue() == old
            return
        for state in _states(applied, cutting.ops, memory, at):
            _check_both_ends(state, case, folder, old, new)
            yield f"undo, operation {at}"
        at += every


def _states(initial: bytes, ops: list[Op], memory: MemoryStorage, seed: int) -> list[bytes]:
    """What may be on the disk: all of it in order, and subsets of what was not flushed yet."""
    last = max((i for i, op in enumerate(ops) if op.kind is OpKind.FLUSH), default=-1)
    recent = ops[: last + 1] + ops[last + 1 :][-3:] if len(ops) - last > 4 else ops
    found = {memory.getvalue()}
    if len(recent) == len(ops):
        tail = list(crash_images(initial, ops, seed=seed, per_cut=1))[-6:]
        found |= {state for _, state in tail}
    return sorted(found)


def _check_both_ends(state: bytes, case: Path, folder: Path, old: bytes, new: bytes) -> None:
    for complete, wanted in ((False, old), (True, new)):
        copy = folder / "copy.qwb-case"
        shutil.copy(case, copy)
        storage = MemoryStorage(state)
        with CaseFile(copy) as casefile:
            before = casefile.interrupted()
            ended = recover_in(storage, casefile, complete=complete)
            assert casefile.interrupted() is None
        if before is not None:
            assert ended is not None
            assert _digest(storage.getvalue()) == _digest(wanted), f"complete={complete}"
        copy.unlink()


def _count(old: bytes, change: Change, folder: Path) -> int:
    recording = Recording(MemoryStorage(old))
    with CaseFile(_fresh(folder)) as casefile:
        apply_to(recording, casefile, change)
    return len(recording.ops)


def _fresh(folder: Path) -> Path:
    case = folder / "image.qwb-case"
    case.unlink(missing_ok=True)
    return case


def _until_cut(work: object) -> bool:
    try:
        work()  # type: ignore[operator]
    except PowerCut:
        return True
    return False


def _cut_if(now: bool) -> None:
    if now:
        raise PowerCut


def _digest(data: bytes) -> tuple[int, str]:
    return len(data), hashlib.sha256(data).hexdigest()
