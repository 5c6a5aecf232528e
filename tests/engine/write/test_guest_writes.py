"""Guest writes against a plain bytearray, and where they go in the file."""

from __future__ import annotations

import random

import pytest

from formats.qcow2.entries import ClusterType
from tests.campaigns.write_kit import SHAPES, SMALLEST_CACHES, prepared, run_step, workload
from tests.engine.write.kit import assert_clean, disk, fresh, meta, opened
from workbench.errors import ArgumentError, StorageError, UnsupportedError
from workbench.storage.memory import MemoryStorage


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("small", [False, True])
def test_mixed_operations_match_a_bytearray(shape: str, small: bool) -> None:
    rng = random.Random(f"{shape} {small}")
    storage = MemoryStorage(prepared(shape))
    model = bytearray(disk(storage))
    with opened(storage, SMALLEST_CACHES if small else None) as image:
        cluster = image.geometry.cluster_size
        for step in workload(rng, image.size, cluster, 120):
            if not run_step(image, step):
                continue
            low, high = step.offset, step.offset + step.length
            if step.kind == "discard":
                low = -(-low // cluster) * cluster
                high = high if high == image.size else high // cluster * cluster
            if low < high and step.kind != "flush":
                model[low:high] = bytes([step.tag if step.kind in ("write", "compressed") else 0]) * (high - low)
        assert image.read(0, image.size) == bytes(model)
    assert disk(storage) == bytes(model)
    assert_clean(storage)


def test_unaligned_writes_keep_what_is_around_them() -> None:
    storage = fresh(1 << 20, cluster_size=4096)
    with opened(storage) as image:
        image.write(4000, b"A" * 200)
        image.write(4050, b"B" * 5000)
        image.write(0, b"C")
    content = disk(storage)
    assert content[:9060] == b"C" + bytes(3999) + b"A" * 50 + b"B" * 5000 + bytes(10)
    assert_clean(storage)


def test_overwriting_stays_in_place() -> None:
    storage = fresh(1 << 20)
    with opened(storage) as image:
        image.write(0, b"a" * 200_000)
        image.flush()
        before = [each.host for each in image.layer_extents(0, 196608)]
        image.write(70_000, b"b" * 100_000)
        assert [each.host for each in image.layer_extents(0, 196608)] == before


@pytest.mark.oracle  # the snapshot is QEMU's
def test_a_shared_cluster_is_copied() -> None:
    storage = MemoryStorage(prepared("snapshot"))
    with opened(storage) as image:
        (before,) = image.layer_extents(0, 4096)
        image.write(100, b"new")
        (after,) = image.layer_extents(0, 4096)
    assert before.host != after.host
    assert disk(storage)[98:105] == b"\xfb\xfbnew\xfb\xfb"
    with opened(MemoryStorage(storage.getvalue()), writable=False) as image:
        assert image.meta.snapshots
    assert_clean(storage)


def test_kept_zero_clusters_are_used_again() -> None:
    storage = fresh(1 << 20)
    with opened(storage) as image:
        image.write(0, b"a" * 65536)
        image.flush()
        (before,) = image.layer_extents(0, 65536)
        image.write_zeroes(0, 65536)
        (zero,) = image.layer_extents(0, 65536)
        assert zero.kind is ClusterType.ZERO_ALLOC
        image.write(10, b"b")
        (after,) = image.layer_extents(0, 65536)
        assert after.host == before.host
    assert disk(storage)[:12] == bytes(10) + b"b\0"
    assert_clean(storage)


def test_unmapping_zeroes_gives_clusters_back() -> None:
    storage = fresh(1 << 20)
    with opened(storage) as image:
        image.write(0, b"a" * 65536)
        image.write_zeroes(0, 65536, unmap=True)
        (zero,) = image.layer_extents(0, 65536)
        assert zero.kind is ClusterType.ZERO_PLAIN
    assert_clean(storage)


def test_subclusters_are_allocated_one_by_one() -> None:
    storage = fresh(1 << 20, extended_l2=True)
    with opened(storage) as image:
        image.write(5000, b"x" * 10)
        kinds = {each.kind for each in image.layer_extents(0, 65536)}
    assert kinds == {ClusterType.UNALLOCATED_ALLOC, ClusterType.NORMAL}
    assert disk(storage)[4998:5012] == bytes(2) + b"x" * 10 + bytes(2)
    assert_clean(storage)


def test_version_2_has_no_zero_flag() -> None:
    storage = fresh(1 << 20, compat=2)
    with opened(storage) as image:
        image.write(0, b"a" * 131072)
        image.write_zeroes(0, 65536)
        assert [each.kind for each in image.layer_extents(0, 131072)] == [ClusterType.UNALLOCATED, ClusterType.NORMAL]
    assert_clean(storage)


def test_zeroes_without_fallback_are_refused_where_data_must_be_written() -> None:
    storage = fresh(1 << 20)
    with opened(storage) as image:
        image.write(0, b"a" * 65536)
        with pytest.raises(UnsupportedError):
            image.writer.write_zeroes(0, 4096, fallback=False)


def test_compressed_data_replaces_nothing() -> None:
    storage = fresh(1 << 20)
    with opened(storage) as image:
        image.write(0, b"a")
        with pytest.raises(StorageError, match="allocated"):
            image.write_compressed(0, b"b" * 65536)
    assert_clean(storage)


def test_data_that_does_not_shrink_is_stored_plain() -> None:
    noise = random.Random(1).randbytes(65536)
    storage = fresh(1 << 20)
    with opened(storage) as image:
        image.write_compressed(0, noise)
        (extent,) = image.layer_extents(0, 65536)
        assert extent.kind is ClusterType.NORMAL
    assert disk(storage)[:65536] == noise


def test_many_compressed_clusters_at_once() -> None:
    storage = fresh(4 << 20)
    data = b"".join(bytes([n]) * 65536 for n in range(40))
    with opened(storage) as image:
        image.write_compressed(0, data)
    assert disk(storage)[: len(data)] == data
    assert_clean(storage)


def test_writes_outside_the_disk_are_refused() -> None:
    with opened(fresh(1 << 20)) as image:
        for offset, length in ((1 << 20, 1), ((1 << 20) - 1, 2), (-1, 1)):
            with pytest.raises(ArgumentError):
                image.write(offset, b"x" * length)


def test_opening_for_writing_without_writing_changes_nothing() -> None:
    storage = fresh(1 << 20)
    before = storage.getvalue()
    with opened(storage) as image:
        image.read(0, 1000)
        image.flush()
    assert storage.getvalue() == before


def test_counters_tell_hits_and_misses() -> None:
    storage = fresh(64 << 20, cluster_size=4096)
    with opened(storage, {"l2-cache-size": 8192}) as image:
        for at in range(0, 64 << 20, 1 << 20):
            image.write(at, b"x")
        counters = image.writer.counters
        assert counters.l2.evictions > 0 and counters.l2.hits > 0 and counters.flushes > 0
        assert image.writer.sizes.l2_pieces == 2


def test_a_read_only_image_is_not_written() -> None:
    with opened(fresh(1 << 20), writable=False) as image, pytest.raises(ArgumentError, match="read-only"):
        image.write(0, b"x")


def test_autoclear_bits_we_do_not_know_are_cleared_by_the_first_write() -> None:
    storage = fresh(1 << 20)
    storage.write(88, (1 << 40).to_bytes(8, "big"))
    with opened(storage) as image:
        image.read(0, 1)
        assert meta(storage).header.autoclear_features == 1 << 40
        image.write(0, b"x")
        assert meta(storage).header.autoclear_features == 0


def test_lazy_refcounts_set_the_dirty_bit_until_close() -> None:
    storage = fresh(1 << 20, lazy_refcounts=True)
    image = opened(storage)
    image.write(0, b"x" * 200_000)
    image.flush()
    crashed = MemoryStorage(storage.getvalue())
    assert meta(crashed).header.has("dirty")
    image.close()
    assert not meta(storage).header.has("dirty")
    assert_clean(storage)
    with opened(crashed) as again:
        assert again.writer.repaired > 0
    assert not meta(crashed).header.has("dirty")
    assert disk(crashed) == disk(storage)
    assert_clean(crashed)


def test_a_corrupt_image_is_not_opened_for_writing() -> None:
    storage = fresh(1 << 20)
    storage.write(72, (2).to_bytes(8, "big"))
    with pytest.raises(Exception, match="marked corrupt"):
        opened(storage)
