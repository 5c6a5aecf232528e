"""Internal snapshots of an image that is open for writing: taken, applied, deleted (QEMU: qcow2-snapshot.c).

Each operation changes refcounts and COPIED flags all over the image. Version 3 images carry the dirty bit meanwhile, so
that after a crash whoever opens the image for writing counts its references anew; what the guest sees is decided by one
write to the header.
"""

from __future__ import annotations

import time
from array import array
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from formats.qcow2 import limits
from formats.qcow2.entries import without_copied
from formats.qcow2.header import INCOMPATIBLE
from formats.qcow2.snapshots import Snapshot, build_snapshot
from workbench.engine.chain import snapshot_l1
from workbench.engine.write.guard import Kind
from workbench.engine.write.sweep import move_refcounts, references, set_copied
from workbench.engine.write.tables import encode_words
from workbench.errors import ArgumentError, UnsupportedError
from workbench.units import div_round_up

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from workbench.engine.image import Image
    from workbench.engine.write.core import Core

_DIRTY: Final = INCOMPATIBLE["dirty"].mask
_NO_ICOUNT: Final = (1 << 64) - 1


def create_snapshot(image: Image, name: str, *, now: float | None = None) -> Snapshot:
    """Keep the disk as it is now under `name`. now: seconds since 1970 for the entry.

    Raises ArgumentError for a bad name, UnsupportedError where QEMU refuses (data file, full refcounts).
    """
    core = _ready(image)
    raw_name = name.encode("utf-8", "surrogateescape")
    if not raw_name or len(raw_name) > limits.MAX_SNAPSHOT_NAME:
        raise ArgumentError("a snapshot needs a name of at most 65535 bytes", path=core.path)
    entries = list(core.meta.snapshots)
    if len(entries) >= limits.MAX_SNAPSHOTS:
        raise UnsupportedError(f"the image has {len(entries)} snapshots, no more can be added", path=core.path)
    if core.geometry.refcount_max == 1:
        raise UnsupportedError("refcounts of one bit cannot count a snapshot's references", path=core.path)
    moment = time.time() if now is None else now
    old = array("Q", core.tables.l1)
    counts = references(core, old)
    move_refcounts(core, counts, dry=True, needed=2 * counts)  # refused before anything is touched
    with _Unsettled(core):
        copy = array("Q", map(without_copied, old))
        place = _store(core, encode_words(copy))
        entry = _entry(core, place, name, _next_id(entries), moment)
        counts = _widened(core, counts)
        states = move_refcounts(core, counts)
        core.file.sync()
        set_copied(core, core.tables.l1, states)
        _write_l1(core)
        replace_snapshot_table(core, [*entries, entry])
    _reload(image)
    return image.meta.snapshots[-1]


def delete_snapshot(image: Image, name: str) -> None:
    """Forget a snapshot (by ID or name) and free what only it used. ArgumentError when there is none."""
    core = _ready(image)
    entry = core.meta.snapshots[core.meta.snapshot_index(name)]
    tree = array("Q", snapshot_l1(core.meta, entry).tobytes())
    counts = references(core, tree)
    rest = [each for each in core.meta.snapshots if each.offset != entry.offset]
    move_refcounts(core, counts, down=True, dry=True, needed=_needed(core, core.tables.l1, rest))
    with _Unsettled(core):
        replace_snapshot_table(core, rest)
        core.flush()
        _empty_caches(core)
        counts = _widened(core, counts)
        first = entry.l1_table_offset // core.cluster_size
        counts[first : first + div_round_up(entry.l1_size * 8, core.cluster_size)] += 1
        states = move_refcounts(core, counts, down=True)
        core.file.sync()
        set_copied(core, core.tables.l1, states)
        _write_l1(core)
        _punch(core, counts, states)
    _reload(image)


def apply_snapshot(image: Image, name: str) -> None:
    """Make the disk what it was when the snapshot (by ID or name) was taken; the snapshot stays.

    What was written since is lost, unless another snapshot has it.
    """
    core = _ready(image)
    entry = core.meta.snapshots[core.meta.snapshot_index(name)]
    size = entry.disk_size if entry.disk_size is not None else core.header.size
    tree = array("Q", snapshot_l1(core.meta, entry).tobytes())
    needed = core.geometry.l1_entries_for(size)
    tree.extend([0] * max(0, needed - len(tree)))
    before = array("Q", core.tables.l1)
    gained, lost = references(core, tree), references(core, before)
    others = [each for each in core.meta.snapshots if each.offset != entry.offset]
    move_refcounts(core, gained - lost, dry=True, needed=2 * gained + _needed(core, None, others))
    with _Unsettled(core):
        place = _store(core, encode_words(array("Q", map(without_copied, tree))))
        gained, lost = _widened(core, gained), _widened(core, lost)
        move_refcounts(core, gained)
        core.file.sync()
        old = core.header.l1_table_offset // core.cluster_size
        lost[old : old + div_round_up(core.header.l1_size * 8, core.cluster_size)] += 1
        core.write_header_fields(size=size, l1_size=len(tree), l1_table_offset=place)
        states = move_refcounts(core, lost, down=True)
        core.file.sync()
        core.tables.l1 = tree
        set_copied(core, tree, states)
        _write_l1(core)
        _punch(core, lost, states)
    _reload(image)


