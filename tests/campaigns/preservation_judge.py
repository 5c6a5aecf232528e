"""One trial of the preservation campaign: a damaged image, repaired and judged against the undamaged truth.

(a) no actionable row, no byte changed; an undamaged image never changes
(b) what was equal to the truth is equal after, in the active disk and every snapshot
(c) 500 guest writes by the real qemu-io take nothing from what was kept: clusters that nothing refers to but that are
    counted, truth that no view shows any more, and every snapshot
(d) undo gives the damaged file back, bit for bit
(e) in bytes equal to the truth never behind `qemu-img check -r all` on a copy
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from sample_images.qemu import Verdict, check
from tests.campaigns.preservation_bases import ACTIVE, IMAGE, Built, copy_sparse, data_ranges, inside, qemu_io
from tests.campaigns.preservation_damage import Damage
from tests.campaigns.preservation_views import (
    Seen,
    Truth,
    complete,
    lost_between,
    see,
    see_by_qemu,
    total,
)
from tests.campaigns.preservation_walk import Walk, unpack_counts, walk
from workbench.errors import QwbError
from workbench.repair.fixes import rules_for
from workbench.repair.plan import PlanRefused
from workbench.repair.policy import Mode
from workbench.repair.session import Guide
from workbench.repair.undo import undo
from workbench.storage.file import FileStorage
from workbench.storage.locks import LockMode, acquire

WRITES = 500
SMALL = 512 << 20
"""Image files of at most this many bytes are judged in every respect; larger ones by (a), (b), (d) and (e)."""
HUGE = 2 << 30
"""Files with more data than this are compared by sample: metadata, what was appended, and one chunk in 16."""
ROOT = Path(__file__).parents[2]


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a repair ended. how: applied, nothing, refused or error.  actionable: check named something that a fix answers.

    orphans: clusters kept on purpose.  declared: bytes of content that the plan itself said it frees.  words: the refusal
    or error.
    """

    how: str
    actionable: bool
    orphans: int = 0
    declared: int = 0
    words: str = ""


class Repairer(Protocol):
    """Who repairs `IMAGE` in the working directory, and takes it back."""

    def repair(self, mode: Mode) -> Outcome: ...

    def undo(self) -> None: ...


class Library:
    """The workbench, in process, as its command line does it."""

    def repair(self, mode: Mode) -> Outcome:
        actionable = False
        with (
            FileStorage.open(IMAGE) as storage,
            acquire(storage, LockMode.READ) as lock,
            Guide(IMAGE, storage=storage) as guide,
        ):
            guide.choose(mode=mode)
            try:
                guide.look()
                assert guide.found is not None
                actionable = any(rules_for(code) for code in guide.found.findings.by_code)
                plan = guide.plan()
                if plan.empty:
                    return Outcome("nothing", actionable, plan.after.orphans)
                orphans = plan.after.orphans
                freed = plan.summary(1).get("frees-content") or {}
                lock.release()
                guide.apply()
                return Outcome("applied", actionable, orphans, int(freed.get("bytes", 0)))
            except PlanRefused as error:
                return Outcome("refused", actionable, words=str(error))
            except QwbError as error:
                return Outcome("error", actionable, words=str(error))

    def undo(self) -> None:
        undo(IMAGE)


class CommandLine(Library):
    """The workbench's command line, in a process of its own."""

    def repair(self, mode: Mode) -> Outcome:
        with Guide(IMAGE) as guide:
            guide.look()
            assert guide.found is not None
            actionable = any(rules_for(code) for code in guide.found.findings.by_code)
        before = Path(IMAGE).stat().st_mtime_ns
        done = self._run("repair", IMAGE, f"--{mode.value}", "--yes", "--json")
        if "Traceback" in done.stderr:
            raise RuntimeError(done.stderr[-600:])
        if Path(IMAGE).stat().st_mtime_ns == before:
            how = "refused" if done.returncode == 1 and done.stderr.strip() else "nothing"
            return Outcome(how, actionable, words=done.stderr.strip()[-200:])
        said = json.loads(done.stdout)
        return Outcome("applied", actionable, said["orphans-kept"], said["frees-content"]["bytes"])

    def undo(self) -> None:
        done = self._run("undo", IMAGE, "--yes")
        if done.returncode:
            raise RuntimeError(f"undo: {done.stderr.strip()[-300:]}")

    @staticmethod
    def _run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "workbench", *arguments], capture_output=True, text=True, errors="replace",
            stdin=subprocess.DEVNULL, env={**os.environ, "PYTHONPATH": str(ROOT)}, check=False,
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Violation:
    """A rule broken. rule: a to e, or x for what must never happen at all (traceback, hang).  kind: short name."""

    rule: str
    kind: str
    words: str


