"""Moving about: follow, history, go to, who refers, search, problems, bookmarks."""

from __future__ import annotations

from typing import TYPE_CHECKING

from workbench.tui.place import View
from workbench.tui.prepare import place_of
from workbench.tui.widgets.lines import LinesView

if TYPE_CHECKING:
    from workbench.tui.screens.browser import BrowserScreen

    Base = BrowserScreen
else:
    Base = object


class Moving(Base):
    """Commands that change the place; part of BrowserScreen."""

    def do_follow(self) -> None:
        """Go where the selection points."""
        widget = self.current_view()
        if isinstance(widget, LinesView):
            line = widget.current
            if line is not None and line.target:
                self.jump(line.target)
            return
        if self.place.view is View.GUEST_HEX:
            self.to_view(View.TRANSLATION)
            return
        links = self.prepared.explanation.links if self.prepared is not None else ()
        if links:
            self.jump(links[0][1])
        else:
            self.notify("Nothing to follow here: this is no pointer.", timeout=2)

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
        outline, key = self.session.outline, self.prepared.item.key
        above = [each for each in outline.parents(key) if "#" not in each]
        item = outline.find(above[-1]) if above else None
        if item is not None:
            self.select(place_of(item, guest=self.place.guest))
