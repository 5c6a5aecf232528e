"""`qwb check`: every problem of an image, counted as qemu-img counts, with causes."""

from __future__ import annotations

from pathlib import Path

import click

from workbench.cli.common import (
    debug_option,
    force_share_option,
    handle_errors,
    image_argument,
    json_option,
    open_storage,
    print_json,
    print_lines,
)
from workbench.cli.progress import StatusLine

HELP = """Look for corruptions and leaks in IMAGE, say what most likely caused them, and which leaks may be lost data.

\b
Exit code, as `qemu-img check`:
  0  clean
  1  could not be checked, or not all of it
  2  corruption
  3  leaks only

Nothing is written. --json is a superset of `qemu-img check --output=json`. `qwb problems CODE` explains a finding.
"""


@click.command("check", help=HELP)
@image_argument
@json_option
@click.option("--fast", is_flag=True, help="Do not look into leaked clusters.")
@click.option("--deep", is_flag=True, help="Look at all content that nothing refers to, however much it is.")
@click.option("-q", "--quiet", is_flag=True, help="Print nothing; only the exit code tells.")
@click.option("--limit", type=click.IntRange(0), default=100, help="Most findings to list (default: 100; 0: all).")
@click.option(
    "--secret-file",
    type=click.Path(path_type=Path),
    hidden=True,
    help="Accepted and not needed: no guest data is read.",
)
@force_share_option
@debug_option
@handle_errors
def command(
    image: Path,
    as_json: bool,
    fast: bool,
    deep: bool,
    quiet: bool,
    limit: int,
    secret_file: Path | None,
    force_share: bool,
) -> None:
    from workbench.check.companions import check_file

    with open_storage(image, force_share=force_share) as storage:
        with StatusLine() as line:
            result = check_file(
                storage, fast=fast, deep=deep, progress=lambda now: line.share(now.done, now.total, now.phase)
            )
        if as_json:
            print_json(result.as_json(str(image), limit=limit or None))
        elif not quiet:
            from workbench.render.check_report import report

            print_lines(report(result, limit=limit or None))
    raise click.exceptions.Exit(result.exit_code)
