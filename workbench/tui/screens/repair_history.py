"""What was repaired and can be taken back; and what to do with a repair that was cut off."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, ClassVar, Final

from rich.text import Text
from textual import on
from textual.app import ComposeResult
from textual.binding import BindingType
from textual.containers import VerticalScroll
from textual.screen import Screen
from textual.widgets import Input, Static

from workbench.errors import ImageError, LockedError, QwbError
from workbench.render.plan import verdict_text
from workbench.render.sizes import count
from workbench.render.text import printable
from workbench.repair import recovery, undo
from workbench.repair.casefile import Session, State
from workbench.repair.session import recheck
from workbench.tui.background import Background
from workbench.tui.commands import Command, bindings
from workbench.tui.screens.repair_flow import require_free
from workbench.tui.standing import stands
from workbench.tui.widgets.chrome import Footer, Line
from workbench.tui.widgets.rows import Part, Rows, cut
from workbench.units import format_size

if TYPE_CHECKING:
    from workbench.tui.app import Workbench

_G: Final = "Undo"
HISTORY_COMMANDS: Final = (
    Command(
        "history.undo", "u,enter", "undo this", "Take the newest repair back, bit for bit", "", _G, ("can-undo",), 100
    ),
    Command("history.back", "r", "roll back", "Put the old bytes back", "", _G, ("cut",), 99),
    Command("history.complete", "c", "complete", "Carry the interrupted repair out", "", _G, ("cut",), 90),
    Command("history.leave", "escape,q", "leave", "Back to the workbench", "", _G, (), 80),
)
HISTORY_BY_ID: Final = {each.id: each for each in HISTORY_COMMANDS}
STATES: Final = {
    State.PLANNED: ("interrupted before it began", "warn"),
    State.JOURNALED: ("interrupted before it wrote", "warn"),
    State.WRITING: ("INTERRUPTED while writing", "bad"),
    State.DONE: ("written", "good"),
    State.UNDOING: ("INTERRUPTED while undoing", "bad"),
    State.UNDONE: ("taken back", "dim"),
    State.ROLLED_BACK: ("rolled back", "dim"),
}
FORCE_WORD: Final = "overwrite"


class SessionsView(Rows):
    """Repairs, newest first."""

    def __init__(self, **more: object) -> None:
        super().__init__(**more)
        self.sessions: list[Session] = []
        self.note = "Looking into the case file …"

    def show(self, sessions: list[Session]) -> None:
        """Show them, newest first."""
        self.sessions = sessions[::-1]
        self.note = "Nothing was ever repaired here: there is nothing to take back."
        self.set_reactive(Rows.cursor, 0)
        self.set_reactive(Rows.top, 0)
        self.refresh()

    @property
    def current(self) -> Session | None:
        return self.sessions[self.cursor] if 0 <= self.cursor < len(self.sessions) else None

    def row_count(self) -> int:
        return len(self.sessions)

    def empty_text(self) -> str:
        return self.note

    def row_parts(self, row: int, width: int) -> Iterable[Part]:
        each = self.sessions[row]
        word, level = STATES[each.state]
        yield f" {each.id:>3}  {each.when}  ", "dim"
        yield cut(word, 27), level
        yield cut(printable(each.title), width - 56), ""


class HistoryScreen(Screen[str | None]):
    """The repairs of an image. `u` takes the newest standing one back. Answers `changed` when the file was written."""

    BINDINGS: ClassVar[list[BindingType]] = [*bindings(HISTORY_COMMANDS)]
    DEFAULT_CSS = """
    HistoryScreen #history-title { height: 1; }
    HistoryScreen #banner { height: auto; padding: 0 1; background: $surface; }
    HistoryScreen SessionsView { height: 1fr; }
    HistoryScreen #about { height: 1fr; border-top: solid $panel; background: $surface; padding: 0 1; }
    HistoryScreen #word { border: none; height: 1; background: $boost; padding: 0 1; display: none; }
    HistoryScreen.force #word { display: block; }
    """

    app: Workbench

    def __init__(self, path: str, background: Background, title: str, before_write: Callable[[], None]) -> None:
        super().__init__()
        self.path, self.background, self.name_shown, self.before_write = path, background, title, before_write
        self.changed = False
        self.busy = False
        self._again: Callable[[], None] | None = None

    def compose(self) -> ComposeResult:
        yield Line(id="history-title")
        yield Static(id="banner", markup=False)
        yield SessionsView(id="sessions")
        with VerticalScroll(id="about", can_focus=False):
            yield Static(id="about-text", markup=False)
        yield Input(id="word", placeholder=f"type {FORCE_WORD}")
        yield Footer(id="footer")

    def on_mount(self) -> None:
        if not stands(self):
            return
        self.query_one("#history-title", Line).put([(" Undo ", "here", ""), (f" {self.name_shown}", "name", "")])
        self.query_one(SessionsView).focus()
        self.load()

    def load(self) -> None:
        """Read the case file."""
        path = self.path
        self.background.submit(lambda _job: undo.sessions(path), self.loaded, self.trouble, title="history")

    def loaded(self, found: list[Session]) -> None:
        if not stands(self):
            return
        view = self.query_one(SessionsView)
        view.show(found)
        cut_off = self.cut_off
        if cut_off is not None:
            self.banner(f"! Session {cut_off.id} was interrupted. r puts the old bytes back, c carries it out.")
            view.move_to(view.sessions.index(cut_off), tell=False)
        elif self.newest is not None:
            view.move_to(view.sessions.index(self.newest), tell=False)
            self.banner(
                f"u takes session {self.newest.id} back: the file becomes, bit for bit, what it was before {self.newest.when}."
            )
        elif found:
            self.banner("Everything has been taken back already.")
        else:
            self.banner("Repairs made here are listed with their old bytes, so that they can be taken back.")
        self.tell()

    @property
    def newest(self) -> Session | None:
        """The newest repair that stands."""
        return next((each for each in self.query_one(SessionsView).sessions if each.state is State.DONE), None)

    @property
    def cut_off(self) -> Session | None:
        """A repair that was interrupted."""
        return next((each for each in self.query_one(SessionsView).sessions if each.state.interrupted), None)

    def banner(self, text: str) -> None:
        self.query_one("#banner", Static).update(text)

    @on(Rows.Moved, "#sessions")
    def moved(self) -> None:
        self.tell()

    def tell(self) -> None:
        """The session under the cursor in full."""
        session = self.query_one(SessionsView).current
        self.query_one("#about-text", Static).update(session_text(session) if session is not None else "")
        self.frame()

    def frame(self) -> None:
        shown = [each for each in HISTORY_COMMANDS if self.allowed(each)]
        self.query_one(Footer).show(shown, {each.id: each.keys for each in shown})

    def allowed(self, command: Command) -> bool:
        """Whether a command does something now."""
        if self.busy:
            return False
        if "cut" in command.where:
            return self.cut_off is not None
        if "can-undo" in command.where:
            return self.cut_off is None and self.newest is not None
        return True

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        if action == "command" and str(parameters[0]) in HISTORY_BY_ID:
            return stands(self) and self.allowed(HISTORY_BY_ID[str(parameters[0])])
        return super().check_action(action, parameters)

    def action_command(self, ident: str) -> None:
        """Run a command of this screen's table."""
        getattr(self, "do_" + ident.partition(".")[2])()

    @on(Line.Hit)
    def hit(self, event: Line.Hit) -> None:
        event.stop()
        if event.value in HISTORY_BY_ID and self.allowed(HISTORY_BY_ID[event.value]):
            self.action_command(event.value)

    # Doing it

    def run(self, words: str, what: Callable[[bool], Any], done: str, force: bool = False) -> None:
        """Write in a worker; `what(force)` does it."""
        self.busy = True
        self.remove_class("force")
        self.banner(words)
        self.frame()
        self.before_write()
        path = self.path

        def work(_job: object) -> Any:
            require_free(path)
            return what(force)

        def finished(result: undo.Undone | recovery.Recovered | None) -> None:
            self.busy, self.changed = False, True
            faithful = result is None or result.faithful
            self.notify(
                done if faithful else f"{str(result)[:1].upper()}{str(result)[1:]}.", timeout=6 if faithful else 20
            )
            self.load()

        def failed(error: Exception) -> None:
            self.busy = False
            self.trouble(error)
            if isinstance(error, ImageError) and not force:
                self._again = lambda: self.run(words, what, done, True)
                self.add_class("force")
                self.query_one("#word", Input).focus()
            self.frame()

        self.background.submit(work, finished, failed, title="undo", long=True)

    def do_undo(self) -> None:
        newest, path = self.newest, self.path
        if newest is not None:
            done = f"Session {newest.id} is taken back: the file is what it was before, bit for bit."
            self.run(f"Taking session {newest.id} back …", lambda force: undo.undo(path, force=force), done)

    def do_back(self) -> None:
        path = self.path
        self.run(
            "Putting the old bytes back …",
            lambda force: recovery.recover(path, force=force),
            "Rolled back: the file is what it was before the repair.",
        )

    def do_complete(self) -> None:
        path = self.path
        self.run(
            "Carrying the repair out …",
            lambda force: recovery.recover(path, complete=True, force=force, recheck=recheck(None)),
            "The interrupted repair was carried out.",
        )

    @on(Input.Submitted, "#word")
    def word_given(self, event: Input.Submitted) -> None:
        event.stop()
        if event.value.strip() == FORCE_WORD and self._again is not None:
            event.input.value = ""
            again, self._again = self._again, None
            again()
        else:
            self.notify(f"Type {FORCE_WORD} to go on, or press Escape.", severity="warning")

    def trouble(self, error: Exception) -> None:
        """What stands in the way."""
        what = error.what if isinstance(error, QwbError) else str(error)
        text = f"✗ {printable(what)}."
        if isinstance(error, ImageError):
            text += (
                f"\nThe image was written to after that repair. Going on mixes old and new bytes and may destroy the newer ones: type {FORCE_WORD} and press Enter "
                "to do it all the same, or press Escape."
            )
        elif isinstance(error, LockedError):
            text += f"\n{(error.hint or '').capitalize()}. Nothing was changed."
        elif isinstance(error, QwbError) and error.hint:
            text += f"\nWhat now: {error.hint}."
        self.banner(text)

    def do_leave(self) -> None:
        if self.has_class("force"):
            self.remove_class("force")
            self._again = None
            self.load()
            self.query_one(SessionsView).focus()
            return
        self.dismiss("changed" if self.changed else None)


