"""What an entry says: kind, host range and faults of L1, L2, refcount table and bitmap table entries.

The one reading that everything else stands on. An entry is a Python int, a table a native uint64 array; both are read
alike, given the image's `Shape`. Columns are worked out when they are asked for, and whole tables are looked at in one
operation where that is enough. Nothing here judges what to do about a fault (spec: Cluster mapping, Extended L2 Entries,
Host cluster management, Bitmap table; where the specification is silent, as QEMU's driver reads).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum, IntEnum
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final, NamedTuple, overload

from formats.bitfields import U64, BitLayout
from formats.qcow2.layouts import (
    ALL_ONES,
    BITMAP_TABLE_ENTRY,
    COMPRESSED,
    COPIED,
    L1_ENTRY,
    L2_EXTENDED,
    L2_STANDARD,
    OFFSET_MASK,
    REFCOUNT_OFFSET_MASK,
    REFCOUNT_TABLE_ENTRY,
    ZERO,
    compressed_entry,
    compressed_layout,
    compressed_range,
)

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Words = NDArray[np.uint64]
    Flags = NDArray[np.bool_]

SUBCLUSTERS: Final = 32
NO_HOST: Final = -1
"""In place of a host offset: the entry names none."""

_HALF: Final = (1 << SUBCLUSTERS) - 1
ALL_ZERO: Final = _HALF << SUBCLUSTERS
"""Subcluster bitmap of a cluster that reads as zeros throughout."""
ALL_ALLOCATED: Final = _HALF
"""Subcluster bitmap of a cluster whose data is all at its host offset."""


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
    """A driver stops here: the entry has a fault of `BLOCKING`."""
    UNALLOCATED_ALLOC = 6
    """Unallocated subcluster of an allocated cluster: as UNALLOCATED, with a place to write to."""


_UNALLOCATED, _ZERO_PLAIN, _ZERO_ALLOC, _NORMAL, _COMPRESSED, _INVALID, _UNALLOCATED_ALLOC = map(int, ClusterType)


class PointerKind(IntEnum):
    """What an entry of an L1, refcount or bitmap table says."""

    NONE = 0
    """No cluster: unallocated, all free, all bits clear."""
    CLUSTER = 1
    """A table, a block or bits at the host offset."""
    ONES = 2
    """No cluster; all bits of this part of the bitmap are set."""


class Fault(IntEnum):
    """What is wrong with an entry by itself. Each is one bit; several are combined as a plain int."""

    RESERVED = 0x001
    """Bits that must be zero, in compressed descriptors too (bit 0 of extended entries is BIT_0)."""
    UNALIGNED = 0x002
    """The host offset is not cluster aligned."""
    COPIED_NOWHERE = 0x004
    """COPIED though nothing is allocated; in L1 tables any bits without an offset."""
    COPIED_COMPRESSED = 0x008
    """COPIED on a compressed cluster."""
    ZERO_VERSION_2 = 0x010
    """The zero flag in a version 2 image."""
    SUBCLUSTER_BOTH = 0x020
    """A subcluster is both allocated and zero."""
    SUBCLUSTER_NOWHERE = 0x040
    """Subclusters are allocated though there is no cluster."""
    COMPRESSED_BITMAP = 0x080
    """A compressed cluster with a subcluster bitmap."""
    COMPRESSED_EXTERNAL = 0x100
    """A compressed cluster in an image whose data lies in an external file."""
    ELSEWHERE = 0x200
    """The offset in the external data file is not the guest offset (seen only when that is given)."""
    BIT_0 = 0x400
    """Bit 0 of an extended entry, where subclusters carry the zero state."""
    ONES_PLACED = 0x800
    """The all-ones flag of a bitmap table entry that has an offset."""


BLOCKING: Final = int(
    Fault.COMPRESSED_EXTERNAL
    | Fault.SUBCLUSTER_BOTH
    | Fault.SUBCLUSTER_NOWHERE
    | Fault.ZERO_VERSION_2
    | Fault.UNALIGNED
    | Fault.ELSEWHERE
)
"""Faults of an L2 entry at which a driver stops."""
_MET_FIRST: Final = (
    Fault.COMPRESSED_EXTERNAL,
    Fault.SUBCLUSTER_BOTH,
    Fault.SUBCLUSTER_NOWHERE,
    Fault.ZERO_VERSION_2,
    Fault.UNALIGNED,
    Fault.ELSEWHERE,
)

_RESERVED: Final = L2_STANDARD["reserved_low"].mask | L2_STANDARD["reserved_high"].mask


@dataclass(frozen=True)
class Shape:
    """What decides how entries read. data_file: guest clusters lie in an external file, where offset 0 is a place."""

    cluster_bits: int
    extended_l2: bool = False
    version: int = 3
    data_file: bool = False

    @cached_property
    def cluster_size(self) -> int:
        """Bytes."""
        return 1 << self.cluster_bits

    @cached_property
    def unaligned_bits(self) -> int:
        """Bits of an offset that are zero where it is cluster aligned."""
        return OFFSET_MASK & ((1 << self.cluster_bits) - 1)

    @cached_property
    def odd_bits(self) -> int:
        """Bits that no ordinary L2 entry has: compressed, reserved or of an unaligned offset."""
        return _RESERVED | COMPRESSED | self.unaligned_bits

    @cached_property
    def packed_reserved(self) -> int:
        """Reserved bits of a compressed descriptor."""
        return compressed_layout(self.cluster_bits).reserved_mask


class Entry(NamedTuple):
    """One L2 entry. start, end: host bytes [start, end) that it names, NO_HOST twice without any; faults: of `Fault`.

    kind is what the entry says, whatever its faults; an extended entry is UNALLOCATED, NORMAL or COMPRESSED as a whole.
    """

    kind: ClusterType
    start: int
    end: int
    faults: int


class Pointer(NamedTuple):
    """One entry of an L1, refcount or bitmap table; as `Entry`."""

    kind: PointerKind
    start: int
    end: int
    faults: int


# Bits of a word, the same for an int and for an array -----------------------------------------------------------------


@overload
def offset_of(word: int) -> int: ...
@overload
def offset_of(word: Words) -> Words: ...
def offset_of(word: Any) -> Any:
    """Host offset in an L1, standard or extended L2, or bitmap table entry; 0 for none."""
    return word & OFFSET_MASK


@overload
def block_of(word: int) -> int: ...
@overload
def block_of(word: Words) -> Words: ...
def block_of(word: Any) -> Any:
    """Host offset in a refcount table entry; 0 for none."""
    return word & REFCOUNT_OFFSET_MASK


@overload
def is_copied(word: int) -> bool: ...
@overload
def is_copied(word: Words) -> Flags: ...
def is_copied(word: Any) -> Any:
    """Whether an L1 or L2 entry says that what it refers to has refcount one."""
    return (word & COPIED) != 0


@overload
def is_compressed(word: int) -> bool: ...
@overload
def is_compressed(word: Words) -> Flags: ...
def is_compressed(word: Any) -> Any:
    """Whether an L2 entry is a compressed cluster's descriptor."""
    return (word & COMPRESSED) != 0


