"""Where the case file of an image is: beside the file itself whatever link named it; for devices in the state directory.

The state directory ($XDG_STATE_HOME/qwb, else ~/.local/state/qwb) also remembers, by device and inode, where the case
file of each repaired file is: so it is found through hard links in other folders and after a renaming.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Final

from workbench.storage.identity import Identity, identities, identity, loop_file

SUFFIX: Final = ".qwb-case"


def new_place(image: str | os.PathLike[str]) -> Path:
    """Where a first case file goes: beside the file that all links lead to; for a block device the state directory."""
    found = identity(image)
    if found is not None and found[0] == "block":
        return state_folder() / "cases" / f"device-{_device_key(found)}{SUFFIX}"
    return Path(os.path.realpath(image) + SUFFIX)


def remember(image: str | os.PathLike[str], case: Path) -> None:
    """Note where the case file of `image` is, for its other names. Where there is no state directory: not."""
    for file in identities(image):
        if file[0] != "file":
            continue
        pointed = pointer(file)
        draft = pointed.with_name(f"{pointed.name}.{os.getpid()}")
        with contextlib.suppress(OSError):
            make_folder(pointed.parent)
            os.symlink(case.absolute(), draft)
            os.replace(draft, pointed)


def state_folder() -> Path:
    """Our part of the state directory; it need not exist."""
    given = os.environ.get("XDG_STATE_HOME", "")
    return (Path(given) if given.startswith("/") else Path.home() / ".local" / "state") / "qwb"


def make_folder(folder: Path) -> None:
    """A folder that only its owner may look into, with those above it. Raises OSError."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)


def pointer(file: Identity) -> Path:
    """The link in the state directory that leads to the case file of the file with this device and inode."""
    return state_folder() / "cases" / f"inode-{file[1]}-{file[2]}"


def _device_key(device: Identity) -> str:
    """A file name for a block device that outlives a reboot: by what the device says of itself, if it says anything."""
    import hashlib
    import re

    sysfs = f"/sys/dev/block/{device[1]}:{device[2]}"
    below = loop_file(device)
    under = identity(below) if below is not None else None
    words = f"loop-{under[1]}-{under[2]}" if under is not None else _own_name(sysfs)
    if not words:
        words = f"{os.path.basename(os.path.realpath(sysfs))}-{_text(f'{sysfs}/size')}"
    digest = hashlib.blake2b(words.encode(), digest_size=6).hexdigest()
    return f"{re.sub(r'[^A-Za-z0-9.-]+', '_', words)[:60]}-{digest}"


def _own_name(sysfs: str) -> str:
    """Device mapper's UUID, or the identifier that the hardware reports (of a partition: its disk's, and its number)."""
    if uuid := _text(f"{sysfs}/dm/uuid"):
        return f"dm-{uuid}"
    part = _text(f"{sysfs}/partition")
    disk = os.path.dirname(os.path.realpath(sysfs)) if part else sysfs
    for name in ("wwid", "device/wwid", "serial", "device/serial"):
        if found := _text(f"{disk}/{name}"):
            return found + (f"-part{part}" if part else "")
    return ""


def _text(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""
