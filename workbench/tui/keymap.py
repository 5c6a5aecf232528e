"""Keys of one's own: `keys.toml` in the configuration folder maps command ids to keys.

[keys]
goto = "ctrl+j"          # one key
back = ["b", "alt+left"] # several
"nav.up" = "up,w"
"""

from __future__ import annotations

import os
import tomllib
from dataclasses import dataclass, field
from pathlib import Path

from workbench.tui.commands import BY_ID, COMMANDS, NAVIGATION


@dataclass(frozen=True, slots=True)
class Keymap:
    """keys: id -> comma-separated keys, only what differs from the defaults.  complaints: one line each."""

    keys: dict[str, str] = field(default_factory=dict)
    complaints: tuple[str, ...] = ()

    def of(self, ident: str) -> str:
        """The keys that command or movement `ident` has now."""
        if ident in self.keys:
            return self.keys[ident]
        if ident in BY_ID:
            return BY_ID[ident].keys
        return next((nav.keys for nav in NAVIGATION if f"nav.{nav.id}" == ident), "")


def config_folder() -> Path:
    """`$XDG_CONFIG_HOME/qwb` or `~/.config/qwb`."""
    base = os.environ.get("XDG_CONFIG_HOME")
    return (Path(base) if base else Path.home() / ".config") / "qwb"


def load_keymap(path: Path | None = None) -> Keymap:
    """Read the key file; without one: the defaults. What is wrong with it is told in `complaints`, never raised."""
    source = path or config_folder() / "keys.toml"
    try:
        content = tomllib.loads(source.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return Keymap()
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        return Keymap(complaints=(f"{source}: {error}; default keys are used",))
    known = {command.id for command in COMMANDS} | {f"nav.{nav.id}" for nav in NAVIGATION}
    keys: dict[str, str] = {}
    complaints: list[str] = []
    table = content.get("keys", {})
    if not isinstance(table, dict):
        return Keymap(complaints=(f"{source}: [keys] must be a table; default keys are used",))
    for ident, value in _flat(table):
        if ident not in known:
            complaints.append(f"{source}: no command is called {ident!r}")
        elif isinstance(value, str) and value.strip():
            keys[ident] = value.replace(" ", "")
        elif isinstance(value, list) and value and all(isinstance(each, str) for each in value):
            keys[ident] = ",".join(value)
        else:
            complaints.append(f"{source}: {ident} must be a key or a list of keys")
    taken: dict[str, str] = {}
    merged = Keymap(keys)
    for command in COMMANDS:
        for key in merged.of(command.id).split(","):
            if key in taken and (command.id in keys or taken[key] in keys):
                complaints.append(f"{source}: {key} is bound to both {taken[key]} and {command.id}")
            taken.setdefault(key, command.id)
    return Keymap(keys, tuple(complaints))


def _flat(table: dict[str, object], prefix: str = "") -> list[tuple[str, object]]:
    """TOML reads `nav.up` as a nested table; give its entries their dotted names back."""
    found: list[tuple[str, object]] = []
    for name, value in table.items():
        if isinstance(value, dict):
            found += _flat(value, f"{prefix}{name}.")
        else:
            found.append((prefix + name, value))
    return found
