"""One repair in the workbench: what was decided, the plan, and the work that its steps do in a thread. No drawing here."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from workbench.check import CheckResult
from workbench.check.companions import check_file
from workbench.check.problems import Severity, Tier
from workbench.errors import LockedError, StorageError
from workbench.render.hostmap import HostMap
from workbench.render.plan import Cost, Left, cost_of, left_over
from workbench.render.text import printable
from workbench.repair import edits, fingerprint
from workbench.repair.apply import Applied, Change, Progress
from workbench.repair.copying import repaired_copy
from workbench.repair.fixes import RULES, Rule
from workbench.repair.orphans import export_orphans
from workbench.repair.plan import Plan, hand_edit, verdict_of
from workbench.repair.policy import Mode, Policy
from workbench.repair.preserve import prove
from workbench.repair.session import Group, Guide
from workbench.repair.workspace import SHOWN, Step
from workbench.storage.base import Storage
from workbench.storage.locks import LockMode, LockState, probe
from workbench.storage.overlay import Overlay
from workbench.tui.background import Job
from workbench.tui.widgets.choices import Decision, Way

ORPHANS: Final = "orphans"
"""The fix name under which keeping or freeing possible guest data is chosen."""
KEEP, FREE = "keep", "free"
_LOOK: Final = 1 << 23
_ORDER = (Tier.SAFE, Tier.JUDGEMENT, Tier.DESTRUCTIVE)


@dataclass(frozen=True, slots=True)
class Edit:
    """A change asked for by hand. name: of the field or entry.  kind: as Step.kind.  fields: (name, before, after)."""

    offset: int
    data: bytes
    name: str
    kind: str
    fields: tuple[tuple[str, str, str], ...]
    guest: tuple[tuple[int, int], ...] = ()


@dataclass(slots=True)
class Flow:
    """A repair of one image, from the choices to the written file. The methods marked `job` belong in a worker."""

    path: str
    found: CheckResult | None = None
    """A check that is there already."""
    edit: Edit | None = None
    """What a person changed by hand; then there is nothing to choose."""
    guide: Guide | None = None
    decisions: list[Decision] = field(default_factory=list)
    plan: Plan | None = None
    cost: Cost | None = None
    left: list[Left] = field(default_factory=list)
    heads: tuple[bytes, bytes] = (b"", b"")
    worlds: tuple[HostMap, HostMap] | None = None
    first_change: int = 0
    """First cluster that the host maps show differently."""
    applied: Applied | None = None
    dependents: list[Path] = field(default_factory=list)
    """Images beside this one that name it as their backing file."""
    only: str = ""
    """Code of the finding that the repair was asked for; empty: all."""
    _busy: threading.Lock = field(default_factory=threading.Lock)

    # In a worker

    def look(self, job: Job) -> None:
        """Open the image, check it unless that was done, and prepare the choices. Raises LockedError."""
        with self._busy:
            require_free(self.path)
            if self.guide is None:
                self.guide = Guide(self.path)
            job.step(0, 0, "checking the image")
            groups = self.guide.look(cancel=lambda: job.cancelled, found=self.found)
            assert self.guide.found is not None
            self.decisions = decisions_of(groups, self.guide.found, self.only)

    def make_plan(self, job: Job) -> None:
        """Run the chosen fixes on an overlay and check what comes out. Raises PlanRefused."""
        with self._busy:
            require_free(self.path)
            if self.guide is None:
                self.guide = Guide(self.path)
            self.forget_plan()
            if self.edit is not None:
                self.plan = self.guide.current = hand_plan(self.guide.storage, self.edit, self.found, job)
            else:
                self.choose()
                made = self.guide.plan(on_phase=lambda text: job.step(0, 0, text), cancel=lambda: job.cancelled)
                self.plan = self.guide.current = made
            self.dependents = self.guide.dependents()
            job.step(0, 0, "measuring the changes")
            self.cost, self.left, self.heads = cost_of(self.plan), left_over(self.plan), edits.heads(self.plan)

    def choose(self) -> None:
        """Tell the guide what was decided."""
        assert self.guide is not None
        choices = {fix: way for each in self.decisions for fix, way in each.chosen.items() if each.on}
        free = choices.pop(ORPHANS, KEEP) == FREE
        fixable = [each for each in self.decisions if each.fixable]
        chosen = frozenset(each.code for each in fixable if each.on)
        everything = all(each.on for each in fixable if not each.request)
        extra = any(each.on for each in fixable if each.request)
        if everything and extra:  # what comes up only while repairing belongs to everything as well
            chosen |= {
                code
                for rule in RULES
                if not rule.on_request and rule.tier is not Tier.DESTRUCTIVE
                for code in rule.codes
            }
        self.guide.policy = Policy()
        self.guide.choose(
            mode=Mode.ALL if everything and not extra else Mode.CODES,
            codes=frozenset() if everything and not extra else chosen,
            choices=choices,
            free_orphans=free,
        )

    def maps(self, job: Job) -> tuple[HostMap, HostMap] | None:
        """Host maps before and after; None when the header gives no clusters."""
        plan = self.plan
        if plan is None or plan.result_before.meta.geometry is None or plan.result_after.meta.geometry is None:
            return None
        with self._busy:
            made = HostMap(plan.result_before), HostMap(plan.result_after)
            for each in made:
                each.summarise(lambda done, total: job.step(done, total, "map"))
        self.worlds, self.first_change = made, first_difference(*made)
        return made

    def fields(self, step: Step) -> list[tuple[str, str, str]]:
        """(name, before, after) of what a step changes, decoded."""
        if self.edit is not None:
            return list(self.edit.fields)
        assert self.plan is not None
        return edits.describe(step, self.plan.result_after.meta.geometry, self.heads)

    def write(self, tell: Callable[[Progress], None]) -> Applied:
        """Write the plan into the image."""
        with self._busy:
            require_free(self.path)
            assert self.guide is not None and self.plan is not None
            self.guide.choose(accept_loss=self.plan.proof.loss if self.drops else 0)
            self.applied = self.guide.apply(progress=tell, change=self.change())
        return self.applied

    def change(self) -> Change | None:
        """The change to carry out when it was made by hand; None: the guide's plan."""
        if self.edit is None or self.guide is None or self.plan is None:
            return None
        change = hand_edit(self.guide.storage, self.edit.offset, self.edit.data, f"by hand: {self.edit.name}")
        return Change(
            change.title,
            change.edits,
            change.size_before,
            change.size_after,
            self.plan.fingerprint,
            self.plan.summary() | change.plan,
        )

    def copy(self, target: str) -> Path:
        """Write a repaired copy; the image stays as it is."""
        with self._busy:
            assert self.plan is not None
            return repaired_copy(self.plan, os.path.expanduser(target))

    def copy_orphans(self, folder: str) -> Path:
        """Write what may be lost guest data into a new folder; the image stays as it is."""
        with self._busy:
            assert self.guide is not None and self.guide.found is not None
            return export_orphans(self.guide.storage, self.guide.found, os.path.expanduser(folder))

    # On the loop

    @property
    def orphans(self) -> int:
        """Leaked runs that may be guest data."""
        found = self.guide.found if self.guide is not None else None
        return sum(each.keep for each in found.orphans) if found is not None else 0

    @property
    def drops(self) -> bool:
        """Whether the plan drops something: the person must type a word."""
        plan = self.plan
        return plan is not None and (plan.tier is Tier.DESTRUCTIVE or self.worse)

    @property
    def worse(self) -> bool:
        """Whether the image would be worse than it is; only edits by hand may do that."""
        if self.plan is None:
            return False
        before, after = self.plan.before, self.plan.after
        wrong = after.corruptions + after.check_errors > before.corruptions + before.check_errors
        return (before.openable and not after.openable) or wrong or after.leaks > before.leaks

    @property
    def word(self) -> str:
        """What to type before something is dropped."""
        return "destroy"

    def forget_plan(self) -> None:
        """Drop the plan and what was made from it."""
        self.plan = self.cost = self.worlds = None
        self.left = []
        if self.guide is not None:
            self.guide.current = None

    def close(self) -> None:
        """Give the image back."""
        if self.guide is not None:
            self.guide.close()
            self.guide = None
        self.plan = self.worlds = None


