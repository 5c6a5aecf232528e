"""Counting on images made byte by byte: each rule alone, and the census' exactness."""

from __future__ import annotations

import numpy as np
import pytest

from tests.check.images import COPIED, Tiny, load
from workbench.check import CheckCancelled, Progress, check
from workbench.check.census import Census
from workbench.check.findings import runs_of
from workbench.check.kinds import DATA, INACTIVE, Owner
from workbench.check.owners import find_owners
from workbench.errors import StorageError
from workbench.storage.memory import MemoryStorage


@pytest.mark.parametrize("cluster_bits", [9, 12, 16, 21])
@pytest.mark.parametrize("order", [3, 4, 5, 6])
def test_a_healthy_image_is_clean_at_every_width(cluster_bits: int, order: int) -> None:
    data = 4 if (1 << cluster_bits) * 8 >> order >= 9 else 0
    result = check(load(Tiny(data, cluster_bits, order).build()))
    assert (result.exit_code, result.corruptions, result.leaks, len(result.findings)) == (0, 0, 0, 0)
    assert result.stats.allocated_clusters == data
    assert result.stats.image_end_offset == (5 + data) << cluster_bits


def test_a_second_mapping_is_low_refcount_and_a_cross_link() -> None:
    tiny = Tiny()
    image = tiny.build()
    tiny.put(image, tiny.entry(1), 5 * tiny.size | COPIED)
    result = check(load(image))
    assert (result.exit_code, result.corruptions, result.leaks) == (2, 1, 1)
    assert {"REFCOUNT-TOO-LOW", "CLUSTER-LEAKED", "DATA-CROSS-LINKED"} <= set(result.findings.by_code)


def test_the_result_is_the_same_in_windows() -> None:
    tiny = Tiny(40, 12)
    image = tiny.build()
    for index, value in (
        (0, 6 * tiny.size | COPIED),
        (7, 3 * tiny.size),
        (9, 1 << 50 | COPIED),
        (11, 0),
        (30, 0x1200 | COPIED),
    ):
        tiny.put(image, tiny.entry(index), value)
    whole = check(load(image))
    for window in (1, 3, 16, 45, 46):
        parts = check(load(image), window=window)
        assert (parts.corruptions, parts.leaks, parts.check_errors) == (whole.corruptions, whole.leaks, 0)
        assert parts.stats == whole.stats
        assert parts.census is None or window > 45


def test_memory_is_two_bytes_per_cluster() -> None:
    census = check(load(Tiny(100, 12).build())).census
    assert census is not None
    assert census.counts.nbytes + census.flags.nbytes == 2 * len(census)


def test_counts_beyond_a_byte_are_exact() -> None:
    census = Census(0, 10, 10, 0xFFFF)
    census.add(np.array([3, 3, 4], dtype=np.int64), 200, DATA)
    census.add_run(0, 10, 300, INACTIVE)
    census.add(np.array([9] * 70_000 + [3], dtype=np.int64), 1, DATA)
    assert census.references(0, 10).tolist() == [300, 300, 300, 701, 500, 300, 300, 300, 300, 70_300]
    assert census.references_at(np.array([9, 0], dtype=np.int64)).tolist() == [70_300, 300]
    clusters, found = census.overflowing()
    assert (clusters.tolist(), found.tolist()) == ([9], [70_300])


def test_runs_of_neighbours_are_joined_and_crowded_tables_become_one() -> None:
    rows = np.array([0, 0, 0, 1, 1], dtype=np.intp)
    cols = np.array([1, 2, 4, 5, 6], dtype=np.intp)
    first, last = runs_of(rows, cols)
    assert (first.tolist(), last.tolist()) == ([0, 2, 3], [1, 2, 4])
    many = np.arange(0, 200, 2, dtype=np.intp)
    first, last = runs_of(np.zeros(many.size, dtype=np.intp), many)
    assert (first.tolist(), last.tolist()) == ([0], [99])


def test_garbage_in_every_entry_is_few_rows() -> None:
    tiny = Tiny(2)
    image = tiny.build()
    noise = np.random.default_rng(1).integers(1, 1 << 63, tiny.size // 8, dtype=np.uint64)
    image[4 * tiny.size : 5 * tiny.size] = noise.tobytes()
    result = check(load(image))
    assert result.exit_code == 2
    assert result.corruptions > 10_000
    assert len(result.findings) < 200
    assert any(cause.code == "L2-TABLE-OVERWRITTEN" for cause in result.causes)


def test_cancel_stops_the_check() -> None:
    with pytest.raises(CheckCancelled):
        check(load(Tiny().build()), cancel=lambda: True)


def test_progress_ends_at_the_total() -> None:
    seen: list[Progress] = []
    check(load(Tiny().build()), progress=seen.append)
    assert seen[-1].done == seen[-1].total == Tiny().size


def test_owners_are_named_exactly() -> None:
    tiny = Tiny()
    image = tiny.build()
    tiny.put(image, tiny.entry(1), 5 * tiny.size | COPIED)
    found = find_owners(load(image), [0, 2, 4, 5])
    assert [(each.cluster, each.owner, each.index) for each in found] == [
        (0, Owner.HEADER, 0),
        (2, Owner.REFCOUNT_BLOCK, 0),
        (4, Owner.ACTIVE_L2, 0),
        (5, Owner.DATA, 0),
        (5, Owner.DATA, 1),
    ]
    assert [each.guest for each in found[-2:]] == [0, tiny.size]


class Broken(MemoryStorage):
    """A device that fails where the L2 table lies."""

    def readinto(self, offset: int, buffer: memoryview) -> int:
        if offset == 4 * 65536:
            raise StorageError("read failed: Input/output error", path=self.path, offset=offset)
        return super().readinto(offset, buffer)


def test_a_read_error_is_a_check_error_not_a_crash() -> None:
    from workbench.engine.metadata import load_metadata

    result = check(load_metadata(Broken(bytes(Tiny().build()))))
    assert (result.exit_code, result.check_errors) == (1, 1)
    assert "READ-ERROR" in result.findings.by_code


@pytest.mark.parametrize(
    "data", [b"", b"QFI", b"QFI\xfb" + bytes(200), b"\xff" * 4096], ids=["empty", "magic cut off", "no header", "ones"]
)
def test_anything_can_be_checked(data: bytes) -> None:
    assert check(load(data)).exit_code == 1


def test_overlapping_snapshot_tables_end_in_a_reason_not_in_a_hang() -> None:
    tiny = Tiny(data_clusters=12)
    size, many = tiny.size, 900
    tiny.header = {60: many.to_bytes(4, "big"), 64: (6 * size).to_bytes(8, "big")}
    image = tiny.build()
    rows = b"".join(
        (size * (index % 5)).to_bytes(8, "big")
        + (80_000 - index).to_bytes(4, "big")
        + bytes(24)
        + b"\0\0\0\x10"
        + bytes(16)
        for index in range(many)
    )
    image[6 * size : 6 * size + len(rows)] = rows
    result = check(load(image))
    assert result.exit_code == 1
    assert result.aborted is not None


def test_a_file_of_eight_tebibytes_costs_little() -> None:
    class Sparse(MemoryStorage):
        def size(self) -> int:
            return 8 << 40

    from workbench.engine.metadata import load_metadata

    result = check(load_metadata(Sparse(bytes(Tiny().build()))), window=1 << 24)
    assert (result.exit_code, result.corruptions, result.leaks) == (0, 0, 0)
    assert set(result.findings.by_code) == {"FILE-TAIL-UNUSED"}
