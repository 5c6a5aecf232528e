"""Refcounts: stored beside counted, a row per host cluster; only the rows that are looked at are read."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable
from typing import Any, Final

from workbench.render.refcounts import TILE, RefcountRow, RefcountRows, RefcountTile, row_of_tile
from workbench.tui.widgets.rows import Part, Rows, cut

Submit = Callable[[Callable[[], Any], Callable[[Any], None]], None]
_KEPT: Final = 64


class RefcountsView(Rows):
    """Rows of a RefcountRows model, in tiles read in the background."""

    def __init__(self, **more: object) -> None:
        super().__init__(**more)
        self.model: RefcountRows | None = None
        self.note = ""
        self._submit: Submit | None = None
        self._tiles: OrderedDict[int, RefcountTile] = OrderedDict()
        self._asked: set[int] = set()

    def show(self, model: RefcountRows | None, submit: Submit, note: str = "") -> None:
        """Show a list; None while there is none, with the reason in `note`."""
        if model is not self.model:
            self._tiles.clear()
            self._asked.clear()
        self.model, self._submit, self.note = model, submit, note
        self.set_reactive(Rows.cursor, self.validate_cursor(self.cursor))
        self.set_reactive(Rows.top, self.validate_top(self.top))
        self.refresh()

    def select(self, cluster: int) -> None:
        """Put the cursor on a cluster's row (or the next that is listed); tells no one."""
        if self.model is not None and len(self.model):
            row = self.model.row_of(cluster)
            self.show_row(row, middle=True)
            self.move_to(row, tell=False)

    @property
    def current(self) -> RefcountRow | None:
        """The row under the cursor; None while it is being read."""
        return self.row_at(self.cursor) if self.row_count() else None

    @property
    def cluster(self) -> int | None:
        """Host cluster of the cursor's row."""
        return self.model.cluster(self.cursor) if self.model is not None and len(self.model) else None

    def row_at(self, row: int) -> RefcountRow | None:
        """A row; None, and asked for, when it has not been read."""
        tile = self._tiles.get(row // TILE)
        if tile is None:
            self._ask(row // TILE)
            return None
        self._tiles.move_to_end(row // TILE)
        return row_of_tile(tile, row)

    def _ask(self, number: int) -> None:
        model, submit = self.model, self._submit
        if model is None or submit is None or number in self._asked:
            return
        self._asked.add(number)

        def done(tile: RefcountTile) -> None:
            if self.model is not model:
                return
            self._asked.discard(number)
            self._tiles[number] = tile
            while len(self._tiles) > _KEPT:
                self._tiles.popitem(last=False)
            self.refresh()
            if self.cursor // TILE == number:
                self.post_message(self.Read(self))

        submit(lambda: model.tile(number), done)

    class Read(Rows.Moved):
        """The cursor's row has been read."""

        by_person = False

        def __init__(self, rows: Rows) -> None:
            super().__init__(rows, rows.cursor)

    def row_count(self) -> int:
        return len(self.model) if self.model is not None else 0

    def empty_text(self) -> str:
        if self.model is None:
            return self.note
        return "Every refcount agrees with the references. f shows all clusters."

    @property
    def head_height(self) -> int:  # type: ignore[override]
        """Columns; on narrow screens what is listed has a line of its own."""
        return 2 if self.model is not None and self.inner_width < 86 else 1

    def head_parts(self, line: int, width: int) -> Iterable[Part]:
        if self.model is None:
            yield " Refcounts", ""
            return
        what = (
            f"only the {self.model.wrong:,} that differ, f shows all"
            if self.model.only_wrong
            else f"all clusters, {self.model.wrong:,} differ: f shows only those"
        )
        if line + 1 == self.head_height:
            yield f"   {'Cluster':>10}  {'Offset':<13}{'Stored':>7}{'Counted':>9}  ", ""
            yield cut(what if line == 0 else "", max(0, width - 46)), "accent"
        else:
            yield cut(f" {what}", width), "accent"

    def row_parts(self, row: int, width: int) -> Iterable[Part]:
        if self.model is None:
            return
        found = self.row_at(row)
        cluster = self.model.cluster(row)
        offset = cluster * self.model.world.geometry.cluster_size
        if found is None:
            yield f"   {cluster:>10,}  {offset:<#13x}", "dim"
            yield " …", "dim"
            return
        level = found.level
        glyph, _, words = found.words.partition(" ")
        yield f" {glyph} ", level or "dim"
        yield f"{cluster:>10,}  ", "dim"
        yield f"{offset:<#13x}", "dim"
        yield f"{'—' if found.stored is None else found.stored:>7}", level
        yield f"{'?' if found.counted is None else found.counted:>9}  ", level
        rest = width - 46
        if rest >= 34:
            yield cut(words, 26), level
            yield cut(found.owner, rest - 26), "dim"
        else:
            yield cut(words if level else found.owner or words, rest), level or "dim"
