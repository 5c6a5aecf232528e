"""`qwb bitmap`, `bench` and `amend` on the command line."""

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


def image(path: Path, size: int) -> Path:
    create_file(str(path), CreateOptions(size))
    return path


def write(path: Path, *places: int) -> None:
    with Image.open(path, writable=True) as disk:
        for at in places:
            disk.write(at, b"x" * 512)


def test_bitmaps_are_listed_with_what_is_dirty(qwb: Run, tmp_path: Path) -> None:
    disk = image(tmp_path / "a.qcow2", 16 * C)
    assert qwb("bitmap", "--list", disk).stdout == ""
    assert qwb("bitmap", "--add", disk, "one").exit_code == 0
    assert qwb("bitmap", "--add", "--disable", "-g", "4k", disk, "two").exit_code == 0
    write(disk, 0, C, 5 * C)
    lines = [line.split() for line in qwb("bitmap", "--list", disk).stdout.splitlines()]
    assert lines[1] == ["64", "KiB", "recording", "192", "KiB", "2", "128", "KiB", "one"]
    assert lines[2] == ["4", "KiB", "disabled", "0", "B", "0", "64", "KiB", "two"]
    assert qwb("bitmap", "--list", disk, "one").stdout == "0x0 0x20000\n0x50000 0x10000\n"
    said = json.loads(qwb("bitmap", "--list", "--json", disk, "one").stdout)
    assert (said["schema"], said["virtual-size"]) == (1, 16 * C)
    assert said["bitmaps"] == [
        {
            "name": "one",
            "granularity": C,
            "flags": ["auto"],
            "stored": 2 * C,
            "dirty-bytes": 3 * C,
            "dirty": [{"start": 0, "length": 2 * C}, {"start": 5 * C, "length": C}],
        }
    ]


def test_changing_bitmaps_with_json_tells_what_there_is_now(qwb: Run, tmp_path: Path) -> None:
    disk = image(tmp_path / "a.qcow2", 16 * C)
    said = json.loads(qwb("bitmap", "--json", "--add", "--disable", disk, "one").stdout)
    assert [(each["name"], each["flags"], each["dirty"]) for each in said["bitmaps"]] == [("one", [], [])]
    assert json.loads(qwb("bitmap", "--json", "--remove-all", disk).stdout)["bitmaps"] == []


def test_actions_are_done_in_the_order_in_which_they_are_given(qwb: Run, tmp_path: Path) -> None:
    disk = image(tmp_path / "a.qcow2", 16 * C)

    def flags(*words: str) -> list[str]:
        assert qwb("bitmap", *words, disk, "one").exit_code == 0
        found: list[str] = json.loads(qwb("bitmap", "--list", "--json", disk).stdout)["bitmaps"][0]["flags"]
        return found

    assert flags("--add", "--disable", "--enable") == ["auto"]
    assert flags("--enable", "--disable") == []
    assert flags("--enable", "--disable", "--enable") == ["auto"]
    assert flags("--disable", "--remove", "--add") == ["auto"]
    assert qwb("bitmap", "--remove", "--remove", disk, "one").exit_code == 1


def test_a_bitmap_that_was_not_saved_says_so(qwb: Run, tmp_path: Path) -> None:
    disk = image(tmp_path / "a.qcow2", 16 * C)
    assert qwb("bitmap", "--add", disk, "one").exit_code == 0
    with Image.open(disk, writable=True) as held:
        held.write(0, b"x")
        held.flush()
        (tmp_path / "cut.qcow2").write_bytes(disk.read_bytes())
    cut = tmp_path / "cut.qcow2"
    assert "inconsistent" in qwb("bitmap", "--list", cut).stdout
    listed = qwb("bitmap", "--list", cut, "one")
    assert (listed.exit_code, listed.stdout) == (1, "") and "not saved properly" in listed.stderr
    assert "dirty" not in json.loads(qwb("bitmap", "--list", "--json", cut).stdout)["bitmaps"][0]
    refused = qwb("bitmap", "--clear", cut, "one")
    assert refused.exit_code == 1 and "it can only be removed" in refused.stderr
    assert qwb("bitmap", "--remove", cut, "one").exit_code == 0


def test_bitmaps_of_an_encrypted_image_are_changed_with_its_passphrase_and_listed_without(
    qwb: Run, tmp_path: Path
) -> None:
    luks = copy_out("luks", tmp_path)
    (tmp_path / "secret").write_text("open sesame\n")
    assert qwb("bitmap", "--add", luks, "one").exit_code == 1
    assert qwb("bitmap", "--add", "--secret-file", tmp_path / "secret", luks, "one").exit_code == 0
    assert len(qwb("bitmap", "--list", luks).stdout.splitlines()) == 2


