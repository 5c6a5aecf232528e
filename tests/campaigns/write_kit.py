"""What the write campaigns share: small images in memory, seeded workloads, and a model of what a sector may hold.

Every write of a workload fills whole sectors with a byte of its own, so that one byte tells which write a sector is from.
"""

from __future__ import annotations

import random
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import numpy as np

from sample_images.qemu import find_qemu_img
from workbench.engine.create import CreateOptions, create, finish
from workbench.engine.image import Image
from workbench.engine.write.prealloc import Preallocation
from workbench.errors import QwbError
from workbench.storage.base import Storage
from workbench.storage.memory import MemoryStorage

SECTOR = 512
SMALLEST_CACHES: Mapping[str, object] = {"l2-cache-size": 1024, "refcount-cache-size": 1, "l2-cache-entry-size": 512}

SHAPES: Mapping[str, CreateOptions] = {
    "plain": CreateOptions(1 << 20),
    "4k": CreateOptions(1 << 20, cluster_size=4096),
    "512": CreateOptions(768 << 10, cluster_size=512),
    "512-64bit": CreateOptions(3 << 20, cluster_size=512, refcount_bits=64),
    "1bit": CreateOptions(1 << 20, cluster_size=4096, refcount_bits=1),
    "lazy": CreateOptions(1 << 20, cluster_size=4096, lazy_refcounts=True),
    "v2": CreateOptions(1 << 20, cluster_size=4096, compat=2),
    "extended": CreateOptions(1 << 20, cluster_size=16384, extended_l2=True),
    "zstd": CreateOptions(1 << 20, cluster_size=8192, compression_type="zstd"),
    "prealloc": CreateOptions(1 << 20, cluster_size=4096, preallocation=Preallocation.METADATA),
    "snapshot": CreateOptions(1 << 20, cluster_size=4096),
    "bitmap": CreateOptions(1 << 20, cluster_size=4096),
}
FIRST_TAG = 251
"""What the disk of `snapshot` holds in its first half before a workload starts."""


def new_image(options: CreateOptions) -> bytes:
    """A fresh image's bytes."""
    storage = MemoryStorage()
    create(storage, options)
    finish("<memory>", options, storage=storage)
    return storage.getvalue()