@dataclass(slots=True)
class Judged:
    """One trial. before, after, by_qemu: bytes equal to the truth over all views (by_qemu -1: not tried).

    status: healthy, refused, unchanged, repaired, kept (repaired, orphans left counted), readable (all truth, not clean),
    partly, changed.  uncounted: clusters with truth that were not counted before, without a table that names them, and
    are not counted after.
    """

    status: str = ""
    outcome: Outcome | None = None
    before: int = 0
    after: int = 0
    truth: int = 0
    by_qemu: int = -1
    code: int = -1
    uncounted: int = 0
    writes: bool = False
    declared: int = 0
    """Clusters with truth that were counted and went free, in a plan that said so (content without any evidence)."""
    violations: list[Violation] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)

    def violate(self, rule: str, kind: str, words: str) -> None:
        self.violations.append(Violation(rule, kind, words))


class Hang(BaseException):
    """Longer than any repair may take; no handler but the judge's may catch it."""


@contextmanager
def deadline(seconds: float) -> Iterator[None]:
    """Raise Hang in this (main) thread after a time."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise Hang(f"no end after {seconds:.0f} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def same_file(one: Path, other: Path, regions: list[tuple[str, int, int]] | None = None) -> bool:
    """Bit for bit, length included. regions: (what, offset, length) that count in files too large to compare as a whole."""
    with open(one, "rb") as a, open(other, "rb") as b:
        size = os.fstat(a.fileno()).st_size
        if size != os.fstat(b.fileno()).st_size:
            return False
        if regions is not None and os.fstat(a.fileno()).st_blocks * 512 > HUGE:
            sample = [(at, at + (1 << 20)) for at in range(0, size, 16 << 20)]
            chosen = [*sample, *((offset, offset + length) for _, offset, length in regions), (size - (8 << 20), size)]
            return all(
                os.pread(a.fileno(), e - s, s) == os.pread(b.fileno(), e - s, s) for s, e in chosen if 0 <= s < e
            )
        for fd, file in ((a.fileno(), b), (b.fileno(), a)):
            for start, end in data_ranges(fd, size):
                for at in range(start, end, 4 << 20):
                    length = min(4 << 20, end - at)
                    if os.pread(fd, length, at) != os.pread(file.fileno(), length, at):
                        return False
    return True


class Case:
    """A damaged image in a folder of its own, with everything that judging it needs."""

    def __init__(self, built: Built, pristine: Walk, truths: dict[str, Truth], folder: Path) -> None:
        self.built = built
        self.pristine = pristine
        self.truths = truths
        self.folder = folder
        self.work = self.open_copy(built.image, "work")

    def open_copy(self, image: Path, name: str, companions: Path | None = None) -> Path:
        """A folder `name` with a copy of `image` and its companions: the data file copied, a backing file linked."""
        folder = self.folder / name
        folder.mkdir()
        for each in self.built.companions:
            if each.name.startswith("below"):
                (folder / each.name).symlink_to(each)
            else:
                copy_sparse((companions or self.built.folder) / each.name, folder / each.name)
        copy_sparse(image, folder / IMAGE)
        return folder


def judge(case: Case, done: Damage, mode: Mode, rng: random.Random, repairer: Repairer, *, independent: bool) -> Judged:
    """Repair the damaged image of `case` and judge it. independent: compare our reading with qemu-img's as well."""
    out = Judged(truth=sum(each.length for each in case.truths.values()))
    clock = _Clock(out.seconds)
    damaged = case.folder / "damaged.qcow2"
    copy_sparse(case.work / IMAGE, damaged)
    try:
        with deadline(900 if damaged.stat().st_blocks * 512 > HUGE else 180):
            _judge(case, done, mode, rng, repairer, independent, out, clock, damaged)
    except Hang as error:
        out.violate("x", "hang", f"{error}: {traceback.format_exc(limit=-3).strip().splitlines()[-2]}")
        out.status = out.status or "hang"
    return out


class _Clock:
    def __init__(self, into: dict[str, float]) -> None:
        self.into, self.last = into, time.perf_counter()

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.into[name] = self.into.get(name, 0.0) + now - self.last
        self.last = now


