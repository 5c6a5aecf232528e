"""Find and patch structures of a healthy qcow2 image by their bytes.

Deliberately independent of ``formats/`` and the engine: the damage recipes and the mutations must not share an error
with the code that is tested on them. It trusts the image, so it is for healthy images only (damage last).
All offsets and lengths are bytes in the image file, big-endian values, unless a name says otherwise.
"""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

MASK_OFFSET = 0x00FF_FFFF_FFFF_FE00  # host offset in L1, L2 and bitmap table entries
COPIED = 1 << 63
COMPRESSED = 1 << 62
ZERO = 1

HEADER_FIELDS: dict[str, tuple[int, int]] = {  # name: (offset, length in bytes)
    "magic": (0, 4),
    "version": (4, 4),
    "backing_file_offset": (8, 8),
    "backing_file_size": (16, 4),
    "cluster_bits": (20, 4),
    "size": (24, 8),
    "crypt_method": (32, 4),
    "l1_size": (36, 4),
    "l1_table_offset": (40, 8),
    "refcount_table_offset": (48, 8),
    "refcount_table_clusters": (56, 4),
    "nb_snapshots": (60, 4),
    "snapshots_offset": (64, 8),
    "incompatible_features": (72, 8),
    "compatible_features": (80, 8),
    "autoclear_features": (88, 8),
    "refcount_order": (96, 4),
    "header_length": (100, 4),
    "compression_type": (104, 1),
}

SNAPSHOT_FIELDS: dict[str, tuple[int, int]] = {  # name: (offset in the entry, length in bytes)
    "l1_table_offset": (0, 8),
    "l1_size": (8, 4),
    "id_str_size": (12, 2),
    "name_size": (14, 2),
    "date_sec": (16, 4),
    "date_nsec": (20, 4),
    "vm_clock_nsec": (24, 8),
    "vm_state_size": (32, 4),
    "extra_data_size": (36, 4),
    "vm_state_size_large": (40, 8),
    "disk_size": (48, 8),
    "icount": (56, 8),
}

BITMAP_FIELDS: dict[str, tuple[int, int]] = {  # name: (offset in the entry, length in bytes)
    "bitmap_table_offset": (0, 8),
    "bitmap_table_size": (8, 4),
    "flags": (12, 4),
    "type": (16, 1),
    "granularity_bits": (17, 1),
    "name_size": (18, 2),
    "extra_data_size": (20, 4),
}

BITMAP_EXTENSION_FIELDS: dict[str, tuple[int, int]] = {
    "nb_bitmaps": (0, 4),
    "reserved": (4, 4),
    "directory_size": (8, 8),
    "directory_offset": (16, 8),
}

EXT_END = 0
EXT_BACKING_FORMAT = 0xE2792ACA
EXT_FEATURE_NAMES = 0x6803F857
EXT_BITMAPS = 0x23852875
EXT_CRYPTO = 0x0537BE77
EXT_DATA_FILE = 0x44415441

DIRTY, CORRUPT, DATA_FILE, COMPRESSION, EXTENDED_L2 = (1 << bit for bit in range(5))

_FORMATS = {1: ">B", 2: ">H", 4: ">I", 8: ">Q"}


@dataclass(frozen=True, slots=True)
class Extension:
    """One header extension: `offset` of its type field, `data` of its payload, `length` of the payload unpadded."""

    offset: int
    type: int
    length: int

    @property
    def data(self) -> int:
        return self.offset + 8

    @property
    def end(self) -> int:
        return self.data + (self.length + 7) // 8 * 8


@dataclass(frozen=True, slots=True)
class Snapshot:
    """One snapshot table entry: where it lies and the fields that recipes need."""

    offset: int
    l1_offset: int
    l1_size: int
    id_length: int
    name_length: int
    extra_length: int

    @property
    def id_offset(self) -> int:
        return self.offset + 40 + self.extra_length

    @property
    def name_offset(self) -> int:
        return self.id_offset + self.id_length

    @property
    def end(self) -> int:
        return self.offset + (40 + self.extra_length + self.id_length + self.name_length + 7) // 8 * 8


@dataclass(frozen=True, slots=True)
class Bitmap:
    """One bitmap directory entry: where it lies, its table, and its name."""

    offset: int
    table_offset: int
    table_size: int
    extra_length: int
    name: str

    @property
    def name_offset(self) -> int:
        return self.offset + 24 + self.extra_length

    @property
    def end(self) -> int:
        return self.offset + (24 + self.extra_length + len(self.name.encode()) + 7) // 8 * 8


