"""What tells one file from another, whatever its names: links, a second path, a loop device over it."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Final

Identity = tuple[str, int, int]
"""("file", device, inode) or ("block", major, minor)."""

ONE_GO: Final = 60
"""Seconds by which time stamps differ of files that were copied together, or of hosts that share them."""
_LOOPS: Final = 4
"""Loop devices over files that lie on loop devices: followed this deep."""


def identity(path: str | os.PathLike[str]) -> Identity | None:
    """Of the file or block device at `path`, links followed; None when there is none."""
    try:
        found = os.stat(path)
    except (OSError, ValueError):
        return None
    return identity_of(found)


def identity_of(found: os.stat_result) -> Identity:
    """Of what was looked up already. A block device is its number, whatever node names it."""
    if stat.S_ISBLK(found.st_mode):
        return ("block", os.major(found.st_rdev), os.minor(found.st_rdev))
    return ("file", found.st_dev, found.st_ino)


def written_later(path: str | os.PathLike[str], than: str | os.PathLike[str]) -> int:
    """Seconds that one file was written after another last was; 0 when it was not, or the clocks cannot tell.

    That is so for devices, and for files that were written or copied in one go (within `ONE_GO`).
    """
    try:
        here, there = os.stat(path), os.stat(than)
    except (OSError, ValueError):
        return 0
    if not (stat.S_ISREG(here.st_mode) and stat.S_ISREG(there.st_mode)):
        return 0
    later = int(here.st_mtime) - int(there.st_mtime)
    return later if later > ONE_GO else 0


def identities(path: str | os.PathLike[str]) -> frozenset[Identity]:
    """All that the bytes at `path` are: the file itself and, for a loop device, the file under it. Empty: no such file."""
    found: set[Identity] = set()
    here: Identity | None = identity(path)
    for _ in range(_LOOPS):
        if here is None or here in found:
            break
        found.add(here)
        below = loop_file(here)
        here = identity(below) if below is not None else None
    return frozenset(found)


def same_file(one: str | os.PathLike[str], other: str | os.PathLike[str]) -> bool:
    """Whether writing to one changes the other: the same file by any names. False when either is missing."""
    return bool(identities(one) & identities(other))


def loop_file(device: Identity) -> Path | None:
    """The file that a loop device shows; None for all else."""
    if device[0] != "block":
        return None
    try:
        name = Path(f"/sys/dev/block/{device[1]}:{device[2]}/loop/backing_file").read_bytes().rstrip(b"\n")
    except OSError:
        return None
    return Path(os.fsdecode(name)) if name else None
