"""What is said of one kind of problem, and how the catalogue's files say it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Severity(Enum):
    """How bad. ERROR: something could not be checked.  CORRUPTION and LEAK as qemu-img means them.

    WARNING: wrong or dangerous, but not counted by qemu-img.  NOTE: worth knowing.
    """

    ERROR = "error"
    CORRUPTION = "corruption"
    LEAK = "leak"
    WARNING = "warning"
    NOTE = "note"

    @property
    def rank(self) -> int:
        """0 is worst."""
        return list(Severity).index(self)


class Tier(Enum):
    """What a fix may cost."""

    SAFE = "safe"
    """Loses nothing."""
    JUDGEMENT = "judgement"
    """There is more than one right answer: shown and chosen."""
    DESTRUCTIVE = "destructive"
    """Drops something: never by default."""


@dataclass(frozen=True, slots=True)
class Fix:
    """One way to put a problem right. id: stable name that the repair engine implements."""

    id: str
    tier: Tier
    title: str


@dataclass(frozen=True, slots=True)
class Problem:
    """One kind of problem. template: str.format text over the finding's numbers."""

    code: str
    severity: Severity
    title: str
    template: str
    meaning: str
    arises: str
    guest_impact: str
    spec: str
    fixes: tuple[Fix, ...] = ()


class Catalogue:
    """The problems of one subject, in order. spec: chapter of the specification, where a problem names no other."""

    def __init__(self, spec: str) -> None:
        self.spec = spec
        self.problems: list[Problem] = []

    def templated(
        self,
        code: str,
        severity: Severity,
        title: str,
        template: str,
        meaning: str,
        arises: str,
        guest_impact: str,
        *fixes: Fix,
        spec: str | None = None,
    ) -> None:
        """A problem whose rows are numbers, put into `template`."""
        chapter = self.spec if spec is None else spec
        self.problems.append(Problem(code, severity, title, template, meaning, arises, guest_impact, chapter, fixes))

    def told(
        self,
        code: str,
        severity: Severity,
        title: str,
        meaning: str,
        arises: str,
        guest_impact: str,
        *fixes: Fix,
        spec: str | None = None,
        template: str = "{what}",
    ) -> None:
        """A problem whose rows bring a clause of their own."""
        self.templated(code, severity, title, template, meaning, arises, guest_impact, *fixes, spec=spec)
