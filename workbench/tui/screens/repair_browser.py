"""What repair adds to the browser: r, u, E; the simulated image as a tab of its own; repairs that were cut off."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from workbench.errors import QwbError
from workbench.tui.commands import Command
from workbench.tui.place import View
from workbench.tui.screens.core import BrowserCore
from workbench.tui.screens.dialogs import ChooseDialog
from workbench.tui.session import Loaded, examine, identity_of

if TYPE_CHECKING:
    # Repair needs the whole check and numpy; it is imported when it is used, which is after the first paint.
    from workbench.repair import recovery
    from workbench.repair.casefile import Session as Repair
    from workbench.tui.screens.repair_flow import Edit, Flow


class Repairing(BrowserCore):
    """Commands that change the image, or show what it would be; part of the browser."""

    DEFAULT_CSS = """
    Repairing.simulated TitleLine { background: $warning 35%; }
    Repairing.simulated ViewTabs { background: $warning 15%; }
    """

    flow: Flow | None = None
    """A repair that was begun; kept while one looks around in the simulated image."""
    origin: Repairing | None = None
    """For a simulated image: the browser of the real one."""
    simulation: Repairing | None = None
    _asked_before = False

    def on_mount(self) -> None:
        """Besides what the browser does at its start (its own handler runs as well): a repair that was cut off."""
        if self.origin is None:
            self.look_for_interrupted()

    def available(self) -> list[Command]:
        """In a simulation: the way back to the plan instead of what would write."""
        found = super().available()
        if self.origin is None:
            return found
        return [
            replace(
                each, label="back to the plan", title="Back to the repair plan that made this simulation", footer=200
            )
            if each.id == "repair"
            else each
            for each in found
            if each.id not in ("undo", "edit", "reload")
        ]

    # Repair

    def do_repair(self) -> None:
        """The whole flow; on a finding: for findings of its kind."""
        if self.origin is not None:
            self.back_to_plan()
            return
        if self.flow is not None and self.flow.plan is not None and self.flow.applied is None:
            self.open_flow(self.flow)
            return
        self.drop_flow()
        widget = self.current_view()
        on_finding = self.place.view is View.FINDINGS and self.focused is widget
        finding = getattr(widget, "finding", None) if on_finding else None
        self.begin_flow(only=finding.code if finding is not None else "")

    def begin_flow(self, *, only: str = "", edit: Edit | None = None) -> None:
        """Show a new repair. The check's result is used if the file is still what was checked; a worker looks, and imports."""
        session, outcome = self.session, getattr(self, "outcome", None)

        def look() -> bool:
            import workbench.tui.screens.repair  # noqa: F401 - takes a tenth of a second; here it keeps no key waiting

            return session.identity == identity_of(session.path)

        def done(fresh: bool) -> None:
            if not self.on_top:  # the key was pressed twice, or one has gone elsewhere
                return
            from workbench.tui.screens.repair_flow import Flow

            result = outcome.result if fresh and outcome is not None else None
            self.flow = (
                Flow(session.path, result, edit=edit) if edit is not None else Flow(session.path, result, only=only)
            )
            self.open_flow(self.flow)

        session.background.submit(lambda _job: look(), done, self.failed, title="repair")

    def open_flow(self, flow: Flow) -> None:
        """Show a repair, new or kept."""
        from workbench.tui.screens.repair import RepairScreen

        self.app.push_screen(RepairScreen(flow, self.session.background, self.session.title, self.flow_left))

    def flow_left(self, answer: str | None) -> None:
        """The repair screen was left."""
        if answer == "around":
            self.look_around()
            return
        self.drop_flow()
        if answer in ("done", "undo"):
            self.session.repaired_before = True
            self.read_again()
        if answer == "undo":
            self.do_undo()

    def drop_flow(self) -> None:
        """Forget a repair that was begun, and the simulated image with it."""
        if self.simulation is not None:
            self.close_simulation()
        if self.flow is not None:
            self.flow.close()
            self.flow = None

    def to_front(self) -> None:
        """Show this image."""
        for index, each in enumerate(self.app.browsers):
            if each is self:
                self.app.show_image(index)

    # The simulated image

    def look_around(self) -> None:
        """Open the repaired image, as it would be, as a tab."""
        from workbench.tui.screens.repair_simulated import Simulated

        flow, session = self.flow, self.session
        if flow is None or flow.plan is None:
            return
        if self.simulation is not None:
            self.simulation.to_front()
            return
        overlay = flow.plan.overlay

        def done(loaded: Loaded) -> None:
            if loaded.storage is None or self.flow is not flow:
                self.notify("The simulated image cannot be shown.", severity="warning")
                return
            known = len(self.app.browsers)
            self.app.browse(loaded, f"{Path(session.path).name} SIMULATED")
            tab = self.app.browsers[known]
            assert isinstance(tab, Repairing)
            tab.origin, tab.session.simulated = self, True
            tab.session.secret, tab.session.allowed = session.secret, session.allowed
            tab.add_class("simulated")
            self.simulation = tab
            self.app.notify(
                f"This is the image as it would be. Nothing is written. {self.app.key_of('repair')} goes back to the plan.",
                timeout=8,
            )

        session.background.submit(
            lambda _job: examine(Simulated(overlay), session.path), done, self.failed, title="simulating"
        )

    def back_to_plan(self) -> None:
        """From the simulated image to the plan that made it."""
        origin = self.origin
        if origin is None:
            return
        origin.to_front()
        if origin.flow is not None:
            origin.call_later(origin.open_flow, origin.flow)  # by the one that stays: this tab may go

    def close_simulation(self) -> None:
        """Take the simulated tab away; the tab in front stays there."""
        tab, self.simulation = self.simulation, None
        if tab is None or tab not in self.app.browsers:
            return
        front = self.app.front
        self.app.browsers.remove(tab)
        if tab is front:
            self.to_front()
        self.app.uninstall_screen(tab)
        tab.session.close()
        tab.remove()
        self.app.update_image_tabs(self)

    def do_close_tab(self) -> None:
        if self.origin is not None:
            self.origin.simulation = None
        self.drop_flow()
        self.app.do_close_tab()

    def do_reload(self) -> None:
        if self.origin is not None:
            self.notify("A simulation does not change; the real image is in the other tab.")
            return
        self.drop_flow()
        super_reload = getattr(super(), "do_reload", None)
        if super_reload is not None:
            super_reload()

    def watch_file(self) -> None:
        """A simulation and a repair at work are no surprises."""
        if self.origin is None and self.flow is None:
            super().watch_file()

    def read_again(self) -> None:
        """After writing: show what is there now."""
        self.drop_flow()
        self.session.changed_underneath = ""
        self.do_reload()

    def release_guest(self) -> None:
        """Before writing: give the guest's view of the image back, it would show old data."""
        self.session.close_guest()

    # Undo

    def do_undo(self) -> None:
        """The history of repairs."""
        from workbench.tui.screens.repair_history import HistoryScreen

        if self.origin is not None:
            self.notify("This is a simulation: nothing was written that could be taken back.")
            return
        self.drop_flow()
        screen = HistoryScreen(self.session.path, self.session.background, self.session.title, self.release_guest)
        self.app.push_screen(screen, lambda answer: self.read_again() if answer == "changed" else None)

    # By hand

    def do_edit(self) -> None:
        """Edit the field or entry under the cursor."""
        from workbench.tui.screens.repair_flow import require_free
        from workbench.tui.screens.repair_hand import EditScreen, NotEditable, target_of

        if self.origin is not None:
            self.notify("This is a simulation: edit the image itself, in the other tab.")
            return
        if self.prepared is None:
            return
        session, prepared, place = self.session, self.prepared, self.place

        def done(found: object) -> None:
            if isinstance(found, NotEditable):
                self.notify(str(found).replace("[", "\\["), severity="warning")
            elif self.on_top:
                self.app.push_screen(EditScreen(found), self.edited)  # type: ignore[arg-type]

        def work() -> object:
            require_free(session.path)
            try:
                return target_of(session.outline, prepared, place)
            except NotEditable as error:
                return error

        session.background.submit(lambda _job: work(), done, self.failed, title="editing")

    def edited(self, edit: Edit | None) -> None:
        """A new value was given: plan, simulate, confirm, write like any repair."""
        if edit is not None:
            self.drop_flow()
            self.begin_flow(edit=edit)

    # Cut off

    def look_for_interrupted(self) -> None:
        """Ask the case file, if there is one, whether a repair was cut off."""
        path, session = self.session.path, self.session

        def done(answer: tuple[bool, Repair | None]) -> None:
            session.repaired_before, found = answer
            if found is not None and not self._asked_before:
                self._asked_before = True
                self.when_on_top(lambda: self.ask_interrupted(found))

        def work() -> tuple[bool, Repair | None]:
            from workbench.repair.cases import find_case

            if find_case(path) is None:
                return False, None
            from workbench.repair import recovery

            return True, recovery.interrupted(path)

        self.session.background.submit(lambda _job: work(), done, self.failed, title="case file")

    def ask_interrupted(self, found: Repair) -> None:
        """Roll back, complete, or look first."""
        from workbench.tui.screens.repair_history import interrupted_note

        options = [
            ("back", "(b) Roll back: the image becomes what it was before the repair"),
            ("complete", "(c) Complete: the image becomes what was planned"),
            ("look", "(l) Look first, change nothing (u comes back here)"),
        ]

        def chosen(answer: str | None) -> None:
            if answer in ("back", "complete"):
                self.end_interrupted(answer == "complete")

        self.app.push_screen(
            ChooseDialog("A repair of this image was interrupted", options, note=interrupted_note(found)), chosen
        )

    def end_interrupted(self, complete: bool) -> None:
        """Do it in a worker; where something else wrote to the image, the history screen takes over."""
        from workbench.repair import recovery
        from workbench.repair.session import recheck
        from workbench.tui.screens.repair_flow import require_free

        path = self.session.path
        self.release_guest()

        def work() -> recovery.Recovered | None:
            require_free(path)
            return recovery.recover(path, complete=complete, recheck=recheck(None))

        def done(ended: recovery.Recovered | None) -> None:
            if ended is not None:
                self.notify(f"Session {ended.session.id} was {ended}.", timeout=6)
            self.read_again()

        def failed(error: Exception) -> None:
            self.failed(error)
            if isinstance(error, QwbError):
                self.do_undo()

        self.session.background.submit(lambda _job: work(), done, failed, title="recovering", long=True)
