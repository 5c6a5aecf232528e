"""`qwb repair`: from findings to a healthy image, with every step shown, tried first, and undoable."""

from __future__ import annotations

import contextlib
import json
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

from workbench.cli.common import (
    complain,
    debug_option,
    handle_errors,
    image_argument,
    json_option,
    print_json,
    print_lines,
)
from workbench.cli.progress import StatusLine
from workbench.errors import ArgumentError
from workbench.render.text import printable
from workbench.units import many, parse_size

if TYPE_CHECKING:
    from workbench.engine.metadata import Metadata
    from workbench.repair.apply import Applied, Change
    from workbench.repair.casefile import Session
    from workbench.repair.plan import Plan, Verdict
    from workbench.repair.policy import Policy
    from workbench.repair.session import Group, Guide
    from workbench.storage.base import Storage


@click.command("repair", epilog="Exit code: what a check says afterwards (0 clean, 2 corruption, 3 leaks); 1 on errors. --dry-run: as simulated.")  # fmt: skip
@image_argument
@click.option("--leaks", is_flag=True, help="Only free leaked clusters that are waste.")
@click.option("--all", "everything", is_flag=True, help="Mend all that can be mended without losing anything.")
@click.option("--fix", "fix", multiple=True, metavar="CODE", help="Mend this problem (repeat; see `qwb problems`).")
@click.option("--choose", multiple=True, metavar="FIX=WAY", help="Take another way than a fix's default (repeat).")
@click.option("-n", "--dry-run", is_flag=True, help="Show the plan and what the image would be; change nothing.")
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
@click.option(
    "--to",
    "target",
    type=click.Path(path_type=Path),
    metavar="NEW",
    help="Leave IMAGE as it is; write a repaired copy.",
)
@click.option(
    "--accept-loss",
    default="0",
    metavar="BYTES",
    help="Agree to a repair that gives up, or cannot prove to keep, this much.",
)
@click.option("--free-orphans", is_flag=True, help="Free leaked clusters too that may hold lost guest data.")
@click.option(
    "--apply-plan", type=click.Path(path_type=Path), metavar="FILE", help="Carry out a plan saved by --dry-run --json."
)
@click.option(
    "--recover", is_flag=True, help="Only end an interrupted repair: roll it back (with --complete: finish it)."
)
@click.option("--complete", is_flag=True, help="Finish an interrupted repair instead of rolling it back.")
@click.option(
    "--force", is_flag=True, help="End an interrupted repair although something else wrote to the image since."
)
@click.option(
    "--export-orphans",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Only copy leaked clusters that may be guest data into DIR (made new), with a list of where they belong.",
)
@click.option(
    "--case", type=click.Path(path_type=Path), metavar="FILE", help="Case file to use instead of IMAGE.qwb-case."
)
@json_option
@debug_option
@handle_errors
def command(
    image: Path, leaks: bool, everything: bool, fix: tuple[str, ...], choose: tuple[str, ...], dry_run: bool, yes: bool,
    target: Path | None, accept_loss: str, free_orphans: bool, apply_plan: Path | None, recover: bool, complete: bool, force: bool,
    export_orphans: Path | None, case: Path | None, as_json: bool,
) -> None:  # fmt: skip
    """Repair IMAGE: plan, try on an overlay, show, confirm, write; `qwb undo` takes it back bit for bit.

    Without --leaks, --all or --fix it asks, one question for each group of like findings. Old and new bytes are stored
    in IMAGE.qwb-case before anything is written.
    """
    from workbench.repair.session import Guide

    if leaks + everything + bool(fix) + (apply_plan is not None) > 1:
        raise ArgumentError("--leaks, --all, --fix and --apply-plan exclude each other")
    try:
        accepted = parse_size(accept_loss)
    except ValueError as error:
        raise ArgumentError(f"--accept-loss: {error}") from error
    if export_orphans is not None:
        _export(image, export_orphans, as_json)
        return
    if target is not None:
        from workbench.repair.copying import require_new

        if recover:
            raise ArgumentError("--recover and --to exclude each other")
        require_new(target)
    else:
        _end_interrupted(image, case, recover=recover, complete=complete, force=force, dry_run=dry_run, yes=yes)
    if recover:
        return
    with (
        _locked(image) as (file, release),
        _as_ended(file, image, case, complete=complete, copying=target is not None) as storage,
        Guide(image, case=case, storage=storage) as guide,
    ):
        _mind_dependents(guide, target)
        if apply_plan is not None:
            guide.choose(accept_loss=accepted)
            _saved_plan(guide, apply_plan, release, as_json, yes, target)
            return
        interactive = not (leaks or everything or fix)
        _set_policy(guide, leaks, fix, choose, free_orphans)
        guide.choose(accept_loss=accepted)
        groups = guide.look()
        if interactive:
            _ask(guide, groups, dry_run)
        with StatusLine() as line:
            plan = guide.plan(on_phase=line.say, in_place=target is None)
        if not as_json:
            from workbench.repair.edits import plan_lines

            print_lines(map(printable, plan_lines(plan)))
        if dry_run or (plan.empty and target is None):
            _finish_dry(plan, as_json, dry_run)
            return
        plan.require_accepted()
        if not plan.empty:
            _confirm(plan, yes)
        if target is not None:
            _write_copy(plan, image, target, as_json)
            return
        release()
        done = _apply(guide)
        if not as_json:
            click.echo(f"\ndone: session {done.session.id} in {_case(image, case)}; `qwb undo {image}` takes it back")
        _report(image, plan, as_json)


