"""Persistent bitmaps: directory, entries and tables made consistent again, erring on the side of "dirty".

A dirty bit too many costs a larger backup, one too few loses data in it. So what cannot be derived reads as all ones,
and a bitmap that may have missed writes is marked in use, which QEMU will not trust.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from formats.qcow2 import limits
from formats.qcow2.bitmaps import FIXED_SIZE, Bitmap, build_bitmap, entry_size
from formats.qcow2.extensions import ExtensionType
from formats.qcow2.header import AUTOCLEAR
from formats.qcow2.tables import ALL_ONES, BITMAP_TABLE_ENTRY, table_bytes
from workbench.check.kinds import Owner
from workbench.check.problems import Tier
from workbench.repair.fixes.base import Alternative, Rule, codes
from workbench.repair.fixes.extensions import add_extension, drop_extension
from workbench.repair.probe import clusters
from workbench.repair.workspace import Workspace
from workbench.units import div_round_up, many

_J = Tier.JUDGEMENT
_IN_USE = 1


@dataclass(slots=True)
class _Entry:
    """A directory entry as it ought to be. stored: bytes that it takes now."""

    offset: int
    table_offset: int
    table_size: int
    flags: int
    granularity_bits: int
    name: bytes
    stored: int

    def bytes_(self) -> bytes:
        """The entry's bytes."""
        text = self.name.decode("utf-8", "surrogateescape")
        return build_bitmap(
            Bitmap(0, self.table_offset, self.table_size, self.flags, 1, self.granularity_bits, b"", text, b"")
        )


def run(space: Workspace) -> None:
    """Directory and extension first, then each bitmap's table; or all bitmaps given up, if that was chosen."""
    if space.policy.choice("bitmaps", "mend") == "drop":
        _give_up(space, space.meta.extension(ExtensionType.BITMAPS) is not None, Tier.DESTRUCTIVE)
        return
    _directory(space)
    _tables(space)


def _set_bit(space: Workspace, on: bool, code: str, title: str) -> None:
    mask, value = AUTOCLEAR["bitmaps"].mask, space.meta.header.autoclear_features
    space.set_header("autoclear_features", value | mask if on else value & ~mask, code=code, title=title, tier=_J)


def _directory(space: Workspace) -> None:
    meta = space.meta
    found = meta.extension(ExtensionType.BITMAPS)
    trusted = meta.header.has("bitmaps")
    if found is None and not trusted:
        return
    record = meta.bitmaps_extension
    offset = record.directory_offset if record else 0
    size, count = (record.directory_size, record.nb_bitmaps) if record else (0, 0)
    entries = (
        _walk(space, offset, count, size) if record and offset % space.cluster == 0 and 0 < offset < space.size else []
    )
    if not entries:
        entries = _search(space)
        offset = entries[0].offset if entries else 0
    if not entries:
        _give_up(space, found is not None)
        return
    if not trusted:
        for each in entries:
            each.flags |= _IN_USE
        _set_bit(
            space,
            True,
            "BITMAPS-NOT-TRUSTED",
            "set the bitmaps bit again; every bitmap is marked in use (not to be trusted)",
        )
    _write(space, entries, offset)


def _give_up(space: Workspace, has_extension: bool, tier: Tier = _J) -> None:
    if has_extension:
        title = "drop the bitmaps extension: the next backup must be a full one"
        drop_extension(space, ExtensionType.BITMAPS, code="BITMAP-UNREADABLE", title=title, tier=tier)
    if space.meta.header.has("bitmaps"):
        _set_bit(space, False, "BITMAPS-BIT-WITHOUT-EXTENSION", "clear the bitmaps bit: there are no bitmaps")


def _walk(space: Workspace, offset: int, count: int, size: int) -> list[_Entry]:
    found: list[_Entry] = []
    position = offset
    count = min(count, 4096)
    while len(found) < limits.MAX_BITMAPS and position < space.size:
        announced = len(found) < count and (position < offset + size or not size)
        entry = _read(space, position, strict=not announced)
        if entry is None:
            break
        found.append(entry)
        position += entry.stored
    return found


