"""`qwb convert`: copy a disk's content into a new image."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from workbench.cli.common import complain, debug_option, handle_errors, image_options, mind_interrupted
from workbench.cli.progress import progress_line
from workbench.cli.sources import FORMATS, open_source
from workbench.errors import ArgumentError

if TYPE_CHECKING:
    from workbench.engine.convert import CopyResult

_SHOWN_LOSSES = 20


@click.command("convert", epilog="Exit code: 0; 1 on errors; 2 when --salvage had to leave something out.")
@click.argument("source", metavar="SRC", type=click.Path(path_type=Path))
@click.argument("target", metavar="DST", type=click.Path(path_type=Path))
@click.option("-f", "source_format", type=click.Choice(FORMATS), help="Format of SRC (default: look).")
@click.option("-O", "target_format", type=click.Choice(["raw", "qcow2"]), default="raw", show_default=True)
@click.option("-c", "compress", is_flag=True, help="Compress (qcow2 only).")
@click.option("-o", "options", multiple=True, metavar="K=V,…", help="Options of the new image, as for `qwb create`.")
@click.option("-n", "no_create", is_flag=True, help="DST exists (a device, a file): write into it (raw only).")
@click.option("--salvage", is_flag=True, help="Go on where SRC cannot be read: zeros there, and a list at the end.")
@image_options
@debug_option
@handle_errors
def command(
    source: Path,
    target: Path,
    source_format: str | None,
    target_format: str,
    compress: bool,
    options: tuple[str, ...],
    no_create: bool,
    salvage: bool,
    secret_file: Path | None,
    force_share: bool,
    no_backing: bool,
    backing: Path | None,
    snapshot: str | None,
) -> None:
    """Copy the content of the disk SRC, backing files included, to the new image DST.

    DST takes its name only when it is complete; holes and zeros stay holes. What cannot be read ends the copy, unless
    --salvage is given.
    """
    from workbench.engine.convert import convert_to_raw

    if target_format == "raw" and (compress or options):
        raise ArgumentError("-c and -o need -O qcow2")
    if target_format == "qcow2" and no_create:
        raise ArgumentError("-n works with -O raw only")
    mind_interrupted(target, writable=True)
    with (
        open_source(
            source,
            source_format,
            secret_file=secret_file,
            force_share=force_share,
            no_backing=no_backing,
            backing=backing,
            snapshot=snapshot,
            salvage=salvage,
        ) as opened,
        progress_line() as progress,
    ):
        if target_format == "raw":
            result = convert_to_raw(opened.source, target, in_place=no_create, salvage=salvage, progress=progress)
        else:
            from workbench.cli.create import parse_options
            from workbench.engine.convert_qcow2 import convert_to_qcow2

            chosen = parse_options(options)
            result = convert_to_qcow2(
                opened.source, target, options=chosen, compress=compress, salvage=salvage, progress=progress
            )
    _report_losses(result)


def _report_losses(result: CopyResult) -> None:
    if not result.lost:
        return
    for start, length, reason in result.lost[:_SHOWN_LOSSES]:
        complain(f"lost {length} bytes at guest offset {start:#x}: {reason}")
    total = sum(length for _, length, _ in result.lost)
    more = len(result.lost) - _SHOWN_LOSSES
    complain(f"{total} bytes could not be read and are zeros" + (f" ({more} more places)" if more > 0 else ""))
    raise click.exceptions.Exit(2)