@cache
def prepared(shape: str) -> bytes:
    """The image that workloads of this shape start from. Snapshots and bitmaps are made by qemu-img (where it is)."""
    data = new_image(SHAPES[shape])
    tool = find_qemu_img()
    if shape not in ("snapshot", "bitmap") or tool is None:
        return data
    if shape == "snapshot":
        storage = MemoryStorage(data)
        with open_image(storage) as image:
            image.write(0, bytes((FIRST_TAG,)) * (image.size // 2))
        data = storage.getvalue()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "image.qcow2"
        path.write_bytes(data)
        command = ["snapshot", "-c", "one"] if shape == "snapshot" else ["bitmap", "--add", "-g", "4096"]
        subprocess.run([tool, *command, str(path), *(["dirty"] if shape == "bitmap" else [])], check=True)
        return path.read_bytes()


def open_image(storage: Storage, *, writable: bool = True, small: bool = False, discard: str = "unmap") -> Image:
    """Open an image that is in memory."""
    options: dict[str, object] = {"discard": discard}
    if small:
        options |= SMALLEST_CACHES
    return Image.open("<memory>", storage=storage, writable=writable, options=options)


@dataclass(frozen=True, slots=True)
class Step:
    """One operation of a workload. kind: write, zero, unmap, discard, compressed, flush.  offset, length: guest bytes."""

    kind: str
    offset: int = 0
    length: int = 0
    tag: int = 0

    def run(self, image: Image) -> None:
        match self.kind:
            case "write":
                image.write(self.offset, bytes((self.tag,)) * self.length)
            case "zero":
                image.write_zeroes(self.offset, self.length)
            case "unmap":
                image.write_zeroes(self.offset, self.length, unmap=True)
            case "discard":
                image.discard(self.offset, self.length)
            case "compressed":
                image.write_compressed(self.offset, bytes((self.tag,)) * self.length)
            case "flush":
                image.flush()


def workload(rng: random.Random, size: int, cluster: int, count: int) -> list[Step]:
    """`count` seeded steps on a disk of `size` bytes. Some are refused (compressed over allocated): see `apply`."""
    steps = []
    for number in range(count):
        tag = number % 250 + 1
        kind = rng.choices(
            ("write", "zero", "unmap", "discard", "compressed", "flush"), weights=(46, 6, 10, 14, 14, 10)
        )[0]
        if kind == "flush":
            steps.append(Step("flush"))
            continue
        hot = size if rng.random() < 0.4 else max(cluster * 6, size // 8)
        if kind in ("compressed", "discard") or rng.random() < 0.3:
            offset = rng.randrange(hot) // cluster * cluster
            length = cluster * (1 if kind == "compressed" else rng.choice((1, 1, 2, 5)))
        else:
            offset = rng.randrange(hot) // SECTOR * SECTOR
            length = SECTOR * rng.choice((1, 1, 3, 8, cluster // SECTOR, 3 * cluster // SECTOR // 2 + 1))
        length = min(length, size - offset)
        steps.append(Step(kind, offset, length, tag))
    return steps


@dataclass(slots=True)
class TagModel:
    """Which tags each sector may hold after a cut, and what it holds now. tags: uint8 per sector."""

    start: bytes
    """The disk before the workload."""
    now: np.ndarray = field(init=False)
    allowed: np.ndarray = field(init=False)
    """bool[sectors, 256]: what may be found after a cut since the last flush."""

    def __post_init__(self) -> None:
        self.now = np.frombuffer(self.start, dtype=np.uint8)[::SECTOR].copy()
        self.flushed()

    def flushed(self) -> None:
        """What is there now is durable: nothing older may be found."""
        self.allowed = np.zeros((len(self.now), 256), dtype=bool)
        self.allowed[np.arange(len(self.now)), self.now] = True

    def apply(self, step: Step, cluster: int, size: int) -> None:
        """The step succeeded."""
        low, high = span(step, cluster, size)
        if low < high:
            self.now[low // SECTOR : high // SECTOR] = 0 if step.kind in ("zero", "unmap", "discard") else step.tag
            self.attempt(step, cluster, size)

    def attempt(self, step: Step, cluster: int, size: int) -> None:
        """The step may have been done, in part or in full."""
        low, high = span(step, cluster, size)
        tag = 0 if step.kind in ("zero", "unmap", "discard") else step.tag
        self.allowed[low // SECTOR : high // SECTOR, tag] = True

    def judge(self, disk: bytes) -> str | None:
        """What is wrong with a disk found after a cut, or None."""
        found = np.frombuffer(disk, dtype=np.uint8).reshape(-1, SECTOR)
        tags = found[:, 0]
        mixed = np.flatnonzero((found != tags[:, None]).any(axis=1))
        if len(mixed):
            return f"sector {int(mixed[0])} is neither old nor new but a mixture"
        wrong = np.flatnonzero(~self.allowed[np.arange(len(self.now)), tags])
        if len(wrong):
            at = int(wrong[0])
            return f"sector {at} holds {int(tags[at])}, may hold {np.flatnonzero(self.allowed[at]).tolist()}"
        return None


def span(step: Step, cluster: int, size: int) -> tuple[int, int]:
    """Guest range that a step changes: a discard touches whole clusters only."""
    low, high = step.offset, step.offset + step.length
    if step.kind == "discard":
        low = -(-low // cluster) * cluster
        high = high if high == size else high // cluster * cluster
    return low, max(low, high)


def run_step(image: Image, step: Step) -> bool:
    """False when the engine refused a compressed write, which it must over allocated clusters."""
    try:
        step.run(image)
    except QwbError as error:
        if step.kind == "compressed" and "is allocated" in error.what:
            return False
        raise
    return True
