"""Undo: put back, bit for bit, what a repair session replaced, the file's length included."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from typing import Any

from workbench.errors import ArgumentError, ImageError
from workbench.repair import fingerprint
from workbench.repair.apply import OnProgress, Phase, Progress, _quiet, added_since, open_locked, recording, write_old
from workbench.repair.casefile import ByteEdit, CaseFile, Session, State
from workbench.repair.cases import case_path, open_case
from workbench.repair.fingerprint import Changed
from workbench.storage.base import Storage


class Truth(Enum):
    """What is true of the image after an undo."""

    EXACT = "what it was before"
    """Nobody wrote to it in between, as far as its bytes and its time stamp tell."""
    WRITTEN_SINCE = "written to since"
    """All that the repair changed, and the metadata, were as the repair left them and are now as before it; the file's time
    stamp says that something was written in between, and that is kept."""
    UNTOLD = "as far as can be told"
    """As WRITTEN_SINCE, but there is no time stamp to go by: block devices have none."""
    MIXED = "old and new"
    """Forced: the repair's ranges hold their old bytes, what was written into them is gone, all else is kept."""


@dataclass(frozen=True, slots=True)
class Undone:
    """How an undo ended. overwritten: bytes, written into the session's ranges since, that are gone.  kept: bytes at the
    end of the file, written since, that are still there.  first: the first place that had changed."""

    session: Session
    truth: Truth
    overwritten: int = 0
    kept: int = 0
    first: Changed | None = None

    @property
    def faithful(self) -> bool:
        """Whether the image is what it was before the repair, as far as can be told."""
        return self.truth is Truth.EXACT

    @property
    def id(self) -> int:
        return self.session.id

    @property
    def state(self) -> State:
        return self.session.state

    def __str__(self) -> str:
        """What is true of the image now, in one sentence."""
        if self.truth is Truth.EXACT:
            return "the image is what it was before"
        if self.truth is Truth.WRITTEN_SINCE:
            return (
                "all that the repair changed holds its old bytes again; the file was written to since,"
                " and what was written elsewhere is kept"
            )
        if self.truth is Truth.UNTOLD:
            return (
                "all that the repair changed holds its old bytes again;"
                " whether something else was written in between cannot be told here"
            )
        lost = f"{self.overwritten} bytes written there since are overwritten" if self.overwritten else ""
        tail = f"{self.kept} bytes that were added at its end since are kept" if self.kept else ""
        more = "".join(f"; {each}" for each in (lost, tail) if each)
        return (
            f"the ranges of the repair hold their old bytes again{more}; what was written elsewhere since is kept:"
            " the image mixes old and new and is NOT what it was before; check it"
        )


def sessions(path: str | os.PathLike[str], *, case: str | os.PathLike[str] | None = None) -> list[Session]:
    """All sessions of an image, oldest first; empty when there is no case file."""
    where = case_path(path, case)
    if not where.exists():
        return []
    with CaseFile(where, create=False, readonly=True) as casefile:
        return casefile.sessions()


def undo(
    path: str | os.PathLike[str],
    number: int | None = None,
    *,
    case: str | os.PathLike[str] | None = None,
    force: bool = False,
    progress: OnProgress | None = None,
) -> Undone:
    """Undo session `number` (the newest one that stands, when None); returns what it is then, and what the image is.

    Raises ImageError when the image has changed since, naming where (`force` overrides), LockedError when someone has
    it open, ArgumentError when there is nothing to undo or a later session must be undone first.
    """
    with open_locked(path) as storage, open_case(path, case, create=False) as casefile:
        return undo_in(storage, casefile, number, force=force, progress=progress)


def undo_in(
    storage: Storage,
    casefile: CaseFile,
    number: int | None = None,
    *,
    force: bool = False,
    progress: OnProgress | None = None,
) -> Undone:
    """`undo` on an image that is open and locked already."""
    report = progress or _quiet
    session = _choose(casefile, number, storage.path)
    report(Progress(Phase.FINGERPRINT))
    first = next(changes_since(storage, casefile, session), None)
    if first is not None and not force:
        raise ImageError(
            f"the image has changed since session {session.id}: {first.what}",
            path=storage.path,
            offset=first.offset,
            hint="undoing would mix old and new; --force does it all the same",
        )
    truth = _since(storage, casefile.left() or session.fingerprint_after or {})
    overwritten = kept = 0
    if first is not None:
        truth = Truth.MIXED
        kept = added_since(storage, session)
        overwritten = sum(_differing(storage, edit, bool(kept)) for edit in casefile.edits(session.id))
    casefile.move(session.id, State.UNDOING)
    write_old(storage, casefile, session, report)
    with recording(casefile, "the undo is written"):
        casefile.move(session.id, State.UNDONE, note=truth.value, left=fingerprint.stamp(storage))
    return Undone(casefile.session(session.id), truth, overwritten, kept, first)


def _since(storage: Storage, left: dict[str, Any]) -> Truth:
    """Whether something was written since the image was left, as far as its time stamp tells."""
    was, now = left.get("mtime_ns"), fingerprint.stamp(storage).get("mtime_ns")
    if was is None or now is None or not storage.growable:  # writing to a device leaves no time
        return Truth.UNTOLD
    return Truth.EXACT if was == now else Truth.WRITTEN_SINCE


def _differing(storage: Storage, edit: ByteEdit, longer: bool) -> int:
    """Bytes of an edit's range, written since, that undoing takes away. longer: the file's end stays where it is."""
    length = len(edit.old) if longer else max(len(edit.old), len(edit.new))
    found = storage.read(edit.offset, length)
    new, old = edit.new.ljust(length, b"\0"), edit.old.ljust(length, b"\0")
    if found in (new[: len(found)], old[: len(found)]):
        return 0
    return sum(byte not in pair for byte, pair in zip(found, zip(new, old, strict=True), strict=False))


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
