"""Header fields that say what the rest means: magic, version, lengths, cluster size, refcount width, entry width.

Only a field that is impossible is derived (or one under which nothing at all can be read): every possible value is
tried on an overlay, and the check says which of them fits what is in the file.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import numpy as np

from formats.qcow2 import limits
from formats.qcow2.extensions import EXTENSION_NAMES, parse_extensions
from formats.qcow2.header import INCOMPATIBLE, MAGIC, V2_LENGTH, V3_LENGTH
from workbench.check.problems import PROBLEMS, Severity, Tier
from workbench.check.run import check
from workbench.check.shape import counted_end, other_cluster_sizes
from workbench.guest.disk_size import disk_size
from workbench.repair.fixes.base import Rule, codes
from workbench.repair.gate import nothing_readable
from workbench.repair.probe import l1_score
from workbench.repair.workspace import WHOLE, Workspace

_BAD_SHARE: Final = 4
"""Another cluster size must leave at most a quarter of the complaints, where the one at hand is not impossible."""


def run_identity(space: Workspace) -> None:
    """Magic and version, where the rest of the header is a header."""
    header, head = space.meta.header, space.meta.head
    if len(head) < V3_LENGTH or not any(head[20:64]):
        return
    looks = header.cluster_bits <= 30 and header.l1_size and header.refcount_table_offset
    if not space.meta.is_qcow2 and looks and header.version in (2, 3):
        space.set_header(
            "magic", MAGIC, code="HEADER-MAGIC", title="restore the magic number", tier=Tier.JUDGEMENT, places=WHOLE
        )
    if not space.meta.is_qcow2:
        return
    version = space.meta.header.version
    if version not in (2, 3):
        value = 3 if _v3_fields(head) else 2
        space.set_header(
            "version",
            value,
            code="HEADER-VERSION",
            title=f"set the version to {value}",
            tier=Tier.JUDGEMENT,
            places=WHOLE,
        )


def _v3_fields(head: bytes) -> bool:
    """The bytes behind the version 2 header are those of version 3."""
    length, order = int.from_bytes(head[100:104], "big"), int.from_bytes(head[96:100], "big")
    incompatible = int.from_bytes(head[72:80], "big")
    return length in range(V3_LENGTH, 512, 8) and order <= limits.MAX_REFCOUNT_ORDER and not incompatible >> 5


def run_length(space: Workspace) -> None:
    """A header length that cannot be: the one behind which the extensions can be read."""
    header = space.meta.header
    if header.version != 3 or (
        V3_LENGTH <= header.header_length <= header.cluster_size and not header.header_length % 8
    ):
        return
    end = space.meta.extension_end
    head = space.meta.head
    best = max((V3_LENGTH + 8, V3_LENGTH, V3_LENGTH + 24), key=lambda length: _readable(head, length, end))
    if header.header_length % 8 == 0 or _readable(head, best, end) > _readable(head, header.header_length, end):
        code = "HEADER-LENGTH-UNALIGNED" if header.header_length % 8 else "HEADER-LENGTH"
        title = f"set the header length to {best}"
        space.set_header("header_length", best, code=code, title=title, tier=Tier.JUDGEMENT, places=WHOLE)


def _readable(head: bytes, start: int, end: int) -> int:
    area = parse_extensions(head, start, end)
    known = sum(each.type in EXTENSION_NAMES for each in area.extensions)
    return known * 4 + (area.ended and area.overrun is None)


# -- the shape ---------------------------------------------------------------------------------------------------------


def run_shape(space: Workspace) -> None:
    """Cluster size, refcount width and entry width, where the field is impossible or nothing can be read under it."""
    rows, header = space.rows, space.meta.header
    if not space.meta.is_qcow2 or header.version not in (2, 3) or space.size < V2_LENGTH:
        return
    if rows.has("HEADER-REFCOUNT-ORDER"):
        best = min(_orders(space), key=lambda value: _scored(space, "refcount_order", value))
        _set(space, "refcount_order", best, "HEADER-REFCOUNT-ORDER")
    elif rows.has("HEADER-CLUSTER-BITS"):
        _best(space, list(_cluster_sizes(space)), "HEADER-CLUSTER-BITS")
    elif rows.has("EXTENDED-L2-CLUSTER-SIZE"):
        _best(space, [_other_entries(space), *_cluster_sizes(space)], "EXTENDED-L2-CLUSTER-SIZE")
    elif rows.has("HEADER-CLUSTER-SIZE-DOUBTFUL"):
        row = next(rows.each("HEADER-CLUSTER-SIZE-DOUBTFUL"))
        _set(space, "cluster_bits", row.index, row.code)
    elif nothing_readable(rows, space):
        _best(space, list(_cluster_sizes(space)), "HEADER-CLUSTER-BITS", below=_score(space) / _BAD_SHARE)
    elif rows.has("L1-TABLE-TOO-SMALL"):
        _only_sound(space)


def _orders(space: Workspace) -> tuple[int, ...]:
    return (4, 3, 5, 6, 2, 1, 0) if space.meta.header.version == 3 else (4,)  # the usual one wins a tie


def _cluster_sizes(space: Workspace) -> Iterable[tuple[str, int]]:
    return [("cluster_bits", bits) for bits in other_cluster_sizes(space.meta)]


def _other_entries(space: Workspace) -> tuple[str, int]:
    return "incompatible_features", space.meta.header.incompatible_features ^ INCOMPATIBLE["extended_l2"].mask


def _best(space: Workspace, candidates: list[tuple[str, int]], code: str, below: float = float("inf")) -> None:
    """Take the candidate that explains the file best, for a field that cannot stay as it is.

    Of those that explain it about as well it is the one under which the clusters in use end where the file does.
    """
    scores = [_scored(space, name, value) for name, value in candidates]
    if not scores or min(scores) >= below:
        space.note("no cluster size explains the file: the header's is kept")
        return
    close = [each for each, score in enumerate(scores) if score <= min(scores) * _CLOSE + 1]
    best = min(close, key=lambda each: (_end_missed(_under(space, *candidates[each])), scores[each]))
    _set(space, *candidates[best], code)


def _only_sound(space: Workspace) -> None:
    """The image cannot be opened: is there one shape, and one alone, under which there is nothing to complain about?"""
    candidates = list(_cluster_sizes(space))
    if space.meta.header.version == 3:
        candidates.append(_other_entries(space))
    sound = []
    for name, value in candidates:
        trial = _under(space, name, value)
        if trial.meta.geometry is None or trial.meta.faults:
            continue
        result = check(trial.meta, fast=True)
        quiet = result.aborted is None and not result.corruptions and not result.leaks and not result.check_errors
        header = trial.meta.header
        if quiet and l1_score(trial, header.l1_table_offset, header.l1_size)[0]:
            sound.append((name, value))
    if len(sound) == 1:
        _set(space, *sound[0], "L1-TABLE-TOO-SMALL")


def _set(space: Workspace, name: str, value: int, code: str) -> None:
    title = f"set {name.replace('_', ' ')} to {value:#x}: under it the file can be read"
    guest = [(0, space.meta.header.size)]
    space.set_header(name, value, code=code, title=title, tier=Tier.JUDGEMENT, places=WHOLE, guest=guest)


def _under(space: Workspace, name: str, value: int) -> Workspace:
    """The file as it would be with another value in a field of the header."""
    trial = space.trial()
    trial.set_header(name, value, code="-", title="-")
    return trial


def _scored(space: Workspace, name: str, value: int) -> float:
    return _score(_under(space, name, value))


_ENTRY_CODES: Final = ("L2-", "COMPRESSED-", "SUBCLUSTER-")
"""Beginnings of the codes of faults in L2 entries."""


def _score(space: Workspace) -> float:
    """How bad the file looks in this shape; 0 is clean.

    Faults of entries count by the share of a table that they are: one table of noise says as much in each shape.
    """
    if space.meta.geometry is None:
        return float("inf")
    result = check(space.meta, fast=True)
    header, capacity = space.meta.header, space.geometry.l2_entries
    score: float = result.corruptions + result.check_errors + result.leaks / 4
    for code, (_, counted) in result.findings.by_code.items():
        if code.startswith(_ENTRY_CODES) and PROBLEMS[code].severity is Severity.CORRUPTION:
            score += counted * (_TABLE / capacity - 1)
    needed = space.geometry.l1_entries_for(header.size)
    if needed != header.l1_size:
        score += 0.5
    if header.l1_size < needed:
        score += 1e6
    return score + (1e6 if result.aborted else 0)


_TABLE: Final = 1024
"""Faults that a table full of them counts for."""
_CLOSE: Final = 1.05
"""Scores that differ by no more are equal."""


def _end_missed(space: Workspace) -> float:
    """How far from the file's end the last cluster is that counts as in use, as a share of the file: 0 to 1."""
    return min(abs(space.size - counted_end(space.meta)) / max(space.size, 1), 1.0)


