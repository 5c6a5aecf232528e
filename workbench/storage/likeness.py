"""New files that hold a disk's bytes: as private as the image that the bytes come from, or more."""

from __future__ import annotations

import contextlib
import os
import stat
from typing import Final

from workbench.errors import StorageError

_ACL: Final = "system.posix_acl_access"
_ONLY_OWNER: Final = 0o600


def create_like(path: str | os.PathLike[str], like: str | os.PathLike[str] | None) -> int:
    """Make `path` (which must not exist) with owner and mode of the file `like`, or stricter; its open descriptor.

    For a block device, and without a file to go by, only the owner may read it. At no moment it is open to more.
    Raises OSError.
    """
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, _ONLY_OWNER)
    try:
        make_like(fd, like)
    except BaseException:
        os.close(fd)
        os.unlink(path)
        raise
    return fd


def make_like(fd: int, like: str | os.PathLike[str] | None) -> None:
    """Owner, group and mode of a file of ours, from `like`; where an owner cannot be given, what it would allow is not."""
    with contextlib.suppress(OSError):
        os.removexattr(fd, _ACL)  # inherited from the folder
    os.fchmod(fd, _ONLY_OWNER)
    found = _looked_up(like)
    if found is None:
        return
    with contextlib.suppress(OSError):
        os.fchown(fd, -1, found.st_gid)
    with contextlib.suppress(OSError):
        os.fchown(fd, found.st_uid, -1)
    os.fchmod(fd, _mode(os.fstat(fd), found, like))


def tighten(path: str | os.PathLike[str], like: str | os.PathLike[str]) -> None:
    """Take from an existing file the permissions that `like` does not have. What is not ours stays as it is."""
    found = _looked_up(like)
    if found is None:
        return
    with contextlib.suppress(OSError):
        here = os.stat(path)
        wanted = stat.S_IMODE(here.st_mode) & _mode(here, found, like)
        if wanted != stat.S_IMODE(here.st_mode):
            os.chmod(path, wanted)


def _looked_up(like: str | os.PathLike[str] | None) -> os.stat_result | None:
    if like is None:
        return None
    try:
        found = os.stat(like)
    except (OSError, ValueError):
        return None
    return found if stat.S_ISREG(found.st_mode) else None


def _mode(ours: os.stat_result, found: os.stat_result, like: str | os.PathLike[str] | None) -> int:
    """The mode for a file of ours: nobody gets what `like` does not give them."""
    mode = stat.S_IMODE(found.st_mode) & 0o666
    owner, group, other = mode & 0o600, mode & 0o060, mode & 0o006
    with contextlib.suppress(OSError):
        os.getxattr(like or "", _ACL)
        group = 0  # with an access list these bits are its mask, not what the group may do
    if ours.st_uid != found.st_uid:
        owner = _ONLY_OWNER
    if ours.st_gid != found.st_gid:
        group &= other << 3
    return owner | group | other


def create_error(path: str | os.PathLike[str], error: OSError) -> StorageError:
    """What a failed `create_like` means."""
    return StorageError(f"cannot be made: {error.strerror}", path=os.fspath(path))
