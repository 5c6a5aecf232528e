"""Numbers in, reports out, exactly as qemu-io reads and prints them (QEMU: qemu-io-cmds.c, cutils.c)."""

from __future__ import annotations

import errno
import os
from typing import Final

from workbench.errors import ArgumentError, LockedError, QwbError, StorageError, UnsupportedError
from workbench.units import parse_size

MAX_LENGTH: Final = 2147483136
"""BDRV_REQUEST_MAX_BYTES: the longest single request."""
_UNITS: Final = (
    (1 << 60, "EiB"),
    (1 << 50, "PiB"),
    (1 << 40, "TiB"),
    (1 << 30, "GiB"),
    (1 << 20, "MiB"),
    (1 << 10, "KiB"),
)


class Refused(Exception):
    """A command's arguments make no sense; the text is what qemu-io prints. usage: print the command's usage line."""

    def __init__(self, text: str = "", *, usage: bool = False, on_stderr: bool = False) -> None:
        super().__init__(text)
        self.on_stderr = on_stderr
        self.text = text
        self.usage = usage


def number(text: str) -> int:
    """A byte count as qemu-io reads it. Refused with its words otherwise."""
    if text.isdigit() and len(text) < 19 and (text[0] != "0" or text == "0"):
        return int(text)
    try:
        if "e" in text.lower() and not text.lower().startswith("0x") and text[-1] not in "eE":
            raise ValueError(text)  # 1e3 is no size to QEMU
        value = parse_size(text)
    except (ValueError, OverflowError):
        raise Refused(f"Parsing error: non-numeric argument, or extraneous/unrecognized suffix -- {text}") from None
    if value >= 1 << 63:
        raise Refused(f"Parsing error: argument too large -- {text}")
    return value


def length_argument(text: str) -> int:
    """A length that fits one request."""
    value = number(text)
    if value > MAX_LENGTH:
        raise Refused(f"length cannot exceed {MAX_LENGTH}, given {text}")
    return value


def pattern(text: str) -> int:
    """A byte value, decimal, octal or hexadecimal."""
    try:
        value = int(text, 8) if len(text) > 1 and text[0] == "0" and text[1:].isdigit() else int(text, 0)
    except ValueError:
        value = -1
    if not 0 <= value <= 255:
        raise Refused(f"{text} is not a valid pattern byte")
    return value


def size_text(value: float) -> str:
    """`64 KiB`, `1.500 MiB`, `12 bytes`."""
    for unit, name in _UNITS:
        if value >= unit:
            return f"{value / unit:.3f} {name}".replace(".000 ", " ")
    text = f"{value:f}"
    at = text.find(".000")
    return f"{text[:at] if at >= 0 else text} bytes"


def time_text(seconds: float, *, fixed: bool) -> str:
    """`00.02 sec`, or hours, minutes and seconds."""
    whole = int(seconds)
    if fixed or whole:
        return f"{whole // 3600}:{whole // 60 % 60:02d}:{whole % 60 + seconds - whole:05.2f}"
    return f"{seconds:05.2f} sec"


def report(what: str, seconds: float, offset: int, count: int, total: int, *, machine: bool) -> str:
    """The lines after a request. machine: the `-C` form."""
    seconds = max(seconds, 1e-9)
    per_second = total / seconds
    if machine:
        return f"{total},1,{time_text(seconds, fixed=True)},{per_second:.3f},{1 / seconds:.3f}\n"
    return (
        f"{what} {total}/{count} bytes at offset {offset}\n"
        f"{size_text(total)}, 1 ops; {time_text(seconds, fixed=False)}"
        f" ({size_text(per_second)}/sec and {1 / seconds:.4f} ops/sec)\n"
    )


def dump(data: bytes | bytearray, offset: int) -> str:
    """Hex and letters, 16 bytes a line."""
    lines = []
    for at in range(0, len(data), 16):
        row = data[at : at + 16]
        letters = "".join(chr(b) if b < 128 and chr(b).isalnum() else "." for b in row)
        lines.append(f"{offset + at:08x}:  " + "".join(f"{b:02x} " for b in row) + f" {letters}\n")
    return "".join(lines)


def error_text(error: QwbError) -> str:
    """What strerror says about the errno that QEMU would have returned."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.errno:
            return os.strerror(cause.errno)
        cause = cause.__cause__
    if isinstance(error, LockedError):
        return os.strerror(errno.EAGAIN)
    if isinstance(error, StorageError):
        return os.strerror(errno.ENOSPC if "No space" in error.what else errno.EIO)
    if isinstance(error, UnsupportedError):
        return os.strerror(errno.ENOTSUP)
    if isinstance(error, ArgumentError):
        return os.strerror(errno.EINVAL)
    return os.strerror(errno.EIO)
