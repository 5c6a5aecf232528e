"""Fields of a record: name, offset, raw bytes, value, meaning; nested and foldable."""

from __future__ import annotations

from collections.abc import Iterable

from formats.annotate import Node, NodeKind
from workbench.render.tree import Row, row_of
from workbench.tui.widgets.rows import Part, Rows, cut

_KIND_STYLE = {
    NodeKind.STRUCT: "accent",
    NodeKind.FAULT: "bad",
    NodeKind.GAP: "dim",
    NodeKind.BITS: "",
    NodeKind.FIELD: "",
}


_ROOMY = 60
"""Narrower panes leave out bit numbers: the explanation has them."""
_BIT_RANGE = len("bit 32-63 ")


def _inside_wrappers(root: Node) -> Iterable[Node]:
    """The top rows: what is in a record. A record that only holds one other record (an entry's table, its row) is left out."""
    children = root.children or (root,)
    while len(children) == 1 and children[0].kind is NodeKind.STRUCT and children[0].children:
        children = children[0].children
    return children


class FieldsView(Rows):
    """An annotated tree, one line a node. Folded nodes hide what is below them."""

    head_height = 1

    def __init__(self, **more: object) -> None:
        super().__init__(**more)
        self._root: Node | None = None
        self._rows: list[Row] = []
        self._folded: set[str] = set()
        self._message = "Nothing selected."

    def show(self, root: Node | None, *, message: str = "This structure has no fields of its own.") -> None:
        """Show another record; None says `message` instead."""
        same = (
            root is not None
            and self._root is not None
            and root.path == self._root.path
            and root.offset == self._root.offset
        )
        self._root, self._message = root, message
        if not same:
            self._folded.clear()
        self._rebuild()
        if not same:
            self.set_reactive(Rows.cursor, 0)
            self.set_reactive(Rows.top, 0)

    def _rebuild(self) -> None:
        rows: list[Row] = []

        def add(node: Node, depth: int) -> None:
            rows.append(row_of(node, depth))
            if node.path in self._folded:
                return
            for child in node.children:
                plain = child.name.startswith(("reserved", "unknown"))
                if child.kind is NodeKind.BITS and child.value == 0 and plain:
                    continue
                add(child, depth + 1)

        if self._root is not None:
            for child in _inside_wrappers(self._root):
                add(child, 0)
        self._rows = rows
        self.cursor = self.validate_cursor(self.cursor)
        self.top = self.validate_top(self.top)
        self.refresh()

    def select(self, path: str, offset: int) -> None:
        """Put the cursor on a node by path, or else on the innermost node with that byte; tells no one."""
        best = next((index for index, row in enumerate(self._rows) if row.node.path == path), -1)
        if best < 0:
            inside = [
                (row.node.size, index)
                for index, row in enumerate(self._rows)
                if row.node.offset <= offset < row.node.end and row.node.bits is None
            ]
            best = min(inside)[1] if inside else -1
        if best >= 0:
            self.move_to(best, tell=False)

    @property
    def current(self) -> Node | None:
        """The node under the cursor."""
        return self._rows[self.cursor].node if 0 <= self.cursor < len(self._rows) else None

    def fold_current(self) -> None:
        """Fold or unfold the node under the cursor."""
        node = self.current
        if node is not None and node.children:
            self._folded ^= {node.path}
            self._rebuild()

    @property
    def foldable(self) -> bool:
        """Whether the node under the cursor has something to fold."""
        node = self.current
        return node is not None and bool(node.children)

    def row_count(self) -> int:
        return len(self._rows)

    def empty_text(self) -> str:
        return self._message

    def _columns(self, width: int) -> tuple[int, int, int, int, int]:
        """Widths of name, offset, raw, value, meaning; columns that find no room are 0."""
        name = min(26, max(16, width * 9 // 20))
        offsets = 1 + max((len(f"{row.node.offset:#x}") for row in self._rows), default=1)
        where = offsets if width < _ROOMY else max(offsets, _BIT_RANGE)
        rest = width - name - where - 1
        if rest < 18:
            return name, 0, 0, width - name - 1, 0
        raw = 24 if rest >= 47 else 0
        rest -= raw
        value = min(rest, 34 if rest > 60 else rest)
        return name, where, raw, value, rest - value

    def head_parts(self, line: int, width: int) -> Iterable[Part]:
        name, where, raw, value, meaning = self._columns(width)
        yield " " + cut("Field", name), ""
        for text, size in (("Offset", where), ("Bytes", raw), ("Value", value), ("Meaning", meaning)):
            if size:
                yield cut(text if len(text) < size else "At", size), ""

    def row_parts(self, row: int, width: int) -> Iterable[Part]:
        each = self._rows[row]
        name, where, raw, value, meaning = self._columns(width)
        fold = "" if not each.node.children else "▸ " if each.node.path in self._folded else "▾ "
        label = "  " * each.depth + (fold or "  ") + each.name
        style = _KIND_STYLE[each.node.kind]
        yield cut(label, name) + " ", style
        if where:
            bits = each.where.replace("bits", "bit") if where >= _BIT_RANGE else ""
            shown = f"{each.node.offset:#x}" if each.node.bits is None else bits
            yield cut(shown, where - 1) + " ", "dim"
        if raw:
            yield cut(each.raw, raw - 1) + " ", "dim"
        off = each.node.kind is NodeKind.BITS and each.value == "no"
        bad = each.node.kind is NodeKind.FAULT
        text = each.value if len(each.value) < value else each.value.replace(" bytes (", " B (")
        yield cut(text, value - 1) + " ", "bad" if bad else "dim" if off else ""
        if meaning:
            yield cut(each.meaning, meaning), "dim"

    def action_nav_left(self) -> None:
        node = self.current
        if node is not None and node.children and node.path not in self._folded:
            self.fold_current()
        elif node is not None:
            parent = node.path.rpartition(".")[0]
            for index, row in enumerate(self._rows):
                if row.node.path == parent:
                    self.move_to(index)

    def action_nav_right(self) -> None:
        node = self.current
        if node is not None and node.path in self._folded:
            self.fold_current()
