"""For the command tests: run a command in this process, with its exit code, output and errors."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from workbench.cli.main import cli

Run = Callable[..., Result]


@pytest.fixture
def qwb() -> Run:
    """`qwb("info", path)`: bugs are raised instead of being turned into an exit code."""

    def run(*arguments: object, input: str | None = None) -> Result:
        result = CliRunner().invoke(cli, [str(each) for each in arguments], input=input)
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result

    return run


@pytest.fixture
def sample(tmp_path: Path) -> Callable[[str], Path]:
    """A sample image copied out, its companions beside it."""
    from sample_images import copy_out

    return lambda name: copy_out(name, tmp_path)
