"""`qwb browse`: what it refuses before a terminal is touched, and pictures."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sample_images import sample_path


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--view", "nope"), "guest-hex"),
        (("--size", "3x3"), "120x40"),
        (("--at", "zzz"), "no address"),
        (("--at", "g:99G"), "virtual disk ends"),
    ],
)
def test_what_cannot_be_shown_is_one_line_and_no_picture(
    qwb, tmp_path: Path, arguments: tuple[str, ...], words: str
) -> None:  # type: ignore[no-untyped-def]
    target = tmp_path / "out.svg"
    result = qwb("browse", sample_path("plain"), *arguments, "--screenshot", target)
    assert result.exit_code == 1 and words in result.stderr and not target.exists()
    assert len(result.stderr.strip().splitlines()) == 1


def test_a_missing_file_is_an_error(qwb, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    target = tmp_path / "out.svg"
    result = qwb("browse", tmp_path / "gone.qcow2", "--screenshot", target)
    assert result.exit_code == 1 and "no such file" in result.stderr and not target.exists()


def test_a_picture_by_the_views_written_name(qwb, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    target = tmp_path / "out.svg"
    result = qwb(
        sample_path("plain"), "--at", "g:0x3010", "--view", "guest-hex", "--size", "80x24", "--screenshot", target
    )
    assert result.exit_code == 0, result.stderr
    assert "byte&#160;0x8010" in target.read_text()


@pytest.mark.parametrize("by", [signal.SIGTERM, signal.SIGHUP])
def test_a_workbench_that_is_ended_remembers_where_it_was_and_gives_the_terminal_back(
    tmp_path: Path, by: signal.Signals
) -> None:
    ours, theirs = pty.openpty()
    environment = {**os.environ, "XDG_STATE_HOME": str(tmp_path), "TERM": "xterm-256color"}
    command = [sys.executable, "-m", "workbench", str(sample_path("plain")), "--at", "l2:0"]
    process = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env=environment)
    os.close(theirs)
    shown = b""
    try:
        until = time.monotonic() + 60
        while b"0x5000" not in shown and time.monotonic() < until:
            shown += os.read(ours, 1 << 16)
        process.send_signal(by)
        while True:
            try:
                shown += os.read(ours, 1 << 16)
            except OSError:  # the other end is closed
                break
        assert process.wait(60) == 128 + by
    finally:
        process.kill()
        os.close(ours)
    assert b"\x1b[?1049l" in shown, "back from the alternate screen"
    places = json.loads((tmp_path / "qwb" / "state.json").read_text())["places"]
    assert [each["place"]["node"] for each in places.values()] == ["l2:0"]
