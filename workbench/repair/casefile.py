"""The case file: an SQLite file beside the image that holds every repair session with old and new bytes.

One file, synced at each commit (rollback journal, synchronous=EXTRA), so that it survives a power cut together with the
image it speaks of. A session walks planned -> journaled -> writing -> done -> undoing -> undone, or ends rolled-back.
Byte images are cut into pieces of at most 1 MiB; an all-zero piece takes no space.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from enum import Enum
from importlib import metadata
from pathlib import Path
from types import TracebackType
from typing import Any, Final

from workbench.errors import ArgumentError, QwbError, StorageError

SUFFIX: Final = ".qwb-case"
PIECE: Final = 1 << 20
"""Largest byte image in one row."""
_FORMAT: Final = 1

_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS facts (name TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS sessions (
  id INTEGER PRIMARY KEY, state TEXT NOT NULL, title TEXT NOT NULL, tool TEXT NOT NULL,
  image TEXT NOT NULL, created REAL NOT NULL, changed REAL NOT NULL,
  size_before INTEGER NOT NULL, size_after INTEGER NOT NULL,
  fingerprint_before TEXT NOT NULL, fingerprint_after TEXT,
  plan TEXT NOT NULL, verdict TEXT);
CREATE TABLE IF NOT EXISTS edits (
  session INTEGER NOT NULL REFERENCES sessions(id), number INTEGER NOT NULL, offset INTEGER NOT NULL,
  old_length INTEGER NOT NULL, new_length INTEGER NOT NULL, old BLOB, new BLOB,
  old_hash BLOB NOT NULL, new_hash BLOB NOT NULL, PRIMARY KEY (session, number)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS history (
  session INTEGER NOT NULL REFERENCES sessions(id), at REAL NOT NULL, state TEXT NOT NULL, note TEXT NOT NULL);
"""


class State(Enum):
    """Where a session stands."""

    PLANNED = "planned"
    JOURNALED = "journaled"
    """Both byte images are durable here; the image file is untouched."""
    WRITING = "writing"
    DONE = "done"
    UNDOING = "undoing"
    UNDONE = "undone"
    ROLLED_BACK = "rolled-back"

    @property
    def interrupted(self) -> bool:
        """True when a session found in this state, with nobody at work, was cut off."""
        return self in (State.PLANNED, State.JOURNALED, State.WRITING, State.UNDOING)


_NEXT: Final = {
    State.PLANNED: {State.JOURNALED, State.ROLLED_BACK},
    State.JOURNALED: {State.WRITING, State.ROLLED_BACK},
    State.WRITING: {State.DONE, State.ROLLED_BACK},
    State.DONE: {State.UNDOING},
    State.UNDOING: {State.UNDONE, State.DONE},
    State.UNDONE: set[State](),
    State.ROLLED_BACK: set[State](),
}


@dataclass(frozen=True, slots=True)
class ByteEdit:
    """One changed range of the file. `old` is shorter where the file ended before, `new` where it ends afterwards."""

    offset: int
    old: bytes
    new: bytes


@dataclass(frozen=True, slots=True)
class Session:
    """One repair (or edit by hand) as recorded. Sizes in bytes, times in seconds since 1970."""

    id: int
    state: State
    title: str
    tool: str
    image: str
    created: float
    changed: float
    size_before: int
    size_after: int
    fingerprint_before: dict[str, Any]
    fingerprint_after: dict[str, Any] | None
    plan: dict[str, Any]
    verdict: dict[str, Any] | None
    edits: int
    """Number of byte edits."""

    @property
    def when(self) -> str:
        """Local time of its start, for people."""
        return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(self.created))


def case_path(image: str | os.PathLike[str], case: str | os.PathLike[str] | None = None) -> Path:
    """Where the case file of `image` is: `case` when given, else beside the image."""
    return Path(case) if case is not None else Path(f"{os.fspath(image)}{SUFFIX}")


def tool_version() -> str:
    """`qwb 0.1.0`, for the record."""
    try:
        return f"qwb {metadata.version('qcow2-workbench')}"
    except metadata.PackageNotFoundError:
        return "qwb (not installed)"


