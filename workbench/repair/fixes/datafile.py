"""L2 entries of an image with an external data file: every guest offset lies at the same offset of that file."""

from __future__ import annotations

import numpy as np

from formats.qcow2.entries import (
    has_zero_flag,
    interleaved,
    is_compressed,
    is_copied,
    offset_of,
    pointing_to,
    with_zero_flag,
)
from workbench.check.problems import Tier
from workbench.repair.fixes.base import Rule, codes
from workbench.repair.ledger import batches
from workbench.repair.workspace import Workspace


def run(space: Workspace) -> None:
    """Put the entries right that are named for mapping elsewhere than 1:1, or claim to be compressed."""
    if not space.meta.header.has("data_file"):
        return
    ledger, geometry = space.ledger, space.geometry
    places = {code: space.rows.tables(code) for code in space.rows.codes}
    for batch in batches(space, ledger.tables):
        for at, row in enumerate(batch.rows.tolist()):
            words, table = batch.words[at], ledger.tables.offset[row]
            guest = (
                int(ledger.tables.index[row]) * geometry.l2_coverage
                + np.arange(words.size, dtype=np.int64) * space.cluster
            )
            goal = pointing_to(guest.astype(np.uint64))
            packed, offset = is_compressed(words), offset_of(words)
            used = packed | (offset != 0) | is_copied(words)
            wrong = np.zeros(words.size, dtype=bool)
            for code, chosen in (
                ("COMPRESSED-WITH-DATA-FILE", packed),
                ("DATA-FILE-OFFSET", ~packed),
                ("L2-ENTRY-UNALIGNED", ~packed & ((offset & np.uint64(space.cluster - 1)) != 0)),
            ):
                if code in places and table in places[code]:
                    wrong |= used & chosen & (packed | (offset != guest.astype(np.uint64)))
            if not wrong.any():
                continue
            goal = np.where(has_zero_flag(words) & ~packed, with_zero_flag(goal), goal)
            new = np.where(wrong, goal, words)
            index = np.flatnonzero(wrong)
            space.put_words(
                int(ledger.tables.offset[row]),
                interleaved(new, None if batch.bitmaps is None else batch.bitmaps[at]),
                code="COMPRESSED-WITH-DATA-FILE" if packed[wrong].any() else "DATA-FILE-OFFSET",
                title=f"map {index.size} L2 entries 1:1 to the external data file, as QEMU allots it",
                kind="l2",
                tier=Tier.JUDGEMENT,
                guest=[(int(guest[i]), space.cluster) for i in index[:16]],
                places=[(int(guest[i]), space.cluster) for i in index],
            )


RULES = (
    Rule(
        "data-file-offsets",
        "Map the external data file 1:1",
        codes("COMPRESSED-WITH-DATA-FILE", "DATA-FILE-OFFSET", "L2-ENTRY-UNALIGNED"),
        Tier.JUDGEMENT,
        run,
        reads_tables=True,
    ),
)
