"""Undo: put back, bit for bit, what a repair session replaced, the file's length included."""

from __future__ import annotations

import os
from collections.abc import Iterator

from workbench.errors import ArgumentError, ImageError
from workbench.repair import fingerprint
from workbench.repair.apply import OnProgress, Phase, Progress, _quiet, open_locked, write_old
from workbench.repair.casefile import CaseFile, Session, State, case_path
from workbench.repair.fingerprint import Changed
from workbench.storage.base import Storage


def sessions(path: str | os.PathLike[str], *, case: str | os.PathLike[str] | None = None) -> list[Session]:
    """All sessions of an image, oldest first; empty when there is no case file."""
    where = case_path(path, case)
    if not where.exists():
        return []
    with CaseFile(where, create=False) as casefile:
        return casefile.sessions()


def undo(
    path: str | os.PathLike[str],
    number: int | None = None,
    *,
    case: str | os.PathLike[str] | None = None,
    force: bool = False,
    progress: OnProgress | None = None,
) -> Session:
    """Undo session `number` (the newest one that stands, when None); returns it, now undone.

    Raises ImageError when the image has changed since, naming where (`force` overrides), LockedError when someone has
    it open, ArgumentError when there is nothing to undo or a later session must be undone first.
    """
    with open_locked(path) as storage, CaseFile(case_path(path, case), create=False) as casefile:
        return undo_in(storage, casefile, number, force=force, progress=progress)


def undo_in(
    storage: Storage,
    casefile: CaseFile,
    number: int | None = None,
    *,
    force: bool = False,
    progress: OnProgress | None = None,
) -> Session:
    """`undo` on an image that is open and locked already."""
    report = progress or _quiet
    session = _choose(casefile, number, storage.path)
    report(Progress(Phase.FINGERPRINT))
    if not force:
        for change in changes_since(storage, casefile, session):
            raise ImageError(
                f"the image has changed since session {session.id}: {change.what}",
                path=storage.path,
                offset=change.offset,
                hint="undoing would mix old and new; --force does it all the same",
            )
    casefile.move(session.id, State.UNDOING)
    write_old(storage, casefile, session, report)
    casefile.move(session.id, State.UNDONE)
    return casefile.session(session.id)


def changes_since(storage: Storage, casefile: CaseFile, session: Session) -> Iterator[Changed]:
    """Where the image is no longer what the session left: its own bytes first, then any other metadata."""
    for edit in casefile.edits(session.id):
        found = storage.read(edit.offset, len(edit.new))
        if found != edit.new:
            at = next(
                (i for i, pair in enumerate(zip(found, edit.new, strict=False)) if pair[0] != pair[1]), len(found)
            )
            yield Changed("bytes that the repair wrote", edit.offset + at, 1)
    if session.fingerprint_after is not None:
        yield from fingerprint.compare(storage, session.fingerprint_after)


def _choose(casefile: CaseFile, number: int | None, path: str) -> Session:
    every = casefile.sessions()
    if cut := next((each for each in every if each.state.interrupted), None):
        raise ImageError(
            f"session {cut.id} was interrupted ({cut.state.value})", path=path, hint="run `qwb repair IMAGE --recover`"
        )
    done = [each for each in every if each.state is State.DONE]
    if number is None:
        if not done:
            raise ArgumentError("nothing to undo", path=path)
        return done[-1]
    session = casefile.session(number)
    if session.state is not State.DONE:
        raise ArgumentError(f"session {number} is {session.state.value}: nothing to undo", path=path)
    later = [str(each.id) for each in done if each.id > number]
    if later:
        raise ArgumentError(
            f"session {number} was followed by {', '.join(later)}", path=path, hint="undo the later ones first"
        )
    return session