@overload
def has_zero_flag(word: int) -> bool: ...
@overload
def has_zero_flag(word: Words) -> Flags: ...
def has_zero_flag(word: Any) -> Any:
    """Whether bit 0 of an L2 entry is set: the zero flag of standard entries, of no meaning in others."""
    return (word & ZERO) != 0


@overload
def descriptor_of(word: int) -> int: ...
@overload
def descriptor_of(word: Words) -> Words: ...
def descriptor_of(word: Any) -> Any:
    """A compressed L2 entry without its flags."""
    return word & (COMPRESSED - 1)


@overload
def packed_range(word: int, shape: Shape) -> tuple[int, int]: ...
@overload
def packed_range(word: Words, shape: Shape) -> tuple[Words, Words]: ...
def packed_range(word: Any, shape: Shape) -> tuple[Any, Any]:
    """Host bytes [start, end) of a compressed entry's sectors; the end is a bound. Flags may be there or not."""
    return compressed_range(word, shape.cluster_bits)


def holds_cluster(word: int, shape: Shape) -> bool:
    """Whether an L2 entry has host clusters to give back: data, kept zeros or compressed data."""
    return bool(word & (OFFSET_MASK | COMPRESSED)) or (shape.data_file and bool(word & COPIED))


def offset_bits(shape: Shape) -> int:
    """How many low bits of a compressed descriptor are the host offset; the others up to bit 61 count sectors."""
    return 62 - (shape.cluster_bits - 8)


@overload
def past_end(start: int, length: int, file_size: int, cluster_size: int) -> bool: ...
@overload
def past_end(start: Words, length: int | Words, file_size: int, cluster_size: int) -> Flags: ...
def past_end(start: Any, length: Any, file_size: int, cluster_size: int) -> Any:
    """Whether a host range reaches one whole cluster or more behind the end of the file (all in bytes).

    A last cluster that the file has only in part is fine: the rest reads as zeros.
    """
    if isinstance(length, int):
        return start >= file_size + cluster_size - length
    return start + length >= file_size + cluster_size


