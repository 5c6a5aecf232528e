"""COPIED flags of the active tables: set exactly where the refcount is one."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from formats.qcow2.entries import interleaved, is_compressed, is_copied, offset_of, set_copied
from formats.qcow2.tables import words as from_bytes
from workbench.check.problems import Tier
from workbench.repair.fixes.base import Rule, codes
from workbench.repair.fixes.refcounts import counted_once, sharing_unknown
from workbench.repair.gate import Reach, Spans
from workbench.repair.ledger import batches
from workbench.repair.workspace import Workspace


def run(space: Workspace) -> None:
    """Correct the flags of the active L1 table and of its L2 tables.

    Where something may be shared that nobody sees, none is set that was not set, unless the refcount said already that
    nobody shares the cluster: a guest's write would go through it.
    """
    ledger = space.ledger
    meta, bits = space.meta, np.uint64(space.geometry.cluster_bits)
    external = meta.header.has("data_file")
    careful = not external and sharing_unknown(space)
    fresh = Spans(space.fresh)
    alone = counted_once(space, ledger) if careful else np.zeros(0, dtype=bool)

    def corrected(words: NDArray[np.uint64], once: NDArray[np.bool_], table: int, width: int = 1) -> NDArray[np.uint64]:
        may = np.ones(words.shape, dtype=bool)
        if careful:
            before = from_bytes(space.base.read(table, words.size * width * 8).ljust(words.size * width * 8, b"\0"))
            may = is_copied(before[::width])
            places = offset_of(words).astype(np.int64)
            may |= fresh.hold(places)
            may |= alone[np.minimum(places >> ledger.cluster_bits, ledger.clusters - 1)]
        return set_copied(words, once & (may | is_copied(words)))

    if meta.l1.size and meta.header.l1_table_offset % space.cluster == 0:
        words = meta.l1.copy()
        offset = offset_of(words)
        numbers = np.minimum((offset >> bits).astype(np.int64), ledger.clusters - 1)
        once = (offset > 0) & (ledger.counts[numbers] == 1) & (ledger.stored[numbers] <= 1)
        new = np.where(offset > 0, corrected(words, once, meta.header.l1_table_offset), words)
        space.put_words(
            meta.header.l1_table_offset,
            new,
            code="L1-COPIED-WRONG",
            title="correct COPIED flags of L1 entries",
            kind="l1",
        )
    for batch in batches(space, ledger.tables):
        if not ledger.tables.active[batch.rows].any():
            continue
        words = batch.words
        offset = offset_of(words)
        numbers = np.minimum((offset >> bits).astype(np.int64), ledger.clusters - 1)
        once = np.ones(words.shape, bool)
        if not external:
            once = (ledger.counts[numbers] == 1) & (ledger.stored[numbers] <= 1)
        judged = (offset > 0) & ~is_compressed(words)
        wrong = judged & (is_copied(words) != once)
        for row in np.flatnonzero(wrong.any(axis=1)).tolist():
            if not ledger.tables.active[batch.rows[row]]:
                continue
            table = int(ledger.tables.offset[batch.rows[row]])
            width = space.geometry.l2_entry_size // 8
            new = np.where(judged[row], corrected(words[row], once[row], table, width), words[row])
            if (new == words[row]).all():
                continue
            changed = np.flatnonzero(new != words[row])
            first = (
                int(ledger.tables.index[batch.rows[row]]) * space.geometry.l2_coverage + int(changed[0]) * space.cluster
            )
            length = (int(changed[-1]) - int(changed[0]) + 1) * space.cluster
            space.put_words(
                table,
                interleaved(new, None if batch.bitmaps is None else batch.bitmaps[row]),
                code="L2-COPIED-WRONG",
                title=f"correct the COPIED flag of {changed.size} L2 entries",
                kind="l2",
                guest=[(first, length)],
            )


RULES = (
    Rule(
        "copied",
        "Correct COPIED flags",
        codes("L1-COPIED-WRONG", "L2-COPIED-WRONG"),
        Tier.SAFE,
        run,
        always=True,
        reads_tables=True,
        reach=Reach.FLAGS,
    ),
)
