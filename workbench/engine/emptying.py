"""Taking everything out of an image whose backing file has it all by now (QEMU: qcow2_make_empty)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from formats.qcow2.entries import offset_of
from workbench.engine.resize import cut_free_tail, drop_table
from workbench.engine.write.zero import discard_guest
from workbench.units import round_up

if TYPE_CHECKING:
    from workbench.engine.write.core import Core


def empty_image(core: Core) -> None:
    """Leave every guest cluster to the backing file and shorten the file. Snapshots and bitmaps stay as they are.

    Durable when it returns; cut off at any moment, each cluster is either still here or left to the backing file.
    """
    core.begin()
    core.flush()
    discard_guest(core, 0, round_up(core.layer.size, core.cluster_size), full=True)
    for index in range(min(core.geometry.l1_entries_for(core.layer.size), len(core.tables.l1))):
        table = offset_of(core.tables.l1[index])
        if table and not any(core.tables.whole_table(table)):  # VM state of a loaded snapshot may lie behind the disk
            drop_table(core, index)
    core.flush()
    if not core.external:
        cut_free_tail(core)
