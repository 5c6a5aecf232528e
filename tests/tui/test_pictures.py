"""Pictures of every screen and view, at both sizes, on a healthy, a damaged and an encrypted sample.

The pictures lie in `__snapshots__`; after a wanted change: `pytest tests/tui/test_pictures.py --snapshot-update`, and look.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from textual.pilot import Pilot

from tests.tui.conftest import browser, settle
from workbench.tui.app import Workbench
from workbench.tui.place import View

SIZES = {"80x24": (80, 24), "120x40": (120, 40)}
SAMPLES = ("plain", "wiped-l2", "luks")
PLACES = {
    View.FIELDS: "header",
    View.HEX: "0x0",
    View.ENTRIES: "l2:0",
    View.GUEST_MAP: "g:0",
    View.TRANSLATION: "g:0x5000",
    View.GUEST_HEX: "g:0x0",
}
Picture = Callable[..., bool]
Run = Callable[[Pilot[None]], Awaitable[None]]


@pytest.fixture
def compare(
    snap_compare: Picture, make_app: Callable[..., Workbench], sample: Callable[[str], Path]
) -> Callable[..., bool]:
    """Compare the picture of an app on a sample after `before` with the stored one."""

    def run(
        name: str | None,
        size: str,
        before: Callable[[Workbench, Pilot[None]], Awaitable[None]] | None = None,
        **more: Any,
    ) -> bool:
        app = make_app(*([sample(name)] if name else []), auto_check=True, **more)

        async def prepare(pilot: Pilot[None]) -> None:
            await settle(app, pilot)
            if before is not None:
                await before(app, pilot)
                await settle(app, pilot)
            app.screen.set_focus(app.screen.focused)

        return snap_compare(app, terminal_size=SIZES[size], run_before=prepare)

    return run


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", SAMPLES)
@pytest.mark.parametrize("view", PLACES, ids=lambda view: view.value)
def test_view(compare: Callable[..., bool], name: str, size: str, view: View) -> None:
    async def before(app: Workbench, pilot: Pilot[None]) -> None:
        browser(app).focus_view()

    secret = b"open sesame" if name == "luks" else None
    assert compare(name, size, before, at=PLACES[view], view=view.value, secret=secret)


def _press(*keys: str) -> Callable[[Workbench, Pilot[None]], Awaitable[None]]:
    async def before(app: Workbench, pilot: Pilot[None]) -> None:
        await pilot.press(*keys)

    return before


SCREENS = {
    "go-to": ("plain", "header", _press("g", *"l2:0.5")),
    "references": ("cross-linked", "l2:0.0", _press("x")),
    "search": ("plain", "header", _press("slash", *"x:51 46")),
    "filter": ("unaligned-entry", "l2:0", _press("f", *"suspicious", "enter")),
    "help": ("plain", "header", _press("f1")),
    "palette": ("snapshots", "header", _press("ctrl+p", *"snap")),
    "copy": ("plain", "l2:0.0", _press("y")),
    "passphrase": ("luks", "g:0", _press("5")),
    "zoomed": ("plain", "l2:0", _press("f10")),
    "damaged-header": ("bad-refcount-table", "refcount-table", None),
    "compressed": ("compressed", "l2:0", None),
    "subclusters": ("subclusters", "l2:0.1", _press("1")),
    "snapshots": ("snapshots", "snapshot:1", None),
    "bitmaps": ("bitmaps", "bitmap:0", None),
    "refcounts": ("plain", "refcount-block:0", None),
}


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", SCREENS)
def test_screen(compare: Callable[..., bool], name: str, size: str) -> None:
    image, address, before = SCREENS[name]
    assert compare(image, size, before, at=address)


@pytest.mark.parametrize("size", SIZES)
def test_gallery(compare: Callable[..., bool], size: str) -> None:
    assert compare(None, size, _press("down", "down"))


@pytest.mark.parametrize("size", SIZES)
def test_not_qcow2(snap_compare: Picture, make_app: Callable[..., Workbench], tmp_path: Path, size: str) -> None:
    path = tmp_path / "disk.raw"
    path.write_bytes(b"\0" * 510 + b"\x55\xaa" + b"\0" * 512)
    app = make_app(path)

    async def prepare(pilot: Pilot[None]) -> None:
        await settle(app, pilot)

    assert snap_compare(app, terminal_size=SIZES[size], run_before=prepare)


@pytest.mark.parametrize("theme", ["qwb-light", "high-contrast"])
def test_theme(compare: Callable[..., bool], theme: str) -> None:
    assert compare("plain", "80x24", at="l2:0", theme=theme)