class Editor:
    """An image open for byte surgery; use it as a context manager."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = open(path, "r+b", buffering=0)  # noqa: SIM115 - closed by __exit__

    def __enter__(self) -> Editor:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._file.close()

    # -- bytes ---------------------------------------------------------------------------------------------------------

    def read(self, offset: int, length: int) -> bytes:
        """`length` bytes at `offset`; past the end of the file they read as zeros."""
        return os.pread(self._file.fileno(), length, offset).ljust(length, b"\0")

    def write(self, offset: int, data: bytes) -> None:
        """Overwrite bytes at `offset`; the file grows when they reach past its end."""
        os.pwrite(self._file.fileno(), data, offset)

    def number(self, offset: int, size: int = 8) -> int:
        """The unsigned big-endian number of `size` bytes at `offset`."""
        return int(struct.unpack(_FORMATS[size], self.read(offset, size))[0])

    def put(self, offset: int, value: int, size: int = 8) -> None:
        """Write an unsigned big-endian number of `size` bytes at `offset`."""
        self.write(offset, struct.pack(_FORMATS[size], value))

    @property
    def file_size(self) -> int:
        return os.fstat(self._file.fileno()).st_size

    def truncate(self, size: int) -> None:
        """Set the length of the file in bytes."""
        self._file.truncate(size)

    def wipe(self, offset: int, length: int | None = None) -> None:
        """Overwrite with zeros (one cluster by default)."""
        self.write(offset, bytes(length or self.cluster_size))

    def copy(self, source: int, target: int, length: int | None = None) -> None:
        """Copy bytes inside the file (one cluster by default)."""
        self.write(target, self.read(source, length or self.cluster_size))

    # -- header --------------------------------------------------------------------------------------------------------

    def get(self, field: str) -> int:
        """A header field by its name in the spec."""
        return self.number(*HEADER_FIELDS[field])

    def set(self, field: str, value: int) -> None:
        """Overwrite a header field by its name in the spec."""
        offset, size = HEADER_FIELDS[field]
        self.put(offset, value, size)

    @property
    def version(self) -> int:
        return self.get("version")

    @property
    def cluster_bits(self) -> int:
        return self.get("cluster_bits")

    @property
    def cluster_size(self) -> int:
        return 1 << self.cluster_bits

    @property
    def refcount_bits(self) -> int:
        return 1 << self.get("refcount_order") if self.version >= 3 else 16

    @property
    def header_length(self) -> int:
        return self.get("header_length") if self.version >= 3 else 72

    @property
    def extended_l2(self) -> bool:
        return self.version >= 3 and bool(self.get("incompatible_features") & EXTENDED_L2)

    def set_bits(self, field: str, mask: int) -> None:
        """Set bits in a header field."""
        self.set(field, self.get(field) | mask)

    def clear_bits(self, field: str, mask: int) -> None:
        """Clear bits in a header field."""
        self.set(field, self.get(field) & ~mask)

    # -- header extensions ---------------------------------------------------------------------------------------------

    def extensions(self) -> list[Extension]:
        """Every header extension, the end marker excluded."""
        found, at = [], self.header_length
        while at + 8 <= self.cluster_size:
            ext = Extension(at, self.number(at, 4), self.number(at + 4, 4))
            if ext.type == EXT_END or ext.end > self.cluster_size:
                break
            found.append(ext)
            at = ext.end
        return found

    def extension(self, kind: int) -> Extension:
        """The first extension of a type; raises LookupError."""
        for ext in self.extensions():
            if ext.type == kind:
                return ext
        raise LookupError(f"{self.path.name}: no header extension {kind:#x}")

    @property
    def extensions_end(self) -> int:
        """Offset of the end marker."""
        found = self.extensions()
        return found[-1].end if found else self.header_length

    def insert(self, offset: int, data: bytes) -> None:
        """Insert bytes into the header cluster; extensions and the backing name after `offset` move up."""
        name_at, name_size = self.get("backing_file_offset"), self.get("backing_file_size")
        used = max(self.extensions_end + 8, name_at + name_size)
        if used + len(data) > self.cluster_size:
            raise ValueError(f"{self.path.name}: no room for {len(data)} bytes in the header cluster")
        self.write(offset + len(data), self.read(offset, used - offset))
        self.write(offset, data)
        if name_at >= offset:
            self.set("backing_file_offset", name_at + len(data))

    def remove(self, offset: int, length: int) -> None:
        """Remove bytes from the header cluster; what follows moves down."""
        name_at, name_size = self.get("backing_file_offset"), self.get("backing_file_size")
        used = max(self.extensions_end + 8, name_at + name_size)
        self.write(offset, self.read(offset + length, used - offset - length) + bytes(length))
        if name_at > offset:
            self.set("backing_file_offset", name_at - length)

    def add_extension(self, kind: int, data: bytes) -> None:
        """Append a header extension before the end marker."""
        padded = data + bytes(-len(data) % 8)
        self.insert(self.extensions_end, struct.pack(">II", kind, len(data)) + padded)

    def remove_extension(self, kind: int) -> None:
        """Take out the first extension of a type; raises LookupError."""
        ext = self.extension(kind)
        self.remove(ext.offset, ext.end - ext.offset)

    # -- L1 and L2 -----------------------------------------------------------------------------------------------------

    @property
    def l1_offset(self) -> int:
        return self.get("l1_table_offset")

    @property
    def l2_entry_size(self) -> int:
        return 16 if self.extended_l2 else 8

    @property
    def l2_entries(self) -> int:
        """Number of entries in one L2 table."""
        return self.cluster_size // self.l2_entry_size

    def l1_at(self, index: int) -> int:
        """Host offset of an active L1 entry."""
        return self.l1_offset + 8 * index

    def l1(self, index: int) -> int:
        """The raw value of an active L1 entry."""
        return self.number(self.l1_at(index))

    def set_l1(self, index: int, value: int) -> None:
        self.put(self.l1_at(index), value)

    def l2_table(self, index: int) -> int:
        """Host offset of the L2 table of an active L1 entry (0: none)."""
        return self.l1(index) & MASK_OFFSET

    def allocated_l1(self) -> list[int]:
        """Indices of the active L1 entries that have an L2 table."""
        return [index for index in range(self.get("l1_size")) if self.l2_table(index)]

    def l2_at(self, guest: int) -> int:
        """Host offset of the L2 entry that maps a guest offset; raises LookupError when there is no L2 table."""
        cluster = guest >> self.cluster_bits
        index, slot = divmod(cluster, self.l2_entries)
        table = self.l2_table(index)
        if not table:
            raise LookupError(f"{self.path.name}: no L2 table for guest offset {guest:#x}")
        return table + slot * self.l2_entry_size

    def l2(self, guest: int) -> int:
        """The raw L2 entry (first 8 bytes) of a guest offset."""
        return self.number(self.l2_at(guest))

    def set_l2(self, guest: int, value: int) -> None:
        self.put(self.l2_at(guest), value)

    def subclusters(self, guest: int) -> int:
        """The subcluster bitmap of an extended L2 entry."""
        return self.number(self.l2_at(guest) + 8)

    def set_subclusters(self, guest: int, value: int) -> None:
        self.put(self.l2_at(guest) + 8, value)

    def host_of(self, guest: int) -> int:
        """Host offset of the cluster that holds a guest offset's data; raises LookupError when it has no plain one."""
        entry = self.l2(guest)
        host = entry & MASK_OFFSET
        if entry & COMPRESSED or not host:
            raise LookupError(f"{self.path.name}: guest offset {guest:#x} has no host cluster")
        return host

    def guests(self, kind: str) -> list[int]:
        """Guest offsets (cluster starts) in the active disk whose entry is ``data``, ``zero`` or ``compressed``."""
        return [guest for guest, at in self.entries() if self._kind(self.number(at)) == kind]

    def entries(self) -> list[tuple[int, int]]:
        """(guest offset, host offset of the entry) of every non-zero entry of the active L2 tables."""
        found = []
        for index in self.allocated_l1():
            table = self.l2_table(index)
            content = self.read(table, self.cluster_size)
            for slot in range(self.l2_entries):
                at = slot * self.l2_entry_size
                if any(content[at : at + self.l2_entry_size]):
                    found.append(((index * self.l2_entries + slot) << self.cluster_bits, table + at))
        return found

    def _kind(self, entry: int) -> str:
        if entry & COMPRESSED:
            return "compressed"
        if entry & ZERO and not self.extended_l2:
            return "zero"
        return "data" if entry & MASK_OFFSET else "empty"

    def compressed(self, guest: int) -> tuple[int, int]:
        """(host offset in bytes, additional 512-byte sectors) of a compressed entry."""
        entry, shift = self.l2(guest), 62 - (self.cluster_bits - 8)
        return entry & ((1 << shift) - 1), (entry >> shift) & ((1 << (self.cluster_bits - 8)) - 1)

    def set_compressed(self, guest: int, offset: int, sectors: int, *, copied: bool = False) -> None:
        """Overwrite a compressed entry's descriptor."""
        shift = 62 - (self.cluster_bits - 8)
        self.set_l2(guest, COMPRESSED | (COPIED if copied else 0) | sectors << shift | offset)

    # -- refcounts -----------------------------------------------------------------------------------------------------

    @property
    def rt_offset(self) -> int:
        return self.get("refcount_table_offset")

    @property
    def rt_entries(self) -> int:
        return self.get("refcount_table_clusters") * self.cluster_size // 8

    @property
    def block_entries(self) -> int:
        """Number of refcounts in one refcount block."""
        return self.cluster_size * 8 // self.refcount_bits

    def rt_at(self, index: int) -> int:
        """Host offset of a refcount table entry."""
        return self.rt_offset + 8 * index

    def rt(self, index: int) -> int:
        """The raw value of a refcount table entry."""
        return self.number(self.rt_at(index))

    def set_rt(self, index: int, value: int) -> None:
        self.put(self.rt_at(index), value)

    def refcount(self, offset: int) -> int:
        """The stored refcount of the cluster at a host offset."""
        at, size, shift = self._refcount_place(offset)
        return (self.number(at, size) >> shift) & ((1 << self.refcount_bits) - 1)

    def set_refcount(self, offset: int, value: int) -> None:
        """Overwrite the stored refcount of the cluster at a host offset."""
        at, size, shift = self._refcount_place(offset)
        mask = ((1 << self.refcount_bits) - 1) << shift
        self.put(at, (self.number(at, size) & ~mask) | value << shift, size)

    def _refcount_place(self, offset: int) -> tuple[int, int, int]:
        index, slot = divmod(offset >> self.cluster_bits, self.block_entries)
        block = self.rt(index) & ~0x1FF
        if not block:
            raise LookupError(f"{self.path.name}: no refcount block for host offset {offset:#x}")
        bit = slot * self.refcount_bits
        return block + bit // 8, max(1, self.refcount_bits // 8), bit % 8

    def append_cluster(self, data: bytes = b"", refcount: int = 1) -> int:
        """Add a cluster at the end of the file with the given content and refcount; returns its host offset."""
        offset = -(-self.file_size // self.cluster_size) * self.cluster_size
        self.write(offset, data.ljust(self.cluster_size, b"\0"))
        if refcount:
            self.set_refcount(offset, refcount)
        return offset

    # -- snapshots -----------------------------------------------------------------------------------------------------

    def snapshots(self) -> list[Snapshot]:
        """Every snapshot table entry."""
        found, at = [], self.get("snapshots_offset")
        for _ in range(self.get("nb_snapshots")):
            l1_offset, l1_size, id_len, name_len = struct.unpack(">QIHH", self.read(at, 16))
            entry = Snapshot(at, l1_offset, l1_size, id_len, name_len, self.number(at + 36, 4))
            found.append(entry)
            at = entry.end
        return found

    def set_snapshot(self, entry: Snapshot, field: str, value: int) -> None:
        """Overwrite a field of a snapshot table entry."""
        offset, size = SNAPSHOT_FIELDS[field]
        self.put(entry.offset + offset, value, size)

    # -- bitmaps -------------------------------------------------------------------------------------------------------

    def bitmaps(self) -> list[Bitmap]:
        """Every bitmap directory entry."""
        ext = self.extension(EXT_BITMAPS)
        at, found = self.number(ext.data + 16), []
        for _ in range(self.number(ext.data, 4)):
            name_size, extra = self.number(at + 18, 2), self.number(at + 20, 4)
            name = self.read(at + 24 + extra, name_size).decode()
            entry = Bitmap(at, self.number(at), self.number(at + 8, 4), extra, name)
            found.append(entry)
            at = entry.end
        return found

    def set_bitmap(self, entry: Bitmap, field: str, value: int) -> None:
        """Overwrite a field of a bitmap directory entry."""
        offset, size = BITMAP_FIELDS[field]
        self.put(entry.offset + offset, value, size)

    def set_bitmap_extension(self, field: str, value: int) -> None:
        """Overwrite ``nb_bitmaps``, ``directory_size`` or ``directory_offset`` of the bitmaps extension."""
        offset, size = BITMAP_EXTENSION_FIELDS[field]
        self.put(self.extension(EXT_BITMAPS).data + offset, value, size)

    # -- encryption ----------------------------------------------------------------------------------------------------

    def luks(self) -> tuple[int, int]:
        """(host offset, length in bytes) of the LUKS header, from its extension."""
        ext = self.extension(EXT_CRYPTO)
        return self.number(ext.data), self.number(ext.data + 8)

    def set_luks(self, *, offset: int | None = None, length: int | None = None) -> None:
        """Overwrite the pointer to the LUKS header in its extension."""
        ext = self.extension(EXT_CRYPTO)
        if offset is not None:
            self.put(ext.data, offset)
        if length is not None:
            self.put(ext.data + 8, length)
