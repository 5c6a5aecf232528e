"""The middle pane: which view is shown, and how each view gets its content."""

from __future__ import annotations

from typing import Any

from textual import on
from textual.containers import Container
from textual.widget import Widget

from formats.annotate import Node, NodeKind
from formats.qcow2.entries import block_of
from formats.qcow2.refcounts import unpack
from workbench.tui.entries import EntryRows, Filter
from workbench.tui.outline_items import Kind
from workbench.tui.place import VIEW_LABELS, Place, View
from workbench.tui.prepare import (
    GUEST_VIEWS,
    IMAGE_VIEWS,
    Prepared,
    crossing,
    entry_place,
    guest_side,
    hex_place,
)
from workbench.tui.screens.core import BrowserCore
from workbench.tui.widgets.chrome import ViewTabs
from workbench.tui.widgets.entries import EntriesView
from workbench.tui.widgets.explain import ExplainPane
from workbench.tui.widgets.fields import FieldsView
from workbench.tui.widgets.guestmap import GuestMapView
from workbench.tui.widgets.hexview import HexView, Tint
from workbench.tui.widgets.lines import LinesView
from workbench.tui.widgets.rows import Rows


class Viewing(BrowserCore):
    """Views of the middle pane; part of the browser."""

    def view_widget(self, view: View) -> Any:
        """The widget of a view, made and mounted at first use."""
        ident = f"view-{view.value}"
        found = self.query(f"#{ident}")
        if found:
            return found.first()
        widget = self.make_view(view, ident)
        widget.display = False
        self.query_one("#views", Container).mount(widget)
        return widget

    def make_view(self, view: View, ident: str) -> Widget:
        """A new widget for a view."""
        if view is View.FIELDS:
            return FieldsView(id=ident)
        if view is View.HEX:
            return HexView(id=ident)
        if view is View.GUEST_HEX:
            return HexView(id=ident)
        if view is View.ENTRIES:
            return EntriesView(id=ident)
        if view is View.GUEST_MAP:
            return GuestMapView(id=ident)
        return LinesView(id=ident)

    def current_view(self) -> Widget | None:
        """The widget shown in the middle."""
        found = self.query(f"#view-{self.place.view.value}")
        return found.first() if found else None

    def to_view(self, view: View) -> None:
        """Show the same place in another view."""
        self.liked = view
        if self.prepared is not None and view in self.prepared.views and view is not self.place.view:
            place, found, outline = self.place, self.prepared, self.session.outline
            # Walking the tree in one view goes on; the views of the whole image are walked in themselves, and on a narrow
            # terminal the tree would hide the view.
            of_structure = view not in GUEST_VIEWS and view not in IMAGE_VIEWS
            stays = of_structure and self.focused_is_tree() and not self.has_class("-narrow")
            then = None if stays else self.focus_view
            if view in IMAGE_VIEWS or (place.view in GUEST_VIEWS) is (view in GUEST_VIEWS):
                self.select(place.seen_in(view), record=True, then=then)
                return

            def work() -> Place:
                return guest_side(outline, found, view) if view in GUEST_VIEWS else crossing(outline, place, view)

            self.session.background.submit(
                lambda _job: work(),
                lambda there: self.select(there, record=True, then=then),
                self.failed,
                title="looking",
            )

    def focused_is_tree(self) -> bool:
        """Whether the keys are in the tree."""
        return self.focused is not None and self.focused.id == "tree"

    def do_view_fields(self) -> None:
        self.to_view(View.FIELDS)

    def do_view_hex(self) -> None:
        self.to_view(View.HEX)

    def do_view_entries(self) -> None:
        self.to_view(View.ENTRIES)

    def do_view_guest_map(self) -> None:
        self.to_view(View.GUEST_MAP)

    def do_view_guest_hex(self) -> None:
        self.to_view(View.GUEST_HEX)

    def do_view_translation(self) -> None:
        self.to_view(View.TRANSLATION)

    def do_view_host_map(self) -> None:
        self.to_view(View.HOST_MAP)

    def do_view_findings(self) -> None:
        self.to_view(View.FINDINGS)

    def do_view_refcounts(self) -> None:
        self.to_view(View.REFCOUNTS)

    def do_view_overlaps(self) -> None:
        self.to_view(View.OVERLAPS)

    # Showing

    def show_view(self, found: Prepared, place: Place, source: str) -> None:
        """Bring the view of `place` to the front and give it its content."""
        widget = self.view_widget(place.view)
        had_focus = self.focused is not None and self.focused.parent is not None and self.focused.parent.id == "views"
        for each in self.query_one("#views", Container).children:
            each.display = each is widget
        if had_focus and self.focused is not widget:
            widget.focus()
        self.update_tabs()
        feed = getattr(self, f"feed_{place.view.value}", None)
        if feed is not None:
            feed(widget, found, place, source)

    def update_tabs(self) -> None:
        """The strip of views."""
        if self.prepared is not None:
            keys = {view: self.app.keys_of(f"view_{view.value}").split(",")[0] for view in View}
            self.query_one(ViewTabs).show(self.prepared.views, self.place.view, keys)
            self.query_one("#views").border_title = VIEW_LABELS[self.place.view]

    def explain_now(self) -> None:
        """Give the explanation pane the text for the selection."""
        if self.prepared is not None:
            self.query_one(ExplainPane).show(self.explanation_of(self.prepared))

    def refresh_pages(self) -> None:
        """More bytes have been read: draw again what shows bytes."""
        for view in (View.HEX, View.GUEST_HEX, View.ENTRIES):
            for widget in self.query(f"#view-{view.value}"):
                widget.refresh()

    # Fields

    def feed_fields(self, widget: FieldsView, found: Prepared, place: Place, source: str) -> None:
        message = "No fields here."
        if found.table is not None:
            message = "Choose a row in the entries (key 3); its fields are shown here."
        elif found.item.kind is Kind.LAYER:
            message = "Another file: Enter opens it as an image of its own."
        widget.show(found.record, message=message)
        if source != "fields":
            widget.select(place.path, place.offset)

    @on(Rows.Moved, "#view-fields")
    def fields_moved(self, event: Rows.Moved) -> None:
        node = self.view_widget(View.FIELDS).current
        if node is not None and self.prepared is not None:
            path = node.path if self.prepared.table is None else self.place.path
            place = Place(self.place.node, node.offset, node.size, path, View.FIELDS, self.place.guest)
            self.select(place, record=False, source="fields")

    # Hex

    def feed_hex(self, widget: HexView, found: Prepared, place: Place, source: str) -> None:
        session = self.session
        widget.show(session.pages, session.meta.file_size, origin=found.item.offset, tints=list(self._tints(found)))
        widget.namer = self._namer(found)
        widget.marked = session.mark
        if source == "hex":
            widget.lit = (place.offset, place.end)
            widget.refresh()
        else:
            widget.select(place.offset, place.length)

    def _tints(self, found: Prepared) -> list[Tint]:
        """Fields of the record as tints; entries of a table are tinted by arithmetic in the namer instead."""
        if found.record is None:
            return []
        out: list[Tint] = []

        def add(node: Node) -> None:
            parts = [child for child in node.children if child.bits is None]
            if parts:
                for child in parts:
                    add(child)
            elif node.size and node.kind is not NodeKind.GAP:
                out.append(Tint(node.offset, node.end, node.path.partition(".")[2] or node.name))

        add(found.record)
        return out

    def _namer(self, found: Prepared) -> Any:
        item, table = found.item, found.table
        meta = self.session.meta
        if table is None:
            tints = self._tints(found)

            def name_field(offset: int) -> str:
                return next(
                    (tint.name for tint in tints if tint.start <= offset < tint.end),
                    item.label if item.kind is not Kind.FILE else "",
                )

            return name_field
        bits = table.entry_bits(meta)

        def name_entry(offset: int) -> str:
            if not item.offset <= offset < item.end:
                return ""
            return f"{table.name}[{(offset - item.offset) * 8 // bits}]"

        return name_entry

    @on(HexView.ByteMoved, "#view-hex")
    def hex_moved(self, event: HexView.ByteMoved) -> None:
        outline, offset, guest = self.session.outline, event.offset, self.place.guest

        def done(place: Place) -> None:
            if self.view_widget(View.HEX).at == offset and self.place.view is View.HEX:
                kept = place.guest if place.guest is not None else guest
                self.select(
                    Place(place.node, place.offset, place.length, place.path, View.HEX, kept),
                    record=False,
                    source="hex",
                )

        self.session.background.submit(lambda _job: hex_place(outline, offset), done, self.failed, title="looking")

    # Entries

    def feed_entries(self, widget: EntriesView, found: Prepared, place: Place, source: str) -> None:
        table, meta = found.table, self.session.meta
        if table is None:
            widget.show(None, "This structure is no table.")
            return
        chosen = self.filters.get(found.item.key, Filter())
        model = widget.model
        if (
            model is not None
            and model.meta is meta
            and model.table == table
            and model.fold == self.fold
            and model.chosen == chosen
            and (source == "entries" or model.shows(found.entry))
        ):
            if source != "entries":
                widget.select(found.first)
            return
        fold, pin = self.fold, found.entry
        widget.refcount = self.refcount_text
        widget.show(None)

        def done(fresh: EntryRows) -> None:
            if self.prepared is not None and self.prepared.table == table:
                widget.show(fresh)
                widget.select(self.prepared.first)
                self.fit_panes()

        self.session.background.submit(
            lambda _job: EntryRows(meta, table, fold=fold, chosen=chosen, pin=pin),
            done,
            self.failed,
            title="reading table",
        )

    def refcount_text(self, offset: int, clusters: int = 1) -> str:
        """Stored refcount of `clusters` clusters from a host offset on (`1`, or `1-3` where they differ), from bytes that
        are there already; `…` while they are read. Runs that reach into a second refcount block are not looked through."""
        meta = self.session.meta
        geometry = meta.geometry
        assert geometry is not None
        number, row = divmod(offset // geometry.cluster_size, geometry.refcount_block_entries)
        table = meta.refcount_table
        block = block_of(int(table[number])) if number < len(table) else 0
        if not block:
            return "0"
        if row + clusters > geometry.refcount_block_entries:
            return ""
        bits = geometry.refcount_bits
        first = row * bits // 8
        data = self.session.pages.peek(block + first, ((row + clusters) * bits + 7) // 8 - first)
        if data is None:
            return "…"
        if clusters == 1:
            value = int.from_bytes(data, "big")
            return str(value if bits >= 8 else value >> row * bits % 8 & ((1 << bits) - 1))
        values = unpack(data, geometry.refcount_order)
        skip = row - first * 8 // bits
        values = values[skip : skip + clusters]
        low, high = (int(values.min()), int(values.max())) if len(values) else (0, 0)
        return str(low) if low == high else f"{low}-{high}"

    @on(Rows.Moved, "#view-entries")
    def entries_moved(self, event: Rows.Moved) -> None:
        run = self.view_widget(View.ENTRIES).current
        if run is not None and self.prepared is not None and self.prepared.table is not None:
            place = entry_place(self.session.meta, self.prepared.owner, self.prepared.table, run.first, View.ENTRIES)
            self.select(place, record=False, source="entries")
