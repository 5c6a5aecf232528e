"""Working on an image: check, passphrase, backing files, marks, copying, reloading."""

from __future__ import annotations

from typing import TYPE_CHECKING

from workbench.tui.explaining import Explanation

if TYPE_CHECKING:
    from collections.abc import Callable

    from workbench.tui.background import Pages
    from workbench.tui.prepare import Prepared
    from workbench.tui.screens.browser import BrowserScreen

    Base = BrowserScreen
else:
    Base = object


class Working(Base):
    """Commands that read more, or give something out; part of BrowserScreen."""

    def start_check(self) -> None:
        """Check in the background."""

    def verdict(self) -> tuple[str, str]:
        """The check's result in words, with its level."""
        return ("", "")

    def has_findings(self) -> bool:
        """Whether the check found something."""
        return False

    def mark_note(self) -> str:
        """What is marked."""
        return ""

    def explanation_of(self, found: Prepared) -> Explanation:
        """The explanation, with what the check knows."""
        return found.explanation

    def enter_backing(self) -> None:
        """Open the backing file as another image."""

    def with_guest(self, ready: Callable[[Pages], None]) -> None:
        """Open the guest's view of the image, asking for what it needs."""

    def guest_note(self, offset: int) -> str:
        """Where a guest byte comes from."""
        return ""
