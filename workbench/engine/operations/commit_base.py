"""What overlays are committed into: a qcow2 image or a raw file, and how it is found and opened."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final, Protocol

from formats.foreign import disk_format
from workbench.engine.chain import RAW_NAMES, probe_format
from workbench.engine.gate import OpenRequest, allow_local, resolve_name
from workbench.engine.image import Image
from workbench.engine.layers import Layer, Qcow2Layer
from workbench.errors import ArgumentError, UnsupportedError
from workbench.storage.base import Storage
from workbench.storage.file import FileStorage
from workbench.storage.identity import same_file
from workbench.storage.locks import LockMode, acquire
from workbench.units import SECTOR_SIZE, round_up

_HEAD: Final = 128
"""Bytes at the start of a file by which its format is told."""


class Base(Protocol):
    """What is committed into. Offsets and lengths are guest bytes."""

    @property
    def format(self) -> str: ...

    @property
    def written(self) -> list[str]:
        """The files that are written."""

    @property
    def read(self) -> list[str]:
        """The files that lie under it."""

    @property
    def size(self) -> int:
        """Virtual size."""

    def grow(self, size: int) -> None:
        """Make the disk longer, with zeros."""

    def write(self, offset: int, data: memoryview) -> None: ...

    def write_zeroes(self, offset: int, length: int) -> None: ...

    def flush(self) -> None:
        """Everything written so far is durable when this returns."""


class ImageBase:
    """A qcow2 image that is open for writing."""

    format = "qcow2"

    def __init__(self, image: Image) -> None:
        self._image = image

    @property
    def written(self) -> list[str]:
        return files_of(self._image.top)

    @property
    def read(self) -> list[str]:
        return [path for layer in self._image.chain[1:] for path in files_of(layer)]

    @property
    def size(self) -> int:
        return self._image.size

    def grow(self, size: int) -> None:
        self._image.truncate(size)

    def write(self, offset: int, data: memoryview) -> None:
        self._image.write(offset, data)

    def write_zeroes(self, offset: int, length: int) -> None:
        self._image.write_zeroes(offset, length, unmap=True)

    def flush(self) -> None:
        self._image.flush()


class RawBase:
    """A raw file that is open for writing. guessed: nobody named its format, so it must go on looking like a raw file."""

    format = "raw"

    def __init__(self, storage: Storage, *, guessed: bool = False) -> None:
        self._storage = storage
        self._guessed = guessed

    @property
    def written(self) -> list[str]:
        return [self._storage.path]

    @property
    def read(self) -> list[str]:
        return []

    @property
    def size(self) -> int:
        return round_up(self._storage.size(), SECTOR_SIZE)

    def grow(self, size: int) -> None:
        self._storage.truncate(size)

    def write(self, offset: int, data: memoryview) -> None:
        if self._guessed and offset < _HEAD:
            head = bytearray(self._storage.read(0, _HEAD).ljust(_HEAD, b"\0"))
            part = data[: _HEAD - offset]
            head[offset : offset + len(part)] = part
            looks = disk_format(bytes(head))
            if looks is not None:
                raise ArgumentError(
                    f"the guest's first sector would make this raw file look like {looks}: no image records its format",
                    path=self._storage.path,
                    hint="record it first: `qwb rebase -u -F raw -b BASE IMAGE`",
                )
        self._storage.write(offset, data)

    def write_zeroes(self, offset: int, length: int) -> None:
        self._storage.write_zeroes(offset, length, punch=True)

    def flush(self) -> None:
        self._storage.flush()


def files_of(layer: Layer) -> list[str]:
    """The files of one layer."""
    if isinstance(layer, Qcow2Layer) and layer.data_path != layer.path:
        return [layer.path, layer.data_path]
    return [layer.path]


@contextlib.contextmanager
def open_for_commit(
    path: Path,
    name: str | None = None,
    *,
    empty: bool = True,
    secret: bytes | None = None,
    before_writing: Callable[[Path], None] = lambda path: None,
) -> Iterator[tuple[Image, Base]]:
    """(the top image, open down to the base and without it, the base).

    name: which file of the chain, as stored or as a path seen from the overlay above it; None for the first one.
    empty: the top image is opened for writing.  before_writing: called with the base's path; may raise.
    Raises ArgumentError when there is no such file in the chain, UnsupportedError for a base of another format, and what
    opening raises: LockedError when somebody uses one of the files.
    """
    gate = _DownTo(name)
    with Image.open(path, writable=empty, gate=gate, secret=secret) as top:
        if gate.base is None:
            what = "Image does not have a backing file"
            if name is not None:
                what = f"Did not find {name!r} in the backing chain of {str(path)!r}"
            raise ArgumentError(what, path=None if name else str(path))
        before_writing(gate.base)
        with _open_base(gate.base, gate.format, secret) as base:
            yield top, base


class _DownTo:
    """The gate that stops at the base. base, format: where it was found, and its format as stored."""

    def __init__(self, name: str | None) -> None:
        self._name = name
        self.base: Path | None = None
        self.format: str | None = None

    def __call__(self, request: OpenRequest) -> Path | None:
        path = allow_local(request)
        if request.kind != "backing" or path is None or not self._is_base(request, path):
            return path
        self.base, self.format = path, request.format
        return None

    def _is_base(self, request: OpenRequest, path: Path) -> bool:
        if self._name is None or self._name == request.stored_name:
            return True
        meant = resolve_name(self._name, request.base, "backing")
        return meant is not None and same_file(meant, path)


@contextlib.contextmanager
def _open_base(path: Path, stored: str | None, secret: bytes | None) -> Iterator[Base]:
    with FileStorage.open(path) as storage:
        form = stored or probe_format(storage)
    if form == "qcow2":
        with Image.open(path, writable=True, secret=secret) as image:
            yield ImageBase(image)
    elif form in RAW_NAMES:
        with FileStorage.open(path, writable=True) as raw, acquire(raw, LockMode.WRITE):
            yield RawBase(raw, guessed=stored is None)
    else:
        raise UnsupportedError(f"format {form[:32]!r} cannot be written: qcow2 and raw can", path=str(path))
