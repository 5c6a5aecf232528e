"""Seeded damage is repeatable, always changes the image, and spreads over QEMU's verdicts."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path

import pytest

from sample_images.mutate import corrupt, mutate
from sample_images.qemu import check
from tests.conftest import BaseImages

pytestmark = pytest.mark.oracle

BASES = ("many-l2", "snapshots", "bitmaps", "subclusters-16k", "refcount-blocks", "v2-4k", "data-file", "refcount-1")


@pytest.mark.parametrize("damage", [mutate, corrupt])
def test_the_same_seed_gives_the_same_damage(damage: object, base_images: BaseImages, tmp_path: Path) -> None:
    assert callable(damage)
    for number, name in enumerate(BASES):
        source = base_images.get(name)
        first, second = tmp_path / "first", tmp_path / "second"
        shutil.copyfile(source, first)
        shutil.copyfile(source, second)
        assert damage(first, number) == damage(second, number)
        assert first.read_bytes() == second.read_bytes() != source.read_bytes()


def test_mutations_reach_all_of_qemus_verdicts(base_images: BaseImages, tmp_path: Path) -> None:
    codes: Counter[int] = Counter()
    for seed in range(48):
        image = base_images.copy(base_images.get(BASES[seed % len(BASES)]), tmp_path / str(seed))
        mutate(image, seed)
        codes[check(image).code] += 1
    assert set(codes) >= {0, 1, 2, 3}
    assert codes[2] >= 10
