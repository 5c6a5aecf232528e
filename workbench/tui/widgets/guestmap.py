"""The virtual disk as cells: colour and shape say what is there; zoom from the whole disk to single clusters."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, ClassVar, Final

from workbench.tui.guestmap import Fill, GuestCells
from workbench.tui.widgets.rows import Part, Rows, cut, rows_classes
from workbench.units import format_size

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Measure = Callable[[int, int, int, Callable[[GuestCells], None]], None]

GLYPHS: Final = {
    Fill.DATA: ("█", "data", "data"),
    Fill.COMPRESSED: ("≡", "packed", "compressed"),
    Fill.ZERO_PLAIN: ("o", "zero", "zero"),
    Fill.ZERO_ALLOC: ("0", "meta", "zero (allocated)"),
    Fill.UNALLOCATED: ("·", "free", "unallocated"),
    Fill.INVALID: ("✗", "bad", "invalid"),
}
BACKING: Final = ("b", "backing", "from backing file")
PARTLY: Final = {
    Fill.DATA: ("▓", "data", "partly data"),
    Fill.COMPRESSED: ("▒", "packed", "partly compressed"),
    Fill.ZERO_ALLOC: ("░", "zero", "partly zero"),
    Fill.ZERO_PLAIN: ("░", "zero", "partly zero"),
}
"""Cells with several sorts of cluster (or subclusters), by the first of these that they hold."""
LEGEND: Final = tuple(dict.fromkeys((*GLYPHS.values(), BACKING, *PARTLY.values())))

_ALWAYS: Final = {GLYPHS[fill][2] for fill in (Fill.DATA, Fill.ZERO_PLAIN, Fill.UNALLOCATED)} | {BACKING[2]}
"""What the legend explains also where there is none of it."""

LABEL: Final = 14
"""Columns for the offset in front of a row of cells."""

LOOKS: Final = (
    *(GLYPHS[fill][:2] for fill in Fill),
    BACKING[:2],
    *(look[:2] for look in PARTLY.values()),
)
"""Glyph and style of a cell: whole cells by Fill, then backing, then partly filled ones by their first content."""


def looks(cells: GuestCells) -> NDArray[np.uint8]:
    """Index into LOOKS for every cell."""
    import numpy as np

    counts = cells.counts
    total = counts.sum(axis=1)
    best = counts.argmax(axis=1)
    out: NDArray[np.uint8] = best.astype(np.uint8)
    if cells.backing:
        out[best == int(Fill.UNALLOCATED)] = len(Fill)
    partly = counts.max(axis=1) < total
    for number, fill in reversed(list(enumerate(PARTLY))):
        out[partly & (counts[:, int(fill)] > 0)] = len(Fill) + 1 + number
    out[counts[:, int(Fill.INVALID)] > 0] = int(Fill.INVALID)
    return out


class GuestMapView(Rows):
    """Rows of cells; each cell is `per_cell` guest bytes. Only the visible cells are measured."""

    COMPONENT_CLASSES: ClassVar[set[str]] = rows_classes("data", "zero", "meta", "free", "packed", "backing")
    greedy = True

    def __init__(self, **more: object) -> None:
        super().__init__(**more)
        self.disk = 0
        self.cluster = 1 << 16
        self.per_cell = 0
        self.guest = 0
        self._is_whole = True
        self._measure: Measure | None = None
        self._cells: GuestCells | None = None
        self._asked: tuple[int, int, int] | None = None
        self._looks: NDArray[np.uint8] | None = None
        self._present: set[int] = set()

    def show(self, disk: int, cluster: int, measure: Measure) -> None:
        """Show a disk of `disk` bytes in clusters of `cluster` bytes."""
        if (disk, cluster) != (self.disk, self.cluster) or not self.per_cell:
            self.disk, self.cluster, self.per_cell = disk, cluster, 0
            self._present.clear()
            self._cells = self._asked = None
        self._measure = measure
        self._fit()
        self._ask()
        self.refresh()

    @property
    def columns(self) -> int:
        """Cells to a row: as many as fit, a multiple of 16, so that rows begin at round offsets."""
        return max(16, (self.inner_width - LABEL) // 16 * 16)

    @property
    def head_height(self) -> int:  # type: ignore[override]
        """The cell under the cursor, the zoom, the legend."""
        return 1 + len(self._legend(self.inner_width))

    @property
    def whole(self) -> int:
        """Bytes per cell at which the whole disk fits."""
        cells = self.columns * max(1, self.page)
        return max(self.cluster, -(-self.disk // cells))

    def _fit(self) -> None:
        if (self._is_whole or not self.per_cell) and self.size.width > 0:
            self.per_cell, self._is_whole = self._round(self.whole), True

    def _round(self, size: int) -> int:
        """A power of two times the cluster size, so that cells are whole clusters."""
        cell = self.cluster
        while cell < size:
            cell *= 2
        return cell

    def zoom(self, direction: int) -> None:
        """Closer (1) or wider (-1), around the cursor."""
        if not self.per_cell:
            return
        wanted = self.per_cell // 8 if direction > 0 else self.per_cell * 8
        self.per_cell = max(self.cluster, min(wanted, self._round(self.whole)))
        self._is_whole = self.per_cell == self._round(self.whole)
        self._cells = self._asked = None
        self.select(self.guest)

    def can_zoom(self, direction: int) -> bool:
        """Whether there is a closer (1) or wider (-1) look."""
        return self.per_cell > self.cluster if direction > 0 else not self._is_whole

    def select(self, guest: int) -> None:
        """Put the cursor on the cell with a guest offset; tells no one."""
        self.guest = max(0, min(guest, max(0, self.disk - 1)))
        if self.per_cell:
            row = self.guest // self.per_cell // self.columns
            self.set_reactive(Rows.cursor, row)
            self.show_row(row, middle=True)
        self._ask()
        self.refresh()

    def row_count(self) -> int:
        return -(-self.disk // (self.per_cell * self.columns)) if self.per_cell else 0

    def marks_row(self) -> bool:
        return False

    def on_resize(self) -> None:
        self._fit()
        self._cells = self._asked = None
        self.select(self.guest)

    def watch_top(self) -> None:
        self._ask()
        self.refresh()

    def _ask(self) -> None:
        if not self.per_cell or self._measure is None or self.size.width <= 0:
            return
        start = self.top * self.columns * self.per_cell
        question = (start, self.per_cell, self.columns * self.page)
        if question != self._asked:
            self._asked = question
            self._measure(*question, self._measured)

    def _measured(self, cells: GuestCells) -> None:
        if self._asked is not None and (cells.start, cells.per_cell) == self._asked[:2]:
            self._cells, self._looks = cells, looks(cells)
            self._present.update(self._looks.tolist())
            self.refresh()

    def _legend(self, width: int) -> list[list[Part]]:
        """The size of a cell, and glyph and words of every sort of cell, in lines of at most `width` cells."""
        size = f" 1 cell = {format_size(self.per_cell)}" + (", whole disk  " if self._is_whole else "  ")
        lines: list[list[Part]] = [[(size, "")]]
        used = len(size)
        backing = self._cells is not None and self._cells.backing
        present = {LOOKS[code] for code in self._present}
        for glyph, style, words in LEGEND:
            if (glyph, style) not in present and words not in _ALWAYS:
                continue
            if words == (GLYPHS[Fill.UNALLOCATED] if backing else BACKING)[2]:
                continue
            if used + len(words) + 4 - 2 > width:
                lines.append([(" ", "")])
                used = 1
            lines[-1] += [(glyph, style), (f" {words}  ", "")]
            used += len(words) + 4
        return lines

    def head_parts(self, line: int, width: int) -> Iterable[Part]:
        if line == 0:
            where = f" guest {self.guest:#x} ({format_size(self.guest)}): {self.describe(self.guest)}"
            yield cut(where, width), "text"
        else:
            yield from self._legend(width)[line - 1]

    def describe(self, guest: int) -> str:
        """What the cell of a guest offset holds, in words."""
        counts = self._counts(guest // self.per_cell) if self.per_cell else None
        if counts is None:
            return "measuring …"
        total = counts.sum()
        if not total:
            return "past the end of the disk"
        parts = []
        for fill in sorted(Fill, key=lambda fill: -counts[fill]):
            if counts[fill]:
                text = (
                    BACKING[2]
                    if fill is Fill.UNALLOCATED and self._cells is not None and self._cells.backing
                    else GLYPHS[fill][2]
                )
                share = counts[fill] / total
                parts.append(text if share == 1 else f"{share:.0%} {text}")
        return ", ".join(parts)

    def _counts(self, cell: int) -> NDArray[np.float64] | None:
        if self._cells is None or self._cells.per_cell != self.per_cell:
            return None
        index = cell - self._cells.start // self.per_cell
        return self._cells.counts[index] if 0 <= index < len(self._cells.counts) else None

    def row_parts(self, row: int, width: int) -> Iterable[Part]:
        columns = self.columns
        yield f" {row * columns * self.per_cell:#x} ".rjust(LABEL), "dim"
        first, last = row * columns, min((row + 1) * columns, -(-self.disk // self.per_cell))
        here = self.guest // self.per_cell
        known = self._looks is not None and self._cells is not None and self._cells.per_cell == self.per_cell
        base = self._cells.start // self.per_cell if self._cells is not None else 0
        text, style = "", ""
        for cell in range(first, last):
            index = cell - base
            code = (
                int(self._looks[index]) if known and self._looks is not None and 0 <= index < len(self._looks) else -1
            )
            glyph, look = LOOKS[code] if code >= 0 else (" ", "dim")
            if cell == here:
                look = "lit" if self.has_focus else "select"
            if look != style and text:
                yield text, style
                text = ""
            text, style = text + glyph, look
        yield text, style

    # Moving

    def _go(self, cell: int) -> None:
        last = max(0, (self.disk - 1) // self.per_cell) if self.per_cell else 0
        cell = max(0, min(cell, last))
        if self.per_cell and cell != self.guest // self.per_cell:
            self.guest = cell * self.per_cell
            row = cell // self.columns
            self.set_reactive(Rows.cursor, row)
            self.show_row(row)
            self.refresh()
            self.cursor_moved()

    @property
    def _cell(self) -> int:
        return self.guest // self.per_cell if self.per_cell else 0

    def action_nav_up(self) -> None:
        if self._cell >= self.columns:
            self._go(self._cell - self.columns)

    def action_nav_down(self) -> None:
        self._go(self._cell + self.columns)

    def action_nav_left(self) -> None:
        self._go(self._cell - 1)

    def action_nav_right(self) -> None:
        self._go(self._cell + 1)

    def _page(self, direction: int) -> None:
        self._go(self._cell + direction * self.page * self.columns)

    def action_nav_home(self) -> None:
        self._go(0)

    def action_nav_end(self) -> None:
        self._go(1 << 62)

    def clicked(self, x: int, row: int) -> None:
        if 0 <= x - LABEL < self.columns:
            self._go(row * self.columns + x - LABEL)
