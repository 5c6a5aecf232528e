"""Compressed writes: clusters squeezed in threads, packed one behind the other (QEMU: qcow2_co_pwritev_compressed)."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Final

from formats.qcow2.entries import holds_cluster, is_copied, packed_entry
from workbench.engine.codecs import compress
from workbench.engine.write.guest import write_guest
from workbench.errors import ArgumentError, StorageError, UnsupportedError

if TYPE_CHECKING:
    from workbench.engine.write.core import Core

_WINDOW: Final = 4 * (os.cpu_count() or 1)
_pools: list[ThreadPoolExecutor] = []


def _pool() -> ThreadPoolExecutor:
    """One pool for all images of the process, made when it is first needed."""
    if not _pools:
        _pools.append(ThreadPoolExecutor(os.cpu_count() or 1, thread_name_prefix="qwb-compress"))
    return _pools[0]


def check_range(core: Core, offset: int, length: int) -> None:
    """Raises UnsupportedError or ArgumentError where QEMU refuses a compressed write."""
    size = core.cluster_size
    if core.external:
        raise UnsupportedError("compressed clusters cannot be in an image with an external data file", path=core.path)
    if core.cipher is not None:
        raise UnsupportedError("compressed writes to an encrypted image would not be encrypted", path=core.path)
    if offset % size or (length % size and offset + length != core.layer.size):
        raise ArgumentError(
            f"compressed writes take whole clusters of {size} bytes (or the last, partial one of the disk)",
            path=core.path,
        )


def write_compressed_guest(core: Core, offset: int, data: memoryview) -> None:
    """Write whole clusters compressed; those that do not shrink are stored plain. See `check_range`.

    Raises StorageError where a cluster is allocated already: compressed data replaces nothing (QEMU says EIO).
    """
    for guest, plain, packed in _squeezed(core, offset, data):
        if packed is None:
            write_guest(core, guest, plain)
        else:
            _store(core, guest, packed)
        core.relieve()


def _squeezed(core: Core, offset: int, data: memoryview) -> Iterator[tuple[int, memoryview, bytes | None]]:
    """(guest offset, plain data, compressed or None) of every cluster, in order, a window of them in work at a time."""
    size, kind = core.cluster_size, core.header.compression_type
    parts = [(offset + at, data[at : at + size]) for at in range(0, len(data), size)]
    if len(parts) == 1:
        guest, plain = parts[0]
        yield guest, plain, compress(_whole(plain, size), kind)
        return
    pool = _pool()
    for low in range(0, len(parts), _WINDOW):
        some = parts[low : low + _WINDOW]
        work = [pool.submit(compress, _whole(plain, size), kind) for _, plain in some]
        for (guest, plain), job in zip(some, work, strict=True):
            yield guest, plain, job.result()


def _whole(plain: memoryview, size: int) -> bytes | memoryview:
    """The last cluster of the disk, filled up with zeros."""
    return plain if len(plain) == size else bytes(plain) + bytes(size - len(plain))


def _store(core: Core, guest: int, packed: bytes) -> None:
    tables = core.tables
    old, _ = _entry(core, guest)
    if is_copied(old) or holds_cluster(old, core.shape):
        raise StorageError(
            f"cluster at guest offset {guest:#x} is allocated: compressed data can replace nothing",
            path=core.path,
            hint="discard it first, or write it uncompressed",
        )
    host = core.allocator.allocate_packed(len(packed))
    try:
        core.guard.check("compressed data", host, len(packed))
        core.file.write(host, packed)
        core.references_changed()
        piece = tables.own_slice(guest)
    except BaseException:
        if core.dead is None:
            core.allocator.release(host, len(packed))
        raise
    word = ((guest >> tables.cluster_bits) & tables.index_mask) * tables.width
    piece.data[word] = packed_entry(host, len(packed), core.shape)
    if tables.width == 2:
        piece.data[word + 1] = 0
    tables.cache.mark_dirty(piece)


def _entry(core: Core, guest: int) -> tuple[int, int]:
    core.tables.own_slice(guest)
    return core.tables.entry_at(guest)
