"""The damage of the preservation campaign: each kind by name, aimed with the walk of the undamaged image.

All places are known from the undamaged image, so that damages do not depend on each other. A kind returns words for
what it did, or None where the image has nothing of that sort.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from sample_images.editor import (
    BITMAP_FIELDS,
    COPIED,
    EXT_BITMAPS,
    HEADER_FIELDS,
    MASK_OFFSET,
    SNAPSHOT_FIELDS,
    Editor,
)
from tests.campaigns.preservation_walk import ACTIVE, Rows, Walk


@dataclass(slots=True)
class Damager:
    """A copy of an undamaged image being damaged. walk: of the undamaged one.  certain: see `Kind`."""

    path: Path
    walk: Walk
    pristine: Path
    rng: random.Random
    counts: np.ndarray = field(init=False)
    referenced: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        self.counts = self.walk.refcounts()
        self.referenced = self.walk.referenced()

    # -- bytes

    def write(self, offset: int, data: bytes) -> None:
        with open(self.path, "r+b") as file:
            file.seek(offset)
            file.write(data)

    def read(self, offset: int, length: int) -> bytes:
        with open(self.path, "rb") as file:
            file.seek(offset)
            return file.read(length).ljust(length, b"\0")

    def number(self, offset: int, size: int = 8) -> int:
        return int.from_bytes(self.read(offset, size), "big")

    def put(self, offset: int, value: int, size: int = 8) -> None:
        self.write(offset, value.to_bytes(size, "big"))

    def flip(self, offset: int, size: int = 8, bits: range | None = None) -> str:
        """Flip a random bit (of `bits`, counted from the least significant) of a number; words."""
        bit = self.rng.choice(bits) if bits is not None else self.rng.randrange(8 * size)
        self.put(offset, self.number(offset, size) ^ 1 << bit, size)
        return f"bit {bit} of the number at {offset:#x} flipped"

    def noise(self, offset: int, length: int) -> None:
        self.write(offset, self.rng.randbytes(length))

    # -- places

    @property
    def l1(self) -> np.ndarray:
        return self.walk.l1[0].entries

    def l1_at(self, index: int) -> int:
        return self.walk.l1[0].offset + 8 * index

    def used_l1(self) -> list[int]:
        """Active L1 entries with an L2 table."""
        return [int(each) for each in np.flatnonzero(self.walk.l2_tables[ACTIVE])]

    def free_l1(self) -> int:
        """Active L1 entries that are needed for the disk and empty."""
        wanted = -(-self.walk.size // (self.walk.per_table << self.walk.bits))
        return int((self.walk.l2_tables[ACTIVE][:wanted] == 0).sum())

    def tables(self) -> list[int]:
        return [int(each) for each in self.walk.all_tables()]

    def rows(self) -> Rows:
        return self.walk.rows[ACTIVE]

    def some_rows(self, most: int, *, plain: bool = False) -> list[int]:
        rows = self.rows()
        numbers = np.flatnonzero(~rows.packed) if plain else np.arange(len(rows))
        if not len(numbers):
            return []
        return [int(self.rng.choice(numbers)) for _ in range(self.rng.randint(1, most))]

    def used_blocks(self) -> list[tuple[int, int]]:
        """(index, offset) of the refcount blocks."""
        return [(i, v & MASK_OFFSET) for i, v in enumerate(self.walk.blocks.tolist()) if v & MASK_OFFSET]

    def refcount_place(self, cluster: int) -> tuple[int, int, int] | None:
        """(offset, bytes, shift) of a cluster's refcount."""
        index, slot = divmod(cluster, self.walk.block_entries)
        block = int(self.walk.blocks[index]) & MASK_OFFSET if index < len(self.walk.blocks) else 0
        if not block:
            return None
        bit = slot * self.walk.refcount_bits
        return block + bit // 8, max(1, self.walk.refcount_bits // 8), bit % 8

    def set_refcount(self, cluster: int, value: int) -> bool:
        place = self.refcount_place(cluster)
        if place is None:
            return False
        at, size, shift = place
        mask = ((1 << self.walk.refcount_bits) - 1) << shift
        self.put(at, (self.number(at, size) & ~mask) | (value << shift & mask), size)
        return True

    def elsewhere(self) -> int:
        """A host offset where something else is: a table, a block, the header, data, or past the end."""
        size = self.walk.file_size
        choices = [offset for _, offset, _ in self.walk.claims if offset < size] + [o for _, o in self.used_blocks()]
        choices += self.tables()[:64]
        rows = self.rows()
        if len(rows) and not self.walk.external:
            choices += [
                int(rows.start[self.rng.randrange(len(rows))]) >> self.walk.bits << self.walk.bits for _ in range(4)
            ]
        choices.append((size >> self.walk.bits) + self.rng.randrange(1, 64) << self.walk.bits)
        return self.rng.choice(choices) & MASK_OFFSET

    def shared(self, table: int) -> bool:
        """A snapshot refers to this L2 table."""
        return any(table in tables for view, tables in self.walk.l2_tables.items() if view != ACTIVE)


