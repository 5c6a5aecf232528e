"""Repairs on storage that cannot grow: what is there is used again, then free clusters inside, and else the bytes missing are said."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from sample_images.editor import Editor
from sample_images.kit import Kit, M, noise
from workbench.repair.plan import Plan, make_plan
from workbench.repair.policy import Mode, Policy
from workbench.repair.session import Guide
from workbench.storage.memory import MemoryStorage

pytestmark = pytest.mark.oracle  # the images are built by the real QEMU tools

CLUSTER = 65536


class Fixed(MemoryStorage):
    """Bytes in memory whose length cannot change, as a block device's."""

    @property
    def growable(self) -> bool:
        return False

    def truncate(self, size: int) -> None:
        raise AssertionError("a device cannot be made longer")


def image(folder: Path, free: int) -> Path:
    """8 MiB of noise in 64 KiB clusters; `free` clusters behind the last one that is in use."""
    kit = Kit(folder)
    kit.create("16M")
    (folder / "noise").write_bytes(noise(8 * M, 7))
    kit.io("write -s noise 0 8M")
    size = -(-kit.path.stat().st_size // CLUSTER)
    with open(kit.path, "r+b") as file:
        file.truncate((size + free) * CLUSTER)
    return kit.path


def lose_entry(ed: Editor) -> None:
    ed.set_rt(0, ed.rt(0) | 0x200)


def lose_block(ed: Editor) -> None:
    ed.write(ed.rt(0), noise(CLUSTER, 3))


def lose_table(ed: Editor) -> None:
    ed.set("refcount_table_offset", 1 << 40)


def plan_of(path: Path) -> Plan:
    return make_plan(Fixed(path.read_bytes()), Policy(mode=Mode.ALL))


def test_a_block_that_is_intact_is_used_again(tmp_path: Path) -> None:
    path = image(tmp_path, 0)
    before = path.read_bytes()
    with Editor(path) as ed:
        lose_entry(ed)
    plan = plan_of(path)
    assert plan.after.clean
    assert plan.overlay.read(0, plan.overlay.size()) == before


@pytest.mark.parametrize(("hurt", "free"), [(lose_block, 1), (lose_block, 9), (lose_table, 2), (lose_table, 5)])
def test_free_clusters_inside_are_used(hurt: Callable[[Editor], None], free: int, tmp_path: Path) -> None:
    path = image(tmp_path, free)
    with Editor(path) as ed:
        hurt(ed)
    size = path.stat().st_size
    plan = plan_of(path)
    assert plan.proof.harmless
    assert plan.overlay.size() == size
    assert not plan.after.corruptions
    assert plan.after.openable


@pytest.mark.parametrize(("hurt", "free", "missing"), [(lose_block, 0, 1), (lose_table, 1, 2)])
def test_without_room_the_bytes_missing_are_said(
    hurt: Callable[[Editor], None], free: int, missing: int, tmp_path: Path
) -> None:
    path = image(tmp_path, free)
    with Editor(path) as ed:
        hurt(ed)
    plan = plan_of(path)
    assert plan.overlay.size() == path.stat().st_size
    assert any(f"cannot grow: {missing * CLUSTER} bytes are missing; extend the device" in note for note in plan.notes)


def test_on_a_real_device_the_repair_fits_and_is_undone(tmp_path: Path, loop: Callable[[Path], Path]) -> None:
    path = image(tmp_path, 3)
    with Editor(path) as ed:
        lose_block(ed)
    before = path.read_bytes()
    device = loop(path)
    with Guide(device) as guide:
        guide.plan()
        guide.apply()
        assert guide.plan().empty
    with Guide(device) as guide:
        guide.undo()
    assert path.read_bytes() == before
