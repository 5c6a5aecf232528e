"""Which case file belongs to an image, by any of the image's names; and whether it speaks of what the image holds.

Asked at every opening of an image, so that SQLite is loaded only where there is a case file.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Final

from workbench.errors import QwbError
from workbench.repair.places import SUFFIX, new_place, pointer
from workbench.storage.identity import Identity, identities

if TYPE_CHECKING:
    from workbench.repair.casefile import ByteEdit, CaseFile, Session
    from workbench.storage.base import Storage

_SCANNED: Final = 200
"""Case files of a folder that are looked into at most, to find that of a hard link."""


def case_path(image: str | os.PathLike[str], case: str | os.PathLike[str] | None = None) -> Path:
    """The case file of `image`: `case` when given, else the one that is there by any of its names, else a new place."""
    if case is not None:
        return Path(case)
    return find_case(image) or new_place(image)


def find_case(image: str | os.PathLike[str]) -> Path | None:
    """The case file that is there: beside the file, beside the name given, or known for this device and inode."""
    beside = [new_place(image), Path(f"{os.fspath(image)}{SUFFIX}")]
    for each in beside:
        if each.exists():
            return each
    known = [each for each in identities(image) if each[0] == "file"]
    for file in known:
        pointed = pointer(file)
        with contextlib.suppress(OSError):
            place = Path(os.readlink(pointed))
            if place.exists() and _belongs(place, file, image):
                return place
    if not known or _links(image) < 2:
        return None
    for each in _neighbours(beside[0].parent):
        if any(_belongs(each, file, image) for file in known):
            return each
    return None


def open_case(
    image: str | os.PathLike[str], case: str | os.PathLike[str] | None = None, *, create: bool = True
) -> CaseFile:
    """The case file of an image, open. Raises as `CaseFile` does."""
    from workbench.repair.casefile import CaseFile

    return CaseFile(case_path(image, case), create=create, like=image)


def peek(image: str | os.PathLike[str], case: str | os.PathLike[str] | None = None) -> Session | None:
    """The interrupted session of an image, looked up without writing to it; None when there is none.

    A case file that was itself cut off in the middle of a commit is rolled back to the commit before (SQLite's journal).
    StorageError when it cannot be read.
    """
    path = case_path(image, case)
    if not path.exists():
        return None
    from workbench.repair.casefile import CaseFile

    with CaseFile(path, create=False, readonly=True) as found:
        return found.interrupted()


def fits(storage: Storage, casefile: CaseFile, session: Session) -> bool:
    """Whether the image holds, byte for byte, old or new ones wherever the session writes, and its metadata elsewhere."""
    from workbench.repair import fingerprint

    touched = []
    for edit in casefile.edits(session.id):
        length = max(len(edit.old), len(edit.new))
        if foreign_byte(storage.read(edit.offset, length), edit) is not None:
            return False
        touched.append((edit.offset, edit.offset + length))
    before = session.fingerprint_before
    alike = [
        each
        for each in before.get("regions", [])
        if not any(start < each[1] + each[2] and each[1] < end for start, end in touched)
    ]
    found = fingerprint.compare(storage, {"size": storage.size(), "regions": alike})
    return not found and storage.size() in (session.size_before, session.size_after)


def foreign_byte(found: bytes, edit: ByteEdit) -> int | None:
    """Index of the first byte that is neither old nor new. Past the old end of file, zeros count as not yet written."""
    if found in (edit.new, edit.old):
        return None
    old, new = edit.old.ljust(len(found), b"\0"), edit.new.ljust(len(found), b"\0")
    return next((i for i, byte in enumerate(found) if byte not in (old[i], new[i])), None)


def _belongs(case: Path, file: Identity, image: str | os.PathLike[str]) -> bool:
    """Whether a case file speaks of the file with this device and inode, which is `image`.

    Inode numbers are given to new files when old ones are gone. So a name under which it was repaired must still lead to
    it; or else its content must fit what the case file says of it.
    """
    from workbench.repair.casefile import CaseFile
    from workbench.storage.file import FileStorage

    try:
        with CaseFile(case, create=False, readonly=True) as found:
            if file not in found.files():
                return False
            sessions = found.sessions()
            if any(file in identities(each.image) for each in sessions):
                return True
            with FileStorage.open(image) as storage:
                return bool(sessions) and fits(storage, found, sessions[-1])
    except QwbError:
        return False


def _links(image: str | os.PathLike[str]) -> int:
    try:
        return os.stat(image).st_nlink
    except (OSError, ValueError):
        return 0


def _neighbours(folder: Path) -> list[Path]:
    try:
        with os.scandir(folder) as entries:
            names = sorted(entry.path for entry in entries if entry.name.endswith(SUFFIX))
    except OSError:
        return []
    return [Path(name) for name in names[:_SCANNED]]
