"""Campaign: random metadata damage, repaired by us and by `qemu-img check -r all`; the guest's data compared.

    python -m tests.campaigns.repair_mutations --seed 1 --count 2000

Per image: the real qemu-img check must find no more after our repair than after `-r all`; guest content that was
readable is unchanged where no step named it; undo gives the file back bit for bit; no tracebacks.
"""

from __future__ import annotations

import argparse
import random
import shutil
import sys
import tempfile
import time
import traceback
from collections import Counter
from pathlib import Path

from sample_images.bases import BASES
from sample_images.mutate import corrupt, mutate
from tests.repair.judging import judge

NAMES = [
    "many-l2", "snapshots", "snapshots-many", "bitmaps", "bitmap-uneven", "refcount-blocks", "refcount-1", "refcount-2",
    "refcount-64", "v2-4k", "v3-16k", "subclusters-16k", "zstd-4k", "data-file", "data-file-raw", "backing-raw",
    "backing-qcow2", "lazy-refcounts", "luks-aes-128-cbc-plain64", "full-disk", "fragmented", "resized", "header-104",
]  # fmt: skip


def main() -> int:
    """Run the campaign; exit code 1 when something fell short."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else "")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--only", type=int, help="run this single image seed (with --base)")
    parser.add_argument("--base", choices=NAMES)
    parser.add_argument("--blind", action="store_true", help="overwrite bytes blindly instead of metadata knowingly")
    options = parser.parse_args()
    rng, tally = random.Random(options.seed), Counter[str]()
    slowest = 0.0
    with tempfile.TemporaryDirectory(prefix="qwb-repair-") as root:
        built: dict[str, Path] = {}
        for _ in range(1 if options.only is not None else options.count):
            name, seed = rng.choice(NAMES), rng.getrandbits(32)
            if options.only is not None:
                name, seed = options.base, options.only
            if name not in built:
                built[name] = BASES[name].build(Path(root) / name)
            folder = Path(root) / "now"
            shutil.copytree(built[name].parent, folder, symlinks=True)
            image = folder / built[name].name
            try:
                damage = (corrupt if options.blind else mutate)(image, seed)
            except (OverflowError, MemoryError):  # an earlier mutation made the cluster size absurd
                tally["not mutated"] += 1
                shutil.rmtree(folder)
                continue
            started = time.perf_counter()
            problems = one(image, BASES[name].secret, tally)
            slowest = max(slowest, time.perf_counter() - started)
            shutil.rmtree(folder)
            for problem in problems:
                print(f"{problem}\n    {name} {damage}", flush=True)
    print(
        f"\n{sum(tally[key] for key in ('clean before', 'damaged before'))} images: {dict(sorted(tally.items()))}; slowest {slowest:.1f} s"
    )
    return int(any(tally[key] for key in ("WORSE", "LOST", "UNDO", "TRACEBACK")))


def one(image: Path, secret: str | None, tally: Counter[str]) -> list[str]:
    """Judge one image; returns what fell short, in words."""
    try:
        found = judge(image, secret=secret)
    except Exception:  # noqa: BLE001 - a campaign reports every traceback and goes on
        tally["TRACEBACK"] += 1
        return ["TRACEBACK " + traceback.format_exc(limit=-4)]
    damaged = found.before.code != 0
    tally["damaged before" if damaged else "clean before"] += 1
    out = []
    if damaged:
        tally["repaired by us"] += found.repaired
        tally["repaired by qemu-img -r all"] += found.theirs.code == 0
    if found.refused:
        tally["refused"] += 1
        out.append(f"REFUSED {found.refused[:200]}")
    if found.worse:
        tally["WORSE"] += 1
        ours, theirs = found.ours, found.theirs
        out.append(
            f"WORSE before {found.before.code}/{found.before.corruptions}/{found.before.leaks}"
            f" ours {ours.code}/{ours.corruptions}/{ours.leaks} (kept {found.orphans}) {ours.message[:160]!r}"
            f" theirs {theirs.code}/{theirs.corruptions}/{theirs.leaks}"
        )
    elif damaged and not found.repaired:
        tally["left over"] += 1
        out.append(
            f"left {found.ours.code}/{found.ours.corruptions}/{found.ours.leaks} (kept {found.orphans}) {found.ours.message[:120]!r}"
        )
    if found.lost:
        tally["LOST"] += 1
        out.append(f"LOST {len(found.lost)} clusters, first {found.lost[0]}")
    if not found.undone:
        tally["UNDO"] += 1
        out.append("UNDO is not bit for bit")
    return out


if __name__ == "__main__":
    sys.exit(main())
