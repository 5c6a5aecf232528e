"""Bases over versions, cluster sizes, refcount widths, disk sizes, preallocation and header shapes."""

from __future__ import annotations

import struct

from sample_images.base import Bases, Maker
from sample_images.editor import EXT_FEATURE_NAMES
from sample_images.kit import K, Kit, M, noise, text

FOUND = Bases()
add = FOUND.add

UNKNOWN_EXTENSION = 0x51574231  # a type nobody has defined


def _disk(cluster: int, *options: str, clusters: int = 64, size: int | None = None, v2: bool = False) -> Maker:
    def make(kit: Kit) -> None:
        kit.create(size or clusters * cluster, f"cluster_size={cluster}", *options)
        kit.fill(cluster, zeros=not v2)

    return make


def _two_refcount_blocks(kit: Kit) -> None:
    kit.create(2 * M, "cluster_size=512", "refcount_bits=64")
    kit.write(0, noise(96 * K, 3))
    kit.write(1 * M, text(32 * K, 4))


def _many_l2(kit: Kit) -> None:
    kit.create(16 * M, "cluster_size=4k")
    kit.fill(4 * K)
    kit.write(2 * M, text(24 * K, 5))
    kit.write(6 * M + 4 * K, noise(16 * K, 6))
    kit.write(16 * M - 8 * K, text(8 * K, 7))