def _write_copy(plan: Plan, image: Path, target: Path, as_json: bool) -> None:
    from workbench.repair.copying import repaired_copy

    path = repaired_copy(plan, target)
    _mind_other_files(plan.result_after.meta, image, path)
    if not as_json:
        what = "a copy" if plan.empty else "the repaired copy"
        click.echo(f"\nwrote {what} {path}; {image} is as it was")
    _report(path, plan, as_json)


# -- before the plan ---------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _locked(image: Path) -> Iterator[tuple[Any, Any]]:
    """The image open for reading under QEMU's locks, and what gives the locks (only) back."""
    from workbench.storage.file import FileStorage
    from workbench.storage.locks import LockMode, acquire

    with FileStorage.open(image) as storage, acquire(storage, LockMode.READ) as lock:
        yield storage, lock.release


@contextlib.contextmanager
def _as_ended(storage: Storage, image: Path, case: Path | None, *, complete: bool, copying: bool) -> Iterator[Storage]:
    """What a repair starts from. For a copy of an image whose repair was interrupted: the image as if that had been ended
    (rolled back, or with --complete carried out), while the image itself is left alone."""
    from workbench.repair import recovery
    from workbench.repair.casefile import CaseFile
    from workbench.repair.cases import case_path

    found = recovery.interrupted(image, case=case) if copying else None
    if found is None:
        yield storage
        return
    with CaseFile(case_path(image, case), create=False, readonly=True) as casefile:
        view = recovery.settled_view(storage, found, casefile, complete=complete)
    how = "carried out" if complete else "rolled back"
    complain(
        f"{image}: the repair of {found.when} was interrupted; the copy starts from it {how}, {image} stays as it is"
    )
    with contextlib.closing(view):
        yield view


def _mind_dependents(guide: Guide, target: Path | None) -> None:
    """Others that stand on the image see what a repair changes in it."""
    from workbench.repair.session import note_of_dependents

    note = note_of_dependents(guide.dependents()) if target is None else ""
    if note:
        complain(f"{guide.path}: {note} with --to")


def _export(image: Path, folder: Path, as_json: bool) -> None:
    from workbench.check import check
    from workbench.engine.metadata import load_metadata
    from workbench.repair.orphans import export_orphans

    with _locked(image) as (storage, _):
        result = check(load_metadata(storage))
        index = export_orphans(storage, result, folder)
    rows = json.loads(index.read_text())["orphans"]
    if as_json:
        print_json({"filename": str(image), "orphans": rows})
    else:
        size = sum(row["length"] for row in rows)
        click.echo(f"{many(len(rows), 'run')}, {size} bytes of possible guest data copied into {folder}; see {index}")


