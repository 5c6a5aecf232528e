"""Snapshots: the table found and read again entry by entry, its numbers derived, lost L1 tables looked for.

Only what a row names is looked at anew. No entry is dropped that can be read; entries that were forgotten, or whose sizes
were damaged, come back. Only when nothing at all can be read is the table given up, and then the clusters it held stay
counted.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from formats.qcow2 import limits
from formats.qcow2.snapshots import FIXED_SIZE, Snapshot, build_snapshot, entry_size, parse_snapshot
from workbench.check.kinds import Owner
from workbench.check.problems import Tier
from workbench.repair.fixes.base import Alternative, Rule, codes
from workbench.repair.probe import clusters, find_l1, l1_bad, l1_score, leads_nowhere
from workbench.repair.workspace import WHOLE, Workspace
from workbench.units import many

_J = Tier.JUDGEMENT
_LONGEST_ID = 32
_EXTRA_SIZES = (16, 24, 0, 8, 32)


# -- reading what can be read ------------------------------------------------------------------------------------------


def _read_entry(space: Workspace, offset: int, *, announced: bool) -> Snapshot | None:
    """The entry at `offset`; None when no snapshot entry is there.

    An announced one is taken as it stands (IDs and names may hold any bytes) unless a row names it: then its lengths are
    derived. One that nobody announced must be without fault.
    """
    fixed = space.read(offset, FIXED_SIZE)
    id_size, name_size = int.from_bytes(fixed[12:14], "big"), int.from_bytes(fixed[14:16], "big")
    stored = int.from_bytes(fixed[36:40], "big")
    size = entry_size(stored, id_size, name_size)
    if announced and stored <= limits.MAX_SNAPSHOT_EXTRA_DATA and offset + size <= space.end:
        entry = parse_snapshot(space.read(offset, size), offset)
        if not _is_doubted(space, entry):
            return entry
    if not announced and not _believable_l1(space, fixed):
        return None
    if not 0 < id_size <= _LONGEST_ID:
        return None
    for extra in (stored, *(each for each in _EXTRA_SIZES if each != stored)) if announced else (stored,):
        if extra > limits.MAX_SNAPSHOT_EXTRA_DATA:
            continue
        ident = space.read(offset + FIXED_SIZE + extra, id_size)
        name = space.read(offset + FIXED_SIZE + extra + id_size, name_size)
        if b"\0" in ident or (b"\0" in name and not announced):
            continue
        if announced and not (ident.isalnum() and ident.isascii()):
            continue  # where lengths are in doubt, an ID as QEMU gives them says which is right
        length = len(name.split(b"\0")[0])
        size = entry_size(extra, id_size, length)
        raw = bytearray(space.read(offset, FIXED_SIZE + extra + id_size + length).ljust(size, b"\0"))
        raw[14:16], raw[36:40] = length.to_bytes(2, "big"), extra.to_bytes(4, "big")
        return parse_snapshot(bytes(raw), offset)
    return None


def _is_doubted(space: Workspace, entry: Snapshot) -> bool:
    """A row names the entry's lengths; or its table overlaps others, and it has 0 bytes in its ID or name."""
    if _named(space, entry, "SNAPSHOT-UNREADABLE", "SNAPSHOT-EXTRA-TOO-LARGE", "SNAPSHOT-EXTRA-TOO-SMALL"):
        return True
    overlaps = space.rows.has("METADATA-OVERLAP", "DATA-OVERLAPS-METADATA", "REGION-BEYOND-EOF")
    return overlaps and ("\0" in entry.name or "\0" in entry.id)


def _named(space: Workspace, entry: Snapshot, *codes: str) -> bool:
    """Whether a row with one of `codes` names the entry."""
    end = entry.offset + max(len(entry.raw), FIXED_SIZE)
    return any(low < end and entry.offset < high for low, high in space.rows.spans(*codes))


def _believable_l1(space: Workspace, fixed: bytes) -> bool:
    offset, size = int.from_bytes(fixed[0:8], "big"), int.from_bytes(fixed[8:12], "big")
    return 0 < offset < space.size and offset % space.cluster == 0 and 0 < size * 8 <= limits.MAX_L1_SIZE


