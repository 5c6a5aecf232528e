"""The preservation proof stops wrong fixes, whatever they declare, and lets their right twins pass.

Each case damages a small real image, then stages a change as some fix might: first a wrong one, then the right one.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from sample_images.editor import COPIED, EXT_BITMAPS, ZERO, Editor
from sample_images.kit import Kit, noise, text
from workbench.check.problems import Tier
from workbench.repair.preserve import Proof, prove
from workbench.repair.workspace import Step
from workbench.storage.file import FileStorage
from workbench.storage.overlay import Overlay

pytestmark = pytest.mark.oracle

K = 1 << 10
C = 4 * K  # cluster size of most images here; an L2 table covers 2 MiB
COVER = 2 << 20
Places = list[tuple[int, int]]


@dataclass
class Declared:
    """What a fix declares: host ranges that it frees, guest ranges that it places."""

    frees: Places
    places: Places
    snapshots: list[str]


Edit = Callable[[Editor, Declared], None]


# -- images ------------------------------------------------------------------------------------------------------------


def _plain(kit: Kit) -> None:
    kit.create("8M", "cluster_size=4k")
    for at in range(3):
        kit.write(at * COVER, noise(6 * C, at))


def _snapshot(kit: Kit) -> None:
    _plain(kit)
    kit.snapshot("before")
    kit.write(0, noise(2 * C, 9))


def _two_snapshots(kit: Kit) -> None:
    _snapshot(kit)
    kit.snapshot("later")


def _backed(kit: Kit) -> None:
    base = kit.raw("base.raw", noise(4 << 20, 5), 8 << 20)
    kit.create_over(base, "raw", "cluster_size=4k", size=8 << 20)
    kit.write(0, noise(6 * C, 1))


def _bitmap(kit: Kit) -> None:
    _plain(kit)
    kit.img("bitmap", "--add", "-g", "64k", kit.path.name, "daily")
    kit.write(3 * COVER, noise(C, 7))


def _extended(kit: Kit) -> None:
    kit.create("64M", "cluster_size=16k", "extended_l2=on")
    kit.write(0, noise(8 * 16 * K, 3))


def _compressed(kit: Kit) -> None:
    kit.create("8M", "cluster_size=4k")
    kit.write(0, text(2 * C, 1), compressed=True)
    kit.write(4 * C, noise(4 * C, 2))


def _luks(kit: Kit) -> None:
    kit.create("4M", "cluster_size=4k", "encrypt.format=luks", "encrypt.iter-time=10")
    kit.write(0, noise(4 * C, 4))


def _aes(kit: Kit) -> None:
    kit.create("4M", "cluster_size=4k", "encrypt.format=aes")
    kit.write(0, noise(4 * C, 4))


def _data_file(kit: Kit) -> None:
    kit.create("4M", "cluster_size=4k", f"data_file={kit.beside('data.raw')}", "data_file_raw=on")
    kit.write(0, noise(4 * C, 4))


IMAGES: dict[str, tuple[Callable[[Kit], None], str | None]] = {
    "plain": (_plain, None),
    "snapshot": (_snapshot, None),
    "two-snapshots": (_two_snapshots, None),
    "backed": (_backed, None),
    "bitmap": (_bitmap, None),
    "extended": (_extended, None),
    "compressed": (_compressed, None),
    "luks": (_luks, "secret"),
    "aes": (_aes, "secret"),
    "data-file": (_data_file, None),
}


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    made: dict[str, Path] = {}

    def get(name: str) -> Path:
        if name not in made:
            make, secret = IMAGES[name]
            kit = Kit(tmp_path_factory.mktemp(name), "image", secret)
            make(kit)
            made[name] = kit.path
        return made[name]

    return get


# -- small edits ---------------------------------------------------------------------------------------------------------


def host(ed: Editor, guest: int) -> int:
    return ed.host_of(guest)


def lose_l1(index: int) -> Callable[[Editor], None]:
    return lambda ed: ed.set_l1(index, 0)


def orphans(ed: Editor, index: int) -> Places:
    """The lost table of L1 entry `index` of the plain image and its six clusters (they follow each other)."""
    table = TABLES[index]
    return [(table, C), *((int(word) & 0xFF_FFFF_FFFF_FE00, C) for word in _words(ed, table) if word)]


def _words(ed: Editor, table: int) -> list[int]:
    raw = ed.read(table, C)
    return [int.from_bytes(raw[at : at + 8], "big") for at in range(0, C, 8)]


TABLES: dict[int, int] = {}
"""L2 tables of the image at hand before it was damaged, by L1 index."""


def free(ed: Editor, ranges: Places) -> None:
    for start, length in ranges:
        for at in range(start, start + length, C):
            ed.set_refcount(at, 0)


# -- the cases -----------------------------------------------------------------------------------------------------------


@dataclass
class Case:
    """harm: the damage.  wrong: a fix that must be stopped.  right: its twin, that passes with nothing given up."""

    image: str
    harm: Callable[[Editor], object]
    wrong: Edit
    right: Edit


def _relink(index: int, at: int, *, declare: bool) -> Edit:
    def fix(ed: Editor, said: Declared) -> None:
        ed.set_l1(at, TABLES[index] | COPIED)
        if declare:
            said.places.append((at * COVER, COVER))

    return fix


def _free_lost(index: int) -> Edit:
    def fix(ed: Editor, said: Declared) -> None:
        said.frees += orphans(ed, index)
        free(ed, orphans(ed, index))

    return fix


def _leak(ed: Editor) -> None:
    LEAK[0] = ed.append_cluster(noise(C, 77))
    LEAK[1] = ed.append_cluster()


LEAK = [0, 0]


def _free_leak(*, declare: bool) -> Edit:
    def fix(ed: Editor, said: Declared) -> None:
        free(ed, [(LEAK[0], 2 * C)])
        if declare:
            said.frees.append((LEAK[0], 2 * C))

    return fix


def _put(name: str, value: Callable[[Editor], int]) -> Edit:
    return lambda ed, said: ed.set(name, value(ed))


def _nothing(ed: Editor) -> None:
    """No damage."""


def _odd_entry(ed: Editor) -> None:
    ed.set_l2(C, ed.l2(C) | 1 << 57)


def _clear_odd(ed: Editor, said: Declared) -> None:
    ed.set_l2(C, ed.l2(C) & ~(1 << 57))


def _move(guest: int, *, keep: bool) -> Edit:
    """Move a cluster to the end of the file, with its bytes or without."""

    def fix(ed: Editor, said: Declared) -> None:
        old = host(ed, guest)
        new = ed.append_cluster(ed.read(old, C) if keep else noise(C, 5))
        ed.set_l2(guest, new | COPIED)
        ed.set_refcount(old, 0)
        said.frees.append((old, C))

    return fix


def _past_end(ed: Editor) -> None:
    ed.set_l1(3, (1 << 40) | COPIED)


def _unaligned(ed: Editor) -> None:
    ed.set_l2(C, ed.l2(C) | 0x200)


def _align(*, counted: bool) -> Edit:
    def fix(ed: Editor, said: Declared) -> None:
        place = ed.l2(C) & 0xFF_FFFF_FFFF_F000
        ed.set_l2(C, place | COPIED if counted else 0)
        ed.set_refcount(place, int(counted))
        said.places.append((C, C))

    return fix


def _rename(ed: Editor, said: Declared) -> None:
    ed.write(ed.snapshots()[0].name_offset, b"AFTER!")


def _same_id(ed: Editor) -> None:
    one, other = ed.snapshots()
    ed.write(other.id_offset, ed.read(one.id_offset, 1))


def _number(which: int) -> Edit:
    return lambda ed, said: ed.write(ed.snapshots()[which].id_offset, b"7")


def _drop_last(ed: Editor, said: Declared) -> None:
    ed.set("nb_snapshots", 1)


def _forget_snapshots(ed: Editor) -> None:
    ed.set("nb_snapshots", 0)


def _count_alone(shared: int, value: int, *, flag: bool) -> Edit:
    def fix(ed: Editor, said: Declared) -> None:
        place = host(ed, shared)
        ed.set_refcount(place, value)
        said.frees.append((place, C))
        if flag:
            ed.set_l2(shared, ed.l2(shared) | COPIED)

    return fix


def _found_again(ed: Editor, said: Declared) -> None:
    """The header names the snapshot again, which nobody overwrote."""
    ed.set("nb_snapshots", 1)
    said.places.append((0, 8 << 20))
    said.snapshots.append("1")


def _high(ed: Editor) -> None:
    ed.set_refcount(host(ed, C), 3)


def _low(ed: Editor) -> None:
    ed.set_refcount(host(ed, C), 0)


def _with_bitmap(flags: int | None) -> Edit:
    def fix(ed: Editor, said: Declared) -> None:
        _relink(1, 1, declare=True)(ed, said)
        if flags is not None:
            ed.set_bitmap(ed.bitmaps()[0], "flags", flags)

    return fix


def _lost_entry(guest: int) -> Callable[[Editor], None]:
    return lambda ed: ed.set_l2(guest, ed.l2(guest) | 0x400)


def _drop_entry(value: int, *, count: bool) -> Edit:
    def fix(ed: Editor, said: Declared) -> None:
        place = ed.l2(C) & 0xFF_FFFF_FFFF_F000
        ed.set_l2(C, value)
        if not count:
            ed.set_refcount(place, 0)
            said.frees.append((place, C))

    return fix


def _dirty(ed: Editor) -> None:
    ed.set_bits("incompatible_features", 1)
    ed.set_l1(1, 0)


def _touch_counts(*, clean: bool) -> Edit:
    def fix(ed: Editor, said: Declared) -> None:
        ed.set_bits("compatible_features", 1)
        if clean:
            ed.clear_bits("incompatible_features", 1)

    return fix


def _longer(ed: Editor) -> None:
    """The second compressed descriptor reaches one sector further than its stream."""
    offset, sectors = ed.compressed(C)
    ed.set_compressed(C, offset, sectors + 1)


def _sectors(more: int) -> Edit:
    def fix(ed: Editor, said: Declared) -> None:
        offset, sectors = ed.compressed(C)
        ed.set_compressed(C, offset, sectors + more)

    return fix


def _write_into(which: str) -> Edit:
    """New metadata goes into a guest's cluster, an orphan, or a new cluster."""

    def fix(ed: Editor, said: Declared) -> None:
        if which == "data":
            place = host(ed, 0)
        elif which == "orphan":
            place = orphans(ed, 1)[1][0]
        else:
            place = ed.append_cluster()
        block = ed.rt(0)
        ed.write(place, ed.read(block, C))
        said.frees.append((place, C))
        if which == "new":
            ed.set_rt(0, place)
            said.frees.append((block, C))

    return fix


