"""FileStorage: what it opens, that reading leaves no trace, and the odd corners of files."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from workbench.errors import StorageError
from workbench.storage import file as file_module
from workbench.storage.file import FileStorage


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    path = tmp_path / "plain"
    path.write_bytes(bytes(range(256)) * 16)
    return path


def test_reading_leaves_bytes_size_and_mtime_alone(plain: Path) -> None:
    before = plain.stat()
    content = plain.read_bytes()
    with FileStorage.open(plain) as storage:
        assert storage.read(0, 1 << 40) == content
        assert storage.read(4090, 100) == content[4090:]
        assert storage.read(4096, 10) == b""
        storage.flush()
    after = plain.stat()
    assert (before.st_mtime_ns, before.st_size) == (after.st_mtime_ns, after.st_size)


@pytest.mark.parametrize("name", ["write", "write_zeroes", "truncate", "allocate"])
def test_a_read_only_file_refuses_every_change(plain: Path, name: str) -> None:
    arguments = {"write": (0, b"x"), "write_zeroes": (0, 1), "truncate": (0,), "allocate": (0, 1)}[name]
    with FileStorage.open(plain) as storage, pytest.raises(StorageError, match="read-only"):
        getattr(storage, name)(*arguments)


def test_what_is_not_an_image_is_refused_in_one_line_and_without_waiting(tmp_path: Path) -> None:
    fifo, sock = tmp_path / "fifo", tmp_path / "sock"
    os.mkfifo(fifo)
    listener = socket.socket(socket.AF_UNIX)
    try:
        listener.bind(str(sock))
        cases = {
            tmp_path: "directory",
            fifo: "FIFO",
            sock: "socket",
            Path("/dev/null"): "character device",
            tmp_path / "absent": "no such file",
        }
        for path, words in cases.items():
            for writable in (False, True):
                with pytest.raises(StorageError, match=words) as caught:
                    FileStorage.open(path, writable=writable)
                assert "\n" not in str(caught.value)
    finally:
        listener.close()


def test_a_name_with_a_nul_byte_is_refused() -> None:
    with pytest.raises(StorageError):
        FileStorage.open("a\0b")


def test_writes_grow_the_file_and_zeros_can_be_punched(plain: Path) -> None:
    with FileStorage.open(plain, writable=True) as storage:
        storage.write(8192, b"end")
        assert storage.size() == 8195
        storage.write_zeroes(0, 4096, punch=True)
        storage.write_zeroes(8190, 100)
        assert storage.size() == 8290
        storage.flush()
    assert plain.read_bytes() == bytes(8290)


@pytest.mark.parametrize("punch", [False, True])
def test_zeros_are_written_where_the_file_system_cannot_make_them(
    plain: Path, monkeypatch: pytest.MonkeyPatch, punch: bool
) -> None:
    monkeypatch.setattr(file_module, "_libc_fallocate", lambda: None)
    content = plain.read_bytes()
    with FileStorage.open(plain, writable=True) as storage:
        storage.write_zeroes(100, 200, punch=punch)
        storage.write_zeroes(4000, 3 << 20, punch=punch)
        assert storage.size() == 4000 + (3 << 20)
        assert storage.read(0, 4000) == content[:100] + bytes(200) + content[300:4000]
        assert not any(storage.read(4000, 3 << 20))


def test_holes_are_found(tmp_path: Path) -> None:
    path = tmp_path / "sparse"
    with FileStorage.create(path) as storage:
        storage.truncate(8 << 20)
        storage.write(4 << 20, b"x" * 65536)
        storage.flush()
        assert storage.next_data((4 << 20) + 70) == (4 << 20) + 70
        first = storage.next_data(0)
        assert first in (0, 4 << 20)  # 0 on file systems without holes
        if first:
            assert storage.next_hole(0) == 0
            assert storage.next_hole(4 << 20) == (4 << 20) + 65536
            assert storage.next_data(5 << 20) is None
            assert storage.allocated_size() < 1 << 20
        assert storage.next_data(8 << 20) is None
        assert storage.next_hole(9 << 20) == 9 << 20


def test_allocate_reserves_and_grows(tmp_path: Path) -> None:
    with FileStorage.create(tmp_path / "new") as storage:
        storage.allocate(0, 1 << 20)
        assert storage.size() == 1 << 20
        with pytest.raises(StorageError):
            FileStorage.create(tmp_path / "new")


def test_absurd_offsets_are_errors_not_tracebacks(plain: Path) -> None:
    with FileStorage.open(plain, writable=True) as storage:
        for offset in (-1, 1 << 63, 1 << 70):
            with pytest.raises(StorageError):
                storage.write(offset, b"x")
            with pytest.raises(StorageError):
                storage.read(offset, 1)
        with pytest.raises(StorageError):
            storage.truncate(1 << 70)


def test_a_closed_file_says_so(plain: Path) -> None:
    storage = FileStorage.open(plain)
    storage.close()
    storage.close()
    with pytest.raises(StorageError, match="closed"):
        storage.read(0, 1)


def test_many_threads_read_at_once(tmp_path: Path) -> None:
    path = tmp_path / "data"
    blocks = [bytes([n]) * 4096 for n in range(200)]
    path.write_bytes(b"".join(blocks))
    with FileStorage.open(path) as storage, ThreadPoolExecutor(8) as pool:

        def read(number: int) -> bool:
            buffer = bytearray(4096)
            got = storage.readinto(number * 4096, memoryview(buffer))
            return got == 4096 and bytes(buffer) == blocks[number] == storage.read(number * 4096, 4096)

        assert all(pool.map(read, list(range(200)) * 5))


def test_a_device_is_known_not_to_grow_and_names_what_is_missing(plain: Path, loop: Callable[[Path], Path]) -> None:
    from workbench.storage.overlay import Overlay

    with FileStorage.open(plain) as storage:
        assert storage.growable and Overlay(storage).growable
    with FileStorage.open(loop(plain), writable=True) as storage:
        assert not storage.growable and not Overlay(storage).growable
        size = storage.size()
        for work in (
            lambda: storage.write(size - 10, bytes(100)),
            lambda: storage.write_zeroes(size, 90),
            lambda: storage.truncate(size + 90),
            lambda: storage.allocate(size, 90),
        ):
            with pytest.raises(StorageError, match="cannot grow: 90 bytes are missing") as caught:
                work()
            assert "extend the device" in str(caught.value)
        storage.truncate(0)
        storage.write(size - 10, b"0123456789")
        assert storage.size() == size and storage.read(size - 10, 100) == b"0123456789"


def test_a_new_file_never_replaces_anything(plain: Path) -> None:
    plain.with_name("link").symlink_to("nowhere")
    for name in (plain, plain.with_name("link")):
        with pytest.raises(StorageError):
            FileStorage.create(name)
    assert plain.stat().st_size == 4096
