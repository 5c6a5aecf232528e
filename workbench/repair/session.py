"""One guided repair, step by step, as the command line and the workbench both walk it.

Holds what was found, the choices made so far, and the newest plan; writing happens in `apply` and nowhere else.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from itertools import zip_longest
from pathlib import Path
from typing import Any, Final

from workbench.check import CheckResult
from workbench.check.companions import check_file
from workbench.check.problems import PROBLEMS, Severity, Tier
from workbench.engine.naming import dependents
from workbench.errors import ArgumentError
from workbench.repair import recovery, undo
from workbench.repair.apply import Applied, Change, OnProgress, apply, require_length
from workbench.repair.casefile import ByteEdit, Session
from workbench.repair.fixes import RULES, Alternative, Rule, rules_for
from workbench.repair.fixes.catalogue import IMPLEMENTED
from workbench.repair.plan import OnPhase, Plan, make_plan, verdict_of
from workbench.repair.policy import Mode, Policy
from workbench.storage.base import Storage
from workbench.storage.file import FileStorage

_ALL: Final = 1 << 62
"""Accepts any loss: only to plan again what a saved plan did."""


@dataclass(frozen=True, slots=True)
class Group:
    """Like findings that one decision covers. count: items found.  fixes: the rules that answer it, with alternatives.

    tier: the highest risk of what would be done; None when nothing can be done.  default: done unless refused.
    """

    code: str
    title: str
    severity: Severity
    count: int
    meaning: str
    guest_impact: str
    fixes: tuple[Rule, ...]
    tier: Tier | None
    default: bool

    @property
    def alternatives(self) -> tuple[tuple[str, Alternative], ...]:
        """(fix id, alternative) in order; the first of each fix is its default."""
        return tuple((rule.id, each) for rule in self.fixes for each in rule.alternatives)


def groups_of(result: CheckResult) -> tuple[Group, ...]:
    """The findings of a check as questions to decide, worst first."""
    found = []
    for code, (count, counted) in result.findings.by_code.items():
        problem = PROBLEMS[code]
        fixes = rules_for(code)
        order = (Tier.SAFE, Tier.JUDGEMENT, Tier.DESTRUCTIVE)
        tier = max((rule.tier for rule in fixes), key=order.index, default=None)
        default = any(not rule.on_request and rule.tier is not Tier.DESTRUCTIVE for rule in fixes)
        found.append(
            Group(
                code,
                problem.title,
                problem.severity,
                max(count, counted),
                problem.meaning,
                problem.guest_impact,
                fixes,
                tier,
                default,
            )
        )
    return tuple(sorted(found, key=lambda each: (each.severity.rank, each.code)))


class Guide:
    """A repair of one image. Make it, look at `groups`, set choices, `plan`, `apply`; `undo` takes it back.

    Opens the image read-only; `close` (or a with block) ends that. Safe to use from one worker thread at a time.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        case: str | os.PathLike[str] | None = None,
        storage: Storage | None = None,
    ) -> None:
        self.path = Path(path)
        self.case = case
        self._own = storage is None
        self.storage: Storage = storage if storage is not None else FileStorage.open(path)
        self.policy = Policy()
        self.found: CheckResult | None = None
        self.current: Plan | None = None

    def __enter__(self) -> Guide:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Give the image back."""
        self.current = None
        if self._own:
            self.storage.close()

    # -- choose

    def dependents(self) -> list[Path]:
        """qcow2 files beside the image that name it as their backing file: what a repair changes shows through in them."""
        return dependents(self.path)[0]

    def interrupted(self) -> Session | None:
        """A session that was cut off and must be ended first (`recover`)."""
        return recovery.interrupted(self.path, case=self.case)

    def look(self, *, cancel: Callable[[], bool] | None = None, found: CheckResult | None = None) -> tuple[Group, ...]:
        """Check the image (or take the check that is there already) and return what can be decided."""
        self.found = found if found is not None else check_file(self.storage, deep=True, cancel=cancel)
        return groups_of(self.found)

    def choose(
        self,
        *,
        mode: Mode | None = None,
        codes: frozenset[str] | None = None,
        choices: dict[str, str] | None = None,
        free_orphans: bool | None = None,
        destructive: bool | None = None,
        accept_loss: int | None = None,
    ) -> Policy:
        """Change the choices (those not given stay); the next `plan` follows them. ArgumentError for unknown ones."""
        for fix, alternative in (choices or {}).items():
            known = {rule.id: {each.id for each in rule.alternatives} for rule in RULES}
            if not fix.startswith("relink:") and alternative not in known.get(fix, set()):
                raise ArgumentError(f"fix {fix!r} has no alternative {alternative!r}", hint=_ways(fix, known))
        now = self.policy
        self.policy = replace(
            now,
            mode=now.mode if mode is None else mode,
            codes=now.codes if codes is None else codes,
            choices={**now.choices, **(choices or {})},
            free_orphans=now.free_orphans if free_orphans is None else free_orphans,
            destructive=now.destructive if destructive is None else destructive,
            accept_loss=now.accept_loss if accept_loss is None else accept_loss,
        )
        return self.policy

    # -- plan, apply, undo

    def plan(
        self, *, on_phase: OnPhase | None = None, cancel: Callable[[], bool] | None = None, in_place: bool = True
    ) -> Plan:
        """The plan for the choices made, with its simulated verdict and its proof.

        in_place: it is meant for the image itself, not for a copy: then StorageError when a block device is too small.
        Raises CheckCancelled.
        """
        self.current = None
        made = make_plan(self.storage, self.policy, before=self.found, on_phase=on_phase, cancel=cancel)
        if in_place:
            require_length(self.storage, made.sizes[1])
        self.current = made
        return made

    def apply(self, *, progress: OnProgress | None = None, change: Change | None = None) -> Applied:
        """Carry out the newest plan (or `change`, a saved plan or an edit by hand) and check again."""
        wanted = change if change is not None else self.current.change() if self.current else None
        if wanted is None:
            raise ArgumentError("there is no plan yet", path=str(self.path))
        if not wanted.accept_loss:
            wanted = replace(wanted, accept_loss=self.policy.accept_loss)
        done = apply(wanted, self.path, case=self.case, recheck=recheck(self.current), progress=progress)
        self.found = self.current = None
        return done

    def confirmed(self, change: Change) -> Change:
        """A saved plan, with what its steps declare: not by its own word, but where planning anew gives the same bytes."""
        try:
            policy = Policy.from_json(change.plan["policy"])
        except (KeyError, TypeError, ValueError):
            return change
        fresh = make_plan(self.storage, replace(policy, accept_loss=_ALL))
        same = fresh.sizes == (change.size_before, change.size_after) and _equal(fresh.edits(), change.edits())
        return replace(change, steps=fresh.steps) if same else change

    def history(self) -> list[Session]:
        """All sessions of this image, oldest first."""
        return undo.sessions(self.path, case=self.case)

    def undo(
        self, number: int | None = None, *, force: bool = False, progress: OnProgress | None = None
    ) -> undo.Undone:
        """Take the newest (or the given) session back; says what is then true of the image."""
        self.found = self.current = None
        return undo.undo(self.path, number, case=self.case, force=force, progress=progress)

    def recover(self, *, complete: bool = False, force: bool = False) -> recovery.Recovered | None:
        """End an interrupted session: roll back, or complete it."""
        self.found = self.current = None
        return recovery.recover(self.path, case=self.case, complete=complete, force=force, recheck=recheck(None))


def _ways(fix: str, known: dict[str, set[str]]) -> str:
    """What could have been meant by a choice: the ways of that fix, or the fixes that have several."""
    ways = known.get(fix)
    if ways:
        return f"its ways: {', '.join(sorted(ways))}"
    if ways is not None:
        return "there is one way only: it needs no choice"
    named = [f"{name}={way}" for name, way in IMPLEMENTED.get(fix, ()) if way]
    if named:
        return f"say {' or '.join(named)}"
    return f"fixes with several ways: {', '.join(sorted(name for name, each in known.items() if each))}"


def note_of_dependents(found: list[Path]) -> str:
    """That the image is the backing file of others, and what follows; empty for none."""
    if not found:
        return ""
    shown = ", ".join(each.name for each in found[:3]) + (f" and {len(found) - 3} more" if len(found) > 3 else "")
    return (
        f"is the backing file of {shown}: what a repair changes in the disk shows through there;"
        " shut down what uses them, or repair a copy"
    )


def _equal(one: Iterable[ByteEdit], other: Iterable[ByteEdit]) -> bool:
    return all(a == b for a, b in zip_longest(one, other))


def recheck(plan: Plan | None) -> Callable[[Storage], dict[str, Any]]:
    """What apply calls after writing: the verdict of a new check, as JSON values."""
    kept: Final = plan.after.orphans if plan is not None else None

    def run(storage: Storage) -> dict[str, Any]:
        return verdict_of(check_file(storage), kept).as_json()

    return run
