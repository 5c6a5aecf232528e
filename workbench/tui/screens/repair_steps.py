"""The steps of the repair flow and the commands that work in each."""

from __future__ import annotations

from enum import Enum
from typing import Final

from workbench.tui.commands import Command

GLYPH_STYLES: Final = {"✓": "bold $success", "!": "bold $warning", "▲": "bold $error", "✗": "bold $error", "·": ""}


class At(Enum):
    """Where in the flow one is."""

    BUSY = "busy"
    TROUBLE = "trouble"
    CHOOSE = "choose"
    PLAN = "plan"
    CONFIRM = "confirm"
    WRITE = "write"
    DONE = "done"


WIDE: Final = 112
"""Columns from which on list and detail stand side by side."""
_G: Final = "Repair"
FLOW_COMMANDS: Final = (
    Command(
        "flow.on",
        "enter",
        "go on",
        "Go on to the next step",
        "",
        _G,
        ("choose", "plan", "confirm", "done", "trouble"),
        100,
    ),
    Command("flow.yes", "y", "yes, write", "Write the changes into the image", "", _G, ("confirm",), 95),
    Command(
        "flow.toggle", "space", "choose", "Switch this repair on or off, or take this way", "", _G, ("choose",), 90
    ),
    Command("flow.all", "a", "all or none", "Choose everything, or nothing", "", _G, ("choose",), 80),
    Command("flow.map", "m", "map before/after", "Host map before and after", "", _G, ("plan",), 85),
    Command(
        "flow.around",
        "v",
        "look around",
        "Look around in the repaired image before writing it",
        "",
        _G,
        ("plan", "confirm"),
        84,
    ),
    Command(
        "flow.copy",
        "t",
        "to a copy",
        "Write a repaired copy and leave this image as it is",
        "",
        _G,
        ("plan", "confirm"),
        60,
    ),
    Command(
        "flow.orphans",
        "x",
        "copy data out",
        "Copy what may be lost guest data out into a folder",
        "",
        _G,
        ("choose", "plan", "done"),
        55,
    ),
    Command("flow.pane", "tab", "other pane", "Go to the other pane", "", _G, ("plan",), 50, True),
    Command("flow.undo", "u", "undo", "Take the repair back", "", _G, ("done",), 90),
    Command(
        "flow.back",
        "escape",
        "back",
        "A step back, or leave; nothing is written",
        "",
        _G,
        ("busy", "choose", "plan", "confirm", "done", "trouble"),
        70,
    ),
    Command("flow.help", "f1,question_mark", "keys", "All keys of this step", "", _G, (), 40),
)
FLOW_BY_ID: Final = {each.id: each for each in FLOW_COMMANDS}
STEPS: Final = (
    (At.CHOOSE, "1 Choose"),
    (At.PLAN, "2 Plan"),
    (At.CONFIRM, "3 Confirm"),
    (At.WRITE, "4 Write"),
    (At.DONE, "5 Result"),
)