# -- sizes -------------------------------------------------------------------------------------------------------------


def run_sizes(space: Workspace) -> None:
    """Virtual size against L1 table: the table is made to cover the disk where that loses nothing, else the other way."""
    header, geometry = space.meta.header, space.geometry
    needed = geometry.l1_entries_for(header.size)
    most = limits.MAX_L1_SIZE // 8
    if space.rows.has("HEADER-SIZE") or (needed > most and space.rows.has("L1-TABLE-TOO-SMALL")):
        fits = header.l1_table_offset + header.l1_size * 8 <= space.end and header.l1_size <= most
        entries = max(header.l1_size if fits else _entries_used(space, min(header.l1_size, most)), 1)
        found = disk_size(space.overlay, entries, entries)
        space.set_header(
            "size",
            found.size,
            code="HEADER-SIZE",
            title=f"set the disk size to {found.size} bytes, which the L1 table covers",
            tier=Tier.JUDGEMENT,
            places=WHOLE,
            guest=[(0, found.size)],
        )
        if found.note:
            space.note(found.note)
        size = found.size
        needed = geometry.l1_entries_for(size)
    header = space.meta.header
    if header.l1_size < needed <= most:
        _lengthen(space, needed)
    elif header.l1_size > most or (header.l1_size > needed and _collides(space)):
        keep = max(needed, _entries_used(space, min(header.l1_size, most)))
        space.set_header(
            "l1_size",
            keep,
            code="L1-TABLE-TOO-LARGE",
            title=f"set the L1 table to {keep} entries, what the disk needs",
            tier=Tier.JUDGEMENT,
            places=WHOLE,
        )


