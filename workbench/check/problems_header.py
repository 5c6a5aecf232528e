"""Catalogue: header, features, extensions, encryption, backing file."""

from __future__ import annotations

from workbench.check import fixes as fix
from workbench.check.problem import Catalogue, Severity

SPEC = "qcow2: Header"
EXTENSIONS = "qcow2: Header extensions"
ENCRYPTION = "qcow2: Full disk encryption header pointer"
ERROR, CORRUPTION, LEAK, WARNING, NOTE = Severity
OVERWRITTEN = "The header was overwritten or damaged."
CLOSED = "The image cannot be opened."
CATALOGUE = Catalogue(SPEC)
p = CATALOGUE.told

p(
    "FILE-EMPTY",
    ERROR,
    "Empty file",
    "The file has no bytes.",
    "A copy that never started, or a disk that was full.",
    "There is no disk.",
)
p(
    "HEADER-MAGIC",
    ERROR,
    "Not a qcow2 file",
    "The file does not start with 'QFI' and 0xfb.",
    "Another format, or the first cluster was overwritten.",
    "The image cannot be opened; a program that guesses formats would take it for a raw disk.",
    fix.DERIVE_FIELD,
)
p(
    "HEADER-TRUNCATED",
    ERROR,
    "File ends inside the header",
    "There are fewer bytes than a header needs.",
    "A copy that stopped early.",
    CLOSED,
)
p(
    "HEADER-VERSION",
    ERROR,
    "Unknown version",
    "Versions 2 and 3 exist.",
    OVERWRITTEN,
    CLOSED,
    fix.DERIVE_FIELD,
)
p(
    "HEADER-CLUSTER-BITS",
    ERROR,
    "Impossible cluster size",
    "Clusters are 512 bytes to 2 MiB (cluster_bits 9 to 21).",
    OVERWRITTEN,
    "The image cannot be opened, and no table can be found without the cluster size.",
    fix.DERIVE_FIELD,
)
p(
    "HEADER-CLUSTER-SIZE-DOUBTFUL",
    WARNING,
    "Cluster size in doubt",
    "Under another cluster size the clusters in use end where the file does, and the tables have hardly a fault.",
    OVERWRITTEN,
    "Most of what the guest reads is not its data: tables are read in the wrong width.",
    fix.DERIVE_FIELD,
    template="with clusters of {size} bytes {then} errors are left of {now}, and the clusters in use end where the file does;"
    " with the header's they end at {end:#x}",
)
p(
    "HEADER-LENGTH",
    ERROR,
    "Impossible header length",
    "A version 3 header has at least 104 bytes and fits into the first cluster.",
    OVERWRITTEN,
    CLOSED,
    fix.DERIVE_FIELD,
)
p(
    "HEADER-LENGTH-UNALIGNED",
    WARNING,
    "Header length is no multiple of 8",
    "The specification wants a multiple of 8; qemu accepts others.",
    OVERWRITTEN,
    "None with qemu.",
    fix.DERIVE_FIELD,
)
p(
    "HEADER-REFCOUNT-ORDER",
    ERROR,
    "Impossible refcount width",
    "Refcounts are at most 64 bits wide (refcount_order 0 to 6).",
    OVERWRITTEN,
    CLOSED,
    fix.DERIVE_FIELD,
)
p(
    "HEADER-CRYPT-METHOD",
    ERROR,
    "Unknown encryption method",
    "crypt_method is 0 (none), 1 (AES) or 2 (LUKS).",
    OVERWRITTEN,
    CLOSED,
    fix.DERIVE_FIELD,
)
p(
    "HEADER-SIZE",
    ERROR,
    "Virtual disk size too big",
    "The size needs more L1 entries than there can be.",
    OVERWRITTEN,
    CLOSED,
    fix.DERIVE_FIELD,
)
p(
    "FEATURE-UNKNOWN",
    ERROR,
    "Unknown incompatible features",
    "The image uses features that must be understood before it may be opened.",
    "A newer qemu wrote it, or the header was overwritten.",
    CLOSED,
    fix.CLEAR_FEATURE,
)
p(
    "AUTOCLEAR-UNKNOWN",
    NOTE,
    "Unknown autoclear features",
    "Bits of a later specification: a program that writes without knowing them must clear them.",
    "A newer qemu wrote the image.",
    "None.",
    fix.CLEAR_FEATURE,
)
p(
    "COMPRESSION-TYPE",
    ERROR,
    "Compression type contradicts its feature bit",
    "A type other than zlib needs the compression feature bit, zlib must not have it, and the type must be known.",
    OVERWRITTEN,
    CLOSED,
    fix.DERIVE_FIELD,
    spec="qcow2: Additional fields (version 3 and higher)",
)
p(
    "EXTENDED-L2-CLUSTER-SIZE",
    ERROR,
    "Extended L2 entries with small clusters",
    "Subclusters need clusters of at least 16 KiB.",
    OVERWRITTEN,
    CLOSED,
    fix.CLEAR_FEATURE,
)
p(
    "IMAGE-DIRTY",
    NOTE,
    "Dirty bit set",
    "The image was not closed properly while refcounts were being written lazily: they may be out of date.",
    "A crash or kill of the program that had it open, with lazy refcounts.",
    "None after the refcounts are put right; qemu repairs when it next opens the image for writing.",
    fix.CLEAR_DIRTY,
    fix.REBUILD_REFCOUNTS,
)
p(
    "OPEN-FREES-DATA",
    WARNING,
    "Opening this image for writing would free possible guest data",
    "The dirty bit is set, and clusters that nothing refers to may hold guest data: qemu counts all refcounts anew when it"
    " opens the image for writing, frees them, and new writes go over them.",
    "A crash with lazy refcounts, and damaged tables besides.",
    "None yet. With the next program that opens the image for writing the data is lost; a repair keeps it counted and"
    " clears the bit.",
    template="do not open this image for writing: {amount} bytes that may be guest data would be freed",
)
p(
    "IMAGE-CORRUPT-BIT",
    WARNING,
    "Corrupt bit set",
    "qemu found damage while the image was in use and marked it, so that nothing writes to it.",
    "A write that would have destroyed metadata was prevented ('Preventing invalid write').",
    "The image opens read-only at best until it is repaired.",
    fix.CLEAR_CORRUPT,
)
p(
    "EXTENSION-OVERRUN",
    ERROR,
    "Header extension leaves the header",
    "An extension's length reaches beyond the extension area.",
    OVERWRITTEN,
    CLOSED,
    fix.DROP_EXTENSION,
    spec=EXTENSIONS,
)
p(
    "EXTENSION-DUPLICATE",
    WARNING,
    "Header extension appears twice",
    "The same type appears twice; qemu lets the later one win.",
    "A faulty tool wrote the header.",
    "Depends on which one a program believes.",
    fix.DROP_EXTENSION,
    spec=EXTENSIONS,
)
p(
    "ENCRYPTION-UNEXPECTED",
    ERROR,
    "Encryption extension without LUKS encryption",
    "The pointer to a LUKS header is there, but crypt_method is not LUKS.",
    OVERWRITTEN,
    CLOSED,
    fix.DERIVE_FIELD,
    fix.DROP_EXTENSION,
    spec=ENCRYPTION,
)
p(
    "ENCRYPTION-EXTENSION",
    ERROR,
    "Encryption extension has the wrong size",
    "It is 16 bytes: offset and length of the LUKS header.",
    OVERWRITTEN,
    CLOSED,
    fix.LUKS_POINTER,
    spec=ENCRYPTION,
)
p(
    "ENCRYPTION-MISSING",
    ERROR,
    "LUKS image without a pointer to its keys",
    "crypt_method is LUKS, but the header extension that says where the LUKS header lies is missing.",
    OVERWRITTEN,
    "The image cannot be opened. The keys are most likely still in the file: do not free anything.",
    fix.LUKS_POINTER,
    spec=ENCRYPTION,
)
p(
    "LUKS-UNALIGNED",
    ERROR,
    "LUKS header not aligned",
    "The LUKS header must start at a cluster.",
    OVERWRITTEN,
    CLOSED,
    fix.LUKS_POINTER,
    spec=ENCRYPTION,
)
p(
    "LUKS-BEYOND-EOF",
    ERROR,
    "LUKS header past the end of the file",
    "The file has no bytes where the keys should be.",
    "The file was truncated, or the header was overwritten.",
    "Without its LUKS header the disk cannot be decrypted.",
    fix.LUKS_POINTER,
    spec=ENCRYPTION,
)
p(
    "LUKS-LENGTH",
    WARNING,
    "LUKS header length is wrong",
    "The length in the header extension does not fit the LUKS header or the file. qemu-img check -r leaks would free the "
    "LUKS header's clusters, and with them every key.",
    OVERWRITTEN,
    "None while nothing repairs the image the wrong way.",
    fix.LUKS_POINTER,
    spec=ENCRYPTION,
)
p(
    "LUKS-MAGIC",
    ERROR,
    "No LUKS header where it should be",
    "The bytes there are not a LUKS1 header.",
    "The pointer is wrong, or the header was overwritten.",
    "Without its LUKS header the disk cannot be decrypted.",
    fix.LUKS_POINTER,
    spec=ENCRYPTION,
)
p(
    "LUKS-VERSION",
    ERROR,
    "Unsupported LUKS version",
    "qcow2 images carry a LUKS1 header.",
    "The LUKS header was overwritten.",
    CLOSED,
    spec=ENCRYPTION,
    template="LUKS version {value} is not supported",
)
p(
    "LUKS-KEY-SLOT",
    ERROR,
    "LUKS key slot is damaged",
    "A key slot's material must lie behind the header and before the payload, with 4000 stripes.",
    "The LUKS header was overwritten.",
    "The image cannot be opened, although other key slots may be whole.",
    spec=ENCRYPTION,
    template="LUKS key slot {index} is damaged: key material at {value:#x}, payload at {other:#x}",
)
p(
    "LUKS-NO-KEY",
    ERROR,
    "No LUKS key slot in use",
    "All eight key slots are disabled, so no passphrase leads to the master key.",
    "The LUKS header was overwritten, or the last key was removed.",
    "The disk cannot be decrypted without a copy of the LUKS header.",
    spec=ENCRYPTION,
    template="no LUKS key slot is in use",
)
p(
    "BACKING-OFFSET",
    ERROR,
    "Backing file name outside the header",
    "The name must lie in the first cluster.",
    OVERWRITTEN,
    CLOSED,
    fix.DERIVE_FIELD,
)
p(
    "BACKING-NAME-TOO-LONG",
    ERROR,
    "Backing file name too long",
    "A name has at most 1023 bytes and lies in the first cluster.",
    OVERWRITTEN,
    CLOSED,
    fix.DERIVE_FIELD,
)
p(
    "BACKING-FORMAT-MISSING",
    WARNING,
    "Backing file's format is not recorded",
    "The format would be guessed from the backing file's content. A guest that can write a raw backing file could make it "
    "look like another format and so read files of the host.",
    "Created by an old qemu-img, or without -F.",
    "qemu refuses or warns, depending on its version.",
    fix.RECORD_FORMAT,
    spec=EXTENSIONS,
)
p(
    "BACKING-FORMAT-UNUSED",
    NOTE,
    "Backing format without a backing file",
    "The header names a format, but there is no backing file.",
    "A rebase or flatten by a tool that left it behind.",
    "None.",
    fix.DROP_EXTENSION,
    spec=EXTENSIONS,
)
p(
    "BACKING-FORMAT-TOO-LONG",
    ERROR,
    "Backing format name too long",
    "qemu takes names of at most 15 bytes.",
    OVERWRITTEN,
    CLOSED,
    fix.DROP_EXTENSION,
    spec=EXTENSIONS,
)
p(
    "BACKING-MISSING",
    ERROR,
    "Backing file cannot be opened",
    "The file that this image is based on is not where its header says.",
    "It was moved, renamed or deleted.",
    "The image cannot be opened; what was never written here lies in the backing file.",
)
p(
    "BACKING-CYCLE",
    ERROR,
    "Backing chain runs in a circle",
    "Following the backing files leads back to an image already in the chain.",
    "A rebase onto the image's own descendant, or files renamed.",
    CLOSED,
)
p(
    "BACKING-NOT-FOLLOWED",
    NOTE,
    "Backing or data file was not looked at",
    "The name is not a plain file on this machine, so it was not opened.",
    "A network address or a json: description as the file name.",
    "None.",
)
p(
    "BACKING-YOUNGER",
    NOTE,
    "Backing file was written after this image",
    "What was never written here shows through from the backing file. If that has other content than it had, the disk is a mix "
    "of two states, though every structure is right.",
    "The base was rebuilt or replaced, started by itself, or only its time stamp is new (a copy, a restored backup).",
    "Files of the guest that changed in the base may be torn. With the old base in its place the disk is whole again.",
)
