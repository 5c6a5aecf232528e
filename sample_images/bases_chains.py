"""Bases with backing files and external data files."""

from __future__ import annotations

from sample_images.base import Bases, Maker
from sample_images.editor import EXT_BACKING_FORMAT
from sample_images.kit import K, Kit, M, noise, text

FOUND = Bases()
add = FOUND.add


def _over_raw(size: int | None, *options: str, base_size: int = 1 * M, zeros: bool = True) -> Maker:
    def make(kit: Kit) -> None:
        base = kit.raw("base.raw", text(base_size, 30))
        kit.create_over(base, "raw", "cluster_size=16k", *options, size=size)
        kit.io(f"write -q -P 0xc1 {20 * K} {10 * K}", f"write -q -P 0xc2 {512 * K} {32 * K}")
        if zeros:
            kit.io(
                f"write -q -z {128 * K} {32 * K}",
                f"write -q -z -u {512 * K} {16 * K}",
                f"discard -q {256 * K} {16 * K}",
            )

    return make


def _over_qcow2(*options: str, size: int | None = None) -> Maker:
    def make(kit: Kit) -> None:
        base = kit.beside("base.qcow2")
        kit.create(1 * M, "cluster_size=16k", name=base)
        kit.fill(16 * K, name=base)
        kit.create_over(base, "qcow2", *(options or ("cluster_size=16k",)), size=size)
        kit.io(
            f"write -q -P 0xd1 {24 * K} {16 * K}", f"write -q -z {64 * K} {64 * K}", f"write -q -P 0xd2 {700 * K} 3k"
        )

    return make


def _chain(kit: Kit) -> None:
    raw = kit.raw("base.raw", text(180 * K + 512, 31))
    final, middle = kit.stem, kit.beside("middle")
    kit.stem = middle
    kit.create_over(raw, "raw", "cluster_size=4k", size=300 * K)
    kit.io(
        f"write -q -P 0xe1 {40 * K} {40 * K}", f"write -q -z {100 * K} {50 * K}", f"write -q -P 0xe2 {270 * K} {8 * K}"
    )
    kit.stem = final
    kit.create_over(f"{middle}.qcow2", "qcow2", "cluster_size=16k", size=400 * K + 512)
    kit.io(f"write -q -P 0xf1 {60 * K} {8 * K}", f"write -q -z {256 * K} {32 * K}")


def _no_format(kit: Kit) -> None:
    _over_raw(None)(kit)
    with kit.edit() as editor:
        editor.remove_extension(EXT_BACKING_FORMAT)


def _long_name(kit: Kit) -> None:
    name = kit.raw("base-" + "x" * 200 + ".raw", text(256 * K, 32))
    kit.create_over(name, "raw", "cluster_size=4k")
    kit.io(f"write -q -P 0xab {8 * K} {4 * K}")


def _longest_name(kit: Kit) -> None:
    # 1023 bytes is the longest that QEMU accepts; "./" steps keep it a real path.
    base = kit.raw("base.raw", text(256 * K, 33))
    name = "./" * ((1023 - len(base)) // 2) + base
    kit.create_over(name, "raw", "cluster_size=4k")
    kit.io(f"write -q -P 0xac {8 * K} {4 * K}")


def _backing_snapshots(kit: Kit) -> None:
    _over_raw(None)(kit)
    kit.snapshot("over a base")
    kit.write(0, noise(16 * K, 34))


def _backing_compressed(kit: Kit) -> None:
    _over_raw(None)(kit)
    kit.write(384 * K, text(64 * K, 35), compressed=True)


def _data_file(raw: bool, *options: str) -> Maker:
    def make(kit: Kit) -> None:
        data = kit.beside("data.raw")
        kit.create(
            512 * K, "cluster_size=16k", f"data_file={data}", f"data_file_raw={'on' if raw else 'off'}", *options
        )
        kit.fill(16 * K, compressed=False)

    return make


def _data_file_backing(kit: Kit) -> None:
    base = kit.raw("base.raw", text(512 * K, 37))
    kit.create_over(base, "raw", "cluster_size=16k", f"data_file={kit.beside('data.raw')}", size=1 * M)
    kit.io(f"write -q -P 0xba {20 * K} {16 * K}", f"write -q -z {128 * K} {32 * K}")


add("backing-raw", "overlay on a raw file, zeros over backing data", "v3 backing zero", _over_raw(None))
add("backing-raw-v2", "v2 overlay on a raw file", "v2 backing", _over_raw(None, "compat=0.10", zeros=False))
add(
    "backing-shorter",
    "the backing file is shorter than the overlay",
    "v3 backing size",
    _over_raw(2 * M, base_size=700 * K),
)
add(
    "backing-longer",
    "the backing file is longer than the overlay",
    "v3 backing size",
    _over_raw(900 * K, base_size=1 * M),
)
add(
    "backing-odd",
    "overlay and backing end inside a cluster",
    "v3 backing size",
    _over_raw(1 * M + 512, base_size=999 * 512),
)
add("backing-qcow2", "overlay on a qcow2 file", "v3 backing zero", _over_qcow2())
add(
    "backing-other-cluster",
    "overlay with 512-byte clusters on 16k clusters",
    "v3 backing",
    _over_qcow2("cluster_size=512"),
)
add("backing-larger-qcow2", "overlay four times as large as its qcow2 base", "v3 backing size", _over_qcow2(size=4 * M))
add("backing-chain", "three files: qcow2 on qcow2 on raw, all of different size", "v3 backing size zero", _chain)
add("backing-no-format", "backing format not recorded", "v3 backing security", _no_format)
add("backing-long-name", "backing file name of more than 200 bytes", "v3 backing header", _long_name)
add("backing-longest-name", "backing file name of 1023 bytes", "v3 backing header", _longest_name)
add("backing-snapshot", "overlay with an internal snapshot", "v3 backing snapshots", _backing_snapshots)
add("backing-compressed", "overlay with compressed clusters", "v3 backing compressed", _backing_compressed)
add("data-file", "external data file, not raw", "v3 data-file", _data_file(False))
add("data-file-raw", "external data file that stays a valid raw image", "v3 data-file", _data_file(True))
add(
    "data-file-extended",
    "external data file with extended L2",
    "v3 data-file extended-l2",
    _data_file(False, "extended_l2=on"),
)
add("data-file-backing", "external data file and a backing file", "v3 data-file backing", _data_file_backing)
