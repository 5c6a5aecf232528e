"""`qwb map`: what the ranges of the virtual disk are, and where they are stored."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from workbench.cli.common import (
    SIZE,
    complain,
    debug_option,
    handle_errors,
    image_argument,
    image_options,
    json_option,
    open_image,
    print_lines,
)

if TYPE_CHECKING:
    from workbench.engine.image import Image
    from workbench.engine.reading import Flat

HELP = """What the ranges of IMAGE's virtual disk are, and where they are stored.

\b
Types: data, compressed, zero (said so by an image), hole (in a raw file),
unallocated (in no file: reads as zeros), invalid (damaged mapping).

The whole backing chain is looked through. --json is a superset of `qemu-img map --output=json`. A damaged image is
mapped as far as it makes sense; then the exit code is 1.
"""


@click.command("map", help=HELP)
@image_argument
@json_option
@click.option("-s", "--start-offset", type=SIZE, default=0, help="First guest byte (default: 0).")
@click.option("-l", "--max-length", type=SIZE, help="Bytes to look at (default: to the end).")
@image_options
@debug_option
@handle_errors
def command(
    image: Path,
    as_json: bool,
    start_offset: int,
    max_length: int | None,
    secret_file: Path | None,
    force_share: bool,
    no_backing: bool,
    backing: Path | None,
    snapshot: str | None,
) -> None:
    with open_image(
        image,
        force_share=force_share,
        no_backing=no_backing,
        backing=backing,
        snapshot=snapshot,
        tolerant=True,
        unlock=False,
    ) as opened:
        damage = _Damage()
        flats = damage.watch(opened.extent_columns(min(start_offset, opened.size), max_length))
        if as_json:
            _write_json(opened, flats, start_offset)
        else:
            from workbench.render.extents import table_rows

            print_lines(table_rows(flats, _paths(opened), _raw(opened)))
        for problem in opened.problems:
            complain(f"{image}: {problem.what}")
        if damage.bytes:
            complain(f"{image}: the mapping of {damage.bytes} bytes is damaged; see `qwb check {image}`")
        if damage.bytes or opened.problems:
            raise click.exceptions.Exit(1)


class _Damage:
    """Counts the bytes whose mapping is invalid, as the columns go by."""

    def __init__(self) -> None:
        self.bytes = 0

    def watch(self, flats: Iterator[Flat]) -> Iterator[Flat]:
        from workbench.engine.reading import INVALID

        for flat in flats:
            self.bytes += int(flat.length[(flat.flags & INVALID) != 0].sum())
            yield flat


def _write_json(image: Image, flats: Iterator[Flat], start: int) -> None:
    from workbench.render.extents import json_rows

    out = sys.stdout
    for piece in json_rows(flats, _raw(image), start=start):
        out.write(piece)
    out.flush()


def _raw(image: Image) -> list[bool]:
    from workbench.engine.layers import RawLayer

    return [isinstance(layer, RawLayer) for layer in image.chain]


def _paths(image: Image) -> list[str]:
    from workbench.engine.layers import Qcow2Layer

    return [layer.data_path if isinstance(layer, Qcow2Layer) else layer.path for layer in image.chain]
