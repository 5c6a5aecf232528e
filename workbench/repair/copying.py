"""A repaired copy: the original is only read, the copy shares its blocks where the file system can, holes stay holes."""

from __future__ import annotations

import contextlib
import fcntl
import os
from pathlib import Path
from typing import Final

from workbench.errors import QwbError, StorageError
from workbench.repair.plan import Plan
from workbench.storage.base import Storage
from workbench.storage.file import FileStorage

_FICLONE: Final = 0x40049409
_STEP: Final = 4 << 20


def repaired_copy(plan: Plan, target: str | os.PathLike[str]) -> Path:
    """Write what the plan gives to a new file `target` (which must not exist); returns its path.

    It appears under its name only when it is complete and durable. Raises StorageError.
    """
    path = Path(target)
    if path.exists():
        raise StorageError("exists already", path=str(path), hint="name a new file with --to")
    draft = path.with_name(path.name + ".part")
    try:
        with FileStorage.create(draft) as out:
            copy_image(plan.base, out)
            plan.overlay.apply_to(out)
        os.rename(draft, path)
    except (QwbError, OSError, KeyboardInterrupt) as error:
        with contextlib.suppress(OSError):
            os.unlink(draft)
        if isinstance(error, OSError):
            raise StorageError(f"cannot be written: {error.strerror}", path=str(path)) from error
        raise
    return path


def copy_image(source: Storage, target: FileStorage) -> None:
    """All bytes of `source`; by reflink where both lie on a file system that has it."""
    size = source.size()
    if isinstance(source, FileStorage):
        with contextlib.suppress(OSError):
            fcntl.ioctl(target.fileno(), _FICLONE, source.fileno())
            return
    target.truncate(size)
    position = source.next_data(0)
    while position is not None and position < size:
        end = min(source.next_hole(position), size)
        for at in range(position, end, _STEP):
            target.write(at, source.read(at, min(_STEP, end - at)))
        position = source.next_data(end) if end < size else None
