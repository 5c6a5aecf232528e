"""Power cuts for operations on several files: one journal of all their writes, and what each file may hold after a cut."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from workbench.check.run import check
from workbench.engine.image import Image
from workbench.engine.metadata import load_metadata
from workbench.storage.memory import MemoryStorage
from workbench.storage.recording import Op, OpKind, Recording, replay

SECTOR = 512


@dataclass(slots=True)
class Journal:
    """Operations on several files, in the order in which they were issued. start: each file's content before."""

    start: dict[str, bytes] = field(default_factory=dict)
    ops: list[tuple[str, Op]] = field(default_factory=list)

    def file(self, path: str, content: bytes) -> Recording:
        """Storage of one file that is written down here."""
        self.start[path] = content
        return _Joint(self, path, content)

    def cuts(self, *, seed: int = 0, per_cut: int = 2) -> Iterator[Mapping[str, bytes]]:
        """What all files may hold after a power cut: for each cut everything issued, then random parts of what no flush
        of its own file followed, writes torn at sectors."""
        rng = random.Random(seed)
        for cut in range(len(self.ops) + 1):
            for part in range(1 + per_cut):
                yield {path: self._after(path, cut, rng if part else None) for path in self.start}

    def _after(self, path: str, cut: int, rng: random.Random | None) -> bytes:
        ops = [op for name, op in self.ops[:cut] if name == path]
        last = max((number for number, op in enumerate(ops, 1) if op.kind is OpKind.FLUSH), default=0)
        if rng is None:
            return replay(self.start[path], ops).getvalue()
        state = replay(self.start[path], ops[:last])
        for op in ops[last:]:
            chance = rng.random()
            if chance < 0.5:
                op.run(state)
            elif chance < 0.7 and op.kind is OpKind.WRITE:
                _tear(state, op, rng)
        return state.getvalue()


class _Joint(Recording):
    def __init__(self, journal: Journal, path: str, content: bytes) -> None:
        super().__init__(MemoryStorage(content, path=path))
        self._journal = journal

    def _op(self, op: Op) -> None:
        self._journal.ops.append((self.path, op))
        super()._op(op)


def _tear(state: MemoryStorage, op: Op, rng: random.Random) -> None:
    """Let some sectors of one write arrive."""
    at, end = op.offset, op.offset + op.length
    while at < end:
        stop = min((at // SECTOR + 1) * SECTOR, end)
        if rng.random() < 0.5:
            state.write(at, op.data[at - op.offset : stop - op.offset])
        at = stop


def settled(path: str, data: bytes) -> MemoryStorage:
    """An image after a cut, opened for writing once when it is dirty, as whoever goes on with it does."""
    storage = MemoryStorage(data, path=path)
    if load_metadata(storage).header.has("dirty"):
        Image.open(path, storage=storage, writable=True).close()
    return storage


def assert_sound(storage: MemoryStorage) -> None:
    """No corruption; leaks may be."""
    result = check(load_metadata(storage))
    assert (result.corruptions, result.check_errors) == (0, 0), [each.code for each in result.findings]
