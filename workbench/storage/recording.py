"""Storage for crash and failure tests: one logs every operation, one fails at a chosen one.

A power cut leaves a prefix of what was written, and between two flushes any subset of it, each write possibly torn at
a sector. `crash_images` builds such states from a log.
"""

from __future__ import annotations

import errno as errno_codes
import os
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Literal

from workbench.errors import StorageError
from workbench.storage.base import Storage
from workbench.storage.memory import MemoryStorage


class OpKind(Enum):
    """What a logged operation did."""

    WRITE = "write"
    ZERO = "zero"
    TRUNCATE = "truncate"
    ALLOCATE = "allocate"
    FLUSH = "flush"


@dataclass(frozen=True, slots=True)
class Op:
    """One logged operation. offset/length in bytes; for TRUNCATE `offset` is the new length."""

    kind: OpKind
    offset: int = 0
    length: int = 0
    data: bytes = b""
    punch: bool = False

    def run(self, storage: Storage) -> None:
        """Do it again on another storage."""
        match self.kind:
            case OpKind.WRITE:
                storage.write(self.offset, self.data)
            case OpKind.ZERO:
                storage.write_zeroes(self.offset, self.length, punch=self.punch)
            case OpKind.TRUNCATE:
                storage.truncate(self.offset)
            case OpKind.ALLOCATE:
                storage.allocate(self.offset, self.length)
            case OpKind.FLUSH:
                storage.flush()


class _PassThrough:
    """Storage that hands everything to a base; the two below override what they change."""

    def __init__(self, base: Storage) -> None:
        self.base = base

    @property
    def path(self) -> str:
        return self.base.path

    @property
    def writable(self) -> bool:
        return self.base.writable

    @property
    def growable(self) -> bool:
        return self.base.growable

    def size(self) -> int:
        return self.base.size()

    def read(self, offset: int, length: int) -> bytes:
        return self.base.read(offset, length)

    def readinto(self, offset: int, buffer: memoryview) -> int:
        return self.base.readinto(offset, buffer)

    def next_data(self, offset: int) -> int | None:
        return self.base.next_data(offset)

    def next_hole(self, offset: int) -> int:
        return self.base.next_hole(offset)

    def allocated_size(self) -> int:
        return self.base.allocated_size()

    def close(self) -> None:
        self.base.close()

    def _op(self, op: Op) -> None:
        raise NotImplementedError

    def write(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        self._op(Op(OpKind.WRITE, offset, len(data), bytes(data)))

    def write_zeroes(self, offset: int, length: int, *, punch: bool = False) -> None:
        self._op(Op(OpKind.ZERO, offset, length, punch=punch))

    def truncate(self, size: int) -> None:
        self._op(Op(OpKind.TRUNCATE, size))

    def allocate(self, offset: int, length: int) -> None:
        self._op(Op(OpKind.ALLOCATE, offset, length))

    def flush(self) -> None:
        self._op(Op(OpKind.FLUSH))


class Recording(_PassThrough):
    """Passes everything on and keeps `ops`, every change and flush in order."""

    def __init__(self, base: Storage) -> None:
        super().__init__(base)
        self.ops: list[Op] = []

    def _op(self, op: Op) -> None:
        op.run(self.base)
        self.ops.append(op)


class Faulty(_PassThrough):
    """Fails the operation number `fail_at` (from 0) of the kinds in `on`, and with `sticky` all later ones too.

    A failing write longer than a sector has its first `partial` bytes done, as a full disk does it.
    """

    def __init__(
        self,
        base: Storage,
        fail_at: int,
        *,
        errno: int = errno_codes.EIO,
        on: Sequence[OpKind | Literal["read"]] = tuple(OpKind),
        sticky: bool = True,
        partial: int = 0,
    ) -> None:
        super().__init__(base)
        self.count = 0
        self._fail_at, self._errno, self._on, self._sticky, self._partial = fail_at, errno, tuple(on), sticky, partial

    def _turn(self, kind: OpKind | Literal["read"], offset: int) -> StorageError | None:
        if kind not in self._on:
            return None
        turn, self.count = self.count, self.count + 1
        if turn == self._fail_at or (self._sticky and turn > self._fail_at):
            name = kind if isinstance(kind, str) else kind.value
            return StorageError(f"{name} failed: {os.strerror(self._errno)}", path=self.path, offset=offset)
        return None

    def read(self, offset: int, length: int) -> bytes:
        if error := self._turn("read", offset):
            raise error
        return self.base.read(offset, length)

    def readinto(self, offset: int, buffer: memoryview) -> int:
        if error := self._turn("read", offset):
            raise error
        return self.base.readinto(offset, buffer)

    def _op(self, op: Op) -> None:
        if error := self._turn(op.kind, op.offset):
            if op.kind is OpKind.WRITE and 0 < self._partial < op.length:
                self.base.write(op.offset, op.data[: self._partial])
            raise error
        op.run(self.base)


def replay(initial: bytes, ops: Sequence[Op]) -> MemoryStorage:
    """The file after `ops` on top of `initial`."""
    storage = MemoryStorage(initial)
    for op in ops:
        op.run(storage)
    return storage


def cuts(initial: bytes, ops: Sequence[Op]) -> Iterator[tuple[int, bytes]]:
    """The file as a cut after 0, 1, … all operations leaves it, in order: (operations done, bytes)."""
    storage = MemoryStorage(initial)
    yield 0, storage.getvalue()
    for done, op in enumerate(ops, 1):
        op.run(storage)
        if op.kind is not OpKind.FLUSH:
            yield done, storage.getvalue()


def crash_images(
    initial: bytes, ops: Sequence[Op], *, seed: int = 0, per_cut: int = 3, sector: int = 512
) -> Iterator[tuple[str, bytes]]:
    """Files that a power cut may leave: (description, bytes). Deterministic for a seed.

    Operations before the last flush are all there. Of those after it, a random subset arrived, and one write may be
    torn: some of its `sector`-sized pieces old, some new. The last state is the complete one.
    """
    rng = random.Random(seed)
    barriers = [0, *(i + 1 for i, op in enumerate(ops) if op.kind is OpKind.FLUSH)]
    for number, start in enumerate(barriers):
        end = barriers[number + 1] if number + 1 < len(barriers) else len(ops)
        durable = replay(initial, ops[:start]).getvalue()
        pending = [op for op in ops[start:end] if op.kind is not OpKind.FLUSH]
        yield f"cut after flush {number}", durable
        for cut in range(1, len(pending) + 1):
            yield f"flush {number}, {cut} in order", replay(durable, pending[:cut]).getvalue()
            for _ in range(per_cut):
                arrived = [op for op in pending[:cut] if rng.random() < 0.5]
                state = replay(durable, arrived)
                lost = [op for op in pending[:cut] if op not in arrived and op.kind is OpKind.WRITE]
                if lost:
                    _tear(state, rng.choice(lost), rng, sector)
                yield f"flush {number}, {len(arrived)} of {cut}, one torn", state.getvalue()
    yield "complete", replay(initial, ops).getvalue()


def _tear(state: MemoryStorage, op: Op, rng: random.Random, sector: int) -> None:
    """Let some sectors of one write arrive; sectors are those of the disk, not of the write."""
    position = op.offset
    while position < op.offset + op.length:
        end = min((position // sector + 1) * sector, op.offset + op.length)
        if rng.random() < 0.5:
            state.write(position, op.data[position - op.offset : end - op.offset])
        position = end
