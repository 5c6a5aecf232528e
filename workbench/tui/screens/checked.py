"""The check in the browser: runs by itself, and feeds findings, host map, refcounts, overlaps, badges and explanations."""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic
from typing import TYPE_CHECKING, Any

from textual import on
from textual.timer import Timer
from textual.widget import Widget

from workbench.errors import ArgumentError
from workbench.tui.background import Job
from workbench.tui.checkstate import CheckState
from workbench.tui.explaining import Explanation
from workbench.tui.outline_items import TABLES
from workbench.tui.place import Place, View
from workbench.tui.prepare import Prepared, hex_place, place_of
from workbench.tui.screens.core import BrowserCore
from workbench.tui.screens.dialogs import TextDialog
from workbench.tui.widgets.rows import Rows
from workbench.tui.widgets.structure import StructureTree

if TYPE_CHECKING:
    # The check and its views need numpy; they are imported when they are used, which is after the first paint.
    from workbench.render.findings import FindingRows
    from workbench.render.refcounts import RefcountRows
    from workbench.tui.checking import Checked
    from workbench.tui.widgets.findings import FindingsView
    from workbench.tui.widgets.hostmap import HostMapView
    from workbench.tui.widgets.overlaps import OverlapsView, OwnerLine
    from workbench.tui.widgets.refcounts import RefcountsView

CHECK_VIEWS = (View.HOST_MAP, View.FINDINGS, View.REFCOUNTS, View.OVERLAPS)
PATIENCE = 0.35
"""Seconds that the cursor rests before owners are looked up."""


