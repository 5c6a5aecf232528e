"""What may be somebody's data stays counted, through every kind of refcount damage, and is linked only where it is certain."""

from __future__ import annotations

from pathlib import Path

import pytest

from sample_images.editor import Editor
from sample_images.kit import Kit, M, noise
from tests.repair.judging import inside
from workbench.repair.plan import Plan, make_plan
from workbench.repair.policy import Mode, Policy
from workbench.storage.file import FileStorage

pytestmark = pytest.mark.oracle  # the images are built by the real QEMU tools

CLUSTER = 65536


def image(folder: Path, *options: str, snapshot: bool = False) -> Path:
    """A disk of 64 MiB with 8 MiB of noise; with a snapshot, and some more written behind it."""
    kit = Kit(folder)
    kit.create("64M", *options)
    (folder / "noise").write_bytes(noise(8 * M, 7))
    kit.io("write -s noise 0 8M")
    if snapshot:
        kit.img("snapshot", "-c", "first", kit.path.name)
        kit.io("write -P 7 4M 1M")
    return kit.path


def plan_of(path: Path, mode: Mode = Mode.ALL) -> Plan:
    with inside(path.parent):
        return make_plan(FileStorage.open(path), Policy(mode=mode))


def counts(plan: Plan, folder: Path) -> Editor:
    """An editor on the image as it would be."""
    out = folder / "planned.qcow2"
    out.write_bytes(plan.overlay.read(0, plan.overlay.size()))
    return Editor(out)


def lose_l1_and_counts(ed: Editor, bit: int) -> list[int]:
    """Zero L1 entry 0, and the refcounts of its table and of what it maps, and set a feature bit; their host offsets."""
    table = ed.l2_table(0)
    hosts = [table, *(ed.host_of(guest) for guest in ed.guests("data"))]
    for host in hosts:
        ed.set_refcount(host, 0)
    ed.set_l1(0, 0)
    ed.set_bits("incompatible_features", bit)
    return hosts


@pytest.mark.parametrize(("bit", "mode"), [(1, Mode.ALL), (1, Mode.LEAKS), (2, Mode.ALL)], ids=str)
def test_a_lost_table_that_counts_as_free_in_a_marked_image_is_counted_and_not_linked(
    bit: int, mode: Mode, tmp_path: Path
) -> None:
    path = image(tmp_path)
    with Editor(path) as ed:
        hosts = lose_l1_and_counts(ed, bit)
    plan = plan_of(path, mode)
    assert plan.proof.harmless
    with counts(plan, tmp_path) as ed:
        assert {ed.refcount(host) for host in hosts} == {1}
        assert ed.l1(0) == 0, "an image before this one may have left it"
        assert ed.get("incompatible_features") == 0


def test_leaks_of_a_cut_file_leave_what_its_entries_still_mean_counted(tmp_path: Path) -> None:
    path = image(tmp_path)
    with Editor(path) as ed:
        last = ed.host_of(8 * M - CLUSTER)
    with open(path, "r+b") as file:
        file.truncate(last)
    plan = plan_of(path, Mode.LEAKS)
    with counts(plan, tmp_path) as ed:
        assert ed.refcount(last) == 1
    whole = plan_of(path)
    assert whole.after.clean
    with counts(whole, tmp_path) as ed:
        assert ed.refcount(last) == 0


@pytest.mark.parametrize("missing", [True, False], ids=["missing", "empty"])
def test_a_refcount_block_that_is_missing_or_empty_does_not_say_that_orphans_are_free(
    missing: bool, tmp_path: Path
) -> None:
    path = image(tmp_path)
    with Editor(path) as ed:
        hosts = [ed.host_of(guest) for guest in (0, M, 2 * M)]
        ed.set_l2(0, (1 << 63) | (1 << 40))  # leads past the end: a part of the mapping is damaged
        for guest in (M, 2 * M):
            ed.set_l2(guest, 0)
        if missing:
            ed.set_rt(0, 0)
        else:
            ed.write(ed.number(ed.rt_offset), bytes(CLUSTER))
    plan = plan_of(path)
    assert plan.proof.harmless
    with counts(plan, tmp_path) as ed:
        assert [ed.refcount(host) for host in hosts] == [1, 1, 1]


