"""Campaign: repairs of damage recipes, cut off at every write of the apply and of the undo, ended both ways.

    python -m tests.campaigns.repair_kill --count 60            simulated power cuts, torn and reordered writes included
    python -m tests.campaigns.repair_kill --count 5 --sigkill   real processes, really killed

Rolling back must give the original bit for bit, completing the planned result; nothing in between.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from sample_images.bases import BASES
from sample_images.recipes import RECIPES, damage
from tests.repair.cuts import apply_with_cuts, undo_with_cuts
from workbench.repair.plan import PlanRefused, make_plan
from workbench.repair.recovery import interrupted, recover
from workbench.storage.file import FileStorage

_CHILD = """
import os, signal, sys
from pathlib import Path
from workbench.repair.apply import apply_to, open_locked
from workbench.repair.casefile import CaseFile
from workbench.repair.cases import case_path
from workbench.repair.plan import make_plan
from workbench.repair.undo import undo_in
from workbench.storage.file import FileStorage
from workbench.storage.recording import Recording
image, at, what = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
class Killing(Recording):
    def _op(self, op):
        if len(self.ops) >= at:
            os.kill(os.getpid(), signal.SIGKILL)
        super()._op(op)
with FileStorage.open(image) as source:
    change = make_plan(source).change() if what == "apply" else None
    with open_locked(image) as storage, CaseFile(case_path(image)) as casefile:
        if change is not None:
            apply_to(Killing(storage), casefile, change)
        else:
            undo_in(Killing(storage), casefile)
"""


def main() -> int:
    """Run the campaign; an AssertionError ends it."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--count", type=int, default=60)
    parser.add_argument("--sigkill", action="store_true")
    parser.add_argument("--largest", type=int, default=2 << 20, help="skip images larger than this (bytes)")
    options = parser.parse_args()
    names = [name for name in RECIPES if "qemu-hangs" not in RECIPES[name].tags]
    random.Random(options.seed).shuffle(names)
    repairs = states = 0
    started = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="qwb-kill-") as root:
        for name in names:
            if repairs >= options.count:
                break
            folder = Path(root) / name
            image = BASES[RECIPES[name].base].build(folder)
            damage(RECIPES[name], image)
            pair = _planned(image) if image.stat().st_size <= options.largest else None
            if pair is not None:
                tried = _kill(image, *pair) if options.sigkill else _cut(folder, *pair)
                repairs, states = repairs + 1, states + tried
                print(f"{name}: {tried} states", flush=True)
            shutil.rmtree(folder)
    print(
        f"{repairs} repairs, {states} interrupted states, all ended as they must; {time.perf_counter() - started:.0f} s"
    )
    return 0


def _planned(image: Path) -> tuple[bytes, bytes] | None:
    with FileStorage.open(image) as storage:
        try:
            plan = make_plan(storage)
        except PlanRefused:
            return None
        return None if plan.empty else (image.read_bytes(), plan.overlay.read(0, plan.overlay.size()))


def _cut(folder: Path, old: bytes, new: bytes) -> int:
    return sum(1 for _ in apply_with_cuts(old, new, folder)) + sum(1 for _ in undo_with_cuts(old, new, folder))


def _kill(image: Path, old: bytes, new: bytes) -> int:
    tried = 0
    for what in ("apply", "undo"):
        at = 0
        while True:
            image.write_bytes(new if what == "undo" else old)
            case = Path(f"{image}.qwb-case")
            if what == "undo":
                shutil.copy(image.parent / "done.qwb-case", case)
            else:
                case.unlink(missing_ok=True)
            done = subprocess.run(
                [sys.executable, "-c", _CHILD, str(image), str(at), what], check=False, env=os.environ
            )
            if done.returncode != -signal.SIGKILL:
                assert done.returncode == 0, done
                assert image.read_bytes() == (new if what == "apply" else old)
                if what == "apply":
                    shutil.copy(case, image.parent / "done.qwb-case")
                break
            assert interrupted(image) is not None
            left, saved = image.read_bytes(), case.read_bytes()
            for complete, wanted in ((False, old), (True, new)):
                image.write_bytes(left)
                case.write_bytes(saved)
                recover(image, complete=complete)
                assert image.read_bytes() == wanted, f"{what} at {at}, complete={complete}"
                tried += 1
            at += 1
    return tried


if __name__ == "__main__":
    sys.exit(main())
