"""Power cuts: the recorded write stream of seeded workloads, cut at every write, re-ordered and torn between flushes.

    python -m tests.campaigns.write_powercut --seed 1 --count 20000

Every state must open, be free of corruption (leaks may be; dirty images after their refcounts are counted anew), and hold
in every sector either what was flushed before the cut or something written since.
"""

from __future__ import annotations

import argparse
import os
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

from sample_images.qemu import find_qemu_img
from tests.campaigns.write_kit import SHAPES, Step, TagModel, open_image, prepared, run_step, workload
from workbench.check.run import check
from workbench.engine.metadata import load_metadata
from workbench.storage.memory import MemoryStorage
from workbench.storage.recording import Op, OpKind, Recording

SECTOR = 512


@dataclass(slots=True)
class Trace:
    """A workload's stream. steps: (step, ops before it, ops after it, whether it was done)."""

    initial: bytes
    ops: list[Op]
    steps: list[tuple[Step, int, int, bool]]
    size: int
    cluster: int


@dataclass(slots=True)
class Tally:
    states: int = 0
    leaks: int = 0
    dirty: int = 0
    by_qemu: int = 0
    failures: list[str] = field(default_factory=list)


def record(shape: str, rng: random.Random, count: int) -> Trace:
    """Run a workload on a recording storage, close included."""
    start = prepared(shape)
    storage = Recording(MemoryStorage(start))
    image = open_image(storage, small=rng.random() < 0.5, discard=rng.choice(("unmap", "ignore")))
    size, cluster = image.size, image.geometry.cluster_size
    steps: list[tuple[Step, int, int, bool]] = []
    for step in workload(rng, size, cluster, count):
        before = len(storage.ops)
        done = run_step(image, step)
        steps.append((step, before, len(storage.ops), done))
    before = len(storage.ops)
    image.close()
    steps.append((Step("flush"), before, len(storage.ops), True))
    return Trace(start, storage.ops, steps, size, cluster)


def crash_states(trace: Trace, rng: random.Random, per_cut: int) -> Iterator[tuple[int, int, bytes]]:
    """(operations that are durable, operations issued, the file) of crash states, by increasing position."""
    durable = MemoryStorage(trace.initial)
    barrier = 0
    in_order = MemoryStorage(trace.initial)
    for position, op in enumerate(trace.ops, 1):
        op.run(in_order)
        if op.kind is OpKind.FLUSH:
            for each in trace.ops[barrier:position]:
                each.run(durable)
            barrier = position
            continue
        yield barrier, position, in_order.getvalue()
        pending = trace.ops[barrier:position]
        for _ in range(per_cut):
            state = MemoryStorage(durable.getvalue())
            keep = rng.choice((0.2, 0.5, 0.8))
            for each in pending:
                chance = rng.random()
                if chance < keep:
                    each.run(state)
                elif chance < keep + 0.2 and each.kind is OpKind.WRITE:
                    _tear(state, each, rng)
            yield barrier, position, state.getvalue()


def _tear(state: MemoryStorage, op: Op, rng: random.Random) -> None:
    """Let some sectors of one write arrive."""
    at = op.offset
    while at < op.offset + op.length:
        end = min((at // SECTOR + 1) * SECTOR, op.offset + op.length)
        if rng.random() < 0.5:
            state.write(at, op.data[at - op.offset : end - op.offset])
        at = end


def judge(trace: Trace, rng: random.Random, per_cut: int, tally: Tally, *, qemu: int = 0, limit: int = 1 << 30) -> None:
    """Look at every crash state of a trace. qemu: let qemu-img check about one state in that many."""
    with open_image(MemoryStorage(trace.initial), writable=False) as image:
        model = TagModel(image.read(0, image.size))
    upcoming = list(reversed(trace.steps))
    for barrier, position, data in crash_states(trace, rng, per_cut):
        # Steps begun before the cut may show; a flush counts once its last operation was done.
        while upcoming and upcoming[-1][1] < position:
            step, _, after, done = upcoming[-1]
            if step.kind != "flush":
                (model.apply if done else model.attempt)(step, trace.cluster, trace.size)
            elif after > position:
                break
            else:
                model.flushed()
            upcoming.pop()
        if tally.states >= limit:
            return
        tally.states += 1
        trouble = _look(trace, model, data, tally, qemu=bool(qemu) and rng.randrange(qemu) == 0)
        if trouble:
            tally.failures.append(f"cut at {position} (durable {barrier}): {trouble}")
            if len(tally.failures) > 5:
                return


def _look(trace: Trace, model: TagModel, data: bytes, tally: Tally, *, qemu: bool) -> str | None:
    storage = MemoryStorage(data)
    dirty = load_metadata(storage).header.has("dirty")
    if dirty:
        tally.dirty += 1
        open_image(storage).close()
    image = open_image(storage, writable=False)
    disk = image.read(0, image.size)
    image.close()
    wrong = model.judge(disk)
    if wrong:
        return wrong
    result = check(load_metadata(storage), fast=True)
    if result.corruptions or result.check_errors:
        codes = Counter(finding.code for finding in result.findings)
        return f"{result.corruptions} corruptions, {result.check_errors} check errors: {dict(codes)}"
    tally.leaks += bool(result.leaks)
    if qemu:
        tally.by_qemu += 1
        return _ask_qemu(data)
    return None


def _ask_qemu(data: bytes) -> str | None:
    """qemu-img's verdict on a state as the power cut left it; a dirty image is repaired first."""
    tool = find_qemu_img()
    if tool is None:
        return None
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "state.qcow2")
        with open(path, "wb") as file:
            file.write(data)
        if load_metadata(MemoryStorage(data)).header.has("dirty"):
            subprocess.run([tool, "check", "-q", "-r", "all", path], capture_output=True, check=False)
        done = subprocess.run([tool, "check", path], capture_output=True, text=True, check=False)
        return None if done.returncode in (0, 3) else f"qemu-img check says {done.returncode}: {done.stdout[-300:]}"


def campaign(seed: int, count: int, *, steps: int, per_cut: int, qemu: int) -> Tally:
    """At least `count` states, over seeds seed, seed + 1, …"""
    tally = Tally()
    shapes = list(SHAPES)
    while tally.states < count and len(tally.failures) < 5:
        rng = random.Random(seed)
        shape = shapes[seed % len(shapes)]
        before = len(tally.failures)
        judge(record(shape, rng, steps), rng, per_cut, tally, qemu=qemu)
        for number in range(before, len(tally.failures)):
            tally.failures[number] = f"seed {seed} ({shape}): {tally.failures[number]}"
        seed += 1
    return tally


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--count", type=int, default=20000, help="crash states")
    parser.add_argument("--steps", type=int, default=40, help="operations per workload")
    parser.add_argument("--per-cut", type=int, default=2, help="re-ordered states per write")
    parser.add_argument("--qemu", type=int, default=100, help="let qemu-img check one state in this many (0: none)")
    chosen = parser.parse_args()
    start = time.monotonic()
    tally = campaign(chosen.seed, chosen.count, steps=chosen.steps, per_cut=chosen.per_cut, qemu=chosen.qemu)
    print(
        f"{tally.states} crash states in {time.monotonic() - start:.0f} s: {tally.leaks} with leaks,"
        f" {tally.dirty} dirty, {tally.by_qemu} checked by qemu-img too, {len(tally.failures)} failures"
    )
    print("\n".join(tally.failures))
    return 1 if tally.failures else 0


if __name__ == "__main__":
    sys.exit(main())
