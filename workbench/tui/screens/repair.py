"""The repair on the screen: choose, see the plan and its maps, go from step to step. Escape goes a step back, until writing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

from textual import on
from textual.app import ComposeResult
from textual.binding import BindingType
from textual.containers import Container, Vertical, VerticalScroll
from textual.content import Content
from textual.widgets import ContentSwitcher, Input, ProgressBar, Static

from workbench.check.problems import Tier
from workbench.render.plan import after_text, cost_words, size_words, verdict_level, verdict_text
from workbench.render.sizes import count
from workbench.render.text import printable
from workbench.tui.background import Background, Job
from workbench.tui.commands import bindings
from workbench.tui.screens.dialogs import ChooseDialog
from workbench.tui.screens.repair_flow import Flow
from workbench.tui.screens.repair_steps import FLOW_BY_ID, FLOW_COMMANDS, GLYPH_STYLES, At
from workbench.tui.screens.repair_writing import RepairWriting
from workbench.tui.standing import stands
from workbench.tui.widgets.choices import ChoiceDetail, ChoicesView
from workbench.tui.widgets.chrome import LEVEL_GLYPH, Footer, Line
from workbench.tui.widgets.editdiff import EditDiffView
from workbench.tui.widgets.hostmap import HostMapView
from workbench.tui.widgets.plan import PlanView, plan_rows
from workbench.tui.widgets.rows import Rows


class RepairScreen(RepairWriting):
    """Walks a Flow. Answers `done` when the image was written, `around` to look around in the simulation, else None."""

    BINDINGS: ClassVar[list[BindingType]] = [*bindings(FLOW_COMMANDS)]
    DEFAULT_CSS = """
    RepairScreen #flow-title { height: 2; }
    RepairScreen #banner { height: auto; max-height: 5; padding: 0 1; background: $surface; color: $foreground; }
    RepairScreen ContentSwitcher { height: 1fr; }
    RepairScreen #choose, RepairScreen #plan, RepairScreen #split { height: 1fr; }
    RepairScreen #choices { height: 2fr; }
    RepairScreen ChoiceDetail { height: 3fr; border-top: solid $panel; }
    RepairScreen #split { layout: vertical; }
    RepairScreen #steps { height: 2fr; }
    RepairScreen #diff { height: 3fr; border-top: solid $panel; }
    RepairScreen #split.wide { layout: horizontal; }
    RepairScreen .wide #steps { width: 2fr; height: 1fr; }
    RepairScreen .wide #diff { width: 3fr; height: 1fr; border-top: none; border-left: solid $panel; }
    RepairScreen #maps { display: none; height: 1fr; layout: vertical; }
    RepairScreen #maps.wide { layout: horizontal; }
    RepairScreen .half { width: 1fr; height: 1fr; }
    RepairScreen .half > Static { background: $panel; text-style: bold; padding: 0 1; height: 1; }
    RepairScreen #busy, RepairScreen #done { padding: 1 2; height: 1fr; }
    RepairScreen #confirm { padding: 0 2; height: 1fr; }
    RepairScreen #confirm-scroll { height: 1fr; }
    RepairScreen #word { border: none; height: 1; background: $boost; padding: 0 1; margin: 0 0 1 0; width: 60; display: none; }
    RepairScreen #word:focus { border: none; background-tint: $error 20%; }
    RepairScreen.drops #word { display: block; }
    RepairScreen #warning { display: none; color: $error; text-style: bold; margin: 0 0 1 0; }
    RepairScreen.drops #warning { display: block; }
    RepairScreen #bar { margin: 1 0; }
    """

    def __init__(self, flow: Flow, background: Background, title: str, answered: Callable[[str | None], None]) -> None:
        super().__init__()
        self.answered = answered
        self.flow, self.background, self.name_shown = flow, background, title
        self.at = At.BUSY
        self._job: Job | None = None
        self._ticket = 0
        self._busy_text = ""
        self.mapping = False
        """Whether the host maps are shown instead of the changes."""

    def compose(self) -> ComposeResult:
        yield Line(id="flow-title")
        yield Static(id="banner", markup=False)
        with ContentSwitcher(id="pages", initial="busy"):
            with VerticalScroll(id="busy", can_focus=False):
                yield Static(id="busy-text", markup=False)
                yield ProgressBar(id="bar", show_eta=False)
            with Vertical(id="choose"):
                yield ChoicesView(id="choices")
                yield ChoiceDetail(id="choice-detail")
            with Vertical(id="plan"):
                with Container(id="split"):
                    yield PlanView(id="steps")
                    yield EditDiffView(id="diff")
                yield Container(id="maps")
            with Vertical(id="confirm"):
                yield Static(id="warning", markup=False)
                with VerticalScroll(id="confirm-scroll"):
                    yield Static(id="confirm-text", markup=False)
                yield Input(id="word", placeholder="type the word here, then Enter")
            with VerticalScroll(id="done"):
                yield Static(id="done-text", markup=False)
        yield Footer(id="footer")

    def on_mount(self) -> None:
        if not stands(self):
            return
        self.set_interval(0.2, self._tick)
        if self.flow.plan is not None:
            self.show_plan()
        elif self.flow.edit is not None:
            self.make_plan()
        else:
            self.look()

    def look(self) -> None:
        """Find out what there is to choose."""
        self.work(
            "Looking at the image: who has it open, and what is wrong with it.",
            self.flow.look,
            lambda _none: self.show_choices(),
        )

    def make_plan(self) -> None:
        """Try the chosen repairs on an overlay."""
        text = (
            "Trying the repair on a simulation of the image, and checking the result.\nThe image itself is only read."
        )
        self.work(text, self.flow.make_plan, lambda _none: self.show_plan())

    # Steps

    def go_to(self, at: At) -> None:
        """Show a step; the maps belong to the plan alone."""
        if self.mapping:
            self.show_maps(False)
        super().go_to(at)

    # 1 Choose

    def show_choices(self) -> None:
        flow = self.flow
        self.go_to(At.CHOOSE)
        view = self.query_one(ChoicesView)
        view.show(flow.decisions)
        if flow.only:
            view.select(flow.only)
        self.tell_risk()
        view.focus()
        self.tell_choice()

    def tell_risk(self) -> None:
        """What the choice as it stands now means, above the list."""
        flow = self.flow
        fixable = [each for each in flow.decisions if each.fixable]
        if not flow.decisions:
            self.banner("✓ There is nothing to repair.")
        elif not fixable:
            self.banner(
                "Nothing here can be repaired automatically. Each row says what it is; keys 8 and E in the workbench lead further."
            )
        else:
            found = self.flow.guide.found if self.flow.guide is not None else None
            words = count(sum(each.count for each in fixable if not each.request), "problem")
            more = "" if found is None or found.aborted is None else " The image cannot be opened as it is."
            chosen = [each for each in fixable if each.on]
            if any(each.risk is Tier.DESTRUCTIVE for each in chosen):
                self.banner(
                    "▲ A choice marked here drops data. Enter shows the exact changes first; a word must be typed before they are written."
                )
            elif all(each.request for each in fixable) and not chosen:
                self.banner("✓ Nothing needs repair. What is listed can be done if you want it: Space chooses.")
            else:
                risk = (
                    "What is marked [x] loses nothing"
                    if all(each.risk is Tier.SAFE for each in chosen)
                    else "Some of it has more than one right answer: look at the ways below it"
                )
                self.banner(
                    f"{words} can be repaired.{more} {risk}. Enter shows the exact changes first. Space changes a choice."
                )

    def tell_choice(self) -> None:
        if not stands(self):
            return
        found = self.query_one(ChoicesView).current
        detail = self.query_one(ChoiceDetail)

        async def show() -> None:
            await detail.show(*(found or (None, None)))

        # The function, not its coroutine: that would complain when a newer choice overtakes it.
        self.run_worker(show, group="choice", exclusive=True)  # type: ignore[arg-type]  # Textual's types want no result
        self.frame()

    @on(Rows.Moved, "#choices")
    def choice_moved(self) -> None:
        self.tell_choice()

    @on(ChoicesView.Changed)
    def choice_made(self) -> None:
        self.tell_risk()
        self.tell_choice()

    def do_toggle(self) -> None:
        self.query_one(ChoicesView).toggle()

    def do_all(self) -> None:
        self.query_one(ChoicesView).toggle_all()

    # 2 Plan

    def show_plan(self) -> None:
        flow, plan = self.flow, self.flow.plan
        assert plan is not None and flow.cost is not None
        self.show_maps(False)
        self.go_to(At.PLAN)
        before, after = LEVEL_GLYPH[verdict_level(plan.before)], LEVEL_GLYPH[verdict_level(plan.after, kept=True)]
        last = (f"{count(len(plan.steps), 'step')}; {cost_words(flow.cost)}. {size_words(flow.cost.sizes)}", "")
        if plan.empty:
            last = ("Nothing would be changed. " + ("What stays is told below." if flow.left else ""), "")
        elif flow.worse:
            last = ("✗ This makes the image WORSE. Only go on if you know why.", GLYPH_STYLES["✗"])
        elif flow.drops:
            last = (
                f"▲ A word must be typed before this is written. {count(len(plan.steps), 'step')}; {cost_words(flow.cost)}.",
                GLYPH_STYLES["▲"],
            )
        proof = LEVEL_GLYPH["good" if plan.proof.harmless else "bad"]
        self.banner(
            Content.assemble(
                "Now:   ", (f"{before} {verdict_text(plan.before)}", GLYPH_STYLES[before]), "\n",
                "After: ", (f"{after} {after_text(plan)}", GLYPH_STYLES[after]), ("  (simulated)", "$text-muted"), "\n",
                *(() if plan.empty else ("Proof: ", (f"{proof} {plan.proof}", GLYPH_STYLES[proof]), "\n")), last,
            )
        )  # fmt: skip
        view = self.query_one(PlanView)
        view.show(plan_rows(plan, flow.left))
        view.focus()
        self.tell_step()

    @on(Rows.Moved, "#steps")
    def step_moved(self) -> None:
        self.tell_step()

    def tell_step(self) -> None:
        """The change under the cursor in full; its fields are decoded in a worker."""
        row, diff = self.query_one(PlanView).current, self.query_one(EditDiffView)
        self._ticket += 1
        if row is None:
            diff.show_text([])
        elif row.step is not None:
            step, ticket = row.step, self._ticket
            diff.show_step(step, None)

            def done(fields: list[tuple[str, str, str]]) -> None:
                if ticket == self._ticket and stands(self):
                    diff.show_step(step, fields)

            self.background.submit(lambda _job: self.flow.fields(step), done, lambda _error: done([]), title="decoding")
        elif row.left is not None:
            diff.show_text([(row.left.title, "accent"), (row.left.why, "")])
        elif row.note:
            diff.show_text([("Seen and left alone", "accent"), (printable(row.note), "")])
        else:
            diff.show_text([(row.text, "accent"), ("Move down to see each one in full.", "dim")])

    def do_pane(self) -> None:
        if self.mapping:
            order = [self.query_one("#map-before"), self.query_one("#map-after")]
        else:
            order = [self.query_one("#steps"), self.query_one("#diff")]
        order[1 if self.focused is order[0] else 0].focus()

    def do_map(self) -> None:
        """Host map before and after, or the changes again."""
        self.show_maps(not self.mapping)
        if not self.mapping:
            self.query_one("#steps").focus()
            return
        maps = self.query_one("#maps", Container)
        if not maps.children:  # made at first use: they have many styles
            for ident, word in (("map-before", "Before"), ("map-after", "After")):
                maps.mount(Vertical(Static(word, markup=False), HostMapView(id=ident), classes="half"))
        self.call_after_refresh(self.fill_maps)

    def show_maps(self, on: bool) -> None:
        """Maps or changes."""
        self.mapping = on
        self.query_one("#maps").display = on
        self.query_one("#split").display = self.query_one("#banner").display = not on

    def fill_maps(self) -> None:
        """Give the maps their clusters; they are counted in a worker."""
        views = list(self.query(HostMapView))
        if not self.mapping or len(views) < 2:
            return
        for each in views:
            each.show(None, self.in_worker, "Drawing the map …")

        def done(worlds: Any) -> None:
            for index, each in enumerate(views):
                each.show(
                    worlds[index] if worlds else None, self.in_worker, "There is no map without a readable header."
                )
            for each in views if worlds else ():
                each.select(self.flow.first_change)

        views[1].focus()
        if self.flow.worlds is not None:
            done(self.flow.worlds)
        else:
            self.background.submit(self.flow.maps, done, self.trouble, title="map", long=True)

    def in_worker(self, what: Callable[[], Any], done: Callable[[Any], None]) -> None:
        """A short look in the background."""
        self.background.submit(lambda _job: what(), done, self.trouble, title="looking")

    @on(Rows.Moved, "#map-before, #map-after")
    def map_moved(self, event: Rows.Moved) -> None:
        """Both maps show the same place."""
        event.stop()
        mine = event.rows
        assert isinstance(mine, HostMapView)
        if isinstance(event, HostMapView.Read):
            return
        other = self.query_one("#map-after" if mine.id == "map-before" else "#map-before", HostMapView)
        if other.world is not None and other.at != mine.at:
            other.select(mine.at)

    def do_around(self) -> None:
        """Leave for the simulated image; the plan is kept."""
        self.answer("around")

    # Moving through the steps

    def do_on(self) -> None:
        """Enter."""
        if self.at is At.CHOOSE:
            if any(each.on for each in self.flow.decisions):
                self.make_plan()
            else:
                self.leave()
        elif self.at is At.PLAN:
            if self.flow.plan is not None and self.flow.plan.empty:
                self.leave()
            else:
                self.show_confirm()
        elif self.at is At.CONFIRM and not self.flow.drops:
            self.write()
        elif self.at is At.TROUBLE:
            self.do_back()
        elif self.at is At.DONE:
            self.leave()

    def do_back(self) -> None:
        """Escape."""
        if self.at is At.BUSY:
            if self._job is not None:
                self._job.cancel()
            if self.flow.decisions and self.flow.edit is None:
                self.show_choices()
            else:
                self.leave()
        elif self.at is At.PLAN and self.mapping:
            self.do_map()
        elif self.at is At.PLAN and self.flow.edit is None and self.flow.decisions:
            self.flow.forget_plan()
            self.show_choices()
        elif self.at is At.CONFIRM or (
            self.at is At.TROUBLE and self.flow.applied is None and self.flow.plan is not None
        ):
            self.show_plan()
        elif self.at is At.TROUBLE and self.flow.decisions and self.flow.applied is None:
            self.show_choices()
        else:
            self.leave()

    def leave(self) -> None:
        """Back to the browser."""
        self.answer("done" if self.flow.applied is not None else None)

    def do_help(self) -> None:
        """The keys of this step; choosing one does it."""
        options = [
            (each.id, f"{each.keys.split(',')[0]:<8} {each.title}")
            for each in FLOW_COMMANDS
            if self.allowed(each) and each.id != "flow.help"
        ]

        def chosen(ident: str | None) -> None:
            if ident is not None and self.allowed(FLOW_BY_ID[ident]):
                self.action_command(ident)

        self.app.push_screen(
            ChooseDialog(
                "Keys of this step",
                options,
                note="Until the last step nothing is written, and every step can be left with Escape.",
            ),
            chosen,
        )
