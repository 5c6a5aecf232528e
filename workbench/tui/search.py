"""Searching a file or a guest's disk for bytes: in windows, holes skipped, stoppable. Runs in a worker."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

from workbench.errors import ArgumentError

if TYPE_CHECKING:
    from workbench.engine.image import Image

WINDOW: Final = 4 << 20
Step = Callable[[int, int], None]


class Source(Protocol):
    """Bytes that can be searched: a file, or a guest's disk."""

    def size(self) -> int:
        """Bytes that there are."""

    def read(self, offset: int, length: int) -> bytes:
        """Bytes from `offset`, fewer only at the end."""

    def next_data(self, offset: int) -> int | None:
        """The first byte at or after `offset` that may be other than zero; None when there is none."""


class GuestSource:
    """The guest's disk as bytes: decrypted, decompressed, through the backing chain; what is not allocated is skipped."""

    def __init__(self, image: Image) -> None:
        self._image = image

    def size(self) -> int:
        return self._image.size

    def read(self, offset: int, length: int) -> bytes:
        return self._image.read(offset, max(0, min(length, self._image.size - offset)))

    def next_data(self, offset: int) -> int | None:
        image = self._image
        extents = image.extents(offset, max(0, image.size - offset)) if offset < image.size else ()
        return next((max(offset, each.start) for each in extents if each.data and not each.zero), None)


@dataclass(frozen=True, slots=True)
class Query:
    """What is searched for. needle: bytes; value: a number in the table shown (needle empty then)."""

    text: str
    needle: bytes = b""
    value: int | None = None


def parse_query(text: str, *, table: bool = False) -> Query:
    """`hello` text; `x:de ad be ef` bytes; `=0x50000` a value in the table shown. Raises ArgumentError.

    table: a table is shown, so that `0x50000` means a value in it.
    """
    if table and re.fullmatch(r"0x[0-9a-fA-F_]+", text.strip()):
        text = "=" + text.strip()
    if text.startswith("="):
        try:
            return Query(text, value=int(text[1:].strip().replace("_", ""), 0))
        except ValueError:
            raise ArgumentError(f"{text[1:]!r} is no number", hint="such as =0x50000 or =7") from None
    if text.lower().startswith(("x:", "hex:")):
        digits = text.partition(":")[2]
        try:
            needle = bytes.fromhex(digits)
        except ValueError:
            raise ArgumentError(f"{digits!r} is not hex", hint="such as x:51 46 49 fb") from None
    else:
        needle = text.encode("utf-8")
    if not needle:
        raise ArgumentError("nothing to search for")
    return Query(text, needle)


def find_bytes(storage: Source, needle: bytes, start: int, step: Step, *, backwards: bool = False) -> int | None:
    """Offset of the first hit at or after `start` (before it, backwards), going once around the file; None without one."""
    size = storage.size()
    ranges = ((0, start), (start, size)) if backwards else ((start, size), (0, min(size, start + len(needle) - 1)))
    done = 0
    for low, high in ranges:
        found = (
            _last(storage, needle, low, high, step, done, size)
            if backwards
            else _first(storage, needle, low, high, step, done, size)
        )
        if found is not None:
            return found
        done += high - low
    return None


def _first(storage: Source, needle: bytes, low: int, high: int, step: Step, done: int, total: int) -> int | None:
    at, zeros = low, not any(needle)
    while at < high:
        step(min(done + at - low, total), total)
        if not zeros:  # a hole holds zeros only
            data = storage.next_data(at)
            if data is None or data >= high:
                return None
            at = max(at, data - len(needle) + 1)
        window = storage.read(at, min(WINDOW, high - at) + len(needle) - 1)
        found = window.find(needle)
        if found >= 0:
            return at + found if at + found < high else None
        at += WINDOW
    return None


def _last(storage: Source, needle: bytes, low: int, high: int, step: Step, done: int, total: int) -> int | None:
    end = high
    while end > low:
        step(min(done + high - end, total), total)
        start = max(low, end - WINDOW)
        window = storage.read(start, end - start + len(needle) - 1)
        found = window.rfind(needle, 0, end - start + len(needle) - 1)
        if found >= 0 and start + found < high:
            return start + found
        end = start
    return None
