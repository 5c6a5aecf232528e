"""Catalogue: refcounts, refcount blocks, refcount table, leaks."""

from __future__ import annotations

from workbench.check import fixes as fix
from workbench.check.problem import Catalogue, Severity

SPEC = "qcow2: Host cluster management"
ERROR, CORRUPTION, LEAK, WARNING, NOTE = Severity
CATALOGUE = Catalogue(SPEC)
p = CATALOGUE.templated

p(
    "REFCOUNT-TOO-LOW",
    CORRUPTION,
    "Refcount too low",
    "cluster at {offset:#x}: refcount={value} reference={other}",
    "The cluster is referenced more often than its refcount says.",
    "Two mappings point at one cluster by accident, or a crash came between writing a reference and its refcount.",
    "A write through one reference changes what the others read, and freeing one frees the cluster under the others.",
    fix.RAISE_REFCOUNT,
    fix.COPY_CLUSTER,
)
p(
    "REFCOUNT-ZERO",
    CORRUPTION,
    "Referenced cluster counts as free",
    "cluster at {offset:#x}: refcount=0 reference={other}",
    "Something refers to the cluster, but its refcount is 0, so the allocator takes it for free.",
    "A refcount block was lost or overwritten; a crash with lazy refcounts; a cluster freed while still in use.",
    "The next allocating write may be put on top of it. qemu-img rebuilds all refcounts when it sees one such cluster.",
    fix.RAISE_REFCOUNT,
    fix.REBUILD_REFCOUNTS,
)
p(
    "REFCOUNT-TOO-HIGH",
    LEAK,
    "Refcount too high",
    "cluster at {offset:#x}: refcount={value} reference={other}",
    "The cluster is in use, but counted more often than it is referenced.",
    "A reference was removed and the refcount was not lowered: a crash, a snapshot deleted half-way, or a lost mapping "
    "that shared the cluster.",
    "None now. The cluster will not become free when its last user goes, and each write to it is copied first.",
    fix.LOWER_REFCOUNT,
)
p(
    "CLUSTER-LEAKED",
    LEAK,
    "Leaked cluster",
    "Leaked cluster at {offset:#x}: refcount={value} reference=0",
    "The cluster counts as used but nothing refers to it. qemu-img calls this a waste of space; it can as well be guest "
    "data whose L2 table or L1 entry was lost.",
    "An interrupted allocation (harmless), a snapshot deleted half-way, or mapping metadata that was overwritten.",
    "None by itself. If the cluster is orphaned guest data, the guest reads zeros or old content in its place.",
    fix.FREE_WASTE,
    fix.RELINK_L2,
    fix.FREE_ORPHANS,
)
p(
    "REFCOUNT-UNREADABLE",
    ERROR,
    "Refcount cannot be read",
    "Can't get refcount for cluster at {offset:#x}",
    "The refcount block of this range cannot be read, so nothing is known about its clusters.",
    "The refcount table entry is not a cluster offset, or the device returns errors.",
    "Writes to the range fail, and qemu marks the image corrupt.",
    fix.REPLACE_BLOCK,
    fix.REBUILD_REFCOUNTS,
)
p(
    "REFCOUNT-OVERFLOW",
    CORRUPTION,
    "More references than the refcount can hold",
    "ERROR: overflow cluster offset={offset:#x}: {other} references, the largest refcount is {value}",
    "The cluster is referenced more often than a refcount of this width can say.",
    "Cross-linked clusters in an image with narrow refcounts, or a snapshot of a 1-bit image.",
    "As with a refcount that is too low: sharing that nobody keeps track of.",
    fix.COPY_CLUSTER,
)
p(
    "REFBLOCK-RESERVED",
    CORRUPTION,
    "Reserved bits in a refcount table entry",
    "ERROR refcount table entry {index} has reserved bits set ({value:#x})",
    "Bits 0 to 8 of a refcount table entry must be zero.",
    "The refcount table was partly overwritten, or a bit flipped.",
    "qemu-img check does not count the block as used; qemu refuses to use the range.",
    fix.CLEAR_RESERVED,
    fix.REBUILD_REFCOUNTS,
)
p(
    "REFBLOCK-UNALIGNED",
    CORRUPTION,
    "Refcount block not aligned",
    "ERROR refcount block {index} is not cluster aligned; refcount table entry corrupted ({value:#x})",
    "A refcount table entry does not point to the start of a cluster.",
    "The refcount table was partly overwritten.",
    "No refcount of the block's range can be read; writes there fail.",
    fix.REPLACE_BLOCK,
    fix.REBUILD_REFCOUNTS,
)
p(
    "REFBLOCK-BEYOND-EOF",
    CORRUPTION,
    "Refcount block outside the image",
    "ERROR refcount block {index} is outside image ({value:#x})",
    "A refcount table entry points past the end of the file.",
    "The file was truncated, or the refcount table was partly overwritten.",
    "All clusters of the range count as free: writes are put on top of data in use.",
    fix.REPLACE_BLOCK,
    fix.REBUILD_REFCOUNTS,
)
p(
    "REFBLOCK-SHARED",
    CORRUPTION,
    "Refcount block's cluster has another owner",
    "ERROR refcount block {index} refcount={other}: its cluster at {offset:#x} is used by something else too",
    "A refcount block must be the only user of its cluster; this one shares it with data, a table, or another block.",
    "The refcount table was partly overwritten, or the block's own refcount was 0 and its cluster was given away.",
    "Each refcount update damages the other owner, and the other way round.",
    fix.REPLACE_BLOCK,
    fix.REBUILD_REFCOUNTS,
)
p(
    "REFBLOCK-FOREIGN",
    WARNING,
    "Refcount block holds something else",
    "refcount table entry {index}: what lies at {offset:#x} does not look like refcounts",
    "The entry leads to a cluster whose content nobody counted: most of its numbers are huge, or all as common as others.",
    "The entry was damaged and leads to another cluster, maybe one with data; or the block was overwritten.",
    "Refcounts taken from there mean nothing, and updating them would destroy what lies there.",
    fix.REPLACE_BLOCK,
    fix.REBUILD_REFCOUNTS,
)
p(
    "REFBLOCK-MISSING",
    WARNING,
    "No refcount block for a range in use",
    "refcount table entry {index} is empty, but {count} clusters from {offset:#x} on are referenced",
    "The range has no refcounts, so every cluster in it counts as free.",
    "A refcount table entry was zeroed, or the header's refcount table pointer leads to the wrong place.",
    "The next allocating writes are put on top of data in use.",
    fix.REPLACE_BLOCK,
    fix.REBUILD_REFCOUNTS,
)
p(
    "REGION-BEYOND-EOF",
    CORRUPTION,
    "Structure reaches past the end of the file",
    "ERROR: counting reference for region exceeding the end of the file by one cluster or more: {owner} at {offset:#x}, "
    "{length} bytes",
    "A table or header is said to lie, wholly or in part, where the file has no bytes; they read as zeros.",
    "The file was truncated (copied incompletely, disk full), or the pointer is wrong.",
    "Everything that the missing part described is gone or unallocated.",
    fix.FIND_TABLE,
    fix.EXTEND_FILE,
)
p(
    "REFTABLE-MISSING",
    CORRUPTION,
    "No refcount table",
    "{what}",
    "The header says that the refcount table has no clusters, so no cluster has a refcount.",
    "The header was overwritten.",
    "qemu refuses to open the image; only check does.",
    fix.REBUILD_REFCOUNTS,
)
p(
    "REFTABLE-TOO-LARGE",
    ERROR,
    "Refcount table too large",
    "{what}",
    "The header claims a refcount table of more than 8 MiB, which qemu does not read.",
    "The header was overwritten.",
    "The image cannot be opened.",
    fix.DERIVE_FIELD,
    fix.REBUILD_REFCOUNTS,
)
p(
    "REFTABLE-UNALIGNED",
    ERROR,
    "Refcount table not aligned",
    "{what}",
    "The header's refcount table offset is not the start of a cluster.",
    "The header was overwritten.",
    "The image cannot be opened.",
    fix.DERIVE_FIELD,
    fix.REBUILD_REFCOUNTS,
)
p(
    "REFTABLE-OFFSET",
    ERROR,
    "Refcount table beyond any file",
    "{what}",
    "The header's refcount table offset is larger than any file can be.",
    "The header was overwritten.",
    "The image cannot be opened.",
    fix.DERIVE_FIELD,
    fix.REBUILD_REFCOUNTS,
)
p(
    "METADATA-OVERLAP",
    WARNING,
    "Two structures in one place",
    "{first} and {second} overlap at {offset:#x} to {end:#x}",
    "Two metadata structures claim the same host clusters.",
    "A pointer was damaged, or a cluster counted as free while in use and was given away again.",
    "Writing one destroys the other. qemu stops with 'Preventing invalid write on metadata' and marks the image corrupt.",
    fix.RELOCATE_DATA,
    fix.REBUILD_REFCOUNTS,
)
p(
    "DATA-OVERLAPS-METADATA",
    WARNING,
    "Guest data on top of metadata",
    "{first} at {offset:#x} to {end:#x} is also used for {second}{owners}",
    "L2 entries map guest data to clusters where a metadata structure lies.",
    "The structure's refcount was 0 and the allocator gave its clusters away, or an L2 entry was damaged.",
    "A guest write there destroys metadata; the guest may already have read metadata as its data.",
    fix.RELOCATE_DATA,
    fix.UNMAP_ENTRY,
)
p(
    "DATA-CROSS-LINKED",
    WARNING,
    "Two guest clusters share one host cluster",
    "data cluster at {offset:#x} is mapped by {other} guest clusters of the active disk{owners}",
    "The active disk maps two different guest addresses to one host cluster.",
    "A crash or two writers: a cluster freed or counted as free was allocated again.",
    "A write to one guest address changes the other.",
    fix.COPY_CLUSTER,
)
p(
    "DATA-OVERLAPS-COMPRESSED",
    WARNING,
    "Plain data on top of compressed data",
    "cluster at {offset:#x} holds plain guest data and compressed clusters at the same time{owners}",
    "One host cluster is used as a standard cluster and as storage for compressed clusters.",
    "qemu packs a compressed write into a cluster that has meanwhile been freed and given away; or two writers.",
    "One of the two owners reads garbage.",
    fix.COPY_CLUSTER,
)
p(
    "REFCOUNT-PAST-EOF",
    NOTE,
    "Refcounts for clusters past the end of the file",
    "{count} clusters from {offset:#x} on are counted, but the file ends at {other:#x}",
    "Refcounts are set for clusters that the file has no bytes for.",
    "The file was truncated, or an allocation was interrupted before the file grew.",
    "None for reading; qemu allocates elsewhere.",
    fix.LOWER_REFCOUNT,
)
p(
    "FILE-TAIL-UNUSED",
    NOTE,
    "Unused end of the file",
    "the last {length} bytes from {offset:#x} on are not used by anything",
    "The file is longer than its last used cluster.",
    "Clusters at the end were freed, or the file was extended by something else.",
    "None; the space can be given back.",
    fix.TRIM_TAIL,
)
p(
    "IMAGE-FRAGMENTED",
    NOTE,
    "Fragmented",
    "{percent:.1f} % of the allocated clusters do not follow their predecessor",
    "Neighbouring guest clusters are scattered over the file.",
    "Random writes to a thin image, snapshots, or compression.",
    "Sequential reads are slower on spinning disks; nothing is wrong.",
    spec="qemu-img check",
)
p(
    "READ-ERROR",
    ERROR,
    "Metadata cannot be read",
    "{what} at {offset:#x}",
    "The device returned an error while a table was read.",
    "A failing disk or network storage.",
    "The guest gets I/O errors in the ranges that the table describes.",
    spec="",
)
