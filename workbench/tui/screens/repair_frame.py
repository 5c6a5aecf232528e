"""The frame of the repair screen: title, steps, footer, which keys work at which step."""

from __future__ import annotations

from typing import TYPE_CHECKING

from textual import on
from textual.content import Content
from textual.screen import Screen
from textual.widgets import Static

from workbench.tui.commands import Command
from workbench.tui.screens.repair_flow import Flow
from workbench.tui.screens.repair_steps import FLOW_BY_ID, FLOW_COMMANDS, GLYPH_STYLES, STEPS, WIDE, At
from workbench.tui.standing import stands
from workbench.tui.widgets.chrome import Footer, Line

if TYPE_CHECKING:
    from workbench.tui.app import Workbench


class RepairFrame(Screen[str | None]):
    """What stays the same at every step; `RepairScreen` has the steps."""

    app: Workbench
    flow: Flow
    name_shown: str
    at: At
    mapping: bool

    def frame(self) -> None:
        """Title, steps, footer."""
        flow, width = self.flow, self.size.width or 80
        word = "Edit by hand" if flow.edit is not None else "Repair"
        written = flow.applied is not None
        note = "written; undo is kept" if written else "writing …" if self.at is At.WRITE else "nothing is written yet"
        name = self.name_shown if len(self.name_shown) < width - 44 else "…" + self.name_shown[-(max(8, width - 46)) :]
        first = [
            (f" {word} ", "here", ""),
            (f" {name}  ", "name", ""),
            (f" {'!' if self.at is At.WRITE else '✓'} {note}", "warn" if self.at is At.WRITE else "good", ""),
        ]
        strip = [(" ", "", "")]
        for step, words in STEPS:
            label = "1 Edit" if flow.edit is not None and step is At.CHOOSE else words
            strip.append((f" {label} ", "here" if step is self.at else "tab", ""))
            if step is not At.DONE:
                strip.append(("›", "dim", ""))
        self.query_one("#flow-title", Line).put(first, strip)
        chosen = sorted(
            (each for each in FLOW_COMMANDS if each.footer and self.allowed(each)), key=lambda each: -each.footer
        )
        labels = {
            "flow.on": self._on_label(),
            "flow.map": "back to the list" if self.mapping else "map before/after",
            "flow.back": "cancel"
            if self.at is At.BUSY
            else "leave"
            if self.at in (At.CHOOSE, At.DONE) or (self.at is At.TROUBLE and not flow.decisions)
            else "back",
        }
        shown = [
            Command(each.id, each.keys, labels.get(each.id, each.label), each.title, "", each.group) for each in chosen
        ]
        self.query_one(Footer).show(shown, {each.id: self.app.user_keys.keys.get(each.id, each.keys) for each in shown})

    def _on_label(self) -> str:
        labels = {
            At.CHOOSE: "make the plan",
            At.PLAN: "go on to confirm",
            At.CONFIRM: "write",
            At.DONE: "finish",
            At.TROUBLE: "go back" if self.flow.decisions else "close",
        }
        if self.at is At.CHOOSE and not any(each.on for each in self.flow.decisions):
            return "close"
        if self.at is At.PLAN and self.flow.plan is not None and self.flow.plan.empty:
            return "close"
        return labels.get(self.at, "")

    def allowed(self, command: Command) -> bool:
        """Whether a command does something now."""
        if command.id in ("flow.around", "flow.map", "flow.copy") and (self.flow.plan is None or self.flow.plan.empty):
            return False
        if command.id == "flow.orphans" and (not self.flow.orphans or self.flow.edit is not None):
            return False
        if command.id == "flow.copy" and self.flow.edit is not None:
            return False
        if self.at is At.CONFIRM and self.flow.drops and command.id not in ("flow.back",):
            return False  # the keys go into the word
        if command.id == "flow.undo" and self.flow.applied is None:
            return False
        if command.id in ("flow.toggle", "flow.all") and not any(each.fixable for each in self.flow.decisions):
            return False
        return not command.where or self.at.value in command.where

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        if action == "command" and str(parameters[0]) in FLOW_BY_ID:
            return stands(self) and self.allowed(FLOW_BY_ID[str(parameters[0])])
        return super().check_action(action, parameters)

    def action_command(self, ident: str) -> None:
        """Run a command of this screen's table."""
        getattr(self, "do_" + ident.partition(".")[2])()

    @on(Line.Hit)
    def hit(self, event: Line.Hit) -> None:
        event.stop()
        command = FLOW_BY_ID.get(event.value)
        if command is not None and self.allowed(command):
            self.action_command(event.value)

    def on_resize(self) -> None:
        if stands(self):
            wide = self.size.width >= WIDE
            for ident in ("#split", "#maps"):  # classes of the screen itself would restyle everything in it
                self.query_one(ident).set_class(wide, "wide")
            self.call_after_refresh(self.frame)

    def banner(self, text: str | Content) -> None:
        """The lines under the title; a glyph in front gives the colour."""
        if isinstance(text, str) and text[:1] in GLYPH_STYLES:
            text = Content.assemble((text, GLYPH_STYLES[text[:1]]))
        self.query_one("#banner", Static).update(text)
