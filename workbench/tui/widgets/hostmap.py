"""The host map: the whole file as cells; colour and glyph say what each is used for, problems win over everything."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, ClassVar, Final

from textual import events

from workbench.render.hostmap import LOOKS, SPARSE, CellFacts, HostKind, HostMap, Look, cell_text, whole_file_cell
from workbench.tui.widgets.rows import Part, Rows, cut, rows_classes
from workbench.units import div_round_up, format_size

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Submit = Callable[[Callable[[], Any], Callable[[Any], None]], None]
"""submit(work, done): run `work` in a thread, then `done(result)` on the event loop."""
LABEL: Final = 15
_MOST: Final = 1 << 13
"""Cells looked at together at most."""


class HostMapView(Rows):
    """Rows of cells; each cell is `cell` clusters. Asks for the visible cells, keeps those of three pages."""

    greedy = True
    COMPONENT_CLASSES: ClassVar[set[str]] = rows_classes(
        "data", "free", "packed", "inactive", "l1", "l2", "refcount", "bitmap", "luks", "header", "leak", "lost", "mismatch", "overlap", "waiting",
    )  # fmt: skip
    DEFAULT_CSS = """
    HostMapView > .rows--inactive { color: $secondary; }
    HostMapView > .rows--l1 { color: $accent; text-style: bold; }
    HostMapView > .rows--l2 { color: $accent; }
    HostMapView > .rows--refcount { color: $secondary; text-style: bold; }
    HostMapView > .rows--bitmap { color: $success; text-style: bold; }
    HostMapView > .rows--luks { color: $success; text-style: bold; }
    HostMapView > .rows--header { color: $foreground; text-style: bold; }
    HostMapView > .rows--leak { color: $warning; }
    HostMapView > .rows--lost { color: $warning; text-style: bold; background: $warning 20%; }
    HostMapView > .rows--mismatch { color: $error; text-style: bold; background: $error 15%; }
    HostMapView > .rows--overlap { color: $error; text-style: bold; background: $error 30%; }
    HostMapView > .rows--waiting { color: $text-muted; }
    """

    class Read(Rows.Moved):
        """It is known what the cursor's cell holds; the cursor did not move."""

        by_person = False

        def __init__(self, rows: Rows) -> None:
            super().__init__(rows, rows.cursor)

    def __init__(self, **more: object) -> None:
        super().__init__(**more)
        self.world: HostMap | None = None
        self.note = ""
        self.cell = 0
        self._is_whole = True
        self.at = 0
        self.facts: CellFacts | None = None
        self.hover: CellFacts | None = None
        self._submit: Submit | None = None
        self._kinds: NDArray[np.uint8] | None = None
        self._thin: NDArray[np.bool_] | None = None
        self._start = 0
        self._asked: tuple[int, int, int] | None = None
        self._ticket = 0
        self._seen: set[HostKind] = set()
        self._any_thin = False
        self._kinds_there: set[HostKind] | None = None

    # What the screen says

    def show(self, world: HostMap | None, submit: Submit, note: str = "") -> None:
        """Show a file's clusters; None while they are not known, with the reason in `note`."""
        self._submit, self.note = submit, note
        if world is not self.world:
            self.world, self.cell, self.facts, self.hover = world, 0, None, None
            self._kinds_there = None
            self._forget()
        self._fit()
        self._ask()
        self.refresh()

    def select(self, cluster: int) -> None:
        """Put the cursor on the cell with a host cluster; tells no one."""
        if self.world is None:
            self.at = cluster
            return
        self._go(cluster)
        self._ask_facts(tell=False)

    # Geometry

    @property
    def pitch(self) -> int:
        """Screen columns per cell: two where the whole file fits like that, which reads better."""
        if self.world is None:
            return 1
        wide = max(8, (self.inner_width - LABEL) // 2 // 8 * 8)
        return 2 if div_round_up(self.world.clusters, wide) <= max(4, self.size.height - 6) else 1

    @property
    def columns(self) -> int:
        """Cells to a row, a multiple of 8."""
        return max(8, (self.inner_width - LABEL) // self.pitch // 8 * 8)

    @property
    def head_height(self) -> int:  # type: ignore[override]
        """Zoom, cursor, legend."""
        return 2 + len(self._legend_lines(self.inner_width)) if self.world is not None and self.size.height > 8 else 2

    @property
    def whole(self) -> int:
        """Clusters per cell at which the whole file fits."""
        return whole_file_cell(self.world.clusters, self.columns, max(1, self.page)) if self.world is not None else 1

    def _fit(self) -> None:
        if self.world is not None and not self.cell and self.size.width > 0:
            self.cell, self._is_whole = self.whole, True
            self._go(self.at)
            self._ask_facts(tell=False)

    def _go(self, cluster: int) -> None:
        assert self.world is not None
        cluster = max(0, min(cluster, self.world.clusters - 1))
        self.at = cluster - cluster % self.cell if self.cell else cluster
        if self.cell:
            row = self.at // self.cell // self.columns
            self.set_reactive(Rows.cursor, row)
            self.show_row(row, middle=True)
            self._ask()
        self.refresh()

    def zoom(self, direction: int) -> None:
        """Closer (1) or wider (-1), around the cursor: on a cell of many, to the first cluster of what it shows."""
        if self.world is None or not self.cell:
            return
        anchor = self.facts.at if self.facts is not None and self.facts.first == self.at and direction > 0 else self.at
        self.cell = max(1, self.cell // 4) if direction > 0 else min(self.whole, self.cell * 4)
        self._is_whole = self.cell == self.whole
        self._forget()
        self._go(anchor)
        self._ask_facts(tell=True)

    def can_zoom(self, direction: int) -> bool:
        """Whether there is a closer (1) or wider (-1) look."""
        return self.cell > 1 if direction > 0 else not self._is_whole

    def row_count(self) -> int:
        if self.world is None or not self.cell:
            return 0
        return div_round_up(div_round_up(self.world.clusters, self.cell), self.columns)

    def marks_row(self) -> bool:
        return False

    def empty_text(self) -> str:
        return self.note

    def on_resize(self) -> None:
        self._forget()
        if self.world is not None and (self._is_whole or self.cell > self.whole):
            self.cell = 0
        self._fit()
        if self.world is not None:
            self._go(self.at)

    def watch_top(self) -> None:
        self._ask()
        self.refresh()

    # Asking for content

    def _forget(self) -> None:
        self._kinds = self._thin = self._asked = None

    def _ask(self) -> None:
        """Ask for the cells of the page and its neighbours, unless they are there."""
        world, submit = self.world, self._submit
        if world is None or submit is None or not self.cell or self.size.width <= 0:
            return
        page = self.columns * self.page
        first, last = self.top * self.columns, self.top * self.columns + page
        if (
            self._asked is not None
            and self._asked[1] == self.cell
            and self._asked[0] <= first
            and last <= self._asked[0] + self._asked[2]
        ):
            return
        low = max(0, self.top - self.page) * self.columns if page * 3 <= _MOST else first
        question = (low, self.cell, page * 3 if page * 3 <= _MOST else page)
        self._asked = question

        def work() -> Any:
            return world.cells(question[0] * question[1], question[1], question[2])

        def done(found: Any) -> None:
            if self._asked == question and self.world is world:
                self._start, (self._kinds, self._thin) = question[0], found
                self._any_thin |= bool((found[1] & (found[0] == HostKind.DATA)).any())
                self._seen.update(HostKind(int(kind)) for kind in set(self._kinds.tolist()))
                self.refresh()

        submit(work, done)

    def _ask_facts(self, *, tell: bool, hover: int | None = None) -> None:
        """Ask what the cell under the cursor (or the mouse) holds; then, if `tell`, tell the screen."""
        world, submit, first, cell = self.world, self._submit, self.at if hover is None else hover, self.cell
        if world is None or submit is None or not cell:
            return
        self._ticket += 1
        ticket = self._ticket

        def done(found: CellFacts) -> None:
            if self.world is not world or self.cell != cell:
                return
            if hover is not None:
                if ticket == self._ticket:
                    self.hover = found
            elif first == self.at:
                self.facts = found
                self.post_message(self.Moved(self, self.cursor) if tell else self.Read(self))
            self.refresh()

        submit(lambda: world.facts(first, cell), done)

    # Drawing

    def _legend_lines(self, width: int) -> list[list[Part]]:
        """Glyph and word of every kind that there is, in lines of at most `width` cells."""
        looks: list[Look] = []
        if self.world is not None:
            if self._kinds_there is None and self.world.summary is not None:  # adding up takes a millisecond: once
                totals = self.world.summary.sum(axis=0, dtype="int64")
                self._kinds_there = {kind for kind in HostKind if totals[kind]}
            present = self._kinds_there if self._kinds_there is not None else self._seen
            looks = [LOOKS[kind] for kind in sorted(present, reverse=True)]
            if self._any_thin:
                looks.append(SPARSE)
        lines: list[list[Part]] = [[(" ", "")]]
        used = 1
        for look in looks:
            size = len(look.title) + 4
            if used + size - 2 > width and used > 1:
                lines.append([(" ", "")])
                used = 1
            lines[-1] += [(look.glyph, look.style), (f" {look.title}  ", "")]
            used += size
        return lines[: max(1, min(4, self.size.height // 3))]

    def head_parts(self, line: int, width: int) -> Iterable[Part]:
        if self.world is None:
            yield " Host map" if line == 0 else "", ""
            return
        size = self.world.geometry.cluster_size
        if line == 0:
            here = "whole file" if self.cell == self.whole else f"{format_size(self.cell * size * self.columns)} a row,"
            yield cut(f" {cell_text(self.cell, size)} · {here} of {self.world.clusters:,} clusters", width), ""
        elif line == 1:
            facts = self.hover or (self.facts if self.facts is not None and self.facts.first == self.at else None)
            first = facts.first if facts is not None else self.at
            look = LOOKS[facts.kind] if facts is not None else None
            yield (" mouse " if self.hover else " "), ""
            if look is not None:
                yield look.glyph + " ", look.style
            where = f"{first * size:#x} cluster {first:,}" if self.cell == 1 else f"from {first * size:#x}"
            yield cut(f"{where}: {facts.words if facts is not None else 'looking …'}", width - 3), "text"
        else:
            lines = self._legend_lines(width)
            if line - 2 < len(lines):
                yield from lines[line - 2]

    def row_parts(self, row: int, width: int) -> Iterable[Part]:
        if self.world is None or not self.cell:
            return
        first, pitch = row * self.columns, self.pitch
        offset = first * self.cell * self.world.geometry.cluster_size
        yield f" {offset:#013x} ".ljust(LABEL), "dim"
        end = min(first + self.columns, div_round_up(self.world.clusters, self.cell))
        cursor = self.at // self.cell
        run, run_style = "", ""
        for place in range(first, end):
            glyph, style = ("", "") if place == cursor else self._glyph(place)
            if place == cursor or style != run_style or pitch > 1:
                yield run, run_style
                run, run_style = "", style
            if place == cursor:
                yield self._glyph(place)[0], "lit"
            else:
                run += glyph
            if pitch > 1:
                yield run, run_style
                run, run_style = " ", ""
        yield run, run_style

    def _glyph(self, place: int) -> tuple[str, str]:
        at = place - self._start
        if (
            self._kinds is None
            or self._thin is None
            or not 0 <= at < self._kinds.size
            or self._asked is None
            or self._asked[1] != self.cell
        ):
            return "…", "waiting"
        kind = HostKind(int(self._kinds[at]))
        look = SPARSE if kind is HostKind.DATA and self._thin[at] else LOOKS[kind]
        return look.glyph, look.style

    # Keys and mouse

    def _step(self, cells: int) -> None:
        if self.world is None or not self.cell:
            return
        last = div_round_up(self.world.clusters, self.cell) - 1
        place = max(0, min(self.at // self.cell + cells, last))
        if place * self.cell != self.at:
            self.hover = None
            self._go(place * self.cell)
            self._ask_facts(tell=True)

    def show_row(self, row: int, *, middle: bool = False) -> None:
        super().show_row(row, middle=False)

    def action_nav_left(self) -> None:
        self._step(-1)

    def action_nav_right(self) -> None:
        self._step(1)

    def action_nav_up(self) -> None:
        self._step(-self.columns)

    def action_nav_down(self) -> None:
        self._step(self.columns)

    def action_nav_page_up(self) -> None:
        self._step(-self.columns * self.page)

    def action_nav_page_down(self) -> None:
        self._step(self.columns * self.page)

    def action_nav_home(self) -> None:
        self._step(-(1 << 62))

    def action_nav_end(self) -> None:
        self._step(1 << 62)

    def _place(self, x: int, row: int) -> int | None:
        """Cell number under a screen position."""
        column = (x - LABEL) // self.pitch
        if self.world is None or not self.cell or x < LABEL or column >= self.columns or row >= self.row_count():
            return None
        place = row * self.columns + column
        return place if place < div_round_up(self.world.clusters, self.cell) else None

    def clicked(self, x: int, row: int) -> None:
        place = self._place(x, row)
        if place is not None:
            self._step(place - self.at // self.cell)

    def hovered(self, x: int, row: int) -> None:
        place = self._place(x, row)
        if place is None:
            self._unhover()
        elif self.hover is None or self.hover.first != place * self.cell:
            self._ask_facts(tell=False, hover=place * self.cell)

    def _unhover(self) -> None:
        if self.hover is not None:
            self.hover = None
            self.refresh()

    def on_leave(self, _event: events.Leave) -> None:
        self._ticket += 1
        self._unhover()
