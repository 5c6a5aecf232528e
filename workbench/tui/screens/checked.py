"""Moving in the views of the check, the commands that mean something there, and what is explained."""

from __future__ import annotations

from typing import TYPE_CHECKING

from textual import on

from workbench.errors import ArgumentError
from workbench.tui.explaining import Explanation
from workbench.tui.outline_items import TABLES
from workbench.tui.place import Place, View
from workbench.tui.prepare import Prepared, hex_place, place_of
from workbench.tui.screens.check_feeding import CheckFeeding
from workbench.tui.screens.dialogs import TextDialog
from workbench.tui.widgets.rows import Rows

if TYPE_CHECKING:
    # The views of the check need numpy; they are imported when they are used, which is after the first paint.
    from workbench.render.findings import FindingRows
    from workbench.tui.widgets.findings import FindingsView
    from workbench.tui.widgets.hostmap import HostMapView
    from workbench.tui.widgets.overlaps import OverlapsView
    from workbench.tui.widgets.refcounts import RefcountsView


class CheckedImage(CheckFeeding):
    """What the check adds to the browser. The first of the browser's parts: what it does not know it leaves to the others."""

    _going = 0

    # Moving in them

    def go(
        self, offset: int, length: int, view: View, *, guest: int | None = None, source: str = "", record: bool = False
    ) -> None:
        """Select host bytes; of many asked for quickly, the last one counts."""
        outline = self.session.outline
        self._going += 1
        ticket = self._going

        def done(place: Place) -> None:
            if ticket == self._going:
                self.select(place, record=record, source=source, then=None if source else self.focus_view)

        def look() -> Place:
            item = outline.holding(max(0, min(offset, outline.meta.file_size - 1)))
            return Place(item.key, offset, max(1, length), "", view, guest)

        self.in_worker(look, done)

    @on(Rows.Moved, "#view-findings")
    def findings_moved(self, event: Rows.Moved) -> None:
        widget: FindingsView = event.rows  # type: ignore[assignment]
        self.explain_now()
        finding = widget.finding
        if finding is not None:
            self.go(finding.offset, finding.length, View.FINDINGS, guest=finding.guest, source="findings")

    @on(Rows.Moved, "#view-host_map")
    def host_map_moved(self, event: Rows.Moved) -> None:
        widget: HostMapView = event.rows  # type: ignore[assignment]
        if widget.world is None:
            return
        size = widget.world.geometry.cluster_size
        length = min(widget.cell * size, max(1, self.session.meta.file_size - widget.at * size))
        self.explain_now()
        if not event.by_person:
            return
        self.go(widget.at * size, length, View.HOST_MAP, source="host_map")
        self.after_rest(self.look_up_cell)

    @on(Rows.Moved, "#view-refcounts")
    def refcounts_moved(self, event: Rows.Moved) -> None:
        widget: RefcountsView = event.rows  # type: ignore[assignment]
        self.explain_now()
        if widget.cluster is not None and widget.model is not None and event.by_person:
            size = widget.model.world.geometry.cluster_size
            self.go(widget.cluster * size, size, View.REFCOUNTS, source="refcounts")

    @on(Rows.Moved, "#view-overlaps")
    def overlaps_moved(self, event: Rows.Moved) -> None:
        widget: OverlapsView = event.rows  # type: ignore[assignment]
        self.explain_now()
        finding = widget.finding
        if finding is not None:
            self.go(finding.offset, finding.length, View.OVERLAPS, source="overlaps")
            self.after_rest(self.look_up_owners)

    @on(Rows.Chosen, "#view-findings, #view-host_map, #view-refcounts, #view-overlaps")
    def check_row_chosen(self, event: Rows.Chosen) -> None:
        if self.findings_view is None or self.findings_view.finding is not None:
            self.do_follow()

    # Commands

    def otherwise(self, name: str) -> None:
        """Leave a command to the parts that come after this one."""
        method = getattr(super(), name, None)
        if method is not None:
            method()

    def do_follow(self) -> None:
        if self.findings_view is not None:
            self.follow_finding(self.findings_view)
        elif self.host_map_view is not None:
            world, facts = self.host_map_view.world, self.host_map_view.facts
            if world is not None and facts is not None and facts.first == self.host_map_view.at:
                size = world.geometry.cluster_size
                self.to_bytes(facts.at * size, size)
        elif self.refcounts_view is not None:
            cluster, model = self.refcounts_view.cluster, self.refcounts_view.model
            if cluster is not None and model is not None:
                size = model.world.geometry.cluster_size
                self.to_bytes(cluster * size, size)
        elif self.overlaps_view is not None:
            owner, finding = self.overlaps_view.owner, self.overlaps_view.finding
            if owner is not None and owner.target:
                self.jump(owner.target)
            elif finding is not None:
                self.to_bytes(finding.offset, finding.length)
        else:
            self.otherwise("do_follow")

    def follow_finding(self, widget: FindingsView) -> None:
        """A finding leads to its bytes, a heading opens and closes, evidence leads to where it lies."""
        finding, line = widget.finding, widget.current
        if finding is not None:
            self.to_bytes(finding.offset, finding.length, finding.guest)
        elif line is not None and line.text is None:
            widget.toggle()
        elif line is not None and line.group.cause is not None and line.group.cause.host:
            self.to_bytes(*line.group.cause.host[0])

    def to_bytes(self, offset: int, length: int, guest: int | None = None) -> None:
        """Go to host bytes: a whole table as its entries, anything else as hex."""
        outline, size = self.session.outline, self.session.meta.file_size
        if offset >= size:
            self.notify(f"{offset:#x} lies past the end of the file at {size:#x}.", severity="warning")
            return

        def look() -> Place:
            item = outline.holding(offset)
            if item.kind in TABLES and item.offset == offset and length >= min(item.length, 512):
                return place_of(item)
            place = hex_place(outline, offset)
            return Place(
                place.node,
                offset,
                min(length, size - offset),
                place.path if place.offset == offset else "",
                View.HEX,
                guest,
            )

        self.in_worker(look, lambda place: self.select(place, then=self.focus_view))

    def do_fold(self) -> None:
        widget = self.findings_view
        if widget is not None and self.focused is widget:
            widget.toggle()
        else:
            self.otherwise("do_fold")

    def do_zoom_in(self) -> None:
        widget = self.host_map_view
        if widget is not None:
            widget.zoom(1)
        else:
            self.otherwise("do_zoom_in")

    def do_zoom_out(self) -> None:
        widget = self.host_map_view
        if widget is not None:
            widget.zoom(-1)
        else:
            self.otherwise("do_zoom_out")

    def do_search(self) -> None:
        if self.place.view is View.FINDINGS:
            self.do_filter()
        else:
            self.otherwise("do_search")

    def do_filter(self) -> None:
        state = self.checked
        if state is None or state.done is None or self.place.view not in (View.FINDINGS, View.REFCOUNTS):
            self.otherwise("do_filter")
        elif self.place.view is View.REFCOUNTS:
            state.only_wrong = not state.only_wrong
            self.feed_again()
        else:
            note = "corruption, leak, warning, note, error; a code or a part of one; a word; 0x50000; host:1M-2M; guest:5M-.\nEmpty shows everything."
            self.app.push_screen(TextDialog("Show findings with", note=note, value=state.filter), self.filter_findings)

    def filter_findings(self, text: str | None) -> None:
        """Show the findings that pass a filter as typed; None leaves everything as it is."""
        state = self.checked
        if text is None or state is None or state.done is None:
            return
        from workbench.render.findings import FindingRows, parse_finding_filter

        try:
            chosen = parse_finding_filter(text)
        except ArgumentError as error:
            self.failed(error)
            return
        result = state.done.result

        def done(rows: FindingRows) -> None:
            state.filter, state.rows = chosen.text, rows
            self.feed_again()
            self.explain_now()

        if not chosen:
            done(state.done.rows)
        else:
            self.session.background.submit(
                lambda job: FindingRows(result, chosen, job.step),
                done,
                self.failed,
                title="filtering",
                long=len(result.findings) > 20_000,
            )

    def do_next_problem(self, direction: int = 1) -> None:
        outcome = self.outcome
        if outcome is None:
            self.otherwise("do_next_problem" if direction > 0 else "do_previous_problem")
            return
        if self.findings_view is not None:
            self.findings_view.next_finding(direction)
        elif self.overlaps_view is not None:
            self.overlaps_view.step_overlap(direction)
        else:
            self.step_problem(direction)

    def do_previous_problem(self) -> None:
        self.do_next_problem(-1)

    def step_problem(self, direction: int) -> None:
        """To the next finding in the order of the file, in the view that is in front where it can show it."""
        outcome = self.outcome
        assert outcome is not None
        import numpy as np

        offsets = outcome.result.findings.columns["offset"]
        here = np.uint64(self.place.offset)
        beyond = np.flatnonzero(offsets > here if direction > 0 else offsets < here)
        if not beyond.size:
            self.notify("No more problems this way; key 8 lists them all.", timeout=2)
            return
        row = int(beyond[offsets[beyond].argmin() if direction > 0 else offsets[beyond].argmax()])
        finding = outcome.result.findings[row]
        view = (
            self.place.view
            if self.place.view in (View.HOST_MAP, View.REFCOUNTS, View.HEX, View.ENTRIES, View.FIELDS)
            else View.HEX
        )
        if self.has_class("no-explain"):
            self.notify(finding.message.replace("[", "\\["), timeout=4)
        self.go(finding.offset, finding.length, view, guest=finding.guest, record=True)

    # Explanations

    def explanation_of(self, found: Prepared) -> Explanation:
        outcome = self.outcome
        if outcome is None:
            return super().explanation_of(found)
        from workbench.tui.checking import with_badge, with_problems

        told = self._told_by_view()
        if told is not None:
            return told
        plain, place = super().explanation_of(found), found.place
        if (place.offset, place.length) == (found.item.offset, found.item.length) and not place.path:
            plain = with_badge(plain, outcome.badges, found.item.key)
        return with_problems(plain, outcome.result, place)

    def _told_by_view(self) -> Explanation | None:
        """What there is to say about the row or cell under the cursor of one of the check's views."""
        from workbench.tui import checking

        meta = self.session.meta
        if self.findings_view is not None:
            finding, line = self.findings_view.finding, self.findings_view.current
            if finding is not None:
                return checking.explain_finding(meta, finding)
            return checking.explain_group(meta, line.group) if line is not None else None
        if self.host_map_view is not None:
            widget, known = self.host_map_view, self._cell_owners
            if widget.facts is None or widget.world is None or widget.facts.first != widget.at:
                return None
            owners = known[1] if known is not None and known[0] == widget.at and widget.cell == 1 else None
            return checking.explain_cell(widget.world, widget.facts, owners)
        if self.refcounts_view is not None:
            row, model = self.refcounts_view.current, self.refcounts_view.model
            return checking.explain_refcount(model.world, row) if row is not None and model is not None else None
        overlap = self.overlaps_view.finding if self.overlaps_view is not None else None
        return checking.explain_finding(meta, overlap) if overlap is not None else None
