"""The preservation proof's look at named objects: snapshots, extensions, keys and bitmaps that were sound stay sound.

Each function yields (host offset, length in bytes, reason) for what it cannot prove to be kept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import numpy as np
from numpy.typing import NDArray

from formats.luks.header import LuksHeader
from formats.qcow2 import limits
from formats.qcow2.bitmaps import Bitmap
from formats.qcow2.extensions import ExtensionType
from formats.qcow2.snapshots import Snapshot
from formats.qcow2.tables import BITMAP_TABLE_ENTRY
from workbench.engine.metadata import Metadata, Region
from workbench.repair.preserve.walk import Reading, References

_MISREAD = {"SNAPSHOT-EXTRA-TOO-SMALL", "SNAPSHOT-EXTRA-TOO-LARGE", "SNAPSHOT-UNREADABLE", "SNAPSHOTS-TOO-MANY"}
Unproven = tuple[int, int, str]
Touch = Callable[[int, int], bool]
_COMPARED_APART = {
    ExtensionType.BITMAPS,
    ExtensionType.ENCRYPTION,
    ExtensionType.DATA_FILE,
    ExtensionType.BACKING_FORMAT,
}


def objects_kept(base: Reading, after: Reading, touch: Touch) -> Iterator[Unproven]:
    """Snapshot records, header extensions, the LUKS header, the raw data file's bit. touch: whether [start, end) changes."""
    yield from _snapshots(base, after)
    yield from _extensions(base.meta, after.meta)
    yield from _keys(base.meta, after.meta, touch)
    one, other = base.meta.header, after.meta.header
    if one.has("data_file_raw") and one.has("data_file") and not other.has("data_file_raw"):
        yield 88, 8, "the data file would no longer count as raw"


def _snapshots(base: Reading, after: Reading) -> Iterator[Unproven]:
    if any(each.code in _MISREAD for each in base.meta.faults):
        return  # records behind a wrong length are read wrongly; whose tables can be read is compared as a disk
    ids = [each.id for each in base.meta.snapshots]
    later = list(after.meta.snapshots)
    for each in base.meta.snapshots:
        if not _sound_record(each):
            continue
        twin = next((other for other in later if _same_record(each, other)), None)
        if twin is None:
            yield each.offset, len(each.raw), "the snapshot's record is gone, or says something else"
            continue
        later.remove(twin)
        if twin.id != each.id and ids.count(each.id) < 2:
            yield each.offset, len(each.raw), "the snapshot gets another ID"
        covered = base.shape.l1_entries_for(each.disk_size or 0) <= each.l1_size
        if twin.disk_size != each.disk_size and each.disk_size is not None and covered:
            yield each.offset, len(each.raw), "the snapshot gets another disk size"


def _sound_record(each: Snapshot) -> bool:
    return 0 < each.l1_size * 8 <= limits.MAX_L1_SIZE


def _same_record(one: Snapshot, other: Snapshot) -> bool:
    """The same snapshot: fields that no repair has a reason to change."""
    return (
        one.name == other.name
        and (one.date_seconds, one.date_nanoseconds) == (other.date_seconds, other.date_nanoseconds)
        and (one.vm_clock, one.vm_state_size) == (other.vm_clock, other.vm_state_size)
    )


def _extensions(base: Metadata, after: Metadata) -> Iterator[Unproven]:
    if base.area.overrun is not None or not base.area.ended:
        return
    kept = {(each.type, each.data) for each in after.extensions}
    for each in base.extensions:
        if each.type not in _COMPARED_APART and (each.type, each.data) not in kept:
            yield 0, len(base.head), f"header extension {each.type:#x} is gone"


def _keys(base: Metadata, after: Metadata, touch: Touch) -> Iterator[Unproven]:
    pointer = base.encryption
    if pointer is None or base.header.crypt_method != 2 or base.luks is None:
        return
    if pointer.offset % base.header.cluster_size or pointer.offset + 592 > base.file_size:
        return
    length = min(pointer.length, base.file_size - pointer.offset, limits.MAX_LUKS_HEADER_SIZE)
    here = after.encryption
    if here is None or after.luks is None or here.offset != pointer.offset:
        if base.luks.valid:
            yield pointer.offset, length, "the LUKS header would not be found any more"
        return
    if not touch(pointer.offset, pointer.offset + length):
        return
    one, other = base.luks, after.luks
    kept = _secret(one) == _secret(other)
    areas = [
        (pointer.offset + each.key_material_offset * 512, one.key_bytes * each.stripes)
        for each in one.key_slots
        if each.active and 0 < each.key_material_offset * 512 < length and each.stripes <= 1 << 16
    ]
    if not kept or any(touch(start, start + size) for start, size in areas):
        yield pointer.offset, length, "the LUKS header or a key would be written over"


