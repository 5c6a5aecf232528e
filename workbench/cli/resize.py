"""`qwb resize`: change the virtual size of an image."""

from __future__ import annotations

from pathlib import Path

import click

from workbench.cli.common import (
    backing_option,
    debug_option,
    handle_errors,
    image_argument,
    json_option,
    no_backing_option,
    open_image,
    print_json,
    secret_option,
)
from workbench.errors import ArgumentError
from workbench.units import format_size, parse_size


@click.command(name="resize", context_settings={"ignore_unknown_options": True})
@image_argument
@click.argument("size")
@click.option("--shrink", is_flag=True, help="Allow a smaller size: data behind it is lost.")
@click.option(
    "--preallocation",
    type=click.Choice(["off", "metadata", "falloc", "full"]),
    default="off",
    help="How far space for the new part is taken.",
)
@click.option("-q", "--quiet", is_flag=True, help="Print nothing.")
@no_backing_option
@backing_option
@secret_option
@json_option
@debug_option
@handle_errors
def command(
    image: Path,
    size: str,
    shrink: bool,
    preallocation: str,
    quiet: bool,
    no_backing: bool,
    backing: Path | None,
    secret_file: Path | None,
    as_json: bool,
) -> None:
    """Change the virtual size of IMAGE to SIZE bytes; +SIZE and -SIZE are relative (after `--`: qwb resize IMAGE -- -1G)."""
    from workbench.engine.naming import require_distinct_files
    from workbench.engine.write.prealloc import Preallocation

    try:
        amount = parse_size(size.lstrip("+-"))
    except ValueError as error:
        raise ArgumentError(f"{size!r} is not a size (such as 20G, +5G, -1G)") from error
    with open_image(image, writable=True, secret_file=secret_file, no_backing=no_backing, backing=backing) as disk:
        old = disk.size
        new = old + amount if size.startswith("+") else old - amount if size.startswith("-") else amount
        new = -(-new // 512) * 512
        if new < 0:
            raise ArgumentError(f"the disk has only {old} bytes", path=str(image))
        if new < old and not shrink:
            raise ArgumentError(
                f"the disk would shrink from {format_size(old)} to {format_size(new)}: data behind the new end is lost",
                path=str(image),
                hint="add --shrink when that is meant",
            )
        require_distinct_files(disk)
        disk.writer.truncate(new, Preallocation(preallocation))
    if as_json:
        print_json({"filename": str(image), "virtual-size": new, "previous-size": old})
    elif not quiet:
        click.echo("Image resized.")
