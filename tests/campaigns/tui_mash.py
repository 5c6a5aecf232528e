"""Careless hands over every sample: seeded keys, clicks and sizes; no traceback, not even one told in words.

python -m tests.campaigns.tui_mash --count 100 --seed 1
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
import time
import traceback
from pathlib import Path

from sample_images import load_manifest
from tests.tui.mash import Mash


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    samples = [sample for sample in load_manifest() if sample.path.exists()]
    bad, begin = 0, time.perf_counter()
    for number in range(options.count):
        seed = options.seed * 100_000 + number
        sample = samples[(options.seed * 17 + number) % len(samples)]
        with tempfile.TemporaryDirectory() as folder:
            mash = Mash(sample, Path(folder), seed)
            try:
                found = asyncio.run(mash.run(options.steps))
            except Exception:  # noqa: BLE001 - a crash of any kind is what is looked for
                found = [traceback.format_exc()]
        if found:
            bad += 1
            print(f"{number}: {sample.name} seed {seed}: {mash.log[-30:]}\n{found[0]}", flush=True)
    print(f"{options.count} runs of {options.steps} steps, {bad} bad, {time.perf_counter() - begin:.0f} s")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
