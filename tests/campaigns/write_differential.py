"""The same seeded scripts through `qwb io`'s engine and through the real qemu-io.

    python -m tests.campaigns.write_differential --seed 1 --count 300

Afterwards both images must hold the same disk (each read by both tools), be clean under qemu-img check, and both must have
printed the same. Where qemu-io's own image is damaged (it packs compressed data into freed clusters), ours is judged
against the model alone and the script is listed.
"""

from __future__ import annotations

import argparse
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from sample_images.qemu import find_qemu_img, find_qemu_io
from workbench.engine.image import Image
from workbench.engine.qio.session import OpenOptions, Session
from workbench.errors import QwbError

SECRET = "frosty-pea-42"
SIZE = 4 << 20
_TIME = re.compile(r"ops; .*$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Shape:
    """How an image is created. options: for qemu-img create -o.  backing: raw, qcow2 or None, with its size in bytes."""

    name: str
    options: str = ""
    backing: str | None = None
    backing_size: int = SIZE
    crypt: bool = False
    compressed: bool = True
    snapshot: bool = False
    bitmap: bool = False
    cluster: int = 65536
    size: int = SIZE
    v2: bool = False
    data_file: bool = False
    extended: bool = False


SHAPES = (
    Shape("plain"),
    Shape("512", "cluster_size=512", cluster=512, size=1 << 20),
    Shape("4k", "cluster_size=4k", cluster=4096),
    Shape("2M", "cluster_size=2M", cluster=2 << 20, size=(12 << 20) + 512),
    Shape("v2", "compat=0.10", v2=True),
    Shape("v2 backed", "compat=0.10,cluster_size=4k", backing="raw", v2=True, cluster=4096),
    Shape("1 bit", "refcount_bits=1"),
    Shape("64 bit", "refcount_bits=64,cluster_size=4k", cluster=4096),
    Shape("lazy", "lazy_refcounts=on"),
    Shape("zstd", "compression_type=zstd"),
    Shape("extended", "extended_l2=on", extended=True),
    Shape("extended 16k backed", "extended_l2=on,cluster_size=16k", backing="qcow2", cluster=16384, extended=True),
    Shape("backed", backing="qcow2"),
    Shape("short backing", "cluster_size=4k", backing="raw", backing_size=(1 << 20) + 1536, cluster=4096),
    Shape("long backing", backing="qcow2", backing_size=SIZE * 2),
    Shape("preallocated", "preallocation=metadata"),
    Shape("data file", "data_file=DATA", compressed=False, data_file=True),
    Shape("raw data file", "data_file=DATA,data_file_raw=on", compressed=False, data_file=True),
    Shape("luks", "encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10", crypt=True, compressed=False),
    Shape("aes", "encryption=on,encrypt.key-secret=s,cluster_size=4k", crypt=True, compressed=False, cluster=4096),
    Shape("snapshot", snapshot=True),
    Shape("snapshot 4k", "cluster_size=4k", snapshot=True, cluster=4096),
    Shape("extended snapshot", "extended_l2=on,cluster_size=16k", snapshot=True, cluster=16384, extended=True),
    Shape("bitmap", bitmap=True),
    Shape("odd size", "cluster_size=64k", size=SIZE + 3 * 512),
)


@dataclass(slots=True)
class Tally:
    scripts: int = 0
    oracle_damaged: list[str] = field(default_factory=list)
    output_only: list[str] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Case:
    """An image and how to reach it."""

    folder: Path
    shape: Shape

    @property
    def image(self) -> Path:
        return self.folder / "disk.qcow2"

    def img(self, *args: str) -> subprocess.CompletedProcess[str]:
        tool = find_qemu_img()
        assert tool is not None
        return subprocess.run([tool, *args], cwd=self.folder, capture_output=True, text=True, check=False)

    def secrets(self) -> list[str]:
        return ["--object", f"secret,id=s,data={SECRET}"] if self.shape.crypt else []

    def source(self) -> list[str]:
        if not self.shape.crypt:
            return ["-f", "qcow2", str(self.image)]
        return ["--image-opts", f"driver=qcow2,encrypt.key-secret=s,file.filename={self.image}"]

    def open(self, *, writable: bool = False) -> Image:
        return Image.open(self.image, writable=writable, secret=SECRET.encode() if self.shape.crypt else None)

    def disk_by_qemu(self) -> bytes:
        raw = self.folder / "out.raw"
        done = self.img("convert", *self.secrets(), *self.source(), "-O", "raw", str(raw))
        if done.returncode:
            raise RuntimeError(f"qemu-img convert: {done.stderr}")
        return raw.read_bytes()

    def disk_by_us(self) -> bytes:
        with self.open() as image:
            return image.read(0, image.size)


def build(folder: Path, shape: Shape, rng: random.Random) -> tuple[Case, bytearray]:
    """A fresh image of this shape and its disk's content."""
    folder.mkdir()
    case = Case(folder, shape)
    model = bytearray(shape.size)
    create = ["create", "-q", *case.secrets(), "-f", "qcow2"]
    if shape.backing:
        content = b"".join(rng.randbytes(1) * 3072 for _ in range(shape.backing_size // 3072 + 1))[: shape.backing_size]
        (folder / "base.raw").write_bytes(content)
        if shape.backing == "qcow2":
            case.img("convert", "-O", "qcow2", "base.raw", "base.qcow2")
        create += ["-b", f"base.{shape.backing}", "-F", shape.backing]
        part = content[: shape.size]
        model[: len(part)] = part
    if shape.options:
        create += ["-o", shape.options.replace("DATA", str(folder / "data.bin"))]
    for _ in range(5):  # qemu-img sometimes cannot measure how fast it derives keys
        done = case.img(*create, "disk.qcow2", str(shape.size))
        if "CPU usage" not in done.stderr:
            break
    if done.returncode:
        raise RuntimeError(done.stderr)
    if shape.snapshot:
        with case.open(writable=True) as image:
            image.write(0, b"\x5a" * (shape.size // 2))
            model[: shape.size // 2] = b"\x5a" * (shape.size // 2)
        case.img("snapshot", "-c", "one", "disk.qcow2")
    if shape.bitmap:
        case.img("bitmap", "--add", "-g", "4096", "disk.qcow2", "dirty")
    return case, model


def twin(case: Case, folder: Path) -> Case:
    """A second copy; an external data file of its own (its name in the header has the same length)."""
    shutil.copytree(case.folder, folder)
    other = Case(folder, case.shape)
    if case.shape.data_file:
        header = other.image.read_bytes()
        other.image.write_bytes(header.replace(bytes(case.folder), bytes(folder)))
    return other


Effect = Callable[[bytearray], None]


def script(rng: random.Random, shape: Shape, count: int) -> list[tuple[str, Effect | None]]:
    """(command, what it does to the disk when it succeeds)."""
    lines: list[tuple[str, Effect | None]] = []
    size = shape.size
    for number in range(count):
        kinds = [
            "write",
            "zero",
            "unmap",
            "discard",
            "read",
            "flush",
            "writev",
            "aio",
            "map",
            "alloc",
            "reopen",
            "truncate",
        ]
        weights = [34, 8, 8, 12, 10, 4, 4, 4, 1, 2, 1, 1]
        if shape.compressed:
            kinds.append("compressed")
            weights.append(10)
        kind = rng.choices(kinds, weights)[0]
        offset, length = _range(rng, shape, size)
        byte = number % 255 + 1
        match kind:
            case "write":
                lines.append((f"write -P {byte} {offset} {length}", _fill(offset, length, byte)))
            case "writev":
                half = length // 2
                lines.append((f"writev -P {byte} {offset} {half} {length - half}", _fill(offset, length, byte)))
            case "aio":
                lines.append((f"aio_write -P {byte} {offset} {length}", _fill(offset, length, byte)))
                lines.append(("aio_flush", None))
            case "zero" | "unmap":
                flags = "-z" if kind == "zero" else "-z -u"
                lines.append((f"write {flags} {offset} {length}", _fill(offset, length, 0)))
            case "discard":
                lines.append((f"discard {offset} {length}", _discard(shape, offset, length)))
            case "compressed":
                at = offset // shape.cluster * shape.cluster
                whole = min(shape.cluster, size - at)
                lines.append((f"write -c -P {byte} {at} {whole}", _fill(at, whole, byte)))
            case "read":
                lines.append((f"read -P {byte} {offset} {length}", None))
            case "alloc":
                lines.append((f"alloc {offset} {length}", None))
            case "truncate" if not shape.v2 and not (shape.snapshot and rng.random() < 0.5):
                size = _new_size(rng, shape, size)
                lines.append((f"truncate {size}", _truncate(size)))
            case "flush" | "map":
                lines.append((kind, None))
            case _:
                lines.append(("flush", None))
    return lines


def _new_size(rng: random.Random, shape: Shape, size: int) -> int:
    """Smaller by whole clusters (what QEMU leaves behind a smaller end shows again when it grows), or larger."""
    if rng.random() < 0.5:
        return max(shape.cluster, (size - rng.randrange(1, size // 4)) // shape.cluster * shape.cluster)
    return min(size + rng.randrange(1, size // 4) // 512 * 512, shape.size * 2)


def _range(rng: random.Random, shape: Shape, size: int) -> tuple[int, int]:
    cluster = shape.cluster
    hot = size if rng.random() < 0.4 else min(size, 8 * cluster)
    style = rng.random()
    if style < 0.35:
        offset, length = rng.randrange(hot) // cluster * cluster, cluster * rng.choice((1, 1, 2, 4))
    elif style < 0.75:
        offset, length = rng.randrange(hot) // 512 * 512, 512 * rng.randrange(1, max(2, min(cluster // 128, 400)))
    else:
        offset, length = rng.randrange(hot), rng.randrange(1, min(cluster * 3, 300_000))
    return offset, max(1, min(length, size - offset))


def _fill(offset: int, length: int, byte: int) -> Effect:
    def effect(disk: bytearray) -> None:
        disk[offset : offset + length] = bytes((byte,)) * length

    return effect


def _discard(shape: Shape, offset: int, length: int) -> Effect:
    def effect(disk: bytearray) -> None:
        if shape.v2 and shape.backing:
            return
        low, high = -(-offset // shape.cluster) * shape.cluster, offset + length
        high = high if high == len(disk) else high // shape.cluster * shape.cluster
        if low < high:
            disk[low:high] = bytes(high - low)

    return effect


def _truncate(size: int) -> Effect:
    def effect(disk: bytearray) -> None:
        del disk[size:]
        disk.extend(bytes(size - len(disk)))

    return effect


def run_ours(case: Case, lines: list[tuple[str, Effect | None]], model: bytearray) -> str:
    """Run the script here; the model follows what succeeded."""
    out: list[str] = []
    session = Session(out.append, lambda _: None, OpenOptions(secret=SECRET.encode() if case.shape.crypt else None))
    errors: list[str] = []
    session._complain = errors.append
    if not session.open(str(case.image)):
        raise RuntimeError("".join(errors))
    for line, effect in lines:
        start = len(out)
        good = session.run(line)
        good = good and not any("failed" in text for text in out[start:])
        if effect is not None and good:
            effect(model)
    if not session.close():
        raise RuntimeError("".join(errors))
    return "".join(out)


def run_oracle(case: Case, lines: list[tuple[str, Effect | None]]) -> str:
    tool = find_qemu_io()
    assert tool is not None
    text = "".join(f"{line}\n" for line, _ in lines)
    command = [tool, *case.secrets(), *case.source()]
    done = subprocess.run(command, input=text, cwd=case.folder, capture_output=True, text=True, check=False)
    return done.stdout.replace("qemu-io> ", "")


def compare(seed: int, root: Path, operations: int, tally: Tally) -> None:
    """One script."""
    rng = random.Random(seed)
    shape = SHAPES[seed % len(SHAPES)]
    name = f"seed {seed} ({shape.name})"
    ours, model = build(root / f"{seed}a", shape, rng)
    theirs, spare = twin(ours, root / f"{seed}b"), twin(ours, root / f"{seed}c")
    lines = script(rng, shape, operations)
    said = run_ours(ours, lines, model)
    heard = run_oracle(theirs, lines)
    tally.scripts += 1
    expected = bytes(model)
    for reader, disk in (("us", ours.disk_by_us()), ("qemu-img", ours.disk_by_qemu())):
        if disk != expected:
            tally.failures.append(f"{name}: our image read by {reader} differs from the model {_first(disk, expected)}")
    verdict = ours.img("check", *ours.secrets(), *ours.source())
    if verdict.returncode:
        tally.failures.append(f"{name}: our image: qemu-img check says {verdict.returncode}: {verdict.stdout[-200:]}")
    trouble = _judge_oracle(theirs, expected)
    if trouble is None and _TIME.sub("", said) != _TIME.sub("", heard):
        trouble = f"output differs: {_first_line(said, heard)}"
    if trouble is None:
        return
    if shape.compressed and not shape.crypt:
        # qemu-io forgets where it packs compressed data when the image is opened anew: then it must agree.
        heard = run_oracle(spare, _reopening(spare, lines))
        again = _judge_oracle(spare, expected)
        if again is None and _TIME.sub("", said) == _TIME.sub("", heard):
            tally.oracle_damaged.append(f"{name}: {trouble}")
            return
        if again is None and shape.extended:
            # Where a range to be zeroed ends in a compressed cluster, QEMU falls back to writing zeros for all of it and
            # allocates what we leave unallocated. The content is the same.
            tally.output_only.append(f"{name}: {_first_line(said, heard)}")
            return
    tally.failures.append(f"{name}: qemu-io: {trouble}")


def _reopening(case: Case, lines: list[tuple[str, Effect | None]]) -> list[tuple[str, Effect | None]]:
    """The script with the image closed and opened before every compressed write."""
    found: list[tuple[str, Effect | None]] = []
    for line, effect in lines:
        if line.startswith("write -c"):
            found += [("close", None), (f"open {case.image}", None)]
        found.append((line, effect))
    return found


def _judge_oracle(case: Case, expected: bytes) -> str | None:
    """What is wrong with the image that qemu-io wrote, or None."""
    verdict = case.img("check", *case.secrets(), *case.source())
    if verdict.returncode:
        return (verdict.stderr or verdict.stdout).strip().splitlines()[0]
    try:
        for reader, disk in (("us", case.disk_by_us()), ("qemu-img", case.disk_by_qemu())):
            if disk != expected:
                return f"read by {reader} differs from ours {_first(disk, expected)}"
    except (QwbError, RuntimeError) as error:
        return f"cannot be read: {error}"
    return None


def _first(one: bytes, other: bytes) -> str:
    if len(one) != len(other):
        return f"in length: {len(one)} and {len(other)}"
    at = next(i for i in range(0, len(one), 512) if one[i : i + 512] != other[i : i + 512])
    return f"at {at:#x}: {one[at : at + 4].hex()} and {other[at : at + 4].hex()}"


def _first_line(said: str, heard: str) -> str:
    ours, theirs = _TIME.sub("", said).splitlines(), _TIME.sub("", heard).splitlines()
    for number, (one, other) in enumerate(zip(ours, theirs, strict=False)):
        if one != other:
            return f"line {number}: {one!r}, qemu-io {other!r}"
    return f"{len(ours)} lines, qemu-io {len(theirs)}"


def campaign(seed: int, count: int, operations: int, folder: Path) -> Tally:
    tally = Tally()
    for number in range(seed, seed + count):
        try:
            compare(number, folder, operations, tally)
        finally:
            for letter in "abc":
                shutil.rmtree(folder / f"{number}{letter}", ignore_errors=True)
        if len(tally.failures) > 10:
            break
    return tally


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--count", type=int, default=300, help="scripts")
    parser.add_argument("--operations", type=int, default=200, help="per script")
    chosen = parser.parse_args()
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        tally = campaign(chosen.seed, chosen.count, chosen.operations, Path(folder))
    print(
        f"{tally.scripts} scripts of {chosen.operations} operations in {time.monotonic() - start:.0f} s:"
        f" {len(tally.failures)} failures, {len(tally.oracle_damaged)} images damaged by qemu-io itself,"
        f" {len(tally.output_only)} that differ in output alone"
    )
    rest = [*(f"qemu-io: {each}" for each in tally.oracle_damaged), *(f"output: {each}" for each in tally.output_only)]
    print("\n".join([*tally.failures, *rest]))
    return 1 if tally.failures else 0


if __name__ == "__main__":
    sys.exit(main())
