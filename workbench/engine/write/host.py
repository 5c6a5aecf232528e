"""The files below a writer, with what ordering needs to know: has anything been written since the last flush."""

from __future__ import annotations

from workbench.errors import StorageError
from workbench.storage.base import Storage


class HostFile:
    """A Storage whose `sync` costs nothing when nothing was written since the last one. Offsets and lengths in bytes."""

    __slots__ = ("_failed", "_readinto", "_write", "flushes", "storage", "unsynced")

    def __init__(self, storage: Storage) -> None:
        self.storage = storage
        self.unsynced = False
        self.flushes = 0
        self._failed: str | None = None
        self._write = storage.write
        self._readinto = storage.readinto

    def read(self, offset: int, length: int) -> bytes:
        """Exactly `length` bytes: what lies past the end of the file reads as zeros, as in QEMU's driver."""
        data = self.storage.read(offset, length)
        return data if len(data) == length else data + bytes(length - len(data))

    def readinto(self, offset: int, buffer: memoryview) -> None:
        """Fill all of `buffer`; zeros past the end of the file."""
        got = self._readinto(offset, buffer)
        if got < len(buffer):
            buffer[got:] = bytes(len(buffer) - got)

    def write(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        """Write all of `data`; StorageError when the device refuses."""
        self.unsynced = True
        self._write(offset, data)

    def write_zeroes(self, offset: int, length: int, *, punch: bool = False) -> None:
        self.unsynced = True
        self.storage.write_zeroes(offset, length, punch=punch)

    def truncate(self, size: int) -> None:
        self.unsynced = True
        self.storage.truncate(size)

    def sync(self) -> None:
        """Everything written so far is durable when this returns.

        After a failed flush nobody knows what the kernel dropped, and it would report the loss only once: every later
        flush fails too, so that no one builds on what may be gone.
        """
        if self._failed is not None:
            raise StorageError(f"flush failed before: {self._failed}", path=self.storage.path)
        if self.unsynced:
            try:
                self.storage.flush()
            except StorageError as error:
                self._failed = error.what
                raise
            self.unsynced = False
            self.flushes += 1
