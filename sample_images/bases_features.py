"""Bases with extended L2 entries, internal snapshots, persistent bitmaps and compressed conversions."""

from __future__ import annotations

from sample_images.base import Bases, Maker
from sample_images.kit import K, Kit, M, noise, text

FOUND = Bases()
add = FOUND.add


def _subclusters(cluster: int, *options: str) -> Maker:
    sub = cluster // 32

    def make(kit: Kit) -> None:
        kit.create(64 * cluster, f"cluster_size={cluster}", "extended_l2=on", *options)
        kit.fill(cluster)
        kit.io(
            f"write -q -P 0x11 {30 * cluster} {sub}",
            f"write -q -P 0x22 {30 * cluster + 5 * sub} {3 * sub}",
            f"write -q -z {30 * cluster + 6 * sub} {sub}",
            f"write -q -z -u {31 * cluster + 4 * sub} {8 * sub}",
            f"write -q -P 0x44 {31 * cluster + 31 * sub} {sub}",
            f"write -q -z {32 * cluster + 2 * sub} {4 * sub}",
        )

    return make


def _subclusters_over_backing(kit: Kit) -> None:
    base = kit.raw("base.raw", text(2 * M, 20))
    kit.create_over(base, "raw", "cluster_size=64k", "extended_l2=on")
    kit.io(f"write -q -P 0x66 {6 * K} {2 * K}", f"write -q -z {130 * K} {4 * K}", f"write -q -z {256 * K} {64 * K}")


def _snapshots(cluster: int, *options: str) -> Maker:
    def make(kit: Kit) -> None:
        kit.create(64 * cluster, f"cluster_size={cluster}", *options)
        kit.fill(cluster, zeros="compat=0.10" not in options)
        kit.snapshot("installed")
        kit.write(2 * cluster, text(3 * cluster, 21))
        kit.snapshot("updated")
        kit.write(8 * cluster, noise(cluster, 22))
        kit.io(f"write -q -P 0x77 {40 * cluster} {cluster}")

    return make


def _snapshots_resized(kit: Kit) -> None:
    kit.create(1 * M, "cluster_size=4k")
    kit.fill(4 * K)
    kit.snapshot("one mebibyte")
    kit.img("resize", "-q", kit.path.name, str(5 * M))
    kit.write(4 * M, text(8 * K, 23))
    kit.snapshot("five mebibytes")
    kit.img("resize", "-q", "--shrink", kit.path.name, str(3 * M))
    kit.snapshot("shrunk, with a rather long name to make the entry uneven")
    kit.write(0, noise(4 * K, 24))


def _disk_with_snapshot(kit: Kit) -> None:
    # Large enough to be asked about in mebibytes, small enough to be shipped.
    kit.create(16 * M, "cluster_size=4k")
    kit.write(0, text(16 * K, 30))
    kit.write(5 * M, text(32 * K, 31))
    kit.snapshot("before the update")
    kit.write(5 * M + 16 * K, text(8 * K, 32))
    kit.write(12 * M, noise(8 * K, 33))


def _snapshot_deleted(kit: Kit) -> None:
    _snapshots(4 * K)(kit)
    kit.snapshot("last")
    kit.img("snapshot", "-d", "installed", kit.path.name)


def _snapshots_many(kit: Kit) -> None:
    kit.create(512 * K, "cluster_size=4k")
    for index in range(8):
        kit.io(f"write -q -P {index + 1} {index * 8 * K} {12 * K}")
        kit.snapshot(f"day-{index}")


def _bitmaps(cluster: int) -> Maker:
    def make(kit: Kit) -> None:
        kit.create(64 * cluster, f"cluster_size={cluster}")
        kit.fill(cluster)
        kit.img("bitmap", "--add", "-g", "64k", kit.path.name, "daily")
        kit.img("bitmap", "--add", "-g", "512", kit.path.name, "fine")
        kit.write(3 * cluster, text(2 * cluster, 25))
        kit.img("bitmap", "--add", "--disable", "-g", "1M", kit.path.name, "frozen")
        kit.io(f"write -q -P 0x99 {50 * cluster} {4 * cluster}")

    return make


def _bitmap_large(kit: Kit) -> None:
    # 512-byte granularity on 512-byte clusters: a bitmap of several clusters, some of them all zeros, one all ones.
    kit.create(8 * M, "cluster_size=512")
    kit.img("bitmap", "--add", "-g", "512", kit.path.name, "fine")
    kit.io(f"write -q -z 0 {1 * M}", f"write -q -P 1 {4 * M} {4 * K}", f"write -q -P 2 {8 * M - 512} 512")