def _set_policy(guide: Guide, leaks: bool, fix: tuple[str, ...], choose: tuple[str, ...], free_orphans: bool) -> Policy:
    from workbench.check.problems import PROBLEMS
    from workbench.repair.policy import Mode

    codes = frozenset(code.upper() for each in fix for code in each.split(","))
    for code in codes - set(PROBLEMS):
        raise ArgumentError(f"no problem has the code {code}", hint="`qwb problems` lists them")
    choices = {}
    for each in choose:
        name, sign, way = each.partition("=")
        if not sign:
            raise ArgumentError(f"--choose wants FIX=WAY, not {each!r}")
        choices[name] = way
    mode = Mode.LEAKS if leaks else Mode.CODES if codes else Mode.ALL
    return guide.choose(mode=mode, codes=codes, choices=choices, free_orphans=free_orphans)


def _ask(guide: Guide, groups: tuple[Group, ...], dry_run: bool) -> None:
    """One question for each group of like findings."""
    from workbench.check.problems import Severity
    from workbench.repair.policy import Mode

    if not sys.stdin.isatty():
        if dry_run:
            return
        raise ArgumentError("nobody to ask: standard input is no terminal", hint="say --leaks, --all or --fix CODE")
    chosen: set[str] = set()
    offered = [each for each in groups if each.fixes and each.severity is not Severity.NOTE]
    for each in offered:
        words = f"{each.title} ({each.count}). {each.meaning} {each.guest_impact}"
        click.echo("\n" + textwrap.fill(words, 100), err=True)
        tier = each.tier.value if each.tier else "safe"
        if click.confirm(f"  repair it? (risk: {tier})", default=each.default, err=True):
            chosen.add(each.code)
            for rule in each.fixes:
                if len(rule.alternatives) > 1 and rule.id not in guide.policy.choices:
                    for way in rule.alternatives:
                        click.echo(f"    {way.id}: {way.title}: {way.consequence}", err=True)
                    answer = click.prompt(
                        "  which",
                        type=click.Choice([way.id for way in rule.alternatives]),
                        default=rule.default,
                        err=True,
                    )
                    if answer != rule.default:
                        guide.choose(choices={rule.id: answer})
    if len(chosen) < len(offered):
        guide.choose(mode=Mode.CODES, codes=frozenset(chosen))


def _end_interrupted(
    image: Path, case: Path | None, *, recover: bool, complete: bool, force: bool, dry_run: bool, yes: bool
) -> None:
    """A repair that was cut off comes first: rolled back, unless the person says otherwise."""
    from workbench.repair import recovery
    from workbench.repair.session import recheck

    found: Session | None
    try:
        found = recovery.interrupted(image, case=case)
    except OSError as error:
        raise ArgumentError(f"{error.strerror}", path=str(image)) from error
    if found is None:
        if recover:
            click.echo("nothing to recover: no repair was interrupted")
        return
    if dry_run:
        raise ArgumentError(f"session {found.id} was interrupted", path=str(image), hint="end it first with --recover")
    finish = complete
    if sys.stdin.isatty() and not (recover or yes or complete):
        click.echo(f"The repair of {found.when} ({found.title}) was interrupted.", err=True)
        finish = (
            click.prompt(
                "roll it back, or complete it", type=click.Choice(["back", "complete"]), default="back", err=True
            )
            == "complete"
        )
    ended = recovery.recover(image, complete=finish, case=case, force=force, recheck=recheck(None))
    if ended is not None:
        complain(f"{image}: the interrupted session {ended.session.id} was {ended}")


# -- doing it ----------------------------------------------------------------------------------------------------------


def _confirm(plan: Plan, yes: bool) -> None:
    from workbench.check.problems import Tier

    if yes:
        return
    if not sys.stdin.isatty():
        raise ArgumentError("nobody to ask: standard input is no terminal", hint="add --yes to carry out the plan")
    if plan.tier is Tier.DESTRUCTIVE:
        if (
            click.prompt("This drops something. Type 'destroy' to go on", default="", show_default=False, err=True)
            != "destroy"
        ):
            _declined()
    elif not click.confirm("\nWrite this to the image?", default=False, err=True):
        _declined()