def test_a_refcount_table_of_absurd_length_takes_nothing_from_a_snapshot(tmp_path: Path) -> None:
    path = image(tmp_path, snapshot=True)
    with Editor(path) as ed:
        ed.set("refcount_table_clusters", 2049)
        snapshot = ed.snapshots()[0]
        l1 = ed.number(snapshot.l1_offset)
    plan = plan_of(path)
    assert plan.after.clean
    assert plan.proof.harmless
    with counts(plan, tmp_path) as ed:
        assert ed.number(ed.snapshots()[0].l1_offset) == l1


def test_the_old_refcount_table_is_not_taken_for_a_lost_l2_table(tmp_path: Path) -> None:
    path = image(tmp_path, snapshot=True)
    with Editor(path) as ed:
        ed.write(ed.get("l1_table_offset"), b"\xa7\x13" * 4)
        ed.set("refcount_table_clusters", 2049)
        table = ed.rt_offset
    plan = plan_of(path)
    assert plan.proof.harmless
    with counts(plan, tmp_path) as ed:
        assert ed.l2_table(0) != table


def test_leaks_of_a_disk_without_any_mapping_are_kept(tmp_path: Path) -> None:
    path = image(tmp_path)
    with Editor(path) as ed:
        hosts = [ed.host_of(guest) for guest in ed.guests("data")[:20]]
        ed.write(ed.l2_table(0), bytes(CLUSTER))
        ed.set_l1(0, 0)
    plan = plan_of(path)
    with counts(plan, tmp_path) as ed:
        assert {ed.refcount(host) for host in hosts} == {1}


def test_counts_that_are_lost_beside_an_unreadable_snapshot_are_one_higher(tmp_path: Path) -> None:
    path = image(tmp_path, snapshot=True)
    with Editor(path) as ed:
        ed.write(ed.get("snapshots_offset"), noise(4096, 3))
        ed.set_rt(0, 0)
        hosts = {ed.host_of(guest) for guest in ed.guests("data")}
    plan = plan_of(path)
    assert plan.proof.harmless
    assert plan.after.openable
    with counts(plan, tmp_path) as ed:
        assert min(ed.refcount(host) for host in hosts) >= 2  # more where the snapshot was found again
        assert not any(ed.l2(guest) >> 63 for guest in ed.guests("data")), "a write must copy first"


@pytest.mark.parametrize("stale", [False, True])
def test_a_lost_table_that_shares_with_a_snapshot_is_linked_when_each_count_wants_it(
    stale: bool, tmp_path: Path
) -> None:
    path = image(tmp_path, snapshot=True)
    with Editor(path) as ed:
        table = ed.l2_table(0)
        if stale:  # as after the snapshot was applied: nobody is owed a reference
            for guest in ed.guests("data"):
                host = ed.host_of(guest)
                ed.set_refcount(host, ed.refcount(host) - 1)
        ed.set_l1(0, 0)
    plan = plan_of(path)
    assert plan.proof.harmless
    with counts(plan, tmp_path) as ed:
        assert ed.l2_table(0) == (0 if stale else table)
    assert plan.after.clean or stale


def test_a_refcount_block_that_lost_its_entry_gets_it_back(tmp_path: Path) -> None:
    path = image(tmp_path, snapshot=True)
    before = path.read_bytes()
    with Editor(path) as ed:
        ed.set_rt(0, 0)
    plan = plan_of(path)
    assert plan.after.clean
    assert plan.overlay.read(0, plan.overlay.size()) == before


def test_a_block_that_says_something_else_than_the_references_is_not_taken_for_the_lost_one(tmp_path: Path) -> None:
    path = image(tmp_path)
    with Editor(path) as ed:
        block = ed.rt(0)
        ed.set_refcount(ed.host_of(M), 5)
        ed.set_rt(0, 0)
    plan = plan_of(path)
    assert plan.proof.harmless
    assert not plan.after.corruptions
    with counts(plan, tmp_path) as ed:
        assert ed.rt(0) != block


def test_a_snapshot_l1_table_of_absurd_length_is_as_long_as_its_disk_needs(tmp_path: Path) -> None:
    path = image(tmp_path, snapshot=True)
    with Editor(path) as ed:
        snapshot = ed.snapshots()[0]
        ed.set_snapshot(snapshot, "l1_size", snapshot.l1_size | 1 << 17)
    plan = plan_of(path)
    assert plan.after.clean
    assert plan.proof.harmless
    with counts(plan, tmp_path) as ed:
        assert ed.snapshots()[0] == snapshot


