"""The overlap guard: no write may hit metadata other than the one it means to change (QEMU: qcow2_check_metadata_overlap).

All metadata clusters are kept in one dictionary, so that the common question ("is this data cluster free of metadata?")
costs one look-up per cluster.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from enum import IntFlag
from typing import TYPE_CHECKING, Final

from workbench.errors import ArgumentError

if TYPE_CHECKING:
    from workbench.engine.write.core import Core


class Kind(IntFlag):
    """Kinds of metadata; the order is that in which QEMU looks."""

    MAIN_HEADER = 1
    ACTIVE_L1 = 2
    ACTIVE_L2 = 4
    REFCOUNT_BLOCK = 8
    REFCOUNT_TABLE = 16
    SNAPSHOT_TABLE = 32
    INACTIVE_L1 = 64
    INACTIVE_L2 = 128
    BITMAP_DIRECTORY = 256


NONE: Final = Kind(0)
CONSTANT: Final = Kind.MAIN_HEADER | Kind.ACTIVE_L1 | Kind.REFCOUNT_TABLE | Kind.SNAPSHOT_TABLE | Kind.BITMAP_DIRECTORY
CACHED: Final = CONSTANT | Kind.ACTIVE_L2 | Kind.REFCOUNT_BLOCK | Kind.INACTIVE_L1
ALL: Final = CACHED | Kind.INACTIVE_L2
TEMPLATES: Final[Mapping[str, Kind]] = {"none": NONE, "constant": CONSTANT, "cached": CACHED, "all": ALL}
TITLES: Final[Mapping[Kind, str]] = {
    Kind.MAIN_HEADER: "qcow2_header",
    Kind.ACTIVE_L1: "active L1 table",
    Kind.ACTIVE_L2: "active L2 table",
    Kind.REFCOUNT_BLOCK: "refcount block",
    Kind.REFCOUNT_TABLE: "refcount table",
    Kind.SNAPSHOT_TABLE: "snapshot table",
    Kind.INACTIVE_L1: "inactive L1 table",
    Kind.INACTIVE_L2: "inactive L2 table",
    Kind.BITMAP_DIRECTORY: "bitmap directory",
}
_ORDER: Final = (
    Kind.MAIN_HEADER,
    Kind.ACTIVE_L1,
    Kind.ACTIVE_L2,
    Kind.REFCOUNT_BLOCK,
    Kind.REFCOUNT_TABLE,
    Kind.SNAPSHOT_TABLE,
    Kind.INACTIVE_L1,
    Kind.INACTIVE_L2,
    Kind.BITMAP_DIRECTORY,
)


def guard_kinds(options: Mapping[str, object]) -> Kind:
    """The kinds that `overlap-check` (or `overlap-check.template`) and `overlap-check.KIND=on|off` ask for.

    Raises ArgumentError for an unknown template or kind.
    """
    template = options.get("overlap-check", options.get("overlap-check.template", "cached"))
    if template not in TEMPLATES:
        raise ArgumentError(
            f"unsupported value {template!r} for overlap-check", hint="allowed are none, constant, cached and all"
        )
    kinds = TEMPLATES[str(template)]
    for name, value in options.items():
        if not name.startswith("overlap-check.") or name == "overlap-check.template":
            continue
        key = name.removeprefix("overlap-check.").replace("-", "_").upper()
        if key not in Kind.__members__:
            raise ArgumentError(f"unknown kind of metadata {name!r}")
        kinds = kinds | Kind[key] if value in (True, "on") else kinds & ~Kind[key]
    return kinds


class Guard:
    """Which clusters hold which kinds of metadata, and the question before every write."""

    def __init__(self, core: Core, kinds: Kind) -> None:
        self._core = core
        self.kinds = kinds
        self.clusters: dict[int, int] = {}
        self._bits = core.geometry.cluster_bits
        self._load()

    def add(self, kind: Kind, offset: int, length: int) -> None:
        """Host range [offset, offset + length) holds metadata of `kind` from now on."""
        if length <= 0:
            return
        kind &= self.kinds
        if kind:
            clusters = self.clusters
            for cluster in range(offset >> self._bits, ((offset + length - 1) >> self._bits) + 1):
                clusters[cluster] = clusters.get(cluster, 0) | int(kind)

    def remove(self, kind: Kind, offset: int, length: int) -> None:
        """The range no longer holds metadata of `kind`."""
        if length <= 0:
            return
        for cluster in range(offset >> self._bits, ((offset + length - 1) >> self._bits) + 1):
            left = self.clusters.get(cluster, 0) & ~int(kind)
            if left:
                self.clusters[cluster] = left
            else:
                self.clusters.pop(cluster, None)

    def add_tables(self, kind: Kind, offsets: Iterable[int]) -> None:
        """One cluster of metadata at each host offset; two where a damaged table is not aligned."""
        size = 1 << self._bits
        for offset in offsets:
            self.add(kind, offset, size)

    def check(self, what: str, offset: int, length: int, ignore: Kind = NONE) -> None:
        """Refuse a write of `what` to host range [offset, offset + length) that would hit metadata not in `ignore`.

        On a hit the image is marked corrupt, refuses all further writes, and CorruptError names both parties.
        """
        first, last = offset >> self._bits, (offset + length - 1) >> self._bits
        clusters = self.clusters
        if first == last:
            if first in clusters and clusters[first] & ~ignore:
                self._hit(what, offset, length, first, clusters[first] & ~ignore)
        elif not clusters.keys().isdisjoint(range(first, last + 1)):
            for cluster in range(first, last + 1):
                kinds = clusters.get(cluster, 0) & ~ignore
                if kinds:
                    self._hit(what, offset, length, cluster, kinds)

    # -- inside

    def _hit(self, what: str, offset: int, length: int, cluster: int, kinds: int) -> None:
        kind = next(each for each in _ORDER if each & kinds)
        where = cluster << self._bits
        self._core.corrupted(
            f"write of {what} to {offset:#x}-{offset + length - 1:#x} prevented:"
            f" it overlaps with the {TITLES[kind]} at {where:#x}",
            where,
        )

    def _load(self) -> None:
        core, size = self._core, 1 << self._bits
        header, meta = core.header, core.meta
        self.add(Kind.MAIN_HEADER, 0, size)
        self.add(Kind.ACTIVE_L1, header.l1_table_offset, header.l1_size * 8)
        self.add(Kind.REFCOUNT_TABLE, header.refcount_table_offset, header.refcount_table_clusters * size)
        if Kind.ACTIVE_L2 in self.kinds:
            self.add_tables(Kind.ACTIVE_L2, core.tables.table_offsets())
        if Kind.REFCOUNT_BLOCK in self.kinds:
            self.add_tables(Kind.REFCOUNT_BLOCK, core.refcounts.block_offsets())
        if header.nb_snapshots:
            table = meta.snapshot_table
            self.add(Kind.SNAPSHOT_TABLE, header.snapshots_offset, table.end - header.snapshots_offset)
            for each in table.snapshots:
                self.add(Kind.INACTIVE_L1, each.l1_table_offset, each.l1_size * 8)
                if Kind.INACTIVE_L2 in self.kinds:
                    self.add_tables(Kind.INACTIVE_L2, core.snapshot_tables(each))
        extension = meta.bitmaps_extension
        if extension is not None and header.has("bitmaps"):
            self.add(Kind.BITMAP_DIRECTORY, extension.directory_offset, extension.directory_size)
