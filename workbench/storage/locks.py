"""QEMU's image locks: OFD byte-range locks on the image file, so that a running VM and the workbench see each other.

For each permission QEMU read-locks byte 100 + bit when it uses the permission, and byte 200 + bit when it does not let
others use it. Nobody ever write-locks; a conflict is found by asking whether a write lock *could* be placed. OFD locks
belong to the open file, not to the process: they end with the descriptor, and two opens in one process conflict too.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from dataclasses import dataclass
from enum import Enum, IntFlag
from types import TracebackType
from typing import Final, Protocol

from workbench.errors import LockedError
from workbench.storage.file import FileStorage, storage_error

PERMISSION_BASE: Final = 100
"""First lock byte of the permissions in use."""
SHARED_BASE: Final = 200
"""First lock byte of the permissions that others may not use."""

_FLOCK: Final = struct.Struct("@hhqqi4x")  # l_type, l_whence, l_start, l_len, l_pid, as on 64-bit Linux
_GETLK: Final = getattr(fcntl, "F_OFD_GETLK", 36)
_SETLK: Final = getattr(fcntl, "F_OFD_SETLK", 37)
_NO_LOCKS_HERE: Final = {errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK, errno.ENOTTY}


class Permission(IntFlag):
    """QEMU's BLK_PERM_* bits. GRAPH_MOD is used only by QEMU up to 6.2."""

    CONSISTENT_READ = 1
    WRITE = 2
    WRITE_UNCHANGED = 4
    RESIZE = 8
    GRAPH_MOD = 16


_NAMES: Final = {
    Permission.CONSISTENT_READ: "consistent read",
    Permission.WRITE: "write",
    Permission.WRITE_UNCHANGED: "write unchanged",
    Permission.RESIZE: "resize",
    Permission.GRAPH_MOD: "graph mod",
}
_NONE: Final = Permission(0)


def _names(permissions: Permission) -> tuple[str, ...]:
    return tuple(name for bit, name in _NAMES.items() if bit & permissions)


class LockMode(Enum):
    """(permissions used, permissions denied to others), as QEMU's qcow2 driver takes them on the image file."""

    READ = (Permission.CONSISTENT_READ, Permission.WRITE | Permission.RESIZE)
    WRITE = (Permission.CONSISTENT_READ | Permission.WRITE | Permission.RESIZE, Permission.WRITE | Permission.RESIZE)
    FORCE_READ = (Permission.CONSISTENT_READ, _NONE)
    """What `-U` takes: reads beside anyone, and what it sees may be in motion."""

    @property
    def used(self) -> Permission:
        return self.value[0]

    @property
    def denied(self) -> Permission:
        return self.value[1]


@dataclass(frozen=True, slots=True)
class LockState:
    """What other opens of the file hold: `used` permissions, and those `denied` to anyone else."""

    used: Permission = _NONE
    denied: Permission = _NONE
    supported: bool = True
    """False where the file system has no OFD locks: then nothing is known."""

    @property
    def held(self) -> bool:
        """True when QEMU, its tools or another workbench have the file open with locks."""
        return bool(self.used | self.denied)

    @property
    def in_motion(self) -> bool:
        """True when somebody may be writing."""
        return bool(self.used & (Permission.WRITE | Permission.RESIZE))

    def allows(self, mode: LockMode) -> bool:
        """Whether a lock of this mode would be granted now."""
        return not (mode.used & self.denied or mode.denied & self.used)

    def __str__(self) -> str:
        if not self.supported:
            return "unknown (no OFD locks on this file system)"
        if not self.held:
            return "not in use"
        used, denied = ", ".join(_names(self.used)) or "nothing", ", ".join(_names(self.denied)) or "nothing"
        return f"in use (takes: {used}; denies others: {denied})"


class _HasDescriptor(Protocol):
    @property
    def path(self) -> str: ...

    def fileno(self) -> int: ...


