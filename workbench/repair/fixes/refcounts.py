"""Refcounts: set right in place where their tables are sound, replaced block by block, or built anew at the file's end.

What they ought to be comes from the ledger alone. A new structure describes itself, is written behind everything else
and becomes valid with one header write; the old one keeps its bytes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from formats.qcow2 import limits, refcounts
from formats.qcow2.header import field as header_field
from formats.qcow2.tables import table_bytes
from workbench.check import check
from workbench.check.findings import Findings
from workbench.check.kinds import Owner
from workbench.check.problems import Tier
from workbench.errors import ImageError
from workbench.repair import triage
from workbench.repair.fixes.base import Rule, codes
from workbench.repair.gate import Reach
from workbench.repair.ledger import META, Claim, Ledger, good_blocks
from workbench.repair.policy import Mode
from workbench.repair.preserve.keeping import Keeper
from workbench.repair.workspace import Workspace
from workbench.units import div_round_up, many


@dataclass(slots=True)
class _Wanted:
    """values: refcount per cluster of the file.  kept: clusters that keep theirs though nothing refers to them."""

    values: NDArray[Any]
    kept: NDArray[np.bool_]


def run(space: Workspace) -> None:
    """Make stored refcounts what they ought to be."""
    space.evidence = None
    if space.policy.mode is Mode.LEAKS and not space.steps:
        _lower_leaks(space)
        return
    if _overflows(space):
        _widen(space)
    elif not table_is_sound(space) or not _in_place(space):
        _rebuild(space, space.ledger, _wanted(space, space.ledger).values)


_MOST_LOOSE: Final = 4096
"""Clusters without an owner among which lost refcount blocks are looked for."""
_FEW: Final = 8
"""Clusters in use that a block must count at least to be known by them."""

# -- what stays counted ------------------------------------------------------------------------------------------------

_SNAPSHOTS_READ: Final = frozenset({"SNAPSHOT-DUPLICATE-ID", "SNAPSHOT-DISK-SIZE", "SNAPSHOT-WITH-DATA-FILE"})
"""Rows about snapshots whose tables are read all the same."""
_LOST: Final = frozenset({
    "L1-TABLE-UNALIGNED", "L1-TABLE-OFFSET", "L1-TABLE-TOO-SMALL", "L1-ENTRY-UNALIGNED", "L1-ENTRY-BEYOND-EOF",
    "L1-ENTRY-OFFSET-ZERO", "L2-TABLE-FOREIGN", "L2-ENTRY-UNALIGNED", "SUBCLUSTER-UNALLOCATED", "READ-ERROR",
    "ENCRYPTION-MISSING", "ENCRYPTION-EXTENSION", "ENCRYPTION-UNEXPECTED", "LUKS-UNALIGNED", "LUKS-BEYOND-EOF",
    "LUKS-LENGTH", "LUKS-MAGIC", "EXTENSION-OVERRUN",
})  # fmt: skip
"""Rows about entries and pointers that do not say any more which clusters are theirs."""


def _snapshots_unread(space: Workspace, findings: Findings) -> bool:
    """Some snapshot cannot be read, so what it shares with the disk, or holds alone, cannot be told."""
    codes = findings.by_code
    if any(code.startswith("SNAPSHOT") and code not in _SNAPSHOTS_READ for code in codes):
        return True
    header = space.meta.header
    forgotten = bool(header.snapshots_offset) and not header.nb_snapshots
    return forgotten or any(
        each.snapshot >= 0 or each.offset == header.snapshots_offset for each in findings.of("REGION-BEYOND-EOF")
    )


def _evidence(space: Workspace, ledger: Ledger) -> tuple[NDArray[np.bool_], bool]:
    """(clusters that nothing refers to and that stay counted, whether shared clusters may have owners nobody sees)."""
    if space.policy.free_orphans:
        return np.zeros(ledger.clusters, dtype=bool), False
    kept = triage.orphans(space, ledger)
    leaked = (ledger.counts == 0) & (ledger.stored > 0)
    now = (check(space.meta, fast=True).findings,) if space.steps else ()
    then = (space.found.findings,) if space.found is not None else ()
    unread = any(_snapshots_unread(space, each) for each in (*now, *then))
    if unread or any(not _LOST.isdisjoint(each.by_code) for each in then):
        kept |= leaked
    return kept, unread or space.policy.cautious or triage.keeper_of(space).hidden or bool((kept & leaked).any())


def _judged(space: Workspace, ledger: Ledger) -> tuple[NDArray[np.bool_], bool]:
    """`_evidence`, worked out once for the fixes that follow one another."""
    known = space.evidence
    if known is None or known[0].size > ledger.clusters:
        known = space.evidence = _evidence(space, ledger)
    kept = np.zeros(ledger.clusters, dtype=bool)
    kept[: known[0].size] = known[0]
    for start, end in space.kept if not space.policy.free_orphans else ():
        kept[start >> ledger.cluster_bits : end >> ledger.cluster_bits] = True
    return kept & (ledger.counts == 0), known[1]


def _stored_before(space: Workspace, ledger: Ledger) -> NDArray[Any]:
    """Refcounts as the image had them, 0 where unknown; empty where its clusters were of another size."""
    keeper = triage.keeper_of(space)
    if keeper.reading.storage is not space.base or keeper.reading.bits != ledger.cluster_bits:
        return np.zeros(0, dtype=np.uint64)
    if space.floor is None or space.floor.size < ledger.clusters:
        space.floor, _ = keeper.stored_all(ledger.clusters)
    return _with_found_blocks(space, keeper, space.floor)


def _with_found_blocks(space: Workspace, keeper: Keeper, known: NDArray[Any]) -> NDArray[Any]:
    """The refcounts, with those of blocks that were there and that the table names only now."""
    _, blocks = good_blocks(space)
    was, per_block = keeper.reading.block_offsets(), space.geometry.refcount_block_entries
    was = np.pad(was, (0, max(0, blocks.size - was.size)))[: blocks.size]
    found = np.flatnonzero((blocks > 0) & (blocks != was) & (blocks < np.uint64(space.base.size())))
    for index in [each for each in found.tolist() if keeper.block(each) is None]:
        values = refcounts.unpack(
            space.base.read(int(blocks[index]), space.cluster).ljust(space.cluster, b"\0"),
            space.geometry.refcount_order,
        )
        known = known.copy() if known is space.floor else known
        part = known[index * per_block : (index + 1) * per_block]
        part[:] = values[: part.size]
    return known


def counted_once(space: Workspace, ledger: Ledger) -> NDArray[np.bool_]:
    """Clusters whose refcount was one before anything was repaired: nobody shares them, whatever cannot be read."""
    known = _stored_before(space, ledger)
    once = np.zeros(ledger.clusters, dtype=bool)
    length = min(known.size, once.size)
    once[:length] = known[:length] == 1
    return once


def _stood_above(space: Workspace, ledger: Ledger, values: NDArray[Any]) -> NDArray[np.bool_]:
    """Clusters whose refcount was higher than this, as the image had it and still has (what a plan raised itself may be
    lowered again)."""
    known = _stored_before(space, ledger)
    above, length = np.zeros(ledger.clusters, dtype=bool), min(known.size, ledger.clusters)
    above[:length] = (known[:length] > values[:length]) & (ledger.stored[:length] > values[:length])
    return above


def leaks_kept(space: Workspace) -> int:
    """Clusters of the image as it is now whose refcount is higher than needed, on purpose."""
    ledger = space.ledger
    kept, shared = _judged(space, ledger)
    high = (ledger.counts > 0) & _stood_above(space, ledger, ledger.counts)
    if high.any() and not shared:
        high &= triage.sharing_lost(space, ledger)
    doubled = _may_be_shared(space, ledger) & (ledger.stored > ledger.counts)
    return int((kept & (ledger.stored > 0)).sum() + high.sum() + doubled.sum())


def sharing_unknown(space: Workspace) -> bool:
    """Clusters may be shared with owners that cannot be read: no refcount goes down, nothing becomes COPIED."""
    return _judged(space, space.ledger)[1]


# -- setting them right ------------------------------------------------------------------------------------------------


def _overflows(space: Workspace) -> bool:
    """Some cluster is shared more often than the refcount width can say."""
    return space.meta.header.version >= 3 and bool(
        (space.ledger.counts > min(space.geometry.refcount_max, 0xFFFFFFFF)).any()
    )


def _widen(space: Workspace) -> None:
    """Wider refcounts, in a whole new structure."""
    ledger = space.ledger
    values = _wanted(space, ledger).values
    values = np.maximum(values, ledger.counts)
    widths = range(space.meta.header.refcount_order + 1, limits.MAX_REFCOUNT_ORDER + 1)
    order = next((each for each in widths if int(values.max()) < 1 << (1 << each)), limits.MAX_REFCOUNT_ORDER)
    title = f"make refcounts {1 << order} bits wide: a cluster is shared more often than {space.geometry.refcount_bits} bits can say"
    space.set_header("refcount_order", order, code="REFCOUNT-OVERFLOW", title=title)
    _rebuild(space, ledger, values)


def table_is_sound(space: Workspace) -> bool:
    """The refcount table lies aligned in the file, is owned by nobody else, and is large enough for the file."""
    meta, header = space.meta, space.meta.header
    region = meta.refcount_table_said
    if not header.refcount_table_clusters or region.offset % space.cluster or not region.offset:
        return False
    if region.length > limits.MAX_REFCOUNT_TABLE_SIZE or region.offset + region.length > space.end:
        return False
    ledger = space.ledger
    first = region.offset >> ledger.cluster_bits
    if (ledger.counts[first : first + header.refcount_table_clusters] != 1).any():
        return False
    entries = region.length // 8
    needed = div_round_up(ledger.clusters, space.geometry.refcount_block_entries)
    return entries >= needed and _mostly_sense(space)


def _mostly_sense(space: Workspace) -> bool:
    words, blocks = good_blocks(space)
    used = words != 0
    return int((used & (blocks == 0)).sum()) <= max(4, int(used.sum()) // 2)


def _wanted(space: Workspace, ledger: Ledger) -> _Wanted:
    values = ledger.counts.astype(np.result_type(ledger.counts, ledger.stored))
    most = values.dtype.type(space.geometry.refcount_max)
    if (values > most).any():
        values = np.minimum(values, most)
    kept, shared = _judged(space, ledger)
    values[kept] = np.maximum(ledger.stored[kept], 1)
    lost = _may_be_shared(space, ledger)
    if lost.any():
        more = ledger.counts[lost].astype(np.uint64) + np.uint64(1)
        values[lost] = np.minimum(np.maximum(values[lost], more), np.uint64(most))
        space.note(
            f"{many(int(lost.sum()), 'cluster')} may be shared with a snapshot that cannot be read, and their refcounts are"
            " lost: each is counted once more",
            "counts of a lost snapshot",
        )
    held = (ledger.counts > 0) & (ledger.stored > values)
    if held.any():
        held = held if shared else triage.sharing_lost(space, ledger)
        held &= _stood_above(space, ledger, values)
        if held.any():
            at = np.flatnonzero(held)
            values[at] = np.minimum(np.minimum(_stored_before(space, ledger)[at], ledger.stored[at]), most)
            space.note(
                f"{many(int(held.sum()), 'cluster')} may be shared with something that has lost its place (a table, a"
                " snapshot): the refcount is kept",
                "counts that are kept",
            )
    return _Wanted(values, kept)


def _may_be_shared(space: Workspace, ledger: Ledger) -> NDArray[np.bool_]:
    """Guest data in use whose refcounts the image as it was found does not tell, while a snapshot of it cannot be read."""
    keeper = triage.keeper_of(space)
    none = np.zeros(ledger.clusters, dtype=bool)
    if space.policy.free_orphans or not keeper.unread or keeper.reading.bits != ledger.cluster_bits:
        return none
    count = min(ledger.clusters, keeper.reading.clusters)
    _, known = keeper.stored_all(count)
    unknown = ~known & (_stored_before(space, ledger)[:count] == 0)  # no block was found that counts them
    none[:count] = unknown & (ledger.counts[:count] > 0) & ((ledger.flags[:count] & np.uint8(META)) == 0)
    return none


def _lower_leaks(space: Workspace) -> None:
    """`--leaks` on an image whose tables stay as they are: free what is waste, change nothing else."""
    if not table_is_sound(space):
        space.note("the refcount structures are damaged: repair them (--all) before leaks can be freed")
        return
    ledger = space.ledger
    low = ledger.known & (ledger.counts > ledger.stored)
    if low.any():
        space.note("some refcounts are too low, so nothing is freed before they are repaired (--all)")
        return
    wanted = _wanted(space, ledger)
    _write_blocks(space, wanted.values)


def _in_place(space: Workspace) -> bool:
    """False when the table has no room for the blocks that it needs."""
    if not _replace_bad_blocks(space):
        return False
    _write_blocks(space, _wanted(space, space.ledger).values)
    return True


def _replace_bad_blocks(space: Workspace) -> bool:
    """Give every refcount table entry that needs one a block of its own; False when the table is too short."""
    per_block = space.geometry.refcount_block_entries
    for _ in range(64):  # each new block may lie in a range that has no block yet
        ledger = space.ledger
        words, blocks = good_blocks(space)
        numbers = (blocks >> np.uint64(ledger.cluster_bits)).astype(np.int64)
        alone = np.zeros(words.size, dtype=bool)
        inside = (blocks > 0) & (numbers < ledger.clusters)
        alone[inside] = ledger.counts[numbers[inside]] == 1
        wrong = (words != 0) & ~alone
        wrong &= ~_first_of_shared(blocks, wrong, ledger)
        starts = np.arange(0, ledger.clusters, per_block)
        if starts.size > words.size:
            return False
        needed = np.zeros(words.size, dtype=bool)
        needed[: starts.size] = np.add.reduceat(ledger.counts > 0, starts) > 0
        todo = np.flatnonzero((needed & (words == 0)) | wrong)
        if not todo.size:
            return True
        region = space.meta.refcount_table_region
        lost = _lost_blocks(space, ledger, [index for index in todo.tolist() if needed[index] and not alone[index]])
        for index in todo.tolist():
            at = region.offset + index * 8
            if index in lost:
                title = f"point refcount table entry {index} at its block again: what it counts is what is referenced"
                code = _block_code(space, int(words[index]), int(blocks[index]))
                space.put(at, lost[index].to_bytes(8, "big"), code=code, title=title, kind="refcount-table")
                continue
            new = space.append() if needed[index] else 0
            code = _block_code(space, int(words[index]), int(blocks[index]))
            title = f"give refcount table entry {index} a new block" if new else f"drop refcount table entry {index}"
            if new:
                _copy_known(space, int(blocks[index]) if alone[index] else 0, new)
            first = index * per_block
            part = slice(first, first + per_block)
            less = (~ledger.known[part] & (ledger.counts[part] == 0)) | (ledger.stored[part] > ledger.counts[part])
            frees = _ranges(first + np.flatnonzero(less).astype(np.int64), ledger.cluster_bits)
            space.put(at, new.to_bytes(8, "big"), code=code, title=title, kind="refcount-table", frees=frees)
    return False


def _lost_blocks(space: Workspace, ledger: Ledger, missing: list[int]) -> dict[int, int]:
    """Table entry -> host offset of the block that it lost: a cluster without an owner that counts its range, and itself,
    exactly as it is referenced."""
    keeper, order = triage.keeper_of(space), space.geometry.refcount_order
    per_block = space.geometry.refcount_block_entries
    found: dict[int, int] = {}
    if not missing or keeper.reading.bits != ledger.cluster_bits:
        return found
    size = min(ledger.clusters, keeper.found.content.size)
    loose = np.flatnonzero(keeper.found.content[:size] & (ledger.counts[:size] == 0))
    for number in loose[:_MOST_LOOSE].tolist():
        values = refcounts.unpack(space.read_cluster(number << ledger.cluster_bits), order)
        if not refcounts.may_be_refcounts(values):
            continue
        for index in missing:
            part = ledger.counts[index * per_block : (index + 1) * per_block].astype(np.uint64)
            if index * per_block <= number < (index + 1) * per_block:
                part[number - index * per_block] = 1
            same = (values[: part.size].astype(np.uint64) == part).all() and not values[part.size :].any()
            if same and index not in found and int(np.count_nonzero(part)) >= _FEW:
                found[index] = number << ledger.cluster_bits
    return found


def _first_of_shared(blocks: NDArray[np.uint64], wrong: NDArray[np.bool_], ledger: Ledger) -> NDArray[np.bool_]:
    """Of several entries on one block that nobody else owns, the first keeps it."""
    keep = np.zeros(blocks.size, dtype=bool)
    candidates = np.flatnonzero(wrong & (blocks > 0))
    values, first, times = np.unique(blocks[candidates], return_index=True, return_counts=True)
    numbers = (values >> np.uint64(ledger.cluster_bits)).astype(np.int64)
    only_blocks = ledger.counts[numbers] == times
    keep[candidates[first[only_blocks]]] = True
    return keep


def _copy_known(space: Workspace, old: int, new: int) -> None:
    if old:
        space.put(
            new, space.read_cluster(old), code="REFBLOCK-SHARED", title="copy the refcount block", kind="refcount-block"
        )


def _block_code(space: Workspace, word: int, block: int) -> str:
    if word == 0:
        return "REFCOUNT-ZERO"
    if word & 0x1FF:
        return "REFBLOCK-RESERVED"
    if block:
        return "REFBLOCK-SHARED"
    if word % space.cluster:
        return "REFBLOCK-UNALIGNED"
    return "REFBLOCK-BEYOND-EOF" if word >= space.end else "REFBLOCK-FOREIGN"


def _write_blocks(space: Workspace, values: NDArray[Any]) -> None:
    """Stage the refcounts block by block; per block one step for what was too low, one for too high, one for leaks."""
    geometry, ledger = space.geometry, space.ledger
    per_block = geometry.refcount_block_entries
    _, blocks = good_blocks(space)
    # What entries still mean past the end of the file stays counted: else the next cluster to be allocated would be theirs.
    meant = ledger.wild
    for index in np.flatnonzero(blocks).tolist():
        first = index * per_block
        block = int(blocks[index])
        old = refcounts.unpack(space.read_cluster(block), geometry.refcount_order).astype(np.uint64)
        goal = np.zeros(per_block, dtype=np.uint64)
        count = max(0, min(per_block, values.size - first))
        goal[:count] = values[first : first + count]
        here = meant[(meant >= first) & (meant < first + per_block)] - first
        goal[here] = np.maximum(goal[here], old[here])
        if (goal == old).all():
            continue
        used = np.zeros(per_block, dtype=bool)
        used[:count] = ledger.counts[first : first + count] > 0
        for new, code, noun, title in (
            (np.maximum(old, goal), "REFCOUNT-TOO-LOW", "refcount", "raise {} to the number of references"),
            (
                np.where(used, goal, np.maximum(old, goal)),
                "REFCOUNT-TOO-HIGH",
                "refcount",
                "lower {} to the number of references",
            ),
            (goal, "CLUSTER-LEAKED", "leaked cluster", "free {} that nobody refers to"),
        ):
            changed = int((new != old).sum())
            if changed:
                data = refcounts.pack(new, geometry.refcount_order)
                low, high = _span(space.read_cluster(block), data)
                # With free_orphans what is freed may be guest data: safe for the image, not for the data.
                drops = code == "CLUSTER-LEAKED" and space.policy.free_orphans
                less = np.flatnonzero(new < old).astype(np.int64) + first
                space.put(
                    block + low,
                    data[low:high],
                    code=code,
                    title=title.format(many(changed, noun)),
                    kind="refcount-block",
                    tier=Tier.DESTRUCTIVE if drops else Tier.SAFE,
                    frees=_ranges(less, ledger.cluster_bits),
                )
            old = new


def _ranges(clusters: NDArray[np.int64], bits: int) -> list[tuple[int, int]]:
    """(start, length) in bytes of runs of neighbouring clusters."""
    if not clusters.size:
        return []
    runs = np.split(clusters, np.flatnonzero(np.diff(clusters) != 1) + 1)
    return [(int(run[0]) << bits, run.size << bits) for run in runs]


def _span(old: bytes, new: bytes) -> tuple[int, int]:
    """First and last difference, rounded out to 8 bytes."""
    different = np.flatnonzero(np.frombuffer(old, np.uint8) != np.frombuffer(new, np.uint8))
    return int(different[0]) & ~7, (int(different[-1]) | 7) + 1


def _rebuild(space: Workspace, ledger: Ledger, wanted: NDArray[Any]) -> None:
    """A whole new structure at the end of the file, from the ledger. wanted: refcounts, one per cluster of the file."""
    geometry = space.geometry
    cluster, per_block = space.cluster, geometry.refcount_block_entries
    held = wanted > 0
    _forget_structures(space, ledger, wanted)
    gone = held & (wanted == 0)  # what the old structure took
    gone |= ((ledger.stored > 0) | ~ledger.known) & (ledger.counts == 0) & ~held
    gone |= ledger.stored > wanted
    place, count = ledger.clusters if space.base.growable else 0, 0
    while True:
        padded, used, table_clusters = _with_itself(wanted, place, count, per_block, cluster)
        if used.size + table_clusters <= count:
            break
        count = used.size + table_clusters
    offset = space.append(count)
    base = offset // cluster  # clear of references just past the end, or inside where the file cannot grow
    padded, used, table_clusters = _with_itself(wanted, base, count, per_block, cluster)
    if used.size + table_clusters > count:
        raise ImageError("the new refcount structure has no room where it was put", path=space.base.path)
    padded[base + used.size + table_clusters : base + count] = 0
    code = _table_code(space)
    table = np.zeros(table_clusters * cluster // 8, dtype=np.uint64)
    for number, index in enumerate(used.tolist()):
        part = np.zeros(per_block, dtype=np.uint64)
        values = padded[index * per_block : (index + 1) * per_block]
        part[: values.size] = values
        where = (base + table_clusters + number) * cluster
        table[index] = where
        title = f"write refcount block {index} of a new refcount structure"
        space.put(where, refcounts.pack(part, geometry.refcount_order), code=code, title=title, kind="refcount-block")
    space.put(offset, table_bytes(table), code=code, title="write a new refcount table", kind="refcount-table")
    at, _ = header_field("refcount_table_offset")
    value = offset.to_bytes(8, "big") + table_clusters.to_bytes(4, "big")
    frees = _ranges(np.flatnonzero(gone).astype(np.int64), ledger.cluster_bits)
    title = "let the header name the new refcount table"
    space.put(at, value, code=code, title=title, kind="header", frees=frees)


def _with_itself(
    wanted: NDArray[Any], place: int, count: int, per_block: int, cluster: int
) -> tuple[NDArray[Any], NDArray[np.intp], int]:
    """(refcounts with a structure of `count` clusters from cluster `place` on, numbers of the blocks in use, clusters of the
    table)."""
    padded = np.zeros(max(wanted.size, place + count), dtype=wanted.dtype)
    padded[: wanted.size] = wanted
    padded[place : place + count] = 1
    used = np.flatnonzero(np.add.reduceat(padded > 0, np.arange(0, padded.size, per_block)))
    return padded, used, max(1, div_round_up((int(used[-1]) + 1) * 8, cluster))


def _forget_structures(space: Workspace, ledger: Ledger, wanted: NDArray[Any]) -> None:
    """The old table and blocks are not counted any more (each was counted once for being one).

    What they were said to be and are not, as a table that is too long says of what lies behind it, stays counted.
    """
    for claim in ledger.claims:
        if claim.owner not in (Owner.REFCOUNT_TABLE, Owner.REFCOUNT_BLOCK):
            continue
        first = claim.offset >> ledger.cluster_bits
        last = min(div_round_up(claim.offset + claim.length, space.cluster), ledger.clusters)
        for number in range(first, last):
            if wanted[number] > 1 or (wanted[number] == 1 and _is_refcounts(space, claim, number)):
                wanted[number] -= np.uint64(1)
            elif wanted[number]:
                space.keep(number << ledger.cluster_bits, space.cluster)


def _is_refcounts(space: Workspace, claim: Claim, number: int) -> bool:
    """Whether a cluster holds entries of a refcount table, or refcounts most of which are as they ought to be."""
    ledger, per_block = space.ledger, space.geometry.refcount_block_entries
    offset = number << ledger.cluster_bits
    words = space.words(offset, space.cluster // 8)
    words = words[words != 0]
    if bool(((words & np.uint64(space.cluster - 1)) == 0).all() and (words < np.uint64(space.end)).all()):
        return True
    values = refcounts.unpack(space.read_cluster(offset), space.geometry.refcount_order)
    last = div_round_up(ledger.clusters, per_block)
    for index in (claim.index,) if claim.index >= 0 else range(min(last, 64)):
        part = ledger.counts[index * per_block : (index + 1) * per_block]
        have = values[: part.size].astype(np.uint64)
        # A table that is said to be far too long counts every cluster once more.
        if ((have == part) | (have + np.uint64(1) == part)).sum() * 2 > part.size:
            return True
    return False


def _table_code(space: Workspace) -> str:
    header = space.meta.header
    if not header.refcount_table_clusters:
        return "REFTABLE-MISSING"
    if header.refcount_table_offset % space.cluster:
        return "REFTABLE-UNALIGNED"
    if header.refcount_table_clusters * space.cluster > limits.MAX_REFCOUNT_TABLE_SIZE:
        return "REFTABLE-TOO-LARGE"
    return "REFTABLE-OFFSET"


RULES = (
    Rule(
        "refcounts",
        "Set refcounts right",
        codes(
            "REFCOUNT-TOO-LOW", "REFCOUNT-TOO-HIGH", "REFCOUNT-ZERO", "REFCOUNT-UNREADABLE", "REFCOUNT-OVERFLOW",
            "CLUSTER-LEAKED", "L2-TABLE-LOST", "REFBLOCK-BEYOND-EOF", "REFBLOCK-FOREIGN", "REFBLOCK-RESERVED", "REFBLOCK-SHARED", "REFBLOCK-UNALIGNED",
            "REFBLOCK-MISSING", "REFCOUNT-PAST-EOF", "METADATA-OVERLAP","REFTABLE-MISSING", "REFTABLE-UNALIGNED", "REFTABLE-TOO-LARGE", "REFTABLE-OFFSET",
            "REGION-BEYOND-EOF",
        ),
        Tier.SAFE,
        run,
        always=True,
        reads_tables=True,
        reach=Reach.REFCOUNTS,
    ),
)  # fmt: skip
