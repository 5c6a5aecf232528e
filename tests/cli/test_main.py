"""The command group: lazy imports, errors as one line, exit codes, completion."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from sample_images import sample_path
from workbench import __version__

PLAIN = str(sample_path("plain"))


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "workbench", *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
        timeout=60,
        check=False,
    )


def imported_by(*arguments: str) -> set[str]:
    """Top-level modules that a command imports."""
    code = (
        "import sys\nfrom workbench.cli.main import main\ntry:\n    main(sys.argv[1:])\nexcept SystemExit: pass\n"
        "print('\\n'.join(sorted({m.partition('.')[0] for m in sys.modules})), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True)
    return set(done.stderr.split())


@pytest.mark.parametrize("arguments", [("info", PLAIN), ("info", "--json", PLAIN), ("--help",), ("samples",)])
def test_light_commands_import_neither_numpy_nor_textual(arguments: tuple[str, ...]) -> None:
    assert not {"numpy", "textual", "cryptography", "zstandard"} & imported_by(*arguments)


def test_reading_commands_do_not_import_textual() -> None:
    for command in ("map", "dump"):
        assert "textual" not in imported_by(command, PLAIN)


def test_version_is_the_packages() -> None:
    assert run("--version").stdout == f"qwb {__version__}\n"


def test_help_lists_the_commands_without_importing_them() -> None:
    text = run("--help").stdout
    assert all(name in text for name in ("info", "map", "dump", "explain", "samples"))


def test_every_listed_command_has_help(qwb) -> None:  # type: ignore[no-untyped-def]
    import click

    from workbench.cli.main import cli

    for name in cli.list_commands(click.Context(cli)):
        result = qwb(name, "--help")
        assert result.exit_code == 0 and "--debug" in result.output, name


def test_unknown_command_is_one_line_with_a_suggestion() -> None:
    done = run("inof", PLAIN)
    assert done.returncode == 1 and "did you mean `qwb info`?" in done.stderr and done.stderr.count("\n") == 1


def test_wrong_usage_is_exit_1_because_2_means_corrupt() -> None:
    for arguments in (("info",), ("info", "--nonsense", PLAIN), ("map", PLAIN, "-s", "x")):
        done = run(*arguments)
        assert done.returncode == 1 and done.stderr.startswith("qwb: ") and done.stderr.count("\n") == 1


def test_missing_file_is_one_line(tmp_path: Path) -> None:
    for command in ("info", "map", "dump"):
        done = run(command, str(tmp_path / "none.qcow2"))
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr.startswith(f"qwb: {tmp_path}/none.qcow2: ") and done.stderr.count("\n") == 1


def test_debug_shows_the_traceback(tmp_path: Path) -> None:
    assert "Traceback" in run("info", "--debug", str(tmp_path / "none")).stderr


@pytest.mark.parametrize("kind", ["folder", "fifo", "empty", "text"])
def test_what_is_no_image_is_refused_in_one_line(kind: str, tmp_path: Path) -> None:
    path = tmp_path / kind
    if kind == "folder":
        path.mkdir()
    elif kind == "fifo":
        os.mkfifo(path)
    else:
        path.write_bytes(b"" if kind == "empty" else b"just some text\n" * 99)
    for command in ("info", "map", "dump"):
        done = run(command, str(path))
        assert done.returncode == 1 and done.stderr.startswith("qwb: ") and done.stderr.count("\n") == 1


def test_closed_pipe_ends_quietly() -> None:
    """`qwb dump … | head -1`: no traceback, no complaint."""
    with subprocess.Popen(
        [sys.executable, "-m", "workbench", "dump", "--full", PLAIN, "all"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait() in (0, 1)


def test_completion_knows_commands_options_and_files() -> None:
    def complete(words: str, position: str) -> str:
        return run(_QWB_COMPLETE="bash_complete", COMP_WORDS=words, COMP_CWORD=position).stdout

    assert "plain,info" in complete("qwb in", "1")
    assert "plain,--backing-chain" in complete("qwb info --b", "2")
    assert complete("qwb info x", "2").startswith("file,")
    assert complete("qwb ./x", "1").startswith("file,")
    assert "plain,zstd" in complete("qwb samples zst", "2")


def test_completion_scripts_are_printed() -> None:
    for shell in ("bash", "zsh", "fish"):
        done = run(_QWB_COMPLETE=f"{shell}_source")
        # click refuses shells that are too old or missing; what it says then is no traceback
        assert "_QWB_COMPLETE" in done.stdout or "Traceback" not in done.stderr


def test_names_from_the_image_cannot_steer_the_terminal(tmp_path: Path) -> None:
    from sample_images import copy_out

    image = copy_out("snapshots", tmp_path)
    data = image.read_bytes().replace(b"one mebibyte", b"\x1b[31mevil\xff\n\x07")
    image.write_bytes(data)
    for arguments in (("info",), ("dump",)):
        out = run(*arguments, str(image))
        assert out.returncode == 0 and "\x1b" not in out.stdout and "\x07" not in out.stdout
        assert "\\x1b[31mevil" in out.stdout
