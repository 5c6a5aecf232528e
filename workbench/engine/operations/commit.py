"""Writing what overlays hold down into a file of their backing chain, as `qemu-img commit` does.

Until the top image is emptied, which happens when the base has everything durably, it shows what it always did; and an
emptied cluster shows the same through the base.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from formats.qcow2.entries import ClusterType
from workbench.engine.ahead import in_order
from workbench.engine.convert import Piece, Progress
from workbench.engine.emptying import empty_image
from workbench.engine.image import Image
from workbench.engine.layers import Layer, Qcow2Layer
from workbench.engine.operations.commit_base import Base, files_of
from workbench.engine.reading import PRESENT, ZERO, flatten
from workbench.errors import ArgumentError
from workbench.storage.identity import identities

CHUNK: Final = 2 << 20
"""Guest bytes that are read and written at once at most."""
_JOB: Final = 4 << 20
_JOB_STEPS: Final = 256


class Throttle:
    """Keeps a copy at `rate` bytes a second, 0 for as fast as can be."""

    def __init__(
        self, rate: int, *, clock: Callable[[], float] = time.monotonic, sleep: Callable[[float], None] = time.sleep
    ) -> None:
        self._rate = rate
        self._sleep = sleep
        self._clock = clock
        self._start = clock()
        self._done = 0

    def spent(self, length: int) -> None:
        """`length` bytes were copied: wait until that many may have been."""
        self._done += length
        if self._rate:
            early = self._start + self._done / self._rate - self._clock()
            if early > 0:
                self._sleep(early)


@dataclass(frozen=True, slots=True)
class Committed:
    """Guest bytes written into the base as data and as zeros, and its size before."""

    copied: int
    zeroed: int
    base_size_before: int


def commit(
    top: Image,
    base: Base,
    *,
    empty: bool = True,
    throttle: Throttle | None = None,
    threads: int | None = None,
    progress: Progress | None = None,
    cancel: Callable[[], bool] | None = None,
) -> Committed:
    """Write what the layers of `top` hold into `base`, which lies under them; a smaller base grows.

    top: opened down to, and without, the base (`open_for_commit`).  empty: its clusters are given back in the end; it is
    open for writing then.
    Raises ArgumentError when a file is read and written, UnsupportedError when the base cannot grow, and what reading and
    writing raise, Cancelled: then `top` is as it was.
    """
    layers, size = top.chain, top.size
    _require_apart(top, base, empty=empty)
    for layer in layers:
        if isinstance(layer, Qcow2Layer):
            layer.cipher()
    before = base.size
    if size > before:
        base.grow(size)
    copied = zeroed = 0

    def work(job: list[_Step]) -> list[memoryview | None]:
        return [_content(layers, each) for each in job]

    done = in_order(_jobs(_steps(layers, size, before)), work, threads=threads, cancel=cancel, path=top.path)
    with contextlib.closing(done):
        for job, contents in done:
            for step, data in zip(job, contents, strict=True):
                if data is None:
                    base.write_zeroes(step.start, step.end - step.start)
                    zeroed += step.end - step.start
                else:
                    base.write(step.start, data)
                    copied += len(data)
                    if throttle is not None:
                        throttle.spent(len(data))
            if progress is not None:
                progress(job[-1].end, size)
    base.flush()
    if empty:
        empty_image(top.writer.core)
    if progress is not None:
        progress(size, size)
    return Committed(copied, zeroed, before)


def _require_apart(top: Image, base: Base, *, empty: bool) -> None:
    """ArgumentError when a file that is written is read as another layer, by any name."""
    above = [path for layer in top.chain for path in files_of(layer)]
    emptied = files_of(top.top) if empty else []
    for written, read in ((base.written, [*above, *base.read]), (emptied, base.read)):
        for path in written:
            for other in read:
                if identities(path) & identities(other):
                    what = "is read by this very commit" + (f" as {other}" if other != path else "")
                    raise ArgumentError(what, path=path, hint="an image cannot lie under itself")


# What is to be written ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Step:
    """Guest bytes [start, end) that the base gets. pieces: where they are read from; none for zeros."""

    start: int
    end: int
    pieces: tuple[Piece, ...] = ()


def _steps(layers: Sequence[Layer], size: int, base_size: int) -> Iterator[_Step]:
    """All that the layers hold themselves, in guest order. Zeros behind the base's old end are there already."""
    pieces: list[Piece] = []
    for start, end, zero, depth, kind, host in _own_rows(layers, size):
        if zero:
            if start < min(end, base_size):
                yield from _collected(pieces)
                pieces = []
                yield _Step(start, min(end, base_size))
            continue
        at = start
        while at < end:
            if pieces and (pieces[-1].start + pieces[-1].length != at or at - pieces[0].start >= CHUNK):
                yield from _collected(pieces)
                pieces = []
            room = CHUNK - (at - pieces[0].start) if pieces else CHUNK
            stop = min(end, at + room)
            moves = host >= 0 and kind != ClusterType.COMPRESSED
            pieces.append(Piece(at, stop - at, depth, kind, host + at - start if moves else host))
            at = stop
    yield from _collected(pieces)


def _collected(pieces: list[Piece]) -> Iterator[_Step]:
    if pieces:
        yield _Step(pieces[0].start, pieces[-1].start + pieces[-1].length, tuple(pieces))


def _own_rows(layers: Sequence[Layer], size: int) -> Iterator[tuple[int, int, bool, int, int, int]]:
    """(start, end, zero, layer, kind, host) of the runs that do not come from below the last layer."""
    import numpy as np

    for flat in flatten(layers, 0, size, places=True):
        # Where a lower layer ended, what lies behind reads as zeros for the one above, whatever the base has there.
        own = (flat.flags & PRESENT != 0) | (flat.depth < len(layers) - 1)
        rows = np.flatnonzero(own)
        zero = flat.flags[rows] & ZERO != 0
        columns = (flat.start[rows], flat.start[rows] + flat.length[rows], zero)
        more = (flat.depth[rows], flat.kind[rows], flat.host[rows])
        yield from zip(*(column.tolist() for column in (*columns, *more)), strict=True)


def _jobs(steps: Iterator[_Step]) -> Iterator[list[_Step]]:
    """Steps in lists that are worth handing to a thread."""
    job: list[_Step] = []
    room = _JOB
    for step in steps:
        job.append(step)
        room -= step.end - step.start if step.pieces else 0
        if room <= 0 or len(job) >= _JOB_STEPS:
            yield job
            job, room = [], _JOB
    if job:
        yield job


def _content(layers: Sequence[Layer], step: _Step) -> memoryview | None:
    """What a step writes, None for zeros."""
    if not step.pieces:
        return None
    view = memoryview(bytearray(step.end - step.start))
    for piece in step.pieces:
        at = piece.start - step.start
        layers[piece.layer].read_run(piece.start, piece.kind, piece.host, view[at : at + piece.length])
    return view
