"""The problem catalogue: one frozen record per kind of problem. Detectors hold no wording and no policy."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from workbench.check import (
    problems_bitmaps,
    problems_header,
    problems_mapping,
    problems_refcounts,
    problems_snapshots,
)
from workbench.check.problem import Fix, Problem, Severity, Tier

__all__ = ["CATALOGUES", "PROBLEMS", "Fix", "Problem", "Severity", "Tier", "with_severity"]

CATALOGUES: Final = (
    problems_bitmaps.CATALOGUE,
    problems_header.CATALOGUE,
    problems_mapping.CATALOGUE,
    problems_refcounts.CATALOGUE,
    problems_snapshots.CATALOGUE,
)
PROBLEMS: Final[dict[str, Problem]] = {each.code: each for part in CATALOGUES for each in part.problems}


def with_severity(severity: Severity) -> Iterator[Problem]:
    """The catalogue's problems of one severity."""
    return (each for each in PROBLEMS.values() if each.severity is severity)
