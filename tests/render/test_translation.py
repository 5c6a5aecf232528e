"""Translations in words: the numbers in them are right, whatever the kind of cluster."""

from __future__ import annotations

import re

import pytest

from sample_images import sample_path
from workbench.engine.explain import Outcome, explain_guest, stored_bytes
from workbench.engine.metadata import load_metadata
from workbench.render.translation import LineSort, translation_lines
from workbench.storage.file import FileStorage

_SUM = re.compile(
    r"(?<![\w&>]) ?(0x[0-9a-f]+|\d+) ([÷+&]) (0x[0-9a-f]+|\d+)(?: × (\d+))?(?: \([^)]*\))? = (0x[0-9a-f]+|\d+)"
)
_SHIFT = re.compile(r"\((0x[0-9a-f]+) >> (\d+)\) & (0x[0-9a-f]+) = (\d+)")


def _check(line: str) -> int:
    """Do every sum of a line again; how many there were."""
    number = 0
    for match in _SUM.finditer(line):
        left, sign, right, times, result = match.groups()
        value, other = int(left, 0), int(right, 0) * int(times or 1)
        expected = {"÷": value // max(1, other), "+": value + other, "&": value & other}[sign]
        assert expected == int(result, 0), line
        number += 1
    for value, shift, mask, result in _SHIFT.findall(line):
        assert int(value, 16) >> int(shift) & int(mask, 16) == int(result), line
        number += 1
    return number


@pytest.mark.parametrize(
    "name", ["plain", "compressed", "subclusters", "luks", "aes", "data-file", "tiny-clusters", "zstd"]
)
def test_every_sum_comes_out(name: str) -> None:
    storage = FileStorage.open(str(sample_path(name)))
    meta = load_metadata(storage)
    sums = 0
    for at in range(0x10, meta.header.size, max(0x200, meta.header.size // 64)):
        found = explain_guest(meta, at)
        lines = list(translation_lines(meta, found, stored_bytes(meta, found)))
        sums += sum(_check(line.text) for line in lines)
        assert [line.step for line in lines if line.sort is LineSort.STEP] == list(range(len(found.steps)))
    storage.close()
    assert sums > 100


def test_the_bytes_at_the_end_are_those_of_the_file() -> None:
    path = sample_path("plain")
    storage = FileStorage.open(str(path))
    meta = load_metadata(storage)
    found = explain_guest(meta, 0x3FF8)
    assert found.outcome is Outcome.DATA and found.host is not None
    stored = stored_bytes(meta, found)
    assert stored == path.read_bytes()[found.host : found.host + 8], "the next cluster need not be the guest's next one"
    last = list(translation_lines(meta, found, stored))[-1]
    assert last.sort is LineSort.BYTES and stored.hex(" ") in last.text
    assert stored_bytes(meta, explain_guest(meta, meta.header.size)) == b""
    storage.close()


def test_encrypted_and_compressed_bytes_are_called_so() -> None:
    for name, at, words in (("luks", 0x10, "still encrypted"), ("compressed", 0x10, "still compressed")):
        storage = FileStorage.open(str(sample_path(name)))
        meta = load_metadata(storage)
        found = explain_guest(meta, at)
        assert words in list(translation_lines(meta, found, stored_bytes(meta, found)))[-1].text
        storage.close()
