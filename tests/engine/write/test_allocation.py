"""Clusters taken and given back, refcount blocks and the refcount table."""

from __future__ import annotations

import pytest

from tests.engine.write.kit import assert_clean, disk, fresh, meta, opened
from workbench.errors import StorageError, UnsupportedError
from workbench.storage.recording import Faulty, OpKind


@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16, 32, 64])
def test_every_refcount_width_grows_blocks_and_table(bits: int) -> None:
    storage = fresh(6 << 20, cluster_size=512, refcount_bits=bits)
    before = meta(storage).header.refcount_table_clusters
    with opened(storage) as image:
        for at in range(0, 6 << 20, 192 << 10):
            image.write(at, bytes([at >> 16 & 255 | 1]) * (192 << 10))
    after = meta(storage).header.refcount_table_clusters
    assert after > before or bits < 64
    assert_clean(storage)
    assert disk(storage)[24 * (192 << 10)] == (24 * (192 << 10)) >> 16 & 255 | 1


def test_a_write_takes_neighbouring_clusters() -> None:
    storage = fresh(4 << 20, cluster_size=4096)
    with opened(storage) as image:
        image.write(0, b"x" * (1 << 20))
        hosts = [each.host for each in image.layer_extents(0, 1 << 20)]
    assert len(hosts) == 1


def test_freed_clusters_are_used_again_after_a_flush_only() -> None:
    storage = fresh(1 << 20)
    with opened(storage) as image:
        image.write(0, b"a" * 65536)
        image.flush()
        (first,) = image.layer_extents(0, 65536)
        image.discard(0, 65536)
        image.write(65536, b"b" * 65536)
        (second,) = image.layer_extents(65536, 65536)
        assert second.host != first.host
        image.flush()
        image.write(131072, b"c" * 65536)
        (third,) = image.layer_extents(131072, 65536)
        assert third.host == first.host
    assert_clean(storage)


def test_compressed_data_is_packed() -> None:
    storage = fresh(1 << 20)
    with opened(storage) as image:
        for number in range(8):
            image.write_compressed(number << 16, bytes([number]) * 65536)
        size = image.meta.storage.size()
    assert size < 6 << 16
    assert_clean(storage)


def test_compressed_data_is_never_packed_into_a_freed_cluster() -> None:
    """qemu-io 7.2 packs the last write behind freed data, into the cluster that plain data took meanwhile."""
    storage = fresh(1 << 20)
    with opened(storage) as image:
        image.write_compressed(0, b"\x37" * 65536)
        image.discard(0, 65536)
        image.write(65536, b"\x42" * 65536)
        image.write_compressed(131072, b"\x4d" * 65536)
        assert image.read(65536, 65536) == b"\x42" * 65536
    assert disk(storage)[: 3 << 16] == bytes(65536) + b"\x42" * 65536 + b"\x4d" * 65536
    assert_clean(storage)


def test_the_same_with_a_flush_in_between() -> None:
    storage = fresh(1 << 20)
    with opened(storage) as image:
        image.write_compressed(0, b"\x37" * 65536)
        image.discard(0, 65536)
        image.flush()
        image.write(65536, b"\x42" * 65536)
        image.write_compressed(131072, b"\x4d" * 65536)
    assert disk(storage)[65536 : 3 << 16] == b"\x42" * 65536 + b"\x4d" * 65536
    assert_clean(storage)


def test_one_bit_refcounts_never_share_a_cluster() -> None:
    storage = fresh(1 << 20, refcount_bits=1)
    with opened(storage) as image:
        for number in range(4):
            image.write_compressed(number << 16, bytes([number]) * 65536)
    assert_clean(storage)


def test_refcount_overflow_is_refused_and_changes_nothing() -> None:
    storage = fresh(1 << 20, refcount_bits=2)
    with opened(storage) as image:
        refcounts = image.writer.core.refcounts
        refcounts.change(0, 3, 2)
        with pytest.raises(UnsupportedError, match="would exceed 3"):
            refcounts.change(0, 3, 1)
        assert [refcounts.get(each) for each in range(3)] == [3, 3, 3]
        refcounts.change(0, 3, -2)


def test_a_failed_data_write_frees_what_it_took() -> None:
    base = fresh(1 << 20)
    storage = Faulty(base, 1, on=(OpKind.WRITE,), sticky=False)  # write 0 is the L2 table
    with opened(storage) as image:
        with pytest.raises(StorageError):
            image.write(0, b"x" * 300_000)
        assert image.read(0, 300_000) == bytes(300_000)
    assert_clean(base)


def test_an_image_that_says_its_header_is_free_is_not_allocated_over() -> None:
    storage = fresh(1 << 20)
    storage.write(0x20000, bytes(2))  # refcount of cluster 0
    image = opened(storage)
    with pytest.raises(Exception, match="first cluster counts as free"):
        image.write(0, b"x")
    image.close()
    assert meta(storage).header.has("corrupt")