# One L2 entry ---------------------------------------------------------------------------------------------------------


def l2_kind(word: int, shape: Shape) -> ClusterType:
    """What one L2 entry says as a whole, whatever its faults."""
    if word & COMPRESSED:
        return ClusterType.COMPRESSED
    if word & ZERO and not shape.extended_l2:
        return ClusterType.ZERO_ALLOC if word & OFFSET_MASK else ClusterType.ZERO_PLAIN
    if word & OFFSET_MASK or (shape.data_file and word & COPIED):
        return ClusterType.NORMAL
    return ClusterType.UNALLOCATED


def subcluster_kind(word: int, bitmap: int, number: int, shape: Shape) -> ClusterType:
    """What an L2 entry says about its subcluster `number`; about the cluster without extended entries."""
    kind = l2_kind(word, shape)
    if not shape.extended_l2 or kind is ClusterType.COMPRESSED:
        return kind
    if bitmap >> (number + SUBCLUSTERS) & 1:
        return ClusterType.ZERO_ALLOC if kind is ClusterType.NORMAL else ClusterType.ZERO_PLAIN
    if kind is ClusterType.UNALLOCATED or bitmap >> number & 1:
        return kind
    return ClusterType.UNALLOCATED_ALLOC


def l2_faults(word: int, shape: Shape, bitmap: int = 0, guest: int | None = None) -> int:
    """Faults of one L2 entry (see `Fault`). guest: offset of its cluster, where the external data file is to be judged."""
    found = 0
    if word & COMPRESSED:
        if word & shape.packed_reserved:
            found |= Fault.RESERVED
        if word & COPIED:
            found |= Fault.COPIED_COMPRESSED
        if shape.data_file:
            found |= Fault.COMPRESSED_EXTERNAL
        if shape.extended_l2 and bitmap:
            found |= Fault.COMPRESSED_BITMAP
        return found
    if word & _RESERVED:
        found |= Fault.RESERVED
    offset = word & OFFSET_MASK
    zero = word & ZERO and not shape.extended_l2
    placed = offset or (shape.data_file and word & COPIED and not zero)
    if word & shape.unaligned_bits:
        found |= Fault.UNALIGNED
    if word & COPIED and not placed and not shape.data_file:
        found |= Fault.COPIED_NOWHERE
    if shape.data_file and placed and guest is not None and offset != guest:
        found |= Fault.ELSEWHERE
    if not shape.extended_l2:
        return found | Fault.ZERO_VERSION_2 if zero and shape.version < 3 else found
    if word & ZERO:
        found |= Fault.BIT_0
    if placed:
        if bitmap & (bitmap >> SUBCLUSTERS) & _HALF:
            found |= Fault.SUBCLUSTER_BOTH
    elif bitmap & _HALF:
        found |= Fault.SUBCLUSTER_NOWHERE
    return found


def read_l2(word: int, shape: Shape, bitmap: int = 0, guest: int | None = None) -> Entry:
    """One L2 entry: kind, host range, faults."""
    kind = l2_kind(word, shape)
    faults = l2_faults(word, shape, bitmap, guest)
    if kind is ClusterType.COMPRESSED:
        return Entry(kind, *compressed_range(word, shape.cluster_bits), faults)
    if kind in (ClusterType.UNALLOCATED, ClusterType.ZERO_PLAIN):
        return Entry(kind, NO_HOST, NO_HOST, faults)
    start = word & OFFSET_MASK
    return Entry(kind, start, start + shape.cluster_size, faults)


def driver_kind(word: int, bitmap: int, number: int, guest: int, shape: Shape) -> ClusterType:
    """As a driver takes it: INVALID where it stops, else what `subcluster_kind` says. guest: the cluster's offset."""
    if l2_faults(word, shape, bitmap, guest) & BLOCKING:
        return ClusterType.INVALID
    return subcluster_kind(word, bitmap, number, shape)


def first_blocking(faults: int) -> Fault | None:
    """The fault that a driver meets first, None when it does not stop."""
    return next((each for each in _MET_FIRST if faults & each), None)


@overload
def subclusters(bitmap: int) -> tuple[int, int]: ...
@overload
def subclusters(bitmap: Words) -> tuple[Words, Words]: ...
def subclusters(bitmap: Any) -> Any:
    """(allocated, zero) of a subcluster bitmap: bit n for subcluster n."""
    return bitmap & _HALF, bitmap >> SUBCLUSTERS


