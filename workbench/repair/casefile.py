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
import shutil
import sqlite3
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from enum import Enum
from importlib import metadata
from pathlib import Path
from types import TracebackType
from typing import Any, Final
from urllib.parse import quote

from workbench.errors import ArgumentError, QwbError, StorageError
from workbench.repair.places import make_folder, remember
from workbench.storage.identity import Identity, identities
from workbench.storage.likeness import create_like, tighten
from workbench.units import round_up

PIECE: Final = 1 << 20
"""Largest byte image in one row."""
_FORMAT: Final = 1
_ROOM: Final = 256 << 10
"""Bytes that a session takes at least: plan, fingerprints, SQLite's pages and its journal."""

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


def tool_version() -> str:
    """`qwb 0.1.0`, for the record."""
    try:
        return f"qwb {metadata.version('qcow2-workbench')}"
    except metadata.PackageNotFoundError:
        return "qwb (not installed)"


class CaseFile:
    """An open case file. Raises StorageError when the file is damaged, in use, or cannot be written."""

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        create: bool = True,
        like: str | os.PathLike[str] | None = None,
        readonly: bool = False,
    ) -> None:
        """like: the image; the case file gets its owner and mode, or stricter.  readonly: nothing is written, unless it
        was cut off in the middle of a commit: then that is rolled back first (in a copy, where it may not be written).
        """
        self.path = Path(path)
        self.on_state: Callable[[State], None] | None = None
        """Called after each durable change of state (crash tests stop here)."""
        self._holds = True
        self._copy: tempfile.TemporaryDirectory[str] | None = None
        existed = os.path.lexists(self.path)
        if not existed and (readonly or not create):
            raise StorageError("no case file: nothing was ever repaired here by qwb", path=str(self.path))
        if not existed:
            self._make(like)
        elif like is not None and not readonly:
            tighten(self.path, like)
        self._db = self._connect_reading() if readonly else self._connect("rw")
        if readonly:
            return
        try:
            with self._guard():
                self._db.execute("PRAGMA journal_mode=DELETE")
                self._db.execute("PRAGMA synchronous=EXTRA")
                with self._transaction():
                    for statement in filter(str.strip, _SCHEMA.split(";")):
                        self._db.execute(statement)
                    self._check_format()
                self._holds = bool(self._db.execute("SELECT COUNT(*) FROM sessions").fetchone()[0])
        except QwbError:
            self.close()
            raise
        if not existed:
            _sync_folder(self.path.parent)

    def _make(self, like: str | os.PathLike[str] | None) -> None:
        """An empty file with the right owner and mode, before SQLite writes a byte into it (its journals follow it)."""
        try:
            if not self.path.parent.exists() and self.path.parent.name == "cases":
                make_folder(self.path.parent)
            os.close(create_like(self.path, like))
        except OSError as error:
            raise StorageError(
                f"the case file cannot be made: {error.strerror}",
                path=str(self.path),
                hint="name another one with --case",
            ) from error

    def _connect(self, mode: str, path: Path | None = None) -> sqlite3.Connection:
        with self._guard():
            name = f"file:{quote(str((path or self.path).absolute()))}?mode={mode}"
            return sqlite3.connect(name, uri=True, isolation_level=None, timeout=5.0)
        raise AssertionError("unreachable")

    def _connect_reading(self) -> sqlite3.Connection:
        """A connection that reads. A journal of a commit that was cut off makes that impossible before it is rolled back."""
        journal = Path(f"{self.path}-journal")
        ways: list[Callable[[], sqlite3.Connection]] = [lambda: self._connect("ro")]
        if journal.exists():
            ways += [lambda: self._connect("rw"), self._connect_copy]
        for way in ways:
            db = way()
            try:
                db.execute("SELECT COUNT(*) FROM sqlite_master").fetchone()
                return db
            except sqlite3.Error as error:
                db.close()
                last = error
        with self._guard():
            raise last
        raise AssertionError("unreachable")

    def _connect_copy(self) -> sqlite3.Connection:
        self._copy = tempfile.TemporaryDirectory(prefix="qwb-case-")
        place = Path(self._copy.name) / "case"
        try:
            for suffix in ("", "-journal"):
                shutil.copyfile(f"{self.path}{suffix}", f"{place}{suffix}")
        except OSError as error:
            raise StorageError(f"the case file cannot be read: {error.strerror}", path=str(self.path)) from error
        return self._connect("rw", place)

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

    # -- whose it is

    def files(self) -> list[Identity]:
        """Device and inode of the files that its sessions wrote to."""
        with self._guard():
            if not self._has("facts"):
                return []
            row = self._db.execute("SELECT value FROM facts WHERE name='files'").fetchone()
        return [("file", int(device), int(inode)) for device, inode in json.loads(row[0])] if row else []

    def left(self) -> dict[str, Any]:
        """Time stamp and identity of the image as qwb left it last; empty when that is not known."""
        with self._guard():
            row = self._db.execute("SELECT value FROM facts WHERE name='left'").fetchone()
        found: dict[str, Any] = json.loads(row[0]) if row else {}
        return found

    def _has(self, table: str) -> bool:
        return bool(self._db.execute("SELECT 1 FROM sqlite_master WHERE name=?", (table,)).fetchone())

    def _fact(self, name: str, value: Any) -> None:
        self._db.execute("INSERT OR REPLACE INTO facts VALUES (?, ?)", (name, json.dumps(value)))

    # -- sessions

    def sessions(self) -> list[Session]:
        """All sessions, oldest first."""
        with self._guard():
            if not self._has("sessions"):
                return []  # made, and cut off before anything was stored
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
        files = {each for each in identities(image) if each[0] == "file"} | set(self.files())
        with self._guard(), self._transaction():
            self._fact("files", sorted(each[1:] for each in files))
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
        self._holds = True
        _sync_folder(self.path.parent)
        remember(image, self.path)
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
        left: dict[str, Any] | None = None,
    ) -> None:
        """Change a session's state durably. ArgumentError for a step that the state machine does not have.

        left: the image's time stamp and identity as it is left now.
        """
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
            if left is not None:
                self._fact("left", left)
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

    # -- room

    def size(self) -> int:
        """Bytes of the case file on disk."""
        try:
            return self.path.stat().st_size
        except OSError:
            return 0

    def sizes(self) -> dict[int, int]:
        """Bytes that each session takes: stored old and new ones, plan and verdict."""
        with self._guard():
            if not self._has("sessions"):
                return {}
            rows = self._db.execute(
                "SELECT id, LENGTH(plan) + LENGTH(fingerprint_before) + COALESCE(LENGTH(fingerprint_after), 0)"
                " + COALESCE(LENGTH(verdict), 0) + (SELECT COALESCE(SUM(COALESCE(LENGTH(old), 0) + COALESCE(LENGTH(new), 0)), 0)"
                " FROM edits WHERE session = id) FROM sessions ORDER BY id"
            ).fetchall()
        return {int(number): int(size) for number, size in rows}

    def old_sessions(self, keep: int = 1) -> list[Session]:
        """What `prune` drops: sessions that ended without a trace in the image, and those that stand but the newest `keep`."""
        every = self.sessions()
        standing = [each.id for each in every if each.state is State.DONE]
        kept = set(standing[max(0, len(standing) - keep) :])
        return [each for each in every if each.id not in kept and not each.state.interrupted]

    def prune(self, keep: int = 1) -> list[Session]:
        """Drop `old_sessions` with their bytes, give the space back, and return them. They can then not be undone.

        Refused (StorageError) while a session is interrupted or at work.
        """
        with self._guard():
            with self._transaction():
                if cut := self.interrupted():
                    raise StorageError(
                        f"session {cut.id} is at work or was interrupted ({cut.state.value})",
                        path=str(self.path),
                        hint="finish it first: `qwb repair IMAGE --recover`",
                    )
                dropped = self.old_sessions(keep)
                for table, column in (("edits", "session"), ("history", "session"), ("sessions", "id")):
                    self._db.executemany(f"DELETE FROM {table} WHERE {column}=?", [(each.id,) for each in dropped])
            self._holds = len(self.sessions()) > 0
            if dropped:
                self._db.execute("VACUUM")
        return dropped

    # -- end of life

    def close(self) -> None:
        self._db.close()
        if self._copy is not None:
            self._copy.cleanup()

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
            self._db.execute("COMMIT")
        except BaseException:
            if self._db.in_transaction:  # some errors end it by themselves
                self._db.execute("ROLLBACK")
            raise

    @contextlib.contextmanager
    def _guard(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            code = getattr(error, "sqlite_errorcode", 0) & 0xFF
            raise StorageError(
                f"the case file cannot be used: {error}", path=str(self.path), hint=_hint(code, self._holds)
            ) from error


def _hint(code: int, holds: bool) -> str:
    """What to do about an error of SQLite. Never to move away what may be the only undo."""
    keep = "keep this file, it holds the old bytes" if holds else "or name another one with --case"
    if code == sqlite3.SQLITE_FULL:
        return f"free some space and repeat; {keep}"
    if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return "another qwb is using it: let that finish, then repeat"
    if code in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM):
        return f"see that you may write it and its folder, then repeat; {keep}"
    if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
        return "keep it, it may hold old bytes, and name another one with --case"
    return f"see what is wrong with its file system, then repeat; {keep}"


def room_for(edits: Iterable[ByteEdit]) -> int:
    """Bytes, rather too many than too few, that the case file will take for these edits."""
    total = _ROOM
    for edit in edits:
        length = max(len(edit.old), len(edit.new))
        for start in range(0, max(length, 1), PIECE):
            payload = 120 + sum(
                0
                if side.count(0, start, start + PIECE) == len(side[start : start + PIECE])
                else len(side[start : start + PIECE])
                for side in (edit.old, edit.new)
            )
            total += payload + payload // 3 if payload < 1000 else round_up(payload, 4096) + 2048
    return total


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
