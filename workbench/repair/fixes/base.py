"""What a fix is: a rule that looks at the workspace and stages what it mends, with its alternatives as data."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from workbench.check.problems import Tier
from workbench.repair.gate import Reach
from workbench.repair.workspace import Workspace


@dataclass(frozen=True, slots=True)
class Alternative:
    """One right answer among several. consequence: what the guest (or the backup) will then find."""

    id: str
    title: str
    consequence: str
    tier: Tier = Tier.JUDGEMENT


@dataclass(frozen=True, slots=True)
class Rule:
    """A fix. codes: the findings it answers.  run: stages its steps, for `Workspace.rows` (none: nothing to do).

    alternatives: the first one is the default, which loses nothing.  needs_shape: cannot run while the header gives no
    cluster size.  reads_tables: must wait until the header says for sure where tables are and how they read.
    on_request: runs only when one of its codes is named.  always: follows the other fixes, so it runs without rows too
    once there are steps.  reach: where it may write.
    """

    id: str
    title: str
    codes: frozenset[str]
    tier: Tier
    run: Callable[[Workspace], None]
    alternatives: tuple[Alternative, ...] = ()
    needs_shape: bool = True
    always: bool = False
    on_request: bool = False
    reads_tables: bool = False
    reach: Reach = Reach.ROWS

    @property
    def default(self) -> str:
        """ID of the default alternative; empty without alternatives."""
        return self.alternatives[0].id if self.alternatives else ""


def codes(*names: str) -> frozenset[str]:
    """The codes of a rule."""
    return frozenset(names)