def _unaligned_size(cluster: int, size: int) -> Maker:
    def make(kit: Kit) -> None:
        kit.create(size, f"cluster_size={cluster}")
        kit.fill(cluster)
        tail = (size - 1) // cluster * cluster  # the last cluster, cut short by the end of the disk
        kit.write(tail, text((size - tail) // 512 * 512, 8))

    return make


def _tiny(size: int) -> Maker:
    def make(kit: Kit) -> None:
        kit.create(size, "cluster_size=64k")
        if size:
            kit.write(0, text(size, 9))

    return make


def _preallocated(mode: str) -> Maker:
    def make(kit: Kit) -> None:
        kit.create(1 * M, "cluster_size=16k", f"preallocation={mode}")
        kit.write(64 * K, text(48 * K, 10))

    return make


def _unknown_extension(kit: Kit) -> None:
    _disk(4 * K)(kit)
    with kit.edit() as editor:
        editor.add_extension(UNKNOWN_EXTENSION, b"kept by every program that does not know it")


def _no_feature_names(kit: Kit) -> None:
    _disk(16 * K)(kit)
    with kit.edit() as editor:
        editor.remove_extension(EXT_FEATURE_NAMES)


def _header_104(kit: Kit) -> None:
    _disk(4 * K)(kit)
    with kit.edit() as editor:
        editor.remove(104, 8)
        editor.set("header_length", 104)


def _header_long(kit: Kit) -> None:
    _disk(4 * K)(kit)
    with kit.edit() as editor:
        editor.insert(112, struct.pack(">QQ", 0x1122334455667788, 0))
        editor.set("header_length", 128)


def _unknown_compatible(kit: Kit) -> None:
    _disk(4 * K)(kit)
    with kit.edit() as editor:
        editor.set_bits("compatible_features", 1 << 40)


def _empty(kit: Kit) -> None:
    kit.create(64 * M, "cluster_size=64k")


def _sparse_large(kit: Kit) -> None:
    kit.create(8 << 40, "cluster_size=2M")
    kit.write(5 << 40, text(64 * K, 11))


def _discarded(kit: Kit) -> None:
    kit.create(4 * M, "cluster_size=16k")
    kit.fill(16 * K)
    kit.io(f"discard -q {32 * K} {32 * K}", f"discard -q {16 * 16 * K} {16 * K}")


def _resized(kit: Kit) -> None:
    kit.create(1 * M, "cluster_size=4k")
    kit.fill(4 * K)
    kit.img("resize", "-q", kit.path.name, str(9 * M + 512))
    kit.write(8 * M, text(12 * K, 12))


def _full_disk(kit: Kit) -> None:
    kit.create(256 * K, "cluster_size=4k")
    kit.write(0, noise(128 * K, 13) + text(128 * K, 14))


def _fragmented(kit: Kit) -> None:
    kit.create(2 * M, "cluster_size=4k")
    order = [(7 * step) % 48 for step in range(48)]
    kit.io(*(f"write -q -P {1 + at} {at * 4 * K} {4 * K}" for at in order))


for _size in ("512", "1k", "2k", "4k", "8k", "16k", "32k", "64k", "128k", "256k", "512k", "1M", "2M"):
    _bytes = int(_size[:-1]) * (M if _size[-1] == "M" else K) if _size[-1] in "kM" else int(_size)
    add(f"v3-{_size}", f"v3, {_size} clusters, the standard content", "v3 zero compressed size", _disk(_bytes))
for _size in ("512", "4k", "64k", "2M"):
    _bytes = {"512": 512, "4k": 4 * K, "64k": 64 * K, "2M": 2 * M}[_size]
    add(f"v2-{_size}", f"v2, {_size} clusters, no zero flags", "v2 compressed", _disk(_bytes, "compat=0.10", v2=True))
for _bits in (1, 2, 4, 8, 16, 32, 64):
    add(
        f"refcount-{_bits}",
        f"v3, refcounts of {_bits} bits",
        "v3 refcounts" + (" no-packing" if _bits == 1 else ""),
        _disk(4 * K, f"refcount_bits={_bits}"),
    )
add(
    "refcount-blocks",
    "512-byte clusters and 64-bit refcounts: several refcount blocks",
    "v3 refcounts",
    _two_refcount_blocks,
)
add("many-l2", "v3, 4k clusters: several L2 tables, some L1 entries empty", "v3 damage-base", _many_l2)
add(
    "size-odd-sector",
    "disk size a multiple of the sector, not of the cluster",
    "v3 size",
    _unaligned_size(64 * K, 4 * M + 3 * 512),
)
add("size-odd-4k", "disk size 512 bytes past a 4k cluster", "v3 size", _unaligned_size(4 * K, 256 * K + 512))
add("size-one-sector", "a disk of one sector", "v3 size", _tiny(512))
add("size-zero", "a disk of no bytes at all", "v3 size", _tiny(0))
add("empty", "nothing written yet: no L2 table", "v3", _empty)
add("sparse-8t", "8 TiB disk with 2M clusters, 64 KiB written at 5 TiB", "v3 size", _sparse_large)
for _mode in ("metadata", "falloc", "full"):
    add(f"prealloc-{_mode}", f"preallocation={_mode}", "v3 preallocation", _preallocated(_mode))
add("lazy-refcounts", "lazy_refcounts on, cleanly closed", "v3 lazy", _disk(4 * K, "lazy_refcounts=on"))
add("zstd-4k", "zstd compression, 4k clusters", "v3 zstd compressed", _disk(4 * K, "compression_type=zstd"))
add("zstd-64k", "zstd compression, 64k clusters", "v3 zstd compressed", _disk(64 * K, "compression_type=zstd"))
add("unknown-extension", "a header extension of unknown type", "v3 header", _unknown_extension)
add("no-feature-names", "no feature name table", "v3 header", _no_feature_names)
add("header-104", "header of 104 bytes, as older programs write", "v3 header", _header_104)
add("header-128", "header of 128 bytes with unknown fields", "v3 header", _header_long)
add("unknown-compatible", "an unknown compatible feature bit", "v3 header", _unknown_compatible)
add("discarded", "clusters discarded after writing", "v3 zero", _discarded)
add("resized", "grown from 1 MiB to 9 MiB and a sector", "v3 size", _resized)
add("full-disk", "every cluster allocated", "v3", _full_disk)
add("fragmented", "clusters written in scattered order", "v3", _fragmented)
