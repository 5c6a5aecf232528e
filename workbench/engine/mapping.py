"""From L2 table entries to runs: what each stretch of the virtual disk is, decoded a whole table at a time.

Every function here works on numpy columns; none looks at entries one by one (spec: Cluster mapping, Extended L2
Entries). Judging is QEMU's: an entry on which its driver would stop is INVALID.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from formats.qcow2.entries import (
    NO_HOST,
    SUBCLUSTERS,
    ClusterType,
    Fault,
    L2Entries,
    Shape,
    descriptor_of,
    first_blocking,
    l2_faults,
    offset_of,
    run_heads,
    subcluster_kinds,
)
from workbench.units import Geometry, GuestOffset, HostOffset

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


_UNALLOCATED, _COMPRESSED = int(ClusterType.UNALLOCATED), int(ClusterType.COMPRESSED)
_ZERO_PLAIN, _INVALID = int(ClusterType.ZERO_PLAIN), int(ClusterType.INVALID)


@dataclass(frozen=True, slots=True)
class Extent:
    """One run of the virtual disk with the same answer everywhere, as `qemu-img map --output=json` reports it.

    start, length: guest bytes.  host: host byte offset in `path`, when the data can be found there as it is.
    depth: layer of the backing chain that answers, 0 the image itself.  present: that layer has an answer of its own.
    kind: the cluster type of the first cluster (None for a raw layer).  path: the file that holds the data.
    """

    start: GuestOffset
    length: int
    kind: ClusterType | None
    host: HostOffset | None
    depth: int
    present: bool
    zero: bool
    data: bool
    compressed: bool
    path: str | None = None

    @property
    def end(self) -> int:
        return self.start + self.length


@dataclass(frozen=True, slots=True)
class Runs:
    """Runs of one layer in guest order, as columns of one length.

    start, length: int64 guest bytes.  kind: uint8 ClusterType.  host: int64 host byte offset where the run's data starts
    (NO_HOST without one); the bare descriptor for COMPRESSED, each of which is a run of its own.
    """

    start: NDArray[np.int64]
    length: NDArray[np.int64]
    kind: NDArray[np.uint8]
    host: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.start)

    @property
    def end(self) -> int:
        """Guest offset behind the last run; 0 without runs."""
        return int(self.start[-1] + self.length[-1]) if len(self.start) else 0

    @property
    def nbytes(self) -> int:
        """Memory that the columns take."""
        return self.start.nbytes + self.length.nbytes + self.kind.nbytes + self.host.nbytes

    def __iter__(self) -> Iterator[tuple[int, int, int, int]]:
        """(start, length, kind, host) of each run, as Python ints."""
        return zip(self.start.tolist(), self.length.tolist(), self.kind.tolist(), self.host.tolist(), strict=True)

    def clip(self, start: int, end: int) -> Runs:
        """The part within guest bytes [start, end); host offsets of plain runs move along."""
        import numpy as np

        first = int(np.searchsorted(self.start, start, side="right")) - 1
        first = max(first, 0)
        last = int(np.searchsorted(self.start, end, side="left"))
        if first == 0 and last == len(self.start) and last and self.start[0] >= start and self.end <= end:
            return self
        starts, lengths = self.start[first:last].copy(), self.length[first:last].copy()
        kinds, hosts = self.kind[first:last], self.host[first:last].copy()
        if len(starts) and starts[0] < start:
            skip = start - int(starts[0])
            if skip >= lengths[0]:
                return Runs(starts[1:], lengths[1:], kinds[1:], hosts[1:]).clip(start, end)
            starts[0] += skip
            lengths[0] -= skip
            if hosts[0] != NO_HOST and kinds[0] != _COMPRESSED:
                hosts[0] += skip
        if len(starts) and starts[-1] + lengths[-1] > end:
            lengths[-1] = end - starts[-1]
        return Runs(starts, lengths, kinds, hosts)


def one_run(start: int, length: int, kind: ClusterType, host: int = NO_HOST) -> Runs:
    """Runs with a single row."""
    import numpy as np

    return Runs(
        np.array([start], dtype=np.int64),
        np.array([length], dtype=np.int64),
        np.array([kind], dtype=np.uint8),
        np.array([host], dtype=np.int64),
    )


def join(parts: list[Runs]) -> Runs:
    """Runs one after the other; nothing is merged."""
    import numpy as np

    if len(parts) == 1:
        return parts[0]
    return Runs(
        np.concatenate([p.start for p in parts]) if parts else np.empty(0, np.int64),
        np.concatenate([p.length for p in parts]) if parts else np.empty(0, np.int64),
        np.concatenate([p.kind for p in parts]) if parts else np.empty(0, np.uint8),
        np.concatenate([p.host for p in parts]) if parts else np.empty(0, np.int64),
    )


@dataclass(frozen=True)
class MappingRules:
    """What decides how L2 entries read: the image's geometry, its version, and whether data lies in an external file."""

    geometry: Geometry
    version: int = 3
    data_file: bool = False

    @cached_property
    def shape(self) -> Shape:
        """The same, as the reading of entries wants it."""
        return Shape(self.geometry.cluster_bits, self.geometry.extended_l2, self.version, self.data_file)