def _walk(space: Workspace, offset: int, announced: int) -> list[Snapshot]:
    """Entries from `offset`: the announced ones as far as they can be read, and more whose L1 table is leaked."""
    found: list[Snapshot] = []
    position = offset
    while len(found) < limits.MAX_SNAPSHOTS and position < space.size:
        expected = len(found) < announced
        entry = _read_entry(space, position, announced=expected)
        if entry is None:
            break
        if not expected and not space.ledger.leaked(entry.l1_table_offset):
            break
        found.append(entry)
        position += len(_stored_bytes(space, entry))
    return found


def _stored_bytes(space: Workspace, entry: Snapshot) -> bytes:
    """The bytes that the entry takes in the table as it is (its length may have been derived)."""
    return space.read(entry.offset, len(entry.raw))


def find_table(space: Workspace, announced: int) -> list[Snapshot]:
    """The table that nobody refers to any more, though it and its snapshots' L1 tables are counted; none if there are two."""
    best: list[Snapshot] = []
    again = False
    for offset, _ in clusters(space, space.ledger.maybe_leaked()):
        if offset == 0 or _read_entry(space, offset, announced=False) is None:
            continue
        found = [each for each in _walk(space, offset, 0) if space.ledger.leaked(each.l1_table_offset)]
        if not found or len(found) < len(best):
            continue
        again = len(found) == len(best)
        best = found
    if again:
        space.note("several clusters may be the snapshot table: none is taken without being told")
    return [] if again else best[: announced or None]


def _recover(space: Workspace) -> list[Snapshot]:
    """Entries made anew for leaked clusters that are L1 tables."""
    header = space.meta.header
    found = find_l1(space, header.l1_size, {header.l1_table_offset}, space.ledger.maybe_leaked())
    entries = []
    for number, (_, offset) in enumerate(sorted(found, key=lambda each: each[1]), 1):
        blank = parse_snapshot(bytes(FIXED_SIZE), 0)
        extra = bytes(8) + header.size.to_bytes(8, "big")
        entries.append(
            replace(
                blank, l1_table_offset=offset, l1_size=header.l1_size, id=str(number), name=f"recovered-{number}",
                extra_data=extra, disk_size=header.size, extra_data_size=len(extra), raw=b"",
            )
        )  # fmt: skip
    return entries


# -- the table ---------------------------------------------------------------------------------------------------------


def run_table(space: Workspace) -> None:
    """Make header and snapshot table agree on entries that can be read."""
    header = space.meta.header
    if not header.nb_snapshots and not header.snapshots_offset:
        return
    if space.rows.has("SNAPSHOT-TABLE-TOO-LARGE") and _keep_under_limit(space):
        return
    offset, announced = header.snapshots_offset, header.nb_snapshots
    in_file = offset % space.cluster == 0 and 0 < offset < space.size
    found = _walk(space, offset, min(announced, limits.MAX_SNAPSHOTS)) if in_file else []
    if (
        (in_file or announced)
        and len(found) == announced
        and all(each.raw == _stored_bytes(space, each) for each in found)
    ):
        if header.version >= 3 and any(_named(space, each, "SNAPSHOT-EXTRA-TOO-SMALL") for each in found):
            write_table(space, [_padded(space, each) for each in found], "SNAPSHOT-EXTRA-TOO-SMALL")
        return
    code = _code(space, in_file, len(found))
    if not found and announced:
        found = find_table(space, min(announced, limits.MAX_SNAPSHOTS)) or _recover(space)
    if not found and not announced:
        if not in_file and space.rows.has("SNAPSHOT-TABLE-UNALIGNED", "SNAPSHOT-TABLE-OFFSET"):
            space.put(
                60,
                bytes(12),
                code=code,
                title="clear the snapshot table's offset: there are no snapshots",
                kind="header",
            )
        return
    if not found:
        title = "give up the snapshot table: no entry can be read (what the snapshots hold stays counted)"
        space.put(60, bytes(12), code=code, title=title, kind="header", tier=_J)
        return
    write_table(space, found, code)


def _keep_under_limit(space: Workspace) -> bool:
    """Count the entries that lie under the limit of the table's size, as they are; QEMU reads no further. False: none does."""
    kept, announced = space.meta.snapshots, space.meta.header.nb_snapshots
    if not kept or len(kept) >= announced:
        return False
    over = announced - len(kept)
    title = f"let the header name the {many(len(kept), 'snapshot')} under the limit of the table's size, not the {over} beyond it"
    space.put(60, len(kept).to_bytes(4, "big"), code="SNAPSHOT-TABLE-TOO-LARGE", title=title, kind="header", tier=_J)
    return True


