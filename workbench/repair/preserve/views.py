"""The guest's side of the proof: the active disk and every snapshot read as before, or the difference is named."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from formats.qcow2.tables import COPIED, OFFSET_MASK, compressed_range, distinct
from workbench.engine import codecs
from workbench.errors import CorruptError, UnsupportedError
from workbench.repair.preserve.account import Fate
from workbench.repair.preserve.case import Case
from workbench.repair.preserve.keeping import foreign
from workbench.repair.preserve.walk import Cell, Reading, Use, View

_OFFSET: Final = np.uint64(OFFSET_MASK)
Table = tuple[NDArray[np.uint64], NDArray[np.uint64] | None]
"""(entries, subcluster bitmaps) of an L2 table."""


class Views:
    """Compares the disks of a case."""

    def __init__(self, case: Case) -> None:
        self.case = case
        self.base, self.after, self.ledger = case.base, case.after, case.ledger

    def compare(self, *, blind: bool, told: bool = False) -> None:
        """Each disk as it reads before and after. blind: before, QEMU refused to read any of them, or it read nonsense.
        told: the image's refcounts say that it reads rightly after."""
        twins = list(self.after.views())
        for view in [] if blind else self.base.views():
            twin = _twin(view, twins)
            if twin is None:
                self._whole(view, Fate.GIVEN_UP, "the snapshot is gone")
                continue
            twins.remove(twin)
            self._disk(view, twin)
        if not blind:
            self._rewritten_data()
        for twin in twins:
            self.blind(twin, told=told)

    def _disk(self, view: View, twin: View) -> None:
        a, b = self.base, self.after
        length, cover = max(view.l1.size, twin.l1.size), a.shape.l2_coverage
        old, new = (np.pad(each.l1, (0, length - each.l1.size)) & _OFFSET for each in (view, twin))
        table = 1 << b.bits
        differs = old != new
        touched = np.fromiter(
            (bool(o) and self.case.changed.touch(o, o + table) for o in old.tolist()), dtype=bool, count=length
        )
        wild = (old & np.uint64((1 << a.bits) - 1)) != 0
        past = old >= np.uint64(a.size)
        same = differs & (new == 0) & (wild | past) & ~np.bool_(a.backed)
        for index in np.flatnonzero((differs | touched) & ~same).tolist():
            before, later = a.table(int(old[index])), b.table(int(new[index]))
            if before is None and later is None:
                continue
            self._cells(view, index * cover, before, later)
        if twin.size < view.size:
            self._cut_off(view, twin.size)

    def _cells(self, view: View, guest: int, before: Table | None, later: Table | None) -> None:
        """Compare one L2 table's cells, before and after (None: unreadable)."""
        a, b = self.base, self.after
        blank = np.zeros(a.shape.l2_entries, np.uint64)
        none: Table = (blank, blank if a.shape.extended_l2 else None)
        kinds, hosts = a.cells(*(before or none), guest)
        declared, whole = self.case.places.get(view.name), a.shape.l2_coverage
        certain = declared is not None and declared.cover(guest, min(whole, max(view.size - guest, 1)))
        noise = before is not None and foreign(a, before[0])
        if before is None or (certain and noise):  # what the guest read there was never its disk
            kinds = np.full_like(kinds, Cell.ERROR)
        kinds_after, hosts_after = b.cells(*(later or none), guest)
        if later is None:
            kinds_after = np.full_like(kinds_after, Cell.ERROR)
        stored = (kinds == Cell.DATA) | (kinds == Cell.PACKED)
        differs = (kinds != kinds_after) | (stored & (hosts != hosts_after))
        if a.meta.header.compression_type != b.meta.header.compression_type:
            differs |= kinds == Cell.PACKED
        differs &= a.backed | (kinds != Cell.ERROR) | (kinds_after == Cell.DATA) | (kinds_after == Cell.PACKED)
        if (noise or before is None) and view.snapshot is None:  # nor is what the disk does not reach
            differs[max(0, -(-(view.size - guest) >> a.bits)) :] = False
        unit, width = a.shape.subcluster_size, kinds.shape[1]
        placed = differs & (kinds_after == Cell.DATA) & ~stored
        if placed.any() and certain:
            differs &= ~self._gained(view, guest, placed, hosts_after)
        differs &= ~self._nothing_lost(kinds, hosts, kinds_after, differs)
        for row, column in zip(*(each.tolist() for each in np.nonzero(differs)), strict=True):
            start = guest + (row * width + column) * unit
            self._cell(
                view, start, unit, column,
                (Cell(int(kinds[row, column])), int(hosts[row, column])),
                (Cell(int(kinds_after[row, column])), int(hosts_after[row, column])),
            )  # fmt: skip

    def _nothing_lost(
        self,
        kinds: NDArray[np.uint8],
        hosts: NDArray[np.uint64],
        kinds_after: NDArray[np.uint8],
        differs: NDArray[np.bool_],
    ) -> NDArray[np.bool_]:
        """Cells past the end of the file, zeros or streams without a byte, that read as zeros later: many at once."""
        a, b = self.base, self.after
        if a.external or a.backed or b.backed:
            return np.zeros_like(differs)
        later = differs & ((kinds_after == Cell.HOLE) | (kinds_after == Cell.ZERO))
        end = np.uint64(a.clusters << a.bits)
        own = np.isin(hosts >> np.uint64(a.bits), a.own_places >> np.uint64(a.bits))
        past: NDArray[np.bool_] = later & (kinds == Cell.DATA) & (hosts >= end) & ~own
        start, _ = compressed_range(hosts, a.bits)
        past |= later & (kinds == Cell.PACKED) & (start >= end)
        return past

    def _gained(
        self, view: View, guest: int, placed: NDArray[np.bool_], hosts: NDArray[np.uint64]
    ) -> NDArray[np.bool_]:
        """Cells of a table whose place is declared and whose clusters are nobody else's: many at once, nothing is read."""
        unit = self.base.shape.subcluster_size
        if self.base.external:
            return np.zeros_like(placed)
        ours = placed.copy()
        ours[placed] = ~self._owned(hosts[placed])
        flat = np.flatnonzero(ours.reshape(-1))
        for run in np.split(flat, np.flatnonzero(np.diff(flat) != 1) + 1):
            if run.size:
                start, length = guest + int(run[0]) * unit, int(run.size) * unit
                self.ledger.add(Fate.REGAINED, start, length, "its place is certain", view=view)
        return ours

    def _cell(
        self, view: View, start: int, unit: int, column: int, old: tuple[Cell, int], new: tuple[Cell, int]
    ) -> None:
        """One (sub)cluster whose entry reads differently."""
        a, b = self.base, self.after
        add = self.ledger.add
        if a.external and old[0] in (Cell.DATA, Cell.PACKED):
            add(Fate.GIVEN_UP, start, unit, "another part of the data file would be read, or none", view=view)
            return
        old = self._meant(old, new, unit, column)
        before = self._content(a, old, unit, column)
        empty = (Cell.HOLE, Cell.ZERO)
        if new[0] is Cell.PACKED and self._content(b, new, unit, column) is None:
            if old[0] is Cell.PACKED and self._packed_bytes(a, old[1]) == self._packed_bytes(b, new[1]):
                return  # the same stream, which nobody can unpack, in another place
            new = (Cell.ERROR, new[1])
        if old[0] in (Cell.DATA, Cell.PACKED) and before is not None:
            if a.meta.header.crypt_method == 2 and old[0] is Cell.DATA and new[0] is Cell.DATA:
                add(Fate.UNPROVEN, start, unit, "an encrypted cluster was moved, which only the key can do", view=view)
            elif new[0] is Cell.ERROR or self._content(b, new, unit, column) != before or self._shows_backing(new):
                add(Fate.GIVEN_UP, start, unit, "the guest could read it, and would read something else", view=view)
            return
        if old[0] is Cell.PACKED and not a.external:
            first, end = compressed_range(old[1], a.bits)
            self.case.unread.update(range(first >> a.bits, ((end - 1) >> a.bits) + 1))
        if new[0] in empty:
            if old[0] is Cell.ERROR and self._is_declared(view, start, unit):
                return  # a table that gets its place says what is not in it, too
            if a.backed and new[0] is not old[0] and (new[0] is Cell.HOLE or old[0] is Cell.HOLE):
                fate = Fate.UNPROVEN if old[0] not in empty else Fate.GIVEN_UP
                add(fate, start, unit, "the backing file's content would show, or vanish, there", view=view)
            return
        if new[0] is Cell.ERROR:
            if old[0] in empty:
                add(Fate.GIVEN_UP, start, unit, "the guest could read it, and gets an error", view=view)
            return
        content = self._content(b, new, unit, column)
        if content is not None and old[0] in empty and not any(content) and not (old[0] is Cell.HOLE and a.backed):
            return
        if old[0] is Cell.PACKED and new[0] is Cell.PACKED and content is not None:
            add(Fate.REGAINED, start, unit, "the compressed cluster can be unpacked", view=view)
            return
        self._placed(view, start, unit, new)

    def _meant(self, old: tuple[Cell, int], new: tuple[Cell, int], unit: int, column: int) -> tuple[Cell, int]:
        """What a cell meant before: an error where it led to header or tables (unless what was read there is kept)."""
        if old[0] is not Cell.DATA or not self.base.is_own(old[1]):
            return old
        same = self._content(self.after, new, unit, column) == self._content(self.base, old, unit, column)
        return old if same else (Cell.ERROR, old[1])

    def _placed(self, view: View, start: int, unit: int, new: tuple[Cell, int]) -> None:
        """Content appears where there was none: believed where it is declared and nobody else's."""
        if not self._is_declared(view, start, unit):
            self.ledger.add(Fate.UNPROVEN, start, unit, "content appears whose place is not certain", view=view)
        elif (
            self.base.geometry is not None
            and not self.base.external
            and new[0] is Cell.DATA
            and self._owned(np.array([new[1]], dtype=np.uint64)).any()
        ):
            reason = "content appears that others refer to already"
            self.ledger.add(Fate.UNPROVEN, start, unit, reason, view=view)
        else:
            self.ledger.add(Fate.REGAINED, start, unit, "its place is certain", view=view)

    def _is_declared(self, view: View, start: int, length: int) -> bool:
        """Whether the plan says that what it puts at these guest bytes is certainly theirs."""
        declared = self.case.places.get(view.name)
        return declared is not None and declared.cover(start, max(1, min(length, view.size - start)))

    def _owned(self, hosts: NDArray[np.uint64]) -> NDArray[np.bool_]:
        """Whether clusters (by host offset) that get a place belong to others as well: more often than their refcounts say.

        What is counted as shared may be: a snapshot has it, too. Refcounts that are lost (0) say nothing.
        """
        numbers = (hosts >> np.uint64(self.after.bits)).astype(np.int64)
        before, _ = self.case.refs.at(numbers)
        later, uses = self.case.refs_after.at(numbers)
        stored = self.case.keeper.stored_many(numbers)
        others = np.minimum(before, later - 1)  # before, and still when this place is theirs
        owned: NDArray[np.bool_] = np.where(stored < 0, others > 1, later > np.maximum(stored, 1))
        owned |= (uses & (Use.TABLE | Use.COUNTS)) != 0
        return owned

    def _content(self, reading: Reading, cell: tuple[Cell, int], unit: int, column: int) -> bytes | None:
        """What the guest reads (ciphertext where it is encrypted); None for an error or what lies in another file."""
        kind, place = cell
        if kind in (Cell.HOLE, Cell.ZERO):
            return bytes(unit)
        if kind is Cell.DATA:
            return None if reading.external else reading.read(place, unit)
        if kind is Cell.PACKED and not reading.external:
            data = self._packed_bytes(reading, place)
            try:
                whole = codecs.decompress(data, 1 << reading.bits, reading.meta.header.compression_type)
            except (CorruptError, UnsupportedError):
                return None
            return whole[column * unit : (column + 1) * unit]
        return None

    def _packed_bytes(self, reading: Reading, descriptor: int) -> bytes:
        """The sectors that a compressed descriptor names, as far as the file has them."""
        start, end = compressed_range(descriptor & ~COPIED, reading.bits)
        return reading.read(start, min(end, reading.size) - start) if start < reading.size else b""

    def _shows_backing(self, cell: tuple[Cell, int]) -> bool:
        return cell[0] is Cell.HOLE and self.after.backed

    def _rewritten_data(self) -> None:
        """Guest clusters whose entry stays, while bytes under it change."""
        a, bits = self.base, np.uint64(self.base.bits)
        touched = distinct(
            np.concatenate([
                np.arange(start >> a.bits, ((end - 1) >> a.bits) + 1)
                for start, end in zip(self.case.changed.starts.tolist(), self.case.changed.ends.tolist(), strict=True)
            ] or [np.zeros(0, np.int64)])
        )  # fmt: skip
        _, uses = self.case.refs.at(touched)
        touched = touched[((uses & Use.DATA) != 0) & ((uses & Use.COUNTS) == 0)]
        if not touched.size or a.external:
            return
        twins = list(self.after.views())
        for view in a.views():
            twin = _twin(view, twins)
            for index in np.flatnonzero(view.l1 & _OFFSET).tolist():
                table = a.table(int(view.l1[index]))
                if table is None:
                    continue
                kinds, hosts = a.cells(*table, index * a.shape.l2_coverage)
                start, end = compressed_range(hosts, a.bits)
                packed = kinds == Cell.PACKED
                low = np.where(packed, start, hosts) >> bits
                high = np.where(packed, end - np.uint64(1), hosts) >> bits
                at = np.searchsorted(touched, low.astype(np.int64))
                hit = ((kinds == Cell.DATA) | packed) & (at < touched.size)
                hit[hit] = touched[at[hit]] <= high[hit].astype(np.int64)
                if hit.any():
                    later = self.after.table(int(twin.l1[index])) if twin and index < twin.l1.size else None
                    self._hit_cells(view, index * a.shape.l2_coverage, (kinds, hosts, hit), later)

    def _hit_cells(self, view: View, guest: int, cells: tuple[Any, Any, Any], later: Table | None) -> None:
        kinds, hosts, hit = cells
        after = self.after.cells(*later, guest) if later else None
        unit = self.base.shape.subcluster_size
        for row, column in zip(*(each.tolist() for each in np.nonzero(hit)), strict=True):
            cell = (Cell(int(kinds[row, column])), int(hosts[row, column]))
            if after is None or (int(after[0][row, column]), int(after[1][row, column])) != cell:
                continue  # the entry differs: compared already
            before = self._content(self.base, cell, unit, column)
            if cell[0] is Cell.DATA and self.base.is_own(cell[1]):
                continue
            if before is not None and self._content(self.after, cell, unit, column) != before:
                start = guest + (row * kinds.shape[1] + column) * unit
                self.ledger.add(Fate.GIVEN_UP, start, unit, "the plan writes over the guest's data", view=view)

    def _mapped(self, reading: Reading, view: View, *, holes: bool = False) -> Iterator[tuple[int, int]]:
        """(guest start, length) of the cells that hold something (or nothing of their own: holes)."""
        unit = reading.shape.subcluster_size
        for index in range(view.l1.size) if holes else np.flatnonzero(view.l1 & _OFFSET).tolist():
            table = reading.table(int(view.l1[index]))
            if table is None:
                continue
            kinds, _ = reading.cells(*table, index * reading.shape.l2_coverage)
            wanted = (kinds == Cell.DATA) | (kinds == Cell.PACKED)
            if holes:
                wanted |= kinds == Cell.HOLE
            flat = np.flatnonzero(wanted.reshape(-1))
            for run in np.split(flat, np.flatnonzero(np.diff(flat) != 1) + 1):
                if run.size:
                    yield index * reading.shape.l2_coverage + int(run[0]) * unit, int(run.size) * unit

    def _whole(self, view: View, fate: Fate, reason: str, *, holes: bool = False) -> None:
        for start, length in self._mapped(self.base, view, holes=holes):
            self.ledger.add(fate, start, length, reason, view=view)

    def _cut_off(self, view: View, size: int) -> None:
        for start, length in self._mapped(self.base, view):
            end = min(start + length, view.size)
            if end > size:
                first = max(start, size)
                self.ledger.add(Fate.GIVEN_UP, first, end - first, "the disk would end before it", view=view)

    def blind(self, twin: View, *, told: bool = False) -> None:
        """A disk that could not be read at all before."""
        declared = self.case.places.get(twin.name)
        for start, length in self._mapped(self.after, twin):
            if told or (declared is not None and declared.touch(start, start + length)):
                self.ledger.add(Fate.REGAINED, start, length, "its place is certain", view=twin)
            else:
                reason = "content appears whose place is not certain"
                self.ledger.add(Fate.UNPROVEN, start, length, reason, view=twin)

    def reread(self, names: list[str]) -> None:
        """The same tables would be read in another way, although the old one was possible."""
        reason = f"it would be read differently: another {' and '.join(names)}"
        for view in self.base.views():
            self._whole(view, Fate.UNPROVEN, reason, holes=any(name.startswith("backing") for name in names))


def _twin(view: View, others: list[View]) -> View | None:
    """The same disk in the other image: the active one, or the snapshot of that name, best with the same L1 table."""
    if view.snapshot is None:
        return next((each for each in others if each.snapshot is None), None)
    mine = view.snapshot
    found = [each for each in others if each.snapshot is not None]
    near = [each for each in found if each.snapshot and each.snapshot.l1_table_offset == mine.l1_table_offset]
    named = [each for each in near if each.snapshot and each.snapshot.name == mine.name] or [
        each for each in found if each.snapshot and each.snapshot.name == mine.name and each.snapshot.id == mine.id
    ]
    exact = [each for each in named if each.snapshot and each.snapshot.id == mine.id]
    return next(iter(exact or named or near), None)
