"""Catalogue: snapshot table, snapshots."""

from __future__ import annotations

from workbench.check import fixes as fix
from workbench.check.problem import Catalogue, Severity

SPEC = "qcow2: Snapshots"
ERROR, CORRUPTION, LEAK, WARNING, NOTE = Severity
OVERWRITTEN = "The snapshot table was overwritten, or the header's count or offset is wrong."
CATALOGUE = Catalogue(SPEC)
p = CATALOGUE.told

p(
    "SNAPSHOTS-TOO-MANY",
    ERROR,
    "Too many snapshots",
    "qemu takes at most 65536.",
    OVERWRITTEN,
    "The image cannot be opened.",
    fix.CUT_SNAPSHOTS,
    fix.DERIVE_FIELD,
)
p(
    "SNAPSHOT-TABLE-TOO-LARGE",
    ERROR,
    "Snapshot table too large",
    "The table is larger than 64 MiB.",
    OVERWRITTEN,
    "The image cannot be opened.",
    fix.CUT_SNAPSHOTS,
)
p(
    "SNAPSHOT-TABLE-UNALIGNED",
    ERROR,
    "Snapshot table not aligned",
    "The header's snapshot table offset is not the start of a cluster.",
    "The header was overwritten.",
    "The image cannot be opened.",
    fix.FIND_TABLE,
    fix.CUT_SNAPSHOTS,
)
p(
    "SNAPSHOT-TABLE-OFFSET",
    ERROR,
    "Snapshot table beyond any file",
    "The header's snapshot table offset is larger than any file can be.",
    "The header was overwritten.",
    "The image cannot be opened.",
    fix.FIND_TABLE,
    fix.CUT_SNAPSHOTS,
)
p(
    "SNAPSHOT-UNREADABLE",
    WARNING,
    "Snapshot table entry cannot be read",
    "An entry reaches past the end of the file, so it and those behind it read as zeros.",
    OVERWRITTEN,
    "The snapshots cannot be used. Their data is still there.",
    fix.FIND_TABLE,
    fix.CUT_SNAPSHOTS,
)
p(
    "SNAPSHOT-EXTRA-TOO-LARGE",
    ERROR,
    "Too much extra data in a snapshot table entry",
    "qemu takes at most 1024 bytes of extra data.",
    OVERWRITTEN,
    "The image cannot be opened.",
    fix.TRIM_SNAPSHOT,
    fix.CUT_SNAPSHOTS,
)
p(
    "SNAPSHOT-EXTRA-TOO-SMALL",
    CORRUPTION,
    "Incomplete snapshot table entry",
    "Version 3 wants at least 16 bytes of extra data: VM state size and disk size.",
    "An image upgraded from version 2 by hand, or a snapshot count that is too large.",
    "qemu refuses to open the image except to check it.",
    fix.PAD_SNAPSHOT,
    fix.CUT_SNAPSHOTS,
    template="ERROR snapshot table entry {index} is incomplete ({value} bytes of extra data)",
)
p(
    "SNAPSHOT-L1-UNALIGNED",
    CORRUPTION,
    "Snapshot's L1 table not aligned",
    "The snapshot's L1 table offset is not the start of a cluster.",
    OVERWRITTEN,
    "The snapshot cannot be used, and all of its clusters look leaked.",
    fix.FIND_TABLE,
    fix.DROP_SNAPSHOT,
    template="ERROR snapshot {index} ({name}) l1_offset={value:#x}: L1 table is not cluster aligned; snapshot table entry "
    "corrupted",
)
p(
    "SNAPSHOT-L1-TOO-LARGE",
    CORRUPTION,
    "Snapshot's L1 table too large",
    "The snapshot claims an L1 table of more than 32 MiB.",
    OVERWRITTEN,
    "The snapshot cannot be used, and all of its clusters look leaked.",
    fix.DERIVE_FIELD,
    fix.DROP_SNAPSHOT,
    template="ERROR snapshot {index} ({name}) l1_size={value:#x}: L1 table is too large; snapshot table entry corrupted",
)
p(
    "SNAPSHOT-L1-OFFSET",
    WARNING,
    "Snapshot's L1 table beyond any file",
    "The snapshot's L1 table offset is larger than any file can be.",
    OVERWRITTEN,
    "The snapshot cannot be used.",
    fix.FIND_TABLE,
    fix.DROP_SNAPSHOT,
)
p(
    "SNAPSHOT-DISK-SIZE",
    WARNING,
    "Snapshot's disk size does not fit its L1 table",
    "The snapshot's L1 table is too small for the disk size that its entry records.",
    OVERWRITTEN,
    "Reverting to the snapshot fails, or gives a disk whose end cannot be read.",
    fix.FIX_DISK_SIZE,
)
p(
    "SNAPSHOT-DUPLICATE-ID",
    WARNING,
    "Two snapshots with one ID",
    "IDs must be unique; commands act on the first one found.",
    "A tool that numbers snapshots wrongly, or a table that was overwritten with its own content.",
    "The second snapshot cannot be chosen by its ID.",
    fix.RENUMBER_SNAPSHOT,
)
p(
    "SNAPSHOT-WITH-DATA-FILE",
    CORRUPTION,
    "Snapshots in an image with an external data file",
    "Internal snapshots need refcounts of the data, which an external data file does not have.",
    "A feature bit or the snapshot count was overwritten.",
    "The snapshots do not preserve anything.",
    fix.CUT_SNAPSHOTS,
    template="ERROR {value} snapshots in image with data file",
)
