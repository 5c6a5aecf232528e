"""The check of an image in the browser: it runs by itself in the background, and can be stopped and begun again."""

from __future__ import annotations

from time import monotonic
from typing import TYPE_CHECKING

from textual.timer import Timer

from workbench.tui.background import Job
from workbench.tui.checkstate import CheckState
from workbench.tui.place import View
from workbench.tui.screens.core import BrowserCore
from workbench.tui.widgets.structure import StructureTree

if TYPE_CHECKING:
    # The check needs numpy; it is imported when it is used, which is after the first paint.
    from workbench.tui.checking import Checked
    from workbench.tui.widgets.overlaps import OwnerLine

CHECK_VIEWS = (View.HOST_MAP, View.FINDINGS, View.REFCOUNTS, View.OVERLAPS)


class CheckRun(BrowserCore):
    """From the start of a check to its verdict, badges and first look."""

    _tick: Timer | None = None
    _cell_owners: tuple[int, tuple[OwnerLine, ...]] | None = None

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
