"""The commands that read, write and ask. Each takes the session and its arguments, and returns whether it went well."""

from __future__ import annotations

import getopt
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Final

from workbench.engine.qio.text import (
    MAX_LENGTH,
    Refused,
    dump,
    error_text,
    length_argument,
    number,
    pattern,
    report,
    size_text,
)
from workbench.errors import ArgumentError, QwbError
from workbench.units import SECTOR_SIZE

if TYPE_CHECKING:
    from workbench.engine.image import Image
    from workbench.engine.qio.session import Session

_FILL: Final = 0xCD
_READ_FILL: Final = 0xAB


@dataclass(frozen=True, slots=True)
class Command:
    """args: usage after the name.  least, most: number of arguments, most -1 for any.  options: getopt letters.
    needs_file: cannot run without an open image."""

    name: str
    args: str
    oneline: str
    run: Callable[[Session, list[str]], bool]
    least: int = 0
    most: int = -1
    needs_file: bool = True
    help: str = ""
    alias: str = ""


@lru_cache(maxsize=1024)
def _parsed(line: tuple[str, ...], letters: str) -> tuple[dict[str, str], list[str]]:
    try:
        options, rest = getopt.gnu_getopt(list(line), letters)
    except getopt.GetoptError as error:
        letter = error.opt[:1]
        if "requires argument" in error.msg:
            raise _BadOption(f"option requires an argument -- '{letter}'") from error
        raise _BadOption(f"invalid option -- '{letter}'") from error
    return dict(options), rest


class _BadOption(Exception):
    """What getopt(3) complains of on stderr; the usage line follows."""


def options(session: Session, name: str, args: list[str], letters: str) -> tuple[dict[str, str], list[str]]:
    """(options given, other arguments), in any order as GNU getopt takes them."""
    if not args or (args[0][0] != "-" and not any(each[0] == "-" for each in args)):
        return {}, args
    try:
        return _parsed(tuple(args), letters)
    except _BadOption as error:
        session.complain(f"{name}: {error}")
        raise Refused(usage=True) from None


@lru_cache(maxsize=8)
def _filled(byte: int, length: int) -> memoryview:
    return memoryview(bytes((byte,)) * length)


def _sector_aligned(offset: int, count: int) -> None:
    for value, name in ((offset, "offset"), (count, "count")):
        if value % SECTOR_SIZE:
            raise Refused(f"{value} is not a sector-aligned value for '{name}'")


# -- reading


def read(session: Session, args: list[str]) -> bool:
    given, rest = options(session, "read", args, "bCl:pP:qs:v")
    check_count = number(given["-l"]) if "-l" in given else None
    wanted = pattern(given["-P"]) if "-P" in given else None
    check_from = number(given["-s"]) if "-s" in given else 0
    if len(rest) != 2:
        raise Refused(usage=True)
    offset, count = number(rest[0]), length_argument(rest[1])
    if wanted is None and ("-l" in given or "-s" in given):
        raise Refused(usage=True)
    if check_count is None:
        check_count = count - check_from
    if check_count < 0 or check_count + check_from > count:
        raise Refused("pattern verification range exceeds end of read data")
    if "-b" in given:
        _sector_aligned(offset, count)
        raise Refused("read failed: Operation not supported")
    return _reading(
        session, "read", offset, count, given, None if wanted is None else (wanted, check_from, check_count)
    )


def _reading(
    session: Session,
    name: str,
    offset: int,
    count: int,
    given: dict[str, str],
    check: tuple[int, int, int] | None,
) -> bool:
    """Read, verify (byte, start, length), print."""
    buffer = session.buffer(count, _READ_FILL)
    start = time.perf_counter()
    try:
        if offset + count > session.image.size:
            raise _outside()
        session.image.readinto(offset, buffer)
    except QwbError as error:
        return session.failed(f"{name} failed: {error_text(error)}", error)
    seconds = time.perf_counter() - start
    good = True
    if check is not None:
        byte, low, length = check
        if buffer[low : low + length] != _filled(byte, length):
            session.print(f"Pattern verification failed at offset {offset + low}, {length} bytes\n")
            good = False
    if "-q" in given:
        return good
    shown = dump(bytes(buffer), offset) if "-v" in given else ""
    done = report("read", seconds, offset, count, count, machine="-C" in given)
    session.print(shown + done)
    return good


def _outside() -> QwbError:
    """QEMU answers EIO beyond the end of the disk."""
    error = ArgumentError("request beyond the end of the disk")
    error.__cause__ = OSError(5, "")
    return error


def readv(session: Session, args: list[str]) -> bool:
    return _readv(session, args, "readv", "CP:qv")


def aio_read(session: Session, args: list[str]) -> bool:
    _readv(session, args, "aio_read", "CP:iqv")
    return True


