"""`qwb repair --all --dry-run` beside `qwb check`: both alternately on the same images, medians, ratios, peak memory.

    python -m tests.benchmarks.bench_repair [--runs 3] [--folder DIR] [--only NAME …]

Times are whole processes, start included. The images are built in DIR (1 TiB of metadata, 8 GiB of data) and kept for reuse.
"""

from __future__ import annotations

import argparse
import random
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from sample_images.qemu import find_qemu_img
from tests.benchmarks.bench_check import K, M, Runs, _l1, _qemu_img, measure, preallocated

COVERAGE = 512 * M
"""Guest bytes of one L2 table with clusters of 64 KiB."""


def filled(path: Path) -> list[int]:
    """1 TiB, every cluster allocated, 8 GiB of data in the ranges of 16 L2 tables, whose L1 indices are returned."""
    preallocated(path)
    tables = sorted(random.Random(13).sample(range(2048), 16))
    commands = [f"write -q -P {1 + number} {table * COVERAGE} {COVERAGE}" for number, table in enumerate(tables)]
    tool = Path(find_qemu_img() or "qemu-img").with_name("qemu-io")
    subprocess.run([str(tool), *(word for each in commands for word in ("-c", each)), str(path)], check=True)
    return tables


def damaged(path: Path) -> None:
    """The same with noise in 1 % of its L2 tables: 20 of 2048, four of those that lead to the data among them."""
    tables, rng = filled(path), random.Random(31)
    spared = set(tables)
    chosen = rng.sample(tables, 4) + rng.sample([each for each in range(2048) if each not in spared], 16)
    _, entries = _l1(path)
    with path.open("r+b") as file:
        for index in sorted(chosen):
            file.seek(int(entries[index]) & 0x00FF_FFFF_FFFF_FE00)
            file.write(rng.randbytes(64 * K))


def garbage_l1(path: Path) -> None:
    """128 GiB, every cluster allocated, with noise for an L1 table."""
    _qemu_img("create", "-q", "-f", "qcow2", "-o", "preallocation=metadata", str(path), "128G")
    offset, entries = _l1(path)
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(random.Random(7).randbytes(entries.size * 8))


def many_snapshots(path: Path) -> None:
    """64 MiB with 508 snapshots, and noise in some entries of the disk's L2 table."""
    _qemu_img("create", "-q", "-f", "qcow2", "-o", "preallocation=metadata", str(path), "64M")
    for number in range(508):
        _qemu_img("snapshot", "-c", f"s{number}", str(path))
    _, entries = _l1(path)
    with path.open("r+b") as file:
        file.seek((int(entries[0]) & 0x00FF_FFFF_FFFF_FE00) + 800)
        file.write(random.Random(8).randbytes(64))


CASES: dict[str, Callable[[Path], object]] = {
    "damaged": damaged,
    "garbage-l1": garbage_l1,
    "many-snapshots": many_snapshots,
}


def main() -> int:
    """Build, measure, print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--only", action="append", choices=sorted(CASES))
    options = parser.parse_args()
    folder = options.folder or Path(tempfile.mkdtemp(prefix="qwb-bench-"))
    folder.mkdir(parents=True, exist_ok=True)
    print("| image | check s | check MiB | plan s | plan MiB | plan / check | exit |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for name in options.only or list(CASES):
        path = folder / f"{name}.qcow2"
        if not path.exists():
            draft = path.with_suffix(".new")
            CASES[name](draft)
            draft.rename(path)
        check, plan = Runs(), Runs()
        tool = [sys.executable, "-m", "workbench.cli.main"]
        for _ in range(options.runs):
            measure([*tool, "check", "--json", str(path)], check)
            measure([*tool, "repair", "--all", "--dry-run", "--json", str(path)], plan)
        a, b = statistics.median(check.wall), statistics.median(plan.wall)
        print(
            f"| {name} | {a:.2f} | {check.memory:.0f} | {b:.2f} | {plan.memory:.0f} | {b / a:.1f} | {check.code}/{plan.code} |",
            flush=True,
        )
    if options.folder is None:
        shutil.rmtree(folder)
    return 0


if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    sys.exit(main())
