"""Pointers that lead astray: parted from what they hit, and led back where a lost table is certain; a file that was cut."""

from __future__ import annotations

from pathlib import Path

import pytest

from sample_images.editor import Editor
from sample_images.kit import Kit, M, noise
from tests.repair.judging import inside
from tests.repair.test_kept import CLUSTER, counts, image, plan_of
from workbench.check import check
from workbench.engine.metadata import load_metadata
from workbench.repair.edits import plan_lines
from workbench.repair.plan import make_plan
from workbench.repair.policy import Policy
from workbench.storage.file import FileStorage

pytestmark = pytest.mark.oracle  # the images are built by the real QEMU tools


def codes_of(path: Path) -> set[str]:
    with FileStorage.open(path) as storage:
        return set(check(load_metadata(storage), deep=True).findings.by_code)


def lead_astray(path: Path) -> tuple[int, int]:
    """Flip one bit of L1 entry 0 so that it leads to noise of the guest's; (where it led, where it leads)."""
    with Editor(path) as ed:
        word, table = ed.l1(0), ed.l2_table(0)
        hosts = {ed.host_of(guest) for guest in ed.guests("data") if guest < 4 * M}
        bit = next(bit for bit in range(16, 30) if table ^ (1 << bit) in hosts)
        ed.set_l1(0, word ^ (1 << bit))
    return table, table ^ (1 << bit)


def test_an_l1_entry_one_bit_astray_finds_its_table_though_most_of_it_is_shared(tmp_path: Path) -> None:
    path = image(tmp_path, snapshot=True)
    table, astray = lead_astray(path)
    plan = plan_of(path)
    assert plan.proof.harmless
    assert plan.after.clean and not plan.after.leaks
    with counts(plan, tmp_path) as ed:
        assert ed.l2_table(0) == table
        assert ed.refcount(astray) > 0
    assert plan.overlay.size() == path.stat().st_size, "nothing was copied to undo what the stray entry suggested"


def test_an_overlays_l1_entry_one_bit_astray_finds_its_table(tmp_path: Path) -> None:
    kit = Kit(tmp_path)
    kit.img("create", "-f", "raw", "below.raw", "64M")
    kit.img("create", "-f", "qcow2", "-b", "below.raw", "-F", "raw", kit.path.name)
    (tmp_path / "noise").write_bytes(noise(8 * M, 7))
    kit.io("write -s noise 0 8M")
    table, _ = lead_astray(kit.path)
    plan = plan_of(kit.path)
    assert plan.proof.harmless
    with counts(plan, tmp_path) as ed:
        assert ed.l2_table(0) == table


