"""How much memory the two table caches get (QEMU: read_cache_sizes, qcow2_update_options_prepare)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from workbench.errors import ArgumentError
from workbench.units import Geometry, div_round_up, is_power_of_two, parse_size, round_up

DEFAULT_L2_CACHE_MAX: Final = 32 << 20
DEFAULT_L2_ENTRY_SIZE: Final = 4096
DEFAULT_CLEAN_INTERVAL: Final = 600
MIN_L2_PIECES: Final = 2
MIN_REFCOUNT_BLOCKS: Final = 4
_INT_MAX: Final = (1 << 31) - 1
NAMES: Final = ("cache-size", "l2-cache-size", "refcount-cache-size", "l2-cache-entry-size", "cache-clean-interval")


@dataclass(frozen=True, slots=True)
class CacheSizes:
    """l2_pieces: L2 slices of `l2_piece_size` bytes.  refcount_blocks: whole blocks.  clean_interval: seconds, 0 off."""

    l2_pieces: int
    l2_piece_size: int
    refcount_blocks: int
    clean_interval: int

    @property
    def l2_bytes(self) -> int:
        return self.l2_pieces * self.l2_piece_size


def cache_sizes(geometry: Geometry, virtual_size: int, options: Mapping[str, object] | None = None) -> CacheSizes:
    """Sizes for a disk of `virtual_size` bytes. options: QEMU's names (see NAMES), values as bytes or text like `1M`.

    Raises ArgumentError for contradictory or impossible settings, with QEMU's rules.
    """
    cluster = geometry.cluster_size
    given = {name: _number(name, value) for name, value in (options or {}).items() if name in NAMES}
    # A table is one cluster, so more than that for the whole disk is never of use.
    useful = round_up(div_round_up(virtual_size, cluster) * geometry.l2_entry_size, cluster)
    l2, refcounts = _split(given, useful, MIN_REFCOUNT_BLOCKS * cluster)
    entry = given.get("l2-cache-entry-size", min(cluster, DEFAULT_L2_ENTRY_SIZE))
    if not 512 <= entry <= cluster or not is_power_of_two(entry):
        raise ArgumentError(f"L2 cache entry size must be a power of two between 512 and the cluster size ({cluster})")
    interval = given.get("cache-clean-interval", DEFAULT_CLEAN_INTERVAL)
    l2_pieces = max(MIN_L2_PIECES, l2 // entry)
    blocks = max(MIN_REFCOUNT_BLOCKS, refcounts // cluster)
    if l2_pieces > _INT_MAX:
        raise ArgumentError("L2 cache size too big")
    if blocks > _INT_MAX:
        raise ArgumentError("Refcount cache size too big")
    if interval > _INT_MAX:
        raise ArgumentError("cache-clean-interval too big")
    return CacheSizes(l2_pieces, entry, blocks, interval)


def _split(given: Mapping[str, int], useful: int, least_refcounts: int) -> tuple[int, int]:
    """(bytes for L2 slices, bytes for refcount blocks)."""
    asked = given.get("l2-cache-size", DEFAULT_L2_CACHE_MAX)
    l2, refcounts = min(useful, asked), given.get("refcount-cache-size", 0)
    total = given.get("cache-size")
    if total is None:
        return l2, refcounts
    l2_set, refcounts_set = "l2-cache-size" in given, "refcount-cache-size" in given
    if l2_set and refcounts_set:
        raise ArgumentError("cache-size, l2-cache-size and refcount-cache-size may not be set at the same time")
    if l2_set and asked > total:
        raise ArgumentError("l2-cache-size may not exceed cache-size")
    if refcounts > total:
        raise ArgumentError("refcount-cache-size may not exceed cache-size")
    if l2_set:
        return l2, total - l2
    if refcounts_set:
        return total - refcounts, refcounts
    if total >= useful + least_refcounts:
        return useful, total - useful
    refcounts = min(total, least_refcounts)
    return total - refcounts, refcounts


def _number(name: str, value: object) -> int:
    try:
        number = value if isinstance(value, int) else parse_size(str(value))
    except ValueError as error:
        raise ArgumentError(f"{name}: {error}") from error
    if number < 0:
        raise ArgumentError(f"{name} cannot be negative")
    return number
