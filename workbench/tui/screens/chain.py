"""The files behind an image: asking before one is opened, the layers in the tree, entering a layer as a tab."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from textual import on

from workbench.engine.gate import OpenRequest, resolve_name
from workbench.tui.layers import Layer, look
from workbench.tui.outline_items import Item, Kind
from workbench.tui.screens.core import BrowserCore
from workbench.tui.screens.dialogs import ChooseDialog
from workbench.tui.widgets.structure import StructureTree


class Chain(BrowserCore):
    """Backing files and the external data file; part of the browser."""

    def ask_gate(self, request: OpenRequest, answer: Callable[[Path | None], None]) -> None:
        """Show which file the image wants opened, and ask; what was answered once is not asked again."""
        key = gate_key(request)
        known = self.session.allowed.get(key)
        if known is not None:
            answer(request.resolved if known else None)
            return
        shown = str(request.resolved) if request.resolved is not None else "no local file: it cannot be opened here"
        instead = "its clusters read as zeros" if request.kind == "backing" else "no guest data can be read"
        options = [("no", f"Go on without it ({instead})")]
        if request.resolved is not None:
            options.insert(0, ("yes", f"Open it, read-only: {shown}"))
        note = f"This image names a {request.kind} file: {request.stored_name!r}, format {request.format or 'not recorded'}.\nThat would be {shown}."

        def chosen(value: str | None) -> None:
            self.session.allowed[key] = value == "yes"
            answer(request.resolved if value == "yes" else None)

        self.app.push_screen(ChooseDialog(f"Open the {request.kind} file?", options, note=note), chosen)

    def below(self, item: Item) -> OpenRequest | None:
        """What the image, or one of its layers, names as its backing file; None when that cannot be read."""
        meta, layers = self.session.meta, self.session.outline.layers
        base, name, sort = self.session.path, meta.backing_name, meta.backing_format
        if item.kind is Kind.LAYER:
            layer = layers[item.index - 1]
            base, name, sort = layer.path, layer.backing_name, layer.backing_format
        if not name:
            return None
        return OpenRequest(
            "backing", name, resolve_name(name, base, "backing"), base, sort, item.index if item.index > 0 else 0
        )

    def enter_backing(self) -> None:
        """Open the backing file as an image of its own, after asking."""
        found = self.prepared
        if found is not None and found.item.kind is Kind.LAYER:
            self.enter_layer(found.item)
            return
        backing = self.session.outline.find("backing-name")
        request = self.below(backing) if backing is not None else None
        if request is None:
            self.notify("The backing file name cannot be read.", severity="warning")
            return
        self.ask_again(request, lambda chosen: self.app.open_image(str(chosen)) if chosen is not None else None)

    def enter_layer(self, item: Item) -> None:
        """Open a layer as an image of its own; looking at it was allowed when it was shown."""
        layer = self.session.outline.layers[item.index - 1]
        if layer.problem:
            self.notify(
                f"{Path(layer.path).name} cannot be opened: {layer.problem}.".replace("[", "\\["), severity="warning"
            )
        else:
            self.app.open_image(layer.path)

    def ask_again(self, request: OpenRequest, answer: Callable[[Path | None], None]) -> None:
        """As `ask_gate`, also when the answer was no before: the person asked for it now."""
        if self.session.allowed.get(gate_key(request)) is False:
            del self.session.allowed[gate_key(request)]
        self.ask_gate(request, answer)

    @on(StructureTree.Below)
    def look_below(self, event: StructureTree.Below) -> None:
        """The backing file in the tree was opened: show the layer under it, when that is allowed."""
        event.stop()
        node, item, session = event.node, event.item, self.session
        tree, outline = self.query_one(StructureTree), session.outline
        number = item.index + 1 if item.kind is Kind.LAYER else 1
        if len(outline.layers) >= number:
            tree.load(node)
            return
        request = self.below(item)
        if request is None:
            node.collapse()
            return

        def done(layer: Layer) -> None:
            if session.outline is outline and len(outline.layers) == number - 1:
                outline.layers.append(layer)
            tree.load(node)

        def answered(path: Path | None) -> None:
            if path is None:
                node.collapse()
                return
            above = [session.path, *(each.path for each in outline.layers)]
            session.background.submit(lambda _job: look(request, str(path), above), done, self.failed, title="looking")

        self.ask_again(request, answered)


def gate_key(request: OpenRequest) -> str:
    """What an answer is remembered under: the same name means another file in another layer."""
    return f"{request.kind}:{request.base}:{request.stored_name}"
