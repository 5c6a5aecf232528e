"""Compressed clusters: raw deflate (compression_type 0) and Zstandard (1) (spec: Compressed Clusters Descriptor).

Both directions let other threads run. Reading accepts whatever QEMU reads; writing keeps to what any reader can read.
"""

from __future__ import annotations

import threading
import zlib
from enum import IntEnum
from functools import cache
from typing import TYPE_CHECKING, Any, Final

from workbench.errors import CorruptError, UnsupportedError

if TYPE_CHECKING:
    import zstandard

_RAW_READ: Final = -15
"""Any deflate window. QEMU asks for 12 bits, but hands zlib the whole cluster as output buffer, and then zlib lets a
match reach back as far as that buffer goes: a stream with a longer window reads well in QEMU, so it must here."""
_RAW_WRITE: Final = -12
"""QEMU writes with a 4 KiB window; a strict reader with such a window must be able to follow."""
_ISAL_LEVEL: Final = 3
_RETRY_BELOW: Final = 8
"""Clusters that isal makes this many times smaller are tried with zlib too: quick on them, and often a third smaller."""
_MAX_CLUSTER: Final = 2 << 20
_ZSTD_MAGIC: Final = b"\x28\xb5\x2f\xfd"
_ENOUGH: Final = 2048
"""Bytes of a cluster that a stream gives before it is cut off, to count as one."""
_ZSTD_WINDOW: Final = 128 << 20
"""What zstd, and so QEMU, accepts by default. Only as much of it is touched as a cluster fills."""


class CompressionType(IntEnum):
    """The header's compression_type."""

    ZLIB = 0
    ZSTD = 1


@cache
def _isal() -> Any:
    """isal.isal_zlib, or None where it is not installed (then zlib does everything, more slowly)."""
    try:
        from isal import isal_zlib
    except ImportError:
        return None
    return isal_zlib


def decompress(
    data: bytes | memoryview, cluster_size: int, compression: int, *, path: str | None = None, offset: int | None = None
) -> bytes:
    """The `cluster_size` bytes that start the stream in `data`; what follows the stream is ignored.

    `data` is what the L2 entry describes: as a rule a few bytes too many. Memory is bounded by the cluster size.
    Raises CorruptError (with `path` and the host `offset` given) for a stream that is damaged or gives fewer bytes, and
    UnsupportedError for an unknown compression type.
    """
    if not 0 < cluster_size <= _MAX_CLUSTER:
        raise UnsupportedError(f"cluster size {cluster_size} is beyond 2 MiB", path=path)
    if compression == CompressionType.ZLIB:
        found = _inflate(data, cluster_size)
    elif compression == CompressionType.ZSTD:
        found = _unzstd(data, cluster_size)
    else:
        raise UnsupportedError(f"unknown compression type {compression}", path=path)
    if isinstance(found, bytes) and len(found) == cluster_size:
        return found
    reason = f"gives {len(found)} of {cluster_size} bytes" if isinstance(found, bytes) else found.reason
    name = CompressionType(compression).name.lower()
    raise CorruptError(f"compressed cluster cannot be read: {name} {reason}", path=path, offset=offset)


def unpack_start(data: bytes | memoryview, cluster_size: int, compression: int) -> bytes:
    """What a stream that was cut off gives before it ends, at most `cluster_size` bytes; for a salvage, so it never raises.

    Nothing for a stream that contradicts itself: what came before the contradiction may be wrong as well.
    """
    if not 0 < cluster_size <= _MAX_CLUSTER:
        return b""
    found: bytes | _Failure = b""
    if compression == CompressionType.ZLIB:
        found = _inflate(data, cluster_size)
    elif compression == CompressionType.ZSTD:
        found = _unzstd_start(data, cluster_size)
    return found if isinstance(found, bytes) else b""


def is_stream(data: bytes, cluster_size: int, *, cut: bool = False) -> bool:
    """Whether a compressed cluster, as QEMU writes them, starts here: raw deflate of one whole cluster, or zstd.

    cut: `data` may end before the stream does; then a run of stored bytes, which passes for a stream too easily, is none.
    """
    if data[:4] == _ZSTD_MAGIC:
        return True
    if not data or data[0] & 6 == 6:
        return False
    stream = zlib.decompressobj(_RAW_READ)
    try:
        found = stream.decompress(data, cluster_size)
    except zlib.error:
        return False
    return len(found) == cluster_size or (cut and not stream.eof and data[0] & 6 != 0 and len(found) >= _ENOUGH)


