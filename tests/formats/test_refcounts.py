"""What can be refcounts, and what was never counted by anybody."""

from __future__ import annotations

import numpy as np
import pytest

from formats.qcow2.refcounts import may_be_refcounts, pack, unpack
from sample_images.kit import noise, text

CLUSTER = 65536


@pytest.mark.parametrize("order", range(7))
@pytest.mark.parametrize("used", [0, 1, 700, 1 << 13])
def test_counts_as_drivers_write_them_can_be(order: int, used: int) -> None:
    values = np.zeros(CLUSTER * 8 >> order, dtype=np.uint64)
    values[:used] = np.random.default_rng(1).integers(1, min(9, 1 << (1 << order)), used)
    assert may_be_refcounts(unpack(pack(values, order), order))


@pytest.mark.parametrize("order", range(3, 7))
def test_noise_cannot(order: int) -> None:
    assert not may_be_refcounts(unpack(noise(CLUSTER, 5), order))


@pytest.mark.parametrize("order", range(4, 7))
def test_text_cannot(order: int) -> None:
    assert not may_be_refcounts(unpack(text(CLUSTER, 5), order))


def test_one_damaged_sector_leaves_a_block_one() -> None:
    data = bytearray(pack(np.ones(32768, np.uint64), 4))
    data[4096:4608] = noise(512, 3)
    assert may_be_refcounts(unpack(bytes(data), 4))