def _padded(space: Workspace, each: Snapshot) -> Snapshot:
    """The entry with the 16 bytes of extra data that version 3 wants: size of the VM state, size of the disk."""
    if each.extra_data_size >= limits.MIN_SNAPSHOT_EXTRA_DATA_V3:
        return each
    state = each.extra_data[:8] if each.extra_data_size >= 8 else each.vm_state_size.to_bytes(8, "big")
    size = space.meta.header.size
    extra = state + size.to_bytes(8, "big")
    return replace(each, extra_data=extra, extra_data_size=len(extra), disk_size=size, raw=b"")


def _code(space: Workspace, in_file: bool, found: int) -> str:
    header = space.meta.header
    if header.nb_snapshots > limits.MAX_SNAPSHOTS:
        return "SNAPSHOTS-TOO-MANY"
    if header.snapshots_offset % space.cluster:
        return "SNAPSHOT-TABLE-UNALIGNED"
    if not in_file:
        return "SNAPSHOT-TABLE-OFFSET"
    wrong = {fault.code for fault in space.meta.faults}
    for code in ("SNAPSHOT-EXTRA-TOO-LARGE", "SNAPSHOT-EXTRA-TOO-SMALL"):
        if code in wrong and found == header.nb_snapshots:
            return code
    return "SNAPSHOT-UNREADABLE"


def write_table(space: Workspace, entries: list[Snapshot], code: str, tier: Tier = _J) -> None:
    """Header (and table, where its bytes change) for these entries."""
    header = space.meta.header
    if not entries:
        space.put(60, bytes(12), code=code, title="drop the last snapshot", kind="header", tier=tier)
        return
    place = entries[0].offset
    same = place % space.cluster == 0
    position = place
    for each in entries:
        same &= each.offset == position and each.raw == _stored_bytes(space, each) and bool(each.raw)
        position += len(each.raw)
    names = ", ".join(repr(each.name) for each in entries[:4])
    if not same:
        data = b"".join(build_snapshot(each) if not each.raw else each.raw for each in entries)
        place = _room(space, entries[0].offset, len(data))
        title = f"write the snapshot table anew: {many(len(entries), 'snapshot')}, {names}"
        space.put(
            place,
            data,
            code=code,
            title=title,
            kind="snapshot",
            tier=tier,
            snapshots=[each.id for each in entries],
            places=WHOLE,
        )
    if place != header.snapshots_offset or len(entries) != header.nb_snapshots:
        value = len(entries).to_bytes(4, "big") + place.to_bytes(8, "big")
        title = f"let the header name {many(len(entries), 'snapshot')} at {place:#x}: {names}"
        space.put(
            60,
            value,
            code=code,
            title=title,
            kind="header",
            tier=tier,
            snapshots=[each.id for each in entries],
            places=WHOLE,
        )