def _empty_table(ed: Editor, said: Declared) -> None:
    ed.write(ed.l2_table(0), bytes(C))


def _both_bits(ed: Editor) -> None:
    ed.set_subclusters(16 * K, ed.subclusters(16 * K) | 1 << 32)


def _subclusters(keep: int) -> Edit:
    def fix(ed: Editor, said: Declared) -> None:
        found = ed.subclusters(16 * K)
        ed.set_subclusters(16 * K, found & ~(1 << 32) if keep else 0xFFFFFFFF << 32)
        said.places.append((16 * K, 512))

    return fix


def _cut(by: int) -> Edit:
    def fix(ed: Editor, said: Declared) -> None:
        ed.truncate(ed.file_size + by)

    return fix


def _cut_in_use(ed: Editor) -> None:
    """The last guest cluster leads to where the file ends, and is counted there."""
    past = -(-ed.path.stat().st_size // C) * C
    ed.set_l2(ed.guests("data")[-1], past | COPIED)
    ed.set_refcount(past, 1)


def _free_past(*, keep_entry: bool) -> Edit:
    def fix(ed: Editor, said: Declared) -> None:
        guest = ed.guests("data")[-1]
        ed.set_refcount(ed.host_of(guest), 0)
        if not keep_entry:
            ed.set_l2(guest, 0)

    return fix


def _magic_and_free(*, declare: bool) -> Edit:
    def fix(ed: Editor, said: Declared) -> None:
        ed.set("magic", 0x514649FB)
        said.places.append((0, 1 << 40))
        _free_leak(declare=declare)(ed, said)

    return fix


def _block_in_leak(ed: Editor) -> None:
    _leak(ed)
    ed.set_rt(ed.rt_entries - 1, LEAK[0])


def _drop_block(*, declare: bool) -> Edit:
    def fix(ed: Editor, said: Declared) -> None:
        ed.set_rt(ed.rt_entries - 1, 0)
        _free_leak(declare=declare)(ed, said)

    return fix


CASES = {
    "a sound entry is dropped": Case("plain", _odd_entry, _drop_entry(0, count=True), _clear_odd),
    "a sound entry is dropped and freed": Case("plain", _odd_entry, _drop_entry(0, count=False), _clear_odd),
    "a cluster is moved without its bytes": Case("plain", _nothing, _move(C, keep=False), _move(C, keep=True)),
    "a table with one odd entry is emptied": Case("plain", _odd_entry, _empty_table, _clear_odd),
    "a sound table is unlinked": Case(
        "plain", _past_end, lambda ed, said: ed.set_l1(0, 0), lambda ed, said: ed.set_l1(3, 0)
    ),
    "a lost table's clusters are freed": Case(
        "plain", lose_l1(1), _free_lost(1), _relink(1, 1, declare=True)
    ),
    "only the lost table itself is freed": Case(
        "plain", lose_l1(1),
        lambda ed, said: (said.frees.append((TABLES[1], C)), free(ed, [(TABLES[1], C)]))[0],
        lambda ed, said: ed.set_bits("compatible_features", 1),
    ),
    "a table is linked without certainty": Case(
        "plain", lose_l1(1), _relink(1, 1, declare=False), _relink(1, 1, declare=True)
    ),
    "a table is linked over another one": Case(
        "plain", lose_l1(1), _relink(1, 2, declare=True), _relink(1, 1, declare=True)
    ),
    "a table in use is linked a second time": Case(
        "plain", _nothing,
        lambda ed, said: (ed.set_l1(3, TABLES[2]), said.places.append((3 * COVER, COVER)))[0],
        lambda ed, said: ed.set_bits("compatible_features", 1),
    ),
    "an unaligned entry is dropped and its cluster freed": Case(
        "plain", _unaligned, _drop_entry(0, count=False), _align(counted=True)
    ),
    "an entry is aligned and its cluster stays uncounted": Case(
        "plain", _unaligned, _align(counted=False), _align(counted=True)
    ),
    "leaked content goes free without a word": Case(
        "plain", _leak, _free_leak(declare=False), _free_leak(declare=True)
    ),
    "leaks are freed while a table is missing": Case(
        "plain", lambda ed: (_leak(ed), _unaligned(ed)), _free_leak(declare=True), _align(counted=True)
    ),
    "refcounts become too narrow": Case(
        "snapshot", _nothing, _put("refcount_order", lambda ed: 0), lambda ed, said: ed.set_bits("compatible_features", 1)
    ),
    "clusters get another size": Case(
        "plain", _nothing, _put("cluster_bits", lambda ed: 13), lambda ed, said: ed.set_bits("compatible_features", 1)
    ),
    "entries get another width": Case(
        "plain", _odd_entry, lambda ed, said: ed.set_bits("incompatible_features", 16), _clear_odd
    ),
    "the cipher is taken away": Case(
        "aes", _nothing, _put("crypt_method", lambda ed: 0), lambda ed, said: ed.set_bits("compatible_features", 1)
    ),
    "a shared cluster's count is lowered": Case(
        "snapshot", _forget_snapshots, _count_alone(3 * C, 1, flag=False), _found_again
    ),
    "a shared cluster becomes COPIED": Case(
        "snapshot", _forget_snapshots, _count_alone(3 * C, 1, flag=True), _found_again
    ),
    "COPIED on what is counted twice": Case(
        "snapshot", _nothing, _count_alone(3 * C, 2, flag=True), lambda ed, said: ed.set_bits("compatible_features", 1)
    ),
    "a count is lowered below the references": Case(
        "snapshot", _nothing, _count_alone(3 * C, 1, flag=False),
        lambda ed, said: ed.set_bits("compatible_features", 1),
    ),
    "a count that is too high is lowered without a word": Case(
        "plain", _high, lambda ed, said: ed.set_refcount(host(ed, C), 1), _count_alone(C, 1, flag=False)
    ),
    "a low count stays while references grow": Case(
        "plain", _low,
        lambda ed, said: (ed.set_l2(20 * C, host(ed, C)), said.places.append((20 * C, C)))[0],
        lambda ed, said: ed.set_refcount(host(ed, C), 1),
    ),
    "a snapshot is dropped": Case("two-snapshots", _nothing, _drop_last, lambda ed, said: ed.set_bits("compatible_features", 1)),
    "a snapshot is renamed": Case("two-snapshots", _same_id, _rename, _number(1)),
    "a snapshot whose ID is unique is renumbered": Case("two-snapshots", _nothing, _number(0), lambda ed, said: ed.set_bits("compatible_features", 1)),
    "a snapshot's table is emptied": Case(
        "snapshot", _odd_entry,
        lambda ed, said: ed.put(ed.snapshots()[0].l1_offset, 0),
        _clear_odd,
    ),
    "a table is written over guest data": Case("plain", lose_l1(1), _write_into("data"), _write_into("new")),
    "a table is written over an orphan": Case("plain", lose_l1(1), _write_into("orphan"), _write_into("new")),
    "the file is cut": Case("plain", _nothing, _cut(-4 * C), _cut(C)),
    "the disk is cut": Case("plain", _nothing, _put("size", lambda ed: 4 * K), _put("size", lambda ed: 8 << 20)),
    "another backing file": Case(
        "backed", _nothing,
        lambda ed, said: ed.set("backing_file_size", ed.get("backing_file_size") - 1),
        lambda ed, said: ed.set_bits("compatible_features", 1),
    ),
    "the backing file's old content shows": Case(
        "backed", _unaligned, _drop_entry(0, count=True), _align(counted=True)
    ),
    "a hole hides the backing file": Case(
        "backed", _odd_entry, lambda ed, said: ed.set_l2(40 * C, ZERO), _clear_odd
    ),
    "a bitmap is dropped": Case(
        "bitmap", lose_l1(1),
        lambda ed, said: (ed.remove_extension(EXT_BITMAPS), ed.set("autoclear_features", 0))[0],
        _with_bitmap(3),
    ),
    "a bitmap misses what was regained": Case("bitmap", lose_l1(1), _with_bitmap(None), _with_bitmap(3)),
    "an enabled bitmap is switched off": Case(
        "bitmap", _nothing,
        lambda ed, said: ed.set_bitmap(ed.bitmaps()[0], "flags", 0),
        lambda ed, said: ed.set_bitmap(ed.bitmaps()[0], "flags", 3),
    ),
    "a LUKS cluster is moved": Case("luks", _nothing, _move(C, keep=True), lambda ed, said: ed.set_bits("compatible_features", 1)),
    "an AES cluster is moved without its bytes": Case("aes", _nothing, _move(C, keep=False), _move(C, keep=True)),
    "a key slot is written over": Case(
        "luks", _nothing, lambda ed, said: ed.write(ed.luks()[0] + 208, bytes(48)), lambda ed, said: ed.set_bits("compatible_features", 1)
    ),
    "a compressed cluster is cut": Case("compressed", _longer, _sectors(-3), _sectors(-1)),
    "subclusters are given up": Case("extended", _both_bits, _subclusters(0), _subclusters(1)),
    "kept orphans in a dirty image": Case("plain", _dirty, _touch_counts(clean=False), _touch_counts(clean=True)),
    "what entries mean past the end goes free": Case(
        "plain", _cut_in_use, _free_past(keep_entry=True), _free_past(keep_entry=False)
    ),
    "content goes free without a word while the magic comes back": Case(
        "plain", lambda ed: (_leak(ed), ed.set("magic", 0)), _magic_and_free(declare=False), _magic_and_free(declare=True)
    ),
    "data under a refcount table entry is written over": Case(
        "plain", _block_in_leak, lambda ed, said: ed.write(LEAK[0], bytes(C)), lambda ed, said: ed.set_rt(ed.rt_entries - 1, 0)
    ),
    "data under a refcount table entry goes free without a word": Case(
        "plain", _block_in_leak, _drop_block(declare=False), _drop_block(declare=True)
    ),
    "a cluster size that the refcounts contradict": Case(
        "plain", lambda ed: ed.set("cluster_bits", 11), _put("cluster_bits", lambda ed: 10), _put("cluster_bits", lambda ed: 12)
    ),
    "an entry of a sound table behind the end of the disk is dropped": Case(
        "plain", lambda ed: ed.set("size", COVER + 2 * C),
        lambda ed, said: ed.set_l2(COVER + 4 * C, 0),
        lambda ed, said: ed.set("size", 8 << 20),
    ),
    "a lost table gets its place without one of its entries": Case(
        "plain", lose_l1(1),
        lambda ed, said: (_relink(1, 1, declare=True)(ed, said), ed.write(TABLES[1], bytes(8)))[0],
        _relink(1, 1, declare=True),
    ),
    "the data file no longer counts as raw": Case(
        "data-file", _nothing, _put("autoclear_features", lambda ed: 0), lambda ed, said: ed.set_bits("compatible_features", 1)
    ),
}  # fmt: skip


def judge(image: Path, folder: Path, harm: Callable[[Editor], object], fix: Edit) -> Proof:
    """The proof's word on one fix of one damaged image."""
    damaged, mended = folder / "damaged.qcow2", folder / "mended.qcow2"
    shutil.copy(image, damaged)
    with Editor(damaged) as ed:
        TABLES.clear()
        TABLES.update({index: ed.l2_table(index) for index in ed.allocated_l1()})
        harm(ed)
    shutil.copy(damaged, mended)
    said = Declared([], [], [])
    with Editor(mended) as ed:
        fix(ed, said)
    new = mended.read_bytes()
    with FileStorage.open(damaged) as base:
        overlay = Overlay(base)
        overlay.write(0, new)
        overlay.truncate(len(new))
        step = Step(1, "TEST", "test", "a change", Tier.SAFE, 0, 0, b"", b"", "data", frees=tuple(said.frees), places=tuple(said.places), snapshots=tuple(said.snapshots))  # fmt: skip
        return prove(base, overlay, [step])


@pytest.mark.parametrize("name", CASES)
def test_a_wrong_fix_is_stopped(name: str, images: Callable[[str], Path], tmp_path: Path) -> None:
    case = CASES[name]
    proof = judge(images(case.image), tmp_path, case.harm, case.wrong)
    assert not proof.harmless, f"{name}: {proof}"
    assert proof.loss > 0


@pytest.mark.parametrize("name", CASES)
def test_its_right_twin_passes(name: str, images: Callable[[str], Path], tmp_path: Path) -> None:
    case = CASES[name]
    proof = judge(images(case.image), tmp_path, case.harm, case.right)
    assert proof.harmless, f"{name}: {proof.as_json()}"


def test_what_is_regained_and_freed_is_told_in_bytes(images: Callable[[str], Path], tmp_path: Path) -> None:
    case = CASES["a lost table's clusters are freed"]
    proof = judge(images(case.image), tmp_path, case.harm, case.right)
    assert proof.regains.bytes == 6 * C
    assert [(each.start, each.length, each.guest) for each in proof.regains.ranges] == [(COVER, 6 * C, True)]
    assert str(proof) == "gives up 0 bytes; 24 KiB regained"
    leak = CASES["leaked content goes free without a word"]
    freed = judge(images(leak.image), tmp_path, leak.harm, leak.right).frees_content
    assert freed.bytes == C  # the second leaked cluster holds nothing
    assert [(each.length, each.guest) for each in freed.ranges] == [(C, False)]


def test_an_untouched_image_needs_no_proof(images: Callable[[str], Path]) -> None:
    with FileStorage.open(images("plain")) as base:
        assert prove(base, Overlay(base), []).as_json() == Proof().as_json()
