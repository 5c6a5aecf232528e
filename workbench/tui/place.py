"""Where one is in an image: the single selection that drives every pane."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

from workbench.errors import ArgumentError


class View(StrEnum):
    """The views of the middle pane, in the order of their keys 1..9, 0."""

    FIELDS = "fields"
    HEX = "hex"
    ENTRIES = "entries"
    GUEST_MAP = "guest_map"
    GUEST_HEX = "guest_hex"
    TRANSLATION = "translation"
    HOST_MAP = "host_map"
    FINDINGS = "findings"
    REFCOUNTS = "refcounts"
    OVERLAPS = "overlaps"


VIEW_LABELS = {
    View.FIELDS: "Fields",
    View.HEX: "Hex",
    View.ENTRIES: "Entries",
    View.GUEST_MAP: "Guest map",
    View.GUEST_HEX: "Guest data",
    View.TRANSLATION: "Translation",
    View.HOST_MAP: "Host map",
    View.FINDINGS: "Findings",
    View.REFCOUNTS: "Refcounts",
    View.OVERLAPS: "Overlaps",
}


def view_named(text: str) -> View:
    """The view of that name, whose words may be joined by hyphens, underscores or spaces; ArgumentError lists them."""
    wanted = text.lower().replace("-", "_").replace(" ", "_")
    if wanted not in list(View):
        raise ArgumentError(f"{text!r} is no view", hint=", ".join(each.value.replace("_", "-") for each in View))
    return View(wanted)


@dataclass(frozen=True, slots=True)
class Place:
    """A byte range of the file with a path.

    node: key of the structure in the tree.  offset, length: host bytes.  path: what is selected inside the structure
    (`header.size`, `[17].offset`), empty for the whole.  guest: the guest offset one is looking at, where there is one.
    """

    node: str
    offset: int
    length: int
    path: str = ""
    view: View = View.FIELDS
    guest: int | None = None

    @property
    def end(self) -> int:
        return self.offset + self.length

    def seen_in(self, view: View) -> Place:
        """The same place in another view."""
        return replace(self, view=view)

    def to_json(self) -> dict[str, Any]:
        """Plain values for the state file."""
        return {
            "node": self.node, "offset": self.offset, "length": self.length, "path": self.path, "view": self.view.value, "guest": self.guest,
        }  # fmt: skip

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Place | None:
        """Inverse of to_json; None when the values make no place."""
        try:
            guest = values.get("guest")
            return cls(
                str(values["node"]),
                int(values["offset"]),
                int(values["length"]),
                str(values.get("path", "")),
                View(values.get("view", "fields")),
                None if guest is None else int(guest),
            )
        except (KeyError, TypeError, ValueError):
            return None


class History:
    """Places one was at, with a cursor; like a web browser's."""

    LIMIT = 500

    def __init__(self) -> None:
        self._back: list[Place] = []
        self._forward: list[Place] = []

    def leave(self, place: Place) -> None:
        """Remember a place that is being left for a new one."""
        if not self._back or self._back[-1] != place:
            self._back.append(place)
            del self._back[: -self.LIMIT]
        self._forward.clear()

    def back(self, here: Place) -> Place | None:
        """The place before; `here` becomes the one to go forward to."""
        if not self._back:
            return None
        self._forward.append(here)
        return self._back.pop()

    def forward(self, here: Place) -> Place | None:
        """The place that was left by going back."""
        if not self._forward:
            return None
        self._back.append(here)
        return self._forward.pop()

    @property
    def can_back(self) -> bool:
        return bool(self._back)

    @property
    def can_forward(self) -> bool:
        return bool(self._forward)
