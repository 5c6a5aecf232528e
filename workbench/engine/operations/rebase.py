"""Putting an image onto another backing file, as `qemu-img rebase` does: what differs there is taken into the image first.

Both backing chains' maps are walked together; threads read what the maps cannot tell to be equal, one thread writes. Until
the header is switched, at the end, the image shows what it always did through its old backing file.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from formats.qcow2 import limits
from formats.qcow2.entries import ClusterType
from formats.qcow2.extensions import Extension, ExtensionType
from workbench.engine.ahead import in_order
from workbench.engine.convert import Progress
from workbench.engine.layers import Layer, Qcow2Layer, fill_zeros
from workbench.engine.reading import ZERO, Flat, concatenate, flatten, read_chain
from workbench.engine.write.compressed import check_range
from workbench.engine.write.header_switch import switch_header
from workbench.errors import ArgumentError, UnsupportedError
from workbench.storage.identity import identities

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from workbench.engine.image import Image

WINDOW: Final = 4 << 20
"""Guest bytes that are compared as one job at most; a multiple of every cluster size."""
_OPEN: Final = (int(ClusterType.UNALLOCATED), int(ClusterType.UNALLOCATED_ALLOC))


@dataclass(frozen=True, slots=True)
class Rebased:
    """Guest bytes: compared by reading, taken into the image as data, and as zeros."""

    compared: int = 0
    copied: int = 0
    zeroed: int = 0


def rebase(
    image: Image,
    new: Sequence[Layer],
    name: str | None,
    form: str | None,
    *,
    compress: bool = False,
    threads: int | None = None,
    progress: Progress | None = None,
    cancel: Callable[[], bool] | None = None,
) -> Rebased:
    """Make `name` the backing file of an image that is open for writing; the guest sees no difference.

    new: the layers of the new backing chain, none for no backing file; they are not written.  form: its format as it will
    be stored.  compress: what is taken over is stored compressed, where it is whole clusters. The image is to be closed
    afterwards: its layers are still the old ones.
    Raises what `require_backing` raises, UnsupportedError where nothing can be compressed, and what reading and writing
    raise, Cancelled: then the backing file is still the old one.
    """
    require_backing(image, name, form)
    for layer in (*image.chain, *new):
        if isinstance(layer, Qcow2Layer):
            layer.cipher()
    if compress:
        check_range(image.writer.core, 0, 0)
    old, top = image.chain[1:], image.top
    unit = image.geometry.cluster_size if compress else image.geometry.subcluster_size
    compared = copied = zeroed = 0

    def work(job: list[_Stretch]) -> list[_Piece]:
        return [piece for each in job for piece in _differences(old, new, each, unit)]

    jobs = _jobs(top, old, new, unit)
    with contextlib.closing(in_order(jobs, work, threads=threads, cancel=cancel, path=top.path)) as done:
        for job, pieces in done:
            for piece in pieces:
                _take(image, piece, compress=compress)
                if piece.data is None:
                    zeroed += piece.length
                else:
                    copied += piece.length
            compared += sum(each.end - each.start for each in job)
            if progress is not None:
                progress(job[-1].end, image.size)
    change_backing(image, name, form)
    if progress is not None:
        progress(image.size, image.size)
    return Rebased(compared, copied, zeroed)


def require_backing(image: Image, name: str | None, form: str | None) -> None:
    """ArgumentError or UnsupportedError, in qemu-img's words, when the image cannot name this backing file."""
    said = f"Could not change the backing file to {name!r}"
    if not name:
        return
    if form is None:
        raise ArgumentError(f"{said}: backing format must be specified", path=image.path, hint="add -F qcow2 or -F raw")
    if image.meta.header.has("data_file") and image.meta.header.has("data_file_raw"):
        what = "its raw data file must show the disk without any other file"
        raise UnsupportedError(f"{said}: {what}", path=image.path)
    if len(os.fsencode(name)) > limits.MAX_BACKING_NAME:
        raise ArgumentError(f"{said}: a name has at most {limits.MAX_BACKING_NAME} bytes", path=image.path)


def change_backing(image: Image, name: str | None, form: str | None) -> None:
    """Store another backing file name and format, whatever that file holds; one write to the disk makes them valid.

    Everything written before is durable first. Raises what `require_backing` raises, and ArgumentError when the header
    cluster has no room.
    """
    require_backing(image, name, form)
    core = image.writer.core
    core.begin()
    core.flush()
    kept = [each for each in image.meta.extensions if each.type != ExtensionType.BACKING_FORMAT]
    if name and form:
        kept.append(Extension(0, ExtensionType.BACKING_FORMAT, form.encode()))
    switch_header(core, core.header, kept, os.fsencode(name) if name else None)


# What must be compared ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Stretch:
    """Guest bytes [start, end) that the image leaves open and that may differ below.  plain: part of a cluster that holds
    other data, which cannot be compressed."""

    start: int
    end: int
    plain: bool


@dataclass(frozen=True, slots=True)
class _Piece:
    """A part that differs and is to be taken over. data: None for zeros."""

    start: int
    length: int
    data: memoryview | None
    plain: bool


