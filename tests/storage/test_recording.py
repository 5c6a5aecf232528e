"""Recorded operations can be replayed, cut, reordered and torn; faults come where they are asked for."""

from __future__ import annotations

import errno

import pytest

from workbench.errors import StorageError
from workbench.storage.memory import MemoryStorage
from workbench.storage.recording import Faulty, OpKind, Recording, crash_images, cuts, replay

START = b"\xee" * 2048


def recorded() -> Recording:
    storage = Recording(MemoryStorage(START))
    storage.write(0, b"a" * 1024)
    storage.write_zeroes(1024, 512)
    storage.flush()
    storage.write(512, b"b" * 1536)
    storage.truncate(3000)
    storage.allocate(0, 4096)
    return storage


def test_a_replay_gives_the_same_file() -> None:
    storage = recorded()
    assert [op.kind for op in storage.ops][:3] == [OpKind.WRITE, OpKind.ZERO, OpKind.FLUSH]
    assert replay(START, storage.ops).getvalue() == storage.read(0, 1 << 20)


def test_every_cut_is_a_prefix() -> None:
    storage = recorded()
    states = dict(cuts(START, storage.ops))
    assert sorted(states) == [0, 1, 2, 4, 5, 6]
    assert states[0] == START and states[6] == storage.read(0, 1 << 20)


def test_crash_images_keep_what_was_flushed_and_tear_only_what_was_not() -> None:
    storage = recorded()
    durable = replay(START, storage.ops[:3]).getvalue()
    states = list(crash_images(START, storage.ops, seed=1, per_cut=8))
    assert states == list(crash_images(START, storage.ops, seed=1, per_cut=8))
    torn = 0
    for name, state in states:
        if name.startswith("flush 1"):
            assert state[:512] == durable[:512]
            for sector in range(512, 2048, 512):
                assert state[sector : sector + 512] in (durable[sector : sector + 512], b"b" * 512)
            torn += len({state[512:1024] == b"b" * 512, state[1536:2048] == b"b" * 512}) == 2
    assert torn > 0
    assert states[-1] == ("complete", storage.read(0, 1 << 20))


def test_a_fault_comes_at_its_turn_and_stays() -> None:
    storage = Faulty(MemoryStorage(START), 1, errno=errno.ENOSPC, on=[OpKind.WRITE], partial=3)
    storage.write(0, b"first")
    storage.flush()
    for _ in range(2):
        with pytest.raises(StorageError, match="No space left"):
            storage.write(10, b"second")
    assert storage.read(0, 14) == b"first" + START[:5] + b"sec" + START[:1]


def test_a_fault_on_reading_passes_once_when_not_sticky() -> None:
    storage = Faulty(MemoryStorage(START), 0, on=["read"], sticky=False)
    with pytest.raises(StorageError, match="Input/output error"):
        storage.read(0, 1)
    assert storage.read(0, 1) == START[:1]
