"""The guest's side of an image: address translation, the data as the guest reads it, the map of the virtual disk."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from textual import on

from workbench.tui.background import Job, Pages
from workbench.tui.guestmap import GuestCells, measure
from workbench.tui.place import Place, View
from workbench.tui.prepare import Prepared, snapshot_number
from workbench.tui.screens.unlocking import Unlocking
from workbench.tui.sources import Source, sources_of
from workbench.tui.translating import translate
from workbench.tui.widgets.guestmap import GuestMapView
from workbench.tui.widgets.hexview import HexView
from workbench.tui.widgets.lines import LinesView, TextLine
from workbench.tui.widgets.rows import Rows


class Guest(Unlocking):
    """Views through the guest's eyes; part of the browser."""

    def feed_translation(self, widget: LinesView, found: Prepared, place: Place, source: str) -> None:
        meta, guest, image = self.session.meta, place.guest or 0, self.session.image
        snapshot = self.snapshot_of(found.item.key)
        chain = image.chain if image is not None and snapshot is None else ()

        def done(lines: list[TextLine]) -> None:
            widget.show(lines)
            self.fit_panes()

        self.session.background.submit(
            lambda _job: translate(meta, guest, snapshot, chain), done, self.failed, title="translating"
        )

    def go_on_below(self) -> None:
        """The translation goes on in the backing file, once that may be opened."""
        allowed = self.session.allowed
        for key in [key for key, path in allowed.items() if path is None]:
            del allowed[key]
        self.reopen_guest(lambda _pages: self.select(self.place, record=False))

    def snapshot_of(self, key: str) -> int | None:
        """Index of the snapshot that a structure belongs to."""
        return snapshot_number(key)

    def feed_guest_hex(self, widget: HexView, found: Prepared, place: Place, source: str) -> None:
        guest = place.guest or 0

        def ready(pages: Pages) -> None:
            widget.show(pages, self.session.meta.header.size)
            widget.footnote = self.guest_note
            if source != "guest_hex":
                widget.select(guest, 1)
            self.fit_panes()

        widget.instead = lambda: self.session.guest_wait
        if self.session.guest_pages is None:
            widget.show(None, 0)
            if self.session.guest_wait and not self.session.opening:
                return  # it says why, and Enter asks again
        self.with_guest(ready)

    def ask_for_guest(self) -> None:
        """Enter where guest data would be: ask again for what it takes."""
        self.session.guest_wait = ""
        self.select(self.place, record=False)

    @on(HexView.ByteMoved, "#view-guest_hex")
    def guest_hex_moved(self, event: HexView.ByteMoved) -> None:
        place = Place(
            self.place.node, self.place.offset, self.place.length, self.place.path, View.GUEST_HEX, event.offset
        )
        self.select(place, record=False, source="guest_hex")

    # The guest map

    def feed_guest_map(self, widget: GuestMapView, found: Prepared, place: Place, source: str) -> None:
        widget.show(self.session.meta.header.size, self.cluster_size(), self.measure_cells)
        if source != "guest_map":
            widget.select(place.guest or 0)

    def cluster_size(self) -> int:
        """Bytes per cluster."""
        geometry = self.session.meta.geometry
        return geometry.cluster_size if geometry is not None else 1 << 16

    def measure_cells(self, start: int, per_cell: int, cells: int, done: Callable[[GuestCells], None]) -> None:
        """Count what is in each cell, in the background; a newer question replaces an older one."""
        job: Job | None = getattr(self, "_measuring", None)
        if job is not None:
            job.cancel()
        meta, snapshot = self.session.meta, self.snapshot_of(self.place.node)
        long = per_cell * cells > 64 << 30
        self._measuring = self.session.background.submit(
            lambda job: measure(meta, start, per_cell, cells, snapshot, job.step),
            done,
            self.failed,
            title="measuring the disk",
            long=long,
        )

    @on(Rows.Moved, "#view-guest_map")
    def guest_map_moved(self, event: Rows.Moved) -> None:
        widget = event.rows
        assert isinstance(widget, GuestMapView)
        place = Place(
            self.place.node, self.place.offset, self.place.length, self.place.path, View.GUEST_MAP, widget.guest
        )
        self.select(place, record=False, source="guest_map")

    @on(Rows.Chosen, "#view-guest_map")
    def guest_map_chosen(self) -> None:
        self.to_view(View.TRANSLATION)

    def guest_note(self, offset: int) -> str:
        """The layer that a guest byte comes from, and where it is there; asked for in the background, shown when known."""
        session = self.session
        size = self.cluster_size()
        cluster = offset // size
        known = session.sources.get(cluster)
        if known is not None:
            return next((each.words(offset) for each in known if each.start <= offset < each.end), "")
        image = session.image
        if image is None or cluster in session.asked:
            return ""
        session.asked.add(cluster)

        def done(found: Sequence[Source]) -> None:
            if len(session.sources) > 4096:
                session.sources.clear()
            session.sources[cluster] = tuple(found)
            session.asked.discard(cluster)
            self.refresh_pages()

        def failed(error: Exception) -> None:
            done([Source(cluster * size, (cluster + 1) * size, str(error))])

        session.background.submit(
            lambda _job: sources_of(image, cluster * size, (cluster + 1) * size), done, failed, title="looking"
        )
        return ""
