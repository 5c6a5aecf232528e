"""Compressed clusters: what is written any reader reads, what QEMU reads we read, and damage is an error, never a crash."""

from __future__ import annotations

import random
import struct
import subprocess
import zlib
from pathlib import Path

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from workbench.engine import codecs
from workbench.engine.codecs import CompressionType, compress, decompress
from workbench.errors import CorruptError, UnsupportedError

CLUSTER = 65536
BOTH = list(CompressionType)


def cluster(seed: int, size: int = CLUSTER) -> bytes:
    """Bytes that compress to about a third, with matches near and far."""
    rng = random.Random(seed)
    words = [rng.randbytes(rng.randrange(3, 40)) for _ in range(300)]
    made = bytearray()
    while len(made) < size:
        made += rng.choice(words)
    return bytes(made[:size])


def packed(data: bytes, kind: int) -> bytes:
    found = compress(data, kind)
    assert found is not None
    return found


@pytest.mark.parametrize("kind", BOTH)
@pytest.mark.parametrize("size", [512, 4096, CLUSTER, 2 << 20])
def test_a_cluster_comes_back_whole_with_garbage_behind_it(kind: CompressionType, size: int) -> None:
    data = cluster(size, size)
    for tail in (b"", b"\0" * 500, b"\xff" * 511, packed(data, kind)[:300]):
        assert decompress(packed(data, kind) + tail, size, kind) == data


@pytest.mark.parametrize("kind", BOTH)
def test_what_does_not_shrink_is_not_compressed(kind: CompressionType) -> None:
    assert compress(random.Random(1).randbytes(CLUSTER), kind) is None
    assert len(packed(bytes(CLUSTER), kind)) < 100


