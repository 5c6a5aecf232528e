"""From L2 table entries to runs: what each stretch of the virtual disk is, decoded a whole table at a time.

Every function here works on numpy columns; none looks at entries one by one (spec: Cluster mapping, Extended L2
Entries). Judging is QEMU's: an entry on which its driver would stop is INVALID.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING, Final

from formats.qcow2.tables import COMPRESSED, COPIED, OFFSET_MASK, ZERO
from workbench.units import SUBCLUSTERS, Geometry, GuestOffset, HostOffset

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class ClusterType(IntEnum):
    """What an L2 entry, or one of its subclusters, says about a guest cluster."""

    UNALLOCATED = 0
    """Comes from the backing file, or reads as zeros."""
    ZERO_PLAIN = 1
    """Reads as zeros; nothing allocated."""
    ZERO_ALLOC = 2
    """Reads as zeros; a host cluster is kept for it."""
    NORMAL = 3
    """Data at the host offset."""
    COMPRESSED = 4
    """A compressed cluster; the entry is its descriptor."""
    INVALID = 5
    """A driver stops here: see `diagnose`."""
    UNALLOCATED_ALLOC = 6
    """Unallocated subcluster of an allocated cluster: as UNALLOCATED, with a place to write to."""


NO_HOST: Final = -1
"""In host columns: this run has no host offset."""

_UNALLOCATED, _ZERO_PLAIN, _ZERO_ALLOC, _NORMAL = 0, 1, 2, 3
_COMPRESSED, _INVALID, _UNALLOCATED_ALLOC = 4, 5, 6


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


@dataclass(frozen=True, slots=True)
class MappingRules:
    """What decides how L2 entries read: the image's shape, its version, and whether data lies in an external file."""

    geometry: Geometry
    version: int = 3
    data_file: bool = False


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
    import numpy as np

    u = np.uint64
    offset = entries & u(OFFSET_MASK)
    no_offset = offset == 0
    compressed = (entries & u(COMPRESSED)) != 0
    zero = (entries & u(ZERO)) != 0 if not rules.geometry.extended_l2 else np.zeros(len(entries), dtype=bool)
    kind = np.full(len(entries), _NORMAL, dtype=np.uint8)
    unallocated = no_offset & ((entries & u(COPIED)) == 0) if rules.data_file else no_offset
    kind[unallocated] = _UNALLOCATED
    kind[zero] = _ZERO_ALLOC
    kind[zero & no_offset] = _ZERO_PLAIN
    kind[compressed] = _COMPRESSED
    host = offset.astype(np.int64)
    host[(kind == _UNALLOCATED) | (kind == _ZERO_PLAIN)] = NO_HOST
    host[compressed] = (entries[compressed] & u(COMPRESSED - 1)).astype(np.int64)
    placed = (kind == _NORMAL) | (kind == _ZERO_ALLOC)
    wrong = placed & ((offset & u(rules.geometry.cluster_size - 1)) != 0)
    if rules.version < 3:
        wrong |= zero & ~compressed
    if rules.data_file:
        wrong |= compressed | (placed & (host != guest))
    if wrong.any():
        kind[wrong] = _INVALID
        host[wrong] = NO_HOST
    return kind, host


