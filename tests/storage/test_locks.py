"""Locks against real QEMU: who may open an image while whom."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from workbench.errors import LockedError
from workbench.storage.file import FileStorage
from workbench.storage.locks import Lock, LockMode, Permission, acquire, probe


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "image"
    path.write_bytes(bytes(1 << 16))
    return path


@contextmanager
def held(path: Path, mode: LockMode) -> Iterator[Lock]:
    with FileStorage.open(path, writable=mode is LockMode.WRITE) as storage:
        yield acquire(storage, mode)


@contextmanager
def qemu_io_holding(qemu_io: str, path: Path, *options: str) -> Iterator[None]:
    """A qemu-io that has the image open until the block ends."""
    command = [qemu_io, *options, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
        assert process.stdin is not None and process.stdout is not None
        try:
            process.stdin.write(b"length\n")
            process.stdin.flush()
            seen = b""
            deadline = time.monotonic() + 20
            while b"iB" not in seen and b"bytes" not in seen and time.monotonic() < deadline:
                piece = process.stdout.read1(4096)  # type: ignore[attr-defined]
                if not piece:
                    raise AssertionError(seen.decode())
                seen += piece
            yield
        finally:
            process.stdin.write(b"quit\n")
            process.stdin.close()
            process.wait(20)


def opens(*command: str) -> str:
    """What a QEMU tool says on stderr; empty when it could open the image."""
    return subprocess.run(command, capture_output=True, text=True, timeout=30, check=False).stderr


def test_readers_share_and_writers_do_not(image: Path) -> None:
    with held(image, LockMode.READ), held(image, LockMode.READ), held(image, LockMode.FORCE_READ):
        with pytest.raises(LockedError) as caught, held(image, LockMode.WRITE):
            pass
        assert "write" in caught.value.what
    with held(image, LockMode.WRITE):
        for mode in (LockMode.READ, LockMode.WRITE):
            with pytest.raises(LockedError) as caught, held(image, mode):
                pass
            assert "write" in caught.value.held and "-U" in str(caught.value)
        with held(image, LockMode.FORCE_READ):
            pass


def test_a_refused_lock_leaves_nothing_behind(image: Path) -> None:
    with FileStorage.open(image, writable=True) as other:
        with held(image, LockMode.READ), pytest.raises(LockedError):
            acquire(other, LockMode.WRITE)
        assert not probe(image).held


def test_probe_sees_and_does_not_disturb(image: Path) -> None:
    assert not probe(image).held and str(probe(image)) == "not in use"
    with held(image, LockMode.WRITE) as lock:
        state = probe(image)
        assert state.used == Permission.CONSISTENT_READ | Permission.WRITE | Permission.RESIZE
        assert state.denied == Permission.WRITE | Permission.RESIZE
        assert state.in_motion and not state.allows(LockMode.READ) and state.allows(LockMode.FORCE_READ)
        lock.release()
        lock.release()
        assert not probe(image).held


@pytest.mark.oracle
def test_qemu_writing_keeps_us_out_unless_forced(qemu_img: str, qemu_io: str, tmp_path: Path) -> None:
    path = tmp_path / "i.qcow2"
    subprocess.run([qemu_img, "create", "-q", "-f", "qcow2", str(path), "1M"], check=True)
    with qemu_io_holding(qemu_io, path):
        state = probe(path)
        assert (state.used, state.denied) == LockMode.WRITE.value
        for mode in (LockMode.READ, LockMode.WRITE):
            with pytest.raises(LockedError), held(path, mode):
                pass
        with held(path, LockMode.FORCE_READ):
            assert opens(qemu_img, "info", "-U", str(path)) == ""
    assert not probe(path).held


@pytest.mark.oracle
def test_qemu_reading_shares_with_our_reader_only(qemu_img: str, qemu_io: str, tmp_path: Path) -> None:
    path = tmp_path / "i.qcow2"
    subprocess.run([qemu_img, "create", "-q", "-f", "qcow2", str(path), "1M"], check=True)
    with qemu_io_holding(qemu_io, path, "-r"):
        assert (probe(path).used, probe(path).denied) == LockMode.READ.value
        with held(path, LockMode.READ):
            assert opens(qemu_img, "info", str(path)) == ""
        with pytest.raises(LockedError), held(path, LockMode.WRITE):
            pass


@pytest.mark.oracle
def test_our_writer_keeps_qemu_out(qemu_img: str, qemu_io: str, tmp_path: Path) -> None:
    path = tmp_path / "i.qcow2"
    subprocess.run([qemu_img, "create", "-q", "-f", "qcow2", str(path), "1M"], check=True)
    with held(path, LockMode.WRITE):
        assert 'Failed to get shared "write" lock' in opens(qemu_img, "info", str(path))
        assert 'Failed to get "write" lock' in opens(qemu_io, "-c", "length", str(path))
        assert opens(qemu_img, "info", "-U", str(path)) == ""
    with held(path, LockMode.READ):
        assert opens(qemu_img, "info", str(path)) == ""
        assert 'Failed to get "write" lock' in opens(qemu_io, "-c", "length", str(path))
    assert opens(qemu_io, "-c", "length", str(path)) == ""
