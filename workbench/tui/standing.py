"""Whether a screen is there to be spoken to: keys, timers and answers of workers can reach it too early and too late."""

from __future__ import annotations

from textual.widget import Widget


def stands(screen: Widget) -> bool:
    """False before its parts are made, for good when it was closed by the very next key, and once it is taken away."""
    return screen.is_attached and bool(screen.children)
