"""Which unreferenced clusters must keep their refcount: what the check's leak triage calls possible guest data."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from workbench.repair.ledger import Ledger
from workbench.repair.workspace import Workspace


def orphans(space: Workspace, ledger: Ledger) -> NDArray[np.bool_]:
    """True for each cluster of the file that is leaked, but may hold guest data (or a lost table)."""
    kept = np.zeros(ledger.clusters, dtype=bool)
    leaked = ledger.leaks()
    if not leaked.size:
        return kept
    from workbench.check import check

    result = check(space.meta)
    bits = ledger.cluster_bits
    for each in result.orphans:
        if each.possible_data:
            first = each.offset >> bits
            kept[first : first + (each.length >> bits)] = True
    for number in space.keep:
        if number < kept.size:
            kept[number] = True
    return kept & (ledger.counts == 0) & (ledger.stored > 0)
