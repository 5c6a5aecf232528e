"""What lies in clusters that nothing refers to: lost tables are found under every geometry, guest data is not taken for one."""

from __future__ import annotations

import shutil
import struct
import subprocess
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest

from formats.qcow2.refcounts import pack, unpack
from formats.qcow2.tables import COPIED, compressed_entry
from workbench.engine.unreferenced import Grade, Unreferenced, decode, read_table, scan
from workbench.errors import StorageError
from workbench.storage.file import FileStorage
from workbench.storage.memory import MemoryStorage
from workbench.storage.overlay import Overlay
from workbench.units import Geometry

GEOMETRIES = [Geometry(bits) for bits in (9, 12, 16, 21)] + [Geometry(bits, extended_l2=True) for bits in (14, 16, 21)]
TABLE, FIRST = 4, 6


def make(geometry: Geometry, parts: Mapping[int, bytes], clusters: int) -> MemoryStorage:
    """A file of so many clusters with these bytes at the start of some, others zero."""
    storage = MemoryStorage(bytes(clusters << geometry.cluster_bits))
    for cluster, data in parts.items():
        storage.write(cluster << geometry.cluster_bits, data)
    return storage


def look(
    storage: MemoryStorage | FileStorage,
    geometry: Geometry,
    *,
    referenced: tuple[int, ...] = (0, 1, 2, 3),
    external: bool = False,
    limit: int | None = None,
) -> Unreferenced:
    used = np.zeros(geometry.clusters(storage.size()), dtype=bool)
    used[list(referenced)] = True
    return scan(storage, geometry, used, external=external, limit=limit)


def table(geometry: Geometry, entries: Mapping[int, int], *, bitmaps: Mapping[int, int] | None = None) -> bytes:
    """An L2 table with these entries (all subclusters allocated unless said otherwise)."""
    size = geometry.l2_entry_size
    out = bytearray(geometry.cluster_size)
    for index, entry in entries.items():
        out[index * size : index * size + 8] = entry.to_bytes(8, "big")
        if geometry.extended_l2:
            bitmap = (bitmaps or {}).get(index, 0xFFFFFFFF if not entry >> 62 & 1 else 0)
            out[index * size + 8 : index * size + 16] = bitmap.to_bytes(8, "big")
    return bytes(out)


def lost(
    geometry: Geometry, count: int = 5, *, flag: int = COPIED, change: Mapping[int, int] | None = None
) -> MemoryStorage:
    """A lost table in cluster 4 that maps `count` clusters from 6 on; `change` overrides entries."""
    entries = {i: flag | (FIRST + i) << geometry.cluster_bits for i in range(count)} | dict(change or {})
    data = {FIRST + i: b"guest data %d" % i for i in range(count)}
    return make(geometry, {TABLE: table(geometry, entries), **data}, FIRST + count + 2)


@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
def test_a_lost_table_is_found_with_all_that_it_maps(geometry: Geometry) -> None:
    found = look(lost(geometry), geometry)
    (only,) = found.tables
    assert only.offset == TABLE << geometry.cluster_bits
    assert (only.used, only.valid, only.odd, only.copied) == (5, 5, 0, 5)
    assert (only.targets, only.unreferenced, only.filled) == (5, 5, 5)
    assert only.grade is Grade.CERTAIN
    assert np.flatnonzero(found.mapped).tolist() == [6, 7, 8, 9, 10]
    assert np.flatnonzero(found.content).tolist() == [4, 6, 7, 8, 9, 10]
    assert np.flatnonzero(found.is_table).tolist() == [4]
    assert found.complete and not found.l1


@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
@pytest.mark.parametrize("odd", [1 << 57 | COPIED, 1 << 58, 0x7000_0000_0000 | COPIED, 0x200 | COPIED], ids=hex)
def test_one_odd_entry_does_not_make_a_table_foreign(geometry: Geometry, odd: int) -> None:
    bad = odd | (FIRST + 2) << geometry.cluster_bits
    found = look(lost(geometry, change={2: bad}), geometry)
    (only,) = found.tables
    assert only.odd <= 1
    assert found.mapped[[6, 7, 9, 10]].all()
    if odd & 0x7000_0000_0000 == 0 and (odd & 0x200 == 0 or geometry.cluster_bits > 9):
        assert found.mapped[8], "an odd entry that still names a cluster keeps it"


@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
def test_a_single_entry_is_a_table(geometry: Geometry) -> None:
    found = look(lost(geometry, 1), geometry)
    assert len(found.tables) == 1 and found.mapped[FIRST]


