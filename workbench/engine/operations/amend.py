"""Options of an existing image changed (QEMU: qcow2_amend_options, `qemu-img amend`).

Everything is looked at before anything is written. Each step leaves a sound image; features that need version 3 come after
the upgrade, a downgrade comes last.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from formats.qcow2 import limits
from formats.qcow2.extensions import Extension, ExtensionType
from formats.qcow2.header import AUTOCLEAR, COMPATIBLE, INCOMPATIBLE, V2_LENGTH, V3_LENGTH, Header
from formats.qcow2.snapshots import Snapshot
from workbench.engine.operations.refcount_width import change_refcount_width, require_width
from workbench.engine.operations.zero_expansion import expand_zero_clusters, has_compressed_clusters
from workbench.engine.snapshots import replace_snapshot_table
from workbench.engine.write.header_switch import switch_header
from workbench.errors import ArgumentError, QwbError, UnsupportedError
from workbench.units import SECTOR_SIZE, format_size, is_power_of_two

if TYPE_CHECKING:
    from workbench.engine.image import Image
    from workbench.engine.write.core import Core

_LAZY: Final = COMPATIBLE["lazy_refcounts"].mask
_RAW: Final = AUTOCLEAR["data_file_raw"].mask
_ZSTD: Final = INCOMPATIBLE["compression_type"].mask
_DIRTY: Final = INCOMPATIBLE["dirty"].mask
_EXTRA: Final = 16
"""Extra data of a snapshot's entry that version 3 asks for, in bytes."""
_NO_ICOUNT: Final = (1 << 64) - 1


@dataclass(frozen=True, slots=True)
class AmendOptions:
    """What is to become of the options; None leaves one as it is. compat: 2 or 3.  size in bytes; 0 leaves it, too.

    backing_file, backing_format: must be what they are.  data_file: "" takes the name away.  force: the disk may shrink.
    """

    compat: int | None = None
    size: int | None = None
    refcount_bits: int | None = None
    lazy_refcounts: bool | None = None
    backing_file: str | None = None
    backing_format: str | None = None
    data_file: str | None = None
    data_file_raw: bool | None = None
    force: bool = False


def amend(image: Image, options: AmendOptions) -> None:
    """Change the options of an image that is open for writing. It can only be closed afterwards.

    Raises ArgumentError or UnsupportedError, with nothing written, for what cannot be; StorageError.
    """
    writer = image.writer
    core: Core = writer.core
    core.flush()
    _require(core, options)
    was = core.header
    version = options.compat or was.version
    with writer.bitmaps_at_rest():
        if version > was.version:
            _complete_snapshots(core)
        _switch(core, _header(core.header, version, options), options.data_file)
    if options.size:
        writer.truncate(options.size)
    if version < was.version:
        expand_zero_clusters(core)
    writer.close()
    if options.refcount_bits is not None:
        change_refcount_width(core, options.refcount_bits)
    if version < was.version:
        _switch(core, _downgraded(core.header), None)
    core.dead = core.dead or "its options were changed; open the image again"


def _require(core: Core, options: AmendOptions) -> None:
    """Refuse what QEMU refuses, in its order and words, and what would lose something."""
    header, path = core.header, core.path
    version = options.compat or header.version
    bits = options.refcount_bits or core.geometry.refcount_bits
    for error in _refusals(core, options, version, bits):
        error.path = path
        raise error
    if bits != core.geometry.refcount_bits:
        require_width(core, bits)
    if version < header.version and header.compression_type and has_compressed_clusters(core):
        raise UnsupportedError(
            "Cannot downgrade an image with zstd compression type and existing compressed clusters", path=path
        )


def _refusals(core: Core, options: AmendOptions, version: int, bits: int) -> Iterator[QwbError]:
    header, meta = core.header, core.meta
    if not 0 < bits <= 64 or not is_power_of_two(bits):
        yield ArgumentError("Refcount width must be a power of two and may not exceed 64 bits")
    if options.data_file is not None and not core.external:
        yield ArgumentError("data-file can only be set for images that use an external data file")
    if options.data_file_raw and not core.raw_external:
        yield ArgumentError("data-file-raw cannot be set on existing images")
    if version < 3 and bits != 16:
        yield ArgumentError("Refcount widths other than 16 bits require compatibility level 1.1 or above")
    asked = (options.backing_file, options.backing_format)
    if asked not in ((None, None), (meta.backing_name, meta.backing_format)):
        yield ArgumentError("Cannot amend the backing file", hint="`qwb rebase` changes it")
    if version < 3 and options.lazy_refcounts and not header.has("lazy_refcounts"):
        yield ArgumentError("Lazy refcounts only supported with compatibility level 1.1 and above")
    if options.size:
        yield from _size_refusals(core, options, version)
    if version < header.version:
        yield from _downgrade_refusals(core, options.size or header.size)


