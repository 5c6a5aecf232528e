"""What is below the roots of the structure tree: children, fields and entries, found on demand from bounded table reads.

More than 64 siblings are put in groups.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from formats.annotate import Node, NodeKind
from formats.luks.header import HEADER_SIZE as LUKS_SIZE
from formats.luks.header import SLOT_ACTIVE
from formats.qcow2 import limits
from formats.qcow2.entries import block_of, offset_of
from workbench.engine import tables
from workbench.engine.metadata import Region
from workbench.engine.structures import Structure
from workbench.engine.tables import Table
from workbench.render.sizes import count
from workbench.render.text import printable
from workbench.tui.outline_items import GROUP, PARTS, Item, Kind, share_words
from workbench.tui.outline_roots import OutlineRoots
from workbench.units import format_size

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


def _used(offsets: NDArray[np.uint64]) -> list[int]:
    """Indices of the entries that point somewhere."""
    import numpy as np

    found: list[int] = np.flatnonzero(offsets).tolist()
    return found


def _slices(low: int, high: int) -> list[tuple[int, int]]:
    """low..high in at most 64 slices of a power of 64 each."""
    step = GROUP
    while high - low > step * GROUP:
        step *= GROUP
    return [(start, min(start + step, high)) for start in range(low, high, step)]


class OutlineParts(OutlineRoots):
    """The tree of one image. Methods that read (children, annotation) belong in a worker."""

    def children(self, item: Item) -> list[Item]:
        """What is below an item; reads at most one table and a cluster per L2 table shown."""
        meta, key = self.meta, item.key
        makers: dict[Kind, Callable[[], list[Item]]] = {
            Kind.GROUP: lambda: self._group_children(key),
            Kind.EXTENSIONS: lambda: [
                self._extension(index) for index in range(len(meta.extensions) + meta.area.ended)
            ],
            Kind.L1: lambda: self._grouped(key, self._l1_indices(key)),
            Kind.REFCOUNT_TABLE: lambda: self._grouped(key, self._block_indices()),
            Kind.SNAPSHOTS: lambda: self._many(key, len(meta.snapshots), self._snapshot),
            Kind.SNAPSHOT: lambda: [self._snapshot_l1(item.index)],
            Kind.BITMAPS: lambda: self._many(key, len(meta.bitmap_directory.bitmaps), self._bitmap),
            Kind.BITMAP: lambda: [self._bitmap_table(item.index)],
            Kind.LUKS: lambda: [self._slot(index) for index in range(8)],
            Kind.BACKING: lambda: [self._layer(1)] if self.layers else [],
            Kind.LAYER: lambda: [self._layer(item.index + 1)] if len(self.layers) > item.index else [],
        }
        return makers[item.kind]() if item.kind in makers else []

    def _layer(self, number: int) -> Item:
        """Layer `number` of the backing chain, 1 the first below the image; its bytes here are those that name it."""
        layer, header = self.layers[max(1, number) - 1], self.meta.header
        note = layer.format + (f", {format_size(layer.size)}" if not layer.problem else "")
        return Item(
            f"layer:{number}", printable(os.path.basename(layer.path))[:40], Kind.LAYER,
            header.backing_file_offset if number == 1 else 0, min(header.backing_file_size, limits.MAX_BACKING_NAME) if number == 1 else 0, note,
            "bad" if layer.problem else "", layer.problem, branch=bool(layer.backing_name), index=number,
        )  # fmt: skip

    def _extension(self, index: int) -> Item:
        if index == len(self.meta.extensions) and self.meta.area.ended:
            return Item(
                f"extension:{index}", "End of extensions", Kind.EXTENSION, self.meta.area.end - 8, 8, index=index
            )
        each = self.meta.extensions[index]
        item = Item(
            f"extension:{index}",
            each.name.capitalize(),
            Kind.EXTENSION,
            each.offset,
            each.end - each.offset,
            f"{len(each.data)} B",
            index=index,
        )
        return self._marked(item)

    def _snapshot(self, index: int) -> Item:
        each = self.meta.snapshots[index]
        name = printable(each.name)
        size = format_size(each.disk_size) if each.disk_size is not None else ""
        item = Item(
            f"snapshot:{index}",
            f"{index} {name[:40]}",
            Kind.SNAPSHOT,
            each.offset,
            len(each.raw),
            size,
            branch=True,
            index=index,
        )
        return self._marked(item)

    def _snapshot_l1(self, index: int) -> Item:
        each = self.meta.snapshots[index]
        return self._l1_item(f"snapshot:{index}/l1", "L1 table", each.l1_table_offset, each.l1_size)

    def _bitmap(self, index: int) -> Item:
        each = self.meta.bitmap_directory.bitmaps[index]
        item = Item(
            f"bitmap:{index}",
            f"{index} {printable(each.name)[:40]}",
            Kind.BITMAP,
            each.offset,
            len(each.raw),
            branch=True,
            index=index,
        )
        return self._marked(item)

    def _bitmap_table(self, index: int) -> Item:
        each = self.meta.bitmap_directory.bitmaps[index]
        length = max(
            0, min(each.table_size * 8, self.meta.file_size - each.table_offset, limits.MAX_BITMAP_TABLE_ENTRIES * 8)
        )
        item = Item(
            f"bitmap-table:{index}",
            "Bitmap table",
            Kind.BITMAP_TABLE,
            each.table_offset,
            length,
            count(each.table_size, "entry"),
            index=index,
        )
        return (
            replace(item, mark="bad", why="it reaches past the end of the file")
            if length < each.table_size * 8
            else item
        )

    def _slot(self, index: int) -> Item:
        assert self.meta.encryption is not None and self.meta.luks is not None
        state = self.meta.luks.key_slots[index].state
        note = "active" if state == SLOT_ACTIVE else "inactive" if state == 0xDEAD else f"state {state:#x}?"
        mark = "" if state in (SLOT_ACTIVE, 0xDEAD) else "bad"
        offset = self.meta.encryption.offset + 208 + 48 * index
        return Item(
            f"slot:{index}",
            f"Key slot {index}",
            Kind.KEY_SLOT,
            offset,
            48,
            note,
            mark,
            "neither active nor inactive" if mark else "",
            index=index,
        )

    # Tables of pointers

    def _l1_words(self, key: str) -> NDArray[np.uint64]:
        if key.startswith("snapshot:"):
            return self.meta.snapshot_l1(self.meta.snapshots[int(key[9:].split("/", maxsplit=1)[0])])
        return self.meta.l1

    def _l1_indices(self, key: str) -> list[int]:
        return _used(offset_of(self._l1_words(key)))

    def _block_indices(self) -> list[int]:
        return _used(block_of(self.meta.refcount_table))

    def _grouped(self, key: str, indices: list[int], low: int = 0, high: int | None = None) -> list[Item]:
        """Items for positions low..high of `indices`, in groups of powers of 64 when there are more than 64."""
        high = len(indices) if high is None else high
        if high - low <= GROUP:
            return [self._pointed(key, index) for index in indices[low:high]]
        return [self._table_group(key, indices, start, stop) for start, stop in _slices(low, high)]

    def _table_group(self, key: str, indices: list[int], low: int, high: int) -> Item:
        """Positions low..high of `indices` as one item; its bytes are the slice of the table that points to them."""
        first, last = indices[low], indices[high - 1]
        owner = self._find_table(key)
        geometry = self.geometry
        assert geometry is not None
        reach = geometry.refcount_block_coverage if key == "refcount-table" else geometry.l2_coverage
        short = "Block" if key == "refcount-table" else "L2"
        return Item(
            f"{key}#{low}-{high}", f"{short}[{first}…{last}]", Kind.GROUP, owner.offset + first * 8, (last - first + 1) * 8,
            f"from {format_size(first * reach)}", branch=True,
        )  # fmt: skip

    def _find_table(self, key: str) -> Item:
        if key == "refcount-table":
            return self._refcount_table()
        if key.startswith("snapshot:"):
            return self._snapshot_l1(int(key[9:].split("/", maxsplit=1)[0]))
        return self._l1_item("l1", "L1 table", self.meta.header.l1_table_offset, self.meta.header.l1_size)

    def _many(
        self, key: str, number: int, make: Callable[[int], Item], low: int = 0, high: int | None = None
    ) -> list[Item]:
        high = number if high is None else high
        if high - low <= GROUP:
            return [make(index) for index in range(low, high)]
        return [self._record_group(key, make, start, stop) for start, stop in _slices(low, high)]

    @staticmethod
    def _record_group(key: str, make: Callable[[int], Item], low: int, high: int) -> Item:
        """Records low..high (snapshots, bitmaps) as one item, from the first one's bytes to the last one's."""
        start = make(low).offset
        return Item(
            f"{key}#{low}-{high}",
            f"{low}…{high - 1}",
            Kind.GROUP,
            start,
            max(0, make(high - 1).end - start),
            branch=True,
        )

    def group(self, key: str) -> Item:
        """The group with that key (`l1#0-64`). ValueError, IndexError when there is no such group."""
        base, _, span = key.partition("#")
        low, high = (int(part) for part in span.split("-"))
        if base in ("snapshots", "bitmaps"):
            return self._record_group(base, self._snapshot if base == "snapshots" else self._bitmap, low, high)
        indices = self._block_indices() if base == "refcount-table" else self._l1_indices(base)
        return self._table_group(base, indices, low, high)

    def _group_children(self, key: str) -> list[Item]:
        base, _, span = key.partition("#")
        low, high = (int(part) for part in span.split("-"))
        if base == "snapshots":
            return self._many(base, len(self.meta.snapshots), self._snapshot, low, high)
        if base == "bitmaps":
            return self._many(base, len(self.meta.bitmap_directory.bitmaps), self._bitmap, low, high)
        if base == "refcount-table":
            return self._grouped(base, self._block_indices(), low, high)
        return self._grouped(base, self._l1_indices(base), low, high)

    def _pointed(self, key: str, index: int) -> Item:
        """The L2 table or refcount block that entry `index` of the table `key` points at."""
        if key == "refcount-table":
            return self._block(index)
        return self._l2(key, index)

    def _l2(self, key: str, index: int) -> Item:
        import numpy as np

        geometry = self.geometry
        assert geometry is not None
        offset = offset_of(int(self._l1_words(key)[index]))
        prefix = key.removesuffix("l1")
        item = Item(f"{prefix}l2:{index}", f"L2[{index}]", Kind.L2, offset, geometry.cluster_size, index=index)
        item = self._pointer_state(item, "L2 table")
        if item.length == 0 or item.mark:
            return item
        step = 2 if geometry.extended_l2 else 1
        data = self.meta.storage.read(offset, geometry.cluster_size)
        used = np.frombuffer(data[: len(data) & ~15], dtype=">u8")[::step]
        filled = int(np.count_nonzero(used))
        start = geometry.guest_offset(index, 0)
        return replace(
            item,
            note=f"from {format_size(start)}, {share_words(filled, geometry.l2_entries) if filled else 'empty'}",
        )

    def _block(self, index: int) -> Item:
        geometry = self.geometry
        assert geometry is not None
        offset = block_of(int(self.meta.refcount_table[index]))
        start = index * geometry.refcount_block_coverage
        item = Item(
            f"refcount-block:{index}",
            f"Block[{index}]",
            Kind.REFCOUNT_BLOCK,
            offset,
            geometry.cluster_size,
            f"from {format_size(start)}",
            index=index,
        )
        return self._pointer_state(item, "refcount block")

    def _pointer_state(self, item: Item, what: str) -> Item:
        assert self.geometry is not None
        room = self.meta.file_size - item.offset
        if room <= 0:
            return replace(
                item,
                length=0,
                mark="bad",
                why=f"the {what} at {item.offset:#x} lies past the end of the file",
                note="past the end",
            )
        if item.offset % self.geometry.cluster_size:
            return replace(
                item,
                length=min(item.length, room),
                mark="bad",
                why=f"the offset {item.offset:#x} is not cluster aligned",
                note="unaligned",
            )
        if room < item.length:
            return replace(item, length=room, mark="warn", why=f"the file ends inside this {what}")
        return item

    def annotation(self, item: Item) -> Node | None:
        """The item's bytes field by field; None for tables and for what has no fields."""
        part = PARTS.get(item.kind)
        if part is None:
            return None
        if item.kind is Kind.KEY_SLOT:
            assert self.meta.encryption is not None
            where = Region(self.meta.encryption.offset, LUKS_SIZE)
            whole = Structure(self.meta, part, "luks", "LUKS header", where).annotate()
            assert whole is not None
            return next(
                (
                    node
                    for node in whole.walk()
                    if node.offset == item.offset and node.size == item.length and node.children
                ),
                None,
            )
        if item.kind is Kind.FEATURES:
            header = Structure(self.meta, part, "header", "Header", Region(0, item.end)).annotate()
            assert header is not None
            words = tuple(
                node for node in header.children if node.offset >= item.offset and node.kind is NodeKind.FIELD
            )
            return replace(
                header,
                path="features",
                schema="features",
                name="features",
                offset=item.offset,
                size=item.length,
                children=words,
            )
        length = LUKS_SIZE if item.kind is Kind.LUKS else item.length
        return Structure(self.meta, part, item.key, item.label, Region(item.offset, length), item.index).annotate()

    def table(self, item: Item) -> Table | None:
        """The entries of a table item."""
        meta = self.meta
        number = int(item.key[9:].split("/")[0]) if item.key.startswith("snapshot:") else None
        if item.kind is Kind.GROUP:
            base = item.key.partition("#")[0]
            return self.table(self._find_table(base)) if base not in ("snapshots", "bitmaps") else None
        if item.kind is Kind.L1:
            return tables.l1_table(meta, number)
        if item.kind is Kind.L2:
            return tables.l2_table(meta, item.index, item.offset, number)
        if item.kind is Kind.REFCOUNT_TABLE:
            return tables.refcount_table(meta)
        if item.kind is Kind.REFCOUNT_BLOCK:
            return tables.refcount_block(meta, item.index, item.offset)
        if item.kind is Kind.BITMAP_TABLE:
            return tables.bitmap_table(meta, item.index)
        return None
