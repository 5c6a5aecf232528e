"""One open image as the workbench sees it: file, metadata, outline, pages of bytes, history, bookmarks.

`load` does the reading (in a worker) and never changes the file; a Session lives on the event loop.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workbench.engine.faults import Fault, Refusal
from workbench.engine.metadata import Metadata, load_metadata
from workbench.errors import QwbError, StorageError
from workbench.storage.file import FileStorage
from workbench.storage.locks import LockState, state_of
from workbench.tui.background import Background, Pages
from workbench.tui.outline import Outline
from workbench.tui.place import History, Place
from workbench.units import format_size

if TYPE_CHECKING:
    from workbench.engine.gate import OpenRequest
    from workbench.engine.image import Image
    from workbench.storage.base import Storage
    from workbench.tui.sources import Source


class Trouble(Enum):
    """Why an image cannot be browsed as one; NONE when it can."""

    NONE = "none"
    MISSING = "missing"
    DIRECTORY = "directory"
    PERMISSION = "permission"
    UNREADABLE = "unreadable"
    EMPTY = "empty"
    TRUNCATED = "truncated"
    NOT_QCOW2 = "not qcow2"


@dataclass(frozen=True, slots=True)
class Loaded:
    """What a look at the file gave. storage, meta, outline: None when it could not even be opened."""

    path: str
    trouble: Trouble
    what: str = ""
    storage: Storage | None = None
    meta: Metadata | None = None
    outline: Outline | None = None
    lock: LockState | None = None
    identity: tuple[int, int, int] = (0, 0, 0)


def load(path: str | os.PathLike[str]) -> Loaded:
    """Open read-only and read the metadata. Never raises on content; what the system refuses becomes `trouble`."""
    name = os.fspath(path)
    try:
        if stat.S_ISDIR(os.stat(name).st_mode):
            return Loaded(name, Trouble.DIRECTORY, "this is a directory")
        storage = FileStorage.open(name)
    except FileNotFoundError:
        return Loaded(name, Trouble.MISSING, "there is no such file")
    except PermissionError:
        return Loaded(name, Trouble.PERMISSION, _denied(name))
    except (StorageError, OSError, ValueError) as error:
        denied = os.path.exists(name) and not os.access(name, os.R_OK)
        what = error.what if isinstance(error, QwbError) else str(error)
        return Loaded(name, Trouble.PERMISSION if denied else Trouble.UNREADABLE, _denied(name) if denied else what)
    return examine(storage, name)


def _denied(name: str) -> str:
    """Whose file it is, and who may read it, as far as the system says even that."""
    import pwd

    def called(number: int) -> str:
        try:
            return pwd.getpwuid(number).pw_name
        except KeyError:
            return f"user {number}"

    try:
        found = os.stat(name)
    except OSError:
        return f"{called(os.geteuid())} may not even look into its folder"
    return f"it belongs to {called(found.st_uid)}, mode {stat.filemode(found.st_mode)}; you are {called(os.geteuid())}"


def examine(storage: Storage, name: str) -> Loaded:
    """As `load`, for bytes that are open already (an overlay with a repair in it, for example)."""
    try:
        lock = state_of(storage) if isinstance(storage, FileStorage) else None
        meta = load_metadata(storage)
        outline = Outline(meta)
    except StorageError as error:
        storage.close()
        return Loaded(name, Trouble.UNREADABLE, error.what)
    trouble, what = Trouble.NONE, ""
    if meta.file_size == 0:
        trouble, what = Trouble.EMPTY, "the file is empty"
    elif not meta.is_qcow2:
        trouble, what = Trouble.NOT_QCOW2, "it does not begin with the qcow2 magic"
    elif meta.file_size < 72:
        trouble, what = Trouble.TRUNCATED, "the file ends inside the header"
    return Loaded(name, trouble, what, storage, meta, outline, lock, identity_of(name))


def identity_of(path: str) -> tuple[int, int, int]:
    """(size, mtime in ns, inode): changes when the file does, or another takes its name. (0, 0, 0) when it is gone."""
    try:
        found = os.stat(path)
    except OSError:
        return (0, 0, 0)
    return found.st_size, found.st_mtime_ns, found.st_ino


def change_between(was: tuple[int, int, int], now: tuple[int, int, int]) -> str:
    """What happened to a file, in words; empty when nothing did."""
    if was in (now, (0, 0, 0)):
        return ""
    if now == (0, 0, 0):
        return "The file is gone"
    if now[2] != was[2]:
        return "Another file has taken its name"
    return "The file changed" if now[0] == was[0] else "The file grew" if now[0] > was[0] else "The file shrank"


@dataclass(frozen=True, slots=True)
class Condition:
    """The image's state in words. level: good, warn or bad."""

    word: str
    level: str


