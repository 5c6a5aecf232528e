"""A qemu-io session: the open image, the command table, and the loop over command lines."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from workbench.engine.image import Image
from workbench.engine.qio import commands
from workbench.engine.qio.commands import Command, options
from workbench.engine.qio.helptext import HELP
from workbench.engine.qio.text import Refused
from workbench.errors import QwbError

Print = Callable[[str], object]


@dataclass(frozen=True, slots=True)
class OpenOptions:
    """How images are opened. extra: cache sizes, overlap-check, lazy-refcounts (QEMU's names).

    unmap: discards and `write -zu` give space back (qemu-io's `-d unmap`, its default).
    """

    writable: bool = True
    force_share: bool = False
    unmap: bool = True
    secret: bytes | None = None
    extra: Mapping[str, object] = field(default_factory=dict)


class Session:
    """Runs commands; `status` is 1 once one of them failed. print, complain: stdout and stderr, whole lines."""

    def __init__(self, print: Print, complain: Print, opening: OpenOptions | None = None) -> None:
        self.print = print
        self._complain = complain
        self.opening = opening or OpenOptions()
        self.path: str | None = None
        self._image: Image | None = None
        self._buffer = bytearray()
        self.done = False
        self.status = 0

    # -- for the commands

    @property
    def image(self) -> Image:
        assert self._image is not None
        return self._image

    @property
    def unmap(self) -> bool:
        return self.opening.unmap

    def complain(self, text: str) -> None:
        """A line on stderr."""
        self._complain(text + "\n")

    def failed(self, text: str, error: QwbError) -> bool:
        """Print the failure as qemu-io does, with our own words on stderr; always False."""
        if text:
            self.print(text + "\n")
        if not isinstance(error.__cause__, OSError):
            self.complain(f"qwb: {error}")
        return False

    def may_write(self) -> bool:
        """False, with qemu-io's words, on a read-only image."""
        if not self.opening.writable:
            self.complain("qemu-io: Block node is read-only")
            return False
        return True

    def buffer(self, length: int, byte: int) -> memoryview:
        """A buffer of `length` bytes for reading; `byte` fills it where nothing is read."""
        if len(self._buffer) < length:
            self._buffer = bytearray(length)
        return memoryview(self._buffer)[:length]

    # -- opening and closing

    def open(self, path: str, opening: OpenOptions | None = None, storage: Any = None) -> bool:
        """Open an image; False, with a line on stderr, when it cannot be."""
        opening = opening or self.opening
        extra = {"discard": "unmap" if opening.unmap else "ignore", **opening.extra}
        try:
            image = Image.open(
                path,
                writable=opening.writable,
                secret=opening.secret,
                force_share=opening.force_share,
                storage=storage,
                options=extra,
            )
            try:
                image.unlock()
                if opening.writable:
                    _ = image.writer  # bad options are told now
            except BaseException:
                image.close()
                raise
        except QwbError as error:
            self.complain(f"qemu-io: can't open device {path}: {_open_words(error)}")
            return False
        self._image, self.path, self.opening = image, path, opening
        return True

    def close(self) -> bool:
        """Close the image, if any; False when what was still to be written could not be."""
        image, self._image = self._image, None
        if image is None:
            return True
        try:
            image.close()
        except QwbError as error:
            self.complain(f"qwb: closing failed: {error}")
            return False
        return True

    # -- running

    def run(self, line: str) -> bool:
        """One command line; False when it failed."""
        words = line.split(" ")
        if "" in words:
            words = [each for each in words if each]
        if not words:
            return True
        good = self._run(words[0], words[1:])
        if not good:
            self.status = 1
        return good

    def _run(self, name: str, args: list[str]) -> bool:
        command = COMMANDS.get(name)
        if command is None:
            self.complain(f'command "{name}" not found')
            return False
        if command.needs_file and self._image is None:
            self.complain("no file open, try 'help open'")
            return False
        if len(args) < command.least or (command.most >= 0 and len(args) > command.most):
            self.complain(f"bad argument count {len(args)} to {name}, {_expected(command)}")
            return False
        try:
            return command.run(self, args)
        except Refused as error:
            if error.usage:
                self.print(usage(command))
            elif error.text:
                (self._complain if error.on_stderr else self.print)(error.text + "\n")
            return False
        except QwbError as error:
            return self.failed("", error)


def usage(command: Command) -> str:
    """The one-line description."""
    args = f"{command.args} " if command.args or command.name == "map" else ""
    return f"{command.name} {args}-- {command.oneline}\n"


def _expected(command: Command) -> str:
    if command.most < 0:
        return f"expected at least {command.least} arguments"
    if command.least == command.most:
        return f"expected {command.least} arguments"
    return f"expected between {command.least} and {command.most} arguments"


# -- commands about the session itself


def _open(session: Session, args: list[str]) -> bool:
    given, rest = options(session, "open", args, "snCro:ki:t:d:U")
    if session._image is not None:
        session.complain("qemu-io: file open already, try 'help close'")
        return False
    extra = parse_settings(given["-o"]) if "-o" in given else {}
    path = rest[0] if rest else extra.pop("file.filename", extra.pop("filename", None))
    if len(rest) > 1 or path is None:
        raise Refused(usage=True)
    now = session.opening
    opening = OpenOptions(
        writable="-r" not in given,
        force_share="-U" in given,
        unmap=given.get("-d", "unmap") in ("unmap", "on"),
        secret=now.secret,
        extra={**now.extra, **extra},
    )
    return session.open(str(path), opening)


def _close(session: Session, args: list[str]) -> bool:
    return session.close()


def _reopen(session: Session, args: list[str]) -> bool:
    given, rest = options(session, "reopen", args, "c:o:rw")
    if rest or ("-r" in given and "-w" in given):
        raise Refused(usage=True)
    now, path = session.opening, session.path
    assert path is not None
    writable = "-r" not in given and (now.writable or "-w" in given)
    extra = {**now.extra, **(parse_settings(given["-o"]) if "-o" in given else {})}
    good = session.close()
    return session.open(path, OpenOptions(writable, now.force_share, now.unmap, now.secret, extra)) and good


def _quit(session: Session, args: list[str]) -> bool:
    session.done = True
    return True


def _help(session: Session, args: list[str]) -> bool:
    if not args:
        session.print("".join(usage(COMMANDS[name]) for name in sorted(COMMANDS) if COMMANDS[name].name == name))
        session.print("\nUse 'help commandname' for extended help.\n")
        return True
    command = COMMANDS.get(args[0])
    if command is None:
        session.print(f"command {args[0]} not found\n")
        return False
    session.print(usage(command) + (command.help and f"{command.help}\n"))
    return True


def _sleep(session: Session, args: list[str]) -> bool:
    try:
        time.sleep(max(0, int(args[0], 0)) / 1000)
    except ValueError:
        session.print(f"{args[0]} is no number of milliseconds\n")
        return False
    return True


def parse_settings(text: str) -> dict[str, object]:
    """`a=1,b=x` as QEMU's -o and --image-opts take them; sizes stay text."""
    found: dict[str, object] = {}
    for part in text.replace(",,", "\0").split(","):
        name, separator, value = part.replace("\0", ",").partition("=")
        if name:
            found[name] = value if separator else "on"
    return found


COMMANDS: Final[dict[str, Command]] = {
    each.name: each
    for each in (
        Command("aio_flush", "", "completes all outstanding aio requests", commands.aio_flush, 0, 0),
        Command(
            "aio_read", "[-Ciqv] [-P pattern] off len [len..]", "asynchronously reads a number of bytes",
            commands.aio_read, 2, -1, help=HELP["aio_read"],
        ),
        Command(
            "aio_write", "[-Cfiquz] [-P pattern] off len [len..]", "asynchronously writes a number of bytes",
            commands.aio_write, 2, -1, help=HELP["aio_write"],
        ),
        Command("alloc", "offset [count]", "checks if offset is allocated in the file", commands.alloc, 1, 2),
        Command("close", "", "close the current open file", _close, 0, 0, needs_file=True),
        Command("discard", "[-Cq] off len", "discards a number of bytes at a specified offset", commands.discard, 2, -1,
                help=HELP["discard"]),
        Command("flush", "", "flush all in-core file state to disk", commands.flush, 0, 0),
        Command("help", "[command]", "help for one or all commands", _help, 0, 1, needs_file=False),
        Command("info", "", "prints information about the current file", commands.info, 0, 0),
        Command("length", "", "gets the length of the current file", commands.length, 0, 0),
        Command("map", "", "prints the allocated areas of a file", commands.mapping, 0, 0),
        Command("open", "[-rsCnkU] [-t cache] [-d discard] [-o options] [path]", "open the file specified by path",
                _open, 1, -1, needs_file=False, help=HELP["open"]),
        Command("quit", "", "exit the program", _quit, 0, 0, needs_file=False),
        Command("read", "[-abCqv] [-P pattern [-s off] [-l len]] off len",
                "reads a number of bytes at a specified offset", commands.read, 2, -1, help=HELP["read"]),
        Command("readv", "[-Cqv] [-P pattern] off len [len..]", "reads a number of bytes at a specified offset",
                commands.readv, 2, -1, help=HELP["readv"]),
        Command("reopen", "[(-r|-w)] [-c cache] [-o options]", "reopens an image with new options", _reopen, 0, -1,
                help=HELP["reopen"]),
        Command("sleep", "", "waits for the given value in milliseconds", _sleep, 1, 1, needs_file=False),
        Command("truncate", "[-m prealloc_mode] off", "truncates the current file at the given offset",
                commands.truncate, 1, 3),
        Command("write", "[-bcCfnquz] [-P pattern | -s source_file] off len",
                "writes a number of bytes at a specified offset", commands.write, 2, -1, help=HELP["write"]),
        Command("writev", "[-Cfq] [-P pattern] off len [len..]", "writes a number of bytes at a specified offset",
                commands.writev, 2, -1, help=HELP["writev"]),
    )
}  # fmt: skip
COMMANDS.update(
    {
        alias: COMMANDS[name]
        for alias, name in {
            "c": "close", "d": "discard", "f": "flush", "?": "help", "i": "info", "l": "length", "o": "open",
            "q": "quit", "exit": "quit", "r": "read", "rv": "readv", "t": "truncate", "w": "write", "wv": "writev",
        }.items()
    }
)  # fmt: skip


def _open_words(error: QwbError) -> str:
    """Why an image does not open: in qemu-io's words where a file cannot be opened, of the file that is meant."""
    reason = error.__cause__
    if not isinstance(reason, OSError):
        advice = error.hint
        error.hint = None if advice and "--backing" in advice else advice  # qemu-io has no such options
        return str(error)
    words = (
        f"Could not open '{os.fsdecode(reason.filename)}': {reason.strerror}"
        if reason.filename
        else str(reason.strerror)
    )
    return f"Could not open backing file: {words}" if error.what.startswith("the backing file") else words
