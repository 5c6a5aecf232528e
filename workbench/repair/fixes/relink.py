"""Lost L2 tables put back into the L1 entries that lost them.

The check finds leaked clusters that hold L2 tables and ranks the L1 entries each may belong to, with evidence. What is
certain enough is linked; the rest stays untouched as an orphan and is offered as a choice.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from formats.qcow2.tables import COPIED, OFFSET_MASK
from workbench.check import CheckResult, check
from workbench.check.problems import Tier
from workbench.check.triage import LostTable
from workbench.repair.fixes.base import Alternative, Rule, codes
from workbench.repair.probe import l2_content
from workbench.repair.workspace import Workspace

CERTAIN: Final = 0.5
"""Confidence from which a table is linked without being asked."""


def run(space: Workspace) -> None:
    """Link the lost tables whose place is known."""
    if space.policy.choice("relink", "best") == "none":
        return
    result = check(space.meta)
    if space.policy.choice("relink", "best") == "data":
        _link_data(space, result)
    lost = sorted(result.lost_tables, key=lambda each: (-each.confidence, each.offset))
    if not lost:
        return
    taken: set[int] = set()
    free = _free_entries(space)
    for table in lost:
        index = _chosen(space, table, free - taken)
        if index is None:
            continue
        taken.add(index)
        _link(space, table, index)


def _free_entries(space: Workspace) -> set[int]:
    """L1 entries of the disk without a usable table: none, damaged, shared with an earlier entry, or an empty table."""
    words = space.meta.l1[: space.geometry.l1_entries_for(space.meta.header.size)]
    offset = words & np.uint64(OFFSET_MASK)
    usable = (offset > 0) & (offset % np.uint64(space.cluster) == 0) & (offset < np.uint64(space.end))
    free = set(np.flatnonzero(~usable).tolist())
    places: dict[int, int] = {}
    for index in np.flatnonzero(usable).tolist():
        content = l2_content(space, int(offset[index])) if index < 1 << 16 else None
        if content is not None and (content.empty or content.is_foreign):
            free.add(index)
        if int(offset[index]) in places:
            free |= {index, places[int(offset[index])]}
        places.setdefault(int(offset[index]), index)
    return free


def _chosen(space: Workspace, table: LostTable, free: set[int]) -> int | None:
    asked = space.policy.choice(f"relink:{table.offset:#x}", "")
    if asked:
        return int(asked) if asked.isdigit() and int(asked) in free else None
    shared = _among_shared(space, table.offset)
    if shared is not None and shared in free:
        return shared
    fits = [index for index in table.fits if index in free]
    if fits and fits[0] == table.fits[0] and table.confidence >= CERTAIN:
        return fits[0]
    shown = ", ".join(map(str, table.fits[:8])) or "none that is free"
    space.note(
        f"a lost L2 table lies at {table.offset:#x} ({table.leaked} leaked clusters); it may belong to L1 entry {shown}:"
        " it is kept, choose its place to link it"
    )
    return None


def _among_shared(space: Workspace, offset: int) -> int | None:
    """Two L1 entries on one table, and one table lost: the entry that the order of tables in the file speaks for."""
    words = space.meta.l1 & np.uint64(OFFSET_MASK)
    used = np.flatnonzero(words)
    values, times = np.unique(words[used], return_counts=True)
    if (times > 1).sum() != 1 or times.max() != 2:
        return None
    shared = int(values[np.argmax(times)])
    first, second = (int(index) for index in used[words[used] == np.uint64(shared)])
    return second if offset > shared else first


def _link(space: Workspace, table: LostTable, index: int) -> None:
    guest = [(index * space.geometry.l2_coverage, space.geometry.l2_coverage)]
    place = space.meta.header.l1_table_offset + index * 8
    title = f"link the lost L2 table at {table.offset:#x} into L1 entry {index} ({'; '.join(table.evidence)})"
    space.put(
        place, (COPIED | table.offset).to_bytes(8, "big"), code="CLUSTER-LEAKED", title=title, kind="l1",
        tier=Tier.JUDGEMENT, guest=guest, choice=str(index),
    )  # fmt: skip


def _link_data(space: Workspace, result: CheckResult) -> None:
    """Leaked clusters that fit exactly between the clusters of two guest neighbours, into entries that are empty."""
    meta, geometry = space.meta, space.geometry
    for each in result.orphans:
        if not each.keep or each.guest is None:
            continue
        for step in range(0, each.length, space.cluster):
            guest, host = each.guest + step, each.offset + step
            index = geometry.l1_index(guest)
            table = int(meta.l1[index]) & OFFSET_MASK if index < meta.l1.size else 0
            place = table + geometry.l2_index(guest) * geometry.l2_entry_size
            if not table or table >= space.size or any(space.read(place, geometry.l2_entry_size)):
                continue
            data = (COPIED | host).to_bytes(8, "big") + (b"\0\0\0\0\xff\xff\xff\xff" if geometry.extended_l2 else b"")
            title = f"link the leaked cluster at {host:#x} to guest offset {guest:#x} again: it lies between its neighbours' clusters"
            space.put(
                place, data, code="CLUSTER-LEAKED", title=title, kind="l2",
                tier=Tier.JUDGEMENT, guest=[(guest, space.cluster)], choice="data",
            )  # fmt: skip


RULES = (
    Rule(
        "relink",
        "Link lost L2 tables again",
        codes(
            "L2-TABLE-LOST",
            "CLUSTER-LEAKED",
            "L1-ENTRY-UNALIGNED",
            "L1-ENTRY-BEYOND-EOF",
            "L2-TABLE-FOREIGN",
            "L2-TABLE-EMPTY",
            "L2-TABLE-SHARED",
        ),
        Tier.JUDGEMENT,
        run,
        alternatives=(
            Alternative("best", "Link where the evidence is clear", "the guest reads its data again"),
            Alternative(
                "data", "Link leaked data too", "ranges whose neighbours lie beside the leaked cluster read it again"
            ),
            Alternative("none", "Leave lost tables alone", "the range stays unreadable; the table is kept"),
        ),
        reads_tables=True,
    ),
)
