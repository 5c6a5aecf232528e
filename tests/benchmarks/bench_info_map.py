"""`qwb info` and `qwb map` against qemu-img on a 1 TiB image with all metadata preallocated.

    python -m tests.benchmarks.bench_info_map [--rounds 5] [--folder DIR]

Both tools run alternately, each as a whole process. Prints medians, the ratio and the peak memory.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from sample_images import sample_path
from sample_images.qemu import find_qemu_img

ROOT = Path(__file__).resolve().parents[2]


def timed(arguments: list[str]) -> tuple[float, float]:
    """(seconds, peak RSS in MiB) of one process."""
    started = time.perf_counter()
    process = subprocess.Popen(arguments, cwd=ROOT, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(arguments)}: exit code {process.returncode}")
    return time.perf_counter() - started, usage.ru_maxrss / 1024


def compare(title: str, qemu: list[str], ours: list[str], rounds: int) -> None:
    """One row: medians of alternating runs."""
    results: list[tuple[float, float, float]] = []
    for _ in range(rounds):
        theirs, _ = timed(qemu)
        seconds, rss = timed([sys.executable, "-m", "workbench", *ours])
        results.append((theirs, seconds, rss))
    them, us, rss = (statistics.median(column) for column in zip(*results, strict=True))
    print(f"{title:<34}{them:>10.3f} s{us:>10.3f} s{us / them:>8.2f}x{rss:>8.0f} MiB")


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", help="where to build the image (200 MB on disk)")
    options = parser.parse_args()
    qemu_img = find_qemu_img()
    if qemu_img is None:
        raise SystemExit("qemu-img not found (package qemu-utils)")
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        image = str(Path(folder) / "terabyte.qcow2")
        subprocess.run(
            [qemu_img, "create", "-q", "-f", "qcow2", "-o", "preallocation=metadata", image, "1T"], check=True
        )
        plain = str(sample_path("plain"))
        print(f"{'':<34}{'qemu-img':>12}{'qwb':>12}{'ratio':>9}{'peak':>12}")
        compare(
            "map --json, 1 TiB preallocated",
            [qemu_img, "map", "--output=json", image],
            ["map", "--json", image],
            options.rounds,
        )
        compare(
            "info --json, 1 TiB preallocated",
            [qemu_img, "info", "--output=json", image],
            ["info", "--json", image],
            options.rounds,
        )
        compare(
            "info --json, small sample",
            [qemu_img, "info", "--output=json", plain],
            ["info", "--json", plain],
            options.rounds,
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