def _read(space: Workspace, offset: int, *, strict: bool) -> _Entry | None:
    """The entry at `offset`, with damaged fields derived; None when nothing there is a bitmap."""
    fixed = space.read(offset, FIXED_SIZE)
    table, entries, flags = (
        int.from_bytes(fixed[0:8], "big"),
        int.from_bytes(fixed[8:12], "big"),
        int.from_bytes(fixed[12:16], "big"),
    )
    kind, bits, name_size, extra = (
        fixed[16],
        fixed[17],
        int.from_bytes(fixed[18:20], "big"),
        int.from_bytes(fixed[20:24], "big"),
    )
    bits_good = limits.MIN_BITMAP_GRANULARITY_BITS <= bits <= limits.MAX_BITMAP_GRANULARITY_BITS
    fields_good = (
        (0 < table < space.size and table % space.cluster == 0)
        + (kind == 1)
        + (flags < 4)
        + bits_good
        + (0 < name_size <= limits.MAX_BITMAP_NAME)
        + (extra == 0)
        + (bits_good and entries == _entries_needed(space, bits))
    )
    if fields_good < (7 if strict else 5):
        return None
    length = name_size if 0 < name_size <= limits.MAX_BITMAP_NAME else limits.MAX_BITMAP_NAME
    name = _text_run(space.read(offset + FIXED_SIZE, length))
    if not name or (strict and len(name) != name_size):
        return None
    doubtful = kind != 1 or not bits_good
    if not bits_good:
        bits = next((each for each in (16, *range(9, 32)) if _entries_needed(space, each) == entries), 16)
    good_flags = (flags & 3) | (_IN_USE if doubtful else 0)
    return _Entry(offset, table, _entries_needed(space, bits), good_flags, bits, name, entry_size(0, len(name)))


def _entries_needed(space: Workspace, bits: int) -> int:
    size = space.meta.header.size
    if size >= 1 << 62:
        return 0
    return max(1, div_round_up(div_round_up(div_round_up(size, 1 << bits), 8), space.cluster))


def _text_run(raw: bytes) -> bytes:
    end = next((i for i, byte in enumerate(raw) if byte < 0x20 or byte == 0x7F), len(raw))
    return raw[:end]


def _search(space: Workspace) -> list[_Entry]:
    """The directory that nobody refers to any more; QEMU writes a new one at each close, so freed ones count last."""
    best: list[_Entry] = []
    rank = (-1, 0)
    for offset, _ in clusters(space):
        ledger = space.ledger
        others = [each for each in ledger.claims_at(offset) if each.owner is not Owner.BITMAP_DIRECTORY]
        if (
            offset
            and not others
            and not int(ledger.flags[offset >> ledger.cluster_bits]) & ~1
            and _read(space, offset, strict=True)
        ):
            found = _walk(space, offset, 0, 0)
            in_use = sum(ledger.leaked(each.table_offset) for each in found) + ledger.leaked(offset)
            if found and (in_use, len(found)) > rank:
                best, rank = found, (in_use, len(found))
    return best


