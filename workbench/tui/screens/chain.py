"""The files behind an image: asking before one is opened, the layers in the tree, entering a layer as a tab."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from textual import on

from workbench.engine.gate import OpenRequest, resolve_name
from workbench.tui.layers import Layer, look
from workbench.tui.outline_items import Item, Kind
from workbench.tui.paths import complete_path
from workbench.tui.screens.core import BrowserCore
from workbench.tui.screens.dialogs import Answer, ChooseDialog, TextDialog
from workbench.tui.session import gate_key
from workbench.tui.widgets.structure import StructureTree
from workbench.units import format_size


class Chain(BrowserCore):
    """Backing files and the external data file; part of the browser."""

    def ask_gate(
        self, request: OpenRequest, answer: Callable[[Path | None], None], never: Callable[[], None] | None = None
    ) -> None:
        """Show which file the image wants opened, and ask; what was answered once is not asked again.

        never: called when the question was left (Escape) and so has no answer; without it nothing is called.
        """
        allowed, key = self.session.allowed, gate_key(request)
        if key in allowed:
            answer(allowed[key])
            return

        def decided(path: Path | None) -> None:
            allowed[key] = path
            answer(path)

        def chosen(value: str | None) -> None:
            if value == "other":
                self._ask_other(request, decided, lambda: self.ask_gate(request, answer, never))
            elif value is not None:
                decided(request.resolved if value == "yes" else None)
            elif never is not None:
                never()

        def ask(size: int | None) -> None:
            self.when_on_top(lambda: self.app.push_screen(gate_dialog(request, size), chosen))

        self.session.background.submit(lambda _job: size_of(request.resolved), ask, self.failed, title="looking")

    def _ask_other(
        self, request: OpenRequest, decided: Callable[[Path | None], None], back: Callable[[], None]
    ) -> None:
        """Ask for a path in place of the one that the image names."""
        background = self.session.background
        folder = os.path.dirname(os.path.abspath(request.base))

        def preview(text: str, show: Answer) -> None:
            background.submit(
                lambda _job: complete_path(text, folder), lambda found: show(*found), self.failed, title="looking"
            )

        note = f"Opened read-only in place of {request.stored_name!r}; a relative path starts at {folder}/."
        dialog = TextDialog(
            f"Which file is the {request.kind} file?", note=note, placeholder="path", hints="⏎ open   Esc back",
            preview=preview,
        )  # fmt: skip
        self.app.push_screen(dialog, lambda text: decided(Path(folder, text).expanduser()) if text else back())

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

    def ask_again(
        self, request: OpenRequest, answer: Callable[[Path | None], None], never: Callable[[], None] | None = None
    ) -> None:
        """As `ask_gate`, also when the answer was no before: the person asked for it now."""
        key = gate_key(request)
        if self.session.allowed.get(key, request) is None:
            del self.session.allowed[key]
        self.ask_gate(request, answer, never)

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

        self.ask_again(request, answered, lambda: answered(None))


def size_of(path: Path | None) -> int | None:
    """Bytes of the file `path`; None when there is no such file (or no path). Looks at the disk: runs in a worker."""
    try:
        return os.stat(path).st_size if path is not None else None
    except (OSError, ValueError):
        return None


def gate_dialog(request: OpenRequest, size: int | None) -> ChooseDialog:
    """The question whether a file may be opened. size: of that file, None when it is not there."""
    other, no = ("other", "(c) choose another file"), ("no", "(n) go on without it")
    instead = "its clusters read as zeros" if request.kind == "backing" else "no guest data can be read"
    options = [other, (no[0], f"{no[1]} ({instead})")]
    sort = request.format or "not recorded"
    lines = [f"{Path(request.base).name} names {request.stored_name!r}, format {sort}."]
    if request.resolved is None:
        lines.append("That is no local file, and nothing else is ever opened.")
    else:
        full = os.path.abspath(request.resolved)
        lines.append(f"That is {full}")
        if size is None:
            lines.append("There is no such file, or it cannot be looked at.")
        else:
            lines.append(f"({format_size(size)}, would be opened read-only)")
            options.insert(0, ("yes", f"(o) open {request.resolved.name}"))
    return ChooseDialog(f"Open the {request.kind} file?", options, note="\n".join(lines))
