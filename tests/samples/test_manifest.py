"""The shipped samples are what their manifest says."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from sample_images import IMAGES, Sample, copy_out, find_sample, load_manifest
from sample_images.bases import BASES
from sample_images.recipes import RECIPES

SAMPLES = load_manifest()
MAX_TOTAL_BYTES = 8 << 20


@pytest.mark.parametrize("sample", SAMPLES, ids=lambda sample: sample.name)
def test_files_have_the_recorded_hashes(sample: Sample) -> None:
    assert set(sample.sha256) == set(sample.files)
    for name, digest in sample.sha256.items():
        assert hashlib.sha256((IMAGES / name).read_bytes()).hexdigest() == digest


def test_no_file_is_outside_the_manifest_and_together_they_stay_small() -> None:
    assert {path.name for path in IMAGES.iterdir()} == {name for sample in SAMPLES for name in sample.files}
    assert sum(path.stat().st_size for path in IMAGES.iterdir()) < MAX_TOTAL_BYTES


def test_there_are_enough_healthy_and_damaged_samples_and_each_says_what_to_look_at() -> None:
    healthy = [sample for sample in SAMPLES if sample.healthy]
    assert len(healthy) >= 13
    assert len(SAMPLES) - len(healthy) >= 13
    assert all(sample.title and sample.shows and sample.look_at for sample in SAMPLES)
    assert len({sample.name for sample in SAMPLES}) == len(SAMPLES)


def test_every_sample_names_a_base_and_a_recipe_that_exist() -> None:
    for sample in SAMPLES:
        assert sample.base in BASES
        assert sample.healthy == (sample.recipe is None)
        assert sample.recipe is None or RECIPES[sample.recipe].base == sample.base
        assert (sample.passphrase is not None) == (BASES[sample.base].secret is not None)


def test_copy_out_brings_companions_and_overwrites_nothing(tmp_path: Path) -> None:
    image = copy_out("backing-chain", tmp_path)
    assert image == tmp_path / "backing-chain.qcow2"
    assert {each.name for each in tmp_path.iterdir()} == set(find_sample("backing-chain.qcow2").files)
    with pytest.raises(FileExistsError):
        copy_out("backing-chain", tmp_path)
    assert copy_out("plain", tmp_path / "mine.qcow2").read_bytes() == find_sample("plain").path.read_bytes()


def test_an_unknown_sample_is_a_key_error() -> None:
    with pytest.raises(KeyError, match="nothing-like-it"):
        find_sample("nothing-like-it")
