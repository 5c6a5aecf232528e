"""New qcow2 images, laid out as `qemu-img create` lays them out."""

from __future__ import annotations

import os
from dataclasses import dataclass

from formats.qcow2 import limits
from formats.qcow2.extensions import Extension, ExtensionType
from formats.qcow2.header import AUTOCLEAR, COMPATIBLE, INCOMPATIBLE, MAGIC, V2_LENGTH, V3_LENGTH, Header
from formats.qcow2.refcounts import pack
from workbench.engine.write.header import compose_header
from workbench.engine.write.prealloc import Preallocation
from workbench.errors import ArgumentError
from workbench.storage.base import Storage
from workbench.units import SECTOR_SIZE, Geometry, is_power_of_two, round_up


@dataclass(frozen=True, slots=True)
class CreateOptions:
    """qemu-img's create options. size, cluster_size in bytes (size is rounded up to 512); names as QEMU's.

    compat: 2 or 3.  backing_format goes with backing_file.
    """

    size: int
    compat: int = 3
    cluster_size: int = 65536
    refcount_bits: int = 16
    lazy_refcounts: bool = False
    extended_l2: bool = False
    compression_type: str = "zlib"
    backing_file: str | None = None
    backing_format: str | None = None
    data_file: str | None = None
    data_file_raw: bool = False
    preallocation: Preallocation = Preallocation.OFF

    def check(self) -> None:
        """Raises ArgumentError, with QEMU's words, for what QEMU refuses."""
        for bad, words in self._rules():
            if bad:
                raise ArgumentError(words)

    def _rules(self) -> tuple[tuple[bool, str], ...]:
        old = self.compat < 3
        return (
            (self.compat not in (2, 3), "Invalid compatibility level; it is 0.10 (v2) or 1.1 (v3)"),
            (
                not 512 <= self.cluster_size <= 2 << 20 or not is_power_of_two(self.cluster_size),
                "Cluster size must be a power of two between 512 and 2048k",
            ),
            (
                not 1 <= self.refcount_bits <= 64 or not is_power_of_two(self.refcount_bits),
                "Refcount width must be a power of two and may not exceed 64 bits",
            ),
            (
                old and self.refcount_bits != 16,
                "Different refcount widths than 16 bits require compatibility level 1.1 or above"
                " (use version=v3 or greater)",
            ),
            (
                old and self.lazy_refcounts,
                "Lazy refcounts only supported with compatibility level 1.1 and above (use version=v3 or greater)",
            ),
            (
                old and bool(self.data_file),
                "External data files are only supported with compatibility level 1.1 and above"
                " (use version=v3 or greater)",
            ),
            (
                old and self.extended_l2,
                "Extended L2 entries are only supported with compatibility level 1.1 and above"
                " (use version=v3 or greater)",
            ),
            (
                self.extended_l2 and self.cluster_size < 1 << limits.MIN_EXTENDED_L2_CLUSTER_BITS,
                "Extended L2 entries are only supported with cluster sizes of at least 16384 bytes",
            ),
            (self.compression_type not in ("zlib", "zstd"), f"Invalid compression type {self.compression_type!r}"),
            (
                old and self.compression_type != "zlib",
                "Non-zlib compression type is only supported with compatibility level 1.1 and above"
                " (use version=v3 or greater)",
            ),
            (self.data_file_raw and not self.data_file, "data-file-raw requires data-file"),
            (
                self.data_file_raw and bool(self.backing_file),
                "Backing file and data-file-raw cannot be used at the same time",
            ),
            (
                bool(self.backing_file) and not self.backing_format,
                "Backing file specified without backing format",
            ),
            (
                bool(self.backing_file) and self.preallocation is not Preallocation.OFF and not self.extended_l2,
                "Backing file and preallocation can only be used at the same time if extended_l2 is on",
            ),
            (not 0 <= self.size < 1 << 63, "Invalid image size; it must be between 0 and 9223372036854775807"),
        )

    @property
    def geometry(self) -> Geometry:
        bits = self.cluster_size.bit_length() - 1
        return Geometry(bits, self.refcount_bits.bit_length() - 1, self.extended_l2)


