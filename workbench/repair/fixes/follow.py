"""What follows from content that is readable again: bitmaps that record changes do not know of it.

An incremental backup made with such a bitmap would miss it. So the bitmap is marked as in use, which QEMU (and every
backup program) takes for "do not trust me"; its bits stay as they are.
"""

from __future__ import annotations

from workbench.check.problems import Tier
from workbench.repair.workspace import Workspace


def distrust_bitmaps(space: Workspace) -> None:
    """Mark every enabled bitmap as inconsistent when a step has placed something in the active disk."""
    placed = any(step.places and not step.snapshots for step in space.steps)
    if not placed or space.meta.geometry is None or not space.meta.header.has("bitmaps"):
        return
    space.gate, space.fix = None, "bitmaps-follow"  # it follows from other fixes, whose findings sent them
    for each in space.meta.bitmap_directory.bitmaps:
        if each.auto and not each.in_use:
            title = f"mark bitmap {each.name!r} as not to be trusted: it does not know what is readable again"
            flags = (each.flags | 1).to_bytes(4, "big")
            space.put(
                each.offset + 12, flags, code="BITMAP-IN-USE", title=title, kind="bitmap-flags", tier=Tier.JUDGEMENT
            )
