"""Structures, tables as runs, addresses, owners and explanations, on the shipped samples."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from formats.qcow2.refcounts import unpack
from sample_images import load_manifest, sample_path
from workbench.engine.address import Address, AddressKind, parse_address, resolve
from workbench.engine.explain import Outcome, explain_guest, explain_host
from workbench.engine.image import Image
from workbench.engine.metadata import Metadata, load_metadata
from workbench.engine.owners import owners_of, refcount_of
from workbench.engine.structures import Part, Structure, structures
from workbench.engine.tables import Run, l1_table, l2_table, refcount_block
from workbench.errors import ArgumentError
from workbench.storage.file import FileStorage
from workbench.storage.memory import MemoryStorage

HEALTHY = [each.name for each in load_manifest() if each.healthy]


@contextmanager
def metadata(name: str) -> Iterator[Metadata]:
    with FileStorage.open(sample_path(name)) as storage:
        yield load_metadata(storage)


# Tables


def unfold(runs: Iterator[Run]) -> list[tuple[int, ...]]:
    """Every entry's words again, in order."""
    out: list[tuple[int, ...]] = []
    for run in runs:
        assert run.first == len(out)
        out += [(run.words[0] + i * run.step, *run.words[1:]) for i in range(run.count)]
    return out


def words_image(words: np.ndarray) -> Metadata:
    """An image of 64 KiB clusters whose L1 table is these words."""
    from formats.qcow2.header import Header, build_header

    header = build_header(Header(l1_size=len(words), l1_table_offset=65536, size=1 << 30))
    return load_metadata(MemoryStorage(header.ljust(65536, b"\0") + words.astype(">u8").tobytes()))


@pytest.mark.parametrize("seed", range(20))
def test_runs_unfold_to_the_entries(seed: int) -> None:
    rng = np.random.default_rng(seed)
    parts = []
    for _ in range(int(rng.integers(1, 30))):
        size, start = int(rng.integers(1, 40)), int(rng.integers(0, 50)) << 16
        kind = rng.integers(0, 4)
        step = {0: 0, 1: 65536, 2: 512, 3: 0}[int(kind)]
        parts.append(np.uint64(0 if kind == 3 else start) + np.arange(size, dtype=np.uint64) * np.uint64(step))
    words = np.concatenate(parts)
    meta = words_image(words)
    table = l1_table(meta)
    assert [each[0] for each in unfold(table.runs(meta))] == words.tolist()
    assert [each.words[0] for each in table.runs(meta, fold=False)] == words.tolist()
    part = list(table.runs(meta, 3, 5))
    assert sum(run.count for run in part) == min(5, max(0, len(words) - 3))


def test_runs_go_on_over_windows_and_holes() -> None:
    words = np.zeros(300_000, dtype=np.uint64)
    words[100_000:250_000] = np.uint64(1 << 20) + np.arange(150_000, dtype=np.uint64) * np.uint64(65536)
    meta = words_image(words)
    found = [(run.first, run.count, run.step) for run in l1_table(meta).runs(meta)]
    assert found == [(0, 100_000, 0), (100_000, 150_000, 65536), (250_000, 50_000, 0)]


def test_entries_past_the_end_of_the_file_are_missing() -> None:
    words = np.arange(1, 100, dtype=np.uint64) << np.uint64(16)
    meta = words_image(words)
    object.__setattr__(meta, "file_size", 65536 + 80)
    last = list(l1_table(meta).runs(meta))[-1]
    assert last.missing and (last.first, last.count) == (10, 89)


@pytest.mark.parametrize("name", ["refcount-1", "refcount-64", "plain"])
def test_refcount_runs_match_the_block(name: str) -> None:
    with metadata(name) as meta:
        assert meta.geometry is not None
        offset = int(meta.refcount_table[0])
        block = refcount_block(meta, 0, offset)
        expected = unpack(meta.storage.read(offset, meta.geometry.cluster_size), meta.geometry.refcount_order).tolist()
        assert [each[0] for each in unfold(block.runs(meta))] == expected
        middle = list(block.runs(meta, 5, 3, fold=False))
        assert [run.words[0] for run in middle] == expected[5:8]


# Structures


def walk(structure: Structure, depth: int = 0) -> Iterator[Structure]:
    yield structure
    if structure.expandable():
        assert structure.child_count() == len(structure.children())
        for child in structure.children():
            yield from walk(child, depth + 1)


@pytest.mark.parametrize("name", [each.name for each in load_manifest()])
def test_the_tree_unfolds_on_every_sample(name: str) -> None:
    with metadata(name) as meta:
        paths = []
        for each in walk(structures(meta)):
            paths.append(each.path)
            node = each.annotate()
            assert node is None or node.offset == each.region.offset
            if each.table is not None:
                assert each.table.entries == sum(run.count for run in each.table.runs(meta))
        assert len(paths) == len(set(paths))
        for path in paths[1:]:
            assert resolve(meta, parse_address(path)).region is not None, path


def test_children_come_in_portions() -> None:
    with metadata("fragmented") as meta:
        l1 = next(each for each in structures(meta).children() if each.part is Part.L1)
        every = [each.path for each in l1.children()]
        assert [each.path for each in l1.children(1, 1)] == every[1:2]


