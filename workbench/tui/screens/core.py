"""The core of the browser: its frame, the one selection that drives every pane, commands, focus."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any, ClassVar

from textual import on
from textual.app import ComposeResult
from textual.binding import BindingType
from textual.containers import Container, Horizontal, Vertical
from textual.screen import Screen
from textual.widget import Widget

from workbench.engine.gate import OpenRequest
from workbench.errors import QwbError
from workbench.tui.commands import BY_ID, COMMANDS, Command, bindings
from workbench.tui.explaining import Explanation
from workbench.tui.outline_items import CHAINED, Item, Kind
from workbench.tui.place import Place, View
from workbench.tui.prepare import Prepared, find_address, place_of, prepare
from workbench.tui.session import Session, Trouble, change_between, identity_of
from workbench.tui.standing import stands
from workbench.tui.widgets.chrome import Footer, ImageTabs, Line, TitleLine, ViewTabs
from workbench.tui.widgets.explain import ExplainPane
from workbench.tui.widgets.hexview import HexView
from workbench.tui.widgets.rows import Rows
from workbench.tui.widgets.structure import StructureTree

if TYPE_CHECKING:
    from workbench.tui.app import Workbench

WATCH_SECONDS = 2.0
WELCOME_SECONDS = 3.0
"""An image that is seen for the first time and found damaged this soon is shown with its findings."""
USUAL_EXPLANATION = {"-short": 5, "": 8, "-high": 12}
"""Rows of the explanation below a view, by height of the terminal."""


class BrowserCore(Screen[None]):
    """One image on the screen. Commands are `do_…` methods, here and in what is built on this: views, moving, working."""

    BINDINGS: ClassVar[list[BindingType]] = [*bindings([each for each in COMMANDS if each.id not in ("interrupt",)])]
    HORIZONTAL_BREAKPOINTS = [(0, "-narrow"), (76, "-medium"), (104, "-roomy"), (144, "-wide"), (180, "-vast")]  # noqa: RUF012 - Textual's declaration
    VERTICAL_BREAKPOINTS = [(0, "-short"), (22, "-tall"), (34, "-high")]  # noqa: RUF012
    AUTO_FOCUS = "#tree"

    app: Workbench
    filters: dict[str, Any]
    fold = True
    liked: View | None = None
    """The view that the person asked for last; walking the tree in hex stays in hex."""

    def __init__(self, session: Session) -> None:
        super().__init__()
        self.session = session
        self.place = Place("file", 0, 0)
        self.prepared: Prepared | None = None
        self._wanted: Place | None = None
        self._ticket = 0
        self._source = ""
        self._next: Callable[[], None] | None = None
        self.ready = False
        self._questions: list[Callable[[], object]] = []
        self._was_busy = False
        self.welcome_until = 0.0
        self.filters = {}

    def compose(self) -> ComposeResult:
        yield ImageTabs(id="images")
        yield TitleLine(id="title")
        yield ViewTabs(id="view-tabs")
        with Horizontal(id="body"):
            yield StructureTree(id="tree")
            with Container(id="main"):
                with Vertical(id="middle"):
                    yield Container(id="views")
                yield ExplainPane(id="explain")
        yield Footer(id="footer")

    # Start

    def on_mount(self) -> None:
        session = self.session
        self.query_one(StructureTree).border_title = "Structures"
        self.query_one(ExplainPane).border_title = "What it means"
        session.on_pages = self.refresh_pages
        session.background.over = self.update_title
        self.fill_tree(self._arrive)
        self.set_interval(WATCH_SECONDS, self.watch_file)
        self.set_interval(0.25, self.update_title)

    def fill_tree(self, then: Callable[[], None]) -> None:
        """Build the top level of the tree in a worker."""
        session = self.session

        def done(roots: list[Item]) -> None:
            self.query_one(StructureTree).fill(session.outline, roots, session.background)
            then()

        session.background.submit(lambda _job: session.outline.roots(), done, self.failed, title="structures")

    def _arrive(self) -> None:
        """The first place: where one was the last time, else the header."""
        self.ready = True
        self.app.restore_layout(self)
        start, view = self.app.start_place(self.session), self.app.start_view()
        if isinstance(start, str) or view is not None:
            self.jump(start if isinstance(start, str) else "header", record=False, view=view, then=self.focus_view)
        elif start is not None:
            self.select(start, record=False)
        elif self.session.trouble is Trouble.NONE:
            self.welcome_until = monotonic() + WELCOME_SECONDS
            self.jump("header", record=False)
        else:
            self.jump("file", record=False)

    # The selection

    def select(
        self, place: Place, *, record: bool = True, source: str = "", then: Callable[[], None] | None = None
    ) -> None:
        """Make `place` the selection. source: the pane that asked, whose own cursor is left alone."""
        if (
            record
            and self.prepared is not None
            and (self.place.node, self.place.view, self.place.offset) != (place.node, place.view, place.offset)
        ):
            self.session.history.leave(self.place)
        self._ticket += 1
        ticket = self._ticket
        outline = self.session.outline

        def done(found: Prepared) -> None:
            if ticket == self._ticket:
                self.show_prepared(found, source)
                if then is not None:
                    then()

        self.session.background.submit(lambda _job: prepare(outline, place), done, self.failed, title="looking")

    def show_prepared(self, found: Prepared, source: str) -> None:
        """Show a place that was looked up, in every pane."""
        before = self.prepared
        place = found.place
        if place.view not in found.views:
            place = place.seen_in(View.FIELDS if View.FIELDS in found.views else View.HEX)
        if place.guest is None and before is not None:
            place = Place(place.node, place.offset, place.length, place.path, place.view, before.place.guest)
        self.prepared, self.place = found, place
        if source != "tree":
            self.query_one(StructureTree).reveal(found.item.key, self.session.outline.parents(found.item.key))
        self.show_view(found, place, source)
        self.explain_now()
        self.update_title()
        self.update_footer()
        self.fit_panes()
        if before is None:
            self.call_after_refresh(self.start_check)  # what one came to see is painted first

    def jump(
        self, address: str, *, record: bool = True, view: View | None = None, then: Callable[[], None] | None = None
    ) -> None:
        """Go to an address in any form; what is wrong with it is said. then: called once it is shown."""
        outline, here = self.session.outline, self.place

        def done(place: Place) -> None:
            self.select(place if view is None else place.seen_in(view), record=record, then=then)

        def failed(error: Exception) -> None:
            self.failed(error)
            if self.prepared is None and address != "file":  # an address that was given at the start
                self.app.refused = error if isinstance(error, QwbError) else None
                self.jump("header" if address != "header" else "file", record=False)

        self.session.background.submit(lambda _job: find_address(outline, address, here), done, failed, title="going")

    def action_jump(self, address: str) -> None:
        """A link in a text was clicked."""
        self.jump(address)

    def failed(self, error: Exception) -> None:
        """Say what went wrong; the place stays."""
        text = error.what if isinstance(error, QwbError) else f"{type(error).__name__}: {error}"
        if isinstance(error, QwbError) and error.hint:
            text += f"; {error.hint}"
        self.notify(text.replace("[", "\\["), severity="warning", timeout=6)

    @on(StructureTree.Picked)
    def tree_picked(self, event: StructureTree.Picked) -> None:
        place = place_of(event.item, guest=self.place.guest)
        if self.liked is View.HEX and event.item.length:
            place = place.seen_in(View.HEX)
        self.select(place, source="tree", record=False)

    @on(StructureTree.NodeSelected)
    def tree_chosen(self, event: StructureTree.NodeSelected[Item]) -> None:
        event.stop()
        item = event.node.data
        if item is None:
            return
        if item.kind is Kind.BACKING:
            self.enter_backing()
        elif item.kind is Kind.LAYER:
            self.enter_layer(item)
        elif item.branch and not event.node.is_expanded:
            event.node.expand()
        elif item.kind is Kind.GROUP:
            event.node.toggle()
        else:
            self.select(place_of(item, guest=self.place.guest), then=self.focus_view)

    # Frame

    def update_title(self) -> None:
        """The two lines at the top, and what runs."""
        if not stands(self):
            return
        session = self.session
        job = session.background.busy
        if (job is not None) is not self._was_busy:
            self._was_busy = job is not None
            self.update_footer()
        right = ""
        if job is not None:
            share = f" {job.done * 100 // job.total}%" if job.total else ""
            right = f"{job.title}{share} … Esc stops"
        elif session.changed_underneath:
            right = f"{session.changed_underneath}: F5 reads it again"
        elif session.mark is not None or session.mark_from is not None:
            right = self.mark_note()
        condition = session.condition
        crumbs = self.prepared.crumbs if self.prepared is not None else ()
        verdict = self.verdict()
        state = (condition.word, condition.level)
        if condition.word == "clean":
            # That is what the header says. Only a check that found nothing makes it true of the image.
            verdict = (verdict[0].replace("no errors", "clean"), verdict[1]) if verdict[1] == "good" else verdict
            state = ("", "") if verdict[0] else ("header clean", "")
        self.query_one(TitleLine).show(session.title, session.summary, state, crumbs, right, verdict)

    def contexts(self) -> set[str]:
        """What can be done now; the `where` words of commands."""
        session, found = self.session, {"image"}
        if session.history.can_back:
            found.add("has-back")
        if session.history.can_forward:
            found.add("has-forward")
        if session.bookmarks:
            found.add("has-bookmarks")
        if session.encrypted:
            found.add("encrypted")
        if session.background.busy is not None:
            found.add("busy")
        if session.search is not None:
            found.add("has-search")
        if session.meta.faults or self.has_findings():
            found.add("has-problems")
        if len(self.app.browsers) > 1:
            found.add("tabs")
        for view in self.prepared.views if self.prepared is not None else ():
            found.add(f"view-{view.value}")
        view = self.place.view
        if view in (View.GUEST_MAP, View.HOST_MAP):
            found.add("map")
        if view in (View.ENTRIES, View.FINDINGS, View.REFCOUNTS):
            found.add("filterable")
        if view in (View.ENTRIES, View.FIELDS, View.FINDINGS) or isinstance(self.focused, StructureTree):
            found.add("foldable")
        if view in (View.HEX, View.GUEST_HEX):
            found.add("hex")
        return found

    def available(self) -> list[Command]:
        """Commands that do something here, in table order."""
        here = self.contexts()
        return [each for each in COMMANDS if not each.where or here.intersection(each.where)]

    def idle_commands(self) -> set[str]:
        """Commands that are answered here, but would do nothing worth a place in the footer."""
        found: set[str] = set()
        view, in_tree = self.current_view(), isinstance(self.focused, StructureTree)
        if not self.has_pointer():
            found.add("follow")
        can_zoom = getattr(view, "can_zoom", None)
        if can_zoom is not None:
            found |= {name for name, direction in (("zoom_in", 1), ("zoom_out", -1)) if not can_zoom(direction)}
        if not in_tree and not getattr(view, "foldable", False):
            found.add("fold")
        if isinstance(self.focused, ExplainPane):
            found |= {"fold", "filter", "relative", "follow"}
        if not self.session.repaired_before:
            found.add("undo")
        if not self.session.meta.faults and not self.has_findings():
            found.add("repair")
        return found

    def has_pointer(self) -> bool:
        """Whether Enter leads somewhere from here."""
        found = self.prepared
        if found is None:
            return False
        if isinstance(self.focused, StructureTree) or self.place.view not in (View.FIELDS, View.HEX, View.ENTRIES):
            return True
        if found.item.kind in CHAINED or found.explanation.links:
            return True
        return self.place.view is not View.HEX and (found.node is None if found.table is None else found.entry < 0)

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        if action == "command":
            if not stands(self):
                return False
            command = BY_ID.get(str(parameters[0]))
            return command is not None and (not command.where or bool(self.contexts().intersection(command.where)))
        return super().check_action(action, parameters)

    def action_command(self, ident: str) -> None:
        """Run a command of the table."""
        method = getattr(self, f"do_{ident}", None)
        if method is not None:
            method()
        else:
            self.app.run_command(ident)
        self.call_after_refresh(self.update_footer)

    def update_footer(self) -> None:
        """Show the keys that work now."""
        if not self.query(Footer):
            return  # being closed
        idle = self.idle_commands()
        chosen = sorted(
            (each for each in self.available() if each.footer and each.id not in idle), key=lambda each: -each.footer
        )
        if self.has_class("zoomed"):  # how to get back is what matters most there
            chosen = [replace(BY_ID["zoom"], label="all panes"), *(each for each in chosen if each.id != "zoom")]
        keys = {each.id: self.app.keys_of(each.id) for each in chosen}
        self.query_one(Footer).show(chosen, keys)

    @on(Line.Hit)
    def line_hit(self, event: Line.Hit) -> None:
        event.stop()
        line, value = event.line, event.value
        if isinstance(line, Footer):
            self.action_command(value)
        elif isinstance(line, ViewTabs):
            self.to_view(View(value))
        elif isinstance(line, ImageTabs):
            self.app.show_image(int(value))
        elif value == "stop":
            self.do_stop()
        elif value == "findings":
            self.to_view(View.FINDINGS)
        else:
            self.jump(value)

    def on_descendant_focus(self) -> None:
        self.set_pane_classes(isinstance(self.focused, StructureTree), "in-tree")
        if self.ready:
            self.update_footer()

    def on_resize(self) -> None:
        if self.ready:
            self.call_after_refresh(self._resized)

    def _resized(self) -> None:
        if not stands(self):
            return
        self.fit_panes()
        self.update_title()
        self.update_footer()
        self.update_tabs()

    def on_screen_resume(self) -> None:
        self.app.update_image_tabs(self)
        if self._questions:
            self.call_later(self.when_on_top, self._questions.pop(0))

    @property
    def on_top(self) -> bool:
        """Whether one looks at this image, with nothing above it."""
        return self.app.screen is self

    def when_on_top(self, ask: Callable[[], object]) -> None:
        """Show what a worker has found out; one who has gone elsewhere meanwhile is met with it on coming back."""
        if self.on_top:
            ask()
        else:
            self._questions.append(ask)

    # Panes

    def set_pane_classes(self, on: bool, *names: str) -> None:
        """Set classes that say which panes are shown. Only the panes are styled anew: all that is in them would take 0.1 s."""
        if any(self.has_class(name) is not on for name in names):
            self.set_class(on, *names, update=False)
            panes = [self.query_one(name) for name in ("#tree", "#main", "#middle", "#explain")]
            self.app.stylesheet.update_nodes(panes)

    def fit_panes(self) -> None:
        """Give the explanation the rows that a short table leaves over; it has its usual ones beside a long one.

        The rows depend on the table alone, not on the text, so nothing jumps while the cursor moves.
        """
        explain, view = self.query_one(ExplainPane), self.current_view()
        explain.styles.clear_rule("height")
        beside = any(self.has_class(name) for name in ("-wide", "-vast", "zoomed"))
        if isinstance(view, Rows) and not beside:
            usual = USUAL_EXPLANATION[
                "-short" if self.has_class("-short") else "-high" if self.has_class("-high") else ""
            ]
            frame = 2 if self.has_class("-high") else 0
            room = self.query_one("#main").size.height
            left = 0 if view.greedy else room - view.head_height - min(max(view.row_count(), 1), room) - frame
            explain.styles.height = max(usual, min(left, room * 3 // 5))

    def panes(self) -> list[Widget]:
        """The panes in Tab order, without the explanation while it is hidden."""
        found: list[Widget] = [self.query_one(StructureTree)]
        view = self.current_view()
        if view is not None:
            found.append(view)
        explain = self.query_one(ExplainPane)
        if not self.has_class("no-explain"):
            found.append(explain)
        return found

    def do_next_pane(self, step: int = 1) -> None:
        panes = self.panes()
        at = next((index for index, pane in enumerate(panes) if pane is self.focused), 0)
        target = panes[(at + step) % len(panes)]
        zoomed = self.has_class("zoomed")
        target.focus()
        if zoomed:
            self._zoom_to(target)

    def do_previous_pane(self) -> None:
        self.do_next_pane(-1)

    def focus_view(self) -> None:
        """Put the keys into the middle pane."""
        view = self.current_view()
        if view is not None:
            view.focus()

    def do_zoom(self) -> None:
        if self.has_class("zoomed"):
            self.set_pane_classes(False, "zoomed", "zoom-tree", "zoom-view", "zoom-explain")
        else:
            self._zoom_to(self.focused or self.query_one(StructureTree))
        self.fit_panes()
        self.update_tabs()

    def _zoom_to(self, pane: Widget) -> None:
        self.set_pane_classes(False, "zoom-tree", "zoom-view", "zoom-explain")
        name = (
            "zoom-tree"
            if isinstance(pane, StructureTree)
            else "zoom-explain"
            if isinstance(pane, ExplainPane)
            else "zoom-view"
        )
        self.set_pane_classes(True, "zoomed", name)

    def do_explain(self) -> None:
        if isinstance(self.focused, ExplainPane):
            self.focus_view()
        self.set_pane_classes(not self.has_class("no-explain"), "no-explain")
        self.fit_panes()

    # What the parts built on this add

    def show_view(self, found: Prepared, place: Place, source: str) -> None:
        """Show the view of `place`."""

    def explain_now(self) -> None:
        """Show the explanation of the selection."""

    def update_tabs(self) -> None:
        """Draw the strip of views."""

    def refresh_pages(self) -> None:
        """More bytes have been read."""

    def current_view(self) -> Widget | None:
        """The widget in the middle."""
        return None

    def to_view(self, view: View) -> None:
        """Show the same place in another view."""

    def start_check(self) -> None:
        """Check the image in the background."""

    def verdict(self) -> tuple[str, str]:
        """The check's result in words, and its level."""
        return ("", "")

    def has_findings(self) -> bool:
        """Whether the check found something."""
        return False

    def mark_note(self) -> str:
        """What is marked."""
        return ""

    def enter_backing(self) -> None:
        """Open the backing file as another image."""

    def enter_layer(self, item: Item) -> None:
        """Open a layer of the backing chain as another image."""

    def explanation_of(self, found: Prepared) -> Explanation:
        """The explanation, with whatever more is known."""
        return found.explanation

    def ask_gate(
        self, request: OpenRequest, answer: Callable[[Path | None], None], never: Callable[[], None] | None = None
    ) -> None:
        """Ask whether a file that the image names may be opened."""

    def ask_for_guest(self) -> None:
        """Ask again for what it takes to show guest data."""

    def go_on_below(self) -> None:
        """Go on with a translation in the backing file."""

    def do_zoom_in(self) -> None:
        self._zoom_map(1)

    def do_zoom_out(self) -> None:
        self._zoom_map(-1)

    def _zoom_map(self, direction: int) -> None:
        zoom = getattr(self.current_view(), "zoom", None)
        if zoom is not None:
            zoom(direction)

    def do_relative(self) -> None:
        """Offsets from the file's start or the structure's."""
        for widget in self.query(HexView):
            widget.relative = not widget.relative
            widget.refresh()

    def do_stop(self) -> None:
        """Stop the oldest long job."""
        job = self.session.background.busy
        if job is not None:
            job.cancel()
            self.notify(f"Stopped: {job.title}", timeout=2)

    # The file

    def watch_file(self) -> None:
        """Notice that the file changed; looking costs one stat, in a worker."""
        session = self.session

        def done(now: tuple[int, int, int]) -> None:
            said, session.changed_underneath = session.changed_underneath, change_between(session.identity, now)
            if session.changed_underneath and session.changed_underneath != said:
                self.notify(f"{session.changed_underneath}. What is shown may be old.", severity="warning")
                self.update_title()

        session.background.submit(lambda _job: identity_of(session.path), done)

    def leave(self) -> dict[str, Any]:
        """What to remember of this image."""
        return {"place": self.place.to_json(), "explain": not self.has_class("no-explain"), "fold": self.fold}