def _readv(session: Session, args: list[str], name: str, letters: str) -> bool:
    given, rest = options(session, name, args, letters)
    wanted = pattern(given["-P"]) if "-P" in given else None
    if len(rest) < 2:
        raise Refused(usage=True)
    offset, count = number(rest[0]), _vector(rest[1:])
    check = None if wanted is None else (wanted, 0, count)
    return _reading(session, name, offset, count, given, check)


def _vector(words: list[str]) -> int:
    total = 0
    for word in words:
        length = number(word)
        if length > MAX_LENGTH:
            raise Refused(f"Argument '{word}' exceeds maximum size {MAX_LENGTH}")
        total += length
        if total > MAX_LENGTH:
            raise Refused(f"The total number of bytes exceed the maximum size {MAX_LENGTH}")
    return total


# -- writing


def write(session: Session, args: list[str]) -> bool:
    given, rest = options(session, "write", args, "bcCfnpP:qs:uz")
    byte = pattern(given["-P"]) if "-P" in given else _FILL
    if len(rest) != 2:
        raise Refused(usage=True)
    zero = "-z" in given
    for bad, words in (
        ("-b" in given and zero, "-b and -z cannot be specified at the same time"),
        ("-f" in given and ("-b" in given or "-c" in given), "-f and -b or -c cannot be specified at the same time"),
        ("-n" in given and not zero, "-n requires -z to be specified"),
        ("-u" in given and not zero, "-u requires -z to be specified"),
        (
            zero + ("-P" in given) + ("-s" in given) > 1,
            "Only one of -z, -P, and -s can be specified at the same time",
        ),
    ):
        if bad:
            raise Refused(words)
    offset = number(rest[0])
    count = number(rest[1]) if "-n" in given else length_argument(rest[1])
    if "-b" in given or "-c" in given:
        _sector_aligned(offset, count)
    if "-b" in given:
        raise Refused("write failed: Operation not supported")
    if zero:
        return _zeroing(session, "write", offset, count, given)
    data = _from_file(given["-s"], count) if "-s" in given else _filled(byte, count)
    return _writing(session, "write", offset, data, given)


def _writing(session: Session, name: str, offset: int, data: memoryview, given: dict[str, str]) -> bool:
    count = len(data)
    if not session.may_write():
        return False
    start = time.perf_counter()
    try:
        image = session.image
        if offset + count > image.size:
            raise _outside()
        if "-c" in given:
            image.write_compressed(offset, data)
        else:
            image.write(offset, data)
        if "-f" in given:
            image.flush()
    except QwbError as error:
        return session.failed(f"{name} failed: {error_text(error)}", error)
    if "-q" not in given:
        seconds = time.perf_counter() - start
        session.print(report("wrote", seconds, offset, count, count, machine="-C" in given))
    return True


def _zeroing(session: Session, name: str, offset: int, count: int, given: dict[str, str]) -> bool:
    if not session.may_write():
        return False
    start = time.perf_counter()
    try:
        image = session.image
        if offset + count > image.size:
            raise _outside()
        image.writer.write_zeroes(offset, count, unmap="-u" in given and session.unmap, fallback="-n" not in given)
        if "-f" in given:
            image.flush()
    except QwbError as error:
        return session.failed(f"{name} failed: {error_text(error)}", error)
    if "-q" not in given:
        seconds = time.perf_counter() - start
        session.print(report("wrote", seconds, offset, count, count, machine="-C" in given))
    return True