def _size_refusals(core: Core, options: AmendOptions, version: int) -> Iterator[QwbError]:
    header, size = core.header, options.size or 0
    if size % SECTOR_SIZE:
        yield ArgumentError(f"The new size must be a multiple of {SECTOR_SIZE}")
    if core.geometry.l1_entries_for(size) * 8 > limits.MAX_L1_SIZE:
        yield ArgumentError("The image size is too large")
    if size != header.size and header.nb_snapshots and max(version, header.version) < 3:
        yield UnsupportedError("an image of version 2 with snapshots cannot be resized")
    if size != header.size and header.has("bitmaps"):
        broken = [each.name for each in core.meta.bitmap_directory.bitmaps if each.in_use]
        if broken:
            yield UnsupportedError(
                f"the image cannot be resized: its bitmap {broken[0]!r} was not saved properly",
                hint="remove that bitmap first",
            )
    if size < header.size and not options.force:
        yield ArgumentError(
            f"the disk would shrink from {format_size(header.size)} to {format_size(size)}: data behind the new end is lost",
            hint="add --force when that is meant",
        )


def _downgrade_refusals(core: Core, size: int) -> Iterator[QwbError]:
    header = core.header
    if core.external:
        yield UnsupportedError("Cannot downgrade an image with a data file")
    if any(
        each.vm_state_size >= 1 << 32 or (each.disk_size is not None and each.disk_size != size)
        for each in core.meta.snapshots
    ):
        yield UnsupportedError("Internal snapshots prevent downgrade of image")
    if header.incompatible_features & ~(_ZSTD | _DIRTY):
        yield UnsupportedError(
            "Cannot downgrade an image with incompatible features"
            f" {header.incompatible_features & ~(_ZSTD | _DIRTY):#x} set"
        )
    if header.has("bitmaps"):
        yield UnsupportedError(
            "version 2 has no bitmaps: those of the image would be lost", hint="`qwb bitmap --remove-all` removes them"
        )


def _header(header: Header, version: int, options: AmendOptions) -> Header:
    """As it is after an upgrade and with the features asked for."""
    if version > header.version:
        header = replace(header, version=version, header_length=V3_LENGTH + 8)
    compatible, autoclear = header.compatible_features, header.autoclear_features
    if header.version >= 3 and options.lazy_refcounts is not None:
        compatible = compatible & ~_LAZY | (_LAZY if options.lazy_refcounts else 0)
    if options.data_file_raw is False:
        autoclear &= ~_RAW
    return replace(header, compatible_features=compatible, autoclear_features=autoclear)


def _downgraded(header: Header) -> Header:
    return replace(
        header,
        version=2,
        header_length=V2_LENGTH,
        incompatible_features=0,
        compatible_features=0,
        autoclear_features=0,
        compression_type=0,
        additional=b"",
    )


def _switch(core: Core, header: Header, data_file: str | None) -> None:
    """The new header, with all extensions that it can have; nothing is written when it is the one that is there."""
    extensions = list(core.meta.extensions)
    if data_file is not None:
        extensions = [each for each in extensions if each.type != ExtensionType.DATA_FILE]
        if data_file:
            extensions.append(Extension(0, ExtensionType.DATA_FILE, os.fsencode(data_file)))
    if header.version < 3:
        extensions = [each for each in extensions if each.type != ExtensionType.FEATURE_NAMES]
    if header == core.header and extensions == list(core.meta.extensions):
        return
    start = header.backing_file_offset
    backing = core.file.read(start, header.backing_file_size) if start else None
    switch_header(core, header, extensions, backing)


def _complete_snapshots(core: Core) -> None:
    """Give every snapshot's entry the extra data that version 3 asks for."""
    entries = list(core.meta.snapshots)
    if all(each.extra_data_size >= _EXTRA for each in entries):
        return
    replace_snapshot_table(core, [_completed(each, core.header.size) for each in entries])
    core.flush()


def _completed(entry: Snapshot, size: int) -> Snapshot:
    if entry.extra_data_size >= _EXTRA:
        return entry
    extra = bytes(8) + size.to_bytes(8, "big") + _NO_ICOUNT.to_bytes(8, "big")
    return replace(entry, extra_data=extra, extra_data_size=len(extra), disk_size=size, icount=_NO_ICOUNT, raw=b"")
