"""`qwb bench`: how long many requests to a disk take, with qemu-img's options."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from workbench.cli.common import (
    debug_option,
    force_share_option,
    handle_errors,
    json_option,
    mind_interrupted,
    open_image,
    print_json,
    secret_option,
)
from workbench.cli.sources import format_of, plain_files_only, require_cache_mode
from workbench.errors import ArgumentError
from workbench.units import parse_size

if TYPE_CHECKING:
    from workbench.engine.operations.bench import Disk, Load, Result

SCHEMA: Final = 1
_INT_MAX: Final = (1 << 31) - 1
_AIO: Final = ("threads", "native", "io_uring")
_NUMBER: Final = re.compile(r"\s*\+?(0[xX][0-9a-fA-F]+|0[0-7]*|[1-9][0-9]*)$")

HELP = """Send many requests to the disk IMAGE, backing files included, and say how long they took: reads, or with -w writes.

The requests go one after the other; DEPTH only decides which flush intervals make sense. -w WRITES INTO THE IMAGE.
"""


@click.command("bench", help=HELP, epilog="Exit code: 0; 1 on errors.")
@click.argument("image", type=click.Path(path_type=Path))
@click.option("-c", "--count", default="75000", show_default=True, help="Requests.")
@click.option("-d", "--depth", default="64", show_default=True, help="Requests that QEMU would send at once.")
@click.option("-f", "--format", "image_format", metavar="FMT", help="Format of IMAGE, qcow2 or raw (default: look).")
@click.option("-s", "--buffer-size", default="4096", show_default=True, help="Bytes of a request.")
@click.option("-S", "--step-size", default="0", help="From one request to the next, in bytes (default: a request's).")
@click.option("-o", "--offset", default="0", help="Where the first request goes.")
@click.option("-w", "--write", "writes", is_flag=True, help="Write.")
@click.option("--pattern", default="0", help="With -w: the byte to write.")
@click.option("--flush-interval", default="0", help="With -w: flush after so many requests.")
@click.option("--no-drain", is_flag=True, expose_value=False, help="Makes no difference: no request is ever pending.")
@click.option("-i", "--aio", default="threads", metavar="AIO", help="threads, native or io_uring; makes no difference.")
@click.option("-n", "--native", is_flag=True, expose_value=False, help="Makes no difference.")
@click.option(
    "-t", "--cache", metavar="CACHE", default="writeback", help="A cache mode of QEMU's; makes no difference."
)
@click.option("-q", "--quiet", is_flag=True, expose_value=False, help="The result is printed all the same, as in QEMU.")
@force_share_option
@secret_option
@plain_files_only
@json_option
@debug_option
@handle_errors
def command(
    image: Path,
    count: str,
    depth: str,
    image_format: str | None,
    buffer_size: str,
    step_size: str,
    offset: str,
    writes: bool,
    pattern: str,
    flush_interval: str,
    aio: str,
    cache: str,
    force_share: bool,
    secret_file: Path | None,
    as_json: bool,
) -> None:
    from workbench.engine.operations.bench import Load, bench

    parallel = _number(depth, "queue depth", 1, _INT_MAX)
    size = _size(buffer_size, "buffer size", 1, _INT_MAX)
    load = Load(
        _number(count, "request count", 1, _INT_MAX),
        size,
        _size(step_size, "step_size", 0, _INT_MAX) or size,
        _size(offset, "offset", 0, (1 << 63) - 1),
        _number(pattern, "pattern byte", 0, 0xFF) if writes else None,
        _number(flush_interval, "flush interval", 0, _INT_MAX),
    )
    if aio not in _AIO:
        raise ArgumentError(f"Invalid aio option: {aio}")
    require_cache_mode(cache)
    if load.flush_interval and not writes:
        raise ArgumentError("--flush-interval is only available in write tests")
    if load.flush_interval and load.flush_interval < parallel:
        raise ArgumentError("Flush interval can't be smaller than depth")
    if writes and force_share:
        raise ArgumentError("-U reads only: it cannot go with -w")
    with contextlib.ExitStack() as stack:
        found, disk = _opened(image, image_format, secret_file, stack, writes=writes, force_share=force_share)
        if not as_json:
            _announce(load, parallel)
        result = bench(disk, load)
        if as_json:
            print_json(_json(image, found, load, parallel, result))
        else:
            click.echo(f"Run completed in {result.seconds:.3f} seconds.")


def _opened(
    image: Path,
    given: str | None,
    secret_file: Path | None,
    stack: contextlib.ExitStack,
    *,
    writes: bool,
    force_share: bool,
) -> tuple[str, Disk]:
    """(format, disk) as it is read or written."""
    found = format_of(image, given, bytes_count=True)
    if found == "qcow2":
        from workbench.engine.naming import require_distinct_files

        opened = open_image(image, writable=writes, secret_file=secret_file, force_share=force_share)
        stack.enter_context(opened)
        if writes:
            require_distinct_files(opened)
        return found, opened
    from workbench.engine.operations.bench import RawDisk
    from workbench.storage.file import FileStorage
    from workbench.storage.locks import LockMode, acquire

    mind_interrupted(image, writable=writes)
    storage = stack.enter_context(FileStorage.open(image, writable=writes))
    stack.enter_context(
        acquire(storage, LockMode.WRITE if writes else LockMode.FORCE_READ if force_share else LockMode.READ)
    )
    return found, RawDisk(storage)


def _announce(load: Load, parallel: int) -> None:
    """qemu-img's words."""
    kind = "read" if load.write is None else "write"
    click.echo(
        f"Sending {load.count} {kind} requests, {load.size} bytes each, {parallel} in parallel"
        f" (starting at offset {load.offset}, step size {load.step})"
    )
    if load.flush_interval:
        click.echo(f"Sending flush every {load.flush_interval} requests")


def _json(image: Path, found: str, load: Load, parallel: int, result: Result) -> dict[str, Any]:
    return {
        "schema": SCHEMA,
        "filename": str(image),
        "format": found,
        "write": load.write is not None,
        "count": load.count,
        "depth": parallel,
        "buffer-size": load.size,
        "step-size": load.step,
        "offset": load.offset,
        "flush-interval": load.flush_interval,
        "seconds": result.seconds,
        "bytes": result.requests * load.size,
        "flushes": result.flushes,
    }


def _number(text: str, what: str, least: int, most: int) -> int:
    """As C's strtoul reads it, all of it: decimal, 0x…, 0…"""
    found = _NUMBER.match(text)
    digits = found.group(1) if found else ""
    octal = len(digits) > 1 and digits[0] == "0" and digits[1] not in "xX"
    if not digits:
        raise ArgumentError(f"Invalid {what} specified: {text!r}")
    return _within(int(digits, 8 if octal else 0), what, least, most)


def _size(text: str, what: str, least: int, most: int) -> int:
    try:
        value = parse_size(text)
    except (ValueError, OverflowError) as error:
        raise ArgumentError(f"Invalid {what} specified: {text!r} (such as 512, 64k, 1M)") from error
    return _within(value, what, least, most)


def _within(value: int, what: str, least: int, most: int) -> int:
    if not least <= value <= most:
        raise ArgumentError(f"Invalid {what} specified. Must be between {least} and {most}.")
    return value
