"""`qwb undo`: take a repair back, bit for bit."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from workbench.cli.common import debug_option, handle_errors, image_argument, json_option, print_json
from workbench.errors import ArgumentError
from workbench.render.text import printable


@click.command(
    "undo",
    epilog="Exit code: 0 when it was undone (what the image is then is said: after --force it may be a mixture);"
    " 1 when it was refused.",
)
@image_argument
@click.option("-l", "--list", "only_list", is_flag=True, help="List the repairs of IMAGE, their state and their sizes.")
@click.option("--session", "number", type=int, metavar="N", help="Undo this session instead of the newest one.")
@click.option(
    "--prune",
    is_flag=True,
    help="Undo nothing: drop stored bytes that are no longer needed. Repairs that were taken back or rolled back go, and of"
    " those that stand all but the newest (see --keep).",
)
@click.option(
    "--keep",
    type=click.IntRange(min=0),
    default=1,
    show_default=True,
    metavar="N",
    help="With --prune: how many of the repairs that stand stay undoable.",
)
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
@click.option("--force", is_flag=True, help="Undo although the image has changed since (old and new get mixed).")
@click.option(
    "--case", type=click.Path(path_type=Path), metavar="FILE", help="Case file to use instead of IMAGE.qwb-case."
)
@json_option
@debug_option
@handle_errors
def command(
    image: Path, only_list: bool, number: int | None, prune: bool, keep: int, yes: bool, force: bool, case: Path | None,
    as_json: bool,
) -> None:  # fmt: skip
    """Undo the newest repair of IMAGE (or --session N): its bytes and its length are what they were."""
    from workbench.repair import recovery, undo
    from workbench.repair.casefile import State

    if only_list + prune + (number is not None) > 1:
        raise ArgumentError("--list, --prune and --session exclude each other")
    if only_list:
        _list(image, case, as_json)
        return
    if prune:
        _prune(image, case, keep, yes, as_json)
        return
    found = undo.sessions(image, case=case)
    cut = next((each for each in found if each.state.interrupted), None)
    if cut is not None:
        _confirm(f"Session {cut.id} ({cut.title}) was interrupted. Roll it back?", yes)
        ended = recovery.recover(image, case=case, force=force)
        session, exact = (ended.session, ended.faithful) if ended else (cut, True)
        said = str(ended) if ended else "nothing was left to do"
    else:
        done = [each for each in found if each.state is State.DONE]
        if not done:
            raise ArgumentError("nothing to undo: no repair is recorded", path=str(image))
        chosen = next((each for each in done if each.id == number), done[-1]) if number is not None else done[-1]
        _confirm(f"Undo session {chosen.id} of {chosen.when} ({chosen.title})?", yes)
        undone = undo.undo(image, number, case=case, force=force)
        session, exact, said = undone.session, undone.faithful, str(undone)
    if as_json:
        print_json(
            {
                "filename": str(image),
                "session": session.id,
                "state": session.state.value,
                "as-before": exact,
                "what-is-true": said,
            }
        )
    else:
        click.echo(f"session {session.id} is {session.state.value}: {image}: {said}")


def _list(image: Path, case: Path | None, as_json: bool) -> None:
    """What is recorded, and what it takes."""
    from workbench.repair.casefile import CaseFile
    from workbench.repair.cases import case_path
    from workbench.units import format_size

    where = case_path(image, case)
    if not where.exists():
        if as_json:
            print_json([])
        else:
            click.echo("no repairs are recorded for this image")
        return
    with CaseFile(where, create=False, readonly=True) as casefile:
        found, sizes, total = casefile.sessions(), casefile.sizes(), casefile.size()
    if as_json:
        print_json(
            [
                {
                    "session": s.id,
                    "state": s.state.value,
                    "title": s.title,
                    "when": s.when,
                    "edits": s.edits,
                    "bytes": sizes[s.id],
                    "case-file": str(where),
                    "case-file-bytes": total,
                }
                for s in found
            ]
        )
        return
    for each in found:
        title = printable(each.title)
        click.echo(f"{each.id:>3}  {each.when}  {each.state.value:<12} {format_size(sizes[each.id]):>10}  {title}")
    if not found:
        click.echo("no repairs are recorded for this image")
    click.echo(f"case file {printable(str(where))}: {format_size(total)} ({total} bytes)")


def _prune(image: Path, case: Path | None, keep: int, yes: bool, as_json: bool) -> None:
    """Drop what is old, after a question that says what can then no longer be undone."""
    from workbench.repair.casefile import State
    from workbench.repair.cases import open_case
    from workbench.units import format_size, many

    with open_case(image, case, create=False) as casefile:
        old, sizes, before = casefile.old_sessions(keep), casefile.sizes(), casefile.size()
        if old:
            standing = sum(each.state is State.DONE for each in old)
            bytes_ = format_size(sum(sizes[each.id] for each in old))
            lost = (
                f"; {many(standing, 'repair')} that still stand{'s' * (standing == 1)} can then not be undone"
                if standing
                else ""
            )
            _confirm(f"Drop {many(len(old), 'session')} ({bytes_}){lost}?", yes)
        dropped = casefile.prune(keep)
        after = casefile.size()
    if as_json:
        print_json(
            {"filename": str(image), "dropped": [each.id for each in dropped], "freed-bytes": max(0, before - after)}
        )
    elif not dropped:
        click.echo("nothing to drop: all that is stored can still be undone")
    else:
        names = ", ".join(str(each.id) for each in dropped)
        click.echo(f"dropped session {names}: {format_size(max(0, before - after))} given back")


def _confirm(question: str, yes: bool) -> None:
    if yes:
        return
    if not sys.stdin.isatty():
        raise ArgumentError("nobody to ask: standard input is no terminal", hint="add --yes")
    if not click.confirm(question, default=True, err=True):
        click.echo("nothing was written", err=True)
        raise click.exceptions.Exit(1)
