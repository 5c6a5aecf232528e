"""Tables as arrays."""

from __future__ import annotations

import numpy as np

from formats.qcow2.tables import distinct


def test_distinct_values_are_in_order_and_each_once() -> None:
    values = np.array([5, 1, 5, 1 << 63, 0, 1], dtype=np.uint64)
    assert distinct(values).tolist() == [0, 1, 5, 1 << 63]
    assert distinct(values).dtype == np.uint64
    assert distinct(values[:0]).size == 0
