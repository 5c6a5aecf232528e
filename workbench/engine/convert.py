"""Copying the guest's bytes out of a chain: neighbouring clusters move as one I/O, zeros stay holes, threads unpack.

The walk plans jobs of a few MiB; workers read, decrypt or unpack them and write what is not zero.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from formats.qcow2.entries import ClusterType
from workbench.engine.ahead import in_order
from workbench.engine.codecs import decompress, unpack_start
from workbench.engine.layers import Layer, MissingLayer, Qcow2Layer
from workbench.engine.reading import DATA, PRESENT, ZERO, Flat, flatten
from workbench.engine.target import open_target
from workbench.errors import QwbError, StorageError
from workbench.storage.base import Storage

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

JOB: Final = 4 << 20
"""Guest bytes that one job moves at most: enough to hide what handing it to a thread costs."""
SLICE: Final = 1 << 20
"""Plain bytes that go through a worker's buffer at once: they stay in the processor's cache between read and write."""
SPARSE: Final = 4096
"""Zero blocks of this size are not written (as `qemu-img convert -S 4k`)."""

Progress = Callable[[int, int], None]
"""(guest bytes done, virtual size)."""


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of one run: guest start, length in bytes, and where it is (layer, kind, host as in `Runs`)."""

    start: int
    length: int
    layer: int
    kind: int
    host: int


@dataclass(slots=True)
class CopyResult:
    """data: guest bytes that had to be read.  lost: ranges (start, length, first reason) that could not be read (salvage only).

    Neighbouring ranges are one; `settle` puts those in order that several threads told.
    """

    data: int = 0
    lost: list[tuple[int, int, str]] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def lose(self, start: int, length: int, reason: str) -> None:
        """Note a range that could not be read."""
        with self._lock:
            last = self.lost[-1] if self.lost else None
            if last is not None and last[0] + last[1] == start:
                self.lost[-1] = (last[0], last[1] + length, last[2])
            else:
                self.lost.append((start, length, reason))

    def settle(self) -> None:
        """Ranges in guest order, those next to each other made one."""
        found, self.lost = sorted(self.lost), []
        for each in found:
            self.lose(*each)


def lost_at_once(layer: Layer, kind: int, start: int) -> str | None:
    """Why no byte of a run of this kind can be read, wherever it begins; None when one has to try."""
    if kind != ClusterType.INVALID and not isinstance(layer, MissingLayer):
        return None
    try:
        layer.read_run(start, kind, -1, memoryview(bytearray(1)))
    except QwbError as error:
        return str(error)
    return None


def plan(layers: Sequence[Layer], size: int, salvage: CopyResult | None = None) -> Iterator[list[Piece]]:
    """Jobs in guest order: lists of pieces with data, together at most JOB bytes and lying close together.

    salvage: takes the runs of which nothing can be read; they are in no job then.
    """
    job: list[Piece] = []
    room = JOB
    for flat in flatten(layers, 0, size, places=True):
        for start, length, layer, kind, host in readable(layers, flat, salvage):
            at, left = start, length
            while left:
                step = min(left, room)
                if kind == ClusterType.COMPRESSED or host < 0:
                    job.append(Piece(at, step, layer, kind, host))
                else:
                    job.append(Piece(at, step, layer, kind, host + at - start))
                at, left, room = at + step, left - step, room - step
                if room <= 0:
                    yield job
                    job, room = [], JOB
    if job:
        yield job


def readable(
    layers: Sequence[Layer], flat: Flat, salvage: CopyResult | None = None
) -> Iterator[tuple[int, int, int, int, int]]:
    """(start, length, layer, kind, host) of the runs that must be read: not zeros. salvage: see `plan`."""
    import numpy as np

    wanted = (flat.flags & (DATA | ZERO)) == DATA
    if isinstance(layers[-1], MissingLayer):  # reading there raises, or is counted as lost
        wanted |= flat.flags & (PRESENT | DATA | ZERO) == 0
    rows = np.flatnonzero(wanted)
    columns = (flat.start, flat.length, flat.depth, flat.kind, flat.host)
    for start, length, layer, kind, host in zip(*(column[rows].tolist() for column in columns), strict=True):
        why = lost_at_once(layers[layer], kind, start) if salvage is not None else None
        if salvage is not None and why is not None:
            salvage.lose(start, length, why)
        else:
            yield start, length, layer, kind, host


