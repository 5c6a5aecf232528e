"""What a tolerant load found wrong, as data. Wording and severity live in check/problems.py, keyed by the code."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum


class Refusal(IntEnum):
    """How far QEMU goes with an image that has the fault."""

    NONE = 0
    """Opens as if nothing were wrong."""
    OPEN = 1
    """`qemu-img convert`/`info` refuse; `qemu-img check` still opens it."""
    ALWAYS = 2
    """Every command refuses."""
    REPAIR = 3
    """Even `qemu-img check -r` refuses: the strongest word, for what it cannot mend. Same as ALWAYS for opening."""


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing wrong with the metadata.

    code: stable problem code (check/problems.py).  offset, length: host bytes it concerns.  what: one clause that says
    it with this image's numbers (used for error lines).  numbers: named values for templates.
    """

    code: str
    what: str
    offset: int
    length: int
    refusal: Refusal = Refusal.NONE
    numbers: dict[str, int | str] = field(default_factory=dict)
