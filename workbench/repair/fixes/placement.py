"""Where the active L1 table is: a header offset that leads nowhere, and the table found again by what it holds."""

from __future__ import annotations

import numpy as np

from formats.qcow2.tables import table_bytes
from workbench.check.problems import Tier
from workbench.repair.fixes.base import Rule, codes
from workbench.repair.fixes.header import SIZE_RULES
from workbench.repair.probe import find_l1, leads_nowhere
from workbench.repair.workspace import Workspace


def run(space: Workspace) -> None:
    """Look for the L1 table where the header's cannot be one; without any trace of it, start an empty one."""
    header, cluster = space.meta.header, space.cluster
    offset, entries = header.l1_table_offset, header.l1_size
    if not entries:
        return
    impossible = offset % cluster != 0 or offset >= space.size or offset == 0
    if not impossible and not leads_nowhere(space, space.meta.l1[: space.geometry.l1_entries_for(header.size)]):
        return
    taken = {each.l1_table_offset for each in space.meta.snapshots} | {0, offset}
    leaked = space.ledger.maybe_leaked()
    found = find_l1(space, entries, taken, leaked) or (find_l1(space, entries, taken) if impossible else [])
    found = [each for each in found if not space.ledger.claims_at(each[1])] or found
    best = [place for score, place in found if score == found[0][0]]
    code = "L1-TABLE-UNALIGNED" if offset % cluster else "L1-TABLE-OFFSET"
    if len(best) == 1 and (impossible or len(found) == 1):
        place = best[0]
        title = f"point the header at the L1 table found at {place:#x} ({found[0][0]} L2 tables hang on it)"
        guest = [(0, header.size)]
        space.set_header(
            "l1_table_offset", place, code=code, title=title, tier=Tier.JUDGEMENT, guest=guest, places=guest
        )
    elif found:
        shown = ", ".join(f"{place:#x}" for place in best[:8])
        space.note(f"several places may hold the active L1 table ({shown}): none is taken without being told")
    elif impossible:
        _start_empty(space, entries, code)


def _start_empty(space: Workspace, entries: int, code: str) -> None:
    size = entries * 8
    if size > 32 << 20:
        return
    place = space.append(max(1, -(-size // space.cluster)))
    space.put(
        place,
        table_bytes(np.zeros(max(entries, 1), dtype=np.uint64)),
        code=code,
        title="start an empty L1 table",
        kind="l1",
        tier=Tier.JUDGEMENT,
    )
    title = "point the header at an empty L1 table: no trace of the old one was found"
    space.set_header(
        "l1_table_offset", place, code=code, title=title, tier=Tier.JUDGEMENT, guest=[(0, space.meta.header.size)]
    )
    space.note("no L1 table was found: the disk is empty now; leaked clusters may hold its data")


RULES = (
    *SIZE_RULES,
    Rule(
        "l1-table",
        "Find the L1 table",
        codes(
            "L1-TABLE-UNALIGNED", "L1-TABLE-OFFSET", "REGION-BEYOND-EOF", "L1-ENTRY-RESERVED", "L1-ENTRY-UNALIGNED",
            "L1-ENTRY-BEYOND-EOF", "L1-ENTRY-OFFSET-ZERO", "L2-TABLE-FOREIGN", "METADATA-OVERLAP",
        ),
        Tier.JUDGEMENT,
        run,
    ),
)  # fmt: skip
