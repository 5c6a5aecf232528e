"""Clusters that only a flag makes zero, made zero without it: version 2 has no such flag (QEMU: qcow2_expand_zero_clusters).

Without a backing file an entry goes; else a cluster with zeros takes its place. What a snapshot shares is never written.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from formats.qcow2.entries import has_zero_flag, is_compressed, is_copied, offset_of
from workbench.engine.write.guard import Kind
from workbench.engine.write.guest import put_plain, write_guest
from workbench.engine.write.tables import decode_words, encode_words
from workbench.engine.write.zero import discard_guest

if TYPE_CHECKING:
    from array import array

    from workbench.engine.write.core import Core


def has_compressed_clusters(core: Core) -> bool:
    """The disk or a snapshot of it has compressed data."""
    return any(any(map(is_compressed, core.tables.whole_table(each))) for each in _all_tables(core))


def expand_zero_clusters(core: Core) -> None:
    """Leave no zero flag in the tables of the disk and of its snapshots; all read as before. Durable when this returns."""
    _expand_active(core)
    core.flush()
    places: dict[int, int] = {}
    for snapshot in core.meta.snapshots:
        for index, entry in enumerate(core.meta.snapshot_l1(snapshot).tolist()):
            places.setdefault(offset_of(entry), index << core.tables.l1_shift)
    for table, guest in sorted(places.items()):
        if table:
            _expand_snapshot(core, table, guest)
    core.flush()


def _all_tables(core: Core) -> list[int]:
    inactive = {each for snapshot in core.meta.snapshots for each in core.snapshot_tables(snapshot)}
    return sorted({*core.tables.table_offsets(), *inactive})


def _zero_entries(words: array[int]) -> list[int]:
    """Indices of entries with the flag."""
    return [at for at, word in enumerate(words) if has_zero_flag(word) and not is_compressed(word)]


def _expand_active(core: Core) -> None:
    tables, size, backed = core.tables, core.cluster_size, bool(core.header.backing_file_offset)
    zeros = memoryview(bytes(size))
    for index in range(len(tables.l1)):
        table = offset_of(tables.l1[index])
        if not table:
            continue
        words = tables.whole_table(table)
        for at in _zero_entries(words):
            guest = (index << tables.l1_shift) + at * size
            own = bool(offset_of(words[at])) and is_copied(words[at])
            if guest < core.layer.size and (own or backed):
                write_guest(core, guest, zeros[: min(size, core.layer.size - guest)])
            else:
                discard_guest(core, guest, size, full=True)
            core.relieve()


def _expand_snapshot(core: Core, table: int, guest: int) -> None:
    """An L2 table that only snapshots refer to. guest: the first offset that it describes."""
    size = core.cluster_size
    words = decode_words(core.file.read(table, size))
    found = _zero_entries(words)
    if not found:
        return
    users = core.refcounts.get(table // size)
    old = [offset_of(words[at]) for at in found]
    for at in found:
        words[at] = 0
        if core.header.backing_file_offset:
            words[at] = core.allocator.allocate(size)
            put_plain(core, guest + at * size, words[at], bytes(size))
            if users > 1:
                core.refcounts.change(words[at] // size, 1, users - 1)
    core.references_changed()
    core.settle_references()
    core.file.sync()
    core.guard.check("a snapshot's L2 table", table, size, Kind.INACTIVE_L2)
    core.file.write(table, encode_words(words))
    core.file.sync()
    for host in old:
        for _ in range(users if host else 0):
            core.allocator.free(host, size)
    core.flush()
