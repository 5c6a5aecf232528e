"""Where a conversion writes to: a new file that takes its name only when it is complete, or an existing one in place."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from workbench.engine.naming import require_distinct
from workbench.errors import StorageError
from workbench.storage.file import FileStorage
from workbench.storage.likeness import create_error, create_like
from workbench.storage.locks import LockMode, acquire


@dataclass(frozen=True, slots=True)
class Target:
    """An open file to write to. fresh: it is new, so it reads as zeros wherever nothing is written."""

    storage: FileStorage
    path: Path
    fresh: bool


@contextlib.contextmanager
def open_target(
    path: Path, sources: Iterable[str], *, in_place: bool = False, doing: str = "conversion"
) -> Iterator[Target]:
    """A file to write `path`'s new content to.

    As a rule a hidden file beside `path`, renamed onto it at the end and removed when anything fails or is interrupted: what
    was there before stays until then. in_place, and block devices: the existing file itself.  doing: a word for the work, for
    messages.
    Raises ArgumentError when `path` is one of `sources` or a file that one of them needs, LockedError when somebody uses it, StorageError.
    """
    require_distinct([path], sources, doing)
    exists = path.exists()
    if in_place or (exists and not stat.S_ISREG(path.stat().st_mode)):
        with FileStorage.open(path, writable=True) as storage, acquire(storage, LockMode.WRITE):
            yield Target(storage, path, fresh=False)
            storage.flush()
        return
    with contextlib.ExitStack() as stack:
        final = path.resolve()
        if exists:  # nobody may be using what we are about to replace
            old = stack.enter_context(FileStorage.open(final, writable=True))
            stack.enter_context(acquire(old, LockMode.WRITE))
        draft = final.with_name(f".{final.name}.{os.getpid()}.partial")
        storage = stack.enter_context(_draft(draft, final) if exists else FileStorage.create(draft))
        try:
            yield Target(storage, path, fresh=True)
            if exists:
                os.chmod(draft, stat.S_IMODE(final.stat().st_mode))
            os.replace(draft, final)
        except OSError as error:
            _remove(draft)
            raise StorageError(f"cannot be put in place: {error.strerror}", path=str(path)) from error
        except BaseException:
            _remove(draft)
            raise


def _draft(path: Path, final: Path) -> FileStorage:
    """The draft of a file that is there already is never open to more people than that is."""
    try:
        return FileStorage(create_like(path, final), str(path), writable=True, is_device=False)
    except OSError as error:
        raise create_error(path, error) from error


def _remove(draft: Path) -> None:
    with contextlib.suppress(FileNotFoundError):
        draft.unlink()
