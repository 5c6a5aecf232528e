"""qemu-io's command language on an image in memory."""

from __future__ import annotations

import re

import pytest

from tests.engine.write.kit import fresh
from workbench.engine.qio.session import COMMANDS, OpenOptions, Session
from workbench.engine.qio.text import Refused, number, pattern, report, size_text


class Console:
    def __init__(self, **options: object) -> None:
        self.out = ""
        self.err = ""
        self.session = Session(self._print, self._complain, OpenOptions(**options))  # type: ignore[arg-type]
        assert self.session.open("disk", storage=fresh(1 << 20))

    def _print(self, text: str) -> None:
        self.out += text

    def _complain(self, text: str) -> None:
        self.err += text

    def __call__(self, *lines: str) -> str:
        """What the last line printed, times left out."""
        for line in lines:
            self.out, self.err = "", ""
            self.session.run(line)
        return re.sub(r"ops; .*", "ops", self.out)


def test_write_and_read_report_as_qemu_io() -> None:
    io = Console()
    assert io("write -P 0xaa 512 1k") == "wrote 1024/1024 bytes at offset 512\n1 KiB, 1 ops\n"
    assert io("read -P 170 512 1k") == "read 1024/1024 bytes at offset 512\n1 KiB, 1 ops\n"
    assert io("read -v 510 4") == "000001fe:  00 00 aa aa  ....\nread 4/4 bytes at offset 510\n4 bytes, 1 ops\n"
    assert io.session.status == 0


def test_a_pattern_not_found_fails_the_command() -> None:
    io = Console()
    assert io("read -P 1 -s 512 -l 512 0 4k").startswith("Pattern verification failed at offset 512, 512 bytes\n")
    assert io.session.status == 1


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("read 2M 4k", "read failed: Input/output error\n"),
        ("read 0 zz", "Parsing error: non-numeric argument, or extraneous/unrecognized suffix -- zz\n"),
        ("write -P 256 0 1", "256 is not a valid pattern byte\n"),
        ("write -n 0 4k", "-n requires -z to be specified\n"),
        ("write -u 0 4k", "-u requires -z to be specified\n"),
        ("write -z -P 1 0 4k", "Only one of -z, -P, and -s can be specified at the same time\n"),
        ("write -c 1 64k", "1 is not a sector-aligned value for 'offset'\n"),
        ("read 0 3G", "length cannot exceed 2147483136, given 3G\n"),
        ("write -c 4k 64k", "write failed: Invalid argument\n"),
    ],
)
def test_bad_arguments_are_answered_in_qemu_ios_words(line: str, words: str) -> None:
    io = Console()
    assert io(line) == words
    assert io.session.status == 1


def test_unknown_commands_and_counts_go_to_stderr() -> None:
    io = Console()
    io("nonsense")
    assert io.err == 'command "nonsense" not found\n'
    io("read")
    assert io.err == "bad argument count 0 to read, expected at least 2 arguments\n"
    io("read -x 0 1")
    assert io.err == "read: invalid option -- 'x'\n"


def test_map_alloc_length_truncate() -> None:
    io = Console()
    io("write 64k 64k")
    assert io("alloc 0 1M") == "65536/1048576 bytes allocated at offset 0 bytes\n"
    assert io("map") == (
        "64 KiB (0x10000) bytes not allocated at offset 0 bytes (0x0)\n"
        "64 KiB (0x10000) bytes     allocated at offset 64 KiB (0x10000)\n"
        "896 KiB (0xe0000) bytes not allocated at offset 128 KiB (0x20000)\n"
    )
    assert io("truncate 2M", "length") == "2 MiB\n"
    assert io("discard 64k 64k", "alloc 64k 64k") == "65536/65536 bytes allocated at offset 64 KiB\n"  # a zero cluster


def test_reading_only() -> None:
    io = Console(writable=False)
    io("write 0 4k")
    assert io.err == "qemu-io: Block node is read-only\n"


def test_quit_and_aliases() -> None:
    io = Console()
    assert io("w -q 0 4k") == ""
    assert io("l") == "1 MiB\n"
    io("q")
    assert io.session.done


def test_every_command_has_a_usage_line() -> None:
    listing = Console()("help")
    assert all(f"{command.name} " in listing for command in COMMANDS.values())


def test_numbers() -> None:
    assert [number(text) for text in ("0", "4k", "0x10", "1.5M")] == [0, 4096, 16, 1572864]
    assert [pattern(text) for text in ("0", "0xff", "010")] == [0, 255, 8]
    for bad in ("-1", "x", "1e3", ""):
        with pytest.raises((Refused, IndexError)):
            number(bad)
    assert [size_text(each) for each in (0, 512, 1536, 1 << 20)] == ["0 bytes", "512 bytes", "1.500 KiB", "1 MiB"]
    assert report("read", 0.5, 0, 8, 8, machine=True) == "8,1,0:00:00.50,16.000,2.000\n"