def decode_l2(words: NDArray[np.uint64], guest: int, rules: MappingRules) -> Runs:
    """Runs of consecutive standard or extended L2 entries, the first of which describes guest offset `guest`.

    words: 1-D native uint64; two per entry (entry, subcluster bitmap) with extended L2.
    Neighbours merge where type and host offset continue; compressed clusters never do.
    """
    if rules.geometry.extended_l2:
        return _extended_runs(words, guest, rules)
    return _standard_runs(words, guest, rules)


def decode_entries(
    entries: NDArray[np.uint64], guest: NDArray[np.int64], rules: MappingRules
) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """(kind, host) of standard L2 entries at the given guest offsets; no merging. host as in `Runs`."""
    each = L2Entries(entries, rules.shape, guest=guest)
    return each.driver_kind, _hosts(each)


def _hosts(each: L2Entries) -> NDArray[np.int64]:
    """Host column of entries, as in `Runs`."""
    import numpy as np

    kind = each.driver_kind
    host = each.offset.astype(np.int64)
    host[(kind == _UNALLOCATED) | (kind == _ZERO_PLAIN) | (kind == _INVALID)] = NO_HOST
    if each.odd:
        packed = kind == _COMPRESSED
        host[packed] = descriptor_of(each.words[packed]).astype(np.int64)
    return host


def _standard_runs(words: NDArray[np.uint64], guest: int, rules: MappingRules) -> Runs:
    import numpy as np

    cluster, heads = rules.geometry.cluster_size, run_heads(words, rules.shape)
    lengths = np.diff(np.append(heads, len(words))).astype(np.int64) * cluster
    starts = heads.astype(np.int64) * cluster + guest
    kind, host = decode_entries(words[heads], starts, rules)
    return Runs(starts, lengths, kind, host)


def decode_subclusters(
    words: NDArray[np.uint64], guest: int, rules: MappingRules
) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """(kind, host) of every subcluster of extended entries: arrays of 32 per entry. host is the subcluster's own."""
    import numpy as np

    geometry = rules.geometry
    count = len(words) // 2
    offsets = guest + np.arange(count, dtype=np.int64) * geometry.cluster_size
    each = L2Entries(words[0::2], rules.shape, words[1::2], offsets)
    kinds = subcluster_kinds(each)
    hosts = np.repeat(_hosts(each)[:, None], SUBCLUSTERS, axis=1)
    hosts[each.driver_kind == ClusterType.NORMAL] += np.arange(SUBCLUSTERS, dtype=np.int64) * geometry.subcluster_size
    return kinds.reshape(-1), hosts.reshape(-1)


def _extended_runs(words: NDArray[np.uint64], guest: int, rules: MappingRules) -> Runs:
    import numpy as np

    unit = rules.geometry.subcluster_size
    kind, host = decode_subclusters(words, guest, rules)
    if not len(kind):
        return join([])
    placed = host[1:] != NO_HOST
    onward = np.where(placed & (kind[1:] != _COMPRESSED), host[1:] - host[:-1] == unit, host[1:] == host[:-1])
    # Two neighbouring clusters may carry the same descriptor; each is a stream of its own all the same.
    border = np.arange(1, len(kind)) % SUBCLUSTERS == 0
    breaks = (kind[1:] != kind[:-1]) | ~onward | (border & (kind[1:] == _COMPRESSED))
    heads = np.concatenate([np.zeros(1, dtype=np.int64), np.flatnonzero(breaks) + 1])
    lengths = np.diff(np.append(heads, len(kind)))
    return Runs(heads * unit + guest, lengths * unit, kind[heads], host[heads])


def diagnose(entry: int, bitmap: int, guest: int, rules: MappingRules) -> str:
    """Why one L2 entry is INVALID, in a clause (the first reason a driver meets). guest: its cluster's offset."""
    fault, host = first_blocking(l2_faults(entry, rules.shape, bitmap, guest)), offset_of(entry)
    if fault is Fault.UNALIGNED:
        return f"host offset {host:#x} is not cluster aligned"
    if fault is Fault.ELSEWHERE:
        return f"host offset {host:#x} in the external data file differs from the guest offset {guest:#x}"
    return _REASONS[fault] if fault is not None else f"entry {entry:#018x} makes no sense"


_REASONS = {
    Fault.COMPRESSED_EXTERNAL: "compressed entry in an image with an external data file",
    Fault.SUBCLUSTER_BOTH: "subcluster both allocated and zero",
    Fault.SUBCLUSTER_NOWHERE: "allocated subclusters in an entry without host offset",
    Fault.ZERO_VERSION_2: "zero flag in a version 2 image",
}
