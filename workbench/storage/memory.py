"""An image in memory: for tests, crash simulation and images small enough to be built there."""

from __future__ import annotations

from workbench.errors import StorageError

_LIMIT = 1 << 32


class MemoryStorage:
    """A bytearray behind the Storage contract. Holes are not tracked: everything counts as data."""

    def __init__(
        self, data: bytes | bytearray | memoryview = b"", *, path: str = "<memory>", writable: bool = True
    ) -> None:
        self._data = bytearray(data)
        self._path = path
        self._writable = writable

    @property
    def path(self) -> str:
        return self._path

    @property
    def writable(self) -> bool:
        return self._writable

    @property
    def growable(self) -> bool:
        return True

    def getvalue(self) -> bytes:
        """All bytes, copied."""
        return bytes(self._data)

    def size(self) -> int:
        return len(self._data)

    def read(self, offset: int, length: int) -> bytes:
        return bytes(self._data[offset : offset + max(length, 0)])

    def readinto(self, offset: int, buffer: memoryview) -> int:
        view = buffer.cast("B") if buffer.format != "B" else buffer
        data = self._data[offset : offset + len(view)]
        view[: len(data)] = data
        return len(data)

    def write(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        self._check_writable()
        if not len(data):
            return
        self._grow_to(offset)
        view = memoryview(data).cast("B")
        self._data[offset : offset + len(view)] = view

    def write_zeroes(self, offset: int, length: int, *, punch: bool = False) -> None:
        self._check_writable()
        if length > 0:
            self._grow_to(offset + length)
            self._data[offset : offset + length] = bytes(length)

    def truncate(self, size: int) -> None:
        self._check_writable()
        self._grow_to(size)
        del self._data[size:]

    def allocate(self, offset: int, length: int) -> None:
        self._check_writable()
        self._grow_to(offset + max(length, 0))

    def flush(self) -> None:
        """Nothing to do: memory is as durable as it gets."""

    def next_data(self, offset: int) -> int | None:
        return offset if offset < len(self._data) else None

    def next_hole(self, offset: int) -> int:
        return max(offset, len(self._data))

    def allocated_size(self) -> int:
        return len(self._data)

    def close(self) -> None:
        """Nothing to release."""

    def _check_writable(self) -> None:
        if not self._writable:
            raise StorageError("is open read-only", path=self._path)

    def _grow_to(self, end: int) -> None:
        if end > _LIMIT:
            raise StorageError(f"{end} bytes are too many to hold in memory", path=self._path)
        if end > len(self._data):
            self._data.extend(bytes(end - len(self._data)))
