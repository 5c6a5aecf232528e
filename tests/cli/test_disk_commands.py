"""`qwb compare`, `measure` and `dd` on the command line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from click.testing import Result

from sample_images import copy_out
from workbench.engine.create import CreateOptions, create_file
from workbench.engine.image import Image

C = 1 << 16
Run = Callable[..., Result]


def image(path: Path, size: int, *writes: tuple[int, bytes]) -> Path:
    create_file(str(path), CreateOptions(size))
    with Image.open(path, writable=True) as disk:
        for offset, data in writes:
            disk.write(offset, data)
    return path


def test_compare_tells_both_disks_and_the_difference_in_json(qwb: Run, tmp_path: Path) -> None:
    image(tmp_path / "a.qcow2", 4 * C, (C, b"a" * 512))
    (tmp_path / "b.raw").write_bytes(bytes(5 * C))
    result = qwb("compare", "--json", tmp_path / "a.qcow2", tmp_path / "b.raw")
    said = json.loads(result.stdout)
    assert result.exit_code == 1
    assert (said["schema"], said["outcome"], said["offset"], said["identical"]) == (1, "content", C, False)
    assert [(each["format"], each["virtual-size"]) for each in said["images"]] == [("qcow2", 4 * C), ("raw", 5 * C)]


def test_each_disk_can_have_a_passphrase_of_its_own(qwb: Run, tmp_path: Path) -> None:
    luks = copy_out("luks", tmp_path)
    (tmp_path / "right").write_text("open sesame\n")
    (tmp_path / "wrong").write_text("nonsense")
    blank = image(tmp_path / "blank.qcow2", C)

    def code(*secrets: str) -> int:
        options = [word for name in secrets for word in ("--secret-file", tmp_path / name)]
        return qwb("compare", *options, luks, luks).exit_code

    assert (code("right"), code("right", "right"), code("right", "wrong"), code("wrong"), code()) == (0, 0, 2, 2, 2)
    assert qwb("compare", "--secret-file", tmp_path / "right", luks, blank).exit_code == 1


def test_image_options_are_refused_with_a_word(qwb: Run, tmp_path: Path) -> None:
    for words in (["--image-opts"], ["--object", "secret,id=a,data=b"]):
        result = qwb("compare", *words, tmp_path / "a", tmp_path / "b")
        assert result.exit_code != 0 and "--secret-file" in result.stderr
