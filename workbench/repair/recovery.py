"""What to do with a session that was cut off by a crash, a kill or a power cut: roll back, or complete.

The case file holds both byte images, so either end can be reached from anywhere in between: rolling back gives the file
as it was before the repair, completing gives what was planned.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

from workbench.errors import ImageError
from workbench.repair import fingerprint
from workbench.repair.apply import (
    OnProgress,
    Recheck,
    _quiet,
    added_since,
    carry_out,
    open_locked,
    recording,
    write_new,
    write_old,
)
from workbench.repair.casefile import CaseFile, Session, State
from workbench.repair.cases import case_path, foreign_byte, open_case, peek
from workbench.storage.base import Storage
from workbench.storage.overlay import Overlay


@dataclass(frozen=True, slots=True)
class Recovered:
    """How an interrupted session ended. completed: the plan was carried out; else the old bytes are back.

    foreign: something else had written to the image since, and that was overruled (`force`).
    """

    session: Session
    completed: bool
    foreign: bool = False

    @property
    def faithful(self) -> bool:
        """Whether the image is wholly what it was, or wholly what was planned."""
        return not self.foreign

    def __str__(self) -> str:
        """What is true of the image now, in one clause."""
        if self.completed:
            return "completed" + ("; the image also holds what something else wrote since" if self.foreign else "")
        if self.foreign:
            return (
                "rolled back: its ranges hold their old bytes, all else that was written since is kept;"
                " the image is NOT what it was before, check it"
            )
        return "rolled back: the image is what it was before"


def interrupted(path: str | os.PathLike[str], *, case: str | os.PathLike[str] | None = None) -> Session | None:
    """The interrupted session of an image, looked up without writing; None when all is in order."""
    return peek(path, case)


def recover(
    path: str | os.PathLike[str],
    *,
    complete: bool = False,
    case: str | os.PathLike[str] | None = None,
    force: bool = False,
    recheck: Recheck | None = None,
    progress: OnProgress | None = None,
) -> Recovered | None:
    """End the interrupted session of the image, if there is one: roll it back, or `complete` it.

    Raises LockedError while the session is still at work elsewhere, ImageError when something else has written to the
    image since (`force` overrides).
    """
    if not case_path(path, case).exists():
        return None
    with open_locked(path) as storage, open_case(path, case, create=False) as casefile:
        return recover_in(storage, casefile, complete=complete, force=force, recheck=recheck, progress=progress)


def recover_in(
    storage: Storage,
    casefile: CaseFile,
    *,
    complete: bool = False,
    force: bool = False,
    recheck: Recheck | None = None,
    progress: OnProgress | None = None,
) -> Recovered | None:
    """`recover` on an image that is open and locked already."""
    session = casefile.interrupted()
    if session is None:
        return None
    report = progress or _quiet
    foreign = False
    try:
        _require_in_between(storage, casefile, session)
    except ImageError:
        if not force:
            raise
        foreign = True
    if complete and session.state is State.UNDOING:
        write_new(storage, casefile, session, report)
        after = fingerprint.take(storage)
        with recording(casefile, "the repair is written"):
            casefile.move(
                session.id, State.DONE, note="undo interrupted; the repair was put back",
                fingerprint_after=after, left=fingerprint.stamp(storage),
            )  # fmt: skip
    elif complete:
        carry_out(storage, casefile, session, recheck=recheck, progress=progress)
    else:
        if session.state is not State.PLANNED and session.state is not State.JOURNALED:
            write_old(storage, casefile, session, report)
        ended = State.UNDONE if session.state is State.UNDOING else State.ROLLED_BACK
        with recording(casefile, "the old bytes are back"):
            casefile.move(session.id, ended, note="interrupted; rolled back", left=fingerprint.stamp(storage))
    return Recovered(casefile.session(session.id), complete, foreign)


def settled_view(storage: Storage, session: Session, casefile: CaseFile, *, complete: bool = False) -> Overlay:
    """The image as `recover` would leave it, on top of a file that stays as it is. Raises ImageError as `recover` does."""
    _require_in_between(storage, casefile, session)
    view = Overlay(storage)
    if complete or session.state not in (State.PLANNED, State.JOURNALED):
        for edit in casefile.edits(session.id):
            data = edit.new if complete else edit.old
            if data:
                view.write(edit.offset, data)
        view.truncate(session.size_after if complete else session.size_before)
    return view


def _require_in_between(storage: Storage, casefile: CaseFile, session: Session) -> None:
    """Every byte that the session touches must be its old or its new one; anything else was written by someone else."""
    if session.state in (State.PLANNED, State.JOURNALED):
        changed = fingerprint.compare(storage, session.fingerprint_before)
        if changed:
            raise _foreign(storage, session, str(changed[0]), changed[0].offset)
    if added_since(storage, session):
        longest = max(session.size_before, session.size_after)
        raise _foreign(storage, session, "the file is longer than it ever was", longest)
    for edit in casefile.edits(session.id):
        at = foreign_byte(storage.read(edit.offset, max(len(edit.old), len(edit.new))), edit)
        if at is not None:
            raise _foreign(storage, session, "bytes that are neither the old nor the new ones", edit.offset + at)


def _foreign(storage: Storage, session: Session, what: str, offset: int) -> ImageError:
    return ImageError(
        f"something else wrote to the image after session {session.id} was interrupted: {what}",
        path=storage.path,
        offset=offset,
        hint=f"look at it first; --force {'overwrites' if session.state is not State.JOURNALED else 'goes on'} all the same",
    )
