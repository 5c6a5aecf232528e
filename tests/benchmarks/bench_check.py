"""`qwb check` beside `qemu-img check`: both tools alternately on the same images, medians, ratios, peak memory.

    python -m tests.benchmarks.bench_check [--runs 5] [--folder DIR] [--only NAME …]

Times are whole processes, start included. The images are built in DIR (sparse; some GB of metadata) and kept for reuse.
"""

from __future__ import annotations

import argparse
import os
import random
import resource
import shutil
import statistics
import struct
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from sample_images.qemu import find_qemu_img

COPIED = 1 << 63
K, M, G, T = 1 << 10, 1 << 20, 1 << 30, 1 << 40


def _qemu_img(*args: str) -> None:
    subprocess.run([find_qemu_img() or "qemu-img", *args], check=True, capture_output=True)


def preallocated(path: Path) -> None:
    """1 TiB, every cluster allocated: 16.8 million clusters."""
    _qemu_img("create", "-q", "-f", "qcow2", "-o", "preallocation=metadata", str(path), "1T")


def _l1(path: Path) -> tuple[int, np.ndarray]:
    with path.open("rb") as file:
        file.seek(36)
        entries, offset = struct.unpack(">IQ", file.read(12))
        file.seek(offset)
        return offset, np.frombuffer(file.read(entries * 8), dtype=">u8").astype(np.uint64)


def garbage(path: Path) -> None:
    """The same, with every L2 table overwritten by random numbers: millions of findings."""
    preallocated(path)
    noise = np.random.default_rng(1).bytes(64 * K)
    _, entries = _l1(path)
    with path.open("r+b") as file:
        for number, entry in enumerate(entries.tolist()):
            file.seek(entry & 0x00FF_FFFF_FFFF_FE00)
            turn = number % 8192 * 8
            file.write(noise[turn:] + noise[:turn])


def random_writes(path: Path) -> None:
    """64 GiB after 100,000 random writes of 4 KiB: each touched cluster allocated in the order of the writes.

    The tables are written directly, as a qemu that did these writes would have left them (data clusters are holes).
    """
    _synthetic(path, 64 * G, random.Random(5), writes=100_000)


def _synthetic(path: Path, size: int, rng: random.Random, writes: int) -> None:
    cluster, per_table = 64 * K, 8192
    tables = size // (cluster * per_table)
    order = list(dict.fromkeys(rng.randrange(size // (4 * K)) * 4 * K // cluster for _ in range(writes)))
    placed: dict[int, int] = {}  # L1 index -> host cluster of its L2 table
    l2 = {}
    blocks = 16
    following = 2 + blocks + -(-tables * 8 // cluster)
    for guest in order:
        index = guest // per_table
        if index not in placed:
            placed[index] = following
            l2[index] = np.zeros(per_table, dtype=np.uint64)
            following += 1
        l2[index][guest % per_table] = following * cluster | COPIED
        following += 1
    with path.open("wb") as file:
        file.write(
            struct.pack(
                ">IIQIIQIIQQIIQQQQII", 0x514649FB, 3, 0, 0, 16, size, 0, tables, (2 + blocks) * cluster, cluster, 1,
                0, 0, 0, 0, 0, 4, 104,
            )
        )  # fmt: skip
        file.seek(cluster)
        used = -(-following // 32768)
        file.write(np.array([(2 + i) * cluster for i in range(used)], dtype=">u8").tobytes())
        counts = np.zeros(blocks * 32768, dtype=">u2")
        counts[:following] = 1
        counts[2 + used : 2 + blocks] = 0
        file.seek(2 * cluster)
        file.write(counts[: used * 32768].tobytes())
        file.seek((2 + blocks) * cluster)
        l1 = np.zeros(tables, dtype=">u8")
        for index, where in placed.items():
            l1[index] = where * cluster | COPIED
        file.write(l1.tobytes())
        for index, where in placed.items():
            file.seek(where * cluster)
            file.write(l2[index].astype(">u8").tobytes())
        file.truncate(following * cluster)


def snapshots(path: Path) -> None:
    """64 GiB preallocated, 20 internal snapshots."""
    _qemu_img("create", "-q", "-f", "qcow2", "-o", "preallocation=metadata", str(path), "64G")
    for number in range(20):
        _qemu_img("snapshot", "-c", f"s{number}", str(path))


def small(path: Path) -> None:
    """An empty 1 GiB image: what starting the process costs."""
    _qemu_img("create", "-q", "-f", "qcow2", str(path), "1G")


def sparse(path: Path) -> None:
    """A file of 8 TiB with almost nothing in it: 4 KiB clusters, 2^31 of them, counted in windows."""
    _qemu_img("create", "-q", "-f", "qcow2", "-o", "cluster_size=4k", str(path), "1T")
    os.truncate(path, 8 * T)


CASES: dict[str, Callable[[Path], None]] = {
    "small": small,
    "random-writes": random_writes,
    "snapshots": snapshots,
    "preallocated": preallocated,
    "garbage": garbage,
    "sparse": sparse,
}


@dataclass(slots=True)
class Runs:
    """Wall and CPU seconds, and peak memory in MiB, of one tool."""

    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    memory: float = 0.0
    code: int = 0


def measure(command: list[str], runs: Runs) -> None:
    """Run once and note what it took."""
    reader = (
        "import resource,subprocess,sys,time\n"
        "t=time.perf_counter()\n"
        "c=subprocess.run(sys.argv[1:],stdout=subprocess.DEVNULL,stderr=subprocess.DEVNULL).returncode\n"
        "w=time.perf_counter()-t\n"
        "u=resource.getrusage(resource.RUSAGE_CHILDREN)\n"
        "print(c,w,u.ru_utime+u.ru_stime,u.ru_maxrss)\n"
    )
    done = subprocess.run([sys.executable, "-c", reader, *command], capture_output=True, text=True, check=True)
    code, wall, cpu, memory = done.stdout.split()
    runs.code = int(code)
    runs.wall.append(float(wall))
    runs.cpu.append(float(cpu))
    runs.memory = max(runs.memory, int(memory) / 1024)


def main() -> int:
    """Build, measure, print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--only", action="append", choices=sorted(CASES))
    options = parser.parse_args()
    folder = options.folder or Path(tempfile.mkdtemp(prefix="qwb-bench-"))
    folder.mkdir(parents=True, exist_ok=True)
    print("| image | qemu-img wall s | qwb wall s | ratio | qemu-img CPU s | qwb CPU s | ratio | qwb MiB | exit |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    for name in options.only or list(CASES):
        path = folder / f"{name}.qcow2"
        if not path.exists():
            draft = path.with_suffix(".new")
            CASES[name](draft)
            draft.rename(path)
        qemu, ours = Runs(), Runs()
        for _ in range(options.runs):
            measure([find_qemu_img() or "qemu-img", "check", "--output=json", str(path)], qemu)
            measure([sys.executable, "-m", "workbench.cli.main", "check", "--json", str(path)], ours)
        a, b = statistics.median(qemu.wall), statistics.median(ours.wall)
        c, d = statistics.median(qemu.cpu), statistics.median(ours.cpu)
        print(
            f"| {name} | {a:.3f} | {b:.3f} | {b / a:.2f} | {c:.3f} | {d:.3f} | {d / c if c else 0:.2f} | "
            f"{ours.memory:.0f} | {qemu.code}/{ours.code} |",
            flush=True,
        )
    if options.folder is None:
        shutil.rmtree(folder)
    return 0


if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    sys.exit(main())