def create(storage: Storage, options: CreateOptions) -> None:
    """Write an empty image without a virtual size to `storage` (empty), and flush it; `finish` gives it its size.

    Cluster 0: header; 1: refcount table; 2: the first refcount block.
    """
    options.check()
    geometry = options.geometry
    if geometry.l1_entries_for(options.size) * 8 > limits.MAX_L1_SIZE:
        raise ArgumentError("The image size is too large for file format 'qcow2' (try using a larger cluster size)")
    size = geometry.cluster_size
    _, head = compose_header(_header(options, geometry), _extensions(options), _bytes(options.backing_file))
    import numpy as np

    refcounts = np.zeros(geometry.refcount_block_entries, dtype=np.uint64)
    refcounts[:3] = 1
    storage.write(0, head)
    storage.write(size, (2 * size).to_bytes(8, "big").ljust(size, b"\0"))
    storage.write(2 * size, pack(refcounts, geometry.refcount_order))
    storage.flush()


def finish(path: str, options: CreateOptions, *, storage: Storage | None = None) -> None:
    """Give the new image its size, and preallocate. Opens its data file, but no backing file: what that has shows."""
    from workbench.engine.gate import no_backing
    from workbench.engine.image import Image

    mode = options.preallocation
    if options.data_file_raw and mode is Preallocation.OFF:
        mode = Preallocation.METADATA  # a raw data file must show the disk from the start
    with Image.open(path, writable=True, storage=storage, gate=no_backing) as image:
        image.writer.truncate(round_up(options.size, SECTOR_SIZE), preallocation=mode)


def create_file(path: str, options: CreateOptions, *, check_backing: bool = True) -> None:
    """A new image at `path` (an existing file is overwritten, when nobody holds it), and its external data file.

    check_backing: the backing file must exist and open. Raises ArgumentError, StorageError, LockedError, ImageError.
    """
    from workbench.engine.image import Image
    from workbench.storage.file import FileStorage
    from workbench.storage.locks import LockMode, acquire

    options.check()
    if options.data_file:
        _empty_file(options.data_file, round_up(options.size, SECTOR_SIZE))
    exists = os.path.exists(path)
    storage = FileStorage.open(path, writable=True) if exists else FileStorage.create(path)
    try:
        with acquire(storage, LockMode.WRITE):
            storage.truncate(0)
            create(storage, options)
        storage.close()
        if check_backing and options.backing_file:
            Image.open(path, force_share=True).close()
        finish(path, options)
    except BaseException:
        storage.close()
        if not exists:
            os.unlink(path)
        raise


def _empty_file(path: str, size: int) -> None:
    from workbench.storage.file import FileStorage
    from workbench.storage.locks import LockMode, acquire

    exists = os.path.exists(path)
    storage = FileStorage.open(path, writable=True) if exists else FileStorage.create(path)
    try:
        with acquire(storage, LockMode.WRITE):
            storage.truncate(0)
            storage.truncate(size)
    finally:
        storage.close()


def _header(options: CreateOptions, geometry: Geometry) -> Header:
    incompatible = {
        "data_file": bool(options.data_file),
        "compression_type": options.compression_type != "zlib",
        "extended_l2": options.extended_l2,
    }
    return Header(
        magic=MAGIC,
        version=options.compat,
        cluster_bits=geometry.cluster_bits,
        refcount_table_offset=geometry.cluster_size,
        refcount_table_clusters=1,
        refcount_order=geometry.refcount_order,
        incompatible_features=INCOMPATIBLE.encode({name: int(value) for name, value in incompatible.items()}),
        compatible_features=COMPATIBLE.encode({"lazy_refcounts": int(options.lazy_refcounts)}),
        autoclear_features=AUTOCLEAR.encode({"data_file_raw": int(options.data_file_raw)}),
        header_length=V3_LENGTH + 8 if options.compat >= 3 else V2_LENGTH,
        compression_type=int(options.compression_type == "zstd"),
    )


def _extensions(options: CreateOptions) -> list[Extension]:
    found = []
    if options.backing_file and options.backing_format:
        found.append(Extension(0, ExtensionType.BACKING_FORMAT, options.backing_format.encode()))
    if options.data_file:
        found.append(Extension(0, ExtensionType.DATA_FILE, os.fsencode(options.data_file)))
    return found


def _bytes(name: str | None) -> bytes | None:
    return os.fsencode(name) if name else None
