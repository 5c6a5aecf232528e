"""The browser: one image, with its structures, its views and everything that can be done there."""

from __future__ import annotations

from workbench.tui.screens.chain import Chain
from workbench.tui.screens.checked import CheckedImage
from workbench.tui.screens.guest import Guest
from workbench.tui.screens.moving import Moving
from workbench.tui.screens.repair_browser import Repairing
from workbench.tui.screens.viewing import Viewing
from workbench.tui.screens.working import Working


class BrowserScreen(Repairing, CheckedImage, Viewing, Guest, Chain, Moving, Working):
    """The parts put together."""
