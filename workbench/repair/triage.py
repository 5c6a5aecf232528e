"""Which unreferenced clusters must keep their refcount: what the check's leak triage calls possible guest data."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from workbench.check import CheckResult, check
from workbench.repair.ledger import Ledger
from workbench.repair.workspace import Workspace

_HARMLESS: Final = {"SNAPSHOT-DUPLICATE-ID", "SNAPSHOT-DISK-SIZE", "SNAPSHOT-WITH-DATA-FILE"}


def orphans(space: Workspace, ledger: Ledger) -> NDArray[np.bool_]:
    """True for each cluster of the file that is leaked, but may hold guest data (or a lost table).

    Evidence counts from the image as it was found (mending a damaged entry takes away the gap that explains a leak) as
    much as from the one at hand.
    """
    kept = np.zeros(ledger.clusters, dtype=bool)
    if not ledger.leaks().size:
        return kept
    for result in (space.found, check(space.meta)):
        if result is not None:
            _mark(result, ledger, kept)
    kept &= (ledger.counts == 0) & (ledger.stored > 0)
    return kept


def _mark(result: CheckResult, ledger: Ledger, kept: NDArray[np.bool_]) -> None:
    geometry = result.meta.geometry
    if geometry is None or geometry.cluster_bits != ledger.cluster_bits:
        return
    # A snapshot that could not be read explains any leak: its clusters have no other trace.
    snapshots = any(code.startswith("SNAPSHOT") and code not in _HARMLESS for code in result.findings.by_code)
    for each in result.orphans:
        if each.keep or snapshots:
            first = each.offset >> ledger.cluster_bits
            kept[first : first + (each.length >> ledger.cluster_bits)] = True
