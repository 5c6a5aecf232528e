"""A repaired copy: the original is only read, the copy shares its blocks where the file system can, holes stay holes."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
from pathlib import Path
from typing import Final

from workbench.errors import QwbError, StorageError
from workbench.repair.plan import Plan
from workbench.storage.base import Storage
from workbench.storage.file import FileStorage
from workbench.storage.likeness import create_like
from workbench.storage.overlay import Overlay
from workbench.storage.space import Want, content_bytes, data_runs, free_bytes, require_room

_FICLONE: Final = 0x40049409
_NO_LINKS_HERE: Final = {errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EACCES}


def repaired_copy(plan: Plan, target: str | os.PathLike[str]) -> Path:
    """Write what the plan gives to a new file `target` (which must not exist); returns its path. See `write_copy`."""
    return write_copy(plan.overlay, target, like=plan.base.path)


def write_copy(view: Overlay, target: str | os.PathLike[str], *, like: str | os.PathLike[str]) -> Path:
    """All that `view` shows as a new file, with the owner and mode of the file `like`, or stricter.

    It appears under its name only when it is complete and durable, and never in the place of anything: a name that is
    taken, be it by a link to nowhere, is refused. Raises StorageError, also when there is no room.
    """
    path = Path(target)
    require_new(path)
    draft, fd = _draft(path, like)
    try:
        with FileStorage(fd, str(draft), writable=True, is_device=False) as out:
            if not _cloned(view.base, out):
                require_copy_room(view, path)
                copy_image(view.base, out)
            view.apply_to(out)
        _take_name(draft, path)
    except (QwbError, OSError) as error:
        if isinstance(error, OSError):
            raise StorageError(f"cannot be written: {error.strerror}", path=str(path)) from error
        raise
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(draft)
    _sync_folder(path.parent)
    return path


def require_new(path: Path) -> None:
    """StorageError when the name is taken, or its folder is not there."""
    if os.path.lexists(path):
        raise StorageError("exists already", path=str(path), hint="name a new file with --to")
    if not path.absolute().parent.is_dir():
        raise StorageError("its folder does not exist", path=str(path), hint="name a new file with --to")


def require_copy_room(view: Overlay, path: Path) -> None:
    """StorageError, naming the bytes missing, when a copy of `view` would not fit beside `path`."""
    folder = path.absolute().parent
    changed = sum(end - start for start, end in view.staged_ranges)
    free = free_bytes(folder)
    enough = None if free is None else max(0, free - changed)
    require_room([Want(folder, content_bytes(view.base, enough) + changed, "the copy")], path=str(path))


def copy_image(source: Storage, target: FileStorage) -> None:
    """All bytes of `source`; blocks of zeros become holes."""
    size = source.size()
    target.truncate(size)
    position = source.next_data(0)
    while position is not None and position < size:
        end = min(source.next_hole(position), size)
        for at, data in data_runs(source, position, end):
            target.write(at, data)
        position = source.next_data(end) if end < size else None


def _cloned(source: Storage, target: FileStorage) -> bool:
    """By reflink, where both lie on a file system that has it."""
    if not isinstance(source, FileStorage):
        return False
    try:
        fcntl.ioctl(target.fileno(), _FICLONE, source.fileno())
    except OSError:
        return False
    return True


def _draft(path: Path, like: str | os.PathLike[str]) -> tuple[Path, int]:
    """A new file of our own beside `path`, under a name that nobody has."""
    for _ in range(100):
        draft = path.with_name(f".{path.name[:200]}.{os.urandom(6).hex()}.partial")
        try:
            return draft, create_like(draft, like)
        except FileExistsError:
            continue
        except OSError as error:
            raise StorageError(f"cannot be written: {error.strerror}", path=str(path)) from error
    raise StorageError("cannot be written: no free name for a draft", path=str(path))


def _take_name(draft: Path, path: Path) -> None:
    """Give the draft its name, unless somebody took that meanwhile. (A link never replaces; a rename would.)"""
    try:
        os.link(draft, path, follow_symlinks=False)
    except OSError as error:
        if error.errno == errno.EEXIST:
            require_new(path)
        if error.errno not in _NO_LINKS_HERE:
            raise
        require_new(path)
        os.rename(draft, path)


def _sync_folder(folder: Path) -> None:
    with contextlib.suppress(OSError):  # some file systems have no fsync for folders
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
