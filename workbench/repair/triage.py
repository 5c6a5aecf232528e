"""Which clusters a rebuild of refcounts must keep counted: what may be guest data, whatever its refcount says."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from workbench.check import CheckResult, check
from workbench.engine.unreferenced import Unreferenced, scan

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from workbench.repair.ledger import Ledger
    from workbench.repair.workspace import Workspace


def orphans(space: Workspace, ledger: Ledger) -> NDArray[np.bool_]:
    """True for each cluster of the file that nothing refers to, but that may hold guest data or a lost table.

    Every such cluster is looked at. Kept are lost tables and all that they map, and what the check's triage says may be
    data. A stored refcount of 0 alone makes nothing free: only where the refcounts are sound, and nothing of the mapping
    is missing, does it count (then tables are what a deleted snapshot left). Evidence counts from the image as it was
    found (mending a damaged entry takes away the gap that explains a leak) as much as from the one at hand.
    """
    kept = np.zeros(ledger.clusters, dtype=bool)
    loose = ledger.counts == 0
    if not loose.any():
        return kept
    found = space.found
    if found is not None and _unread(found):
        found = check(found.meta, thorough=True)
    results = [each for each in (found, check(space.meta, thorough=True)) if each is not None]
    filled = np.zeros(ledger.clusters, dtype=bool)
    for result in results:
        _mark(result, ledger, kept)
        _add(filled, result.unreferenced)
    if (loose & (ledger.stored > 0)).any() and all(each.unreferenced is None for each in results):
        # Leaks that no check judged (a file counted in windows): at least lost tables are looked for.
        seen = scan(space.overlay, space.geometry, ledger.counts > 0, external=space.meta.header.has("data_file"))
        _add(kept, seen, content=False)
        _add(filled, seen)
    kept &= loose & ((ledger.stored > 0) | filled)
    return kept


def _add(mask: NDArray[np.bool_], found: Unreferenced | None, *, content: bool = True) -> None:
    """Mark lost tables and what they map, and (content) all else that is not empty."""
    if found is not None:
        size = min(mask.size, found.mapped.size)
        mask[:size] |= found.mapped[:size] | found.is_table[:size]
        if content:
            mask[:size] |= found.content[:size]


def _unread(result: CheckResult) -> bool:
    """A check that looked at a part only."""
    return result.unreferenced is None or not result.unreferenced.complete


def _mark(result: CheckResult, ledger: Ledger, kept: NDArray[np.bool_]) -> None:
    geometry = result.meta.geometry
    if geometry is None or geometry.cluster_bits != ledger.cluster_bits:
        return
    for each in result.orphans:
        if each.keep:
            first = each.offset >> ledger.cluster_bits
            kept[first : first + (each.length >> ledger.cluster_bits)] = True
