"""Moving about: follow, history, go to, who refers, search, problems, bookmarks."""

from __future__ import annotations

from dataclasses import replace

from workbench.engine.address import NAMES
from workbench.engine.explain import HostFacts, explain_guest, explain_host
from workbench.errors import ArgumentError, QwbError
from workbench.render.explain import owner_words
from workbench.tui.background import Job
from workbench.tui.entries import Filter, parse_filter
from workbench.tui.outline import Outline
from workbench.tui.outline_items import TABLES, Item, Kind
from workbench.tui.place import Place, View
from workbench.tui.prepare import GUEST_VIEWS, Prepared, entry_place, find_address, place_of, prepare, snapshot_number
from workbench.tui.screens.core import BrowserCore
from workbench.tui.screens.dialogs import Answer, ChooseDialog, TextDialog
from workbench.tui.search import GuestSource, Query, Source, find_bytes, parse_query
from workbench.tui.translating import GO_ON, IN_FILE
from workbench.tui.widgets.entries import EntriesView
from workbench.tui.widgets.fields import FieldsView
from workbench.tui.widgets.lines import LinesView
from workbench.tui.widgets.structure import StructureTree


class Moving(BrowserCore):
    """Commands that change the place; part of the browser."""

    def do_follow(self) -> None:
        """Go where the selection points."""
        widget = self.current_view()
        if self.focused_tree() and self.prepared is not None:
            self.query_one(StructureTree).action_select_cursor()
            return
        if isinstance(widget, LinesView):
            line = widget.current
            if line is not None and line.target:
                self.follow_line(line.target)
            return
        if self.place.view is View.GUEST_HEX and self.session.guest_pages is None:
            self.ask_for_guest()
            return
        if self.place.view in (View.GUEST_HEX, View.GUEST_MAP):
            self.to_view(View.TRANSLATION)
            return
        if self.prepared is not None and self.prepared.item.kind in (Kind.BACKING, Kind.LAYER):
            self.enter_backing()
            return
        if self._select_under_cursor(widget):
            return
        links = self.prepared.explanation.links if self.prepared is not None else ()
        if links:
            self.jump(links[0][1])
        else:
            told = self.prepared.explanation.problems if self.prepared is not None else ()
            self.notify(
                told[0][1].replace("[", "\\[") if told else "Nothing to follow here: this is no pointer.", timeout=3
            )

    def follow_line(self, target: str) -> None:
        """A line of a translation was chosen: an address, another file, or what opens that."""
        if target == GO_ON:
            self.go_on_below()
        elif target.startswith(IN_FILE):
            address, _, path = target.removeprefix(IN_FILE).partition(" ")
            self.app.open_image(path, at=address)
        else:
            self.jump(target)

    def _select_under_cursor(self, widget: object) -> bool:
        """When a whole structure is selected, its row under the cursor is meant: select that, then follow it."""
        found = self.prepared
        if found is None:
            return False
        place = None
        if (
            isinstance(widget, EntriesView)
            and found.table is not None
            and widget.current is not None
            and found.entry < 0
        ):
            place = entry_place(self.session.meta, found.owner, found.table, widget.current.first, View.ENTRIES)
        elif (
            isinstance(widget, FieldsView) and found.node is None and found.table is None and widget.current is not None
        ):
            node = widget.current
            place = Place(found.item.key, node.offset, node.size, node.path, View.FIELDS, self.place.guest)
        if place is None or place.length == 0:
            return False
        self.select(place, record=False, then=self.do_follow)
        return True

    def focused_tree(self) -> bool:
        """Whether the keys are in the tree."""
        return isinstance(self.focused, StructureTree)

    def do_back(self) -> None:
        found = self.session.history.back(self.place)
        if found is not None:
            self.select(found, record=False)

    def do_forward(self) -> None:
        found = self.session.history.forward(self.place)
        if found is not None:
            self.select(found, record=False)

    def do_parent(self) -> None:
        """The structure that this one belongs to."""
        if self.prepared is None:
            return
        outline, key, guest = self.session.outline, self.prepared.item.key, self.place.guest

        def work() -> Place | None:
            above = [each for each in outline.parents(key) if "#" not in each]
            item = outline.find(above[-1] if above else "file")
            return place_of(item, guest=guest) if item is not None else None

        self.session.background.submit(lambda _job: work(), self._select_found, self.failed)

    def _select_found(self, place: Place | None) -> None:
        if place is not None:
            self.select(place)

    # Go to

    def do_goto(self) -> None:
        note = "In the file: 0x50000, 12M, cluster c:5. On the guest's disk: g:5M. Entries: l1:3, l2:3.17, rb:0.5. Or a name."
        self.app.push_screen(
            TextDialog("Go to", note=note, placeholder="address", preview=self._preview), self._goto_done
        )

    def _goto_done(self, text: str | None) -> None:
        if text and text.strip():
            self.jump(text.strip())

    def _preview(self, text: str, answer: Answer) -> None:
        """What the address would lead to, and names that begin like it."""
        outline, here = self.session.outline, self.place
        wanted = text.strip().lower()
        self._preview_ticket = getattr(self, "_preview_ticket", 0) + 1
        ticket = self._preview_ticket

        def work() -> tuple[str, list[tuple[str, str]]]:
            choices = [(key, label) for key, label in structure_names(outline) if wanted in f"{key} {label}".lower()][
                :12
            ]
            if not wanted:
                return "", choices
            if wanted[0].isdigit():  # a plain number is a place in the file; a newcomer may mean the disk
                choices.insert(0, (f"g:{text.strip()}", f"g:{text.strip()}  that offset on the guest's disk"))
            try:
                found = prepare(outline, find_address(outline, text, here))
            except QwbError as error:
                return f"? {error.what}" + (f"; {error.hint}" if error.hint else ""), choices
            trail = " › ".join(label for label, _ in found.crumbs)
            explanation = found.explanation
            lines = [f"→ {trail}", f"  {explanation.where}", f"  {explanation.value[:140]}"]
            if wanted[0].isdigit():
                lines = [f"→ {trail}, byte {found.place.offset:#x} of the file"]
                lines.append(f"  For that offset on the guest's disk type g:{text.strip()}, or ↓ and Enter.")
            return "\n".join(lines).rstrip(), choices

        def done(result: tuple[str, list[tuple[str, str]]]) -> None:
            if ticket == self._preview_ticket:
                answer(*result)

        self.session.background.submit(lambda _job: work(), done, self.failed, title="looking")

    # Who refers

    def do_references(self) -> None:
        """Everything that refers to the cluster of the selection."""
        meta = self.session.meta
        if meta.geometry is None:
            self.notify("Without a readable header there are no clusters.", severity="warning")
            return
        outline, found, place = self.session.outline, self.prepared, self.place
        widget = self.current_view()
        line = widget.current.target if isinstance(widget, LinesView) and widget.current is not None else ""

        def work(job: Job) -> HostFacts | None:
            target = cluster_target(outline, place, found, line)
            return explain_host(meta, target, job.step) if target is not None else None

        self.session.background.submit(
            work, self._show_references, self.failed, title="looking for references", long=True
        )
        self.update_title()

    def _show_references(self, facts: HostFacts | None) -> None:
        if facts is None:
            meta = self.session.meta
            more = (
                " Its data may be in the backing file: in the tree, Enter on it opens that."
                if meta.backing_name
                else ""
            )
            self.notify(f"No cluster of this file holds this guest offset, so nothing refers to one.{more}", timeout=6)
            return
        geometry = self.session.meta.geometry
        assert geometry is not None
        options = []
        for use in facts.uses:
            where = f"{use.owner.at:#x}"
            options.append((where, owner_words(use.owner)))
        stored = "cannot be read" if facts.refcount is None else str(facts.refcount)
        start = facts.cluster * geometry.cluster_size
        note = f"Cluster {facts.cluster}, bytes {start:#x}..{start + geometry.cluster_size - 1:#x}. Refcount stored: {stored}; references found: {len(facts.uses)}."
        if facts.refcount is not None and facts.complete:
            if facts.refcount != len(facts.uses):
                note += " They differ." if facts.refcount else " It counts as free."
            elif len(facts.uses) == 1:
                note += " Nobody else refers to it."
        dialog = ChooseDialog("Who refers to this cluster", options, note=note, empty="Nothing refers to this cluster.")
        self.when_on_top(lambda: self.app.push_screen(dialog, self._goto_done))

    # Search

    def do_search(self) -> None:
        where = "guest's disk" if self.place.view is View.GUEST_HEX else "file"
        note = f"Text as it is, or x:51 46 49 fb for bytes: in the whole {where}."
        if self.place.view is View.ENTRIES:
            note += "\n=0x50000 (or 0x50000) for a value or offset in the table shown."
        last = self.session.search.text if self.session.search is not None else ""
        placeholder = "text, x:bytes" + (" or =value" if self.place.view is View.ENTRIES else "")
        self.app.push_screen(
            TextDialog(
                f"Search the {where}", note=note, value=last, placeholder=placeholder, hints="⏎ search   Esc cancel"
            ),
            self._search_done,
        )

    def _search_done(self, text: str | None) -> None:
        if not text:
            return
        try:
            self.session.search = parse_query(text, table=self.place.view is View.ENTRIES)
        except ArgumentError as error:
            self.failed(error)
            return
        self._search(self.session.search, 0)

    def do_search_next(self) -> None:
        if self.session.search is not None:
            self._search(self.session.search, 1)

    def do_search_previous(self) -> None:
        if self.session.search is not None:
            self._search(self.session.search, 0, backwards=True)

    def _search(self, query: Query, skip: int, *, backwards: bool = False) -> None:
        """Search from the selection (`skip` bytes behind it), in the file or, in the guest's data, on the guest's disk."""
        if query.value is not None:
            self._search_value(query.value, 1 if not backwards else -1)
            return
        image = self.session.image if self.place.view is View.GUEST_HEX else None
        storage: Source = GuestSource(image) if image is not None else self.session.storage
        start = skip + ((self.place.guest or 0) if image is not None else self.place.offset)

        def done(found: int | None) -> None:
            if found is None:
                where = "on the guest's disk" if image is not None else "in this file"
                self.notify(f"Not found {where}.", timeout=3)
            elif image is not None:
                self.select(replace(self.place, guest=found))
            else:
                self.jump_to_bytes(found, len(query.needle))

        self.session.background.submit(
            lambda job: find_bytes(storage, query.needle, start, job.step, backwards=backwards),
            done,
            self.failed,
            title="searching",
            long=True,
        )

    def jump_to_bytes(self, offset: int, length: int) -> None:
        """Light a byte range in the hex view."""
        outline = self.session.outline

        def done(item: Item) -> None:
            self.select(Place(item.key, offset, length, "", View.HEX, self.place.guest), then=self.focus_view)

        self.session.background.submit(lambda _job: outline.holding(offset), done, self.failed)

    def _search_value(self, value: int, direction: int) -> None:
        widget = self.current_view()
        if not isinstance(widget, EntriesView) or widget.model is None:
            self.notify("A value is searched for in the entries of a table (key 3).", timeout=4)
            return
        row = widget.model.find_value(value, widget.cursor, direction)
        if row is None:
            self.notify(f"No entry has the value or offset {value:#x}.", timeout=3)
        else:
            widget.move_to(row)

    # Filter

    def do_filter(self) -> None:
        if self.place.view is not View.ENTRIES or self.prepared is None:
            return
        key = self.prepared.item.key
        note = "data zero compressed unallocated allocated copied suspicious; index:10-20 guest:5M-6M host:0x10000-; empty: all"
        now = self.filters.get(key, Filter()).text

        def done(text: str | None) -> None:
            if text is None:
                return
            try:
                self.filters[key] = parse_filter(text)
            except ArgumentError as error:
                self.failed(error)
                return
            self.select(self.place, record=False)

        self.app.push_screen(TextDialog("Filter the rows", note=note, value=now, placeholder="suspicious"), done)

    # Problems and bookmarks

    def do_next_problem(self) -> None:
        self._problem(1)

    def do_previous_problem(self) -> None:
        self._problem(-1)

    def _problem(self, direction: int) -> None:
        """The next problem of the header and the tables behind it, by place in the file."""
        spots = sorted({fault.offset: max(1, fault.length) for fault in self.session.meta.faults}.items())
        if not spots:
            return
        offsets = [offset for offset, _ in spots]
        here = self.place.offset
        later = (
            [each for each in offsets if each > here] if direction > 0 else [each for each in offsets if each < here]
        )
        target = (later[0] if direction > 0 else later[-1]) if later else (offsets[0] if direction > 0 else offsets[-1])
        self.jump(f"{target:#x}", view=View.HEX)

    def do_bookmark(self) -> None:
        place, marks = self.place, self.session.bookmarks
        same = next(
            (each for each in marks if (each.offset, each.view, each.guest) == (place.offset, place.view, place.guest)),
            None,
        )
        if same is not None:
            marks.remove(same)
            self.notify("Bookmark taken away.", timeout=2)
        else:
            marks.append(place)
            self.notify(f"Bookmarked {place.offset:#x}. {self.app.key_of('bookmarks')} lists the bookmarks.", timeout=2)

    def do_bookmarks(self) -> None:
        marks = self.session.bookmarks
        options = [
            (str(index), f"{each.node} {each.path}  {each.offset:#x}  {each.view.value}")
            for index, each in enumerate(marks)
        ]

        def chosen(value: str | None) -> None:
            if value is not None:
                self.select(marks[int(value)])

        self.app.push_screen(ChooseDialog("Bookmarks", options), chosen)

    def do_fold(self) -> None:
        """Fold or unfold what has the keys."""
        widget = self.current_view()
        if self.focused_tree():
            self.query_one(StructureTree).toggle()
        elif isinstance(widget, FieldsView):
            widget.fold_current()
        elif self.place.view is View.ENTRIES:
            self.fold = not self.fold
            self.select(self.place, record=False)


