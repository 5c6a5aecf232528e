"""One file of a backing chain, as something to read guest bytes from: a qcow2 view, a raw file, or one that is missing."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Final, Protocol

from formats.qcow2.entries import NO_HOST, ClusterType, packed_range
from workbench.engine.codecs import decompress
from workbench.engine.l2 import L2Walker
from workbench.engine.mapping import MappingRules, Runs, diagnose, join, one_run
from workbench.engine.metadata import Metadata
from workbench.errors import CorruptError, ImageError, QwbError
from workbench.storage.base import Storage
from workbench.units import SECTOR_SIZE, round_up

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from workbench.engine.crypto.ciphers import SectorCipher

_ZEROS: Final = bytes(1 << 20)
_CLUSTER_CACHE_BYTES: Final = 8 << 20
_CRYPT_STEP: Final = 1 << 20


class Layer(Protocol):
    """What a chain is made of. Offsets and lengths are guest bytes."""

    @property
    def path(self) -> str:
        """The file, for messages."""

    @property
    def format(self) -> str:
        """qcow2, raw or missing."""

    @property
    def size(self) -> int:
        """Virtual size."""

    def runs(self, start: int, end: int) -> Iterator[Runs]:
        """What this layer alone says about [start, end), in order and without gaps; `end` is at most `size`."""

    def read_run(self, start: int, kind: int, host: int, view: memoryview) -> None:
        """Fill `view` with the guest bytes of (a part of) one of the layer's own runs, any kind but unallocated."""

    def close(self) -> None:
        """Close the layer's files."""


def fill_zeros(view: memoryview) -> None:
    """Zero a buffer."""
    for at in range(0, len(view), len(_ZEROS)):
        part = view[at : at + len(_ZEROS)]
        part[:] = _ZEROS[: len(part)]


def read_or_zeros(storage: Storage, offset: int, view: memoryview) -> None:
    """Fill `view`; what lies past the end of the file reads as zeros, as in QEMU."""
    got = storage.readinto(offset, view)
    if got < len(view):
        fill_zeros(view[got:])


class RawLayer:
    """A raw file. A size that is no multiple of 512 is rounded up with zeros, as in QEMU."""

    format = "raw"

    def __init__(self, storage: Storage) -> None:
        self.storage = storage

    @property
    def path(self) -> str:
        return self.storage.path

    @property
    def size(self) -> int:
        return round_up(self.storage.size(), SECTOR_SIZE)

    def runs(self, start: int, end: int) -> Iterator[Runs]:
        """Data as NORMAL, holes of the file as ZERO_ALLOC: both have their place in the file."""
        at = start
        while at < end:
            data = self.storage.next_data(at)
            stop = end if data is None else min(data, end)
            if stop > at:
                yield one_run(at, stop - at, ClusterType.ZERO_ALLOC, at)
            at = stop
            if at < end:
                stop = min(max(self.storage.next_hole(at), at + 1), end)
                yield one_run(at, stop - at, ClusterType.NORMAL, at)
                at = stop

    def read_run(self, start: int, kind: int, host: int, view: memoryview) -> None:
        read_or_zeros(self.storage, start, view)

    def close(self) -> None:
        self.storage.close()


class MissingLayer:
    """A backing file that could not be opened: the overlay can be looked at; reading through to here raises `error`."""

    format = "missing"

    def __init__(self, path: str, size: int, error: QwbError) -> None:
        self.path = path
        self.size = size
        self.error = error

    def runs(self, start: int, end: int) -> Iterator[Runs]:
        if start < end:
            yield one_run(start, end - start, ClusterType.UNALLOCATED)

    def read_run(self, start: int, kind: int, host: int, view: memoryview) -> None:
        raise self.error

    def close(self) -> None:
        """Nothing is open."""


