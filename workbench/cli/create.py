"""`qwb create`: a new qcow2 image, with qemu-img's options."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from workbench.cli.common import SIZE, debug_option, handle_errors, json_option, mind_interrupted, print_json
from workbench.errors import ArgumentError
from workbench.render.text import printable
from workbench.units import parse_size

if TYPE_CHECKING:
    from workbench.engine.create import CreateOptions

COMPAT: Final = {"0.10": 2, "v2": 2, "1.1": 3, "v3": 3}
_SWITCHES: Final = ("lazy_refcounts", "extended_l2", "data_file_raw")
_RENAMED: Final = {"backing_fmt": "backing_format"}
_SIZES: Final = ("size", "cluster_size")
SWITCH: Final = {"on": True, "off": False, "yes": True, "no": False}


def option_pairs(groups: Iterable[str]) -> Iterator[tuple[str, str]]:
    """(name, value) of `-o a=b,c=d` groups; `,,` stands for a comma, and a name alone for `on`."""
    for group in groups:
        for part in group.replace(",,", "\0").split(","):
            name, separator, value = part.replace("\0", ",").partition("=")
            if part:
                yield name, value if separator else "on"


def parse_options(groups: tuple[str, ...]) -> dict[str, Any]:
    """`-o` groups as CreateOptions fields. ArgumentError for what is unknown or makes no sense."""
    return parse_pairs(option_pairs(groups))


def parse_pairs(pairs: Iterable[tuple[str, str]]) -> dict[str, Any]:
    """As `parse_options`, of names and values."""
    from workbench.engine.create import CreateOptions
    from workbench.engine.write.prealloc import Preallocation

    known = {field.name for field in fields(CreateOptions)}
    found: dict[str, Any] = {}
    for name, value in pairs:
        key = _RENAMED.get(name, name)
        if key not in known:
            raise ArgumentError(f"unknown create option {name!r}", hint="see `qwb create --help`")
        try:
            if key in _SIZES:
                found[key] = parse_size(value)
            elif key in _SWITCHES:
                found[key] = SWITCH[value]
            elif key == "compat":
                found[key] = COMPAT[value]
            elif key == "preallocation":
                found[key] = Preallocation(value)
            else:
                found[key] = int(value) if key == "refcount_bits" else value
        except (KeyError, ValueError) as error:
            raise ArgumentError(f"create option {name}: {value!r} makes no sense") from error
    return found


def describe(path: str, options: CreateOptions) -> str:
    """The line that `qemu-img create` prints."""
    words = [f"Formatting '{path}', fmt=qcow2", f"cluster_size={options.cluster_size}"]
    words.append(f"extended_l2={_switch(options.extended_l2)}")
    if options.preallocation.value != "off":
        words.append(f"preallocation={options.preallocation.value}")
    words += [f"compression_type={options.compression_type}", f"size={options.size}"]
    if options.compat == 2:
        words.append("compat=0.10")
    if options.backing_file:
        words += [f"backing_file={options.backing_file}", f"backing_fmt={options.backing_format}"]
    if options.data_file:
        words.append(f"data_file={options.data_file}")
    if options.data_file_raw:
        words.append("data_file_raw=on")
    words += [f"lazy_refcounts={_switch(options.lazy_refcounts)}", f"refcount_bits={options.refcount_bits}"]
    return " ".join(words)


def _switch(value: bool) -> str:
    return "on" if value else "off"


@click.command(name="create")
@click.option("-q", "--quiet", is_flag=True, help="Print nothing.")
@click.option("-f", "--format", "fmt", default="qcow2", metavar="FMT", help="Must be qcow2; for qemu-img's sake.")
@click.option("-b", "--backing", metavar="FILE", help="Backing file, relative to the new image's folder.")
@click.option("-F", "--backing-format", metavar="FMT", help="Format of the backing file: qcow2 or raw.")
@click.option("-u", "--unsafe", is_flag=True, help="Do not open the backing file (then SIZE is needed).")
@click.option(
    "-o",
    "options",
    multiple=True,
    metavar="NAME=VALUE,…",
    help="size, compat (0.10, 1.1), cluster_size, refcount_bits, lazy_refcounts, extended_l2, compression_type (zlib,"
    " zstd), backing_file, backing_fmt, data_file, data_file_raw, preallocation (off, metadata, falloc, full).",
)
@json_option
@debug_option
@click.argument("image", type=click.Path(path_type=Path))
@click.argument("size", type=SIZE, required=False)
@handle_errors
def command(
    image: Path,
    size: int | None,
    quiet: bool,
    fmt: str,
    backing: str | None,
    backing_format: str | None,
    unsafe: bool,
    options: tuple[str, ...],
    as_json: bool,
) -> None:
    """Make a new qcow2 image IMAGE of SIZE bytes (default: the backing file's size). An existing file is overwritten."""
    from workbench.engine.create import CreateOptions, create_file

    if fmt != "qcow2":
        raise ArgumentError(f"cannot create format {fmt!r}: only qcow2")
    given = parse_options(options)
    if backing:
        given["backing_file"] = backing
    if backing_format:
        given["backing_format"] = backing_format
    if size is not None:
        given["size"] = size
    name = os.fspath(image)
    if "size" not in given:
        if unsafe or not given.get("backing_file"):
            raise ArgumentError("Image creation needs a size parameter")
        given["size"] = _backing_size(name, given["backing_file"], given.get("backing_format"))
    chosen = CreateOptions(**given)
    chosen.check()
    if not quiet and not as_json:
        click.echo(printable(describe(name, chosen)))
    mind_interrupted(image, writable=True)
    create_file(name, chosen, check_backing=not unsafe)
    if as_json:
        print_json({"filename": name, "format": "qcow2", "virtual-size": -(-chosen.size // 512) * 512})


def _backing_size(image: str, backing: str, form: str | None) -> int:
    """Virtual size of the backing file, in bytes."""
    from workbench.engine.gate import resolve_name
    from workbench.engine.image import Image
    from workbench.errors import NotQcow2Error
    from workbench.storage.file import FileStorage

    path = resolve_name(backing, image, "backing")
    if path is None:
        raise ArgumentError(f"backing file {backing!r} is no local path", hint="give a size and -u")
    if form != "raw":
        try:
            with Image.open(path, force_share=True) as lower:
                return lower.size
        except NotQcow2Error:
            if form is not None:
                raise
    with FileStorage.open(path) as raw:
        return -(-raw.size() // 512) * 512