class CheckedImage(BrowserCore):
    """What the check adds to the browser. The first of the browser's parts: what it does not know it leaves to the others."""

    _tick: Timer | None = None
    _rest: Timer | None = None
    _going = 0
    _owners_job: Job | None = None
    _cell_owners: tuple[int, tuple[OwnerLine, ...]] | None = None

    # The check itself

    @property
    def checked(self) -> CheckState | None:
        """The state of this image's check; None before it began, or when the image was read again since."""
        state = self.session.check
        return state if isinstance(state, CheckState) and state.meta is self.session.meta else None

    @property
    def outcome(self) -> Checked | None:
        """What the check gave; None before it is done."""
        state = self.checked
        return state.done if state is not None else None

    def start_check(self) -> None:
        """Check in the background; by itself when the image is opened."""
        if self.app.auto_check and self.session.meta.is_qcow2:
            self.check_now()

    def check_now(self) -> None:
        """Begin a check; an older one is stopped and its result forgotten."""
        session = self.session
        old = session.check
        if isinstance(old, CheckState) and old.job is not None:
            old.job.cancel()
        meta = session.meta

        def work(job: Job) -> Checked:
            from workbench.tui.checking import run_check

            return run_check(meta, job)

        state = session.check = CheckState(meta)
        self._cell_owners = None

        def done(found: Checked) -> None:
            state.done, state.rows = found, found.rows
            self.check_over()

        def failed(error: Exception) -> None:
            state.error = str(getattr(error, "what", error))
            self.check_over()

        state.job = session.background.submit(work, done, failed, title="checking", long=True)
        if self._tick is None:
            self._tick = self.set_interval(0.4, self.check_tick)
        self.query_one(StructureTree).set_badges({})
        self.feed_again()

    def check_tick(self) -> None:
        """While it runs: progress in the views that wait for it; notices that it was stopped."""
        state = self.checked
        if state is None or not state.running:
            if self._tick is not None:
                self._tick.stop()
                self._tick = None
            if state is not None and state.done is None:
                self.feed_again()
            return
        if self.place.view in CHECK_VIEWS:
            self.feed_again()

    def check_over(self) -> None:
        """Show what came of it everywhere."""
        outcome = self.outcome
        if outcome is not None:
            self.query_one(StructureTree).set_badges(outcome.badges)
        self.feed_again()
        self.explain_now()
        self.update_title()
        self.update_footer()
        self._welcome()

    def _welcome(self) -> None:
        """A damaged image that nobody has moved in yet is shown by what is wrong with it."""
        if monotonic() >= self.welcome_until or self.verdict()[1] not in ("bad", "warn"):
            return
        if self.prepared is None:  # the check of a small image is done before the first place is looked up
            self.set_timer(0.05, self._welcome)
            return
        self.welcome_until = 0.0
        if self.place.node == "header" and not self.place.path and not self.session.history.can_back:
            self.to_view(View.FINDINGS)

    def feed_again(self) -> None:
        """Give the view in front its content anew."""
        if self.prepared is not None and self.place.view in CHECK_VIEWS and self.current_view() is not None:
            self.show_view(self.prepared, self.place, "check")

    def verdict(self) -> tuple[str, str]:
        state = self.checked
        if state is None:
            return ("", "")
        if state.done is not None:
            from workbench.render.findings import verdict_words

            return verdict_words(state.done.result)
        if state.error:
            return ("check failed", "bad")
        return ("check stopped", "") if state.job is not None and state.job.cancelled else ("", "")

    def has_findings(self) -> bool:
        return self.outcome is not None and len(self.outcome.result.findings) > 0

    def do_check(self) -> None:
        state = self.checked
        if state is not None and state.running and state.job is not None:
            state.job.cancel()
            self.notify("The check was stopped.", timeout=2)
            self.feed_again()
        else:
            self.check_now()
        self.update_title()

    # Views

    def make_view(self, view: View, ident: str) -> Widget:
        """The widgets of the check's views; others come from the other parts."""
        if view is View.HOST_MAP:
            from workbench.tui.widgets.hostmap import HostMapView

            return HostMapView(id=ident)
        if view is View.FINDINGS:
            from workbench.tui.widgets.findings import FindingsView

            return FindingsView(id=ident)
        if view is View.REFCOUNTS:
            from workbench.tui.widgets.refcounts import RefcountsView

            return RefcountsView(id=ident)
        if view is View.OVERLAPS:
            from workbench.tui.widgets.overlaps import OverlapsView

            return OverlapsView(id=ident)
        made: Widget = super().make_view(view, ident)  # type: ignore[misc]
        return made

    def in_front(self, view: View) -> Any:
        """The widget of a view, when that is the one in the middle."""
        return self.current_view() if self.place.view is view else None

    @property
    def findings_view(self) -> FindingsView | None:
        found: FindingsView | None = self.in_front(View.FINDINGS)
        return found

    @property
    def host_map_view(self) -> HostMapView | None:
        found: HostMapView | None = self.in_front(View.HOST_MAP)
        return found

    @property
    def refcounts_view(self) -> RefcountsView | None:
        found: RefcountsView | None = self.in_front(View.REFCOUNTS)
        return found

    @property
    def overlaps_view(self) -> OverlapsView | None:
        found: OverlapsView | None = self.in_front(View.OVERLAPS)
        return found

    def to_view(self, view: View) -> None:
        """The check's views take the keys at once: they show the whole image, whatever the tree's cursor is on."""
        if (
            self.prepared is not None
            and view in CHECK_VIEWS
            and view in self.prepared.views
            and view is not self.place.view
        ):
            self.select(self.place.seen_in(view), then=self.focus_view)
        else:
            super().to_view(view)

    def in_worker(self, work: Callable[[], Any], done: Callable[[Any], None]) -> None:
        """A short look in the background."""
        self.session.background.submit(lambda _job: work(), done, self.failed, title="looking")

    @property
    def note(self) -> str:
        """What the views say while there is no result."""
        state = self.checked
        if state is None:
            return "Not checked yet: c starts the check."
        if state.done is not None and state.done.world is None:
            return "The header makes no sense, so there are no clusters to show."
        return state.note

    def feed_findings(self, widget: FindingsView, found: Prepared, place: Place, source: str) -> None:
        state = self.checked
        fresh = widget.model is None
        widget.show(state.rows if state is not None else None, self.note)
        if state is None or state.rows is None or source in ("findings", "check"):
            return
        if not fresh and widget.finding is not None and widget.finding.offset == place.offset:
            return
        row = self.finding_here(place)
        if row is not None:
            widget.select(row)

    def finding_here(self, place: Place) -> int | None:
        """The first finding inside a place that is smaller than the file; prefers one with just these bytes."""
        outcome = self.outcome
        if outcome is None or not place.length or place.length >= self.session.meta.file_size:
            return None
        columns = outcome.result.findings.columns
        same = (columns["offset"] == place.offset) & (columns["length"] == place.length)
        inside = same if same.any() else (columns["offset"] >= place.offset) & (columns["offset"] < place.end)
        return int(inside.argmax()) if inside.any() else None

    def feed_host_map(self, widget: HostMapView, found: Prepared, place: Place, source: str) -> None:
        outcome = self.outcome
        world = outcome.world if outcome is not None else None
        fresh = world is not widget.world
        widget.show(world, self.in_worker, self.note)
        if world is not None and (source not in ("host_map", "check") or fresh):
            widget.select(place.offset // world.geometry.cluster_size)

    def feed_refcounts(self, widget: RefcountsView, found: Prepared, place: Place, source: str) -> None:
        state = self.checked
        world = state.done.world if state is not None and state.done is not None else None
        if state is None or world is None:
            widget.show(None, self.in_worker, self.note)
            return
        rows = state.refcounts
        if rows is not None and rows.only_wrong == state.only_wrong:
            fresh = widget.model is not rows
            widget.show(rows, self.in_worker, self.note)
            if source not in ("refcounts", "check") or fresh:
                widget.select(place.offset // world.geometry.cluster_size)
            return
        only_wrong = state.only_wrong

        def done(made: RefcountRows) -> None:
            state.refcounts = made
            self.feed_again()
            self.explain_now()

        def work() -> RefcountRows:
            from workbench.render.refcounts import RefcountRows

            return RefcountRows(world, only_wrong=only_wrong)

        widget.show(None, self.in_worker, "Comparing …")
        self.in_worker(work, done)

    def feed_overlaps(self, widget: OverlapsView, found: Prepared, place: Place, source: str) -> None:
        outcome = self.outcome
        fresh = widget.findings is None
        widget.show(outcome.result.findings if outcome is not None else None, self.note)
        if outcome is not None and fresh:
            self.look_up_owners()

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

    # Owners, looked for when the cursor rests

    def after_rest(self, what: Callable[[], None]) -> None:
        """Do `what` when nothing has moved for a moment."""
        if self._rest is not None:
            self._rest.stop()
        self._rest = self.set_timer(PATIENCE, what)

    def find_owners(self, cluster: int, done: Callable[[tuple[OwnerLine, ...]], None]) -> None:
        """Look through all tables for what refers to a cluster; a newer question stops an older one."""
        if self._owners_job is not None:
            self._owners_job.cancel()
        from workbench.tui.checking import owner_lines

        meta = self.session.meta
        self._owners_job = self.session.background.submit(
            lambda job: owner_lines(meta, cluster, job), done, self.failed, title="who refers", long=True
        )

    def look_up_owners(self) -> None:
        """The owners of the overlap under the cursor."""
        widget = self.overlaps_view
        finding = widget.finding if widget is not None else None
        geometry = self.session.meta.geometry
        if widget is None or finding is None or geometry is None or widget.has_owners(finding.row):
            return
        row = finding.row

        def done(lines: tuple[OwnerLine, ...]) -> None:
            widget.set_owners(row, lines)
            self.explain_now()

        self.find_owners(finding.offset >> geometry.cluster_bits, done)

    def look_up_cell(self) -> None:
        """The owners of the single cluster under the cursor of the host map."""
        widget = self.host_map_view
        if widget is None or widget.world is None or widget.cell != 1:
            return
        cluster = widget.at

        def done(lines: tuple[OwnerLine, ...]) -> None:
            self._cell_owners = (cluster, lines)
            self.explain_now()

        self.find_owners(cluster, done)

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
