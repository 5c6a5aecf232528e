"""Times `qwb convert` against `qemu-img convert`: raw from plain and from compressed data, and `-c`.

Run: python -m tests.benchmarks.bench_convert [--size MIB] [--rounds N] [--folder DIR]. The tools take turns; the table
shows medians of wall time and the ratio of throughputs (above 1: qwb is faster).
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

from sample_images.kit import text

QWB = [sys.executable, "-m", "workbench"]


def timed(command: list[str], output: Path) -> tuple[float, float]:
    """(wall, processor) seconds of one run. The output is made anew; its writeback is waited for outside the clock."""
    output.unlink(missing_ok=True)
    os.sync()
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{command}: exit code {process.returncode}")
    return time.perf_counter() - start, usage.ru_utime + usage.ru_stime


def compare(name: str, ours: list[str], theirs: list[str], output: Path, rounds: int, budget: float) -> None:
    """One line of the table."""
    mine: list[tuple[float, float]] = []
    other: list[tuple[float, float]] = []
    sizes = [0, 0]
    for turn in range(rounds + 1):  # the first round warms the page cache and does not count
        for index, (command, times) in enumerate(((ours, mine), (theirs, other))):
            seconds = timed(command, output)
            sizes[index] = output.stat().st_blocks * 512
            if turn:
                times.append(seconds)
    first, second = (statistics.median(wall for wall, _ in each) for each in (mine, other))
    busy, their_busy = (statistics.median(cpu for _, cpu in each) for each in (mine, other))
    ratio = f"{second / first:.2f} (budget {budget})"
    print(
        f"{name:28} {first:8.3f} s {second:8.3f} s   {ratio:20} cpu {their_busy / busy:5.2f}   size {sizes[0] / max(sizes[1], 1):.3f}",
        flush=True,
    )


def build(path: Path, size: int, block: Callable[[int], bytes]) -> None:
    """A raw file of `size` MiB from a few distinct blocks of 1 MiB in random order."""
    rng = random.Random(1)
    blocks = [block(seed) for seed in range(24)]
    with open(path, "wb") as file:
        for _ in range(size):
            file.write(blocks[rng.randrange(len(blocks))])


def main() -> None:
    """Build the inputs with qemu-img, run, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=2048, help="MiB of plain data; a quarter of it for compressed")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        folder = Path(name)
        raw, plain, packed, out = (folder / each for each in ("in.raw", "plain.qcow2", "packed.qcow2", "out"))
        build(raw, arguments.size, lambda seed: random.Random(seed).randbytes(1 << 20))
        subprocess.run(["qemu-img", "convert", "-O", "qcow2", raw, plain], check=True)
        build(raw, arguments.size // 4, lambda seed: text(1 << 20, seed))
        subprocess.run(["qemu-img", "convert", "-c", "-W", "-m", "8", "-O", "qcow2", raw, packed], check=True)
        print(f"{'':28} {'qwb':>10} {'qemu-img':>10}   throughput ratio     processor    output size: ratios")
        for title, source, budget in (("raw from plain data", plain, 0.9), ("raw from zlib clusters", packed, 1.0)):
            ours = [*QWB, "convert", "-O", "raw", str(source), str(out)]
            theirs = ["qemu-img", "convert", "-O", "raw", str(source), str(out)]
            compare(title, ours, theirs, out, arguments.rounds, budget)
        ours = [*QWB, "convert", "-O", "qcow2", "-c", str(raw), str(out)]
        theirs = ["qemu-img", "convert", "-O", "qcow2", "-c", "-W", "-m", "8", str(raw), str(out)]
        compare("qcow2, compressed", ours, theirs, out, max(1, arguments.rounds // 2), 3.0)


if __name__ == "__main__":
    main()
