"""Guest I/O against qemu-io: sequential megabytes and random 4 KiB requests, by command script and by the Python API.

    python -m tests.benchmarks.bench_io [--size 512] [--count 20000] [--rounds 3]

Both tools run in turn on copies of one image; medians and ratios are printed. The ratio is ours to qemu-io's rate. The
rate of a script is taken from outside: a script that does nothing is measured too, and its time taken off (start-up of
either program is not I/O).
"""

from __future__ import annotations

import argparse
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from sample_images.qemu import find_qemu_io
from workbench.engine.create import CreateOptions, create_file
from workbench.engine.image import Image

MIB = 1 << 20


def script_time(command: list[str], lines: list[str]) -> float:
    """Seconds that a tool takes for a script on standard input, start-up taken off."""
    text = "".join(f"{line}\n" for line in lines)
    start = time.perf_counter()
    done = subprocess.run(
        command, input=text, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, check=False
    )
    taken = time.perf_counter() - start
    if done.returncode:
        raise RuntimeError(f"{command[0]}: {done.stderr[-300:]}")
    start = time.perf_counter()
    subprocess.run(command, input="length\n", stdout=subprocess.DEVNULL, text=True, check=True)
    return max(1e-6, taken - (time.perf_counter() - start))


def api_time(
    path: Path, run: Callable[[Image], None], *, writable: bool, options: dict[str, object] | None = None
) -> float:
    """Seconds for work on an open image."""
    with Image.open(path, writable=writable, options=options) as image:
        start = time.perf_counter()
        run(image)
        return time.perf_counter() - start


def prepare(path: Path, size: int, *, filled: bool) -> None:
    path.unlink(missing_ok=True)
    create_file(str(path), CreateOptions(size))
    if filled:
        with Image.open(path, writable=True) as image:
            for at in range(0, size, MIB):
                image.write(at, b"\x5a" * MIB)
    os.sync()


def compare(folder: Path, size: int, count: int, rounds: int) -> None:
    """The table of the budgets."""
    qemu_io = find_qemu_io()
    if qemu_io is None:
        sys.exit("qemu-io is missing")
    ours, theirs = folder / "ours.qcow2", folder / "theirs.qcow2"
    us = [sys.executable, "-m", "workbench.cli.main", "io", str(ours)]
    them = [qemu_io, str(theirs)]
    rng = random.Random(7)
    places = [rng.randrange(size // 4096) * 4096 for _ in range(count)]
    sequential = range(0, size, MIB)
    block, page = b"\x42" * MIB, b"\x43" * 4096

    def write_all(image: Image) -> None:
        for at in sequential:
            image.write(at, block)

    def read_all(image: Image) -> None:
        for at in sequential:
            image.read(at, MIB)

    def write_random(image: Image) -> None:
        for at in places:
            image.write(at, page)

    def read_random(image: Image) -> None:
        for at in places:
            image.read(at, 4096)

    jobs: list[tuple[str, float, list[str], Callable[[Image], None], bool, float, str]] = [
        ("sequential writes, new clusters", 0.8, [f"write -q -P 66 {at} 1M" for at in sequential], write_all, False, size / MIB, "MiB/s"),
        ("sequential writes, in place", 0.8, [f"write -q -P 66 {at} 1M" for at in sequential], write_all, True, size / MIB, "MiB/s"),
        ("sequential reads", 0.8, [f"read -q {at} 1M" for at in sequential], read_all, True, size / MIB, "MiB/s"),
        ("random 4 KiB writes", 0.25, [f"write -P 67 {at} 4k" for at in places], write_random, True, count, "ops/s"),
        ("random 4 KiB reads", 0.25, [f"read {at} 4k" for at in places], read_random, True, count, "ops/s"),
    ]  # fmt: skip
    print(f"{'':34}{'qemu-io':>14}{'qwb io':>14}{'ratio':>7}{'API':>14}{'ratio':>7}{'budget':>8}")
    for name, budget, lines, run, filled, amount, unit in jobs:
        rates: dict[str, list[float]] = {"them": [], "us": [], "api": []}
        for _ in range(rounds):
            for who, path in (("them", theirs), ("us", ours), ("api", ours)):
                if not filled or not path.exists():
                    prepare(path, size, filled=filled)
                elif path.stat().st_size < size:
                    prepare(path, size, filled=True)
                if who == "api":
                    taken = api_time(path, run, writable="read" not in name)
                else:
                    taken = script_time(us if who == "us" else them, lines)
                rates[who].append(amount / taken)
        mid = {who: statistics.median(values) for who, values in rates.items()}
        print(
            f"{name:34}{mid['them']:>9.0f} {unit}{mid['us']:>9.0f} {unit}{mid['us'] / mid['them']:>6.2f}x"
            f"{mid['api']:>9.0f} {unit}{mid['api'] / mid['them']:>6.2f}x{budget:>7}x"
        )


def caches(folder: Path, count: int) -> None:
    """What slice size and cache size do to random writes over a large disk."""
    size = 64 << 30
    path = folder / "wide.qcow2"
    rng = random.Random(8)
    places = [rng.randrange(size // 65536) * 65536 for _ in range(4000)]
    prepare(path, size, filled=False)
    with Image.open(path, writable=True) as image:
        for at in places:
            image.write(at, b"\x11" * 4096)
    order = [rng.choice(places) for _ in range(count)]

    def run(image: Image) -> None:
        for at in order:
            image.write(at, b"\x22" * 4096)

    print("\nrandom 4 KiB writes in place over 64 GiB (8 MiB of L2 tables), by cache")
    print(f"{'l2-cache-size':>14}{'entry size':>12}{'ops/s':>10}{'hits':>8}")
    for cache in ("128k", "1M", "4M", "32M"):
        for entry in ("512", "4k", "64k"):
            with Image.open(
                path, writable=True, options={"l2-cache-size": cache, "l2-cache-entry-size": entry}
            ) as image:
                start = time.perf_counter()
                run(image)
                taken = time.perf_counter() - start
                found = image.writer.counters.l2
            share = found.hits / max(1, found.hits + found.misses)
            print(f"{cache:>14}{entry:>12}{count / taken:>10.0f}{share:>8.0%}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=512, help="MiB of disk")
    parser.add_argument("--count", type=int, default=20000, help="random requests")
    parser.add_argument("--rounds", type=int, default=3)
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        compare(Path(folder), chosen.size * MIB, chosen.count, chosen.rounds)
        caches(Path(folder), chosen.count)


if __name__ == "__main__":
    main()
