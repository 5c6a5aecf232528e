"""Pictures of every step of the repair flow at both sizes. After a wanted change: `--snapshot-update`, and look."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from textual.pilot import Pilot

from tests.tui.conftest import browser, settle
from workbench.repair import casefile
from workbench.tui.app import Workbench

SIZES = {"80x24": (80, 24), "120x40": (120, 40)}
STEPS: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "choose": ("lost-l1-entry", "header", ("r",)),
    "ways": ("entry-past-eof", "header", ("r", "down", "down")),
    "on-request": ("bitmap-in-use", "header", ("r",)),
    "nothing-to-repair": ("plain", "header", ("r",)),
    "plan": ("lost-l1-entry", "header", ("r", "enter")),
    "plan-many": ("snapshot-table-wiped", "header", ("r", "enter")),
    "plan-nothing": ("wiped-l2", "header", ("r", "enter")),
    "maps": ("leaked", "header", ("r", "enter", "m")),
    "confirm": ("leaked", "header", ("r", "enter", "enter")),
    "done": ("leaked", "header", ("r", "enter", "enter", "enter")),
    "history": ("leaked", "header", ("r", "enter", "enter", "enter", "u")),
    "history-empty": ("plain", "header", ("u",)),
    "simulated": ("lost-l1-entry", "header", ("r", "enter", "v", "8")),
    "edit": ("plain", "l1:0", ("E", "tab", "end", "space")),
    "edit-plan": ("plain", "l1:0", ("E", "tab", "end", "space", "f2")),
    "edit-word": ("plain", "l1:0", ("E", "tab", "end", "space", "f2", "enter")),
    "keys": ("leaked", "header", ("r", "enter", "f1")),
}


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("step", STEPS)
def test_step(
    snap_compare: Callable[..., bool],
    make_app: Callable[..., Workbench],
    sample: Callable[[str], Path],
    monkeypatch: pytest.MonkeyPatch,
    step: str,
    size: str,
) -> None:
    name, address, keys = STEPS[step]
    monkeypatch.setattr(casefile.Session, "when", "2026-01-02 03:04:05")
    monkeypatch.setattr(casefile, "tool_version", lambda: "qwb 1.0")
    app = make_app(sample(name), auto_check=True, at=address)

    async def prepare(pilot: Pilot[None]) -> None:
        await settle(app, pilot)
        if address != "header":
            browser(app).focus_view()
        for key in keys:
            await pilot.press(key)
            await settle(app, pilot)
            await settle(app, pilot)
        app.clear_notifications()
        await settle(app, pilot)

    assert snap_compare(app, terminal_size=SIZES[size], run_before=prepare)
