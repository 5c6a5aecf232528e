"""Opening a dirty image counts its refcounts anew, and takes the count from nothing that may be the guest's data."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from formats.qcow2.header import INCOMPATIBLE
from formats.qcow2.refcounts import pack, unpack
from formats.qcow2.tables import COPIED, OFFSET_MASK
from tests.engine.write.kit import disk, fresh, meta, opened
from workbench.check.run import check
from workbench.engine.image import Image
from workbench.engine.metadata import load_metadata
from workbench.engine.snapshots import create_snapshot, delete_snapshot
from workbench.errors import CorruptError
from workbench.storage.memory import MemoryStorage

CLUSTER = 65536
DISK = 8 << 20


def filled(clusters: int = 20, *, snapshot: bool = False, **options: object) -> MemoryStorage:
    """An image with so many clusters of data, and what a snapshot of it changes."""
    storage = fresh(DISK, **options)
    with opened(storage) as image:
        image.write(0, b"".join(bytes([i + 1]) * CLUSTER for i in range(clusters)))
    if snapshot:
        with opened(storage) as image:
            create_snapshot(image, "before", now=0.0)
        with opened(storage) as image:
            image.write(0, b"\xee" * CLUSTER * 2)
    return storage


def soil(storage: MemoryStorage) -> None:
    """Set the dirty bit."""
    features = int.from_bytes(storage.read(72, 8), "big") | INCOMPATIBLE["dirty"].mask
    storage.write(72, features.to_bytes(8, "big"))


def put(storage: MemoryStorage, at: int, word: int) -> None:
    storage.write(at, word.to_bytes(8, "big"))


def refcounts(storage: MemoryStorage) -> np.ndarray:
    found = meta(storage)
    return unpack(storage.read(int(found.refcount_table[0]), CLUSTER), found.header.refcount_order)


def set_refcounts(storage: MemoryStorage, clusters: list[int], value: int) -> None:
    found = meta(storage)
    counts = refcounts(storage)
    counts[clusters] = value
    storage.write(int(found.refcount_table[0]), pack(counts, found.header.refcount_order))


def lose_l1(storage: MemoryStorage) -> list[int]:
    """Zero the first L1 entry; the host clusters that only it led to."""
    found = meta(storage)
    table = int(found.l1[0]) & OFFSET_MASK
    words = np.frombuffer(storage.read(table, CLUSTER), dtype=">u8").astype(np.uint64)
    put(storage, found.header.l1_table_offset, 0)
    return [
        table // CLUSTER,
        *((words[words != 0] & np.uint64(OFFSET_MASK)) // np.uint64(CLUSTER)).astype(int).tolist(),
    ]


def reopen(storage: MemoryStorage) -> None:
    with opened(storage):
        pass
    assert not meta(storage).header.has("dirty")


@pytest.mark.parametrize("stored", [True, False], ids=["counted", "counted lazily"])
def test_what_a_lost_l1_entry_led_to_stays_counted(stored: bool) -> None:
    storage = filled()
    orphans = lose_l1(storage)
    if not stored:
        set_refcounts(storage, orphans, 0)
    soil(storage)
    kept = {cluster: storage.read(cluster * CLUSTER, CLUSTER) for cluster in orphans}
    reopen(storage)
    assert (refcounts(storage)[orphans] == 1).all()
    with opened(storage) as image:
        image.write(0, b"\x77" * DISK)
    assert {cluster: storage.read(cluster * CLUSTER, CLUSTER) for cluster in orphans} == kept


def test_an_emptied_table_keeps_its_data_though_nothing_was_counted() -> None:
    storage = filled()
    table = int(meta(storage).l1[0]) & OFFSET_MASK
    words = np.frombuffer(storage.read(table, CLUSTER), dtype=">u8").astype(np.uint64)
    data = ((words[words != 0] & np.uint64(OFFSET_MASK)) // np.uint64(CLUSTER)).astype(int).tolist()
    storage.write(table, bytes(CLUSTER))
    set_refcounts(storage, data, 0)
    soil(storage)
    reopen(storage)
    assert (refcounts(storage)[data] == 1).all()


def test_empty_leaked_clusters_are_freed() -> None:
    storage = filled(4)
    last = storage.size() // CLUSTER
    storage.truncate((last + 3) * CLUSTER)
    set_refcounts(storage, [last, last + 1, last + 2], 1)
    storage.write((last + 1) * CLUSTER, b"something")
    soil(storage)
    reopen(storage)
    assert refcounts(storage)[last : last + 3].tolist() == [0, 1, 0]


def test_a_sound_dirty_image_comes_out_clean() -> None:
    storage = filled(snapshot=True)
    before = disk(storage)
    set_refcounts(storage, list(range(9, 13)), 0)
    soil(storage)
    reopen(storage)
    assert disk(storage) == before
    result = check(meta(storage))
    assert (result.corruptions, result.leaks) == (0, 0)


def test_a_lost_snapshot_keeps_its_counts_and_no_copied_flag_is_set() -> None:
    storage = filled(snapshot=True)
    entry = meta(storage).snapshots[0]
    tree = meta(storage).snapshot_l1(entry)
    before = refcounts(storage)
    storage.write(60, bytes(12))  # nb_snapshots and snapshots_offset
    soil(storage)
    reopen(storage)
    after = refcounts(storage)
    held = before > 0
    table = meta(storage).header.refcount_table_offset // CLUSTER
    held[table] = False
    assert (after[held] >= before[held]).all()
    words = np.frombuffer(storage.read(int(meta(storage).l1[0]) & OFFSET_MASK, CLUSTER), dtype=">u8").astype(np.uint64)
    shared = words[2:20]
    assert not (shared & np.uint64(COPIED)).any()
    snapshot = np.frombuffer(storage.read(int(tree[0]) & OFFSET_MASK, CLUSTER), dtype=">u8").astype(np.uint64)
    with opened(storage) as image:
        image.write(0, b"\x55" * DISK)
    assert storage.read(int(snapshot[5]) & OFFSET_MASK, CLUSTER) == bytes([6]) * CLUSTER


@pytest.mark.parametrize("how", ["table past the end", "an entry that ends early", "its L1 table unaligned"])
def test_a_snapshot_that_cannot_be_read_stops_the_opening(how: str) -> None:
    storage = filled(snapshot=True)
    found = meta(storage)
    if how == "table past the end":
        put(storage, 64, 1 << 40)
    elif how == "an entry that ends early":
        storage.write(60, (3).to_bytes(4, "big"))
    else:
        put(storage, found.header.snapshots_offset, found.snapshots[0].l1_table_offset + 512)
    soil(storage)
    before = storage.getvalue()
    with pytest.raises(Exception, match=r"qwb (repair|check)"), opened(storage):
        pass
    assert storage.getvalue() == before


def test_a_snapshot_is_not_deleted_on_refcounts_that_are_too_low() -> None:
    storage = filled(snapshot=True)
    words = np.frombuffer(storage.read(int(meta(storage).l1[0]) & OFFSET_MASK, CLUSTER), dtype=">u8").astype(np.uint64)
    shared = int(words[5]) & OFFSET_MASK
    set_refcounts(storage, [shared // CLUSTER], 1)
    before = storage.getvalue()
    with opened(storage) as image, pytest.raises(CorruptError, match="lower than its references"):
        delete_snapshot(image, "before")
    assert storage.getvalue() == before


def test_a_snapshot_is_not_taken_on_refcounts_that_are_too_low() -> None:
    storage = filled()
    words = np.frombuffer(storage.read(int(meta(storage).l1[0]) & OFFSET_MASK, CLUSTER), dtype=">u8").astype(np.uint64)
    set_refcounts(storage, [(int(words[5]) & OFFSET_MASK) // CLUSTER], 0)
    with opened(storage) as image, pytest.raises(CorruptError, match="lower than its references"):
        create_snapshot(image, "now", now=0.0)


def test_a_cluster_that_is_said_to_be_shared_is_not_freed_on_a_refcount_of_one() -> None:
    storage = filled(snapshot=True)
    words = np.frombuffer(storage.read(int(meta(storage).l1[0]) & OFFSET_MASK, CLUSTER), dtype=">u8").astype(np.uint64)
    shared = int(words[5]) & OFFSET_MASK
    set_refcounts(storage, [shared // CLUSTER], 1)
    with opened(storage) as image:
        image.write(5 * CLUSTER, b"\xaa" * CLUSTER)
    with opened(storage) as image:
        image.write(4 << 20, b"\xbb" * (2 << 20))
    assert storage.read(shared, CLUSTER) == bytes([6]) * CLUSTER


@pytest.mark.skipif(shutil.which("qemu-io") is None, reason="qemu-io is not installed")
@pytest.mark.parametrize("lazy", ["off", "on"])
@pytest.mark.parametrize("extended", ["off", "on"])
def test_qemu_never_writes_over_what_was_kept(tmp_path: Path, lazy: str, extended: str) -> None:
    path = tmp_path / "disk.qcow2"
    options = f"lazy_refcounts={lazy},extended_l2={extended}"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "-o", options, path, "1G"], check=True)
    writes = [word for i in range(160) for word in ("-c", f"write -P {i + 1} {i * 64}k 64k")]
    subprocess.run(["qemu-io", "-f", "qcow2", *writes, path], check=True, capture_output=True)
    storage = MemoryStorage(path.read_bytes())
    found = load_metadata(storage)
    table = int(found.l1[0]) & OFFSET_MASK
    words = np.frombuffer(storage.read(table, CLUSTER), dtype=">u8").astype(np.uint64)
    if extended == "on":
        words = words[::2]
    places = [int(word) & OFFSET_MASK for word in words[:160]]
    assert all(places)
    put(storage, found.header.l1_table_offset, 0)
    soil(storage)
    path.write_bytes(storage.getvalue())
    with Image.open(str(path), writable=True) as image:
        assert not image.meta.header.has("dirty")
    subprocess.run(["qemu-io", "-f", "qcow2", "-c", "write -P 0xdd 512M 64M", path], check=True, capture_output=True)
    after = path.read_bytes()
    for number, place in enumerate(places):
        assert after[place : place + CLUSTER] == bytes([number + 1]) * CLUSTER
