"""What comes last: the dirty and corrupt bits, and flags that a writer clears anyway."""

from __future__ import annotations

from typing import Final

from formats.qcow2.header import AUTOCLEAR, INCOMPATIBLE
from workbench.check import check
from workbench.check.problems import Tier
from workbench.repair import triage
from workbench.repair.fixes.base import Rule, codes
from workbench.repair.workspace import Workspace

_REFCOUNTS_WRONG: Final = frozenset({
    "REFCOUNT-ZERO", "REFCOUNT-TOO-LOW", "REFCOUNT-UNREADABLE", "REFCOUNT-OVERFLOW", "REFBLOCK-MISSING",
    "REFBLOCK-SHARED", "REFBLOCK-UNALIGNED", "REFBLOCK-BEYOND-EOF", "REFBLOCK-RESERVED",
    "REFBLOCK-FOREIGN",
})  # fmt: skip
"""While one of these is left, the dirty bit is the truth."""


def run(space: Workspace) -> None:
    """Clear the dirty bit when refcounts could be checked, and the corrupt bit when the image is clean."""
    header = space.meta.header
    marked = header.has("dirty") or header.has("corrupt") or AUTOCLEAR["unknown"].mask & header.autoclear_features
    if header.version < 3 or not marked:
        return
    result = check(space.meta)
    if result.refused is not None or result.check_errors:
        return
    clean = not result.corruptions
    # Dirty and with orphans kept, the next writer's rebuild of the refcounts would free them.
    ledger = space.ledger
    if header.has("dirty") and (triage.orphans(space, ledger) & (ledger.stored == 0) & ledger.known).any():
        space.note(
            "the dirty bit stays: lost tables, or what they map, count as free (a repair with --all counts them)"
        )
    elif header.has("dirty") and _REFCOUNTS_WRONG.isdisjoint(result.findings.by_code):
        value = header.incompatible_features & ~INCOMPATIBLE["dirty"].mask
        space.set_header(
            "incompatible_features", value, code="IMAGE-DIRTY", title="clear the dirty bit: refcounts are right now"
        )
    header = space.meta.header
    if header.has("corrupt") and clean:
        value = header.incompatible_features & ~INCOMPATIBLE["corrupt"].mask
        space.set_header(
            "incompatible_features",
            value,
            code="IMAGE-CORRUPT-BIT",
            title="clear the corrupt bit: the image is clean now",
        )
    unknown = AUTOCLEAR["unknown"].mask & header.autoclear_features
    if unknown and (space.steps or "AUTOCLEAR-UNKNOWN" in space.policy.codes):
        value = space.meta.header.autoclear_features & ~unknown
        space.set_header(
            "autoclear_features",
            value,
            code="AUTOCLEAR-UNKNOWN",
            title="clear unknown autoclear bits, as every writer must",
        )


RULE = Rule(
    "finish",
    "Clear dirty and corrupt bits",
    codes("IMAGE-DIRTY", "IMAGE-CORRUPT-BIT", "AUTOCLEAR-UNKNOWN"),
    Tier.SAFE,
    run,
)
"""Runs once, after all others have nothing left to do."""
