"""Every sample is opened and every node of its tree visited, in every view that the node has: no error, no freeze."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import pytest

from sample_images import load_manifest
from sample_images.mutate import corrupt
from tests.tui.crawl import crawl, items_of
from workbench.tui.prepare import place_of, prepare, views_of
from workbench.tui.session import Trouble, load

SAMPLES = [sample for sample in load_manifest() if sample.path.exists()]


@pytest.mark.parametrize("part", range(4))
async def test_every_sample_is_crawled_without_error_or_freeze(part: int, tmp_path: Path) -> None:
    for sample in SAMPLES[part::4]:
        report = await crawl(sample.path, tmp_path / "state.json")
        assert not report.errors, f"{sample.name}: {report.errors[0]}"
        assert report.nodes >= 1
        assert report.slowest < 1.0, f"{sample.name}: {report.slowest:.2f} s at {report.slowest_at}"


def test_a_look_at_anything_never_raises(tmp_path: Path) -> None:
    for number, content in enumerate((b"", b"Q", b"QFI\xfb", b"QFI\xfb\0\0\0\3" + b"\xff" * 200, b"\xff" * 100_000)):
        path = tmp_path / str(number)
        path.write_bytes(content)
        loaded = load(path)
        assert loaded.storage is not None and loaded.outline is not None
        for item in loaded.outline.roots():
            loaded.outline.children(item)
        assert loaded.trouble is not Trouble.MISSING
        loaded.storage.close()


def test_every_node_of_corrupted_copies_can_be_looked_up(tmp_path: Path) -> None:
    rng = random.Random(4)
    for number in range(60):
        sample = rng.choice(SAMPLES)
        path = tmp_path / f"{number}.qcow2"
        shutil.copy(sample.path, path)
        what = corrupt(path, rng.getrandbits(32), metadata_only=True)
        loaded = load(path)
        assert loaded.storage is not None and loaded.outline is not None
        try:
            for item in items_of(loaded.outline):
                for view in views_of(loaded.outline, item)[:3]:
                    prepare(loaded.outline, place_of(item).seen_in(view))
        except Exception as error:
            raise AssertionError(f"{sample.name}, {what}") from error
        loaded.storage.close()
