"""A walk of a qcow2 file for the preservation campaign's judge: who refers to which host cluster, and what is counted.

Independent of `formats/` and the engine, as `sample_images/editor.py` is: a referee shares no error with the players.
It survives damage: what cannot be read is left out. All offsets are bytes of the file unless a name says clusters.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sample_images.editor import (
    COMPRESSED,
    EXT_BITMAPS,
    EXT_CRYPTO,
    MASK_OFFSET,
    ZERO,
)

U64 = NDArray[np.uint64]
I64 = NDArray[np.int64]
_MOST_TABLES = 1 << 18
_MOST_L1 = 1 << 20
ACTIVE = "active"


@dataclass(frozen=True, slots=True)
class Table:
    """One L1 table: the active disk's, or a snapshot's (view: its ID). entries: raw values."""

    view: str
    offset: int
    entries: U64


@dataclass(frozen=True, slots=True)
class Rows:
    """L2 entries that name host bytes, as columns of one length.

    guest: guest cluster.  at: where the entry lies.  table: its L2 table.  raw: the entry.  start, end: host bytes named.
    data: False for an allocated cluster that reads as zeros.  packed: compressed.
    """

    guest: I64
    at: I64
    table: I64
    raw: U64
    start: I64
    end: I64
    data: NDArray[np.bool_]
    packed: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.guest)


@dataclass(slots=True)
class Walk:
    """One walked image. refused: why nothing could be read (then all else is empty)."""

    path: Path
    refused: str = ""
    version: int = 0
    bits: int = 16
    size: int = 0
    file_size: int = 0
    incompatible: int = 0
    l1: list[Table] = field(default_factory=list)
    rows: dict[str, Rows] = field(default_factory=dict)
    l2_tables: dict[str, I64] = field(default_factory=dict)
    """view -> offsets of its L2 tables, by L1 index (0: none)."""
    blocks: U64 = field(default_factory=lambda: np.zeros(0, np.uint64))
    """The refcount table."""
    rt_offset: int = 0
    refcount_bits: int = 16
    claims: list[tuple[str, int, int]] = field(default_factory=list)
    """(what, offset, length) of metadata other than L2 tables and refcount blocks."""
    snapshot_entries: list[tuple[int, int]] = field(default_factory=list)
    """(offset, length) of each snapshot table entry."""

    @property
    def cluster(self) -> int:
        return 1 << self.bits

    @property
    def clusters(self) -> int:
        """Host clusters of the file, the last may be short."""
        return (self.file_size + self.cluster - 1) >> self.bits

    @property
    def extended(self) -> bool:
        return bool(self.version >= 3 and self.incompatible & 16)

    @property
    def external(self) -> bool:
        """Guest data lies in another file."""
        return bool(self.version >= 3 and self.incompatible & 4)

    @property
    def entry_size(self) -> int:
        return 16 if self.extended else 8

    @property
    def per_table(self) -> int:
        """L2 entries in one table."""
        return self.cluster // self.entry_size

    @property
    def block_entries(self) -> int:
        return self.cluster * 8 // self.refcount_bits

    def all_tables(self) -> I64:
        """Every L2 table once."""
        found = [tables[tables > 0] for tables in self.l2_tables.values()]
        return np.unique(np.concatenate(found)) if found else np.zeros(0, np.int64)

    def referenced(self) -> NDArray[np.bool_]:
        """Per host cluster: something refers to it."""
        out = np.zeros(self.clusters, dtype=bool)
        out[:1] = True

        def mark(offset: int, length: int) -> None:
            if 0 <= offset < self.file_size and length > 0:
                out[offset >> self.bits : min(((offset + length - 1) >> self.bits) + 1, len(out))] = True

        for _, offset, length in self.claims:
            mark(offset, length)
        blocks = (self.blocks & np.uint64(MASK_OFFSET)).astype(np.int64)
        for group in (blocks, self.all_tables()):
            found = group[(group > 0) & (group < self.file_size)] >> self.bits
            out[found] = True
        for rows in self.rows.values():
            if self.external:
                continue
            first, last = rows.start >> self.bits, (rows.end - 1) >> self.bits
            for step in range(int((last - first).max()) + 1 if len(rows) else 0):
                at = first + step
                at = at[(at <= last) & (at < len(out))]
                out[at] = True
        return out

    def refcounts(self) -> U64:
        """Stored refcount of each host cluster (0 where no block says anything)."""
        out = np.zeros(self.clusters, dtype=np.uint64)
        with open(self.path, "rb") as file:
            for index, value in enumerate(self.blocks[: -(-self.clusters // max(1, self.block_entries))].tolist()):
                offset = value & MASK_OFFSET
                if not offset or offset % self.cluster or offset >= self.file_size:
                    continue
                file.seek(offset)
                counts = unpack_counts(file.read(self.cluster), self.refcount_bits)
                first = index * self.block_entries
                part = counts[: max(0, self.clusters - first)]
                out[first : first + len(part)] = part
        return out

    def regions(self) -> Iterator[tuple[str, int, int]]:
        """(what, offset, length) of all metadata."""
        yield from self.claims
        for offset in self.all_tables().tolist():
            yield "L2 table", offset, self.cluster
        for value in self.blocks.tolist():
            if value & MASK_OFFSET:
                yield "refcount block", value & MASK_OFFSET, self.cluster


def unpack_counts(block: bytes, bits: int) -> U64:
    """The refcounts in a block, `bits` wide each."""
    if bits >= 8:
        return np.frombuffer(block[: len(block) // (bits // 8) * (bits // 8)], dtype=f">u{bits // 8}").astype(np.uint64)
    octets = np.frombuffer(block, dtype=np.uint8)
    shifts = np.arange(0, 8, bits, dtype=np.uint8)
    return ((octets[:, None] >> shifts) & np.uint8((1 << bits) - 1)).reshape(-1).astype(np.uint64)


def walk(path: Path) -> Walk:
    """Walk an image; never raises on its content."""
    out = Walk(path, file_size=path.stat().st_size)
    with open(path, "rb") as file:
        head = file.read(112).ljust(112, b"\0")
        magic, out.version = struct.unpack(">II", head[:8])
        if magic != 0x514649FB or out.version not in (2, 3):
            out.refused = "no qcow2 header"
            return out
        out.bits = int.from_bytes(head[20:24], "big")
        if not 9 <= out.bits <= 21:
            out.refused = f"cluster_bits {out.bits}"
            return out
        out.size = int.from_bytes(head[24:32], "big")
        if out.version >= 3:
            out.incompatible = int.from_bytes(head[72:80], "big")
            order = int.from_bytes(head[96:100], "big")
            out.refcount_bits = 1 << order if order <= 6 else 16
        _read_tables(out, file, head)
    return out


def _read_tables(out: Walk, file: object, head: bytes) -> None:
    def number(at: int, size: int) -> int:
        return int.from_bytes(head[at : at + size], "big")

    l1_offset, l1_size = number(40, 8), number(36, 4)
    out.rt_offset = number(48, 8)
    rt_length = min(number(56, 4) << out.bits, 64 << 20)
    out.blocks = _words(file, out.rt_offset, rt_length // 8)
    out.claims += [
        ("header", 0, out.cluster),
        ("L1 table", l1_offset, l1_size * 8),
        ("refcount table", out.rt_offset, rt_length),
    ]
    seen: dict[int, Rows] = {}
    _view(out, file, ACTIVE, l1_offset, l1_size, seen)
    _read_snapshots(out, file, number(60, 4), number(64, 8), seen)
    _read_extensions(out, file, number(100, 4) if out.version >= 3 else 72)


def _words(file: object, offset: int, count: int) -> U64:
    if count <= 0 or offset < 0 or offset >= 1 << 62:
        return np.zeros(0, np.uint64)
    data = _bytes(file, offset, min(count, _MOST_L1 * 8) * 8)
    return np.frombuffer(data[: len(data) // 8 * 8], dtype=">u8").astype(np.uint64)


def _bytes(file: object, offset: int, length: int) -> bytes:
    if not 0 <= offset < 1 << 62 or length <= 0:
        return b""
    file.seek(offset)  # type: ignore[attr-defined]
    return bytes(file.read(length))  # type: ignore[attr-defined]


def _view(out: Walk, file: object, view: str, offset: int, count: int, seen: dict[int, Rows]) -> None:
    entries = _words(file, offset, min(count, _MOST_L1))
    out.l1.append(Table(view, offset, entries))
    tables = (entries & np.uint64(MASK_OFFSET)).astype(np.int64)
    bad = (tables & (out.cluster - 1) != 0) | (tables >= out.file_size)
    tables[bad] = 0
    out.l2_tables[view] = tables
    parts = []
    for index in np.flatnonzero(tables)[:_MOST_TABLES].tolist():
        table = int(tables[index])
        if table not in seen:
            seen[table] = _table_rows(out, _bytes(file, table, out.cluster), table)
        rows = seen[table]
        if len(rows):
            parts.append((rows, index * out.per_table))
    out.rows[view] = _joined(parts)


def _joined(parts: list[tuple[Rows, int]]) -> Rows:
    if not parts:
        return _table_rows_of(np.zeros(0, np.uint64), 0, np.zeros(0, np.int64), 9, 8, False)

    def column(name: str) -> NDArray[np.generic]:
        return np.concatenate([getattr(rows, name) for rows, _ in parts])

    guest = np.concatenate([rows.guest + first for rows, first in parts])
    return Rows(guest, *(column(name) for name in ("at", "table", "raw", "start", "end", "data", "packed")))  # type: ignore[arg-type]


def _table_rows(out: Walk, content: bytes, table: int) -> Rows:
    words = np.frombuffer(content[: len(content) // 16 * 16], dtype=">u8").astype(np.uint64)
    step = out.entry_size // 8
    raw = words[::step]
    slots = np.flatnonzero(raw & np.uint64(COMPRESSED | MASK_OFFSET)).astype(np.int64)
    return _table_rows_of(raw[slots], table, slots, out.bits, out.entry_size, out.extended)


def _table_rows_of(raw: U64, table: int, slots: I64, bits: int, entry_size: int, extended: bool) -> Rows:
    packed = raw & np.uint64(COMPRESSED) != 0
    shift = 62 - (bits - 8)
    start = (raw & np.uint64(MASK_OFFSET)).astype(np.int64)
    start = start & ~np.int64((1 << bits) - 1)
    end = start + (1 << bits)
    at = (raw & np.uint64((1 << shift) - 1)).astype(np.int64)
    sectors = ((raw >> np.uint64(shift)) & np.uint64((1 << (bits - 8)) - 1)).astype(np.int64)
    start = np.where(packed, at, start)
    end = np.where(packed, (at & ~np.int64(511)) + (sectors + 1) * 512, end)
    data = packed | (np.bool_(extended) | (raw & np.uint64(ZERO) == 0))
    full = np.full(len(raw), table, dtype=np.int64)
    return Rows(slots, full + slots * entry_size, full, raw, start, end, data, packed)


def _read_snapshots(out: Walk, file: object, count: int, offset: int, seen: dict[int, Rows]) -> None:
    at = offset
    for _ in range(min(count, 4096)):
        entry = _bytes(file, at, 40)
        if len(entry) < 40:
            break
        l1_offset, l1_size, id_length, name_length = struct.unpack(">QIHH", entry[:16])
        extra = int.from_bytes(entry[36:40], "big")
        if extra > 1 << 16:
            break
        ident = _bytes(file, at + 40 + extra, id_length).decode("utf-8", "replace")
        length = (40 + extra + id_length + name_length + 7) // 8 * 8
        out.snapshot_entries.append((at, length))
        out.claims.append((f"L1 table of snapshot {ident}", l1_offset, l1_size * 8))
        view = ident if ident not in out.rows else f"{ident}#{at:x}"
        _view(out, file, view, l1_offset, l1_size, seen)
        at += length
    if at > offset:
        out.claims.append(("snapshot table", offset, at - offset))


def _read_extensions(out: Walk, file: object, at: int) -> None:
    end = out.cluster
    for _ in range(64):
        if at + 8 > end:
            return
        kind, length = struct.unpack(">II", _bytes(file, at, 8).ljust(8, b"\0"))
        if kind == 0 or length > end - at - 8:
            return
        data = _bytes(file, at + 8, length)
        if kind == EXT_BITMAPS and length >= 24:
            _read_bitmaps(out, file, *struct.unpack(">I4xQQ", data[:24]))
        if kind == EXT_CRYPTO and length >= 16:
            out.claims.append(("LUKS header", *struct.unpack(">QQ", data[:16])))
        at += 8 + (length + 7) // 8 * 8


def _read_bitmaps(out: Walk, file: object, count: int, size: int, offset: int) -> None:
    out.claims.append(("bitmap directory", offset, min(size, 64 << 20)))
    at = offset
    for _ in range(min(count, 65535)):
        entry = _bytes(file, at, 24)
        if len(entry) < 24:
            return
        table, entries = struct.unpack(">QI", entry[:12])
        name_length, extra = int.from_bytes(entry[18:20], "big"), int.from_bytes(entry[20:24], "big")
        out.claims.append(("bitmap table", table, min(entries, _MOST_L1) * 8))
        for value in _words(file, table, min(entries, _MOST_L1)).tolist():
            if value & MASK_OFFSET:
                out.claims.append(("bitmap data", value & MASK_OFFSET, out.cluster))
        at += (24 + extra + name_length + 7) // 8 * 8
        if at >= offset + size:
            return
