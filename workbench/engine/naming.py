"""Which files images name, read from headers alone: what a target must not be, and who stands on an image.

Tolerant and without locks: a file that cannot be read names nothing. Whether inputs open is asked elsewhere.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Final

from formats.qcow2.limits import MAX_BACKING_CHAIN
from workbench.engine.gate import resolve_name
from workbench.engine.layers import MissingLayer
from workbench.engine.metadata import Metadata, load_metadata
from workbench.errors import ArgumentError, QwbError
from workbench.storage.file import FileStorage
from workbench.storage.identity import identities, same_file

NEIGHBOURS: Final = 1000
"""Files of a folder whose headers are read at most."""

if TYPE_CHECKING:
    from workbench.engine.image import Image

_Path = str | os.PathLike[str]


def named_files(path: _Path) -> Iterator[Path]:
    """`path` and all files that it leads to: data files, the whole backing chain. Cycles and absurd lengths end it."""
    here: Path | None = Path(path)
    seen: set[object] = set()
    for _ in range(MAX_BACKING_CHAIN):
        if here is None:
            return
        yield here
        known = identities(here)
        if not known or known & seen:
            return
        seen |= known
        meta = _head(here)
        if meta is None:
            return
        yield from _data_files(meta, here)
        name = meta.backing_name
        here = resolve_name(name, os.fspath(here), "backing") if name else None


def require_distinct(targets: Iterable[_Path], inputs: Iterable[_Path], doing: str = "conversion") -> None:
    """ArgumentError when a file that will be written is, by any name, one that is read, lies under one that is read, or
    is written twice. Nothing is opened for writing. doing: a word for the work, for the message."""
    written = [(Path(each), identities(each)) for each in targets]
    for number, (target, known) in enumerate(written):
        for other, also in written[:number]:
            if known & also or os.path.abspath(target) == os.path.abspath(other):
                raise ArgumentError(f"is to be written twice: also as {other}", path=str(target), hint=_HINT)
    for start in inputs:
        for read in named_files(start):
            known = identities(read)
            for target, found in written:
                if found & known:
                    way = f" as {read}" if read != target else ""
                    way += f", which {start} needs" if read != Path(start) else ""
                    raise ArgumentError(f"is read by this very {doing}{way}", path=str(target), hint=_HINT)


def require_distinct_files(image: Image) -> None:
    """`require_distinct` for an image that is open for writing: it and its data file against all that lies under it,
    also where the names that it stores were not followed."""
    top = image.top
    targets = [top.path] + ([top.data_path] if top.data_path != top.path else [])
    below = [each.path for each in image.chain[1:] if not isinstance(each, MissingLayer)]
    stored = image.meta.backing_name
    resolved = resolve_name(stored, top.path, "backing") if stored else None
    require_distinct(targets, [*below, *([resolved] if resolved is not None else [])], "work")


_HINT: Final = "name another file to write"


def dependents(path: _Path, *, limit: int = NEIGHBOURS) -> tuple[list[Path], bool]:
    """qcow2 files in the same folder that name `path` as their backing file, by any name, and whether all were looked at.

    Only headers are read, of `limit` files at most.
    """
    image = Path(path)
    try:
        folder = image.resolve().parent
        with os.scandir(folder) as entries:
            names = sorted(entry.path for entry in entries if entry.is_file())
    except OSError:
        return [], False
    found = []
    for name in names[:limit]:
        meta = _head(Path(name))
        if meta is None or not meta.backing_name:
            continue
        below = resolve_name(meta.backing_name, name, "backing")
        if below is not None and same_file(below, image):
            found.append(Path(name))
    return found, len(names) <= limit


def _head(path: Path) -> Metadata | None:
    """The header of a qcow2 file; None for all else."""
    try:
        with FileStorage.open(path) as storage:
            if storage.read(0, 4) != b"QFI\xfb":
                return None
            meta = load_metadata(storage)
            return meta if meta.geometry is not None else None
    except QwbError:
        return None


def _data_files(meta: Metadata, image: Path) -> Iterator[Path]:
    """Where the external data file may be: QEMU looks in the working directory, we also beside the image."""
    name = meta.data_file_name
    if not name:
        return
    base = os.fspath(image)
    for found in (resolve_name(name, base, "data"), resolve_name(name, base, "backing")):
        if found is not None and found.exists():
            yield found
