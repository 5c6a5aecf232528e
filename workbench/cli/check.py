"""`qwb check`: every problem of an image, counted as qemu-img counts, with causes."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

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

if TYPE_CHECKING:
    from workbench.check import Progress

HELP = """Look for corruptions and leaks in IMAGE, say what most likely caused them, and which leaks may be lost data.

\b
Exit code, as `qemu-img check`:
  0  clean
  1  could not be checked, or not all of it
  2  corruption
  3  leaks only

Nothing is written. --json is a superset of `qemu-img check --output=json`. `qwb problems CODE` explains a finding.
"""


class _Meter:
    """Progress on stderr after a second, on a terminal only."""

    def __init__(self) -> None:
        self.started = time.monotonic()
        self.shown = 0.0
        self.wanted = sys.stderr.isatty()

    def __call__(self, progress: Progress) -> None:
        now = time.monotonic()
        spent = now - self.started
        if not self.wanted or spent < 1 or now - self.shown < 0.1 or not progress.total:
            return
        self.shown = now
        rate = progress.done / spent
        left = (progress.total - progress.done) / rate if rate else 0
        share = 100 * progress.done / progress.total
        text = f"{progress.phase}: {share:5.1f} %  {rate / (1 << 20):.0f} MiB/s  {left:.0f} s left"
        click.echo(f"\r{text:<70}", nl=False, err=True)

    def clear(self) -> None:
        """Wipe the line, if one was shown."""
        if self.shown:
            click.echo(f"\r{'':<70}\r", nl=False, err=True)


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

    meter = _Meter()
    with open_storage(image, force_share=force_share) as storage:
        try:
            result = check_file(storage, fast=fast, deep=deep, progress=meter)
        finally:
            meter.clear()
        if as_json:
            print_json(result.as_json(str(image), limit=limit or None))
        elif not quiet:
            from workbench.render.check_report import report

            print_lines(report(result, limit=limit or None))
    raise click.exceptions.Exit(result.exit_code)