# Decisions -----------------------------------------------------------------------------------------------------------


def decisions_of(groups: tuple[Group, ...], found: CheckResult, only: str = "") -> list[Decision]:
    """The groups as questions, those that can be repaired first. only: the code that is switched on, all when empty."""
    kept = sum(each.length for each in found.orphans if each.keep)
    out = []
    for group in groups:
        if group.severity is Severity.NOTE and group.code != only and (group.default or not group.fixes):
            continue
        out.append(_decision(group, found, kept, only))
    if only and not any(each.on for each in out):
        for each in out:
            each.on = each.fixable and not each.request
    return sorted(out, key=lambda each: (not each.fixable, each.request))


def _decision(group: Group, found: CheckResult, kept: int, only: str) -> Decision:
    """relink is offered only where there is a lost table or data that may belong to one."""
    fixes = [
        rule
        for rule in group.fixes
        if rule.id != "relink" or group.code != "CLUSTER-LEAKED" or kept or found.lost_tables
    ]
    tier = max((rule.tier for rule in fixes), key=_ORDER.index, default=None)
    ways = [way for rule in fixes if len(rule.alternatives) > 1 for way in ways_of(rule, found)]
    if group.code == "CLUSTER-LEAKED" and kept:
        ways += _orphan_ways()
    chosen = {way.fix: way.id for way in ways if way.default}
    on = (group.code == only) if only else group.default
    request = not group.default
    codes = found.findings.columns["code"]
    names = found.findings.codes
    causes = tuple(
        f"{printable(cause.title)}. {printable(cause.text)}"
        for cause in found.causes[:50]
        if len(cause.rows) and group.code in {names[code] for code in set(codes[list(cause.rows[:1000])].tolist())}
    )
    does = tuple(rule.title[:1].lower() + rule.title[1:] for rule in fixes)
    return Decision(
        group.code, group.title, group.severity, group.count, tier, group.meaning, group.guest_impact, does,
        on and tier is not None, tuple(ways), chosen, causes[:3], request,
    )  # fmt: skip