def _room(space: Workspace, offset: int, length: int) -> int:
    """Where a table of `length` bytes may be written: its own clusters when they are nobody else's, else new ones."""
    ledger = space.ledger
    header = space.meta.header
    if offset and offset % space.cluster == 0 and offset == header.snapshots_offset:
        first, last = offset >> ledger.cluster_bits, (offset + length - 1) >> ledger.cluster_bits
        own = {Owner.SNAPSHOT_TABLE}
        alone = all(
            {each.owner for each in ledger.claims_at(at << ledger.cluster_bits)} <= own for at in range(first, last + 1)
        )
        if (
            alone
            and last < ledger.clusters
            and (ledger.counts[first : last + 1] <= 1).all()
            and (ledger.counts[first + 1 : last + 1] == 0).all()
        ):
            return offset
    return space.append(-(-length // space.cluster))


# -- single entries ----------------------------------------------------------------------------------------------------


def run_entries(space: Workspace) -> None:
    """Sizes, IDs and L1 tables of the snapshots."""
    if space.meta.header.snapshots_offset < space.cluster:
        return  # what would be read as records there is the header
    for number in range(len(space.meta.snapshots)):
        _mend_sizes(space, number)
    shorter = {number for number in range(len(space.meta.snapshots)) if _shorten(space, number)}
    for number in range(len(space.meta.snapshots)):
        if number < len(space.meta.snapshots) and number not in shorter:  # one may have been dropped
            _mend_l1(space, number)
    _mend_ids(space)


_L1_ENTRY_CODES: Final = ("L1-ENTRY-RESERVED", "L1-ENTRY-UNALIGNED", "L1-ENTRY-BEYOND-EOF", "L1-ENTRY-OFFSET-ZERO")


def _mend_sizes(space: Workspace, number: int) -> None:
    each, geometry = space.meta.snapshots[number], space.geometry
    if not _named(space, each, "SNAPSHOT-L1-TOO-LARGE", "SNAPSHOT-DISK-SIZE"):
        return
    why = {"kind": "snapshot", "tier": _J, "snapshots": [each.id], "places": WHOLE}
    disk = each.disk_size if each.disk_size is not None else space.meta.header.size
    most = limits.MAX_L1_SIZE // 8
    if not 0 < each.l1_size <= most:
        size = geometry.l1_entries_for(disk or space.meta.header.size)
        if 0 < size <= most and (disk or each.l1_size):
            title = f"set the L1 table of snapshot {each.id} to {size} entries, what its disk size needs"
            space.put(each.offset + 8, size.to_bytes(4, "big"), code="SNAPSHOT-L1-TOO-LARGE", title=title, **why)  # type: ignore[arg-type]
    each = space.meta.snapshots[number]
    if each.disk_size is not None and each.l1_size and geometry.l1_entries_for(each.disk_size) > each.l1_size:
        size = space.meta.header.size
        if geometry.l1_entries_for(size) > each.l1_size:
            size = each.l1_size * geometry.l2_coverage
        title = f"set the disk size of snapshot {each.id} to {size}, what its L1 table can cover"
        space.put(each.offset + 48, size.to_bytes(8, "big"), code="SNAPSHOT-DISK-SIZE", title=title, **why)  # type: ignore[arg-type]


def _shorten(space: Workspace, number: int) -> bool:
    """A snapshot's L1 table that is longer than its disk needs, and is no L1 table from there on: as long as it needs."""
    each, geometry = space.meta.snapshots[number], space.geometry
    disk = each.disk_size if each.disk_size is not None else space.meta.header.size
    needed = geometry.l1_entries_for(disk)
    if not 0 < needed < each.l1_size or each.l1_size * 8 > limits.MAX_L1_SIZE:
        return False
    rows = space.rows
    hurt = number in rows.snapshots("REGION-BEYOND-EOF", *_L1_ENTRY_CODES) or rows.has("METADATA-OVERLAP")
    entries = space.meta.snapshot_l1(each)[needed:]
    entries = entries[entries != 0]
    beyond = each.l1_table_offset + each.l1_size * 8 > space.end
    if not hurt or not (beyond or (entries.size and int(l1_bad(space, entries).sum()) * 2 > entries.size)):
        return False
    code = (
        "REGION-BEYOND-EOF" if beyond else "METADATA-OVERLAP" if rows.has("METADATA-OVERLAP") else "L1-ENTRY-UNALIGNED"
    )
    title = f"set the L1 table of snapshot {each.id} to {needed} entries, what its disk size needs: behind them lies something else"
    return space.put(
        each.offset + 8,
        needed.to_bytes(4, "big"),
        code=code,
        title=title,
        kind="snapshot",
        tier=_J,
        snapshots=[each.id],
    )


def _mend_l1(space: Workspace, number: int) -> None:
    """A snapshot's L1 offset that cannot be right: the aligned place, or the one L1 table without an owner; else it stays."""
    each = space.meta.snapshots[number]
    offset = each.l1_table_offset
    if not 0 < each.l1_size * 8 <= limits.MAX_L1_SIZE or not _is_impossible(space, number):
        return
    aligned = offset & -space.cluster
    place = 0
    if aligned != offset and space.ledger.leaked(aligned) and l1_score(space, aligned, each.l1_size)[0]:
        place = aligned
    if not place:
        taken = {other.l1_table_offset for i, other in enumerate(space.meta.snapshots) if i != number}
        taken |= {space.meta.header.l1_table_offset, offset}
        found = find_l1(space, each.l1_size, taken, space.ledger.maybe_leaked())
        place = found[0][1] if len(found) == 1 else 0
    code = "SNAPSHOT-L1-UNALIGNED" if aligned != offset else "SNAPSHOT-L1-OFFSET"
    if not place:
        if space.policy.choice("snapshot-entries", "keep") == "drop":
            write_table(space, [other for other in space.meta.snapshots if other is not each], code, Tier.DESTRUCTIVE)
            return
        space.note(
            f"the L1 table of snapshot {each.id!r} ({each.name!r}) cannot be where its entry says, and no other place is"
            " certain: the entry stays as it is, and what nothing refers to stays counted"
        )
        return
    title = f"point snapshot {each.id} ({each.name}) at its L1 table, found at {place:#x}"
    guest = [(0, each.disk_size or space.meta.header.size)]
    space.put(
        each.offset,
        place.to_bytes(8, "big"),
        code=code,
        title=title,
        kind="snapshot",
        tier=_J,
        guest=guest,
        snapshots=[each.id],
        places=guest,
    )


def _is_impossible(space: Workspace, number: int) -> bool:
    """A row says so: unaligned, beyond the file, the header itself, or each of its entries leads nowhere."""
    each, rows = space.meta.snapshots[number], space.rows
    if _named(space, each, "SNAPSHOT-L1-UNALIGNED", "SNAPSHOT-L1-OFFSET"):
        return True
    if number in rows.snapshots("REGION-BEYOND-EOF"):
        return True
    if not each.l1_table_offset:
        return rows.has("METADATA-OVERLAP")
    return number in rows.snapshots(*_L1_ENTRY_CODES, "L2-TABLE-FOREIGN") and leads_nowhere(
        space, space.meta.snapshot_l1(each)
    )


def _mend_ids(space: Workspace) -> None:
    seen: set[str] = set()
    for each in space.meta.snapshots:
        if each.id not in seen:
            seen.add(each.id)
            continue
        if not _named(space, each, "SNAPSHOT-DUPLICATE-ID"):
            continue
        width = max(1, len(each.id.encode("utf-8", "surrogateescape")))
        every = {other.id for other in space.meta.snapshots}
        new = next((str(n) for n in range(10 ** (width - 1), min(10**width, 10**6)) if str(n) not in every), None)
        if new is None or len(new) != width:
            continue
        place = each.offset + FIXED_SIZE + each.extra_data_size
        title = f"give snapshot {each.name!r} the unused ID {new}: its ID {each.id} is another snapshot's"
        space.put(
            place,
            new.encode(),
            code="SNAPSHOT-DUPLICATE-ID",
            title=title,
            kind="snapshot-id",
            tier=_J,
            snapshots=[each.id],
        )
        seen.add(new)


RULES = (
    Rule(
        "snapshot-table",
        "Find and read the snapshot table",
        codes(
            "SNAPSHOTS-TOO-MANY", "SNAPSHOT-TABLE-UNALIGNED", "SNAPSHOT-TABLE-OFFSET", "SNAPSHOT-TABLE-TOO-LARGE",
            "SNAPSHOT-UNREADABLE", "SNAPSHOT-EXTRA-TOO-LARGE", "SNAPSHOT-EXTRA-TOO-SMALL", "REGION-BEYOND-EOF", "SNAPSHOT-WITH-DATA-FILE",
            "CLUSTER-LEAKED", "METADATA-OVERLAP", "DATA-OVERLAPS-METADATA",
        ),
        _J,
        run_table,
    ),
    Rule(
        "snapshot-entries",
        "Mend snapshot entries",
        codes(
            "SNAPSHOT-L1-UNALIGNED", "SNAPSHOT-L1-OFFSET", "SNAPSHOT-L1-TOO-LARGE", "SNAPSHOT-DISK-SIZE",
            "SNAPSHOT-DUPLICATE-ID", "REGION-BEYOND-EOF", "METADATA-OVERLAP", "L1-ENTRY-RESERVED", "L1-ENTRY-UNALIGNED",
            "L1-ENTRY-BEYOND-EOF", "L1-ENTRY-OFFSET-ZERO", "L2-TABLE-FOREIGN",
        ),
        _J,
        run_entries,
        alternatives=(
            Alternative("keep", "Keep every snapshot", "one whose L1 table is lost cannot be read, its entry stays as it is"),
            Alternative("drop", "Drop snapshots whose L1 table is lost", "the entry is gone; leaked clusters stay", Tier.DESTRUCTIVE),
        ),
    ),
)  # fmt: skip
