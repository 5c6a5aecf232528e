"""Check: every problem of an image, counted as qemu-img counts, grouped by cause, leaks judged.

    from workbench.check import check
    result = check(load_metadata(storage))            # never writes, never raises on content

``check(meta, *, fast=False, progress=None, cancel=None, window=…, threads=1) -> CheckResult`` (run.py)
    progress(Progress(phase, done, total)) in bytes; cancel() -> bool, then CheckCancelled is raised.

``CheckResult`` (result.py)
    exit_code 0 clean / 1 not checkable / 2 corruption / 3 leaks; corruptions, leaks, check_errors as qemu-img; aborted: why
    QEMU would refuse (the rest is filled in all the same, as far as the image can be read); stats: Stats;
    findings: Findings; census: Census | None (None without geometry or past one window); claims: tuple[Claim];
    tables: L2Set; causes: tuple[Cause]; orphans: tuple[LeakRun]; lost_tables: tuple[LostTable]; as_json(filename).

``Findings`` (findings.py): sequence of rows, made lazily; `len`, `[i]`, slices, iteration, `columns` (numpy structured array,
    dtype ROW, most severe first), `codes`, `rows(*codes)` (row numbers), `of(*codes)`, `by_code` -> {code: (items, counted)}.
``Finding``: code, offset, length (host bytes concerned), count (items in the row), counted (what qemu-img counts; 0 =
    qemu-img does not see it), table, index (table's host offset and first entry), guest, guest_length, value (raw entry or
    stored refcount), other (references), snapshot (-1 active), numbers, .problem, .severity, .message, .as_json().

``problems.PROBLEMS: dict[code, Problem]``; Problem(code, severity, title, template, meaning, arises, guest_impact, spec,
    fixes=(Fix(id, tier, title), …)); Severity ERROR/CORRUPTION/LEAK/WARNING/NOTE (.rank, 0 worst); Tier SAFE/JUDGEMENT/
    DESTRUCTIVE. All fix ids: fixes.py.

``Census`` (census.py), host clusters [first, end): counts (uint8, saturated), flags (uint8, bits of kinds.py: METADATA, DATA,
    PACKED, INACTIVE, STORED_ONE, STORED, UNREADABLE, CROSSED), references(start, n) exact, references_at(clusters).
    A leaked cluster: flags & STORED and counts == 0. Stored refcounts: passes_refcounts.StoredRefcounts(meta, geometry)
    .range(start, n) / .at(clusters) -> (values, unreadable).
``kinds.Owner``: HEADER, ACTIVE_L1, … (.title); ``Claim(owner, offset, length, index, snapshot)``: metadata regions.
``L2Set`` (tables.py): columns offset, active, inactive (references), snapshot, index (first L1 entry): every L2 table once.

``owners.find_owners(meta, clusters) -> list[Reference(cluster, owner, table, index, entry, snapshot, guest)]``: who references
    these host clusters, exactly, in one pass. overlaps.intervals(...): every metadata structure as host cluster ranges.
``triage``: LeakRun(offset, length, verdict, confidence, reason, content, guest) for every run of leaked clusters; Verdict WASTE or
    POSSIBLE_DATA; `.keep`: a repair must not free it unless told to; guest: where it fits in the active disk, or None.
    LostTable(offset, entries, leaked, fits, confidence, evidence): an L2 table that no L1 entry refers to; fits: L1 indices,
    best first (different lost tables never share the first one).
``causes``: Cause(code, title, text, confidence, evidence, rows, guest, host); rows: numbers of its findings (a finding has at
    most one cause); guest, host: ranges (offset, length).
``companions.check_file(storage, …)``: check plus the files that the image names (backing chain, data file), as `qwb check` does.
"""

from workbench.check.result import CheckCancelled, CheckResult, Progress, Stats
from workbench.check.run import check

__all__ = ["CheckCancelled", "CheckResult", "Progress", "Stats", "check"]
