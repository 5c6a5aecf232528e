"""Sizes for people: short, and never more than there is."""

from __future__ import annotations

import pytest

from workbench.units import format_size


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1 KiB"),
        (65_536, "64 KiB"),
        (71_168, "69.5 KiB"),
        (0xFFFF0, "1023 KiB"),
        (971 << 29, "485.5 GiB"),
        (972 << 29, "486 GiB"),
        (2047 << 29, "1023.5 GiB"),
        (0x7FE00000000, "7.99 TiB"),
        (8 << 40, "8 TiB"),
    ],
)
def test_sizes_are_exact_for_halves_and_never_rounded_up_to_a_whole(size: int, text: str) -> None:
    assert format_size(size) == text