class Qcow2Layer:
    """A qcow2 image without its backing file: the active disk, or one snapshot.

    data: where the host offsets of plain clusters point, None when the external data file is missing.
    walker: the mapping; its `l1`, `load_table` and `invalidate` are what a writer uses.
    """

    format = "qcow2"

    def __init__(
        self,
        meta: Metadata,
        data: Storage | None,
        *,
        l1: NDArray[np.uint64],
        size: int,
        data_error: QwbError | None = None,
        unlock: Callable[[], SectorCipher] | None = None,
    ) -> None:
        assert meta.geometry is not None
        self.meta = meta
        self.storage = meta.storage
        self.data = data
        self.data_error = data_error
        self.size = size
        self.rules = MappingRules(meta.geometry, meta.header.version, meta.header.has("data_file"))
        self.walker = L2Walker(meta.storage, l1, self.rules)
        self._unlock = unlock
        self._cipher: SectorCipher | None = None
        self._clusters: OrderedDict[int, bytes] = OrderedDict()
        self._lock = threading.Lock()

    @property
    def path(self) -> str:
        return self.storage.path

    @property
    def data_path(self) -> str:
        """The file in which plain host offsets are."""
        return self.data.path if self.data is not None else self.storage.path

    @property
    def encrypted(self) -> bool:
        return self._unlock is not None

    def cipher(self) -> SectorCipher | None:
        """The cipher of guest data, None when not encrypted. PassphraseError without the right passphrase."""
        if self._cipher is None and self._unlock is not None:
            self._cipher = self._unlock()
        return self._cipher

    def runs(self, start: int, end: int) -> Iterator[Runs]:
        yield from self.walker.runs(start, end)

    def forget(self, l1_index: int | None = None) -> None:
        """Drop what is remembered of one L2 table (or of all) and all decompressed clusters: the image was written."""
        self.walker.invalidate(l1_index)
        with self._lock:
            self._clusters.clear()

    def read_run(self, start: int, kind: int, host: int, view: memoryview) -> None:
        if kind == ClusterType.NORMAL:
            self._read_plain(start, host, view)
        elif kind == ClusterType.COMPRESSED:
            self._read_compressed(start, host, view)
        elif kind == ClusterType.INVALID:
            raise self._invalid(start)
        else:
            fill_zeros(view)

    def close(self) -> None:
        self.storage.close()
        if self.data is not None:
            self.data.close()

    # -- plain clusters

    def _read_plain(self, start: int, host: int, view: memoryview) -> None:
        if self.data is None:
            raise self.data_error or ImageError("the external data file is not open", path=self.path)
        if self._unlock is None:
            read_or_zeros(self.data, host, view)
            return
        for at in range(0, len(view), _CRYPT_STEP):
            self._read_encrypted(start + at, host + at, view[at : at + _CRYPT_STEP])

    def _read_encrypted(self, start: int, host: int, view: memoryview) -> None:
        """Whole sectors around the range. LUKS numbers sectors by host offset, the old AES by guest offset."""
        cipher = self.cipher()
        assert cipher is not None and self.data is not None
        lead = host % SECTOR_SIZE
        buffer = bytearray(round_up(lead + len(view), SECTOR_SIZE))
        read_or_zeros(self.data, host - lead, memoryview(buffer))
        number = (host if self.meta.header.crypt_method == 2 else start) // SECTOR_SIZE
        view[:] = cipher.decrypt(buffer, number)[lead : lead + len(view)]

    # -- compressed clusters

    def _read_compressed(self, start: int, descriptor: int, view: memoryview) -> None:
        inside = start & (self.rules.geometry.cluster_size - 1)
        view[:] = self.cluster(descriptor)[inside : inside + len(view)]

    def compressed_place(self, descriptor: int) -> tuple[int, int]:
        """(host offset, length) in bytes of a compressed cluster's data, as its descriptor tells; the length is a bound."""
        offset, end = packed_range(descriptor, self.rules.shape)
        return offset, end - offset

    def cluster(self, descriptor: int) -> bytes:
        """A compressed cluster's content; the last few are remembered. CorruptError when it cannot be unpacked."""
        with self._lock:
            found = self._clusters.get(descriptor)
            if found is not None:
                self._clusters.move_to_end(descriptor)
                return found
        offset, length = self.compressed_place(descriptor)
        size, kind = self.rules.geometry.cluster_size, self.meta.header.compression_type
        found = decompress(self.storage.read(offset, length), size, kind, path=self.path, offset=offset)
        with self._lock:
            self._clusters[descriptor] = found
            while len(self._clusters) > max(1, _CLUSTER_CACHE_BYTES // size):
                self._clusters.popitem(last=False)
        return found

    # -- damage

    def _invalid(self, guest: int) -> CorruptError:
        """What is wrong with the mapping at a guest offset: table, index, place in the file."""
        geometry = self.rules.geometry
        l1_index, l2_index = geometry.l1_index(guest), geometry.l2_index(guest)
        hint = f"see `qwb check {self.path}`"
        table = self.walker.table_offset(l1_index)
        if table % geometry.cluster_size:
            where = self.meta.l1_region.offset + l1_index * 8
            what = f"guest offset {guest:#x} cannot be read: L2 table offset {table:#x} is not cluster aligned"
            return CorruptError(what, path=self.path, table="L1 table", index=l1_index, offset=where, hint=hint)
        words = self.walker.table_words(l1_index)
        step = geometry.l2_entry_size // 8
        entry = int(words[l2_index * step])
        bitmap = int(words[l2_index * step + 1]) if step == 2 else 0
        cluster_start = guest & ~(geometry.cluster_size - 1)
        reason = diagnose(entry, bitmap, cluster_start, self.rules)
        return CorruptError(
            f"guest offset {guest:#x} cannot be read: {reason}",
            path=self.path,
            table=f"L2 table {l1_index}",
            index=l2_index,
            offset=table + l2_index * geometry.l2_entry_size,
            hint=hint,
        )


def zero_run(start: int, end: int) -> Runs:
    """One run of zeros that nobody has stored."""
    return one_run(start, end - start, ClusterType.ZERO_PLAIN, NO_HOST) if start < end else join([])
