"""Campaign: every damage recipe, repaired by `qemu-img check -r all` and by us; prints the table of both.

python -m tests.campaigns.repair_recipes
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from sample_images.qemu import Verdict
from sample_images.recipes import RECIPES, make
from tests.repair.judging import judge


def main() -> int:
    """Print one line for each recipe that QEMU calls corrupt or leaking, and the totals."""
    broken = ours = theirs = leaking = kept = 0
    with tempfile.TemporaryDirectory(prefix="qwb-recipes-") as root:
        for name, recipe in RECIPES.items():
            if "qemu-hangs" in recipe.tags:
                continue
            found = judge(make(name, Path(root) / name), secret=recipe.secret)
            if found.before.code in (1, 2):
                broken += 1
                ours += found.repaired
                theirs += found.theirs.code == 0
            elif found.before.code == 3:
                leaking += 1
                kept += found.ours.code == 3
            if found.before.code:
                note = " LOST DATA" if found.lost else "" if found.undone else " UNDO FAILED"
                print(
                    f"{name:34} {_say(found.before):18} -r all: {_say(found.theirs):18} ours: {_say(found.ours, found.orphans)}{note}"
                )
    print(
        f"\nbroken {broken}: clean after one `-r all` {theirs}, after `qwb repair --all` {ours} ({100 * ours / broken:.1f}%)"
    )
    print(f"leaking {leaking}: orphans kept in {kept}")
    return 0


def _say(verdict: Verdict, orphans: int = 0) -> str:
    if verdict.code not in (0, 2, 3):
        return "cannot open"
    parts = [f"{verdict.corruptions} corrupt"] if verdict.corruptions else []
    if verdict.leaks:
        parts.append(f"{verdict.leaks} leaks" + (" (kept)" if verdict.leaks <= orphans else ""))
    return ", ".join(parts) or "clean"


if __name__ == "__main__":
    sys.exit(main())
