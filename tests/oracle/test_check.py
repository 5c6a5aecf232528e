"""`check` against the real `qemu-img check`: every base image, every damage recipe, and some random damage."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
from click.testing import CliRunner

from sample_images.bases import BASES
from sample_images.recipes import RECIPES
from tests.campaigns.check_mutations import campaign, differences, our_check, qemu_check
from tests.check.test_problems import CRAFTED, UNREACHABLE
from tests.conftest import BaseImages
from workbench.check.problems import PROBLEMS

pytestmark = pytest.mark.oracle

DELIBERATE: dict[str, str] = {
    "backing-cyclic": "qemu-img never answers; we say that the backing chain runs in a circle",
}
"""Images where we differ from qemu-img on purpose, with the reason."""

ELSEWHERE = {
    *CRAFTED,
    *UNREACHABLE,
    "READ-ERROR",
    "REFCOUNT-OVERFLOW",
    "COMPRESSED-RESERVED",
    "SNAPSHOT-L1-OFFSET",
    "BACKING-NOT-FOLLOWED",
    "BACKING-YOUNGER",
    "DATA-FILE-MISSING",
    "OPEN-FREES-DATA",
}
"""Codes that tests/check triggers with images made for them."""


def compare(image: Path, secret: str | None) -> tuple[list[str], set[str]]:
    """What differs, and the codes that were found; every message can be made."""
    code, theirs, _ = qemu_check(image, secret)
    ours = our_check(image)
    assert all(found.message for found in ours.findings)
    assert ours.clean or ours.causes
    return differences(code, theirs, ours), set(ours.findings.by_code)


def test_base_images_count_as_qemu_img_counts(base_images: BaseImages) -> None:
    found = {}
    for name, base in BASES.items():
        different, _ = compare(base_images.get(name), base.secret)
        if different:
            found[name] = different
    assert found == {}


def test_damaged_images_count_as_qemu_img_counts(base_images: BaseImages) -> None:
    found, codes = {}, set()
    for name, recipe in RECIPES.items():
        image = base_images.damaged(name)
        if name in DELIBERATE:
            ours = our_check(image)
            assert ours.exit_code == 1
            codes |= set(ours.findings.by_code)
            continue
        different, seen = compare(image, recipe.secret)
        codes |= seen
        if different:
            found[name] = different
    assert found == {}
    assert len(RECIPES) >= 80
    for name in BASES:
        codes |= set(our_check(base_images.get(name)).findings.by_code)
    assert set(PROBLEMS) - codes - ELSEWHERE == set(), "codes that nothing triggers"


def test_random_damage_counts_as_qemu_img_counts() -> None:
    names = ["many-l2", "snapshots", "bitmaps", "extended-l2", "refcount-1"]
    outcomes = list(campaign(7, 60, [name for name in names if name in BASES]))
    assert [each for each in outcomes if each.differences] == []


def _verdicts(base_images: BaseImages, name: str) -> tuple[list[bool], set[str], int]:
    result = our_check(base_images.damaged(name))
    return [run.keep for run in result.orphans], {cause.code for cause in result.causes}, len(result.lost_tables)


def test_a_wiped_l2_table_is_named_and_its_clusters_are_kept(base_images: BaseImages) -> None:
    result = our_check(base_images.damaged("l2-zeroed"))
    assert [run.keep for run in result.orphans] == [True]
    cause = result.causes[0]
    assert cause.code == "L2-TABLE-WIPED"
    assert cause.guest == ((0x200000, 0x200000),)


def test_a_lost_l1_entry_is_found_again(base_images: BaseImages) -> None:
    result = our_check(base_images.damaged("l1-entry-zeroed"))
    assert result.causes[0].code == "L1-ENTRY-LOST"
    assert [table.fits[0] for table in result.lost_tables] == [1]
    assert all(run.keep for run in result.orphans)


def test_a_whole_l1_table_lost_keeps_everything(base_images: BaseImages) -> None:
    kept, causes, lost = _verdicts(base_images, "l1-zeroed")
    assert all(kept)
    assert causes == {"L1-ENTRY-LOST"}
    assert lost == 4


def test_lost_entries_inside_a_table_are_kept(base_images: BaseImages) -> None:
    for name in ("leaks-many", "l2-half-zeroed"):
        kept, causes, _ = _verdicts(base_images, name)
        assert all(kept)
        assert causes == {"L2-ENTRIES-LOST"}


def test_left_over_writes_are_waste(base_images: BaseImages) -> None:
    kept, causes, _ = _verdicts(base_images, "leak-tail")
    assert not any(kept)
    assert causes == {"INTERRUPTED-WRITES"}


def test_encryption_keys_are_kept(base_images: BaseImages) -> None:
    kept, causes, _ = _verdicts(base_images, "luks-length-short")
    assert kept
    assert all(kept)
    assert "LUKS-DAMAGED" in causes


def test_the_command_prints_a_superset_of_qemu_imgs_json(base_images: BaseImages, qemu_img: str) -> None:
    from workbench.cli.check import command

    for name in ("l2-zeroed", "block-wiped"):
        image = base_images.damaged(name)
        done = CliRunner().invoke(command, [str(image), "--json"])
        theirs = subprocess.run(
            [qemu_img, "check", "--output=json", str(image)], capture_output=True, text=True, check=False
        )
        assert done.exit_code == theirs.returncode
        mine = json.loads(done.stdout)
        assert {key: mine[key] for key in json.loads(theirs.stdout)} == json.loads(theirs.stdout)
        assert mine["findings"]
        assert mine["causes"]


def test_the_report_leads_with_the_verdict(base_images: BaseImages) -> None:
    from workbench.cli.check import command

    done = CliRunner().invoke(command, [str(base_images.damaged("l2-zeroed"))])
    lines = done.stdout.splitlines()
    assert lines[0] == "6 leaked clusters were found on the image."
    assert "do not free them" in lines[1]
    assert CliRunner().invoke(command, ["-q", str(base_images.get("many-l2"))]).stdout == ""


def test_a_check_leaves_the_file_alone(base_images: BaseImages) -> None:
    image = base_images.damaged("l2-zeroed")
    before = image.stat().st_mtime_ns, image.read_bytes()
    our_check(image)
    assert (image.stat().st_mtime_ns, image.read_bytes()) == before
