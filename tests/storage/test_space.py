"""Room is looked for before anything is written, and what is missing has a number."""

from __future__ import annotations

from pathlib import Path

import pytest

from workbench.errors import StorageError
from workbench.storage import space
from workbench.storage.file import FileStorage
from workbench.storage.memory import MemoryStorage
from workbench.storage.space import Want, content_bytes, data_runs, existing_folder, require_room


def test_wants_on_one_file_system_count_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(space, "free_bytes", lambda _: 1000)
    (tmp_path / "sub").mkdir()
    require_room([Want(tmp_path, 600, "one"), Want(tmp_path / "sub", 400, "two")], path="p")
    with pytest.raises(StorageError, match=r"one \(600 bytes\) and two \(401 bytes\): 1 bytes") as caught:
        require_room([Want(tmp_path, 600, "one"), Want(tmp_path / "sub", 401, "two")], path="p")
    assert "nothing was written" in str(caught.value)


def test_where_nothing_is_known_nothing_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(space, "free_bytes", lambda _: None)
    require_room([Want(tmp_path, 1 << 60, "all")], path="p")
    require_room([Want(tmp_path, 0, "nothing")], path="p")


def test_a_folder_that_is_not_there_yet_counts_as_the_one_above(tmp_path: Path) -> None:
    assert existing_folder(tmp_path / "a" / "b") == tmp_path


def test_holes_and_zeros_take_no_room(tmp_path: Path) -> None:
    path = tmp_path / "sparse"
    with open(path, "wb") as file:
        file.truncate(64 << 20)
        file.seek(32 << 20)
        file.write(b"x" * 65536 + bytes(65536))
    with FileStorage.open(path) as storage:
        assert content_bytes(storage) <= 1 << 20
        assert content_bytes(storage, 0) == 65536
    packed = MemoryStorage(bytes(9 << 20) + b"y" + bytes(100))
    assert content_bytes(packed) == (9 << 20) + 101 and content_bytes(packed, 1000) == 101


@pytest.mark.parametrize("size", [0, 1, 65535, 65536, 65537, (4 << 20) + 70_000])
def test_runs_of_data_put_together_are_the_file(size: int) -> None:
    data = bytearray(size)
    for at in range(0, size, 150_000):
        data[at] = 7
    storage, again = MemoryStorage(data), bytearray(size)
    for at, run in data_runs(storage, 0, size):
        assert run.nbytes and any(run)
        again[at : at + len(run)] = run
    assert again == data
