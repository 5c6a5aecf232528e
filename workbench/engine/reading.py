"""Reading through a backing chain: guest bytes, and the map of where they are as `qemu-img map` tells it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from formats.qcow2.entries import NO_HOST, ClusterType
from workbench.engine.layers import Layer, MissingLayer, Qcow2Layer, RawLayer, fill_zeros
from workbench.engine.mapping import Extent, Runs
from workbench.engine.preallocation import is_preallocated, split_by_file
from workbench.units import GuestOffset, HostOffset

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

PRESENT: Final = 1
ZERO: Final = 2
DATA: Final = 4
COMPRESSED: Final = 8
INVALID: Final = 16

_UNALLOCATED = (int(ClusterType.UNALLOCATED), int(ClusterType.UNALLOCATED_ALLOC))
_FLAGS_OF: Final = {
    ClusterType.UNALLOCATED: 0,
    ClusterType.UNALLOCATED_ALLOC: 0,
    ClusterType.ZERO_PLAIN: PRESENT | ZERO,
    ClusterType.ZERO_ALLOC: PRESENT | ZERO,
    ClusterType.NORMAL: PRESENT | DATA,
    ClusterType.COMPRESSED: PRESENT | DATA | COMPRESSED,
    ClusterType.INVALID: PRESENT | DATA | INVALID,
}


def read_chain(layers: Sequence[Layer], offset: int, view: memoryview, index: int = 0) -> None:
    """Fill `view` with the guest bytes at `offset`, seen from layer `index`; zeros behind the end of a layer."""
    layer = layers[index]
    end = offset + len(view)
    limit = max(offset, min(end, layer.size))
    if limit < end:
        fill_zeros(view[limit - offset :])
    if isinstance(layer, MissingLayer):
        layer.read_run(offset, 0, NO_HOST, view)
    for runs in layer.runs(offset, limit):
        for start, length, kind, host in runs:
            part = view[start - offset : start - offset + length]
            if kind not in _UNALLOCATED:
                layer.read_run(start, kind, host, part)
            elif index + 1 < len(layers):
                read_chain(layers, start, part, index + 1)
            else:
                fill_zeros(part)


@dataclass(frozen=True, slots=True)
class Flat:
    """Runs of a whole chain as columns: start, length int64 guest bytes; flags uint8 (PRESENT, ZERO, DATA, COMPRESSED,
    INVALID); depth int16; host int64 (NO_HOST without a plain place in the layer's file); kind uint8 ClusterType."""

    start: NDArray[np.int64]
    length: NDArray[np.int64]
    flags: NDArray[np.uint8]
    depth: NDArray[np.int16]
    host: NDArray[np.int64]
    kind: NDArray[np.uint8]

    def __len__(self) -> int:
        return len(self.start)

    def take(self, index: NDArray[np.intp]) -> Flat:
        """Rows by number."""
        return Flat(
            self.start[index],
            self.length[index],
            self.flags[index],
            self.depth[index],
            self.host[index],
            self.kind[index],
        )

    def merged(self) -> Flat:
        """Neighbours joined where `qemu-img map` joins them: same flags and depth, host offset going on (or none)."""
        import numpy as np

        if len(self) < 2:
            return self
        placed = self.host[1:] != NO_HOST
        onward = np.where(
            placed, (self.host[:-1] + self.length[:-1] == self.host[1:]) & (self.host[:-1] >= 0), self.host[:-1] < 0
        )
        same = (self.flags[1:] == self.flags[:-1]) & (self.depth[1:] == self.depth[:-1]) & onward
        if not same.any():
            return self
        heads = np.concatenate([np.zeros(1, dtype=np.intp), np.flatnonzero(~same) + 1])
        found = self.take(heads)
        ends = np.append(found.start[1:], self.start[-1] + self.length[-1])
        return Flat(found.start, ends - found.start, found.flags, found.depth, found.host, found.kind)


def concatenate(parts: list[Flat]) -> Flat:
    """Flats one after the other; nothing is merged."""
    import numpy as np

    if len(parts) == 1:
        return parts[0]
    return Flat(
        np.concatenate([p.start for p in parts]),
        np.concatenate([p.length for p in parts]),
        np.concatenate([p.flags for p in parts]),
        np.concatenate([p.depth for p in parts]),
        np.concatenate([p.host for p in parts]),
        np.concatenate([p.kind for p in parts]),
    )


def _zeros(start: int, end: int, depth: int) -> Flat:
    """Nothing allocated anywhere: reads as zeros."""
    import numpy as np

    return Flat(
        np.array([start], np.int64),
        np.array([end - start], np.int64),
        np.array([ZERO], np.uint8),
        np.array([depth], np.int16),
        np.array([NO_HOST], np.int64),
        np.array([ClusterType.UNALLOCATED], np.uint8),
    )


def flatten(
    layers: Sequence[Layer], start: int, end: int, *, index: int = 0, follow: bool = True, places: bool = False
) -> Iterator[Flat]:
    """The chain's map of guest bytes [start, end) in batches, seen from layer `index`; not merged.

    follow: go down into backing files; without it, what this layer leaves open has flags 0.  places: `host` tells where
    to read from, as in `Runs` (descriptors of compressed clusters, offsets of encrypted ones), not what a map shows.
    """
    layer = layers[index]
    lower = index + 1 < len(layers) and follow
    for runs in layer.runs(start, end):
        top = _own(layer, runs, index, bottom=index + 1 == len(layers), places=places)
        if not lower:
            yield top
            continue
        yield from _with_backing(layers, index, top, places)


def _own(layer: Layer, runs: Runs, depth: int, *, bottom: bool, places: bool) -> Flat:
    """One layer's runs with their flags."""
    import numpy as np

    lookup = np.zeros(len(ClusterType), dtype=np.uint8)
    for kind, flags in _FLAGS_OF.items():
        lookup[kind] = flags
    if bottom and not isinstance(layer, MissingLayer):
        lookup[list(_UNALLOCATED)] = ZERO
    host = runs.host
    if isinstance(layer, Qcow2Layer) and not places:
        hidden = runs.kind == ClusterType.COMPRESSED
        if layer.encrypted:
            host = np.full(len(runs), NO_HOST, dtype=np.int64)
        elif hidden.any():
            host = np.where(hidden, NO_HOST, host)
    depths = np.full(len(runs), depth, dtype=np.int16)
    flat = Flat(runs.start, runs.length, lookup[runs.kind], depths, host, runs.kind)
    if isinstance(layer, Qcow2Layer) and not layer.encrypted and layer.data is not None and is_preallocated(layer):
        return split_flat(layer, flat)
    return flat


def split_flat(layer: Qcow2Layer, flat: Flat) -> Flat:
    """Data runs cut where the image file has holes, those marked as zeros: QEMU looks there when the file is sparser
    than its refcounts say."""
    import numpy as np

    assert layer.data is not None
    wanted = np.flatnonzero(flat.kind == ClusterType.NORMAL)
    if not len(wanted):
        return flat
    row, shift, length, zero = split_by_file(layer.data, flat.host[wanted], flat.length[wanted])
    others = np.flatnonzero(flat.kind != ClusterType.NORMAL)
    index = np.concatenate([wanted[row], others])
    moved = np.concatenate([shift, np.zeros(len(others), np.int64)])
    start = flat.start[index] + moved
    order = np.argsort(start, kind="stable")
    index, moved = index[order], moved[order]
    lengths = np.concatenate([length, flat.length[others]])[order]
    zeros = np.concatenate([zero, np.zeros(len(others), bool)])[order]
    flags = flat.flags[index] | np.where(zeros, ZERO, 0).astype(np.uint8)
    host = np.where(flat.host[index] == NO_HOST, NO_HOST, flat.host[index] + moved)
    return Flat(flat.start[index] + moved, lengths, flags, flat.depth[index], host, flat.kind[index])


def _with_backing(layers: Sequence[Layer], index: int, top: Flat, places: bool) -> Iterator[Flat]:
    """`top` with its unallocated runs answered by the layers below; runs of both are cut at each other's borders."""
    import numpy as np

    open_rows = np.flatnonzero((top.kind == _UNALLOCATED[0]) | (top.kind == _UNALLOCATED[1]))
    if not len(open_rows):
        yield top
        return
    below = layers[index + 1]
    last = open_rows[-1]
    low, high = int(top.start[open_rows[0]]), int(top.start[last] + top.length[last])
    whole_start, whole_end = int(top.start[0]), int(top.start[-1] + top.length[-1])
    if low > whole_start:
        yield _window(top, whole_start, low)
    middle = max(low, min(high, below.size))
    for lower in flatten(layers, low, middle, index=index + 1, places=places):
        yield _overlay(_window(top, int(lower.start[0]), int(lower.start[-1] + lower.length[-1])), lower)
    if middle < high:  # the backing file is shorter: zeros, which QEMU counts to the overlay
        yield _overlay(_window(top, middle, high), _zeros(middle, high, index))
    if high < whole_end:
        yield _window(top, high, whole_end)


def _window(flat: Flat, start: int, end: int) -> Flat:
    """The part of `flat` within guest bytes [start, end)."""
    import numpy as np

    first = max(int(np.searchsorted(flat.start, start, side="right")) - 1, 0)
    last = int(np.searchsorted(flat.start, end, side="left"))
    cut = Flat(
        flat.start[first:last].copy(),
        flat.length[first:last].copy(),
        flat.flags[first:last],
        flat.depth[first:last],
        flat.host[first:last].copy(),
        flat.kind[first:last],
    )
    if len(cut) and cut.start[0] < start:
        skip = start - int(cut.start[0])
        cut.start[0] += skip
        cut.length[0] -= skip
        if cut.host[0] != NO_HOST and cut.kind[0] != ClusterType.COMPRESSED:
            cut.host[0] += skip
    if len(cut) and cut.start[-1] + cut.length[-1] > end:
        cut.length[-1] = end - cut.start[-1]
    return cut


def _overlay(top: Flat, lower: Flat) -> Flat:
    """Two flats over the same guest range: `lower` shows where `top` is unallocated."""
    import numpy as np

    starts = np.union1d(top.start, lower.start)
    end = int(top.start[-1] + top.length[-1])
    upper_row = np.searchsorted(top.start, starts, side="right") - 1
    lower_row = np.searchsorted(lower.start, starts, side="right") - 1
    through = np.isin(top.kind[upper_row], _UNALLOCATED)
    columns = []
    for name in ("start", "flags", "depth", "host", "kind"):
        above, under = getattr(top, name)[upper_row], getattr(lower, name)[lower_row]
        columns.append(np.where(through, under, above))
    origin, flags, depth, host, kind = columns
    lengths = np.diff(np.append(starts, end))
    host = np.where((host == NO_HOST) | (kind == ClusterType.COMPRESSED), host, host + (starts - origin))
    return Flat(starts, lengths, flags, depth, host, kind)


def merged_stream(batches: Iterator[Flat]) -> Iterator[Flat]:
    """Batches merged within and across: the last row waits for what follows it."""
    import numpy as np

    held: Flat | None = None
    for batch in batches:
        flat = (concatenate([held, batch]) if held is not None else batch).merged()
        if len(flat) > 1:
            yield flat.take(np.arange(len(flat) - 1))
        held = flat.take(np.array([len(flat) - 1]))
    if held is not None:
        yield held


def extents_of(flats: Iterator[Flat], layers: Sequence[Layer]) -> Iterator[Extent]:
    """Rows as `Extent`s."""
    paths = [layer.data_path if isinstance(layer, Qcow2Layer) else layer.path for layer in layers]
    kinds = list(ClusterType)
    for flat in flats:
        columns = (flat.start, flat.length, flat.flags, flat.depth, flat.host, flat.kind)
        for start, length, flags, depth, host, kind in zip(*(c.tolist() for c in columns), strict=True):
            yield Extent(
                GuestOffset(start),
                length,
                None if isinstance(layers[depth], RawLayer) else kinds[kind],
                HostOffset(host) if host != NO_HOST else None,
                depth,
                bool(flags & PRESENT),
                bool(flags & ZERO),
                bool(flags & DATA),
                bool(flags & COMPRESSED),
                paths[depth] if host != NO_HOST else None,
            )
