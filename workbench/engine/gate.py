"""The one gate through which an image's other files are opened: the caller sees each name first, and decides.

An image's header names files. Opening whatever it says would let a stranger's image read any file, or reach out over
the network: so only plain local paths pass by default, and never a protocol string.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from workbench.errors import GateRefused

_PROTOCOL = re.compile(r"^[^/]*:")


@dataclass(frozen=True, slots=True)
class OpenRequest:
    """A file that an image wants opened.

    stored_name: as the image says it.  resolved: the local path that it means, None for protocol strings.
    base: path of the image that names it.  format: recorded format, None when none is.  depth: layer that asks, from 0.
    """

    kind: Literal["backing", "data"]
    stored_name: str
    resolved: Path | None
    base: str
    format: str | None
    depth: int


Gate = Callable[[OpenRequest], "Path | None"]
"""Says which file to open, or None to go on without it. May raise GateRefused."""


def allow_local(request: OpenRequest) -> Path | None:
    """Plain local paths as they are; GateRefused for protocol strings (nbd:, http:, json:, …)."""
    if request.resolved is None:
        shown = request.stored_name if len(request.stored_name) <= 60 else request.stored_name[:57] + "…"
        hint = "name a local file with --backing PATH, or look without it: --no-backing"
        raise GateRefused(
            f"{request.kind} file {shown!r} is no local path and is not opened",
            path=request.base,
            hint=hint if request.kind == "backing" else None,
        )
    return request.resolved


def forbid_all(request: OpenRequest) -> Path | None:
    """Open nothing else: unallocated clusters read as zeros, data in an external file cannot be read."""
    return None


def no_backing(request: OpenRequest) -> Path | None:
    """As `allow_local` for data files; no backing file is opened."""
    return None if request.kind == "backing" else allow_local(request)


def redirect(path: str | os.PathLike[str], *, kind: Literal["backing", "data"] = "backing") -> Gate:
    """`path` in place of the image's own backing (or data) file; `allow_local` for everything further down."""

    def gate(request: OpenRequest) -> Path | None:
        if request.depth == 0 and request.kind == kind:
            return Path(path)
        return allow_local(request)

    return gate


def resolve_name(name: str, base: str, kind: Literal["backing", "data"]) -> Path | None:
    """The local path that a stored name means to QEMU; None for protocol strings.

    A backing file name is relative to the image's folder, a data file name to the working directory. After `file:` a
    name is always relative to the working directory.
    """
    if name.startswith("file:"):
        return Path(_file_url(name[5:]))
    if _PROTOCOL.match(name):
        return None
    if kind == "backing" and not name.startswith("/"):
        return Path(os.path.join(os.path.dirname(base), name))
    return Path(name)


def _file_url(rest: str) -> str:
    """`file:///x` and `file:x`: QEMU strips the prefix alone, and `///x` is `/x` to the system."""
    return rest
