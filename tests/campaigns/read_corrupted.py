"""Damaged copies of the sample images through info, dump and map: no traceback, no hang, bounded memory.

    python -m tests.campaigns.read_corrupted --count 500 --seed 1

Each copy is damaged by its own seed, in turn knowingly (`mutate`), blindly in the metadata and blindly anywhere
(`corrupt`); each command is a process of its own. Prints every failure with the seed that brings it back.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from sample_images import copy_out, load_manifest
from sample_images.mutate import corrupt, mutate

SECONDS = 10.0
RSS_MIB = 300
ROOT = Path(__file__).resolve().parents[2]
COMMANDS = (("info",), ("dump", "all"), ("map",))


@dataclass(frozen=True, slots=True)
class Outcome:
    """One command on one copy. seconds: wall clock.  rss: peak, MiB."""

    seed: int
    damage: str
    command: str
    code: int
    seconds: float
    rss: float
    errors: str

    @property
    def failure(self) -> str | None:
        """What is wrong with it, or None."""
        if self.code not in (0, 1):
            return f"exit code {self.code}"
        if "Traceback" in self.errors:
            return "traceback"
        if self.seconds > SECONDS:
            return f"{self.seconds:.1f} s"
        return f"{self.rss:.0f} MiB" if self.rss > RSS_MIB else None


def damaged_copy(seed: int, folder: Path) -> tuple[Path, str]:
    """A damaged copy of a sample, the same for the same seed: its path and what was done to it."""
    rng = random.Random(seed)
    sample = rng.choice(load_manifest())
    folder.mkdir(parents=True, exist_ok=True)
    path = copy_out(sample.name, folder)
    how = rng.choice(("mutate", "metadata", "anywhere") if sample.healthy else ("metadata", "anywhere"))
    done = mutate(path, seed) if how == "mutate" else corrupt(path, seed, metadata_only=how == "metadata")
    return path, f"{sample.name}: {done}"


def commands_for(seed: int, image: Path) -> Iterator[list[str]]:
    """The commands to run; odd seeds print JSON."""
    for name, *rest in COMMANDS:
        yield [name, str(image), *rest, *(["--json"] if seed % 2 else [])]


def run(seed: int, damage: str, arguments: list[str]) -> Outcome:
    """One command in its own process, killed a while after the limit."""
    started = time.perf_counter()
    with tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(
            [sys.executable, "-m", "workbench", *arguments],
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=errors,
        )
        status, usage = _wait(process.pid, started + 3 * SECONDS)
        process.returncode = os.waitstatus_to_exitcode(status)
        errors.seek(0)
        text = errors.read(1 << 16).decode("utf-8", "replace")
    seconds = time.perf_counter() - started
    return Outcome(seed, damage, " ".join(arguments), process.returncode, seconds, usage / 1024, text)


def _wait(pid: int, deadline: float) -> tuple[int, int]:
    """(wait status, peak RSS in KiB) of our own child; killed at the deadline."""
    while True:
        done, status, usage = os.wait4(pid, os.WNOHANG)
        if done:
            return status, usage.ru_maxrss
        if time.perf_counter() > deadline:
            os.kill(pid, 9)
            _, status, usage = os.wait4(pid, 0)
            return status, usage.ru_maxrss
        time.sleep(0.005)


def one_copy(seed: int, scratch: Path) -> list[Outcome]:
    """All commands on the copy that `seed` makes. Reading must leave it as it was: bytes and mtime."""
    folder = scratch / str(seed)
    try:
        image, damage = damaged_copy(seed, folder)
        before = (image.read_bytes(), image.stat().st_mtime_ns)
        found = [run(seed, damage, arguments) for arguments in commands_for(seed, image)]
        if (image.read_bytes(), image.stat().st_mtime_ns) != before:
            found.append(Outcome(seed, damage, "any", -1, 0.0, 0.0, "the image was changed"))
        return found
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--count", type=int, default=500, help="damaged copies")
    parser.add_argument("--seed", type=int, default=1, help="seed of the first copy; the others follow on")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    options = parser.parse_args()
    started = time.perf_counter()
    outcomes: list[Outcome] = []
    with tempfile.TemporaryDirectory() as scratch, ThreadPoolExecutor(options.jobs) as pool:
        seeds = range(options.seed, options.seed + options.count)
        for found in pool.map(lambda seed: one_copy(seed, Path(scratch)), seeds):
            outcomes += found
            for each in found:
                if each.failure:
                    print(
                        f"seed {each.seed}: {each.failure}: {each.command}\n   {each.damage}\n   {each.errors[-300:]}"
                    )
    bad = sum(1 for each in outcomes if each.failure)
    slowest, biggest = max(outcomes, key=lambda o: o.seconds), max(outcomes, key=lambda o: o.rss)
    print(f"{options.count} copies, {len(outcomes)} commands, {bad} failures, {time.perf_counter() - started:.0f} s")
    print(f"exit 0: {sum(1 for o in outcomes if o.code == 0)}, exit 1: {sum(1 for o in outcomes if o.code == 1)}")
    print(
        f"slowest {slowest.seconds:.2f} s (seed {slowest.seed}), most memory {biggest.rss:.0f} MiB (seed {biggest.seed})"
    )
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