def _jobs(top: Qcow2Layer, old: Sequence[Layer], new: Sequence[Layer], unit: int) -> Iterator[list[_Stretch]]:
    """What must be read and compared, in guest order, a window at a time."""
    names = _file_numbers([*old, *new])
    for runs in top.runs(0, top.size):
        for start, length, kind, _ in runs:
            if kind not in _OPEN:
                continue
            at, end = start, start + length
            while at < end:
                stop = min(end, (at // WINDOW + 1) * WINDOW)
                plain = kind != ClusterType.UNALLOCATED
                found = [
                    _Stretch(low, high, plain) for low, high in _suspects(old, new, names, at, stop, min(unit, length))
                ]
                if found:
                    yield found
                at = stop


def _file_numbers(layers: list[Layer]) -> dict[int, int]:
    """A number for each layer, by `id`: the same for two that are the same file."""
    numbers: dict[int, int] = {}
    known: dict[object, int] = {}
    for layer in layers:
        same = next((known[each] for each in identities(layer.path) if each in known), None)
        number = len(numbers) if same is None else same
        known.update(dict.fromkeys(identities(layer.path), number))
        numbers[id(layer)] = number
    return numbers


def _suspects(
    old: Sequence[Layer], new: Sequence[Layer], names: dict[int, int], start: int, end: int, unit: int
) -> list[tuple[int, int]]:
    """The parts of [start, end) of which the maps do not say that both chains have the same, in whole units."""
    import numpy as np

    one, other = _answers(old, start, end), _answers(new, start, end)
    starts = np.union1d(one.start, other.start)
    ends = np.append(starts[1:], end)
    columns = []
    for flat, layers in ((one, old), (other, new)):
        row = np.searchsorted(flat.start, starts, side="right") - 1
        files = np.array([names[id(layer)] for layer in layers] or [-1], dtype=np.int64)[flat.depth[row]]
        moves = (flat.host[row] >= 0) & (flat.kind[row] != ClusterType.COMPRESSED)
        host = flat.host[row] + np.where(moves, starts - flat.start[row], 0)
        columns.append((flat.flags[row] & ZERO != 0, files, flat.kind[row], host))
    (zero, file, kind, host), (zero2, file2, kind2, host2) = columns
    same = (zero & zero2) | (~zero & ~zero2 & (file == file2) & (kind == kind2) & (host == host2))
    low = np.maximum(starts[~same] // unit * unit, start)
    high = np.minimum(-(-ends[~same] // unit) * unit, end)
    return _merged(low, high)


def _answers(layers: Sequence[Layer], start: int, end: int) -> Flat:
    """A chain's map of [start, end); zeros behind its end and without one."""
    import numpy as np

    stop = max(start, min(end, layers[0].size)) if layers else start
    parts = list(flatten(layers, start, stop, places=True)) if stop > start else []
    if stop < end:
        row = ([stop], [end - stop], [ZERO], [0], [-1], [ClusterType.UNALLOCATED])
        kinds = (np.int64, np.int64, np.uint8, np.int16, np.int64, np.uint8)
        parts.append(Flat(*(np.array(value, kind) for value, kind in zip(row, kinds, strict=True))))
    return concatenate(parts)


def _merged(low: NDArray[np.int64], high: NDArray[np.int64]) -> list[tuple[int, int]]:
    """Ranges in order, those that touch made one."""
    found: list[tuple[int, int]] = []
    for start, end in zip(low.tolist(), high.tolist(), strict=True):
        if found and start <= found[-1][1]:
            found[-1] = (found[-1][0], max(end, found[-1][1]))
        else:
            found.append((start, end))
    return found


# Comparing and taking over --------------------------------------------------------------------------------------------


def _differences(old: Sequence[Layer], new: Sequence[Layer], part: _Stretch, unit: int) -> list[_Piece]:
    """Units of a stretch that differ, neighbours joined; those that are zeros in the old chain apart."""
    import numpy as np

    was, will = _content(old, part.start, part.end), _content(new, part.start, part.end)
    width = min(unit, part.end - part.start)
    pieces = []
    for start, end, sort in _joined(*_judged(np.frombuffer(was, np.uint8), np.frombuffer(will, np.uint8), width)):
        data = None if sort == _ZEROS else was[start:end]
        pieces.append(_Piece(part.start + start, end - start, data, part.plain))
    return pieces


_EQUAL, _ZEROS, _DATA = 0, 1, 2


def _judged(was: NDArray[np.uint8], will: NDArray[np.uint8], unit: int) -> tuple[list[int], int, int]:
    """(_EQUAL, _ZEROS or _DATA of every unit, unit, total bytes)."""
    import numpy as np

    whole = len(was) // unit * unit
    sorts: list[int] = []
    for low, high, width in ((0, whole, unit), (whole, len(was), len(was) - whole)):
        if low < high:
            a, b = was[low:high].reshape(-1, width), will[low:high].reshape(-1, width)
            differs = (a != b).any(axis=1)
            sorts += np.where(differs, np.where(a.any(axis=1), _DATA, _ZEROS), _EQUAL).tolist()
    return sorts, unit, len(was)


def _joined(sorts: list[int], unit: int, total: int) -> Iterator[tuple[int, int, int]]:
    """(start, end, sort) of the runs of units that differ."""
    at = 0
    while at < len(sorts):
        upto = at + 1
        while upto < len(sorts) and sorts[upto] == sorts[at]:
            upto += 1
        if sorts[at] != _EQUAL:
            yield at * unit, min(upto * unit, total), sorts[at]
        at = upto


def _content(layers: Sequence[Layer], start: int, end: int) -> memoryview:
    view = memoryview(bytearray(end - start))
    if layers:
        read_chain(layers, start, view)
    else:
        fill_zeros(view)
    return view


def _take(image: Image, piece: _Piece, *, compress: bool) -> None:
    """Write what the old chain has into the image."""
    if piece.data is None and image.meta.header.version >= 3:
        image.write_zeroes(piece.start, piece.length)
        return
    data = piece.data if piece.data is not None else memoryview(bytes(piece.length))
    if compress and not piece.plain:
        image.write_compressed(piece.start, data)
    else:
        image.write(piece.start, data)
