"""The plan: fixes run on an overlay until nothing changes any more, the result checked there, and all of it as data.

Nothing here writes to the image. A plan that would leave more corruption than it found is refused.
"""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Final

from workbench.check.companions import check_file
from workbench.check.problems import PROBLEMS, Severity, Tier
from workbench.check.result import CheckCancelled, CheckResult
from workbench.errors import ArgumentError, ImageError
from workbench.repair import fingerprint
from workbench.repair.apply import Change
from workbench.repair.casefile import ByteEdit, tool_version
from workbench.repair.edits import step_json
from workbench.repair.fixes import FINISH, RULES, Rule, rules_for
from workbench.repair.fixes.follow import distrust_bitmaps
from workbench.repair.fixes.refcounts import leaks_kept
from workbench.repair.gate import Gate, GateError, Rows
from workbench.repair.policy import Mode, Policy
from workbench.repair.preserve import PlanRefused, Proof, prove
from workbench.repair.withhold import Withheld, harmless_part
from workbench.repair.workspace import Step, Workspace
from workbench.storage.base import Storage
from workbench.storage.overlay import Overlay
from workbench.units import many

ROUNDS: Final = 12
FORMAT: Final = 1
_SHAPE_IN_DOUBT: Final = {
    "EXTENDED-L2-CLUSTER-SIZE",
    "HEADER-REFCOUNT-ORDER",
    "HEADER-SIZE",
    "L1-TABLE-UNALIGNED",
    "L1-TABLE-TOO-LARGE",
    "L1-TABLE-OFFSET",
    "L1-TABLE-TOO-SMALL",
}
"""Faults of the header under which L1 and L2 tables may be read wrongly."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a check says, in numbers.

    openable: QEMU would open the image itself.  orphans: leaks kept on purpose (clusters).  companion: which file that the
    image names keeps QEMU from opening it all the same, in a few words, or empty.
    """

    exit_code: int
    corruptions: int
    leaks: int
    check_errors: int
    openable: bool
    orphans: int = 0
    companion: str = ""

    @property
    def clean(self) -> bool:
        """Nothing left in the image itself, or nothing but orphans that are kept on purpose."""
        return self.openable and not self.corruptions and not self.check_errors and self.leaks <= self.orphans

    def as_json(self) -> dict[str, Any]:
        return {
            "exit-code": self.exit_code,
            "corruptions": self.corruptions,
            "leaks": self.leaks,
            "check-errors": self.check_errors,
            "openable": self.openable and not self.companion,
            "orphans-kept": self.orphans,
            **({"companion": self.companion} if self.companion else {}),
        }

    def __str__(self) -> str:
        if not self.openable:
            return "cannot be opened"
        if self.clean and not self.leaks:
            return f"clean in itself, but {self.companion}" if self.companion else "clean"
        parts = [f"{self.corruptions} corruptions"] if self.corruptions else []
        if self.check_errors:
            parts.append(f"{self.check_errors} check errors")
        if self.leaks:
            kept = f" ({self.orphans} of them kept: possible guest data)" if self.orphans else ""
            parts.append(f"{self.leaks} leaked clusters{kept}")
        return ", ".join(parts) + (f"; {self.companion}" if self.companion else "")


def verdict_of(result: CheckResult, kept: int | None = None) -> Verdict:
    """The numbers of a check result. kept: leaked clusters that a repair kept (by the result's own triage without)."""
    if kept is None:
        bits = result.meta.geometry.cluster_bits if result.meta.geometry else 0
        kept = sum(each.length >> bits for each in result.orphans if each.keep)
    return Verdict(
        result.exit_code,
        result.corruptions,
        result.leaks,
        result.check_errors,
        result.refused is None,
        min(kept, result.leaks),
        result.companion_title,
    )


