"""From a plan to the image file: lock, fingerprint, journal, write, flush, check again, close the session.

Nothing of the image changes before both byte images of every edit are durable in the case file. New clusters are
written and flushed before the tables that point at them, the header cluster last of all; so even without the case file
a cut-off repair does not leave pointers into nothing.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any, Final

from workbench.errors import ImageError, QwbError, StorageError
from workbench.repair import fingerprint
from workbench.repair.casefile import ByteEdit, CaseFile, Session, State, room_for
from workbench.repair.cases import case_path, open_case
from workbench.repair.preserve import PlanRefused, prove
from workbench.repair.workspace import Step
from workbench.storage.base import Storage
from workbench.storage.file import FileStorage, device_full
from workbench.storage.locks import LockMode, acquire
from workbench.storage.overlay import Overlay
from workbench.storage.space import Want, existing_folder, require_room

_HEAD: Final = 64 << 10
"""Edits below this offset are written last: the header cluster of all usual cluster sizes."""


class Phase(Enum):
    """What an apply, undo or recovery is doing, for progress displays."""

    FINGERPRINT = "comparing the image with the plan"
    PROOF = "proving that nothing is lost"
    JOURNAL = "storing old and new bytes"
    WRITE = "writing"
    FLUSH = "flushing"
    CHECK = "checking again"


@dataclass(frozen=True, slots=True)
class Progress:
    """A step of the work. done and total count byte edits; total 0 means unknown."""

    phase: Phase
    done: int = 0
    total: int = 0


OnProgress = Callable[[Progress], None]
Recheck = Callable[[Storage], dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Change:
    """What apply needs to know: byte edits in file order (called anew for each walk), lengths, and where it fits.

    plan: JSON values kept in the case file for the history (title, steps, verdict).  steps: what the change declares, for
    the proof.  accept_loss: bytes that the person agreed to give up, or to see unproven.
    """

    title: str
    edits: Callable[[], Iterable[ByteEdit]]
    size_before: int
    size_after: int
    fingerprint: dict[str, Any]
    plan: dict[str, Any] = field(default_factory=dict)
    steps: tuple[Step, ...] = ()
    accept_loss: int = 0


@dataclass(frozen=True, slots=True)
class Applied:
    """How an apply ended: the session in the case file, and what the check after it said (None without one)."""

    session: Session
    verdict: dict[str, Any] | None


def apply(
    change: Change,
    path: str | os.PathLike[str],
    *,
    case: str | os.PathLike[str] | None = None,
    recheck: Recheck | None = None,
    progress: OnProgress | None = None,
) -> Applied:
    """Carry out `change` on the image at `path`. The case file is `case`, or IMAGE.qwb-case.

    Raises LockedError when anyone else has the image open, ImageError when it is not what the plan was made from,
    PlanRefused when the change is not proven to lose no more than was agreed to, StorageError when reading or writing fails (the image is then rolled back at once, where that is possible).
    """
    with open_locked(path) as storage:
        require_space(storage, change, case_path(path, case))
        with open_case(path, case) as casefile:
            return apply_to(storage, casefile, change, recheck=recheck, progress=progress)


def require_space(storage: Storage, change: Change, case: Path) -> None:
    """StorageError, naming the bytes missing, when the case file or what the image grows by would not fit."""
    require_length(storage, change.size_after)
    wants = [Want(existing_folder(case.parent), room_for(change.edits()), "the case file with old and new bytes")]
    if storage.growable and os.path.exists(storage.path):
        grown = max(0, change.size_after - storage.size())
        grown += sum(
            len(each.new) for each in change.edits() if each.offset < storage.size() and _in_a_hole(storage, each)
        )
        wants.append(Want(Path(os.path.realpath(storage.path)).parent, grown, "what is added to the image"))
    require_room(wants, path=storage.path)


def require_length(storage: Storage, size: int) -> None:
    """StorageError when the image cannot become `size` bytes long: a block device keeps its length."""
    if not storage.growable and size > storage.size():
        raise device_full(storage.path, storage.size(), size)


def _in_a_hole(storage: Storage, edit: ByteEdit) -> bool:
    data = storage.next_data(edit.offset)
    return data is None or data >= edit.offset + len(edit.new)


@contextlib.contextmanager
def open_locked(path: str | os.PathLike[str]) -> Iterator[FileStorage]:
    """The image open for writing, under QEMU's locks; both end with the block."""
    with FileStorage.open(path, writable=True) as storage, acquire(storage, LockMode.WRITE):
        yield storage


def apply_to(
    storage: Storage,
    casefile: CaseFile,
    change: Change,
    *,
    recheck: Recheck | None = None,
    progress: OnProgress | None = None,
) -> Applied:
    """`apply` on an image that is open and locked already."""
    report = progress or _quiet
    report(Progress(Phase.FINGERPRINT))
    view = staged(storage, change)
    report(Progress(Phase.PROOF))
    require_proven(storage, view, change)
    view.close()
    report(Progress(Phase.JOURNAL))
    session = casefile.begin(
        title=change.title,
        image=str(Path(storage.path).absolute()),
        size_before=change.size_before,
        size_after=change.size_after,
        fingerprint=change.fingerprint,
        plan=change.plan,
        edits=_checked(storage, change.edits()),
    )
    return carry_out(storage, casefile, session, recheck=recheck, progress=progress)


