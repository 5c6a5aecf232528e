"""The preservation proof itself: what is judged, in which order."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np

from workbench.engine.faults import Refusal
from workbench.repair.preserve.account import Fate, Proof
from workbench.repair.preserve.case import Case
from workbench.repair.preserve.hosts import Hosts
from workbench.repair.preserve.keeping import Keeper, refers
from workbench.repair.preserve.objects import bitmaps_kept, marked_in_bitmaps, objects_kept
from workbench.repair.preserve.views import Views
from workbench.repair.preserve.walk import Use, same_reading
from workbench.repair.workspace import Step
from workbench.storage.base import Storage
from workbench.storage.overlay import Overlay
from workbench.units import div_round_up

_IMPOSSIBLE: Final = {
    "extended L2 or data file bit": {"EXTENDED-L2-CLUSTER-SIZE", "DATA-FILE-UNNAMED"},
    "encryption method": {"HEADER-CRYPT-METHOD", "ENCRYPTION-MISSING", "ENCRYPTION-EXTENSION"},
    "backing file name": {"BACKING-NAME-TOO-LONG", "BACKING-OFFSET", "EXTENSION-OVERRUN"},
    "backing file format": {"BACKING-NAME-TOO-LONG", "BACKING-OFFSET", "EXTENSION-OVERRUN"},
    "data file name": {"DATA-FILE-UNNAMED", "EXTENSION-OVERRUN", "EXTENSION-DUPLICATE"},
}
"""Fault codes under which the base cannot be read with the field as it is."""


_FEW: Final = 16
"""Clusters in use by which nothing is told."""


def prove(base: Storage, after: Overlay, steps: Sequence[Step]) -> Proof:
    """Judge what `after` would make of `base`. steps: looked at for their declarations alone.

    Reads the metadata of both, the guest clusters whose mapping or bytes differ, and, where something goes free, what
    nothing refers to. StorageError where that cannot be read.
    """
    if not after.changed:
        return Proof()
    case = Case(base, after, steps)
    if case.after.geometry is None:
        case.ledger.add(Fate.UNPROVEN, 0, case.base.size, "nothing can be located in the image as it would be")
    elif case.base.geometry is None:
        _from_nothing(case)
    else:
        _compare(case)
    fates = {fate: case.ledger.account(fate) for fate in Fate}
    return Proof(fates[Fate.REGAINED], fates[Fate.GIVEN_UP], fates[Fate.FREED], fates[Fate.UNPROVEN])


def _compare(case: Case) -> None:
    case.count_references()
    differs = same_reading(case.base, case.after)
    codes = {each.code for each in case.base.meta.faults if each.refusal is not Refusal.NONE}
    doubtful = [name for name in differs if not _IMPOSSIBLE.get(name, set()) & codes]
    views, hosts = Views(case), Hosts(case)
    resized = doubtful == ["cluster_bits"] and _counts_tell(case)
    if doubtful and not resized:
        views.reread(doubtful)
    else:
        views.compare(blind=resized or "extended L2 or data file bit" in differs, told=resized)
    hosts.counts()
    hosts.overwritten()
    _objects(case)
    hosts.past_end()
    hosts.next_open()


def _counts_tell(case: Case) -> bool:
    """The image's own refcounts are what its references make under the new cluster size, and not under the old one."""
    if case.shown is None:
        return False
    wrong, used = _disagreeing(case.keeper)
    wrong_then, used_then = _disagreeing(case.shown)
    return used_then > _FEW and wrong_then * 100 <= used_then and wrong * 10 >= used


def _disagreeing(keeper: Keeper) -> tuple[int, int]:
    """(clusters that are referred to, or counted, other than the other says; clusters that are either)."""
    wrong = used = 0
    per_block, clusters = keeper.reading.shape.refcount_block_entries, keeper.reading.clusters
    for index in range(div_round_up(clusters, per_block)):
        counts, _ = keeper.refs.span(index * per_block, min((index + 1) * per_block, clusters))
        values = keeper.block(index)
        stored = np.full(counts.size, -1) if values is None else values[: counts.size].astype(np.int64)
        used += int(np.count_nonzero((counts > 0) | (stored > 0)))
        wrong += int(np.count_nonzero(counts != stored))
    return wrong, used


def _from_nothing(case: Case) -> None:
    """No disk could be read before: what appears must be certain, and nothing else may be written over."""
    a = case.base
    head = a.storage.read(0, 512)
    if head[510:512] == b"\x55\xaa" and case.changed.touch(0, 512):
        case.ledger.add(Fate.GIVEN_UP, 0, 512, "a boot sector lies there: this is another format")
    views = Views(case)
    for view in case.after.views():
        views.blind(view)
    now = Keeper(case.after, refers(case.after))
    size = 1 << case.after.bits
    for start, end in zip(case.changed.starts.tolist(), case.changed.ends.tolist(), strict=True):
        for at in range(start // size * size, end, size):
            first, last = max(at, start, 512), min(at + size, end)
            _, uses = now.refs.one(at // size)
            plain_table = bool(uses & (Use.TABLE | Use.COUNTS)) and not uses & Use.DATA
            kept = first >= last or plain_table or case.frees.cover(first, last - first)
            if not kept and any(a.storage.read(first, last - first)):
                case.ledger.add(Fate.UNPROVEN, first, last - first, "it would be written over")
    lost = np.flatnonzero(now.evidence)
    for number in lost[now.stored_many(lost) == 0].tolist():
        reason = "it is, or is mapped by, a lost table, and would not be counted"
        case.ledger.add(Fate.GIVEN_UP, number * size, size, reason, size=now.content(number))
    _freed_under(case, now)


def _freed_under(case: Case, now: Keeper) -> None:
    """Content that nothing refers to and that is not counted any more, although it was: by the base's refcounts, read as the
    new header says. Where those are lost, it counts as having been in use."""
    size, before = 1 << case.after.bits, case.shown
    if before is None:
        return
    clusters = before.reading.clusters
    found = now.found.content[:clusters] & ~now.evidence[:clusters]
    loose = np.flatnonzero(found)
    loose = loose[(now.stored_many(loose) == 0) & (before.stored_many(loose) != 0)]
    for number in loose.tolist():
        if now.gap:
            fate, reason = Fate.GIVEN_UP, f"it would go free, although {now.gap}"
        elif case.frees.cover(number * size, size):
            fate, reason = Fate.FREED, "nothing refers to it, and nothing suggests that anybody needs it"
        else:
            fate, reason = Fate.UNPROVEN, "it would go free without a word"
        case.ledger.add(fate, number * size, size, reason, size=now.content(number))


def _objects(case: Case) -> None:
    for start, length, reason in objects_kept(case.base, case.after, case.changed.touch):
        case.ledger.add(Fate.UNPROVEN, start, length, reason)
    for start, length, reason in bitmaps_kept(case.base, case.after, case.changed.touch, case.refs):
        case.ledger.add(Fate.UNPROVEN, start, length, reason)
    found = case.ledger.guest_ranges(Fate.REGAINED, Fate.GIVEN_UP)
    for start, length, reason in marked_in_bitmaps(case.after, found):
        case.ledger.add(Fate.UNPROVEN, start, length, reason)
