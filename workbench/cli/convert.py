"""`qwb convert`: copy a disk's content into a new image."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from workbench.cli.common import complain, debug_option, handle_errors, image_options, mind_interrupted, open_image
from workbench.errors import ArgumentError

if TYPE_CHECKING:
    from workbench.engine.convert import CopyResult, Source

_PROGRESS_AFTER = 1.0
_PROGRESS_EVERY = 0.1
_SHOWN_LOSSES = 20


@click.command("convert", epilog="Exit code: 0; 1 on errors; 2 when --salvage had to leave something out.")
@click.argument("source", metavar="SRC", type=click.Path(path_type=Path))
@click.argument("target", metavar="DST", type=click.Path(path_type=Path))
@click.option("-f", "source_format", type=click.Choice(["qcow2", "raw"]), help="Format of SRC (default: look).")
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
    from workbench.engine.convert import Source, convert_to_raw

    if target_format == "raw" and (compress or options):
        raise ArgumentError("-c and -o need -O qcow2")
    if target_format == "qcow2" and no_create:
        raise ArgumentError("-n works with -O raw only")
    mind_interrupted(target, writable=True)
    with contextlib.ExitStack() as stack:
        if _format_of(source, source_format, salvage=salvage) == "raw":
            if snapshot is not None or backing is not None:
                raise ArgumentError("a raw file has neither snapshots nor a backing file", path=str(source))
            opened = stack.enter_context(_raw_source(source, force_share))
        else:
            image = stack.enter_context(
                open_image(
                    source,
                    secret_file=secret_file,
                    force_share=force_share,
                    no_backing=no_backing,
                    backing=backing,
                    snapshot=snapshot,
                )
            )
            opened = Source(image.chain, image.size)
        with _progress() as progress:
            if target_format == "raw":
                result = convert_to_raw(opened, target, in_place=no_create, salvage=salvage, progress=progress)
            else:
                from workbench.cli.create import parse_options
                from workbench.engine.convert_qcow2 import convert_to_qcow2

                chosen = parse_options(options)
                result = convert_to_qcow2(
                    opened, target, options=chosen, compress=compress, salvage=salvage, progress=progress
                )
    _report_losses(result)


def _format_of(path: Path, given: str | None, *, salvage: bool) -> str:
    """qcow2 or raw: as given, else as the file's first bytes say. Raises ArgumentError for what is neither.

    salvage: nothing is taken for a raw disk then unless `given` says so: a copy of a damaged image's own bytes, or of
    an archive, is not what was asked for.
    """
    from formats.foreign import Sort
    from workbench.engine.chain import probe_format
    from workbench.engine.metadata import load_metadata
    from workbench.storage.file import FileStorage

    if given is not None:
        return given
    with FileStorage.open(path) as storage:
        found = probe_format(storage)
        foreign = load_metadata(storage).foreign
    if foreign is not None and foreign.sort in (Sort.DISK, Sort.PACKED, Sort.TEXT, Sort.SHIFTED):
        hint = f"{foreign.advice}, or copy its bytes as they are with -f raw"
        raise ArgumentError(f"this is {foreign.name}, not a disk that can be read here", path=str(path), hint=hint)
    if found not in ("qcow2", "raw"):
        raise ArgumentError(f"format {found} is not supported", path=str(path), hint="convert it with qemu-img first")
    if found == "raw" and salvage:
        what = (
            f"this is {foreign.name}" if foreign is not None else "it has no qcow2 header, so its tables are not found"
        )
        hint = "copy its bytes as they are with -f raw" if foreign is not None else f"see `qwb repair {path} --dry-run`"
        raise ArgumentError(f"not a qcow2 image to salvage: {what}", path=str(path), hint=hint)
    return found


@contextlib.contextmanager
def _raw_source(path: Path, force_share: bool) -> Iterator[Source]:
    from workbench.engine.chain import Opening, open_file
    from workbench.engine.convert import Source
    from workbench.engine.gate import forbid_all
    from workbench.engine.layers import RawLayer

    layer = RawLayer(open_file(str(path), Opening(forbid_all, force_share=force_share)))
    with contextlib.closing(layer):
        yield Source((layer,), layer.size)


@contextlib.contextmanager
def _progress() -> Iterator[_Meter | None]:
    """A progress line on stderr when it is a terminal and the work takes longer than a second."""
    if not sys.stderr.isatty():
        yield None
        return
    meter = _Meter()
    try:
        yield meter
    finally:
        meter.clear()


class _Meter:
    """Draws `  42.0 %` over itself."""

    def __init__(self) -> None:
        self._next = time.monotonic() + _PROGRESS_AFTER
        self._shown = False

    def __call__(self, done: int, total: int) -> None:
        now = time.monotonic()
        if now < self._next:
            return
        self._next, self._shown = now + _PROGRESS_EVERY, True
        sys.stderr.write(f"\r{100 * done / max(total, 1):6.1f} %")
        sys.stderr.flush()

    def clear(self) -> None:
        """Leave no half line behind."""
        if self._shown:
            sys.stderr.write("\r         \r")
            sys.stderr.flush()


def _report_losses(result: CopyResult) -> None:
    if not result.lost:
        return
    for start, length, reason in result.lost[:_SHOWN_LOSSES]:
        complain(f"lost {length} bytes at guest offset {start:#x}: {reason}")
    total = sum(length for _, length, _ in result.lost)
    more = len(result.lost) - _SHOWN_LOSSES
    complain(f"{total} bytes could not be read and are zeros" + (f" ({more} more places)" if more > 0 else ""))
    raise click.exceptions.Exit(2)
