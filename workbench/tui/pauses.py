"""Garbage is collected while nobody is typing, so that no key waits for it."""

from __future__ import annotations

import gc
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from textual.app import App

REST = 0.4
"""Seconds without a key or the mouse after which a collection is not felt."""

ENOUGH = 20_000
"""New objects that are worth a collection."""


class Pauses:
    """When to look for garbage. A full collection among a quarter of a million objects, half of them the interface's own
    classes and style rules, takes 60 to 130 ms: more than a key may wait."""

    def __init__(self) -> None:
        self.last_input = time.monotonic()

    def touched(self) -> None:
        """A key was pressed or the mouse moved."""
        self.last_input = time.monotonic()

    def begin(self, app: App[None]) -> None:
        """Take over from Python's own schedule, for an app that has the process to itself.

        What there is by now stays to the end, so it is left out of every later look.
        """
        gc.freeze()
        gc.set_threshold(ENOUGH, 50, 1_000)
        gc.enable()
        app.set_interval(REST / 2, self.look)

    def look(self) -> None:
        """Collect, if there is something to collect and a moment to do it."""
        young, middle, old = gc.get_count()
        if (old or middle or young > ENOUGH // 4) and time.monotonic() - self.last_input > REST:
            gc.collect()
