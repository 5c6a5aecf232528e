"""Copies of the samples: whole or not at all, one for each run, gone afterwards."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from sample_images import find_sample, sample_path
from workbench.tui import practice as module
from workbench.tui.practice import Practice


def test_a_copy_has_what_the_sample_needs_and_goes_with_the_run() -> None:
    mine = Practice()
    copy = mine.copy_of("backing-chain")
    assert copy.read_bytes() == sample_path("backing-chain").read_bytes()
    assert all((copy.parent / each).exists() for each in find_sample("backing-chain").companions)
    assert mine.holds(str(copy)) and not mine.holds(str(sample_path("backing-chain")))
    mine.close()
    assert not copy.parent.exists() and not mine.holds(str(copy))


def test_asked_for_at_the_same_time_it_is_made_once_and_whole() -> None:
    mine = Practice()
    with ThreadPoolExecutor(8) as threads:
        copies = list(threads.map(lambda _number: mine.copy_of("plain").read_bytes(), range(32)))
    mine.close()
    assert set(copies) == {sample_path("plain").read_bytes()}


def test_half_a_copy_is_not_taken_for_one(monkeypatch: pytest.MonkeyPatch) -> None:
    mine = Practice()
    whole = module.copy_out

    def cut_off(name: str, folder: Path) -> Path:
        whole(name, folder).write_bytes(b"QFI")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "copy_out", cut_off)
    with pytest.raises(OSError, match="No space"):
        mine.copy_of("plain")
    monkeypatch.setattr(module, "copy_out", whole)
    assert mine.copy_of("plain").read_bytes() == sample_path("plain").read_bytes()
    mine.close()
