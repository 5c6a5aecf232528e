"""`qwb create`, `io`, `resize` and `snapshot` on the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from workbench.cli.main import cli


def qwb(*words: object, text: str | None = None) -> tuple[int, str]:
    """(exit code, stdout and stderr) of a command."""
    done = CliRunner().invoke(cli, [str(word) for word in words], input=text)
    return done.exit_code, done.output


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "disk.qcow2"
    code, out = qwb("create", path, "1M")
    assert code == 0 and out.startswith(f"Formatting '{path}', fmt=qcow2 cluster_size=65536 extended_l2=off")
    return path


def test_create_takes_qemu_imgs_options(tmp_path: Path) -> None:
    base, top = tmp_path / "base.qcow2", tmp_path / "top.qcow2"
    assert qwb("create", "-q", "-o", "cluster_size=4k,compat=0.10", base, "3M") == (0, "")
    code, out = qwb("create", "-b", "base.qcow2", "-F", "qcow2", top)
    assert code == 0 and "size=3145728" in out and "backing_fmt=qcow2" in out
    assert qwb("create", "-b", "missing.qcow2", "-F", "qcow2", tmp_path / "no.qcow2", "1M")[0] == 1
    assert not (tmp_path / "no.qcow2").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["-o", "colour=red"], "unknown create option 'colour'"),
        (["-o", "cluster_size=3k"], "Cluster size must be a power of two"),
        (["-o", "compat=7"], "makes no sense"),
        (["-f", "raw"], "only qcow2"),
    ],
)
def test_create_refuses_in_one_line(tmp_path: Path, words: list[str], said: str) -> None:
    code, out = qwb("create", *words, tmp_path / "x.qcow2", "1M")
    assert code == 1 and said in out and out.count("\n") <= 2
    assert not (tmp_path / "x.qcow2").exists()


def test_io_runs_commands_and_says_with_its_exit_code_whether_they_held(image: Path) -> None:
    code, out = qwb("io", "-c", "write -P 7 0 64k", "-c", "read -P 7 0 64k", image)
    assert code == 0 and out.count("65536/65536 bytes at offset 0") == 2
    code, out = qwb("io", "-r", "-c", "read -P 8 0 64k", image)
    assert code == 1 and "Pattern verification failed at offset 0, 65536 bytes" in out


def test_io_reads_commands_from_standard_input(image: Path) -> None:
    code, out = qwb("io", image, text="write -q 0 4k\nlength\nquit\nlength\n")
    assert code == 0 and out == "qemu-io> qemu-io> 1 MiB\nqemu-io> "


def test_io_refuses_what_cannot_be_opened(tmp_path: Path, image: Path) -> None:
    code, out = qwb("io", "-c", "length", tmp_path / "none.qcow2")
    assert code == 1 and "No such file or directory" in out
    code, out = qwb("io", "-o", "l2-cache-entry-size=100", "-c", "length", image)
    assert code == 1 and "power of two" in out


def test_resize_shrinks_only_when_told(image: Path) -> None:
    assert qwb("resize", image, "+1M") == (0, "Image resized.\n")
    code, out = qwb("resize", image, "512k")
    assert code == 1 and "--shrink" in out
    code, out = qwb("resize", "--json", "--shrink", image, "512k")
    assert json.loads(out)["virtual-size"] == 512 << 10


def test_snapshots_are_listed_created_applied_and_deleted(image: Path) -> None:
    assert qwb("snapshot", image) == (0, "")
    assert qwb("snapshot", "-c", "before", image)[0] == 0
    qwb("io", "-c", "write -P 9 0 4k", image)
    code, out = qwb("snapshot", image)
    assert code == 0 and "before" in out and out.startswith("Snapshot list:\n")
    assert json.loads(qwb("snapshot", "--json", image)[1])[0]["name"] == "before"
    assert qwb("snapshot", "-a", "before", image)[0] == 0
    assert qwb("io", "-c", "read -P 0 0 4k", image)[0] == 0
    assert qwb("snapshot", "-d", "1", image)[0] == 0
    code, out = qwb("snapshot", "-d", "1", image)
    assert code == 1 and "no snapshot" in out
