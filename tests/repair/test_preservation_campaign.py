"""The preservation campaign: its judge catches each kind of wrong repair, and a short run of it breaks no rule."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from sample_images.editor import COPIED, Editor
from tests.campaigns.preservation import Shelf, choose_bases, figures, run_all, run_trial, table
from tests.campaigns.preservation_bases import ACTIVE, BASES, IMAGE, TINY
from tests.campaigns.preservation_damage import KINDS, Damage, Damager
from tests.campaigns.preservation_judge import Case, Judged, Outcome, judge
from workbench.repair.policy import Mode

pytestmark = pytest.mark.oracle
SUBJECT = "none-cut-header"
Work = Callable[[Path, Damager], None]


class Hand:
    """A repair made by hand: `work` on the image, taken back by a copy; `spoil` is done after taking it back."""

    def __init__(self, damager: Damager, work: Work, spoil: Work | None = None, how: str = "applied") -> None:
        self.damager, self.work, self.spoil, self.how = damager, work, spoil, how

    def repair(self, mode: Mode) -> Outcome:
        shutil.copy(IMAGE, "before")
        self.work(Path(IMAGE), self.damager)
        return Outcome(self.how, self.how != "no row", words="by hand")

    def undo(self) -> None:
        shutil.copy("before", IMAGE)
        if self.spoil:
            self.spoil(Path(IMAGE), self.damager)


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shelf]:
    found = Shelf(tmp_path_factory.mktemp("preservation"), choose_bases(["64M"], TINY), {})
    yield found
    for _, _, truths in found.opened.values():
        for truth in truths.values():
            truth.close()


def judged(
    shelf: Shelf, folder: Path, broken: Work | None, repaired: Work, *, spoil: Work | None = None, how: str = "applied"
) -> Judged:
    """The subject, damaged by `broken`, repaired by `repaired`."""
    built, pristine, truths = shelf.take(BASES[SUBJECT])
    case = Case(built, pristine, truths, folder)
    damager = Damager(case.work / IMAGE, pristine, built.image, random.Random(1))
    if broken:
        broken(case.work / IMAGE, damager)
    done = Damage(("by hand",), "by hand", True) if broken else Damage((), "undamaged", False)
    hand = Hand(damager, repaired, spoil, how)
    return judge(case, done, Mode.ALL, random.Random(2), hand, independent=True)


def kinds(found: Judged) -> set[tuple[str, str]]:
    return {(each.rule, each.kind) for each in found.violations}


def nothing(image: Path, d: Damager) -> None:
    """No repair at all."""


def lose_table(image: Path, d: Damager) -> None:
    """The last L1 entry that has a table of the active disk's own is zeroed."""
    d.put(d.l1_at(_lost(d)), 0)


def _lost(d: Damager) -> int:
    return next(each for each in reversed(d.used_l1()) if not d.shared(int(d.walk.l2_tables[ACTIVE][each])))


def _table(d: Damager) -> int:
    return int(d.walk.l2_tables[ACTIVE][_lost(d)])


def _orphans(d: Damager) -> list[int]:
    """Host offsets of the data that only the lost table maps."""
    rows = d.walk.rows[ACTIVE]
    starts = rows.start[rows.table == _table(d)]
    return [at for at in starts.tolist() if d.counts[at >> d.walk.bits] == 1]


def relink(image: Path, d: Damager) -> None:
    """The right repair of `lose_table`."""
    d.put(d.l1_at(_lost(d)), _table(d) | COPIED)


def trim(image: Path, d: Damager) -> None:
    """Touch the image without changing what it holds: kept orphans are not placed."""
    d.put(88, d.number(88) ^ 1 << 40)  # an unknown autoclear bit


def test_the_right_repair_breaks_no_rule_and_counts_as_repaired(shelf: Shelf, tmp_path: Path) -> None:
    found = judged(shelf, tmp_path, lose_table, relink)
    assert not found.violations
    assert found.status == "repaired"
    assert found.after == found.truth > found.before
    assert found.writes


def test_an_undamaged_image_left_alone_is_healthy(shelf: Shelf, tmp_path: Path) -> None:
    found = judged(shelf, tmp_path, None, nothing, how="nothing")
    assert not found.violations and found.status == "healthy"


def test_changing_an_undamaged_image_is_caught(shelf: Shelf, tmp_path: Path) -> None:
    assert ("a", "undamaged image changed") in kinds(judged(shelf, tmp_path, None, trim))


def test_changing_an_image_without_a_row_is_caught(shelf: Shelf, tmp_path: Path) -> None:
    assert ("a", "changed without a row") in kinds(judged(shelf, tmp_path, lose_table, relink, how="no row"))


def test_keeping_orphans_counted_is_no_violation(shelf: Shelf, tmp_path: Path) -> None:
    found = judged(shelf, tmp_path, lose_table, trim)
    assert not found.violations
    assert found.writes


def test_freeing_orphans_is_caught(shelf: Shelf, tmp_path: Path) -> None:
    def free(image: Path, d: Damager) -> None:
        for at in (_table(d), *_orphans(d)):
            d.set_refcount(at >> d.walk.bits, 0)

    found = judged(shelf, tmp_path, lose_table, free)
    assert ("c", "counted truth freed") in kinds(found)


def test_zeroing_one_orphan_is_caught(shelf: Shelf, tmp_path: Path) -> None:
    def zero(image: Path, d: Damager) -> None:
        at = next(each for each in _orphans(d) if any(d.read(each, d.walk.cluster)))
        d.write(at, bytes(d.walk.cluster))

    assert ("c", "truth overwritten by the repair") in kinds(judged(shelf, tmp_path, lose_table, zero))