def _write(space: Workspace, entries: list[_Entry], offset: int) -> None:
    names: set[bytes] = set()
    for each in entries:
        while each.name in names:
            last = each.name[-1:]
            each.name = each.name[:-1] + (b"2" if not last.isdigit() else bytes([(last[0] - 47) % 10 + 48]))
        names.add(each.name)
    data = b"".join(each.bytes_() for each in entries)
    if space.read(offset, len(data)) != data:
        if -(-len(data) // space.cluster) > 1:
            room = space.meta.bitmaps_extension
            if room is None or len(data) > -(-room.directory_size // space.cluster) * space.cluster:
                offset = space.append(-(-len(data) // space.cluster))
        space.put(
            offset,
            data,
            code="BITMAP-UNREADABLE",
            title=f"correct the bitmap directory of {many(len(entries), 'bitmap')}",
            kind="bitmap",
            tier=_J,
        )
    record = space.meta.bitmaps_extension
    wanted = len(entries).to_bytes(4, "big") + bytes(4) + len(data).to_bytes(8, "big") + offset.to_bytes(8, "big")
    found = space.meta.extension(ExtensionType.BITMAPS)
    if found is None or found.data != wanted:
        code = "BITMAPS-BIT-WITHOUT-EXTENSION" if found is None else "BITMAPS-EXTENSION"
        if record is not None and record.directory_offset != offset:
            code = "BITMAP-DIRECTORY-UNALIGNED"
        title = f"let the bitmaps extension name {many(len(entries), 'bitmap')} at {offset:#x}"
        add_extension(space, ExtensionType.BITMAPS, wanted, code=code, title=title)


# -- tables ------------------------------------------------------------------------------------------------------------


def _tables(space: Workspace) -> None:
    if not space.meta.header.has("bitmaps") or space.meta.bitmaps_extension is None:
        return
    for number in range(len(space.meta.bitmap_directory.bitmaps)):
        each = space.meta.bitmap_directory.bitmaps[number]
        if each.table_size > limits.MAX_BITMAP_TABLE_ENTRIES:
            continue
        if _table_is_lost(space, number, each):
            _new_table(space, each)
        else:
            _mend_table(space, number, each)


def _table_is_lost(space: Workspace, number: int, each: Bitmap) -> bool:
    offset = each.table_offset
    if offset % space.cluster:
        aligned = offset & -space.cluster
        if aligned and space.ledger.leaked(aligned):
            title = f"point bitmap {each.name!r} at the start of its table's cluster again"
            space.put(
                each.offset,
                aligned.to_bytes(8, "big"),
                code="BITMAP-TABLE-UNALIGNED",
                title=title,
                kind="bitmap-offset",
                tier=_J,
            )
            return False
        return True
    if not 0 < offset < space.size:
        return True
    ledger = space.ledger
    first, last = offset >> ledger.cluster_bits, (offset + each.table_size * 8 - 1) >> ledger.cluster_bits
    if last >= ledger.clusters:
        return True
    rebuilt = (Owner.REFCOUNT_TABLE, Owner.REFCOUNT_BLOCK)
    others = [claim for at in range(first, last + 1) for claim in ledger.claims_at(at << ledger.cluster_bits)]
    ours = sum(claim.owner is Owner.BITMAP_TABLE and claim.index == number for claim in others)
    foreign = sum(claim.owner not in rebuilt for claim in others) - ours
    own_counts = sum(claim.owner in rebuilt for claim in others) + ours
    return bool(foreign) or int(ledger.counts[first : last + 1].sum()) > own_counts


def _new_table(space: Workspace, each: Bitmap) -> None:
    place = space.append(-(-each.table_size * 8 // space.cluster))
    ones = np.full(each.table_size, ALL_ONES, dtype=np.uint64)
    title = f"give bitmap {each.name!r} a new table that marks everything as dirty: its own is lost"
    space.put(place, table_bytes(ones), code="BITMAP-TABLE-UNALIGNED", title=title, kind="bitmap-table", tier=_J)
    title = f"point bitmap {each.name!r} at its new table"
    space.put(
        each.offset, place.to_bytes(8, "big"), code="BITMAP-TABLE-UNALIGNED", title=title, kind="bitmap-offset", tier=_J
    )


def _mend_table(space: Workspace, number: int, each: Bitmap) -> None:
    each = space.meta.bitmap_directory.bitmaps[number]
    ledger, cluster = space.ledger, np.uint64(space.cluster)
    words = space.words(each.table_offset, each.table_size)

    def put(new: np.ndarray[tuple[int], np.dtype[np.uint64]], code: str, what: str) -> None:
        nonlocal words
        title = f"{what} in the table of bitmap {each.name!r}"
        space.put_words(each.table_offset, new, code=code, title=title, kind="bitmap-table", tier=_J)
        words = new

    offset = BITMAP_TABLE_ENTRY["offset"].get(words)
    reserved = np.uint64(BITMAP_TABLE_ENTRY.reserved_mask)
    put(
        words & ~np.where(offset > 0, reserved | np.uint64(ALL_ONES), reserved),
        "BITMAP-ENTRY-RESERVED",
        "clear reserved bits",
    )
    offset = BITMAP_TABLE_ENTRY["offset"].get(words)
    aligned = offset & ~(cluster - np.uint64(1))
    new = words.copy()
    for index in np.flatnonzero(aligned != offset).tolist():
        new[index] = aligned[index] if ledger.leaked(int(aligned[index])) else np.uint64(ALL_ONES)
    put(new, "BITMAP-ENTRY-UNALIGNED", "mend unaligned entries")
    offset = BITMAP_TABLE_ENTRY["offset"].get(words)
    put(
        np.where(offset >= np.uint64(space.end), np.uint64(ALL_ONES), words),
        "BITMAP-ENTRY-BEYOND-EOF",
        "mark as dirty what lay past the end of the file",
    )
    offset = BITMAP_TABLE_ENTRY["offset"].get(words)
    numbers = np.minimum((offset >> np.uint64(ledger.cluster_bits)).astype(np.int64), ledger.clusters - 1)
    shared = (offset > 0) & (ledger.counts[numbers] > 1)
    put(
        np.where(shared, np.uint64(ALL_ONES), words),
        "METADATA-OVERLAP",
        "mark as dirty what lay in other structures' clusters",
    )


RULES = (
    Rule(
        "bitmaps",
        "Make bitmaps consistent",
        codes(
            "BITMAPS-EXTENSION", "BITMAPS-NOT-TRUSTED", "BITMAPS-BIT-WITHOUT-EXTENSION", "BITMAP-DIRECTORY-UNALIGNED",
            "BITMAP-DIRECTORY-SIZE", "BITMAP-UNREADABLE", "BITMAP-TABLE-SIZE", "BITMAP-TABLE-UNALIGNED", "BITMAP-NAME",
            "BITMAP-FLAGS", "BITMAP-TYPE", "BITMAP-GRANULARITY", "BITMAP-EXTRA-DATA", "BITMAP-DUPLICATE-NAME",
            "BITMAP-ENTRY-UNALIGNED", "BITMAP-ENTRY-RESERVED", "BITMAP-ENTRY-BEYOND-EOF",
        ),
        _J,
        run,
        alternatives=(
            Alternative("mend", "Mend them", "what is lost counts as dirty, what may have missed writes is not trusted"),
            Alternative("drop", "Drop all bitmaps", "the next backup of everyone who used one must be a full one", Tier.DESTRUCTIVE),
        ),
    ),
)  # fmt: skip
