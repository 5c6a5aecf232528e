"""Which structures an image has, as a tree that unfolds on demand.

`structures(meta).children()` are the parts of the image (header, extensions, L1 table, …); a table's children are the
tables its entries point to. Every part knows its bytes (`region`), its annotated tree (`annotate`) or its entries
(`table`). Nothing is read before it is asked for, and nothing is judged: broken pointers just lead nowhere.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, Final

from construct import GreedyBytes, Struct

from formats.annotate import Field, Node, annotate
from formats.luks.header import HEADER_SIZE as LUKS_HEADER_SIZE
from formats.luks.header import LUKS_SCHEMA
from formats.qcow2 import limits
from formats.qcow2.bitmaps import BITMAP_SCHEMA
from formats.qcow2.entries import block_of, offset_of
from formats.qcow2.extensions import EXTENSION_SCHEMA
from formats.qcow2.header import HEADER_SCHEMA, V3_LENGTH
from formats.qcow2.snapshots import SNAPSHOT_SCHEMA
from workbench.engine import tables
from workbench.engine.metadata import Metadata, Region
from workbench.engine.tables import Table


class Part(Enum):
    """Sorts of structure; the value is the word in paths and the key of explanations."""

    IMAGE = "image"
    HEADER = "header"
    EXTENSIONS = "extensions"
    EXTENSION = "extension"
    BACKING_NAME = "backing-name"
    L1 = "l1"
    L2 = "l2"
    REFCOUNT_TABLE = "refcount-table"
    REFCOUNT_BLOCK = "refcount-block"
    SNAPSHOTS = "snapshots"
    SNAPSHOT = "snapshot"
    BITMAPS = "bitmaps"
    BITMAP = "bitmap"
    BITMAP_TABLE = "bitmap-table"
    LUKS = "luks"


BACKING_NAME_SCHEMA: Final = Struct(
    Field(
        "name",
        GreedyBytes,
        "Name of the backing file as stored; a relative one starts at the image's folder.",
        "qcow2: Header",
        text="utf-8",
    )
)
"""The backing file name that stands behind the header extensions."""

_RECORDS: Final[dict[Part, tuple[Any, str]]] = {
    Part.HEADER: (HEADER_SCHEMA, "header"),
    Part.EXTENSION: (EXTENSION_SCHEMA, "extension"),
    Part.SNAPSHOT: (SNAPSHOT_SCHEMA, "snapshot"),
    Part.BITMAP: (BITMAP_SCHEMA, "bitmap"),
    Part.LUKS: (LUKS_SCHEMA, "luks"),
}


@dataclass(frozen=True, slots=True)
class Structure:
    """One structure of an image. path: its address (`l2:3`, `snapshot:0`, `snapshot:0/l2:3`), as `qwb dump` takes it.

    region: host bytes it claims (they may lie outside the file).  table: its entries, when it is a table.
    number: which one of its sort.  snapshot: index of the snapshot it belongs to, None for the active disk.
    """

    meta: Metadata
    part: Part
    path: str
    title: str
    region: Region
    number: int = 0
    snapshot: int | None = None
    table: Table | None = None

    def annotate(self) -> Node | None:
        """Annotated tree of its bytes; None for tables (see `Table.runs`, `Table.annotate`) and mere groups."""
        found = _RECORDS.get(self.part)
        if found is not None:
            schema, name = found
            return annotate(schema, self.read(), name=name, base=self.region.offset, doc=self.title)
        if self.part is Part.BACKING_NAME:
            return annotate(BACKING_NAME_SCHEMA, self.read(), name="backing-name", base=self.region.offset)
        return None

    def read(self, limit: int = 1 << 21) -> bytes:
        """Its bytes, at most `limit`, as far as the file has them."""
        return self.meta.storage.read(self.region.offset, min(self.region.length, limit))

    def expandable(self) -> bool:
        """Whether it can have children (cheap; an empty answer of `children` is still possible)."""
        return self.part in (
            Part.IMAGE,
            Part.EXTENSIONS,
            Part.L1,
            Part.REFCOUNT_TABLE,
            Part.SNAPSHOTS,
            Part.SNAPSHOT,
            Part.BITMAPS,
            Part.BITMAP,
        )

    def children(self, start: int = 0, count: int | None = None) -> Sequence[Structure]:
        """Children number `start`.. (at most `count`). A table of a million pointers makes only the children asked for."""
        stop = None if count is None else start + count
        if self.part in (Part.L1, Part.REFCOUNT_TABLE):
            indices = self._pointers()[start:stop].tolist()
            return [self._target(index) for index in indices]
        return list(_CHILDREN[self.part](self))[start:stop] if self.part in _CHILDREN else []

    def child_count(self) -> int:
        """How many children there are (for tables: pointers that are not null)."""
        if self.part in (Part.L1, Part.REFCOUNT_TABLE):
            return int(self._pointers().size)
        return len(self.children())

    def _words(self) -> Any:
        if self.part is Part.REFCOUNT_TABLE:
            return self.meta.refcount_table
        return self.meta.l1 if self.snapshot is None else self.meta.snapshot_l1(self.meta.snapshots[self.snapshot])

    def _pointers(self) -> Any:
        import numpy as np

        words = self._words()
        return np.flatnonzero(block_of(words) if self.part is Part.REFCOUNT_TABLE else offset_of(words))

    def _target(self, index: int) -> Structure:
        word = int(self._words()[index])
        if self.part is Part.REFCOUNT_TABLE:
            return block_structure(self.meta, index, block_of(word))
        return l2_structure(self.meta, index, offset_of(word), self.snapshot)


def structures(meta: Metadata) -> Structure:
    """The root: the whole image; its children are what the header tells of."""
    return Structure(meta, Part.IMAGE, "image", "image", Region(0, meta.file_size))


def _image_children(root: Structure) -> Iterator[Structure]:
    meta = root.meta
    if not meta.is_qcow2:
        return
    yield header_structure(meta)
    if meta.geometry is None:
        return
    if meta.extensions or meta.area.ended:
        start = meta.header_length
        yield Structure(
            meta, Part.EXTENSIONS, "extensions", "header extensions", Region(start, max(0, meta.area.end - start))
        )
    if meta.header.backing_file_offset:
        where = Region(meta.header.backing_file_offset, min(meta.header.backing_file_size, limits.MAX_BACKING_NAME))
        yield Structure(meta, Part.BACKING_NAME, "backing-name", "backing file name", where)
    if meta.encryption is not None:
        yield Structure(meta, Part.LUKS, "luks", "LUKS header", Region(meta.encryption.offset, LUKS_HEADER_SIZE))
    yield l1_structure(meta)
    table = tables.refcount_table(meta)
    yield Structure(meta, Part.REFCOUNT_TABLE, "refcount-table", "refcount table", table.region, table=table)
    if meta.header.nb_snapshots:
        found = meta.snapshot_table
        where = Region(meta.header.snapshots_offset, max(0, found.end - meta.header.snapshots_offset))
        yield Structure(meta, Part.SNAPSHOTS, "snapshots", f"snapshot table ({len(found.snapshots)})", where)
    if meta.bitmaps_extension is not None:
        where = Region(meta.bitmaps_extension.directory_offset, meta.bitmaps_extension.directory_size)
        title = f"bitmap directory ({len(meta.bitmap_directory.bitmaps)})"
        yield Structure(meta, Part.BITMAPS, "bitmaps", title, where)


def header_structure(meta: Metadata) -> Structure:
    """The header, as long as it says it is, within the first cluster."""
    length = max(meta.header_length, min(V3_LENGTH, len(meta.head)))
    return Structure(meta, Part.HEADER, "header", f"header, version {meta.header.version}", Region(0, length))


def l1_structure(meta: Metadata, snapshot: int | None = None) -> Structure:
    """The active L1 table or a snapshot's."""
    table = tables.l1_table(meta, snapshot)
    path = "l1" if snapshot is None else f"snapshot:{snapshot}/l1"
    title = "active L1 table" if snapshot is None else f"L1 table of snapshot {snapshot}"
    return Structure(meta, Part.L1, path, title, table.region, 0, snapshot, table)


