"""Metadata structures as QEMU counts them: header, L1 tables, snapshot table, refcount table, LUKS header, bitmaps.

Each becomes a Claim, with findings for what lies past the end of the file or contradicts itself; and the L1 tables are
collected. QEMU: calculate_refcounts, qcow2_check_read_snapshot_table, qcow2_check_bitmaps_refcounts.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import numpy as np

from formats.qcow2 import limits
from formats.qcow2.entries import Fault, Pointers, PointerTable, past_end
from formats.qcow2.extensions import ExtensionType
from formats.qcow2.header import field as header_field
from workbench.check.census import Claim
from workbench.check.findings import FindingLog
from workbench.check.kinds import Owner
from workbench.check.passes_refcounts import READ_LIMIT
from workbench.check.tables import ACTIVE, Collector, L1Table, read_l1
from workbench.engine.metadata import Metadata, Region
from workbench.storage.base import Storage
from workbench.units import Geometry, round_up

if TYPE_CHECKING:
    from numpy.typing import NDArray

INT64: Final = 1 << 63
_MOST_RUNS: Final = 64
_L1_BUDGET: Final = 1 << 28
"""Bytes of snapshots' L1 tables that are always read, whatever the file's size."""


@dataclass(slots=True)
class Regions:
    """What the walk found. grows: some region reaches into one cluster past the last.  abort: why QEMU would give up."""

    claims: list[Claim] = field(default_factory=list)
    bitmap_data: list[tuple[int, NDArray[np.int64]]] = field(default_factory=list)
    collector: Collector = field(default_factory=Collector)
    active_l1: NDArray[np.uint64] = field(default_factory=lambda: np.zeros(0, np.uint64))
    grows: bool = False
    abort: str | None = None
    check_errors: int = 0


@dataclass(frozen=True, slots=True)
class WalkedSnapshot:
    """A snapshot table entry as QEMU reads it (zeros past the end of the file). Offsets and sizes in bytes."""

    offset: int
    l1_offset: int
    l1_size: int
    extra_size: int
    length: int
    name: str


class RegionWalk:
    """Walks the metadata structures once."""

    def __init__(self, meta: Metadata, geometry: Geometry, log: FindingLog) -> None:
        self.meta = meta
        self.geometry = geometry
        self.log = log
        self.found = Regions()
        self.clusters = geometry.clusters(meta.file_size)

    def run(self) -> Regions:
        meta, header, found = self.meta, self.meta.header, self.found
        self.claim(Owner.HEADER, 0, self.geometry.cluster_size)
        found.active_l1 = read_l1(meta, meta.l1_region.offset, header.l1_size)
        if header.l1_size:
            self.claim(Owner.ACTIVE_L1, header.l1_table_offset, header.l1_size * 8)
            self._l1(L1Table(header.l1_table_offset, found.active_l1, ACTIVE))
        self._snapshots()
        self.claim(Owner.REFCOUNT_TABLE, header.refcount_table_offset, meta.refcount_table_region.length)
        pointer = meta.encryption
        if header.crypt_method == 2 and pointer is not None and pointer.length < INT64:
            self.claim(Owner.LUKS_HEADER, pointer.offset, pointer.length)
        self._bitmaps()
        return found

    def give_up(self, reason: str) -> None:
        """QEMU's check would end here without a result."""
        if self.found.abort is None:
            self.found.abort = reason

    def claim(
        self, owner: Owner, offset: int, length: int, *, index: int = -1, snapshot: int = -1, count: int = 1
    ) -> None:
        """Count a region, as qcow2_inc_refcounts_imrt judges it; `count` users of the same region."""
        if length <= 0:
            return
        if offset >= INT64:
            self.found.check_errors += 1
            self.log.add(
                "REGION-BEYOND-EOF",
                offset,
                length,
                counted=0,
                index=max(index, 0),
                snapshot=snapshot,
                numbers={"owner": owner.title},
            )
            self.give_up(f"the {owner.title} at {offset:#x} is beyond any file")
            return
        size = self.meta.file_size
        if past_end(offset, length, size, self.geometry.cluster_size):
            self.log.add(
                "REGION-BEYOND-EOF", offset, length, counted=count, index=max(index, 0), snapshot=snapshot,
                numbers={"owner": owner.title},
            )  # fmt: skip
            return
        if (offset + length - 1) >> self.geometry.cluster_bits >= self.clusters:
            self.found.grows = True
        self.found.claims += [Claim(owner, offset, length, index, snapshot)] * count

    # -- L1 tables -----------------------------------------------------------------------------------------------------

    def _l1(self, table: L1Table) -> None:
        """Faults of the L1 entries; the L2 tables are collected."""
        entries = table.entries
        if (int(entries.size) * 8 + table.offset) > READ_LIMIT:
            self.found.check_errors += 1
            self.give_up(f"the L1 table at {table.offset:#x} cannot be read")
            return
        self.found.collector.add(table)
        used = np.flatnonzero(entries)
        if not used.size:
            return
        words = entries[used]
        each = Pointers(words, PointerTable.L1, self.meta.shape)
        offset, unaligned = each.offset, each.fault(Fault.UNALIGNED)
        size = self.geometry.cluster_size
        self._l1_log("L1-ENTRY-RESERVED", table, used, words, each.fault(Fault.RESERVED))
        self._l1_log("L1-ENTRY-UNALIGNED", table, used, words, unaligned)
        self._l1_log("L1-ENTRY-BEYOND-EOF", table, used, words, each.beyond(self.meta.file_size))
        self._l1_log("L1-ENTRY-OFFSET-ZERO", table, used, words, each.fault(Fault.COPIED_NOWHERE), counted=False)
        reach = unaligned & (offset < np.uint64(self.meta.file_size))
        if reach.any() and (int(offset[reach].max()) + size - 1) >> self.geometry.cluster_bits >= self.clusters:
            self.found.grows = True

    def _l1_log(
        self,
        code: str,
        table: L1Table,
        used: NDArray[np.intp],
        words: NDArray[np.uint64],
        chosen: NDArray[np.bool_],
        *,
        counted: bool = True,
    ) -> None:
        if chosen.any():
            log_l1(self.log, self.geometry, code, table, used[chosen], words[chosen], table.users if counted else 0)

    # -- snapshots -----------------------------------------------------------------------------------------------------

    def _snapshots(self) -> None:
        meta, header = self.meta, self.meta.header
        if not header.nb_snapshots:
            return
        if header.has("data_file"):
            self.log.add(
                "SNAPSHOT-WITH-DATA-FILE",
                *header_field("nb_snapshots", "snapshots_offset"),
                counted=1,
                value=header.nb_snapshots,
            )
        walked, length = self._walk_table()
        tables: dict[tuple[int, int], list[int]] = {}
        for index, each in enumerate(walked):
            place = {"offset": each.offset, "length": each.length, "index": index, "snapshot": index}
            if header.version >= 3 and each.extra_size < limits.MIN_SNAPSHOT_EXTRA_DATA_V3:
                self.log.add(
                    "SNAPSHOT-EXTRA-TOO-SMALL", **place, counted=1, value=each.extra_size, numbers={"name": each.name}
                )
            if each.l1_offset % self.geometry.cluster_size:
                self.log.add(
                    "SNAPSHOT-L1-UNALIGNED", **place, counted=1, value=each.l1_offset, numbers={"name": each.name}
                )
            elif each.l1_size * 8 > limits.MAX_L1_SIZE:
                self.log.add(
                    "SNAPSHOT-L1-TOO-LARGE", **place, counted=1, value=each.l1_size, numbers={"name": each.name}
                )
            elif each.l1_size:
                tables.setdefault((each.l1_offset, each.l1_size), []).append(index)
        read = 0
        for (offset, size), users in tables.items():
            # Tables that lie over each other by the thousand would take forever; honest ones fit into the file.
            read += min(size * 8, max(0, meta.file_size - offset))
            if read > max(_L1_BUDGET, 4 * meta.file_size):
                self.give_up(
                    f"the snapshots' L1 tables overlap: {len(tables)} tables claim more bytes than the file has"
                )
                break
            if offset >= INT64 or offset + size * 8 > READ_LIMIT:
                self.found.check_errors += 1
                self.give_up(f"the L1 table of snapshot {users[0]} at {offset:#x} cannot be read")
                continue
            self.claim(Owner.INACTIVE_L1, offset, size * 8, index=users[0], snapshot=users[0], count=len(users))
            self._l1(L1Table(offset, read_l1(meta, offset, size), users[0], len(users)))
        self.claim(Owner.SNAPSHOT_TABLE, header.snapshots_offset, length)

    def _walk_table(self) -> tuple[list[WalkedSnapshot], int]:
        """Entries as QEMU reads them, and the table's length in bytes."""
        header = self.meta.header
        reader = _ZeroExtended(self.meta.storage, self.meta.file_size, header.snapshots_offset)
        found: list[WalkedSnapshot] = []
        position = 0
        if header.nb_snapshots > limits.MAX_SNAPSHOTS:
            self.give_up(f"{header.nb_snapshots} snapshots exceed the limit of {limits.MAX_SNAPSHOTS}")
        for index in range(min(header.nb_snapshots, limits.MAX_SNAPSHOTS)):
            position = round_up(position, 8)
            fixed = reader.read(position, 40)
            start = position
            extra = int.from_bytes(fixed[36:40], "big")
            ident, name = int.from_bytes(fixed[12:14], "big"), int.from_bytes(fixed[14:16], "big")
            if extra > limits.MAX_SNAPSHOT_EXTRA_DATA:
                self.give_up(f"snapshot table entry {index} has {extra} bytes of extra data")
                break
            text = reader.read(position + 40 + extra + ident, name).decode("utf-8", "replace")
            position += 40 + extra + ident + name
            if position > limits.MAX_SNAPSHOT_TABLE_SIZE:
                self.give_up("the snapshot table is too large")
                break
            found.append(
                WalkedSnapshot(
                    header.snapshots_offset + start,
                    int.from_bytes(fixed[0:8], "big"),
                    int.from_bytes(fixed[8:12], "big"),
                    extra,
                    position - start,
                    text,
                )
            )
        return found, position

    # -- bitmaps -------------------------------------------------------------------------------------------------------

    def _bitmaps(self) -> None:
        meta, size = self.meta, self.geometry.cluster_size
        extension = meta.bitmaps_extension
        if extension is None or not meta.header.has("bitmaps") or not extension.nb_bitmaps:
            return
        if meta.extension(ExtensionType.BITMAPS) is None:
            return
        self.claim(Owner.BITMAP_DIRECTORY, extension.directory_offset, extension.directory_size)
        for index, each in enumerate(meta.bitmap_directory.bitmaps):
            if not each.table_size or not each.table_offset or each.table_size * size > limits.MAX_BITMAP_PHYSICAL_SIZE:
                self.give_up(f"bitmap {index} has a table of {each.table_size} entries at {each.table_offset:#x}")
                continue
            region = Region(each.table_offset, each.table_size * 8)
            self.claim(Owner.BITMAP_TABLE, region.offset, region.length, index=index)
            if region.end > READ_LIMIT:
                self.give_up(f"the table of bitmap {index} cannot be read")
                continue
            self._bitmap_table(index, region, in_use=each.in_use)

    def _bitmap_table(self, index: int, region: Region, *, in_use: bool) -> None:
        room = max(0, self.meta.file_size - region.offset)
        words = self.meta.read_words(Region(region.offset, min(region.length, (room + 7) & ~7)), region.length)
        each = Pointers(words, PointerTable.BITMAP, self.meta.shape)
        reserved, ones = each.fault(Fault.RESERVED), each.fault(Fault.ONES_PLACED)
        unaligned = each.fault(Fault.UNALIGNED)
        bad = reserved | ones | unaligned
        for code, chosen in (
            ("BITMAP-ENTRY-RESERVED", reserved | (ones & ~reserved)),
            ("BITMAP-ENTRY-UNALIGNED", unaligned & ~reserved & ~ones),
        ):
            self._bitmap_log(code, index, region, words, np.flatnonzero(chosen))
        if bad.any() and not in_use:
            self.give_up(f"bitmap {index} cannot be loaded: its table has invalid entries")
        good = ~bad & (each.offset != 0)
        beyond = good & each.beyond(self.meta.file_size)
        self._bitmap_log("BITMAP-ENTRY-BEYOND-EOF", index, region, words, np.flatnonzero(beyond))
        clusters = (each.offset[good & ~beyond] >> np.uint64(self.geometry.cluster_bits)).astype(np.int64)
        if clusters.size:
            self.found.bitmap_data.append((index, clusters))

    def _bitmap_log(
        self, code: str, bitmap: int, region: Region, words: NDArray[np.uint64], rows: NDArray[np.intp]
    ) -> None:
        if not rows.size:
            return
        edge = np.append(True, rows[1:] != rows[:-1] + 1)
        first = np.flatnonzero(edge)
        last = np.append(first[1:], rows.size) - 1
        for a, b in zip(rows[first].tolist()[:256], rows[last].tolist()[:256], strict=True):
            self.log.add(
                code, region.offset + a * 8, (b - a + 1) * 8, count=b - a + 1, counted=b - a + 1,
                table=region.offset, index=a, value=int(words[a]), numbers={"bitmap": bitmap},
            )  # fmt: skip
        if first.size > 256:
            rest = rows[first[256] :]
            a, b = int(rest[0]), int(rest[-1])
            self.log.add(
                code, region.offset + a * 8, (b - a + 1) * 8, count=rest.size, counted=rest.size,
                table=region.offset, index=a, value=int(words[a]), numbers={"bitmap": bitmap},
            )  # fmt: skip


