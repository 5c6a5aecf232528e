"""Header fields that say what the rest means: magic, version, lengths, cluster size, refcount width, entry width.

Where a field makes no sense its value is derived: every possible one is tried on an overlay, and the check says which
of them fits what is in the file.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from formats.qcow2 import limits
from formats.qcow2.extensions import EXTENSION_NAMES, parse_extensions
from formats.qcow2.header import INCOMPATIBLE, MAGIC, V2_LENGTH, V3_LENGTH
from workbench.check.problems import Tier
from workbench.check.run import check
from workbench.repair.fixes.base import Rule, codes
from workbench.repair.probe import l1_score
from workbench.repair.workspace import Workspace

_BAD_SHARE: Final = 4
"""Another shape is looked for when a quarter of the clusters, or more, is called corrupt."""


def run_identity(space: Workspace) -> None:
    """Magic and version, where the rest of the header is a header."""
    header, head = space.meta.header, space.meta.head
    if len(head) < V3_LENGTH or not any(head[20:64]):
        return
    looks = header.cluster_bits <= 30 and header.l1_size and header.refcount_table_offset
    if not space.meta.is_qcow2 and looks and header.version in (2, 3):
        space.set_header("magic", MAGIC, code="HEADER-MAGIC", title="restore the magic number", tier=Tier.JUDGEMENT)
    if not space.meta.is_qcow2:
        return
    version = space.meta.header.version
    if version not in (2, 3):
        value = 3 if _v3_fields(head) else 2
        space.set_header(
            "version", value, code="HEADER-VERSION", title=f"set the version to {value}", tier=Tier.JUDGEMENT
        )
    elif version == 2 and _v3_fields(head) and _has_zero_flags(space):
        space.set_header(
            "version",
            3,
            code="L2-ZERO-FLAG-V2",
            title="set the version to 3: header and entries are",
            tier=Tier.JUDGEMENT,
            guest=[(0, header.size)],
        )


def _v3_fields(head: bytes) -> bool:
    """The bytes behind the version 2 header are those of version 3."""
    length, order = int.from_bytes(head[100:104], "big"), int.from_bytes(head[96:100], "big")
    incompatible = int.from_bytes(head[72:80], "big")
    return length in range(V3_LENGTH, 512, 8) and order <= limits.MAX_REFCOUNT_ORDER and not incompatible >> 5


def _has_zero_flags(space: Workspace) -> bool:
    return "L2-ZERO-FLAG-V2" in check(space.meta, fast=True).findings.by_code


def run_length(space: Workspace) -> None:
    """A header length that cannot be: the one behind which the extensions can be read."""
    header = space.meta.header
    if header.version != 3 or (
        V3_LENGTH <= header.header_length <= header.cluster_size and not header.header_length % 8
    ):
        return
    end = space.meta.extension_end
    best = max((V3_LENGTH + 8, V3_LENGTH, V3_LENGTH + 24), key=lambda length: _readable(space.meta.head, length, end))
    code = "HEADER-LENGTH-UNALIGNED" if header.header_length % 8 else "HEADER-LENGTH"
    space.set_header("header_length", best, code=code, title=f"set the header length to {best}", tier=Tier.JUDGEMENT)


def _readable(head: bytes, start: int, end: int) -> int:
    area = parse_extensions(head, start, end)
    known = sum(each.type in EXTENSION_NAMES for each in area.extensions)
    return known * 4 + (area.ended and area.overrun is None)


# -- the shape ---------------------------------------------------------------------------------------------------------


def run_shape(space: Workspace) -> None:
    """Cluster size, refcount width and entry width: kept unless another value explains the file far better."""
    header = space.meta.header
    if not space.meta.is_qcow2 or header.version not in (2, 3) or space.size < V2_LENGTH:
        return
    for _ in range(3):  # one field's doubt may hide behind another's
        steps = len(space.steps)
        _mend_shape(space, _doubts(space))
        if len(space.steps) == steps:
            return


def _mend_shape(space: Workspace, doubts: set[str]) -> None:
    if not doubts:
        return
    header = space.meta.header
    now = _score(space)
    hopeless = space.meta.geometry is None or header.refcount_order > limits.MAX_REFCOUNT_ORDER
    best, choice = now, None
    for name, value in _candidates(space):
        if name not in doubts:
            continue
        trial = space.trial()
        trial.set_header(name, value, code="-", title="-")
        if trial.meta.geometry is None:
            continue
        score = _score(trial)
        if score < best:
            best, choice = score, (name, value)
    if choice is not None and (hopeless or best * _BAD_SHARE < now):
        code = {"cluster_bits": "HEADER-CLUSTER-BITS", "refcount_order": "HEADER-REFCOUNT-ORDER"}.get(
            choice[0], "EXTENDED-L2-CLUSTER-SIZE"
        )
        what = choice[0].replace("_", " ")
        title = f"set {what} to {choice[1]:#x}: it explains the file best"
        space.set_header(*choice, code=code, title=title, tier=Tier.JUDGEMENT, guest=[(0, header.size)])
    elif header.refcount_order > limits.MAX_REFCOUNT_ORDER:
        space.set_header(
            "refcount_order",
            4,
            code="HEADER-REFCOUNT-ORDER",
            title="set the refcount width to 16 bits",
            tier=Tier.JUDGEMENT,
        )


def _doubts(space: Workspace) -> set[str]:
    """Header fields that there is reason to doubt. Refcounts can be rebuilt; so the mapping speaks for the shape."""
    header = space.meta.header
    if header.refcount_order > limits.MAX_REFCOUNT_ORDER:
        return {"refcount_order"}
    if space.meta.geometry is None:
        return {"cluster_bits"}
    found = set()
    wrong_codes = _codes(space)
    strong, wrong = (0, 1)
    if header.l1_table_offset % space.cluster == 0 and 0 < header.l1_table_offset < space.size:
        strong, wrong = l1_score(space, header.l1_table_offset, min(header.l1_size, limits.MAX_L1_SIZE // 8))
    if wrong > strong:
        found.add("incompatible_features")
        if (
            space.geometry.l1_entries_for(header.size) != header.l1_size
            or {"L1-TABLE-UNALIGNED", "REFTABLE-UNALIGNED"} <= wrong_codes
        ):
            found.add("cluster_bits")
    if "EXTENDED-L2-CLUSTER-SIZE" in wrong_codes or (not strong and space.meta.l1.any()):
        found.add("incompatible_features")
    sound = not {"REFTABLE-UNALIGNED", "REFTABLE-TOO-LARGE", "REFTABLE-MISSING", "REFTABLE-OFFSET"} & wrong_codes
    if sound and header.version == 3 and not wrong and _refcount_trouble(space) >= _limit(space):
        found.add("refcount_order")
    return found


def _refcount_trouble(space: Workspace) -> int:
    by_code = check(space.meta, fast=True).findings.by_code
    names = ("REFCOUNT-TOO-LOW", "REFCOUNT-ZERO", "REFCOUNT-TOO-HIGH", "CLUSTER-LEAKED")
    return sum(by_code[name][0] for name in names if name in by_code)


def _candidates(space: Workspace) -> Iterable[tuple[str, int]]:
    header = space.meta.header
    order_broken = header.refcount_order > limits.MAX_REFCOUNT_ORDER
    if not order_broken:
        for bits in range(limits.MIN_CLUSTER_BITS, limits.MAX_CLUSTER_BITS + 1):
            if (
                bits != header.cluster_bits
                and header.l1_table_offset % (1 << bits) == 0
                and header.refcount_table_offset % (1 << bits) == 0
            ):
                yield "cluster_bits", bits
    if header.version == 3 and space.meta.geometry is not None:
        for order in (4, 3, 5, 6, 2, 1, 0):  # the usual one wins a tie
            if order != header.refcount_order:
                yield "refcount_order", order
        yield "incompatible_features", header.incompatible_features ^ INCOMPATIBLE["extended_l2"].mask


def _score(space: Workspace) -> float:
    """How bad the file looks in this shape; 0 is clean."""
    if space.meta.geometry is None:
        return float("inf")
    result = check(space.meta, fast=True)
    header = space.meta.header
    score: float = result.corruptions + result.check_errors + result.leaks / 4
    if header.refcount_order > limits.MAX_REFCOUNT_ORDER:
        score += 1e9
    needed = space.geometry.l1_entries_for(header.size)
    if needed != header.l1_size:
        score += 0.5
    if header.l1_size < needed:
        score += 1e6
    return score + (1e6 if result.aborted else 0)


def _limit(space: Workspace) -> float:
    """Scores below this do not make us doubt the shape."""
    return (
        max(8.0, min(space.size >> space.geometry.cluster_bits, 1 << 20) / _BAD_SHARE) if space.meta.geometry else 0.0
    )


def _codes(space: Workspace) -> set[str]:
    return {fault.code for fault in space.meta.faults}


# -- sizes -------------------------------------------------------------------------------------------------------------


def run_sizes(space: Workspace) -> None:
    """Virtual size against L1 table: the table is made to cover the disk where that loses nothing, else the other way."""
    header, geometry = space.meta.header, space.geometry
    needed = geometry.l1_entries_for(header.size)
    most = limits.MAX_L1_SIZE // 8
    emptied = not header.size and 0 < header.l1_size <= most and _entries_used(space, header.l1_size)
    if needed > most or header.size > 1 << 62 or emptied:
        entries = _entries_used(space, min(header.l1_size, most))
        size = max(entries, 1) * geometry.l2_coverage
        space.set_header(
            "size",
            size,
            code="HEADER-SIZE",
            title=f"set the disk size to what the L1 table covers ({size} bytes)",
            tier=Tier.JUDGEMENT,
        )
        needed = geometry.l1_entries_for(size)
    header = space.meta.header
    if header.l1_size < needed:
        _lengthen(space, needed)
    elif header.l1_size > most or (header.l1_size > needed and _collides(space)):
        keep = max(needed, _entries_used(space, min(header.l1_size, most)))
        space.set_header(
            "l1_size",
            keep,
            code="L1-TABLE-TOO-LARGE",
            title=f"set the L1 table to {keep} entries, what the disk needs",
            tier=Tier.JUDGEMENT,
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
    import numpy as np

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
        codes("HEADER-CLUSTER-BITS", "HEADER-REFCOUNT-ORDER", "EXTENDED-L2-CLUSTER-SIZE"),
        Tier.JUDGEMENT,
        run_shape,
        needs_shape=False,
    ),
)
SIZE_RULES = (
    Rule(
        "header-sizes",
        "Make disk size and L1 table agree",
        codes("HEADER-SIZE", "L1-TABLE-TOO-SMALL", "L1-TABLE-TOO-LARGE"),
        Tier.JUDGEMENT,
        run_sizes,
    ),
)
