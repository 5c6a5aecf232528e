"""The plan as a list: every change with its risk, then what stays and why."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from workbench.render.findings import GLYPHS, LEVELS
from workbench.render.plan import TIER_GLYPHS, TIER_LEVELS, Left
from workbench.repair.edits import proof_lines
from workbench.repair.plan import Plan
from workbench.repair.workspace import Step
from workbench.tui.widgets.rows import Part, Rows, cut


@dataclass(frozen=True, slots=True)
class PlanRow:
    """One of: a heading (text alone), a step, something left, a note."""

    text: str = ""
    step: Step | None = None
    left: Left | None = None
    note: str = ""


def plan_rows(plan: Plan, left: Sequence[Left]) -> list[PlanRow]:
    """The rows of a plan: changes, what the proof names, what was left out, what stays."""
    rows = []
    steps, notes, proof = plan.steps, plan.notes, proof_lines(plan.proof)
    if steps:
        rows.append(PlanRow(f"What changes ({len(steps):,})"))
        rows += [PlanRow(step=each) for each in steps]
    if proof:
        rows.append(PlanRow(f"What becomes of the bytes: {plan.proof}"))
        rows += [PlanRow(note=each) for each in proof]
    if plan.withheld is not None:
        rows.append(PlanRow("Left out, since it could lose something"))
        rows.append(PlanRow(note=f"{', '.join(plan.withheld.titles)}: {plan.withheld.proof}"))
        rows += [PlanRow(note=each) for each in proof_lines(plan.withheld.proof)]
    if left:
        rows.append(PlanRow(f"What stays, and why ({len(left):,})"))
        rows += [PlanRow(left=each) for each in left]
    if notes:
        rows.append(PlanRow(f"Seen and left alone ({len(notes):,})"))
        rows += [PlanRow(note=each) for each in notes]
    return rows


class PlanView(Rows):
    """Rows of a plan; the cursor's row is told in full beside it."""

    def __init__(self, **more: object) -> None:
        super().__init__(**more)
        self._rows: list[PlanRow] = []

    def show(self, rows: list[PlanRow]) -> None:
        """Show another plan, from its first row that says something."""
        self._rows = rows
        self.set_reactive(Rows.top, 0)
        self.set_reactive(Rows.cursor, 1 if len(rows) > 1 else 0)
        self.refresh()

    @property
    def current(self) -> PlanRow | None:
        """The row under the cursor."""
        return self._rows[self.cursor] if 0 <= self.cursor < len(self._rows) else None

    def row_count(self) -> int:
        return len(self._rows)

    def empty_text(self) -> str:
        return "Nothing to do: nothing would be changed."

    def row_parts(self, row: int, width: int) -> Iterable[Part]:
        each = self._rows[row]
        if each.step is not None:
            yield f" {each.step.number:>3} ", "dim"
            yield TIER_GLYPHS[each.step.tier] + " ", TIER_LEVELS[each.step.tier]
            where = f" {each.step.kind} {each.step.offset:#x}" if width >= 70 else ""
            yield cut(each.step.title, width - 7 - len(where)), ""
            yield where, "dim"
        elif each.left is not None:
            yield f"   {GLYPHS[each.left.severity]} ", LEVELS[each.left.severity]
            yield cut(f"{each.left.title}: {each.left.why}", width - 5), ""
        elif each.note:
            yield cut("   · " + each.note, width), "dim"
        else:
            yield cut(" " + each.text, width), "accent"
