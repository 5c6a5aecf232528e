"""Every command and option that a text of ours names exists: advice that cannot be followed is worse than none."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

import formats
import workbench
from workbench.cli.main import cli

ROOTS = [Path(package.__file__ or "").parent for package in (workbench, formats)]
README = ROOTS[0].parent / "README.md"
QUOTED = re.compile(r"`+(qwb|qemu-img)(?:\s+([^`]*))?`")
OPTION = re.compile(r"(?<![\w-])--[a-z][a-z-]+")
QEMU_IMG = {
    "amend", "bench", "bitmap", "check", "commit", "compare", "convert", "create", "dd", "info", "map", "measure", "rebase",
    "resize", "snapshot",
}  # fmt: skip
OF_OTHERS = {"--output"}
"""Options of qemu-img that texts compare ours with."""


def _texts() -> Iterator[tuple[Path, str]]:
    """Every string of the sources, values inside f-strings as X; neighbours that the source joins are one."""
    for root in ROOTS:
        for path in sorted(root.rglob("*.py")):
            tree = ast.parse(path.read_text())
            inside = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
            for node in ast.walk(tree):
                if isinstance(node, ast.JoinedStr):
                    yield path, "".join(str(p.value) if isinstance(p, ast.Constant) else "X" for p in node.values)
                elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in inside:
                    yield path, node.value


def _commands() -> dict[str, click.Command]:
    context = click.Context(cli)
    return {name: found for name in cli.list_commands(context) if (found := cli.get_command(context, name)) is not None}


def _options(command: click.Command) -> set[str]:
    found = {opt for param in command.params for opt in (*param.opts, *param.secondary_opts)}
    return found | {"-h", "--help"}


def _named() -> Iterator[tuple[str, str, list[str]]]:
    for path, text in [*_texts(), (README, README.read_text())]:
        for program, rest in QUOTED.findall(text):
            yield str(path), program, rest.split("#")[0].split()


def test_commands_named_in_texts_exist_with_their_options() -> None:
    commands, wrong, seen = _commands(), [], 0
    for path, program, words in _named():
        if not words or words[0] == "…":
            continue
        seen += 1
        if program == "qemu-img":
            if words[0] not in QEMU_IMG and not words[0].startswith("-"):
                wrong.append((path, words))
            continue
        if words[0].startswith("-"):
            if words[0] not in {"--help", "-h", "--version"}:
                wrong.append((path, words))
            continue
        if words[0] not in commands:
            if not (words[0].isupper() or "." in words[0] or "/" in words[0]):  # `qwb IMAGE` opens the workbench
                wrong.append((path, words))
            continue
        known = _options(commands[words[0]])
        for word in words[1 : words.index("--") if "--" in words else None]:
            option = word.strip("[](),;").split("=")[0]
            if re.fullmatch(r"-{1,2}[a-z][a-z-]*", option, re.IGNORECASE) and option not in known:
                wrong.append((path, words))
    assert seen > 30
    assert not wrong


def test_options_named_in_texts_exist_somewhere() -> None:
    known = set().union(*map(_options, _commands().values())) | OF_OTHERS | {"--version", "--color"}
    missing = {
        (path.name, option)
        for path, text in _texts()
        for option in OPTION.findall(text)
        if option not in known and "Rows >" not in text
    }
    assert not missing


@pytest.mark.parametrize("wrong", ["`qwb amend`", "`qwb check --repair X`"])
def test_the_test_sees_what_does_not_exist(wrong: str) -> None:
    words = QUOTED.findall(wrong)[0][1].split()
    commands = _commands()
    assert words[0] not in commands or "--repair" not in _options(commands[words[0]])
