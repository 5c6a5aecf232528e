"""The bits of one persistent dirty bitmap, chunk by chunk; a chunk is a cluster of bits (spec: Bitmaps)."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from formats.qcow2.bitmaps import Bitmap
from formats.qcow2.entries import PointerKind, PointerTable, Shape, read_pointer
from workbench.engine.metadata import Metadata, Region
from workbench.units import div_round_up

ReadHost = Callable[[int, int], bytes]
"""(host offset, length) -> exactly that many bytes."""


class BitmapBits:
    """Bits of a disk of `size` bytes, one for `1 << granularity_bits` guest bytes. Chunks are read when they are looked at.

    table: entries of the bitmap table as stored.  chunks: chunks in memory.  changed: numbers of those that differ from
    what is stored.
    """

    def __init__(self, read: ReadHost, shape: Shape, table: list[int], granularity_bits: int, size: int) -> None:
        self._read = read
        self._shape = shape
        self.table = table
        self.granularity_bits = granularity_bits
        self.size = size
        self.chunks: dict[int, bytearray] = {}
        self.changed: set[int] = set()

    @property
    def chunk_bits(self) -> int:
        """Bits of a chunk."""
        return self._shape.cluster_size * 8

    @property
    def count(self) -> int:
        """Bits of the whole bitmap."""
        return div_round_up(self.size, 1 << self.granularity_bits)

    def resize(self, size: int) -> None:
        """For a disk of `size` bytes from now on: bits behind a smaller one go, new ones are clear."""
        self.size = size
        chunks = div_round_up(self.count, self.chunk_bits)
        self.table = self.table[:chunks] + [0] * (chunks - len(self.table))
        self.chunks = {number: chunk for number, chunk in self.chunks.items() if number < chunks}
        self.changed = {number for number in self.changed if number < chunks}
        self._clear_tail()

    def mark(self, offset: int, length: int) -> None:
        """Set the bits of a guest range that is not empty."""
        shift = self.granularity_bits
        first, last = offset >> shift, (offset + length - 1) >> shift
        per_chunk = self.chunk_bits
        while first <= last:
            number, bit = divmod(first, per_chunk)
            stop = min(last + 1, (number + 1) * per_chunk)
            chunk = self.chunk(number)
            if stop - first == 1:
                if not chunk[bit >> 3] >> (bit & 7) & 1:
                    chunk[bit >> 3] |= 1 << (bit & 7)
                    self.changed.add(number)
            else:
                _set_bits(chunk, bit, bit + stop - first)
                self.changed.add(number)
            first = stop

    def clear(self) -> None:
        """Clear all bits."""
        for number, word in enumerate(self.table):
            if word or number in self.chunks:
                self.chunks[number] = bytearray(self._shape.cluster_size)
                self.changed.add(number)

    def merge(self, other: BitmapBits) -> None:
        """Set all that is set in `other`, a bitmap of a disk of the same size."""
        if (other.granularity_bits, other.chunk_bits) != (self.granularity_bits, self.chunk_bits):
            for start, end in other.ranges():
                self.mark(start, end - start)
            return
        for number in range(len(self.table)):
            if not other.is_clear(number):
                theirs = int.from_bytes(other.chunk(number), "little")
                ours = int.from_bytes(self.chunk(number), "little")
                if ours | theirs != ours:
                    self.chunks[number] = bytearray((ours | theirs).to_bytes(self._shape.cluster_size, "little"))
                    self.changed.add(number)

    def is_clear(self, number: int) -> bool:
        """The chunk has no bit set, as far as can be told without reading it."""
        if number in self.chunks:
            return is_zero(self.chunks[number])
        return read_pointer(self.table[number], PointerTable.BITMAP, self._shape).kind is PointerKind.NONE

    def chunk(self, number: int) -> bytearray:
        """The chunk, in memory from now on."""
        found = self.chunks.get(number)
        if found is None:
            found = self.chunks[number] = self._load(number)
        return found

    def ranges(self) -> Iterator[tuple[int, int]]:
        """Dirty guest ranges [start, end) in bytes, as long as they go, none behind the disk's end."""
        shift, per_chunk, total = self.granularity_bits, self.chunk_bits, self.count
        held: tuple[int, int] | None = None
        for number in range(div_round_up(total, per_chunk)):
            if self.is_clear(number):
                continue
            base = number * per_chunk
            for first, end in _runs(self.chunks.get(number) or self._load(number), min(per_chunk, total - base)):
                low, high = (base + first) << shift, min((base + end) << shift, self.size)
                if held is not None and held[1] == low:
                    held = (held[0], high)
                    continue
                if held is not None:
                    yield held
                held = (low, high)
        if held is not None:
            yield held

    def _load(self, number: int) -> bytearray:
        size = self._shape.cluster_size
        found = read_pointer(self.table[number], PointerTable.BITMAP, self._shape)
        if found.kind is PointerKind.CLUSTER:
            return bytearray(self._read(found.start, size))
        return bytearray(b"\xff" * size if found.kind is PointerKind.ONES else size)

    def _clear_tail(self) -> None:
        """Clear the bits of the last chunk that lie behind the disk's end."""
        number, used = divmod(self.count, self.chunk_bits)
        if not used or self.is_clear(number):
            return
        chunk = self.chunk(number)
        whole = div_round_up(used, 8)
        if used % 8:
            chunk[whole - 1] &= (1 << used % 8) - 1
        chunk[whole:] = bytes(len(chunk) - whole)
        self.changed.add(number)


def stored_bits(meta: Metadata, entry: Bitmap, size: int, read: ReadHost | None = None) -> BitmapBits:
    """The bits that a directory entry leads to. size: of the disk, in bytes.  read: default, from the image's file; zeros
    past its end."""
    length = entry.table_size * 8
    table: list[int] = meta.read_words(Region(entry.table_offset, length), length).tolist()
    return BitmapBits(read or _padded(meta), meta.shape, table, entry.granularity_bits, size)


def is_zero(chunk: bytearray) -> bool:
    """No bit is set."""
    return chunk.count(0) == len(chunk)


def _padded(meta: Metadata) -> ReadHost:
    def read(offset: int, length: int) -> bytes:
        return meta.read_bytes(offset, length).ljust(length, b"\0")

    return read


def _runs(chunk: bytearray, count: int) -> list[tuple[int, int]]:
    """[first, end) of runs of set bits among the first `count`."""
    import numpy as np

    bits = np.unpackbits(np.frombuffer(chunk, dtype=np.uint8), count=count, bitorder="little")
    edges = np.flatnonzero(np.diff(bits, prepend=np.uint8(0), append=np.uint8(0)))
    return list(zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True))


def _set_bits(chunk: bytearray, first: int, end: int) -> None:
    """Set bits [first, end), counted from the least significant bit of byte 0."""
    low, high = first >> 3, end >> 3
    if low == high:
        chunk[low] |= ((1 << (end & 7)) - 1) & ~((1 << (first & 7)) - 1)
        return
    chunk[low] |= 0xFF & ~((1 << (first & 7)) - 1)
    chunk[low + 1 : high] = b"\xff" * (high - low - 1)
    if end & 7:
        chunk[high] |= (1 << (end & 7)) - 1