def copy_out(
    layers: Sequence[Layer],
    size: int,
    target: Storage,
    *,
    zeroed: bool = True,
    salvage: bool = False,
    threads: int | None = None,
    progress: Progress | None = None,
    cancel: Callable[[], bool] | None = None,
) -> CopyResult:
    """Write the guest's `size` bytes to `target` at the same offsets.

    zeroed: the target reads as zeros already, so zeros are left out.  salvage: what cannot be read becomes zeros and is
    listed; else the first error is raised.  Raises StorageError, CorruptError, PassphraseError, Cancelled.
    """
    result = CopyResult()
    if not zeroed:
        target.write_zeroes(0, size, punch=True)
    for layer in layers:
        if isinstance(layer, Qcow2Layer):
            layer.cipher()  # a passphrase is asked for once, before any work

    def work(job: list[Piece]) -> None:
        _run_job(layers, job, target, result if salvage else None)

    jobs = in_order(
        plan(layers, size, result if salvage else None), work, threads=threads, cancel=cancel, path=target.path
    )
    with contextlib.closing(jobs) as done:
        for job, _ in done:
            result.data += sum(piece.length for piece in job)
            if progress is not None:
                progress(job[-1].start + job[-1].length, size)
    result.settle()
    if progress is not None:
        progress(size, size)
    return result


def _run_job(layers: Sequence[Layer], job: list[Piece], target: Storage, salvage: CopyResult | None) -> None:
    """Pieces next to each other of one kind and layer go together."""
    at = 0
    while at < len(job):
        upto = at + 1
        packed = job[at].kind == ClusterType.COMPRESSED
        while upto < len(job) and _goes_on(job[upto - 1], job[upto], packed):
            upto += 1
        group = job[at:upto]
        layer = layers[group[0].layer]
        try:
            if packed and isinstance(layer, Qcow2Layer):
                _copy_compressed(layer, group, target)
            else:
                _copy_plain(layer, group, target)
        except QwbError as error:
            if salvage is None:
                raise
            _salvage(layers, group, target, salvage, error)
        at = upto


def _goes_on(one: Piece, other: Piece, packed: bool) -> bool:
    return (
        other.start == one.start + one.length
        and other.layer == one.layer
        and (other.kind == ClusterType.COMPRESSED) == packed
    )


_own = threading.local()


def _buffer() -> memoryview:
    """This thread's buffer of SLICE bytes: fresh memory for every job would cost more than the copying."""
    found = getattr(_own, "buffer", None)
    if found is None:
        found = _own.buffer = memoryview(bytearray(SLICE))
    view: memoryview = found
    return view


def _copy_plain(layer: Layer, group: list[Piece], target: Storage) -> None:
    """Fill the buffer from as many pieces as fit (they are neighbours in the guest), write, repeat."""
    buffer, filled, start = _buffer(), 0, group[0].start
    for piece in group:
        done = 0
        while done < piece.length:
            step = min(piece.length - done, SLICE - filled)
            host = piece.host + done if piece.host >= 0 else piece.host
            layer.read_run(piece.start + done, piece.kind, host, buffer[filled : filled + step])
            filled, done = filled + step, done + step
            if filled == SLICE:
                write_sparse(target, start, buffer)
                start, filled = start + filled, 0
    if filled:
        write_sparse(target, start, buffer[:filled])


def _copy_compressed(layer: Qcow2Layer, group: list[Piece], target: Storage) -> None:
    """Neighbouring compressed clusters are packed side by side: one read serves them all."""
    cluster = layer.rules.geometry.cluster_size
    places = [layer.compressed_place(piece.host) for piece in group]
    low = min(offset for offset, _ in places)
    high = max(offset + length for offset, length in places)
    together = high - low <= 2 * sum(length for _, length in places)
    span = memoryview(layer.storage.read(low, high - low)) if together else memoryview(b"")
    kind = layer.meta.header.compression_type
    for piece, (offset, length) in zip(group, places, strict=True):
        data = span[offset - low : offset - low + length] if together else layer.storage.read(offset, length)
        plain: bytes | memoryview = decompress(data, cluster, kind, path=layer.path, offset=offset)
        if piece.length != cluster:
            inside = piece.start % cluster
            plain = memoryview(plain)[inside : inside + piece.length]
        write_sparse(target, piece.start, plain)


