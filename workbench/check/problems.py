"""The problem catalogue: one frozen record per kind of problem. Detectors hold no wording and no policy."""

from __future__ import annotations

from collections.abc import Iterator
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


PROBLEMS: dict[str, Problem] = {}


def define(problem: Problem) -> None:
    """Register a problem; ValueError for a code used twice."""
    if problem.code in PROBLEMS:
        raise ValueError(f"problem {problem.code} is defined twice")
    PROBLEMS[problem.code] = problem


def with_severity(severity: Severity) -> Iterator[Problem]:
    """The catalogue's problems of one severity."""
    return (each for each in PROBLEMS.values() if each.severity is severity)


def _load() -> None:
    # The modules register their problems when imported.
    from workbench.check import (  # noqa: F401
        problems_bitmaps,
        problems_header,
        problems_mapping,
        problems_refcounts,
        problems_snapshots,
    )


_load()
