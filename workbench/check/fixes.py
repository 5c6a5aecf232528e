"""The fixes that problems name: id, risk tier and title. workbench.repair implements each id."""

from __future__ import annotations

from typing import Final

from workbench.check.problem import Fix, Tier

SAFE, JUDGEMENT, DESTRUCTIVE = Tier.SAFE, Tier.JUDGEMENT, Tier.DESTRUCTIVE

RAISE_REFCOUNT: Final = Fix("raise-refcount", SAFE, "set the refcount to the number of references")
LOWER_REFCOUNT: Final = Fix("lower-refcount", SAFE, "lower the refcount to the number of references")
FREE_WASTE: Final = Fix("free-waste", SAFE, "free leaked clusters that hold nothing worth keeping")
FREE_ORPHANS: Final = Fix("free-orphans", DESTRUCTIVE, "free leaked clusters though they may be lost guest data")
RELINK_L2: Final = Fix("relink-l2", JUDGEMENT, "put a lost L2 table back into its L1 entry")
REBUILD_REFCOUNTS: Final = Fix("rebuild-refcounts", SAFE, "write new refcount structures at the end of the file")
REPLACE_BLOCK: Final = Fix("replace-refcount-block", SAFE, "write a new refcount block for its range")
CORRECT_COPIED: Final = Fix("correct-copied", SAFE, "make the COPIED flag agree with the refcount")
CLEAR_RESERVED: Final = Fix("clear-reserved", SAFE, "clear the reserved bits")
UNMAP_ENTRY: Final = Fix(
    "unmap-entry", JUDGEMENT, "mark the range unallocated: it reads from the backing file, or zeros"
)
ZERO_ENTRY: Final = Fix("zero-entry", JUDGEMENT, "make the range read as zeros")
ALIGN_ENTRY: Final = Fix("align-entry", JUDGEMENT, "round the offset down to its cluster and keep the mapping")
DROP_L1_ENTRY: Final = Fix("drop-l1-entry", JUDGEMENT, "clear the L1 entry: its whole range becomes unallocated")
COPY_CLUSTER: Final = Fix("copy-cluster", JUDGEMENT, "give every owner its own copy of the cluster")
COPY_L2_TABLE: Final = Fix("copy-l2-table", JUDGEMENT, "give every L1 entry its own copy of the L2 table")
RELOCATE_DATA: Final = Fix(
    "relocate-data", JUDGEMENT, "copy the data away from the metadata, then restore the metadata"
)
DERIVE_FIELD: Final = Fix("derive-header-field", JUDGEMENT, "work the header field out from the rest of the image")
FIND_TABLE: Final = Fix("find-table", JUDGEMENT, "search the file for the lost table and point the header at it")
CLEAR_DIRTY: Final = Fix("clear-dirty", SAFE, "clear the dirty bit once the refcounts are right")
CLEAR_CORRUPT: Final = Fix("clear-corrupt", SAFE, "clear the corrupt bit once the image is clean")
CLEAR_FEATURE: Final = Fix("clear-feature", JUDGEMENT, "clear the feature bit")
SET_FEATURE: Final = Fix("set-feature", JUDGEMENT, "set the feature bit that belongs to what the image holds")
DROP_EXTENSION: Final = Fix("drop-extension", JUDGEMENT, "remove the header extension")
PAD_SNAPSHOT: Final = Fix("pad-snapshot-extra", SAFE, "rewrite the snapshot table with complete entries")
TRIM_SNAPSHOT: Final = Fix("trim-snapshot-extra", JUDGEMENT, "drop the extra data that is too large")
FIX_DISK_SIZE: Final = Fix(
    "fix-snapshot-disk-size", JUDGEMENT, "set the disk size to what the snapshot's L1 table covers"
)
RENUMBER_SNAPSHOT: Final = Fix("renumber-snapshot", SAFE, "give the snapshot an unused ID")
DROP_SNAPSHOT: Final = Fix("drop-snapshot", DESTRUCTIVE, "remove the snapshot's entry from the table")
CUT_SNAPSHOTS: Final = Fix("cut-snapshot-table", DESTRUCTIVE, "keep only the entries that can be read")
DROP_BITMAP: Final = Fix("drop-bitmap", DESTRUCTIVE, "remove the bitmap: the next backup must be a full one")
DROP_BITMAPS: Final = Fix("drop-bitmaps", DESTRUCTIVE, "remove the bitmaps extension and all bitmaps")
CLEAR_IN_USE: Final = Fix("clear-in-use", JUDGEMENT, "trust the bitmap although it was not saved properly")
RESTORE_BITMAPS_BIT: Final = Fix("restore-bitmaps-bit", JUDGEMENT, "set the bitmaps autoclear bit again")
CLEAR_BITMAP_ENTRY: Final = Fix(
    "clear-bitmap-entry", JUDGEMENT, "mark the entry's range dirty (all ones), which is safe"
)
LUKS_POINTER: Final = Fix("fix-luks-pointer", SAFE, "take offset and length from the LUKS header itself")
CLEAR_SUBCLUSTERS: Final = Fix("clear-subclusters", JUDGEMENT, "let the allocated state win over the zero state")
RECORD_FORMAT: Final = Fix("record-backing-format", JUDGEMENT, "record the backing file's format in the header")
EXTEND_FILE: Final = Fix("extend-file", SAFE, "extend the file with zeros to the end of the last cluster")
TRIM_TAIL: Final = Fix("trim-tail", DESTRUCTIVE, "cut off the unused end of the file")
