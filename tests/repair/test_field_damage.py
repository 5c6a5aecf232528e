"""Damage as it was met in the field, small: what a repair keeps, says and gives back."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from sample_images.editor import Editor
from sample_images.kit import Kit, M, noise
from tests.repair.judging import inside
from workbench.check import check
from workbench.engine.image import Image
from workbench.engine.metadata import load_metadata
from workbench.repair.plan import Plan, make_plan
from workbench.repair.policy import Mode, Policy
from workbench.storage.file import FileStorage

pytestmark = pytest.mark.oracle  # the images are built by the real QEMU tools

C = 65536
COPIED = 1 << 63


@pytest.fixture
def kit(tmp_path: Path) -> Kit:
    (tmp_path / "noise").write_bytes(noise(8 * M, 5))
    return Kit(tmp_path)


def plan_of(kit: Kit, mode: Mode = Mode.ALL) -> Plan:
    with inside(kit.path.parent):
        return make_plan(FileStorage.open(kit.path), Policy(mode=mode))


def disk(plan: Plan) -> bytes:
    with Image.open(plan.base.path, storage=plan.overlay) as image:
        return image.read(0, image.size)


def planned(plan: Plan, folder: Path) -> Editor:
    out = folder / "planned.qcow2"
    out.write_bytes(plan.overlay.read(0, plan.overlay.size()))
    return Editor(out)


def before(kit: Kit) -> bytes:
    with Image.open(kit.path) as image:
        return image.read(0, image.size)


# -- refcounts ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dirty", [True, False])
def test_refcounts_that_were_never_written_are_worked_out(dirty: bool, kit: Kit, tmp_path: Path) -> None:
    kit.create("16M", "lazy_refcounts=on")
    kit.io("write -s noise 0 8M")
    was = before(kit)
    with Editor(kit.path) as ed:
        ed.wipe(ed.rt(0), C)
        ed.set_bits("incompatible_features", int(dirty))
    plan = plan_of(kit)
    assert plan.after.clean and not plan.after.leaks and plan.proof.harmless
    with planned(plan, tmp_path) as ed:
        assert ed.get("incompatible_features") == 0
    assert disk(plan) == was


def test_a_file_that_grew_over_its_refcounts_gets_them(kit: Kit) -> None:
    kit.create("8M", "cluster_size=512", "lazy_refcounts=on")
    kit.io("write -s noise 0 3M")
    was = before(kit)
    with Editor(kit.path) as ed:
        blocks = [ed.rt(index) for index in range(1, ed.rt_entries) if ed.rt(index)]
        for index in range(1, ed.rt_entries):
            ed.set_rt(index, 0)
        for block in blocks[1::2]:  # some were never made
            ed.wipe(block, 512)
    assert len(blocks) > 8
    plan = plan_of(kit)
    assert plan.after.clean and plan.proof.harmless
    assert disk(plan) == was


def test_wild_entries_beside_lost_refcounts_keep_the_data_that_they_lost(kit: Kit, tmp_path: Path) -> None:
    kit.create("16M")
    kit.io("write -s noise 0 8M")
    with Editor(kit.path) as ed:
        lost = [ed.host_of(guest) for guest in (18 * C, 19 * C, 20 * C)]
        for guest, far in ((18 * C, 0xF0000000050000), (19 * C, 0x7FFFFFFFFF0000), (20 * C, 0x8000000000000)):
            ed.set_l2(guest, COPIED | far)
        ed.set_rt(0, ed.rt(0) | 0x200)
    found = check(load_metadata(FileStorage.open(kit.path)))
    named = [(run.offset, run.offset + run.length) for run in found.orphans if run.keep]
    assert all(any(start <= host < end for start, end in named) for host in lost)
    assert "FILE-TAIL-UNUSED" not in found.findings.by_code
    plan = plan_of(kit)
    assert plan.proof.harmless and not plan.after.corruptions
    with planned(plan, tmp_path) as ed:
        assert [ed.refcount(host) for host in lost] == [1, 1, 1]


def test_clusters_of_an_interrupted_write_are_freed_and_said(kit: Kit, tmp_path: Path) -> None:
    kit.create("16M")
    kit.io("write -s noise 0 4M")
    with Editor(kit.path) as ed:
        table = ed.l2_table(0)
        was = ed.read(table, C)
    kit.io("write -P 7 14M 448k")
    with Editor(kit.path) as ed:
        ed.write(table, was)
    plan = plan_of(kit)
    assert plan.before.leaks == 7 and plan.after.clean and not plan.after.leaks
    assert plan.proof.harmless and plan.proof.frees_content.bytes == 7 * C


@pytest.mark.parametrize("twice", [False, True])
def test_a_crash_after_a_snapshot_is_mended_at_once(twice: bool, kit: Kit, tmp_path: Path) -> None:
    """Refcounts of zero leave it open what else was shared; a refcount of one says that nobody shares the cluster."""
    kit.create("64M")
    kit.io("write -s noise 0 2M")
    kit.img("snapshot", "-c", "suspend", kit.path.name)
    kit.io("write -P 3 20M 512k", "write -P 4 22M 256k")
    was = before(kit)
    with Editor(kit.path) as ed:
        for guest in (20 * M + 2 * C, 20 * M + 3 * C):
            ed.set_refcount(ed.host_of(guest), 0)
        if twice:
            ed.set_refcount(ed.host_of(20 * M + 6 * C), 2)
        ed.set_l1(0, ed.l1(0) & ~COPIED)
        ed.set_l2(22 * M, ed.l2(22 * M) & ~COPIED)
        shared = [ed.host_of(guest) for guest in range(0, 2 * M, C)]
    plan = plan_of(kit)
    assert plan.after.clean and plan.proof.harmless and not plan.after.corruptions
    with planned(plan, tmp_path) as ed:
        assert ed.l1(0) & COPIED and ed.l2(22 * M) & COPIED
        assert not any(ed.l2(guest) & COPIED for guest in range(0, 2 * M, C)), "the snapshot has them too"
        assert {ed.refcount(host) for host in shared} == {2}
    assert disk(plan) == was


# -- mapping -----------------------------------------------------------------------------------------------------------


def test_a_mapping_that_never_reached_the_disk_is_kept_and_linked_by_word(kit: Kit, tmp_path: Path) -> None:
    kit.create("16M", "compat=0.10")
    fresh = kit.path.read_bytes()
    kit.io("write -s noise 0 8M")
    was = before(kit)
    with Editor(kit.path) as ed:
        table, hosts = ed.l2_table(0), [ed.host_of(guest) for guest in ed.guests("data")]
        ed.write(0, fresh)
    found = check(load_metadata(FileStorage.open(kit.path)))
    assert found.exit_code == 0, "as qemu-img"
    (lost,) = found.lost_tables
    assert lost.offset == table and lost.entries == 128 and lost.fits == (0,)
    assert "FILE-TAIL-UNUSED" not in found.findings.by_code
    plan = plan_of(kit)
    assert plan.proof.harmless
    with planned(plan, tmp_path) as ed:
        assert {ed.refcount(host) for host in (table, *hosts)} == {1}
    by_word = Policy(choices={f"relink:{table:#x}": "0"}, accept_loss=8 * M)
    chosen = make_plan(FileStorage.open(kit.path), by_word)
    assert chosen.accepted and not chosen.proof.harmless, "an older state may have left it: the place is not certain"
    assert disk(chosen) == was


def test_the_only_extended_entry_that_lost_its_cluster_gets_it_back(kit: Kit) -> None:
    kit.create("64M", "extended_l2=on")
    kit.io("write -s noise 0 512k")
    was = before(kit)
    with Editor(kit.path) as ed:
        ed.put(ed.l2_at(7 * C), 0)
    plan = plan_of(kit)
    assert plan.after.clean and not plan.after.leaks
    assert disk(plan) == was


@pytest.mark.parametrize("mode", [Mode.ALL, Mode.LEAKS])
def test_two_extended_entries_that_lost_their_clusters_keep_them_counted(mode: Mode, kit: Kit, tmp_path: Path) -> None:
    kit.create("64M", "extended_l2=on")
    kit.io("write -s noise 0 512k")
    with Editor(kit.path) as ed:
        hosts = [ed.host_of(guest) for guest in (6 * C, 7 * C)]
        for guest in (6 * C, 7 * C):
            ed.put(ed.l2_at(guest), 0)
    plan = plan_of(kit, mode)
    assert plan.proof.harmless
    with planned(plan, tmp_path) as ed:
        assert [ed.refcount(host) for host in hosts] == [1, 1]


def _reserved(ed: Editor) -> None:
    ed.set_l2(C, ed.l2(C) | 1 << 57)


def _beyond(ed: Editor) -> None:
    ed.set_l2(C, COPIED | 0x8050000)


@pytest.mark.parametrize("mode", [Mode.ALL, Mode.LEAKS])
@pytest.mark.parametrize(("odd", "regained"), [(_reserved, 8), (_beyond, 7)], ids=["reserved bit", "past the end"])
def test_a_lost_table_with_one_odd_entry_is_a_table(
    odd: Callable[[Editor], None], regained: int, mode: Mode, kit: Kit, tmp_path: Path
) -> None:
    kit.create("64M")
    kit.io("write -s noise 0 512k")
    was = before(kit)
    with Editor(kit.path) as ed:
        hosts = [ed.l2_table(0), *(ed.host_of(guest) for guest in ed.guests("data"))]
        odd(ed)
        ed.set_l1(0, 0)
    plan = plan_of(kit, mode)
    assert plan.proof.harmless
    with planned(plan, tmp_path) as ed:
        assert {ed.refcount(host) for host in hosts} == {1}
    if mode is Mode.ALL:
        read = disk(plan)
        same = sum(read[at : at + C] == was[at : at + C] for at in range(0, 8 * C, C))
        assert same >= regained


@pytest.mark.parametrize("mode", [Mode.ALL, Mode.LEAKS])
@pytest.mark.parametrize("count", [1, 3])
def test_a_lost_table_of_few_compressed_clusters_is_kept(count: int, mode: Mode, kit: Kit, tmp_path: Path) -> None:
    kit.create("64M")
    kit.io(*(f"write -c -P {number + 1} {number * 64}k 64k" for number in range(count)))
    was = before(kit)
    with Editor(kit.path) as ed:
        table, data = ed.l2_table(0), (ed.l2(0) & ((1 << 54) - 1)) // C * C
        ed.set_l1(0, 0)
    plan = plan_of(kit, mode)
    assert plan.proof.harmless
    with planned(plan, tmp_path) as ed:
        assert ed.refcount(table) >= 1 and ed.refcount(data) >= 1
    assert mode is Mode.LEAKS or disk(plan) == was
    assert all(run.keep for run in plan.result_before.orphans)


def test_an_l1_table_that_the_file_does_not_reach_is_made_empty_and_said(kit: Kit) -> None:
    kit.create("16M")
    with Editor(kit.path) as ed:
        ed.set("l1_table_offset", 0x700000)
    with open(kit.path, "r+b") as file:
        file.truncate(3 * C)
    plan = plan_of(kit)
    assert plan.after.clean and any("the disk is empty now" in note for note in plan.notes)


# -- other files -------------------------------------------------------------------------------------------------------


def test_a_partition_table_over_the_header_is_written_over_only_with_consent(kit: Kit) -> None:
    kit.create("16M")
    kit.io("write -s noise 0 8M")
    was = before(kit)
    with Editor(kit.path) as ed:
        entry = b"\x80\0\2\0\x83\xff\xff\xff" + (2048).to_bytes(4, "little") + (30720).to_bytes(4, "little")
        ed.write(0, bytes(446) + entry + bytes(48) + b"\x55\xaa")
    plan = plan_of(kit)
    assert not plan.accepted and plan.proof.gives_up.bytes == 512
    assert disk(plan)[: len(was)] == was
    assert any("the disk ends somewhere between" in note for note in plan.notes)
