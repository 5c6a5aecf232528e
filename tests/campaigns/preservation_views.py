"""What the guest sees, against the truth: which bytes of a view are equal, and which were equal and are no more.

A view is the active disk or a snapshot. It is read by our engine as QEMU would open it, or tolerantly, or from a raw
file that qemu-img wrote.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from sample_images.qemu import source_arguments
from tests.campaigns.preservation_bases import ACTIVE, IMAGE, Built, data_ranges, inside
from workbench.engine.image import Image
from workbench.errors import QwbError

CHUNK = 1 << 20
FINE = 256 << 20
"""Disks of at most this many bytes of truth data are compared in pieces of 64 bytes, larger ones by sectors."""
SAMPLED = 2 << 30
"""Of disks with more truth data than this, chunks that are mapped as they were are read by sample, one in `ONE_IN`."""
ONE_IN = 16
PIECE, SECTOR = 64, 512
"""What must be equal as a whole to count: single equal bytes in garbage are mere chance."""
Mask = NDArray[np.bool_]


class Reader(Protocol):
    """Something that reads a view. step: smallest piece (bytes) that is tried when a larger one cannot be read."""

    size: int
    step: int

    def read(self, offset: int, length: int) -> bytes: ...

    def data(self) -> list[tuple[int, int]] | None:
        """(start, end) of what may be other than zero; None when that cannot be told."""


@dataclass(slots=True)
class Seen:
    """One view compared. how: strict, tolerant, qemu, or empty when it could not be read.

    size, length: bytes of the view, of the truth.  unit: bytes that one bit of a mask stands for.  masks: per chunk that
    is not equal throughout, which units are.  equal: bytes, in equal units.  errors: pieces that could not be read.
    """

    how: str
    size: int
    length: int
    unit: int
    masks: dict[int, Mask] = field(default_factory=dict)
    equal: int = 0
    errors: int = 0
    why: str = ""

    @property
    def complete(self) -> bool:
        return self.equal == self.length

    def mask(self, chunk: int) -> Mask:
        """Which units of a chunk are equal to the truth."""
        known = self.masks.get(chunk)
        units = -(-min(CHUNK, self.length - chunk * CHUNK) // self.unit)
        if known is not None:
            return known
        out = np.ones(units, dtype=bool)
        if (chunk + 1) * CHUNK > self.size:
            out[max(0, self.size - chunk * CHUNK) // self.unit :] = False
        return out

    def all_equal(self, start: int, end: int) -> bool:
        """Every byte of the guest range is equal (what is beyond the truth's end counts as equal)."""
        end = min(end, self.length)
        if start >= end:
            return True
        if end > self.size:
            return False
        for chunk in range(start // CHUNK, (end - 1) // CHUNK + 1):
            if chunk in self.masks:
                low = max(0, start - chunk * CHUNK) // self.unit
                high = -(-(min(end, (chunk + 1) * CHUNK) - chunk * CHUNK) // self.unit)
                if not self.masks[chunk][low:high].all():
                    return False
        return True


@dataclass(frozen=True, slots=True)
class Lost:
    """Bytes that were equal to the truth and are no more. filled: those that are not zero in the truth."""

    bytes: int
    filled: int
    first: int

    def __str__(self) -> str:
        return f"{self.bytes} bytes ({self.filled} not zero) from guest offset {self.first:#x}"


class Truth:
    """A sparse raw file with what the guest sees."""

    def __init__(self, path: Path, length: int) -> None:
        self.length = length
        self._file = open(path, "rb")  # noqa: SIM115 - lives as long as the campaign
        size = os.fstat(self._file.fileno()).st_size
        self.chunks: set[int] = set()
        amount = 0
        for start, end in data_ranges(self._file.fileno(), min(size, length)):
            self.chunks.update(range(start // CHUNK, (end - 1) // CHUNK + 1))
            amount += end - start
        self.unit = PIECE if amount <= FINE else SECTOR
        self.sampled = amount > SAMPLED
        self.places: dict[int, int] = {}
        """Where the undamaged image has each chunk, as a hash of its extents (sampled disks only)."""

    def read(self, offset: int, length: int) -> bytes:
        return os.pread(self._file.fileno(), min(length, self.length - offset), offset).ljust(
            min(length, self.length - offset), b"\0"
        )

    def close(self) -> None:
        self._file.close()


class EngineReader:
    """A view as our engine reads it."""

    def __init__(self, image: Image) -> None:
        self.image = image
        self.size = image.size
        self.step = image.geometry.cluster_size

    def read(self, offset: int, length: int) -> bytes:
        return self.image.read(offset, length)

    def places(self) -> dict[int, int]:
        """Where each chunk lies, as a hash of its extents; empty when that cannot be told."""
        out: dict[int, int] = {}
        try:
            for each in self.image.extents():
                for chunk in range(each.start // CHUNK, (each.end - 1) // CHUNK + 1) if each.data else ():
                    low, high = max(each.start, chunk * CHUNK), min(each.end, (chunk + 1) * CHUNK)
                    host = -1 if each.host is None else each.host + low - each.start
                    out[chunk] = hash((out.get(chunk), low, high, host, each.depth))
        except QwbError:
            return {}
        return out

    def data(self) -> list[tuple[int, int]] | None:
        try:
            return [(each.start, each.end) for each in self.image.extents() if not each.zero or each.data]
        except QwbError:
            return None


class RawReader:
    """A view that qemu-img wrote into a raw file."""

    def __init__(self, path: Path) -> None:
        self.step = 512
        self.size = path.stat().st_size
        self._file = open(path, "rb")  # noqa: SIM115 - closed by `close`

    def read(self, offset: int, length: int) -> bytes:
        return os.pread(self._file.fileno(), length, offset)

    def data(self) -> list[tuple[int, int]] | None:
        return list(data_ranges(self._file.fileno(), self.size))

    def close(self) -> None:
        self._file.close()


def compare(reader: Reader, truth: Truth, how: str, skip: set[int] | None = None, gone: set[int] | None = None) -> Seen:
    """Compare a whole view with the truth; chunks in `skip` are taken as equal, those in `gone` as not equal."""
    size = min(reader.size, truth.length)
    seen = Seen(how, size, truth.length, truth.unit)
    chunks = set(truth.chunks)
    data = reader.data()
    if data is None:
        chunks = set(range(-(-size // CHUNK)))
    else:
        for start, end in data:
            if start < size:
                chunks.update(range(start // CHUNK, (min(end, size) - 1) // CHUNK + 1))
    seen.equal = size
    for chunk in gone or ():
        seen.masks[chunk] = np.zeros(-(-min(CHUNK, truth.length - chunk * CHUNK) // truth.unit), dtype=bool)
        seen.equal -= max(0, min(CHUNK, size - chunk * CHUNK))
    for chunk in sorted(chunks - (skip or set()) - (gone or set())):
        start = chunk * CHUNK
        if start >= size:
            continue
        length = min(CHUNK, truth.length - start)
        wanted = truth.read(start, length)
        mask, errors = _compared(reader, wanted, start, min(length, size - start))
        seen.errors += errors
        if mask is None:
            continue
        padded = np.concatenate([mask, np.ones(-len(mask) % truth.unit, dtype=bool)])
        units: Mask = np.all(padded.reshape(-1, truth.unit), axis=1)
        seen.masks[chunk] = units
        equal = np.repeat(units, truth.unit)[:length]
        seen.equal -= int((~equal[: size - start]).sum())
    return seen


def _compared(reader: Reader, wanted: bytes, start: int, readable: int) -> tuple[Mask | None, int]:
    """Which bytes are equal (None: all of them), and how many pieces could not be read."""
    mask: Mask | None = None
    errors = 0
    for at, data, length in _pieces(reader, start, start + readable):
        low = at - start
        if data == wanted[low : low + length]:
            continue
        if mask is None:
            mask = np.ones(len(wanted), dtype=bool)
            mask[readable:] = False
        if data is None:
            errors += 1
            mask[low : low + length] = False
        else:
            found, right = np.frombuffer(data, np.uint8), np.frombuffer(wanted, np.uint8, len(data), offset=low)
            mask[low : low + length] = np.equal(found, right)
    if mask is None and readable < len(wanted):
        mask = np.ones(len(wanted), dtype=bool)
        mask[readable:] = False
    return mask, errors


def _pieces(reader: Reader, start: int, end: int) -> Iterator[tuple[int, bytes | None, int]]:
    try:
        yield start, reader.read(start, end - start), end - start
        return
    except QwbError:
        if end - start <= reader.step:
            yield start, None, end - start
            return
    middle = start + (end - start) // 2 // reader.step * reader.step
    if not start < middle < end:
        middle = min(start + reader.step, end - 1)
    yield from _pieces(reader, start, middle)
    yield from _pieces(reader, middle, end)


def nothing(truth: Truth, why: str) -> Seen:
    """A view that cannot be read at all."""
    return Seen("", 0, truth.length, truth.unit, why=why)


def see(folder: Path, built: Built, truths: dict[str, Truth], *, tolerant: bool) -> dict[str, Seen]:
    """Every view of the image in `folder`. tolerant: what QEMU refuses is opened all the same, where that can be done."""
    out = {}
    with inside(folder):
        for view, truth in truths.items():
            out[view] = _see_one(built, view, truth, tolerant)
    return out


def _see_one(built: Built, view: str, truth: Truth, tolerant: bool) -> Seen:
    secret = built.base.passphrase.encode() if built.base.passphrase else None
    why = ""
    for way in ("strict", "tolerant") if tolerant else ("strict",):
        try:
            snapshot = None if view == ACTIVE else view
            with Image.open(IMAGE, secret=secret, snapshot=snapshot, tolerant=way == "tolerant") as image:
                reader = EngineReader(image)
                return compare(reader, truth, way, *(_out_of_sample(reader, truth) if truth.sampled else ()))
        except QwbError as error:
            why = why or str(error)
    return nothing(truth, why)


def _out_of_sample(reader: EngineReader, truth: Truth) -> tuple[set[int], set[int]]:
    """Chunks of a very large disk that are not in the sample: those that lie where they lay, those that are nowhere now.

    The first call sees the truth.
    """
    now = reader.places()
    if not truth.places:
        truth.places = now
    others = {chunk: place for chunk, place in truth.places.items() if chunk % ONE_IN}
    if not now:
        return set(), set()
    same = {chunk for chunk, place in others.items() if now.get(chunk) == place}
    return same, {chunk for chunk in others if chunk not in now and chunk * CHUNK < reader.size}


def see_by_qemu(folder: Path, built: Built, truths: dict[str, Truth], *, salvage: bool = False) -> dict[str, Seen]:
    """Every view as the real qemu-img reads it (with `salvage`, what it cannot read is zeros)."""
    out = {}
    for view, truth in truths.items():
        target = folder / ".view.raw"
        target.unlink(missing_ok=True)
        pick = [] if view == ACTIVE else ["-l", f"snapshot.id={view}"]
        command = ["qemu-img", "convert", *(["--salvage"] if salvage else []), *pick]
        command += [*source_arguments(Path(IMAGE), built.base.passphrase), "-O", "raw", target.name]
        try:
            done = subprocess.run(
                command, cwd=folder, capture_output=True, text=True, errors="replace", timeout=120, check=False
            )
            if done.returncode:
                out[view] = nothing(truth, done.stderr.strip()[-160:])
                continue
            reader = RawReader(target)
            out[view] = compare(reader, truth, "qemu")
            reader.close()
        except subprocess.TimeoutExpired:
            out[view] = nothing(truth, "no answer in time")
        finally:
            target.unlink(missing_ok=True)
    return out


def lost_between(before: Seen, after: Seen, truth: Truth, *, except_for: list[tuple[int, int]] = []) -> Lost | None:  # noqa: B006 - never changed
    """What was equal before and is not after, guest ranges in `except_for` left out; None when nothing."""
    total = filled = 0
    first = -1
    chunks = set(after.masks)
    if after.size < before.size:
        chunks |= set(range(after.size // CHUNK, -(-before.size // CHUNK)))
    for chunk in sorted(chunks):
        lost = before.mask(chunk) & ~after.mask(chunk)
        start = chunk * CHUNK
        for low, high in except_for:
            if low < start + CHUNK and high > start:
                lost[max(0, low - start) // before.unit : -(-max(0, min(high - start, CHUNK)) // before.unit)] = False
        if not lost.any():
            continue
        wanted = np.frombuffer(truth.read(start, CHUNK), np.uint8)
        where = np.repeat(lost, before.unit)[: len(wanted)]
        total += int(where.sum())
        filled += int((wanted[where] != 0).sum())
        if first < 0:
            first = start + int(np.flatnonzero(where)[0])
    return Lost(total, filled, first) if total else None


def total(seen: dict[str, Seen]) -> int:
    """Bytes equal to the truth, over all views."""
    return sum(each.equal for each in seen.values())


def complete(seen: dict[str, Seen]) -> bool:
    """Every view is the truth, to the last byte."""
    return all(each.complete for each in seen.values())
