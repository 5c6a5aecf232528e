"""What the commands share: options, errors as one line, opening an image, secrets, output of JSON and text."""

from __future__ import annotations

import contextlib
import functools
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

import click

from workbench.errors import ArgumentError, GateRefused, PassphraseError, QwbError, StorageError
from workbench.render.text import printable

if TYPE_CHECKING:
    from workbench.engine.image import Image
    from workbench.storage.file import FileStorage

P = ParamSpec("P")
R = TypeVar("R")
Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]

EXIT_ERROR = 1
EXIT_BUG = 70
EXIT_INTERRUPTED = 130
MAX_SECRET = 1 << 20
"""Longest passphrase that is read from a file, in bytes."""


# Errors ---------------------------------------------------------------------------------------------------------------


def debug_wanted() -> bool:
    """Whether `--debug` was given to the running command."""
    context = click.get_current_context(silent=True)
    return bool(context is not None and context.meta.get("qwb.debug"))


def complain(message: str) -> None:
    """One line on stderr, `qwb: …`; nothing in it can steer the terminal."""
    with contextlib.suppress(OSError):
        click.echo(f"qwb: {printable(message)}", err=True)


@contextlib.contextmanager
def friendly_errors(code: int = EXIT_ERROR) -> Iterator[None]:
    """Turn errors into one line on stderr and an exit code: `code`, or 130 after Ctrl-C; `--debug` lets them through.

    A reader that closed our pipe (`qwb … | head`) ends the command quietly with 1, as in other tools.
    """
    try:
        yield
    except BrokenPipeError:
        # What is still buffered must not fail again when the interpreter flushes at exit.
        _silence_stdout()
        raise click.exceptions.Exit(EXIT_ERROR) from None
    except KeyboardInterrupt:
        if debug_wanted():
            raise
        complain("interrupted")
        raise click.exceptions.Exit(EXIT_INTERRUPTED) from None
    except (QwbError, OSError, MemoryError) as error:
        if debug_wanted():
            raise
        complain(_one_line(error))
        raise click.exceptions.Exit(code) from error


def _one_line(error: BaseException) -> str:
    if isinstance(error, GateRefused):
        return f"{error}" if error.hint else f"{error}; allow it with --backing PATH, or leave it out with --no-backing"
    if isinstance(error, OSError):
        name = os.fsdecode(error.filename) if isinstance(error.filename, (str, bytes)) else "output"
        return f"{name}: {error.strerror or error}"
    if isinstance(error, MemoryError):
        return "not enough memory"
    return str(error)


def handle_errors(command: Callable[P, R]) -> Callable[P, R]:
    """Decorator: `friendly_errors` around a command's function."""

    @functools.wraps(command)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        with friendly_errors():
            return command(*args, **kwargs)

    return wrapped


def _silence_stdout() -> None:
    with contextlib.suppress(OSError, ValueError):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, sys.stdout.fileno())
        os.close(null)


# Options --------------------------------------------------------------------------------------------------------------


def _set_debug(context: click.Context, _: click.Parameter, value: bool) -> None:
    if value:
        context.meta["qwb.debug"] = True


image_argument: Decorator = click.argument("image", type=click.Path(path_type=Path))
json_option: Decorator = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
secret_option: Decorator = click.option(
    "--secret-file",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="File with the passphrase of a LUKS or AES image ('-': standard input). Asked for on a terminal otherwise.",
)
force_share_option: Decorator = click.option(
    "-U",
    "--force-share",
    is_flag=True,
    help="Read although another program holds the image; what is shown may be in motion.",
)
no_backing_option: Decorator = click.option("--no-backing", is_flag=True, help="Do not open any backing file.")
backing_option: Decorator = click.option(
    "--backing",
    type=click.Path(path_type=Path),
    metavar="PATH",
    help="Open PATH instead of the backing file that the image names.",
)
snapshot_option: Decorator = click.option(
    "--snapshot", metavar="NAME", help="Look at the internal snapshot NAME (or ID)."
)
debug_option: Decorator = click.option(
    "--debug", is_flag=True, expose_value=False, is_eager=True, callback=_set_debug, help="Show tracebacks of errors."
)


def image_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """All options of commands that read through the guest's eyes; parameters: see `open_image`."""
    for option in (snapshot_option, backing_option, no_backing_option, force_share_option, secret_option):
        command = option(command)
    return command