class Lock:
    """Locks held on one open file. They end with `release`, with the file's close, or with the process."""

    def __init__(self, target: _HasDescriptor, mode: LockMode, *, effective: bool) -> None:
        self._target = target
        self.mode = mode
        self.effective = effective
        """False where the file system has no OFD locks: nothing protects the image (QEMU too goes on without)."""

    def release(self) -> None:
        """Give the locks back; a second release does nothing."""
        if not self.effective:
            return
        self.effective = False
        try:
            _set(self._target.fileno(), self.mode.used, self.mode.denied, fcntl.F_UNLCK)
        except OSError as error:
            raise storage_error("unlocking failed", error, self._target.path) from error

    def __enter__(self) -> Lock:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, at: TracebackType | None) -> None:
        self.release()


def probe(path: str | os.PathLike[str]) -> LockState:
    """Who holds the file now. Opens it read-only and takes no lock, so nobody is disturbed.

    An answer ages at once: only `acquire` can promise anything. Raises StorageError when the file cannot be opened.
    """
    with FileStorage.open(path) as storage:
        return state_of(storage)


def state_of(storage: _HasDescriptor) -> LockState:
    """As `probe`, for a file that is open already; the locks of this very open do not count."""
    fd = storage.fileno()
    try:
        return LockState(_taken(fd, PERMISSION_BASE), _taken(fd, SHARED_BASE))
    except OSError as error:
        if error.errno in _NO_LOCKS_HERE:
            return LockState(supported=False)
        raise storage_error("asking for locks failed", error, storage.path) from error


def acquire(storage: _HasDescriptor, mode: LockMode) -> Lock:
    """Take QEMU's locks for `mode` on an open file, all or none.

    Raises LockedError when another open is in the way; `held` names the permissions. Where the file system has no OFD
    locks a Lock with `effective` False is returned. First place, then look, as QEMU does: of two who come at the same
    moment at least one sees the other.
    """
    fd = storage.fileno()
    placed = False
    try:
        _set(fd, mode.used, mode.denied, fcntl.F_RDLCK)
        placed = True
        refusal = _refusal(state_of(storage), mode, storage.path)
        if refusal is None:
            placed = False  # kept
            return Lock(storage, mode, effective=True)
        raise refusal
    except OSError as error:
        if error.errno in _NO_LOCKS_HERE:
            return Lock(storage, mode, effective=False)
        if error.errno in (errno.EAGAIN, errno.EACCES):  # a foreign write lock on our bytes; QEMU never does that
            what = "another program holds an exclusive lock on the image"
            raise LockedError(what, path=storage.path, hint="close that program first") from error
        raise storage_error("locking failed", error, storage.path) from error
    finally:
        if placed:
            _set(fd, mode.used, mode.denied, fcntl.F_UNLCK)


def _refusal(state: LockState, mode: LockMode, path: str) -> LockedError | None:
    """The error for the first permission in the way, in QEMU's order: what we want to use, then what we must deny."""
    if state.allows(mode):
        return None
    wanted, denied = mode.used & state.denied, mode.denied & state.used
    name = f'"{_names(wanted)[0]}"' if wanted else f'shared "{_names(denied)[0]}"'
    if mode is LockMode.WRITE:
        hint = "shut down the VM or tool that has it open (reading beside it: -U)"
    else:
        hint = "shut it down, or add -U to read all the same (what is shown may then be in motion)"
    return LockedError(
        f"cannot get the {name} lock: a running VM, qemu-io, qemu-img or another qwb holds the image",
        held=_names(state.used | state.denied),
        path=path,
        hint=hint,
    )


def _set(fd: int, used: Permission, denied: Permission, kind: int) -> None:
    for base, permissions in ((PERMISSION_BASE, used), (SHARED_BASE, denied)):
        for bit, permission in enumerate(Permission):
            if permission & permissions:
                fcntl.fcntl(fd, _SETLK, _FLOCK.pack(kind, os.SEEK_SET, base + bit, 1, 0))


def _taken(fd: int, base: int) -> Permission:
    """The permissions whose byte (from `base`) another open has locked."""
    found = _NONE
    for bit, permission in enumerate(Permission):
        answer = fcntl.fcntl(fd, _GETLK, _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, base + bit, 1, 0))
        if _FLOCK.unpack(answer)[0] != fcntl.F_UNLCK:
            found |= permission
    return found
