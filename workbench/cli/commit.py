"""`qwb commit`: write what an overlay holds into its backing file."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from workbench.cli.common import (
    complain,
    debug_option,
    handle_errors,
    json_option,
    mind_interrupted,
    print_json,
    read_secret,
    secret_option,
)
from workbench.cli.progress import percentage, progress_line
from workbench.cli.sources import format_of, plain_files_only, require_cache_mode
from workbench.errors import ArgumentError

if TYPE_CHECKING:
    from workbench.engine.operations.commit import Committed
    from workbench.engine.operations.commit_base import Base

SCHEMA: Final = 1
_INT64_MAX: Final = (1 << 63) - 1
_SHOWN: Final = 3

HELP = """Write the changes that the overlay FILENAME holds into its backing file, then empty FILENAME.

A smaller backing file grows to the size of FILENAME. FILENAME is emptied when the backing file has everything durably; it
shows the same disk at any moment. With -b the changes of all images above BASE go into BASE: those between BASE and FILENAME
are worth nothing afterwards, and FILENAME keeps its content.
"""


@click.command("commit", help=HELP, epilog="Exit code: 0; 1 on errors.")
@click.argument("names", metavar="FILENAME", nargs=-1, type=click.Path(path_type=Path))
@click.option(
    "-b", "--base", "base_name", metavar="BASE", help="An image further down in the backing chain; implies -d."
)
@click.option("-d", "--drop", is_flag=True, help="Leave FILENAME as it is: it is about to be removed.")
@click.option("-f", "--format", "given", metavar="FMT", help="Format of FILENAME; only qcow2 has backing files.")
@click.option("-t", "--cache", "cache", metavar="CACHE", default="writeback", help="A cache mode; makes no difference.")
@click.option("-r", "--rate", "rate", metavar="RATE", help="Write at most RATE bytes a second.")
@click.option("-p", "--progress", "shows_progress", is_flag=True, help="Print the percentage that is done.")
@click.option("-q", "--quiet", is_flag=True, help="Print nothing but errors.")
@secret_option
@plain_files_only
@json_option
@debug_option
@handle_errors
def command(
    names: tuple[Path, ...],
    base_name: str | None,
    drop: bool,
    given: str | None,
    cache: str,
    rate: str | None,
    shows_progress: bool,
    quiet: bool,
    secret_file: Path | None,
    as_json: bool,
) -> None:
    from workbench.engine.operations.commit import Throttle, commit
    from workbench.engine.operations.commit_base import open_for_commit

    if len(names) != 1:
        raise ArgumentError("Expecting one image file name", hint="see `qwb commit --help`")
    path = names[0]
    throttle = Throttle(_rate(rate))
    require_cache_mode(cache)
    if format_of(path, given, bytes_count=True) != "qcow2":
        raise ArgumentError("Image does not have a backing file", path=str(path))
    empty = not drop and base_name is None
    mind_interrupted(path, writable=empty)
    prints = shows_progress and not quiet and not as_json
    with contextlib.ExitStack() as stack:
        secret = read_secret(secret_file)
        top, base = stack.enter_context(
            open_for_commit(
                path,
                base_name,
                empty=empty,
                secret=secret,
                before_writing=lambda found: mind_interrupted(found, writable=True),
            )
        )
        progress = stack.enter_context(percentage() if prints else progress_line())
        others = _others(base, [layer.path for layer in top.chain])
        result = commit(top, base, empty=empty, throttle=throttle, progress=progress)
        snapshots = len(top.meta.snapshots)
        said = _json(path, base, result, emptied=empty)
    if not quiet:
        if snapshots:
            complain(
                f"{path}: its {snapshots} internal snapshots read what they left open from the changed backing file"
            )
        for each in others[:_SHOWN]:
            complain(f"{each}: stands on {base.written[0]} too, and shows its changes now")
    if as_json:
        print_json(said)
    elif not quiet:
        click.echo("Image committed.")


def _rate(text: str | None) -> int:
    from workbench.units import parse_size

    if text is None:
        return 0
    try:
        rate = parse_size(text)
    except (ValueError, OverflowError) as error:
        raise ArgumentError(f"Invalid rate limit specified: {text!r} (such as 500k, 10M)") from error
    if not 0 <= rate <= _INT64_MAX:
        raise ArgumentError(f"Invalid rate limit specified. Must be between 0 and {_INT64_MAX}.")
    return rate


def _others(base: Base, chain: list[str]) -> list[Path]:
    """Images beside the base that stand on it and are not of this chain."""
    from workbench.engine.naming import dependents
    from workbench.storage.identity import same_file

    found, _ = dependents(base.written[0])
    return [each for each in found if not any(same_file(each, own) for own in chain)]


def _json(path: Path, base: Base, result: Committed, *, emptied: bool) -> dict[str, Any]:
    return {
        "schema": SCHEMA,
        "filename": str(path),
        "base": {
            "filename": base.written[0],
            "format": base.format,
            "virtual-size": base.size,
            "previous-size": result.base_size_before,
        },
        "copied": result.copied,
        "zeroed": result.zeroed,
        "emptied": emptied,
    }