# One entry of the other tables ----------------------------------------------------------------------------------------


class PointerTable(Enum):
    """Tables whose entries point to one cluster each."""

    L1 = "l1"
    REFCOUNT = "refcount-table"
    BITMAP = "bitmap-table"

    @property
    def offset_mask(self) -> int:
        return REFCOUNT_OFFSET_MASK if self is PointerTable.REFCOUNT else OFFSET_MASK

    @property
    def reserved_mask(self) -> int:
        """Bits that must be zero."""
        return _POINTER_LAYOUTS[self].reserved_mask


_POINTER_LAYOUTS: Final[dict[PointerTable, BitLayout]] = {
    PointerTable.L1: L1_ENTRY,
    PointerTable.REFCOUNT: REFCOUNT_TABLE_ENTRY,
    PointerTable.BITMAP: BITMAP_TABLE_ENTRY,
}


def read_pointer(word: int, table: PointerTable, shape: Shape) -> Pointer:
    """One entry of an L1, refcount or bitmap table."""
    start = word & table.offset_mask
    faults = int(Fault.RESERVED) if word & table.reserved_mask else 0
    if start & (shape.cluster_size - 1):
        faults |= Fault.UNALIGNED
    ones = table is PointerTable.BITMAP and word & ALL_ONES
    if ones and start:
        faults |= Fault.ONES_PLACED
    if table is PointerTable.L1 and word and not start:
        faults |= Fault.COPIED_NOWHERE
    if start:
        return Pointer(PointerKind.CLUSTER, start, start + shape.cluster_size, faults)
    return Pointer(PointerKind.ONES if ones else PointerKind.NONE, NO_HOST, NO_HOST, faults)


def reserved_bits(word: int, shape: Shape, table: PointerTable | None = None) -> int:
    """The bits of an entry that must be zero and are not (table None: an L2 entry; bit 0 of extended ones included)."""
    if table is not None:
        return word & table.reserved_mask
    if word & COMPRESSED:
        return word & shape.packed_reserved
    return word & (L2_EXTENDED if shape.extended_l2 else L2_STANDARD).reserved_mask


# Columns --------------------------------------------------------------------------------------------------------------


