"""`qwb bitmap`: persistent dirty bitmaps, with qemu-img's actions, and a list of what they hold."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from workbench.cli.common import (
    SIZE,
    debug_option,
    force_share_option,
    handle_errors,
    json_option,
    open_image,
    open_storage,
    print_json,
    print_lines,
    secret_option,
)
from workbench.cli.sources import format_of, plain_files_only
from workbench.errors import ArgumentError, UnsupportedError
from workbench.render.text import printable
from workbench.units import format_size

if TYPE_CHECKING:
    from workbench.engine.metadata import Metadata
    from workbench.engine.operations.bitmaps import BitmapState, Step

SCHEMA: Final = 1
_ACTIONS: Final = ("add", "remove", "remove_all", "clear", "enable", "disable", "merge")

HELP = """Change the persistent dirty bitmap BITMAP of IMAGE: one or several actions, done in the order in which they are given.

When an action cannot be done, those before it are done and the exit code is 1. A bitmap that was not saved properly can only
be removed. --list shows the bitmaps, or that one with its dirty ranges.
"""


class _InOrder(click.Command):
    """Notes the order in which the actions stand on the command line, also of those given twice."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        _, _, order = self.make_parser(ctx).parse_args(args=list(args))
        ctx.meta["qwb.actions"] = [each.name for each in order if each.name in _ACTIONS]
        return super().parse_args(ctx, args)


@click.command("bitmap", cls=_InOrder, help=HELP, epilog="Exit code: 0; 1 on errors.")
@click.argument("image", type=click.Path(path_type=Path))
@click.argument("bitmap", required=False)
@click.option("--add", is_flag=True, help="Make BITMAP; it records from now on (with --disable: not yet).")
@click.option("--remove", is_flag=True, help="Remove BITMAP.")
@click.option("--remove-all", is_flag=True, help="Remove all bitmaps; BITMAP need not be named.")
@click.option("--clear", is_flag=True, help="Clear BITMAP.")
@click.option("--enable", is_flag=True, help="Let BITMAP record from now on.")
@click.option("--disable", is_flag=True, help="Let BITMAP record no more.")
@click.option("--merge", metavar="SOURCE", multiple=True, help="Set all in BITMAP that is set in the bitmap SOURCE.")
@click.option("--list", "listing", is_flag=True, help="Show the bitmaps; with BITMAP, its dirty ranges.")
@click.option(
    "-g", "--granularity", type=SIZE, help="With --add: guest bytes for each bit (default: a cluster, at most 64k)."
)
@click.option("-b", "--source-file", type=click.Path(path_type=Path), help="With --merge: the image that has SOURCE.")
@click.option("-F", "--source-format", metavar="FMT", help="Format of the source file.")
@click.option("-f", "--format", "image_format", metavar="FMT", help="Format of IMAGE: qcow2.")
@force_share_option
@secret_option
@plain_files_only
@json_option
@debug_option
@handle_errors
def command(
    image: Path,
    bitmap: str | None,
    merge: tuple[str, ...],
    listing: bool,
    granularity: int | None,
    source_file: Path | None,
    source_format: str | None,
    image_format: str | None,
    force_share: bool,
    secret_file: Path | None,
    as_json: bool,
    **_: bool,
) -> None:
    order: list[str] = click.get_current_context().meta["qwb.actions"]
    if image_format == "raw" or format_of(image, image_format, bytes_count=True) == "raw":
        raise UnsupportedError("a raw file has no persistent bitmaps", path=str(image))
    if listing:
        if order or granularity is not None or source_file is not None:
            raise ArgumentError("--list goes with no action")
        _show(image, bitmap, as_json, force_share=force_share)
        return
    if not order:
        raise ArgumentError(
            "Need at least one of --add, --remove, --remove-all, --clear, --enable, --disable, or --merge",
            hint="--list shows them",
        )
    if granularity and "add" not in order:
        raise ArgumentError("granularity only supported with --add")
    if source_format and source_file is None:
        raise ArgumentError("-F only supported with -b")
    if source_file is not None and not merge:
        raise ArgumentError("Merge bitmap source file only supported with --merge")
    if bitmap is None and set(order) != {"remove_all"}:
        raise ArgumentError("Expecting filename and bitmap name")
    _change(image, bitmap or "", _steps(order, merge, granularity), source_file, source_format, secret_file)
    if as_json:
        _show(image, None, as_json, force_share=False)


def _steps(order: list[str], merge: tuple[str, ...], granularity: int | None) -> list[Step]:
    from workbench.engine.operations.bitmaps import Action, Step

    sources = iter(merge)
    return [
        Step(Action(each.replace("_", "-")), granularity, next(sources) if each == "merge" else "") for each in order
    ]


def _change(
    image: Path,
    name: str,
    steps: list[Step],
    source: Path | None,
    source_format: str | None,
    secret_file: Path | None,
) -> None:
    from workbench.engine.operations.bitmaps import change_bitmaps

    with contextlib.ExitStack() as stack:
        opened = stack.enter_context(open_image(image, writable=True, no_backing=True, secret_file=secret_file))
        other = None
        if source is not None:
            if format_of(source, source_format, bytes_count=True) == "raw":
                raise UnsupportedError("a raw file has no persistent bitmaps", path=str(source))
            other = stack.enter_context(_metadata(source, force_share=False))
        change_bitmaps(opened, name, steps, other)


@contextlib.contextmanager
def _metadata(path: Path, *, force_share: bool) -> Iterator[Metadata]:
    from workbench.engine.metadata import load_metadata
    from workbench.engine.opening import require_openable

    with open_storage(path, force_share=force_share) as storage:
        meta = load_metadata(storage)
        require_openable(meta)
        yield meta


def _show(image: Path, name: str | None, as_json: bool, *, force_share: bool) -> None:
    from workbench.engine.operations.bitmaps import list_bitmaps

    with _metadata(image, force_share=force_share) as meta:
        found, size = list_bitmaps(meta, name), meta.header.size
    if as_json:
        print_json(
            {"schema": SCHEMA, "filename": str(image), "virtual-size": size, "bitmaps": [_json(each) for each in found]}
        )
    elif name is None:
        print_lines(_table(found))
    else:
        print_lines(f"{start:#x} {end - start:#x}" for start, end in found[0].ranges)
        if found[0].inconsistent:
            raise UnsupportedError(
                f"the bitmap {name!r} was not saved properly, so nobody knows what is dirty", path=str(image)
            )


def _table(found: list[BitmapState]) -> Iterator[str]:
    if found:
        yield f"{'GRANULARITY':>11}  {'STATE':<12}  {'DIRTY':>9}  {'RANGES':>8}  {'IN FILE':>9}  NAME"
    for each in found:
        state = "inconsistent" if each.inconsistent else "recording" if each.enabled else "disabled"
        dirty, ranges = ("?", "?") if each.inconsistent else (format_size(each.dirty), str(len(each.ranges)))
        yield (
            f"{format_size(each.granularity):>11}  {state:<12}  {dirty:>9}  {ranges:>8}  {format_size(each.stored):>9}"
            f"  {printable(each.name)}"
        )


def _json(each: BitmapState) -> dict[str, Any]:
    flags = [flag for flag, is_set in (("in-use", each.inconsistent), ("auto", each.enabled)) if is_set]
    out: dict[str, Any] = {"name": each.name, "granularity": each.granularity, "flags": flags, "stored": each.stored}
    if not each.inconsistent:
        out["dirty-bytes"] = each.dirty
        out["dirty"] = [{"start": start, "length": end - start} for start, end in each.ranges]
    return out
