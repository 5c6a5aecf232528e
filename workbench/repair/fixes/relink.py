"""Lost L2 tables put back into the L1 entries that lost them, where that place is certain.

The check finds unreferenced clusters that hold L2 tables. A table is linked when there is one L1 entry that it can belong
to and no other owner is in sight; the rest stays counted and is offered as a choice.
"""

from __future__ import annotations

from collections import Counter
from typing import Final

import numpy as np
from numpy.typing import NDArray

from formats.qcow2.entries import ALL_ALLOCATED, Pointers, PointerTable, offset_of, pointing_to
from workbench.check import CheckResult, check
from workbench.check.problems import Tier
from workbench.check.triage import LostTable
from workbench.engine.unreferenced import read_table
from workbench.repair.fixes.base import Alternative, Rule, codes
from workbench.repair.ledger import CROSSED, META
from workbench.repair.preserve.walk import Use
from workbench.repair.probe import clusters, l1_bad, l2_content
from workbench.repair.triage import keeper_of
from workbench.repair.workspace import Workspace
from workbench.units import many

_LOST: Final = "lost table"
"""What notes about lost tables are about."""


def run(space: Workspace) -> None:
    """Link the lost tables whose place is known."""
    space.forget_notes(_LOST)
    if space.policy.choice("relink", "best") == "none":
        return
    result = check(space.meta, known=space.found)
    if space.policy.choice("relink", "best") == "data":
        _link_data(space, result)
    _link_only_cluster(space)
    lost = sorted(result.lost_tables, key=lambda each: each.offset)
    if not lost:
        return
    free = _free_entries(space)
    places = _certain(space, lost, free)
    for table in lost:
        asked = space.policy.choice(f"relink:{table.offset:#x}", "")
        index = int(asked) if asked.isdigit() and int(asked) in free else None if asked else places.get(table.offset)
        if index is not None and index in free:
            free.discard(index)
            _link(space, table, index, certain=not asked)
            continue
        fits = sorted(each for each in table.fits if each in free)
        shown = ", ".join(map(str, fits[:8])) + (" …" if len(fits) > 8 else "")
        place = (
            f"it may belong to L1 entry {shown}: it is kept; `--choose relink:{table.offset:#x}={fits[0]}`, with --accept-loss, links it there"
            if fits
            else "no L1 entry without a table is left for it: it is kept"
        )
        own = f"{many(table.leaked, 'cluster')} that nothing else uses"
        space.note(f"a lost L2 table lies at {table.offset:#x}, with {own}; {place}", f"{_LOST} {table.offset:#x}")


def _free_entries(space: Workspace) -> set[int]:
    """L1 entries of the disk without a table of their own.

    None at all, damaged, on a cluster of another structure, shared with an earlier entry, or with nothing in their table,
    or with one that a fix has put there in place of what is lost, or overwritten.
    """
    ledger = space.ledger
    words = space.meta.l1[: space.geometry.l1_entries_for(space.meta.header.size)]
    offset = offset_of(words)
    usable = Pointers(words, PointerTable.L1, space.meta.shape).inside(space.end)
    free = set(np.flatnonzero(~usable).tolist())
    places, before = dict[int, int](), _words_as_found(space)
    for index in np.flatnonzero(usable).tolist():
        place = int(offset[index])
        content = l2_content(space, place) if index < 1 << 16 else None
        if content is not None and (content.empty or not content.may_be_table):
            free.add(index)
        if content is not None and place >= space.base.size() and place != offset_of(int(before[index])):
            free.add(index)
        if ledger.claims_at(place):
            free.add(index)
        if place in places:
            free |= {index, places[place]}
        places.setdefault(place, index)
    return free


def _words_as_found(space: Workspace) -> NDArray[np.uint64]:
    """The disk's L1 entries before any fix: what stood in one that has been parted from its table is a trace of it."""
    before = space.found.meta if space.found is not None else None
    now = space.meta.l1
    return before.l1 if before is not None and before.l1.size == now.size and before.geometry == space.geometry else now


def _certain(space: Workspace, lost: list[LostTable], free: set[int]) -> dict[int, int]:
    """Table offset -> the only L1 entry that it can belong to."""
    words = _words_as_found(space)
    if _has_other_owners(space, lost):
        return {}
    # As the image was found: counting what counted as free does not make it younger.
    doubtful = {table.offset for table in space.found.lost_tables if table.doubtful} if space.found else set()
    if space.meta.header.has("data_file"):
        placed = [table for table in lost if table.certain and len(table.fits) == 1 and table.fits[0] in free]
        times = Counter(table.fits[0] for table in placed)
        return {table.offset: table.fits[0] for table in placed if times[table.fits[0]] == 1}
    mine = [table for table in lost if _is_current(space, table)]
    found: dict[int, int] = {}
    for table in mine:
        # One bit away from the offset that stands there (a zeroed entry is not: it has no trace of any table).
        near = [
            index
            for index in sorted(free)
            if (old := offset_of(int(words[index]))) and (old ^ table.offset).bit_count() == 1
        ]
        if len(near) == 1:
            found[table.offset] = near[0]
    taken = set(found.values())
    if len(taken) < len(found):
        return {}
    rest = [table for table in lost if table.offset not in found]
    if len(rest) == 1 and rest[0] in mine and rest[0].offset not in doubtful:
        # One table and one place for it; or one place that had a table, as the damage in it shows.
        left = {index for index in free - taken if not _had_its_table_there(space, int(words[index]))}
        damaged = {index for index in left if int(words[index])}
        if len(left) == 1 or len(damaged) == 1:
            found[rest[0].offset] = next(iter(damaged or left))
    return found