def session_text(session: Session) -> Text:
    """One repair in full."""
    plan = session.plan
    text = Text()
    text.append(f"Session {session.id}: {STATES[session.state][0]}\n", "bold")
    text.append(f"{printable(session.title)}\n", "")
    text.append(f"{session.when}, {session.tool}\n", "dim")
    before = plan.get("before")
    if isinstance(before, dict):
        text.append("Before it:  ", "bold")
        text.append(f"{verdict_text(before)}\n")
    if session.verdict is not None:
        text.append("After it:   ", "bold")
        text.append(f"{verdict_text(session.verdict)}\n")
    text.append("Stored:     ", "bold")
    text.append(
        f"{count(session.edits, 'range')} with old and new bytes; the file was {format_size(session.size_before)}, became {format_size(session.size_after)}\n"
    )
    steps = plan.get("steps")
    for each in steps[:50] if isinstance(steps, list) else []:
        if isinstance(each, dict):
            text.append(f"  {each.get('number', '')}. {printable(str(each.get('title', '')))}\n")
    return text


def interrupted_note(session: Session) -> str:
    """What to say of a repair that was cut off, to somebody who just opened the image."""
    doing = "taking it back" if session.state is State.UNDOING else "writing it"
    return (
        f"{printable(session.title)} ({session.when}) was cut off while {doing}: a crash, a kill, or a power cut. "
        "The image may be half repaired. Old and new bytes are both stored, so either end can be reached."
    )