class L2Entries:
    """Many L2 entries, standard or extended, as columns of the words' form; each worked out at its first use.

    words: native uint64.  bitmaps: subcluster bitmaps of the same form; None without extended entries.  guest: guest
    offsets (bytes) of the clusters, where the external data file is to be judged.
    """

    def __init__(
        self, words: Words, shape: Shape, bitmaps: Words | None = None, guest: NDArray[Any] | None = None
    ) -> None:
        self.words = words
        self.shape = shape
        self.bitmaps = bitmaps
        self.guest = guest

    @cached_property
    def odd(self) -> bool:
        """Whether any entry is compressed, unaligned or has reserved bits: one look at the whole table."""
        return bool((self.words & self.shape.odd_bits).any())

    @cached_property
    def odds(self) -> Flags:
        """Which entries are compressed, unaligned or have reserved bits."""
        return self._any(self.shape.odd_bits)

    @cached_property
    def offset(self) -> Words:
        """The offset field; of compressed entries it means nothing."""
        return offset_of(self.words)

    @cached_property
    def copied(self) -> Flags:
        return self._any(COPIED)

    @cached_property
    def packed(self) -> Flags:
        """Compressed entries."""
        return self._any(COMPRESSED) if self.odd else self._none()

    @cached_property
    def standard(self) -> Flags:
        """Entries that are not compressed."""
        return ~self.packed

    @cached_property
    def zero(self) -> Flags:
        """Standard entries with the zero flag."""
        if self.shape.extended_l2:
            return self._none()
        found = self._any(ZERO)
        if self.odd:
            found &= self.standard
        return found

    @cached_property
    def placed(self) -> Flags:
        """Entries with a host cluster: NORMAL or ZERO_ALLOC."""
        found: Flags = self.offset != 0
        if self.shape.data_file:
            at_zero = self.copied
            if not self.shape.extended_l2:
                at_zero = at_zero & ((self.words & ZERO) == 0)
            found |= at_zero
        if self.odd:
            found &= self.standard
        return found

    @cached_property
    def kind(self) -> NDArray[np.uint8]:
        """uint8 of `ClusterType`: what the entries say, whatever their faults."""
        import numpy as np

        found = np.zeros(self.words.shape, dtype=np.uint8)
        found[self.placed] = _NORMAL
        zero = self.zero
        if not self.shape.extended_l2 and zero.any():
            found[zero] = _ZERO_ALLOC
            found[zero & ~self.placed] = _ZERO_PLAIN
        if self.odd:
            found[self.packed] = _COMPRESSED
        return found

    @cached_property
    def driver_kind(self) -> NDArray[np.uint8]:
        """uint8 of `ClusterType`, INVALID where a driver stops."""
        found = self.kind
        blocked = self.blocked
        if blocked is not None:
            found = found.copy()
            found[blocked] = _INVALID
        return found

    @cached_property
    def blocked(self) -> Flags | None:
        """Entries at which a driver stops; None for none (the usual case, without a column)."""
        found: Flags | None = None
        for fault in _MET_FIRST:
            if self._can(fault) and (column := self.fault(fault)).any():
                found = column if found is None else found | column
        return found

    @cached_property
    def range(self) -> tuple[Words, Words]:
        """(start, end) of the host bytes that each entry names; 0, 0 for those that name none (see `kind`)."""
        import numpy as np

        start = np.where(self.placed, self.offset, np.uint64(0))
        end = np.where(self.placed, self.offset + np.uint64(self.shape.cluster_size), np.uint64(0))
        if self.odd and self.packed.any():
            start[self.packed], end[self.packed] = packed_range(self.words[self.packed], self.shape)
        return start, end

    @cached_property
    def cleaned(self) -> Words:
        """The words without reserved bits; bit 0 of extended entries, which no driver minds, stays."""
        import numpy as np

        found = self.words & ~np.uint64(_RESERVED)
        return np.where(self.packed, self.words & ~np.uint64(self.shape.packed_reserved), found) if self.odd else found

    def beyond(self, file_size: int) -> Flags:
        """Entries that name host bytes past the end of a file of `file_size` bytes (see `past_end`)."""
        size = self.shape.cluster_size
        found = self.placed & past_end(self.offset, size, file_size, size)
        if self.odd:
            start, end = packed_range(self.words, self.shape)
            found |= self.packed & past_end(start, end - start, file_size, size)
        return found

    def fault(self, fault: Fault) -> Flags:
        """Which entries have this fault."""
        return _COLUMNS[fault](self) if self._can(fault) else self._none()

    @cached_property
    def faults(self) -> NDArray[np.uint16]:
        """All faults of each entry, combined."""
        import numpy as np

        found = np.zeros(self.words.shape, dtype=np.uint16)
        for fault in _COLUMNS:
            if self._can(fault):
                found |= np.where(self.fault(fault), np.uint16(fault), np.uint16(0))
        return found

    # -- inside

    def _any(self, bits: int) -> Flags:
        found: Flags = (self.words & bits) != 0
        return found

    def _none(self) -> Flags:
        import numpy as np

        return np.zeros(self.words.shape, dtype=bool)

    def _can(self, fault: Fault) -> bool:
        """Whether entries of this shape can have the fault at all, by one look at most."""
        shape = self.shape
        if fault in _OF_ODD:
            return self.odd and not (fault is Fault.COMPRESSED_EXTERNAL and not shape.data_file)
        if fault in (Fault.SUBCLUSTER_BOTH, Fault.SUBCLUSTER_NOWHERE):
            return self.bitmaps is not None
        if fault is Fault.COMPRESSED_BITMAP:
            return self.bitmaps is not None and self.odd
        if fault is Fault.BIT_0:
            return shape.extended_l2
        if fault is Fault.ZERO_VERSION_2:
            return shape.version < 3 and not shape.extended_l2
        if fault is Fault.ELSEWHERE:
            return shape.data_file and self.guest is not None
        return fault is not Fault.COPIED_NOWHERE or not shape.data_file


def _reserved(each: L2Entries) -> Flags:
    found = each._any(_RESERVED) & each.standard
    spare = each.shape.packed_reserved
    if spare:
        found |= each._any(spare) & each.packed
    return found


def _unplaced_copied(each: L2Entries) -> Flags:
    found = each.copied & ~each.placed
    if each.odd:
        found &= each.standard
    return found


def _both(each: L2Entries) -> Flags:
    assert each.bitmaps is not None
    both: Flags = ((each.bitmaps >> SUBCLUSTERS) & each.bitmaps & _HALF) != 0
    return each.placed & both


def _nowhere(each: L2Entries) -> Flags:
    assert each.bitmaps is not None
    found: Flags = (each.bitmaps & _HALF) != 0
    found &= ~each.placed
    if each.odd:
        found &= each.standard
    return found