def _had_its_table_there(space: Workspace, word: int) -> bool:
    """What an L1 entry names, as the image was found, was its table, which something has overwritten: it counts as the
    table's, and nothing else refers to it. No other table belongs there."""
    keeper, place = keeper_of(space), offset_of(word)
    if (
        not place
        or place % space.cluster
        or place >= space.base.size()
        or keeper.reading.bits != space.ledger.cluster_bits
    ):
        return False
    counts, uses = keeper.refs.one(place >> keeper.reading.bits)
    stored = keeper.stored(place >> keeper.reading.bits)
    return not uses & (Use.DATA | Use.COUNTS) and stored is not None and 0 < counts <= stored


def _is_current(space: Workspace, table: LostTable) -> bool:
    """Nothing else refers to any cluster that the table maps, or each is counted for one more: no older state of what is
    mapped now.

    Nor was its cluster one of the refcount structure, which a repair may have made anew elsewhere.
    """
    ledger, before = space.ledger, keeper_of(space)
    if (
        before.reading.bits == ledger.cluster_bits
        and before.refs.one(table.offset >> ledger.cluster_bits)[1] & Use.COUNTS
    ):
        return False
    read = read_table(space.overlay, space.geometry, table.offset, external=False)
    if read is None or not read[1].size or (ledger.flags[read[1]] & np.uint8(META | CROSSED)).any():
        return False
    plain = read[0].standard[(read[0].standard > 0) & (read[0].standard < ledger.clusters)]
    # Compressed clusters share host clusters with one another, so only standard ones speak.
    alone = not ledger.counts[plain].any()
    return alone or bool((ledger.stored[plain] == ledger.counts[plain].astype(np.uint64) + np.uint64(1)).all())


def _has_other_owners(space: Workspace, lost: list[LostTable]) -> bool:
    """Some cluster that nothing refers to is an L1 table that names a lost table: a snapshot's, or an older state's."""
    wanted = np.array([table.offset for table in lost], dtype=np.uint64)
    for offset, head in clusters(space, space.ledger.maybe_leaked()):
        if offset in wanted:
            continue
        used = head[head != 0]
        if np.isin(offset_of(used), wanted).any() and not l1_bad(space, used).any():
            space.note(
                f"an L1 table that nothing refers to lies at {offset:#x}: the lost L2 tables it names are its own"
            )
            return True
    return False


def _link(space: Workspace, table: LostTable, index: int, *, certain: bool) -> None:
    geometry = space.geometry
    start = index * geometry.l2_coverage
    guest = [(start, min(geometry.l2_coverage, max(space.meta.header.size - start, space.cluster)))]
    old = offset_of(int(space.meta.l1[index]))
    if old and not old % space.cluster and old < space.size and not space.ledger.claims_at(old):
        space.keep(old, space.cluster)
    place = space.meta.header.l1_table_offset + index * 8
    title = f"link the lost L2 table at {table.offset:#x} into L1 entry {index} ({'; '.join(table.evidence)})"
    space.put(
        place, pointing_to(table.offset).to_bytes(8, "big"), code="CLUSTER-LEAKED", title=title, kind="l1",
        tier=Tier.JUDGEMENT, guest=guest, choice=str(index), places=guest if certain else (),
    )  # fmt: skip


def _link_only_cluster(space: Workspace) -> None:
    """One extended entry says that it has a cluster and not which, and one cluster alone has lost its entry."""
    rows = list(space.rows.each("SUBCLUSTER-UNALLOCATED"))
    if len(rows) != 1 or rows[0].count != 1 or rows[0].snapshot >= 0 or rows[0].guest is None:
        return
    leaks = space.ledger.leaks()
    if leaks.size != 1:
        return
    host = int(leaks[0]) << space.ledger.cluster_bits
    if not any(space.read_cluster(host)):
        return
    title = f"link the leaked cluster at {host:#x} to guest offset {rows[0].guest:#x}: it alone has lost its cluster"
    guest = [(rows[0].guest, space.cluster)]
    space.put(
        rows[0].offset, pointing_to(host).to_bytes(8, "big"), code="SUBCLUSTER-UNALLOCATED", title=title, kind="l2",
        tier=Tier.JUDGEMENT, guest=guest, places=guest,
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
            table = offset_of(int(meta.l1[index])) if index < meta.l1.size else 0
            place = table + geometry.l2_index(guest) * geometry.l2_entry_size
            if not table or table >= space.size or any(space.read(place, geometry.l2_entry_size)):
                continue
            data = pointing_to(host).to_bytes(8, "big")
            data += ALL_ALLOCATED.to_bytes(8, "big") if geometry.extended_l2 else b""
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
            "METADATA-OVERLAP",
            "SUBCLUSTER-UNALLOCATED",
        ),
        Tier.JUDGEMENT,
        run,
        alternatives=(
            Alternative("best", "Link where the place is certain", "the guest reads its data again"),
            Alternative(
                "data", "Link leaked data too", "ranges whose neighbours lie beside the leaked cluster read it again"
            ),
            Alternative("none", "Leave lost tables alone", "the range stays unreadable; the table is kept"),
        ),
        reads_tables=True,
    ),
)