def _standard_runs(words: NDArray[np.uint64], guest: int, rules: MappingRules) -> Runs:
    """Breaks are looked for in the bare words, so that only the first entry of each run needs decoding.

    A word that is its neighbour plus one cluster continues it (all flags are equal then, unless the offset field
    overflows, which decodes to another run head of its own only if flags differ: excluded below). An equal word
    continues it when there is no offset.
    """
    import numpy as np

    cluster = rules.geometry.cluster_size
    count = len(words)
    step = words[1:] - words[:-1]
    breaks = step != np.uint64(cluster)
    heads = np.flatnonzero(breaks)
    if len(heads):
        heads += 1
        # Equal words without an offset continue each other; only breaks are looked at again.
        here, before = words[heads], words[heads - 1]
        same = (here == before) & ((here & np.uint64(OFFSET_MASK | COMPRESSED)) == 0)
        if rules.data_file:
            same &= (here & np.uint64(COPIED)) == 0
        heads = heads[~same]
    heads = np.concatenate([np.zeros(1, dtype=heads.dtype), heads])
    ends = np.append(heads[1:], count)
    first, last = words[heads], words[ends - 1]
    odd = (first ^ last) & np.uint64(~OFFSET_MASK & ((1 << 64) - 1)) != 0
    odd |= ((first & np.uint64(COMPRESSED)) != 0) & (ends - heads > 1)
    # A run that starts without offset and counts up from there is an unallocated entry followed by data.
    # (COPIED in an external data file is data at host offset 0: then the count is right.)
    at_zero = (first & np.uint64(OFFSET_MASK)) == 0
    if rules.data_file:
        at_zero &= (first & np.uint64(COPIED)) == 0
    odd |= at_zero & (first != last)
    if odd.any():
        extra = [np.arange(h, e) for h, e in zip(heads[odd].tolist(), ends[odd].tolist(), strict=True)]
        heads = np.unique(np.concatenate([heads, *extra]))
        ends = np.append(heads[1:], count)
    starts = heads.astype(np.int64) * cluster + guest
    kind, host = decode_entries(words[heads], starts, rules)
    return Runs(starts, (ends - heads).astype(np.int64) * cluster, kind, host)


def decode_subclusters(
    words: NDArray[np.uint64], guest: int, rules: MappingRules
) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """(kind, host) of every subcluster of extended entries: arrays of 32 per entry. host is the subcluster's own."""
    import numpy as np

    geometry = rules.geometry
    entries, bitmaps = words[0::2], words[1::2]
    offsets = guest + np.arange(len(entries), dtype=np.int64) * geometry.cluster_size
    kind, host = decode_entries(entries, offsets, rules)
    position = np.arange(SUBCLUSTERS, dtype=np.uint64)
    allocated = (bitmaps[:, None] >> position) & np.uint64(1) != 0
    zero = (bitmaps[:, None] >> (position + np.uint64(SUBCLUSTERS))) & np.uint64(1) != 0
    normal, unallocated = (kind == _NORMAL)[:, None], (kind == _UNALLOCATED)[:, None]
    kinds = np.repeat(kind[:, None], SUBCLUSTERS, axis=1)
    kinds[normal & ~allocated] = _UNALLOCATED_ALLOC
    kinds[normal & zero] = _ZERO_ALLOC
    kinds[unallocated & zero] = _ZERO_PLAIN
    # QEMU looks at a whole cluster's bitmap before it believes any of it.
    invalid = (normal[:, 0] & (allocated & zero).any(axis=1)) | (unallocated[:, 0] & allocated.any(axis=1))
    kinds[invalid] = _INVALID
    hosts = np.repeat(host[:, None], SUBCLUSTERS, axis=1)
    hosts[normal[:, 0]] += np.arange(SUBCLUSTERS, dtype=np.int64) * geometry.subcluster_size
    hosts[invalid] = NO_HOST
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
    """Why one L2 entry is INVALID, in a clause (the first reason a driver meets)."""
    host = entry & OFFSET_MASK
    if entry & COMPRESSED:
        return "compressed entry in an image with an external data file"
    if rules.geometry.extended_l2:
        if host and bitmap & (bitmap >> SUBCLUSTERS) & 0xFFFFFFFF:
            return "subcluster both allocated and zero"
        if not host and bitmap & 0xFFFFFFFF and not (rules.data_file and entry & COPIED):
            return "allocated subclusters in an entry without host offset"
    elif entry & ZERO and rules.version < 3:
        return "zero flag in a version 2 image"
    if host % rules.geometry.cluster_size:
        return f"host offset {host:#x} is not cluster aligned"
    if rules.data_file and host != guest:
        return f"host offset {host:#x} in the external data file differs from the guest offset {guest:#x}"
    return f"entry {entry:#018x} makes no sense"
