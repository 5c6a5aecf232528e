"""`qwb undo`: take a repair back, bit for bit."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from workbench.cli.common import debug_option, handle_errors, image_argument, json_option, print_json
from workbench.errors import ArgumentError


@click.command("undo", epilog="Exit code: 0 when the image is what it was; 1 when it was refused.")
@image_argument
@click.option("-l", "--list", "only_list", is_flag=True, help="List the repairs of IMAGE and their state.")
@click.option("--session", "number", type=int, metavar="N", help="Undo this session instead of the newest one.")
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
@click.option("--force", is_flag=True, help="Undo although the image has changed since (old and new get mixed).")
@click.option(
    "--case", type=click.Path(path_type=Path), metavar="FILE", help="Case file to use instead of IMAGE.qwb-case."
)
@json_option
@debug_option
@handle_errors
def command(
    image: Path, only_list: bool, number: int | None, yes: bool, force: bool, case: Path | None, as_json: bool
) -> None:
    """Undo the newest repair of IMAGE (or --session N): its bytes and its length are what they were."""
    from workbench.repair import recovery, undo
    from workbench.repair.casefile import State

    found = undo.sessions(image, case=case)
    if only_list:
        if as_json:
            print_json(
                [
                    {"session": s.id, "state": s.state.value, "title": s.title, "when": s.when, "edits": s.edits}
                    for s in found
                ]
            )
        else:
            for each in found:
                click.echo(f"{each.id:>3}  {each.when}  {each.state.value:<12} {each.title}")
            if not found:
                click.echo("no repairs are recorded for this image")
        return
    cut = next((each for each in found if each.state.interrupted), None)
    if cut is not None:
        _confirm(f"Session {cut.id} ({cut.title}) was interrupted. Roll it back?", yes)
        ended = recovery.recover(image, case=case, force=force)
        session = ended.session if ended else cut
    else:
        done = [each for each in found if each.state is State.DONE]
        if not done:
            raise ArgumentError("nothing to undo: no repair is recorded", path=str(image))
        chosen = next((each for each in done if each.id == number), done[-1]) if number is not None else done[-1]
        _confirm(f"Undo session {chosen.id} of {chosen.when} ({chosen.title})?", yes)
        session = undo.undo(image, number, case=case, force=force)
    if as_json:
        print_json({"filename": str(image), "session": session.id, "state": session.state.value})
    else:
        click.echo(f"session {session.id} is {session.state.value}: {image} is what it was before")


def _confirm(question: str, yes: bool) -> None:
    if yes:
        return
    if not sys.stdin.isatty():
        raise ArgumentError("nobody to ask: standard input is no terminal", hint="add --yes")
    if not click.confirm(question, default=True, err=True):
        click.echo("nothing was written", err=True)
        raise click.exceptions.Exit(1)