def test_a_snapshots_table_has_no_copied_flags() -> None:
    geometry = Geometry(16)
    found = look(lost(geometry, 8, flag=0), geometry)
    assert [each.grade for each in found.tables] == [Grade.LIKELY]


@pytest.mark.parametrize("bits", [9, 12, 16, 21])
@pytest.mark.parametrize("count", [1, 3, 7])
def test_a_few_compressed_entries_are_data_too(bits: int, count: int) -> None:
    geometry = Geometry(bits)
    size = geometry.cluster_size
    at, parts, entries = FIRST * size + 100, bytearray(), {}
    for index in range(count):
        press = zlib.compressobj(9, zlib.DEFLATED, -12)
        stream = press.compress(bytes([index + 1]) * size) + press.flush()
        entries[index] = compressed_entry(at + len(parts), len(stream), bits)
        parts += stream
    storage = make(geometry, {TABLE: table(geometry, entries)}, FIRST + 3)
    storage.write(at, parts)
    found = look(storage, geometry)
    (only,) = found.tables
    assert only.packed == count and only.grade is Grade.CERTAIN
    ends = FIRST + (100 + len(parts) - 1) // size
    assert np.flatnonzero(found.mapped).tolist()[: ends - FIRST + 1] == list(range(FIRST, ends + 1))


def test_a_stream_over_several_clusters_is_mapped_whole() -> None:
    geometry = Geometry(9)
    rng = np.random.default_rng(5)
    press = zlib.compressobj(9, zlib.DEFLATED, -12)
    stream = press.compress(rng.integers(0, 200, 512, dtype=np.uint8).tobytes()) + press.flush()
    at = FIRST * 512 + 400
    storage = make(geometry, {TABLE: table(geometry, {3: compressed_entry(at, len(stream), 9)})}, FIRST + 4)
    storage.write(at, stream)
    assert np.flatnonzero(look(storage, geometry).mapped).tolist() == [FIRST, FIRST + 1]


def test_subcluster_bitmaps_that_contradict_are_odd() -> None:
    geometry = Geometry(16, extended_l2=True)
    entries = {i: COPIED | (FIRST + i) << 16 for i in range(4)}
    fine = table(geometry, entries, bitmaps={0: 0xF, 1: 0xF0_0000_000F})
    wrong = table(geometry, entries, bitmaps={0: 1 << 32 | 1})
    for data, odd in ((fine, 0), (wrong, 1)):
        words = np.frombuffer(data, dtype=">u8").astype(np.uint64)
        assert decode(words, geometry, 20 << 16, external=False).odd == odd


def test_a_table_of_an_external_data_file_maps_nothing_here() -> None:
    geometry = Geometry(16)
    entries = {i: COPIED | (100 + i) << 16 for i in range(6)}
    found = look(make(geometry, {TABLE: table(geometry, entries)}, 8), geometry, external=True)
    assert [each.grade for each in found.tables] == [Grade.CERTAIN]
    assert not found.mapped.any()


def test_a_preallocated_table_over_empty_clusters_is_likely() -> None:
    geometry = Geometry(16)
    entries = {i: COPIED | (FIRST + i) << 16 for i in range(6)}
    found = look(make(geometry, {TABLE: table(geometry, entries)}, 14), geometry)
    assert [(each.grade, each.filled) for each in found.tables] == [(Grade.LIKELY, 0)]


def test_a_stale_copy_whose_clusters_are_all_in_use_is_no_lost_table() -> None:
    geometry = Geometry(16)
    found = look(lost(geometry), geometry, referenced=(0, 1, 2, 3, 6, 7, 8, 9, 10))
    assert not found.tables and found.content[TABLE]


@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
@pytest.mark.parametrize("referenced", [True, False], ids=["old copy", "lost"])
def test_an_l1_table_is_told_from_an_l2_table(geometry: Geometry, referenced: bool) -> None:
    bits = geometry.cluster_bits
    l1 = b"".join((COPIED | (5 + i) << bits).to_bytes(8, "big") for i in range(3))
    tables = {5 + i: table(geometry, {j: COPIED | (10 + 3 * i + j) << bits for j in range(3)}) for i in range(3)}
    data = {10 + i: b"data" for i in range(9)}
    storage = make(geometry, {TABLE: l1, **tables, **data}, 20)
    used = (0, 1, 2, 3, *(range(5, 19) if referenced else ()))
    found = look(storage, geometry, referenced=used)
    (only,) = found.l1
    assert (only.offset, only.used, only.tables) == (TABLE << bits, 3, 3)
    assert only.unreferenced == (0 if referenced else 3)
    assert [each.offset >> bits for each in found.tables] == ([] if referenced else [5, 6, 7])
    assert all(each.via_l1 and each.grade is Grade.CERTAIN for each in found.tables)


