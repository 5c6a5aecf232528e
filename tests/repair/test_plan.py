"""Plans: made on an overlay, checked there, explained, saved, refused when worse; and the guided flow."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.conftest import BaseImages
from workbench.check.problems import Tier
from workbench.errors import ArgumentError, ImageError
from workbench.repair.cases import case_path
from workbench.repair.edits import describe, heads, plan_lines
from workbench.repair.orphans import export_orphans
from workbench.repair.plan import hand_edit, make_plan, read_change
from workbench.repair.policy import Mode, Policy
from workbench.repair.preserve import PlanRefused
from workbench.repair.session import Guide
from workbench.storage.file import FileStorage

pytestmark = pytest.mark.oracle


@pytest.fixture
def wounded(base_images: BaseImages, tmp_path: Path) -> Path:
    return base_images.copy(base_images.damaged("l2-crosslink-free"), tmp_path / "work")


def test_planning_writes_nothing(wounded: Path) -> None:
    before, stat = wounded.read_bytes(), wounded.stat()
    with Guide(wounded) as guide:
        guide.look()
        plan = guide.plan()
        assert not plan.empty and plan.after.clean
        list(plan.edits())
    assert wounded.read_bytes() == before and wounded.stat().st_mtime_ns == stat.st_mtime_ns
    assert not case_path(wounded).exists()


def test_each_step_has_its_reason_its_bytes_and_their_meaning(wounded: Path) -> None:
    with Guide(wounded) as guide:
        plan = guide.plan()
        step = next(each for each in plan.steps if each.code == "DATA-CROSS-LINKED" and each.kind == "l2")
        assert step.guest and step.before != step.after and step.tier.value == "judgement"
        fields = {
            name: (old, new) for name, old, new in describe(step, guide.plan().result_after.meta.geometry, heads(plan))
        }
        assert any("offset" in name for name in fields)
        lines = plan_lines(plan)
    assert lines[0].startswith("now:") and lines[1] == "after: clean"
    assert any("DATA-CROSS-LINKED" in line for line in lines)


def test_a_saved_plan_applies_as_long_as_the_image_is_the_same(wounded: Path) -> None:
    old = wounded.read_bytes()
    with Guide(wounded) as guide:
        text = json.dumps(guide.plan().as_json())
        expected = guide.plan().overlay.read(0, 1 << 30)
        done = guide.apply(change=read_change(text))
        assert done.verdict is not None and done.verdict["corruptions"] == 0
        assert wounded.read_bytes() == expected
        with pytest.raises(ImageError, match="changed since the plan"):
            guide.apply(change=read_change(text))
        guide.undo()
    assert wounded.read_bytes() == old


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format": 9}', '{"format": 1, "edits": [{"offset": 0}]}'])
def test_what_is_no_plan_is_refused_in_one_line(text: str) -> None:
    with pytest.raises(ArgumentError, match="plan"):
        read_change(text)


def test_a_fix_that_writes_where_no_row_sends_it_is_stopped_and_taken_back(
    wounded: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from workbench.check.problems import Tier
    from workbench.repair import plan as module
    from workbench.repair.fixes import RULES
    from workbench.repair.fixes.base import Rule, codes
    from workbench.repair.workspace import Workspace

    def wreck(space: Workspace) -> None:
        new = space.append()
        space.put(new, b"x" * 64, code="DATA-CROSS-LINKED", title="in a cluster of its own", kind="data")
        space.put(space.meta.header.l1_table_offset, b"\xff" * 64, code="DATA-CROSS-LINKED", title="wreck", kind="l1")

    wrong = Rule("wreck", "Wreck", codes("DATA-CROSS-LINKED"), Tier.SAFE, wreck)
    with FileStorage.open(wounded) as storage:
        monkeypatch.setattr(module, "RULES", (wrong,))
        alone = make_plan(storage)
        monkeypatch.setattr(module, "RULES", (wrong, *RULES))
        beside = make_plan(storage)
    assert alone.empty and not alone.steps and any("no finding names" in note for note in alone.notes)
    assert beside.after.clean and not any(step.fix == "wreck" for step in beside.steps)


def test_only_named_problems_are_mended(base_images: BaseImages, tmp_path: Path) -> None:
    image = base_images.copy(base_images.damaged("l2-entry-reserved"), tmp_path / "work")
    with FileStorage.open(image) as storage:
        none = make_plan(storage, Policy(Mode.CODES, frozenset({"L1-ENTRY-RESERVED"})))
        some = make_plan(storage, Policy(Mode.CODES, frozenset({"L2-ENTRY-RESERVED"})))
    assert none.empty and none.after.corruptions == none.before.corruptions
    assert [step.code for step in some.steps] == ["L2-ENTRY-RESERVED"] and some.after.clean


def test_orphans_are_freed_only_when_told(base_images: BaseImages, tmp_path: Path) -> None:
    image = base_images.copy(base_images.damaged("l2-zeroed"), tmp_path / "work")
    with FileStorage.open(image) as storage:
        kept, freed = make_plan(storage), make_plan(storage, Policy(free_orphans=True))
        index = export_orphans(storage, kept.result_before, tmp_path / "out")
    assert kept.after.leaks == kept.after.orphans > 0 and kept.after.clean
    assert freed.tier is Tier.DESTRUCTIVE and kept.tier is not Tier.DESTRUCTIVE
    assert freed.after.leaks == 0
    rows = json.loads(index.read_text())["orphans"]
    assert sum(row["length"] for row in rows) == kept.after.orphans * 4096
    assert b"cluster" in (tmp_path / "out" / rows[0]["file"]).read_bytes()


def test_alternatives_change_what_the_guest_reads(base_images: BaseImages, tmp_path: Path) -> None:
    image = base_images.copy(base_images.damaged("l2-entry-past-eof"), tmp_path / "work")
    with Guide(image) as guide:
        first = guide.plan()
        guide.choose(choices={"entries": "zero"})
        second = guide.plan()
        assert first.after.corruptions == second.after.corruptions == 0
        assert {step.choice for step in first.steps} >= {"unallocated"}
        assert {step.choice for step in second.steps} >= {"zero"}
        with pytest.raises(ArgumentError):
            guide.choose(choices={"entries": "nonsense"})


def test_groups_are_questions_with_defaults(base_images: BaseImages, tmp_path: Path) -> None:
    image = base_images.copy(base_images.damaged("dirty-stale"), tmp_path / "work")
    with Guide(image) as guide:
        groups = {each.code: each for each in guide.look()}
    assert groups["REFCOUNT-ZERO"].default and groups["REFCOUNT-ZERO"].fixes[0].id == "refcounts"
    assert groups["IMAGE-DIRTY"].default


def test_a_hand_edit_is_journaled_and_undoable(wounded: Path) -> None:
    old = wounded.read_bytes()
    with Guide(wounded) as guide:
        change = hand_edit(guide.storage, 24, (1 << 20).to_bytes(8, "big"), "set the disk size")
        with pytest.raises(PlanRefused, match="the disk would end before it"):
            guide.apply(change=change)
        assert wounded.read_bytes() == old
        guide.choose(accept_loss=1 << 20)
        guide.apply(change=change)
        assert wounded.read_bytes()[24:32] == (1 << 20).to_bytes(8, "big")
        assert guide.history()[-1].title == "set the disk size"
        guide.undo()
    assert wounded.read_bytes() == old


def test_leaked_data_between_its_neighbours_is_linked_when_asked(base_images: BaseImages, tmp_path: Path) -> None:
    from sample_images.recipes import RECIPES
    from tests.repair.judging import read_disk

    image = base_images.copy(base_images.damaged("leaks-many"), tmp_path / "work")
    healthy = read_disk(base_images.get(RECIPES["leaks-many"].base), None)
    with Guide(image) as guide:
        guide.choose(choices={"relink": "data"})
        doubtful = guide.plan()
        assert not doubtful.accepted and doubtful.proof.gives_up.bytes == 0  # neighbours are evidence, no proof
        guide.choose(accept_loss=doubtful.proof.loss)
        plan = guide.plan()
        guide.apply()
    now = read_disk(image, None)
    assert plan.before.leaks > 10 * plan.after.leaks
    assert sum(now[at] != data for at, data in healthy.items()) <= 2  # the first or last one has only one neighbour
