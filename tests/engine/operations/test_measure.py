"""Measuring: figures that qemu-img printed, data counted by clusters of the new image, damage refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from formats.luks.header import space_for
from sample_images import copy_out
from workbench.engine.convert import Source
from workbench.engine.create import CreateOptions, create_file
from workbench.engine.image import Image
from workbench.engine.operations.measure import Measure, bitmaps_size, measure_qcow2, measure_raw
from workbench.engine.write.prealloc import Preallocation
from workbench.errors import ArgumentError, CorruptError

C = 1 << 16
MIB = 1 << 20


def test_known_figures() -> None:
    assert measure_raw(1) == Measure(512, 512)
    assert measure_qcow2(CreateOptions(MIB)) == Measure(327680, 1376256)
    assert measure_qcow2(CreateOptions(MIB), luks_key_bytes=64) == Measure(2424832, 3473408)
    assert space_for(64) == 2068480  # the payload offset of every LUKS image with AES-256 in XTS mode


def test_reserved_space_counts_as_data() -> None:
    for mode in (Preallocation.FALLOC, Preallocation.FULL):
        found = measure_qcow2(CreateOptions(MIB, preallocation=mode))
        assert found.required == found.fully_allocated
    assert measure_qcow2(CreateOptions(MIB, preallocation=Preallocation.METADATA)) == measure_qcow2(CreateOptions(MIB))


def test_data_is_counted_once_by_clusters_of_the_new_image(tmp_path: Path) -> None:
    create_file(str(tmp_path / "a"), CreateOptions(8 * C, cluster_size=4096))
    with Image.open(tmp_path / "a", writable=True) as image:
        for offset in (0, 8192, C - 4096, 2 * C - 4096, 7 * C):  # three clusters of 64 KiB, five of 4 KiB
            image.write(offset, b"x")
        image.write_zeroes(4 * C, C)
    with Image.open(tmp_path / "a") as image:
        source = Source(image.chain, image.size)
        counted = [
            measure_qcow2(CreateOptions(0, cluster_size=size), source).required
            - measure_qcow2(CreateOptions(8 * C, cluster_size=size)).required
            for size in (C, 4096)
        ]
    assert counted == [3 * C, 5 * 4096]


def test_a_backing_file_is_no_promise_to_share_anything(tmp_path: Path) -> None:
    create_file(str(tmp_path / "a"), CreateOptions(8 * C))
    with Image.open(tmp_path / "a") as image:
        found = measure_qcow2(CreateOptions(0, backing_file="x"), Source(image.chain, image.size))
    assert found.required == found.fully_allocated


def test_bitmaps_are_counted_in_full(tmp_path: Path) -> None:
    with Image.open(copy_out("bitmaps", tmp_path)) as image:
        count = len(image.meta.bitmap_directory.bitmaps)
        assert count and bitmaps_size(image.meta, C) == (2 * count + 1) * C  # data, table; one directory


def test_what_cannot_be_made_or_mapped_is_refused(tmp_path: Path) -> None:
    for bad in (
        CreateOptions(1 << 60),
        CreateOptions(1, cluster_size=3000),
        CreateOptions(1, compat=2, refcount_bits=1),
    ):
        with pytest.raises(ArgumentError):
            measure_qcow2(bad)
    with Image.open(copy_out("unaligned-entry", tmp_path)) as image, pytest.raises(CorruptError, match="qwb check"):
        measure_qcow2(CreateOptions(0), Source(image.chain, image.size))