def test_a_lost_snapshots_tables_are_kept_though_most_of_their_clusters_are_shared() -> None:
    geometry = Geometry(16)
    l1 = (5 << 16).to_bytes(8, "big")
    entries = {i: (FIRST + i) << 16 for i in range(6)}
    storage = make(geometry, {TABLE: l1, 5: table(geometry, entries), **{FIRST + i: b"x" for i in range(6)}}, 14)
    found = look(storage, geometry, referenced=(0, 1, 2, 3, 6, 7, 8, 9, 10))
    assert found.is_table[[4, 5]].all() and found.mapped[11]


# -- what is no table ----------------------------------------------------------------------------------------------------


def _random(size: int) -> bytes:
    return np.random.default_rng(7).bytes(size)


def _text(size: int) -> bytes:
    return (b"The quick brown fox jumps over the lazy dog.\n" * (size // 45 + 1))[:size]


def _small_be(size: int) -> bytes:
    return b"".join(struct.pack(">Q", n % 300) for n in range(size // 8))


def _small_le(size: int) -> bytes:
    return b"".join(struct.pack("<Q", n) for n in range(size // 8))


def _le_pairs(size: int) -> bytes:
    return b"".join(struct.pack("<II", 0x40, n % 7) for n in range(size // 8))


def _fat(size: int) -> bytes:
    return b"".join(struct.pack("<I", n + 1) for n in range(size // 4))


def _refcounts(width: int) -> Callable[[int], bytes]:
    def make_block(size: int) -> bytes:
        used = size // width * 2 // 3
        return ((1).to_bytes(width, "big") * used).ljust(size, b"\0")

    return make_block


def _pages(size: int) -> bytes:
    """Sorted big-endian file offsets, as a database keeps them; they reach into clusters in use and past the end."""
    return b"".join(struct.pack(">Q", n * 4096) for n in range(1, size // 8 + 1))


def _pattern(size: int) -> bytes:
    return struct.pack(">Q", COPIED | FIRST << 16) * (size // 8)


def _gpt(size: int) -> bytes:
    entry = (
        b"\xaf\x3d\xc6\x0f\x83\x84\x72\x47\x8e\x79\x3d\x69\xd8\x47\x7d\xe4"
        + b"u" * 16
        + struct.pack("<QQQ", 2048, 99, 0)
    )
    return (entry.ljust(128, b"\0") * 4).ljust(size, b"\0")[:size]


@pytest.mark.parametrize(
    "content",
    [
        _random, _text, _small_be, _small_le, _le_pairs, _fat, _pages, _pattern, _gpt,
        _refcounts(1), _refcounts(2), _refcounts(4), _refcounts(8),
    ],
)  # fmt: skip
@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
def test_guest_data_is_not_taken_for_a_table(geometry: Geometry, content: Callable[[int], bytes]) -> None:
    size = geometry.cluster_size
    storage = make(geometry, {TABLE: content(size), 7: content(size), 8: b"\0\1" * 40}, 12)
    found = look(storage, geometry)
    assert not found.tables and not found.l1 and not found.mapped.any()
    assert np.flatnonzero(found.content).tolist() == [TABLE, 7, 8]


@pytest.mark.parametrize("order", [0, 3, 4, 6])
def test_an_old_refcount_table_is_no_table_of_the_disk(order: int) -> None:
    geometry = Geometry(16, refcount_order=order)
    block = np.zeros(geometry.refcount_block_entries, dtype=np.uint8)
    block[:150] = 1
    packed = pack(block.astype(unpack(bytes(65536), order).dtype), order)
    storage = make(geometry, {TABLE: struct.pack(">QQ", 7 << 16, 8 << 16), 7: packed, 8: packed}, 12)
    found = look(storage, geometry)
    assert not found.tables and not found.l1


@pytest.mark.parametrize("tool", ["mkfs.ext4", "mkfs.xfs", "mkfs.ntfs", "mkfs.vfat"])
@pytest.mark.parametrize("geometry", [Geometry(9), Geometry(12), Geometry(16), Geometry(16, extended_l2=True)], ids=str)
def test_a_real_file_system_holds_no_table(tmp_path: Path, tool: str, geometry: Geometry) -> None:
    if shutil.which(tool) is None:
        pytest.skip(f"{tool} is not installed")
    disk = tmp_path / "disk"
    with disk.open("wb") as out:
        out.truncate(320 << 20 if tool == "mkfs.xfs" else 64 << 20)
    force = ["-F", "-Q"] if tool == "mkfs.ntfs" else ["-q"] if tool in ("mkfs.ext4", "mkfs.xfs") else []
    subprocess.run([tool, *force, str(disk)], check=True, capture_output=True)
    storage = FileStorage.open(disk)
    try:
        found = look(storage, geometry, referenced=())
    finally:
        storage.close()
    assert found.content.any()
    assert not found.tables and not found.l1


# -- bounds --------------------------------------------------------------------------------------------------------------


def test_referenced_clusters_and_holes_are_not_read(tmp_path: Path) -> None:
    path = tmp_path / "sparse"
    with path.open("wb") as out:
        out.truncate(8 << 30)
        out.seek(5 << 30)
        out.write(b"here")
    storage = FileStorage.open(path)
    reads: list[int] = []
    plain = storage.read

    def counted(offset: int, length: int) -> bytes:
        reads.append(length)
        return plain(offset, length)

    storage.read = counted  # type: ignore[method-assign]
    try:
        found = look(storage, Geometry(16))
        assert sum(reads) <= 4 << 20
        assert found.runs().tolist() == [[5 << 14, (5 << 14) + 1]]
        assert found.looked_at == (8 << 30) - 4 * 65536 and found.complete
        reads.clear()
        scan(storage, Geometry(16), np.ones(8 << 14, dtype=bool))
        assert not reads
    finally:
        storage.close()


def test_a_limit_leaves_the_rest_named() -> None:
    geometry = Geometry(16)
    storage = make(geometry, {70: b"early", 900: b"late"}, 1024)
    found = look(storage, geometry, limit=1)
    assert not found.complete
    (start, end), *more = found.not_looked_at.tolist()
    assert end == 1024 and not more and start <= 900
    assert found.looked_at == (start - 4) << 16
    assert not found.content[900]


def test_a_cluster_that_cannot_be_read_counts_as_content() -> None:
    geometry = Geometry(16)

    class Failing(MemoryStorage):
        def read(self, offset: int, length: int) -> bytes:
            if offset <= 9 << 16 < offset + length:
                raise StorageError("cannot be read: Input/output error", path=self.path)
            return super().read(offset, length)

    plain = lost(geometry)
    found = look(Failing(plain.getvalue()), geometry)
    assert found.unreadable == 1 and found.content[9]
    assert len(found.tables) == 1


def test_one_table_can_be_read_by_itself() -> None:
    geometry = Geometry(16)
    storage = lost(geometry)
    read = read_table(storage, geometry, TABLE << 16, external=False)
    assert read is not None
    assert read[1].tolist() == [6, 7, 8, 9, 10]
    assert read_table(storage, geometry, 6 << 16, external=False) is None


@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
def test_what_was_read_once_is_known_to_further_scans(geometry: Geometry) -> None:
    storage, bits = lost(geometry), geometry.cluster_bits
    head = ((FIRST << bits).to_bytes(8, "big") + struct.pack(">IHH", 1, 1, 1)).ljust(40, b"\0") + b"1"
    storage.write((FIRST + 5) << bits, head)
    used = np.zeros(geometry.clusters(storage.size()), dtype=bool)
    used[:4] = True
    first = scan(storage, geometry, used)
    overlay, untold = Overlay(storage), MemoryStorage(storage.read(0, storage.size()))
    for each in (overlay, untold):
        each.write(FIRST << bits, bytes(geometry.cluster_size))
        each.write((FIRST + 6) << bits, b"put there since")
        each.truncate(storage.size() + geometry.cluster_size)
    used[FIRST + 1] = True
    again, anew = scan(overlay, geometry, used, known=first), scan(untold, geometry, used)
    for name in ("content", "mapped", "is_table"):
        assert (getattr(again, name) == getattr(anew, name)).all(), name
    assert (again.tables, again.l1, again.looked_at) == (anew.tables, anew.l1, anew.looked_at)
    assert again.snapshot_tables == anew.snapshot_tables == ((FIRST + 5) << bits,)


def test_a_scan_that_knows_the_content_reads_tables_alone() -> None:
    geometry = Geometry(16)
    storage = lost(geometry)
    used = np.zeros(geometry.clusters(storage.size()), dtype=bool)
    used[:4] = True
    first = scan(storage, geometry, used)
    reads: list[int] = []

    class Watched(Overlay):
        def read(self, offset: int, length: int) -> bytes:
            reads.append(length)
            return super().read(offset, length)

    assert scan(Watched(storage), geometry, used, known=first).tables == first.tables
    assert max(reads) <= geometry.cluster_size, "the tables, and what they name"
    reads.clear()
    other = MemoryStorage(storage.read(0, storage.size()))
    assert scan(Watched(other), geometry, used, known=first).tables == first.tables, "of another file nothing is known"
    assert max(reads) > geometry.cluster_size
