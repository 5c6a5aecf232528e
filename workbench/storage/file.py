"""Regular files and block devices, by pread and pwrite: no shared position, any number of threads."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from functools import cache
from types import TracebackType

from workbench.errors import StorageError

_STEP = 1 << 30  # Linux moves at most 2 GiB - 4 KiB in one call
_ZEROS_STEP = 1 << 20
_CHECK_LENGTH_FROM = 1 << 20  # reads this long are clipped to the file first: pread takes the memory before it reads
_KEEP_SIZE, _PUNCH_HOLE, _ZERO_RANGE = 0x01, 0x02, 0x10
_NOT_HERE = {errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL, errno.ENODEV, errno.EPERM, errno.ENOTTY}

_REFUSED_KINDS = (
    (stat.S_ISDIR, "is a directory, not an image"),
    (stat.S_ISFIFO, "is a FIFO, not an image"),
    (stat.S_ISSOCK, "is a socket, not an image"),
    (stat.S_ISCHR, "is a character device, not an image"),
)


@cache
def _libc_fallocate() -> Callable[[int, int, int, int], int] | None:
    """fallocate(2) as a function that returns 0 or an errno; None where libc has none. Loaded on first use only."""
    import ctypes

    try:
        function = ctypes.CDLL(None, use_errno=True).fallocate64
    except (OSError, AttributeError):
        return None
    function.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]
    function.restype = ctypes.c_int

    def call(fd: int, mode: int, offset: int, length: int) -> int:
        while function(fd, mode, offset, length) != 0:
            code = ctypes.get_errno()
            if code != errno.EINTR:
                return code
        return 0

    return call


def _refuse_kind(path: str, mode: int) -> None:
    for test, words in _REFUSED_KINDS:
        if test(mode):
            raise StorageError(words, path=path, hint="name a regular file or a block device")


class FileStorage:
    """A regular file or block device (the Storage contract). Read-only by construction unless opened writable."""

    def __init__(self, fd: int, path: str, *, writable: bool, is_device: bool) -> None:
        """Take over an open descriptor; use `FileStorage.open` or `FileStorage.create`."""
        self._fd = fd
        self._path = path
        self._writable = writable
        self._is_device = is_device

    @classmethod
    def open(cls, path: str | os.PathLike[str], *, writable: bool = False) -> FileStorage:
        """Open an existing file or block device; O_RDONLY unless `writable`. Never blocks and never creates.

        Raises StorageError for what does not exist, may not be opened, or is neither a file nor a block device.
        """
        name = os.fspath(path)
        fd = -1
        try:
            # By name first: merely opening some devices (tapes, watchdogs) has effects.
            _refuse_kind(name, os.stat(name).st_mode)
            fd = _open_quietly(name, os.O_RDWR if writable else os.O_RDONLY)
            mode = os.fstat(fd).st_mode
            _refuse_kind(name, mode)  # again: the name may have been given to something else in between
        except (OSError, ValueError) as error:
            raise _open_error(error, name, writable=writable) from error
        except StorageError:
            if fd >= 0:
                os.close(fd)
            raise
        return cls(fd, name, writable=writable, is_device=stat.S_ISBLK(mode))

    @classmethod
    def create(cls, path: str | os.PathLike[str], *, mode: int = 0o644) -> FileStorage:
        """Make an empty file with `mode` (less the umask), open for writing. A name that exists is refused."""
        name = os.fspath(path)
        try:
            fd = os.open(name, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
        except (OSError, ValueError) as error:
            raise _open_error(error, name, writable=True) from error
        return cls(fd, name, writable=True, is_device=False)

    # -- what it is

    @property
    def path(self) -> str:
        return self._path

    @property
    def writable(self) -> bool:
        return self._writable

    @property
    def is_device(self) -> bool:
        """True for a block device: its length is fixed."""
        return self._is_device

    @property
    def growable(self) -> bool:
        """False for a block device."""
        return not self._is_device

    def fileno(self) -> int:
        """The open descriptor, for locks. Raises StorageError after close."""
        if self._fd < 0:
            raise StorageError("is closed", path=self._path)
        return self._fd

    def size(self) -> int:
        fd = self.fileno()
        try:
            return os.lseek(fd, 0, os.SEEK_END) if self._is_device else os.fstat(fd).st_size
        except OSError as error:
            raise self._error("cannot get the size", error) from error

    def allocated_size(self) -> int:
        try:
            return self.size() if self._is_device else os.fstat(self.fileno()).st_blocks * 512
        except OSError as error:
            raise self._error("cannot get the size", error) from error

    # -- reading

    def read(self, offset: int, length: int) -> bytes:
        if length >= _CHECK_LENGTH_FROM:
            length = min(length, self.size() - offset)
        if length <= 0:
            return b""
        fd = self.fileno()
        try:
            data = os.pread(fd, min(length, _STEP), offset)
            if len(data) == length or not data:
                return data
            parts, done = [data], len(data)
            while done < length:
                data = os.pread(fd, min(length - done, _STEP), offset + done)
                if not data:
                    break
                parts.append(data)
                done += len(data)
        except (OSError, OverflowError) as error:
            raise self._error("read failed", error, offset) from error
        return b"".join(parts) if len(parts) > 1 else parts[0]

    def readinto(self, offset: int, buffer: memoryview) -> int:
        fd, done, view = self.fileno(), 0, buffer.cast("B") if buffer.format != "B" else buffer
        try:
            while done < len(view):
                got = os.preadv(fd, [view[done : done + _STEP]], offset + done)
                if not got:
                    break
                done += got
        except (OSError, OverflowError) as error:
            raise self._error("read failed", error, offset + done) from error
        return done

    def next_data(self, offset: int) -> int | None:
        fd = self.fileno()
        try:
            return os.lseek(fd, offset, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:  # a hole up to the end, or past the end
                return None
            if error.errno in _NOT_HERE:
                return offset if offset < self.size() else None
            raise self._error("SEEK_DATA failed", error, offset) from error

    def next_hole(self, offset: int) -> int:
        fd = self.fileno()
        try:
            return os.lseek(fd, offset, os.SEEK_HOLE)
        except OSError as error:
            if error.errno == errno.ENXIO:
                return max(offset, self.size())
            if error.errno in _NOT_HERE:
                return max(offset, self.size())
            raise self._error("SEEK_HOLE failed", error, offset) from error

    # -- writing

    def write(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        fd, done = self._writing(), 0
        view = memoryview(data).cast("B") if data else memoryview(b"")
        self._require_inside(offset + len(view))
        try:
            while done < len(view):
                done += os.pwrite(fd, view[done : done + _STEP], offset + done)
        except (OSError, OverflowError) as error:
            full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
            what = f"write failed with {len(view) - done} bytes to go" if full else "write failed"
            raise self._error(what, error, offset + done) from error

    def write_zeroes(self, offset: int, length: int, *, punch: bool = False) -> None:
        fd = self._writing()
        if length <= 0:
            return
        end = offset + length
        self._require_inside(end)
        if punch and self._fallocate(fd, _PUNCH_HOLE | _KEEP_SIZE, offset, length):
            self._grow_to(end)
            return
        if self._fallocate(fd, _ZERO_RANGE | (_KEEP_SIZE if self._is_device else 0), offset, length):
            return
        size = self.size()
        if end > size and not self._is_device:
            self._grow_to(end)
            end = max(offset, size)
        zeros = memoryview(bytes(min(_ZEROS_STEP, max(end - offset, 0))))
        for start in range(offset, end, _ZEROS_STEP):
            self.write(start, zeros[: min(_ZEROS_STEP, end - start)])

    def truncate(self, size: int) -> None:
        """A block device keeps its length: shrinking does nothing, growing past its end raises StorageError."""
        fd = self._writing()
        if self._is_device:
            self._require_inside(size)
            return
        try:
            os.ftruncate(fd, size)
        except (OSError, OverflowError) as error:
            raise self._error(f"cannot set the length to {size} bytes", error) from error

    def allocate(self, offset: int, length: int) -> None:
        fd = self._writing()
        if length <= 0:
            return
        if self._is_device:
            self.truncate(offset + length)
            return
        try:
            os.posix_fallocate(fd, offset, length)
        except (OSError, OverflowError) as error:
            if isinstance(error, OSError) and error.errno in _NOT_HERE:
                self._grow_to(offset + length)  # no reservations here; the length is what the caller relies on
                return
            raise self._error(f"cannot reserve {length} bytes", error, offset) from error

    def flush(self) -> None:
        if not self._writable:
            return
        try:
            os.fdatasync(self.fileno())
        except OSError as error:
            raise self._error("flush failed", error) from error

    # -- end of life

    def close(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def __enter__(self) -> FileStorage:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"FileStorage({self._path!r}, writable={self._writable})"

    # -- inside

    def _writing(self) -> int:
        if not self._writable:
            raise StorageError("is open read-only", path=self._path)
        return self.fileno()

    def _require_inside(self, end: int) -> None:
        """On a device: StorageError naming the bytes missing when `end` lies behind its end."""
        if not self._is_device:
            return
        size = self.size()
        if end > size:
            raise device_full(self._path, size, end)

    def _grow_to(self, end: int) -> None:
        if end > self.size():
            self.truncate(end)

    def _fallocate(self, fd: int, mode: int, offset: int, length: int) -> bool:
        """True when done; False when this file system cannot, so that zeros must be written."""
        call = _libc_fallocate()
        if call is None or offset + length >= 1 << 63:
            return False
        code = call(fd, mode, offset, length)
        if code and code not in _NOT_HERE:
            raise self._error("zeroing failed", OSError(code, os.strerror(code)), offset)
        return code == 0

    def _error(self, what: str, error: Exception, offset: int | None = None) -> StorageError:
        return storage_error(what, error, self._path, offset)


def device_full(path: str, size: int, needed: int) -> StorageError:
    """The error for a block device of `size` bytes that would have to hold `needed`."""
    return StorageError(
        f"the block device has {size} bytes and cannot grow: {needed - size} bytes are missing",
        path=path,
        hint=f"extend the device to at least {needed} bytes, or work on a copy in a file",
    )


def storage_error(what: str, error: Exception, path: str, offset: int | None = None) -> StorageError:
    """A StorageError in one line that carries the system's reason, and a next step where there is one."""
    code = error.errno if isinstance(error, OSError) else None
    hint = {
        errno.ENOSPC: "free some space and repeat",
        errno.EDQUOT: "free some space and repeat",
        errno.EIO: "copy what can be read with ddrescue first, then work on the copy",
    }.get(code or 0)
    reason = os.strerror(code) if code else str(error)
    return StorageError(f"{what}: {reason}", path=path, offset=offset, hint=hint)


def _open_quietly(name: str, access: int) -> int:
    """Open without waiting (FIFOs) and, where it is ours, without touching the access time."""
    flags = access | os.O_NONBLOCK | os.O_CLOEXEC
    noatime = getattr(os, "O_NOATIME", 0)
    try:
        return os.open(name, flags | noatime)
    except PermissionError:
        if not noatime:
            raise
        return os.open(name, flags)


def _open_error(error: Exception, name: str, *, writable: bool) -> StorageError:
    if isinstance(error, FileNotFoundError):
        return StorageError("no such file", path=name)
    if isinstance(error, PermissionError):
        return StorageError(f"may not be {'written' if writable else 'read'} by this user", path=name)
    return storage_error("cannot be opened", error, name)
