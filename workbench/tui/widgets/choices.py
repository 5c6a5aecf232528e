"""What to repair: groups of like findings to switch on and off, and the ways to answer each, side by side."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from rich.text import Text
from textual.app import ComposeResult
from textual.containers import Horizontal, VerticalScroll
from textual.message import Message
from textual.widgets import Static

from workbench.check.problems import Severity, Tier
from workbench.render.findings import GLYPHS, LEVELS
from workbench.render.plan import TIER_GLYPHS, TIER_LEVELS, TIER_TEXTS, TIER_WORDS
from workbench.tui.widgets.rows import Part, Rows, cut


@dataclass(frozen=True, slots=True)
class Way:
    """One answer to a problem. fix, id: as the repair engine names them.  default: taken unless another is chosen."""

    fix: str
    id: str
    title: str
    consequence: str
    tier: Tier
    default: bool


@dataclass(slots=True)
class Decision:
    """A group of like findings. on: repair it.  ways: alternatives (none or one: nothing to choose).  fixable: at all."""

    code: str
    title: str
    severity: Severity
    count: int
    tier: Tier | None
    meaning: str
    impact: str
    does: tuple[str, ...]
    on: bool = True
    ways: tuple[Way, ...] = ()
    chosen: dict[str, str] = field(default_factory=dict)
    """fix -> id of the way taken."""
    causes: tuple[str, ...] = ()
    """Likely causes, a sentence each."""
    request: bool = False
    """Done only when asked for: nothing is broken without it."""

    @property
    def fixable(self) -> bool:
        return self.tier is not None

    @property
    def risk(self) -> Tier:
        """The risk of what is chosen now."""
        order = (Tier.SAFE, Tier.JUDGEMENT, Tier.DESTRUCTIVE)
        taken = [way.tier for way in self.ways if self.chosen.get(way.fix) == way.id]
        return max([*taken, self.tier or Tier.SAFE], key=order.index)


class ChoicesView(Rows):
    """One row for each group, and below it one for each way. Space switches or chooses."""

    class Changed(Message):
        """A choice was made."""

        def __init__(self, view: ChoicesView, way: Way | None) -> None:
            super().__init__()
            self.view, self.way = view, way

        @property
        def control(self) -> ChoicesView:
            return self.view

    def __init__(self, **more: object) -> None:
        super().__init__(**more)
        self._decisions: Sequence[Decision] = ()
        self._rows: list[tuple[Decision, Way | None]] = []

    def first_of(self, row: int) -> bool:
        """Whether a row is the first way of its question."""
        way, above = self._rows[row][1], self._rows[row - 1][1]
        return way is not None and (above is None or above.fix != way.fix)

    def show(self, decisions: Sequence[Decision]) -> None:
        """Show the groups."""
        self._decisions = decisions
        self._rows = []
        for each in decisions:
            self._rows.append((each, None))
            if len(each.ways) > 1:
                self._rows += [(each, way) for way in each.ways]
        self.set_reactive(Rows.cursor, 0)
        self.set_reactive(Rows.top, 0)
        self.refresh()

    @property
    def current(self) -> tuple[Decision, Way | None] | None:
        """The group and way under the cursor."""
        return self._rows[self.cursor] if 0 <= self.cursor < len(self._rows) else None

    def select(self, code: str) -> None:
        """Put the cursor on a group."""
        row = next((index for index, (each, way) in enumerate(self._rows) if each.code == code and way is None), None)
        if row is not None:
            self.move_to(row, tell=False)

    def toggle(self) -> None:
        """Switch the group under the cursor, or take the way under it."""
        found = self.current
        if found is None or not found[0].fixable:
            return
        each, way = found
        if way is None:
            each.on = not each.on
        else:
            each.on = True
            for other in self._decisions:  # one fix answers alike wherever it is offered
                if any(choice.fix == way.fix for choice in other.ways):
                    other.chosen[way.fix] = way.id
        self.refresh()
        self.post_message(self.Changed(self, way))

    def toggle_all(self) -> None:
        """All on, except what must be asked for; all off when all are on."""
        usual = [each for each in self._decisions if each.fixable and not each.request]
        wanted = not all(each.on for each in usual)
        for each in usual:
            each.on = wanted
        self.refresh()
        self.post_message(self.Changed(self, None))

    # Drawing

    def row_count(self) -> int:
        return len(self._rows)

    def empty_text(self) -> str:
        return "The check found nothing wrong."

    def row_parts(self, row: int, width: int) -> Iterable[Part]:
        each, way = self._rows[row]
        if way is not None:
            taken = each.on and each.chosen.get(way.fix) == way.id
            two = len({other.fix for other in each.ways}) > 1
            if two:
                yield "    " + ("┬ " if self.first_of(row) else "│ ") + " ", "dim"
            else:
                yield "       ", ""
            yield ("(•) " if taken else "( ) "), "accent" if taken else "dim"
            note = (
                "  default"
                if way.default
                else f"  {TIER_GLYPHS[way.tier]} {TIER_WORDS[way.tier]}"
                if way.tier is Tier.DESTRUCTIVE
                else ""
            )
            yield cut(way.title, min(len(way.title), width - 12 - len(note))), "" if each.on else "dim"
            yield note, "good" if way.default else TIER_LEVELS[way.tier]
            return
        box = "[x] " if each.on else "[ ] " if each.fixable else " -  "
        yield " " + box, "accent" if each.on else "dim"
        yield GLYPHS[each.severity] + " ", LEVELS[each.severity]
        right = f"{TIER_GLYPHS[each.risk]} {TIER_WORDS[each.risk]}" if each.fixable else "no repair"
        if each.request and each.fixable and not each.on:
            right = "if you want"
        number = f"×{each.count:,}"
        room = max(8, width - 7 - 14 - len(number) - 2)
        yield cut(each.title, room) + " ", "" if each.on else "dim"
        yield number + "  ", "dim"
        yield cut(right, 13), TIER_LEVELS[each.risk] if each.fixable and each.on else "dim"

    def clicked(self, x: int, row: int) -> None:
        super().clicked(x, row)
        if x < 12 and 0 <= row < len(self._rows):
            self.toggle()


class ChoiceDetail(VerticalScroll):
    """What a group means, what its repair does, and the ways with their consequences side by side."""

    can_focus = False
    DEFAULT_CSS = """
    ChoiceDetail { background: $surface; padding: 0 1; scrollbar-size-vertical: 1; height: 1fr; }
    ChoiceDetail > Static { width: 1fr; height: auto; }
    ChoiceDetail > #ways { height: auto; width: 1fr; }
    ChoiceDetail .way { width: 1fr; height: auto; border: round $panel; padding: 0 1; }
    ChoiceDetail .way.taken { border: round $primary; }
    ChoiceDetail .way.under { border: round $accent; }
    """

    def compose(self) -> ComposeResult:
        yield Static(id="what", markup=False)
        yield Horizontal(id="ways")
        yield Static(id="more", markup=False)

    async def show(self, decision: Decision | None, under: Way | None = None) -> None:
        """Tell of a group; `under` is the way under the cursor."""
        ways = self.query_one("#ways", Horizontal)
        await ways.remove_children()
        if under is None and decision is not None and decision.ways:
            under_fix = decision.ways[0].fix if len({way.fix for way in decision.ways}) == 1 else ""
        else:
            under_fix = under.fix if under is not None else ""
        if decision is None:
            self.query_one("#what", Static).update("")
            self.query_one("#more", Static).update("")
            return
        self.query_one("#what", Static).update(_what(decision) if under is None else Text(decision.title, "bold"))
        self.query_one("#ways").display = bool(under_fix)
        if under_fix:
            boxes = []
            for way in (each for each in decision.ways if each.fix == under_fix):
                taken = decision.on and decision.chosen.get(way.fix) == way.id
                box = Static(_way_text(way, taken, decision.request), classes="way")
                box.set_class(taken, "taken")
                box.set_class(way is under, "under")
                boxes.append(box)
            await ways.mount(*boxes)
        self.query_one("#more", Static).update(_more(decision))
        self.scroll_home(animate=False)


def _what(each: Decision) -> Text:
    text = Text()
    text.append(each.title, "bold")
    text.append(f"  {each.code}\n", "dim")
    if each.fixable:
        does = "; ".join(each.does)
        text.append("Repair: ", "bold")
        text.append(f"{does}.\n")
        text.append("Risk: ", "bold")
        text.append(TIER_TEXTS[each.risk])
        if each.request:
            text.append(" Off unless you ask for it: the image works without it.")
    else:
        text.append(
            "No repair is offered for this: it needs a decision that the image cannot answer, or nothing at all."
        )
    return text


def _way_text(way: Way, taken: bool, request: bool) -> Text:
    text = Text()
    text.append(("(•) " if taken else "( ) ") + way.title, "bold")
    text.append(f"\nThen: {way.consequence}.")
    if way.default:
        text.append("\n✓ default")
        if way.tier is not Tier.DESTRUCTIVE and not request:
            text.append(": loses nothing")
    elif way.tier is Tier.DESTRUCTIVE:
        text.append("\n▲ drops data: asks you to type a word before writing", "bold")
    return text


def _more(each: Decision) -> Text:
    text = Text()
    for each_cause in each.causes:
        text.append("Likely cause: ", "bold")
        text.append(each_cause + "\n")
    if len({way.fix for way in each.ways}) > 1:
        text.append("The ways below it: ", "bold")
        taken = [way.title[:1].lower() + way.title[1:] for way in each.ways if each.chosen.get(way.fix) == way.id]
        text.append(f"chosen now: {'; '.join(taken)}. Move down to compare them.\n")
    for heading, body in (("What it is: ", each.meaning), ("For the guest: ", each.impact)):
        if body:
            text.append(heading, "bold")
            text.append(body + "\n")
    return text
