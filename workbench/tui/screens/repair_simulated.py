"""The repaired image before it is written, to be browsed like any other: the plan's overlay, read-only."""

from __future__ import annotations

from typing import NoReturn

from workbench.errors import StorageError
from workbench.storage.base import Storage


class Simulated:
    """A read-only Storage on another one that it does not own: closing it leaves the plan as it is."""

    writable = False

    def __init__(self, base: Storage) -> None:
        self._base = base

    @property
    def path(self) -> str:
        return self._base.path

    @property
    def growable(self) -> bool:
        return self._base.growable

    def size(self) -> int:
        return self._base.size()

    def read(self, offset: int, length: int) -> bytes:
        return self._base.read(offset, length)

    def readinto(self, offset: int, buffer: memoryview) -> int:
        return self._base.readinto(offset, buffer)

    def next_data(self, offset: int) -> int | None:
        return self._base.next_data(offset)

    def next_hole(self, offset: int) -> int:
        return self._base.next_hole(offset)

    def allocated_size(self) -> int:
        return self._base.allocated_size()

    def _refuse(self) -> NoReturn:
        raise StorageError("this is a simulation: nothing can be written", path=self.path)

    def write(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        self._refuse()

    def write_zeroes(self, offset: int, length: int, *, punch: bool = False) -> None:
        self._refuse()

    def truncate(self, size: int) -> None:
        self._refuse()

    def allocate(self, offset: int, length: int) -> None:
        self._refuse()

    def flush(self) -> None:
        """Nothing is written, so nothing waits."""

    def close(self) -> None:
        """The plan still needs the base."""
