"""The overlay shows what would be, tells what differs, and writes exactly that."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from workbench.errors import StorageError
from workbench.storage.file import FileStorage
from workbench.storage.memory import MemoryStorage
from workbench.storage.overlay import Edit, Overlay
from workbench.storage.recording import Recording

START = bytes(range(1, 201)) * 2

offsets = st.integers(0, 500)
actions = st.one_of(
    st.tuples(st.just("write"), offsets, st.binary(min_size=0, max_size=90)),
    st.tuples(st.just("zero"), offsets, st.integers(0, 200)),
    st.tuples(st.just("punch"), offsets, st.integers(0, 200)),
    st.tuples(st.just("truncate"), offsets, st.just(0)),
)


def run(storage: Overlay | MemoryStorage, steps: list[tuple[str, int, object]]) -> None:
    for kind, offset, argument in steps:
        if kind == "write":
            assert isinstance(argument, bytes)
            storage.write(offset, argument)
        elif kind == "truncate":
            storage.truncate(offset)
        else:
            assert isinstance(argument, int)
            storage.write_zeroes(offset, argument, punch=kind == "punch")


@settings(max_examples=300, deadline=None)
@given(st.lists(actions, max_size=25), st.sampled_from([0, 7, 64, 1 << 20]))
def test_an_overlay_behaves_like_the_file_it_stands_for(steps: list[tuple[str, int, object]], spill_at: int) -> None:
    base, model = MemoryStorage(START), MemoryStorage(START)
    overlay = Overlay(base, spill_at=spill_at)
    run(overlay, steps)
    run(model, steps)
    wanted = model.getvalue()
    assert overlay.size() == len(wanted)
    assert overlay.read(0, 10_000) == wanted
    for start, length in ((0, 10), (37, 111), (150, 300), (399, 2), (len(wanted), 5)):
        buffer = bytearray(length)
        got = overlay.readinto(start, memoryview(buffer))
        assert overlay.read(start, length) == wanted[start : start + length] == bytes(buffer[:got])
    assert base.getvalue() == START

    # The edits alone make the new file out of the old one, and the old one out of the new.
    forth, back = MemoryStorage(START), MemoryStorage(wanted)
    edits = overlay.edits()
    for edit in edits:
        assert edit.old != edit.new
        forth.write(edit.offset, edit.new)
        back.write(edit.offset, edit.old)
    old_size, new_size = overlay.size_change
    forth.truncate(new_size)
    back.truncate(old_size)
    assert forth.getvalue() == wanted
    assert back.getvalue() == START
    assert [e.offset for e in edits] == sorted(e.offset for e in edits)

    overlay.apply_to(base)
    assert base.getvalue() == wanted
    overlay.discard()
    assert overlay.read(0, 10_000) == wanted and overlay.edits() == []


def test_holes_and_data_are_found_through_the_overlay(tmp_path: Path) -> None:
    with FileStorage.create(tmp_path / "f") as base:
        base.truncate(16 << 20)
        base.write(8 << 20, b"x" * 65536)
        overlay = Overlay(base)
        overlay.write(1 << 20, b"staged")
        overlay.write_zeroes(8 << 20, 65536)
        assert overlay.next_hole(1 << 20) == (1 << 20) + 6 or base.next_hole(0) == base.size()
        if base.next_hole(0) == 0:
            assert overlay.next_data(0) == 1 << 20
            assert overlay.next_data(2 << 20) is None
        overlay.truncate(1 << 20)
        assert overlay.next_data(1 << 20) is None
        assert overlay.next_hole(1 << 20) == 1 << 20


def test_zeroing_a_vast_sparse_range_lists_only_what_was_there(tmp_path: Path) -> None:
    with FileStorage.create(tmp_path / "f") as base:
        base.truncate(1 << 40)
        base.write(1 << 39, b"data")
        if base.next_hole(0) != 0:
            pytest.skip("this file system has no holes")
        overlay = Overlay(base)
        overlay.write_zeroes(0, 1 << 40)
        assert overlay.edits() == [Edit(1 << 39, b"data", bytes(4))]


def test_a_second_write_of_the_same_bytes_is_no_edit() -> None:
    overlay = Overlay(MemoryStorage(START))
    overlay.write(10, START[10:50])
    assert overlay.changed and overlay.edits() == []
    overlay.write(20, b"\0\0")
    assert overlay.edits() == [Edit(20, START[20:22], b"\0\0")]


def test_neighbouring_edits_are_one() -> None:
    overlay = Overlay(MemoryStorage(bytes(4096)))
    for position in range(0, 512, 8):
        overlay.write(position, b"\1" * 8)
    assert overlay.staged_ranges == [(0, 512)]
    assert overlay.edits() == [Edit(0, bytes(512), b"\1" * 512)]


def test_a_shorter_length_is_set_after_the_new_bytes_are_durable() -> None:
    base = Recording(MemoryStorage(START))
    overlay = Overlay(base)
    overlay.write(0, b"new")
    overlay.truncate(100)
    overlay.apply_to(base)
    assert [op.kind.value for op in base.ops] == ["write", "flush", "truncate", "flush"]


def test_applying_to_a_read_only_file_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_bytes(START)
    with FileStorage.open(path) as base:
        overlay = Overlay(base)
        overlay.write(0, b"new")
        with pytest.raises(StorageError, match="read-only"):
            overlay.apply_to(base)
    assert path.read_bytes() == START


def test_many_scattered_small_writes_stay_quick_and_right() -> None:
    rng = random.Random(5)
    base, model = MemoryStorage(bytes(1 << 20)), bytearray(1 << 20)
    overlay = Overlay(base, spill_at=1 << 16)
    for _ in range(20_000):
        position = rng.randrange((1 << 20) // 8) * 8
        data = rng.randbytes(8)
        overlay.write(position, data)
        model[position : position + 8] = data
    assert overlay.read(0, 1 << 20) == model
    assert len(overlay.staged_ranges) < 20_000


def test_hidden_are_the_bytes_that_are_staged_over_or_cut_off() -> None:
    overlay = Overlay(MemoryStorage(START))
    assert overlay.hidden_ranges == []
    overlay.write(10, b"new")
    overlay.write_zeroes(100, 20)
    assert overlay.hidden_ranges == [(10, 13), (100, 120)]
    overlay.truncate(300)
    overlay.truncate(500)
    assert overlay.hidden_ranges == [(10, 13), (100, 120), (300, 400)]
