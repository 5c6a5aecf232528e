"""Rows of a table, folded and filtered in numpy; the model under the entries view. Built in a worker."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from formats.qcow2.entries import L2Entries, Pointers, is_copied, packed_range, subclusters
from formats.qcow2.refcounts import unpack
from formats.qcow2.tables import words
from workbench.engine.metadata import Metadata
from workbench.engine.tables import Run, Table, TableKind
from workbench.errors import ArgumentError
from workbench.render.entries import POINTERS
from workbench.units import parse_size

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

MAX_ENTRIES: Final = 1 << 24
"""More rows of one table are not shown (only a bitmap table can claim more)."""

TYPES: Final = ("data", "zero", "compressed", "unallocated", "allocated", "copied", "suspicious")


@dataclass(frozen=True, slots=True)
class Filter:
    """What rows to keep. types: words of TYPES, any of them.  index, guest, host: inclusive-exclusive ranges."""

    text: str = ""
    types: frozenset[str] = frozenset()
    index: tuple[int, int] | None = None
    guest: tuple[int, int] | None = None
    host: tuple[int, int] | None = None

    def __bool__(self) -> bool:
        return bool(self.types or self.index or self.guest or self.host)


def parse_filter(text: str) -> Filter:
    """`data copied`, `suspicious`, `index:10-20`, `guest:5M-6M`, `host:0x10000-1M`. Raises ArgumentError."""
    types, ranges = set[str](), dict[str, tuple[int, int]]()
    for word in text.lower().replace(",", " ").split():
        name, colon, rest = word.partition(":")
        if not colon and name in TYPES:
            types.add(name)
        elif colon and name in ("index", "guest", "host"):
            low, dash, high = rest.partition("-")
            try:
                first = parse_size(low) if low else 0
                ranges[name] = (first, parse_size(high) if dash and high else (first + 1 if not dash else 1 << 63))
            except ValueError:
                raise ArgumentError(
                    f"{word!r} is no range", hint="such as index:10-20, guest:5M-6M, host:0x10000-"
                ) from None
        else:
            raise ArgumentError(f"{word!r} is no filter", hint=f"use {', '.join(TYPES)}, index:, guest:, host:")
    return Filter(text.strip(), frozenset(types), ranges.get("index"), ranges.get("guest"), ranges.get("host"))


class EntryRows:
    """The rows of one table. starts, counts: first entry and number of entries of each row (int64).

    total: entries in the table; readable: those that the file has bytes for; kept: those that pass the filter.
    """

    def __init__(
        self, meta: Metadata, table: Table, *, fold: bool = True, chosen: Filter | None = None, pin: int = -1
    ) -> None:
        """pin: an entry that gets a row of its own although its neighbours say the same."""
        self.meta, self.table, self.fold, self.chosen, self.pin = meta, table, fold, chosen or Filter(), pin
        self.total = table.entries
        self.readable = min(table.readable(meta), MAX_ENTRIES)
        self.step = meta.geometry.cluster_size if meta.geometry and table.kind is not TableKind.REFCOUNT_BLOCK else 0
        self.first, self.second = self._read()
        _ = meta.refcount_table.size  # read here, in the worker: rows show refcounts
        self._build()

    def _read(self) -> tuple[NDArray[Any], NDArray[Any] | None]:
        meta, table = self.meta, self.table
        bits = table.entry_bits(meta)
        data = meta.storage.read(table.region.offset, (self.readable * bits + 7) // 8)
        if table.kind is TableKind.REFCOUNT_BLOCK:
            assert meta.geometry is not None
            values = unpack(data, meta.geometry.refcount_order)[: self.readable]
            return values, None
        raw = words(data)
        if bits == 128:
            pairs = raw[: raw.size // 2 * 2].reshape(-1, 2)
            return pairs[:, 0], pairs[:, 1]
        return raw, None

    def _build(self) -> None:
        import numpy as np

        count = len(self.first)
        self.readable = self.kept = count
        keep = self._mask() if self.chosen else None
        if keep is None and not self.fold:
            self.starts: NDArray[np.int64] | None = None
            self.counts: NDArray[np.int64] | None = None
            self.rows = count + (1 if self.total > count else 0)
            return
        index = np.flatnonzero(keep) if keep is not None else np.arange(count, dtype=np.int64)
        self.kept = len(index)
        if not self.fold:
            self.starts, self.counts = index.astype(np.int64), np.ones(len(index), dtype=np.int64)
        elif len(index):
            sort = self._sorts(index)
            breaks = (sort == 0) | (index[1:] == self.pin) | (index[:-1] == self.pin)
            breaks[1:] |= (sort[1:] != sort[:-1]) & ~breaks[:-1]
            at = np.concatenate(([0], np.flatnonzero(breaks) + 1))
            self.starts = index[at].astype(np.int64)
            self.counts = np.diff(np.append(at, len(index))).astype(np.int64)
        else:
            self.starts, self.counts = index.astype(np.int64), index.astype(np.int64)
        missing = self.total > count and keep is None
        self.rows = len(self.starts) + (1 if missing else 0)

    def _sorts(self, index: NDArray[Any]) -> NDArray[Any]:
        """How each kept entry follows the one before: 0 not, 1 equal, 2 next cluster."""
        import numpy as np

        values = self.first[index]
        neighbours = np.diff(index) == 1
        same_rest = np.ones(len(neighbours), dtype=bool)
        if self.second is not None:
            rest = self.second[index]
            same_rest = rest[1:] == rest[:-1]
        sort = np.zeros(len(neighbours), dtype=np.uint8)
        equal = values[1:] == values[:-1]
        sort[neighbours & equal & same_rest] = 1
        if self.step:
            before = self._reading(values[:-1])
            mapped = before.offset != 0
            if isinstance(before, L2Entries):
                mapped &= ~before.packed
            follows = values[1:] - values[:-1] == np.uint64(self.step)
            sort[neighbours & follows & same_rest & mapped] = 2
        return sort

    def _reading(self, values: NDArray[Any], bitmaps: NDArray[Any] | None = None) -> L2Entries | Pointers:
        """The entries' columns, for all tables but refcount blocks."""
        if self.table.kind is TableKind.L2:
            return L2Entries(values, self.meta.shape, bitmaps)
        return Pointers(values, POINTERS[self.table.kind], self.meta.shape)

    def hosts(self) -> NDArray[Any]:
        """Host offset that each entry names (uint64; 0 where none); refcounts: of the cluster counted."""
        import numpy as np

        geometry = self.meta.geometry
        assert geometry is not None
        if self.table.kind is TableKind.REFCOUNT_BLOCK:
            return np.uint64(self.table.base) + np.arange(len(self.first), dtype=np.uint64) * np.uint64(
                geometry.cluster_size
            )
        each = self._reading(self.first)
        host = each.offset
        if isinstance(each, L2Entries) and each.packed.any():
            host[each.packed] = packed_range(each.words[each.packed], each.shape)[0]
        return host

    def suspicious(self) -> NDArray[np.bool_]:
        """Entries with any fault of their own, or that name something past the end of the file."""
        import numpy as np

        geometry = self.meta.geometry
        assert geometry is not None
        if self.table.kind is TableKind.REFCOUNT_BLOCK:
            inside = self.hosts() < np.uint64(self.meta.file_size)
            odd: NDArray[np.bool_] = ((self.first == 0) & inside) | ((self.first != 0) & ~inside)
            return odd
        each = self._reading(self.first, self.second)
        bad: NDArray[np.bool_] = each.faults != 0
        if not (isinstance(each, L2Entries) and each.shape.data_file):
            bad |= each.beyond(self.meta.file_size)
        return bad

    def _mask(self) -> NDArray[np.bool_]:
        import numpy as np

        chosen, count = self.chosen, len(self.first)
        keep = np.ones(count, dtype=bool)
        if chosen.types:
            keep = np.zeros(count, dtype=bool)
            host = self.hosts()
            packed = np.zeros(count, dtype=bool)
            zero = packed.copy()
            if self.table.kind is TableKind.L2:
                each = L2Entries(self.first, self.meta.shape)
                packed, zero = each.packed, each.zero
                if self.second is not None:
                    zero = subclusters(self.second)[1] != 0
            used = self.first != 0 if self.table.kind is TableKind.REFCOUNT_BLOCK else (host != 0) | packed
            picks = {
                "data": used & ~packed & ~zero,
                "zero": zero,
                "compressed": packed,
                "unallocated": ~used & ~zero,
                "allocated": used,
                "copied": is_copied(self.first.astype(np.uint64)),
                "suspicious": self.suspicious(),
            }
            for name in chosen.types:
                keep |= picks[name]
        position = np.arange(count, dtype=np.int64)
        if chosen.index:
            keep &= (position >= chosen.index[0]) & (position < chosen.index[1])
        cover = self.table.coverage(self.meta)
        if chosen.guest and cover:
            low, high = (max(0, value - self.table.base) for value in chosen.guest)
            keep &= (position >= low // cover) & (position <= max(0, high - 1) // cover)
        if chosen.host:
            host = self.hosts()
            keep &= (host >= np.uint64(chosen.host[0])) & (host < np.uint64(min(chosen.host[1], (1 << 63) - 1)))
        return keep

    # Rows

    def __len__(self) -> int:
        return self.rows

    def run(self, row: int) -> Run:
        """What row number `row` stands for."""
        if self.starts is None or self.counts is None:
            first, count = row, 1
        elif row < len(self.starts):
            first, count = int(self.starts[row]), int(self.counts[row])
        else:
            first, count = self.readable, 0
        if first >= self.readable:
            return Run(self.readable, max(1, self.total - self.readable), (0,), 0, missing=True)
        word = (int(self.first[first]),) if self.second is None else (int(self.first[first]), int(self.second[first]))
        step = self.step if count > 1 and int(self.first[first + 1]) != word[0] else 0
        return Run(first, count, word, step)

    def row_of(self, index: int) -> int:
        """The row that shows entry `index`, or the one before it."""
        import numpy as np

        if self.starts is None:
            return min(index, max(0, self.rows - 1))
        return max(0, int(np.searchsorted(self.starts, index, side="right")) - 1)

    def shows(self, index: int) -> bool:
        """Whether an entry has a row of its own, or begins one; -1 (no entry) counts as shown."""
        return index < 0 or self.run(self.row_of(index)).first == index or not self.fold

    def find_value(self, value: int, row: int, direction: int) -> int | None:
        """The next row (in `direction`, going around) with an entry of that raw value or host offset."""
        import numpy as np

        if not 0 <= value < 1 << 64:
            return None
        hits = (self.first.astype(np.uint64) == np.uint64(value)) | (self.hosts() == np.uint64(value))
        index = np.flatnonzero(hits)
        if not len(index):
            return None
        rows = np.unique([self.row_of(int(each)) for each in index[:100_000].tolist()])
        if direction > 0:
            later = rows[rows > row]
            return int(later[0]) if len(later) else int(rows[0])
        earlier = rows[rows < row]
        return int(earlier[-1]) if len(earlier) else int(rows[-1])
