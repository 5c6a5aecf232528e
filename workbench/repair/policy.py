"""Which fixes may run, and which alternative each takes: the choices of the person, as data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any


class Mode(Enum):
    """What the person asked for."""

    ALL = "all"
    """Everything that loses nothing, with the default alternative of each fix."""
    LEAKS = "leaks"
    """Only leaked clusters that are waste, and COPIED flags when nothing else is wrong (as `qemu-img check -r leaks`)."""
    CODES = "codes"
    """The fixes of the named problems, and what they need."""


@dataclass(frozen=True)
class Policy:
    """The choices for one plan.

    codes: problem codes for Mode.CODES.  choices: fix id -> alternative id, instead of the default one.  skip: fix ids
    that must not run.  free_orphans: give leaked clusters back although they may be guest data.  destructive: fixes
    that drop something may run.  cautious: nothing goes free, no refcount goes down.  accept_loss: bytes that the person
    agreed to give up, or to see unproven.
    """

    mode: Mode = Mode.ALL
    codes: frozenset[str] = frozenset()
    choices: Mapping[str, str] = field(default_factory=dict)
    skip: frozenset[str] = frozenset()
    free_orphans: bool = False
    destructive: bool = False
    cautious: bool = False
    accept_loss: int = 0

    def as_json(self) -> dict[str, Any]:
        """JSON values from which `from_json` makes the same choices again; consent to a loss is not among them."""
        return {
            "mode": self.mode.value,
            "codes": sorted(self.codes),
            "choices": dict(self.choices),
            "skip": sorted(self.skip),
            "free-orphans": self.free_orphans,
            "destructive": self.destructive,
            "cautious": self.cautious,
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Policy:
        """The choices of a saved plan. KeyError, TypeError or ValueError when they are none."""
        return cls(
            Mode(values["mode"]),
            frozenset(values["codes"]),
            {str(fix): str(way) for fix, way in dict(values["choices"]).items()},
            frozenset(values["skip"]),
            bool(values["free-orphans"]),
            bool(values["destructive"]),
            bool(values["cautious"]),
        )

    def choice(self, fix: str, default: str) -> str:
        """The alternative to take for a fix."""
        return self.choices.get(fix, default)
