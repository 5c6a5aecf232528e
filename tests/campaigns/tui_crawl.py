"""Crawl the workbench over corrupted copies of the samples: no traceback, no step that freezes it for a second.

python -m tests.campaigns.tui_crawl --count 300 --seed 1
"""

from __future__ import annotations

import argparse
import asyncio
import random
import shutil
import sys
import tempfile
import time
import traceback
from pathlib import Path

from sample_images import load_manifest
from sample_images.mutate import corrupt
from tests.tui.crawl import crawl


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--count", type=int, default=300)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--limit", type=float, default=1.0, help="longest step allowed, in seconds")
    options = parser.parse_args()
    rng = random.Random(options.seed)
    samples = [sample for sample in load_manifest() if sample.path.exists()]
    bad, nodes, steps, slowest = 0, 0, 0, 0.0
    begin = time.perf_counter()
    for number in range(options.count):
        sample = rng.choice(samples)
        seed = rng.getrandbits(32)
        with tempfile.TemporaryDirectory() as folder:
            for each in sample.files:
                if (sample.path.parent / each).exists():
                    shutil.copy(sample.path.parent / each, Path(folder) / each)
            image = Path(folder) / sample.file
            what = corrupt(image, seed, metadata_only=rng.random() < 0.7)
            try:
                report = asyncio.run(crawl(image, Path(folder) / "state.json"))
            except Exception:  # noqa: BLE001 - a crash of any kind is what is looked for
                bad += 1
                print(f"{number}: {sample.name} seed {seed} ({what}):\n{traceback.format_exc()}")
                continue
        nodes, steps, slowest = nodes + report.nodes, steps + report.steps, max(slowest, report.slowest)
        if report.errors or report.slowest > options.limit:
            bad += 1
            print(
                f"{number}: {sample.name} seed {seed} ({what}): {report.errors[:1]} slowest {report.slowest:.2f} s at {report.slowest_at}"
            )
    taken = time.perf_counter() - begin
    print(
        f"{options.count} images, {nodes} nodes, {steps} steps, slowest step {slowest:.2f} s, {bad} bad, {taken:.0f} s"
    )
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