def _bitmap_in_use(kit: Kit) -> None:
    _bitmaps(4 * K)(kit)
    with kit.edit() as editor:
        editor.set_bitmap(editor.bitmaps()[0], "flags", 1 | 2)


def _bitmap_uneven(kit: Kit) -> None:
    kit.create(2 * M + 512, "cluster_size=4k")
    kit.img("bitmap", "--add", "-g", "4k", kit.path.name, "a")
    kit.io(f"write -q -P 3 {2 * M} 512", f"write -q -P 4 0 {64 * K}")


def _converted(*options: str, extra: tuple[str, ...] = ()) -> Maker:
    def make(kit: Kit) -> None:
        content = text(192 * K, 26) + bytes(128 * K) + noise(32 * K, 27) + text(100 * K, 28)
        source = kit.raw("source.raw", content)
        arguments = ["convert", "-q", "-f", "raw", "-O", "qcow2", "-m", "1", *extra]
        if options:
            arguments += ["-o", ",".join(options)]
        kit.img(*arguments, source, kit.path.name)
        (kit.folder / source).unlink()

    return make


def _snapshots_and_bitmaps(kit: Kit) -> None:
    kit.create(512 * K, "cluster_size=4k")
    kit.fill(4 * K)
    kit.snapshot("before")
    kit.img("bitmap", "--add", "-g", "4k", kit.path.name, "since-before")
    kit.write(8 * K, text(20 * K, 29))


add("subclusters-16k", "extended L2, 16k clusters of 512-byte subclusters", "v3 extended-l2", _subclusters(16 * K))
add("subclusters-64k", "extended L2, 64k clusters of 2k subclusters", "v3 extended-l2", _subclusters(64 * K))
add("subclusters-128k", "extended L2, 128k clusters", "v3 extended-l2", _subclusters(128 * K))
add("subclusters-zstd", "extended L2 with zstd", "v3 extended-l2 zstd", _subclusters(32 * K, "compression_type=zstd"))
add("subclusters-backing", "extended L2 over a raw backing file", "v3 extended-l2 backing", _subclusters_over_backing)
add("snapshots", "two internal snapshots, 4k clusters", "v3 snapshots damage-base", _snapshots(4 * K))
add("snapshots-64k", "two internal snapshots, 64k clusters", "v3 snapshots", _snapshots(64 * K))
add("snapshots-v2", "two internal snapshots in v2", "v2 snapshots", _snapshots(4 * K, "compat=0.10"))
add("snapshots-resized", "three snapshots of different disk sizes", "v3 snapshots size", _snapshots_resized)
add("disk-16m", "a 16 MiB disk whose snapshot shares most of the data", "v3 snapshots", _disk_with_snapshot)
add("snapshots-many", "eight snapshots", "v3 snapshots", _snapshots_many)
add("snapshot-deleted", "a snapshot deleted again", "v3 snapshots", _snapshot_deleted)
add(
    "snapshots-subclusters",
    "snapshots with extended L2",
    "v3 snapshots extended-l2",
    _snapshots(16 * K, "extended_l2=on"),
)
add("bitmaps", "three bitmaps, one of them disabled, 4k clusters", "v3 bitmaps damage-base", _bitmaps(4 * K))
add("bitmaps-64k", "three bitmaps, 64k clusters", "v3 bitmaps", _bitmaps(64 * K))
add("bitmap-large", "a bitmap of several clusters", "v3 bitmaps", _bitmap_large)
add("bitmap-in-use", "a bitmap marked in use", "v3 bitmaps", _bitmap_in_use)
add("bitmap-uneven", "a bitmap whose last bits lie past the disk's end", "v3 bitmaps size", _bitmap_uneven)
add("snapshots-bitmaps", "a snapshot and a bitmap", "v3 snapshots bitmaps", _snapshots_and_bitmaps)
add("converted", "made by qemu-img convert", "v3", _converted())
add("converted-zlib", "qemu-img convert -c", "v3 compressed", _converted(extra=("-c",)))
add(
    "converted-zlib-512",
    "qemu-img convert -c, 512-byte clusters",
    "v3 compressed",
    _converted("cluster_size=512", extra=("-c",)),
)
add(
    "converted-zlib-2M",
    "qemu-img convert -c, 2M clusters",
    "v3 compressed",
    _converted("cluster_size=2M", extra=("-c",)),
)
add(
    "converted-zstd",
    "qemu-img convert -c with zstd",
    "v3 zstd compressed",
    _converted("compression_type=zstd", extra=("-c",)),
)
add("converted-v2", "qemu-img convert -c to v2", "v2 compressed", _converted("compat=0.10", extra=("-c",)))
