"""Progress of what takes long: one line on stderr, or the percentage that qemu-img's -p prints."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from typing import Final

import click

Progress = Callable[[int, int], None]
"""(bytes done, bytes in all)."""

_AFTER: Final = 1.0
_EVERY: Final = 0.1
_STEP: Final = 2.0


class StatusLine:
    """One line on stderr, drawn over itself: from a second after it was made, and on a terminal only.

    A context manager, which wipes the line in the end. clock: seconds, from anywhere.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._started = clock()
        self._wanted = sys.stderr.isatty()
        self._drawn: float | None = None
        self._what = ""

    def __enter__(self) -> StatusLine:
        return self

    def __exit__(self, *why: object) -> None:
        if self._drawn is not None:
            self._write("")

    def say(self, what: str, done: int = 0, total: int = 0) -> None:
        """What is going on, and which share of it is done where that is known (`total` not 0)."""
        self._draw(what, f"{what} {100 * done // total} %" if total else f"{what} …")

    def share(self, done: int, total: int, what: str = "") -> None:
        """`what:  42.0 %  310 MiB/s  3 s left` of `total` bytes; nothing where that is not known (0)."""
        if not total:
            return
        rate = done / max(self._clock() - self._started, 1e-9)
        left = f"  {(total - done) / rate:.0f} s left" if rate else ""
        label = f"{what}: " if what else ""
        self._draw(what, f"{label}{100 * done / total:5.1f} %  {rate / (1 << 20):.0f} MiB/s{left}")

    def _draw(self, what: str, text: str) -> None:
        now = self._clock()
        often = self._drawn is not None and what == self._what and now - self._drawn < _EVERY
        if self._wanted and now - self._started >= _AFTER and not often:
            self._drawn, self._what = now, what
            self._write(text)

    def _write(self, text: str) -> None:
        sys.stderr.write(f"\r\x1b[K{text}")
        sys.stderr.flush()


@contextlib.contextmanager
def progress_line() -> Iterator[Progress | None]:
    """A `StatusLine` for copies and comparisons; None where nobody would see it."""
    if not sys.stderr.isatty():
        yield None
        return
    with StatusLine() as line:
        yield line.share


@contextlib.contextmanager
def percentage() -> Iterator[Progress]:
    """qemu-img's -p: `    (42.00/100%)` on stdout, drawn over itself every two percent, and a newline at the end."""
    shown = 0.0

    def draw(done: int, total: int) -> None:
        nonlocal shown
        now = 100 * done / max(total, 1)
        if now - shown > _STEP or now >= 100 > shown:
            shown = now
            write(now)

    def write(now: float) -> None:
        click.echo(f"    ({now:.2f}/100%)\r", nl=False)

    write(0)
    try:
        yield draw
    finally:
        click.echo()
