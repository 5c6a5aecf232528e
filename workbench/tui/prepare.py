"""From an address or a place to everything the panes need to show it. Reads the file: runs in a worker."""

from __future__ import annotations

from dataclasses import dataclass, replace

from formats.annotate import Node
from workbench.engine.address import AddressKind, parse_address, resolve
from workbench.engine.explain import explain_guest
from workbench.engine.metadata import Metadata
from workbench.engine.tables import Table, TableKind
from workbench.errors import ArgumentError
from workbench.tui.explaining import Explanation, explain_entry, explain_item, explain_node, explain_place
from workbench.tui.outline import Outline
from workbench.tui.outline_items import PARTS, TABLES, Item, Kind
from workbench.tui.place import Place, View

GUEST_VIEWS = (View.GUEST_MAP, View.GUEST_HEX, View.TRANSLATION)
IMAGE_VIEWS = (View.HOST_MAP, View.FINDINGS, View.REFCOUNTS, View.OVERLAPS)


@dataclass(frozen=True, slots=True)
class Prepared:
    """A place, looked up. node: the field selected.  entry: index in `table`, -1 without.  crumbs: (label, key).

    owner: the item whose table it is (a group shows the table that it is a slice of).  first: entry to begin with.
    """

    place: Place
    item: Item
    record: Node | None
    node: Node | None
    table: Table | None
    owner: Item
    entry: int
    first: int
    explanation: Explanation
    crumbs: tuple[tuple[str, str], ...]
    views: tuple[View, ...]


_RECORDS = ("snapshots", "bitmaps")


def _base(item: Item) -> str:
    """Key of the structure that a group is a slice of."""
    return item.key.partition("#")[0]


def views_of(outline: Outline, item: Item) -> tuple[View, ...]:
    """The views that make sense for an item, in key order."""
    found = []
    if item.kind in PARTS or item.kind in TABLES or item.kind is Kind.LAYER:
        found.append(View.FIELDS)
    found.append(View.HEX)
    if item.kind in TABLES or (item.kind is Kind.GROUP and _base(item) not in _RECORDS):
        found.append(View.ENTRIES)
    if item.kind is Kind.DISK:  # a guest offset leads to its entry and its bytes
        found = [View.FIELDS, View.HEX, View.ENTRIES]
    if outline.geometry is not None:
        found += [*GUEST_VIEWS, *IMAGE_VIEWS]
    return tuple(found)


def default_view(item: Item) -> View:
    """What one wants to see first of an item."""
    if item.kind in TABLES or (item.kind is Kind.GROUP and _base(item) not in _RECORDS):
        return View.ENTRIES
    if item.kind is Kind.DISK:
        return View.GUEST_MAP
    if item.kind in (
        Kind.FILE,
        Kind.UNUSED,
        Kind.TAIL,
        Kind.GROUP,
        Kind.EXTENSIONS,
        Kind.SNAPSHOTS,
        Kind.BITMAPS,
        Kind.DATA_FILE,
    ):
        return View.HEX
    return View.FIELDS


def place_of(item: Item, view: View | None = None, guest: int | None = None) -> Place:
    """The place of a whole item."""
    return Place(item.key, item.offset, item.length, "", view or default_view(item), guest)


def snapshot_number(key: str) -> int | None:
    """Index of the snapshot that the structure `key` belongs to."""
    digits = key[9:].split("/", maxsplit=1)[0] if key.startswith("snapshot:") else ""
    return int(digits) if digits.isdigit() else None


def entry_index(path: str) -> int:
    """17 of `[17]` or `[17].offset`; -1 for anything else."""
    if path.startswith("[") and "]" in path:
        digits = path[1 : path.index("]")]
        return int(digits) if digits.isdigit() else -1
    return -1


