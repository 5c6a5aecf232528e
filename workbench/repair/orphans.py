"""Copying orphaned clusters out of an image: guest data whose mapping is lost, saved as files that can be searched."""

from __future__ import annotations

import json
import os
from pathlib import Path

from workbench.check import CheckResult
from workbench.errors import StorageError
from workbench.storage.base import Storage
from workbench.storage.file import FileStorage
from workbench.storage.likeness import create_error, create_like

_STEP = 4 << 20


def _private(path: Path, like: str) -> FileStorage:
    """A new file for guest data, as private as the image that it comes from."""
    try:
        return FileStorage(create_like(path, like), str(path), writable=True, is_device=False)
    except OSError as error:
        raise create_error(path, error) from error


def export_orphans(storage: Storage, result: CheckResult, folder: str | os.PathLike[str]) -> Path:
    """Write each leaked run that may be guest data into `folder` (made here) and list them in `orphans.json`.

    Files are named by host offset; where the check knows the guest offset, it is in the list. Returns the list's path.
    Raises StorageError.
    """
    place = Path(folder)
    try:
        place.mkdir(parents=True, exist_ok=False)
    except OSError as error:
        raise StorageError(f"cannot be made: {error.strerror}", path=str(place)) from error
    rows = []
    for each in result.orphans:
        if not each.keep:
            continue
        name = f"orphan-{each.offset:#014x}.raw"
        with _private(place / name, storage.path) as out:
            for at in range(0, each.length, _STEP):
                out.write(at, storage.read(each.offset + at, min(_STEP, each.length - at)))
        rows.append({"file": name, **each.as_json()})
    index = place / "orphans.json"
    index.write_text(json.dumps({"image": storage.path, "orphans": rows}, indent=2) + "\n")
    return index