@pytest.mark.parametrize("kind", BOTH)
def test_a_cut_or_short_stream_is_corrupt_and_says_where(kind: CompressionType) -> None:
    whole = packed(cluster(3), kind)
    for data in (whole[: len(whole) // 2], b"", whole[:1], packed(cluster(3, 4096), kind)):
        with pytest.raises(CorruptError) as caught:
            decompress(data, CLUSTER, kind, path="a.qcow2", offset=0x50000)
        assert "a.qcow2: compressed cluster cannot be read" in str(caught.value) and "0x50000" in str(caught.value)


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(BOTH), st.integers(0, 2**32), st.binary(min_size=1, max_size=40), st.booleans())
def test_damage_gives_a_cluster_or_corrupt_error(kind: CompressionType, place: int, noise: bytes, fresh: bool) -> None:
    whole = bytearray(noise * 40 if fresh else packed(cluster(4, 4096), kind))
    place %= len(whole)
    whole[place : place + len(noise)] = noise
    try:
        assert len(decompress(bytes(whole), 4096, kind)) == 4096
    except CorruptError as error:
        assert "\n" not in str(error)


@settings(max_examples=100, deadline=None)
@given(st.sampled_from(BOTH), st.binary(min_size=1, max_size=64), st.sampled_from([512, 4096, CLUSTER]))
def test_any_compressible_cluster_survives(kind: CompressionType, seed: bytes, size: int) -> None:
    data = (seed * size)[:size]
    assert decompress(packed(data, kind), size, kind) == data


def test_deflate_written_here_needs_no_more_than_a_4_kib_window() -> None:
    data = cluster(5)
    stream, found = packed(data, 0), bytearray()
    strict = zlib.decompressobj(-12)
    found += strict.decompress(stream, 1000)  # output in small pieces: only the declared window is remembered
    while strict.unconsumed_tail:
        found += strict.decompress(strict.unconsumed_tail, 1000)
    assert bytes(found + strict.flush()) == data


def test_deflate_with_a_long_window_is_read() -> None:
    data = cluster(6)
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    assert decompress(packer.compress(data) + packer.flush(), CLUSTER, 0) == data


def test_zlib_does_the_work_where_isal_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    fast = packed(cluster(7), 0)
    monkeypatch.setattr(codecs, "_isal", lambda: None)
    assert decompress(fast, CLUSTER, 0) == cluster(7) == decompress(packed(cluster(7), 0), CLUSTER, 0)


def test_a_zstd_cluster_may_be_cut_into_frames_but_a_frame_may_not_give_too_much() -> None:
    data, packer = cluster(8), zstandard.ZstdCompressor()
    frames = b"".join(packer.compress(data[start : start + 10_000]) for start in range(0, CLUSTER, 10_000))
    assert decompress(frames + b"garbage", CLUSTER, 1) == data
    with pytest.raises(CorruptError, match="more than 4096"):
        decompress(packer.compress(data), 4096, 1)


def test_a_bomb_costs_one_cluster_of_memory() -> None:
    bomb = zstandard.ZstdCompressor().compress(bytes(256 << 20))
    with pytest.raises(CorruptError):
        decompress(bomb, CLUSTER, 1)
    assert decompress(zlib.compress(bytes(64 << 20), 9)[2:], CLUSTER, 0) == bytes(CLUSTER)


def test_unknown_types_and_sizes_are_unsupported() -> None:
    with pytest.raises(UnsupportedError):
        decompress(b"x", 512, 2)
    with pytest.raises(UnsupportedError):
        decompress(b"x", 1 << 30, 0)
    with pytest.raises(UnsupportedError):
        compress(b"x", 7)


def image_of(path: Path, streams: list[bytes]) -> None:
    """Put compressed streams into an empty image: an L2 table and the streams, packed, at its end; no refcounts."""
    with path.open("r+b") as file:
        header = file.read(48)
        (l1_offset,) = struct.unpack_from(">Q", header, 40)
        l2_offset = -(-file.seek(0, 2) // CLUSTER) * CLUSTER
        position, entries = l2_offset + CLUSTER, []
        for stream in streams:
            sectors = (position % 512 + len(stream) + 511) // 512
            entries.append(1 << 62 | (sectors - 1) << 54 | position)
            file.seek(position)
            file.write(stream)
            position += len(stream)
        file.truncate(-(-position // 512) * 512)
        file.seek(l2_offset)
        file.write(struct.pack(f">{len(entries)}Q", *entries))
        file.seek(l1_offset)
        file.write(struct.pack(">Q", l2_offset | 1 << 63))


@pytest.mark.oracle
@pytest.mark.parametrize("kind", BOTH)
def test_real_qemu_reads_what_is_written_here(kind: CompressionType, qemu_img: str, tmp_path: Path) -> None:
    image, raw = tmp_path / "i.qcow2", tmp_path / "raw"
    data = [cluster(seed) for seed in range(20)]
    streams = [packed(one, kind) for one in data]
    if kind is CompressionType.ZLIB:  # and a window beyond the 12 bits that QEMU asks for
        for level in (1, 9):
            packer = zlib.compressobj(level, zlib.DEFLATED, -15)
            streams.append(packer.compress(data[0]) + packer.flush())
            data.append(data[0])
        streams.append(compress(data[1], kind, level=9) or b"")
        data.append(data[1])
    options = f"compression_type={kind.name.lower()}"
    size = str(len(data) * CLUSTER)
    made = [qemu_img, "create", "-q", "-f", "qcow2", "-o", options, str(image), size]
    if subprocess.run(made, capture_output=True, check=False).returncode:
        pytest.skip(f"this qemu-img has no {options}")
    image_of(image, streams)
    subprocess.run([qemu_img, "convert", "-O", "raw", str(image), str(raw)], check=True)
    assert raw.read_bytes() == b"".join(data)


@pytest.mark.oracle
@pytest.mark.parametrize("kind", BOTH)
def test_what_real_qemu_writes_is_read_here(kind: CompressionType, qemu_img: str, tmp_path: Path) -> None:
    raw, image = tmp_path / "raw", tmp_path / "i.qcow2"
    data = [cluster(seed) for seed in range(8)]
    raw.write_bytes(b"".join(data))
    options = f"compression_type={kind.name.lower()}"
    made = [qemu_img, "convert", "-c", "-f", "raw", "-O", "qcow2", "-o", options, str(raw), str(image)]
    if subprocess.run(made, capture_output=True, check=False).returncode:
        pytest.skip(f"this qemu-img has no {options}")
    content = image.read_bytes()
    (l1_offset,) = struct.unpack_from(">Q", content, 40)
    l2_offset = struct.unpack_from(">Q", content, l1_offset)[0] & 0x00FFFFFFFFFFFE00
    for number, wanted in enumerate(data):
        entry = struct.unpack_from(">Q", content, l2_offset + number * 8)[0]
        assert entry >> 62 & 1
        start, sectors = entry & (1 << 54) - 1, (entry >> 54 & 0xFF) + 1
        assert decompress(content[start : start + sectors * 512 - start % 512], CLUSTER, kind) == wanted


@pytest.mark.parametrize("kind", BOTH)
def test_a_stream_is_known_by_the_whole_cluster_that_it_gives(kind: CompressionType) -> None:
    stream = packed(cluster(3), kind)
    assert codecs.is_stream(stream + b"\xff" * 100, CLUSTER)
    assert codecs.is_stream(stream[: len(stream) // 2], CLUSTER, cut=True)


def test_what_is_cut_short_or_only_stored_is_no_stream() -> None:
    stream = packed(cluster(3), CompressionType.ZLIB)
    assert not codecs.is_stream(stream[: len(stream) // 2], CLUSTER)
    assert not codecs.is_stream(packed(cluster(3, 4096), CompressionType.ZLIB), CLUSTER, cut=True)
    stored = b"\0\x00\x10\xff\xef" + bytes(range(256)) * 16
    assert not codecs.is_stream(stored, CLUSTER, cut=True) and not codecs.is_stream(b"", CLUSTER)