def entry_place(meta: Metadata, item: Item, table: Table, index: int, view: View) -> Place:
    """The place of one table entry."""
    size = max(1, table.entry_bits(meta) // 8)
    guest = None
    if item.kind in (Kind.L1, Kind.L2):
        guest = table.base + index * table.coverage(meta)
    return Place(item.key, table.entry_offset(meta, index), size, f"[{index}]", view, guest)


def prepare(outline: Outline, place: Place) -> Prepared:
    """Look a place up. A structure that is no longer there becomes the file."""
    if place.node == "disk" and place.view in (View.FIELDS, View.HEX, View.ENTRIES):
        place = crossing(outline, place, place.view)
    item = outline.find(place.node)
    if item is None:
        item = outline.holding(place.offset) if place.offset else outline.roots()[0]
        place = replace(place, node=item.key, path="")
    record = outline.annotation(item)
    table = outline.table(item)
    owner = (outline.find(_base(item)) if item.kind is Kind.GROUP else None) or item
    entry, node = -1, None
    if table is not None:
        entry = entry_index(place.path)
        if entry < 0 and place.path == "" and place.length <= 16 < item.length:
            entry = (place.offset - item.offset) * 8 // table.entry_bits(outline.meta)
        if not 0 <= entry < table.entries:
            entry = -1
        if entry >= 0:
            record = _entry_record(outline, table, entry)
    if record is not None:
        node = _node_at(record, place)
    if place.view in GUEST_VIEWS and place.guest is not None and outline.geometry is not None:
        explanation = explain_place(outline, item, place.guest, snapshot_number(item.key))
    elif table is not None and entry >= 0:
        explanation = explain_entry(outline, item, table, entry)
    elif node is not None and item.kind not in (Kind.FILE,):
        explanation = explain_node(outline, item, node)
    else:
        explanation = explain_item(outline, item)
    return Prepared(
        place,
        item,
        record,
        node,
        table,
        owner,
        entry,
        max(entry, (item.offset - owner.offset) // 8),
        explanation,
        _crumbs(outline, item, place, node, entry),
        views_of(outline, item),
    )


def _entry_record(outline: Outline, table: Table, entry: int) -> Node | None:
    """The fields of one entry (of eight, for refcounts narrower than a byte)."""
    if entry >= table.readable(outline.meta):
        return None
    first, count = entry, 1
    if table.entry_bits(outline.meta) < 8:
        first, count = entry & ~7, 8
    return table.annotate(outline.meta, first, count)


def _node_at(record: Node, place: Place) -> Node | None:
    """The node with the place's path, else the innermost one around its first byte, None for the whole record."""
    if place.path and not place.path.startswith("["):
        for node in record.walk():
            if node.path == place.path:
                return node
    if place.offset == record.offset and place.length == record.size:
        return None
    best = None
    for node in record.walk():
        if (
            node.bits is None
            and node.offset <= place.offset < node.end
            and node is not record
            and (best is None or node.size <= best.size)
        ):
            best = node
    return best


def _crumbs(outline: Outline, item: Item, place: Place, node: Node | None, entry: int) -> tuple[tuple[str, str], ...]:
    found: list[tuple[str, str]] = []
    for key in outline.parents(item.key):
        if "#" not in key:
            above = outline.find(key)
            if above is not None:
                found.append((above.label, key))
    found.append((item.label, item.key))
    if entry >= 0:
        found.append((f"[{entry}]", ""))
    elif node is not None:
        found.append((node.path.partition(".")[2] or node.name, ""))
    elif item.kind is Kind.FILE and place.length < item.length:
        found.append((f"{place.offset:#x}", ""))
    if place.view in GUEST_VIEWS and place.guest is not None:
        found.append((f"guest {place.guest:#x}", ""))
    return tuple(found)


def crossing(outline: Outline, place: Place, view: View) -> Place:
    """Where a guest offset is in the file: its L2 entry (L1 entry without an L2 table), for `hex` its bytes."""
    meta, guest = outline.meta, place.guest or 0
    snapshot = snapshot_number(place.node)
    told = explain_guest(meta, guest, snapshot)
    host = told.host if not told.external else None
    if view is View.HEX and (host is not None or told.run is not None):
        start = host if host is not None else told.run.offset if told.run is not None else 0
        length = 1 if host is not None or told.run is None else told.run.length
        return Place(outline.holding(start).key, start, length, "", View.HEX, guest)
    prefix = f"snapshot:{snapshot}/" if snapshot is not None else ""
    geometry = meta.geometry
    assert geometry is not None
    index = geometry.l1_index(guest)
    l2 = outline.find(f"{prefix}l2:{index}")
    item = l2 or outline.find(f"{prefix}l1")
    table = outline.table(item) if item is not None else None
    if item is None or table is None:
        return replace(place, node="header", view=View.FIELDS)
    entry = geometry.l2_index(guest) if l2 is not None else index
    return replace(entry_place(meta, item, table, min(entry, max(0, table.entries - 1)), view), guest=guest)


def guest_side(outline: Outline, found: Prepared, view: View) -> Place:
    """Where a structure is on the guest's disk: what an L1 or L2 table or entry describes, else where one was last."""
    place, table = found.place, found.table
    snapshot = snapshot_number(found.item.key)
    node = f"snapshot:{snapshot}/l1" if snapshot is not None else "disk"
    guest = place.guest
    if table is not None and table.kind in (TableKind.L1, TableKind.L2):
        described = table.base + found.first * table.coverage(outline.meta)
        reach = table.coverage(outline.meta) if found.entry >= 0 else table.coverage(outline.meta) * table.entries
        if guest is None or not described <= guest < described + reach:
            guest = described
    item = outline.find(node)
    assert item is not None
    last = max(0, outline.meta.header.size - 1)
    return Place(node, item.offset, item.length, "", view, min(guest or 0, last))


def hex_place(outline: Outline, offset: int) -> Place:
    """The place of a host byte: the field, entry or byte around it."""
    item = outline.holding(offset)
    base = Place(item.key, offset, 1, "", View.HEX)
    table = outline.table(item)
    if table is not None and outline.geometry is not None:
        index = (offset - item.offset) * 8 // table.entry_bits(outline.meta)
        if 0 <= index < table.entries:
            return entry_place(outline.meta, item, table, index, View.HEX)
    record = outline.annotation(item)
    node = _node_at(record, base) if record is not None else None
    if node is not None:
        return Place(item.key, node.offset, node.size, node.path, View.HEX)
    return base


def field_place(outline: Outline, text: str, guest: int | None = None) -> Place | None:
    """The place of a field by its name: `header.size`, `snapshot:0.name`; None when there is no such one."""
    key, dot, rest = text.partition(".")
    item = outline.find(key) if dot and rest else None
    record = outline.annotation(item) if item is not None and item.kind not in TABLES else None
    if item is None or record is None:
        return None
    for node in record.walk():
        if node.path.partition(".")[2] == rest and node.bits is None:
            return Place(item.key, node.offset, node.size, node.path, View.FIELDS, guest)
    return None


def find_address(outline: Outline, text: str, here: Place) -> Place:
    """Where an address leads; ArgumentError says what is wrong with it or that the image has no such thing."""
    direct = outline.find(text.strip())
    if direct is not None:
        return place_of(direct, guest=here.guest)
    named = field_place(outline, text.strip(), here.guest)
    if named is not None:
        return named
    address = parse_address(text)
    meta = outline.meta
    if address.kind is AddressKind.GUEST:
        if outline.geometry is None:
            raise ArgumentError("the header makes no sense, so no guest offset can be found")
        if address.value >= meta.header.size:
            raise ArgumentError(f"the virtual disk ends at {meta.header.size:#x}")
        view = here.view if here.view in GUEST_VIEWS else View.TRANSLATION
        node = f"snapshot:{address.snapshot}/l1" if address.snapshot is not None else "disk"
        item = outline.find(node)
        if item is None:
            raise ArgumentError(f"there is no snapshot {address.snapshot}")
        return Place(node, item.offset, item.length, "", view, address.value)
    found = resolve(meta, address)
    if found.structure is not None:
        key = found.structure.path
        item = outline.find(key)
        if item is None:
            raise ArgumentError(f"the image has no {text}")
        table = outline.table(item)
        if found.entry is not None and table is not None:
            return entry_place(meta, item, table, found.entry, View.ENTRIES)
        return place_of(item, guest=here.guest)
    offset = found.host or 0
    if offset >= max(1, meta.file_size):
        raise ArgumentError(
            f"the file ends at {meta.file_size:#x}", hint=f"for an offset on the guest's disk type g:{text.strip()}"
        )
    place = hex_place(outline, offset)
    if address.kind is AddressKind.CLUSTER and found.region is not None:
        length = min(found.region.length, meta.file_size - offset)
        return Place(outline.holding(offset).key, offset, length, "", View.HEX)
    return place if place.offset == offset else replace(place, offset=offset, length=1, path="")
