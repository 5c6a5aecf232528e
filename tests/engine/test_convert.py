"""Conversion: the same bytes, holes where zeros are, nothing half done left behind, sources never touched."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from formats.qcow2.tables import COPIED, compressed_entry
from tests.engine.tiny import DATA, tiny
from workbench.check import check
from workbench.engine.ahead import Cancelled
from workbench.engine.codecs import CompressionType, compress, unpack_start
from workbench.engine.convert import CopyResult, Source, convert_to_raw, data_spans
from workbench.engine.convert_qcow2 import convert_to_qcow2
from workbench.engine.image import Image
from workbench.engine.metadata import load_metadata
from workbench.errors import ArgumentError, CorruptError, LockedError
from workbench.storage.file import FileStorage
from workbench.storage.locks import LockMode, acquire

C = 1 << 16


def sample(folder: Path, *, damaged: bool = False) -> Path:
    """Data, a hole, two compressed clusters, a half-zero cluster, an odd end."""
    packed = compress(b"compress me " * 5461 + b"....", 0)
    assert packed is not None
    at = (DATA + 3) * C + 11
    words = [
        COPIED | DATA * C,
        COPIED | (DATA + 1) * C,
        0,
        compressed_entry(at, len(packed), 16),
        compressed_entry(at, len(packed), 16),
        COPIED | (DATA + 2) * C,
        *([COPIED | 0x50200] if damaged else [0]),
    ]
    noise = random.Random(1).randbytes(2 * C)
    storage = tiny(words, size=7 * C + 512, data={DATA: noise, DATA + 2: bytes(C // 2) + b"\x99" * (C // 2)})
    storage.write(at, packed)
    path = folder / "source.qcow2"
    path.write_bytes(storage.getvalue())
    return path


def source(image: Image) -> Source:
    return Source(image.chain, image.size)


def test_raw_output_has_the_same_bytes_and_holes(tmp_path: Path) -> None:
    with Image.open(sample(tmp_path)) as image:
        seen: list[tuple[int, int]] = []
        result = convert_to_raw(
            source(image), tmp_path / "out.raw", progress=lambda done, total: seen.append((done, total))
        )
        content = image.read(0, image.size)
        assert result.data == 5 * C and not result.lost and seen[-1] == (image.size, image.size)
    assert (tmp_path / "out.raw").read_bytes() == content
    assert (tmp_path / "out.raw").stat().st_blocks * 512 <= 5 * C
    assert sorted(each.name for each in tmp_path.iterdir()) == ["out.raw", "source.qcow2"]


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(
    "options", [{}, {"cluster_size": 512}, {"cluster_size": 2 << 20}, {"extended_l2": True}, {"compat": 2}]
)
def test_qcow2_output_has_the_same_bytes(tmp_path: Path, options: dict[str, object], packed: bool) -> None:
    out = tmp_path / "out.qcow2"
    with Image.open(sample(tmp_path)) as image:
        convert_to_qcow2(source(image), out, options=options, compress=packed)
        with Image.open(out) as copy:
            assert copy.size == image.size
            assert copy.read(0, copy.size) == image.read(0, image.size)
            assert any(each.compressed for each in copy.extents()) == packed
            assert any(not each.present for each in copy.extents()) or options.get("cluster_size") == 2 << 20


def test_damage_ends_the_copy_and_leaves_what_was_there(tmp_path: Path) -> None:
    out = tmp_path / "out.raw"
    out.write_bytes(b"precious")
    with Image.open(sample(tmp_path, damaged=True)) as image:
        with pytest.raises(CorruptError):
            convert_to_raw(source(image), out)
        assert out.read_bytes() == b"precious"
        assert sorted(each.name for each in tmp_path.iterdir()) == ["out.raw", "source.qcow2"]
        result = convert_to_raw(source(image), out, salvage=True)
        assert [(start, length) for start, length, _ in result.lost] == [(6 * C, C)]
        assert out.read_bytes() == image.read(0, 6 * C) + bytes(C + 512)


@pytest.mark.parametrize("form", ["raw", "qcow2"])
def test_what_is_lost_side_by_side_is_one_range_and_costs_no_reading(tmp_path: Path, form: str) -> None:
    """2 TiB of L1 entries that lead nowhere, and two wrong L2 entries behind some data."""
    words = [COPIED | DATA * C, COPIED | 0x50200, COPIED | 0x60200, COPIED | (DATA + 1) * C]
    storage = tiny(words, size=2 << 40, data={DATA: b"\1" * C, DATA + 1: b"\2" * C})
    l1, entries = storage.size(), 4096
    storage.truncate(l1 + C)
    storage.write(l1, storage.read(int.from_bytes(storage.read(40, 8), "big"), 8))
    storage.write(l1 + 8, b"\x60" * 8 * (entries - 1))
    storage.write(36, entries.to_bytes(4, "big") + l1.to_bytes(8, "big"))
    path, out = tmp_path / "source.qcow2", tmp_path / "out"
    path.write_bytes(storage.getvalue())
    with Image.open(path) as image:
        assert sum(1 for _ in image.extents()) < 10
        result = (convert_to_raw if form == "raw" else convert_to_qcow2)(source(image), out, salvage=True)
    assert [(start, length) for start, length, _ in result.lost] == [(C, 2 * C), (512 << 20, (2 << 40) - (512 << 20))]
    assert result.data == 2 * C
    with FileStorage.open(out) as copy:
        if form == "raw":
            assert copy.read(0, 5 * C) == b"\1" * C + bytes(2 * C) + b"\2" * C + bytes(C)


def test_ranges_told_out_of_order_are_joined_in_the_end() -> None:
    result = CopyResult()
    for start in (8, 2, 0, 4, 12):
        result.lose(start, 2, f"at {start}")
    result.settle()
    assert result.lost == [(0, 6, "at 0"), (8, 2, "at 8"), (12, 2, "at 12")]


@pytest.mark.parametrize("form", ["raw", "qcow2"])
@pytest.mark.parametrize("kind", CompressionType)
def test_of_a_stream_that_was_cut_off_what_unpacks_is_kept(tmp_path: Path, form: str, kind: CompressionType) -> None:
    plain = random.Random(4).randbytes(C // 2) + bytes(range(256)) * (C // 512)
    packed = compress(plain, kind)
    assert packed is not None
    at = (DATA + 1) * C
    storage = tiny([COPIED | DATA * C, compressed_entry(at, len(packed), 16)], size=2 * C, data={DATA: b"\1" * C})
    if kind is CompressionType.ZSTD:
        storage.write(72, (8).to_bytes(8, "big"))
        storage.write(100, (112).to_bytes(4, "big") + b"\1" + bytes(7))
    storage.write(at, packed[: len(packed) * 3 // 4])
    storage.truncate(at + len(packed) * 3 // 4)
    path, out = tmp_path / "source.qcow2", tmp_path / "out"
    path.write_bytes(storage.getvalue())
    with Image.open(path) as image:
        result = (convert_to_raw if form == "raw" else convert_to_qcow2)(source(image), out, salvage=True)
    ((start, length, reason),) = result.lost
    kept = start - C
    assert start + length == 2 * C and "compressed cluster cannot be read" in reason
    assert (kept > C // 4) if kind is CompressionType.ZLIB else kept >= 0
    if form == "raw":
        content = out.read_bytes()
    else:
        with Image.open(out) as copy:
            content = copy.read(0, 2 * C)
    assert content == b"\1" * C + plain[:kept] + bytes(length)


def test_a_file_may_end_with_its_last_stream_within_the_sector_that_the_entry_names(tmp_path: Path) -> None:
    packed = compress(b"compress me " * 5461 + b"....", CompressionType.ZLIB)
    assert packed is not None and len(packed) % 512
    at = (DATA + 1) * C
    storage = tiny([compressed_entry(at, -(-len(packed) // 512) * 512, 16)], size=C)
    storage.write(at, packed)
    storage.truncate(at + len(packed))
    path = tmp_path / "source.qcow2"
    path.write_bytes(storage.getvalue())
    found = check(load_metadata(storage))
    assert not found.corruptions and not found.findings.rows("COMPRESSED-BEYOND-EOF").size
    with Image.open(path) as image:
        assert image.read(0, C) == b"compress me " * 5461 + b"...."


def test_of_a_stream_that_contradicts_itself_nothing_is_taken_for_data() -> None:
    packed = bytearray(compress(b"compress me " * 5461 + b"....", CompressionType.ZLIB) or b"")
    packed[3:20] = b"\xff" * 17
    assert unpack_start(packed, C, CompressionType.ZLIB) == b""


def test_cancelling_leaves_no_file(tmp_path: Path) -> None:
    with Image.open(sample(tmp_path)) as image, pytest.raises(Cancelled):
        convert_to_raw(source(image), tmp_path / "out.raw", cancel=lambda: True)
    assert [each.name for each in tmp_path.iterdir()] == ["source.qcow2"]


def test_a_source_is_never_written_over(tmp_path: Path) -> None:
    path = sample(tmp_path)
    (tmp_path / "other-name").symlink_to(path)
    before = path.read_bytes()
    with Image.open(path) as image:
        for name in ("source.qcow2", "other-name"):
            with pytest.raises(ArgumentError, match="read by this very conversion"):
                convert_to_raw(source(image), tmp_path / name)
    assert path.read_bytes() == before


def test_a_file_that_a_vm_holds_is_not_replaced(tmp_path: Path) -> None:
    out = tmp_path / "out.raw"
    out.write_bytes(b"in use")
    with (
        FileStorage.open(out) as held,
        acquire(held, LockMode.READ),
        Image.open(sample(tmp_path)) as image,
        pytest.raises(LockedError),
    ):
        convert_to_raw(source(image), out)
    assert out.read_bytes() == b"in use"


def test_in_place_zeroes_what_was_there(tmp_path: Path) -> None:
    out = tmp_path / "out.raw"
    out.write_bytes(b"\xff" * 9 * C)
    inode = out.stat().st_ino
    with Image.open(sample(tmp_path)) as image:
        convert_to_raw(source(image), out, in_place=True)
        assert out.read_bytes() == image.read(0, image.size)
    assert out.stat().st_ino == inode


def test_spans_of_data_are_whole_blocks() -> None:
    block = 4096
    data = bytearray(5 * block + 100)
    data[block + 17] = 1
    data[2 * block] = 1
    assert data_spans(memoryview(data)) == [(block, 3 * block)]
    data[-1] = 1
    assert data_spans(memoryview(data)) == [(block, 3 * block), (5 * block, 5 * block + 100)]
    assert data_spans(memoryview(bytes(3 * block))) == []
