"""A header made anew: its disk is long enough for what the guest says, and a range is called one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from sample_images.kit import M, text
from tests.guest.test_reach import gpt, mbr
from workbench.engine.create import CreateOptions, create_file
from workbench.engine.image import Image
from workbench.engine.metadata import load_metadata
from workbench.engine.snapshots import create_snapshot
from workbench.repair.plan import Plan, make_plan
from workbench.repair.policy import Mode, Policy
from workbench.storage.file import FileStorage

COVERAGE = 512 * M


def disk(path: Path, size: int, start: bytes, hurt: Callable[[bytearray], None], cluster: int = 65536) -> Plan:
    """The plan for an image of `size` whose disk begins with `start`, its header hurt."""
    create_file(str(path), CreateOptions(size=size, cluster_size=cluster))
    with Image.open(path, writable=True) as image:
        image.write(0, start)
        image.write(700 * M, text(M, 1))
    head = bytearray(path.read_bytes()[:cluster])
    hurt(head)
    with open(path, "r+b") as file:
        file.write(head)
    return make_plan(FileStorage.open(path), Policy(mode=Mode.ALL))


def wipe(head: bytearray) -> None:
    head[:] = bytes(len(head))


def size_of(plan: Plan) -> int:
    return load_metadata(plan.overlay).header.size


def test_trailing_empty_tables_do_not_make_the_disk_shorter_than_its_partitions(tmp_path: Path) -> None:
    sectors = 8192 * M // 512
    plan = disk(tmp_path / "a.qcow2", 8192 * M, mbr((0x83, 2048, sectors - 4096)), wipe)
    assert size_of(plan) == 8192 * M
    assert load_metadata(plan.overlay).header.l1_size == 16
    assert any("the MBR partition table" in note and "is taken" in note for note in plan.notes)


def test_a_gpt_says_the_size_to_the_byte(tmp_path: Path) -> None:
    sectors = 5000 * M // 512 + 3
    size = -(-sectors * 512 // 512) * 512
    plan = disk(tmp_path / "a.qcow2", size, gpt(sectors, 2048, sectors - 2048), wipe)
    assert size_of(plan) == size
    assert not any("is taken" in note for note in plan.notes)


def test_without_any_word_of_the_guest_the_range_is_said(tmp_path: Path) -> None:
    plan = disk(tmp_path / "a.qcow2", 4096 * M, text(4096, 2), wipe)
    assert size_of(plan) == 2 * COVERAGE
    assert any(f"{701 * M:#x} (the last cluster that is mapped)" in note for note in plan.notes)


def test_a_claim_beyond_what_the_l1_table_can_map_is_not_believed(tmp_path: Path) -> None:
    plan = disk(tmp_path / "a.qcow2", 800 * M, mbr((0x83, 1, 0xFFFF_FFFE), (0x83, 2048, 790 * M // 512)), wipe, 4096)
    assert size_of(plan) == 792 * M


@pytest.mark.parametrize("sectors", [3 * COVERAGE // 512, 3 * COVERAGE // 512 - 2047])
def test_an_impossible_size_is_what_the_gpt_says_within_the_l1_table(tmp_path: Path, sectors: int) -> None:
    def hurt(head: bytearray) -> None:
        head[24:32] = b"\xff" * 8

    plan = disk(tmp_path / "a.qcow2", sectors * 512, gpt(sectors, 2048, sectors - 2048), hurt)
    assert size_of(plan) == sectors * 512


def test_the_disk_is_never_smaller_than_it_was_for_a_snapshot(tmp_path: Path) -> None:
    path = tmp_path / "a.qcow2"
    create_file(str(path), CreateOptions(size=700 * M))
    with Image.open(path, writable=True) as image:
        image.write(0, text(M, 1))
        create_snapshot(image, "first")
    with open(path, "r+b") as file:
        file.seek(24)
        file.write(b"\xfc")
    plan = make_plan(FileStorage.open(path), Policy(mode=Mode.ALL))
    assert size_of(plan) == 2 * COVERAGE
    assert any(f"between {700 * M:#x} (snapshot '1')" in note for note in plan.notes)
