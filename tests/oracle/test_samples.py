"""The shipped samples against real QEMU: verdicts, and rebuilds that give the same bytes."""

from __future__ import annotations

from pathlib import Path

import pytest

from sample_images import Sample, copy_out, load_manifest
from sample_images.build import DAMAGED, HEALTHY, build_sample
from sample_images.qemu import check, qemu_version

pytestmark = pytest.mark.oracle

SAMPLES = load_manifest()
BUILT_WITH = (7, 2)  # counts and layouts may differ in other versions of QEMU


@pytest.mark.parametrize("sample", SAMPLES, ids=lambda sample: sample.name)
def test_qemu_img_check_says_what_the_manifest_says(sample: Sample, tmp_path: Path) -> None:
    verdict = check(copy_out(sample.name, tmp_path), secret=sample.passphrase)
    if qemu_version()[:2] == BUILT_WITH:
        assert (verdict.code, verdict.corruptions, verdict.leaks) == (
            sample.check.exit_code,
            sample.check.corruptions,
            sample.check.leaks,
        )
    elif sample.healthy:
        assert verdict.code == 0


@pytest.mark.parametrize("plan", [*HEALTHY, *DAMAGED], ids=lambda plan: plan.name)
def test_a_rebuild_gives_the_same_bytes(plan: object, tmp_path: Path) -> None:
    from sample_images.build import Plan

    assert isinstance(plan, Plan)
    if "luks" in plan.base:
        pytest.skip("a LUKS header holds random salts")
    if qemu_version()[:2] != BUILT_WITH:
        pytest.skip(f"the samples were built with QEMU {BUILT_WITH[0]}.{BUILT_WITH[1]}")
    shipped = next(sample for sample in SAMPLES if sample.name == plan.name)
    assert build_sample(plan, tmp_path)["sha256"] == shipped.sha256
