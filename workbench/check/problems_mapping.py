"""Catalogue: L1 and L2 tables, compressed descriptors, subclusters, external data file."""

from __future__ import annotations

from workbench.check import fixes as fix
from workbench.check.problem import Catalogue, Severity

SPEC = "qcow2: Cluster mapping"
EXTENDED = "qcow2: Extended L2 Entries"
PACKED = "qcow2: Compressed Clusters Descriptor"
ERROR, CORRUPTION, LEAK, WARNING, NOTE = Severity
OVERWRITTEN = "The table was partly overwritten, or a bit flipped."
CATALOGUE = Catalogue(SPEC)
p = CATALOGUE.templated

p(
    "L1-ENTRY-RESERVED",
    CORRUPTION,
    "Reserved bits in an L1 entry",
    "ERROR found L1 entry with reserved bits set: {value:x} (L1 entry {index})",
    "Bits 0 to 8 and 56 to 62 of an L1 entry must be zero.",
    OVERWRITTEN,
    "qemu ignores the bits when reading; the entry's offset may be wrong too.",
    fix.CLEAR_RESERVED,
    fix.DROP_L1_ENTRY,
)
p(
    "L1-ENTRY-UNALIGNED",
    CORRUPTION,
    "L2 table not aligned",
    "ERROR L1 entry {index} ({value:#x}): Table is not cluster aligned; L1 entry corrupted",
    "An L1 entry does not point to the start of a cluster.",
    OVERWRITTEN,
    "The whole range of the L1 entry cannot be read or written; qemu marks the image corrupt.",
    fix.RELINK_L2,
    fix.DROP_L1_ENTRY,
    fix.ALIGN_ENTRY,
)
p(
    "L1-ENTRY-BEYOND-EOF",
    CORRUPTION,
    "L2 table past the end of the file",
    "ERROR: counting reference for region exceeding the end of the file by one cluster or more: L2 table of L1 entry "
    "{index} ({value:#x})",
    "An L1 entry points to where the file has no bytes, so its L2 table reads as empty.",
    "The file was truncated, or the L1 table was partly overwritten.",
    "The whole range of the L1 entry reads as unallocated.",
    fix.RELINK_L2,
    fix.DROP_L1_ENTRY,
)
p(
    "L1-ENTRY-OFFSET-ZERO",
    WARNING,
    "L1 entry that points at the header",
    "L1 entry {index} ({value:#x}) is not zero but has offset 0: qemu-img check reads the header as an L2 table",
    "An entry without an offset must be all zeros.",
    OVERWRITTEN,
    "The guest sees the range as unallocated; check reports nonsense.",
    fix.DROP_L1_ENTRY,
)
p(
    "L1-COPIED-WRONG",
    CORRUPTION,
    "COPIED flag of an L1 entry is wrong",
    "ERROR OFLAG_COPIED L2 cluster: l1_index={index} l1_entry={value:x}",
    "COPIED must be set exactly when the L2 table's refcount is 1.",
    "The refcount was changed and the flag was not: a crash during a snapshot, or refcounts that were lost.",
    "Set wrongly, writes change a table that a snapshot shares; missing, the table is copied needlessly.",
    fix.CORRECT_COPIED,
)
p(
    "L1-TABLE-TOO-LARGE",
    ERROR,
    "L1 table too large",
    "{what}",
    "The header claims an L1 table of more than 32 MiB, which qemu does not read.",
    "The header was overwritten.",
    "The image cannot be opened.",
    fix.DERIVE_FIELD,
)
p(
    "L1-TABLE-UNALIGNED",
    ERROR,
    "L1 table not aligned",
    "{what}",
    "The header's L1 table offset is not the start of a cluster.",
    "The header was overwritten.",
    "The image cannot be opened.",
    fix.FIND_TABLE,
)
p(
    "L1-TABLE-OFFSET",
    ERROR,
    "L1 table beyond any file",
    "{what}",
    "The header's L1 table offset is larger than any file can be.",
    "The header was overwritten.",
    "The image cannot be opened.",
    fix.FIND_TABLE,
)
p(
    "L1-TABLE-TOO-SMALL",
    ERROR,
    "L1 table too small for the disk",
    "{what}",
    "The L1 table has fewer entries than the virtual disk size needs.",
    "The header's size or l1_size was overwritten, or a resize was interrupted.",
    "The image cannot be opened.",
    fix.DERIVE_FIELD,
)
p(
    "L2-TABLE-SHARED",
    WARNING,
    "Two L1 entries use one L2 table",
    "L2 table at {table:#x} is used by {other} entries of the same L1 table{owners}",
    "Two ranges of the same disk are described by one table, so they share all their data.",
    "The L1 table was partly overwritten with its own content, or a table counted as free was given away again.",
    "A write to one range appears in the other.",
    fix.COPY_L2_TABLE,
)
p(
    "L2-ENTRY-RESERVED",
    CORRUPTION,
    "Reserved bits in an L2 entry",
    "ERROR found l2 entry with reserved bits set: {value:x} (table {table:#x}, entry {index})",
    "Bits 1 to 8 and 56 to 61 of a standard L2 entry must be zero.",
    OVERWRITTEN,
    "qemu ignores the bits when reading; the entry's offset may be wrong too.",
    fix.CLEAR_RESERVED,
    fix.UNMAP_ENTRY,
    fix.ZERO_ENTRY,
)
p(
    "L2-ENTRY-UNALIGNED",
    CORRUPTION,
    "Data cluster not aligned",
    "ERROR L2 entry {index} of table {table:#x} ({value:#x}): Data cluster is not properly aligned; L2 entry corrupted.",
    "An L2 entry does not point to the start of a cluster.",
    OVERWRITTEN,
    "Reads of this guest cluster fail, and qemu marks the image corrupt when it is written.",
    fix.UNMAP_ENTRY,
    fix.ZERO_ENTRY,
    fix.ALIGN_ENTRY,
)
p(
    "L2-ENTRY-BEYOND-EOF",
    CORRUPTION,
    "Data cluster past the end of the file",
    "ERROR: counting reference for region exceeding the end of the file by one cluster or more: L2 entry {index} of table "
    "{table:#x} ({value:#x})",
    "An L2 entry points to where the file has no bytes; the cluster reads as zeros.",
    "The file was truncated (copied incompletely, disk full), or the entry was damaged.",
    "The guest reads zeros where it had written data.",
    fix.ZERO_ENTRY,
    fix.UNMAP_ENTRY,
)
p(
    "L2-COPIED-WRONG",
    CORRUPTION,
    "COPIED flag of an L2 entry is wrong",
    "ERROR OFLAG_COPIED data cluster: l2_entry={value:x} (table {table:#x}, entry {index})",
    "COPIED must be set exactly when the cluster's refcount is 1.",
    "The refcount was changed and the flag was not: a crash during a snapshot, or refcounts that were lost.",
    "Set wrongly, writes change a cluster that a snapshot shares; missing, clusters are copied needlessly.",
    fix.CORRECT_COPIED,
)
p(
    "L2-COPIED-UNALLOCATED",
    WARNING,
    "COPIED flag without a cluster",
    "L2 entry {index} of table {table:#x} is COPIED but has no host cluster ({value:#x})",
    "COPIED on an entry with offset 0 means something only with an external data file.",
    OVERWRITTEN,
    "None: the entry counts as unallocated.",
    fix.CORRECT_COPIED,
)
p(
    "L2-ZERO-FLAG-V2",
    WARNING,
    "Zero flag in a version 2 image",
    "L2 entry {index} of table {table:#x} has the zero flag ({value:#x}), which version 2 does not have",
    "Bit 0 of an L2 entry is reserved in version 2; qemu refuses to read such a cluster.",
    "A version 3 image was relabelled as version 2, or " + OVERWRITTEN[0].lower() + OVERWRITTEN[1:],
    "The guest gets an I/O error for the cluster. qemu-img check does not notice.",
    fix.CLEAR_RESERVED,
)
p(
    "L2-ENTRY-BIT0-EXTENDED",
    WARNING,
    "Zero flag in an extended L2 entry",
    "L2 entry {index} of table {table:#x} has bit 0 set ({value:#x}), which extended entries reserve",
    "With extended L2 entries the subcluster bitmap carries the zero state, and bit 0 must be zero.",
    OVERWRITTEN,
    "qemu ignores the bit.",
    fix.CLEAR_RESERVED,
    spec=EXTENDED,
)
p(
    "L2-TABLE-FOREIGN",
    WARNING,
    "L2 table holds something else",
    "L2 table at {table:#x} (L1 entry {index}) looks like {kind}",
    "What stands in the table's cluster is not an L2 table: most entries make no sense.",
    "Another structure or guest data was written over it: two writers, or a cluster that counted as free.",
    "All data of the table's range is unreachable, or reads as garbage.",
    fix.RELINK_L2,
    fix.DROP_L1_ENTRY,
)
p(
    "L2-TABLE-EMPTY",
    NOTE,
    "Empty L2 table",
    "L2 table at {table:#x} (L1 entry {index}) is all zeros",
    "The table exists but maps nothing.",
    "All of its range was discarded (harmless), or the table was wiped.",
    "The range reads as unallocated.",
    fix.RELINK_L2,
)
p(
    "L2-TABLE-LOST",
    WARNING,
    "Lost L2 table",
    "The cluster at {offset:#x} is an L2 table of {entries} entries that no L1 table refers to",
    "A table of the disk's mapping has no place any more, nor have the clusters that it maps. qemu-img sees leaks, or, where the "
    "refcounts are lost as well, nothing at all.",
    "An L1 entry, or the whole L1 table, was overwritten or never reached the disk; or a snapshot was deleted half-way.",
    "Its range of the disk reads as unallocated, until the table is linked again.",
    fix.RELINK_L2,
)
p(
    "COMPRESSED-COPIED",
    CORRUPTION,
    "COPIED flag on a compressed cluster",
    "ERROR: copied flag must never be set for compressed clusters: {value:#x} (table {table:#x}, entry {index})",
    "Compressed clusters are never written in place, so COPIED must be clear.",
    OVERWRITTEN,
    "A write may damage its neighbours in the same host cluster.",
    fix.CORRECT_COPIED,
    fix.UNMAP_ENTRY,
    fix.ZERO_ENTRY,
    spec=PACKED,
)
p(
    "COMPRESSED-BEYOND-EOF",
    CORRUPTION,
    "Compressed data past the end of the file",
    "ERROR: counting reference for region exceeding the end of the file by one cluster or more: compressed cluster "
    "{value:#x} (table {table:#x}, entry {index})",
    "A compressed cluster descriptor reaches to where the file has no bytes.",
    "The file was truncated, or the descriptor was damaged.",
    "The guest gets an I/O error for the cluster.",
    fix.ZERO_ENTRY,
    fix.UNMAP_ENTRY,
    spec=PACKED,
)
p(
    "COMPRESSED-RESERVED",
    WARNING,
    "Reserved bits in a compressed descriptor",
    "compressed cluster descriptor {value:#x} has reserved offset bits (table {table:#x}, entry {index})",
    "Offset bits above 55 of a compressed cluster descriptor must be zero.",
    OVERWRITTEN,
    "The offset is wrong.",
    fix.ZERO_ENTRY,
    fix.UNMAP_ENTRY,
    spec=PACKED,
)
p(
    "COMPRESSED-WITH-DATA-FILE",
    CORRUPTION,
    "Compressed cluster with an external data file",
    "ERROR compressed cluster {index} with data file, entry={value:#x}",
    "Images with an external data file cannot hold compressed clusters.",
    OVERWRITTEN,
    "The guest gets an I/O error for the cluster.",
    fix.ZERO_ENTRY,
    fix.UNMAP_ENTRY,
    spec=PACKED,
)
p(
    "COMPRESSED-WITH-SUBCLUSTERS",
    CORRUPTION,
    "Compressed cluster with a subcluster bitmap",
    "ERROR compressed cluster {index} with non-zero subcluster allocation bitmap, entry={value:#x}",
    "The subcluster bitmap of a compressed cluster must be zero.",
    OVERWRITTEN,
    "The guest gets an I/O error for the cluster, and its host cluster is not counted as used.",
    fix.CLEAR_SUBCLUSTERS,
    fix.ZERO_ENTRY,
    spec=EXTENDED,
)
p(
    "SUBCLUSTER-CONFLICT",
    CORRUPTION,
    "Subcluster both allocated and zero",
    "ERROR L2 entry {index} of table {table:#x}: Allocated cluster has corrupted subcluster allocation bitmap",
    "A subcluster cannot have data and read as zeros at the same time.",
    OVERWRITTEN,
    "The guest gets an I/O error for the cluster.",
    fix.CLEAR_SUBCLUSTERS,
    fix.ZERO_ENTRY,
    spec=EXTENDED,
)
p(
    "SUBCLUSTER-UNALLOCATED",
    CORRUPTION,
    "Allocated subcluster without a cluster",
    "ERROR: Unallocated cluster has non-zero subcluster allocation map (table {table:#x}, entry {index})",
    "Subclusters are marked allocated, but the entry has no host offset.",
    OVERWRITTEN,
    "The guest gets an I/O error for the cluster.",
    fix.CLEAR_SUBCLUSTERS,
    fix.ZERO_ENTRY,
    spec=EXTENDED,
)
p(
    "DATA-FILE-UNNAMED",
    WARNING,
    "External data file has no name",
    "{what}",
    "Guest data lies in another file, and the image does not say in which.",
    "The header extension was lost.",
    "The image opens only when the data file is named by hand.",
    fix.DERIVE_FIELD,
    spec="qcow2: Header extensions",
)
p(
    "DATA-FILE-RAW-BIT",
    WARNING,
    "Raw data file bit without an external data file",
    "{what}",
    "The raw bit means nothing without an external data file.",
    "The header was overwritten.",
    "None.",
    fix.CLEAR_FEATURE,
    spec="qcow2: Header",
)
p(
    "DATA-FILE-RAW-BACKING",
    WARNING,
    "Raw external data file with a backing file",
    "{what}",
    "A raw external data file must read the same without the qcow2 image, which a backing file prevents.",
    "The header was overwritten.",
    "Unallocated clusters read from the backing file here, and as zeros in the raw file.",
    fix.CLEAR_FEATURE,
    spec="qcow2: Header",
)
p(
    "DATA-FILE-UNEXPECTED",
    WARNING,
    "Data file name without its feature bit",
    "{what}",
    "The header names an external data file, but its incompatible feature bit is clear.",
    "The header was overwritten.",
    "Offsets are looked up in the image itself: the guest reads the wrong bytes.",
    fix.SET_FEATURE,
    fix.DROP_EXTENSION,
    spec="qcow2: Header extensions",
)
p(
    "DATA-FILE-OFFSET",
    WARNING,
    "Raw external data file is not mapped one to one",
    "L2 entry {index} of table {table:#x} maps guest {guest:#x} to {value:#x} of the raw data file",
    "With a raw external data file, guest and host offsets must be equal.",
    "The image was assembled from parts of another, or the raw bit was set by hand.",
    "The disk reads differently through the image and through the raw file.",
    fix.CLEAR_FEATURE,
    spec="qcow2: Header",
)
p(
    "DATA-FILE-MISSING",
    ERROR,
    "External data file cannot be opened",
    "{what}",
    "The file that holds the guest's data is not where the image says.",
    "It was moved, renamed or deleted; qemu looks for it from the working directory.",
    "The image cannot be opened.",
    spec="qcow2: Header extensions",
)
