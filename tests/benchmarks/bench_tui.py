"""The workbench's budgets on a 1 TiB preallocated image: first paint, memory, frames while scrolling, every key's wait.

python -m tests.benchmarks.bench_tui [--folder FOLDER] [--size 1T]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import pty
import select
import statistics
import struct
import subprocess
import sys
import tempfile
import termios
import time
from fcntl import ioctl
from pathlib import Path

from workbench.tui.app import Workbench
from workbench.tui.keymap import Keymap
from workbench.tui.place import View
from workbench.tui.state import State
from workbench.tui.widgets.rows import Rows

PAINTED = b"cluster_bits"
"""Stands in the fields view: when it has reached the terminal, header and structures are painted."""


def build(folder: Path, size: str) -> Path:
    """A preallocated image of `size`, sparse on the file system."""
    path = folder / "big.qcow2"
    if not path.exists():
        subprocess.run(
            ["qemu-img", "create", "-q", "-f", "qcow2", "-o", "preallocation=metadata", path, size], check=True
        )
    return path


def first_paint(image: Path, folder: Path) -> tuple[float, float]:
    """(seconds from process start until the fields are on the terminal, peak RSS in MiB), in a real pseudo-terminal.

    With bytecode, which an installed copy has: here the first start writes it.
    """
    environment = {
        **{name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"},
        "XDG_STATE_HOME": str(folder),
        "XDG_CONFIG_HOME": str(folder),
        "TERM": "xterm-256color",
        "COLORTERM": "truecolor",
    }
    leader, follower = pty.openpty()
    ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 120, 0, 0))
    begin = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-m", "workbench", "browse", str(image)],
        stdin=follower,
        stdout=follower,
        stderr=follower,
        env=environment,
        start_new_session=True,
    )
    os.close(follower)
    seen, painted = b"", 0.0
    while time.perf_counter() - begin < 20 and not painted:
        if select.select([leader], [], [], 0.1)[0]:
            seen += os.read(leader, 1 << 16)
            if PAINTED in seen:
                painted = time.perf_counter() - begin
    time.sleep(0.3)
    while select.select([leader], [], [], 0)[0]:
        os.read(leader, 1 << 16)
    status = Path(f"/proc/{process.pid}/status").read_text()
    peak = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM")) / 1024
    process.kill()
    process.wait()
    os.close(leader)
    return painted, peak


async def scrolling(image: Path, folder: Path, rows: int = 10_000) -> dict[str, dict[str, float]]:
    """Milliseconds per frame (all lines of the pane drawn anew) while paging through `rows` rows, and per key press."""
    app = Workbench((str(image),), keymap=Keymap(), memory=State(folder / "state.json"), auto_check=False)
    figures: dict[str, dict[str, float]] = {}
    async with app.run_test(size=(120, 40)) as pilot:
        await pilot.pause()
        await app.settled()
        screen = app.front
        assert screen is not None
        for view, address in ((View.HEX, "l2:0"), (View.ENTRIES, "refcount-block:0")):
            screen.fold = False
            screen.jump(address, view=view)
            await app.settled()
            await pilot.pause()
            widget = screen.current_view()
            assert isinstance(widget, Rows)
            widget.focus()
            await pilot.pause()
            frames: list[float] = []
            widget.top = 0
            before = resident()
            count = min(rows, widget.row_count())
            while widget.top < min(count, widget.max_top()) - 1:
                widget.top += max(1, min(7, widget.max_top() - widget.top))
                begin = time.perf_counter()
                for line in range(widget.size.height):
                    widget.render_line(line)
                frames.append((time.perf_counter() - begin) * 1000)
                await asyncio.sleep(0)
            keys = []
            for key in ("pageup", "up", "down", "pagedown", "end", "home", "down", "down"):
                begin = time.perf_counter()
                app.simulate_key(key)
                await asyncio.sleep(0)
                keys.append((time.perf_counter() - begin) * 1000)
                await app.settled(1)
            figures[view.value] = {
                "grown_mib": resident() - before,
                "rows": count, "frames": len(frames), "median_ms": statistics.median(frames), "p99_ms": sorted(frames)[int(len(frames) * 0.99) - 1],
                "max_ms": max(frames), "slowest_key_ms": max(keys),
            }  # fmt: skip
        screen.session.close()
    return figures


def resident() -> float:
    """MiB that the process holds now."""
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS")) / 1024


TOUR = [
    "tab",
    "down",
    "down",
    "2",
    "pagedown",
    "end",
    "home",
    "3",
    "4",
    "plus",
    "plus",
    "minus",
    "5",
    "down",
    "6",
    "down",
    "7",
    "plus",
    "right",
    "minus",
    "8",
    "9",
    "0",
    "1",
    "e",
    "e",
    "f10",
    "f10",
    "f1",
    "escape",
    "ctrl+p",
    "escape",
    "g",
    "escape",
    "slash",
    "escape",
    "b",
    "b",
    "m",
    "m",
    "y",
    "escape",
    "x",
    "escape",
    "f",
    "escape",
    "z",
    "c",
    "r",
    "escape",
    "u",
    "escape",
]
THEMES = ["T"] * 8


async def key_waits(image: Path, folder: Path, keys: list[str]) -> list[tuple[float, str]]:
    """How long the interface stood still after each key, worst first: (milliseconds, key)."""
    app = Workbench((str(image),), keymap=Keymap(), memory=State(folder / "state.json"), remember=False)
    waits: list[tuple[float, str]] = []
    async with app.run_test(size=(120, 40)) as pilot:
        await pilot.pause()
        await app.settled()
        app.pauses.begin(app)
        longest = 0.0

        async def heart() -> None:
            nonlocal longest
            while True:
                begin = time.perf_counter()
                await asyncio.sleep(0.002)
                longest = max(longest, time.perf_counter() - begin - 0.002)

        beating = asyncio.create_task(heart())
        for key in keys:
            await asyncio.sleep(0.2)
            longest = 0.0
            app.simulate_key(key)
            await asyncio.sleep(0.1)
            await app.settled(1)
            await asyncio.sleep(0.2)
            waits.append((longest * 1000, key))
        beating.cancel()
        for screen in app.browsers:
            screen.session.close()
    return sorted(waits, reverse=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--size", default="1T")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.folder or Path(scratch)
        image = build(folder, options.size)
        first_paint(image, Path(scratch))  # writes bytecode, warms the file cache
        runs = [first_paint(image, Path(scratch)) for _ in range(5)]
        print(f"first paint  {statistics.median(run[0] for run in runs):.2f} s   (budget 0.80 s)")
        print(f"peak RSS     {max(run[1] for run in runs):.0f} MiB  (budget 200 MiB)")
        for view, figures in asyncio.run(scrolling(image, Path(scratch))).items():
            print(
                f"{view:<12} {json.dumps({key: round(value, 1) for key, value in figures.items()})}   (budget 50 ms a frame)"
            )
        for name, keys in (("keys", TOUR), ("themes", THEMES)):
            waits = asyncio.run(key_waits(image, Path(scratch), keys))
            over = sum(wait > 100 for wait, _ in waits)
            worst = ", ".join(f"{key} {wait:.0f}" for wait, key in waits[:6])
            print(f"{name:<12} slowest in ms: {worst}; {over} of {len(waits)} over 100 ms")


if __name__ == "__main__":
    main()
