"""A few power cuts and write faults; the campaigns in tests/campaigns look at many more."""

from __future__ import annotations

import errno
import random

import pytest

from tests.campaigns import write_faults, write_powercut
from tests.campaigns.write_kit import SHAPES


@pytest.mark.parametrize("shape", SHAPES)
def test_every_crash_state_is_sound_and_keeps_what_was_flushed(shape: str) -> None:
    rng = random.Random(f"cut {shape}")
    tally = write_powercut.Tally()
    write_powercut.judge(write_powercut.record(shape, rng, 20), rng, 1, tally, limit=90)
    assert tally.failures == []
    assert tally.states > 10


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("sticky", [False, True])
def test_a_failing_write_corrupts_nothing(shape: str, sticky: bool) -> None:
    for at in range(0, 24, 3):
        met, _, wrong = write_faults.run_with_fault(
            shape, 7, 16, at, code=errno.ENOSPC, sticky=sticky, partial=512, on=write_faults.WRITES
        )
        assert wrong is None, f"fault at {at}: {wrong}"
        if not met:
            break


def test_after_a_failed_flush_no_later_one_succeeds() -> None:
    for at in range(3):
        _, _, wrong = write_faults.run_with_fault(
            "4k", 3, 20, at, code=errno.EIO, sticky=False, partial=0, on=(write_faults.OpKind.FLUSH,)
        )
        assert wrong is None
