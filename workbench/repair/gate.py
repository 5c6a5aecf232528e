"""The gate: no finding, no change. A fix is handed the rows that it answers and may write only where they let it.

That is inside the objects that the rows name (header fields, extensions, a table, a record), into entries that point at
the clusters they name, and into clusters that this plan appended. What follows from other fixes (refcounts, COPIED
flags) has a reach of its own. The gate knows nothing of whether a fix is right: that is for the preservation proof.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from enum import Enum
from typing import TYPE_CHECKING, Final

import numpy as np

from formats.qcow2 import limits
from formats.qcow2.entries import block_of, is_compressed, offset_of, packed_range, without_copied
from formats.qcow2.header import field as header_field
from formats.qcow2.tables import distinct
from workbench.errors import QwbError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from workbench.check.findings import Finding, Findings
    from workbench.repair.workspace import Workspace


class GateError(QwbError):
    """A fix tried to write where no finding sent it."""


class Reach(Enum):
    """What a fix may write besides the clusters that the plan appended."""

    ROWS = "what its rows name"
    REFCOUNTS = "refcount structures"
    FLAGS = "COPIED flags"


class Rows:
    """The rows of one check that a fix answers. Offsets and lengths in host bytes."""

    def __init__(self, findings: Findings, codes: Iterable[str]) -> None:
        self.findings = findings
        self.numbers = findings.rows(*codes)
        self.codes = frozenset(findings.codes[code] for code in distinct(findings.columns["code"][self.numbers]))
        self._tables: dict[str, frozenset[int]] = {}

    def __len__(self) -> int:
        return int(self.numbers.size)

    def has(self, *codes: str) -> bool:
        """Whether there is a row with one of `codes`."""
        return not self.codes.isdisjoint(codes)

    def each(self, *codes: str) -> Iterator[Finding]:
        """The rows with one of `codes` (all without), decoded one by one."""
        for number in self._numbers(codes).tolist():
            yield self.findings[number]

    def tables(self, *codes: str) -> NDArray[np.uint64]:
        """Host offsets of the tables whose entries are named, in order, each once."""
        found: NDArray[np.uint64] = distinct(self.findings.columns["table"][self._numbers(codes)])
        return found[found > 0]

    def name(self, table: int, code: str) -> bool:
        """Whether a row with that code names an entry of the table at a host offset."""
        if code not in self._tables:
            self._tables[code] = frozenset(self.tables(code).tolist())
        return table in self._tables[code]

    def snapshots(self, *codes: str) -> set[int]:
        """Numbers of the snapshots that are concerned."""
        found = distinct(self.findings.columns["snapshot"][self._numbers(codes)])
        return set(found[found >= 0].tolist())

    def spans(self, *codes: str) -> list[tuple[int, int]]:
        """(offset, end) of the bytes that are named."""
        columns = self.findings.columns[self._numbers(codes)]
        starts, lengths = columns["offset"].tolist(), columns["length"].tolist()
        return [(start, start + length) for start, length in zip(starts, lengths, strict=True)]

    def clusters(self, cluster_bits: int, total: int, *codes: str) -> NDArray[np.bool_]:
        """True for each of the file's `total` host clusters that a row names, wholly or in part."""
        named = np.zeros(total, dtype=bool)
        for start, end in self.spans(*codes):
            named[start >> cluster_bits : min(-(-end >> cluster_bits), total)] = True
        return named

    def _numbers(self, codes: tuple[str, ...]) -> NDArray[np.intp]:
        if not codes:
            return self.numbers
        return self.numbers[np.isin(self.numbers, self.findings.rows(*codes))]


# -- what a row lets a fix touch ---------------------------------------------------------------------------------------

_L1_FIELDS: Final = ("l1_table_offset", "l1_size")
_REFTABLE_FIELDS: Final = ("refcount_table_offset", "refcount_table_clusters")
_SNAPSHOT_FIELDS: Final = ("nb_snapshots", "snapshots_offset")
_BACKING_FIELDS: Final = ("backing_file_offset", "backing_file_size")
_FEATURES: Final = ("incompatible_features",)

