"""Faults: EIO and ENOSPC at every write (and flush) of seeded workloads, once or from there on.

    python -m tests.campaigns.write_faults --seed 1 --count 60

The caller must get an error; the image must stay free of corruption and hold what it should; after a single failed write
the image must not even leak, unless the failure hit the closing of the image.
"""

from __future__ import annotations

import argparse
import errno
import random
import sys
import time
from dataclasses import dataclass, field

from tests.campaigns.write_kit import SHAPES, TagModel, open_image, prepared, run_step, workload
from workbench.check.run import check
from workbench.engine.metadata import load_metadata
from workbench.errors import QwbError
from workbench.storage.memory import MemoryStorage
from workbench.storage.recording import Faulty, OpKind

WRITES = (OpKind.WRITE, OpKind.ZERO, OpKind.TRUNCATE, OpKind.ALLOCATE)


@dataclass(slots=True)
class Tally:
    runs: int = 0
    errors: int = 0
    leaks: int = 0
    failures: list[str] = field(default_factory=list)


def run_with_fault(
    shape: str, seed: int, steps: int, fail_at: int, *, code: int, sticky: bool, partial: int, on: tuple[OpKind, ...]
) -> tuple[bool, int, str | None]:
    """(whether the fault was met, leaks, what went wrong or None) for one run of a workload."""
    rng = random.Random(seed)
    base = MemoryStorage(prepared(shape))
    storage = Faulty(base, fail_at, errno=code, on=on, sticky=sticky, partial=partial)
    image = open_image(storage, small=rng.random() < 0.5)
    size, cluster = image.size, image.geometry.cluster_size
    with open_image(MemoryStorage(base.getvalue()), writable=False) as before:
        model = TagModel(before.read(0, size))
    met, at_close = False, False
    for step in workload(rng, size, cluster, steps):
        try:
            done = run_step(image, step)
        except QwbError:
            met = True
            model.attempt(step, cluster, size)
            continue
        if step.kind == "flush":
            model.flushed() if not met else None
        elif done:
            model.apply(step, cluster, size)
    if not sticky and not met and OpKind.FLUSH not in on:
        try:  # reading makes room in the caches, which may write
            if image.read(0, size)[::512] != model.now.tobytes():
                return met, 0, "the image reads back wrong while it is open"
        except QwbError:
            met = True
    try:
        image.close()
    except QwbError:
        met = at_close = True
    return met, *_verdict(base, model, must_not_leak=not sticky and not at_close and OpKind.FLUSH not in on)


def _verdict(base: MemoryStorage, model: TagModel, *, must_not_leak: bool) -> tuple[int, str | None]:
    state = MemoryStorage(base.getvalue())
    if load_metadata(state).header.has("dirty"):
        open_image(state).close()
    with open_image(state, writable=False) as image:
        wrong = model.judge(image.read(0, image.size))
    if wrong:
        return 0, wrong
    result = check(load_metadata(state), fast=True)
    if result.corruptions or result.check_errors:
        return 0, f"{result.corruptions} corruptions: {sorted({finding.code for finding in result.findings})}"
    if result.leaks and must_not_leak:
        return result.leaks, f"{result.leaks} clusters leaked after a single failed write"
    return result.leaks, None


def campaign(seed: int, count: int, *, steps: int, stride: int = 1) -> Tally:
    """`count` workloads, each with a fault at every `stride`-th write."""
    tally = Tally()
    shapes = list(SHAPES)
    for number in range(seed, seed + count):
        shape = shapes[number % len(shapes)]
        on = (*WRITES, OpKind.FLUSH) if number % 3 == 0 else WRITES
        for sticky in (False, True):
            at, met = number % stride, True
            while met:
                code = errno.ENOSPC if at % 2 else errno.EIO
                partial = 512 if at % 3 == 0 else 0
                met, leaks, wrong = run_with_fault(
                    shape, number, steps, at, code=code, sticky=sticky, partial=partial, on=on
                )
                tally.runs += 1
                tally.errors += met
                tally.leaks += bool(leaks)
                if wrong:
                    tally.failures.append(f"seed {number} ({shape}), fault at {at}{' and on' * sticky}: {wrong}")
                    if len(tally.failures) > 5:
                        return tally
                at += stride
    return tally


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--count", type=int, default=60, help="workloads")
    parser.add_argument("--steps", type=int, default=25, help="operations per workload")
    chosen = parser.parse_args()
    start = time.monotonic()
    tally = campaign(chosen.seed, chosen.count, steps=chosen.steps)
    print(
        f"{chosen.count} workloads, {tally.runs} runs in {time.monotonic() - start:.0f} s: {tally.errors} met their"
        f" fault, {tally.leaks} left leaks, {len(tally.failures)} failures"
    )
    print("\n".join(tally.failures))
    return 1 if tally.failures else 0


if __name__ == "__main__":
    sys.exit(main())
