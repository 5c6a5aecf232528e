"""The tolerant load: everything that an image says about itself, damaged or not.

`load_metadata` never raises on content. What could not be read or makes no sense is recorded as `Fault`s; the strict
open (`engine/opening.py`) refuses on the same faults that QEMU refuses on. Large tables are read on first use, bounded by
QEMU's limits and by the length of the file, never by the fields of the header alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from formats.luks.header import HEADER_SIZE as LUKS_HEADER_SIZE
from formats.luks.header import LuksHeader, parse_luks
from formats.qcow2 import limits
from formats.qcow2.bitmaps import BitmapDirectory, parse_bitmap_directory
from formats.qcow2.entries import Shape
from formats.qcow2.extensions import (
    BitmapsExtension,
    EncryptionExtension,
    Extension,
    ExtensionArea,
    ExtensionType,
    FeatureName,
    parse_bitmaps_extension,
    parse_encryption_extension,
    parse_extensions,
    parse_feature_names,
)
from formats.qcow2.header import MAGIC, V2_LENGTH, Header, field, parse_header
from formats.qcow2.snapshots import Snapshot, SnapshotTable, parse_snapshot_table
from workbench.engine.faults import Fault
from workbench.errors import ArgumentError, StorageError
from workbench.storage.base import Storage
from workbench.units import Geometry, div_round_up, round_up

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from formats.foreign import Foreign


@dataclass(frozen=True, slots=True)
class Region:
    """A byte range of the image file that a table claims. offset, length in bytes."""

    offset: int
    length: int

    @property
    def end(self) -> int:
        return self.offset + self.length


class Metadata:
    """What an image says about itself; see `load_metadata`. Sizes and offsets in bytes unless named otherwise.

    head: the first cluster's bytes (as much as there is).  geometry: None when cluster_bits or refcount_order make no
    sense; then no table can be located.  Unreadable parts are empty, and a Fault says why.
    """

    def __init__(self, storage: Storage, head: bytes, header: Header) -> None:
        self.storage = storage
        self.file_size = storage.size()
        self.head = head
        self.header = header

    @cached_property
    def is_qcow2(self) -> bool:
        """The magic is there."""
        return self.header.magic == MAGIC and len(self.head) >= 4

    @cached_property
    def foreign(self) -> Foreign | None:
        """What the file is instead of a qcow2 image; None for a qcow2 image, however damaged, or when nobody knows."""
        if self.geometry is not None:
            return None
        from formats.foreign import recognise

        try:
            return recognise(self.storage.read, self.file_size, self.storage.next_data)
        except StorageError:
            return None  # of a file that cannot be read nothing is known

    @cached_property
    def geometry(self) -> Geometry | None:
        """Shape of the image, or None when the header's numbers give none."""
        header = self.header
        if not self.is_qcow2 or header.version not in (2, 3):
            return None
        if not limits.MIN_CLUSTER_BITS <= header.cluster_bits <= limits.MAX_CLUSTER_BITS:
            return None
        order = header.refcount_order if header.refcount_order <= limits.MAX_REFCOUNT_ORDER else 4
        return Geometry(header.cluster_bits, order, header.has("extended_l2"))

    @cached_property
    def shape(self) -> Shape:
        """What decides how table entries read; only where there is a geometry."""
        assert self.geometry is not None
        return Shape(
            self.geometry.cluster_bits, self.geometry.extended_l2, self.header.version, self.header.has("data_file")
        )

    @cached_property
    def header_length(self) -> int:
        """Length of the header as far as it can be believed: within the first cluster."""
        if self.header.version < 3:
            return V2_LENGTH
        return min(self.header.header_length, len(self.head))

    @cached_property
    def extension_end(self) -> int:
        """Where the extension area must end: at the backing file name, or at the end of the first cluster."""
        offset = self.header.backing_file_offset
        return min(offset, len(self.head)) if offset else len(self.head)

    @cached_property
    def area(self) -> ExtensionArea:
        """All header extensions in order."""
        if self.geometry is None:
            return ExtensionArea((), self.header_length, False)
        return parse_extensions(self.head, self.header_length, self.extension_end)

    @property
    def extensions(self) -> tuple[Extension, ...]:
        return self.area.extensions

    def extension(self, kind: ExtensionType) -> Extension | None:
        """The last extension of that type (QEMU lets a later one win)."""
        found = [each for each in self.extensions if each.type == kind]
        return found[-1] if found else None

    @cached_property
    def feature_names(self) -> tuple[FeatureName, ...]:
        """Names that the image itself gives to feature bits."""
        found = self.extension(ExtensionType.FEATURE_NAMES)
        return parse_feature_names(found.data) if found else ()

    @cached_property
    def backing_name(self) -> str | None:
        """Backing file name as stored (untrusted); None without one or when it lies outside the first cluster."""
        header = self.header
        if not header.backing_file_offset or header.backing_file_size > limits.MAX_BACKING_NAME:
            return None
        raw = self.head[header.backing_file_offset : header.backing_file_offset + header.backing_file_size]
        if len(raw) < header.backing_file_size:
            return None
        return raw.split(b"\0")[0].decode("utf-8", "surrogateescape") or None

    @cached_property
    def backing_format(self) -> str | None:
        found = self.extension(ExtensionType.BACKING_FORMAT)
        return found.data.split(b"\0")[0].decode("utf-8", "surrogateescape") if found else None

    @cached_property
    def data_file_name(self) -> str | None:
        """External data file name as stored (untrusted)."""
        found = self.extension(ExtensionType.DATA_FILE)
        return found.data.split(b"\0")[0].decode("utf-8", "surrogateescape") if found else None

    @cached_property
    def encryption(self) -> EncryptionExtension | None:
        """Pointer to the LUKS header."""
        found = self.extension(ExtensionType.ENCRYPTION)
        return parse_encryption_extension(found.data) if found else None

    @cached_property
    def luks(self) -> LuksHeader | None:
        """The LUKS header, as far as the file has bytes for it."""
        pointer = self.encryption
        if pointer is None or pointer.offset >= self.file_size:
            return None
        return parse_luks(self.storage.read(pointer.offset, LUKS_HEADER_SIZE))

    # Tables -----------------------------------------------------------------------------------------------------------

    @cached_property
    def l1_region(self) -> Region:
        """Bytes of the active L1 table, as the header claims them."""
        return Region(self.header.l1_table_offset, self.header.l1_size * 8)

    @cached_property
    def refcount_table_region(self) -> Region:
        """Bytes of the refcount table. Where the header claims more than QEMU's limit, which cannot be: what the file needs."""
        said = self.refcount_table_said
        geometry = self.geometry
        if geometry is None or said.length <= limits.MAX_REFCOUNT_TABLE_SIZE:
            return said
        blocks = div_round_up(self.file_size, geometry.refcount_block_coverage)
        return Region(said.offset, round_up(max(blocks, 1) * 8, geometry.cluster_size))

    @cached_property
    def counted_reach(self) -> int:
        """How far the refcount table can count, in bytes: no writer allocates a cluster behind it. An entry that leads past
        the end of the file, but not past this, was right before the file was cut off."""
        return (
            self.refcount_table_region.length // 8 * self.geometry.refcount_block_coverage
            if self.geometry is not None
            else 0
        )

    @cached_property
    def refcount_table_said(self) -> Region:
        """Bytes of the refcount table, as the header claims them."""
        size = self.geometry.cluster_size if self.geometry else 0
        return Region(self.header.refcount_table_offset, self.header.refcount_table_clusters * size)

    def read_bytes(self, offset: int, length: int) -> bytes:
        """Up to `length` bytes at host `offset`; fewer, or none, where the file has no more, however absurd the offset."""
        return self.storage.read(offset, min(length, max(0, self.file_size - offset)))

    def read_words(self, region: Region, limit: int) -> NDArray[np.uint64]:
        """Table entries of `region`, native uint64; at most `limit` bytes; past the end of the file they read as zero."""
        import numpy as np

        from formats.qcow2.tables import words

        length = min(region.length, limit) & ~7
        data = self.read_bytes(region.offset, length)
        out = np.zeros(length // 8, dtype=np.uint64)
        found = words(data + bytes(-len(data) % 8))
        out[: found.size] = found
        return out

    @cached_property
    def l1(self) -> NDArray[np.uint64]:
        """Active L1 table, 1-D native uint64; at most QEMU's 32 MiB; zeros where the file has no bytes."""
        return self.read_words(self.l1_region, limits.MAX_L1_SIZE)

    @cached_property
    def refcount_table(self) -> NDArray[np.uint64]:
        """Refcount table, 1-D native uint64; at most QEMU's 8 MiB; zeros where the file has no bytes."""
        return self.read_words(self.refcount_table_region, limits.MAX_REFCOUNT_TABLE_SIZE)

    def snapshot_l1(self, snapshot: Snapshot) -> NDArray[np.uint64]:
        """A snapshot's L1 table, bounded like the active one."""
        return self.read_words(Region(snapshot.l1_table_offset, snapshot.l1_size * 8), limits.MAX_L1_SIZE)

    @cached_property
    def snapshot_table(self) -> SnapshotTable:
        """Entries that could be read, and where reading stopped."""
        header = self.header
        if not header.nb_snapshots or self.geometry is None or header.snapshots_offset >= self.file_size:
            broken = (0, header.snapshots_offset, "table beyond the end of the file") if header.nb_snapshots else None
            return SnapshotTable((), header.snapshots_offset, broken if self.geometry else None)
        count = min(header.nb_snapshots, limits.MAX_SNAPSHOTS)
        room = self.file_size - header.snapshots_offset
        for guess in (1 << 16, 1 << 20, limits.MAX_SNAPSHOT_TABLE_SIZE):
            data = self.storage.read(header.snapshots_offset, min(guess, room))
            table = parse_snapshot_table(data, count, header.snapshots_offset)
            if table.broken is None or len(data) >= room:
                break
        return table

    @property
    def snapshots(self) -> tuple[Snapshot, ...]:
        return self.snapshot_table.snapshots

    @cached_property
    def snapshots_hidden(self) -> bool:
        """The snapshots cannot all be read: clusters may be in use, or shared, that no table shows."""
        header, table, geometry = self.header, self.snapshot_table, self.geometry
        if geometry is None or header.nb_snapshots != len(table.snapshots) or table.broken is not None:
            return True
        inner = geometry.cluster_size - 1
        if bool(header.nb_snapshots) != bool(header.snapshots_offset) or header.snapshots_offset & inner:
            return True
        return any(
            each.l1_table_offset & inner
            or not 0 < each.l1_table_offset < self.file_size
            or each.l1_size * 8 > limits.MAX_L1_SIZE
            or (each.l1_size == 0 and bool(each.disk_size))
            for each in table.snapshots
        )

    def snapshot_index(self, name: str) -> int:
        """Where in `snapshots` the one with this ID or else this name is, as QEMU looks it up. Raises ArgumentError."""
        for names in ([each.id for each in self.snapshots], [each.name for each in self.snapshots]):
            if name in names:
                return names.index(name)
        known = ", ".join(each.name for each in self.snapshots[:8]) or "none"
        raise ArgumentError(f"no snapshot {name!r}", path=self.storage.path, hint=f"snapshots here: {known}")

    @cached_property
    def bitmaps_extension(self) -> BitmapsExtension | None:
        found = self.extension(ExtensionType.BITMAPS)
        return parse_bitmaps_extension(found.data) if found else None

    @cached_property
    def bitmap_directory(self) -> BitmapDirectory:
        """Bitmap directory entries that could be read, and where reading stopped."""
        extension = self.bitmaps_extension
        if extension is None:
            return BitmapDirectory((), 0)
        offset = extension.directory_offset
        if offset >= self.file_size:
            return BitmapDirectory((), offset, (0, offset, "directory beyond the end of the file"))
        size = min(extension.directory_size, limits.MAX_BITMAP_DIRECTORY_SIZE)
        count = min(extension.nb_bitmaps, limits.MAX_BITMAPS)
        return parse_bitmap_directory(self.storage.read(offset, size), count, offset)

    @cached_property
    def faults(self) -> tuple[Fault, ...]:
        """Everything wrong with header, extensions, snapshot table and bitmap directory, in the order QEMU looks."""
        from workbench.engine.validate import find_faults

        return tuple(find_faults(self))


def as_if(storage: Storage, **fields: int) -> Storage:
    """The file with other values in its header's fields; it stays as it is."""
    from workbench.storage.overlay import Overlay

    shown = Overlay(storage)
    for name, value in fields.items():
        offset, size = field(name)
        shown.write(offset, value.to_bytes(size, "big"))
    return shown


def load_metadata(storage: Storage) -> Metadata:
    """Read an image's metadata. Never raises on content (StorageError only when the device cannot be read)."""
    probe = storage.read(0, 4096)
    header = parse_header(probe)
    size = 1 << min(max(header.cluster_bits, limits.MIN_CLUSTER_BITS), limits.MAX_CLUSTER_BITS)
    head = storage.read(0, size) if size > len(probe) else probe[:size]
    return Metadata(storage, head, parse_header(head))
