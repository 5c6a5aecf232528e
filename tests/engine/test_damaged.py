"""Reading damaged images as far as they go: only errors of our own, soon, and never out of proportion."""

from __future__ import annotations

import resource
import time
from pathlib import Path

import pytest

from sample_images import copy_out, load_manifest
from sample_images.mutate import corrupt
from workbench.engine.image import Image
from workbench.errors import QwbError

READ_AT_MOST = 4 << 20
SAMPLES = [sample.name for sample in load_manifest()]


def look_everywhere(path: Path) -> None:
    """Open, map and read; QwbErrors are fine, anything else is not."""
    try:
        with Image.open(path, tolerant=True, secret=None) as image:
            covered = 0
            for extent in image.extents():
                assert extent.start == covered
                covered = extent.end
            assert covered == image.size
            for at in range(0, min(image.size, READ_AT_MOST), 1 << 16):
                try:
                    assert len(image.read(at, min(1 << 16, image.size - at))) <= 1 << 16
                except QwbError as error:
                    assert "\n" not in str(error)
    except QwbError as error:
        assert str(error)


@pytest.mark.parametrize("name", SAMPLES)
def test_samples_and_corrupted_copies_give_findings_not_tracebacks(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.monotonic()
    path = copy_out(name, tmp_path)
    look_everywhere(path)
    healthy = path.read_bytes()
    for seed in range(6):
        path.write_bytes(healthy)
        corrupt(path, seed)
        look_everywhere(path)
    assert time.monotonic() - start < 60
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300 << 10


@pytest.mark.parametrize("size", [0xFC00_0000_0400_0000, 1 << 63, (1 << 64) - 512])
def test_an_absurd_disk_size_is_mapped_as_far_as_tables_can(size: int, tmp_path: Path) -> None:
    path = copy_out("plain", tmp_path)
    with open(path, "r+b") as file:
        file.seek(24)
        file.write(size.to_bytes(8, "big"))
    with Image.open(path, tolerant=True) as image:
        assert image.size < 1 << 62
        assert sum(extent.end - extent.start for extent in image.extents()) == image.size
