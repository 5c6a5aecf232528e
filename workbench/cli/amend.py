"""`qwb amend`: change options of an existing image, with qemu-img's names."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from workbench.cli.common import (
    backing_option,
    debug_option,
    handle_errors,
    json_option,
    no_backing_option,
    open_image,
    print_json,
    secret_option,
)
from workbench.cli.create import COMPAT, SWITCH, option_pairs
from workbench.cli.progress import percentage
from workbench.cli.sources import format_of, plain_files_only, require_cache_mode
from workbench.errors import ArgumentError, UnsupportedError
from workbench.units import parse_size

if TYPE_CHECKING:
    from workbench.engine.image import Image
    from workbench.engine.operations.amend import AmendOptions

SCHEMA: Final = 1
_HELP: Final = {
    "backing_file": "<str>     - Name of the backing file; it must be the one that the image has",
    "backing_fmt": "<str>      - Format of the backing file; it must be the one that the image has",
    "compat": "<str>           - Compatibility level (v2 [0.10] or v3 [1.1])",
    "data_file": "<str>        - Name of the external data file",
    "data_file_raw": "<bool (on/off)> - The external data file stays valid as a raw image (off only)",
    "lazy_refcounts": "<bool (on/off)> - Refcounts are written late",
    "refcount_bits": "<num>    - Width of a refcount in bits",
    "size": "<size>            - Virtual disk size",
}
_CREATE_ONLY: Final = (
    *("cluster_size", "preallocation", "extended_l2", "compression_type", "encryption", "nocow", "extent_size_hint"),
    *("encrypt.format", "encrypt.key-secret", "encrypt.cipher-alg", "encrypt.cipher-mode", "encrypt.hash-alg"),
    *("encrypt.ivgen-alg", "encrypt.ivgen-hash-alg"),
)

HELP = """Change options of the image IMAGE: compat, refcount_bits, lazy_refcounts, size, data_file, data_file_raw.

Everything is looked at first: what cannot be done is refused, and the image stays as it is. `-o help` lists the options.
"""


@click.command("amend", help=HELP, epilog="Exit code: 0; 1 on errors.")
@click.argument("image", metavar="IMAGE", type=click.Path(path_type=Path), required=False)
@click.option("-o", "--options", "options", multiple=True, metavar="NAME=VALUE,…", help="What to change.")
@click.option("-f", "--format", "image_format", metavar="FMT", help="Format of IMAGE: qcow2.")
@click.option(
    "-t", "--cache", metavar="CACHE", default="writeback", help="A cache mode of QEMU's; makes no difference."
)
@click.option("--force", is_flag=True, help="The disk may shrink: data behind its new end is lost.")
@click.option("-p", "--progress", "shows_progress", is_flag=True, help="Print the percentage that is done.")
@click.option("-q", "--quiet", is_flag=True, help="Print nothing but errors.")
@backing_option
@no_backing_option
@secret_option
@plain_files_only
@json_option
@debug_option
@handle_errors
def command(
    image: Path | None,
    options: tuple[str, ...],
    image_format: str | None,
    cache: str,
    force: bool,
    shows_progress: bool,
    quiet: bool,
    backing: Path | None,
    no_backing: bool,
    secret_file: Path | None,
    as_json: bool,
) -> None:
    if not options:
        raise ArgumentError("Must specify options (-o)")
    if any(not each or each.startswith(",") or each.endswith(",") for each in options):
        raise ArgumentError(f"Invalid option list: {','.join(options)}")
    pairs = list(option_pairs(options))
    if any(name in ("help", "?") for name, _ in pairs):
        if image_format not in ("qcow2", None):
            raise UnsupportedError(f"Format driver '{image_format}' does not support option amendment")
        click.echo("\n".join(["Amend options for 'qcow2':", *(f"  {name}={text}" for name, text in _HELP.items())]))
        return
    if image is None:
        raise ArgumentError("Expecting one image file name")
    require_cache_mode(cache)
    if format_of(image, image_format, bytes_count=True) == "raw":
        raise UnsupportedError("Format driver 'raw' does not support option amendment", path=str(image))
    from workbench.engine.naming import require_distinct_files
    from workbench.engine.operations.amend import amend

    with contextlib.ExitStack() as stack:
        opened = stack.enter_context(
            open_image(image, writable=True, secret_file=secret_file, backing=backing, no_backing=no_backing)
        )
        asked = _asked(pairs, opened, force)
        require_distinct_files(opened)
        if shows_progress and not quiet and not as_json:
            progress = stack.enter_context(percentage())
            amend(opened, asked)
            progress(1, 1)
        else:
            amend(opened, asked)
    if as_json:
        print_json(_json(image))


def _asked(pairs: list[tuple[str, str]], image: Image, force: bool) -> AmendOptions:
    """The options as they are meant. ArgumentError for what is unknown or makes no sense."""
    from workbench.engine.operations.amend import AmendOptions

    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in _CREATE_ONLY:
            raise ArgumentError(f"Invalid parameter '{name}'", hint="this option is only supported for image creation")
        if name.startswith("encrypt."):
            _refuse_encryption(image)
        if name not in _HELP:
            raise ArgumentError(f"Invalid parameter '{name}'", hint="see `qwb amend -o help`")
        try:
            if name == "compat":
                found[name] = COMPAT[value]
            elif name in ("lazy_refcounts", "data_file_raw"):
                found[name] = SWITCH[value]
            elif name == "size":
                found[name] = parse_size(value)
            elif name == "refcount_bits":
                found[name] = int(value, 0)
            else:
                found["backing_format" if name == "backing_fmt" else name] = value
        except (KeyError, ValueError, OverflowError) as error:
            raise ArgumentError(f"option {name}: {value!r} makes no sense") from error
    return AmendOptions(**found, force=force)


def _refuse_encryption(image: Image) -> None:
    method = image.meta.header.crypt_method
    if not method:
        raise ArgumentError("Can't amend encryption options - encryption not present", path=image.path)
    if method == 1:
        raise UnsupportedError("Only LUKS encryption options can be amended", path=image.path)
    raise UnsupportedError("key slots cannot be changed by qwb yet", path=image.path, hint="use `qemu-img amend`")


def _json(image: Path) -> dict[str, Any]:
    """What the options are now."""
    from workbench.cli.common import open_storage
    from workbench.engine.info import image_info
    from workbench.engine.metadata import load_metadata

    with open_storage(image) as storage:
        info = image_info(load_metadata(storage), str(image))
    kept = ("filename", "format", "virtual-size", "cluster-size", "format-specific")
    return {"schema": SCHEMA, **{name: info[name] for name in kept if name in info}}