def test_holes_of_an_overwritten_table_go_on_to_show_the_backing_file(tmp_path: Path) -> None:
    kit = Kit(tmp_path)
    kit.img("create", "-f", "raw", "below.raw", "64M")
    kit.img("create", "-f", "qcow2", "-b", "below.raw", "-F", "raw", kit.path.name)
    kit.io("write -P 5 0 1M")
    with Editor(kit.path) as ed:
        ed.write(ed.l2_table(0), noise(CLUSTER // 16, 3))
    plan = plan_of(kit.path)
    assert plan.proof.harmless
    with counts(plan, tmp_path) as ed:
        assert ed.l2(48 * M) == 0, "never written: the backing file shows"
        assert ed.l2_table(0) >= kit.path.stat().st_size, "the noise stays where it is"


@pytest.mark.parametrize("compressed", [False, True], ids=["plain", "compressed"])
def test_a_lost_table_that_shares_with_a_snapshot_is_linked(compressed: bool, tmp_path: Path) -> None:
    kit = Kit(tmp_path)
    kit.create("64M")
    (tmp_path / "noise").write_bytes(noise(2 * M, 7))
    kit.io("write -s noise 0 2M")
    kit.io("write -z 3M 64k")  # an entry with a flag and no cluster
    if compressed:
        for number in range(8):
            kit.io(f"write -c -P {number} {4 * M + number * CLUSTER} 64k")
    kit.img("snapshot", "-c", "first", kit.path.name)
    kit.io("write -P 7 1M 1M")
    with Editor(kit.path) as ed:
        table = ed.l2_table(0)
        ed.set_l1(0, 0)
    plan = plan_of(kit.path)
    assert plan.proof.harmless and plan.after.clean
    with counts(plan, tmp_path) as ed:
        assert ed.l2_table(0) == table


def test_a_table_of_a_data_file_says_itself_where_it_belongs(tmp_path: Path) -> None:
    kit = Kit(tmp_path)
    kit.create("2G", "data_file=image.data")
    kit.io("write -P 5 0 256k", "write -P 6 600M 256k", "write -P 7 1200M 256k")
    with Editor(kit.path) as ed:
        tables = [ed.number(ed.get("l1_table_offset") + index * 8) for index in range(3)]
        ed.set_l1(0, 0)
        ed.set_l1(2, 0)
    plan = plan_of(kit.path)
    assert plan.proof.harmless and plan.after.clean and not plan.after.leaks
    with counts(plan, tmp_path) as ed:
        assert [ed.number(ed.get("l1_table_offset") + index * 8) for index in range(3)] == tables


# -- a file that was cut off ---------------------------------------------------------------------------------------------


def test_a_table_whose_data_was_cut_off_is_no_foreign_one(tmp_path: Path) -> None:
    path = image(tmp_path)
    with Editor(path) as ed:
        last = ed.host_of(M)
    with open(path, "r+b") as file:
        file.truncate(last)
    found = codes_of(path)
    assert "L2-ENTRY-BEYOND-EOF" in found and "L2-TABLE-FOREIGN" not in found


def test_what_is_new_does_not_lie_where_an_entry_past_the_end_leads(tmp_path: Path) -> None:
    kit = Kit(tmp_path)
    kit.create("64M", "cluster_size=4096")  # 2 MiB per L2 table
    (tmp_path / "noise").write_bytes(noise(4 * M, 7))
    kit.io("write -s noise 0 4M", "write -P 9 8M 64k")
    with Editor(kit.path) as ed:
        far = ed.l2_table(4)
        ed.set_l1(1, ed.l1(0))  # two entries on one table: one of them is to get a copy of its own
    with open(kit.path, "r+b") as file:
        file.truncate(far)
    before = plan_of(kit.path)
    with counts(before, tmp_path) as ed:
        assert ed.l1(4) == 0, "nothing is read there"
        tables = [ed.l2_table(0), ed.l2_table(1)]
    assert tables[0] != tables[1]
    assert far not in tables and before.proof.harmless


def test_a_cluster_that_begins_with_zeros_is_not_called_empty(tmp_path: Path) -> None:
    kit = Kit(tmp_path)
    kit.create("64M", "cluster_size=1M")
    kit.io("write -P 0 0 1M", "write -P 5 900k 64k")
    with Editor(kit.path) as ed:
        host = ed.host_of(0)
        ed.set_l2(0, 0)
    with FileStorage.open(kit.path) as storage:
        result = check(load_metadata(storage), deep=True)
    assert [(each.offset, each.content) for each in result.orphans] == [(host, "data")]


# -- counts --------------------------------------------------------------------------------------------------------------


def test_a_count_higher_than_all_snapshots_together_would_make_it_is_lowered(tmp_path: Path) -> None:
    path = image(tmp_path, snapshot=True)
    with Editor(path) as ed:
        alone, host = ed.host_of(4 * M), ed.host_of(0)
        ed.set_refcount(alone, 5)  # the snapshot has another cluster there
        ed.set_refcount(host, 6)
    plan = plan_of(path)
    assert plan.proof.harmless and plan.after.clean and not plan.after.leaks
    with counts(plan, tmp_path) as ed:
        assert (ed.refcount(alone), ed.refcount(host)) == (1, 2)


# -- the cluster size ----------------------------------------------------------------------------------------------------


def with_wrong_cluster_size(folder: Path) -> Path:
    path = image(folder, snapshot=True)
    with Editor(path) as ed:
        ed.set("cluster_bits", 15)
    return path


def test_a_wrong_cluster_size_is_set_right_where_the_refcounts_tell(tmp_path: Path) -> None:
    path = with_wrong_cluster_size(tmp_path)
    assert "HEADER-CLUSTER-SIZE-DOUBTFUL" in codes_of(path)
    plan = plan_of(path)
    assert plan.proof.harmless and plan.after.clean
    with counts(plan, tmp_path) as ed:
        assert ed.get("cluster_bits") == 16


def test_a_cluster_size_in_doubt_is_a_question_where_the_refcounts_do_not_tell_and_nothing_is_mended_under_it(
    tmp_path: Path,
) -> None:
    path = with_wrong_cluster_size(tmp_path)
    with Editor(path) as ed:
        ed.set("cluster_bits", 16)
        for guest in ed.guests("data")[:20]:
            ed.set_refcount(ed.host_of(guest), 0)
        ed.set("cluster_bits", 15)
    plan = plan_of(path)
    assert not plan.accepted and plan.steps[0].code == "HEADER-CLUSTER-SIZE-DOUBTFUL"
    with inside(path.parent):
        plan = make_plan(FileStorage.open(path), Policy(accept_loss=1 << 40))
    assert plan.accepted and plan.after.clean
    with counts(plan, tmp_path) as ed:
        assert ed.get("cluster_bits") == 16


def test_the_cluster_size_is_not_in_doubt_because_a_table_is_noise(tmp_path: Path) -> None:
    path = image(tmp_path, snapshot=True)
    with Editor(path) as ed:
        ed.write(ed.l2_table(0), noise(CLUSTER, 3))
    assert "HEADER-CLUSTER-SIZE-DOUBTFUL" not in codes_of(path)


def test_an_impossible_cluster_size_is_set_by_where_the_file_ends_though_the_only_table_is_noise(
    tmp_path: Path,
) -> None:
    path = image(tmp_path)
    with Editor(path) as ed:
        ed.write(ed.l2_table(0), noise(CLUSTER, 3))
        ed.set("cluster_bits", 17)
    plan = plan_of(path)
    assert plan.proof.harmless
    with counts(plan, tmp_path) as ed:
        assert ed.get("cluster_bits") == 16


# -- what is called a table and is none ----------------------------------------------------------------------------------


def test_an_l1_table_that_the_header_places_on_guest_data_is_found_again_and_the_data_stays(tmp_path: Path) -> None:
    path = image(tmp_path)
    with Editor(path) as ed:
        right, data = ed.get("l1_table_offset"), ed.host_of(M)
        was = ed.read(data, CLUSTER)
        ed.set("l1_table_offset", data)
    plan = plan_of(path)
    assert plan.proof.harmless
    with counts(plan, tmp_path) as ed:
        assert ed.get("l1_table_offset") == right
        assert ed.read(data, CLUSTER) == was


def test_a_refcount_table_that_the_header_places_on_lost_data_leaves_it_counted(tmp_path: Path) -> None:
    path = image(tmp_path)
    with Editor(path) as ed:
        data = ed.host_of(M)
        ed.set("refcount_table_offset", data)
        ed.set_l1(0, 0)
    plan = plan_of(path)
    assert plan.proof.harmless
    with counts(plan, tmp_path) as ed:
        assert ed.refcount(data) > 0


def test_a_snapshots_l1_table_that_is_an_l2_table_in_truth_is_not_written_to(tmp_path: Path) -> None:
    path = image(tmp_path, snapshot=True)
    with Editor(path) as ed:
        snapshot = ed.snapshots()[0]
        table = ed.number(snapshot.l1_offset) & ((1 << 56) - 512)
        was = ed.read(table, CLUSTER)
        ed.put(snapshot.offset, table)
        ed.set_rt(0, 0)
    plan = plan_of(path)
    assert plan.proof.harmless
    with counts(plan, tmp_path) as ed:
        assert ed.read(table, CLUSTER) == was


def test_a_table_overwritten_in_place_is_no_place_for_another_one(tmp_path: Path) -> None:
    kit = Kit(tmp_path)
    kit.create("64M", "cluster_size=4096")  # 2 MiB per L2 table
    for index in range(5):
        kit.io(f"write -P {index + 1} {index * 2 * M} 64k")
    with Editor(kit.path) as ed:
        ed.set_l1(1, 0)
        ed.write(ed.l2_table(3), bytes(4096))
    plan = plan_of(kit.path)
    assert plan.proof.harmless
    with counts(plan, tmp_path) as ed:
        assert ed.l2(6 * M) == 0, "the lost table of entry 1 is not entry 3's"


def test_many_steps_of_one_kind_are_told_once(tmp_path: Path) -> None:
    kit = Kit(tmp_path)
    kit.create("64M", "cluster_size=4096")  # 2 MiB per L2 table
    for index in range(5):
        kit.io(f"write -P {index + 1} {index * 2 * M} 64k")
    with Editor(kit.path) as ed:
        for index in range(5):
            ed.write(ed.l2_table(index), noise(4096, index))
    lines = plan_lines(plan_of(kit.path))
    told = [line for line in lines if "other content lies in its L2 table" in line]
    assert len(told) == 2
    assert any(line.strip() == "… and 3 more like step 1" for line in lines)