def ways_of(rule: Rule, found: CheckResult) -> list[Way]:
    """The alternatives of a fix with its default marked."""
    default = rule.default
    header = found.meta.header
    if rule.id in ("entries", "foreign-tables") and header.backing_file_offset and header.version >= 3:
        default = "zero"  # old data of the backing file must not pass for current data
    return [
        Way(rule.id, each.id, each.title, each.consequence, each.tier, each.id == default) for each in rule.alternatives
    ]


def _orphan_ways() -> list[Way]:
    return [
        Way(
            ORPHANS,
            KEEP,
            "Keep clusters that may be guest data",
            "they stay where they are and only cost space; they can be looked at and copied out later",
            Tier.SAFE,
            True,
        ),
        Way(
            ORPHANS,
            FREE,
            "Free them all the same",
            "the guest's next writes overwrite them: if they were data, it is gone",
            Tier.DESTRUCTIVE,
            False,
        ),
    ]


def first_difference(before: HostMap, after: HostMap) -> int:
    """The first cluster of another kind after than before; looks at the first few million."""
    shared = min(before.clusters, after.clusters)
    for start in range(0, min(shared, _LOOK), 1 << 20):
        size = min(1 << 20, shared - start)
        other = (before.kinds_of(start, size) != after.kinds_of(start, size)).nonzero()[0]
        if other.size:
            return start + int(other[0])
    return shared if after.clusters > shared else 0


# By hand -------------------------------------------------------------------------------------------------------------


def hand_plan(storage: Storage, edit: Edit, before: CheckResult | None, job: Job) -> Plan:
    """An edit by hand as a plan, tried on an overlay and checked there like any other; it may make things worse."""
    job.step(0, 0, "checking the image")
    found = before if before is not None else check_file(storage, cancel=lambda: job.cancelled)
    mark = fingerprint.take(storage)
    overlay = Overlay(storage)
    old = storage.read(edit.offset, len(edit.data))
    overlay.write(edit.offset, edit.data)
    job.step(0, 0, "checking the image as it would be")
    after = check_file(overlay, cancel=lambda: job.cancelled)
    step = Step(
        1, "BY-HAND", "by-hand", f"set {edit.name} by hand", Tier.JUDGEMENT, edit.offset, len(edit.data),
        old[:SHOWN], edit.data[:SHOWN], edit.kind, edit.guest,
    )  # fmt: skip
    steps = (step,) if old != edit.data else ()
    job.step(0, 0, "proving what it changes")
    proof = prove(storage, overlay, steps)
    return Plan(storage, Policy(), steps, verdict_of(found), verdict_of(after), overlay, (), mark, found, after, proof)


# Who has it ----------------------------------------------------------------------------------------------------------


def require_free(path: str) -> None:
    """Raise LockedError, naming who, when somebody else has the image open so that it must not be written."""
    state: LockState = probe(path)
    if state.allows(LockMode.WRITE):
        return
    who = holders(path)
    what = (
        f"{' and '.join(who)} ha{'s' if len(who) == 1 else 've'} this image open"
        if who
        else "another program has this image open"
    )
    raise LockedError(
        what, held=(str(state),), path=path, hint="shut down the machine or the tool first, then try again"
    )


def holders(path: str) -> list[str]:
    """Other processes with the file open, as `qemu-system-x86 (process 123)`; only those that this user may look at."""
    try:
        wanted = os.stat(path)
    except OSError as error:
        raise StorageError(f"cannot be looked at: {error.strerror}", path=path) from error
    found = []
    for number in (
        sorted((each for each in os.listdir("/proc") if each.isdigit()), key=int) if os.path.isdir("/proc") else []
    ):
        if int(number) != os.getpid() and _has_open(number, wanted):
            found.append(f"{_name(number)} (process {number})")
    return found[:4]


def _has_open(number: str, wanted: os.stat_result) -> bool:
    folder = f"/proc/{number}/fd"
    try:
        for each in os.listdir(folder):
            here = os.stat(f"{folder}/{each}")
            if (here.st_dev, here.st_ino) == (wanted.st_dev, wanted.st_ino):
                return True
    except OSError:  # not ours to look at, or gone in between
        return False
    return False


def _name(number: str) -> str:
    try:
        return Path(f"/proc/{number}/comm").read_text(encoding="utf-8", errors="replace").strip() or "a program"
    except OSError:
        return "a program"