def _judge(
    case: Case, done: Damage, mode: Mode, rng: random.Random, repairer: Repairer, independent: bool, out: Judged,
    clock: _Clock, damaged: Path,
) -> None:  # fmt: skip
    image = case.work / IMAGE
    before = see(case.work, case.built, case.truths, tolerant=True)
    out.before = total(before)
    clock.lap("read before")
    with inside(case.work):
        try:
            out.outcome = repairer.repair(mode)
        except Exception:  # noqa: BLE001 - every traceback is a violation, and the campaign goes on
            out.violate("x", "traceback", _short_traceback())
            out.outcome = Outcome("error", True)
    clock.lap("repair")
    regions = list(case.pristine.regions())
    changed = not same_file(image, damaged, regions)
    out.after = out.before
    if not changed:
        _judge_unchanged(case, done, out, before, mode)
        clock.lap("judge")
        return
    if not done.kinds:
        out.violate("a", "undamaged image changed", "an undamaged image was changed")
    if not out.outcome.actionable:
        out.violate("a", "changed without a row", "no finding that a fix answers, and yet bytes changed")
    if out.outcome.how != "applied":
        out.violate("x", "refused but changed", f"{out.outcome.how}: {out.outcome.words[:160]}")
    strict = see(case.work, case.built, case.truths, tolerant=False)
    after = {
        view: seen if seen.how or before[view].how == "strict" else see_again
        for view, (seen, see_again) in _with_tolerant(case, strict).items()
    }
    out.after = total(strict)
    clock.lap("read after")
    _judge_views(case, out, before, after, damaged)
    verdict = _check(case, case.work)
    out.code = verdict.code
    clock.lap("judge")
    if independent:
        _judge_reader(case, out, strict)
        clock.lap("qemu reads")
    if image.stat().st_blocks * 512 <= SMALL:
        _judge_kept(case, out, strict, damaged, rng, mode)
        clock.lap("guest writes")
    out.status = _status(out, verdict, complete(strict))
    with inside(case.work):
        try:
            repairer.undo()
        except Exception:  # noqa: BLE001 - a failing undo is a violation
            out.violate("d", "undo failed", _short_traceback())
    if not same_file(image, damaged, regions):
        out.violate("d", "undo is not exact", "the file after undo is not the damaged file")
    clock.lap("undo")
    if mode is Mode.ALL and not complete(strict):
        _judge_behind(case, out, damaged)
        clock.lap("qemu-img -r all")


def _with_tolerant(case: Case, strict: dict[str, Seen]) -> dict[str, tuple[Seen, Seen]]:
    if all(each.how for each in strict.values()):
        return {view: (seen, seen) for view, seen in strict.items()}
    again = see(case.work, case.built, case.truths, tolerant=True)
    return {view: (strict[view], again[view]) for view in strict}


def _short_traceback() -> str:
    lines = traceback.format_exc(limit=-3).strip().splitlines()
    return " | ".join(each.strip() for each in lines[1:])[-500:]


def _judge_unchanged(case: Case, done: Damage, out: Judged, before: dict[str, Seen], mode: Mode) -> None:
    assert out.outcome is not None
    strict = {
        view: seen if seen.how == "strict" else Seen("", 0, seen.length, seen.unit) for view, seen in before.items()
    }
    out.after = total(strict)
    if out.outcome.how == "applied":
        out.violate("x", "applied nothing", "a session was written that changes nothing")
    verdict = _check(case, case.work)
    out.code = verdict.code
    if complete(strict) and verdict.code == 0:
        out.status = "healthy"
    elif out.outcome.how in ("refused", "error"):
        out.status = "refused"
    else:
        out.status = "unchanged"
    if mode is Mode.ALL and out.status != "healthy" and not complete(strict):
        _judge_behind(case, out, case.work / IMAGE)


def _check(case: Case, folder: Path) -> Verdict:
    try:
        return check(folder / IMAGE, secret=case.built.base.passphrase, timeout=60)
    except subprocess.TimeoutExpired:
        return Verdict(124, None, "no answer in time")


def _status(out: Judged, verdict: Verdict, whole: bool) -> str:
    assert out.outcome is not None
    if whole and verdict.code == 0:
        return "repaired"
    if whole and verdict.code == 3 and verdict.leaks <= out.outcome.orphans:
        return "kept"
    if whole:
        return "readable"
    return "partly" if out.after > out.before else "changed"


# -- (b) ---------------------------------------------------------------------------------------------------------------


