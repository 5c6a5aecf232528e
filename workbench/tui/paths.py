"""Paths as a person types them: what is there, and what could come next. Looks at the disk: runs in a worker."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

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
