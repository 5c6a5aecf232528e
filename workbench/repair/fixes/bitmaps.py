"""Persistent bitmaps: directory, entries and tables made consistent again, erring on the side of "dirty".

A dirty bit too many costs a larger backup, one too few loses data in it. So what cannot be derived reads as all ones,
and a bitmap that may have missed writes is marked in use, which QEMU will not trust.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from formats.qcow2 import limits
from formats.qcow2.bitmaps import FIXED_SIZE, Bitmap, build_bitmap, entry_size
from formats.qcow2.entries import ONES, Pointers, PointerTable, offset_of
from formats.qcow2.extensions import ExtensionType
from formats.qcow2.header import AUTOCLEAR
from formats.qcow2.tables import table_bytes
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
    """A directory entry as it ought to be. stored: bytes that it takes now.  raw: its bytes, where nothing is wrong."""

    offset: int
    table_offset: int
    table_size: int
    flags: int
    granularity_bits: int
    name: bytes
    stored: int
    raw: bytes = b""

    def bytes_(self) -> bytes:
        """The entry's bytes."""
        if self.raw:
            return self.raw
        text = self.name.decode("utf-8", "surrogateescape")
        return build_bitmap(
            Bitmap(0, self.table_offset, self.table_size, self.flags, 1, self.granularity_bits, b"", text, b"")
        )


def run(space: Workspace) -> None:
    """Directory and extension first, then each bitmap's table; or all bitmaps given up, if that was chosen."""
    if space.policy.choice("bitmaps", "mend") == "drop":
        _give_up(space, space.meta.extension(ExtensionType.BITMAPS) is not None, Tier.DESTRUCTIVE)
        return
    if not space.rows.codes <= _OF_TABLES:
        _directory(space)
    _tables(space)


_OVERLAPS: Final = frozenset({"METADATA-OVERLAP", "DATA-OVERLAPS-METADATA"})
_OF_TABLES: Final = frozenset({
    "BITMAP-ENTRY-UNALIGNED", "BITMAP-ENTRY-RESERVED", "BITMAP-ENTRY-BEYOND-EOF", "BITMAP-TABLE-UNALIGNED", *_OVERLAPS,
})  # fmt: skip
"""Rows that leave the directory's entries alone, but for where their tables are."""


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
        if found is not None or "BITMAPS-BIT-WITHOUT-EXTENSION" in space.policy.codes:
            _give_up(space, found is not None)
        return
    if not trusted:
        for each in entries:
            each.flags, each.raw = each.flags | _IN_USE, b""
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
    # A name may hold any bytes but 0, which is what pads it.
    name = space.read(offset + FIXED_SIZE, length).split(b"\0")[0]
    size = entry_size(extra, name_size)
    if not strict and name and len(name) == name_size and not _names(space, offset, size):
        return _Entry(offset, table, entries, flags, bits, name, size, space.read(offset, size))
    if not name or (strict and len(name) != name_size):
        return None
    doubtful = kind != 1 or not bits_good
    if not bits_good:
        bits = next((each for each in (16, *range(9, 32)) if _entries_needed(space, each) == entries), 16)
    good_flags = (flags & 3) | (_IN_USE if doubtful else 0)
    return _Entry(offset, table, _entries_needed(space, bits), good_flags, bits, name, entry_size(0, len(name)))


def _names(space: Workspace, offset: int, size: int) -> bool:
    """Whether a row names the directory entry."""
    return any(start < offset + size and offset < end for start, end in space.rows.spans())


def _entries_needed(space: Workspace, bits: int) -> int:
    size = space.meta.header.size
    if size >= 1 << 62:
        return 0
    return max(1, div_round_up(div_round_up(div_round_up(size, 1 << bits), 8), space.cluster))


def _search(space: Workspace) -> list[_Entry]:
    """The directory that nobody refers to any more, though it and all its tables are counted: what was freed was deleted."""
    best: list[_Entry] = []
    for offset, _ in clusters(space, space.ledger.maybe_leaked()):
        ledger = space.ledger
        others = [each for each in ledger.claims_at(offset) if each.owner is not Owner.BITMAP_DIRECTORY]
        if (
            offset
            and not others
            and not int(ledger.flags[offset >> ledger.cluster_bits]) & ~1
            and _read(space, offset, strict=True)
        ):
            found = _walk(space, offset, 0, 0)
            in_use = all(ledger.leaked(each.table_offset) for each in found) and ledger.leaked(offset)
            if in_use and len(found) > len(best):
                best = found
    return best


def _write(space: Workspace, entries: list[_Entry], offset: int) -> None:
    names: set[bytes] = set()
    for each in entries:
        while each.name in names:
            last = each.name[-1:]
            each.raw = b""
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
        if each.table_size > limits.MAX_BITMAP_TABLE_ENTRIES or not _is_named(space, each):
            continue
        if _table_is_lost(space, number, each):
            _new_table(space, each)
        else:
            _mend_table(space, number, each)


def _is_named(space: Workspace, each: Bitmap) -> bool:
    """Whether a row names the bitmap, its table, or clusters that its table may lie in or lead to."""
    rows = space.rows
    if rows.has(*_OVERLAPS) or each.table_offset in rows.tables() or _names(space, each.offset, len(each.raw)):
        return True
    return any(found.offset == each.table_offset for found in rows.each("REGION-BEYOND-EOF"))


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
    ones = np.full(each.table_size, ONES, dtype=np.uint64)
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

    cleaned = Pointers(words, PointerTable.BITMAP, space.meta.shape).cleaned
    put(cleaned, "BITMAP-ENTRY-RESERVED", "clear reserved bits")
    offset = offset_of(words)
    aligned = offset & ~(cluster - np.uint64(1))
    new = words.copy()
    for index in np.flatnonzero(aligned != offset).tolist():
        new[index] = aligned[index] if ledger.leaked(int(aligned[index])) else ONES
    put(new, "BITMAP-ENTRY-UNALIGNED", "mend unaligned entries")
    offset = offset_of(words)
    put(
        np.where(offset >= np.uint64(space.end), np.uint64(ONES), words),
        "BITMAP-ENTRY-BEYOND-EOF",
        "mark as dirty what lay past the end of the file",
    )
    offset = offset_of(words)
    numbers = np.minimum((offset >> np.uint64(ledger.cluster_bits)).astype(np.int64), ledger.clusters - 1)
    named = space.rows.clusters(ledger.cluster_bits, ledger.clusters, *_OVERLAPS)
    shared = (offset > 0) & (ledger.counts[numbers] > 1) & named[numbers]
    put(
        np.where(shared, np.uint64(ONES), words),
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
            "BITMAP-ENTRY-UNALIGNED", "BITMAP-ENTRY-RESERVED", "BITMAP-ENTRY-BEYOND-EOF", "REGION-BEYOND-EOF", *_OVERLAPS,
        ),
        _J,
        run,
        alternatives=(
            Alternative("mend", "Mend them", "what is lost counts as dirty, what may have missed writes is not trusted"),
            Alternative("drop", "Drop all bitmaps", "the next backup of everyone who used one must be a full one", Tier.DESTRUCTIVE),
        ),
    ),
)  # fmt: skip
