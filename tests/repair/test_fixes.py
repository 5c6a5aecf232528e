"""The fixes as data: each answers known problems, and every problem that can be fixed has its fix."""

from __future__ import annotations

from pathlib import Path

import pytest

from workbench.check.problems import PROBLEMS, Tier
from workbench.repair.fixes import FINISH, RULES, rules_for

UNCATALOGUED = {
    "COMPRESSED-UNREADABLE": "only on request, and only where the check looked",
}


def test_every_code_that_a_fix_answers_is_in_the_catalogue() -> None:
    answered = set().union(*(rule.codes for rule in (*RULES, FINISH)))
    assert answered - set(PROBLEMS) - set(UNCATALOGUED) == set()


def test_every_problem_that_names_fixes_has_one_here() -> None:
    missing = [code for code, problem in PROBLEMS.items() if problem.fixes and not rules_for(code)]
    assert missing == []


def test_fix_ids_are_unique_and_titles_are_for_people() -> None:
    ids = [rule.id for rule in (*RULES, FINISH)]
    assert len(ids) == len(set(ids))
    assert all(rule.title[0].isupper() and not rule.title.endswith(".") for rule in RULES)


def test_what_drops_something_never_runs_by_default() -> None:
    for rule in RULES:
        assert rule.on_request or rule.tier is not Tier.DESTRUCTIVE
        assert not rule.alternatives or rule.alternatives[0].tier is not Tier.DESTRUCTIVE


@pytest.mark.parametrize("package", ["workbench.tui", "textual", "workbench.cli"])
def test_repair_knows_nothing_of_its_faces(package: str) -> None:
    root = Path(__file__).parents[2] / "workbench" / "repair"
    for path in root.rglob("*.py"):
        assert f"import {package}" not in path.read_text() and f"from {package}" not in path.read_text()


def test_every_fix_that_the_catalogue_names_is_carried_out_by_rules() -> None:
    from workbench.check import fixes as named
    from workbench.check.problems import Fix
    from workbench.repair.fixes.catalogue import IMPLEMENTED

    ids = {each.id for each in vars(named).values() if isinstance(each, Fix)}
    assert set(IMPLEMENTED) == ids
    rules = {rule.id: {each.id for each in rule.alternatives} | {""} for rule in (*RULES, FINISH)}
    for carried in IMPLEMENTED.values():
        assert all(way in rules[rule] for rule, way in carried)
