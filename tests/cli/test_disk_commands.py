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
Sample = Callable[[str], Path]


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


def test_measure_tells_in_json_what_it_measured(qwb: Run, tmp_path: Path) -> None:
    disk = image(tmp_path / "a.qcow2", 4 * C, (C, b"a" * 512))
    said = json.loads(qwb("measure", "--json", "-O", "qcow2", disk).stdout)
    expected = {"schema": 1, "filename": str(disk), "format": "qcow2", "bitmaps": 0, "required": 6 * C}
    assert said == {**expected, "fully-allocated": 9 * C}
    said = json.loads(qwb("measure", "--json", "--size", "1M").stdout)
    assert said == {"schema": 1, "format": "raw", "required": 1 << 20, "fully-allocated": 1 << 20}


def test_measuring_a_disk_that_is_encrypted_or_will_be_needs_no_passphrase(qwb: Run, tmp_path: Path) -> None:
    assert qwb("measure", "-O", "qcow2", copy_out("luks", tmp_path)).exit_code == 0
    plain = qwb("measure", "--size", "1M", "-O", "qcow2").stdout
    assert qwb("measure", "--size", "1M", "-O", "qcow2", "-o", "encrypt.format=luks").stdout != plain


def test_an_overlay_is_measured_with_what_lies_under_it_or_without(qwb: Run, tmp_path: Path) -> None:
    image(tmp_path / "base.qcow2", 4 * C, (0, b"b" * C))
    create_file(str(tmp_path / "top.qcow2"), CreateOptions(4 * C, backing_file="base.qcow2", backing_format="qcow2"))
    words = ("measure", "--json", "-O", "qcow2", tmp_path / "top.qcow2")
    with_base, alone = (json.loads(qwb(*words, *more).stdout)["required"] for more in ((), ("--no-backing",)))
    assert with_base == alone + C


def test_dd_copies_a_window_and_tells_it_in_json(qwb: Run, tmp_path: Path) -> None:
    disk, out = image(tmp_path / "a.qcow2", 4 * C, (C, b"a" * 512)), tmp_path / "out.raw"
    said = json.loads(qwb("dd", "--json", f"if={disk}", f"of={out}", "bs=1k", "skip=64", "count=65").stdout)
    assert out.read_bytes() == b"a" * 512 + bytes(512)
    assert (said["schema"], said["format"], said["virtual-size"]) == (1, "raw", 1024)
    assert (said["start"], said["bytes"], said["source"]["virtual-size"]) == (C, 1024, 4 * C)


def test_dd_never_writes_over_a_file_that_it_reads(qwb: Run, tmp_path: Path) -> None:
    base = image(tmp_path / "base.qcow2", 4 * C, (0, b"b" * C))
    top = tmp_path / "top.qcow2"
    create_file(str(top), CreateOptions(4 * C, backing_file="base.qcow2", backing_format="qcow2"))
    (tmp_path / "link").symlink_to("base.qcow2")
    (tmp_path / "hard").hardlink_to(base)
    before = {each.name: each.read_bytes() for each in tmp_path.iterdir()}
    for target in (top, base, tmp_path / "link", tmp_path / "hard", tmp_path / ".." / tmp_path.name / "base.qcow2"):
        for more in ((), ("-O", "qcow2"), ("--no-backing",)):
            result = qwb("dd", *more, f"if={top}", f"of={target}")
            assert result.exit_code == 1 and "is read by this very copy" in result.stderr, (target, more)
    assert {each.name: each.read_bytes() for each in tmp_path.iterdir()} == before


def test_dd_leaves_what_was_there_when_the_input_cannot_be_read(qwb: Run, sample: Sample, tmp_path: Path) -> None:
    broken, out = sample("compressed-garbage"), tmp_path / "out.raw"
    out.write_bytes(b"old")
    assert qwb("dd", f"if={broken}", f"of={out}").exit_code == 1
    assert qwb("dd", f"if={tmp_path / 'missing'}", f"of={out}").exit_code == 1
    assert out.read_bytes() == b"old" and not list(tmp_path.glob(".*.partial"))


def test_dd_needs_the_passphrase_before_it_touches_its_output(qwb: Run, tmp_path: Path) -> None:
    luks, out = copy_out("luks", tmp_path), tmp_path / "out.raw"
    out.write_bytes(b"old")
    assert qwb("dd", f"if={luks}", f"of={out}").exit_code == 1 and out.read_bytes() == b"old"
    (tmp_path / "secret").write_text("open sesame\n")
    assert qwb("dd", "--secret-file", tmp_path / "secret", f"if={luks}", f"of={out}", "bs=4k", "count=2").exit_code == 0
    assert len(out.read_bytes()) == 8192
