"""The strict open refuses what QEMU refuses; the tolerant load never raises."""

from __future__ import annotations

import random
import shutil
import subprocess
from pathlib import Path

import pytest

from formats.qcow2 import limits
from formats.qcow2.header import Header, build_header
from workbench.engine.faults import Refusal
from workbench.engine.metadata import load_metadata
from workbench.engine.opening import refusal_of, require_openable
from workbench.errors import ImageError, NotQcow2Error, UnsupportedError
from workbench.storage.file import FileStorage
from workbench.storage.memory import MemoryStorage

HEALTHY = Header(
    cluster_bits=16,
    size=1 << 20,
    l1_size=1,
    l1_table_offset=0x30000,
    refcount_table_offset=0x10000,
    refcount_table_clusters=1,
)


def image(**changes: int) -> MemoryStorage:
    from dataclasses import replace

    return MemoryStorage(build_header(replace(HEALTHY, **changes)).ljust(0x40000, b"\0"))


def codes(storage: MemoryStorage) -> set[str]:
    return {fault.code for fault in load_metadata(storage).faults}


def test_a_healthy_header_has_no_faults() -> None:
    assert codes(image()) == set()
    require_openable(load_metadata(image()), writable=True)


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"version": 4}, "HEADER-VERSION"),
        ({"cluster_bits": 8}, "HEADER-CLUSTER-BITS"),
        ({"cluster_bits": 22}, "HEADER-CLUSTER-BITS"),
        ({"backing_file_offset": 0x10001}, "BACKING-OFFSET"),
        ({"incompatible_features": 1 << 40}, "FEATURE-UNKNOWN"),
        ({"refcount_order": 7}, "HEADER-REFCOUNT-ORDER"),
        ({"crypt_method": 3}, "HEADER-CRYPT-METHOD"),
        ({"incompatible_features": 8}, "COMPRESSION-TYPE"),
        ({"cluster_bits": 12, "incompatible_features": 16}, "EXTENDED-L2-CLUSTER-SIZE"),
        ({"refcount_table_clusters": 0}, "REFTABLE-MISSING"),
        ({"refcount_table_clusters": 1 << 31}, "REFTABLE-TOO-LARGE"),
        ({"refcount_table_offset": 0x10200}, "REFTABLE-UNALIGNED"),
        ({"l1_table_offset": 0x30001}, "L1-TABLE-UNALIGNED"),
        ({"l1_size": (limits.MAX_L1_SIZE >> 3) + 1}, "L1-TABLE-TOO-LARGE"),
        ({"size": 1 << 40}, "L1-TABLE-TOO-SMALL"),
        ({"size": 1 << 63}, "HEADER-SIZE"),
        ({"nb_snapshots": limits.MAX_SNAPSHOTS + 1}, "SNAPSHOTS-TOO-MANY"),
        ({"snapshots_offset": 3}, "SNAPSHOT-TABLE-UNALIGNED"),
        ({"crypt_method": 2}, "ENCRYPTION-MISSING"),
        ({"incompatible_features": 4}, "DATA-FILE-UNNAMED"),
        ({"autoclear_features": 2}, "DATA-FILE-RAW-BIT"),
    ],
)
def test_a_header_that_qemu_refuses_is_refused_with_its_code(changes: dict[str, int], code: str) -> None:
    meta = load_metadata(image(**changes))
    assert code in {fault.code for fault in meta.faults}
    refusal = refusal_of(meta)
    assert refusal is not None and refusal.refusal >= Refusal.OPEN
    with pytest.raises(ImageError) as caught:
        require_openable(meta)
    assert "\n" not in str(caught.value)


def test_foreign_and_unsupported_files_have_errors_of_their_own() -> None:
    with pytest.raises(NotQcow2Error):
        require_openable(load_metadata(MemoryStorage(b"not an image" * 100)))
    with pytest.raises(NotQcow2Error):
        require_openable(load_metadata(MemoryStorage(b"")))
    with pytest.raises(UnsupportedError):
        require_openable(load_metadata(image(version=9)))


def test_a_corrupt_image_opens_for_reading_but_not_for_writing() -> None:
    meta = load_metadata(image(incompatible_features=2))
    require_openable(meta)
    with pytest.raises(ImageError, match="marked corrupt"):
        require_openable(meta, writable=True)


def test_absurd_table_sizes_take_no_more_memory_than_their_limit() -> None:
    meta = load_metadata(image(l1_size=0xFFFFFFFF, refcount_table_clusters=0xFFFFFFFF))
    assert meta.l1.nbytes == limits.MAX_L1_SIZE
    assert meta.refcount_table.nbytes <= limits.MAX_REFCOUNT_TABLE_SIZE


@pytest.mark.parametrize("seed", range(60))
def test_random_bytes_behind_the_magic_never_raise(seed: int) -> None:
    rng = random.Random(seed)
    data = bytearray(build_header(HEALTHY).ljust(0x1000, b"\0"))
    for _ in range(rng.randrange(1, 30)):
        data[rng.randrange(4, 300)] = rng.randrange(256)
    meta = load_metadata(MemoryStorage(bytes(data)))
    assert isinstance(meta.faults, tuple)
    for part in (
        meta.extensions,
        meta.snapshots,
        meta.bitmap_directory,
        meta.backing_name,
        meta.luks,
        meta.feature_names,
    ):
        assert part is None or part is not NotImplemented


FIELDS = (
    (8, 8),
    (16, 4),
    (20, 4),
    (24, 8),
    (36, 4),
    (40, 8),
    (48, 8),
    (56, 4),
    (60, 4),
    (64, 8),
    (72, 8),
    (96, 4),
    (100, 4),
)
VALUES = (0, 1, 3, 8, 9, 12, 21, 22, 72, 103, 104, 112, 1024, 65536, 65537, 1 << 31, (1 << 63) - 1, 1 << 63)


@pytest.mark.oracle
def test_openings_agree_with_qemu_img_for_every_header_field(tmp_path: Path) -> None:
    """An image that `qemu-img check` cannot open prints no JSON: exactly those `refusal_of(for_check=True)` refuses."""
    base = tmp_path / "base.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", base, "64M"], check=True)
    rng = random.Random(7)
    for at, width in FIELDS:
        for value in rng.sample(VALUES, 6):
            copy = tmp_path / "copy.qcow2"
            shutil.copy(base, copy)
            with copy.open("r+b") as file:
                file.seek(at)
                file.write((value & ((1 << 8 * width) - 1)).to_bytes(width, "big"))
            storage = FileStorage.open(str(copy))
            ours = refusal_of(load_metadata(storage), for_check=True)
            storage.close()
            theirs = subprocess.run(
                ["qemu-img", "check", "--output=json", "-f", "qcow2", copy], capture_output=True, check=False
            )
            assert (ours is None) == bool(theirs.stdout.strip()), (at, value, ours, theirs.stderr)
