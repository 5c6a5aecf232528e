"""Offsets that must not be mixed up, and the pure arithmetic of a qcow2 image's shape (spec: Cluster mapping)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NewType

HostOffset = NewType("HostOffset", int)
"""Byte offset in the image file."""

GuestOffset = NewType("GuestOffset", int)
"""Byte offset in the virtual disk."""

ClusterIndex = NewType("ClusterIndex", int)
"""Number of a host cluster: host offset // cluster size."""

SECTOR_SIZE = 512
SUBCLUSTERS = 32

_SUFFIXES = {"": 1, "B": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40, "P": 1 << 50, "E": 1 << 60}


def div_round_up(value: int, divisor: int) -> int:
    """Smallest whole number of `divisor`s that covers `value`."""
    return -(-value // divisor)


def round_up(value: int, unit: int) -> int:
    """`value` rounded up to a multiple of `unit`."""
    return -(-value // unit) * unit


def round_down(value: int, unit: int) -> int:
    """`value` rounded down to a multiple of `unit`."""
    return value // unit * unit


def is_power_of_two(value: int) -> bool:
    """True for 1, 2, 4, …"""
    return value > 0 and value & (value - 1) == 0


def parse_size(text: str) -> int:
    """Bytes meant by `64k`, `0x200`, `1.5G`, `12M` (binary suffixes, as qemu-img reads them).

    Raises ValueError when `text` is no size.
    """
    cleaned = text.strip()
    if not cleaned:
        raise ValueError("empty size")
    if cleaned.lower().startswith("0x"):
        return int(cleaned, 16)
    suffix = cleaned[-1].upper() if not cleaned[-1].isdigit() else ""
    if suffix == "B" and len(cleaned) > 3 and cleaned[-2:].lower() == "ib":
        suffix, cleaned = cleaned[-3].upper(), cleaned[:-2]
    number = cleaned[:-1] if suffix else cleaned
    if suffix not in _SUFFIXES or not number or number.startswith("-"):
        raise ValueError(f"not a size: {text!r}")
    if number.isdigit():
        return int(number) * _SUFFIXES[suffix]
    value = float(number) * _SUFFIXES[suffix]
    if not math.isfinite(value):
        raise ValueError(f"not a size: {text!r}")
    return int(value)


_UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB")


def format_size(size: int) -> str:
    """`size` bytes for people: `1 TiB`, `196 KiB`, `485.5 GiB`, `17 B`.

    Three digits, or what it takes for whole halves and quarters; never rounded up to a whole that it is not.
    """
    unit, scale = 0, 1
    while abs(size) >= scale * 1024 and unit < len(_UNITS) - 1:
        unit, scale = unit + 1, scale * 1024
    value = size / scale
    if size * 4 % scale == 0:
        text = f"{value:.2f}".rstrip("0").rstrip(".")
    else:
        decimals = 2 if abs(value) < 10 else 1 if abs(value) < 100 else 0
        text = f"{value:.{decimals}f}"
        if float(text) == int(float(text)):
            text = f"{int(value * 10**decimals) / 10**decimals:.{decimals}f}"
        text = text.rstrip("0").rstrip(".") if decimals else text
    return f"{text} {_UNITS[unit]}"


def many(count: int, noun: str, nouns: str = "") -> str:
    """`1 L2 table`, `3 L2 tables`, `1,200 entries` (with `nouns` where an s is not enough)."""
    return f"{count:,} {noun if count == 1 else nouns or noun + 's'}"


@dataclass(frozen=True, slots=True)
class Geometry:
    """The shape that the header's cluster_bits, refcount_order and extended-L2 bit give an image. All sizes in bytes."""

    cluster_bits: int
    refcount_order: int = 4
    extended_l2: bool = False

    @property
    def cluster_size(self) -> int:
        return 1 << self.cluster_bits

    @property
    def l2_entry_size(self) -> int:
        """8, or 16 with extended L2 entries."""
        return 16 if self.extended_l2 else 8

    @property
    def l2_bits(self) -> int:
        """log2 of the number of entries in one L2 table."""
        return self.cluster_bits - (4 if self.extended_l2 else 3)

    @property
    def l2_entries(self) -> int:
        """Entries in one L2 table."""
        return 1 << self.l2_bits

    @property
    def l2_coverage(self) -> int:
        """Guest bytes that one L2 table describes."""
        return 1 << (self.l2_bits + self.cluster_bits)

    @property
    def subcluster_size(self) -> int:
        """Bytes per subcluster (the cluster itself without extended L2)."""
        return self.cluster_size // SUBCLUSTERS if self.extended_l2 else self.cluster_size

    @property
    def refcount_bits(self) -> int:
        return 1 << self.refcount_order

    @property
    def refcount_max(self) -> int:
        return (1 << self.refcount_bits) - 1

    @property
    def refcount_block_entries(self) -> int:
        """Refcounts in one refcount block."""
        return self.cluster_size * 8 // self.refcount_bits

    @property
    def refcount_block_coverage(self) -> int:
        """Host bytes that one refcount block describes."""
        return self.refcount_block_entries << self.cluster_bits

    def l1_index(self, guest: int) -> int:
        return guest >> (self.l2_bits + self.cluster_bits)

    def l2_index(self, guest: int) -> int:
        return (guest >> self.cluster_bits) & (self.l2_entries - 1)

    def guest_offset(self, l1_index: int, l2_index: int) -> GuestOffset:
        """Guest offset of the first byte that L2 entry `l2_index` of table `l1_index` describes."""
        return GuestOffset((l1_index << (self.l2_bits + self.cluster_bits)) | (l2_index << self.cluster_bits))

    def l1_entries_for(self, virtual_size: int) -> int:
        """L1 entries needed for a virtual disk of `virtual_size` bytes."""
        return div_round_up(virtual_size, self.l2_coverage)

    def clusters(self, size: int) -> int:
        """Clusters that `size` bytes take, the last one counted whole."""
        return div_round_up(size, self.cluster_size)
