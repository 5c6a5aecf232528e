"""The contract of everything that bytes come from: a file, a block device, a staged overlay, a recording."""

from __future__ import annotations

from typing import Protocol


class Storage(Protocol):
    """A range of bytes that can be read, and sometimes written. All offsets and sizes in bytes."""

    @property
    def path(self) -> str:
        """Name for messages (a path, or what stands for one)."""

    @property
    def writable(self) -> bool:
        """Whether write, write_zeroes, truncate and punch are allowed (they raise StorageError otherwise)."""

    @property
    def growable(self) -> bool:
        """Whether the length can change: False for block devices, where all that is written must fit inside."""

    def size(self) -> int:
        """Length now; asked anew each time, since a running VM may grow the file."""

    def read(self, offset: int, length: int) -> bytes:
        """Up to `length` bytes; fewer only where the file ends (b"" at or past its end). StorageError on I/O errors."""

    def readinto(self, offset: int, buffer: memoryview) -> int:
        """Fill `buffer` from `offset`; returns the bytes read, fewer only where the file ends."""

    def write(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        """Write all of `data`, growing the file where needed."""

    def write_zeroes(self, offset: int, length: int, *, punch: bool = False) -> None:
        """Make the range read as zeros; with `punch` the space may be given back to the file system."""

    def truncate(self, size: int) -> None:
        """Set the length; new bytes read as zeros."""

    def allocate(self, offset: int, length: int) -> None:
        """Reserve space (posix_fallocate); grows the file where needed."""

    def flush(self) -> None:
        """Everything written so far is durable when this returns (fdatasync)."""

    def next_data(self, offset: int) -> int | None:
        """Start of the next range at or after `offset` that may hold data; None when only a hole remains."""

    def next_hole(self, offset: int) -> int:
        """Start of the next hole at or after `offset` (the end of the file counts as one)."""

    def allocated_size(self) -> int:
        """Bytes that the file takes on its file system (st_blocks * 512)."""

    def close(self) -> None:
        """Release the file and its locks; a second close does nothing."""
