"""What comes last: the dirty and corrupt bits, and flags that a writer clears anyway."""

from __future__ import annotations

from formats.qcow2.header import AUTOCLEAR, INCOMPATIBLE
from workbench.repair.workspace import Workspace


def clear_marks(space: Workspace, *, clean: bool) -> None:
    """Clear the dirty bit (refcounts are right now), and the corrupt bit when the image is `clean`."""
    space.fix = "finish"
    header = space.meta.header
    if header.version < 3:
        return
    if header.has("dirty"):
        value = header.incompatible_features & ~INCOMPATIBLE["dirty"].mask
        space.set_header(
            "incompatible_features", value, code="IMAGE-DIRTY", title="clear the dirty bit: refcounts are right now"
        )
    header = space.meta.header
    if header.has("corrupt") and clean:
        value = header.incompatible_features & ~INCOMPATIBLE["corrupt"].mask
        space.set_header(
            "incompatible_features",
            value,
            code="IMAGE-CORRUPT-BIT",
            title="clear the corrupt bit: the image is clean now",
        )
    unknown = AUTOCLEAR["unknown"].mask & header.autoclear_features
    if unknown and (space.steps or clean):
        value = space.meta.header.autoclear_features & ~unknown
        space.set_header(
            "autoclear_features",
            value,
            code="AUTOCLEAR-UNKNOWN",
            title="clear unknown autoclear bits, as every writer must",
        )