@dataclass(frozen=True)
class Plan:
    """What would be done, and what the image would be. Valid until the image changes; holds an overlay on `base`.

    steps: every change with its reason, in order.  before, after: the image's check now and on the overlay.
    overlay: Storage of the repaired image, to look around in.  notes: what was seen and left alone, and why.
    """

    base: Storage
    policy: Policy
    steps: tuple[Step, ...]
    before: Verdict
    after: Verdict
    overlay: Overlay
    notes: tuple[str, ...]
    fingerprint: dict[str, Any]
    result_before: CheckResult
    result_after: CheckResult
    proof: Proof = field(default_factory=Proof)
    """What becomes of every byte that the plan touches."""
    withheld: Withheld | None = None
    """What was left out of the plan since it could not be proven to lose nothing."""

    @property
    def accepted(self) -> bool:
        """Nothing is lost, or the person agreed to at least as much."""
        return self.proof.harmless or 0 < self.proof.loss <= self.policy.accept_loss

    def require_accepted(self) -> None:
        """Raise PlanRefused for a loss that nobody agreed to."""
        if not self.accepted:
            raise PlanRefused(self.proof, path=self.base.path)

    @property
    def empty(self) -> bool:
        return not self.overlay.changed

    @property
    def tier(self) -> Tier:
        """Destructive when anything is given up or unproven, else the highest risk among the steps."""
        if not self.proof.harmless:
            return Tier.DESTRUCTIVE
        order = (Tier.SAFE, Tier.JUDGEMENT, Tier.DESTRUCTIVE)
        return max((step.tier for step in self.steps), key=order.index, default=Tier.SAFE)

    @property
    def sizes(self) -> tuple[int, int]:
        """Length of the file before and after, in bytes."""
        return self.overlay.size_change

    def edits(self) -> Iterator[ByteEdit]:
        """The byte edits, in file order, at most 1 MiB each."""
        for edit in self.overlay.iter_edits():
            yield ByteEdit(edit.offset, edit.old, edit.new)

    def groups(self) -> dict[str, list[Step]]:
        """Steps by problem code, in order of first appearance."""
        out: dict[str, list[Step]] = {}
        for step in self.steps:
            out.setdefault(step.code, []).append(step)
        return out

    @property
    def title(self) -> str:
        """One line for the history."""
        names = list(self.groups())
        shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
        return f"{many(len(self.steps), 'step')}: {shown}" if names else "nothing to do"

    def change(self) -> Change:
        """What `apply` carries out."""
        before, after = self.sizes
        return Change(
            self.title, self.edits, before, after, self.fingerprint, self.summary(), self.steps, self.policy.accept_loss
        )

    def summary(self, limit: int = 1000) -> dict[str, Any]:
        """JSON values: verdicts and steps (at most `limit`), without the bytes of the edits."""
        before, after = self.sizes
        out: dict[str, Any] = {
            "tool": tool_version(),
            "mode": self.policy.mode.value,
            "policy": self.policy.as_json(),
            "before": self.before.as_json(),
            "after": self.after.as_json(),
            "size-before": before,
            "size-after": after,
            "risk": self.tier.value,
            "steps": [step_json(step, self) for step in self.steps[:limit]],
            "notes": list(self.notes),
            **self.proof.as_json(),
        }
        if self.withheld is not None:
            out["withheld"] = {"fixes": list(self.withheld.titles), **self.withheld.proof.as_json()}
        if len(self.steps) > limit:
            out["steps-omitted"] = len(self.steps) - limit
        return out

    def as_json(self) -> dict[str, Any]:
        """The whole plan, bytes included: `read_change` makes it applicable again."""
        edits = [{"offset": each.offset, "old": _pack(each.old), "new": _pack(each.new)} for each in self.edits()]
        return {
            "format": FORMAT,
            "filename": self.base.path,
            **self.summary(),
            "fingerprint": self.fingerprint,
            "edits": edits,
        }


def _pack(data: bytes) -> str:
    return base64.b64encode(zlib.compress(data, 6)).decode("ascii")


def _unpack(text: str) -> bytes:
    stream = zlib.decompressobj()
    data = stream.decompress(base64.b64decode(text), 1 << 21)
    if not stream.eof:
        raise ValueError("an edit of more than 2 MiB")
    return data


