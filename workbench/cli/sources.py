"""What a command reads a disk from: a qcow2 image with its chain, or a raw file, told apart as qemu-img does."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from workbench.cli.common import mind_interrupted, open_image
from workbench.errors import ArgumentError, UnsupportedError

if TYPE_CHECKING:
    from workbench.engine.convert import Source
    from workbench.engine.image import Image

FORMATS: Final = ("qcow2", "raw")
CACHE_MODES: Final = ("none", "off", "writeback", "unsafe", "writethrough", "directsync")
_NOT_HERE: Final = "name the image as a plain file; its format goes with -f, its passphrase with --secret-file"


@dataclass(frozen=True, slots=True)
class OpenSource:
    """An open disk. format: qcow2 or raw.  image: None for a raw file."""

    format: str
    source: Source
    image: Image | None


def plain_files_only(command: Callable[..., Any]) -> Callable[..., Any]:
    """qemu-img's --image-opts and --object, refused with a word on what to do instead."""

    def refuse(context: click.Context, option: click.Parameter, value: object) -> None:
        if value:
            raise click.UsageError(f"{option.opts[0]} is not supported: {_NOT_HERE}", context)

    for name, more in (("--object", {"metavar": "OBJECTDEF"}), ("--image-opts", {"is_flag": True})):
        command = click.option(name, expose_value=False, hidden=True, callback=refuse, **more)(command)
    return command


def require_cache_mode(mode: str, what: str = "cache") -> None:
    """ArgumentError when `mode` is none of QEMU's cache modes, which make no difference here."""
    if mode not in CACHE_MODES:
        raise ArgumentError(f"Invalid {what} option: {mode}")


@contextlib.contextmanager
def open_source(
    path: Path,
    given: str | None,
    *,
    secret_file: Path | None = None,
    secret: bytes | None = None,
    force_share: bool = False,
    no_backing: bool = False,
    backing: Path | None = None,
    snapshot: str | None = None,
    salvage: bool = False,
    bytes_count: bool = False,
    unlock: bool = True,
) -> Iterator[OpenSource]:
    """A disk to read, under reading locks. given: the format that the person named, None to look; salvage and bytes_count:
    see `format_of`.  unlock: its passphrase is tried.

    Raises UnsupportedError for other formats, ArgumentError for what a raw file does not have, and what `open_image` raises.
    """
    if format_of(path, given, salvage=salvage, bytes_count=bytes_count) == "raw":
        if snapshot is not None or backing is not None:
            raise ArgumentError("a raw file has neither snapshots nor a backing file", path=str(path))
        with _raw_source(path, force_share) as source:
            yield OpenSource("raw", source, None)
        return
    from workbench.engine.convert import Source

    with open_image(
        path,
        secret_file=secret_file,
        secret=secret,
        force_share=force_share,
        no_backing=no_backing,
        backing=backing,
        snapshot=snapshot,
        unlock=unlock,
    ) as image:
        yield OpenSource("qcow2", Source(image.chain, image.size), image)


def format_of(path: Path, given: str | None, *, salvage: bool = False, bytes_count: bool = False) -> str:
    """qcow2 or raw: as given, else as the file's first bytes say. Raises ArgumentError or UnsupportedError for what is
    neither.

    salvage: nothing is taken for a raw disk then unless `given` says so: a copy of a damaged image's own bytes, or of
    an archive, is not what was asked for.  bytes_count: any bytes that are no other disk format will do as a raw disk, as
    in QEMU, also what looks like an archive or a text.
    """
    from formats.foreign import Sort
    from workbench.engine.chain import probe_format
    from workbench.engine.metadata import load_metadata
    from workbench.storage.file import FileStorage

    if given is not None:
        if given not in FORMATS:
            raise UnsupportedError(f"format {given!r} is not supported: qcow2 and raw are", path=str(path))
        return given
    with FileStorage.open(path) as storage:
        found = probe_format(storage)
        foreign = load_metadata(storage).foreign
    refused = (Sort.DISK,) if bytes_count else (Sort.DISK, Sort.PACKED, Sort.TEXT, Sort.SHIFTED)
    if foreign is not None and foreign.sort in refused:
        hint = f"{foreign.advice}, or copy its bytes as they are with -f raw"
        raise ArgumentError(f"this is {foreign.name}, not a disk that can be read here", path=str(path), hint=hint)
    if found not in FORMATS:
        raise ArgumentError(f"format {found} is not supported", path=str(path), hint="convert it with qemu-img first")
    if found == "raw" and salvage:
        what = (
            f"this is {foreign.name}" if foreign is not None else "it has no qcow2 header, so its tables are not found"
        )
        hint = "copy its bytes as they are with -f raw" if foreign is not None else f"see `qwb repair {path} --dry-run`"
        raise ArgumentError(f"not a qcow2 image to salvage: {what}", path=str(path), hint=hint)
    return found


def named_snapshot(text: str | None) -> str | None:
    """The ID or name that qemu-img's -l means: as it is, or `snapshot.id=…` or `snapshot.name=…`. ArgumentError for both at
    once and for what is neither."""
    if text is None or not text.startswith("snapshot."):
        return text
    found = dict(part.partition("=")[::2] for part in text.split(","))
    if len(found) != 1 or not set(found) <= {"snapshot.id", "snapshot.name"}:
        raise ArgumentError(f"{text!r} names no snapshot", hint="give its ID or its name")
    return next(iter(found.values()))


@contextlib.contextmanager
def _raw_source(path: Path, force_share: bool) -> Iterator[Source]:
    from workbench.engine.chain import Opening, open_file
    from workbench.engine.convert import Source
    from workbench.engine.gate import forbid_all
    from workbench.engine.layers import RawLayer

    mind_interrupted(path)
    layer = RawLayer(open_file(str(path), Opening(forbid_all, force_share=force_share)))
    with contextlib.closing(layer):
        yield Source((layer,), layer.size)