# -- inside


class _Unsettled:
    """While refcounts and flags are being moved: the dirty bit is set (version 3), the caches are empty."""

    def __init__(self, core: Core) -> None:
        self._core = core

    def __enter__(self) -> None:
        core = self._core
        core.begin()
        if core.header.version >= 3:
            core.write_header_fields(incompatible_features=core.header.incompatible_features | _DIRTY)
        _empty_caches(core)

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        core = self._core
        if kind is not None:
            core.dead = core.dead or "a snapshot operation failed halfway; open the image again"
            return
        core.flush()
        core.refcounts.write_back()
        core.file.sync()
        if core.header.version >= 3:
            core.write_header_fields(incompatible_features=core.header.incompatible_features & ~_DIRTY)


def _ready(image: Image) -> Core:
    core: Core = image.writer.core
    if core.external:
        raise UnsupportedError("internal snapshots do not work with an external data file", path=core.path)
    core.begin()
    core.flush()
    core.refcounts.write_back()
    core.file.sync()
    return core


def _needed(core: Core, l1: array[int] | None, snapshots: list[Snapshot]) -> NDArray[np.int32]:
    """References that the disk below `l1` and these snapshots have to each cluster of the file."""
    counts = references(core, l1 if l1 is not None else array("Q"))
    for each in snapshots:
        counts += references(core, array("Q", snapshot_l1(core.meta, each).tobytes()))
    return counts


def _empty_caches(core: Core) -> None:
    core.tables.cache.empty()
    core.refcounts.write_back()
    core.refcounts.cache.empty()
    core.file.sync()


def _store(core: Core, data: bytes) -> int:
    """New clusters with `data`, refcounts on disk; their host offset (0 for no data)."""
    if not data:
        return 0
    place = core.allocator.allocate(len(data))
    core.guard.check("a snapshot's table", place, len(data))
    size = core.cluster_size
    core.file.write(place, data.ljust(div_round_up(len(data), size) * size, b"\0"))
    _empty_caches(core)
    return place


def _widened(core: Core, counts: NDArray[np.int32]) -> NDArray[np.int32]:
    """`counts` for all clusters of the file, which may have grown."""
    import numpy as np

    total = div_round_up(core.file.storage.size(), core.cluster_size)
    if total <= len(counts):
        return counts
    wide = np.zeros(total, dtype=np.int32)
    wide[: len(counts)] = counts
    return wide


def _write_l1(core: Core) -> None:
    """The whole active L1 table, durably."""
    data = encode_words(core.tables.l1)
    if data:
        core.guard.check("the active L1 table", core.header.l1_table_offset, len(data), Kind.ACTIVE_L1)
        core.file.sync()
        core.file.write(core.header.l1_table_offset, data)
    core.file.sync()


def replace_snapshot_table(core: Core, entries: list[Snapshot]) -> None:
    """A new snapshot table in new clusters, made valid by one write to the header; the old one is given back."""
    data = b"".join(build_snapshot(each) for each in entries)
    if len(data) > limits.MAX_SNAPSHOT_TABLE_SIZE:
        raise UnsupportedError("the snapshot table would exceed 64 MiB", path=core.path)
    old, length = core.header.snapshots_offset, 0
    if core.header.nb_snapshots:
        length = core.meta.snapshot_table.end - old
    place = _store(core, data)
    core.write_header_fields(nb_snapshots=len(entries), snapshots_offset=place)
    if length:
        core.allocator.free(old, length)


def _entry(core: Core, place: int, name: str, ident: str, moment: float) -> Snapshot:
    """A table entry as QEMU 7 writes it: 24 bytes of extra data, in version 2 too."""
    seconds = int(moment)
    size = core.header.size
    extra = bytes(8) + size.to_bytes(8, "big") + _NO_ICOUNT.to_bytes(8, "big")
    empty = Snapshot(0, 0, 0, "", "", 0, 0, 0, 0, b"", None, None, b"", 0)
    return replace(
        empty,
        l1_table_offset=place,
        l1_size=len(core.tables.l1),
        id=ident,
        name=name,
        date_seconds=seconds & 0xFFFFFFFF,
        date_nanoseconds=int((moment - seconds) * 1e9),
        extra_data=extra,
        disk_size=size,
        icount=_NO_ICOUNT,
        extra_data_size=len(extra),
    )


def _next_id(entries: list[Snapshot]) -> str:
    return str(max((int(each.id) for each in entries if each.id.isdecimal()), default=0) + 1)


def _punch(core: Core, counts: NDArray[np.int32], states: NDArray[np.uint8]) -> None:
    """Give freed space back to the file system, when the image was opened with discard=unmap."""
    import numpy as np

    freed = np.flatnonzero((counts > 0) & (states[: len(counts)] == 0))
    if not len(freed):
        return
    core.allocator.restart(int(freed[0]))
    if core.allocator.punch:
        edges = np.flatnonzero(np.diff(freed) != 1) + 1
        for run in np.split(freed, edges):
            core.file.write_zeroes(int(run[0]) * core.cluster_size, len(run) * core.cluster_size, punch=True)


def _reload(image: Image) -> None:
    """The image as the file has it now."""
    image.writer.reload()
