"""Tables as rows: index, raw, what it says, what it covers; runs folded, rows filtered."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from workbench.engine.tables import Run, TableKind
from workbench.render.entries import covers, run_label, run_raw, run_words
from workbench.tui.entries import EntryRows
from workbench.tui.widgets.rows import Part, Rows, cut


class EntriesView(Rows):
    """Rows of an EntryRows model. The cursor is a row; `entry` is the first entry of it."""

    head_height = 1

    def __init__(self, **more: object) -> None:
        super().__init__(**more)
        self.model: EntryRows | None = None
        self.refcount: Callable[[int], str] = lambda _offset: ""
        self._note = "Reading the table …"

    def show(self, model: EntryRows | None, note: str = "") -> None:
        """Show a table; None while it is being read."""
        self.model = model
        self._note = note or ("Reading the table …" if model is None else "No entry passes the filter.")
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
    def current(self) -> Run | None:
        """The run under the cursor."""
        if self.model is None or not len(self.model):
            return None
        return self.model.run(self.cursor)

    def row_count(self) -> int:
        return len(self.model) if self.model is not None else 0

    def empty_text(self) -> str:
        return self._note

    def _columns(self, width: int) -> tuple[int, int, int, int]:
        """Widths of index, raw value, meaning, coverage."""
        index = 17 if width >= 60 else 12
        raw = 18 if width >= 74 else 0
        if raw and self.model is not None and self.model.second is not None:
            raw = 35 if width >= 110 else 0
        rest = width - index - raw - 1
        cover = min(44, rest // 2) if rest >= 74 else 0
        return index, raw, rest - cover, cover

    def head_parts(self, line: int, width: int) -> Iterable[Part]:
        index, raw, says, cover = self._columns(width)
        yield " " + cut("Index", index), ""
        if raw:
            yield cut("Raw", raw), ""
        chosen = f"   filter: {self.model.chosen.text}" if self.model is not None and self.model.chosen else ""
        yield cut("Says" + chosen, says), ""
        if cover:
            yield cut("Covers", cover), ""

    def row_parts(self, row: int, width: int) -> Iterable[Part]:
        if self.model is None:
            return
        run = self.model.run(row)
        meta, table = self.model.meta, self.model.table
        index, raw, says, cover = self._columns(width)
        text = run_words(meta, table, run)
        style = self._style(run, text)
        glyph = {"bad": "✗", "packed": "≡", "zero": "0", "data": "■", "free": "·", "meta": "→"}[style]
        yield f"{glyph} " + cut(run_label(table, run), index - 1), style
        if raw:
            yield cut(run_raw(meta, table, run), raw), "dim"
        count = self._refcount_of(run)
        if run.count > 1 and not run.missing:
            text = f"{text} ×{run.count:,}"
        if count:
            text = f"{text}, refcount {count}" if text.endswith(")") else f"{text}  (refcount {count})"
        yield cut(text, says), style if style in ("bad", "free") else ""
        if cover:
            yield cut(covers(meta, table, run), cover), "dim"

    def _refcount_of(self, run: Run) -> str:
        """Stored refcount of the cluster that a single entry names; empty where there is none to show."""
        assert self.model is not None
        table, meta = self.model.table, self.model.meta
        if table.kind is TableKind.REFCOUNT_BLOCK or run.missing or run.count > 1:
            return ""
        if table.kind is TableKind.L2 and meta.header.has("data_file"):
            return ""
        layout = table.layout(meta, run.words[0])
        offset = layout["offset"].get(run.words[0]) if layout is not None else 0
        return self.refcount(offset) if 0 < offset < meta.file_size else ""

    def _style(self, run: Run, text: str) -> str:
        table = self.model.table if self.model else None
        if run.missing or "UNALIGNED" in text or "BEYOND" in text or "RESERVED" in text or "INVALID" in text:
            return "bad"
        if text.startswith(("unallocated", "no L2", "no refcount", "free", "all ")):
            return "free"
        if table is not None and table.kind is TableKind.L2:
            if text.startswith("compressed"):
                return "packed"
            return "zero" if text.startswith("zero") else "data"
        return "data" if table is not None and table.kind is TableKind.REFCOUNT_BLOCK else "meta"
