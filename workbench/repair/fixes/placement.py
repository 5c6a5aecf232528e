"""Where the active L1 table is: a header offset that leads nowhere, and the table found again by what it holds."""

from __future__ import annotations

from formats.qcow2.tables import table_bytes
from workbench.check.problems import Tier
from workbench.repair.fixes.base import Rule, codes
from workbench.repair.fixes.header import SIZE_RULES
from workbench.repair.probe import find_l1, l1_score
from workbench.repair.workspace import Workspace


def run(space: Workspace) -> None:
    """Keep the L1 table unless it makes no sense and another one does; without any, start an empty one."""
    header, cluster = space.meta.header, space.cluster
    offset, entries = header.l1_table_offset, header.l1_size
    impossible = offset % cluster != 0 or offset >= space.size or offset == 0
    strong, wrong = (0, 0) if impossible else l1_score(space, offset, entries)
    if not impossible and wrong <= strong:
        return
    taken = {each.l1_table_offset for each in space.meta.snapshots} | {0}
    if not impossible:
        taken.add(offset)
    code = "L1-TABLE-UNALIGNED" if offset % cluster else "L1-TABLE-OFFSET"
    found = [(score, place) for score, place in find_l1(space, entries, taken) if score > strong]
    if found:
        best = [place for score, place in found if score == found[0][0]]
        place = next((each for each in best if not _claimed(space, each)), best[0])
        title = f"point the header at the L1 table found at {place:#x} ({found[0][0]} L2 tables hang on it)"
        space.set_header(
            "l1_table_offset", place, code=code, title=title, tier=Tier.JUDGEMENT, guest=[(0, header.size)]
        )
    elif impossible:
        _start_empty(space, entries, code)


def _claimed(space: Workspace, offset: int) -> bool:
    return bool(space.ledger.claims_at(offset))


def _start_empty(space: Workspace, entries: int, code: str) -> None:
    import numpy as np

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
        codes("L1-TABLE-UNALIGNED", "L1-TABLE-OFFSET", "REGION-BEYOND-EOF", "L1-ENTRY-RESERVED"),
        Tier.JUDGEMENT,
        run,
    ),
)