def _from_file(name: str, count: int) -> memoryview:
    """The content of a file, repeated or cut to `count` bytes."""
    try:
        with open(name, "rb") as file:
            data = file.read(max(count, 1))
    except OSError as error:
        raise Refused(f"{name}: {error.strerror}", on_stderr=True) from error
    if not data:
        raise Refused(f"{name}: file is empty")
    return memoryview((data * (count // len(data) + 1))[:count])


def writev(session: Session, args: list[str]) -> bool:
    given, rest = options(session, "writev", args, "CfqP:")
    byte = pattern(given["-P"]) if "-P" in given else _FILL
    if len(rest) < 2:
        raise Refused(usage=True)
    return _writing(session, "writev", number(rest[0]), _filled(byte, _vector(rest[1:])), given)


def aio_write(session: Session, args: list[str]) -> bool:
    given, rest = options(session, "aio_write", args, "CfiP:quz")
    byte = pattern(given["-P"]) if "-P" in given else _FILL
    if len(rest) < 2:
        raise Refused(usage=True)
    if "-z" in given and len(rest) != 2:
        raise Refused("-z supports only a single length parameter")
    if "-u" in given and "-z" not in given:
        raise Refused("-u requires -z to be specified")
    if "-z" in given and "-P" in given:
        raise Refused("-z and -P cannot be specified at the same time")
    offset = number(rest[0])
    if "-z" in given:
        _zeroing(session, "aio_write", offset, number(rest[1]), given)
    else:
        _writing(session, "aio_write", offset, _filled(byte, _vector(rest[1:])), given)
    return True


def aio_flush(session: Session, args: list[str]) -> bool:
    """Requests are complete when their command ends: only their effects are flushed here, as blk_drain leaves them."""
    return True


def discard(session: Session, args: list[str]) -> bool:
    given, rest = options(session, "discard", args, "Cq")
    if len(rest) != 2:
        raise Refused(usage=True)
    offset, count = number(rest[0]), length_argument(rest[1])
    if not session.may_write():
        return False
    start = time.perf_counter()
    try:
        if offset + count > session.image.size:
            raise _outside()
        if session.unmap:
            session.image.discard(offset, count)
    except QwbError as error:
        return session.failed(f"discard failed: {error_text(error)}", error)
    if "-q" not in given:
        seconds = time.perf_counter() - start
        session.print(report("discard", seconds, offset, count, count, machine="-C" in given))
    return True


def flush(session: Session, args: list[str]) -> bool:
    try:
        session.image.flush()
    except QwbError as error:
        return session.failed("", error)
    return True


def truncate(session: Session, args: list[str]) -> bool:
    from workbench.engine.write.prealloc import Preallocation

    given, rest = options(session, "truncate", args, "m:")
    try:
        mode = Preallocation(given.get("-m", "off"))
    except ValueError:
        session.complain(f"qemu-io: Invalid preallocation mode '{given['-m']}'")
        return False
    size = number(rest[0])
    if not session.may_write():
        return False
    try:
        session.image.writer.truncate(size, mode)
    except QwbError as error:
        what = error.what[:1].upper() + error.what[1:]
        session.complain(f"qemu-io: {what}")
        return False
    return True


# -- asking


def length(session: Session, args: list[str]) -> bool:
    session.print(f"{size_text(session.image.size)}\n")
    return True


def alloc(session: Session, args: list[str]) -> bool:
    start = number(args[0])
    count = number(args[1]) if len(args) > 1 else SECTOR_SIZE
    end = min(start + count, session.image.size)
    allocated = sum(size for at, size, present in _presence(session.image, start, end) if present)
    session.print(f"{allocated}/{max(0, end - start)} bytes allocated at offset {size_text(start)}\n")
    return True


def mapping(session: Session, args: list[str]) -> bool:
    for at, size, present in _presence(session.image, 0, session.image.size):
        state = "    allocated" if present else "not allocated"
        session.print(f"{size_text(size)} ({size:#x}) bytes {state} at offset {size_text(at)} ({at:#x})\n")
    return True


def _presence(image: Image, start: int, end: int) -> list[tuple[int, int, bool]]:
    """(offset, length, whether this layer says anything) of the runs in a range, neighbours merged."""
    found: list[tuple[int, int, bool]] = []
    if start >= end:
        return found
    for each in image.layer_extents(start, end - start):
        if found and found[-1][2] == each.present:
            found[-1] = (found[-1][0], found[-1][1] + each.length, each.present)
        else:
            found.append((each.start, each.length, each.present))
    return found


def info(session: Session, args: list[str]) -> bool:
    from workbench.engine.info import image_info

    image = session.image
    geometry = image.geometry
    state = geometry.l1_entries_for(image.size) * geometry.l2_coverage
    lines = [
        "format name: qcow2",
        f"cluster size: {size_text(geometry.cluster_size)}",
        f"vm state offset: {size_text(state)}",
        "Format specific information:",
        *_tree(image_info(image.meta, image.path)["format-specific"]["data"], 1),
    ]
    session.print("\n".join(lines) + "\n")
    return True


_INFO_FIRST: Final = ("compat", "compression-type", "lazy-refcounts", "bitmaps", "refcount-bits", "corrupt")


def _tree(value: object, depth: int) -> list[str]:
    """A JSON tree as bdrv_image_info_specific_dump prints it."""
    indent = "    " * depth
    lines: list[str] = []
    if isinstance(value, dict):
        rows = sorted(value.items(), key=lambda row: _INFO_FIRST.index(row[0]) if row[0] in _INFO_FIRST else 99)
        pairs = [(str(key).replace("-", " "), each) for key, each in rows]
    elif isinstance(value, list):
        pairs = [(f"[{number}]", each) for number, each in enumerate(value)]
    else:
        return [f"{indent}{value}"]
    for key, each in pairs:
        if isinstance(each, (dict, list)):
            lines.append(f"{indent}{key}:")
            lines += _tree(each, depth + 1)
        else:
            text = str(each).lower() if isinstance(each, bool) else str(each)
            lines.append(f"{indent}{key}: {text}")
    return lines