def _secret(header: LuksHeader) -> tuple[object, ...]:
    """What cannot be made anew: without it no passphrase opens the image."""
    slots = tuple((each.iterations, each.salt) for each in header.key_slots)
    return header.mk_digest, header.mk_digest_salt, header.mk_digest_iterations, slots


# -- bitmaps


def bitmaps_kept(base: Reading, after: Reading, touch: Touch, refs: References) -> Iterator[Unproven]:
    """Valid bitmaps keep name, state and bits, or are marked as not to be trusted."""
    later = {each.name: each for each in _bitmaps(after.meta)}
    for each in _bitmaps(base.meta):
        if each.in_use or not _valid(base, each, refs):
            continue
        twin = later.get(each.name)
        if twin is None:
            yield each.offset, len(each.raw), "a bitmap is gone: the next backup would not know what changed"
        elif not twin.in_use and not _same_bits(base, after, each, twin, touch):
            yield each.offset, len(each.raw), "a bitmap says something else than before"


def _valid(base: Reading, each: Bitmap, refs: References) -> bool:
    """Whether QEMU would trust the bitmap, and its bits are nobody else's bytes."""
    size, names = 1 << base.bits, [other.name for other in _bitmaps(base.meta)]
    if each.flags & ~7 or each.type != 1 or each.extra_data or not each.name or names.count(each.name) > 1:
        return False
    if not limits.MIN_BITMAP_GRANULARITY_BITS <= each.granularity_bits <= limits.MAX_BITMAP_GRANULARITY_BITS:
        return False
    if (
        each.table_offset % size
        or not 0 < each.table_offset < base.size
        or each.table_offset + each.table_size * 8 > base.size
    ):
        return False
    if each.table_size != max(1, -(-each.data_size(base.meta.header.size) // size)):
        return False
    words = _table(base, each)
    place = BITMAP_TABLE_ENTRY["offset"].get(words)
    spare = np.where(
        place > 0, np.uint64(BITMAP_TABLE_ENTRY.reserved_mask | 1), np.uint64(BITMAP_TABLE_ENTRY.reserved_mask)
    )
    bad = ((words & spare) != 0) | (place % np.uint64(size) != 0) | (place >= np.uint64(base.size))
    numbers = (place[place > 0] >> np.uint64(base.bits)).astype(np.int64)
    counts, _ = refs.at(np.append(numbers, each.table_offset >> base.bits))
    return not bad.any() and bool((counts <= 1).all())


def _bitmaps(meta: Metadata) -> tuple[Bitmap, ...]:
    return meta.bitmap_directory.bitmaps if meta.header.has("bitmaps") and meta.bitmaps_extension else ()


def _same_bits(base: Reading, after: Reading, one: Bitmap, other: Bitmap, touch: Touch) -> bool:
    if (one.granularity_bits, one.flags, one.table_size) != (other.granularity_bits, other.flags, other.table_size):
        return False
    words, size = _table(base, one), 1 << base.bits
    if not np.array_equal(words, _table(after, other)):
        return False
    return not any(touch(place, place + size) for place in BITMAP_TABLE_ENTRY["offset"].get(words).tolist() if place)


def _table(reading: Reading, bitmap: Bitmap) -> NDArray[np.uint64]:
    room = max(0, reading.size - bitmap.table_offset)
    found: NDArray[np.uint64] = reading.meta.read_words(Region(bitmap.table_offset, bitmap.table_size * 8), room)
    return found


def marked_in_bitmaps(after: Reading, ranges: Iterable[tuple[int, int]]) -> Iterator[Unproven]:
    """Every enabled bitmap must call dirty what the guest's disk (start, length in bytes) gains or loses."""
    enabled = [each for each in _bitmaps(after.meta) if each.auto and not each.in_use]
    if not enabled:
        return
    wanted = list(ranges)
    for each in enabled:
        words, size = _table(after, each), 1 << after.bits
        for start, length in wanted:
            first, last = start >> each.granularity_bits, (start + length - 1) >> each.granularity_bits
            if not _all_set(after, words, size, first, last):
                reason = "an enabled bitmap does not say that the disk's content changed: a backup would miss it"
                yield each.offset, len(each.raw), reason
                break


def _all_set(after: Reading, words: NDArray[np.uint64], size: int, first: int, last: int) -> bool:
    """Whether bits first to last are all ones."""
    per_cluster = size * 8
    for index in range(first // per_cluster, last // per_cluster + 1):
        if index >= words.size:
            return True  # behind the end of the disk
        place = int(BITMAP_TABLE_ENTRY["offset"].get(int(words[index])))
        if not place:
            if not int(words[index]) & 1:
                return False
            continue
        bits = np.unpackbits(np.frombuffer(after.read(place, size), dtype=np.uint8), bitorder="little")
        low, high = max(first - index * per_cluster, 0), min(last - index * per_cluster, per_cluster - 1)
        if not bits[low : high + 1].all():
            return False
    return True
