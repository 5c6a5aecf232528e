"""Bit fields numbered from the least significant bit, as the qcow2 specification numbers them.

One description serves both worlds: `get` and `put` take a Python int (one entry, through construct) or a native
uint64 numpy array (a million entries); the arithmetic is the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

U64 = (1 << 64) - 1


@dataclass(frozen=True, slots=True)
class Bits:
    """Bits `low`..`high` (inclusive) of a word.

    in_place: the value keeps its position (an offset whose low bits are implied zero) instead of being shifted down.
    reserved: the specification wants zeros here.  symbols: names of values.  unit: bytes, clusters, sectors, flag, …
    """

    name: str
    low: int
    high: int
    doc: str
    spec: str = ""
    unit: str = ""
    in_place: bool = False
    reserved: bool = False
    symbols: Mapping[int, str] = field(default_factory=dict)

    @property
    def mask(self) -> int:
        """The field's bits, in place."""
        return ((1 << (self.high - self.low + 1)) - 1) << self.low

    @property
    def width(self) -> int:
        return self.high - self.low + 1

    def get(self, word: Any) -> Any:
        """The field's value in `word` (int, or uint64 array of any shape -> array of that shape)."""
        if isinstance(word, int):
            return word & self.mask if self.in_place else (word & self.mask) >> self.low
        import numpy as np

        masked = word & np.uint64(self.mask)
        return masked if self.in_place else masked >> np.uint64(self.low)

    def put(self, word: Any, value: Any) -> Any:
        """`word` with the field set to `value` (ints, or uint64 arrays)."""
        if isinstance(word, int):
            return (word & ~self.mask & U64) | ((value if self.in_place else value << self.low) & self.mask)
        import numpy as np

        bits = np.asarray(value, dtype=np.uint64)
        bits = bits if self.in_place else bits << np.uint64(self.low)
        return (word & np.uint64(~self.mask & U64)) | (bits & np.uint64(self.mask))


def Bit(name: str, position: int, doc: str, spec: str = "", **more: Any) -> Bits:
    """A single-bit flag."""
    return Bits(name, position, position, doc, spec, unit="flag", **more)


@dataclass(frozen=True, slots=True)
class BitLayout:
    """All bit fields of one word of `width` bits. Bits that no field names are unknown: kept, shown, never dropped."""

    name: str
    width: int
    fields: tuple[Bits, ...]

    def __iter__(self) -> Iterator[Bits]:
        return iter(self.fields)

    def __getitem__(self, name: str) -> Bits:
        for candidate in self.fields:
            if candidate.name == name:
                return candidate
        raise KeyError(name)

    @property
    def known_mask(self) -> int:
        """Bits that have a meaning today."""
        mask = 0
        for candidate in self.fields:
            if not candidate.reserved:
                mask |= candidate.mask
        return mask

    @property
    def reserved_mask(self) -> int:
        """Bits that the specification wants to be zero (declared reserved, or described by nothing)."""
        return ((1 << self.width) - 1) & ~self.known_mask

    def decode(self, word: int) -> dict[str, int]:
        """Every field's value in one word."""
        return {each.name: each.get(word) for each in self.fields}

    def encode(self, values: Mapping[str, int], word: int = 0) -> int:
        """`word` with the named fields replaced."""
        for name, value in values.items():
            word = self[name].put(word, value)
        return word