def _packed_bitmap(each: L2Entries) -> Flags:
    assert each.bitmaps is not None
    found: Flags = each.packed & (each.bitmaps != 0)
    return found


def _bit_0(each: L2Entries) -> Flags:
    found = each._any(ZERO)
    return found & each.standard if each.odd else found


def _elsewhere(each: L2Entries) -> Flags:
    import numpy as np

    assert each.guest is not None
    found: Flags = each.placed & (each.offset != each.guest.astype(np.uint64))
    return found


_COLUMNS: Final[dict[Fault, Callable[[L2Entries], Flags]]] = {
    Fault.RESERVED: _reserved,
    Fault.UNALIGNED: lambda each: each._any(each.shape.unaligned_bits) & each.standard,
    Fault.COPIED_NOWHERE: _unplaced_copied,
    Fault.COPIED_COMPRESSED: lambda each: each.packed & each.copied,
    Fault.ZERO_VERSION_2: lambda each: each.zero,
    Fault.SUBCLUSTER_BOTH: _both,
    Fault.SUBCLUSTER_NOWHERE: _nowhere,
    Fault.COMPRESSED_BITMAP: _packed_bitmap,
    Fault.COMPRESSED_EXTERNAL: lambda each: each.packed,
    Fault.ELSEWHERE: _elsewhere,
    Fault.BIT_0: _bit_0,
}
_OF_ODD: Final = (Fault.RESERVED, Fault.UNALIGNED, Fault.COPIED_COMPRESSED, Fault.COMPRESSED_EXTERNAL)


class Pointers:
    """Many entries of an L1, refcount or bitmap table as columns; each worked out at its first use."""

    def __init__(self, words: Words, table: PointerTable, shape: Shape) -> None:
        self.words = words
        self.table = table
        self.shape = shape

    @cached_property
    def offset(self) -> Words:
        """Host offsets; 0 for none."""
        return block_of(self.words) if self.table is PointerTable.REFCOUNT else offset_of(self.words)

    @cached_property
    def copied(self) -> Flags:
        """COPIED flags (L1 tables)."""
        found: Flags = (self.words & COPIED) != 0
        return found

    @cached_property
    def kind(self) -> NDArray[np.uint8]:
        """uint8 of `PointerKind`."""
        import numpy as np

        found: NDArray[np.uint8] = (self.offset != 0).astype(np.uint8)
        if self.table is PointerTable.BITMAP:
            found[(self.offset == 0) & ((self.words & ALL_ONES) != 0)] = int(PointerKind.ONES)
        return found

    @cached_property
    def cleaned(self) -> Words:
        """The words without bits that must not be there: reserved ones, and a bitmap's all-ones flag beside an offset."""
        import numpy as np

        found = self.words & ~np.uint64(self.table.reserved_mask)
        if self.table is PointerTable.BITMAP:
            found[self.offset != 0] &= ~np.uint64(ALL_ONES)
        return found

    def inside(self, end: int) -> Flags:
        """Entries that name an aligned cluster which starts before host byte `end`."""
        size = self.shape.cluster_size
        found: Flags = (self.offset != 0) & ((self.offset & (size - 1)) == 0) & (self.offset < end)
        return found

    def beyond(self, file_size: int) -> Flags:
        """Entries that point past the end of a file of `file_size` bytes (see `past_end`)."""
        size = self.shape.cluster_size
        found: Flags = self.offset != 0
        return found & past_end(self.offset, size, file_size, size)

    def fault(self, fault: Fault) -> Flags:
        """Which entries have this fault."""
        import numpy as np

        found: Flags = np.zeros(self.words.shape, dtype=bool)
        if fault is Fault.RESERVED:
            found = (self.words & self.table.reserved_mask) != 0
        elif fault is Fault.UNALIGNED:
            found = (self.offset & (self.shape.cluster_size - 1)) != 0
        elif fault is Fault.COPIED_NOWHERE and self.table is PointerTable.L1:
            found = (self.words != 0) & (self.offset == 0)
        elif fault is Fault.ONES_PLACED and self.table is PointerTable.BITMAP:
            found = (self.offset != 0) & ((self.words & ALL_ONES) != 0)
        return found

    @cached_property
    def faults(self) -> NDArray[np.uint16]:
        """All faults of each entry, combined."""
        import numpy as np

        found = np.zeros(self.words.shape, dtype=np.uint16)
        for fault in (Fault.RESERVED, Fault.UNALIGNED, Fault.COPIED_NOWHERE, Fault.ONES_PLACED):
            found |= np.where(self.fault(fault), np.uint16(fault), np.uint16(0))
        return found