def _judge_views(case: Case, out: Judged, before: dict[str, Seen], after: dict[str, Seen], damaged: Path) -> None:
    found = {}
    for view, truth in case.truths.items():
        lost = lost_between(before[view], after[view], truth)
        if lost is not None:
            found[view] = lost
    if not found:
        return
    agreed = _confirmed(case, damaged)
    for view, lost in found.items():
        what = "active" if view == ACTIVE else "snapshot"
        seen = after[view]
        how = f"{what} unreadable" if not seen.how else f"{what} bytes" if lost.filled else f"{what} zeros"
        mood = "" if before[view].how == "strict" else " (did not open)"
        words = (
            f"{view}: lost {lost}; read {before[view].how} before, {seen.how or seen.why[:100]} after; {agreed[view]}"
        )
        out.violate("b", how + mood, words)


def _confirmed(case: Case, damaged: Path) -> dict[str, str]:
    """What qemu-img, reading the image before and after, says of the same loss."""
    folder = case.open_copy(damaged, "damaged-for-qemu")
    before = see_by_qemu(folder, case.built, case.truths, salvage=True)
    after = see_by_qemu(case.work, case.built, case.truths, salvage=True)
    shutil.rmtree(folder)
    out = {}
    for view, truth in case.truths.items():
        if not before[view].how:
            out[view] = "qemu-img could not read it before"
        elif not after[view].how:
            out[view] = f"qemu-img cannot read it any more: {after[view].why}"
        else:
            lost = lost_between(before[view], after[view], truth)
            out[view] = f"to qemu-img lost {lost}" if lost else "to qemu-img nothing is lost"
    return out


def _judge_reader(case: Case, out: Judged, ours: dict[str, Seen]) -> None:
    """The judge reads with our engine: the real qemu-img must see the same."""
    theirs = see_by_qemu(case.work, case.built, case.truths)
    for view, seen in theirs.items():
        if seen.how and not ours[view].how:
            out.violate("x", "only qemu reads it", f"{view}: {ours[view].why[:160]}")
        elif seen.how and not ours[view].errors and seen.equal != ours[view].equal:
            out.violate(
                "x", "readers disagree", f"{view}: {ours[view].equal} bytes equal to us, {seen.equal} to qemu-img"
            )


# -- (c) ---------------------------------------------------------------------------------------------------------------


def _clusters(path: Path, bits: int, count: int) -> NDArray[np.uint64]:
    """The file as rows of 8-byte words, one row for each of `count` clusters."""
    data = np.zeros(count << bits, dtype=np.uint8)
    with open(path, "rb") as file:
        size = min(os.fstat(file.fileno()).st_size, count << bits)
        for start, end in data_ranges(file.fileno(), size):
            os.preadv(file.fileno(), [data[start:end].data], start)
    return data.view(np.uint64).reshape(count, -1)


@dataclass(frozen=True, slots=True)
class _Needed:
    """Host clusters whose truth the damaged file still holds, unchanged, and some view that should does not show.

    clusters: those that no other view shows.  counted: which had a refcount before; mapped: an intact lost table names
    them.  shared: clusters that another view shows, counted twice or more before (rightly, in an intact block), so that
    the guest could not write to them in place.
    """

    clusters: NDArray[np.int64]
    counted: NDArray[np.bool_]
    mapped: NDArray[np.bool_]
    shared: NDArray[np.int64]


