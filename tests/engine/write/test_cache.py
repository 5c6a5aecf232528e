"""The table cache: who leaves first, what is written when, and QEMU's rules for its size."""

from __future__ import annotations

import pytest

from workbench.engine.write.cache import TableCache
from workbench.engine.write.cache_sizes import cache_sizes
from workbench.errors import ArgumentError, QwbError
from workbench.units import Geometry


class Log:
    """Records what a cache does."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def cache(self, capacity: int, **more: int) -> TableCache[list[int]]:
        return TableCache(
            capacity,
            512,
            load=lambda at: [at],
            store=lambda at, _: self.said.append(f"store {at}"),
            before_store=lambda: self.said.append("before"),
            **more,
        )


def test_least_recently_used_leaves_first() -> None:
    cache = Log().cache(2)
    for at in (0, 512, 0, 1024):
        cache.get(at)
    assert list(cache.pieces) == [0, 1024]
    assert (cache.counters.hits, cache.counters.misses, cache.counters.evictions) == (1, 3, 1)


def test_a_dirty_piece_is_stored_before_it_leaves_and_what_it_needs_comes_first() -> None:
    log = Log()
    cache = log.cache(2)
    cache.mark_dirty(cache.get(0))
    cache.get(512)
    cache.get(1024)
    assert log.said == ["before", "store 0"]


def test_write_dirty_stores_in_file_order_once() -> None:
    log = Log()
    cache = log.cache(8)
    for at in (2048, 0, 1024):
        cache.mark_dirty(cache.get(at))
    cache.write_dirty()
    cache.write_dirty()
    assert log.said == ["before", "store 0", "store 1024", "store 2048"]
    assert cache.counters.flushes == 1


def test_forgotten_pieces_are_not_stored() -> None:
    log = Log()
    cache = log.cache(8)
    cache.mark_dirty(cache.get(512))
    cache.forget(0, 4096)
    cache.write_dirty()
    assert log.said == []


def test_changing_a_piece_that_has_left_is_refused() -> None:
    cache = Log().cache(1)
    piece = cache.get(0)
    cache.get(512)
    with pytest.raises(QwbError, match="left the cache"):
        cache.mark_dirty(piece)


def test_a_failed_store_keeps_the_piece_dirty() -> None:
    def fail(at: int, data: list[int]) -> None:
        raise QwbError("no")

    cache: TableCache[list[int]] = TableCache(4, 512, load=lambda at: [at], store=fail)
    cache.mark_dirty(cache.get(0))
    with pytest.raises(QwbError):
        cache.write_dirty()
    assert cache.dirty_count == 1


def test_unused_pieces_are_dropped_after_the_interval() -> None:
    cache = Log().cache(8, clean_interval=10)
    cache.get(0)
    cache.get(512)
    assert cache.clean_up(now=1e12) == 0  # both were used since the last time
    cache.get(512)
    assert cache.clean_up(now=2e12) == 1
    assert list(cache.pieces) == [512]


def test_interval_zero_never_drops() -> None:
    cache = Log().cache(8, clean_interval=0)
    cache.get(0)
    assert cache.clean_up(now=1e300) == 0


GEOMETRY = Geometry(16)


@pytest.mark.parametrize(
    ("options", "l2", "refcounts"),
    [
        ({}, 1 << 20, 4),
        ({"l2-cache-size": "512k"}, 512 << 10, 4),
        ({"l2-cache-size": "1G"}, 1 << 20, 4),
        ({"refcount-cache-size": "1M"}, 1 << 20, 16),
        ({"cache-size": "4M"}, 1 << 20, 48),
        ({"cache-size": "1M"}, (1 << 20) - (256 << 10), 4),
        ({"cache-size": "1M", "l2-cache-size": "512k"}, 512 << 10, 8),
        ({"cache-size": "1M", "refcount-cache-size": "512k"}, 512 << 10, 8),
        ({"l2-cache-size": 0}, 8192, 4),
    ],
)
def test_cache_sizes_follow_qemu(options: dict[str, object], l2: int, refcounts: int) -> None:
    sizes = cache_sizes(GEOMETRY, 8 << 30, options)
    assert (sizes.l2_bytes, sizes.refcount_blocks) == (l2, refcounts)


def test_default_slice_is_4_kib_and_the_default_maximum_32_mib() -> None:
    sizes = cache_sizes(GEOMETRY, 1 << 40)
    assert sizes.l2_piece_size == 4096
    assert sizes.l2_bytes == 32 << 20
    assert sizes.clean_interval == 600
    assert cache_sizes(Geometry(9), 1 << 20).l2_piece_size == 512


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"cache-size": 1, "l2-cache-size": 1, "refcount-cache-size": 1}, "may not be set at the same time"),
        ({"cache-size": "1M", "l2-cache-size": "2M"}, "l2-cache-size may not exceed cache-size"),
        ({"cache-size": "1M", "refcount-cache-size": "2M"}, "refcount-cache-size may not exceed cache-size"),
        ({"l2-cache-entry-size": 256}, "power of two between 512 and the cluster size"),
        ({"l2-cache-entry-size": 3000}, "power of two"),
        ({"l2-cache-entry-size": "128k"}, "power of two"),
        ({"l2-cache-size": "lots"}, "not a size"),
    ],
)
def test_contradictory_sizes_are_refused(options: dict[str, object], words: str) -> None:
    with pytest.raises(ArgumentError, match=words):
        cache_sizes(GEOMETRY, 8 << 30, options)
