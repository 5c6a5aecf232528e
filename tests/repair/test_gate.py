"""No finding, no change: what each fix may touch, what it must leave alone, and what stays counted."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from sample_images.editor import COPIED, DIRTY, EXT_DATA_FILE, MASK_OFFSET, Editor
from workbench.check import CheckResult, check
from workbench.check.findings import FindingLog
from workbench.engine.image import Image
from workbench.engine.metadata import load_metadata
from workbench.repair.gate import Gate, GateError, Reach, Rows, Spans
from workbench.repair.plan import Plan, make_plan
from workbench.repair.policy import Mode, Policy
from workbench.repair.workspace import Workspace
from workbench.storage.file import FileStorage

pytestmark = pytest.mark.oracle  # the images are built by the real QEMU tools

K, M = 1 << 10, 1 << 20
C = 64 * K
ZERO_FLAG, RESERVED = 1, 1 << 57


def run(*arguments: object) -> None:
    subprocess.run([str(each) for each in arguments], check=True, stdout=subprocess.DEVNULL)


def create(image: Path, size: str = "64M", *options: object) -> None:
    run("qemu-img", "create", "-q", "-f", "qcow2", *options, image, size)


def write(image: Path, *commands: str) -> None:
    run("qemu-io", "-f", "qcow2", *[each for command in commands for each in ("-c", command)], image)


def snapshot(image: Path, *arguments: str) -> None:
    run("qemu-img", "snapshot", *arguments, image)


def planned(image: Path, policy: Policy | None = None) -> Plan:
    """The plan for an image, kept usable after the file is closed."""
    storage = FileStorage.open(image)
    return make_plan(storage, policy)


def guest(plan: Plan, snapshot: str | None = None) -> bytes:
    """What the guest reads once the plan is carried out (the first 2 MiB)."""
    with Image.open(plan.base.path, storage=plan.overlay, snapshot=snapshot) as disk:
        return disk.read(0, min(disk.size, 2 * M))


def stored(plan: Plan, offset: int) -> int:
    """The refcount of the cluster at a host offset."""
    space = Workspace(plan.overlay, Policy())
    return int(space.ledger.stored[offset // space.cluster])


@pytest.fixture
def image(tmp_path: Path) -> Path:
    return tmp_path / "image.qcow2"


# -- images with nothing to do -----------------------------------------------------------------------------------------


def _flags(flag: int, *options: object) -> Callable[[Path], None]:
    def build(image: Path) -> None:
        create(image, "64M", *options)
        write(image, "write -P 1 0 256k")
        with Editor(image) as editor:
            for index in range(20, 28):
                editor.put(editor.l2_at(index * editor.cluster_size), flag)

    return build


def _named_snapshot(name: str) -> Callable[[Path], None]:
    def build(image: Path) -> None:
        create(image, "4M")
        write(image, "write -P 1 0 256k")
        snapshot(image, "-c", name)
        write(image, "write -P 2 64k 64k")
        snapshot(image, "-c", "second")

    return build


def _snapshot_record(change: Callable[[Editor], None]) -> Callable[[Path], None]:
    def build(image: Path) -> None:
        _named_snapshot("first")(image)
        with Editor(image) as editor:
            change(editor)

    return build


def _id(value: bytes) -> Callable[[Path], None]:
    return _snapshot_record(lambda e: e.write(e.snapshots()[0].id_offset, value))


def _bitmap(image: Path) -> None:
    create(image, "4M")
    run("qemu-img", "bitmap", "--add", image, "a\tb")
    run("qemu-img", "bitmap", "--add", image, "über\x01")


def _subclusters_outside(image: Path) -> None:
    create(image, "4M", "-o", f"extended_l2=on,data_file={image.with_suffix('.data')}")
    write(image, "write -P 1 0 8k")


def _exchanged(image: Path) -> None:
    create(image, "4M", "-o", f"data_file={image.with_suffix('.data')}")
    write(image, "write -P 1 0 64k", "write -P 2 64k 64k")
    with Editor(image) as editor:
        editor.set_l2(0, COPIED | C)
        editor.set_l2(C, COPIED)


def _full_table(image: Path) -> None:
    create(image, "64M", "-o", "cluster_size=512")
    with Editor(image) as editor:  # one table cluster describes 64 blocks of 256 clusters
        limit = editor.rt_entries * editor.block_entries * 512
    have = image.stat().st_size
    write(image, f"write -P 1 0 {(limit - have) // 512 * 512 * 9 // 10}")


def _empty_disk(image: Path) -> None:
    create(image, "0")


def _broken_base(image: Path) -> None:
    base = image.with_name("base.qcow2")
    create(base, "4M")
    create(image, "4M", "-b", base.name, "-F", "qcow2")
    write(image, "write -P 1 0 64k")
    base.write_bytes(bytes(4) + base.read_bytes()[4:])


def _autoclear(image: Path) -> None:
    create(image)
    with Editor(image) as editor:
        editor.set_bits("autoclear_features", 1 << 40)


def _no_bitmaps(image: Path) -> None:
    """The bitmaps bit of an image whose only bitmap was deleted."""
    create(image, "4M")
    run("qemu-img", "bitmap", "--add", image, "daily")
    run("qemu-img", "bitmap", "--remove", image, "daily")
    with Editor(image) as editor:
        editor.set_bits("autoclear_features", 1)


def _ciphered(image: Path) -> None:
    secret = ("--object", "secret,id=s,data=pass")
    run(
        "qemu-img", "create", "-q", "-f", "qcow2", *secret, "-o", "encrypt.format=aes,encrypt.key-secret=s,preallocation=metadata",
        image, "4M",
    )  # fmt: skip
    opts = f"driver=qcow2,encrypt.key-secret=s,file.driver=file,file.filename={image}"
    run("qemu-io", *secret, "--image-opts", opts, "-c", "write -P 1 0 512", "-c", "write -P 1 64k 512")


CLEAN: dict[str, Callable[[Path], None]] = {
    "COPIED on unallocated entries": _flags(COPIED),
    "zero flags in version 2": _flags(ZERO_FLAG, "-o", "compat=0.10"),
    "bit 0 of extended entries": _flags(ZERO_FLAG, "-o", "extended_l2=on"),
    "a snapshot's name with a newline": _named_snapshot("before\nupgrade"),
    "a snapshot's name with a no-break space": _named_snapshot("Vor\u00a0Update"),
    "a snapshot's ID that is no number": _id(b"-"),
    "odd nanoseconds": _snapshot_record(lambda e: e.put(e.snapshots()[0].offset + 20, 1 << 31, 4)),
    "bitmap names of any bytes": _bitmap,
    "subclusters at offset 0 of a data file": _subclusters_outside,
    "entries of a data file that is not raw": _exchanged,
    "a refcount table that is nearly full": _full_table,
    "a disk of size 0": _empty_disk,
    "an overlay whose base is broken": _broken_base,
    "unknown autoclear bits": _autoclear,
    "deleted bitmaps": _no_bitmaps,
    "AES and clusters that are mostly empty": _ciphered,
}


@pytest.mark.parametrize("name", sorted(CLEAN))
def test_without_an_actionable_row_not_a_byte_changes(name: str, image: Path) -> None:
    CLEAN[name](image)
    plan = planned(image)
    assert plan.before.clean and plan.empty and not plan.steps, plan.steps


# -- the gate itself ---------------------------------------------------------------------------------------------------


def test_spans_join_and_tell_what_they_hold() -> None:
    spans = Spans([(20, 30), (0, 5), (5, 8), (25, 40)])
    assert spans.starts.tolist() == [0, 20] and spans.ends.tolist() == [8, 40]
    assert spans.hold(np.array([0, 7, 8, 19, 20, 39, 40])).tolist() == [True, True, False, False, True, True, False]
    assert spans.touch(39, 50) and not spans.touch(8, 20) and not Spans([]).touch(0, 9)


def _checked(space: Workspace) -> CheckResult:
    return check(space.meta)


def test_rows_are_those_of_the_codes_alone(image: Path) -> None:
    _flags(RESERVED)(image)
    with FileStorage.open(image) as storage:
        found = check(load_metadata(storage))
        rows, none = Rows(found.findings, {"L2-ENTRY-RESERVED"}), Rows(found.findings, {"HEADER-SIZE"})
        assert rows.codes == {"L2-ENTRY-RESERVED"} and rows.tables().size == 1 and not none
        assert [each.index for each in rows.each()] == [20]
        assert not Rows(FindingLog().freeze(), ())


def test_a_table_that_is_named_may_be_written_and_its_neighbours_may_not(image: Path) -> None:
    _flags(RESERVED)(image)
    with FileStorage.open(image) as storage:
        space = Workspace(storage, Policy())
        found = _checked(space).findings
        table = int(Rows(found, {"L2-ENTRY-RESERVED"}).tables()[0])
        gate = Gate(space, Rows(found, {"L2-ENTRY-RESERVED"}), Reach.ROWS)
        gate.require(table + 8, bytes(8), b"x" * 8, "l2")
        for offset, kind in ((table + C, "data"), (space.meta.header.l1_table_offset, "l1"), (24, "header")):
            with pytest.raises(GateError):
                gate.require(offset, space.read(offset, 8), b"x" * 8, kind)
        gate.require(table + C, b"same", b"same", "data")  # nothing changes


def test_flags_may_only_be_flags(image: Path) -> None:
    create(image)
    write(image, "write -P 1 0 64k")
    with FileStorage.open(image) as storage:
        space = Workspace(storage, Policy())
        l1 = space.meta.header.l1_table_offset
        old = space.read(l1, 8)
        gate = Gate(space, Rows(_checked(space).findings, ()), Reach.FLAGS)
        gate.require(l1, old, bytes([old[0] ^ 0x80]) + old[1:], "l1")
        with pytest.raises(GateError):
            gate.require(l1, old, bytes(8), "l1")


def test_what_an_allocation_gave_may_be_written(image: Path) -> None:
    create(image)
    with FileStorage.open(image) as storage:
        space = Workspace(storage, Policy())
        space.start("x", space.rows, Gate(space, space.rows, Reach.ROWS))
        place = space.append(2)
        space.put(place + 8, b"data", code="x", title="x", kind="data")
        with pytest.raises(GateError):
            space.put(place - 8, b"data", code="x", title="x", kind="data")
        space.roll_back()
        assert not space.overlay.changed and not space.steps and not space.fresh


# -- header ------------------------------------------------------------------------------------------------------------


def _refcount_order(editor: Editor) -> None:
    editor.set("refcount_order", 3)


def test_a_possible_refcount_width_is_kept_whatever_explains_the_file_better(image: Path) -> None:
    create(image)
    write(image, "write -P 1 0 1M")
    with Editor(image) as editor:
        editor.set_l1(0, 0)
    plan = planned(image)
    assert plan.result_after.meta.header.refcount_order == 4
    create(image)
    write(image, "write -P 1 0 1M")
    with Editor(image) as editor:
        _refcount_order(editor)
    plan = planned(image)
    assert plan.result_after.meta.header.refcount_order == 3 and plan.after.clean
    assert guest(plan)[:M] == b"\1" * M


def test_one_odd_bit_neither_changes_the_entry_width_nor_empties_the_table(image: Path) -> None:
    create(image)
    write(image, "write -P 1 0 64k", "write -P 2 128k 64k")
    with Editor(image) as editor:
        at = editor.l2_at(3 * C)
        editor.put(at, RESERVED)
    plan = planned(image)
    assert plan.after.clean and guest(plan)[:C] == b"\1" * C
    assert {(step.offset, step.code) for step in plan.steps} == {(at, "L2-ENTRY-RESERVED")}


def test_an_encryption_method_is_changed_only_where_it_is_impossible_and_the_data_is_plain(image: Path) -> None:
    create(image, "4M")
    write(image, "write -P 1 0 64k")
    with Editor(image) as editor:
        editor.set("crypt_method", 7)
    assert planned(image).result_after.meta.header.crypt_method == 0
    with Editor(image) as editor:
        editor.set("crypt_method", 1)
    assert planned(image).empty
    with Editor(image) as editor:
        editor.set("crypt_method", 7)
        editor.write(editor.host_of(0), np.random.default_rng(1).bytes(C))
    plan = planned(image)
    assert plan.empty and any("encryption method" in note for note in plan.notes)


def test_no_file_is_named_as_the_data_file_unless_that_is_chosen(image: Path) -> None:
    create(image, "1M", "-o", f"data_file={image.with_suffix('.bin')}")
    write(image, "write -P 1 64k 64k")
    with Editor(image) as editor:
        editor.put(editor.extension(EXT_DATA_FILE).offset, 0x58585858, 4)
    image.with_suffix(".bin").rename(image.with_name("elsewhere.bin"))
    image.with_suffix(".log").write_text("boot log of the VM\n")
    plan = planned(image)
    assert plan.empty and any("data file" in note for note in plan.notes)
    assert not planned(image, Policy(choices={"data-file-bits": "beside"})).empty


# -- entries -----------------------------------------------------------------------------------------------------------


def test_reserved_bits_in_every_entry_are_cleared_and_the_table_stays(image: Path) -> None:
    create(image)
    write(image, "write -P 1 0 1M")
    with Editor(image) as editor:
        for index in range(16):
            editor.set_l2(index * C, editor.l2(index * C) | RESERVED)
    plan = planned(image)
    assert plan.after.clean and guest(plan)[:M] == b"\1" * M
    assert plan.after.orphans == 0


@pytest.mark.parametrize("backed", [False, True])
def test_a_table_full_of_something_else_is_left_where_it_is_and_stays_counted(image: Path, backed: bool) -> None:
    options: tuple[object, ...] = ()
    if backed:
        base = image.with_name("base.raw")
        base.write_bytes(b"\7" * (4 * M))
        options = ("-b", base.name, "-F", "raw")
    create(image, "4M", *options)
    write(image, "write -P 1 0 1M")
    content = b"something else entirely, " * 4096
    with Editor(image) as editor:
        table, host = editor.l2_table(0), editor.host_of(0)
        editor.write(table, content[:C])
    plan = planned(image)
    assert plan.overlay.read(table, C) == content[:C]
    assert stored(plan, table) == 1 and stored(plan, host) == 1
    assert plan.after.corruptions == 0 and plan.after.leaks == plan.after.orphans == 17
    assert guest(plan)[:M] == bytes(M)  # no older data of the backing file


def test_the_entries_of_an_overwritten_table_that_can_be_right_are_kept(image: Path) -> None:
    create(image)
    write(image, "write -P 1 0 1M")
    with Editor(image) as editor:
        table = editor.l2_table(0)
        for index in range(4, 16):
            editor.set_l2(index * C, 0x00FFFF0000000200 + index * 512)
        before = editor.read(table, C)
    plan = planned(image)
    assert plan.overlay.read(table, C) == before and stored(plan, table) == 1
    assert guest(plan)[: 4 * C] == b"\1" * (4 * C) and plan.after.corruptions == 0


def test_a_dropped_entry_leaves_what_it_pointed_at_counted(image: Path) -> None:
    create(image)
    write(image, "write -P 1 0 192k")
    with Editor(image) as editor:
        host = editor.host_of(0)
        editor.set_l2(5 * C, COPIED | (host + 512))
        editor.set_l2(0, 0)
        editor.set_l2(7 * C, COPIED | (host + 1024))
    plan = planned(image)
    assert stored(plan, host) >= 1 and plan.after.corruptions == 0


def test_a_stray_entry_never_costs_the_table_that_it_points_at(image: Path) -> None:
    create(image, "1100M")
    write(image, "write -P 1 0 1M", "write -P 2 512M 1M")
    with Editor(image) as editor:
        table = editor.l2_table(1)
        editor.put(editor.l2_at(512 * M) + 8 * 40, COPIED)
        editor.set_l2(20 * C, COPIED | table)
    plan = planned(image)
    assert plan.after.corruptions == 0 and int(plan.result_after.meta.l1[1]) & MASK_OFFSET == table
    with Image.open(plan.base.path, storage=plan.overlay) as disk:
        assert disk.read(512 * M, M) == b"\2" * M and disk.read(0, M) == b"\1" * M


# -- lost tables -------------------------------------------------------------------------------------------------------


def test_a_lost_table_is_linked_where_there_is_one_place_for_it(image: Path) -> None:
    create(image)
    write(image, "write -P 1 0 1M")
    with Editor(image) as editor:
        entry = editor.l1(0)
        editor.set_l1(0, 0)
    plan = planned(image)
    assert plan.after.clean and int(plan.result_after.meta.l1[0]) == entry
    assert [step.places for step in plan.steps if step.fix == "relink"] == [((0, 64 * M),)]


def test_a_lost_table_with_several_places_is_kept_and_named(image: Path) -> None:
    create(image, "1600M")
    write(image, "write -P 1 0 1M")
    with Editor(image) as editor:
        table, host = editor.l2_table(0), editor.host_of(0)
        editor.set_l1(0, 0)
    plan = planned(image)
    assert plan.empty and plan.after.orphans == plan.after.leaks == 17
    assert any(f"{table:#x}" in note for note in plan.notes)
    assert stored(plan, host) == 1
    chosen = planned(image, Policy(choices={f"relink:{table:#x}": "0"}))
    assert guest(chosen)[:M] == b"\1" * M and not any(step.places for step in chosen.steps)


def test_a_damaged_entry_one_bit_away_is_the_place_of_a_lost_table(image: Path) -> None:
    create(image, "1600M")
    write(image, "write -P 1 0 1M", "write -P 2 1024M 1M")
    with Editor(image) as editor:
        entry = editor.l1(0)
        editor.set_l1(0, entry | 1 << 40)
    plan = planned(image)
    assert plan.after.clean and int(plan.result_after.meta.l1[0]) == entry


def test_a_table_that_a_deleted_snapshot_names_is_not_linked(image: Path) -> None:
    create(image, "1100M")
    write(image, "write -P 1 0 1M")
    snapshot(image, "-c", "S1")
    write(image, "write -P 2 512M 1M")
    snapshot(image, "-c", "S2")
    snapshot(image, "-a", "S1")
    with Editor(image) as editor:  # killed after the table, before the refcounts
        editor.set("nb_snapshots", 1)
        second = editor.snapshots()[0].end
        editor.wipe(-(-second // 8) * 8, 4 * K)
    plan = planned(image)
    with Image.open(plan.base.path, storage=plan.overlay) as disk:
        assert disk.read(512 * M, M) == bytes(M)
    assert not any(step.fix == "relink" for step in plan.steps)


# -- snapshots ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fields", [("nb_snapshots",), ("nb_snapshots", "snapshots_offset")])
@pytest.mark.parametrize("mode", [Mode.LEAKS, Mode.ALL])
def test_a_snapshot_that_is_forgotten_keeps_its_share_of_the_refcounts(
    fields: tuple[str, ...], mode: Mode, image: Path
) -> None:
    create(image, "4M")
    write(image, "write -P 1 0 256k")
    snapshot(image, "-c", "a")
    write(image, "write -P 2 64k 64k")
    with Editor(image) as editor:
        shared = editor.host_of(0)
        for field in fields:
            editor.set(field, 0)
        flags = [editor.l2(index * C) & COPIED for index in range(4)]
    plan = planned(image, Policy(mode))
    assert stored(plan, shared) == 2
    table = int(plan.result_after.meta.l1[0]) & MASK_OFFSET
    words = Workspace(plan.overlay, Policy()).words(table, 4)
    assert [int(word) & COPIED for word in words] == flags
    if mode is Mode.ALL and len(fields) == 1:
        assert guest(plan, "a")[: 4 * C] == b"\1" * (4 * C)


def test_a_snapshot_whose_l1_offset_is_impossible_gets_the_one_place_that_is_certain(image: Path) -> None:
    _named_snapshot("first")(image)
    with Editor(image) as editor:
        editor.set_snapshot(editor.snapshots()[0], "l1_table_offset", 1 << 40)
    plan = planned(image)
    assert plan.after.clean and guest(plan, "first")[: 4 * C] == b"\1" * (4 * C)
    assert any(step.places and step.snapshots == ("1",) for step in plan.steps)


def test_a_snapshot_without_a_certain_place_stays_and_so_do_its_clusters(image: Path) -> None:
    _named_snapshot("first")(image)
    with Editor(image) as editor:
        for each in editor.snapshots():
            editor.set_snapshot(each, "l1_table_offset", 1 << 40)
        leaked = editor.snapshots()[0]
        record = editor.read(leaked.offset, 40)
    plan = planned(image)
    assert plan.overlay.read(leaked.offset, 40) == record
    assert not any(step.code in ("CLUSTER-LEAKED", "REFCOUNT-TOO-HIGH") for step in plan.steps)
    assert plan.after.leaks == plan.after.orphans


def test_a_snapshot_table_with_more_entries_than_there_are_loses_none(image: Path) -> None:
    _named_snapshot("a\tb")(image)
    with Editor(image) as editor:
        editor.set("nb_snapshots", 4)
    plan = planned(image)
    assert [each.name for each in plan.result_after.meta.snapshots] == ["a\tb", "second"] and plan.after.clean


def test_a_snapshot_table_beside_its_offset_is_found_again_with_its_names(image: Path) -> None:
    _named_snapshot("a\tb")(image)
    with Editor(image) as editor:
        place = editor.get("snapshots_offset")
        editor.set("snapshots_offset", place | 8)
    plan = planned(image)
    found = plan.result_after.meta
    assert [each.name for each in found.snapshots] == ["a\tb", "second"] and found.header.snapshots_offset == place
    assert plan.after.clean


# -- bitmaps -----------------------------------------------------------------------------------------------------------


def test_a_sound_bitmap_keeps_its_entry_when_another_is_mended(image: Path) -> None:
    _bitmap(image)
    with Editor(image) as editor:
        first, second = editor.bitmaps()
        sound = editor.read(second.offset, second.end - second.offset)
        editor.set_bitmap(first, "type", 7)
    plan = planned(image)
    assert plan.overlay.read(second.offset, len(sound)) == sound
    assert [each.name for each in plan.result_after.meta.bitmap_directory.bitmaps] == ["a\tb", "über\x01"]


def test_a_bitmap_in_use_is_trusted_only_when_that_is_chosen(image: Path) -> None:
    _bitmap(image)
    with Editor(image) as editor:
        editor.set_bitmap(editor.bitmaps()[0], "flags", 3)
    assert planned(image).empty
    named = Policy(Mode.CODES, frozenset({"BITMAP-IN-USE"}))
    assert planned(image, named).empty
    trusted = planned(image, Policy(Mode.CODES, named.codes, {"bitmaps-in-use": "trust"}))
    assert not trusted.result_after.meta.bitmap_directory.bitmaps[0].in_use


# -- refcounts ---------------------------------------------------------------------------------------------------------


def test_what_goes_free_is_declared(image: Path) -> None:
    create(image)
    write(image, "write -P 1 0 64k")
    with Editor(image) as editor:
        waste = editor.append_cluster(bytes(C))
    plan = planned(image)
    assert plan.after.clean
    assert [each for step in plan.steps for each in step.frees] == [(waste, C)]


def test_a_rebuild_declares_the_old_structures_and_keeps_lost_tables(image: Path) -> None:
    create(image, "1600M")
    write(image, "write -P 1 0 1M", "write -P 2 1024M 1M")
    with Editor(image) as editor:
        table, old = editor.l2_table(0), editor.rt_offset
        editor.set_l1(0, 0)
        editor.set("refcount_table_clusters", 200)  # it cannot lie there: other structures do
    plan = planned(image)
    freed = [start for step in plan.steps for start, _ in step.frees]
    assert plan.after.corruptions == 0 and stored(plan, table) == 1
    assert old in freed and table not in freed


def test_the_dirty_bit_goes_when_orphans_are_kept_and_refcounts_are_right(image: Path) -> None:
    create(image, "1600M", "-o", "lazy_refcounts=on")
    write(image, "write -P 1 0 1M")
    with Editor(image) as editor:
        editor.set_l1(0, 0)
        editor.set_bits("incompatible_features", DIRTY)
    plan = planned(image)
    assert plan.after.orphans == 17 and not plan.result_after.meta.header.has("dirty")
    leaks, named = planned(image, Policy(Mode.LEAKS)), planned(image, Policy(Mode.CODES, frozenset({"IMAGE-DIRTY"})))
    assert not leaks.result_after.meta.header.has("dirty") and not named.result_after.meta.header.has("dirty")