FIELDS: Final[Mapping[str, tuple[str, ...]]] = {
    "HEADER-LENGTH": ("header_length",),
    "HEADER-LENGTH-UNALIGNED": ("header_length",),
    "HEADER-REFCOUNT-ORDER": ("refcount_order",),
    "REFCOUNT-OVERFLOW": ("refcount_order",),
    "HEADER-CRYPT-METHOD": ("crypt_method",),
    "ENCRYPTION-MISSING": ("crypt_method",),
    "ENCRYPTION-UNEXPECTED": ("crypt_method",),
    "HEADER-SIZE": ("size", "l1_size"),
    "L1-TABLE-TOO-SMALL": (*_L1_FIELDS, "size", "cluster_bits", *_FEATURES),
    "L1-TABLE-TOO-LARGE": ("l1_size",),
    "HEADER-CLUSTER-SIZE-DOUBTFUL": ("cluster_bits",),
    "L1-TABLE-UNALIGNED": _L1_FIELDS,
    "L1-TABLE-OFFSET": _L1_FIELDS,
    "L1-ENTRY-RESERVED": _L1_FIELDS,
    "L1-ENTRY-UNALIGNED": _L1_FIELDS,
    "L1-ENTRY-BEYOND-EOF": _L1_FIELDS,
    "L1-ENTRY-OFFSET-ZERO": _L1_FIELDS,
    "L2-TABLE-FOREIGN": _L1_FIELDS,
    "METADATA-OVERLAP": _L1_FIELDS,
    "REFTABLE-MISSING": _REFTABLE_FIELDS,
    "REFTABLE-UNALIGNED": _REFTABLE_FIELDS,
    "REFTABLE-TOO-LARGE": _REFTABLE_FIELDS,
    "REFTABLE-OFFSET": _REFTABLE_FIELDS,
    "FEATURE-UNKNOWN": _FEATURES,
    "AUTOCLEAR-UNKNOWN": ("autoclear_features",),
    "COMPRESSION-TYPE": _FEATURES,
    "EXTENDED-L2-CLUSTER-SIZE": (*_FEATURES, "cluster_bits"),
    "IMAGE-DIRTY": _FEATURES,
    "IMAGE-CORRUPT-BIT": _FEATURES,
    "EXTENSION-OVERRUN": _BACKING_FIELDS,
    "EXTENSION-DUPLICATE": _BACKING_FIELDS,
    "BACKING-OFFSET": _BACKING_FIELDS,
    "BACKING-NAME-TOO-LONG": _BACKING_FIELDS,
    "BACKING-FORMAT-MISSING": _BACKING_FIELDS,
    "BACKING-FORMAT-TOO-LONG": _BACKING_FIELDS,
    "BACKING-FORMAT-UNUSED": _BACKING_FIELDS,
    "DATA-FILE-UNNAMED": (*_FEATURES, "autoclear_features", "backing_file_offset"),
    "DATA-FILE-MISSING": ("backing_file_offset",),
    "DATA-FILE-UNEXPECTED": (*_FEATURES, "autoclear_features"),
    "DATA-FILE-RAW-BIT": ("autoclear_features",),
    "DATA-FILE-RAW-BACKING": ("autoclear_features",),
    "SNAPSHOTS-TOO-MANY": _SNAPSHOT_FIELDS,
    "CLUSTER-LEAKED": _SNAPSHOT_FIELDS,  # a snapshot that the count leaves out: it follows the last one in the table
}
"""Code -> header fields that its fixes may write. Every SNAPSHOT and BITMAP code adds its own, see below."""

WHOLE_HEADER: Final = frozenset({"HEADER-MAGIC", "HEADER-VERSION", "HEADER-CLUSTER-BITS", "HEADER-TRUNCATED"})
"""Under these nothing at all can be read."""
_L1_LOST: Final = frozenset({"L1-TABLE-UNALIGNED", "L1-TABLE-OFFSET"})
_REFTABLE_LOST: Final = frozenset({"REFTABLE-UNALIGNED", "REFTABLE-OFFSET"})
_L1_ENTRIES: Final = ("L1-ENTRY-RESERVED", "L1-ENTRY-UNALIGNED", "L1-ENTRY-BEYOND-EOF", "L1-ENTRY-OFFSET-ZERO")
_EXTENSIONS: Final = ("EXTENSION-", "ENCRYPTION-", "LUKS-", "BACKING-", "DATA-FILE-", "BITMAP")
_NOT_STRUCTURES: Final = (
    "CLUSTER-LEAKED",
    "REFCOUNT-",
    "DATA-CROSS",
    "DATA-OVERLAPS",
    "METADATA-",
    "REGION-",
    "FILE-TAIL",
)
"""Rows that name clusters rather than entries or records: their bytes are somebody's and stay."""
_POINTED_AT: Final = frozenset({
    "L2-TABLE-FOREIGN", "L2-TABLE-EMPTY", "L2-TABLE-SHARED", "METADATA-OVERLAP", "DATA-CROSS-LINKED",
    "DATA-OVERLAPS-METADATA", "DATA-OVERLAPS-COMPRESSED", "REFBLOCK-SHARED", "REFCOUNT-OVERFLOW",
})  # fmt: skip
"""Rows that name clusters: entries that point there may be changed."""
_ENTRY_KINDS: Final = frozenset({"l1", "l2", "bitmap-table", "bitmap-offset"})