def compress(data: bytes | memoryview, compression: int, *, level: int | None = None) -> bytes | None:
    """One cluster compressed, or None when it would not get at least one byte smaller (then store it plain).

    `level` None: fast deflate (isal) or zstd's default; 1..9 asks zlib itself (slower, a little smaller), 1..19 zstd.
    Raises UnsupportedError for an unknown compression type.
    """
    if compression == CompressionType.ZLIB:
        packed = _deflate(data, level)
    elif compression == CompressionType.ZSTD:
        packed = _zstd_compressor(level if level is not None else 3).compress(data)
    else:
        raise UnsupportedError(f"unknown compression type {compression}")
    return packed if len(packed) < len(data) else None


class _Failure:
    """Why a stream could not be read, in the decoder's words."""

    __slots__ = ("reason",)

    def __init__(self, reason: str) -> None:
        self.reason = reason


# -- deflate


def _inflate(data: bytes | memoryview, size: int) -> bytes | _Failure:
    """isal first (about twice as fast); zlib has the last word on anything isal does not like."""
    isal = _isal()
    if isal is not None:
        try:
            found: bytes = isal.decompressobj(_RAW_READ).decompress(data, size)
        except isal.error:
            found = b""
        if len(found) == size:
            return found
    try:
        return zlib.decompressobj(_RAW_READ).decompress(data, size)
    except zlib.error as error:
        return _Failure(f"stream is damaged ({_zlib_words(error)})")


def _zlib_words(error: zlib.error) -> str:
    """`invalid block type` out of `Error -3 while decompressing data: invalid block type`."""
    return str(error).rpartition(": ")[2]


def _deflate(data: bytes | memoryview, level: int | None) -> bytes:
    isal = _isal()
    if level is not None or isal is None:
        return _deflate_by_zlib(data, zlib.Z_DEFAULT_COMPRESSION if level is None else level)
    packer = isal.compressobj(_ISAL_LEVEL, zlib.DEFLATED, _RAW_WRITE, 9)
    packed: bytes = packer.compress(data) + packer.flush()
    if len(packed) * _RETRY_BELOW > len(data):
        return packed
    return min(packed, _deflate_by_zlib(data, zlib.Z_DEFAULT_COMPRESSION), key=len)


def _deflate_by_zlib(data: bytes | memoryview, level: int) -> bytes:
    packer = zlib.compressobj(level, zlib.DEFLATED, _RAW_WRITE, 9)
    return packer.compress(data) + packer.flush()


# -- Zstandard

_local = threading.local()


def _zstd_compressor(level: int) -> zstandard.ZstdCompressor:
    """One compressor per thread and level: zstandard's contexts must not be shared between threads."""
    import zstandard

    made: dict[int, zstandard.ZstdCompressor] = _local.__dict__.setdefault("compressors", {})
    if level not in made:
        made[level] = zstandard.ZstdCompressor(level=level)
    return made[level]


def _unzstd(data: bytes | memoryview, size: int) -> bytes | _Failure:
    """The first frame, or as many frames as it takes to fill `size` bytes; as in QEMU, one frame may not give more.

    What follows may well be the next cluster's frame, so nothing beyond the bytes needed is looked at.
    """
    import zstandard

    decoder = zstandard.ZstdDecompressor(max_window_size=_ZSTD_WINDOW)
    try:
        declared = zstandard.get_frame_parameters(data).content_size
        if size < declared < zstandard.CONTENTSIZE_UNKNOWN:
            return _Failure(f"frame gives more than {size} bytes")
        found = decoder.decompress(data, max_output_size=size)
        if len(found) < size:
            with decoder.stream_reader(data, read_across_frames=True) as frames:
                found = _read_fully(frames, size)
    except zstandard.ZstdError as error:
        return _Failure(f"stream is damaged ({str(error).rpartition('error: ')[2]})")
    return found


def _unzstd_start(data: bytes | memoryview, size: int) -> bytes | _Failure:
    """What the frames give until the bytes end."""
    import zstandard

    decoder = zstandard.ZstdDecompressor(max_window_size=_ZSTD_WINDOW)
    try:
        with decoder.stream_reader(data, read_across_frames=True) as frames:
            return _read_fully(frames, size)
    except zstandard.ZstdError as error:
        return _Failure(str(error))


def _read_fully(reader: zstandard.ZstdDecompressionReader, size: int) -> bytes:
    """`size` bytes, fewer only where the stream ends."""
    found = reader.read(size)
    while len(found) < size:
        more = reader.read(size - len(found))
        if not more:
            break
        found += more
    return found
