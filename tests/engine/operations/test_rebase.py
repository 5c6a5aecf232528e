"""Rebasing: the guest sees the same before, afterwards and after a cut at any write."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from tests.engine.operations.cuts import Journal, assert_sound, settled
from workbench.engine.ahead import Cancelled
from workbench.engine.chain import Opening, open_under
from workbench.engine.create import CreateOptions, create_file
from workbench.engine.gate import allow_local
from workbench.engine.image import Image
from workbench.engine.layers import RawLayer
from workbench.engine.metadata import load_metadata
from workbench.engine.operations.rebase import change_backing, rebase
from workbench.errors import ArgumentError, StorageError, UnsupportedError
from workbench.storage.memory import MemoryStorage

K = 1024
SIZE = 256 * K
NOISE = random.Random(5).randbytes(SIZE)
OLD = NOISE[: 64 * K] + bytes(32 * K) + NOISE[96 * K : 160 * K]
NEW = NOISE[: 32 * K] + NOISE[:32] + NOISE[32 * K + 32 : 128 * K] + bytes(16 * K) + b"n" * (120 * K)


def overlay(folder: Path, **options: Any) -> Path:
    """top.qcow2 over old.raw, some clusters of its own; new.raw beside them."""
    (folder / "old.raw").write_bytes(OLD)
    (folder / "new.raw").write_bytes(NEW)
    path = folder / "top.qcow2"
    settings = {"cluster_size": 8192, "backing_file": "old.raw", "backing_format": "raw", **options}
    create_file(str(path), CreateOptions(SIZE, **settings))
    with Image.open(path, writable=True) as image:
        image.write(40 * K, b"t" * 8192)
        image.write(100 * K, b"u" * 100)
        image.write_zeroes(120 * K, 8192)
    return path


def content(path: Path) -> bytes:
    with Image.open(path) as image:
        return image.read(0, image.size)


def onto(image: Image, name: str | None, form: str | None = "raw", **options: Any) -> Any:
    """Rebase as the command does."""
    from contextlib import ExitStack

    with ExitStack() as stack:
        layers = []
        if name:
            layers = open_under(str(Path(image.path).with_name(name)), form, Opening(allow_local), stack)
        return rebase(image, layers, name, form, **options)


SHAPES: dict[str, dict[str, Any]] = {
    "plain": {},
    "512": {"cluster_size": 512},
    "1k": {"cluster_size": 1024},
    "v2": {"compat": 2},
    "extended": {"cluster_size": 16384, "extended_l2": True},
    "lazy": {"lazy_refcounts": True},
}


@pytest.mark.parametrize("compress", [False, True], ids=["plain", "compressed"])
@pytest.mark.parametrize("shape", SHAPES)
def test_the_disk_stays_the_same_on_any_backing_file(tmp_path: Path, shape: str, compress: bool) -> None:
    path = overlay(tmp_path, **SHAPES[shape])
    before = content(path)
    with Image.open(path, writable=True) as image:
        result = onto(image, "new.raw", compress=compress)
    assert content(path) == before
    assert 0 < result.copied < result.compared <= SIZE and result.zeroed > 0
    with Image.open(path) as image:
        assert (image.meta.backing_name, image.meta.backing_format) == ("new.raw", "raw")
    with Image.open(path, writable=True) as image:
        onto(image, None, None)
    assert content(path) == before
    (tmp_path / "new.raw").unlink()
    assert content(path) == before
    assert_sound(MemoryStorage(path.read_bytes()))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", ["new.raw", None, "a-longer-name-" * 9], ids=["other", "none", "long"])
def test_a_cut_at_any_write_leaves_the_disk_as_it_was(tmp_path: Path, shape: str, name: str | None) -> None:
    path = overlay(tmp_path, **SHAPES[shape])
    if name is not None and name != "new.raw":
        (tmp_path / name).write_bytes(NEW)
    before = content(path)
    journal = Journal()
    with Image.open(path, writable=True, storage=journal.file(str(path), path.read_bytes())) as image:
        onto(image, name, "raw" if name else None)
    seen = set()
    for state in journal.cuts(per_cut=1):
        storage = settled(str(path), state[str(path)])
        with Image.open(path, storage=storage) as image:
            assert image.read(0, image.size) == before
            seen.add(image.meta.backing_name)
        assert_sound(storage)
    assert seen == {"old.raw", name}


def test_a_header_longer_than_a_sector_is_never_seen_half_written(tmp_path: Path) -> None:
    """Backing format and name move all that stands behind them; bitmaps, names and unknown extensions stay readable."""
    path = overlay(tmp_path, cluster_size=65536)
    journal = Journal()
    with Image.open(path, writable=True, storage=journal.file(str(path), path.read_bytes())) as image:
        change_backing(image, None, None)
        change_backing(image, "x" * 1000, "raw")
        change_backing(image, "y" * 10, "qcow2")
    pairs = set()
    for state in journal.cuts(per_cut=6):
        meta = load_metadata(MemoryStorage(state[str(path)]))
        assert not [fault for fault in meta.faults if fault.refusal]
        pairs.add((meta.backing_name, meta.backing_format))
    assert pairs == {("old.raw", "raw"), (None, None), ("x" * 1000, "raw"), ("y" * 10, "qcow2")}
    assert meta.area.ended and len(meta.feature_names) == 8


def test_what_both_chains_read_from_the_same_place_is_not_read_at_all(tmp_path: Path) -> None:
    path = overlay(tmp_path)
    create_file(
        str(tmp_path / "mid.qcow2"),
        CreateOptions(SIZE, backing_file="old.raw", backing_format="raw", cluster_size=8192),
    )
    with Image.open(tmp_path / "mid.qcow2", writable=True) as image:
        image.write(0, b"m" * 8192)
    before = content(path)
    with Image.open(path, writable=True) as image:
        assert (result := onto(image, "mid.qcow2", "qcow2")).compared == 8192
    assert result.copied == 8192 and content(path) == before


def test_bitmaps_of_the_image_record_what_was_taken_over(tmp_path: Path, base_images: Any) -> None:
    path = base_images.copy(base_images.get("bitmaps"), tmp_path)
    (tmp_path / "new.raw").write_bytes(NEW)
    before = content(path)
    with Image.open(path, writable=True) as image:
        assert onto(image, "new.raw").zeroed
    assert content(path) == before
    meta = load_metadata(MemoryStorage(path.read_bytes()))
    assert meta.bitmap_directory.bitmaps and not [each for each in meta.bitmap_directory.bitmaps if each.in_use]
    assert_sound(MemoryStorage(path.read_bytes()))


def test_an_error_or_a_stop_leaves_the_old_backing_file(tmp_path: Path) -> None:
    class Failing(RawLayer):
        def read_run(self, start: int, kind: int, host: int, view: memoryview) -> None:
            raise StorageError("Input/output error")

    path = overlay(tmp_path)
    before = content(path)
    with Image.open(path, writable=True) as image, pytest.raises(StorageError):
        rebase(image, (Failing(MemoryStorage(NEW)),), "new.raw", "raw")
    with Image.open(path, writable=True) as image, pytest.raises(Cancelled):
        onto(image, "new.raw", cancel=lambda: True)
    with Image.open(path) as image:
        assert image.meta.backing_name == "old.raw" and image.read(0, image.size) == before


def test_names_that_cannot_be_stored_are_refused_before_anything_is_read(tmp_path: Path) -> None:
    path = overlay(tmp_path, cluster_size=512)
    start = path.read_bytes()
    for name, form, error in (
        ("new.raw", None, "backing format must be specified"),
        ("n" * 1024, "raw", "at most 1023 bytes"),
        ("n" * 500, "raw", "the header needs"),
    ):
        with Image.open(path, writable=True) as image, pytest.raises(ArgumentError, match=error):
            change_backing(image, name, form)
    assert path.read_bytes() == start
    raw = tmp_path / "raw.qcow2"
    create_file(str(raw), CreateOptions(SIZE, data_file=str(tmp_path / "data"), data_file_raw=True))
    with Image.open(raw, writable=True) as image, pytest.raises(UnsupportedError, match="raw data file"):
        change_backing(image, "new.raw", "raw")
