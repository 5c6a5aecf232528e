"""`qwb info` and `qwb map` against qemu-img: every key that it prints, with the same value, on every base image."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from sample_images.bases import BASES
from sample_images.qemu import source_arguments
from workbench.cli.main import cli

pytestmark = pytest.mark.oracle

OURS_INFO = {"file-size", "opens", "faults", "header", "features", "extensions", "disk-size"}
OURS_MAP = {"compressed", "type"}


def qwb(*arguments: str) -> Any:
    result = CliRunner().invoke(cli, list(arguments))
    assert result.exit_code == 0, (result.output, result.exception)
    return json.loads(result.stdout)


def qemu(*arguments: str) -> Any:
    return json.loads(subprocess.run(arguments, capture_output=True, check=True, text=True).stdout)


def without(value: Any, keys: set[str]) -> Any:
    """`value` without our own keys, at every level; the names of other things never equal them."""
    if isinstance(value, dict):
        return {key: without(each, keys) for key, each in value.items() if key not in keys}
    return [without(each, keys) for each in value] if isinstance(value, list) else value


@pytest.fixture
def image(request: pytest.FixtureRequest, base_images: Any, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The base image, settled on disk: qemu-img looks at allocated blocks, which the kernel may still be placing."""
    path: Path = base_images.get(request.param)
    for each in path.parent.iterdir():
        if each.is_file():
            with open(each, "rb") as file:
                os.fsync(file.fileno())
    monkeypatch.chdir(path.parent)  # where QEMU looks for an external data file
    return path


every_base = pytest.mark.parametrize("image", list(BASES), indirect=True)


@every_base
def test_info_prints_what_qemu_img_prints(image: Path, qemu_img: str) -> None:
    ours = qwb("info", "--json", "--backing-chain", image.name)
    theirs = qemu(qemu_img, "info", "--output=json", "--backing-chain", image.name)
    assert without(ours, OURS_INFO) == theirs
    assert all(each.get("opens", True) for each in ours)


@every_base
def test_info_names_files_like_qemu_img_from_elsewhere(
    image: Path, qemu_img: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if "data-file" in image.parent.name:
        pytest.skip("qemu-img finds a data file only in the working directory")
    monkeypatch.chdir(image.parent.parent)
    name = f"{image.parent.name}/{image.name}"
    assert without(qwb("info", "--json", name), OURS_INFO) == qemu(qemu_img, "info", "--output=json", name)


@every_base
def test_map_prints_what_qemu_img_prints(image: Path, qemu_img: str) -> None:
    base = BASES[image.parent.name]
    source = source_arguments(Path(image.name), base.secret) if base.secret else ["-f", "qcow2", image.name]
    size = qwb("info", "--json", image.name)["virtual-size"]
    for window in ([], [f"--start-offset={size // 3}", f"--max-length={size // 2}"]):
        ours = qwb("map", "--json", *window, image.name)
        theirs = qemu(qemu_img, "map", "--output=json", *window, *map(str, source))
        assert without(ours, OURS_MAP) == theirs
