"""Campaign: no repair loses data. Real file systems in images of all features, damaged, repaired, judged by the truth.

    python -m tests.campaigns.preservation --images 3000 --seed 1
    python -m tests.campaigns.preservation --only 1:274            one image again, with everything said about it
    python -m tests.campaigns.preservation --images 500 --sizes 64M --jobs 2 --keep-cache DIR --json FILE

What is held (rules a to e) is said in `preservation_judge`; base images in `preservation_bases`, damage in
`preservation_damage`. Exit code 1 when a rule was broken.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import sys
import tempfile
import time
import traceback
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from tests.campaigns.preservation_bases import BASES, IMAGE, Base, Built, build
from tests.campaigns.preservation_damage import KINDS, Damage, damage
from tests.campaigns.preservation_judge import (
    Case,
    CommandLine,
    Judged,
    Library,
    Repairer,
    Violation,
    judge,
)
from tests.campaigns.preservation_views import Truth, see
from tests.campaigns.preservation_walk import Walk, walk
from workbench.repair.policy import Mode

SHARES = {"64M": 0.92, "1G": 0.06, "40G": 0.02}
"""How often each size group is taken."""
DAMAGES = (0.07, 0.53, 0.25, 0.15)
"""How often an image gets none, one, two or three damages."""
LEAKS_SHARE = 0.15
EVERY_QEMU, EVERY_CLI = 10, 40
_ROOM = 4 << 30


@dataclass(frozen=True, slots=True)
class Trial:
    """What one number of a seed means, and how it was judged."""

    seed: int
    number: int
    base: str
    group: str
    mode: str
    kinds: tuple[str, ...]
    words: str
    certain: bool
    judged: Judged
    seconds: float
    among: str
    """The options that choose the base images: without them the number means another image."""

    @property
    def repro(self) -> str:
        return f"preservation.py {self.among}--only {self.seed}:{self.number}"

    @property
    def told(self) -> bool:
        """All of the truth is there, and QEMU finds nothing wrong but clusters without an owner that stay counted."""
        return self.judged.status in ("repaired", "healthy", "kept")


@dataclass(slots=True)
class Shelf:
    """Base images that are open: built when first used, kept for the process."""

    root: Path
    only: Sequence[str]
    opened: dict[str, tuple[Built, Walk, dict[str, Truth]]]

    @property
    def among(self) -> str:
        """The options that stand for `only`."""
        if len(self.only) == len(BASES):
            return ""
        groups = {BASES[name].group for name in self.only}
        if all(each.name in self.only for each in BASES.values() if each.group in groups):
            return f"--sizes {','.join(sorted(groups))} "
        return f"--bases {','.join(self.only)} "

    def take(self, base: Base) -> tuple[Built, Walk, dict[str, Truth]]:
        if base.name not in self.opened:
            built = build(base, self.root)
            truths = {view: Truth(built.truth(view), length) for view, length in built.views.items()}
            if any(each.sampled for each in truths.values()):
                see(built.folder, built, truths, tolerant=False)  # remembers where everything lies
            self.opened[base.name] = (built, walk(built.image), truths)
        return self.opened[base.name]

    def choose(self, rng: random.Random) -> Base:
        """A base, by the shares of the size groups and the weights in them."""
        bases = [BASES[name] for name in self.only]
        groups = sorted({each.group for each in bases})
        group = rng.choices(groups, [SHARES[each] for each in groups])[0]
        chosen = [each for each in bases if each.group == group]
        return rng.choices(chosen, [each.weight for each in chosen])[0]


def run_trial(shelf: Shelf, seed: int, number: int, scratch: Path, repairer: Repairer | None = None) -> Trial:
    """Make, damage, repair and judge one image; everything follows from (seed, number)."""
    rng = random.Random(f"{seed}:{number}")
    base = shelf.choose(rng)
    built, pristine, truths = shelf.take(base)
    mode = Mode.LEAKS if rng.random() < LEAKS_SHARE else Mode.ALL
    count = rng.choices(range(4), DAMAGES)[0]
    started = time.perf_counter()
    size = built.image.stat().st_blocks * 512
    place = built.folder.parent if size > 1 << 30 else scratch
    done, judged = Damage((), "undamaged", False), Judged(status="no room")
    if shutil.disk_usage(place).free > 3 * size:
        folder = Path(tempfile.mkdtemp(prefix="preservation-", dir=place))
        try:
            case = Case(built, pristine, truths, folder)
            if count:
                done = damage(case.work / IMAGE, pristine, rng, count)
            chosen = repairer or (CommandLine() if number % EVERY_CLI == 7 else Library())
            judged = judge(case, done, mode, rng, chosen, independent=number % EVERY_QEMU == 0)
        except Exception:  # noqa: BLE001 - a campaign reports every traceback and goes on
            judged.violations.append(Violation("x", "traceback in the judge", traceback.format_exc(limit=-4)[-700:]))
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    seconds = time.perf_counter() - started
    return Trial(
        seed,
        number,
        base.name,
        base.group,
        mode.value,
        done.kinds,
        done.words,
        done.certain,
        judged,
        seconds,
        shelf.among,
    )


# -- many of them ------------------------------------------------------------------------------------------------------

_shelf: Shelf | None = None


def _in_worker(root: Path, only: Sequence[str], scratch: Path, seed: int, number: int) -> Trial:
    global _shelf  # noqa: PLW0603 - one shelf for each worker process
    if _shelf is None:
        _shelf = Shelf(root, only, {})
    return run_trial(_shelf, seed, number, scratch)


def run_all(
    root: Path, only: Sequence[str], scratch: Path, seed: int, numbers: Iterable[int], jobs: int
) -> Iterator[Trial]:
    """Trials as they end."""
    work = partial(_in_worker, root, only, scratch, seed)
    if jobs == 1:
        yield from map(work, numbers)
        return
    with ProcessPoolExecutor(jobs) as pool:
        waiting = iter(numbers)
        batch = [number for _, number in zip(range(64 * jobs), waiting, strict=False)]
        while batch:
            yield from pool.map(work, batch)
            batch = [number for _, number in zip(range(64 * jobs), waiting, strict=False)]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the campaign; exit code 1 when a rule was broken."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--images", type=int, default=3000)
    parser.add_argument("--first", type=int, default=0, help="number of the first image")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--sizes", default="64M,1G,40G", help="size groups, with commas between")
    parser.add_argument("--bases", default="", help="only these base images, with commas between")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--time", type=float, default=0, help="stop after so many seconds")
    parser.add_argument("--keep-cache", type=Path, help="folder for the base images; kept, and used again")
    parser.add_argument("--work", type=Path, help="folder for the copies (in memory by default)")
    parser.add_argument("--json", type=Path, help="write figures and every trial that broke a rule here")
    parser.add_argument("--only", metavar="SEED:NUMBER", help="this one image, everything said about it")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="preservation-bases-") as own:
        root = options.keep_cache or Path(own)
        root.mkdir(parents=True, exist_ok=True)
        only = choose_bases(options.sizes.split(","), [each for each in options.bases.split(",") if each])
        with tempfile.TemporaryDirectory(prefix="preservation-", dir=options.work or _scratch()) as scratch:
            if options.only:
                seed, _, number = options.only.partition(":")
                trial = run_trial(Shelf(root.absolute(), only, {}), int(seed), int(number), Path(scratch))
                print(json.dumps(asdict(trial), indent=2))
                return int(bool(trial.judged.violations))
            return _campaign(options, root.absolute(), only, Path(scratch))


def _campaign(options: argparse.Namespace, root: Path, only: Sequence[str], scratch: Path) -> int:
    _build_all(root, only)
    trials: list[Trial] = []
    started = time.monotonic()
    numbers = range(options.first, options.first + options.images)
    try:
        for trial in run_all(root, only, scratch, options.seed, numbers, options.jobs):
            trials.append(trial)
            _tell(trial)
            spent = time.monotonic() - started
            if len(trials) % 50 == 0:
                broken = sum(bool(each.judged.violations) for each in trials)
                print(f"... {len(trials)} images in {spent:.0f} s, {broken} broke a rule", flush=True)
            if options.time and spent > options.time:
                break
    except KeyboardInterrupt:
        print("stopped; the figures of what is done:", flush=True)
    found = figures(trials)
    found["seconds"] = round(time.monotonic() - started)
    print(table(found))
    if options.json:
        options.json.write_text(
            json.dumps(found | {"broken": [asdict(t) for t in trials if t.judged.violations]}, indent=1)
        )
    return int(bool(found["violations"]))


def _tell(trial: Trial) -> None:
    for each in trial.judged.violations:
        print(f"VIOLATION ({each.rule}) {each.kind}: {trial.repro}", flush=True)
        print(f"    {trial.base} --{trial.mode}: {trial.words}\n    {each.words}", flush=True)


def choose_bases(sizes: Sequence[str], names: Sequence[str]) -> list[str]:
    """Names of the bases that can be built here; the others are named on standard error, with the reason."""
    out = []
    for base in BASES.values():
        if base.group not in sizes or (names and base.name not in names):
            continue
        if base.missing:
            print(f"left out: {base.name}: {base.missing}", file=sys.stderr)
        else:
            out.append(base.name)
    return out


def _build_all(root: Path, only: Sequence[str]) -> None:
    """All but those with gigabytes of data, which are built when first used: few are."""
    for name in (each for each in only if BASES[each].data < 1 << 30):
        started = time.monotonic()
        built = build(BASES[name], root)
        if time.monotonic() - started > 0.5:
            size = built.image.stat().st_blocks * 512 >> 20
            print(f"built {name} ({size} MiB) in {time.monotonic() - started:.1f} s", flush=True)


def _scratch() -> str | None:
    """A folder in memory, when there is room."""
    shm = Path("/dev/shm")
    if shm.is_dir() and os.access(shm, os.W_OK) and shutil.disk_usage(shm).free > _ROOM:
        return str(shm)
    return None


# -- figures -----------------------------------------------------------------------------------------------------------


def figures(trials: Sequence[Trial]) -> dict[str, Any]:
    """What came of the trials, as JSON values."""
    broken: dict[str, list[Trial]] = defaultdict(list)
    for trial in trials:
        for name in dict.fromkeys(f"({each.rule}) {each.kind}" for each in trial.judged.violations):
            broken[name].append(trial)
    damaged = [each for each in trials if each.kinds]
    certain = [each for each in damaged if each.certain and each.mode == "all"]
    return {
        "images": len(trials),
        "undamaged": len(trials) - len(damaged),
        "by-damages": dict(sorted(Counter(len(each.kinds) for each in trials).items())),
        "by-size": dict(Counter(each.group for each in trials)),
        "by-mode": dict(Counter(each.mode for each in trials)),
        "guest-writes": sum(each.judged.writes for each in trials),
        "status": dict(Counter(each.judged.status or "not judged" for each in trials).most_common()),
        "bytes": _bytes([each for each in damaged if each.mode == "all"]),
        "certain": {"images": len(certain), "repaired": sum(each.told for each in certain)},
        "certain-missed": [f"{t.seed}:{t.number} {t.base} {t.words} -> {t.judged.status}" for t in certain if not t.told],
        "violations": sum(len(each) for each in broken.values()),
        "broken-images": sum(bool(each.judged.violations) for each in trials),
        "violation-kinds": {
            name: {"images": len(found), "first": [each.repro for each in found[:5]], "damage": _damage_of(found)}
            for name, found in sorted(broken.items(), key=lambda item: -len(item[1]))
        },
        "by-kind": _by_kind(damaged),
        "slowest": [f"{each.seed}:{each.number} {each.base} {each.seconds:.1f} s" for each in sorted(trials, key=lambda t: -t.seconds)[:5]],
        "time": {k: round(v, 1) for k, v in sorted(_spent(trials).items(), key=lambda item: -item[1])},
    }  # fmt: skip


def _bytes(trials: Sequence[Trial]) -> dict[str, int]:
    """Over all views. regained: bytes that were not the truth before (or not readable) and are now."""
    return {
        "truth": sum(each.judged.truth for each in trials),
        "before": sum(each.judged.before for each in trials),
        "after": sum(each.judged.after for each in trials),
        "missing-before": sum(each.judged.truth - each.judged.before for each in trials),
        "regained": sum(max(0, each.judged.after - each.judged.before) for each in trials),
        "uncounted-clusters": sum(each.judged.uncounted for each in trials),
        "freed-as-declared-clusters": sum(each.judged.declared for each in trials),
    }


def _damage_of(trials: Sequence[Trial]) -> dict[str, int]:
    single = [each for each in trials if len(each.kinds) <= 1]
    return dict(Counter("+".join(each.kinds) or "none" for each in single or trials).most_common(6))


def _by_kind(trials: Sequence[Trial]) -> dict[str, dict[str, int]]:
    out = {}
    for name in KINDS:
        alone = [each for each in trials if each.kinds == (name,) and each.mode == "all"]
        missing = sum(each.judged.truth - each.judged.before for each in alone)
        regained = sum(max(0, each.judged.after - each.judged.before) for each in alone)
        out[name] = {
            "alone": len(alone),
            "told": sum(each.told for each in alone),
            "kept": sum(each.judged.status in ("kept", "readable") for each in alone),
            "partly": sum(each.judged.status in ("partly", "changed") for each in alone),
            "refused": sum(each.judged.status in ("refused", "unchanged") for each in alone),
            "missing-KiB": missing >> 10,
            "regained-KiB": regained >> 10,
            "broke": sum(bool(each.judged.violations) for each in alone),
            "broke-with-others": sum(bool(each.judged.violations) for each in trials if name in each.kinds and len(each.kinds) > 1),
        }  # fmt: skip
    return out


def _spent(trials: Sequence[Trial]) -> dict[str, float]:
    out: dict[str, float] = defaultdict(float)
    for trial in trials:
        for name, seconds in trial.judged.seconds.items():
            out[name] += seconds
    return out


def table(found: dict[str, Any]) -> str:
    """The figures for people."""
    lines = [
        "",
        f"{'damage (alone, --all)':28}{'images':>7}{'told':>6}{'kept':>6}{'partly':>7}{'refused':>8}{'missing KiB':>13}{'regained KiB':>13}{'broke':>6}{'+others':>8}",
    ]
    for name, row in found["by-kind"].items():
        lines.append(
            f"{name:28}{row['alone']:>7}{row['told']:>6}{row['kept']:>6}{row['partly']:>7}{row['refused']:>8}"
            f"{row['missing-KiB']:>13}{row['regained-KiB']:>13}{row['broke']:>6}{row['broke-with-others']:>8}"
        )
    certain = found["certain"]
    share = 100 * certain["repaired"] / max(1, certain["images"])
    lines += [
        "",
        f"{found['images']} images in {found['seconds']} s: {found['by-damages']} damages, sizes {found['by-size']}, modes {found['by-mode']}",
        f"status: {found['status']}; guest wrote to {found['guest-writes']}",
        f"bytes (--all): {found['bytes']}",
        f"certain: {certain['repaired']} of {certain['images']} repaired ({share:.1f} %)",
        *(f"    missed {each}" for each in found["certain-missed"][:20]),
        f"time: {found['time']}; slowest {found['slowest']}",
        f"violations: {found['violations']} in {found['broken-images']} images",
    ]
    for name, row in found["violation-kinds"].items():
        lines.append(f"  {row['images']:5}  {name}  {row['damage']}")
        lines.append(f"         {'  '.join(row['first'][:3])}")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