def l2_structure(meta: Metadata, index: int, offset: int, snapshot: int | None = None) -> Structure:
    """The L2 table at host `offset` that L1 entry `index` points to."""
    table = tables.l2_table(meta, index, offset, snapshot)
    path = f"l2:{index}" if snapshot is None else f"snapshot:{snapshot}/l2:{index}"
    title = f"L2 table {index}" if snapshot is None else f"L2 table {index} of snapshot {snapshot}"
    return Structure(meta, Part.L2, path, title, table.region, index, snapshot, table)


def block_structure(meta: Metadata, index: int, offset: int) -> Structure:
    """The refcount block at host `offset` that refcount table entry `index` points to."""
    table = tables.refcount_block(meta, index, offset)
    path = f"refcount-block:{index}"
    return Structure(meta, Part.REFCOUNT_BLOCK, path, f"refcount block {index}", table.region, index, table=table)


def _extension_children(parent: Structure) -> Iterator[Structure]:
    for index, each in enumerate(parent.meta.extensions):
        where = Region(each.offset, each.end - each.offset)
        yield Structure(parent.meta, Part.EXTENSION, f"extension:{index}", each.name, where, index)
    if parent.meta.area.ended:
        where, index = Region(parent.meta.area.end - 8, 8), len(parent.meta.extensions)
        yield Structure(parent.meta, Part.EXTENSION, f"extension:{index}", "end of extensions", where, index)


def _snapshot_children(parent: Structure) -> Iterator[Structure]:
    for index, each in enumerate(parent.meta.snapshots):
        where = Region(each.offset, len(each.raw))
        title = f"snapshot {index}: {each.name}"
        yield Structure(parent.meta, Part.SNAPSHOT, f"snapshot:{index}", title, where, index, index)


def _one_snapshot_children(parent: Structure) -> Iterator[Structure]:
    yield l1_structure(parent.meta, parent.number)


def _bitmap_children(parent: Structure) -> Iterator[Structure]:
    for index, each in enumerate(parent.meta.bitmap_directory.bitmaps):
        where = Region(each.offset, len(each.raw))
        yield Structure(parent.meta, Part.BITMAP, f"bitmap:{index}", f"bitmap {index}: {each.name}", where, index)


def _one_bitmap_children(parent: Structure) -> Iterator[Structure]:
    table = tables.bitmap_table(parent.meta, parent.number)
    path, title = f"bitmap-table:{parent.number}", f"table of bitmap {parent.number}"
    yield Structure(parent.meta, Part.BITMAP_TABLE, path, title, table.region, parent.number, table=table)


_CHILDREN: Final = {
    Part.IMAGE: _image_children,
    Part.EXTENSIONS: _extension_children,
    Part.SNAPSHOTS: _snapshot_children,
    Part.SNAPSHOT: _one_snapshot_children,
    Part.BITMAPS: _bitmap_children,
    Part.BITMAP: _one_bitmap_children,
}
