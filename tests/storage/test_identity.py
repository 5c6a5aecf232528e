"""Files are the same by what they are, not by what they are called."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from workbench.storage.identity import identities, identity, same_file


def test_links_are_the_file_they_lead_to(tmp_path: Path) -> None:
    file, other = tmp_path / "file", tmp_path / "other"
    file.write_bytes(b"x")
    other.write_bytes(b"x")
    os.symlink(file, tmp_path / "soft")
    os.link(file, tmp_path / "hard")
    for name in ("soft", "hard", "./file", "../" + tmp_path.name + "/file"):
        assert same_file(file, tmp_path / name)
    assert not same_file(file, other)


def test_what_is_not_there_is_nothing(tmp_path: Path) -> None:
    os.symlink("nowhere", tmp_path / "dangling")
    for name in ("absent", "dangling", "a\0b"):
        assert identity(tmp_path / name) is None and identities(tmp_path / name) == frozenset()
        assert not same_file(tmp_path / name, tmp_path / name)


def test_a_loop_device_is_its_file_by_whatever_node(tmp_path: Path, loop: Callable[[Path], Path]) -> None:
    file = tmp_path / "file"
    file.write_bytes(bytes(1 << 16))
    one, two = loop(file), loop(file)
    assert same_file(one, file) and same_file(one, two)
    assert identity(one) != identity(two)
    node = tmp_path / "node"
    found = one.stat()
    os.mknod(node, found.st_mode, found.st_rdev)
    assert identity(node) == identity(one)
    inner = loop(one)
    assert same_file(inner, file)
