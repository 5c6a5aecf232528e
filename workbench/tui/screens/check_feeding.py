"""What the check gives to its views: findings, host map, refcounts, overlaps."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from textual.timer import Timer
from textual.widget import Widget

from workbench.tui.background import Job
from workbench.tui.place import Place, View
from workbench.tui.prepare import Prepared
from workbench.tui.screens.check_run import CHECK_VIEWS, CheckRun

if TYPE_CHECKING:
    from workbench.render.refcounts import RefcountRows
    from workbench.tui.widgets.findings import FindingsView
    from workbench.tui.widgets.hostmap import HostMapView
    from workbench.tui.widgets.overlaps import OverlapsView, OwnerLine
    from workbench.tui.widgets.refcounts import RefcountsView

PATIENCE = 0.35
"""Seconds that the cursor rests before owners are looked up."""


class CheckFeeding(CheckRun):
    """The check's views are made here, and given their content whenever the place or the result changes."""

    _rest: Timer | None = None
    _owners_job: Job | None = None

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
