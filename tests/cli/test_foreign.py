"""A file that is no qcow2 image: named by every command, changed by none, never copied as a raw disk by a salvage."""

from __future__ import annotations

import gzip
import json
import struct
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from tests.check.images import Tiny
from workbench.cli.main import cli

MBR = bytes(446) + struct.pack("<B3sB3sII", 0x80, b"\0\2\0", 0x83, b"\xff" * 3, 2048, 2048) + bytes(48) + b"\x55\xaa"
QCOW1 = struct.pack(">IIQIIQBBHIQ", 0x514649FB, 1, 0, 0, 0, 1 << 20, 12, 9, 0, 0, 48).ljust(1 << 16, b"\0")
FILES = {
    "gzip": gzip.compress(bytes(Tiny().build()), 1),
    "version 1": QCOW1,
    "HTML": b"<html><body>404</body></html>",
    "byte 4096": bytes(4096) + bytes(Tiny().build()),
    "VirtualBox": bytes(64) + b"\x7f\x10\xda\xbe".ljust(8192, b"\0"),
    "MBR": MBR.ljust(2 << 20, b"\0"),
    "zeros": bytes(1 << 16),
}


def run(*args: object) -> Result:
    return CliRunner().invoke(cli, [str(each) for each in args])


@pytest.mark.parametrize("word", sorted(FILES))
def test_every_command_names_it_and_leaves_it(word: str, tmp_path: Path) -> None:
    path, out = tmp_path / "disk.qcow2", tmp_path / "out.raw"
    path.write_bytes(FILES[word])
    for args in (
        ("check", path),
        ("info", path),
        ("repair", path, "--all", "--yes"),
        ("convert", "--salvage", path, out),
    ):
        done = run(*args)
        assert done.exit_code == 1 and word in done.output, (args, done.output)
    assert path.read_bytes() == FILES[word]
    assert not out.exists()
    report = json.loads(run("check", "--json", path).stdout)
    assert [each["cause"] for each in report["causes"]] == ["NOT-QCOW2"]


@pytest.mark.parametrize("word", ["version 1", "VirtualBox"])
def test_another_disk_format_is_never_taken_for_a_raw_disk(word: str, tmp_path: Path) -> None:
    path, out = tmp_path / "disk.qcow2", tmp_path / "out.raw"
    path.write_bytes(FILES[word])
    for args, code in (
        (("convert", path, out), 1),
        (("measure", path), 1),
        (("dd", f"if={path}", f"of={out}"), 1),
        (("compare", path, path), 2),
    ):
        done = run(*args)
        assert done.exit_code == code and word in done.output, (args, done.output)
    assert not out.exists()
    assert run("compare", "-f", "raw", "-F", "raw", path, path).exit_code == 0


@pytest.mark.parametrize("word", ["gzip", "HTML", "byte 4096"])
def test_where_bytes_count_a_raw_disk_may_look_like_anything(word: str, tmp_path: Path) -> None:
    path, out = tmp_path / "disk.raw", tmp_path / "out.raw"
    path.write_bytes(FILES[word])
    assert run("dd", f"if={path}", f"of={out}").exit_code == 0
    assert run("compare", path, out).exit_code == 0
    assert f"required size: {out.stat().st_size}\n" in run("measure", path).output


def test_a_raw_disk_is_still_copied_as_one(tmp_path: Path) -> None:
    path, out = tmp_path / "disk.raw", tmp_path / "out.raw"
    path.write_bytes(FILES["MBR"])
    assert run("convert", path, out).exit_code == 0
    assert out.read_bytes() == FILES["MBR"]
    out.unlink()
    assert run("convert", "--salvage", "-f", "raw", path, out).exit_code == 0


def test_a_damaged_header_is_no_raw_disk_to_salvage(tmp_path: Path) -> None:
    path, out = tmp_path / "disk.qcow2", tmp_path / "out.raw"
    image = Tiny().build()
    image[:512] = MBR
    path.write_bytes(image)
    done = run("convert", "--salvage", path, out)
    assert done.exit_code == 1 and "qwb repair" in done.output and not out.exists()
    found = json.loads(run("check", "--json", path).stdout)["causes"]
    assert [each["cause"] for each in found] == ["HEADER-DAMAGED"], "it is a damaged image, for a repair to look at"
