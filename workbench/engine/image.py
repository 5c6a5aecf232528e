"""An image as a guest sees it: open it, read it, map it; writing is handed to `workbench.engine.write`."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from types import TracebackType
from typing import Any

from workbench.engine.chain import Opening, open_chain, open_file, open_top
from workbench.engine.faults import Fault
from workbench.engine.gate import Gate, allow_local
from workbench.engine.layers import Layer, Qcow2Layer
from workbench.engine.mapping import Extent
from workbench.engine.metadata import Metadata
from workbench.engine.reading import Flat, extents_of, flatten, merged_stream, read_chain
from workbench.errors import ArgumentError
from workbench.storage.base import Storage
from workbench.units import Geometry


class Image:
    """An open qcow2 image with its backing chain; a context manager. All offsets and lengths are guest bytes.

    meta: the image's metadata.  top: its own layer.  chain: all layers, `top` first.  problems: what a tolerant open had
    to do without.
    """

    def __init__(self, chain: tuple[Layer, ...], opening: Opening, stack: ExitStack) -> None:
        """Use `Image.open`."""
        top = chain[0]
        assert isinstance(top, Qcow2Layer)
        self.top = top
        self.chain = chain
        self.geometry: Geometry = top.rules.geometry
        self.options: Mapping[str, object] = {}
        self._opening = opening
        self._stack = stack
        self._writer: Any = None

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str],
        *,
        writable: bool = False,
        gate: Gate = allow_local,
        secret: bytes | None = None,
        snapshot: str | None = None,
        force_share: bool = False,
        tolerant: bool = False,
        lock: bool = True,
        storage: Storage | None = None,
        options: Mapping[str, object] | None = None,
    ) -> Image:
        """Open an image and, through `gate`, the files it names.

        snapshot: a read-only view of that internal snapshot (ID or name).  force_share: read although a VM writes.
        tolerant: open what QEMU refuses, as long as its shape is known; missing files become `problems`.  storage: read
        from there instead of `path` (which then only names it and resolves relative names).
        The passphrase is tried at the first read of encrypted data, or by `unlock`.
        Raises StorageError, LockedError, ImageError and its kinds; ArgumentError for an unknown snapshot.
        """
        if writable and snapshot is not None:
            raise ArgumentError("a snapshot can only be read", path=os.fspath(path), hint="apply it, then write")
        opening = Opening(gate, writable, force_share, lock, tolerant, secret)
        with ExitStack() as stack:
            if storage is None:
                storage = open_file(os.fspath(path), opening, writable=writable)
            stack.callback(storage.close)
            top = open_top(storage, opening, snapshot)
            stack.callback(top.close)
            chain = open_chain(top, opening, stack)
            image = cls(tuple(chain), opening, stack.pop_all())
        image.options = options or {}
        if writable and image.meta.header.has("dirty"):
            try:
                _ = image.writer  # counts the refcounts anew
            except BaseException:
                image.close()
                raise
        return image

    # -- what it is

    @property
    def meta(self) -> Metadata:
        return self.top.meta

    @property
    def path(self) -> str:
        return self.meta.storage.path

    @property
    def size(self) -> int:
        """Virtual size of this view."""
        return self.top.size

    @property
    def writable(self) -> bool:
        return self._opening.writable

    @property
    def backing(self) -> Layer | None:
        """The layer below, None without one."""
        return self.chain[1] if len(self.chain) > 1 else None

    @property
    def problems(self) -> tuple[Fault, ...]:
        """What a tolerant open met and passed over."""
        return tuple(self._opening.problems)

    @property
    def secret(self) -> bytes | None:
        """The passphrase given."""
        return self._opening.secret

    def unlock(self, secret: bytes | None = None) -> None:
        """Try the passphrase (or `secret`, from now on) on every encrypted layer. Raises PassphraseError."""
        if secret is not None:
            self._opening.secret = secret
        for layer in self.chain:
            if isinstance(layer, Qcow2Layer):
                layer.cipher()

    # -- reading

    def read(self, offset: int, length: int) -> bytes:
        """Exactly `length` bytes. ArgumentError outside the disk; CorruptError where the mapping or data is damaged."""
        buffer = bytearray(length)
        self.readinto(offset, memoryview(buffer))
        return bytes(buffer)

    def readinto(self, offset: int, buffer: memoryview) -> None:
        """Fill `buffer` from `offset`; errors as `read`."""
        if offset < 0 or offset + len(buffer) > self.size:
            raise ArgumentError(
                f"{len(buffer)} bytes at {offset:#x} are not within the disk of {self.size} bytes", path=self.path
            )
        if self._writer is not None:
            self._writer.readinto(offset, buffer)
            return
        read_chain(self.chain, offset, buffer)

    def extents(self, start: int = 0, length: int | None = None) -> Iterator[Extent]:
        """The whole chain's map, merged as `qemu-img map --output=json` merges."""
        return extents_of(self.extent_columns(start, length), self.chain)

    def extent_columns(self, start: int = 0, length: int | None = None) -> Iterator[Flat]:
        """As `extents`, in numpy columns: for maps with millions of rows."""
        return merged_stream(flatten(self.chain, *self._range(start, length)))

    def layer_extents(self, start: int = 0, length: int | None = None) -> Iterator[Extent]:
        """This layer's map only: what it leaves to a backing file is not present and has neither data nor zeros."""
        flats = flatten(self.chain, *self._range(start, length), follow=False)
        return extents_of(merged_stream(flats), self.chain)

    def _range(self, start: int, length: int | None) -> tuple[int, int]:
        """[start, end) within the disk; what a writer still holds back is written first, since maps look at the file."""
        if self._writer is not None:
            import numpy as np

            self._writer.flush()
            self.top.walker.l1 = np.array(self._writer.core.tables.l1, dtype=np.uint64)
            self.top.forget()
        if self._writer is not None:
            self._writer.publish()
        end = self.size if length is None else start + length
        if not 0 <= start <= end:
            raise ArgumentError(f"no guest range: {start}..{end}", path=self.path)
        return start, min(end, self.size)

    # -- writing: `workbench.engine.write`

    @property
    def writer(self) -> Any:
        """The write engine of this image. ArgumentError when it was opened read-only."""
        if self._writer is None:
            if not self.writable:
                raise ArgumentError("the image is open read-only", path=self.path)
            from workbench.engine.write import Writer

            self._writer = Writer(self)
        return self._writer

    def write(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        """Write guest bytes."""
        self.writer.write(offset, data)

    def write_zeroes(self, offset: int, length: int, *, unmap: bool = False) -> None:
        """Make a range read as zeros; `unmap` gives its clusters back."""
        self.writer.write_zeroes(offset, length, unmap=unmap)

    def discard(self, offset: int, length: int) -> None:
        """Give whole clusters back."""
        self.writer.discard(offset, length)

    def write_compressed(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        """Write one cluster compressed."""
        self.writer.write_compressed(offset, data)

    def truncate(self, size: int) -> None:
        """Change the virtual size."""
        self.writer.truncate(size)

    def flush(self) -> None:
        """Make everything written durable; does nothing on a read-only image."""
        if self._writer is not None:
            self._writer.flush()

    def close(self) -> None:
        """Flush, then close all files."""
        writer, self._writer = self._writer, None
        try:
            if writer is not None:
                writer.close()
        finally:
            self._stack.close()

    def __enter__(self) -> Image:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, at: TracebackType | None) -> None:
        self.close()
