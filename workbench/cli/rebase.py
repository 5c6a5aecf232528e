"""`qwb rebase`: put an image onto another backing file."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from workbench.cli.common import (
    complain,
    debug_option,
    force_share_option,
    handle_errors,
    json_option,
    mind_interrupted,
    open_image,
    print_json,
    read_secret,
    secret_option,
)
from workbench.cli.progress import percentage, progress_line
from workbench.cli.sources import format_of, plain_files_only, require_cache_mode
from workbench.errors import ArgumentError, QwbError

if TYPE_CHECKING:
    from workbench.engine.image import Image
    from workbench.engine.layers import Layer
    from workbench.engine.operations.rebase import Rebased

SCHEMA: Final = 1
_DRIVERS: Final = frozenset(
    (
        *("blkdebug", "blklogwrites", "blkverify", "bochs", "cloop", "compress", "copy-before-write", "copy-on-read"),
        *("dmg", "file", "ftp", "ftps", "gluster", "host_cdrom", "host_device", "http", "https", "iscsi", "iser"),
        *("luks", "nbd", "nfs", "null-aio", "null-co", "nvme", "parallels", "preallocate", "qcow", "qcow2", "qed"),
        *("quorum", "raw", "rbd", "replication", "snapshot-access", "ssh", "throttle", "vdi", "vhdx", "vmdk", "vpc"),
        "vvfat",
    )
)
"""What QEMU knows as a format: any of these may be stored."""

HELP = """Make BACKING the backing file of the image FILENAME, or, with -b "", let it stand alone.

What the guest sees stays the same: what the old backing file and the new one have in different ways is taken into the
image first, the header is changed last. With -u only the header is changed, and no backing file is opened: for one that was
moved or renamed.

A relative BACKING is looked up, and stored, as seen from the folder of FILENAME.
"""


@click.command("rebase", help=HELP, epilog="Exit code: 0; 1 on errors.")
@click.argument("names", metavar="FILENAME", nargs=-1, type=click.Path(path_type=Path))
@click.option("-b", "--backing", "backing", metavar="BACKING", help="The new backing file; '' for none.")
@click.option("-F", "--backing-format", "backing_format", metavar="FMT", help="Format of BACKING, as it is stored.")
@click.option("-f", "--format", "given", metavar="FMT", help="Format of FILENAME; only qcow2 has backing files.")
@click.option(
    "-u", "--backing-unsafe", "unsafe", is_flag=True, help="Change the name only; what the guest sees may change."
)
@click.option("-c", "--compress", is_flag=True, help="Store compressed what is taken into the image.")
@click.option("-t", "--cache", "cache", metavar="CACHE", default="writeback", help="A cache mode; makes no difference.")
@click.option(
    "-T", "--backing-cache", "backing_cache", metavar="CACHE", default="writeback", help="The same for BACKING."
)
@click.option("-p", "--progress", "shows_progress", is_flag=True, help="Print the percentage that is done.")
@click.option("-q", "--quiet", is_flag=True, help="Print nothing but errors.")
@force_share_option
@secret_option
@plain_files_only
@json_option
@debug_option
@handle_errors
def command(
    names: tuple[Path, ...],
    backing: str | None,
    backing_format: str | None,
    given: str | None,
    unsafe: bool,
    compress: bool,
    cache: str,
    backing_cache: str,
    shows_progress: bool,
    quiet: bool,
    force_share: bool,
    secret_file: Path | None,
    as_json: bool,
) -> None:
    from workbench.engine.operations.rebase import change_backing, rebase

    if len(names) != 1:
        raise ArgumentError("Expecting one image file name", hint="see `qwb rebase --help`")
    if not unsafe and backing is None:
        raise ArgumentError("Must specify backing file (-b) or use unsafe mode (-u)", hint="see `qwb rebase --help`")
    path = names[0]
    require_cache_mode(cache)
    require_cache_mode(backing_cache, "source cache")
    if format_of(path, given, bytes_count=True) != "qcow2":
        raise ArgumentError(f"Could not change the backing file to {backing!r}: a raw file has none", path=str(path))
    if backing_format is not None and backing_format not in _DRIVERS:
        raise ArgumentError(f"Invalid format name: {backing_format!r}")
    prints = shows_progress and not quiet and not as_json
    with contextlib.ExitStack() as stack:
        secret = read_secret(secret_file)
        image = stack.enter_context(
            open_image(path, writable=True, secret=secret, no_backing=unsafe, unlock=not unsafe)
        )
        _require_apart(image, backing, unsafe=unsafe)
        progress = stack.enter_context(percentage() if prints else progress_line())
        result: Rebased | None = None
        if unsafe:
            change_backing(image, backing, backing_format)
        else:
            layers = _new_chain(image, backing, backing_format, force_share=force_share, stack=stack)
            result = rebase(image, layers, backing, backing_format, compress=compress, progress=progress)
        snapshots = len(image.meta.snapshots)
    if snapshots and not quiet:
        complain(
            f"{path}: its {snapshots} internal snapshots, too, read what they left open from the new backing file now"
        )
    if as_json:
        print_json(_json(path, backing, backing_format, result))


def _require_apart(image: Image, backing: str | None, *, unsafe: bool) -> None:
    """The image must not come to lie under itself, not even with -u: it could not be opened any more."""
    from workbench.engine.gate import resolve_name
    from workbench.engine.naming import require_distinct, require_distinct_files

    if not unsafe:
        require_distinct_files(image)
    new = resolve_name(backing, image.path, "backing") if backing else None
    if new is not None:
        require_distinct(dict.fromkeys((image.path, image.top.data_path)), [new], "rebase")


def _new_chain(
    image: Image, backing: str | None, form: str | None, *, force_share: bool, stack: contextlib.ExitStack
) -> list[Layer]:
    """The layers of the new backing file, open for reading until `stack` ends."""
    from workbench.engine.chain import Opening, open_under
    from workbench.engine.gate import allow_local, resolve_name
    from workbench.engine.operations.rebase import require_backing

    require_backing(image, backing, form)
    if not backing:
        return []
    path = resolve_name(backing, image.path, "backing")
    if path is None:
        raise ArgumentError(f"Could not open new backing file {backing!r}: it is no local file")
    mind_interrupted(path)
    try:
        return open_under(str(path), form, Opening(allow_local, force_share=force_share, secret=image.secret), stack)
    except QwbError as error:
        error.what = f"Could not open new backing file {backing!r}: {error.what}"
        raise


def _json(path: Path, backing: str | None, form: str | None, result: Rebased | None) -> dict[str, Any]:
    out: dict[str, Any] = {"schema": SCHEMA, "filename": str(path), "format": "qcow2"}
    if backing:
        out |= {"backing-filename": backing, "backing-filename-format": form}
    out["mode"] = "unsafe" if result is None else "safe"
    if result is not None:
        out |= {"compared": result.compared, "copied": result.copied, "zeroed": result.zeroed}
    return out
