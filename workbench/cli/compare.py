"""`qwb compare`: whether two disks have the same content."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from workbench.cli.common import (
    complain,
    debug_option,
    force_share_option,
    friendly_errors,
    handle_errors,
    json_option,
    print_json,
    read_secret,
)
from workbench.cli.progress import percentage, progress_line
from workbench.cli.sources import OpenSource, open_source, plain_files_only, require_cache_mode
from workbench.errors import ArgumentError

if TYPE_CHECKING:
    from workbench.engine.operations.compare import Comparison

SCHEMA: Final = 1

HELP = """Compare the content of the disks FILENAME1 and FILENAME2, backing files included.

\b
Exit code, as qemu-img compare:
  0  identical
  1  different (or wrong usage)
  2  an image cannot be opened
  3  a mapping cannot be read
  4  data cannot be read

Images of different sizes are identical when the longer one has only zeros behind the end of the other. Nothing is written.
"""
_EXITS: Final = {"identical": 0, "content": 1, "size": 1, "status": 1, "unmapped": 3, "unreadable": 4}


@click.command("compare", help=HELP)
@click.argument("first", metavar="FILENAME1", type=click.Path(path_type=Path))
@click.argument("second", metavar="FILENAME2", type=click.Path(path_type=Path))
@click.option(
    "-f", "--a-format", "first_format", metavar="FMT", help="Format of FILENAME1, qcow2 or raw (default: look)."
)
@click.option("-F", "--b-format", "second_format", metavar="FMT", help="Format of FILENAME2.")
@click.option(
    "-T", "--cache", "cache", metavar="CACHE", default="writeback", help="A cache mode of QEMU's; makes no difference."
)
@click.option(
    "-s", "--strict", is_flag=True, help="Sizes, and what is allocated, zero and stored how, must be equal too."
)
@click.option("-p", "--progress", "shows_progress", is_flag=True, help="Print the percentage that is done.")
@click.option("-q", "--quiet", is_flag=True, help="Print nothing but errors.")
@click.option(
    "--secret-file",
    "secret_files",
    type=click.Path(path_type=Path),
    metavar="FILE",
    multiple=True,
    help="File with the passphrase of both disks ('-': standard input); given twice, of the first and of the second.",
)
@force_share_option
@plain_files_only
@json_option
@debug_option
@handle_errors
def command(
    first: Path,
    second: Path,
    first_format: str | None,
    second_format: str | None,
    cache: str,
    strict: bool,
    shows_progress: bool,
    quiet: bool,
    secret_files: tuple[Path, ...],
    force_share: bool,
    as_json: bool,
) -> None:
    from workbench.engine.operations.compare import compare

    with contextlib.ExitStack() as stack:
        with friendly_errors(2):
            require_cache_mode(cache, "source cache")
            opened = tuple(
                stack.enter_context(open_source(path, form, secret=secret, force_share=force_share, bytes_count=True))
                for path, form, secret in zip(
                    (first, second), (first_format, second_format), _secrets(secret_files), strict=True
                )
            )
        prints = shows_progress and not quiet and not as_json
        progress = stack.enter_context(percentage() if prints else progress_line())
        result = compare(opened[0].source, opened[1].source, strict=strict, progress=progress)
        if as_json:
            print_json(_json(result, (first, second), opened))
        elif not quiet:
            _say(result)
        _complain(result, (first, second))
    raise click.exceptions.Exit(_EXITS[result.outcome.value])


def _secrets(files: tuple[Path, ...]) -> tuple[bytes | None, bytes | None]:
    """The passphrases of the first and the second disk."""
    if len(files) > 2:
        raise ArgumentError("--secret-file goes with one disk, or with each of the two")
    found = [read_secret(each) for each in files] or [None]
    return found[0], found[-1]


def _say(result: Comparison) -> None:
    """qemu-img's words."""
    from workbench.engine.operations.compare import Outcome

    if result.sizes[0] != result.sizes[1] and result.common_part_is_equal:
        click.echo("Warning: Image size mismatch!")
    finding = result.finding
    if finding is None:
        click.echo("Images are identical.")
    elif finding.outcome is Outcome.CONTENT:
        click.echo(f"Content mismatch at offset {finding.offset}!")
    elif finding.outcome is Outcome.SIZE:
        click.echo("Strict mode: Image size mismatch!")
    elif finding.outcome is Outcome.STATUS:
        click.echo(f"Strict mode: Offset {finding.offset} block status mismatch!")


def _complain(result: Comparison, names: tuple[Path, Path]) -> None:
    """The line of an error, on stderr."""
    from workbench.engine.operations.compare import Outcome

    finding = result.finding
    if finding is None or finding.side is None:
        return
    name = names[finding.side]
    if finding.outcome is Outcome.UNMAPPED:
        complain(f"Sector allocation test failed for {name}: {finding.error}")
    else:
        complain(f"Error while reading offset {finding.offset} of {name}: {finding.error}")


def _json(result: Comparison, names: tuple[Path, Path], opened: tuple[OpenSource, ...]) -> dict[str, Any]:
    images = [
        {"filename": str(name), "format": each.format, "virtual-size": size}
        for name, each, size in zip(names, opened, result.sizes, strict=True)
    ]
    out: dict[str, Any] = {"schema": SCHEMA, "images": images, "outcome": result.outcome.value}
    out["identical"] = result.finding is None
    out["size-mismatch"] = result.sizes[0] != result.sizes[1]
    finding = result.finding
    if finding is not None:
        out["offset"] = finding.offset
        if finding.side is not None:
            out["error"] = {"filename": str(names[finding.side]), "what": str(finding.error)}
    return out