def _judge_kept(
    case: Case, out: Judged, strict: dict[str, Seen], damaged: Path, rng: random.Random, mode: Mode
) -> None:
    assert out.outcome is not None
    image = case.work / IMAGE
    after = walk(image)
    bits = case.pristine.bits
    if after.refused or after.bits != bits:
        if not walk(damaged).refused:
            out.violate("c", "shape changed", f"clusters of {after.cluster} bytes now: {after.refused}")
        return
    count = max(case.pristine.clusters, after.clusters)
    old, bad, new = (_clusters(path, bits, count) for path in (case.built.image, damaged, image))
    referenced, counts = (np.zeros(count, bool), np.zeros(count, np.uint64))
    referenced[: after.clusters], counts[: after.clusters] = after.referenced(), after.refcounts()
    held = referenced | (counts > 0)
    intact = (old == bad).all(axis=1) & old.any(axis=1)
    needed = _needed(case, strict, damaged, intact, count)
    same = (new == bad).all(axis=1)
    linked = np.zeros(count, bool)  # an L2 table in use may be mended; what it then shows is judged by the views
    linked[after.all_tables() >> bits] = True
    lost = needed.clusters[~same[needed.clusters] & ~linked[needed.clusters]]
    if len(lost):
        out.violate("c", "truth overwritten by the repair", _of(lost, bits))
    free = ~held[needed.clusters]
    freed, unmarked = needed.clusters[free & needed.counted], needed.clusters[free & ~needed.counted & needed.mapped]
    content = (
        bad[freed].reshape(len(freed), bad.shape[1] // 64, 64).any(axis=2)
    )  # declared are 512-byte units that are not all zero
    if len(freed) and int(content.sum()) << 9 <= out.outcome.declared:
        out.declared = len(freed)
    elif len(freed):
        out.violate("c", "counted truth freed", _of(freed, bits))
    if len(unmarked):
        out.violate("c", "mapped truth left uncounted", _of(unmarked, bits))
    out.uncounted = int((free & ~needed.counted & ~needed.mapped).sum())
    orphans = np.flatnonzero(~referenced & (counts > 0) & new.any(axis=1))
    alone = needed.clusters[(counts[needed.clusters] > 0) & ~referenced[needed.clusters]]
    kept = {"kept cluster": np.union1d(orphans, alone), "shared truth of an unread view": needed.shared}
    _judge_writes(case, out, strict, new, kept, rng, damaged, mode)


def _needed(case: Case, strict: dict[str, Seen], damaged: Path, intact: NDArray[np.bool_], count: int) -> _Needed:
    bits = case.pristine.bits
    wanted, mapped = np.zeros(count, bool), np.zeros(count, bool)
    shown = np.zeros(count, bool)
    for view, rows in case.pristine.rows.items():
        if not len(rows) or view not in strict:
            continue
        seen = strict[view]
        start = rows.guest << bits
        if seen.complete:
            hidden = np.zeros(len(rows), bool)
        else:
            hidden = np.array([not seen.all_equal(at, at + (1 << bits)) for at in start.tolist()], dtype=bool)
        tables = rows.table >> bits
        wanted[np.unique(tables[hidden])] = True
        if case.pristine.external:
            continue
        first, last = rows.start >> bits, (rows.end - 1) >> bits
        for step in range(int((last - first).max()) + 1):
            here = first + step
            inside_ = (here <= last) & (here < count) & rows.data
            wanted[here[inside_ & hidden]] = True
            shown[here[inside_ & ~hidden]] = True
            mapped[here[inside_ & hidden & intact[tables]]] = True
    clusters = np.flatnonzero(wanted & intact & ~shown)
    counts = _counted(case.pristine, damaged, count)
    shared = np.flatnonzero(wanted & intact & shown & (counts > 1) & _trusted(case.pristine, damaged, intact, counts))
    return _Needed(clusters, counts[clusters] > 0, mapped[clusters], shared)


def _trusted(pristine: Walk, damaged: Path, intact: NDArray[np.bool_], counts: NDArray[np.uint64]) -> NDArray[np.bool_]:
    """Host clusters whose refcount is in a block as it was, in an image that is not marked dirty or corrupt."""
    out = np.zeros(len(counts), bool)
    found = walk(damaged)
    if found.refused or (found.version >= 3 and found.incompatible & 3):
        return out
    true = np.zeros(len(counts), np.uint64)
    true[: pristine.clusters] = pristine.refcounts()
    for index, value in enumerate(pristine.blocks.tolist()):
        if value and index < len(found.blocks) and int(found.blocks[index]) == value and intact[value >> pristine.bits]:
            out[index * pristine.block_entries : (index + 1) * pristine.block_entries] = True
    same: NDArray[np.bool_] = np.equal(true, counts)
    return out & same


def _counted(pristine: Walk, damaged: Path, count: int) -> NDArray[np.uint64]:
    """Refcounts in the damaged file: the higher of what it says itself, and what stands where the blocks were."""
    out = np.zeros(count, np.uint64)
    found = walk(damaged)
    if not found.refused and found.bits == pristine.bits and found.refcount_bits == pristine.refcount_bits:
        counts = found.refcounts()[:count]
        out[: len(counts)] = counts
    with open(damaged, "rb") as file:
        for index, value in enumerate(pristine.blocks.tolist()):
            first = index * pristine.block_entries
            if value and first < count:
                counts = unpack_counts(os.pread(file.fileno(), pristine.cluster, value), pristine.refcount_bits)
                part = counts[: count - first]
                out[first : first + len(part)] = np.maximum(out[first : first + len(part)], part)
    return out


def _of(clusters: NDArray[np.int64], bits: int) -> str:
    return f"{len(clusters)} host clusters ({len(clusters) << bits >> 10} KiB), first at {int(clusters[0]) << bits:#x}"


def _judge_writes(
    case: Case, out: Judged, strict: dict[str, Seen], new: NDArray[np.uint64], kept: dict[str, NDArray[np.int64]],
    rng: random.Random, damaged: Path, mode: Mode,
) -> None:  # fmt: skip
    """Let the guest write; what it takes although it was kept is a violation (with --leaks, where other damage may stay,
    only what the same writes would not have taken before the repair)."""
    size = min(strict[ACTIVE].size or case.built.base.size, case.built.base.size)
    commands, ranges = writes(rng, size, WRITES)
    lost = _lost_to_writes(case, case.work / IMAGE, case.work, commands, ranges, strict, new, kept)
    if lost is None:
        return
    out.writes = True
    if not lost:
        return
    before = _seen_damaged(case, damaged)
    control = _lost_to_writes(case, damaged, case.work, commands, ranges, before, new, kept) or {}
    for kind, words in lost.items():
        if kind not in control:
            out.violate("c", f"{kind} lost to the guest's writes", words)
        elif mode is Mode.ALL:
            out.violate("c", f"{kind} lost to the guest's writes (unrepaired: too)", words)


def _seen_damaged(case: Case, damaged: Path) -> dict[str, Seen]:
    folder = case.open_copy(damaged, "damaged-to-read")
    seen = see(folder, case.built, case.truths, tolerant=False)
    shutil.rmtree(folder)
    return seen


def _lost_to_writes(
    case: Case, image: Path, companions: Path, commands: list[str], ranges: list[tuple[int, int]], before: dict[str, Seen],
    new: NDArray[np.uint64], kept: dict[str, NDArray[np.int64]],
) -> dict[str, str] | None:  # fmt: skip
    """What writing to a copy of `image` takes, by kind; None when qemu-io cannot open it."""
    folder = case.open_copy(image, "written", companions)
    try:
        qemu_io(case.built.base, commands, folder / IMAGE, timeout=60)
        bits, out = case.pristine.bits, {}
        written = _clusters(folder / IMAGE, bits, len(new))
        for kind, clusters in kept.items():
            gone = clusters[(written[clusters] != new[clusters]).any(axis=1)]
            if len(gone):
                out[kind] = _of(gone, bits)
        seen = see(folder, case.built, case.truths, tolerant=False)
        for view, truth in case.truths.items():
            lost = lost_between(before[view], seen[view], truth, except_for=ranges if view == ACTIVE else [])
            if lost is not None:
                out["active disk" if view == ACTIVE else "snapshot"] = f"{view}: {lost} {seen[view].why[:100]}"
        return out
    except (RuntimeError, subprocess.TimeoutExpired):
        return None
    finally:
        shutil.rmtree(folder)


def writes(rng: random.Random, size: int, count: int) -> tuple[list[str], list[tuple[int, int]]]:
    """qemu-io commands for `count` writes to random places, and the guest ranges they touch."""
    commands, ranges = [], []
    for _ in range(count if size >= 512 else 0):
        length = min(rng.choice((512, 4096, 4096, 16 << 10, 64 << 10)), size // 512 * 512)
        at = rng.randrange((size - length) // 512 + 1) * 512
        commands.append(f"write -q -P {rng.randrange(1, 256)} {at} {length}")
        ranges.append((at, at + length))
    return commands, ranges


# -- (e) ---------------------------------------------------------------------------------------------------------------


def _judge_behind(case: Case, out: Judged, damaged: Path) -> None:
    huge = damaged.stat().st_blocks * 512 > HUGE  # then the copy that was undone serves: it is not needed any more
    folder = case.work if huge else case.open_copy(damaged, "theirs")
    try:
        check(folder / IMAGE, secret=case.built.base.passphrase, repair="all", timeout=60)
    except subprocess.TimeoutExpired:
        return
    theirs = see(folder, case.built, case.truths, tolerant=False)
    out.by_qemu = total(theirs)
    if out.by_qemu > out.after:
        kind = (
            "behind, refused"
            if out.status == "refused"
            else "behind, nothing done"
            if out.status == "unchanged"
            else "behind"
        )
        out.violate(
            "e", kind, f"{out.after} bytes are the truth after our repair, {out.by_qemu} after qemu-img check -r all"
        )
