"""`qwb measure`: how much space a new image will need."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from workbench.cli.common import (
    SIZE,
    backing_option,
    debug_option,
    force_share_option,
    handle_errors,
    json_option,
    no_backing_option,
    print_json,
    secret_option,
)
from workbench.cli.create import SWITCH, option_pairs, parse_pairs
from workbench.cli.sources import FORMATS, OpenSource, named_snapshot, open_source, plain_files_only
from workbench.errors import ArgumentError

if TYPE_CHECKING:
    from workbench.engine.operations.measure import Measure

SCHEMA: Final = 1
_FOR_RAW: Final = ("size", "preallocation", "nocow", "extent_size_hint")
_SPACELESS: Final = (
    "nocow",
    "extent_size_hint",
    "encrypt.key-secret",
    "encrypt.ivgen-alg",
    "encrypt.ivgen-hash-alg",
    "encrypt.hash-alg",
    "encrypt.iter-time",
)
"""qemu-img's create options that make no difference to the space."""
_KEY_BYTES: Final = {"aes-128": 16, "aes-192": 24, "aes-256": 32, "cast5-128": 16} | {
    f"{name}-{bits}": bits // 8 for name in ("serpent", "twofish") for bits in (128, 192, 256)
}
_MODES: Final = ("xts", "cbc", "ctr", "ecb")


@click.command("measure", epilog="Exit code: 0; 1 on errors.")
@click.argument("image", metavar="[FILENAME]", type=click.Path(path_type=Path), required=False)
@click.option("-s", "--size", type=SIZE, help="Measure for an empty disk of this size, without a file.")
@click.option(
    "-f", "--format", "source_format", metavar="FMT", help="Format of FILENAME, qcow2 or raw (default: look)."
)
@click.option(
    "-O", "--target-format", "target_format", metavar="FMT", default="raw", show_default=True, help="raw or qcow2."
)
@click.option("-o", "options", multiple=True, metavar="K=V,…", help="Options of the new image, as for qemu-img create.")
@click.option(
    "-l",
    "--snapshot",
    metavar="SNAPSHOT",
    help="Measure an internal snapshot: NAME, ID, or snapshot.id=…,snapshot.name=….",
)
@click.option("--output", metavar="human|json", default="human", help="json: exactly what qemu-img prints.")
@backing_option
@no_backing_option
@force_share_option
@secret_option
@plain_files_only
@json_option
@debug_option
@handle_errors
def command(
    image: Path | None,
    size: int | None,
    source_format: str | None,
    target_format: str,
    options: tuple[str, ...],
    snapshot: str | None,
    output: str,
    backing: Path | None,
    no_backing: bool,
    force_share: bool,
    secret_file: Path | None,
    as_json: bool,
) -> None:
    """Say how large a new image will be: with what the disk FILENAME holds (or empty, of --size), and when all of it is
    written. Only the map is read: no passphrase is needed, and nothing is written."""
    if output not in ("human", "json"):
        raise ArgumentError("--output must be used with human or json as argument.")
    if image is None and (source_format or snapshot):
        raise ArgumentError("-f and -l require a filename argument.")
    if image is not None and size is not None:
        raise ArgumentError("--size N cannot be used together with a filename.")
    if image is None:
        if size is None:
            raise ArgumentError("Either --size N or one filename must be specified.")
        if size >= 1 << 63:
            raise ArgumentError("Invalid image size specified. Must be between 0 and 9223372036854775807.")
        found = _measured(target_format, options, size, None)
    else:
        with open_source(
            image,
            source_format,
            secret_file=secret_file,
            force_share=force_share,
            backing=backing,
            no_backing=no_backing,
            snapshot=named_snapshot(snapshot),
            bytes_count=True,
            unlock=False,
        ) as opened:
            found = _measured(target_format, options, None, opened)
    _show(found, output, as_json, target_format, image)


def _measured(target: str, options: tuple[str, ...], size: int | None, opened: OpenSource | None) -> Measure:
    """The measure of what the options ask for."""
    from dataclasses import replace

    from workbench.engine.create import CreateOptions
    from workbench.engine.operations.measure import bitmaps_size, measure_qcow2, measure_raw

    if target not in FORMATS:
        raise ArgumentError(f"format {target!r} cannot be measured: raw and qcow2 can")
    pairs = list(option_pairs(options))
    if target == "raw":
        unknown = next((name for name, _ in pairs if name not in _FOR_RAW), None)
        if unknown is not None:
            raise ArgumentError(f"a raw file has no option {unknown!r}")
    key_bytes = _luks_key_bytes(dict(pairs))
    given = parse_pairs(pair for pair in pairs if pair[0] not in _SPACELESS and not _encrypts(pair[0]))
    asked = size if size is not None else given.get("size", 0)
    if target == "raw":
        return measure_raw(asked if opened is None else opened.source.size)
    chosen = CreateOptions(**{**given, "size": asked})
    found = measure_qcow2(chosen, opened.source if opened else None, luks_key_bytes=key_bytes)
    if opened is not None and opened.image is not None and min(opened.image.meta.header.version, chosen.compat) >= 3:
        return replace(found, bitmaps=bitmaps_size(opened.image.meta, chosen.cluster_size))
    return found


def _encrypts(name: str) -> bool:
    return name in ("encryption", "encrypt.format", "encrypt.cipher-alg", "encrypt.cipher-mode")


def _luks_key_bytes(given: dict[str, str]) -> int:
    """Length of the master key that the options ask for; 0 when it is not LUKS. ArgumentError for unknown ciphers."""
    if given.get("encryption", "off") not in SWITCH:
        raise ArgumentError(f"create option encryption: {given['encryption']!r} makes no sense")
    if given.get("encrypt.format") != "luks":
        return 0
    cipher, mode = given.get("encrypt.cipher-alg", "aes-256"), given.get("encrypt.cipher-mode", "xts")
    if cipher not in _KEY_BYTES or mode not in _MODES or (cipher == "cast5-128" and mode == "xts"):
        raise ArgumentError(f"unknown cipher {cipher}-{mode}")
    return _KEY_BYTES[cipher] * (2 if mode == "xts" else 1)


def _show(found: Measure, output: str, as_json: bool, target: str, image: Path | None) -> None:
    if not as_json and output == "human":
        click.echo(f"required size: {found.required}")
        click.echo(f"fully allocated size: {found.fully_allocated}")
        if found.bitmaps is not None:
            click.echo(f"bitmaps size: {found.bitmaps}")
        return
    out: dict[str, Any] = {} if found.bitmaps is None else {"bitmaps": found.bitmaps}
    out |= {"required": found.required, "fully-allocated": found.fully_allocated}
    if as_json:
        out = {"schema": SCHEMA, **({"filename": str(image)} if image else {}), "format": target, **out}
    print_json(out)
