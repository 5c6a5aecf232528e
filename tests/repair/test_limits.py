"""A snapshot table over a limit keeps what is under it."""

from __future__ import annotations

import struct

import pytest

from formats.qcow2 import limits
from tests.check.images import COPIED, Tiny
from workbench.check import check
from workbench.engine.metadata import load_metadata
from workbench.repair.plan import make_plan
from workbench.storage.memory import MemoryStorage

ENTRY = 1 << 12
"""Bytes of one entry."""


def image(number: int) -> tuple[bytes, int]:
    """An image with `number` snapshots of 4 KiB entries, all on an empty L1 table of their own; and its table's offset."""
    tiny = Tiny(data_clusters=1)
    data = tiny.build()
    clusters = -(-number * ENTRY // tiny.size)
    l1, table = len(data), len(data) + tiny.size
    data += bytes(tiny.size * (1 + clusters))
    for index in range(number):
        name = f"snapshot {index}".encode().ljust(ENTRY - 40 - 16 - 2, b"x")
        fixed = struct.pack(">QIHHIIQII", l1, 1, 2, len(name), 1, 0, 0, 0, 16)
        data[table + index * ENTRY : table + (index + 1) * ENTRY] = (
            fixed + struct.pack(">QQ", 0, 8192 * 65536) + b"%02d" % index + name
        )
    data[60:72] = struct.pack(">IQ", number, table)
    for cluster in range(6, len(data) // tiny.size):
        count = number if cluster == 6 else 1
        data[2 * tiny.size + 2 * cluster : 2 * tiny.size + 2 * cluster + 2] = count.to_bytes(2, "big")
    Tiny.put(data, 3 * tiny.size, 4 * tiny.size | COPIED)
    return bytes(data), table


@pytest.mark.parametrize(("under", "over"), [(1, 1), (7, 1), (20, 3)])
def test_a_table_that_is_too_long_keeps_the_snapshots_under_the_limit(
    under: int, over: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, _ = image(under + over)
    monkeypatch.setattr(limits, "MAX_SNAPSHOT_TABLE_SIZE", under * ENTRY + 100)
    storage = MemoryStorage(data)
    found = check(load_metadata(storage))
    assert found.exit_code == 1 and "SNAPSHOT-TABLE-TOO-LARGE" in found.findings.by_code
    plan = make_plan(storage)
    after = load_metadata(plan.overlay)
    assert after.header.nb_snapshots == under and [each.id for each in after.snapshots] == [
        f"{n:02}" for n in range(under)
    ]
    assert plan.accepted and plan.after.openable and not plan.after.corruptions
    assert list(after.l1) == list(load_metadata(storage).l1), "no snapshot's table is linked into the disk"


def test_a_table_within_the_limit_is_left_alone() -> None:
    data, _ = image(3)
    storage = MemoryStorage(data)
    assert check(load_metadata(storage)).exit_code == 0
    assert make_plan(storage).empty