def read_change(text: str) -> Change:
    """A plan printed by `qwb repair --dry-run --json`, ready to be applied. ArgumentError when it is no such plan."""
    try:
        found = json.loads(text)
        if found["format"] != FORMAT:
            raise ArgumentError(f"a plan of format {found['format']}, this version reads {FORMAT}")
        edits = [ByteEdit(each["offset"], _unpack(each["old"]), _unpack(each["new"])) for each in found["edits"]]
        summary = {key: value for key, value in found.items() if key not in ("edits", "fingerprint")}
        title = f"{many(len(found['steps']), 'step')} from a saved plan"
        before, after = found["size-before"], found["size-after"]
        return Change(title, lambda: iter(edits), before, after, found["fingerprint"], summary)
    except (KeyError, TypeError, ValueError, zlib.error) as error:
        raise ArgumentError(
            f"not a plan ({type(error).__name__}: {error})", hint="make one with --dry-run --json"
        ) from error


# -- making it ---------------------------------------------------------------------------------------------------------

OnPhase = Callable[[str], None]


def make_plan(
    storage: Storage,
    policy: Policy | None = None,
    *,
    before: CheckResult | None = None,
    on_phase: OnPhase | None = None,
    cancel: Callable[[], bool] | None = None,
) -> Plan:
    """Try the fixes that `policy` allows on an overlay, check the result, and prove what becomes of every byte.

    What cannot be proven to lose nothing is left out (`withheld`), unless the policy accepts its loss or nothing would
    be left: then the plan is whole, and `require_accepted` refuses it.

    before: the check of the image when there is one already.  on_phase: told what is being done, in a few words.
    Raises CheckCancelled when `cancel` says so.
    """
    chosen = policy or Policy()
    tell = on_phase or (lambda _: None)
    tell("checking the image")
    found = before if before is not None else check_file(storage, deep=True, cancel=cancel)

    def attempt(policy: Policy) -> Plan:
        plan = _attempt(storage, policy, found, tell, cancel)
        tell("proving that nothing is lost")
        return replace(plan, proof=prove(storage, plan.overlay, plan.steps))

    plan = attempt(chosen)
    if plan.accepted or chosen.accept_loss:
        return plan
    return harmless_part(attempt, chosen, plan) or plan


def _attempt(
    storage: Storage, chosen: Policy, found: CheckResult, tell: OnPhase, cancel: Callable[[], bool] | None
) -> Plan:
    """The plan without its proof."""
    print_ = fingerprint.take(storage)
    space = Workspace(storage, chosen)
    space.found = found
    foreign = space.meta.foreign
    if foreign is not None:
        space.note(f"this is {foreign.name}, not a qcow2 image: nothing in it is changed; {foreign.advice}")
        same = verdict_of(found)
        return Plan(storage, chosen, (), same, same, space.overlay, tuple(space.notes), print_, found, found)
    after = found
    for number in range(1, ROUNDS + 1):
        steps, waiting = len(space.steps), False
        for rule in _chosen(chosen):
            if cancel is not None and cancel():
                raise CheckCancelled("planning was cancelled; nothing was changed", path=storage.path)
            tell(f"trying fixes, round {number}: {rule.title}")
            if _run(space, rule, after) and not rule.reads_tables and not rule.always:
                waiting = True
                break  # what the tables say may be something else now: they wait for the next check
        if len(space.steps) == steps:
            break
        tell("checking the repaired image")
        after = check_file(space.overlay, deep=True, cancel=cancel, known=found)
        if not waiting and _is_settled(after):
            break
    if after.companion is not None:
        space.note(f"{after.companion}; a repair of this image does not change that")
    distrust_bitmaps(space)
    asked = chosen.mode is not Mode.CODES or bool(chosen.codes & FINISH.codes or space.steps)
    if (asked and _run(space, FINISH, after)) or (space.steps and space.steps[-1].fix == "bitmaps-follow"):
        tell("checking the repaired image")
        after = check_file(space.overlay, deep=True, cancel=cancel, known=found)
    kept, space.gate = _kept(space), None  # with its gate, a workspace and its counts would outlive this
    return Plan(
        storage, chosen, tuple(space.steps), verdict_of(found), verdict_of(after, kept), space.overlay, tuple(space.notes),
        print_, found, after,
    )  # fmt: skip


