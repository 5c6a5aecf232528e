"""`qwb browse IMAGE…`, which is also `qwb IMAGE`: the workbench, or a picture of it."""

from __future__ import annotations

import gc
from pathlib import Path

import click

from workbench.cli.common import debug_option, handle_errors, read_secret, secret_option
from workbench.errors import ArgumentError


def _size(text: str) -> tuple[int, int]:
    width, _, height = text.lower().partition("x")
    if not (width.isdigit() and height.isdigit() and 20 <= int(width) <= 500 and 8 <= int(height) <= 200):
        raise ArgumentError(f"{text!r} is no screen size", hint="such as 120x40")
    return int(width), int(height)


@click.command("browse")
@click.argument("images", nargs=-1, metavar="[IMAGE]...")
@click.option("--at", metavar="ADDRESS", help="Start there: 0x50000, c:5, g:12M, l2:3.17, header, …")
@click.option(
    "--view",
    metavar="VIEW",
    help="fields, hex, entries, guest-map, guest-hex, translation, host-map, findings, refcounts or overlaps.",
)
@click.option(
    "--screenshot",
    type=click.Path(path_type=Path),
    metavar="FILE.svg",
    help="Write a picture instead of opening the terminal.",
)
@click.option("--size", default="120x40", show_default=True, metavar="WxH", help="Size of the picture, in cells.")
@click.option("--theme", metavar="NAME", help="Colours: qwb-dark, qwb-light, high-contrast, …")
@secret_option
@debug_option
@handle_errors
def command(
    images: tuple[str, ...],
    at: str | None,
    view: str | None,
    screenshot: Path | None,
    size: str,
    theme: str | None,
    secret_file: Path | None,
) -> None:
    """Open images in the terminal workbench; without one: samples, recent files, a file picker. Never writes to an image."""
    cells = _size(size)
    if screenshot is None:
        gc.disable()  # nothing of what starting makes is garbage; the app looks for it from its first pause on
    from workbench.tui.app import Workbench, run, take_picture

    app = Workbench(images, at=at, view=view, theme=theme, secret=read_secret(secret_file), remember=screenshot is None)
    if screenshot is not None:
        take_picture(app, screenshot, cells)
        return
    click.get_current_context().exit(run(app))