_PARTS = {
    "L1": "L1 table", "REFTABLE": "refcount table", "SNAPSHOT": "snapshot table", "BITMAP": "bitmaps",
    "LUKS": "encryption header", "ENCRYPTION": "encryption header", "BACKING": "backing file name",
}  # fmt: skip


def _part_of(fault: Fault) -> str:
    """The structure that a fault concerns, by the beginning of its code."""
    return next((name for start, name in _PARTS.items() if fault.code.startswith(start)), "header")


def gate_key(request: OpenRequest) -> str:
    """What an answer is remembered under: the same name means another file in another layer."""
    return f"{request.kind}:{request.base}:{request.stored_name}"


class Session:
    """An image that is open in the workbench. Its methods run on the event loop and read no file themselves."""

    def __init__(self, loaded: Loaded, *, title: str | None = None) -> None:
        self.path = loaded.path
        self.title = title or Path(loaded.path).name
        self.background = Background()
        self.history = History()
        self.bookmarks: list[Place] = []
        self.secret: bytes | None = None
        self.image: Image | None = None
        self.start_at: str | None = None
        self.opening = False
        self.guest_wanted: list[Callable[[Pages], None]] = []
        self.guest_wait = ""
        self.allowed: dict[str, Path | None] = {}
        """Answers about the files that the image names, by `gate_key`: what to open, None for nothing."""
        self.sources: dict[int, tuple[Source, ...]] = {}
        self.asked: set[int] = set()
        self.changed_underneath = ""
        self.simulated = False
        self.repaired_before = False
        self.check: Any = None
        self.search: Any = None
        self.mark: tuple[int, int] | None = None
        self.mark_from: int | None = None
        self.mark_hash = ""
        self.on_pages: Callable[[], None] = lambda: None
        self.adopt(loaded)

    def adopt(self, loaded: Loaded) -> None:
        """Take over what a (new) look at the file gave."""
        assert loaded.storage is not None and loaded.meta is not None and loaded.outline is not None
        self.storage, self.meta, self.outline = loaded.storage, loaded.meta, loaded.outline
        self.trouble, self.what = loaded.trouble, loaded.what
        self.lock, self.identity = loaded.lock, loaded.identity
        self.pages = Pages(self.background, self.storage.read, self.more_pages)
        self.guest_pages: Pages | None = None

    def more_pages(self) -> None:
        """Bytes have come in: whoever shows them draws again."""
        self.on_pages()

    @property
    def condition(self) -> Condition:
        """Clean, dirty, corrupt, damaged header, in use, not qcow2: what the header and the locks say (not the check)."""
        if self.trouble is not Trouble.NONE:
            return Condition(self.trouble.value if self.trouble is not Trouble.NOT_QCOW2 else "not qcow2", "bad")
        if self.changed_underneath:
            return Condition("changed since it was read", "warn")
        worst = [fault for fault in self.meta.faults if fault.refusal >= Refusal.OPEN]
        if worst:
            return Condition(f"damaged {_part_of(worst[0])}", "bad")
        if self.meta.header.has("corrupt"):
            return Condition("marked corrupt", "bad")
        if self.lock is not None and self.lock.in_motion:
            return Condition("in use by another process", "warn")
        if self.meta.header.has("dirty"):
            return Condition("dirty", "warn")
        if self.meta.faults:
            return Condition(f"odd {_part_of(self.meta.faults[0])}", "warn")
        return Condition("clean", "good")

    @property
    def summary(self) -> str:
        """Sizes and version, for the header line."""
        meta = self.meta
        if self.trouble is not Trouble.NONE:
            return f"{format_size(meta.file_size)} file"
        cipher = {1: " · AES", 2: " · LUKS"}.get(meta.header.crypt_method, "")
        return f"{format_size(meta.header.size)} disk · {format_size(meta.file_size)} file · v{meta.header.version}{cipher}"

    @property
    def encrypted(self) -> bool:
        return self.meta.geometry is not None and self.meta.header.crypt_method in (1, 2)

    def close_guest(self) -> None:
        """Give the guest's view of the image back."""
        if self.image is not None:
            self.image.close()
        self.image = self.guest_pages = None
        self.guest_wait = ""
        self.sources.clear()
        self.asked.clear()

    def release(self) -> None:
        """Close the files, to take over new ones."""
        self.close_guest()
        self.storage.close()

    def close(self) -> None:
        """Stop all work and close the files."""
        self.background.close()
        self.release()