def _mind_other_files(meta: Metadata, image: Path, copy: Path) -> None:
    """A copy in another folder looks for its backing file there; a data file is not copied."""
    if meta.header.has("data_file"):
        complain(f"{copy}: has the same external data file as {image}: use only one of the two")
    name = meta.backing_name
    if name and not name.startswith("/") and image.resolve().parent != copy.resolve().parent:
        complain(f"{copy}: its backing file {name!r} is looked for in its own folder now")


def _declined() -> NoReturn:
    click.echo("nothing was written", err=True)
    raise click.exceptions.Exit(1)


def _saved_plan(guide: Guide, file: Path, release: Any, as_json: bool, yes: bool, target: Path | None) -> None:
    from workbench.repair.plan import read_change, verdict_of

    try:
        text = file.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise ArgumentError(f"the plan cannot be read: {error}", path=str(file)) from error
    change = replace(guide.confirmed(read_change(text)), accept_loss=guide.policy.accept_loss)
    if not yes:
        if not sys.stdin.isatty():
            raise ArgumentError("nobody to ask: standard input is no terminal", hint="add --yes to carry out the plan")
        if not click.confirm(f"Carry out {change.title}?", default=False, err=True):
            _declined()
    if target is not None:
        from workbench.check.companions import check_file
        from workbench.engine.metadata import load_metadata
        from workbench.repair.apply import require_proven, staged
        from workbench.repair.copying import write_copy
        from workbench.storage.file import FileStorage

        view = staged(guide.storage, change)
        require_proven(guide.storage, view, change)
        path = write_copy(view, target, like=guide.path)
        with FileStorage.open(path) as storage:
            meta = load_metadata(storage)
            _mind_other_files(meta, guide.path, path)
            verdict = verdict_of(check_file(storage)).as_json()
        if as_json:
            print_json({"filename": str(path), **verdict})
        else:
            click.echo(f"wrote the repaired copy {path}; {guide.path} is as it was; {json.dumps(verdict)}")
        raise click.exceptions.Exit(int(verdict["exit-code"]))
    release()
    done = _apply(guide, change)
    verdict = done.verdict or {}
    if as_json:
        print_json({"filename": str(guide.path), "session": done.session.id, **verdict})
    else:
        click.echo(f"done: session {done.session.id}; {json.dumps(verdict)}")
    raise click.exceptions.Exit(int(verdict.get("exit-code", 0)))


def _case(image: Path, case: Path | None) -> Path:
    from workbench.repair.cases import case_path

    return case_path(image, case)


def _finish_dry(plan: Plan, as_json: bool, dry_run: bool) -> None:
    if as_json:
        print_json(
            plan.as_json()
            if dry_run
            else {**plan.result_after.as_json(plan.base.path), **_fixed(plan, plan.after), **plan.proof.as_json()}
        )
    raise click.exceptions.Exit(_code(plan.after) if plan.accepted else 1)


def _apply(guide: Guide, change: Change | None = None) -> Applied:
    """Carry the plan out, or a change that was read from a file, with its phases told on stderr."""
    with StatusLine() as line:
        return guide.apply(change=change, progress=lambda now: line.say(now.phase.value, now.done, now.total))


def _code(verdict: Verdict) -> int:
    return verdict.exit_code if verdict.openable else 1


def _fixed(plan: Plan, after: Verdict) -> dict[str, int]:
    """qemu-img's names for what a repair did; left out when 0, as there."""
    out = {
        "corruptions-fixed": max(0, plan.before.corruptions - after.corruptions),
        "leaks-fixed": max(0, plan.before.leaks - after.leaks),
    }
    return {key: value for key, value in out.items() if value} | {"orphans-kept": after.orphans}


def _report(path: Path, plan: Plan, as_json: bool) -> None:
    """Check the file as it is now, say so, and exit with its code."""
    from workbench.check.companions import check_file
    from workbench.repair.plan import verdict_of
    from workbench.storage.file import FileStorage

    with FileStorage.open(path) as storage:
        result = check_file(storage)
        verdict = verdict_of(result, plan.after.orphans)
        if as_json:
            steps = plan.summary()
            done = {**_fixed(plan, verdict), **plan.proof.as_json()}
            print_json({**result.as_json(str(path)), **done, "steps": steps["steps"], "notes": steps["notes"]})
        else:
            click.echo(f"checked again: {printable(str(verdict))}")
    raise click.exceptions.Exit(_code(verdict))