def test_names_from_an_image_do_not_steer_the_terminal(qwb: Run, tmp_path: Path) -> None:
    disk = image(tmp_path / "a.qcow2", 16 * C)
    assert qwb("bitmap", "--add", disk, "a\x1b[2Jb").exit_code == 0
    assert "\x1b" not in qwb("bitmap", "--list", disk).stdout
    assert "\x1b" not in qwb("bitmap", "--add", disk, "a\x1b[2Jb").stderr


def test_a_disk_without_a_size_has_no_bitmap(qwb: Run, tmp_path: Path) -> None:
    result = qwb("bitmap", "--add", image(tmp_path / "a.qcow2", 0), "one")
    assert result.exit_code == 1 and "nothing to record" in result.stderr


def test_a_bench_of_writes_changes_the_image_and_one_of_reads_does_not(qwb: Run, tmp_path: Path) -> None:
    disk = image(tmp_path / "a.qcow2", 16 * C)
    before = disk.read_bytes()
    said = json.loads(qwb("bench", "--json", "-c", "5", disk).stdout)
    assert (said["schema"], said["bytes"], said["write"], disk.read_bytes() == before) == (1, 5 * 4096, False, True)
    words = ("-w", "--pattern", "65", "--flush-interval", "2", "-d", "1", "-c", "4", "-S", "64k")
    said = json.loads(qwb("bench", "--json", *words, disk).stdout)
    assert (said["flushes"], said["step-size"]) == (2, C)
    with Image.open(disk) as opened:
        assert [opened.read(at * C, 4097) for at in range(5)] == [b"A" * 4096 + b"\0"] * 4 + [bytes(4097)]


def test_a_bench_that_would_hang_or_die_is_refused(qwb: Run, tmp_path: Path) -> None:
    assert qwb("bench", "-d", "0", image(tmp_path / "a.qcow2", C)).exit_code == 1
    assert qwb("bench", image(tmp_path / "none.qcow2", 0)).exit_code == 1


def test_amend_tells_in_json_what_the_options_are_now(qwb: Run, tmp_path: Path) -> None:
    disk = image(tmp_path / "a.qcow2", 16 * C)
    words = ("-o", "refcount_bits=8,lazy_refcounts=on", "-o", "size=2M")
    said = json.loads(qwb("amend", "--json", *words, disk).stdout)
    data = said["format-specific"]["data"]
    assert (said["schema"], said["virtual-size"]) == (1, 2 << 20)
    assert (data["compat"], data["refcount-bits"], data["lazy-refcounts"]) == ("1.1", 8, True)
    assert qwb("amend", "-o", "compat=0.10,refcount_bits=16", disk).exit_code == 0
    assert qwb("check", disk).exit_code == 0


def test_amend_says_what_it_does_not_do(qwb: Run, tmp_path: Path) -> None:
    disk = image(tmp_path / "a.qcow2", 16 * C)
    before = disk.read_bytes()

    def refused(*words: object) -> str:
        result = qwb("amend", *words)
        assert result.exit_code == 1
        return str(result.stderr)

    assert "--force" in refused("-o", "size=64k", disk)
    assert "qwb rebase" in refused("-o", "backing_file=x", disk)
    assert "image creation" in refused("-o", "cluster_size=4k", disk)
    assert "encryption not present" in refused("-o", "encrypt.state=active", disk)
    assert "Must specify options" in refused(disk)
    assert disk.read_bytes() == before
    luks = copy_out("luks", tmp_path)
    (tmp_path / "secret").write_text("open sesame\n")
    words = ("-o", "encrypt.state=active,encrypt.new-secret=s", "--secret-file", tmp_path / "secret", luks)
    assert "key slots" in refused(*words)
    assert qwb("amend", "-o", "help").stdout.startswith("Amend options for 'qcow2':")


def test_an_encrypted_image_reads_the_same_after_a_downgrade(qwb: Run, tmp_path: Path) -> None:
    luks = copy_out("luks", tmp_path)
    secret = tmp_path / "secret"
    secret.write_text("open sesame\n")
    with Image.open(luks, writable=True, secret=b"open sesame") as disk:
        disk.write(0, b"x" * (3 * disk.geometry.cluster_size))
        disk.write_zeroes(disk.geometry.cluster_size, disk.geometry.cluster_size)
        before = disk.read(0, disk.size)
    assert qwb("amend", "-o", "compat=0.10", "--secret-file", secret, luks).exit_code == 0
    with Image.open(luks, secret=b"open sesame") as disk:
        assert disk.meta.header.version == 2
        assert disk.read(0, disk.size) == before