# Addresses


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("0x5000", Address(AddressKind.HOST, 0x5000)),
        ("4096", Address(AddressKind.HOST, 4096)),
        ("12M", Address(AddressKind.HOST, 12 << 20)),
        ("g:1k", Address(AddressKind.GUEST, 1024)),
        ("guest:0X10", Address(AddressKind.GUEST, 16)),
        ("c:5", Address(AddressKind.CLUSTER, 5)),
        ("cluster:0x10", Address(AddressKind.CLUSTER, 16)),
        ("l1:3", Address(AddressKind.L1, 3)),
        ("L2:3.17", Address(AddressKind.L2, 3, 17)),
        ("rt:0", Address(AddressKind.REFCOUNT_TABLE, 0)),
        ("refcount-block:1.2", Address(AddressKind.REFCOUNT_BLOCK, 1, 2)),
        ("snapshot:1/l2:0.5", Address(AddressKind.L2, 0, 5, snapshot=1)),
        ("header", Address(AddressKind.NAMED, name="header")),
    ],
)
def test_addresses_are_read_and_written(text: str, address: Address) -> None:
    assert parse_address(text) == address
    assert parse_address(str(address)) == address


@pytest.mark.parametrize(
    "text",
    [
        "",
        "x",
        "l2:",
        "l2:a",
        "l1:3.1",
        "g:-1",
        "q:1",
        "c:1.5",
        "-1",
        "l2:3.",
        "inf",
        "g:1e400",
        "9" * 40,
        "snapshot:0/header",
    ],
)
def test_nonsense_is_no_address(text: str) -> None:
    with pytest.raises(ArgumentError):
        parse_address(text)


# Owners and explanations


@pytest.mark.parametrize("name", HEALTHY)
def test_references_found_equal_the_stored_refcount(name: str) -> None:
    with metadata(name) as meta:
        assert meta.geometry is not None
        clusters = meta.geometry.clusters(meta.file_size)
        chosen = range(clusters) if clusters < 300 else sorted(random.Random(1).sample(range(clusters), 300))
        for cluster in chosen:
            assert len(owners_of(meta, cluster)) == refcount_of(meta, cluster)[0], cluster


def test_owners_name_the_exact_entry() -> None:
    with metadata("cross-linked") as meta:
        shared = [o for c in range(meta.file_size // 4096) if len(o := owners_of(meta, c)) > 1]
        pointers = {owner.at for owners in shared for owner in owners}
        assert any(len(owners) == 2 for owners in shared)
        for owners in shared:
            for owner in owners:
                word = int.from_bytes(meta.storage.read(owner.at, 8), "big")
                assert word & 0x00FF_FFFF_FFFF_FE00 == owner.target.offset or word >> 62 & 1
        assert len(pointers) > 1


def test_owner_scan_can_be_cancelled_and_limited() -> None:
    with metadata("snapshots") as meta:
        every = owners_of(meta, 5)
        assert len(owners_of(meta, 5, limit=1)) == 1
        assert len(owners_of(meta, 5, cancel=lambda: True)) <= len(every)
        seen: list[tuple[int, int]] = []
        owners_of(meta, 5, progress=lambda done, total: seen.append((done, total)))
        assert seen[-1][0] == seen[-1][1]


@pytest.mark.parametrize("name", [each for each in HEALTHY if each not in ("luks", "aes")])
def test_translations_lead_to_the_bytes_that_a_read_gives(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(sample_path(name).parent)  # where an external data file is looked for
    rng = random.Random(7)
    with metadata(name) as meta, Image.open(sample_path(name)) as image:
        for _ in range(200):
            guest = rng.randrange(meta.header.size)
            found = explain_guest(meta, guest)
            assert found.outcome is not Outcome.BROKEN
            byte = image.read(guest, 1)
            if found.outcome is Outcome.DATA and found.external is None:
                assert found.host is not None and meta.storage.read(found.host, 1) == byte
                assert guest in [use.guest for use in explain_host(meta, found.host).uses]
            elif found.outcome is Outcome.ZERO or (found.outcome is Outcome.UNALLOCATED and not found.backing):
                assert byte == b"\0"


def test_translation_ends_where_the_mapping_is_broken() -> None:
    with metadata("unaligned-entry") as meta:
        outcomes = {explain_guest(meta, at).outcome for at in range(0, meta.header.size, 4096)}
        assert Outcome.BROKEN in outcomes
    with metadata("plain") as meta:
        assert explain_guest(meta, meta.header.size).outcome is Outcome.BEYOND_END
        table = l2_table(meta, 0, meta.file_size + 4096)
        assert [run.missing for run in table.runs(meta)] == [True]


def test_snapshot_views_have_their_own_translation() -> None:
    path: Path = sample_path("snapshots")
    with metadata("snapshots") as meta:
        for index, snapshot in enumerate(meta.snapshots):
            with Image.open(path, snapshot=snapshot.id) as image:
                for at in range(0, image.size, 65536):
                    found = explain_guest(meta, at, index)
                    if found.outcome is Outcome.DATA:
                        assert found.host is not None and meta.storage.read(found.host, 16) == image.read(at, 16)
