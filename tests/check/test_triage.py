"""What nothing refers to is looked at whole, whatever its refcount: data is never called waste for want of a look."""

from __future__ import annotations

import zlib

import numpy as np
import pytest

from formats.qcow2.refcounts import pack, unpack
from formats.qcow2.tables import OFFSET_MASK, compressed_entry
from tests.campaigns.write_kit import new_image
from tests.engine.write.kit import meta, opened
from tests.engine.write.test_rebuild import (
    CLUSTER,
    DISK,
    filled,
    lose_l1,
    put,
    refcounts,
    reopen,
    set_refcounts,
    soil,
)  # fmt: skip
from workbench.check.run import check
from workbench.check.triage import Verdict
from workbench.engine.create import CreateOptions
from workbench.render.check_report import report
from workbench.repair.ledger import build_ledger
from workbench.repair.policy import Policy
from workbench.repair.triage import orphans
from workbench.repair.workspace import Workspace
from workbench.storage.memory import MemoryStorage


def big(clusters: int) -> MemoryStorage:
    """A disk of 1 GiB with so many clusters of data, of 4 KiB each."""
    storage = MemoryStorage(new_image(CreateOptions(1 << 30, cluster_size=4096)))
    with opened(storage) as image:
        for i in range(clusters):
            image.write(i * 4096, (b"%08d" % i) * 512)
    return storage


def kept(storage: MemoryStorage) -> np.ndarray:
    found = check(meta(storage))
    space = Workspace(MemoryStorage(storage.getvalue()), Policy())
    space.found = found
    return np.flatnonzero(orphans(space, build_ledger(space)))


@pytest.mark.parametrize("stored", [True, False], ids=["leaked", "counted as free"])
def test_a_lost_table_is_found_beside_lost_refcounts_too(stored: bool) -> None:
    storage = filled()
    places = lose_l1(storage)
    if not stored:
        set_refcounts(storage, [*places, 1], 0)
    found = check(meta(storage))
    (table,) = found.lost_tables
    assert table.offset == places[0] * CLUSTER and table.leaked == 20
    assert table.fits[0] == 0
    assert all(run.keep and run.counted is stored for run in found.orphans)
    assert set(places) <= set(kept(storage).tolist())


def test_more_leaked_clusters_than_any_sample_are_all_looked_at() -> None:
    storage = big(1500)
    found = meta(storage)
    for index in range(3):
        table = int(found.l1[index]) & OFFSET_MASK
        put(storage, found.header.l1_table_offset + index * 8, 0)
        if index == 1:
            storage.write(table, bytes(4096))  # one table is gone as well: only its data tells of it
    result = check(meta(storage))
    assert len(result.lost_tables) == 2
    assert result.unreferenced is not None and result.unreferenced.complete
    data = result.leaks
    assert result.kept_leaks >= data - 1
    assert kept(storage).size >= data - 1


def test_three_compressed_clusters_are_a_table() -> None:
    storage = filled(1)
    found = meta(storage)
    table = int(found.l1[0]) & OFFSET_MASK
    end = storage.size()
    at = end
    words = []
    for index in range(3):
        press = zlib.compressobj(6, zlib.DEFLATED, -12)
        stream = press.compress(bytes([index + 1]) * CLUSTER) + press.flush()
        storage.write(at, stream)
        words.append(compressed_entry(at, len(stream), 16))
        at += len(stream)
    storage.truncate(end + CLUSTER)
    storage.write(table, b"".join(word.to_bytes(8, "big") for word in words).ljust(CLUSTER, b"\0"))
    put(storage, found.header.l1_table_offset, 0)
    set_refcounts(storage, [end // CLUSTER], 3)
    result = check(meta(storage))
    assert [each.offset for each in result.lost_tables] == [table]
    runs = [run for run in result.orphans if run.offset <= end < run.offset + run.length]
    assert runs and runs[0].keep


def test_what_was_not_looked_at_is_not_called_waste() -> None:
    storage = filled()
    set_refcounts(storage, [storage.size() // CLUSTER + 3], 1)
    storage.write((storage.size() // CLUSTER + 3) * CLUSTER, b"x" * CLUSTER)
    looked, quick = check(meta(storage)), check(meta(storage), fast=True)
    assert [run.verdict for run in looked.orphans] == [Verdict.WASTE]
    assert [run.verdict for run in quick.orphans] == [Verdict.UNKNOWN]
    assert quick.orphans[0].keep


def test_an_entry_that_cannot_be_read_explains_a_leak() -> None:
    storage = filled()
    found = meta(storage)
    table = int(found.l1[0]) & OFFSET_MASK
    last = int.from_bytes(storage.read(table + 19 * 8, 8), "big") & OFFSET_MASK
    put(storage, table + 19 * 8, 1 << 63 | 1 << 45)
    result = check(meta(storage))
    (run,) = result.orphans
    assert run.offset == last and run.keep


def test_a_snapshot_table_that_nothing_refers_to_keeps_what_is_leaked() -> None:
    storage = filled(snapshot=True)
    places = np.flatnonzero(refcounts(storage))
    storage.write(60, bytes(12))
    result = check(meta(storage))
    leaked = {c for run in result.orphans for c in range(run.offset >> 16, (run.offset + run.length) >> 16)}
    assert leaked <= set(places.tolist()) and all(run.keep for run in result.orphans)
    assert result.unreferenced is not None and len(result.unreferenced.snapshot_tables) == 1


def test_a_sound_image_with_remnants_in_free_clusters_has_no_lost_table() -> None:
    storage = big(600)
    found = meta(storage)
    table = int(found.l1[1]) & OFFSET_MASK
    words = np.frombuffer(storage.read(table, 4096), dtype=">u8").astype(np.uint64)
    places = ((words[words != 0] & np.uint64(OFFSET_MASK)) >> np.uint64(12)).astype(int).tolist()
    put(storage, found.header.l1_table_offset + 8, 0)
    block = int(found.refcount_table[0])
    counts = unpack(storage.read(block, 4096), 4)
    counts[[table >> 12, *places]] = 0
    storage.write(block, pack(counts, 4))
    result = check(meta(storage))
    assert result.clean and not result.lost_tables and not result.orphans


def test_a_table_in_free_clusters_of_a_disk_without_any_is_named_and_never_certain() -> None:
    """The mapping may never have reached the disk; or it is what a deleted snapshot left behind."""
    storage = filled()
    places = lose_l1(storage)
    set_refcounts(storage, places, 0)
    result = check(meta(storage))
    assert result.clean and len(result.lost_tables) == 1 and not result.lost_tables[0].certain
    assert result.findings.by_code == {"L2-TABLE-LOST": (1, 0)}


def test_check_warns_of_opening_a_dirty_image_with_orphans_and_not_of_others() -> None:
    storage = filled()
    lose_l1(storage)
    before = check(meta(storage))
    soil(storage)
    result = check(meta(storage))
    assert (result.exit_code, result.corruptions, result.leaks) == (before.exit_code, before.corruptions, before.leaks)
    assert result.unsafe_to_write and not before.unsafe_to_write
    (row,) = result.findings.of("OPEN-FREES-DATA")
    assert row.counted == 0 and row.count == 21
    assert result.as_json("x")["do-not-open-writable"] is True
    assert any("Do not open this image for writing" in line for line in report(result))
    reopen(storage)
    after = check(meta(storage))
    assert not after.unsafe_to_write and "do-not-open-writable" not in after.as_json("x")
    assert after.kept_leaks == 21
    clean = filled(snapshot=True)
    soil(clean)
    assert not check(meta(clean)).unsafe_to_write
    assert meta(clean).header.size == DISK
