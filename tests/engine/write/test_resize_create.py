"""Virtual sizes changed, and images made."""

from __future__ import annotations

import random

import pytest

from tests.campaigns.write_kit import prepared, run_step, workload
from tests.campaigns.write_powercut import Trace, crash_states
from tests.engine.write.kit import assert_clean, disk, fresh, meta, opened
from workbench.check.run import check
from workbench.engine.create import CreateOptions
from workbench.engine.metadata import load_metadata
from workbench.engine.write.prealloc import Preallocation
from workbench.errors import ArgumentError
from workbench.storage.memory import MemoryStorage
from workbench.storage.recording import Recording


def test_growing_and_shrinking_keeps_what_is_left() -> None:
    storage = fresh(1 << 20, cluster_size=4096)
    with opened(storage) as image:
        image.write(0, b"a" * (1 << 20))
        image.truncate(300 << 20)
        assert image.size == 300 << 20
        image.write((300 << 20) - 3, b"end")
        image.truncate(10240)
        image.truncate(1 << 20)
        assert image.read(0, 1 << 20) == b"a" * 10240 + bytes((1 << 20) - 10240)
    assert disk(storage) == b"a" * 10240 + bytes((1 << 20) - 10240)
    assert_clean(storage)


def test_shrinking_shortens_the_file() -> None:
    storage = fresh(8 << 20)
    with opened(storage) as image:
        image.write(0, b"a" * (8 << 20))
        image.truncate(65536)
    assert storage.size() < 1 << 20
    assert_clean(storage)


def test_sizes_are_whole_sectors() -> None:
    with opened(fresh()) as image, pytest.raises(ArgumentError, match="multiple of 512"):
        image.truncate(1000)


@pytest.mark.parametrize("mode", list(Preallocation))
@pytest.mark.parametrize("extended", [False, True])
def test_preallocated_images_are_clean_and_empty(mode: Preallocation, extended: bool) -> None:
    storage = fresh(4 << 20, preallocation=mode, extended_l2=extended)
    assert_clean(storage)
    assert disk(storage) == bytes(4 << 20)
    assert (storage.size() > 4 << 20) == (mode is not Preallocation.OFF)


@pytest.mark.parametrize("bits", range(9, 22))
def test_every_cluster_size(bits: int) -> None:
    storage = fresh(3 << 20, cluster_size=1 << bits)
    assert meta(storage).header.cluster_bits == bits
    with opened(storage) as image:
        image.write(1 << 20, b"x" * 70_000)
    assert_clean(storage)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"cluster_size": 3000}, "power of two between 512 and 2048k"),
        ({"cluster_size": 4 << 20}, "power of two"),
        ({"refcount_bits": 3}, "Refcount width"),
        ({"compat": 2, "refcount_bits": 1}, "Different refcount widths"),
        ({"compat": 2, "lazy_refcounts": True}, "Lazy refcounts"),
        ({"compat": 2, "extended_l2": True}, "Extended L2"),
        ({"compat": 2, "data_file": "d"}, "External data files"),
        ({"compat": 2, "compression_type": "zstd"}, "Non-zlib"),
        ({"extended_l2": True, "cluster_size": 8192}, "at least 16384"),
        ({"data_file_raw": True}, "requires data-file"),
        ({"data_file_raw": True, "data_file": "d", "backing_file": "b", "backing_format": "raw"}, "same time"),
        ({"backing_file": "b"}, "without backing format"),
        ({"compression_type": "lzma"}, "Invalid compression type"),
    ],
)
def test_options_that_qemu_refuses(options: dict[str, object], words: str) -> None:
    with pytest.raises(ArgumentError, match=words):
        CreateOptions(1 << 20, **options).check()  # type: ignore[arg-type]


@pytest.mark.parametrize("shape", ["512", "4k", "lazy", "extended", "snapshot", "bitmap"])
def test_a_power_cut_while_resizing_leaves_a_sound_disk(shape: str) -> None:
    start = MemoryStorage(prepared(shape))
    with opened(start) as image:
        for step in workload(random.Random(shape), image.size, image.geometry.cluster_size, 30):
            run_step(image, step)
        before = image.read(0, image.size)
    storage = Recording(MemoryStorage(start.getvalue()))
    large = 40 << 20 if shape == "512" else 1 << 30
    sizes = [len(before), large, 100 << 10, 400 << 10]
    with opened(storage) as image:
        for size in sizes[1:]:
            image.truncate(size)
    rng = random.Random(shape)
    for number, (_, position, data) in enumerate(crash_states(Trace(start.getvalue(), storage.ops, [], 0, 0), rng, 1)):
        if number % 2:
            continue
        state = MemoryStorage(data)
        if load_metadata(state).header.has("dirty"):
            opened(state).close()
        result = check(load_metadata(state), fast=True)
        assert (result.corruptions, result.check_errors) == (0, 0), (position, [f.code for f in result.findings])
        with opened(state, writable=False) as image:
            assert image.size in sizes
            kept = min(100 << 10, image.size)
            assert image.read(0, kept) == before[:kept]
            if image.size == large:
                assert image.read(len(before), 1 << 20) == bytes(1 << 20)
