"""Base images are healthy to real QEMU; each damage recipe changes its image, with the recorded verdict.

``QWB_UPDATE_VERDICTS=1 pytest tests/oracle/test_recipes.py`` (without xdist) records the verdicts anew.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from sample_images.bases import BASES
from sample_images.qemu import check, qemu_version
from sample_images.recipes import RECIPES
from tests.conftest import BaseImages

pytestmark = pytest.mark.oracle

VERDICTS = Path(__file__).with_name("verdicts.json")
RECORDED_WITH = (7, 2)
UPDATE = os.environ.get("QWB_UPDATE_VERDICTS") == "1"


@pytest.mark.parametrize("name", BASES)
def test_base_is_clean_to_qemu(name: str, base_images: BaseImages) -> None:
    verdict = check(base_images.get(name), secret=BASES[name].secret)
    assert verdict.code == 0, verdict.message


@pytest.mark.parametrize("name", RECIPES)
def test_recipe_changes_the_image_and_qemu_gives_the_recorded_verdict(name: str, base_images: BaseImages) -> None:
    recipe = RECIPES[name]
    damaged = base_images.damaged(name)
    assert damaged.read_bytes() != base_images.get(recipe.base).read_bytes()
    if "qemu-hangs" in recipe.tags:
        return
    verdict = check(damaged, secret=recipe.secret)
    found = [verdict.code, verdict.corruptions, verdict.leaks]
    recorded = json.loads(VERDICTS.read_text()) if VERDICTS.exists() else {}
    if UPDATE:
        recorded[name] = found
        lines = ",\n".join(f"  {json.dumps(key)}: {json.dumps(recorded[key])}" for key in sorted(recorded))
        VERDICTS.write_text("{\n" + lines + "\n}\n")
    elif qemu_version()[:2] == RECORDED_WITH:
        assert found == recorded[name]


def test_there_are_enough_bases_and_recipes() -> None:
    assert len(BASES) >= 60
    assert len(RECIPES) >= 100
