"""`qwb repair` and `qwb undo` as commands: exit codes, JSON, refusals in one line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from sample_images.qemu import check as qemu_check
from tests.conftest import BaseImages
from workbench.cli.repair import command as repair_command
from workbench.cli.undo import command as undo_command

pytestmark = pytest.mark.oracle


def repair(*args: object) -> Result:
    return CliRunner().invoke(repair_command, [str(each) for each in args])


def undo(*args: object) -> Result:
    return CliRunner().invoke(undo_command, [str(each) for each in args])


@pytest.fixture
def image(base_images: BaseImages, tmp_path: Path) -> Path:
    return base_images.copy(base_images.damaged("l1-entry-past-eof"), tmp_path / "work")


def test_repair_all_then_undo(image: Path) -> None:
    before = image.read_bytes()
    done = repair(image, "--all", "--yes")
    assert done.exit_code == 0, done.output
    assert "checked again: clean" in done.stdout and "qwb undo" in done.stdout
    assert qemu_check(image).code == 0
    assert "done" in undo(image, "--list").stdout
    assert undo(image, "--yes").exit_code == 0
    assert image.read_bytes() == before
    again = undo(image, "--yes")
    assert again.exit_code == 1 and again.stderr.count("\n") == 1 and "nothing to undo" in again.stderr


def test_dry_run_changes_nothing_and_its_json_can_be_applied(image: Path, tmp_path: Path) -> None:
    before = image.read_bytes()
    shown = repair(image, "--all", "--dry-run", "--json")
    assert shown.exit_code == 0 and image.read_bytes() == before
    plan = json.loads(shown.stdout)
    assert plan["after"]["corruptions"] == 0 and plan["steps"][0]["fields"]
    (tmp_path / "plan.json").write_text(shown.stdout)
    done = repair(image, "--apply-plan", tmp_path / "plan.json", "--yes")
    assert done.exit_code == 0, done.output
    assert qemu_check(image).code == 0
    stale = repair(image, "--apply-plan", tmp_path / "plan.json", "--yes")
    assert stale.exit_code == 1 and "changed since the plan" in stale.stderr


def test_json_has_qemu_imgs_names_for_what_was_fixed(base_images: BaseImages, tmp_path: Path) -> None:
    image = base_images.copy(base_images.damaged("refcount-zero-data"), tmp_path / "work")
    found = json.loads(repair(image, "--all", "--yes", "--json").stdout)
    assert found["corruptions-fixed"] == 2 and found["check-errors"] == 0
    assert "corruptions" not in found and "leaks" not in found


def test_exit_code_is_that_of_a_check_afterwards(base_images: BaseImages, tmp_path: Path) -> None:
    image = base_images.copy(base_images.damaged("l2-zeroed"), tmp_path / "work")
    kept = repair(image, "--all", "--yes")
    assert kept.exit_code == 3 and "kept" in kept.stdout
    refused = repair(image, "--all", "--yes", "--free-orphans")
    assert refused.exit_code == 1 and "gives up" in refused.stderr and refused.stderr.count("\n") == 1
    freed = repair(image, "--all", "--yes", "--free-orphans", "--accept-loss", "1M")
    assert freed.exit_code == 0 and qemu_check(image).code == 0


def test_without_a_terminal_it_asks_for_a_choice_in_words(image: Path) -> None:
    nobody = repair(image)
    assert nobody.exit_code == 1 and "--leaks, --all or --fix" in nobody.stderr
    unsure = repair(image, "--all")
    assert unsure.exit_code == 1 and "--yes" in unsure.stderr
    assert qemu_check(image).code == 2


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("--leaks", "--all"), "exclude each other"),
        (("--fix", "NO-SUCH-CODE"), "no problem has the code"),
        (("--all", "--choose", "entries"), "FIX=WAY"),
        (("--all", "--choose", "entries=nonsense"), "no alternative"),
        (("--apply-plan", "/nonexistent/plan"), "cannot be read"),
    ],
)
def test_wrong_usage_is_one_line(image: Path, args: tuple[str, ...], words: str) -> None:
    done = repair(image, *args)
    assert done.exit_code == 1 and words in done.stderr and done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("choice", "hint"),
    [
        ("relink=zzz", "its ways: best, data, none"),
        ("drop-bitmap=drop", "say bitmaps-in-use=drop or bitmaps=drop"),
        ("relink-l2=1", "say relink=best"),
        ("refcounts=1", "it needs no choice"),
        ("nothing=1", "fixes with several ways: "),
    ],
)
def test_a_choice_that_does_not_exist_leads_to_those_that_do(choice: str, hint: str, image: Path) -> None:
    done = repair(image, "--all", "--dry-run", "--choose", choice)
    assert done.exit_code == 1 and hint in done.stderr and done.stderr.count("\n") == 1


def test_the_choices_that_the_catalogue_names_are_taken(image: Path) -> None:
    from workbench.check.problems import PROBLEMS
    from workbench.cli.problems import command as problems_command
    from workbench.repair.fixes.catalogue import choice_of
    from workbench.repair.session import Guide

    named = {choice for each in PROBLEMS.values() for fix in each.fixes if (choice := choice_of(fix.id, each.code))}
    assert {"bitmaps-in-use=drop", "bitmaps-in-use=trust", "entries=zero"} <= named
    with Guide(image) as guide:
        for choice in named:
            guide.choose(choices=dict([choice.split("=")]))
    page = CliRunner().invoke(problems_command, ["BITMAP-IN-USE"]).stdout
    assert "[repair --fix BITMAP-IN-USE --choose bitmaps-in-use=drop]" in page


def test_to_writes_a_repaired_copy(image: Path) -> None:
    before, new = image.read_bytes(), image.with_name("new.qcow2")
    assert repair(image, "--all", "--yes", "--to", new).exit_code == 0
    assert image.read_bytes() == before and qemu_check(new).code == 0
    assert repair(image, "--all", "--yes", "--to", new).exit_code == 1


def test_an_interrupted_repair_is_rolled_back_first(image: Path) -> None:
    from workbench.repair.casefile import CaseFile, State
    from workbench.repair.cases import case_path
    from workbench.repair.session import Guide

    before = image.read_bytes()
    with Guide(image) as guide, CaseFile(case_path(image)) as casefile:
        change = guide.plan().change()
        session = casefile.begin(
            title="t",
            image=str(image),
            size_before=change.size_before,
            size_after=change.size_after,
            fingerprint=change.fingerprint,
            plan={},
            edits=change.edits(),
        )
        casefile.move(session.id, State.WRITING)
        first = next(iter(casefile.edits(session.id)))
    with open(image, "r+b") as file:
        file.seek(first.offset)
        file.write(first.new)
    done = repair(image, "--recover")
    assert done.exit_code == 0 and "rolled back" in done.stderr
    assert image.read_bytes() == before
    assert "nothing to recover" in repair(image, "--recover").stdout


def test_orphans_can_be_copied_out(base_images: BaseImages, tmp_path: Path) -> None:
    image = base_images.copy(base_images.damaged("l2-zeroed"), tmp_path / "work")
    before = image.read_bytes()
    done = repair(image, "--export-orphans", tmp_path / "out", "--json")
    assert done.exit_code == 0, done.output
    rows = json.loads(done.stdout)["orphans"]
    assert rows and all((tmp_path / "out" / row["file"]).stat().st_size == row["length"] for row in rows)
    assert image.read_bytes() == before


def test_other_commands_say_that_a_repair_was_interrupted(image: Path) -> None:
    from workbench.cli.info import command as info_command
    from workbench.repair.casefile import CaseFile
    from workbench.repair.cases import case_path
    from workbench.repair.session import Guide

    with Guide(image) as guide, CaseFile(case_path(image)) as casefile:
        change = guide.plan().change()
        casefile.begin(
            title="t",
            image=str(image),
            size_before=change.size_before,
            size_after=change.size_after,
            fingerprint=change.fingerprint,
            plan={},
            edits=change.edits(),
        )
    done = CliRunner().invoke(info_command, [str(image)])
    assert done.exit_code == 0 and "interrupted" in done.stderr and done.stderr.count("\n") == 1
