"""The README says what is there: its lists are made from the code, its pictures from the program.

`python -m tests.test_readme` writes lists and pictures anew (look at them before you commit).
"""

from __future__ import annotations

import asyncio
import importlib
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from sample_images import copy_out
from tests.oracle.differences import DIFFERENCES, Difference
from workbench.tui.app import Workbench
from workbench.tui.commands import COMMANDS, key_names
from workbench.tui.keymap import Keymap
from workbench.tui.state import State

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
PICTURES = ROOT / "tests/tui/pictures"
SHOTS = {
    "findings": ("lost-l1-entry", ["--view", "findings"]),
    "entries": ("subclusters", ["--at", "l2:0", "--view", "entries"]),
    "host-map": ("data-over-l2", ["--view", "host_map"]),
}
"""Picture name -> sample and options of `qwb browse … --screenshot`."""
SIZE = (120, 32)


def keys_table() -> str:
    """The keys of the workbench, by group."""
    lines = ["| key | what it does |", "| --- | --- |"]
    for command in COMMANDS:
        keys = key_names(command.keys).replace("|", "\\|")
        lines.append(f"| `{keys}` | {command.title} |")
    return "\n".join(lines)


def differences_list() -> str:
    """One line a difference."""
    return "\n".join(f"* `{d.command}`: QEMU {d.theirs}; `qwb` {d.ours} — {d.why}." for d in DIFFERENCES)


def between(text: str, name: str) -> str:
    found = re.search(rf"<!-- {name} -->\n(.*?)<!-- /{name} -->", text, re.DOTALL)
    assert found, f"README has no part {name!r}"
    return found.group(1).strip()


def draw(name: str, target: Path) -> None:
    """Make a picture as a user would."""
    if name == "plan":
        asyncio.run(draw_plan(target))
        return
    sample, options = SHOTS[name]
    command = [sys.executable, "-m", "workbench", "browse", f"sample_images/images/{sample}.qcow2", *options]
    with tempfile.TemporaryDirectory() as home:
        environment = {**os.environ, "XDG_STATE_HOME": home, "XDG_CONFIG_HOME": home}
        shot = ["--screenshot", str(target), "--size", "{}x{}".format(*SIZE)]
        subprocess.run([*command, *shot], cwd=ROOT, env=environment, check=True, timeout=60)


async def draw_plan(target: Path) -> None:
    """The plan of a repair: `r` and Enter on a copy of the sample."""
    with tempfile.TemporaryDirectory() as folder:
        image = copy_out("lost-l1-entry", Path(folder))
        app = Workbench((str(image),), keymap=Keymap(), memory=State(Path(folder) / "state.json"), auto_check=True)
        async with app.run_test(size=SIZE) as pilot:
            for key in ("", "r", "enter"):
                if key:
                    await pilot.press(key)
                for _ in range(3):
                    await pilot.pause()
                    await app.settled()
            target.write_text(app.export_screenshot(title="qwb"), encoding="utf-8")
            for screen in app.browsers:
                screen.session.close()


def shown_text(svg: str) -> list[str]:
    """The words of a picture, without the colours and the names that Rich makes up for its styles."""
    return [re.sub(r"<[^>]+>", "", part) for part in re.findall(r"<text.*?</text>", svg, re.DOTALL)]


def test_the_table_of_keys_is_that_of_the_workbench() -> None:
    assert between(README.read_text(), "keys") == keys_table()


def test_the_list_of_differences_is_the_one_of_the_tests() -> None:
    assert between(README.read_text(), "differences") == differences_list()


@pytest.mark.parametrize("difference", DIFFERENCES, ids=lambda d: d.ours[:40])
def test_each_deliberate_difference_has_a_test(difference: Difference) -> None:
    file, function = difference.test.split("::")
    module = importlib.import_module(file.removesuffix(".py").replace("/", "."))
    assert callable(getattr(module, function))


@pytest.mark.parametrize("name", [*SHOTS, "plan"])
def test_pictures_show_what_the_program_draws(name: str, tmp_path: Path) -> None:
    draw(name, tmp_path / "new.svg")
    assert shown_text((tmp_path / "new.svg").read_text()) == shown_text((PICTURES / f"{name}.svg").read_text())


def test_what_the_readme_links_to_exists() -> None:
    for target in re.findall(r"\]\(([^)#:]+)\)", README.read_text()):
        assert (ROOT / target).exists(), target


def test_the_commands_at_the_top_name_a_shipped_sample_and_the_test_runner() -> None:
    text = README.read_text()
    commands = re.findall(r"<!-- command: \w+ -->\n```sh\n(.*?)\n```", text)
    assert len(commands) == 2
    sample = commands[0].split()[-1]
    assert (ROOT / sample).is_file() and commands[0].split()[-2].endswith("/qwb")
    assert "'.[test]'" in commands[1] and "-m pytest" in commands[1]


def rewrite() -> None:
    """Bring README lists and pictures up to date."""
    text = README.read_text()
    for name, content in (("keys", keys_table()), ("differences", differences_list())):
        part = f"<!-- {name} -->\n{content}\n<!-- /{name} -->"
        text = re.sub(rf"<!-- {name} -->\n.*?<!-- /{name} -->", lambda _, part=part: part, text, flags=re.DOTALL)
    README.write_text(text)
    PICTURES.mkdir(exist_ok=True)
    for name in (*SHOTS, "plan"):
        draw(name, PICTURES / f"{name}.svg")


if __name__ == "__main__":
    rewrite()
