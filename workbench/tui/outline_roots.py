"""The top level of the structure tree: what the header of an image points at, with the marks of its faults."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import cached_property
from typing import Final

from formats.qcow2 import limits
from formats.qcow2.entries import block_of
from formats.qcow2.extensions import ExtensionType
from formats.qcow2.header import V2_LENGTH, field
from formats.qcow2.refcounts import last_counted
from workbench.engine.faults import Fault
from workbench.engine.metadata import Metadata
from workbench.render.sizes import count
from workbench.render.text import printable
from workbench.teach import facts_of
from workbench.tui.layers import Layer
from workbench.tui.outline_items import FEATURE_BYTES, Item, Kind
from workbench.units import Geometry, format_size

TAIL_BLOCKS: Final = 64
"""Refcount blocks looked at, from the last one backwards, for the last used cluster of the file."""


class OutlineRoots:
    """The roots of one image's tree; `OutlineParts` has what is below them."""

    def __init__(self, meta: Metadata) -> None:
        self.meta = meta
        self.geometry: Geometry | None = meta.geometry
        self.faults: tuple[Fault, ...] = meta.faults
        self.layers: list[Layer] = []
        """The backing chain below the image, as far as it was looked at."""

    @cached_property
    def facts(self) -> Mapping[str, object]:
        """The image's numbers, for explanations."""
        return facts_of(self.meta)

    # The top level

    def roots(self) -> list[Item]:
        """The nodes of the top level, in the order in which one would read a file."""
        meta = self.meta
        items = [self._file()]
        if not meta.is_qcow2:
            return items
        header = meta.header
        items.append(
            self._marked(Item("header", "Header", Kind.HEADER, 0, self._header_length(), f"version {header.version}"))
        )
        if self.geometry is None:
            return items
        items += self._head_items()
        items.append(Item("disk", "Virtual disk", Kind.DISK, 0, 0, format_size(header.size)))
        items.append(self._l1_item("l1", "L1 table", header.l1_table_offset, header.l1_size, ("L1-", "HEADER-L1")))
        if header.nb_snapshots:
            items.append(self._snapshots())
        items.append(self._refcount_table())
        if meta.bitmaps_extension is not None:
            items.append(self._bitmaps())
        if meta.encryption is not None:
            items.append(self._luks())
        items.append(self._tail())
        return items

    def _file(self) -> Item:
        return Item("file", "File", Kind.FILE, 0, self.meta.file_size, format_size(self.meta.file_size))

    def _header_length(self) -> int:
        return min(max(self.meta.header_length, V2_LENGTH), len(self.meta.head))

    def _head_items(self) -> Iterator[Item]:
        meta = self.meta
        area = meta.area
        start, size = FEATURE_BYTES
        if meta.header.version >= 3 and len(meta.head) >= start + size:
            note = ", ".join(meta.header.features()) or "none set"
            yield self._marked(Item("features", "Feature bits", Kind.FEATURES, start, size, note))
        if area.extensions or area.overrun or area.ended:
            start = self._header_length()
            note = f"{len(area.extensions)}"
            yield self._marked(
                Item(
                    "extensions",
                    "Header extensions",
                    Kind.EXTENSIONS,
                    start,
                    max(0, area.end - start),
                    note,
                    branch=True,
                ),
                children=True,
            )
        if meta.header.backing_file_offset:
            name = meta.backing_name
            yield self._marked(
                Item(
                    "backing-name", "Backing file", Kind.BACKING, meta.header.backing_file_offset, min(meta.header.backing_file_size, limits.MAX_BACKING_NAME),
                    printable(name) if name else "name unreadable", "" if name else "bad", "" if name else "the name lies outside the first cluster",
                    branch=bool(name),
                )
            )  # fmt: skip
        if meta.header.has("data_file"):
            found = meta.extension(ExtensionType.DATA_FILE)
            yield Item(
                "data-file", "External data file", Kind.DATA_FILE, found.offset if found else field("incompatible_features")[0], found.end - found.offset if found else field("incompatible_features")[1],
                printable(meta.data_file_name or "not named"), "" if found else "bad", "" if found else "the header does not name it",
            )  # fmt: skip
        end = max(area.end, self._header_length(), meta.header.backing_file_offset + meta.header.backing_file_size)
        if end < len(meta.head):
            rest = meta.head[end:]
            yield Item(
                "unused", "Unused header", Kind.UNUSED, end, len(rest), "zeros" if not any(rest) else "not empty"
            )

    def _l1_item(self, key: str, label: str, offset: int, entries: int, codes: tuple[str, ...] = ()) -> Item:
        size = min(entries * 8, limits.MAX_L1_SIZE)
        length = max(0, min(size, self.meta.file_size - offset))
        item = Item(key, label, Kind.L1, offset, length, count(entries, "entry"), branch=length > 0)
        geometry = self.geometry
        if geometry and offset % geometry.cluster_size:
            item = replace(item, mark="bad", why=f"its offset {offset:#x} is not cluster aligned")
        elif length < entries * 8:
            item = replace(item, mark="bad", why="it reaches past the end of the file")
        return self._marked(item, codes=codes)

    def _refcount_table(self) -> Item:
        region = self.meta.refcount_table_region
        length = max(0, min(region.length, limits.MAX_REFCOUNT_TABLE_SIZE, self.meta.file_size - region.offset))
        item = Item(
            "refcount-table",
            "Refcount table",
            Kind.REFCOUNT_TABLE,
            region.offset,
            length,
            count(length // 8, "entry"),
            branch=length > 0,
        )
        geometry = self.geometry
        if geometry and region.offset % geometry.cluster_size:
            item = replace(item, mark="bad", why=f"its offset {region.offset:#x} is not cluster aligned")
        elif length < region.length:
            item = replace(item, mark="bad", why="it reaches past the end of the file")
        return self._marked(item, codes=("REFTABLE",))

    def _snapshots(self) -> Item:
        table = self.meta.snapshot_table
        item = Item(
            "snapshots", "Snapshots", Kind.SNAPSHOTS, self.meta.header.snapshots_offset, max(0, table.end - self.meta.header.snapshots_offset),
            f"{self.meta.header.nb_snapshots:,}", branch=bool(table.snapshots),
        )  # fmt: skip
        if table.broken:
            item = replace(item, mark="bad", why=f"entry {table.broken[0]}: {table.broken[2]}")
        return self._marked(item, codes=("SNAPSHOT",))

    def _bitmaps(self) -> Item:
        extension, directory = self.meta.bitmaps_extension, self.meta.bitmap_directory
        assert extension is not None
        length = max(
            0,
            min(
                extension.directory_size,
                self.meta.file_size - extension.directory_offset,
                limits.MAX_BITMAP_DIRECTORY_SIZE,
            ),
        )
        item = Item(
            "bitmaps",
            "Bitmaps",
            Kind.BITMAPS,
            extension.directory_offset,
            length,
            f"{extension.nb_bitmaps:,}",
            branch=bool(directory.bitmaps),
        )
        if directory.broken:
            item = replace(item, mark="bad", why=f"entry {directory.broken[0]}: {directory.broken[2]}")
        return self._marked(item, codes=("BITMAP",))

    def _luks(self) -> Item:
        pointer = self.meta.encryption
        assert pointer is not None
        luks = self.meta.luks
        length = max(0, min(pointer.length, self.meta.file_size - pointer.offset))
        note = luks.cipher_name + "-" + luks.cipher_mode if luks and luks.valid else "no LUKS header there"
        good = luks is not None and luks.valid
        item = Item(
            "luks", "Encryption header", Kind.LUKS, pointer.offset, length, printable(note), "" if good else "bad",
            "" if good else "no LUKS1 header at its offset", branch=good,
        )  # fmt: skip
        return self._marked(item, codes=("LUKS", "ENCRYPTION"))

    def _tail(self) -> Item:
        """The end of the file: what lies behind the last cluster that is counted as used, else the last cluster."""
        meta, geometry = self.meta, self.geometry
        assert geometry is not None
        size = geometry.cluster_size
        used = self._counted_end
        if used is not None and used < meta.file_size:
            length = meta.file_size - used
            return Item("tail", "File tail", Kind.TAIL, used, length, f"{format_size(length)}, not counted as used")
        last = meta.file_size % size or min(size, meta.file_size)
        note = format_size(last) + (", a whole cluster" if last == size else ", part of a cluster")
        return Item("tail", "File tail", Kind.TAIL, meta.file_size - last, last, note)

    @cached_property
    def _counted_end(self) -> int | None:
        """Host offset behind the last cluster of the file with a refcount; None when the blocks looked at count none."""
        meta, geometry = self.meta, self.geometry
        assert geometry is not None
        clusters, per_block = geometry.clusters(meta.file_size), geometry.refcount_block_entries
        region = meta.refcount_table_region
        length = min(region.length, limits.MAX_REFCOUNT_TABLE_SIZE, -(-clusters // per_block) * 8)
        table = meta.read_bytes(region.offset, length)
        for _ in range(TAIL_BLOCKS):
            table = table.rstrip(b"\0")
            number = (len(table) - 1) // 8
            if number < 0:
                break
            entry = int.from_bytes(table[number * 8 :].ljust(8, b"\0"), "big")
            offset = block_of(entry)
            block = meta.read_bytes(offset, geometry.cluster_size) if offset else b""
            last = last_counted(block, geometry.refcount_order, clusters - number * per_block)
            if last is not None:
                return (number * per_block + last + 1) * geometry.cluster_size
            table = table[: number * 8]
        return None

    # Marks

    def _marked(self, item: Item, *, codes: tuple[str, ...] = (), children: bool = False) -> Item:
        """The item with the first fault that concerns its bytes (or has one of the codes)."""
        if item.mark == "bad":
            return item
        for fault in self.faults:
            inside = item.length and item.offset <= fault.offset < item.end
            if (inside and item.kind is not Kind.FILE) or any(fault.code.startswith(code) for code in codes):
                return replace(item, mark="bad" if fault.refusal else "warn", why=fault.what)
        return item
