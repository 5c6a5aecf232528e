"""Tables as rows in columns: index, raw value, type, host offset, range, refcount, flags; runs folded, rows filtered."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import Enum
from typing import ClassVar, Final

from formats.qcow2.entries import SUBCLUSTERS, subclusters
from workbench.engine.tables import Run, TableKind
from workbench.render.entries import PAST_END, Meaning, Sort, covered, meaning, run_label, run_raw, side_of
from workbench.render.sizes import span
from workbench.tui.entries import EntryRows
from workbench.tui.widgets.rows import Part, Rows, cut, rows_classes

STYLES: Final = {
    Sort.MISSING: ("✗", "bad"),
    Sort.UNALLOCATED: ("·", "free"),
    Sort.FREE: ("·", "free"),
    Sort.ALL_ZEROS: ("·", "free"),
    Sort.ALL_ONES: ("1", "data"),
    Sort.DATA: ("■", "data"),
    Sort.IN_USE: ("■", "data"),
    Sort.SUBCLUSTERS: ("▤", "data"),
    Sort.BITMAP_DATA: ("→", "meta"),
    Sort.L2_TABLE: ("→", "meta"),
    Sort.REFCOUNT_BLOCK: ("→", "meta"),
    Sort.ZERO: ("0", "zero"),
    Sort.ZERO_ALLOCATED: ("0", "zero"),
    Sort.COMPRESSED: ("≡", "packed"),
}
"""Glyph and style of a row: shape and colour say the same."""


class Column(Enum):
    """The columns in the order in which they stand; the value is the heading."""

    INDEX = "Index"
    RAW = "Raw"
    SORT = "Type"
    SUBS = "Subclusters 0 to 31"
    COUNT = "Refcount"
    HOST = "Host offset"
    RANGE = "Range"
    REFS = "Refs"
    FLAGS = "Flags"


@dataclass(frozen=True, slots=True)
class Width:
    """Cells for a column: at its best, and at the least it is shown with."""

    best: int
    least: int


LEAST, BEST = False, True
ORDER: Final = (
    (Column.INDEX, LEAST), (Column.SUBS, BEST), (Column.COUNT, BEST), (Column.SORT, BEST), (Column.HOST, LEAST), (Column.RANGE, LEAST),
    (Column.REFS, BEST), (Column.FLAGS, BEST), (Column.RANGE, BEST), (Column.INDEX, BEST), (Column.HOST, BEST), (Column.RAW, BEST),
)  # fmt: skip
"""What room is spent on, most important first: a column at its least, later at its best."""


def layout(widths: dict[Column, Width], room: int) -> dict[Column, int]:
    """The columns that fit into `room` cells, in the order in which they stand, with their widths."""
    found: dict[Column, int] = {}
    for column, best in ORDER:
        if column in widths:
            more = (widths[column].best if best else widths[column].least) - found.get(column, 0)
            if 0 < more <= room:
                found[column] = found.get(column, 0) + more
                room -= more
    return {column: found[column] for column in Column if column in found}


class EntriesView(Rows):
    """Rows of an EntryRows model. The cursor is a row; `current` is its run of entries."""

    COMPONENT_CLASSES: ClassVar[set[str]] = rows_classes("data", "zero", "meta", "free", "packed")
    foldable = True

    def __init__(self, **more: object) -> None:
        super().__init__(**more)
        self.model: EntryRows | None = None
        self.refcount: Callable[[int, int], str] = lambda _offset, _clusters: ""
        self._note = "Reading the table …"
        self._laid_out: tuple[int, dict[Column, int]] = (0, {})

    def show(self, model: EntryRows | None, note: str = "") -> None:
        """Show a table; None while it is being read."""
        self.model = model
        self._note = note or ("Reading the table …" if model is None else "No entry passes the filter.")
        self._laid_out = (0, {})
        self.set_reactive(Rows.cursor, self.validate_cursor(self.cursor))
        self.set_reactive(Rows.top, self.validate_top(self.top))
        self.refresh()

    def select(self, index: int) -> None:
        """Put the cursor on the row with entry `index`; tells no one."""
        if self.model is not None and len(self.model):
            row = self.model.row_of(index)
            self.show_row(row, middle=True)
            self.move_to(row, tell=False)

    @property
    def head_height(self) -> int:  # type: ignore[override]
        """Headings, and the filter when there is one."""
        return 2 if self.model is not None and self.model.chosen else 1

    @property
    def current(self) -> Run | None:
        """The run under the cursor."""
        if self.model is None or not len(self.model):
            return None
        return self.model.run(self.cursor)

    def row_count(self) -> int:
        return len(self.model) if self.model is not None else 0

    def empty_text(self) -> str:
        return self._note

    # Columns

    def columns(self, width: int) -> dict[Column, int]:
        """Columns and their widths for a pane of `width` cells."""
        if self._laid_out[0] != width:
            self._laid_out = (width, self._layout(width))
        return self._laid_out[1]

    def _layout(self, width: int) -> dict[Column, int]:
        if self.model is None:
            return {}
        meta, table = self.model.meta, self.model.table
        digits = len(str(max(1, table.entries - 1)))
        host = len(f"{meta.file_size:#x}") + 1
        start, length = covered(meta, table, Run(0, table.entries, (0,)))
        reach = len(f"{start + length:#x}") + 1
        raw = max(4, table.entry_bits(meta) // 4 + (2 if self.model.second is not None else 1))
        widths = {
            Column.INDEX: Width(max(8, 2 * digits + 5), max(8, digits + 5)),
            Column.RAW: Width(raw, raw),
            Column.SORT: Width(12, 12),
            Column.SUBS: Width(SUBCLUSTERS + 1, SUBCLUSTERS + 1),
            Column.COUNT: Width(9, 9),
            Column.HOST: Width(max(12, 2 * host + 1), max(8, host)),
            Column.RANGE: Width(max(12, 2 * reach + 1), max(8, reach)),
            Column.REFS: Width(5, 5),
            Column.FLAGS: Width(7, 7),
        }
        pointers = (Column.INDEX, Column.RAW, Column.SORT, Column.HOST, Column.RANGE, Column.REFS)
        wanted = {
            TableKind.L1: (*pointers, Column.FLAGS),
            TableKind.L2: (*pointers, Column.FLAGS),
            TableKind.REFCOUNT_TABLE: pointers,
            TableKind.REFCOUNT_BLOCK: (Column.INDEX, Column.RAW, Column.SORT, Column.COUNT, Column.RANGE),
            TableKind.BITMAP_TABLE: pointers,
        }[table.kind]
        if self.model.second is not None:  # the picture of the subclusters says the type
            wanted = (Column.SUBS, *(column for column in wanted if column is not Column.SORT))
        return layout({column: widths[column] for column in wanted}, width - 2)

    def head_parts(self, line: int, width: int) -> Iterable[Part]:
        if self.model is None:
            return
        if line == 0 and self.model.chosen:
            text = f" {self.model.kept:,} of {self.model.total:,} entries: {self.model.chosen.text}   (f changes the filter)"
            yield cut(text, width), "accent"
            return
        yield "  ", ""
        shown = self.columns(width)
        for column, size in shown.items():
            text = column.value
            if column is Column.RANGE:
                text = f"{side_of(self.model.table).capitalize()} range"
                text = text if len(text) < size else side_of(self.model.table).capitalize()
            elif len(text) >= size:
                text = text.split()[0]
            yield cut(text, size), ""

    # Rows

    def row_parts(self, row: int, width: int) -> Iterable[Part]:
        if self.model is None:
            return
        run = self.model.run(row)
        meta, table = self.model.meta, self.model.table
        found = meaning(meta, table, run)
        odd = " ".join("PAST EOF" if each == PAST_END else each for each in found.oddities)
        if "INVALID" in found.detail:
            odd = f"{odd} INVALID".strip()
        glyph, style = ("✗", "bad") if odd else STYLES[found.sort]
        yield f"{glyph} ", style
        shown = dict(self.columns(width))
        while odd and sum(shown.values()) + 2 + len(odd) > width and len(shown) > 1:
            shown.popitem()  # what is wrong with the entry is worth more than its last columns
        for column, size in shown.items():
            if column is Column.SUBS:
                yield from self._subclusters(run, found, size)
                continue
            yield (
                cut(self._cell(column, run, found, size), size - 1) + " ",
                style if column in (Column.INDEX, Column.SORT) and style != "zero" else _COLUMN_STYLE.get(column, ""),
            )
        if odd:
            yield odd, "bad"

    def _cell(self, column: Column, run: Run, found: Meaning, size: int) -> str:
        """Text of a cell, shorter than `size` where that says enough."""
        assert self.model is not None
        if column is Column.INDEX:
            label = run_label(self.model.table, run)
            return label if len(label) < size else f"[{run.first}..]"
        if column is Column.RAW:
            return run_raw(self.model.meta, self.model.table, run)
        if column is Column.HOST:
            return _host_text(run, found, size)
        if column is Column.RANGE:
            return self._range_text(run, size)
        return {
            Column.SORT: found.sort.value,
            Column.COUNT: f"{found.value:,}" if found.value >= 0 else "",
            Column.REFS: self._refcount_of(run, found) if column is Column.REFS else "",
            Column.FLAGS: " ".join(found.flags),
        }[column]

    def _range_text(self, run: Run, size: int) -> str:
        """What the entries describe, cut at the end of the disk; only its start where there is no room."""
        assert self.model is not None
        meta, table = self.model.meta, self.model.table
        start, length = covered(meta, table, run)
        if side_of(table) == "guest":
            if start >= meta.header.size:
                return "past the disk" if size > len("past the disk") else "past"
            length = min(length, meta.header.size - start)
        whole = span(start, length) if length else ""
        return whole if len(whole) < size else f"{start:#x}"

    def _subclusters(self, run: Run, found: Meaning, size: int) -> Iterable[Part]:
        """One cell a subcluster: data, zero, both (which is wrong), neither; words for entries without subclusters."""
        if found.sort is Sort.COMPRESSED or len(run.words) < 2:
            yield cut(found.sort.value, size), STYLES[found.sort][1]
            return
        allocated, zero = subclusters(run.words[1])
        text, style = "", ""
        for bit in range(SUBCLUSTERS):
            glyph, look = _SUBCLUSTER[(allocated >> bit & 1, zero >> bit & 1)]
            if look != style and text:
                yield text, style
                text = ""
            text, style = text + glyph, look
        yield cut(text, len(text) + size - SUBCLUSTERS), style

    def _refcount_of(self, run: Run, found: Meaning) -> str:
        """Stored refcount of the clusters that a run names, or lowest and highest of them; empty where there is none."""
        assert self.model is not None
        table, meta = self.model.table, self.model.meta
        if found.host is None or (table.kind is TableKind.L2 and meta.header.has("data_file")):
            return ""
        return self.refcount(found.host, run.count if run.step else 1) if 0 < found.host < meta.file_size else ""


def _host_text(run: Run, found: Meaning, size: int) -> str:
    if found.host is None:
        return "-"
    single = run.count == 1 and found.sort is not Sort.COMPRESSED
    whole = f"{found.host:#x}" if single or found.end is None else f"{found.host:#x}..{found.end:#x}"
    return whole if len(whole) < size else f"{found.host:#x}"


_COLUMN_STYLE: Final = {Column.RAW: "dim", Column.RANGE: "dim"}
_SUBCLUSTER: Final = {(1, 0): ("■", "data"), (0, 1): ("0", "zero"), (1, 1): ("✗", "bad"), (0, 0): ("·", "free")}
"""(allocated, reads as zeros) -> glyph and style."""
