"""The tree of structures: lazy at any size; damaged nodes are marked and say why."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

from rich.style import Style
from rich.text import Text
from textual.binding import BindingType
from textual.message import Message
from textual.widgets import Tree
from textual.widgets.tree import TreeNode

from workbench.tui.background import Background
from workbench.tui.commands import navigation_bindings
from workbench.tui.outline import Outline
from workbench.tui.outline_items import CHAINED, Item
from workbench.tui.widgets.rows import overlay

MARKS = {"bad": "✗", "warn": "!", "": ""}


_SHORTEST_NAME = 10


def fitting(note: str, room: int) -> str:
    """A note, or less of it where it has no room: its first part, its number, the end of a file's name, nothing.

    Never half a word. room: columns.
    """
    first = note.partition(", ")[0]
    number = first.removesuffix(" entries").removesuffix(" entry")
    found = next((each for each in (note, first, number) if len(each) + 2 <= room), "")
    if not found and "." in first and " " not in first and room >= _SHORTEST_NAME:
        return "…" + first[3 - room :]
    return found


class StructureTree(Tree[Item]):
    """Items of an Outline. Children come when a node is opened, from a worker."""

    BINDINGS: ClassVar[list[BindingType]] = [*navigation_bindings()]
    COMPONENT_CLASSES: ClassVar[set[str]] = {"structure--bad", "structure--warn", "structure--note", "structure--badge"}
    DEFAULT_CSS = """
    StructureTree { background: $surface; padding: 0 0 0 1; scrollbar-size-vertical: 1; scrollbar-size-horizontal: 0; }
    StructureTree > .structure--bad { color: $error; text-style: bold; }
    StructureTree > .structure--warn { color: $warning; }
    StructureTree > .structure--note { color: $text-muted; }
    StructureTree > .structure--badge { color: $error; text-style: bold; }
    """

    class Picked(Message):
        """The person moved to an item."""

        def __init__(self, item: Item) -> None:
            super().__init__()
            self.item = item

    class Below(Message):
        """The person opened a backing file in the tree: what is below it is another file, which has to be allowed."""

        def __init__(self, node: TreeNode[Item], item: Item) -> None:
            super().__init__()
            self.node, self.item = node, item

    def __init__(self, **more: object) -> None:
        super().__init__("image", **more)  # type: ignore[arg-type]
        self.show_root = False
        self.guide_depth = 2
        self.auto_expand = False
        self._outline: Outline | None = None
        self._background: Background | None = None
        self._quiet = 0
        self.badges: dict[str, str] = {}

    def fill(self, outline: Outline, roots: list[Item], background: Background) -> None:
        """Show another image's tree."""
        self._outline, self._background = outline, background
        self.clear()
        for item in roots:
            self._add(self.root, item)
        self.root.expand()

    def _add(self, node: TreeNode[Item], item: Item) -> TreeNode[Item]:
        label = item.label + (f"  {item.note}" if item.note else "")
        return node.add(label, item, allow_expand=item.branch) if item.branch else node.add_leaf(label, item)

    def render_label(self, node: TreeNode[Item], base_style: Style, style: Style) -> Text:
        """Mark, label, note, badge."""
        item = node.data
        if item is None:
            return Text("image", style=base_style)
        selected = node is self.cursor_node
        text = Text(style=base_style + style)
        if node.allow_expand:
            text.append("▾ " if node.is_expanded else "▸ ")
        else:
            text.append("  ")
        if item.mark:
            text.append(MARKS[item.mark] + " ", style if selected else overlay(self, f"structure--{item.mark}"))
        text.append(item.label)
        badge = self.badges.get(item.key)
        if badge:
            text.append(" " + badge, None if selected else overlay(self, "structure--badge"))
        note = fitting(item.note, self._room(node) - text.cell_len)
        if note:
            text.append("  " + note, None if selected else overlay(self, "structure--note"))
        text.truncate(max(4, self._room(node)), overflow="ellipsis")
        return text

    def _room(self, node: TreeNode[Item]) -> int:
        """Columns for a node's label: the pane without the lines that lead to it."""
        depth = 0
        above = node.parent
        while above is not None and above is not self.root:
            depth, above = depth + 1, above.parent
        return (self.content_size.width or 80) - depth * self.guide_depth - 1

    def set_badges(self, badges: dict[str, str]) -> None:
        """Counts of findings beside items."""
        self.badges = badges
        self._updates += 1
        self._invalidate()
        self.refresh()

    # Opening nodes

    def _on_tree_node_expanded(self, event: Tree.NodeExpanded[Item]) -> None:
        event.stop()
        item = event.node.data
        if item is not None and item.kind in CHAINED and not event.node.children:
            self.post_message(self.Below(event.node, item))
        else:
            self.load(event.node)

    def load(self, node: TreeNode[Item], then: Callable[[], None] | None = None) -> None:
        """Fetch a node's children once; `then` runs when they are there."""
        item = node.data
        if item is None or node.children or self._outline is None or self._background is None:
            if then is not None:
                then()
            return
        outline = self._outline

        def done(children: list[Item]) -> None:
            if not node.children:
                for child in children:
                    self._add(node, child)
                if not children:
                    node.allow_expand = False
            if then is not None:
                then()

        def failed(error: Exception) -> None:
            if not node.children:
                self._add(node, Item(f"{item.key}!", "cannot be read", item.kind, mark="bad", why=str(error)))

        self._background.submit(lambda _job: outline.children(item), done, failed, title="structures")

    def reveal(self, key: str, parents: list[str]) -> None:
        """Open the way to an item and put the cursor there, without telling anyone."""
        if self.cursor_node is not None and self.cursor_node.data is not None and self.cursor_node.data.key == key:
            return
        steps = [*parents, key]

        def step(node: TreeNode[Item], index: int) -> None:
            found = next(
                (child for child in node.children if child.data is not None and child.data.key == steps[index]), None
            )
            if found is None:
                return
            if index == len(steps) - 1:
                self._quiet += 1
                self.call_after_refresh(self._move, found)
                return
            found.expand()
            self.load(found, lambda: step(found, index + 1))

        step(self.root, 0)

    def _move(self, node: TreeNode[Item]) -> None:
        self.move_cursor(node)
        self.scroll_to_node(node, animate=False)
        self.call_after_refresh(self._loud)

    def _loud(self) -> None:
        self._quiet = max(0, self._quiet - 1)

    def _on_tree_node_highlighted(self, event: Tree.NodeHighlighted[Item]) -> None:
        event.stop()
        if event.node.data is not None and self.has_focus and not self._quiet:
            self.post_message(self.Picked(event.node.data))

    # Keys

    def action_nav_up(self) -> None:
        self.action_cursor_up()

    def action_nav_down(self) -> None:
        self.action_cursor_down()

    def action_nav_left(self) -> None:
        """Close the node, or go to its parent."""
        node = self.cursor_node
        if node is None:
            return
        if node.is_expanded and node.children:
            node.collapse()
        elif node.parent is not None and node.parent is not self.root:
            self.move_cursor(node.parent)

    def action_nav_right(self) -> None:
        """Open the node, or go to its first child."""
        node = self.cursor_node
        if node is None or not node.allow_expand:
            return
        if not node.is_expanded:
            node.expand()
        elif node.children:
            self.move_cursor(node.children[0])

    def action_nav_page_up(self) -> None:
        self.action_page_up()

    def action_nav_page_down(self) -> None:
        self.action_page_down()

    def action_nav_home(self) -> None:
        self.action_scroll_home()

    def action_nav_end(self) -> None:
        self.action_scroll_end()

    def toggle(self) -> None:
        """Open or close the node under the cursor."""
        if self.cursor_node is not None and self.cursor_node.allow_expand:
            self.cursor_node.toggle()