def _salvage(layers: Sequence[Layer], group: list[Piece], target: Storage, result: CopyResult, error: QwbError) -> None:
    """Piece by piece, by cluster: what reads is written, the rest stays zeros and is listed."""
    for piece in group:
        layer = layers[piece.layer]
        step = layer.rules.geometry.cluster_size if isinstance(layer, Qcow2Layer) else 1 << 16
        for at in range(piece.start, piece.start + piece.length, step):
            length = min(step, piece.start + piece.length - at)
            host = piece.host
            if host >= 0 and piece.kind != ClusterType.COMPRESSED:
                host += at - piece.start
            buffer = memoryview(bytearray(length))
            try:
                layer.read_run(at, piece.kind, host, buffer)
            except QwbError as reason:
                got = unpacked_start(layer, piece.kind, host, at, length)
                result.lose(at + len(got), length - len(got), str(reason))
                buffer = memoryview(got)
            write_sparse(target, at, buffer)


def unpacked_start(layer: Layer, kind: int, host: int, at: int, length: int) -> bytes:
    """What a damaged compressed cluster gives of the guest's `length` bytes at `at`; nothing for other kinds."""
    if kind != ClusterType.COMPRESSED or not isinstance(layer, Qcow2Layer):
        return b""
    offset, packed = layer.compressed_place(host)
    cluster = layer.rules.geometry.cluster_size
    try:
        found = unpack_start(layer.storage.read(offset, packed), cluster, layer.meta.header.compression_type)
    except QwbError:
        return b""
    return found[at % cluster :][:length]


def write_sparse(target: Storage, offset: int, data: bytes | memoryview) -> None:
    """Write `data` without its zero blocks of SPARSE bytes (the target reads as zeros there)."""
    if 0 not in bytes(data[::SPARSE]):  # no block starts with a zero byte, so none is all zeros
        target.write(offset, data)
        return
    view = memoryview(data)
    for start, end in data_spans(view):
        target.write(offset + start, view[start:end])


def data_spans(view: memoryview) -> list[tuple[int, int]]:
    """(start, end) of the stretches of `view` that are not blocks of SPARSE zero bytes."""
    import numpy as np

    whole = len(view) // SPARSE * SPARSE
    used: NDArray[np.bool_] = np.ones(len(view) // SPARSE + (1 if whole < len(view) else 0), dtype=bool)
    blocks = np.frombuffer(view[:whole], dtype=np.uint64).reshape(-1, SPARSE // 8)
    # Most blocks show themselves at one of a few places; only the rest is read through.
    maybe = np.flatnonzero((blocks[:, 0] | blocks[:, 171] | blocks[:, 341] | blocks[:, 511]) == 0)
    if len(maybe):
        used[maybe] = blocks[maybe].any(axis=1)
    if whole < len(view):
        used[-1] = any(view[whole:])
    edges = np.flatnonzero(np.diff(np.concatenate([[False], used, [False]]).astype(np.int8)))
    pairs = edges.reshape(-1, 2) * SPARSE
    return [(start, min(end, len(view))) for start, end in pairs.tolist()]


@dataclass(frozen=True, slots=True)
class Source:
    """What a conversion reads: the layers of an image (or one raw file) and the size of the disk in bytes."""

    layers: Sequence[Layer]
    size: int

    @property
    def paths(self) -> list[str]:
        """All files that are read."""
        found = [layer.path for layer in self.layers]
        return found + [layer.data_path for layer in self.layers if isinstance(layer, Qcow2Layer)]


def convert_to_raw(
    source: Source,
    path: Path,
    *,
    in_place: bool = False,
    salvage: bool = False,
    progress: Progress | None = None,
    cancel: Callable[[], bool] | None = None,
) -> CopyResult:
    """Write the disk as a raw file. `path` appears (or changes) only when all is copied; in_place: see `open_target`.

    Raises what `copy_out` and `open_target` raise.
    """
    with open_target(path, source.paths, in_place=in_place) as target:
        storage = target.storage
        if target.fresh or (storage.size() != source.size and not storage.is_device):
            storage.truncate(source.size)
        elif storage.size() < source.size:
            raise StorageError(f"has {storage.size()} bytes, the disk needs {source.size}", path=str(path))
        return copy_out(
            source.layers,
            source.size,
            storage,
            zeroed=target.fresh,
            salvage=salvage,
            progress=progress,
            cancel=cancel,
        )
