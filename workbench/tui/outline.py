"""The structures of an image as a tree that is only as large as what has been opened of it.

Items have stable keys (`header`, `l2:3`, `snapshot:0/l1`, `refcount-block:5`) which places, bookmarks and addresses use. Children are
found on demand (in a worker) from bounded table reads; more than 64 siblings are put in groups.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import cached_property
from typing import TYPE_CHECKING, Final

from formats.annotate import Node
from formats.luks.header import HEADER_SIZE as LUKS_SIZE
from formats.luks.header import SLOT_ACTIVE
from formats.qcow2 import limits
from formats.qcow2.extensions import ExtensionType
from formats.qcow2.tables import OFFSET_MASK, REFCOUNT_OFFSET_MASK
from workbench.engine import tables
from workbench.engine.faults import Fault
from workbench.engine.metadata import Metadata, Region
from workbench.engine.structures import Part, Structure
from workbench.engine.tables import Table
from workbench.render.sizes import count
from workbench.render.text import printable
from workbench.teach import facts_of
from workbench.units import Geometry, format_size

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

GROUP: Final = 64
MAX_LUKS_SHOWN: Final = 8 << 20


class Kind(StrEnum):
    """What sort of structure an item is; decides its views."""

    FILE = "file"
    HEADER = "header"
    EXTENSIONS = "extensions"
    EXTENSION = "extension"
    BACKING = "backing"
    DATA_FILE = "data-file"
    L1 = "l1"
    L2 = "l2"
    SNAPSHOTS = "snapshots"
    SNAPSHOT = "snapshot"
    REFCOUNT_TABLE = "refcount-table"
    REFCOUNT_BLOCK = "refcount-block"
    BITMAPS = "bitmaps"
    BITMAP = "bitmap"
    BITMAP_TABLE = "bitmap-table"
    LUKS = "luks"
    KEY_SLOT = "key-slot"
    UNUSED = "unused"
    TAIL = "tail"
    GROUP = "group"
    DISK = "disk"


_PARTS: Final = {
    Kind.HEADER: Part.HEADER,
    Kind.EXTENSION: Part.EXTENSION,
    Kind.BACKING: Part.BACKING_NAME,
    Kind.SNAPSHOT: Part.SNAPSHOT,
    Kind.BITMAP: Part.BITMAP,
    Kind.LUKS: Part.LUKS,
    Kind.KEY_SLOT: Part.LUKS,
}


def _share(part: int, whole: int) -> str:
    """`3% full`; never 0% of something, never 100% of less than all."""
    percent = part * 100 // max(1, whole)
    return "full" if part >= whole else f"{percent}% full" if percent else "<1% full"


TABLES: Final = {Kind.L1, Kind.L2, Kind.REFCOUNT_TABLE, Kind.REFCOUNT_BLOCK, Kind.BITMAP_TABLE}


@dataclass(frozen=True, slots=True)
class Item:
    """One node. offset, length: host bytes (a length of 0: nothing in the file).  note: said beside the label.

    mark: "" fine, "warn", "bad"; why: the reason of the mark.  index: position in the table that points here, -1 without.
    """

    key: str
    label: str
    kind: Kind
    offset: int = 0
    length: int = 0
    note: str = ""
    mark: str = ""
    why: str = ""
    branch: bool = False
    index: int = -1

    @property
    def end(self) -> int:
        return self.offset + self.length


class Outline:
    """The tree of one image. Methods that read (children, annotation) belong in a worker."""

    def __init__(self, meta: Metadata) -> None:
        self.meta = meta
        self.geometry: Geometry | None = meta.geometry
        self.faults: tuple[Fault, ...] = meta.faults

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
        return items

    def _file(self) -> Item:
        return Item("file", "File", Kind.FILE, 0, self.meta.file_size, format_size(self.meta.file_size))

    def _header_length(self) -> int:
        return min(max(self.meta.header_length, 72), len(self.meta.head))

    def _head_items(self) -> Iterator[Item]:
        meta = self.meta
        area = meta.area
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
                    "backing-name", "Backing file", Kind.BACKING, meta.header.backing_file_offset, min(meta.header.backing_file_size, 1023),
                    printable(name) if name else "name unreadable", "" if name else "bad", "" if name else "the name lies outside the first cluster",
                )
            )  # fmt: skip
        if meta.header.has("data_file"):
            found = meta.extension(ExtensionType.DATA_FILE)
            yield Item(
                "data-file", "External data file", Kind.DATA_FILE, found.offset if found else 72, found.end - found.offset if found else 8,
                printable(meta.data_file_name or "not named"), "" if found else "bad", "" if found else "the header does not name it",
            )  # fmt: skip
        end = max(area.end, self._header_length(), meta.header.backing_file_offset + meta.header.backing_file_size)
        if end < len(meta.head):
            rest = meta.head[end:]
            yield Item(
                "unused", "Unused header space", Kind.UNUSED, end, len(rest), "zeros" if not any(rest) else "not empty"
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
        return self._marked(item, codes=("REFCOUNT-TABLE",))

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

    # Below

    def children(self, item: Item) -> list[Item]:
        """What is below an item; reads at most one table and a cluster per L2 table shown."""
        meta, key = self.meta, item.key
        makers: dict[Kind, Callable[[], list[Item]]] = {
            Kind.GROUP: lambda: self._group_children(key),
            Kind.EXTENSIONS: lambda: [
                self._extension(index) for index in range(len(meta.extensions) + meta.area.ended)
            ],
            Kind.L1: lambda: self._grouped(key, self._l1_indices(key)),
            Kind.REFCOUNT_TABLE: lambda: self._grouped(key, self._indices(meta.refcount_table, REFCOUNT_OFFSET_MASK)),
            Kind.SNAPSHOTS: lambda: self._many(key, len(meta.snapshots), self._snapshot),
            Kind.SNAPSHOT: lambda: [self._snapshot_l1(item.index)],
            Kind.BITMAPS: lambda: self._many(key, len(meta.bitmap_directory.bitmaps), self._bitmap),
            Kind.BITMAP: lambda: [self._bitmap_table(item.index)],
            Kind.LUKS: lambda: [self._slot(index) for index in range(8)],
        }
        return makers[item.kind]() if item.kind in makers else []

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
        return self._indices(self._l1_words(key), OFFSET_MASK)

    @staticmethod
    def _indices(words: NDArray[np.uint64], mask: int) -> list[int]:
        import numpy as np

        found: list[int] = np.flatnonzero(words & np.uint64(mask)).tolist()
        return found

    def _grouped(self, key: str, indices: list[int], low: int = 0, high: int | None = None) -> list[Item]:
        """Items for positions low..high of `indices`, in groups of powers of 64 when there are more than 64."""
        high = len(indices) if high is None else high
        if high - low <= GROUP:
            return [self._pointed(key, index) for index in indices[low:high]]
        step = GROUP
        while high - low > step * GROUP:
            step *= GROUP
        found = []
        for start in range(low, high, step):
            stop = min(start + step, high)
            label = f"{self._short(key)}[{indices[start]}…{indices[stop - 1]}]"
            found.append(
                Item(f"{key}#{start}-{stop}", label, Kind.GROUP, 0, 0, count(stop - start, "table"), branch=True)
            )
        return found

    def _many(
        self, key: str, number: int, make: Callable[[int], Item], low: int = 0, high: int | None = None
    ) -> list[Item]:
        high = number if high is None else high
        if high - low <= GROUP:
            return [make(index) for index in range(low, high)]
        step = GROUP
        while high - low > step * GROUP:
            step *= GROUP
        return [
            Item(f"{key}#{at}-{min(at + step, high)}", f"{at}…{min(at + step, high) - 1}", Kind.GROUP, branch=True)
            for at in range(low, high, step)
        ]

    def _group_children(self, key: str) -> list[Item]:
        base, _, span = key.partition("#")
        low, high = (int(part) for part in span.split("-"))
        if base == "snapshots":
            return self._many(base, len(self.meta.snapshots), self._snapshot, low, high)
        if base == "bitmaps":
            return self._many(base, len(self.meta.bitmap_directory.bitmaps), self._bitmap, low, high)
        if base == "refcount-table":
            return self._grouped(base, self._indices(self.meta.refcount_table, REFCOUNT_OFFSET_MASK), low, high)
        return self._grouped(base, self._l1_indices(base), low, high)

    @staticmethod
    def _short(key: str) -> str:
        return "Block" if key == "refcount-table" else "L2"

    def _pointed(self, key: str, index: int) -> Item:
        """The L2 table or refcount block that entry `index` of the table `key` points at."""
        if key == "refcount-table":
            return self._block(index)
        return self._l2(key, index)

    def _l2(self, key: str, index: int) -> Item:
        import numpy as np

        geometry = self.geometry
        assert geometry is not None
        offset = int(self._l1_words(key)[index]) & OFFSET_MASK
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
            note=f"{format_size(start)} on, {_share(filled, geometry.l2_entries)}"
            if filled
            else f"{format_size(start)} on, empty",
        )

    def _block(self, index: int) -> Item:
        geometry = self.geometry
        assert geometry is not None
        offset = int(self.meta.refcount_table[index]) & REFCOUNT_OFFSET_MASK
        start = index * geometry.refcount_block_coverage
        item = Item(
            f"refcount-block:{index}",
            f"Block[{index}]",
            Kind.REFCOUNT_BLOCK,
            offset,
            geometry.cluster_size,
            f"{format_size(start)}+",
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

    # Looking things up

    def find(self, key: str) -> Item | None:
        """The item with that key, or None when this image has no such thing."""
        try:
            return self._find(key)
        except (IndexError, ValueError, AssertionError):
            return None

    def _find(self, key: str) -> Item | None:
        root = next((each for each in self.roots() if each.key == key), None)
        if root is not None:
            return root
        base, _, last = key.rpartition("/")
        name, _, number = (last if base else key).partition(":")
        if "#" in key:
            return Item(key, key, Kind.GROUP, branch=True)
        if name == "l2":
            owner = f"{base}/l1" if base else "l1"
            return (
                self._l2(owner, int(number)) if self._points(self._l1_words(owner), int(number), OFFSET_MASK) else None
            )
        if name == "refcount-block":
            return (
                self._block(int(number))
                if self._points(self.meta.refcount_table, int(number), REFCOUNT_OFFSET_MASK)
                else None
            )
        if base.startswith("snapshot:") and last == "l1":
            return self._snapshot_l1(int(base[9:]))
        makers = {
            "extension": self._extension, "snapshot": self._snapshot, "bitmap": self._bitmap, "slot": self._slot, "bitmap-table": self._bitmap_table,
        }  # fmt: skip
        return makers[name](int(number)) if name in makers and number.isdigit() else None

    @staticmethod
    def _points(words: NDArray[np.uint64], index: int, mask: int) -> bool:
        return 0 <= index < len(words) and bool(int(words[index]) & mask)

    def parents(self, key: str) -> list[str]:
        """Keys from the top down to (not with) `key`, groups included, for opening the tree there."""
        if "/" in key:
            base, _, last = key.rpartition("/")
            chain = [*self.parents(base), base]
            if last.startswith("l2:"):
                chain.append(f"{base}/l1")
                chain += self._groups_to(f"{base}/l1", self._l1_indices(f"{base}/l1"), int(last[3:]))
            return chain
        name, _, number = key.partition(":")
        if name == "l2":
            return ["l1", *self._groups_to("l1", self._l1_indices("l1"), int(number))]
        if name == "refcount-block":
            return [
                "refcount-table",
                *self._groups_to(
                    "refcount-table", self._indices(self.meta.refcount_table, REFCOUNT_OFFSET_MASK), int(number)
                ),
            ]
        if name == "snapshot":
            return ["snapshots", *self._groups_to("snapshots", list(range(len(self.meta.snapshots))), int(number))]
        if name == "bitmap":
            return [
                "bitmaps",
                *self._groups_to("bitmaps", list(range(len(self.meta.bitmap_directory.bitmaps))), int(number)),
            ]
        if name == "bitmap-table":
            return [*self.parents(f"bitmap:{number}"), f"bitmap:{number}"]
        owner = {"extension": "extensions", "slot": "luks"}.get(name)
        return [owner] if owner else []

    @staticmethod
    def _groups_to(key: str, indices: list[int], index: int) -> list[str]:
        from bisect import bisect_left

        at = bisect_left(indices, index)
        low, high = 0, len(indices)
        found = []
        while high - low > GROUP:
            step = GROUP
            while high - low > step * GROUP:
                step *= GROUP
            start = low + (at - low) // step * step
            low, high = start, min(start + step, high)
            found.append(f"{key}#{low}-{high}")
        return found

    def holding(self, offset: int) -> Item:
        """The item of the first levels that owns a host byte (tables pointed at by L1 or refcount table included)."""
        best = self._file()
        candidates = self.roots()
        candidates += (
            [self._extension(i) for i in range(len(self.meta.extensions) + self.meta.area.ended)]
            if self.geometry
            else []
        )
        if self.geometry and self.meta.encryption and self.meta.luks and self.meta.luks.valid:
            candidates += [self._slot(index) for index in range(8)]
        if self.geometry:
            candidates += [self._snapshot(i) for i in range(min(len(self.meta.snapshots), 4096))]
            candidates += [self._bitmap(i) for i in range(min(len(self.meta.bitmap_directory.bitmaps), 4096))]
            candidates += [self._snapshot_l1(i) for i in range(min(len(self.meta.snapshots), 256))]
            candidates += [self._bitmap_table(i) for i in range(min(len(self.meta.bitmap_directory.bitmaps), 256))]
            candidates += self._tables_at(offset)
        for item in candidates:
            if item.offset <= offset < item.end and (item.length < best.length or best.kind is Kind.FILE):
                best = item
        return best

    def _tables_at(self, offset: int) -> Iterator[Item]:
        import numpy as np

        assert self.geometry is not None
        cluster = offset // self.geometry.cluster_size * self.geometry.cluster_size
        l1 = self.meta.l1 & np.uint64(OFFSET_MASK)
        for index in np.flatnonzero(l1 == np.uint64(cluster))[:1].tolist() if cluster else []:
            yield self._l2("l1", index)
        blocks = self.meta.refcount_table & np.uint64(REFCOUNT_OFFSET_MASK)
        for index in np.flatnonzero(blocks == np.uint64(cluster))[:1].tolist() if cluster else []:
            yield self._block(index)
        for number in range(min(len(self.meta.snapshots), 64) if cluster else 0):
            words = self._l1_words(f"snapshot:{number}/l1") & np.uint64(OFFSET_MASK)
            for index in np.flatnonzero(words == np.uint64(cluster))[:1].tolist():
                yield self._l2(f"snapshot:{number}/l1", index)

    def annotation(self, item: Item) -> Node | None:
        """The item's bytes field by field; None for tables and for what has no fields."""
        part = _PARTS.get(item.kind)
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
        length = LUKS_SIZE if item.kind is Kind.LUKS else item.length
        return Structure(self.meta, part, item.key, item.label, Region(item.offset, length), item.index).annotate()

    def table(self, item: Item) -> Table | None:
        """The entries of a table item."""
        meta = self.meta
        number = int(item.key[9:].split("/")[0]) if item.key.startswith("snapshot:") else None
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
