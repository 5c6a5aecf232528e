"""`qwb dd`: copy a window of a disk into a new image."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import click

from workbench.cli.common import (
    backing_option,
    complain,
    debug_option,
    force_share_option,
    handle_errors,
    json_option,
    mind_interrupted,
    no_backing_option,
    print_json,
    secret_option,
)
from workbench.cli.progress import progress_line
from workbench.cli.sources import FORMATS, open_source, plain_files_only
from workbench.errors import ArgumentError

SCHEMA: Final = 1
_INT_MAX: Final = (1 << 31) - 1
_INT64_MAX: Final = (1 << 63) - 1
_OPERANDS: Final = ("if", "of", "bs", "count", "skip")

HELP = """Copy the disk INPUT, backing files included, block by block into the new image OUTPUT, zeros too.

\b
  if=INPUT    what is read
  of=OUTPUT   what is written; it takes its name only when it is complete
  bs=SIZE     bytes of a block (512)
  skip=N      leave out the first N blocks
  count=N     read no further than N blocks from the start of INPUT (those that skip leaves out are among them)

OUTPUT is never a file that is read for this. `qwb convert` leaves holes for zeros.
"""


@click.command("dd", help=HELP, epilog="Exit code: 0; 1 on errors.")
@click.argument("operands", metavar="if=INPUT of=OUTPUT [bs=SIZE] [count=N] [skip=N]", nargs=-1)
@click.option("-f", "--format", "source_format", metavar="FMT", help="Format of INPUT, qcow2 or raw (default: look).")
@click.option(
    "-O", "--output-format", "target_format", metavar="FMT", default="raw", show_default=True, help="raw or qcow2."
)
@backing_option
@no_backing_option
@force_share_option
@secret_option
@plain_files_only
@json_option
@debug_option
@handle_errors
def command(
    operands: tuple[str, ...],
    source_format: str | None,
    target_format: str,
    backing: Path | None,
    no_backing: bool,
    force_share: bool,
    secret_file: Path | None,
    as_json: bool,
) -> None:
    from workbench.engine.operations.dd import copy_window, window_of

    given = _given(operands)
    if "if" not in given or "of" not in given:
        raise ArgumentError("Must specify both input and output files")
    source, target = Path(given["if"]), Path(given["of"])
    block = _number(given, "bs", 512, 1, _INT_MAX)
    count = _number(given, "count", None, 0, _INT64_MAX)
    skip = _number(given, "skip", 0, 0, _INT64_MAX)
    assert block is not None and skip is not None
    with (
        open_source(
            source,
            source_format,
            secret_file=secret_file,
            force_share=force_share,
            backing=backing,
            no_backing=no_backing,
            bytes_count=True,
        ) as opened,
        progress_line() as progress,
    ):
        if target_format not in FORMATS:
            raise ArgumentError(f"format {target_format!r} cannot be written: raw and qcow2 can")
        mind_interrupted(target, writable=True)
        window = window_of(opened.source.size, block=block, count=count, skip=skip)
        copy_window(opened.source, window, target, qcow2=target_format == "qcow2", progress=progress)
    if window.beyond:
        complain(f"{source}: cannot skip to specified offset")
    if as_json:
        print_json(
            {
                "schema": SCHEMA,
                "filename": str(target),
                "format": target_format,
                "virtual-size": window.target_size,
                "source": {"filename": str(source), "format": opened.format, "virtual-size": opened.source.size},
                "start": window.start,
                "bytes": window.end - window.start,
            }
        )


def _given(operands: tuple[str, ...]) -> dict[str, str]:
    """Operands by name, the last of a name counts. ArgumentError for others."""
    found: dict[str, str] = {}
    for each in operands:
        name, separator, value = each.partition("=")
        if not separator or name not in _OPERANDS:
            raise ArgumentError(f"unrecognized operand {name}", hint="see `qwb dd --help`")
        found[name] = value
    return found


def _number(given: dict[str, str], name: str, default: int | None, low: int, high: int) -> int | None:
    from workbench.units import parse_size

    if name not in given:
        return default
    try:
        value = parse_size(given[name])
    except (ValueError, OverflowError) as error:
        raise ArgumentError(f"Invalid {name} specified: {given[name]!r} (such as 512, 64k, 1M)") from error
    if not low <= value <= high:
        raise ArgumentError(f"Invalid {name} specified. Must be between {low} and {high}.")
    return value