class CaseFile:
    """An open case file. Raises StorageError when the file is damaged, in use, or cannot be written."""

    def __init__(self, path: str | os.PathLike[str], *, create: bool = True) -> None:
        self.path = Path(path)
        self.on_state: Callable[[State], None] | None = None
        """Called after each durable change of state (crash tests stop here)."""
        existed = self.path.exists()
        if not existed and not create:
            raise StorageError("no case file: nothing was ever repaired here by qwb", path=str(self.path))
        self._db = self._connect()
        try:
            with self._guard():
                self._db.execute("PRAGMA journal_mode=DELETE")
                self._db.execute("PRAGMA synchronous=EXTRA")
                self._db.executescript(_SCHEMA)
                self._check_format()
        except QwbError:
            self._db.close()
            raise
        if not existed:
            _sync_folder(self.path.parent)

    def _connect(self) -> sqlite3.Connection:
        with self._guard():
            return sqlite3.connect(self.path, isolation_level=None, timeout=5.0)
        raise AssertionError("unreachable")

    def _check_format(self) -> None:
        row = self._db.execute("SELECT value FROM facts WHERE name='format'").fetchone()
        if row is None:
            self._db.execute("INSERT INTO facts VALUES ('format', ?)", (str(_FORMAT),))
        elif row[0] != str(_FORMAT):
            raise StorageError(
                f"case file of format {row[0]}, this version reads {_FORMAT}",
                path=str(self.path),
                hint="use the version of qwb that wrote it",
            )

    # -- sessions

    def sessions(self) -> list[Session]:
        """All sessions, oldest first."""
        with self._guard():
            rows = self._db.execute(
                "SELECT s.*, (SELECT COUNT(*) FROM edits e WHERE e.session = s.id) FROM sessions s ORDER BY id"
            ).fetchall()
        return [_session(row) for row in rows]

    def session(self, number: int) -> Session:
        """One session by its number; ArgumentError when there is none."""
        for each in self.sessions():
            if each.id == number:
                return each
        raise ArgumentError(f"no session {number}", path=str(self.path), hint="`qwb undo IMAGE --list` shows them")

    def interrupted(self) -> Session | None:
        """The session that was cut off, if any (there is at most one: a new one is refused while it is there)."""
        return next((each for each in self.sessions() if each.state.interrupted), None)

    def begin(
        self,
        *,
        title: str,
        image: str,
        size_before: int,
        size_after: int,
        fingerprint: dict[str, Any],
        plan: dict[str, Any],
        edits: Iterable[ByteEdit],
    ) -> Session:
        """Store a session with all its bytes; when this returns it is durable and in state journaled."""
        if cut := self.interrupted():
            raise StorageError(
                f"session {cut.id} was interrupted ({cut.state.value})",
                path=str(self.path),
                hint="finish it first: `qwb repair IMAGE --recover`",
            )
        now = time.time()
        with self._guard(), self._transaction():
            cursor = self._db.execute(
                "INSERT INTO sessions (state, title, tool, image, created, changed, size_before, size_after,"
                " fingerprint_before, plan) VALUES (?,?,?,?,?,?,?,?,?,?)",
                (
                    State.JOURNALED.value,
                    title,
                    tool_version(),
                    image,
                    now,
                    now,
                    size_before,
                    size_after,
                    json.dumps(fingerprint),
                    json.dumps(plan),
                ),
            )
            number = cursor.lastrowid
            assert number is not None
            self._db.executemany("INSERT INTO edits VALUES (?,?,?,?,?,?,?,?,?)", _rows(number, edits))
            self._note(number, State.PLANNED, "")
            self._note(number, State.JOURNALED, "")
        _sync_folder(self.path.parent)
        if self.on_state:
            self.on_state(State.JOURNALED)
        return self.session(number)

    def move(
        self,
        number: int,
        state: State,
        *,
        note: str = "",
        fingerprint_after: dict[str, Any] | None = None,
        verdict: dict[str, Any] | None = None,
    ) -> None:
        """Change a session's state durably. ArgumentError for a step that the state machine does not have."""
        now = self.session(number).state
        if state not in _NEXT[now]:
            raise ArgumentError(f"session {number} cannot go from {now.value} to {state.value}", path=str(self.path))
        with self._guard(), self._transaction():
            self._db.execute(
                "UPDATE sessions SET state=?, changed=?, fingerprint_after=COALESCE(?, fingerprint_after),"
                " verdict=COALESCE(?, verdict) WHERE id=?",
                (
                    state.value,
                    time.time(),
                    None if fingerprint_after is None else json.dumps(fingerprint_after),
                    None if verdict is None else json.dumps(verdict),
                    number,
                ),
            )
            self._note(number, state, note)
        if self.on_state:
            self.on_state(state)

    def edits(self, number: int) -> Iterator[ByteEdit]:
        """The byte edits of a session in order, read one by one. StorageError when stored bytes fail their hash."""
        with self._guard():
            cursor = self._db.execute(
                "SELECT offset, old_length, new_length, old, new, old_hash, new_hash, number FROM edits"
                " WHERE session=? ORDER BY number",
                (number,),
            )
            for offset, old_length, new_length, old, new, old_hash, new_hash, at in cursor:
                edit = ByteEdit(
                    offset, bytes(old_length) if old is None else old, bytes(new_length) if new is None else new
                )
                if _hash(edit.old) != old_hash or _hash(edit.new) != new_hash:
                    raise StorageError(
                        f"edit {at} of session {number} fails its hash: the case file itself is damaged",
                        path=str(self.path),
                        hint="restore the case file from a copy",
                    )
                yield edit

    def history(self, number: int) -> list[tuple[float, str, str]]:
        """(time, state, note) of each step of a session."""
        with self._guard():
            return self._db.execute(
                "SELECT at, state, note FROM history WHERE session=? ORDER BY rowid", (number,)
            ).fetchall()
        raise AssertionError("unreachable")

    # -- end of life

    def close(self) -> None:
        self._db.close()

    def __enter__(self) -> CaseFile:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    # -- inside

    def _note(self, number: int, state: State, note: str) -> None:
        self._db.execute("INSERT INTO history VALUES (?,?,?,?)", (number, time.time(), state.value, note))

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            self._db.execute("ROLLBACK")
            raise
        self._db.execute("COMMIT")

    @contextlib.contextmanager
    def _guard(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise StorageError(
                f"the case file cannot be used: {error}",
                path=str(self.path),
                hint="name another one with --case, or move this one away",
            ) from error


def peek(image: str | os.PathLike[str], case: str | os.PathLike[str] | None = None) -> Session | None:
    """The interrupted session of an image, looked up without writing anything; None when there is none.

    A case file that was itself cut off in the middle of a commit needs recovery before it can be read; then, and when it
    cannot be read at all, StorageError says so.
    """
    path = case_path(image, case)
    if not path.exists():
        return None
    try:
        db = sqlite3.connect(f"file:{_quoted(path)}?mode=ro", uri=True, timeout=5.0)
        try:
            rows = db.execute(
                "SELECT s.*, (SELECT COUNT(*) FROM edits e WHERE e.session = s.id) FROM sessions s ORDER BY id"
            ).fetchall()
        finally:
            db.close()
    except sqlite3.Error as error:
        if not path.stat().st_size:
            return None  # created, and cut off before anything was stored
        raise StorageError(
            f"the case file cannot be read: {error}", path=str(path), hint="run `qwb repair IMAGE --recover`"
        ) from error
    return next((each for each in map(_session, rows) if each.state.interrupted), None)


def _quoted(path: Path) -> str:
    from urllib.parse import quote

    return quote(str(path.absolute()))


def _session(row: tuple[Any, ...]) -> Session:
    number, state, title, tool, image, created, changed, before, after, print_before, print_after, plan, verdict, n = (
        row
    )
    return Session(
        number,
        State(state),
        title,
        tool,
        image,
        created,
        changed,
        before,
        after,
        json.loads(print_before),
        json.loads(print_after) if print_after else None,
        json.loads(plan),
        json.loads(verdict) if verdict else None,
        n,
    )


def _rows(session: int, edits: Iterable[ByteEdit]) -> Iterator[tuple[Any, ...]]:
    number = 0
    for edit in edits:
        length = max(len(edit.old), len(edit.new))
        for start in range(0, length, PIECE):
            old, new = edit.old[start : start + PIECE], edit.new[start : start + PIECE]
            yield (
                session,
                number,
                edit.offset + start,
                len(old),
                len(new),
                None if not any(old) else old,
                None if not any(new) else new,
                _hash(old),
                _hash(new),
            )
            number += 1


def _hash(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


def _sync_folder(folder: Path) -> None:
    """Make a new name durable."""
    try:
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise StorageError(f"cannot sync the folder: {error.strerror}", path=str(folder)) from error
    try:
        os.fsync(fd)
    except OSError:
        return  # some file systems have no fsync for folders; the file itself is synced
    finally:
        os.close(fd)
