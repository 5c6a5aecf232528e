"""Campaign: random metadata damage, `check` against the real `qemu-img check`. Prints every difference and a summary.

    python -m tests.campaigns.check_mutations --seed 1 --count 2000

Each image is a base image with a mutation of one to three structures (sample_images.mutate). Equal means: same exit code, and the same
corruptions, leaks and statistics wherever qemu-img gives any.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from sample_images.bases import BASES
from sample_images.mutate import mutate
from sample_images.qemu import find_qemu_img, source_arguments
from workbench.check import CheckResult
from workbench.check.companions import check_file
from workbench.storage.file import FileStorage

KEYS = (
    "image-end-offset",
    "corruptions",
    "leaks",
    "total-clusters",
    "allocated-clusters",
    "fragmented-clusters",
    "compressed-clusters",
    "check-errors",
)


@dataclass(slots=True)
class Outcome:
    """One image: how it was damaged and what differs. hung: qemu-img gave no answer in time."""

    base: str
    seed: int
    damage: str
    differences: list[str] = field(default_factory=list)
    seconds: float = 0.0
    hung: bool = False


@contextmanager
def working_directory(folder: Path) -> Iterator[None]:
    """QEMU looks for an external data file in the working directory; so does check."""
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def qemu_check(image: Path, secret: str | None, timeout: float = 20) -> tuple[int, dict[str, object], str]:
    """(exit code, JSON or {}, stderr) of `qemu-img check`. Raises subprocess.TimeoutExpired."""
    source = source_arguments(image, secret) if secret is not None else ["-f", "qcow2", image.name]
    done = subprocess.run(
        [find_qemu_img() or "qemu-img", "check", "--output=json", *source],
        cwd=image.parent,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    try:
        return done.returncode, json.loads(done.stdout), done.stderr
    except json.JSONDecodeError:
        return done.returncode, {}, done.stderr


def our_check(image: Path) -> CheckResult:
    """As `qwb check` does it, from the image's folder."""
    with working_directory(image.parent), FileStorage.open(image.name) as storage:
        return check_file(storage)


def differences(code: int, theirs: dict[str, object], ours: CheckResult) -> list[str]:
    """What is not equal, in words."""
    found = []
    if code != ours.exit_code:
        found.append(f"exit {code} != {ours.exit_code}")
    if theirs:
        mine = ours.as_json("")
        found += [f"{key} {theirs.get(key)} != {mine.get(key)}" for key in KEYS if theirs.get(key) != mine.get(key)]
    return found


def run_one(image: Path, outcome: Outcome, secret: str | None) -> Outcome:
    """Compare both checkers on one image."""
    try:
        code, theirs, _ = qemu_check(image, secret)
    except subprocess.TimeoutExpired:
        outcome.hung = True
        code, theirs = -1, {}
    started = time.perf_counter()
    try:
        ours = our_check(image)
    except Exception:  # noqa: BLE001 - a crash of the checker is what the campaign looks for
        outcome.differences.append("traceback: " + traceback.format_exc(limit=-3))
        return outcome
    finally:
        outcome.seconds = time.perf_counter() - started
    if not outcome.hung:
        outcome.differences = differences(code, theirs, ours)
    return outcome


def campaign(seed: int, count: int, names: list[str]) -> Iterator[Outcome]:
    """`count` mutated images, deterministic by seed."""
    rng = random.Random(seed)
    with tempfile.TemporaryDirectory(prefix="qwb-mutations-") as root:
        built: dict[str, Path] = {}
        for _ in range(count):
            name = rng.choice(names)
            if name not in built:
                built[name] = BASES[name].build(Path(root) / name)
            folder = Path(root) / "now"
            shutil.copytree(built[name].parent, folder, symlinks=True)
            image = folder / built[name].name
            one = rng.getrandbits(32)
            outcome = Outcome(name, one, mutate(image, one))
            yield run_one(image, outcome, BASES[name].secret)
            shutil.rmtree(folder)


def main() -> int:
    """Run the campaign; exit code 1 when more than 1 % differ, or on any traceback or slow run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--seconds", type=float, default=float("inf"), help="stop after this time")
    parser.add_argument("--base", action="append", help="only these bases")
    options = parser.parse_args()
    names = options.base or sorted(BASES)
    total = hung = different = crashed = 0
    slowest = 0.0
    started = time.perf_counter()
    for outcome in campaign(options.seed, options.count, names):
        if time.perf_counter() - started > options.seconds:
            break
        total += 1
        hung += outcome.hung
        slowest = max(slowest, outcome.seconds)
        if outcome.differences:
            different += 1
            crashed += outcome.differences[0].startswith("traceback")
            print(
                f"{outcome.base} seed {outcome.seed}: {outcome.damage}\n    {'; '.join(outcome.differences)}",
                flush=True,
            )
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(
        f"{total} images, {different} different ({100 - 100 * different / max(total, 1):.2f} % equal), {crashed} tracebacks, "
        f"{hung} where qemu-img hung; slowest {slowest:.2f} s, peak memory {memory:.0f} MiB"
    )
    return 1 if crashed or different > total / 100 or slowest > 10 else 0


if __name__ == "__main__":
    sys.exit(main())
