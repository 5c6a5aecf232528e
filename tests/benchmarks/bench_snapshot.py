"""Snapshot create and delete on a 1 TiB image with all metadata preallocated, against `qemu-img snapshot -c/-d`.

python -m tests.benchmarks.bench_snapshot [--size 1024] [--rounds 2]
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from sample_images.qemu import find_qemu_img
from workbench.engine.create import CreateOptions, create_file
from workbench.engine.write.prealloc import Preallocation


def timed(*words: str) -> float:
    """Wall seconds of a command, what it left in the page cache included."""
    os.sync()
    start = time.perf_counter()
    subprocess.run(words, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=1024, help="GiB of disk")
    parser.add_argument("--rounds", type=int, default=2)
    chosen = parser.parse_args()
    tool = find_qemu_img()
    if tool is None:
        sys.exit("qemu-img is missing")
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "disk.qcow2")
        create_file(path, CreateOptions(chosen.size << 30, preallocation=Preallocation.METADATA))
        ours = (sys.executable, "-m", "workbench.cli.main", "snapshot")
        rates: dict[tuple[str, str], list[float]] = {}
        for _ in range(chosen.rounds):
            for who, command in (("qemu-img", (tool, "snapshot")), ("qwb", ours)):
                for what, flag in (("create", "-c"), ("delete", "-d")):
                    rates.setdefault((what, who), []).append(timed(*command, flag, "one", path))
        print(f"{'':10}{'qemu-img':>12}{'qwb':>12}{'ratio':>8}{'budget':>8}")
        for what in ("create", "delete"):
            theirs, mine = (statistics.median(rates[what, who]) for who in ("qemu-img", "qwb"))
            print(f"{what:10}{theirs:>10.2f} s{mine:>10.2f} s{mine / theirs:>7.2f}x{'0.10x':>8}")
        peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss >> 10
        print(f"peak memory of all of them: {peak} MiB")


if __name__ == "__main__":
    main()