# Subclusters as columns -----------------------------------------------------------------------------------------------


def subcluster_kinds(each: L2Entries) -> NDArray[np.uint8]:
    """`ClusterType` of the 32 subclusters of extended entries as a driver takes them: shape (entries, 32), uint8."""
    import numpy as np

    assert each.bitmaps is not None
    kind = each.kind
    position = np.arange(SUBCLUSTERS, dtype=np.uint64)
    allocated = (each.bitmaps[:, None] >> position) & np.uint64(1) != 0
    zero = (each.bitmaps[:, None] >> (position + np.uint64(SUBCLUSTERS))) & np.uint64(1) != 0
    normal, unallocated = (kind == _NORMAL)[:, None], (kind == _UNALLOCATED)[:, None]
    kinds = np.repeat(kind[:, None], SUBCLUSTERS, axis=1)
    kinds[normal & ~allocated] = _UNALLOCATED_ALLOC
    kinds[normal & zero] = _ZERO_ALLOC
    kinds[unallocated & zero] = _ZERO_PLAIN
    if each.blocked is not None:  # a driver looks at a whole cluster's bitmap before it believes any of it
        kinds[each.blocked] = _INVALID
    return kinds


# Whole tables at a glance ---------------------------------------------------------------------------------------------


def run_heads(words: Words, shape: Shape) -> NDArray[np.intp]:
    """First entries of the runs of standard L2 entries: within a run each says the same as the one before, or names the
    next host cluster. Compressed entries are runs of their own.

    Breaks are looked for in the bare words, so that only the first entry of each run needs reading. A word that is its
    neighbour plus one cluster continues it (all flags are equal then, unless the offset field overflows: such runs are
    cut into single entries). An equal word continues it when there is no offset.
    """
    import numpy as np

    count = len(words)
    heads = np.flatnonzero(words[1:] - words[:-1] != np.uint64(shape.cluster_size))
    if len(heads):
        heads += 1
        # Equal words without an offset continue each other; only breaks are looked at again.
        here, before = words[heads], words[heads - 1]
        same = (here == before) & ((here & np.uint64(OFFSET_MASK | COMPRESSED)) == 0)
        if shape.data_file:
            same &= (here & np.uint64(COPIED)) == 0
        heads = heads[~same]
    heads = np.concatenate([np.zeros(1, dtype=heads.dtype), heads])
    ends = np.append(heads[1:], count)
    first, last = words[heads], words[ends - 1]
    odd = (first ^ last) & np.uint64(~OFFSET_MASK & U64) != 0
    odd |= ((first & np.uint64(COMPRESSED)) != 0) & (ends - heads > 1)
    # A run that starts without offset and counts up from there is an unallocated entry followed by data.
    # (COPIED in an external data file is data at host offset 0, unless the zero flag says otherwise: then the count is right.)
    at_zero = (first & np.uint64(OFFSET_MASK)) == 0
    if shape.data_file:
        at_zero &= (first & np.uint64(COPIED | ZERO)) != np.uint64(COPIED)
    odd |= at_zero & (first != last)
    if odd.any():
        extra = [np.arange(h, e) for h, e in zip(heads[odd].tolist(), ends[odd].tolist(), strict=True)]
        heads = np.unique(np.concatenate([heads, *extra]))
    return heads


def one_run_tables(words: Words, bitmaps: Words | None, shape: Shape, file_size: int) -> Flags:
    """Which L2 tables (rows of `words`) map one run of host clusters in order, all flags alike, inside the file, with no
    fault in any entry; never in an image with an external data file."""
    import numpy as np

    size = np.uint64(shape.cluster_size)
    first, entries = words[:, 0], words.shape[1]
    last = first + size * np.uint64(entries - 1)
    offset = first & np.uint64(OFFSET_MASK)
    good: Flags = (words[:, -1] == last) & (offset != 0) & ((first & np.uint64(shape.odd_bits | ZERO)) == 0)
    good &= (last & np.uint64(OFFSET_MASK)) < np.uint64(file_size)
    if shape.data_file:
        good[:] = False
    if good.all():
        good = (words[:, 1:] - words[:, :-1] == size).all(axis=1)
    else:
        for row in np.flatnonzero(good):
            good[row] = (words[row, 1:] - words[row, :-1] == size).all()
    if bitmaps is not None:
        for row in np.flatnonzero(good):
            rest = bitmaps[row]
            good[row] = not ((rest >> np.uint64(SUBCLUSTERS)) & rest & np.uint64(_HALF)).any()
    return good


