"""Values of annotated trees in words."""

from __future__ import annotations

import pytest

from workbench.render.tree import number_text


@pytest.mark.parametrize(
    ("name", "value", "unit", "words"),
    [
        ("date_seconds", 1700003600, "seconds", "1700003600 (2023-11-14 23:13:20 UTC)"),
        ("vm_clock", 3_661_500_000_000, "nanoseconds", "3661500000000 (01:01:01.500)"),
        ("vm_clock", 0, "nanoseconds", "0 nanoseconds"),
        ("l1_size", 1, "entries", "1 entry"),
    ],
)
def test_numbers_are_said_in_the_words_of_their_field(name: str, value: int, unit: str, words: str) -> None:
    assert number_text(name, value, unit) == words
