"""One damaged image, repaired by `qemu-img check -r all` and by us, and what the guest reads before and after."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from sample_images.qemu import Verdict as QemuVerdict
from sample_images.qemu import check as qemu_check
from workbench.engine.image import Image
from workbench.errors import QwbError
from workbench.repair.plan import Plan, PlanRefused
from workbench.repair.session import Guide

HUNG = QemuVerdict(124, None, "no answer in time")
_STEP = 1 << 20
_MOST = 64 << 20


@dataclass(slots=True)
class Judged:
    """before, theirs, ours: the real qemu-img check of the image as damaged, after `-r all`, after our repair.

    lost: guest ranges whose readable content changed although no step named them.  undone: undo gave the file back.
    """

    before: QemuVerdict
    theirs: QemuVerdict
    ours: QemuVerdict
    plan: Plan | None
    orphans: int = 0
    refused: str = ""
    lost: list[tuple[int, int]] = field(default_factory=list)
    lost_by_qemu: int = 0
    undone: bool = True

    @property
    def repaired(self) -> bool:
        """Clean to qemu-img, or nothing left but orphans kept on purpose."""
        return self.ours.code == 0 or (self.ours.code == 3 and self.ours.leaks <= self.orphans)

    @property
    def worse(self) -> bool:
        """qemu-img -r all leaves less."""
        return badness(self.ours, self.orphans) > badness(self.theirs)


def badness(verdict: QemuVerdict, kept: int = 0) -> tuple[int, int, int]:
    """Comparable: cannot be checked, corruptions, leaks (those kept on purpose not counted)."""
    unchecked = verdict.code not in (0, 2, 3)
    return (
        2 if unchecked and verdict.report is None else int(unchecked),
        verdict.corruptions,
        max(0, verdict.leaks - kept),
    )


def judge(
    image: Path, *, secret: str | None = None, undo: bool = True, content: bool = True, timeout: float = 20
) -> Judged:
    """Repair `image` in place both ways (theirs on a copy of its folder); with `undo` it is as it was at the end."""
    before = _check(image, secret, None, timeout)
    copy = image.parent.with_name(image.parent.name + ".theirs")
    shutil.copytree(image.parent, copy, symlinks=True)
    try:
        _check(copy / image.name, secret, "all", timeout)
        theirs = _check(copy / image.name, secret, None, timeout)
    finally:
        shutil.rmtree(copy)
    old = image.read_bytes()
    disk = read_disk(image, secret) if content else {}
    plan = None
    with inside(image.parent), Guide(image.name) as guide:
        try:
            plan = guide.plan()
            orphans = plan.after.orphans
            summary = plan.summary(100)
            assert summary["steps"] or plan.empty
            if not plan.empty:
                guide.apply()
        except PlanRefused as error:
            return Judged(before, theirs, before, None, refused=str(error))
    ours = _check(image, secret, None, timeout)
    done = Judged(before, theirs, ours, plan, orphans)
    if content and ours.code in (0, 2, 3):
        done.lost = _unnamed(disk, read_disk(image, secret), plan)
    if undo and not plan.empty:
        with inside(image.parent), Guide(image.name) as guide:
            guide.undo()
        done.undone = image.read_bytes() == old
    return done


def _check(image: Path, secret: str | None, repair: str | None, timeout: float) -> QemuVerdict:
    try:
        return qemu_check(image, secret=secret, repair=repair, timeout=timeout)
    except subprocess.TimeoutExpired:
        return HUNG


@contextmanager
def inside(folder: Path) -> Iterator[None]:
    """QEMU looks for an external data file in the working directory."""
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def read_disk(image: Path, secret: str | None) -> dict[int, bytes]:
    """Readable guest clusters by offset, as a guest would see them; empty when QEMU's driver would not open the image."""
    try:
        with inside(image.parent), Image.open(image.name, secret=secret.encode() if secret else None) as disk:
            geometry = disk.meta.geometry
            assert geometry is not None
            step = geometry.cluster_size
            return dict(_clusters(disk, min(disk.size, _MOST), step))
    except QwbError:
        return {}


def _clusters(disk: Image, size: int, step: int) -> Iterator[tuple[int, bytes]]:
    for start in range(0, size, max(_STEP, step)):
        end = min(start + max(_STEP, step), size)
        try:
            data = disk.read(start, end - start)
            for at in range(start, end, step):
                yield at, data[at - start : at - start + min(step, end - at)]
            continue
        except QwbError:
            pass
        for at in range(start, end, step):
            try:
                yield at, disk.read(at, min(step, end - at))
            except QwbError:
                continue


def _unnamed(before: dict[int, bytes], after: dict[int, bytes], plan: Plan) -> list[tuple[int, int]]:
    named = [each for step in plan.steps for each in step.guest]
    found = []
    for at, data in before.items():
        if after.get(at, b"") != data and not any(
            start < at + len(data) and at < start + length for start, length in named
        ):
            found.append((at, len(data)))
    return found
