"""Every command of the workbench, once: its key, its words in footer, palette, help and tooltip, and where it works.

Screens make their bindings from this table; the footer, the palette and the help screen read it. Keys can be changed in
`~/.config/qwb/keys.toml` (see `keymap`).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from textual.binding import Binding


@dataclass(frozen=True, slots=True)
class Command:
    """One thing a person can ask for.

    id: action name; the screen or the app has a method `do_<id>`.  keys: comma-separated Textual key names.  label: one or
    two words for the footer.  title: palette and help, an imperative.  help: one sentence more.  group: heading in the help.
    where: contexts in which it does something; empty: always.  footer: rank in the footer, 0 keeps it out.
    """

    id: str
    keys: str
    label: str
    title: str
    help: str
    group: str
    where: tuple[str, ...] = ()
    footer: int = 0
    priority: bool = False


_GENERAL, _MOVING, _VIEWS, _WORK, _IMAGES = "General", "Moving", "Views", "Working", "Images and tabs"
_CHANGE = "Changing the image"

COMMANDS: Final[tuple[Command, ...]] = (
    # Moving between places
    Command(
        "follow",
        "enter",
        "follow",
        "Follow the pointer, or open what is selected",
        "A pointer leads to what it points at: an L1 entry to its L2 table, an L2 entry to its cluster.",
        _MOVING,
        ("image",),
        90,
    ),
    Command(
        "back",
        "backspace,alt+left",
        "back",
        "Go back to the place before",
        "Walks the history backwards.",
        _MOVING,
        ("has-back",),
        80,
    ),
    Command(
        "forward",
        "alt+right",
        "forward",
        "Go forward again",
        "Walks the history forwards.",
        _MOVING,
        ("has-forward",),
        12,
    ),
    Command(
        "goto",
        "g,ctrl+g",
        "go to",
        "Go to an address or a structure",
        "0x50000 or 12M: host offset; c:5 cluster; g:5M guest offset; l1:3, l2:3.17, rb:0.5 entries; names as in the tree.",
        _MOVING,
        ("image",),
        85,
    ),
    Command(
        "references",
        "x",
        "who refers",
        "List everything that refers to this cluster",
        "Looks through every table in the background; each line leads to the entry that refers.",
        _MOVING,
        ("image",),
        70,
    ),
    Command(
        "search",
        "slash",
        "search",
        "Search bytes, text, or values in this table",
        "Text, hex bytes, or a value in the table shown; bytes are looked for in the whole file, in the background.",
        _MOVING,
        ("image",),
        60,
    ),
    Command("search_next", "n", "next hit", "Next hit of the search", "", _MOVING, ("has-search",), 30),
    Command("search_previous", "N", "last hit", "Previous hit of the search", "", _MOVING, ("has-search",), 0),
    Command(
        "next_problem",
        "right_square_bracket",
        "next problem",
        "Go to the next problem",
        "",
        _MOVING,
        ("has-problems",),
        67,
    ),
    Command(
        "previous_problem",
        "left_square_bracket",
        "previous problem",
        "Go to the problem before",
        "",
        _MOVING,
        ("has-problems",),
    ),
    Command(
        "parent", "circumflex_accent", "up", "Go to the structure that this one belongs to", "", _MOVING, ("image",)
    ),
    # Views
    Command(
        "view_fields",
        "1",
        "fields",
        "View: fields",
        "Name, offset, bytes, value and meaning of every field.",
        _VIEWS,
        ("view-fields",),
    ),
    Command(
        "view_hex", "2", "hex", "View: hex", "The bytes of the file, with the fields tinted.", _VIEWS, ("view-hex",)
    ),
    Command(
        "view_entries",
        "3",
        "entries",
        "View: table entries",
        "The rows of the table, runs folded.",
        _VIEWS,
        ("view-entries",),
    ),
    Command(
        "view_guest_map",
        "4",
        "guest map",
        "View: guest map",
        "The virtual disk as cells, from whole to single clusters.",
        _VIEWS,
        ("view-guest_map",),
    ),
    Command(
        "view_guest_hex",
        "5",
        "guest data",
        "View: guest data",
        "What the guest reads: decrypted, decompressed, through the chain.",
        _VIEWS,
        ("view-guest_hex",),
    ),
    Command(
        "view_translation",
        "6",
        "translation",
        "View: address translation",
        "A guest offset, step by step, down to bytes of the file.",
        _VIEWS,
        ("view-translation",),
    ),
    Command(
        "view_host_map",
        "7",
        "host map",
        "View: host map",
        "Every cluster of the file and what it is used for.",
        _VIEWS,
        ("view-host_map",),
    ),
    Command(
        "view_findings",
        "8",
        "findings",
        "View: findings",
        "What is wrong with the image, grouped by cause.",
        _VIEWS,
        ("view-findings",),
    ),
    Command(
        "view_refcounts",
        "9",
        "refcounts",
        "View: refcounts",
        "Stored against counted references, cluster by cluster.",
        _VIEWS,
        ("view-refcounts",),
    ),
    Command(
        "view_overlaps",
        "0",
        "overlaps",
        "View: overlaps",
        "Clusters that belong to two structures at once.",
        _VIEWS,
        ("view-overlaps",),
    ),
    Command("explain", "e", "explain", "Show or hide the explanation", "", _VIEWS, ("image",), 35),
    Command("zoom", "f10", "zoom pane", "Give the whole screen to this pane, or back", "", _VIEWS, ("image",), 20),
    Command(
        "next_pane",
        "tab",
        "next pane",
        "Go to the next pane",
        "Structures, view, explanation.",
        _VIEWS,
        ("image",),
        65,
        True,
    ),
    Command("previous_pane", "shift+tab", "previous pane", "Go to the previous pane", "", _VIEWS, ("image",), 0, True),
    Command(
        "zoom_in",
        "plus,equals_sign",
        "closer",
        "Look closer at the map",
        "Fewer bytes to a cell.",
        _VIEWS,
        ("map",),
        88,
    ),
    Command("zoom_out", "minus", "wider", "See more in the map", "More bytes to a cell.", _VIEWS, ("map",), 87),
    Command(
        "filter",
        "f",
        "filter",
        "Filter the rows",
        "By type, flag, host or guest range; 'suspicious' keeps only what looks wrong.",
        _VIEWS,
        ("filterable",),
        78,
    ),
    Command("fold", "z", "fold", "Fold or unfold runs, groups and fields", "", _VIEWS, ("foldable",), 66),
    Command(
        "relative",
        "a",
        "rel. offsets",
        "Count offsets from the structure's start, or from the file's",
        "",
        _VIEWS,
        ("hex",),
        40,
    ),
    # Working
    Command(
        "bookmark",
        "b",
        "bookmark",
        "Bookmark this place, or take the mark away",
        "Kept while the program runs.",
        _WORK,
        ("image",),
        28,
    ),
    Command("bookmarks", "B", "bookmarks", "List the bookmarks", "", _WORK, ("has-bookmarks",)),
    Command(
        "mark",
        "m",
        "mark range",
        "Mark a range: first one end, then the other",
        "Shows length and SHA-256 of the range.",
        _WORK,
        ("image",),
        27,
    ),
    Command("copy", "y", "copy", "Copy offset, value or hex of the selection", "", _WORK, ("image",), 33),
    Command(
        "check",
        "c",
        "check",
        "Check the image now, or stop the check",
        "Runs in the background; reads only.",
        _WORK,
        ("image",),
        32,
    ),
    Command("unlock", "p", "passphrase", "Give the passphrase of an encrypted image", "", _WORK, ("encrypted",), 52),
    Command("reload", "f5", "reload", "Read the image again", "For a file that has changed.", _WORK, ("image",), 10),
    Command("stop", "escape", "stop", "Stop what is running, or leave", "", _WORK, ("busy",), 95),
    # Changing the image
    Command(
        "repair",
        "r",
        "repair",
        "Repair: choose, see the plan simulated, confirm, write",
        "On a finding: its kind only. Nothing is written before the last step, and everything can be taken back.",
        _CHANGE,
        ("image",),
        92,
    ),
    Command(
        "undo", "u", "undo", "Repairs of this image, and taking them back bit for bit", "", _CHANGE, ("image",), 26
    ),
    Command(
        "edit",
        "E",
        "edit by hand",
        "Edit the field, entry or byte under the cursor by hand",
        "Decoded bits, simulated and checked before it is written, undoable.",
        _CHANGE,
        ("image",),
        18,
    ),
    # Images
    Command(
        "open", "o", "open", "Open another image", "Samples, recent files, or a file of your choice.", _IMAGES, (), 25
    ),
    Command(
        "next_tab",
        "ctrl+pagedown,right_curly_bracket",
        "next image",
        "Go to the next image",
        "",
        _IMAGES,
        ("tabs",),
        15,
        True,
    ),
    Command(
        "previous_tab",
        "ctrl+pageup,left_curly_bracket",
        "previous image",
        "Go to the previous image",
        "",
        _IMAGES,
        ("tabs",),
        0,
        True,
    ),
    Command("close_tab", "ctrl+w", "close", "Close this image", "", _IMAGES, ("image",)),
    # General
    Command("help", "f1,question_mark", "help", "Keys and commands", "", _GENERAL, (), 100),
    Command("palette", "ctrl+p", "palette", "Every command and every structure, by name", "", _GENERAL, (), 24),
    Command("theme", "T", "theme", "Next theme", "Dark, light, high contrast, and more.", _GENERAL),
    Command("screenshot", "ctrl+s", "picture", "Save a picture of the screen (SVG)", "", _GENERAL),
    Command("quit", "q", "quit", "Quit", "", _GENERAL, (), 98),
    Command("interrupt", "ctrl+c", "quit", "Quit; asks first when something is running", "", _GENERAL, (), 0, True),
)

BY_ID: Final = {command.id: command for command in COMMANDS}


@dataclass(frozen=True, slots=True)
class NavKey:
    """A movement key of a pane. id: action name on the widget."""

    id: str
    keys: str
    title: str


NAVIGATION: Final[tuple[NavKey, ...]] = (
    NavKey("up", "up,k", "One row up"),
    NavKey("down", "down,j", "One row down"),
    NavKey("left", "left,h", "Left; in the tree: close, or to the parent"),
    NavKey("right", "right,l", "Right; in the tree: open"),
    NavKey("page_up", "pageup,ctrl+b", "One page up"),
    NavKey("page_down", "pagedown,ctrl+f", "One page down"),
    NavKey("home", "home", "To the first row"),
    NavKey("end", "end,G", "To the last row"),
)


def bindings(commands: Iterable[Command] = COMMANDS) -> list[Binding]:
    """Textual bindings of commands; the binding's id is the command's, so that a keymap can change its keys."""
    return [
        Binding(each.keys, f"command('{each.id}')", each.label, tooltip=each.title, id=each.id, priority=each.priority)
        for each in commands
    ]


def navigation_bindings() -> list[Binding]:
    """Bindings of the movement keys, for widgets with actions of those names."""
    return [Binding(each.keys, f"nav_{each.id}", each.title, show=False, id=f"nav.{each.id}") for each in NAVIGATION]


_NAMES: Final = {
    "enter": "⏎",
    "backspace": "⌫",
    "escape": "Esc",
    "slash": "/",
    "question_mark": "?",
    "right_square_bracket": "]",
    "left_square_bracket": "[",
    "right_curly_bracket": "}",
    "left_curly_bracket": "{",
    "circumflex_accent": "^",
    "plus": "+",
    "minus": "-",
    "equals_sign": "=",
    "pagedown": "PgDn",
    "pageup": "PgUp",
    "tab": "Tab",
    "up": "↑",
    "down": "↓",
    "left": "←",
    "right": "→",
    "home": "Home",
    "end": "End",
    "space": "Space",
    "delete": "Del",
}


def key_name(key: str) -> str:
    """A key as people write it: `ctrl+g` -> `Ctrl+G`, `slash` -> `/`."""
    *held, last = key.split("+")
    name = _NAMES.get(last) or (last.upper() if len(last) > 1 and last[0] == "f" and last[1:].isdigit() else last)
    if held:
        name = name.upper() if len(name) == 1 else name
    return "+".join([*(part.capitalize() for part in held), name])


def key_names(keys: str) -> str:
    """All keys of a comma-separated list, for the help screen."""
    return "  ".join(key_name(key) for key in keys.split(",") if key)


__all__ = [
    "BY_ID",
    "COMMANDS",
    "NAVIGATION",
    "Command",
    "NavKey",
    "bindings",
    "key_name",
    "key_names",
    "navigation_bindings",
]