def _lengthen(space: Workspace, needed: int) -> None:
    """More L1 entries: in place when they lie in the table's own clusters, else in a copy at the end of the file."""
    header, cluster = space.meta.header, space.cluster
    room = -(-max(header.l1_size, 1) * 8 // cluster) * cluster // 8
    if header.l1_table_offset % cluster or header.l1_table_offset >= space.size:
        room = needed  # wherever it is: it is looked for with this length
    if needed <= room:
        space.set_header(
            "l1_size",
            needed,
            code="L1-TABLE-TOO-SMALL",
            title=f"set the L1 table to the {needed} entries that the disk needs",
            tier=Tier.JUDGEMENT,
            places=WHOLE,
        )
        return
    old = space.read(header.l1_table_offset, header.l1_size * 8)
    place = space.append(-(-needed * 8 // cluster))
    why = {"code": "L1-TABLE-TOO-SMALL", "tier": Tier.JUDGEMENT}
    space.put(place, old, title="copy the L1 table to where it can be longer", kind="l1", **why)  # type: ignore[arg-type]
    data = needed.to_bytes(4, "big") + place.to_bytes(8, "big")
    space.put(36, data, title=f"let the header name the new L1 table of {needed} entries", kind="header", **why)  # type: ignore[arg-type]


def _entries_used(space: Workspace, most: int) -> int:
    """L1 entries up to the last one that is not 0, within the table's first cluster."""
    most = min(most, space.cluster // 8)
    used = np.flatnonzero(space.words(space.meta.header.l1_table_offset, most))
    return int(used[-1]) + 1 if used.size else 0


def _collides(space: Workspace) -> bool:
    """The table, as long as it says it is, shares clusters with others."""
    from workbench.check.kinds import Owner

    ledger = space.ledger
    for claim in ledger.claims:
        if claim.owner is Owner.ACTIVE_L1:
            first, last = claim.offset >> ledger.cluster_bits, (claim.offset + claim.length - 1) >> ledger.cluster_bits
            return last >= ledger.clusters or bool((ledger.counts[first : last + 1] > 1).any())
    return False


RULES = (
    Rule(
        "header-identity",
        "Restore magic and version",
        codes("HEADER-MAGIC", "HEADER-VERSION"),
        Tier.JUDGEMENT,
        run_identity,
        needs_shape=False,
    ),
    Rule(
        "header-length",
        "Correct the header length",
        codes("HEADER-LENGTH", "HEADER-LENGTH-UNALIGNED"),
        Tier.JUDGEMENT,
        run_length,
        needs_shape=False,
    ),
    Rule(
        "header-shape",
        "Derive cluster size and widths",
        codes(
            "HEADER-CLUSTER-BITS", "HEADER-REFCOUNT-ORDER", "EXTENDED-L2-CLUSTER-SIZE", "L1-TABLE-TOO-SMALL",
            "L1-TABLE-UNALIGNED", "L1-TABLE-OFFSET", "REFTABLE-UNALIGNED", "REFTABLE-OFFSET", "REGION-BEYOND-EOF",
            "HEADER-CLUSTER-SIZE-DOUBTFUL",
        ),
        Tier.JUDGEMENT,
        run_shape,
        needs_shape=False,
    ),
)  # fmt: skip
SIZE_RULES = (
    Rule(
        "header-sizes",
        "Make disk size and L1 table agree",
        codes("HEADER-SIZE", "L1-TABLE-TOO-SMALL", "L1-TABLE-TOO-LARGE", "METADATA-OVERLAP", "REGION-BEYOND-EOF"),
        Tier.JUDGEMENT,
        run_sizes,
    ),
)