def test_a_snapshot_count_that_is_too_high_hides_no_lost_table(tmp_path: Path) -> None:
    path = image(tmp_path, "cluster_size=4k", snapshot=True)
    with Editor(path) as ed:
        start = ed.get("snapshots_offset") // 4096
        hosts = [ed.l2_table(index) for index in ed.allocated_l1()]
        ed.set("nb_snapshots", 257)
        ed.set("refcount_table_offset", 0)
        for index in ed.allocated_l1():
            ed.set_l1(index, 0)
        content = [host for host in hosts if host // 4096 < start + 16]
    assert content
    plan = plan_of(path)
    assert plan.proof.harmless
    with counts(plan, tmp_path) as ed:
        assert all(ed.refcount(host) for host in hosts)


def test_a_compressed_cluster_keeps_its_count_while_bytes_in_it_have_no_stream(tmp_path: Path) -> None:
    kit = Kit(tmp_path)
    kit.create("16M")
    (tmp_path / "noise").write_bytes(noise(4096, 1) + bytes(60 * 1024))
    kit.io(*(f"write -c -s noise {guest * 64}k 64k" for guest in range(3)))
    with Editor(kit.path) as ed:
        host = (ed.l2(2 * CLUSTER) & ((1 << 54) - 1)) // CLUSTER * CLUSTER
        times = ed.refcount(host)
        ed.set_l2(CLUSTER, 0)
    plan = plan_of(kit.path)
    with counts(plan, tmp_path) as ed:
        assert ed.refcount(host) == times > 1


def test_a_compressed_table_that_shares_with_a_snapshot_is_linked_when_each_count_wants_it(tmp_path: Path) -> None:
    kit = Kit(tmp_path)
    kit.create("16M")
    (tmp_path / "noise").write_bytes(noise(4096, 1) + bytes(60 * 1024))
    kit.io(*(f"write -c -s noise {guest * 64}k 64k" for guest in range(5)))
    kit.img("snapshot", "-c", "first", kit.path.name)
    kit.io("write -c -s noise 2M 64k")
    with Editor(kit.path) as ed:
        table = ed.l2_table(0)
        ed.set_l1(0, 0)
    plan = plan_of(kit.path)
    assert plan.after.clean
    with counts(plan, tmp_path) as ed:
        assert ed.l2_table(0) == table


def test_a_table_that_a_damaged_l1_entry_missed_by_a_bit_comes_back(tmp_path: Path) -> None:
    path = image(tmp_path)
    with Editor(path) as ed:
        entry = ed.l1(0)
        other = next(
            bit
            for bit in range(16, 23)
            if 0 < (entry ^ 1 << bit) & ~(1 << 63) < path.stat().st_size - CLUSTER and entry ^ 1 << bit > 0x50000
        )
        ed.set_l1(0, entry ^ 1 << other)
    plan = plan_of(path)
    assert plan.after.clean
    assert plan.proof.harmless
    with counts(plan, tmp_path) as ed:
        assert ed.l1(0) == entry


def test_a_refcount_table_offset_on_a_snapshots_table_takes_nothing_from_it(tmp_path: Path) -> None:
    path = image(tmp_path, snapshot=True)
    with Editor(path) as ed:
        l1 = ed.snapshots()[0].l1_offset
        table = ed.number(l1) & 0x00FFFFFFFFFFFE00
        ed.set("refcount_table_offset", table)
    plan = plan_of(path)
    assert plan.proof.harmless
    assert not plan.after.corruptions
    with counts(plan, tmp_path) as ed:
        assert ed.number(l1) & 0x00FFFFFFFFFFFE00 == table


def test_what_is_noted_of_a_lost_table_is_said_once_as_it_is_in_the_end(tmp_path: Path) -> None:
    kit = Kit(tmp_path)
    kit.create("4G")
    (tmp_path / "noise").write_bytes(noise(8 * M, 7))
    kit.io("write -s noise 0 8M", "write -s noise 1G 8M")
    with Editor(kit.path) as ed:
        table, entry = ed.l2_table(0), ed.l1(2)
        ed.set_l1(0, 0)
        ed.set_l1(
            2, entry ^ 1 << 40
        )  # one bit away from its table: it gets it back, and is no place for the other then
    plan = plan_of(kit.path)
    assert plan.proof.harmless
    notes = [note for note in plan.notes if "lost L2 table" in note]
    assert len(notes) == 1
    assert f"lies at {table:#x}, with 128 clusters that nothing else uses" in notes[0]
    assert "L1 entry 0, 1, 3, 4" in notes[0]
    assert f"`--choose relink:{table:#x}=0`" in notes[0]
    with counts(plan, tmp_path) as ed:
        assert ed.l1(2) == entry
