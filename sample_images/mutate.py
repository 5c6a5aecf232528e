"""Seeded random damage: ``mutate`` changes metadata knowingly, ``corrupt`` overwrites bytes blindly.

The same image and seed give the same damage. Every target is located in the healthy image first, so that several
mutations in one image do not depend on each other.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from sample_images.editor import (
    BITMAP_FIELDS,
    COMPRESSED,
    COPIED,
    EXT_BITMAPS,
    EXT_CRYPTO,
    HEADER_FIELDS,
    MASK_OFFSET,
    SNAPSHOT_FIELDS,
    Editor,
)

TABLE_LIMIT = 4096  # entries of one table that are considered


@dataclass(frozen=True, slots=True)
class Target:
    """A number in the metadata: what it is, where it lies (bytes), and its length in bytes (1, 2, 4 or 8)."""

    kind: str
    label: str
    offset: int
    size: int


Change = Callable[[random.Random, int, int, list[int]], int]  # (rng, old value, bits, interesting offsets) -> new value


def _flip(rng: random.Random, old: int, bits: int, offsets: list[int]) -> int:
    return old ^ 1 << rng.randrange(bits)


def _replace(rng: random.Random, old: int, bits: int, offsets: list[int]) -> int:
    return rng.getrandbits(bits)


def _zero(rng: random.Random, old: int, bits: int, offsets: list[int]) -> int:
    return 0


def _ones(rng: random.Random, old: int, bits: int, offsets: list[int]) -> int:
    return (1 << bits) - 1


def _step(rng: random.Random, old: int, bits: int, offsets: list[int]) -> int:
    return (old + rng.choice((-1, 1, 2, 512, -512, 4096))) % (1 << bits)


def _aim(rng: random.Random, old: int, bits: int, offsets: list[int]) -> int:
    """Aim an entry at some other structure; smaller numbers are replaced by a small one."""
    if bits < 64:
        return rng.randrange(16)
    flags = old & (COPIED | COMPRESSED) if rng.random() < 0.7 else rng.choice((0, COPIED))
    return rng.choice(offsets) | flags


CHANGES: tuple[tuple[str, Change], ...] = (
    ("bit flipped", _flip),
    ("replaced by a random number", _replace),
    ("zeroed", _zero),
    ("set to all ones", _ones),
    ("moved a little", _step),
    ("aimed elsewhere", _aim),
)


def mutate(path: Path, seed: int) -> str:
    """Damage one to three structures of the healthy image at `path`; returns what was done, in one line."""
    rng = random.Random(seed)
    with Editor(path) as editor:
        targets = list(find_targets(editor))
        tables = sorted(set(find_tables(editor)))
        offsets = sorted(
            {offset for _, offset in tables} | {0, editor.file_size // editor.cluster_size * editor.cluster_size}
        )
        kinds = sorted({target.kind for target in targets})
        done = []
        for _ in range(rng.choice((1, 1, 1, 2, 3))):
            if rng.random() < 0.15:
                done.append(_damage_table(editor, rng, tables))
            else:
                kind = rng.choice(kinds)
                target = rng.choice([each for each in targets if each.kind == kind])
                done.append(_damage_number(editor, rng, target, offsets))
    return f"seed {seed}: " + "; ".join(done)


def corrupt(path: Path, seed: int, *, metadata_only: bool = False) -> str:
    """Overwrite, zero or cut bytes anywhere in the file, knowing nothing of it; returns what was done, in one line.

    With `metadata_only` the damage falls into the first 256 KiB, where most metadata lies.
    """
    rng = random.Random(seed)
    done = []
    with Editor(path) as editor:
        size = editor.file_size
        reach = max(1, min(size, 256 << 10) if metadata_only else size)
        for _ in range(rng.choice((1, 1, 2, 4, 16))):
            at = rng.randrange(min(reach, 512)) if rng.random() < 0.3 else rng.randrange(reach)
            length = min(rng.choice((1, 2, 4, 8, 64, 512, 4096)), max(1, size - at))
            how = rng.choice(("noise", "noise", "zeros", "ones", "cut"))
            if how == "cut" and rng.random() < 0.9:
                how = "noise"
            if how == "cut":
                editor.truncate(at)
                done.append(f"cut at {at:#x}")
                break
            fill = {"noise": rng.randbytes(length), "zeros": bytes(length), "ones": b"\xff" * length}[how]
            editor.write(at, fill)
            done.append(f"{length} bytes of {how} at {at:#x}")
    return f"seed {seed}: " + "; ".join(done)


def find_targets(e: Editor) -> Iterator[Target]:
    """Every number that `mutate` may change, by kind of structure."""
    for name, (offset, size) in HEADER_FIELDS.items():
        if offset + size <= e.header_length and name != "magic":
            yield Target("header", f"header field {name}", offset, size)
    for ext in e.extensions():
        yield Target("extension", f"type of extension {ext.type:#x}", ext.offset, 4)
        yield Target("extension", f"length of extension {ext.type:#x}", ext.offset + 4, 4)
        if ext.type in (EXT_BITMAPS, EXT_CRYPTO):
            for at in range(0, ext.length, 8):
                yield Target("extension", f"extension {ext.type:#x} byte {at}", ext.data + at, 8)
    for index in range(min(e.get("l1_size"), TABLE_LIMIT)):
        yield Target("l1", f"L1 entry {index}", e.l1_at(index), 8)
    for guest, at in e.entries()[:TABLE_LIMIT]:
        yield Target("l2", f"L2 entry of guest offset {guest:#x}", at, 8)
        if e.extended_l2:
            yield Target("l2", f"subclusters of guest offset {guest:#x}", at + 8, 8)
    for index in e.allocated_l1():
        slot = e.l2_table(index) + e.cluster_size - e.l2_entry_size
        yield Target("l2", f"last L2 entry of table {index}", slot, 8)
    yield from _refcount_targets(e)
    yield from _snapshot_targets(e)
    yield from _bitmap_targets(e)


def _refcount_targets(e: Editor) -> Iterator[Target]:
    for index in range(min(e.rt_entries, TABLE_LIMIT)):
        block = e.rt(index) & MASK_OFFSET
        if block or index < 2:
            yield Target("refcount-table", f"refcount table entry {index}", e.rt_at(index), 8)
    size = max(1, e.refcount_bits // 8)
    clusters = min(-(-e.file_size // e.cluster_size), TABLE_LIMIT)
    for cluster in range(clusters + 2):
        index, slot = divmod(cluster, e.block_entries)
        block = e.rt(index) & MASK_OFFSET if index < e.rt_entries else 0
        if block:
            yield Target("refcount", f"refcount of cluster {cluster}", block + slot * e.refcount_bits // 8, size)


def _snapshot_targets(e: Editor) -> Iterator[Target]:
    for number, entry in enumerate(e.snapshots()):
        for name, (offset, size) in SNAPSHOT_FIELDS.items():
            if offset + size <= 40 + entry.extra_length:
                yield Target("snapshot", f"snapshot {number} field {name}", entry.offset + offset, size)
        for index in range(min(entry.l1_size, 64)):
            yield Target("snapshot-l1", f"snapshot {number} L1 entry {index}", entry.l1_offset + 8 * index, 8)
            table = e.number(entry.l1_offset + 8 * index) & MASK_OFFSET
            for slot in range(min(e.l2_entries, 32) if table else 0):
                at = table + slot * e.l2_entry_size
                yield Target("snapshot-l2", f"snapshot {number} L1 entry {index} L2 entry {slot}", at, 8)


def _bitmap_targets(e: Editor) -> Iterator[Target]:
    if not any(ext.type == EXT_BITMAPS for ext in e.extensions()):
        return
    for entry in e.bitmaps():
        for name, (offset, size) in BITMAP_FIELDS.items():
            yield Target("bitmap", f"bitmap {entry.name} field {name}", entry.offset + offset, size)
        for index in range(min(entry.table_size, 64)):
            at = entry.table_offset + 8 * index
            yield Target("bitmap-table", f"bitmap {entry.name} table entry {index}", at, 8)


def find_tables(e: Editor) -> Iterator[tuple[str, int]]:
    """(words, host offset) of one cluster of every kind of structure, and of some guest data."""
    yield "the L1 table", e.l1_offset
    yield "the refcount table", e.rt_offset
    for index in range(min(e.rt_entries, TABLE_LIMIT)):
        if e.rt(index):
            yield f"refcount block {index}", e.rt(index) & MASK_OFFSET
    for index in e.allocated_l1():
        yield f"L2 table {index}", e.l2_table(index)
    if not e.version >= 3 or not e.get("incompatible_features") & 4:  # offsets in an external data file are not ours
        for guest in e.guests("data")[:8]:
            yield f"data of guest offset {guest:#x}", e.host_of(guest)
    if e.get("nb_snapshots"):
        yield "the snapshot table", e.get("snapshots_offset")
        for number, entry in enumerate(e.snapshots()):
            yield f"L1 table of snapshot {number}", entry.l1_offset
    if any(ext.type == EXT_BITMAPS for ext in e.extensions()):
        for bitmap in e.bitmaps():
            yield f"table of bitmap {bitmap.name}", bitmap.table_offset


def _damage_number(e: Editor, rng: random.Random, target: Target, offsets: list[int]) -> str:
    old = e.number(target.offset, target.size)
    words, change = rng.choice(CHANGES)
    new = change(rng, old, 8 * target.size, offsets)
    if new == old:
        words, new = "bit flipped", _flip(rng, old, 8 * target.size, offsets)
    e.put(target.offset, new, target.size)
    return f"{target.label} {words} ({old:#x} -> {new:#x})"


def _damage_table(e: Editor, rng: random.Random, tables: list[tuple[str, int]]) -> str:
    words, offset = rng.choice(tables)
    how = rng.choice(("wiped", "half wiped", "overwritten with noise", "copied over"))
    cluster = e.cluster_size
    if how == "wiped":
        e.write(offset, bytes(cluster))
    elif how == "half wiped":
        e.write(offset, bytes(cluster // 2))
    elif how == "overwritten with noise":
        e.write(offset, rng.randbytes(min(cluster, 512)))
    else:
        other, source = rng.choice(tables)
        e.write(offset, e.read(source, cluster))
        return f"{words} overwritten with a copy of {other}"
    return f"{words} {how}"
