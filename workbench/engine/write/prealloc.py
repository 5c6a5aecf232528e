"""Clusters taken before anything is written to them (QEMU: preallocate_co)."""

from __future__ import annotations

from array import array
from enum import Enum
from typing import TYPE_CHECKING

from formats.qcow2.entries import pointing_to
from workbench.units import div_round_up

if TYPE_CHECKING:
    from workbench.engine.write.core import Core

_ZEROS = memoryview(bytes(1 << 20))


class Preallocation(Enum):
    """How far space is taken in advance."""

    OFF = "off"
    METADATA = "metadata"
    """Tables and host clusters; the file stays sparse."""
    FALLOC = "falloc"
    """The same, and the file system reserves the space."""
    FULL = "full"
    """The same, and zeros are written."""


def preallocate(core: Core, start: int, end: int, mode: Preallocation) -> None:
    """Give every unallocated cluster of guest range [start, end) a host cluster that reads as zeros."""
    tables, size = core.tables, core.cluster_size
    at = start & -size
    while at < end:
        piece = tables.own_slice(at)
        width = tables.width
        first = (at >> tables.cluster_bits) & tables.index_mask
        count = min(tables.left_in_slice(at), div_round_up(end - at, size))
        words = piece.data[first * width : (first + count) * width : width]
        run = 0
        if words[0]:
            run = next((n for n, word in enumerate(words) if not word), count)
            at += run * size
            continue
        run = next((n for n, word in enumerate(words) if word), count)
        host = at if core.external else core.allocator.allocate(run * size)
        try:
            _prepare(core, host, run * size, mode)
            core.references_changed()
            piece = tables.own_slice(at)
        except BaseException:
            if not core.external and core.dead is None:
                core.allocator.release(host, run * size)
            raise
        entries = array("Q", range(pointing_to(host), pointing_to(host + run * size), size))
        piece.data[first * width : (first + run) * width : width] = entries
        tables.cache.mark_dirty(piece)
        at += run * size


def _prepare(core: Core, host: int, length: int, mode: Preallocation) -> None:
    """The host range reads as zeros, and is within the file."""
    storage = core.data.storage
    if not core.external:
        core.guard.check("preallocated clusters", host, length)
    here = storage.size()
    if core.external:
        # The file is the guest's disk: what is in it stays.
        if mode is Preallocation.METADATA and here < min(host + length, core.layer.size):
            core.data.truncate(min(host + length, core.layer.size))
        length = min(length, core.layer.size - host)
    else:
        if here > host:
            core.data.write_zeroes(host, min(here - host, length))
        if here < host + length:
            core.data.truncate(host + length)
    if mode is Preallocation.FALLOC:
        core.data.unsynced = True
        storage.allocate(host, length)
    elif mode is Preallocation.FULL:
        start = max(host, here) if core.external else host
        for at in range(start, host + length, len(_ZEROS)):
            core.data.write(at, _ZEROS[: min(len(_ZEROS), host + length - at)])
