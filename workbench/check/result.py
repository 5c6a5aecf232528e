"""What a check returns: verdict, figures as qemu-img prints them, findings, causes, and the census itself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from workbench.check.census import Census, Claim
from workbench.check.findings import Findings
from workbench.check.problems import Severity
from workbench.check.tables import L2Set
from workbench.engine.metadata import Metadata
from workbench.errors import QwbError

if TYPE_CHECKING:
    from workbench.check.causes import Cause
    from workbench.check.triage import LeakRun, LostTable
    from workbench.engine.unreferenced import Unreferenced


COMPANION_CAUSES: Final = {
    "BACKING-CYCLE", "BACKING-FILE-MISSING", "BACKING-FILE-UNUSABLE", "DATA-FILE-MISSING", "DATA-FILE-UNUSABLE",
}  # fmt: skip
"""Causes that lie in files which the image names."""


class CheckCancelled(QwbError):
    """The caller's `cancel` said yes."""


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a check is. phase: one or two words.  done, total: bytes of tables read, over the whole check."""

    phase: str
    done: int
    total: int


ProgressSink = Callable[[Progress], None]
Cancel = Callable[[], bool]


@dataclass(frozen=True, slots=True)
class Stats:
    """qemu-img's figures. Clusters, and image_end_offset in bytes; file_size in bytes."""

    total_clusters: int = 0
    allocated_clusters: int = 0
    fragmented_clusters: int = 0
    compressed_clusters: int = 0
    image_end_offset: int = 0
    file_size: int = 0


@dataclass(frozen=True, slots=True)
class CheckResult:
    """Outcome of `check`.

    exit_code: 0 clean, 1 could not be checked (or check errors), 2 corruption, 3 leaks only; as `qemu-img check`.
    corruptions, leaks, check_errors: counted as qemu-img counts them.  aborted: why QEMU would give no result, or None.
    census: references and flags per host cluster; None when the header gives no geometry, or when the file was so large
    that it was counted in windows.  claims: where the metadata structures lie.  tables: every L2 table.
    unreferenced: what lies in clusters that nothing refers to; None when nobody had reason to look.
    refused: why QEMU would not open the image itself, or None.  companion: why a file that it names (backing file, data
    file) keeps QEMU from opening it, whatever the image itself is like, or None.
    """

    meta: Metadata
    exit_code: int
    corruptions: int
    leaks: int
    check_errors: int
    stats: Stats
    findings: Findings
    aborted: str | None
    census: Census | None
    claims: tuple[Claim, ...]
    tables: L2Set
    causes: tuple[Cause, ...] = ()
    orphans: tuple[LeakRun, ...] = ()
    lost_tables: tuple[LostTable, ...] = ()
    unreferenced: Unreferenced | None = None
    fast: bool = False
    seconds: dict[str, float] = field(default_factory=dict)
    refused: str | None = None
    companion: str | None = None

    @property
    def companion_title(self) -> str:
        """`companion` in a few words, with the file's name; empty without."""
        if self.companion is None:
            return ""
        title = next((each.title for each in self.causes if each.code in COMPANION_CAUSES), self.companion)
        return title[:1].lower() + title[1:]

    @property
    def clean(self) -> bool:
        return self.exit_code == 0

    @property
    def kept_leaks(self) -> int:
        """Leaked clusters that may be guest data which lost its place; no repair frees them unasked."""
        size = self.meta.geometry.cluster_size if self.meta.geometry else 1
        return sum(run.length for run in self.orphans if run.keep and run.counted) // size

    @property
    def unsafe_to_write(self) -> bool:
        """Any program that opens the image for writing would count its refcounts anew and free possible guest data."""
        return "OPEN-FREES-DATA" in self.findings.by_code

    def by_severity(self) -> dict[Severity, int]:
        """Items found per severity (counted by qemu-img or not)."""
        from workbench.check.problems import PROBLEMS

        out: dict[Severity, int] = dict.fromkeys(Severity, 0)
        for code, (items, _) in self.findings.by_code.items():
            out[PROBLEMS[code].severity] += items
        return out

    def as_json(self, filename: str, *, limit: int | None = 1000) -> dict[str, Any]:
        """Superset of `qemu-img check --output=json`: same keys, zero counts left out as there.

        limit: most findings to list (None: all); `findings-omitted` says how many more there are.
        """
        out: dict[str, Any] = {"filename": filename, "format": "qcow2", "check-errors": self.check_errors}
        for key, value in (
            ("image-end-offset", self.stats.image_end_offset),
            ("corruptions", self.corruptions),
            ("leaks", self.leaks),
            ("total-clusters", self.stats.total_clusters),
            ("allocated-clusters", self.stats.allocated_clusters),
            ("fragmented-clusters", self.stats.fragmented_clusters),
            ("compressed-clusters", self.stats.compressed_clusters),
        ):
            if value:
                out[key] = value
        if self.aborted is not None:
            out["aborted"] = self.aborted
        if self.unsafe_to_write:
            out["do-not-open-writable"] = True
        out["summary"] = {code: {"items": items, "counted": n} for code, (items, n) in self.findings.by_code.items()}
        out["causes"] = [each.as_json() for each in self.causes]
        out["lost-tables"] = [each.as_json() for each in self.lost_tables]
        out["orphans"] = [each.as_json() for each in self.orphans[:limit]]
        shown = len(self.findings) if limit is None else min(limit, len(self.findings))
        out["findings"] = [self.findings[index].as_json() for index in range(shown)]
        if shown < len(self.findings):
            out["findings-omitted"] = len(self.findings) - shown
        return out
