"""`qwb samples`: the shipped sample images."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from workbench.cli.common import debug_option, handle_errors, json_option, print_json, print_lines
from workbench.errors import ArgumentError

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

    from sample_images import Sample


def _complete(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    from click.shell_completion import CompletionItem

    from sample_images import load_manifest

    return [CompletionItem(s.name, help=s.title) for s in load_manifest() if s.name.startswith(incomplete)]


@click.command("samples")
@click.argument("name", required=False, shell_complete=_complete)
@click.argument("destination", required=False, type=click.Path(path_type=Path))
@json_option
@debug_option
@handle_errors
def command(name: str | None, destination: Path | None, as_json: bool) -> None:
    """List the shipped sample images, say what NAME shows, or copy it out to DESTINATION (a folder or a file name)."""
    from sample_images import copy_out, find_sample, load_manifest

    if name is None:
        samples = load_manifest()
        if as_json:
            print_json([_json(sample) for sample in samples])
        else:
            print_lines(_list(samples))
        return
    try:
        sample = find_sample(name)
    except KeyError:
        raise ArgumentError(f"there is no sample {name!r}", hint="`qwb samples` lists them") from None
    if destination is None:
        if as_json:
            print_json(_json(sample))
        else:
            print_lines(_describe(sample))
        return
    try:
        copied = copy_out(name, destination)
    except FileExistsError as error:
        raise ArgumentError(str(error), hint="choose another name or remove it first") from error
    if as_json:
        print_json(_json(sample) | {"copied-to": str(copied)})
    else:
        click.echo(f"{copied}: {sample.title}")


def _list(samples: tuple[Sample, ...]) -> list[str]:
    from workbench.render.tables import table
    from workbench.render.text import clip

    width = max(60, shutil.get_terminal_size((120, 24)).columns)
    lines: list[str] = []
    for title, healthy in (("Healthy", True), ("Damaged", False)):
        rows = [(each.name, each.title) for each in samples if each.healthy is healthy]
        lines += [*([""] if lines else []), title]
        lines += [clip(line, width) for line in table((), rows, indent="  ")]
    return [*lines, "", "Copy one out: qwb samples NAME FOLDER"]


def _describe(sample: Sample) -> list[str]:
    from workbench.render.tables import pairs

    rows = [
        ("shows", sample.shows),
        ("wrong", sample.wrong or "nothing: it is healthy"),
        ("look at", sample.look_at),
        ("file", str(sample.path)),
    ]
    if sample.companions:
        rows.append(("needs", ", ".join(sample.companions)))
    if sample.passphrase is not None:
        rows.append(("passphrase", sample.passphrase))
    return [f"{sample.name}: {sample.title}", *pairs(rows)]


def _json(sample: Sample) -> dict[str, Any]:
    return {
        "name": sample.name,
        "title": sample.title,
        "healthy": sample.healthy,
        "shows": sample.shows,
        "wrong": sample.wrong,
        "look-at": sample.look_at,
        "path": str(sample.path),
        "companions": list(sample.companions),
        "passphrase": sample.passphrase,
    }