def carry_out(
    storage: Storage,
    casefile: CaseFile,
    session: Session,
    *,
    recheck: Recheck | None = None,
    progress: OnProgress | None = None,
) -> Applied:
    """Write a journaled session into the image and close it as done."""
    report = progress or _quiet
    if session.state is State.JOURNALED:
        casefile.move(session.id, State.WRITING)
    try:
        write_new(storage, casefile, session, report)
    except (StorageError, KeyboardInterrupt) as error:
        _roll_back_now(storage, casefile, session, error)
        raise
    report(Progress(Phase.CHECK))
    verdict = recheck(storage) if recheck else None
    after = fingerprint.take(storage)
    with recording(casefile, "the repair is written"):
        casefile.move(session.id, State.DONE, fingerprint_after=after, verdict=verdict, left=fingerprint.stamp(storage))
    return Applied(casefile.session(session.id), verdict)


@contextlib.contextmanager
def recording(casefile: CaseFile, done: str) -> Iterator[None]:
    """Around the last note of a session, when the image is changed already: an error then says what is true."""
    try:
        yield
    except StorageError as error:
        raise StorageError(
            f"{done}, but that could not be noted ({error.what})",
            path=str(casefile.path),
            hint="keep this file: it holds the old bytes. Free some space, then `qwb repair IMAGE --recover`"
            " goes back to them, with --complete to the new ones",
        ) from error


def staged(storage: Storage, change: Change) -> Overlay:
    """The image as `change` makes it, on top of a file that stays as it is. ImageError when it does not fit the image."""
    require_fit(storage, change.fingerprint)
    view = Overlay(storage)
    for edit in _checked(storage, change.edits()):
        if edit.new:
            view.write(edit.offset, edit.new)
    view.truncate(change.size_after)
    return view


def require_proven(storage: Storage, view: Overlay, change: Change) -> None:
    """Raise PlanRefused when `view` loses, or may lose, more than was agreed to: on the bytes as they are now."""
    proof = prove(storage, view, change.steps)
    if not proof.harmless and not 0 < proof.loss <= change.accept_loss:
        raise PlanRefused(proof, path=storage.path)


def require_fit(storage: Storage, expected: dict[str, Any]) -> None:
    """Raise ImageError, naming the first place, when the image is not what the fingerprint says."""
    changed = fingerprint.compare(storage, expected)
    if changed:
        more = f" and {len(changed) - 1} more" if len(changed) > 1 else ""
        raise ImageError(
            f"the image has changed since the plan was made: {changed[0]}{more}",
            path=storage.path,
            offset=changed[0].offset,
            hint="make a new plan",
        )


def _checked(storage: Storage, edits: Iterable[ByteEdit]) -> Iterator[ByteEdit]:
    """The edits, each compared with the bytes it replaces."""
    for edit in edits:
        if storage.read(edit.offset, max(len(edit.old), len(edit.new))) != edit.old:
            raise ImageError(
                "the image has changed since the plan was made",
                path=storage.path,
                offset=edit.offset,
                hint="make a new plan",
            )
        yield edit


# -- writing one side of a session -------------------------------------------------------------------------------------


def write_new(storage: Storage, casefile: CaseFile, session: Session, report: OnProgress) -> None:
    """Make the image what the plan says: appended clusters, then tables, then the header, each step flushed."""
    before = session.size_before
    parts: tuple[Callable[[ByteEdit], bool], ...] = (
        lambda edit: edit.offset >= before,
        lambda edit: _HEAD <= edit.offset < before,
        lambda edit: edit.offset < min(_HEAD, before),
    )
    done = 0
    for part in parts:
        wrote = False
        for edit in casefile.edits(session.id):
            if part(edit):
                _put(storage, edit.offset, edit.new)
                done, wrote = done + 1, True
                report(Progress(Phase.WRITE, done, session.edits))
        if wrote:
            report(Progress(Phase.FLUSH, done, session.edits))
            storage.flush()
    _set_length(storage, session.size_after)


def write_old(storage: Storage, casefile: CaseFile, session: Session, report: OnProgress) -> None:
    """Make the image what it was before the session, its length included (but see `added_since`)."""
    added = added_since(storage, session)
    for done, edit in enumerate(casefile.edits(session.id), 1):
        _put(storage, edit.offset, edit.old)
        report(Progress(Phase.WRITE, done, session.edits))
    report(Progress(Phase.FLUSH, session.edits, session.edits))
    if added:
        storage.flush()
    else:
        _set_length(storage, session.size_before)


def added_since(storage: Storage, session: Session) -> int:
    """Bytes behind all that the session knew of: somebody else's, which are never cut off."""
    return max(0, storage.size() - max(session.size_before, session.size_after)) if storage.growable else 0


def _put(storage: Storage, offset: int, data: bytes) -> None:
    if data:
        storage.write(offset, data)


def _set_length(storage: Storage, size: int) -> None:
    storage.flush()
    if storage.size() != size:
        storage.truncate(size)
        storage.flush()


def _roll_back_now(storage: Storage, casefile: CaseFile, session: Session, error: BaseException) -> None:
    """After a failed or interrupted write: put the old bytes back, or say what is left to do."""
    try:
        write_old(storage, casefile, session, _quiet)
        note = f"rolled back at once: {error}"
        casefile.move(session.id, State.ROLLED_BACK, note=note, left=fingerprint.stamp(storage))
    except StorageError as second:
        raise StorageError(
            f"the repair failed ({error}) and could not be rolled back ({second.what})",
            path=storage.path,
            hint=f"the old bytes are in {casefile.path}; run `qwb repair IMAGE --recover` when the file can be written",
        ) from error
    if isinstance(error, QwbError):
        error.hint = "the image was rolled back to what it was" + (f"; {error.hint}" if error.hint else "")


def _quiet(progress: Progress) -> None:
    """No progress display."""
