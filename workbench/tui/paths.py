"""Paths as a person types them: what is there, and what could come next. Looks at the disk: runs in a worker."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from workbench.units import format_size

SHOWN = 50


def complete_path(text: str, folder: str) -> tuple[str, Sequence[tuple[str, str]]]:
    """(what the path is, completions as (text, label)); the text begins with `?` where it is no file.

    folder: where a relative path starts.  Hidden names are offered once their dot is typed.
    """
    path = Path(folder, os.path.expanduser(text)) if text else Path(folder)
    parent, start = (path, "") if not text or text.endswith("/") else (path.parent, path.name)
    typed = text[: len(text) - len(start)]
    return _what(path, text), [
        (typed + name + ("/" if is_folder else ""), name + ("/" if is_folder else f"  {format_size(size)}"))
        for name, is_folder, size in _names(parent, start)
    ]


def common_start(names: Sequence[str]) -> str:
    """The longest beginning that all names share."""
    low, high = min(names), max(names)
    same = next((at for at, (one, other) in enumerate(zip(low, high, strict=False)) if one != other), len(low))
    return low[:same]


def describe_file(path: str) -> str:
    """What a file is, from its size and first bytes, in a line or two; what the system says where it cannot be read."""
    try:
        if os.path.isdir(path):
            return "A folder. Enter opens or closes it."
        if not os.path.isfile(path):
            return "Not a plain file." if os.path.exists(path) else "There is no such file."
        size = os.stat(path).st_size
        with open(path, "rb") as file:
            head = file.read(2048)
    except OSError as error:
        return f"{error.strerror}."
    if not size:
        return "An empty file."
    return f"{format_size(size)}: {guess_format(head) or 'no format that is known here'}."


_MAGICS: Final = (
    (b"QFI\xfb", 0, "a qcow2 image"), (b"KDMV", 0, "a VMDK image"), (b"vhdxfile", 0, "a VHDX image"), (b"conectix", 0, "a VHD image"),
    (b"LUKS\xba\xbe", 0, "a LUKS volume"), (b"\x1f\x8b", 0, "gzip-compressed data"), (b"\xfd7zXZ", 0, "xz-compressed data"), (b"PK\x03\x04", 0, "a zip archive"),
    (b"<<< ", 0, "a VirtualBox VDI image"), (b"\x28\xb5\x2f\xfd", 0, "zstd-compressed data"), (b"\x55\xaa", 510, "a raw disk with a boot sector"),
    (b"\x53\xef", 1080, "a raw ext2/3/4 file system"), (b"QED\0", 0, "a QED image"),
)  # fmt: skip


def guess_format(head: bytes) -> str:
    """What a file may be, from well-known magic numbers in its first bytes; empty when nothing fits."""
    for magic, at, name in _MAGICS:
        if head[at : at + len(magic)] == magic:
            return name
    return "an area of zeros" if head and not any(head) else ""


def _what(path: Path, text: str) -> str:
    try:
        if path.is_dir():
            return f"? a folder: {path}" if text else ""
        size = path.stat().st_size
    except FileNotFoundError:
        return "? no such file"
    except (OSError, ValueError) as error:
        return f"? {error.strerror if isinstance(error, OSError) else error}"
    return f"{format_size(size)} file: {path}"


def _names(folder: Path, start: str) -> list[tuple[str, bool, int]]:
    """(name, is a folder, bytes) of what is in `folder` and begins with `start`, sorted, folders first."""
    found = []
    try:
        with os.scandir(folder) as entries:
            for each in entries:
                if each.name.startswith(start) and (not each.name.startswith(".") or start.startswith(".")):
                    try:
                        found.append((each.name, each.is_dir(), each.stat().st_size))
                    except OSError:  # a broken link: there is nothing to open
                        continue
    except (OSError, ValueError):
        return []
    found.sort(key=lambda each: (not each[1], each[0].lower()))
    return found[:SHOWN]