Work = Callable[[Damager], str | None]


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of damage. weight: how often.  certain: alone, its truth can be told for sure (asked before the damage)."""

    name: str
    work: Work
    weight: float = 1.0
    certain: Callable[[Damager], bool] | None = None


KINDS: dict[str, Kind] = {}


def kind(name: str, weight: float = 1.0, certain: Callable[[Damager], bool] | None = None) -> Callable[[Work], Work]:
    """Register a kind of damage."""

    def add(work: Work) -> Work:
        KINDS[name] = Kind(name, work, weight, certain)
        return work

    return add


def _private_tables(d: Damager) -> bool:
    return not any(d.shared(table) for table in d.tables() if table in d.walk.l2_tables[ACTIVE])


def _no_free_place(d: Damager) -> bool:
    return d.free_l1() == 0 and _private_tables(d)


def _always(d: Damager) -> bool:
    return True


# -- the active mapping ------------------------------------------------------------------------------------------------


@kind("l1-zeroed", 3, _no_free_place)
def _l1_zeroed(d: Damager) -> str | None:
    used = d.used_l1()
    if not used:
        return None
    index = d.rng.choice(used)
    d.put(d.l1_at(index), 0)
    return f"L1 entry {index} zeroed"


@kind("l1-bit", 3, _private_tables)
def _l1_bit(d: Damager) -> str | None:
    used = d.used_l1()
    return f"L1 entry: {d.flip(d.l1_at(d.rng.choice(used)))}" if used else None


@kind("l1-elsewhere")
def _l1_elsewhere(d: Damager) -> str | None:
    used = d.used_l1()
    if not used:
        return None
    index, target = d.rng.choice(used), d.elsewhere()
    d.put(d.l1_at(index), target | COPIED)
    return f"L1 entry {index} aimed at {target:#x}"


@kind("l1-unaligned", 1, lambda d: d.walk.bits > 9 and _private_tables(d))
def _l1_unaligned(d: Damager) -> str | None:
    used = d.used_l1()
    if not used or d.walk.bits <= 9:
        return None
    index = d.rng.choice(used)
    d.put(d.l1_at(index), d.number(d.l1_at(index)) ^ 1 << d.rng.randrange(9, d.walk.bits))
    return f"L1 entry {index} unaligned"


@kind("l1-several")
def _l1_several(d: Damager) -> str | None:
    used = d.used_l1()
    if len(used) < 2:
        return None
    chosen = d.rng.sample(used, min(len(used), d.rng.randint(2, 5)))
    for index in chosen:
        d.put(d.l1_at(index), 0)
    return f"L1 entries {sorted(chosen)} zeroed"


@kind("l1-table-zeroed")
def _l1_table_zeroed(d: Damager) -> str | None:
    d.write(d.walk.l1[0].offset, bytes(8 * len(d.l1)))
    return "the L1 table zeroed"


@kind("l1-table-garbage")
def _l1_table_garbage(d: Damager) -> str | None:
    d.noise(d.walk.l1[0].offset, min(8 * len(d.l1), 4096))
    return "the L1 table overwritten with noise"


@kind("l1-stray")
def _l1_stray(d: Damager) -> str | None:
    free = np.flatnonzero(d.l1 == 0)
    if not len(free):
        return None
    index, target = int(d.rng.choice(free)), d.elsewhere()
    d.put(d.l1_at(index), target | COPIED)
    return f"unused L1 entry {index} aimed at {target:#x}"


@kind("l2-zeroed", 2)
def _l2_zeroed(d: Damager) -> str | None:
    tables = d.tables()
    if not tables:
        return None
    table = d.rng.choice(tables)
    d.write(table, bytes(d.walk.cluster))
    return f"L2 table at {table:#x} zeroed"


@kind("l2-sector")
def _l2_sector(d: Damager) -> str | None:
    tables = d.tables()
    if not tables:
        return None
    at = d.rng.choice(tables) + d.rng.randrange(d.walk.cluster // 512) * 512
    noisy = d.rng.random() < 0.5
    d.write(at, d.rng.randbytes(512) if noisy else bytes(512))
    return f"512 bytes of an L2 table at {at:#x} {'overwritten with noise' if noisy else 'zeroed'}"


@kind("l2-garbage")
def _l2_garbage(d: Damager) -> str | None:
    tables = d.tables()
    if not tables:
        return None
    table = d.rng.choice(tables)
    d.noise(table, min(d.walk.cluster, 64 << 10))
    return f"L2 table at {table:#x} overwritten with noise"


@kind("l2-copied-over")
def _l2_copied_over(d: Damager) -> str | None:
    tables = d.tables()
    if len(tables) < 2:
        return None
    target, source = d.rng.sample(tables, 2)
    d.write(target, d.read(source, d.walk.cluster))
    return f"L2 table at {target:#x} overwritten with the one at {source:#x}"


@kind("l2-bit", 3)
def _l2_bit(d: Damager) -> str | None:
    numbers = d.some_rows(1)
    return f"L2 entry: {d.flip(int(d.rows().at[numbers[0]]))}" if numbers else None


@kind("l2-unused-bit", 2)
def _l2_unused_bit(d: Damager) -> str | None:
    tables = d.tables()
    for _ in range(20 if tables else 0):
        at = d.rng.choice(tables) + d.rng.randrange(d.walk.per_table) * d.walk.entry_size
        if not any(d.read(at, d.walk.entry_size)):
            return f"unused L2 entry: {d.flip(at + d.rng.choice(range(0, d.walk.entry_size, 8)))}"
    return None


@kind("l2-subclusters")
def _l2_subclusters(d: Damager) -> str | None:
    numbers = d.some_rows(1)
    if not numbers or not d.walk.extended:
        return None
    return f"subcluster bitmap: {d.flip(int(d.rows().at[numbers[0]]) + 8)}"


@kind("l2-entries-zeroed", 2)
def _l2_entries_zeroed(d: Damager) -> str | None:
    numbers = d.some_rows(4)
    for number in numbers:
        d.write(int(d.rows().at[number]), bytes(d.walk.entry_size))
    return f"{len(numbers)} L2 entries zeroed" if numbers else None


@kind("l2-unaligned")
def _l2_unaligned(d: Damager) -> str | None:
    numbers = d.some_rows(3, plain=True)
    for number in numbers:
        at = int(d.rows().at[number])
        d.put(at, d.number(at) ^ 1 << d.rng.randrange(9, max(10, d.walk.bits)))
    return f"{len(numbers)} L2 entries unaligned" if numbers else None


@kind("l2-past-eof")
def _l2_past_eof(d: Damager) -> str | None:
    numbers = d.some_rows(3, plain=True)
    for number in numbers:
        far = (d.walk.file_size >> d.walk.bits) + d.rng.choice((1, 7, 1000, 1 << 20)) << d.walk.bits
        d.put(int(d.rows().at[number]), far & MASK_OFFSET | COPIED)
    return f"{len(numbers)} L2 entries past the end of the file" if numbers else None


@kind("l2-cross-link", 2)
def _l2_cross(d: Damager) -> str | None:
    rows = d.rows()
    if len(rows) < 2:
        return None
    one, other = d.rng.sample(range(len(rows)), 2)
    d.write(int(rows.at[one]), d.read(int(rows.at[other]), d.walk.entry_size))
    return f"L2 entry of guest cluster {rows.guest[one]} is a copy of that of {rows.guest[other]}"


@kind("l2-at-metadata")
def _l2_metadata(d: Damager) -> str | None:
    numbers = d.some_rows(2, plain=True)
    target = d.elsewhere()
    for number in numbers:
        d.put(int(d.rows().at[number]), target | COPIED)
    return f"{len(numbers)} L2 entries aimed at {target:#x}" if numbers else None


@kind("compressed-descriptor")
def _compressed(d: Damager) -> str | None:
    packed = np.flatnonzero(d.rows().packed)
    if not len(packed):
        return None
    return f"compressed entry: {d.flip(int(d.rows().at[int(d.rng.choice(packed))]), bits=range(62))}"


# -- refcounts and flags -----------------------------------------------------------------------------------------------


@kind("block-zeroed", 2, _always)
def _block_zeroed(d: Damager) -> str | None:
    index, offset = d.rng.choice(d.used_blocks())
    d.write(offset, bytes(d.walk.cluster))
    return f"refcount block {index} zeroed"


@kind("block-garbage", 1, _always)
def _block_garbage(d: Damager) -> str | None:
    index, offset = d.rng.choice(d.used_blocks())
    d.noise(offset, min(d.walk.cluster, 4096))
    return f"refcount block {index} overwritten with noise"


@kind("block-bit", 2, _always)
def _block_bit(d: Damager) -> str | None:
    place = d.refcount_place(d.rng.randrange(d.walk.clusters))
    return f"refcount: {d.flip(place[0], place[1])}" if place else None


@kind("refcounts-zeroed", 2, _always)
def _refcounts_zeroed(d: Damager) -> str | None:
    first = d.rng.randrange(d.walk.clusters)
    count = d.rng.choice((1, 3, 20, 200))
    for cluster in range(first, min(first + count, d.walk.clusters)):
        d.set_refcount(cluster, 0)
    return f"refcounts of {count} clusters from {first} zeroed"


@kind("refcounts-all-zeroed", 2, _always)
def _refcounts_all(d: Damager) -> str | None:
    for _, offset in d.used_blocks():
        d.write(offset, bytes(d.walk.cluster))
    return "all refcount blocks zeroed"


@kind("refcounts-too-high", 1, lambda d: d.walk.refcount_bits > 1)
def _refcounts_high(d: Damager) -> str | None:
    if d.walk.refcount_bits == 1:
        return None
    clusters = [d.rng.randrange(d.walk.clusters) for _ in range(d.rng.choice((1, 5, 50)))]
    for cluster in clusters:
        d.set_refcount(cluster, min(int(d.counts[cluster]) + d.rng.randint(1, 2), (1 << d.walk.refcount_bits) - 1))
    return f"{len(clusters)} refcounts too high"


@kind("reftable-entry-zeroed", 1, _always)
def _rt_zeroed(d: Damager) -> str | None:
    index, _ = d.rng.choice(d.used_blocks())
    d.put(d.walk.rt_offset + 8 * index, 0)
    return f"refcount table entry {index} zeroed"


@kind("reftable-entry-wrong")
def _rt_wrong(d: Damager) -> str | None:
    index, _ = d.rng.choice(d.used_blocks())
    at = d.walk.rt_offset + 8 * index
    if d.rng.random() < 0.5:
        return f"refcount table entry {index}: {d.flip(at)}"
    target = d.elsewhere()
    d.put(at, target)
    return f"refcount table entry {index} aimed at {target:#x}"


@kind("reftable-offset")
def _rt_offset(d: Damager) -> str | None:
    target = d.rng.choice((0, d.elsewhere(), d.elsewhere() + 512))
    d.put(HEADER_FIELDS["refcount_table_offset"][0], target)
    return f"refcount table offset {target:#x}"


@kind("copied-wrong", 2, _always)
def _copied_wrong(d: Damager) -> str | None:
    numbers = d.some_rows(6, plain=True)
    for at in {int(d.rows().at[number]) for number in numbers}:
        d.put(at, d.number(at) ^ COPIED)
    if d.used_l1() and (not numbers or d.rng.random() < 0.4):
        at = d.l1_at(d.rng.choice(d.used_l1()))
        d.put(at, d.number(at) ^ COPIED)
        return f"COPIED wrong in an L1 entry and {len(numbers)} L2 entries"
    return f"COPIED wrong in {len(numbers)} L2 entries" if numbers else None


# -- header and extensions ---------------------------------------------------------------------------------------------


def _fields(d: Damager) -> list[str]:
    return [name for name, (at, size) in HEADER_FIELDS.items() if at + size <= (72 if d.walk.version < 3 else 104)]


@kind("header-bit", 3)
def _header_bit(d: Damager) -> str | None:
    name = d.rng.choice(_fields(d))
    return f"header {name}: {d.flip(*HEADER_FIELDS[name])}"


@kind("header-field", 2)
def _header_field(d: Damager) -> str | None:
    name = d.rng.choice(_fields(d))
    at, size = HEADER_FIELDS[name]
    old = d.number(at, size)
    most = (1 << 8 * size) - 1
    new = d.rng.choice(
        (0, most, (old + 1) & most, (old - 1) & most, old << 1 & most, old >> 1, d.rng.getrandbits(8 * size))
    )
    d.put(at, new, size)
    return f"header {name} {old:#x} -> {new:#x}"


@kind("header-noise")
def _header_noise(d: Damager) -> str | None:
    at = d.rng.randrange(4, 104)
    length = d.rng.choice((1, 2, 4, 8, 24))
    d.noise(at, length)
    return f"{length} bytes of noise in the header at {at}"


@kind("extension", 2)
def _extension(d: Damager) -> str | None:
    start = 104 if d.walk.version >= 3 else 72
    end = start
    for at in range(start, min(d.walk.cluster, 4096), 8):
        if any(d.read(at, 8)):
            end = at + 8
    if end == start:
        return None
    at = d.rng.randrange(start, end)
    if d.rng.random() < 0.6:
        return f"extension area: {d.flip(at, 1)}"
    length = min(d.rng.choice((4, 8, 16)), end - at)
    d.write(at, d.rng.choice((bytes(length), d.rng.randbytes(length))))
    return f"{length} bytes of the extension area at {at:#x} overwritten"


@kind("dirty-bit", 1, lambda d: d.walk.version >= 3)
def _dirty(d: Damager) -> str | None:
    if d.walk.version < 3:
        return None
    d.put(72, d.number(72) | d.rng.choice((1, 2, 3)))
    return "dirty or corrupt bit set"


@kind("dirty-and-refcounts", 2, lambda d: d.walk.version >= 3)
def _dirty_refcounts(d: Damager) -> str | None:
    if d.walk.version < 3:
        return None
    d.put(72, d.number(72) | 1)
    return f"dirty bit set and {_refcounts_zeroed(d)}"


# -- snapshots and bitmaps ---------------------------------------------------------------------------------------------


@kind("snapshot-count")
def _snapshot_count(d: Damager) -> str | None:
    if not d.walk.snapshot_entries:
        return None
    new = d.rng.choice((0, len(d.walk.snapshot_entries) - 1, len(d.walk.snapshot_entries) + 1, d.rng.getrandbits(32)))
    d.put(HEADER_FIELDS["nb_snapshots"][0], new, 4)
    return f"snapshot count {len(d.walk.snapshot_entries)} -> {new}"


@kind("snapshot-offset")
def _snapshot_offset(d: Damager) -> str | None:
    if not d.walk.snapshot_entries:
        return None
    at, _ = HEADER_FIELDS["snapshots_offset"]
    if d.rng.random() < 0.5:
        return f"snapshot table offset: {d.flip(at)}"
    target = d.elsewhere()
    d.put(at, target)
    return f"snapshot table offset -> {target:#x}"


@kind("snapshot-entry", 3)
def _snapshot_entry(d: Damager) -> str | None:
    if not d.walk.snapshot_entries:
        return None
    number = d.rng.randrange(len(d.walk.snapshot_entries))
    at, length = d.walk.snapshot_entries[number]
    if d.rng.random() < 0.6:
        name = d.rng.choice([each for each in SNAPSHOT_FIELDS if each != "icount"])
        where, size = SNAPSHOT_FIELDS[name]
        return f"snapshot {number} {name}: {d.flip(at + where, size)}"
    if d.rng.random() < 0.5:
        where = d.rng.randrange(length)
        return f"snapshot {number}: {d.flip(at + where, 1)}"
    d.write(at, d.rng.choice((bytes(length), d.rng.randbytes(length))))
    return f"snapshot {number}: whole entry overwritten"


@kind("snapshot-l1-offset")
def _snapshot_l1_offset(d: Damager) -> str | None:
    if not d.walk.snapshot_entries:
        return None
    at, _ = d.rng.choice(d.walk.snapshot_entries)
    target = d.rng.choice((0, d.elsewhere(), d.elsewhere() + 512))
    d.put(at, target)
    return f"L1 offset of a snapshot -> {target:#x}"


@kind("snapshot-l1-swapped")
def _snapshot_l1_swapped(d: Damager) -> str | None:
    if not d.walk.snapshot_entries:
        return None
    at, _ = d.rng.choice(d.walk.snapshot_entries)
    other = d.rng.choice([each.offset for each in d.walk.l1])
    if len(d.walk.snapshot_entries) > 1 and d.rng.random() < 0.5:
        second, _ = d.rng.choice([each for each in d.walk.snapshot_entries if each[0] != at])
        d.put(second, d.number(at))
        other = d.walk.l1[0].offset
    d.put(at, other)
    return f"L1 offset of a snapshot -> that of another, {other:#x}"


@kind("snapshot-l1-entry", 2)
def _snapshot_l1_entry(d: Damager) -> str | None:
    others = [each for each in d.walk.l1[1:] if each.entries.any()]
    if not others:
        return None
    table = d.rng.choice(others)
    at = table.offset + 8 * int(d.rng.choice(np.flatnonzero(table.entries)))
    if d.rng.random() < 0.5:
        return f"L1 table of snapshot {table.view}: {d.flip(at)}"
    d.put(at, 0)
    return f"L1 table of snapshot {table.view}: an entry zeroed"


@kind("snapshot-l2-entry", 2)
def _snapshot_l2_entry(d: Damager) -> str | None:
    others = [rows for view, rows in d.walk.rows.items() if view != ACTIVE and len(rows)]
    if not others:
        return None
    rows = d.rng.choice(others)
    at = int(rows.at[d.rng.randrange(len(rows))])
    return f"L2 entry of a snapshot: {d.flip(at)}"


def _has_bitmaps(d: Damager) -> bool:
    return any(what == "bitmap directory" for what, _, _ in d.walk.claims)


@kind("bitmap-directory")
def _bitmap_directory(d: Damager) -> str | None:
    if not _has_bitmaps(d):
        return None
    with Editor(d.pristine) as editor:
        entry = d.rng.choice(editor.bitmaps())
    name = d.rng.choice(list(BITMAP_FIELDS))
    where, size = BITMAP_FIELDS[name]
    return f"bitmap {entry.name} {name}: {d.flip(entry.offset + where, size)}"


@kind("bitmap-table")
def _bitmap_table(d: Damager) -> str | None:
    tables = [(offset, length) for what, offset, length in d.walk.claims if what == "bitmap table"]
    if not tables:
        return None
    offset, length = d.rng.choice(tables)
    at = offset + d.rng.randrange(max(1, length // 8)) * 8
    if d.rng.random() < 0.3:
        target = d.elsewhere()
        d.put(at, target)
        return f"bitmap table entry aimed at {target:#x}"
    return f"bitmap table: {d.flip(at)}"


@kind("bitmap-extension")
def _bitmap_extension(d: Damager) -> str | None:
    if not _has_bitmaps(d):
        return None
    with Editor(d.pristine) as editor:
        at = editor.extension(EXT_BITMAPS).offset
    return f"bitmaps extension: {d.flip(at + d.rng.randrange(4) * 8)}"


# -- the file ----------------------------------------------------------------------------------------------------------


@kind("file-cut", 2)
def _file_cut(d: Damager) -> str | None:
    size = d.walk.file_size
    cut = d.rng.choice((1, 511, 512, d.walk.cluster // 2, d.walk.cluster, 3 * d.walk.cluster, size // 3))
    keep = max(size - cut, min(size, 4 * d.walk.cluster))
    if keep >= size:
        return None
    os.truncate(d.path, keep)
    return f"the file cut off by {size - keep} bytes"


@kind("metadata-bytes", 3)
def _metadata_bytes(d: Damager) -> str | None:
    regions = list(d.walk.regions())
    done = []
    for _ in range(d.rng.choice((1, 1, 3, 8))):
        what, offset, length = d.rng.choice(regions)
        at = offset + d.rng.randrange(max(1, min(length, d.walk.cluster)))
        d.write(at, bytes((d.rng.randrange(256),)))
        done.append(f"{what} at {at:#x}")
    return f"a random byte in {', '.join(done[:3])}"


@kind("metadata-sector")
def _metadata_sector(d: Damager) -> str | None:
    what, offset, length = d.rng.choice(list(d.walk.regions()))
    at = (offset + d.rng.randrange(max(1, min(length, d.walk.cluster)))) // 512 * 512
    noisy = d.rng.random() < 0.5
    at = max(at, 512) if d.walk.cluster > 512 else at
    d.write(at, d.rng.randbytes(512) if noisy else bytes(512))
    return f"sector at {at:#x} ({what}) {'overwritten with noise' if noisy else 'zeroed'}"


@kind("leak-data")
def _leak_data(d: Damager) -> str | None:
    end = d.walk.clusters
    count = d.rng.choice((1, 4, 200 if d.walk.bits <= 16 else 4))
    done = 0
    for cluster in range(end, end + count):
        d.noise(cluster << d.walk.bits, min(d.walk.cluster, 64 << 10))
        done += d.set_refcount(cluster, 1)
    os.truncate(d.path, (end + count) << d.walk.bits)
    return f"{done} leaked clusters with data at the end"


@kind("leak-table")
def _leak_table(d: Damager) -> str | None:
    tables = d.tables()
    if not tables:
        return None
    table, counted = d.rng.choice(tables), d.rng.random() < 0.5
    d.write(d.walk.clusters << d.walk.bits, d.read(table, d.walk.cluster))
    if counted:
        d.set_refcount(d.walk.clusters, 1)
    return (
        f"a stale copy of the L2 table at {table:#x} at the end of the file, {'counted' if counted else 'not counted'}"
    )


@kind("lost-l1-and-refcounts", 2)
def _lost_l1_and_refcounts(d: Damager) -> str | None:
    used = d.used_l1()
    if not used:
        return None
    index = d.rng.choice(used)
    table = int(d.walk.l2_tables[ACTIVE][index])
    if d.shared(table):
        return None
    d.put(d.l1_at(index), 0)
    d.set_refcount(table >> d.walk.bits, 0)
    rows = d.rows()
    chosen = np.flatnonzero(rows.table == table)
    for number in chosen.tolist() if not d.walk.external else []:
        for cluster in range(int(rows.start[number]) >> d.walk.bits, (int(rows.end[number]) - 1 >> d.walk.bits) + 1):
            if cluster < d.walk.clusters and d.counts[cluster] == 1:
                d.set_refcount(cluster, 0)
    return f"L1 entry {index} zeroed, and the refcounts of its table and of what it maps"


@kind("lost-l1-and-all-refcounts", 1)
def _lost_l1_and_all(d: Damager) -> str | None:
    words = _l1_zeroed(d)
    return f"{words}; {_refcounts_all(d)}" if words else None


@kind("flags-in-entries")
def _flags(d: Damager) -> str | None:
    numbers = d.some_rows(3)
    for number in numbers:
        d.flip(int(d.rows().at[number]), bits=range(56, 64))
    return f"flag bits flipped in {len(numbers)} L2 entries" if numbers else None


@dataclass(frozen=True, slots=True)
class Damage:
    """What was done. kinds: names.  words: one line.  certain: the truth can be told for sure."""

    kinds: tuple[str, ...]
    words: str
    certain: bool


def damage(path: Path, pristine: Walk, rng: random.Random, count: int) -> Damage:
    """Damage the image at `path`, a copy of the one that was walked, in `count` ways."""
    damager = Damager(path, pristine, pristine.path, rng)
    names: list[str] = []
    words: list[str] = []
    certain = count == 1
    weights = [each.weight for each in KINDS.values()]
    while len(names) < count:
        chosen = rng.choices(list(KINDS.values()), weights)[0]
        sure = chosen.certain is not None and chosen.certain(damager)
        done = chosen.work(damager)
        if done is None:
            continue
        names.append(chosen.name)
        words.append(done)
        certain = certain and sure
    return Damage(tuple(names), "; ".join(words), certain)


__all__ = ["KINDS", "Damage", "Damager", "damage"]