def impossible_bits(shape: Shape, file_size: int) -> tuple[int, int, int]:
    """Bits of which no sound standard entry has any in a file of `file_size` bytes; bits of which a sound compressed one
    has the compressed flag alone; that flag."""
    high = U64 << max(file_size - 1, 1).bit_length() & U64
    standard = shape.odd_bits | (0 if shape.data_file else high & OFFSET_MASK)
    return standard, COPIED | COMPRESSED | high & ((1 << offset_bits(shape)) - 1), COMPRESSED


def reserved_columns(words: Words) -> Flags:
    """Which L2 words have bits that are reserved in standard entries, compressed ones included: a quick look at garbage."""
    found: Flags = (words & _RESERVED) != 0
    return found


def plain_run(words: Sequence[int], index: int, most: int, shape: Shape, *, owned: bool = False) -> tuple[int, int]:
    """(host offset, entries) of the plain data from standard entry `index` on, entries behind one another in the file.

    At most `most` entries. (NO_HOST, 0) where the first is anything else than data at an aligned offset, without any
    fault. owned: COPIED must be set in each; otherwise it may be set or not. Offset 0 counts, in an external data file
    and with COPIED. The data file's rule (offset = guest offset) is the caller's to check.
    """
    word, step = words[index], shape.cluster_size
    host = word & OFFSET_MASK
    if (
        (word != host | COPIED if owned else word & ~(OFFSET_MASK | COPIED))
        or host & (step - 1)
        or not (host or (shape.data_file and word & COPIED))
    ):
        return NO_HOST, 0
    count = 1
    if owned:
        expected = word + step
        while count < most and words[index + count] == expected:
            expected += step
            count += 1
    else:
        expected = host + step
        while count < most and words[index + count] & ~COPIED == expected:
            expected += step
            count += 1
    return host, count


# Writing entries ------------------------------------------------------------------------------------------------------


ONES: Final = ALL_ONES
"""Bitmap table entry of a part all of whose bits are set, without a cluster."""


@overload
def pointing_to(host: int) -> int: ...
@overload
def pointing_to(host: Words) -> Words: ...
def pointing_to(host: Any) -> Any:
    """An L1 entry, or an L2 entry of plain data, to a host cluster of refcount one."""
    return host | COPIED


@overload
def without_copied(word: int) -> int: ...
@overload
def without_copied(word: Words) -> Words: ...
def without_copied(word: Any) -> Any:
    """The entry without its COPIED flag."""
    return word & (COPIED - 1)


def packed_entry(host: int, length: int, shape: Shape) -> int:
    """L2 entry of `length` bytes of compressed data at host offset `host`."""
    return compressed_entry(host, length, shape.cluster_bits)


@overload
def set_copied(word: int, on: bool) -> int: ...
@overload
def set_copied(word: Words, on: Flags) -> Words: ...
def set_copied(word: Any, on: Any) -> Any:
    """The entry with its COPIED flag as `on` says."""
    if isinstance(word, int):
        return word | COPIED if on else word & ~COPIED
    import numpy as np

    return np.where(on, word | COPIED, word & (COPIED - 1))


def moved_to(word: int, host: int) -> int:
    """The L1 or plain L2 entry with another host offset and the same flags."""
    return word & ~OFFSET_MASK | host


@overload
def with_zero_flag(word: int) -> int: ...
@overload
def with_zero_flag(word: Words) -> Words: ...
def with_zero_flag(word: Any) -> Any:
    """A standard L2 entry that reads as zeros; it keeps its host cluster."""
    return word | ZERO


@overload
def without_zero_flag(word: int) -> int: ...
@overload
def without_zero_flag(word: Words) -> Words: ...
def without_zero_flag(word: Any) -> Any:
    """A standard L2 entry without its zero flag, or an extended one without bit 0."""
    return word & (U64 ^ ZERO)


def as_plain(word: int) -> int:
    """The L2 entry without its compressed flag."""
    return word & ~COMPRESSED


def zero_entry(shape: Shape) -> int:
    """L2 entry of a cluster that reads as zeros; unallocated where the shape has no zero flag."""
    return ZERO if shape.version >= 3 and not shape.extended_l2 else 0


def interleaved(entries: Words, bitmaps: Words | None) -> Words:
    """The words of an L2 table: its entries, each with its subcluster bitmap behind it where there are any."""
    if bitmaps is None:
        return entries
    import numpy as np

    return np.stack([entries, bitmaps], axis=-1).reshape(-1)