def log_l1(
    log: FindingLog,
    geometry: Geometry,
    code: str,
    table: L1Table,
    index: NDArray[np.intp],
    words: NDArray[np.uint64],
    users: int,
) -> None:
    """Log L1 entries `index` (increasing) of `table`, neighbours in one row. users: how often qemu-img counts each."""
    edge = np.ones(index.size, dtype=bool)
    edge[1:] = index[1:] != index[:-1] + 1
    if np.count_nonzero(edge) > _MOST_RUNS:  # noise: the whole table in one row
        edge[1:] = False
    first = np.flatnonzero(edge)
    last = np.append(first[1:], index.size) - 1
    count = (last - first + 1).astype(np.uint64)
    start = index[first].astype(np.uint64)
    span = (index[last] - index[first] + 1).astype(np.uint64)
    cover = np.uint64(geometry.l2_bits + geometry.cluster_bits)
    log.add_columns(
        code,
        first.size,
        offset=np.uint64(table.offset) + start * np.uint64(8),
        length=span * np.uint64(8),
        count=count,
        counted=count * np.uint64(users),
        table=table.offset,
        index=start,
        guest=start << cover,
        guest_length=span << cover,
        value=words[first],
        snapshot=table.snapshot,
    )


class _ZeroExtended:
    """Reads of a table that continue as zeros past the end of the file, a buffer at a time."""

    def __init__(self, storage: Storage, file_size: int, base: int) -> None:
        self.storage, self.file_size, self.base = storage, file_size, base
        self.start, self.data = 0, b""

    def read(self, position: int, length: int) -> bytes:
        if not length:
            return b""
        if not self.start <= position or position + length > self.start + len(self.data):
            self.start = position
            want = max(length, 1 << 17)
            at = self.base + position
            self.data = self.storage.read(at, want) if at < self.file_size else b""
            self.data = self.data.ljust(want, b"\0")
        return self.data[position - self.start : position - self.start + length]
