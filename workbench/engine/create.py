"""New qcow2 images, laid out as `qemu-img create` lays them out."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

from formats.qcow2 import limits
from formats.qcow2.extensions import Extension, ExtensionType
from formats.qcow2.header import AUTOCLEAR, COMPATIBLE, INCOMPATIBLE, MAGIC, V2_LENGTH, V3_LENGTH, Header
from formats.qcow2.refcounts import pack
from workbench.engine.gate import OpenRequest, allow_local, resolve_name
from workbench.engine.naming import require_distinct
from workbench.engine.write.header import compose_header
from workbench.engine.write.prealloc import Preallocation
from workbench.errors import ArgumentError
from workbench.storage.base import Storage
from workbench.storage.file import FileStorage
from workbench.storage.space import Want, require_room
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
        _refuse((*self._shape_rules(), *self._rules()))

    def check_shape(self) -> None:
        """As `check`, of what decides how large tables are: cluster size, refcount width, extended L2 entries."""
        _refuse(self._shape_rules())

    def _shape_rules(self) -> tuple[tuple[bool, str], ...]:
        return (
            (self.compat not in (2, 3), "Invalid compatibility level; it is 0.10 (v2) or 1.1 (v3)"),
            (
                not 512 <= self.cluster_size <= 2 << 20 or not is_power_of_two(self.cluster_size),
                "Cluster size must be a power of two between 512 and 2048k",
            ),
            (
                self.extended_l2 and self.cluster_size < 1 << limits.MIN_EXTENDED_L2_CLUSTER_BITS,
                "Extended L2 entries are only supported with cluster sizes of at least 16384 bytes",
            ),
            (
                not 1 <= self.refcount_bits <= 64 or not is_power_of_two(self.refcount_bits),
                "Refcount width must be a power of two and may not exceed 64 bits",
            ),
            (
                self.compat < 3 and self.refcount_bits != 16,
                "Different refcount widths than 16 bits require compatibility level 1.1 or above"
                " (use version=v3 or greater)",
            ),
        )

    def _rules(self) -> tuple[tuple[bool, str], ...]:
        old = self.compat < 3
        return (
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


def _refuse(rules: Iterable[tuple[bool, str]]) -> None:
    for bad, words in rules:
        if bad:
            raise ArgumentError(words)


def create(storage: Storage, options: CreateOptions) -> None:
    """Write an empty image without a virtual size to `storage` (empty), and flush it; `finish` gives it its size.

    Cluster 0: header; 1: refcount table; 2: the first refcount block.
    """
    options.check()
    _write_empty(storage, options, _head(options))


def _head(options: CreateOptions) -> bytes:
    """The header cluster. ArgumentError for what the format has no room for."""
    geometry = options.geometry
    if geometry.l1_entries_for(options.size) * 8 > limits.MAX_L1_SIZE:
        raise ArgumentError("The image size is too large for file format 'qcow2' (try using a larger cluster size)")
    _, head = compose_header(_header(options, geometry), _extensions(options), _bytes(options.backing_file))
    return head


def _write_empty(storage: Storage, options: CreateOptions, head: bytes) -> None:
    import numpy as np

    geometry = options.geometry
    size = geometry.cluster_size
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


def create_file(
    path: str,
    options: CreateOptions,
    *,
    check_backing: bool = True,
    inputs: Iterable[str | os.PathLike[str]] = (),
) -> None:
    """A new image at `path` (an existing file is overwritten, when nobody holds it), and its external data file.

    check_backing: the backing file must open, with all that it needs.  inputs: other files that are read for this work.
    Before anything is emptied, targets are proven to be other files than all that is read, options and room are looked at,
    and both targets are open and locked. When it fails later, files that were not there before are removed again.
    Raises ArgumentError, StorageError, LockedError, ImageError.
    """
    options.check()
    head = _head(options)
    targets = [path] + ([options.data_file] if options.data_file else [])
    request = _backing_request(path, options)
    below = [request.resolved] if request is not None and request.resolved is not None else []
    require_distinct(targets, [*inputs, *below], "create")
    if check_backing and request is not None:
        _require_backing(request)
    _require_room(targets[-1], options)
    made: list[str] = []
    with ExitStack() as stack:
        try:
            storages = [_taken(each, stack, made) for each in targets]
            if options.data_file:
                storages[1].truncate(0)
                storages[1].truncate(round_up(options.size, SECTOR_SIZE))
                storages[1].close()  # and with it its lock: it is opened again as the image's data file
            storages[0].truncate(0)
            _write_empty(storages[0], options, head)
            finish(path, options, storage=storages[0])
        except BaseException:
            for each in made:
                with suppress(FileNotFoundError):
                    os.unlink(each)
            raise


def _backing_request(path: str, options: CreateOptions) -> OpenRequest | None:
    name = options.backing_file
    if not name:
        return None
    return OpenRequest("backing", name, resolve_name(name, path, "backing"), path, options.backing_format, 0)


def _require_backing(request: OpenRequest) -> None:
    """The backing file, and what is under it, opens."""
    from workbench.engine.chain import Opening, open_under

    place = allow_local(request)
    if place is None:
        return
    with ExitStack() as stack:
        open_under(os.fspath(place), request.format, Opening(allow_local, force_share=True), stack)


def _require_room(path: str, options: CreateOptions) -> None:
    """The space that is to be taken at once is there. What an existing file takes now comes free first."""
    if options.preallocation not in (Preallocation.FALLOC, Preallocation.FULL):
        return
    try:
        found = os.stat(path)
        given = found.st_blocks * 512 if stat.S_ISREG(found.st_mode) else options.size
    except FileNotFoundError:
        given = 0
    want = Want(Path(path).absolute().parent, options.size - given, "the preallocated disk")
    require_room([want], path=path)


def _taken(path: str, stack: ExitStack, made: list[str]) -> FileStorage:
    """A target open for writing and locked, its content untouched; `made` notes it when it was not there."""
    from workbench.storage.locks import LockMode, acquire

    if os.path.exists(path):
        storage = FileStorage.open(path, writable=True)
    else:
        storage = FileStorage.create(path)
        made.append(path)
    stack.callback(storage.close)
    acquire(storage, LockMode.WRITE)
    return storage


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