def test_zeroing_the_lost_table_is_caught(shelf: Shelf, tmp_path: Path) -> None:
    def zero(image: Path, d: Damager) -> None:
        d.write(_table(d), bytes(d.walk.cluster))

    assert ("c", "truth overwritten by the repair") in kinds(judged(shelf, tmp_path, lose_table, zero))


def test_leaving_kept_orphans_beside_a_dirty_bit_is_caught_by_the_guests_writes(shelf: Shelf, tmp_path: Path) -> None:
    def dirty(image: Path, d: Damager) -> None:
        d.put(72, d.number(72) | 1)

    found = judged(shelf, tmp_path, lose_table, dirty)
    assert ("c", "kept cluster lost to the guest's writes") in kinds(found)


def test_a_snapshot_whose_clusters_become_writable_is_caught_by_the_guests_writes(shelf: Shelf, tmp_path: Path) -> None:
    def share(image: Path, d: Damager) -> None:
        relink(image, d)
        rows = d.walk.rows[ACTIVE]
        for number in np.flatnonzero(d.counts[rows.start >> d.walk.bits] > 1).tolist():
            at = int(rows.at[number])
            d.put(at, d.number(at) | COPIED)
        for used in {int(each) for each in rows.table}:
            d.set_refcount(used >> d.walk.bits, 1)
        for index in d.used_l1():
            d.put(d.l1_at(index), d.number(d.l1_at(index)) | COPIED)

    found = judged(shelf, tmp_path, lose_table, share)
    assert ("c", "snapshot lost to the guest's writes") in kinds(found)


def test_one_changed_byte_of_the_guest_is_caught_and_confirmed_by_qemu(shelf: Shelf, tmp_path: Path) -> None:
    def change(image: Path, d: Damager) -> None:
        relink(image, d)
        rows = d.walk.rows[ACTIVE]
        at = int(rows.start[0]) + 100
        d.put(at, d.number(at, 1) ^ 255, 1)

    found = judged(shelf, tmp_path, lose_table, change)
    assert any(rule == "b" and kind.startswith("active") for rule, kind in kinds(found))
    assert any("to qemu-img lost" in each.words for each in found.violations)


def test_a_dropped_snapshot_is_caught(shelf: Shelf, tmp_path: Path) -> None:
    def drop(image: Path, d: Damager) -> None:
        relink(image, d)
        d.put(60, 1, 4)

    assert ("b", "snapshot unreadable") in kinds(judged(shelf, tmp_path, lose_table, drop))


def test_a_table_linked_in_the_wrong_place_is_caught(shelf: Shelf, tmp_path: Path) -> None:
    def lose_two(image: Path, d: Damager) -> None:
        for index in d.used_l1()[-2:]:
            d.put(d.l1_at(index), 0)

    def swap(image: Path, d: Damager) -> None:
        one, other = d.used_l1()[-2:]
        for index, source in ((one, other), (other, one)):
            d.put(d.l1_at(index), int(d.walk.l1[0].entries[source]))

    found = judged(shelf, tmp_path, lose_two, swap)
    assert found.status in ("changed", "partly")
    assert any(rule == "b" for rule, _ in kinds(found))


def test_an_undo_that_is_not_exact_is_caught(shelf: Shelf, tmp_path: Path) -> None:
    def longer(image: Path, d: Damager) -> None:
        with open(image, "ab") as file:
            file.write(b"\0")

    assert ("d", "undo is not exact") in kinds(judged(shelf, tmp_path, lose_table, relink, spoil=longer))


def test_doing_nothing_where_qemu_repairs_is_caught(shelf: Shelf, tmp_path: Path) -> None:
    def no_refcount_table(image: Path, d: Damager) -> None:
        with Editor(image) as editor:
            editor.set("refcount_table_clusters", 0)

    found = judged(shelf, tmp_path, no_refcount_table, nothing, how="nothing")
    assert ("e", "behind, nothing done") in kinds(found)
    assert found.by_qemu > found.after


def test_a_traceback_and_a_change_after_a_refusal_are_caught(shelf: Shelf, tmp_path: Path) -> None:
    def fail(image: Path, d: Damager) -> None:
        raise KeyError("by hand")

    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    assert ("x", "traceback") in kinds(judged(shelf, tmp_path / "one", lose_table, fail))
    assert ("x", "refused but changed") in kinds(judged(shelf, tmp_path / "two", lose_table, trim, how="refused"))


@pytest.mark.parametrize("name", sorted(KINDS))
def test_each_kind_of_damage_changes_an_image_or_says_that_it_cannot(shelf: Shelf, tmp_path: Path, name: str) -> None:
    built, pristine, _ = shelf.take(BASES[SUBJECT])
    path = tmp_path / IMAGE
    for seed in range(5):
        shutil.copy(built.image, path)
        said = KINDS[name].work(Damager(path, pristine, built.image, random.Random(seed)))
        assert said is None or path.read_bytes() != built.image.read_bytes()


def test_a_trial_is_the_same_again(shelf: Shelf, tmp_path: Path) -> None:
    one, two = (run_trial(shelf, 5, 3, tmp_path) for _ in range(2))
    assert (one.words, one.judged.status, one.judged.after) == (two.words, two.judged.status, two.judged.after)


@pytest.mark.xfail(reason="the preservation proof is not in every plan yet", strict=False)
def test_a_short_campaign_breaks_no_rule(shelf: Shelf, tmp_path: Path) -> None:
    trials = list(run_all(shelf.root, shelf.only, tmp_path, 12, range(25), 1))
    found = figures(trials) | {"seconds": 0}
    assert not found["violations"], table(found)
