"""What stands behind an image: the files of its backing chain, looked at one by one. Reads: runs in a worker."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

from formats.qcow2.limits import MAX_BACKING_CHAIN
from workbench.engine.chain import probe_format
from workbench.engine.gate import OpenRequest
from workbench.engine.metadata import load_metadata
from workbench.errors import QwbError
from workbench.storage.file import FileStorage


@dataclass(frozen=True, slots=True)
class Layer:
    """One file of the chain. number: 1 for the file that the image itself names.

    size: bytes of the virtual disk; file_size: bytes of the file.  problem: why it cannot be used; empty when it can.
    backing_name, backing_format: what it names in turn; None for the last one.
    """

    number: int
    stored_name: str
    path: str
    format: str
    size: int = 0
    file_size: int = 0
    problem: str = ""
    backing_name: str | None = None
    backing_format: str | None = None


def look(request: OpenRequest, path: str, above: Sequence[str]) -> Layer:
    """Look at the file `path` that answers `request`, read-only. above: paths of the image and of the layers so far.

    Never raises on content: what is wrong becomes `problem`.
    """
    number = len(above)
    plain = Layer(number, request.stored_name, path, request.format or "unknown")
    if number >= MAX_BACKING_CHAIN:
        return _broken(plain, f"a chain has at most {MAX_BACKING_CHAIN} files")
    if any(_same_file(path, each) for each in above):
        return _broken(plain, "the chain comes back to a file that is in it already")
    try:
        storage = FileStorage.open(path)
    except (QwbError, OSError, ValueError) as error:
        return _broken(plain, error.what if isinstance(error, QwbError) else str(error))
    try:
        sort = request.format or probe_format(storage)
        size = storage.size()
        if sort != "qcow2":
            return Layer(number, request.stored_name, path, sort, size, size)
        meta = load_metadata(storage)
        problem = "" if meta.is_qcow2 else "it does not begin with the qcow2 magic"
        return Layer(
            number, request.stored_name, path, sort, meta.header.size, size, problem, meta.backing_name, meta.backing_format
        )  # fmt: skip
    except QwbError as error:
        return _broken(plain, error.what)
    finally:
        storage.close()


def _broken(layer: Layer, problem: str) -> Layer:
    return Layer(layer.number, layer.stored_name, layer.path, layer.format, problem=problem)


def _same_file(left: str, right: str) -> bool:
    try:
        return os.path.samefile(left, right)
    except OSError:
        return os.path.abspath(left) == os.path.abspath(right)
