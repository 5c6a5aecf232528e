"""The guest's side of an image: address translation, the data as the guest reads it, the map of the virtual disk."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from pathlib import Path
from typing import Any

from textual import on

from workbench.engine.explain import Translation, explain_guest
from workbench.engine.gate import OpenRequest
from workbench.errors import GateRefused, PassphraseError
from workbench.render.explain import translation_lines
from workbench.tui.background import Job, Pages
from workbench.tui.guestmap import GuestCells, measure
from workbench.tui.place import Place, View
from workbench.tui.prepare import Prepared, snapshot_number
from workbench.tui.screens.core import BrowserCore
from workbench.tui.screens.dialogs import TextDialog
from workbench.tui.widgets.guestmap import GuestMapView
from workbench.tui.widgets.hexview import HexView
from workbench.tui.widgets.lines import LinesView, TextLine
from workbench.tui.widgets.rows import Rows


class Guest(BrowserCore):
    """Views through the guest's eyes; part of the browser."""

    def feed_translation(self, widget: LinesView, found: Prepared, place: Place, source: str) -> None:
        meta, guest = self.session.meta, place.guest or 0
        snapshot = self.snapshot_of(found.item.key)

        def work() -> list[TextLine]:
            told = explain_guest(meta, guest, snapshot)
            prefix = f"snapshot:{snapshot}/" if snapshot is not None else ""
            targets = _translation_targets(told, prefix)
            answer = host_target(told)
            lines = []
            number = -1
            for text in translation_lines(meta, told):
                if text[:1].isdigit():
                    number += 1
                    lines.append(TextLine(text, "accent", targets.get(number, "")))
                elif text.startswith("=>") or not lines:
                    lines.append(TextLine(text, "bad" if told.problem else "good", answer))
                else:
                    lines.append(TextLine(text))
            return lines

        self.session.background.submit(lambda _job: work(), widget.show, self.failed, title="translating")

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

        self.with_guest(ready)

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

    # Opening the image as a guest sees it

    def with_guest(self, ready: Callable[[Pages], None]) -> None:
        """Give `ready` the pages of guest data; asks for a passphrase and before it opens other files."""
        session = self.session
        if session.guest_pages is not None:
            ready(session.guest_pages)
            return
        if session.opening:
            return
        session.opening = True
        loop_call = self.app.call_from_thread

        def gate(request: OpenRequest) -> Path | None:
            """Runs in the worker: ask on the interface's thread, wait for the answer here."""
            answer: Future[Path | None] = Future()
            loop_call(self.ask_gate, request, answer.set_result)
            while not session.background.closed:
                with suppress(TimeoutError):
                    return answer.result(timeout=0.2)
            raise GateRefused("the workbench is closing", path=session.path)

        from workbench.engine.image import Image

        def work(job: Job) -> Image:
            staged = session.storage if session.simulated else None
            image = Image.open(
                session.path,
                gate=gate,
                secret=session.secret,
                force_share=True,
                tolerant=True,
                lock=False,
                storage=staged,
            )
            try:
                image.unlock()
            except BaseException:
                image.close()
                raise
            return image

        def done(image: Image) -> None:
            session.opening = False
            session.image = image
            session.guest_pages = Pages(
                session.background, lambda at, size: _guest_read(image, at, size), session.more_pages
            )
            for fault in image.problems:
                self.notify(fault.what.replace("[", "\\["), severity="warning")
            ready(session.guest_pages)

        def failed(error: Exception) -> None:
            session.opening = False
            if isinstance(error, PassphraseError):
                self.ask_passphrase(lambda: self.with_guest(ready), str(error.what) if session.secret else "")
            else:
                self.failed(error)

        session.background.submit(work, done, failed, title="opening", long=True)

    def ask_passphrase(self, then: Callable[[], None], wrong: str = "") -> None:
        """Ask for the passphrase; an empty answer leaves the image locked."""

        def given(text: str | None) -> None:
            if text:
                self.session.secret = text.encode()
                then()

        note = wrong or "Guest data is encrypted. The metadata can be browsed without a passphrase."
        self.app.push_screen(
            TextDialog("Passphrase", note=note, password=True, hints="⏎ unlock   Esc go on without it"), given
        )

    def do_unlock(self) -> None:
        def then() -> None:
            session = self.session
            if session.image is not None:
                session.image.close()
            session.image = session.guest_pages = None
            self.with_guest(
                lambda _pages: (
                    self.to_view(View.GUEST_HEX)
                    if self.place.view is not View.GUEST_HEX
                    else self.select(self.place, record=False)
                )
            )

        self.ask_passphrase(then)

    def guest_note(self, offset: int) -> str:
        """The layer that a guest byte comes from; asked for in the background, shown when known."""
        session = self.session
        cluster = offset // self.cluster_size()
        known = session.sources.get(cluster)
        if known is not None:
            return known
        image = session.image
        if image is None or cluster in session.asked:
            return ""
        session.asked.add(cluster)
        size = self.cluster_size()

        def work() -> str:
            start = cluster * size
            extent = next(iter(image.extents(start, min(size, image.size - start))), None)
            if extent is None:
                return "nothing"
            kind = "zeros" if extent.zero and not extent.data else "compressed" if extent.compressed else "data"
            layer = image.chain[extent.depth] if extent.depth < len(image.chain) else None
            name = Path(layer.path).name if layer is not None else "?"
            where = f" at {extent.host:#x}" if extent.host is not None else ""
            return (
                f"{kind} from {'this image' if extent.depth == 0 else name}{where}"
                if extent.present or extent.data
                else "not allocated: zeros"
            )

        def done(text: str) -> None:
            if len(session.sources) > 4096:
                session.sources.clear()
            session.sources[cluster] = text
            self.refresh_pages()

        def failed(error: Exception) -> None:
            done(str(error))

        session.background.submit(lambda _job: work(), done, failed, title="looking")
        return ""


def _guest_read(image: Any, offset: int, length: int) -> bytes:
    data: bytes = image.read(offset, max(0, min(length, image.size - offset)))
    return data


def host_target(told: Translation) -> str:
    """Address of the host bytes that hold a guest byte; empty when this file has none."""
    if told.external:
        return ""
    return f"{told.host:#x}" if told.host is not None else f"{told.run.offset:#x}" if told.run is not None else ""


def _translation_targets(told: Translation, prefix: str) -> dict[int, str]:
    """Step number -> address of what the step looks at."""
    found = {}
    for number, step in enumerate(told.steps):
        kind = step.kind.value
        if kind == "l1-index":
            found[number] = f"{prefix}l1:{step.result}"
        elif kind == "l1-entry":
            found[number] = f"{prefix}l1:{step.numbers['index']}"
        elif (kind in ("l2-index", "l2-entry") and step.where is not None) or step.where is not None:
            found[number] = f"{step.where.offset:#x}"
    return found
