"""The status line of long work: silent for a second, then one line that is drawn over itself and wiped in the end."""

from __future__ import annotations

import io
from contextlib import redirect_stderr

import pytest

from workbench.cli.progress import StatusLine, progress_line


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def shown(terminal: Terminal) -> list[str]:
    return [each for each in terminal.getvalue().split("\r\x1b[K") if each]


def test_what_takes_under_a_second_says_nothing(clock: Clock) -> None:
    with redirect_stderr(Terminal()) as terminal, StatusLine(clock) as line:
        clock.now += 0.9
        line.share(1, 2)
        line.say("writing")
    assert not terminal.getvalue()


def test_a_share_has_rate_and_time_left(clock: Clock) -> None:
    with redirect_stderr(Terminal()) as terminal, StatusLine(clock) as line:
        clock.now += 2
        line.share(20 << 20, 80 << 20, "tables")
        clock.now += 0.05
        line.share(21 << 20, 80 << 20, "tables")
        line.share(0, 0, "tables")
    assert shown(terminal) == ["tables:  25.0 %  10 MiB/s  6 s left"]
    assert terminal.getvalue().endswith("\r\x1b[K")


def test_a_new_phase_is_said_at_once_and_its_share_only_now_and_then(clock: Clock) -> None:
    with redirect_stderr(Terminal()) as terminal, StatusLine(clock) as line:
        clock.now += 1
        line.say("storing")
        line.say("writing", 1, 3)
        line.say("writing", 2, 3)
        clock.now += 0.5
        line.say("writing", 3, 3)
    assert shown(terminal) == ["storing …", "writing 33 %", "writing 100 %"]


def test_nothing_is_drawn_where_nobody_looks(clock: Clock) -> None:
    with redirect_stderr(io.StringIO()) as plain, StatusLine(clock) as line, progress_line() as progress:
        clock.now += 5
        line.say("writing")
    assert progress is None and not plain.getvalue()
