"""A refcount table entry that leads to something else: what lies there is never written over as if it were refcounts."""

from __future__ import annotations

from pathlib import Path

import pytest

from sample_images.editor import Editor
from sample_images.kit import Kit, M, noise
from tests.repair.judging import inside
from workbench.check import check
from workbench.engine.metadata import load_metadata
from workbench.repair.plan import Plan, make_plan
from workbench.repair.policy import Mode, Policy
from workbench.storage.file import FileStorage

pytestmark = pytest.mark.oracle  # the images are built by the real QEMU tools


def image(folder: Path) -> Path:
    """64 KiB clusters; one L2 table, and 20 MiB of noise behind it."""
    kit = Kit(folder)
    kit.create("1G")
    (folder / "noise").write_bytes(noise(20 * M, 7))
    kit.io("write -s noise 0 20M")
    return kit.path


def plan_of(path: Path) -> Plan:
    with inside(path.parent):
        return make_plan(FileStorage.open(path), Policy(mode=Mode.ALL))


@pytest.mark.parametrize("entry", [1, 3000], ids=["just past what is needed", "far past the end"])
def test_lost_data_that_an_entry_leads_to_stays(entry: int, tmp_path: Path) -> None:
    path = image(tmp_path)
    with Editor(path) as ed:
        host = ed.host_of(5 * M)
        ed.set_l1(0, 0)
        ed.set_rt(entry, host)
    before = path.read_bytes()[host : host + 65536]
    plan = plan_of(path)
    assert "REFBLOCK-FOREIGN" in plan.result_before.findings.by_code
    assert plan.proof.harmless
    assert plan.overlay.read(host, 65536) == before
    assert "REFBLOCK-FOREIGN" not in check(load_metadata(plan.overlay)).findings.by_code
    assert host >> 16 not in {
        number
        for step in plan.steps
        for start, length in step.frees
        for number in range(start >> 16, start + length >> 16)
    }


def test_an_overwritten_block_gets_a_new_one_and_nothing_else_is_lost(tmp_path: Path) -> None:
    path = image(tmp_path)
    with Editor(path) as ed:
        ed.write(ed.rt(0), noise(65536, 9))
    plan = plan_of(path)
    assert plan.after.clean
    assert plan.proof.harmless
