"""Every base image reads and maps as the real qemu-img reads and maps it; and reading leaves no trace in the file."""

from __future__ import annotations

import hashlib
import json
import os
import random
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from sample_images.bases import BASES
from sample_images.qemu import source_arguments
from tests.conftest import BaseImages
from workbench.engine.convert import Source, convert_to_raw
from workbench.engine.image import Image
from workbench.engine.mapping import Extent

pytestmark = pytest.mark.oracle
LARGEST = 1 << 30
"""Disks beyond this are compared by their maps and by random reads only."""


@contextmanager
def working_in(folder: Path) -> Iterator[None]:
    """QEMU looks for external data files in the working directory."""
    before = os.getcwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def qemu(command: str, *options: str, image: Path, secret: str | None, target: str | None = None) -> str:
    arguments = ["qemu-img", command, *options, *source_arguments(image, secret), *([target] if target else [])]
    done = subprocess.run(arguments, capture_output=True, text=True, cwd=image.parent, timeout=120, check=True)
    return done.stdout


def as_qemu(extent: Extent) -> dict[str, Any]:
    row: dict[str, Any] = {
        "start": extent.start,
        "length": extent.length,
        "depth": extent.depth,
        "present": extent.present,
        "zero": extent.zero,
        "data": extent.data,
    }
    return row if extent.host is None else row | {"offset": extent.host}


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def opened(path: Path, name: str, **options: Any) -> Image:
    secret = BASES[name].secret
    return Image.open(path, secret=secret.encode() if secret else None, **options)


@pytest.mark.parametrize("name", sorted(BASES))
def test_bytes_and_map_equal_qemus(name: str, base_images: BaseImages, tmp_path: Path) -> None:
    path, secret = base_images.get(name), BASES[name].secret
    files = [each for each in path.parent.iterdir() if each.is_file()]
    before = [(each, each.stat().st_mtime_ns, each.stat().st_size) for each in files]
    digests = [digest(each) for each in files if each.stat().st_size < 1 << 24]
    with working_in(path.parent), opened(path, name) as image:
        theirs = json.loads(qemu("map", "--output=json", image=path, secret=secret))
        theirs = [{key: row[key] for key in row if key != "compressed"} for row in theirs if row["length"]]
        assert [as_qemu(each) for each in image.extents()] == theirs
        if image.size <= LARGEST:
            mine, other = tmp_path / "mine.raw", tmp_path / "qemu.raw"
            convert_to_raw(Source(image.chain, image.size), mine)
            qemu("convert", "-O", "raw", image=path, secret=secret, target=str(other))
            assert mine.stat().st_size == other.stat().st_size
            subprocess.run(["cmp", mine, other], check=True, capture_output=True)
            assert mine.stat().st_blocks <= other.stat().st_blocks + 64
            _random_reads(image, mine)
    assert before == [(each, each.stat().st_mtime_ns, each.stat().st_size) for each in files]
    assert digests == [digest(each) for each in files if each.stat().st_size < 1 << 24]


def _random_reads(image: Image, raw: Path) -> None:
    rng = random.Random(1)
    with open(raw, "rb") as file:
        for _ in range(40):
            start = rng.randrange(image.size) if image.size else 0
            length = rng.choice([1, 511, 4096, 70000, 300000])
            length = min(length, image.size - start)
            file.seek(start)
            assert image.read(start, length) == file.read(length)


@pytest.mark.parametrize("name", sorted(name for name in BASES if "snapshot" in name))
def test_snapshots_read_as_in_qemu_with_their_own_size(name: str, base_images: BaseImages, tmp_path: Path) -> None:
    path, secret = base_images.get(name), BASES[name].secret
    with working_in(path.parent), opened(path, name) as active:
        snapshots = active.meta.snapshots[:4]
        for snapshot in snapshots:
            other = tmp_path / f"{snapshot.id}.raw"
            by_id = f"snapshot.id={snapshot.id}"
            if snapshot.disk_size in (None, active.size):
                qemu("convert", "-O", "raw", "-l", by_id, image=path, secret=secret, target=str(other))
            with opened(path, name, snapshot=snapshot.id) as view, opened(path, name, snapshot=snapshot.name) as again:
                assert view.size == again.size == (active.size if snapshot.disk_size is None else snapshot.disk_size)
                content = view.read(0, view.size)
                assert content == again.read(0, view.size)
                if other.exists():
                    assert content == other.read_bytes()


def test_a_data_file_beside_its_image_is_found_from_anywhere(base_images: BaseImages, tmp_path: Path) -> None:
    """On purpose not QEMU's way, which looks in the working directory only (and fails here)."""
    name = next(each for each in sorted(BASES) if each.startswith("data-file"))
    path = base_images.get(name)
    with working_in(path.parent), opened(path, name) as image:
        content = image.read(0, min(image.size, 1 << 20))
    with working_in(tmp_path), opened(path, name) as image:
        assert image.read(0, len(content)) == content
