"""The fixes, in the order in which they run: what is needed to read on comes first, refcounts and flags last."""

from __future__ import annotations

from typing import Final

from workbench.repair.fixes import (
    bitmaps,
    compressed,
    copied,
    datafile,
    entries,
    extensions,
    extras,
    features,
    finish,
    header,
    luks,
    overlaps,
    placement,
    rebuild,
    refcounts,
    relink,
    snapshots,
)
from workbench.repair.fixes.base import Alternative, Rule

RULES: Final[tuple[Rule, ...]] = (
    *header.RULES,
    *rebuild.RULES,
    *extensions.RULES,
    *features.RULES,
    *luks.RULES,
    *placement.RULES,
    *snapshots.RULES,
    *bitmaps.RULES,
    *datafile.RULES,
    entries.FOREIGN,
    *relink.RULES,
    *entries.RULES,
    *compressed.RULES,
    *overlaps.RULES,
    *extras.RULES,
    *refcounts.RULES,
    *copied.RULES,
)


FINISH: Final = finish.RULE


def rules_for(code: str) -> tuple[Rule, ...]:
    """The fixes that answer a problem code."""
    return tuple(rule for rule in (*RULES, FINISH) if code in rule.codes)


__all__ = ["FINISH", "RULES", "Alternative", "Rule", "rules_for"]
