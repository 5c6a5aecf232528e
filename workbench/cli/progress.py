"""Progress of copies and comparisons: a line on stderr when it takes long, or the percentage that qemu-img's -p prints."""

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


@contextlib.contextmanager
def progress_line() -> Iterator[Progress | None]:
    """A progress line on stderr when it is a terminal and the work takes longer than a second."""
    if not sys.stderr.isatty():
        yield None
        return
    meter = _Meter()
    try:
        yield meter
    finally:
        meter.clear()


class _Meter:
    """Draws `  42.0 %` over itself."""

    def __init__(self) -> None:
        self._next = time.monotonic() + _AFTER
        self._shown = False

    def __call__(self, done: int, total: int) -> None:
        now = time.monotonic()
        if now < self._next:
            return
        self._next, self._shown = now + _EVERY, True
        sys.stderr.write(f"\r{100 * done / max(total, 1):6.1f} %")
        sys.stderr.flush()

    def clear(self) -> None:
        """Leave no half line behind."""
        if self._shown:
            sys.stderr.write("\r         \r")
            sys.stderr.flush()


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
