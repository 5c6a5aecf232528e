"""Copying a window of a disk block by block into a new image, as `qemu-img dd` does: every byte is written, zeros too."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from workbench.engine.ahead import in_order
from workbench.engine.convert import Progress, Source
from workbench.engine.create import CreateOptions, create_file
from workbench.engine.image import Image
from workbench.engine.layers import Qcow2Layer
from workbench.engine.reading import read_chain
from workbench.engine.target import Target, open_target
from workbench.errors import ArgumentError, StorageError
from workbench.units import SECTOR_SIZE, round_up

CHUNK: Final = 2 << 20
"""Guest bytes that are read and written at once; block sizes decide about the window only."""


@dataclass(frozen=True, slots=True)
class Window:
    """Guest bytes [start, end) that are copied.  beyond: `skip` leads behind the end of what may be copied."""

    start: int
    end: int
    beyond: bool = False

    @property
    def target_size(self) -> int:
        """Virtual size of the new image: whole sectors."""
        return round_up(self.end - self.start, SECTOR_SIZE)


def window_of(size: int, *, block: int = 512, count: int | None = None, skip: int = 0) -> Window:
    """What is copied of a disk of `size` bytes. As in QEMU, `count` blocks are counted from the disk's start, so those
    that `skip` leaves out are among them."""
    end = size if count is None else min(size, count * block)
    start = skip * block
    return Window(start, end) if start <= end else Window(end, end, beyond=True)


def copy_window(
    source: Source,
    window: Window,
    path: Path,
    *,
    qcow2: bool = False,
    progress: Progress | None = None,
    cancel: Callable[[], bool] | None = None,
) -> None:
    """Write the window to a new raw file (or qcow2 image) at `path`, which appears or changes only when all is copied.

    A block device is written in place. Raises what `open_target` and reading raise, Cancelled.
    """
    for layer in source.layers:
        if isinstance(layer, Qcow2Layer):
            layer.cipher()
    with open_target(path, source.paths, doing="copy") as target, contextlib.ExitStack() as stack:
        if qcow2:
            write = stack.enter_context(_new_image(target, window.target_size, [*source.paths, str(path)])).write
        else:
            _make_room(target, window.target_size)
            write = target.storage.write

        def read(start: int) -> memoryview:
            view = memoryview(bytearray(min(CHUNK, window.end - start)))
            read_chain(source.layers, start, view)
            return view

        starts = range(window.start, window.end, CHUNK)
        chunks = in_order(starts, read, cancel=cancel, path=source.layers[0].path)
        for start, data in stack.enter_context(contextlib.closing(chunks)):
            write(start - window.start, data)
            if progress is not None:
                progress(start + len(data) - window.start, window.end - window.start)


@contextlib.contextmanager
def _new_image(target: Target, size: int, inputs: list[str]) -> Iterator[Image]:
    if not target.fresh:
        raise ArgumentError("a qcow2 image is written to a file, not to a device", path=str(target.path))
    draft = target.storage.path
    create_file(draft, CreateOptions(size), inputs=inputs)
    with Image.open(draft, writable=True) as image:
        yield image


def _make_room(target: Target, size: int) -> None:
    storage = target.storage
    if not storage.is_device:
        storage.truncate(0)
        storage.truncate(size)
    elif storage.size() < size:
        raise StorageError(f"has {storage.size()} bytes, the copy needs {size}", path=str(target.path))
