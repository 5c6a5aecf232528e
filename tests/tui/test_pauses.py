"""Garbage is looked for while nobody is typing."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest

from workbench.tui import pauses
from workbench.tui.app import Workbench, run
from workbench.tui.keymap import Keymap
from workbench.tui.pauses import REST, Pauses


@pytest.fixture
def collections(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """The full collections there were."""
    seen: list[int] = []

    def note(phase: str, info: dict[str, int]) -> None:
        if phase == "start" and info["generation"] == 2:
            seen.append(1)

    gc.callbacks.append(note)
    yield seen
    gc.callbacks.remove(note)


def test_no_collection_in_the_middle_of_typing_and_one_after_it(
    collections: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 100.0
    monkeypatch.setattr(pauses.time, "monotonic", lambda: now)
    mine = Pauses()
    mine.touched()
    gc.collect(1)
    collections.clear()
    mine.look()
    assert not collections
    now += REST + 0.1
    mine.look()
    assert len(collections) == 1


def test_nothing_new_is_not_looked_at_again(collections: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    mine = Pauses()
    mine.last_input -= 10 * REST
    monkeypatch.setattr(pauses.gc, "get_count", lambda: (10, 0, 0))
    collections.clear()
    mine.look()
    assert not collections


async def test_an_app_that_is_not_alone_in_its_process_leaves_the_collector_alone() -> None:
    before, frozen = gc.get_threshold(), gc.get_freeze_count()
    app = Workbench(keymap=Keymap(), remember=False)
    async with app.run_test(size=(80, 24)) as pilot:
        await pilot.pause(1.2)
    assert (gc.get_threshold(), gc.get_freeze_count()) == (before, frozen)


async def test_a_key_is_noticed() -> None:
    app = Workbench(keymap=Keymap(), remember=False)
    async with app.run_test(size=(80, 24)) as pilot:
        app.pauses.last_input = 0
        await pilot.press("down")
        assert app.pauses.last_input > 0


def test_the_command_line_runs_it_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    app = Workbench(keymap=Keymap(), remember=False)
    monkeypatch.setattr(app, "run", lambda: None)
    run(app)
    assert app.alone
