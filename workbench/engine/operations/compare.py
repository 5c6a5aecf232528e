"""Whether two disks have the same content, found out as `qemu-img compare` does: in guest order, up to the first difference.

Both maps are walked together; threads read, decrypt or unpack what both or one of them has, and the first difference in
guest order is the answer. What reads as zeros in both is never read.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum, IntFlag
from typing import TYPE_CHECKING, Final

from formats.qcow2.entries import ClusterType
from workbench.engine.ahead import in_order
from workbench.engine.convert import Progress, Source
from workbench.engine.layers import Layer, Qcow2Layer
from workbench.engine.reading import DATA, INVALID, PRESENT, ZERO, Flat, concatenate, flatten
from workbench.errors import CorruptError, QwbError
from workbench.units import SECTOR_SIZE, div_round_up, round_up

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

CHUNK: Final = 2 << 20
"""Guest bytes that are read and compared at once at most, as in QEMU: an error is told with the offset of its chunk."""
_JOB: Final = 4 << 20
_JOB_STEPS: Final = 256
_L2_CACHE: Final = 32 << 20
_SMALL_SLICE: Final = 4096


class Outcome(Enum):
    """How a comparison ended."""

    IDENTICAL = "identical"
    CONTENT = "content"
    """Different bytes."""
    SIZE = "size"
    """Strict: different virtual sizes."""
    STATUS = "status"
    """Strict: allocated, zero or stored in another way."""
    UNMAPPED = "unmapped"
    """The mapping of one disk cannot be read."""
    UNREADABLE = "unreadable"
    """Data of one disk cannot be read."""


@dataclass(frozen=True, slots=True)
class Finding:
    """What ends a comparison. offset: guest byte where the first different sector, or the chunk with an error, starts.

    side: 0 or 1, the disk that an error is about.  error: what it was.
    """

    outcome: Outcome
    offset: int
    side: int | None = None
    error: QwbError | None = None


@dataclass(frozen=True, slots=True)
class Comparison:
    """sizes: virtual sizes in bytes.  finding: what was found first; None when the disks are identical."""

    sizes: tuple[int, int]
    finding: Finding | None = None

    @property
    def outcome(self) -> Outcome:
        return self.finding.outcome if self.finding is not None else Outcome.IDENTICAL

    @property
    def common_part_is_equal(self) -> bool:
        """Nothing was found before the end of the smaller disk."""
        if self.finding is None:
            return True
        return self.finding.outcome is not Outcome.SIZE and self.finding.offset >= min(self.sizes)


def compare(
    first: Source,
    second: Source,
    *,
    strict: bool = False,
    threads: int | None = None,
    progress: Progress | None = None,
    cancel: Callable[[], bool] | None = None,
) -> Comparison:
    """The first difference in guest order; what the longer disk has behind the shorter one's end must be zeros.

    strict: sizes must be equal, and every sector allocated, zero and placed in the same way (QEMU's block status).
    Errors of reading are findings. Raises PassphraseError, Cancelled.
    """
    pair, sizes = (first, second), (first.size, second.size)
    for source in pair:
        for layer in source.layers:
            if isinstance(layer, Qcow2Layer):
                layer.cipher()
    if strict and first.size != second.size:
        return Comparison(sizes, Finding(Outcome.SIZE, min(sizes)))

    def work(job: list[_Step]) -> Finding | None:
        return _judge(pair, job)

    jobs = in_order(_jobs(_steps(pair, strict=strict)), work, threads=threads, cancel=cancel, path=first.layers[0].path)
    with contextlib.closing(jobs) as done:
        for job, found in done:
            if found is not None:
                return Comparison(sizes, found)
            if progress is not None:
                progress(job[-1].end, max(sizes))
    if progress is not None:
        progress(max(sizes), max(sizes))
    return Comparison(sizes)


# One disk's map -------------------------------------------------------------------------------------------------------


class _Status(IntFlag):
    """QEMU's block status of a run."""

    DATA = 1
    ZERO = 2
    PLACED = 4
    """Its bytes lie in a file as the guest reads them."""
    ALLOCATED = 8
    LAST = 16
    """The run ends where the disk ends."""
    BROKEN = 32


@dataclass(frozen=True, slots=True)
class _Run:
    """A stretch [start, end) of a disk with one status. host: as in `Runs`."""

    start: int
    end: int
    status: int
    layer: int
    kind: int
    host: int

    def host_at(self, offset: int) -> int:
        """`host` of the part from guest `offset` on."""
        moves = self.host >= 0 and self.kind != ClusterType.COMPRESSED
        return self.host + offset - self.start if moves else self.host


class _Map:
    """The runs of one disk as QEMU's block status tells them: neighbours joined, but never beyond an L2 slice."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._runs = _joined_runs(source)
        self._run: _Run | None = None
        self._slices = [_slice_coverage(layer) if isinstance(layer, Qcow2Layer) else 0 for layer in source.layers]

    def at(self, offset: int) -> tuple[int, int, _Run]:
        """(status, end, run) at `offset`, which never goes back. QwbError where the mapping cannot be read."""
        while self._run is None or self._run.end <= offset:
            self._run = next(self._runs)
        run = self._run
        if run.status & _Status.BROKEN:
            raise CorruptError("the mapping is damaged", path=self._source.layers[run.layer].path)
        end = run.end
        for coverage in self._slices[: run.layer + 1]:
            if coverage:
                end = min(end, (offset // coverage + 1) * coverage)
        return run.status | (_Status.LAST if end == self._source.size else 0), end, run


def _slice_coverage(layer: Qcow2Layer) -> int:
    """Guest bytes that one piece of QEMU's L2 cache describes: a whole table, or 4 KiB of it when the cache cannot hold all."""
    geometry = layer.rules.geometry
    needed = round_up(div_round_up(layer.size, geometry.cluster_size) * geometry.l2_entry_size, geometry.cluster_size)
    piece = geometry.cluster_size if needed <= _L2_CACHE else min(geometry.cluster_size, _SMALL_SLICE)
    return piece // geometry.l2_entry_size * geometry.cluster_size


def _joined_runs(source: Source) -> Iterator[_Run]:
    """Runs of [0, size) in order; neighbours of one status are one, where their places go on."""
    import numpy as np

    held: Flat | None = None
    for batch in flatten(source.layers, 0, source.size, places=True):
        flat = batch if held is None else concatenate([held, batch])
        heads = np.flatnonzero(_breaks(flat))
        ends = np.append(flat.start[heads[1:]], flat.start[-1] + flat.length[-1])
        rows = list(_rows(flat.take(heads), ends, source.layers))
        yield from rows[:-1]
        last = flat.take(heads[-1:])
        held = Flat(last.start, ends[-1:] - last.start, last.flags, last.depth, last.host, last.kind)
    if held is not None:
        yield from _rows(held, held.start + held.length, source.layers)


def _breaks(flat: Flat) -> NDArray[np.bool_]:
    """Which rows start a run of their own."""
    import numpy as np

    placed = flat.host[:-1] >= 0
    onward = np.where(placed, flat.host[:-1] + flat.length[:-1] == flat.host[1:], flat.host[1:] < 0)
    same = (flat.kind[1:] == flat.kind[:-1]) & (flat.flags[1:] == flat.flags[:-1]) & onward
    same &= (flat.depth[1:] == flat.depth[:-1]) & (flat.kind[1:] != ClusterType.COMPRESSED)
    return np.concatenate([np.ones(1, dtype=bool), ~same])


def _rows(flat: Flat, ends: NDArray[np.int64], layers: Sequence[Layer]) -> Iterator[_Run]:
    import numpy as np

    plain = np.array([not (isinstance(layer, Qcow2Layer) and layer.encrypted) for layer in layers])
    kinds = (ClusterType.NORMAL, ClusterType.ZERO_ALLOC, ClusterType.UNALLOCATED_ALLOC)
    placed = np.isin(flat.kind, [int(kind) for kind in kinds]) & plain[flat.depth]
    # Where a shorter backing file ended, the zeros count as the overlay's own.
    allocated = (flat.flags & PRESENT != 0) | (flat.depth < len(layers) - 1)
    status = np.zeros(len(flat), dtype=np.int64)
    for wanted, bit in (
        (flat.flags & DATA != 0, _Status.DATA),
        (flat.flags & ZERO != 0, _Status.ZERO),
        (placed, _Status.PLACED),
        (allocated, _Status.ALLOCATED),
        (flat.flags & INVALID != 0, _Status.BROKEN),
    ):
        status[wanted] |= int(bit)
    columns = (flat.start, ends, status, flat.depth, flat.kind, flat.host)
    for row in zip(*(column.tolist() for column in columns), strict=True):
        yield _Run(*row)


# Both maps, walked together -------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Step:
    """A chunk [start, end) that must be read: where both disks have it, or the one that has it allocated.

    found: instead of work, what the walk ends with.
    """

    start: int
    end: int
    runs: tuple[_Run | None, _Run | None] = (None, None)
    found: Finding | None = None


class _Stop(Exception):
    """The walk cannot go on."""

    def __init__(self, found: Finding) -> None:
        super().__init__()
        self.found = found


def _steps(pair: tuple[Source, Source], *, strict: bool) -> Iterator[_Step]:
    """What must be read, in guest order, and what the maps alone show."""
    maps = (_Map(pair[0]), _Map(pair[1]))
    common, total = sorted(source.size for source in pair)
    try:
        yield from _common_steps(maps, common, strict=strict)
        over = 0 if pair[0].size == total else 1
        at = common
        while at < total:
            status, end, run = _look(maps, over, at)
            if status & _Status.ALLOCATED and not status & _Status.ZERO:
                end = min(end, at + CHUNK)
                yield _Step(at, end, (run, None) if over == 0 else (None, run))
            at = end
    except _Stop as stop:
        yield _Step(stop.found.offset, stop.found.offset, found=stop.found)


def _common_steps(maps: tuple[_Map, _Map], common: int, *, strict: bool) -> Iterator[_Step]:
    at = 0
    while at < common:
        one, one_end, one_run = _look(maps, 0, at)
        two, two_end, two_run = _look(maps, 1, at)
        if strict and one != two:
            raise _Stop(Finding(Outcome.STATUS, at))
        end = min(one_end, two_end)
        has_one, has_two = bool(one & _Status.ALLOCATED), bool(two & _Status.ALLOCATED)
        if not one & two & _Status.ZERO and (has_one or has_two):
            end = min(end, at + CHUNK)
            yield _Step(at, end, (one_run if has_one else None, two_run if has_two else None))
        at = end


def _look(maps: tuple[_Map, _Map], side: int, at: int) -> tuple[int, int, _Run]:
    try:
        return maps[side].at(at)
    except QwbError as error:
        raise _Stop(Finding(Outcome.UNMAPPED, at, side, error)) from error


def _jobs(steps: Iterator[_Step]) -> Iterator[list[_Step]]:
    """Steps in lists that are worth handing to a thread."""
    job: list[_Step] = []
    room = _JOB
    for step in steps:
        job.append(step)
        room -= step.end - step.start
        if room <= 0 or len(job) >= _JOB_STEPS:
            yield job
            job, room = [], _JOB
    if job:
        yield job


# Reading and comparing ------------------------------------------------------------------------------------------------

_own = threading.local()


def _buffers() -> tuple[memoryview, memoryview]:
    """This thread's two buffers of CHUNK bytes."""
    found: tuple[memoryview, memoryview] | None = getattr(_own, "buffers", None)
    if found is None:
        found = _own.buffers = (memoryview(bytearray(CHUNK)), memoryview(bytearray(CHUNK)))
    return found


def _judge(pair: tuple[Source, Source], job: list[_Step]) -> Finding | None:
    """The first finding of a job's steps."""
    for step in job:
        if step.found is not None:
            return step.found
        views = []
        for side, (run, buffer) in enumerate(zip(step.runs, _buffers(), strict=True)):
            if run is None:
                continue
            view = buffer[: step.end - step.start]
            try:
                pair[side].layers[run.layer].read_run(step.start, run.kind, run.host_at(step.start), view)
            except QwbError as error:
                return Finding(Outcome.UNREADABLE, step.start, side, error)
            views.append(view)
        where = _first_difference(views)
        if where is not None:
            return Finding(Outcome.CONTENT, step.start + where)
    return None


def _first_difference(views: list[memoryview]) -> int | None:
    """Start of the first sector in which two views differ, or in which a single one is not all zeros.

    Sectors are counted from the start of the views; the last one may be short (a raw file of an odd length).
    """
    import numpy as np

    whole = len(views[0]) & ~7
    for start, end, kind in ((0, whole, np.uint64), (whole, len(views[0]), np.uint8)):
        units = [np.frombuffer(view[start:end], dtype=kind) for view in views]
        different = units[0] != (units[1] if len(units) == 2 else 0)
        if different.any():
            return (start + int(different.argmax()) * units[0].itemsize) // SECTOR_SIZE * SECTOR_SIZE
    return None
