"""Corrupted copies of the samples: the reading commands end with 0 or 1, raise nothing and change nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.campaigns.read_corrupted import commands_for, damaged_copy


@pytest.mark.parametrize("seed", range(1000, 1060))
def test_reading_commands_survive(seed: int, qwb, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    image, damage = damaged_copy(seed, tmp_path)
    before = (image.read_bytes(), image.stat().st_mtime_ns)
    for arguments in commands_for(seed, image):
        result = qwb(*arguments)
        assert result.exit_code in (0, 1), damage
        if result.exit_code:
            assert result.stderr.startswith("qwb: "), damage
    assert (image.read_bytes(), image.stat().st_mtime_ns) == before