def structure_names(outline: Outline) -> list[tuple[str, str]]:
    """(address, label) of structures worth completing: the top level and the first children of each. Reads: worker."""
    found: list[tuple[str, str]] = []
    for root in outline.roots():
        found.append((root.key, f"{root.label}  {root.note}".rstrip()))
        if root.branch and (
            root.kind in TABLES or root.kind in (Kind.EXTENSIONS, Kind.SNAPSHOTS, Kind.BITMAPS, Kind.LUKS)
        ):
            for child in outline.children(root):
                if child.kind is not Kind.GROUP:
                    found.append((child.key, f"{child.label}  {child.note}".rstrip()))
    known = {key for key, _ in found}
    found += [(name, name) for name in NAMES if name not in known and outline.find(name) is not None]
    header = outline.find("header")
    record = outline.annotation(header) if header is not None else None
    if record is not None:
        found += [(node.path, f"{node.path}  field") for node in record.children if node.path]
    return found


def cluster_target(outline: Outline, place: Place, found: Prepared | None, line: str) -> int | None:
    """Host byte whose cluster is meant: where the selected pointer or guest offset leads, else the selection itself.

    None when a guest offset is stored nowhere in this file. line: address of the line under the cursor, if any. Reads: worker.
    """
    if line.startswith(("0x", "l1", "l2", "snapshot:")):
        return find_address(outline, line, place).offset
    if found is None:
        return place.offset
    if place.view in GUEST_VIEWS and place.guest is not None:
        told = explain_guest(outline.meta, place.guest, snapshot_number(found.item.key))
        return (
            told.host
            if told.host is not None and not told.external
            else told.run.offset
            if told.run is not None
            else None
        )
    if found.entry >= 0 or place.view is View.FIELDS:
        for _, target in found.explanation.links:
            if target.startswith("0x"):
                return int(target, 16)
            child = outline.find(target.replace("rb:", "refcount-block:")) if found.entry >= 0 else None
            if child is not None:
                return child.offset
    return place.offset
