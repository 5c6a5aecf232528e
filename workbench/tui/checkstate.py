"""Where the check of an image stands. Light: what the check itself needs is imported by the worker that runs it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from workbench.engine.metadata import Metadata
    from workbench.render.findings import FindingRows
    from workbench.render.refcounts import RefcountRows
    from workbench.tui.background import Job
    from workbench.tui.checking import Checked


@dataclass(slots=True)
class CheckState:
    """Lives on the event loop. filter: of the findings, as typed.  rows: the findings that pass it."""

    meta: Metadata
    job: Job | None = None
    done: Checked | None = None
    error: str = ""
    filter: str = ""
    rows: FindingRows | None = None
    refcounts: RefcountRows | None = None
    only_wrong: bool = False

    @property
    def running(self) -> bool:
        return self.job is not None and not self.job.finished

    @property
    def note(self) -> str:
        """What to say where its result would be."""
        if self.error:
            return f"The check failed: {self.error}. c tries again."
        if self.job is not None and self.job.cancelled:
            return "The check was stopped: c starts it again."
        if self.running and self.job is not None:
            share = f", {self.job.done * 100 // self.job.total}%" if self.job.total else ""
            return f"The image is being checked{share} … Esc stops it."
        return "Not checked yet: c starts the check."