def nothing_readable(rows: Rows, space: Workspace) -> bool:
    """Neither the active L1 table nor the refcount table can be where the header says."""
    header = space.meta.header
    beyond = {each.offset for each in rows.each("REGION-BEYOND-EOF") if each.snapshot < 0}
    l1 = not rows.codes.isdisjoint(_L1_LOST) or header.l1_table_offset in beyond
    reftable = not rows.codes.isdisjoint(_REFTABLE_LOST) or header.refcount_table_offset in beyond
    return l1 and reftable


class Spans:
    """Byte ranges, joined and in order."""

    def __init__(self, spans: Iterable[tuple[int, int]]) -> None:
        joined: list[list[int]] = []
        for start, end in sorted(spans):
            if joined and start <= joined[-1][1]:
                joined[-1][1] = max(joined[-1][1], end)
            elif end > start:
                joined.append([start, end])
        top = (1 << 63) - 1
        self.starts = np.array([min(start, top) for start, _ in joined], dtype=np.int64)
        self.ends = np.array([min(end, top) for _, end in joined], dtype=np.int64)

    def hold(self, places: NDArray[np.int64]) -> NDArray[np.bool_]:
        """True for each place inside one of them."""
        if not self.starts.size:
            return np.zeros(places.size, dtype=bool)
        at = np.searchsorted(self.starts, places, side="right") - 1
        held: NDArray[np.bool_] = (at >= 0) & (places < self.ends[np.maximum(at, 0)])
        return held

    def touch(self, low: int, high: int) -> bool:
        """Whether one of them has a byte in common with [low, high)."""
        at = int(np.searchsorted(self.starts, high, side="left")) - 1
        return at >= 0 and bool(self.ends[at] > low)


