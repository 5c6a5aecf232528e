"""Refcounts: set right in place where their tables are sound, replaced block by block, or built anew at the file's end.

What they ought to be comes from the ledger alone. A new structure describes itself, is written behind everything else
and becomes valid with one header write; the old one keeps its bytes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from formats.qcow2 import limits, refcounts
from formats.qcow2.tables import table_bytes
from workbench.check.kinds import Owner
from workbench.check.problems import Tier
from workbench.repair import triage
from workbench.repair.fixes.base import Rule, codes
from workbench.repair.ledger import Ledger, good_blocks
from workbench.repair.policy import Mode
from workbench.repair.workspace import Workspace, header_field
from workbench.units import div_round_up, many


@dataclass(slots=True)
class _Wanted:
    """values: refcount per cluster of the file, uint64.  kept: clusters that keep theirs though nothing refers to them."""

    values: NDArray[np.uint64]
    kept: NDArray[np.bool_]


def run(space: Workspace) -> None:
    """Make stored refcounts what they ought to be."""
    if space.policy.mode is Mode.LEAKS and not space.steps:
        _lower_leaks(space)
        return
    if _overflows(space):
        _widen(space)
    elif table_is_sound(space):
        _in_place(space)
    else:
        _rebuild(space, space.ledger, _wanted(space, space.ledger).values)


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
    order = next(each for each in range(4, 7) if int(values.max()) < 1 << (1 << each))
    title = f"make refcounts {1 << order} bits wide: a cluster is shared more often than {space.geometry.refcount_bits} bits can say"
    space.set_header("refcount_order", order, code="REFCOUNT-OVERFLOW", title=title)
    _rebuild(space, ledger, values)


def table_is_sound(space: Workspace) -> bool:
    """The refcount table lies aligned in the file, is owned by nobody else, and is large enough for the file."""
    meta, header = space.meta, space.meta.header
    region = meta.refcount_table_region
    if not header.refcount_table_clusters or region.offset % space.cluster or not region.offset:
        return False
    if region.length > limits.MAX_REFCOUNT_TABLE_SIZE or region.offset + region.length > space.end:
        return False
    ledger = space.ledger
    first = region.offset >> ledger.cluster_bits
    if (ledger.counts[first : first + header.refcount_table_clusters] != 1).any():
        return False
    entries = region.length // 8
    needed = div_round_up(ledger.clusters + 8, space.geometry.refcount_block_entries)
    return entries >= needed and _mostly_sense(space)


def _mostly_sense(space: Workspace) -> bool:
    words, blocks = good_blocks(space)
    used = words != 0
    return int((used & (blocks == 0)).sum()) <= max(4, int(used.sum()) // 2)


def _wanted(space: Workspace, ledger: Ledger) -> _Wanted:
    values = ledger.counts.astype(np.uint64)
    most = np.uint64(space.geometry.refcount_max)
    if (values > most).any():
        values = np.minimum(values, most)
    kept = np.zeros(ledger.clusters, dtype=bool)
    if not space.policy.free_orphans:
        kept = triage.orphans(space, ledger)
        values[kept] = np.maximum(ledger.stored[kept], np.uint64(1))
    return _Wanted(values, kept)


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


def _in_place(space: Workspace) -> None:
    _replace_bad_blocks(space)
    _write_blocks(space, _wanted(space, space.ledger).values)


def _replace_bad_blocks(space: Workspace) -> None:
    """Give every refcount table entry that needs one a block of its own."""
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
        needed = np.zeros(words.size, dtype=bool)
        needed[: starts.size] = np.add.reduceat(ledger.counts > 0, starts) > 0
        todo = np.flatnonzero((needed & (words == 0)) | wrong)
        if not todo.size:
            return
        region = space.meta.refcount_table_region
        for index in todo.tolist():
            new = space.append() if needed[index] else 0
            code = _block_code(int(words[index]), int(blocks[index]))
            title = f"give refcount table entry {index} a new block" if new else f"drop refcount table entry {index}"
            if new:
                _copy_known(space, int(blocks[index]) if alone[index] else 0, new)
            space.put(region.offset + index * 8, new.to_bytes(8, "big"), code=code, title=title, kind="refcount-table")


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


def _block_code(word: int, block: int) -> str:
    if word == 0:
        return "REFCOUNT-ZERO"
    if word & 0x1FF:
        return "REFBLOCK-RESERVED"
    return "REFBLOCK-SHARED" if block else "REFBLOCK-UNALIGNED"


def _write_blocks(space: Workspace, values: NDArray[np.uint64]) -> None:
    """Stage the refcounts block by block; per block one step for what was too low, one for too high, one for leaks."""
    geometry, ledger = space.geometry, space.ledger
    per_block = geometry.refcount_block_entries
    _, blocks = good_blocks(space)
    for index in np.flatnonzero(blocks).tolist():
        first = index * per_block
        block = int(blocks[index])
        old = refcounts.unpack(space.read_cluster(block), geometry.refcount_order).astype(np.uint64)
        goal = np.zeros(per_block, dtype=np.uint64)
        count = max(0, min(per_block, values.size - first))
        goal[:count] = values[first : first + count]
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
                space.put(
                    block + low,
                    data[low:high],
                    code=code,
                    title=title.format(many(changed, noun)),
                    kind="refcount-block",
                    tier=Tier.DESTRUCTIVE if drops else Tier.SAFE,
                )
            old = new


def _span(old: bytes, new: bytes) -> tuple[int, int]:
    """First and last difference, rounded out to 8 bytes."""
    different = np.flatnonzero(np.frombuffer(old, np.uint8) != np.frombuffer(new, np.uint8))
    return int(different[0]) & ~7, (int(different[-1]) | 7) + 1


def _rebuild(space: Workspace, ledger: Ledger, wanted: NDArray[np.uint64]) -> None:
    """A whole new structure at the end of the file, from the ledger. wanted: refcounts, one per cluster of the file."""
    geometry = space.geometry
    cluster, per_block = space.cluster, geometry.refcount_block_entries
    _forget_structures(space, ledger, wanted)
    start = ledger.clusters
    total = start
    while True:
        padded = np.concatenate([wanted, np.ones(total - start, dtype=np.uint64)])
        used = np.flatnonzero(np.add.reduceat(padded > 0, np.arange(0, total, per_block)))
        table_clusters = max(1, div_round_up((int(used[-1]) + 1) * 8, cluster))
        if start + used.size + table_clusters <= total:
            break
        total = start + used.size + table_clusters
    offset = space.append(total - start)
    base = offset // cluster
    if base != start:  # kept clear of references just past the end
        padded = np.concatenate([wanted, np.zeros(base - start, np.uint64), np.ones(total - start, np.uint64)])
        used = np.flatnonzero(np.add.reduceat(padded > 0, np.arange(0, padded.size, per_block)))
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
    space.put(at, value, code=code, title="let the header name the new refcount table", kind="header")


def _forget_structures(space: Workspace, ledger: Ledger, wanted: NDArray[np.uint64]) -> None:
    """The old table and blocks are not counted any more (each was counted once for being one)."""
    for claim in ledger.claims:
        if claim.owner in (Owner.REFCOUNT_TABLE, Owner.REFCOUNT_BLOCK):
            first = claim.offset >> ledger.cluster_bits
            last = min(div_round_up(claim.offset + claim.length, space.cluster), ledger.clusters)
            part = wanted[first:last]
            part[part > 0] -= np.uint64(1)


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
            "CLUSTER-LEAKED", "REFBLOCK-BEYOND-EOF", "REFBLOCK-RESERVED", "REFBLOCK-SHARED", "REFBLOCK-UNALIGNED",
            "REFBLOCK-MISSING", "REFCOUNT-PAST-EOF", "METADATA-OVERLAP","REFTABLE-MISSING", "REFTABLE-UNALIGNED", "REFTABLE-TOO-LARGE", "REFTABLE-OFFSET",
            "REGION-BEYOND-EOF",
        ),
        Tier.SAFE,
        run,
        always=True,
    ),
)  # fmt: skip