class Size(click.ParamType):  # type: ignore[type-arg]  # generic from click 8.4 on
    """A byte count: `64k`, `0x200`, `1.5G`."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        from workbench.units import parse_size

        if isinstance(value, int):
            return value
        try:
            return parse_size(value)
        except (ValueError, OverflowError):
            self.fail(f"{value!r} is not a size (such as 65536, 64k, 0x10000)", param, ctx)


SIZE = Size()


# Opening --------------------------------------------------------------------------------------------------------------


def mind_interrupted(path: Path | str, *, writable: bool = False) -> None:
    """Say on stderr that a repair of the image was cut off; raise StorageError when it is about to be written."""
    from workbench.repair.cases import find_case, peek

    if find_case(path) is None:
        return
    try:
        found = peek(path)
    except StorageError as error:
        if writable:
            raise
        complain(str(error))
        return
    if found is None:
        return
    what = f"the repair of {found.when} was interrupted, so the image is between old and new"
    if writable:
        raise StorageError(what, path=str(path), hint="end it first: `qwb repair IMAGE --recover`")
    complain(f"{path}: {what}; `qwb repair {path} --recover` ends it")


@contextlib.contextmanager
def open_storage(path: Path | str, *, force_share: bool = False) -> Iterator[FileStorage]:
    """The image file, read-only, under QEMU's reading locks, for commands that look at metadata only.

    Raises StorageError, LockedError. With `force_share` an image in use is read too, and stderr says so.
    """
    from workbench.storage.file import FileStorage
    from workbench.storage.locks import LockMode, acquire, state_of

    mind_interrupted(path)
    with FileStorage.open(path) as storage:
        if force_share and state_of(storage).in_motion:
            complain(f"{path}: in use by another program; what is shown may be in motion")
        with acquire(storage, LockMode.FORCE_READ if force_share else LockMode.READ):
            yield storage


def open_image(
    path: Path | str,
    *,
    writable: bool = False,
    secret_file: Path | None = None,
    secret: bytes | None = None,
    force_share: bool = False,
    no_backing: bool = False,
    backing: Path | None = None,
    snapshot: str | None = None,
    tolerant: bool = False,
    unlock: bool = True,
) -> Image:
    """`Image.open` with what the common options said; the caller closes it.

    secret: the passphrase, where `secret_file` was read already.  unlock: try the passphrase now; where no option gave
    one it is asked for on a terminal. Without it (commands that read no guest data) none is needed. Raises what Image.open raises, PassphraseError, ArgumentError.
    """
    from workbench.engine import gate
    from workbench.engine.image import Image

    if no_backing and backing is not None:
        raise ArgumentError("--backing and --no-backing exclude each other")
    mind_interrupted(path, writable=writable)
    policy = gate.redirect(backing) if backing is not None else gate.no_backing if no_backing else gate.allow_local

    def attempt(key: bytes | None) -> Image:
        image = Image.open(
            path,
            writable=writable,
            gate=policy,
            secret=key,
            snapshot=snapshot,
            force_share=force_share,
            tolerant=tolerant,
        )
        if unlock:
            try:
                image.unlock()
            except BaseException:
                image.close()
                raise
        return image

    if secret is None:
        secret = read_secret(secret_file)
    try:
        return attempt(secret)
    except PassphraseError:
        if secret is not None or not sys.stdin.isatty():
            raise
        typed: str = click.prompt(f"Passphrase of {printable(str(path))}", hide_input=True, err=True)
        return attempt(typed.encode())


def read_secret(secret_file: Path | None) -> bytes | None:
    """The passphrase in `secret_file` ('-': standard input) without a newline at its end; None without a file.

    Raises StorageError when it cannot be read, ArgumentError when it is empty or absurdly long.
    """
    if secret_file is None:
        return None
    try:
        if str(secret_file) == "-":
            data = sys.stdin.buffer.read(MAX_SECRET + 1)
        else:
            with open(secret_file, "rb") as file:
                data = file.read(MAX_SECRET + 1)
    except OSError as error:
        raise StorageError(f"cannot read the secret: {error.strerror}", path=str(secret_file)) from error
    if len(data) > MAX_SECRET:
        raise ArgumentError("the secret is longer than 1 MiB", path=str(secret_file))
    data = data.removesuffix(b"\n").removesuffix(b"\r")
    if not data:
        raise ArgumentError("the secret is empty", path=str(secret_file))
    return data


# Output ---------------------------------------------------------------------------------------------------------------


def print_json(value: Any) -> None:
    """`value` as indented JSON (ASCII, as qemu-img prints it)."""
    import json

    click.echo(json.dumps(value, indent=4))


def print_lines(lines: Iterable[str]) -> None:
    """Lines on stdout, written in large pieces so that long dumps stay fast and memory stays flat."""
    out = sys.stdout
    pending: list[str] = []
    size = 0
    for line in lines:
        pending.append(line)
        size += len(line)
        if size > 1 << 16:
            out.write("\n".join(pending) + "\n")
            pending, size = [], 0
    if pending:
        out.write("\n".join(pending) + "\n")
    out.flush()