def _is_settled(result: CheckResult) -> bool:
    """Nothing left that another round of fixes could mend."""
    if result.refused is not None or result.corruptions or result.check_errors or result.lost_tables:
        return False
    for code in result.findings.by_code:
        worth = PROBLEMS[code].severity is not Severity.NOTE and code not in {"CLUSTER-LEAKED", *FINISH.codes}
        if worth and any(not rule.on_request for rule in rules_for(code)):
            return False
    return True


def _kept(space: Workspace) -> int:
    """Leaked clusters that keep their refcount on purpose in the image as it would be."""
    if space.meta.geometry is None or space.policy.free_orphans:
        return 0
    try:
        return leaks_kept(space)
    except ImageError:
        return 0


def _chosen(policy: Policy) -> Iterable[Rule]:
    for rule in RULES:
        named = policy.mode is Mode.CODES and bool(rule.codes & policy.codes)
        if rule.id in policy.skip or (rule.on_request and not named):
            continue
        if rule.tier is Tier.DESTRUCTIVE and not (policy.destructive or named):
            continue
        if policy.mode is Mode.LEAKS and rule.id not in ("refcounts", "copied"):
            continue
        if policy.mode is Mode.CODES and not (rule.codes & policy.codes or rule.always):
            continue
        yield rule


def _run(space: Workspace, rule: Rule, result: CheckResult) -> bool:
    """Let a fix work on the rows of `result` that it answers; True when it staged steps."""
    policy = space.policy
    follows = rule is FINISH or (rule.always and space.steps)
    asked = rule.codes if follows or policy.mode is not Mode.CODES else rule.codes & policy.codes
    rows = Rows(result.findings, asked)
    if not rows and not (rule.always and space.steps):
        return False
    if rule.needs_shape and space.meta.geometry is None:
        return False
    if rule.needs_shape and result.findings.rows("HEADER-CLUSTER-SIZE-DOUBTFUL").size:
        return False
    if rule.reads_tables and _SHAPE_IN_DOUBT & {fault.code for fault in space.meta.faults}:
        return False  # under a wrong shape, mending entries would damage them
    if rule.id == "copied" and policy.mode is Mode.LEAKS and space.notes:
        return False
    steps = len(space.steps)
    space.start(rule.id, rows, Gate(space, rows, rule.reach))
    try:
        rule.run(space)
    except (ImageError, ArgumentError, GateError) as error:
        space.roll_back()
        space.note(f"{rule.title}: {error.what}")
    return len(space.steps) != steps


def problem_severity(code: str) -> Severity:
    """Severity of a code, corruption for one that the catalogue does not know."""
    problem = PROBLEMS.get(code)
    return problem.severity if problem else Severity.CORRUPTION


def hand_edit(storage: Storage, offset: int, data: bytes, title: str) -> Change:
    """A change made by hand, for `apply`: journaled, fingerprinted and undoable like any repair."""
    old = storage.read(offset, len(data))
    size = storage.size()
    if not data or offset < 0 or offset > size:
        raise ArgumentError(
            f"cannot edit {len(data)} bytes at {offset:#x} of a file of {size} bytes", path=storage.path
        )
    edit = ByteEdit(offset, old, data)
    plan = {"mode": "by hand", "steps": [{"number": 1, "title": title, "offset": offset, "length": len(data)}]}
    return Change(title, lambda: [edit], size, max(size, offset + len(data)), fingerprint.take(storage), plan)


__all__ = ["Plan", "PlanRefused", "Verdict", "hand_edit", "make_plan", "read_change", "verdict_of"]
