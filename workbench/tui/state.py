"""What the workbench remembers between runs: recent files, the theme, and per image where one was.

One small JSON file in `$XDG_STATE_HOME/qwb` (or `~/.local/state/qwb`). It is a convenience: when it cannot be read or
written the workbench goes on without it.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

RECENT_LIMIT = 20
PLACES_LIMIT = 200


def state_file() -> Path:
    """Where the state lives."""
    base = os.environ.get("XDG_STATE_HOME")
    return (Path(base) if base else Path.home() / ".local" / "state") / "qwb" / "state.json"


@dataclass(slots=True)
class State:
    """recent: absolute paths, last used first.  places: path -> where one was (plain JSON values)."""

    path: Path
    recent: list[str] = field(default_factory=list)
    places: dict[str, dict[str, Any]] = field(default_factory=dict)
    theme: str = ""
    touched: set[str] = field(default_factory=set)
    """Images noted since it was read; of the others, another workbench may know better."""

    @classmethod
    def load(cls, path: Path | None = None) -> State:
        """Read the state; anything unreadable or of the wrong shape counts as empty."""
        source = path or state_file()
        state = cls(source)
        try:
            content = json.loads(source.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return state
        if isinstance(content, dict):
            recent, places, theme = content.get("recent"), content.get("places"), content.get("theme")
            if isinstance(recent, list):
                state.recent = [each for each in recent if isinstance(each, str)][:RECENT_LIMIT]
            if isinstance(places, dict):
                state.places = {str(k): v for k, v in places.items() if isinstance(v, dict)}
            if isinstance(theme, str):
                state.theme = theme
        return state

    def remember(self, image: str, place: dict[str, Any] | None = None) -> None:
        """Note that `image` (absolute path) was open, and where."""
        self.touched.add(image)
        if image in self.recent:
            self.recent.remove(image)
        self.recent.insert(0, image)
        del self.recent[RECENT_LIMIT:]
        if place is not None:
            self.places.pop(image, None)
            self.places[image] = place
            while len(self.places) > PLACES_LIMIT:
                self.places.pop(next(iter(self.places)))

    def save(self) -> bool:
        """Write it, whole or not at all; False when that is not possible.

        Other workbenches may have saved since this one began: what they noted of images that were not open here is kept.
        """
        others = State.load(self.path)
        known = [each for each in self.recent if each in self.touched]
        recent = known + [each for each in others.recent if each not in self.touched]
        places = {k: v for k, v in others.places.items() if k not in self.touched}
        places |= {k: v for k, v in self.places.items() if k in self.touched}
        content = {
            "recent": recent[:RECENT_LIMIT],
            "places": dict(list(places.items())[-PLACES_LIMIT:]),
            "theme": self.theme,
        }
        draft = self.path.with_suffix(f".{os.getpid()}.tmp")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            draft.write_text(json.dumps(content), encoding="utf-8")
            draft.replace(self.path)
        except OSError:
            return False
        return True
