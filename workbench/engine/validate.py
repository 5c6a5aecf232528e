"""Rules on header, extensions, snapshot table and bitmap directory, in the order in which QEMU's driver looks.

Each rule yields `Fault`s: facts, no wording for people beyond one clause, no policy. QEMU: qcow2_do_open,
qcow2_read_extensions, qcow2_read_snapshots, bitmap_list_load.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from formats.luks.header import MAGIC as LUKS_MAGIC
from formats.qcow2 import limits
from formats.qcow2.bitmaps import Bitmap
from formats.qcow2.extensions import Extension, ExtensionType
from formats.qcow2.header import AUTOCLEAR, COMPRESSION_TYPES, INCOMPATIBLE, V2_LENGTH, V3_LENGTH, field
from formats.qcow2.snapshots import EXTRA_TOO_LARGE, TABLE_TOO_LARGE
from workbench.engine.faults import Fault, Refusal
from workbench.units import Geometry

if TYPE_CHECKING:
    from workbench.engine.metadata import Metadata

INT64_MAX = (1 << 63) - 1
INT32_MAX = (1 << 31) - 1


def find_faults(meta: Metadata) -> Iterator[Fault]:
    """Every fault, first the ones QEMU would meet first."""
    yield from _identity(meta)
    if meta.geometry is None:
        return
    yield from _features(meta)
    yield from _tables(meta, meta.geometry)
    yield from _extensions(meta, meta.geometry)
    yield from _data_file(meta)
    yield from _encryption(meta)
    yield from _backing(meta)
    yield from _snapshots(meta, meta.geometry)
    yield from _bitmaps(meta, meta.geometry)


def _identity(meta: Metadata) -> Iterator[Fault]:
    header = meta.header
    if meta.file_size == 0:
        yield Fault("FILE-EMPTY", "the file is empty", 0, 0, Refusal.ALWAYS)
        return
    if not meta.is_qcow2:
        missing = "not a qcow2 image: the magic 'QFI\\xfb' is missing"
        what = f"not a qcow2 image, but {meta.foreign.name}" if meta.foreign else missing
        yield Fault("HEADER-MAGIC", what, *field("magic"), Refusal.ALWAYS)
        return
    if meta.file_size < V2_LENGTH:
        yield Fault("HEADER-TRUNCATED", "the file ends inside the header", 0, meta.file_size, Refusal.ALWAYS)
    if header.version not in (2, 3):
        yield Fault(
            "HEADER-VERSION",
            f"not a qcow2 image, but {meta.foreign.name}"
            if meta.foreign
            else f"unsupported qcow2 version {header.version}",
            *field("version"),
            Refusal.ALWAYS,
            {"version": header.version},
        )
        return
    if not limits.MIN_CLUSTER_BITS <= header.cluster_bits <= limits.MAX_CLUSTER_BITS:
        yield Fault(
            "HEADER-CLUSTER-BITS",
            f"unsupported cluster size 2^{header.cluster_bits}",
            *field("cluster_bits"),
            Refusal.ALWAYS,
            {"cluster_bits": header.cluster_bits},
        )
        return
    if header.version == 3:
        if header.header_length < V3_LENGTH:
            yield Fault(
                "HEADER-LENGTH",
                f"header length {header.header_length} is too short",
                *field("header_length"),
                Refusal.ALWAYS,
            )
        elif header.header_length > header.cluster_size:
            yield Fault(
                "HEADER-LENGTH",
                f"header length {header.header_length} exceeds the cluster",
                *field("header_length"),
                Refusal.ALWAYS,
            )
        elif header.header_length % 8:
            yield Fault(
                "HEADER-LENGTH-UNALIGNED",
                f"header length {header.header_length} is no multiple of 8",
                *field("header_length"),
            )
        if meta.file_size < min(header.header_length, header.cluster_size):
            yield Fault("HEADER-TRUNCATED", "the file ends inside the header", 0, meta.file_size, Refusal.ALWAYS)
    if header.backing_file_offset > header.cluster_size:
        yield Fault(
            "BACKING-OFFSET",
            "backing file name lies outside the first cluster",
            *field("backing_file_offset"),
            Refusal.ALWAYS,
        )


def _features(meta: Metadata) -> Iterator[Fault]:
    header = meta.header
    unknown = INCOMPATIBLE["unknown"].mask & header.incompatible_features
    if unknown:
        names = {row.bit: row.name for row in meta.feature_names if row.kind == 0}
        bits = [bit for bit in range(64) if unknown >> bit & 1]
        shown = ", ".join(names.get(bit, f"bit {bit}") for bit in bits)
        yield Fault(
            "FEATURE-UNKNOWN",
            f"unsupported incompatible features: {shown}",
            *field("incompatible_features"),
            Refusal.ALWAYS,
            {"bits": shown},
        )
    if header.version >= 3:
        yield from _compression_type(meta)
    if header.has("extended_l2") and header.cluster_bits < limits.MIN_EXTENDED_L2_CLUSTER_BITS:
        yield Fault(
            "EXTENDED-L2-CLUSTER-SIZE",
            "extended L2 entries need clusters of 16 KiB or more",
            *field("cluster_bits"),
            Refusal.ALWAYS,
        )
    if header.refcount_order > limits.MAX_REFCOUNT_ORDER:
        yield Fault(
            "HEADER-REFCOUNT-ORDER",
            f"refcount width 2^{header.refcount_order} exceeds 64 bits",
            *field("refcount_order"),
            Refusal.ALWAYS,
        )
    if header.crypt_method > 2:
        yield Fault(
            "HEADER-CRYPT-METHOD",
            f"unknown encryption method {header.crypt_method}",
            *field("crypt_method"),
            Refusal.ALWAYS,
        )
    auto = AUTOCLEAR["unknown"].mask & header.autoclear_features
    if auto:
        yield Fault(
            "AUTOCLEAR-UNKNOWN",
            f"unknown autoclear feature bits {auto:#x}",
            *field("autoclear_features"),
            numbers={"bits": hex(auto)},
        )
    if header.has("dirty"):
        yield Fault(
            "IMAGE-DIRTY", "the dirty bit is set: refcounts may be out of date", *field("incompatible_features")
        )
    if header.has("corrupt"):
        yield Fault(
            "IMAGE-CORRUPT-BIT",
            "the corrupt bit is set: the image was found damaged and must not be written",
            *field("incompatible_features"),
        )


def _compression_type(meta: Metadata) -> Iterator[Fault]:
    header = meta.header
    flagged = header.has("compression_type")
    if header.compression_type not in COMPRESSION_TYPES:
        yield Fault(
            "COMPRESSION-TYPE",
            f"unknown compression type {header.compression_type}",
            *field("compression_type"),
            Refusal.ALWAYS,
        )
    elif flagged and header.compression_type == 0:
        yield Fault(
            "COMPRESSION-TYPE",
            "compression type bit set for zlib, where it must not be",
            *field("incompatible_features"),
            Refusal.ALWAYS,
        )
    elif not flagged and header.compression_type != 0:
        yield Fault(
            "COMPRESSION-TYPE",
            "compression type is not zlib but its feature bit is missing",
            *field("incompatible_features"),
            Refusal.ALWAYS,
        )


def _table(
    name: str, code: str, offset: int, size: int, limit: int, cluster: int, place: tuple[int, int], refusal: Refusal
) -> Iterator[Fault]:
    """QEMU: qcow2_validate_table."""
    numbers: dict[str, int | str] = {"offset": offset, "size": size, "limit": limit}
    if size > limit:
        yield Fault(
            f"{code}-TOO-LARGE", f"{name} of {size} bytes exceeds the limit of {limit}", *place, refusal, numbers
        )
    if offset % cluster:
        yield Fault(f"{code}-UNALIGNED", f"{name} offset {offset:#x} is not cluster aligned", *place, refusal, numbers)
    elif offset + size > (limits.MAX_OFFSET if size else INT64_MAX):
        what = f"the {name} cannot be read: its offset {offset:#x} is beyond any file"
        yield Fault(f"{code}-OFFSET", what, *place, refusal, numbers)


def _tables(meta: Metadata, geometry: Geometry) -> Iterator[Fault]:
    header, cluster = meta.header, geometry.cluster_size
    if header.refcount_table_clusters == 0:
        yield Fault(
            "REFTABLE-MISSING",
            "the image has no refcount table (refcount_table_clusters is 0)",
            *field("refcount_table_clusters"),
            Refusal.OPEN,
        )
    yield from _table(
        "refcount table",
        "REFTABLE",
        header.refcount_table_offset,
        header.refcount_table_clusters * cluster,
        limits.MAX_REFCOUNT_TABLE_SIZE,
        cluster,
        field("refcount_table_offset", "refcount_table_clusters"),
        Refusal.ALWAYS,
    )
    if header.nb_snapshots > limits.MAX_SNAPSHOTS:
        yield Fault(
            "SNAPSHOTS-TOO-MANY",
            f"{header.nb_snapshots} snapshots exceed the limit of {limits.MAX_SNAPSHOTS}",
            *field("nb_snapshots"),
            Refusal.ALWAYS,
        )
    else:
        yield from _table(
            "snapshot table",
            "SNAPSHOT-TABLE",
            header.snapshots_offset,
            header.nb_snapshots * 40,
            limits.MAX_SNAPSHOT_TABLE_SIZE,
            cluster,
            field("nb_snapshots", "snapshots_offset"),
            Refusal.ALWAYS,
        )
    yield from _table(
        "active L1 table",
        "L1-TABLE",
        header.l1_table_offset,
        header.l1_size * 8,
        limits.MAX_L1_SIZE,
        cluster,
        field("l1_size", "l1_table_offset"),
        Refusal.ALWAYS,
    )
    yield from _past_the_end(meta)
    needed = geometry.l1_entries_for(header.size)
    if needed > INT32_MAX or header.size > INT64_MAX:
        yield Fault(
            "HEADER-SIZE",
            f"virtual size {header.size} is too big for this cluster size",
            *field("size"),
            Refusal.ALWAYS,
        )
    elif header.l1_size < needed:
        yield Fault(
            "L1-TABLE-TOO-SMALL",
            f"the L1 table has {header.l1_size} entries but the virtual size needs {needed}",
            *field("l1_size"),
            Refusal.ALWAYS,
            {"entries": header.l1_size, "needed": needed},
        )


def _past_the_end(meta: Metadata) -> Iterator[Fault]:
    """Tables that the header puts where the file has no bytes. QEMU opens such an image and reads zeros."""
    for name, region, pointer in (
        ("active L1 table", meta.l1_region, "l1_table_offset"),
        ("refcount table", meta.refcount_table_said, "refcount_table_offset"),
    ):
        if region.length and meta.file_size <= region.offset and region.end <= limits.MAX_OFFSET:
            what = f"the {name} at {region.offset:#x} lies past the end of the file at {meta.file_size:#x}"
            yield Fault("REGION-BEYOND-EOF", what, *field(pointer), numbers={"owner": name})


def _extensions(meta: Metadata, geometry: Geometry) -> Iterator[Fault]:
    area = meta.area
    if area.overrun:
        offset, kind, length = area.overrun
        yield Fault(
            "EXTENSION-OVERRUN",
            f"header extension too large: type {kind:#010x} with {length} bytes leaves the room for extensions",
            offset,
            8,
            Refusal.ALWAYS,
            {"type": f"{kind:#010x}", "length": length},
        )
    seen: set[int] = set()
    for each in area.extensions:
        if each.type in seen:
            yield Fault(
                "EXTENSION-DUPLICATE",
                f"second header extension of type {each.name!r}",
                each.offset,
                each.end - each.offset,
            )
        seen.add(each.type)
        yield from _one_extension(meta, geometry, each)
    if meta.header.has("bitmaps") and ExtensionType.BITMAPS not in seen:
        yield Fault(
            "BITMAPS-BIT-WITHOUT-EXTENSION",
            "the bitmaps autoclear bit is set but there is no bitmaps extension",
            *field("autoclear_features"),
        )


def _one_extension(meta: Metadata, geometry: Geometry, each: Extension) -> Iterator[Fault]:
    where = (each.offset, each.end - each.offset)
    if each.type == ExtensionType.BACKING_FORMAT and len(each.data) >= 16:
        what = f"backing format name of {len(each.data)} bytes exceeds the limit of 15"
        yield Fault("BACKING-FORMAT-TOO-LONG", what, *where, Refusal.ALWAYS)
    elif each.type == ExtensionType.ENCRYPTION:
        if meta.header.crypt_method != 2:
            yield Fault(
                "ENCRYPTION-UNEXPECTED",
                "encryption extension on an image that is not LUKS encrypted",
                *where,
                Refusal.ALWAYS,
            )
        elif len(each.data) != 16:
            yield Fault(
                "ENCRYPTION-EXTENSION",
                f"encryption extension of {len(each.data)} bytes, expected 16",
                *where,
                Refusal.ALWAYS,
            )
    elif each.type == ExtensionType.BITMAPS:
        yield from _bitmaps_extension(meta, geometry, each)
    elif each.type == ExtensionType.DATA_FILE and not meta.header.has("data_file"):
        yield Fault("DATA-FILE-UNEXPECTED", "data file name extension but no external data file bit", *where)


def _bitmaps_extension(meta: Metadata, geometry: Geometry, each: Extension) -> Iterator[Fault]:
    where = (each.offset, each.end - each.offset)
    if len(each.data) != 24:
        yield Fault(
            "BITMAPS-EXTENSION", f"bitmaps extension of {len(each.data)} bytes, expected 24", *where, Refusal.ALWAYS
        )
        return
    if not meta.header.has("bitmaps"):
        yield Fault(
            "BITMAPS-NOT-TRUSTED", "bitmaps extension without its autoclear bit: bitmaps are out of date", *where
        )
        return
    record = meta.bitmaps_extension
    if record is None:
        return
    if record.reserved:
        yield Fault("BITMAPS-EXTENSION", "reserved field of the bitmaps extension is not zero", *where, Refusal.ALWAYS)
    if record.nb_bitmaps == 0 or record.nb_bitmaps > limits.MAX_BITMAPS:
        what = f"{record.nb_bitmaps} bitmaps are not 1 to {limits.MAX_BITMAPS}, the limit"
        yield Fault("BITMAPS-EXTENSION", what, *where, Refusal.ALWAYS)
    if record.directory_offset % geometry.cluster_size:
        yield Fault(
            "BITMAP-DIRECTORY-UNALIGNED",
            f"bitmap directory offset {record.directory_offset:#x} is not aligned",
            *where,
            Refusal.ALWAYS,
        )
    if not 0 < record.directory_size <= limits.MAX_BITMAP_DIRECTORY_SIZE:
        what = (
            f"bitmap directory of {record.directory_size} bytes, not 1 to {limits.MAX_BITMAP_DIRECTORY_SIZE}, the limit"
        )
        yield Fault("BITMAP-DIRECTORY-SIZE", what, *where, Refusal.ALWAYS)


def _data_file(meta: Metadata) -> Iterator[Fault]:
    header = meta.header
    if header.has("data_file") and meta.data_file_name is None:
        yield Fault(
            "DATA-FILE-UNNAMED",
            "external data file bit but no name of the file in the header",
            *field("incompatible_features"),
            Refusal.ALWAYS,
        )
    if header.has("data_file_raw") and not header.has("data_file"):
        yield Fault(
            "DATA-FILE-RAW-BIT",
            "raw data file bit without the external data file bit",
            *field("autoclear_features"),
            Refusal.ALWAYS,
        )
    if header.has("data_file_raw") and header.backing_file_offset:
        yield Fault(
            "DATA-FILE-RAW-BACKING", "raw external data file together with a backing file", *field("autoclear_features")
        )


def _encryption(meta: Metadata) -> Iterator[Fault]:
    if meta.header.crypt_method != 2:
        return
    pointer = meta.encryption
    if pointer is None:
        yield Fault(
            "ENCRYPTION-MISSING",
            "LUKS image without its encryption extension: the keys cannot be found",
            *field("crypt_method"),
            Refusal.ALWAYS,
        )
        return
    where = meta.extension(ExtensionType.ENCRYPTION)
    assert where is not None
    place = (where.offset, where.end - where.offset)
    if pointer.offset % meta.header.cluster_size:
        yield Fault(
            "LUKS-UNALIGNED", f"LUKS header offset {pointer.offset:#x} is not cluster aligned", *place, Refusal.ALWAYS
        )
    if pointer.offset >= meta.file_size:
        yield Fault(
            "LUKS-BEYOND-EOF",
            f"LUKS header at {pointer.offset:#x} is beyond the end of the file",
            *place,
            Refusal.ALWAYS,
        )
    elif pointer.offset + pointer.length > meta.file_size + meta.header.cluster_size:
        yield Fault("LUKS-LENGTH", f"LUKS header length {pointer.length} reaches beyond the end of the file", *place)
    luks = meta.luks
    if luks is not None and luks.magic != LUKS_MAGIC:
        yield Fault("LUKS-MAGIC", f"no LUKS1 header at {pointer.offset:#x}", pointer.offset, 8, Refusal.ALWAYS)


def _backing(meta: Metadata) -> Iterator[Fault]:
    header = meta.header
    if not header.backing_file_offset:
        if meta.backing_format is not None:
            yield Fault(
                "BACKING-FORMAT-UNUSED", "backing format recorded but no backing file", *field("backing_file_offset")
            )
        return
    room = min(limits.MAX_BACKING_NAME, header.cluster_size - header.backing_file_offset)
    if header.backing_file_size > room:
        what = f"backing file name of {header.backing_file_size} bytes exceeds the limit of {room}"
        yield Fault("BACKING-NAME-TOO-LONG", what, *field("backing_file_size"), Refusal.ALWAYS)
    elif meta.backing_name and not meta.backing_format:
        yield Fault(
            "BACKING-FORMAT-MISSING",
            "the backing file's format is not recorded: it would be guessed",
            *field("backing_file_offset", "backing_file_size"),
        )


def _snapshots(meta: Metadata, geometry: Geometry) -> Iterator[Fault]:
    header = meta.header
    if not header.nb_snapshots or header.nb_snapshots > limits.MAX_SNAPSHOTS:
        return
    table = meta.snapshot_table
    if table.broken:
        index, offset, reason = table.broken
        code, refusal = ("SNAPSHOT-UNREADABLE", Refusal.OPEN)
        if reason == EXTRA_TOO_LARGE:
            code, refusal = ("SNAPSHOT-EXTRA-TOO-LARGE", Refusal.ALWAYS)
        elif reason == TABLE_TOO_LARGE:
            code, refusal = ("SNAPSHOT-TABLE-TOO-LARGE", Refusal.ALWAYS)
        yield Fault(code, f"snapshot table entry {index}: {reason}", offset, 40, refusal, {"index": index, "name": ""})
    seen: set[str] = set()
    for index, each in enumerate(table.snapshots):
        place = (each.offset, len(each.raw))
        numbers: dict[str, int | str] = {"index": index, "name": each.name}
        if each.extra_data_size > limits.MAX_SNAPSHOT_EXTRA_DATA:
            what = f"snapshot {index} has {each.extra_data_size} bytes of extra data, more than {limits.MAX_SNAPSHOT_EXTRA_DATA}"
            yield Fault("SNAPSHOT-EXTRA-TOO-LARGE", what, *place, Refusal.ALWAYS, numbers)
        elif header.version >= 3 and each.extra_data_size < limits.MIN_SNAPSHOT_EXTRA_DATA_V3:
            what = f"snapshot {index} has {each.extra_data_size} bytes of extra data, fewer than 16"
            yield Fault("SNAPSHOT-EXTRA-TOO-SMALL", what, *place, Refusal.OPEN, numbers)
        if each.l1_table_offset % geometry.cluster_size:
            what = f"snapshot {index}: L1 table offset {each.l1_table_offset:#x} is not cluster aligned"
            yield Fault("SNAPSHOT-L1-UNALIGNED", what, each.offset, 8, Refusal.NONE, numbers)
        elif each.l1_table_offset + each.l1_size * 8 > INT64_MAX:
            yield Fault(
                "SNAPSHOT-L1-OFFSET",
                f"snapshot {index}: L1 table beyond any file",
                each.offset,
                8,
                Refusal.NONE,
                numbers,
            )
        if each.l1_size * 8 > limits.MAX_L1_SIZE:
            yield Fault(
                "SNAPSHOT-L1-TOO-LARGE",
                f"snapshot {index}: L1 table of {each.l1_size} entries exceeds the limit of {limits.MAX_L1_SIZE // 8}",
                each.offset + 8,
                4,
                Refusal.NONE,
                numbers,
            )
        disk = each.disk_size if each.disk_size is not None else header.size
        if geometry.l1_entries_for(disk) > each.l1_size:
            what = f"snapshot {index}: disk size {disk} needs more than its {each.l1_size} L1 entries"
            yield Fault("SNAPSHOT-DISK-SIZE", what, *place, Refusal.NONE, numbers)
        if each.id in seen:
            yield Fault(
                "SNAPSHOT-DUPLICATE-ID",
                f"snapshot {index} repeats the ID {each.id[:32]!r}",
                *place,
                Refusal.NONE,
                numbers,
            )
        seen.add(each.id)


def _bitmaps(meta: Metadata, geometry: Geometry) -> Iterator[Fault]:
    extension = meta.bitmaps_extension
    if extension is None or not meta.header.has("bitmaps"):
        return
    directory = meta.bitmap_directory
    if directory.broken:
        index, offset, reason = directory.broken
        yield Fault(
            "BITMAP-UNREADABLE",
            f"bitmap directory entry {index}: {reason}",
            offset,
            24,
            Refusal.ALWAYS,
            {"index": index},
        )
    elif directory.end != extension.directory_offset + extension.directory_size:
        yield Fault(
            "BITMAP-DIRECTORY-SIZE",
            f"bitmap directory has {extension.directory_size} bytes, its entries take {directory.end - extension.directory_offset}",
            extension.directory_offset,
            min(extension.directory_size, 1 << 20),
            Refusal.ALWAYS,
        )
    seen: set[str] = set()
    for index, each in enumerate(directory.bitmaps):
        yield from _one_bitmap(meta, geometry, index, each)
        if each.name in seen:
            yield Fault(
                "BITMAP-DUPLICATE-NAME",
                f"bitmap {index} repeats the name {each.name[:64]!r}",
                each.offset,
                len(each.raw),
                Refusal.ALWAYS,
            )
        seen.add(each.name)


def _one_bitmap(meta: Metadata, geometry: Geometry, index: int, each: Bitmap) -> Iterator[Fault]:
    """QEMU: check_dir_entry and check_constraints_on_bitmap."""
    place = (each.offset, len(each.raw))
    numbers: dict[str, int | str] = {"index": index, "name": each.name}
    name_size = len(each.name.encode("utf-8", "surrogateescape"))

    def fault(code: str, what: str, refusal: Refusal = Refusal.ALWAYS) -> Fault:
        return Fault(code, f"bitmap {index}: {what}", *place, refusal, numbers)

    if each.table_size == 0 or each.table_size > limits.MAX_BITMAP_TABLE_ENTRIES:
        most = limits.MAX_BITMAP_TABLE_ENTRIES
        yield fault("BITMAP-TABLE-SIZE", f"table of {each.table_size} entries, not 1 to {most}, the limit")
    if each.table_offset == 0 or each.table_offset % geometry.cluster_size:
        yield fault("BITMAP-TABLE-UNALIGNED", f"table offset {each.table_offset:#x} is not a cluster of the file")
    if not 0 < name_size <= limits.MAX_BITMAP_NAME:
        yield fault("BITMAP-NAME", f"name of {name_size} bytes, not 1 to {limits.MAX_BITMAP_NAME}")
    if each.flags & 0xFFFFFFF8:
        yield fault("BITMAP-FLAGS", f"reserved flags {each.flags & 0xFFFFFFF8:#x} are set")
    if each.type != 1:
        yield fault("BITMAP-TYPE", f"unknown type {each.type}")
    if not limits.MIN_BITMAP_GRANULARITY_BITS <= each.granularity_bits <= limits.MAX_BITMAP_GRANULARITY_BITS:
        yield fault("BITMAP-GRANULARITY", f"granularity 2^{each.granularity_bits} is not in 2^9..2^31")
    elif each.table_size and not each.in_use:
        needed = geometry.clusters(each.data_size(meta.header.size))
        if needed != each.table_size:
            yield fault("BITMAP-TABLE-SIZE", f"table of {each.table_size} entries, the disk needs {needed}")
    if each.extra_data:
        yield fault("BITMAP-EXTRA-DATA", f"{len(each.extra_data)} bytes of extra data that no one understands")
    if each.in_use:
        yield fault("BITMAP-IN-USE", "in use: was not saved properly, its content may be out of date", Refusal.NONE)