class Gate:
    """Judges every write of one fix. Made when the fix starts: what its rows name is where it was then."""

    def __init__(self, space: Workspace, rows: Rows, reach: Reach) -> None:
        self.space = space
        self.rows = rows
        self.reach = reach
        spans = [*self._header(), *self._objects()]
        if reach is Reach.REFCOUNTS:
            spans += self._refcount_structures()
        self.spans = Spans(spans)
        size = 1 << (space.meta.geometry.cluster_bits if space.meta.geometry else 9)
        self.targets = Spans((start & -size, end) for start, end in rows.spans(*_POINTED_AT))

    def require(self, offset: int, before: bytes, data: bytes, kind: str) -> None:
        """Raise GateError unless `data` may be written at `offset`, where `before` stands. kind: as in a step."""
        old = np.frombuffer(before.ljust(len(data), b"\0"), np.uint8)
        changed = np.flatnonzero(old != np.frombuffer(data, np.uint8)) + offset
        if len(before) < len(data):
            changed = np.union1d(changed, np.arange(offset + len(before), offset + len(data)))
        changed = changed[~self.spans.hold(changed)]
        if changed.size:
            changed = changed[~Spans(self.space.fresh).hold(changed)]
        for word in distinct(changed & ~np.int64(7)).tolist():
            at = word - offset
            if at < 0 or not self._entry(before[at : at + 8], data[at : at + 8], kind):
                raise GateError(
                    f"fix {self.space.fix!r} would write to {kind} bytes that no finding names",
                    path=self.space.base.path,
                    offset=word,
                    hint="nothing of this fix was kept",
                )

    def _entry(self, before: bytes, after: bytes, kind: str) -> bool:
        """Whether a single table entry may be changed."""
        old, new = int.from_bytes(before, "big"), int.from_bytes(after, "big")
        if kind not in _ENTRY_KINDS or len(before) < 8:
            return False
        if self.reach is Reach.FLAGS:
            return without_copied(old) == without_copied(new)
        if self.rows.has("CLUSTER-LEAKED") and not (offset_of(old) or is_compressed(old)):
            return True  # an empty entry gets back what leaked
        low = offset_of(old)
        high = low + 1
        if is_compressed(old) and kind == "l2":
            low, high = packed_range(old, self.space.meta.shape)
        # What the plan itself has put in the place of something named follows from that.
        return bool(low) and (self.targets.touch(low, high) or Spans(self.space.fresh).touch(low, high))

    # -- where

    def _header(self) -> Iterator[tuple[int, int]]:
        space, header = self.space, self.space.meta.header
        if not WHOLE_HEADER.isdisjoint(self.rows.codes) or nothing_readable(self.rows, space):
            yield 0, max(len(space.meta.head), 512)
            return
        names = {name for code in self.rows.codes for name in FIELDS.get(code, ())}
        if self._about_snapshots():
            names |= set(_SNAPSHOT_FIELDS)
        if any(code.startswith("BITMAP") for code in self.rows.codes):
            names |= {"autoclear_features", "backing_file_offset"}
        for each in self.rows.each("REGION-BEYOND-EOF"):
            places = {
                header.l1_table_offset: _L1_FIELDS,
                header.refcount_table_offset: _REFTABLE_FIELDS,
                header.snapshots_offset: _SNAPSHOT_FIELDS,
            }
            names |= set(places.get(each.offset, ())) if each.snapshot < 0 else set()
        if self.reach is Reach.REFCOUNTS:
            names |= {*_REFTABLE_FIELDS, "refcount_order"}
        for name in names:
            at, size = header_field(name)
            yield at, at + size
        if self.rows.has("COMPRESSION-TYPE"):
            yield 104, 105
        beyond = self.rows.has("REGION-BEYOND-EOF") and space.meta.bitmaps_extension is not None
        if beyond or any(code.startswith(_EXTENSIONS) for code in self.rows.codes):
            yield space.meta.header_length, len(space.meta.head)

    def _objects(self) -> Iterator[tuple[int, int]]:
        """Structures that the rows name as their own object."""
        space, meta = self.space, self.space.meta
        if meta.geometry is None:
            return
        cluster = meta.geometry.cluster_size
        lengths = {each.l1_table_offset: each.l1_size * 8 for each in meta.snapshots}
        lengths[meta.header.l1_table_offset] = meta.header.l1_size * 8
        lengths[meta.refcount_table_region.offset] = meta.refcount_table_region.length
        lengths |= {each.table_offset: each.table_size * 8 for each in meta.bitmap_directory.bitmaps}
        for table in self.rows.tables().tolist():
            yield table, table + max(cluster, min(lengths.get(table, 0), limits.MAX_L1_SIZE))
        for code in self.rows.codes:
            if not code.startswith(_NOT_STRUCTURES):
                yield from self.rows.spans(code)
        numbers = self.rows.snapshots("REGION-BEYOND-EOF", *_L1_ENTRIES, "L2-TABLE-FOREIGN")
        overlaps = self.rows.spans("METADATA-OVERLAP")
        for number, record in enumerate(meta.snapshots):
            in_overlap = any(start <= record.l1_table_offset < end for start, end in overlaps)
            if number in numbers or in_overlap:
                yield record.offset, record.offset + len(record.raw)
        if self._about_snapshots():
            start = meta.header.snapshots_offset
            yield start, start + max(cluster, -(-(meta.snapshot_table.end - start) // cluster) * cluster)
        if meta.bitmaps_extension is not None and any(
            code.startswith(("BITMAP", "REGION-")) for code in self.rows.codes
        ):
            start = meta.bitmaps_extension.directory_offset
            yield start, start + -(-meta.bitmaps_extension.directory_size // cluster) * cluster
            for bitmap in meta.bitmap_directory.bitmaps:
                if not bitmap.table_offset % cluster:
                    yield bitmap.table_offset, bitmap.table_offset + bitmap.table_size * 8
        if any(code.startswith(("LUKS-", "ENCRYPTION-")) for code in self.rows.codes):
            from workbench.repair.probe import find_luks

            offset = meta.encryption.offset if meta.encryption is not None else find_luks(space)
            if offset is not None:
                yield offset, offset + cluster

    def _about_snapshots(self) -> bool:
        if any(code.startswith("SNAPSHOT") for code in self.rows.codes):
            return True
        return bool(self.rows.snapshots("REGION-BEYOND-EOF", *_L1_ENTRIES))

    def _refcount_structures(self) -> Iterator[tuple[int, int]]:
        meta = self.space.meta
        if meta.geometry is None:
            return
        cluster = meta.geometry.cluster_size
        region = meta.refcount_table_region
        yield region.offset, region.offset + region.length
        blocks = distinct(block_of(meta.refcount_table))
        for block in blocks[blocks > 0].tolist():
            yield block, block + cluster
