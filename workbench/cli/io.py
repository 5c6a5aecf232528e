"""`qwb io`: qemu-io's command language on a qcow2 image."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import click

from workbench.cli.common import debug_option, handle_errors, mind_interrupted, read_secret, secret_option
from workbench.errors import ArgumentError

if TYPE_CHECKING:
    from workbench.engine.qio.session import Session


class _Output:
    """stdout in large pieces; what was printed comes out before anything on stderr."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._parts: list[str] = []
        self._size = 0

    def print(self, text: str) -> None:
        self._parts.append(text)
        self._size += len(text)
        if self._size > 1 << 15:
            self.flush()

    def complain(self, text: str) -> None:
        self.flush()
        sys.stderr.write(text)
        sys.stderr.flush()

    def flush(self) -> None:
        self._stream.write("".join(self._parts))
        self._stream.flush()
        self._parts, self._size = [], 0


@click.command(name="io", context_settings={"help_option_names": ["-h", "--help"]})
@click.option("-c", "--cmd", "lines", multiple=True, metavar="COMMAND", help="Run a command; may be given many times.")
@click.option("-f", "--format", "fmt", default="qcow2", metavar="FMT", help="Must be qcow2.")
@click.option("-r", "--read-only", is_flag=True, help="Open for reading only.")
@click.option("-U", "--force-share", is_flag=True, help="Read although another program holds the image.")
@click.option("-d", "--discard", default="unmap", metavar="MODE", help="unmap (default) or ignore discards.")
@click.option("-o", "settings", multiple=True, metavar="NAME=VALUE,…", help="Engine options, see `help open`.")
@click.option("--object", "objects", multiple=True, metavar="OBJECTDEF", help="secret,id=…,data=… or file=…")
@click.option("--image-opts", is_flag=True, help="IMAGE is an option string: driver=qcow2,file.filename=…")
@click.option("-n", "--nocache", is_flag=True, help="Ignored.")
@click.option("-m", "--misalign", is_flag=True, help="Ignored.")
@click.option("-k", "--native-aio", is_flag=True, help="Ignored.")
@click.option("-C", "--copy-on-read", is_flag=True, help="Ignored.")
@click.option("-t", "--cache", metavar="MODE", help="Ignored.")
@click.option("-i", "--aio", metavar="MODE", help="Ignored.")
@secret_option
@debug_option
@click.argument("image", required=False)
@handle_errors
def command(
    lines: tuple[str, ...],
    fmt: str,
    read_only: bool,
    force_share: bool,
    discard: str,
    settings: tuple[str, ...],
    objects: tuple[str, ...],
    image_opts: bool,
    secret_file: Path | None,
    image: str | None,
    **_ignored: Any,
) -> None:
    """Run qemu-io's commands on IMAGE, from -c or from standard input: read, write, discard, map, help, …

    Output and exit code are qemu-io's: 1 when a command failed or a pattern was not found.
    """
    from workbench.engine.qio.session import OpenOptions, Session, parse_settings

    if fmt != "qcow2":
        raise ArgumentError(f"cannot open format {fmt!r}: only qcow2")
    extra: dict[str, object] = {}
    for group in settings:
        extra |= parse_settings(group)
    if image_opts and image is not None:
        extra |= parse_settings(image)
        name = extra.pop("file.filename", extra.pop("filename", None))
        image = str(name) if name is not None else None
    if image is not None:
        mind_interrupted(image, writable=not read_only)
    secret = read_secret(secret_file) or _secret_object(objects, extra.get("encrypt.key-secret"))
    out = _Output(sys.stdout)
    unmap = str(extra.pop("discard", discard)) in ("unmap", "on")
    session = Session(out.print, out.complain, OpenOptions(not read_only, force_share, unmap, secret, extra))
    try:
        if image is not None and not session.open(image):
            raise click.exceptions.Exit(1)
        try:
            if lines:
                for line in lines:
                    session.run(line)
                    if session.done:
                        break
            else:
                _interactive(session, out)
        finally:
            if not session.close():
                session.status = 1
    finally:
        out.flush()
    if session.status:
        raise click.exceptions.Exit(session.status)


def _interactive(session: Session, out: _Output) -> None:
    """Commands from standard input, with qemu-io's prompt."""
    terminal = sys.stdin.isatty()
    while not session.done:
        out.print("qemu-io> ")
        if terminal:
            out.flush()
        line = sys.stdin.readline()
        if not line:
            break
        session.run(line.rstrip("\n"))


def _secret_object(objects: tuple[str, ...], wanted: object) -> bytes | None:
    """The passphrase of a `secret` object: the one that encrypt.key-secret names, else the only one."""
    from workbench.engine.qio.session import parse_settings

    found: dict[object, bytes] = {}
    for text in objects:
        kind, _, rest = text.partition(",")
        given = parse_settings(rest)
        if kind != "secret" or "id" not in given:
            raise ArgumentError(f"object {text!r} is no secret,id=…,data=…")
        if "data" in given:
            found[given["id"]] = str(given["data"]).encode()
        elif "file" in given:
            found[given["id"]] = read_secret(Path(str(given["file"]))) or b""
    if wanted is not None:
        if wanted not in found:
            raise ArgumentError(f"no secret with id {wanted!r}")
        return found[wanted]
    return next(iter(found.values()), None)
