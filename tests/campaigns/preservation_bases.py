"""The undamaged images of the preservation campaign, with the truth about each: what the guest sees, as qemu-img reads it.

Built once into a folder (one subfolder each: image.qcow2, its companions, and truth/ with one sparse raw file for the
active disk and each snapshot), by the real QEMU tools and mkfs only.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from sample_images.editor import SNAPSHOT_FIELDS, Editor
from sample_images.kit import PASSPHRASE
from sample_images.qemu import check, find_qemu_io, run_img, source_arguments
from tests.campaigns.preservation_filesystems import FILE_SYSTEMS, change_raw, make_raw

K, M, G = 1 << 10, 1 << 20, 1 << 30
IMAGE = "image.qcow2"
ACTIVE = "active"
"""Name of the active disk among the views; snapshots are named by their ID."""
VERSION = 4
"""Raised when what is built changes: folders of another version are built anew."""


@dataclass(frozen=True, slots=True)
class Base:
    """A recipe. fs: file system or `none`.  size, data: bytes of disk and of files.  options: of qemu-img create.

    how: convert (in disk order), compressed, random (pieces in random order).  snapshots: how many, each followed by
    writes of `later` bytes.  bitmaps: persistent ones.  below: format of a backing file.  secret: luks, aes or empty.
    extra: what else happens (see `_extras`).  group: 64M, 1G or 40G.  weight: how often it is taken.
    """

    name: str
    fs: str
    options: str = ""
    size: int = 64 * M
    data: int = 8 * M
    how: str = "convert"
    snapshots: int = 0
    later: int = 1 * M
    bitmaps: int = 0
    below: str = ""
    secret: str = ""
    extra: tuple[str, ...] = ()
    group: str = "64M"
    weight: float = 1.0

    @property
    def passphrase(self) -> str | None:
        return PASSPHRASE if self.secret else None

    @property
    def missing(self) -> str | None:
        """Why it cannot be built here, or None."""
        return None if self.fs == "none" else FILE_SYSTEMS[self.fs].missing


def _small() -> Iterator[Base]:
    yield Base("ext4-64k", "ext4", data=20 * M, weight=2)
    yield Base("ext4-4k-snapshots", "ext4", "cluster_size=4k", snapshots=2, weight=1.5)
    yield Base("ext4-512", "ext4", "cluster_size=512", data=2 * M)
    yield Base("ext4-2M", "ext4", "cluster_size=2M", data=24 * M)
    yield Base("ext4-zlib", "ext4", how="compressed", data=16 * M, later=1 * M, snapshots=1)
    yield Base("ext4-zstd-16k", "ext4", "cluster_size=16k,compression_type=zstd", how="compressed", data=16 * M)
    yield Base("ext4-extended", "ext4", "extended_l2=on,cluster_size=64k", how="random", snapshots=1)
    yield Base("ext4-lazy", "ext4", "lazy_refcounts=on", how="random")
    yield Base("ext4-luks", "ext4", secret="luks", snapshots=1)
    yield Base("ext4-data-file", "ext4", "data_file=image.data")
    yield Base("ext4-overlay", "ext4", below="raw", later=4 * M)
    yield Base("ext4-1bit", "ext4", "refcount_bits=1,cluster_size=16k")
    yield Base("ext4-64bit", "ext4", "refcount_bits=64", snapshots=1, how="random")
    yield Base("xfs-64k", "xfs", data=16 * M, weight=1.5)
    yield Base("xfs-v2", "xfs", "compat=0.10", how="random", snapshots=1)
    yield Base("xfs-16k-snapshots", "xfs", "cluster_size=16k", snapshots=3)
    yield Base("xfs-extended-2M", "xfs", "extended_l2=on,cluster_size=2M", snapshots=1)
    yield Base("xfs-zstd", "xfs", "compression_type=zstd", how="compressed", snapshots=1)
    yield Base("xfs-1M-32bit", "xfs", "cluster_size=1M,refcount_bits=32", how="random")
    yield Base("ntfs-4k", "ntfs", "cluster_size=4k", data=6 * M, how="random", snapshots=1)
    yield Base("ntfs-bitmaps", "ntfs", bitmaps=2, snapshots=1)
    yield Base("ntfs-zlib-4k", "ntfs", "cluster_size=4k", how="compressed")
    yield Base("ntfs-v2-8k", "ntfs", "compat=0.10,cluster_size=8k")
    yield Base("ntfs-overlay", "ntfs", "cluster_size=4k", below="qcow2", later=2 * M, snapshots=1)
    yield Base("fat-512-snapshot", "fat", "cluster_size=512", data=2 * M, snapshots=1, later=256 * K)
    yield Base("fat-64k-snapshots", "fat", snapshots=3, weight=1.5)
    yield Base("fat-1k", "fat", "cluster_size=1k", data=4 * M, how="random")
    yield Base("fat-4k-bitmaps", "fat", "cluster_size=4k", bitmaps=2, snapshots=2)
    yield Base("fat-aes", "fat", "cluster_size=4k", secret="aes", snapshots=1, later=512 * K)
    yield Base("fat-luks-2M", "fat", "cluster_size=2M", secret="luks")
    yield Base("fat-data-file-raw", "fat", "data_file=image.data,data_file_raw=on", bitmaps=1)
    yield Base("fat-2bit", "fat", "refcount_bits=2,cluster_size=4k", snapshots=1)
    yield Base("fat-256k-4bit", "fat", "refcount_bits=4,cluster_size=256k", snapshots=2, how="random")
    yield Base("fat-8bit-extended", "fat", "refcount_bits=8,extended_l2=on,cluster_size=16k", how="random", snapshots=1)
    yield Base("none-64k", "none", how="random", extra=("zeros",), weight=1.5)
    yield Base(
        "none-4k-odd", "none", "cluster_size=4k", size=64 * M - 1536, how="random", snapshots=1, extra=("zeros",)
    )
    yield Base("none-512-odd", "none", "cluster_size=512", size=64 * M - 512 * 7, data=1 * M, how="random")
    yield Base("none-zlib", "none", how="compressed", snapshots=2, extra=("zeros",))
    yield Base("none-prealloc", "none", "cluster_size=16k,preallocation=metadata", how="random")
    yield Base("none-full-4k", "none", "cluster_size=4k", size=24 * M, extra=("full",), data=2 * M)
    yield Base(
        "none-extended-odd",
        "none",
        "extended_l2=on,cluster_size=32k",
        size=64 * M - 512 * 33,
        how="random",
        extra=("zeros",),
    )
    yield Base("none-resized", "none", "cluster_size=8k", snapshots=1, how="random", extra=("grown",))
    yield Base("none-overlay-odd", "none", below="raw", size=64 * M + 512 * 9, later=2 * M, extra=("short-below",))
    yield Base("none-cut-header", "none", "cluster_size=4k", size=8 * M, data=2 * M, how="random", snapshots=2, bitmaps=1)  # fmt: skip


def _large() -> Iterator[Base]:
    one, forty = {"size": G, "group": "1G"}, {"size": 40 * G, "group": "40G"}
    yield Base("ext4-1G", "ext4", data=48 * M, weight=2, **one)  # type: ignore[arg-type]
    yield Base("ext4-1G-zstd", "ext4", "compression_type=zstd", data=64 * M, how="compressed", **one)  # type: ignore[arg-type]
    yield Base("xfs-1G-snapshots", "xfs", data=40 * M, snapshots=2, later=4 * M, **one)  # type: ignore[arg-type]
    yield Base("ntfs-1G-4k", "ntfs", "cluster_size=4k", data=24 * M, snapshots=1, **one)  # type: ignore[arg-type]
    yield Base("fat-1G-1bit", "fat", "refcount_bits=1", data=48 * M, **one)  # type: ignore[arg-type]
    yield Base("none-1G-512", "none", "cluster_size=512", data=4 * M, how="random", **one)  # type: ignore[arg-type]
    yield Base("none-1G-random", "none", data=96 * M, how="random", **one)  # type: ignore[arg-type]
    yield Base("ext4-40G", "ext4", data=64 * M, snapshots=1, later=8 * M, weight=2, **forty)  # type: ignore[arg-type]
    yield Base("xfs-40G-2M", "xfs", "cluster_size=2M", data=96 * M, weight=2, **forty)  # type: ignore[arg-type]
    yield Base("none-40G", "none", data=64 * M, how="random", weight=2, **forty)  # type: ignore[arg-type]
    yield Base("xfs-40G-8G", "xfs", data=8 * G, weight=0.3, **forty)  # type: ignore[arg-type]


BASES: dict[str, Base] = {each.name: each for each in (*_small(), *_large())}
TINY = (
    "none-cut-header",
    "ext4-512",
    "none-4k-odd",
    "fat-4k-bitmaps",
    "none-overlay-odd",
    "ntfs-zlib-4k",
    "fat-luks-2M",
)
"""What the short run in the test suite uses."""


@dataclass(frozen=True, slots=True)
class Built:
    """A base on disk. views: the active disk first, then snapshot IDs -> length in bytes."""

    base: Base
    folder: Path
    views: dict[str, int]

    @property
    def image(self) -> Path:
        return self.folder / IMAGE

    def truth(self, view: str) -> Path:
        """The sparse raw file with what the guest sees."""
        return self.folder / "truth" / f"{view}.raw"

    @property
    def companions(self) -> list[Path]:
        """Files that the image needs beside it."""
        return [
            each for each in sorted(self.folder.iterdir()) if each.is_file() and each.name not in (IMAGE, "views.json")
        ]


def build(base: Base, root: Path) -> Built:
    """The base in `root`, built unless it is there. RuntimeError when QEMU calls what was built anything but clean."""
    folder = root / base.name
    listing = folder / "views.json"
    if listing.exists():
        found = json.loads(listing.read_text())
        if found["version"] == VERSION and found["recipe"] == repr(base):
            return Built(base, folder, found["views"])
    work = root / f".{base.name}.{os.getpid()}"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    with inside(work):
        _make(base, work)
        if (verdict := check(work / IMAGE, secret=base.passphrase)).code:
            raise RuntimeError(f"base {base.name} is not clean: {verdict.report or verdict.message}")
        views = _truth(base, work)
    (work / "views.json").write_text(json.dumps({"version": VERSION, "recipe": repr(base), "views": views}))
    shutil.rmtree(folder, ignore_errors=True)
    try:
        work.rename(folder)
    except OSError:  # another process has built it meanwhile
        shutil.rmtree(work)
    return Built(base, folder, views)


@contextmanager
def inside(folder: Path) -> Iterator[None]:
    """QEMU looks for an external data file in the working directory."""
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


# -- making one --------------------------------------------------------------------------------------------------------


def _seed(base: Base) -> int:
    return sum(base.name.encode()) * 7919 + base.size % 1009


def _make(base: Base, folder: Path) -> None:
    raw = folder / "disk.raw"
    if "full" in base.extra:
        raw.write_bytes(random.Random(_seed(base)).randbytes(base.size))
    else:
        make_raw(raw, base.fs, base.size, base.data, _seed(base))
    if base.below:
        _overlay(base, raw)
    else:
        _fill(base, raw)
    for number in range(base.bitmaps):
        disabled = ["--disable"] if number else []
        run_img("bitmap", "--add", "-g", "65536", *disabled, "-f", "qcow2", IMAGE, f"bitmap-{number}")
    rounds = max(base.snapshots, 1 if base.bitmaps or base.below else 0)
    for number in range(rounds):
        if number < base.snapshots:
            run_img("snapshot", "-c", f"state {number}", *_snapshot_target(base))
        _later(base, raw, number)
    if "zeros" in base.extra:
        _zeros(base)
    if "grown" in base.extra:
        run_img("resize", "-q", "-f", "qcow2", IMAGE, f"+{5 * M}")
    raw.unlink()


def _snapshot_target(base: Base) -> list[str]:
    return source_arguments(Path(IMAGE), base.passphrase) if base.secret else [IMAGE]


def _options(base: Base) -> list[str]:
    options = [base.options] if base.options else []
    if base.secret:
        options += [f"encrypt.format={base.secret}", "encrypt.key-secret=sec0"]
    if base.secret == "luks":
        options += ["encrypt.iter-time=10", "encrypt.cipher-alg=aes-128"]
    return ["-o", ",".join(options)] if options else []


def _objects(base: Base) -> list[str]:
    return ["--object", f"secret,id=sec0,data={base.passphrase}"] if base.secret else []


def _fill(base: Base, raw: Path) -> None:
    if base.how == "random":
        run_img_long("create", "-q", *_objects(base), "-f", "qcow2", *_options(base), IMAGE, str(base.size))
        _write_pieces(base, raw, _data_ranges(raw), shuffled=True)
        return
    packed = ["-c"] if base.how == "compressed" else []
    run_img_long("convert", *packed, *_objects(base), "-f", "raw", "-O", "qcow2", *_options(base), raw.name, IMAGE)


def run_img_long(*args: str) -> None:
    """qemu-img without a time limit."""
    for _ in range(8):
        done = subprocess.run(["qemu-img", *args], capture_output=True, text=True, errors="replace", check=False)
        # QEMU measures how fast the key derivation is, and gives up when the clock of CPU time is too coarse.
        if "accurate CPU usage" not in done.stderr:
            break
    if done.returncode:
        raise RuntimeError(f"qemu-img {' '.join(args)}: {done.stderr.strip()}")


def _overlay(base: Base, raw: Path) -> None:
    below = f"below.{base.below}"
    run_img("convert", "-f", "raw", "-O", base.below, raw.name, below)
    if "short-below" in base.extra:
        os.truncate(below, base.size // 2 + 512 * 3)
        os.truncate(raw, base.size // 2 + 512 * 3)
        os.truncate(raw, base.size)
    run_img("create", "-q", "-f", "qcow2", *_options(base), "-b", below, "-F", base.below, IMAGE, str(base.size))


def _later(base: Base, raw: Path, number: int) -> None:
    old = raw.with_name("before.raw")
    copy_sparse(raw, old)
    change_raw(raw, base.fs, base.later, _seed(base) + number + 1)
    _write_pieces(base, raw, _differences(old, raw), shuffled=base.how == "random")
    old.unlink()


def _zeros(base: Base) -> None:
    rng = random.Random(_seed(base))
    commands = []
    for _ in range(12):
        at = rng.randrange(base.size // (64 * K) - 8) * 64 * K
        how = rng.choice(("write -z", "write -z -u", "discard"))
        commands.append(f"{how} {at} {rng.choice((64, 128, 512)) * K}")
    qemu_io(base, commands, Path(IMAGE))


def _data_ranges(raw: Path) -> list[tuple[int, int]]:
    """Ranges of a sparse file that hold something other than zeros, in 4 KiB units."""
    found: list[tuple[int, int]] = []
    with open(raw, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        for start, end in data_ranges(file.fileno(), size):
            for at in range(start, end, 4096):
                if os.pread(file.fileno(), min(4096, end - at), at).strip(b"\0"):
                    _append(found, at, min(at + 4096, size))
    return found


def _differences(old: Path, new: Path) -> list[tuple[int, int]]:
    found: list[tuple[int, int]] = []
    with open(old, "rb") as before, open(new, "rb") as after:
        size = os.fstat(after.fileno()).st_size
        for start, end in data_ranges(after.fileno(), size):
            for big in range(start, end, M):
                a, b = os.pread(before.fileno(), M, big), os.pread(after.fileno(), M, big)
                for at in range(0, len(b) if a != b else 0, 4096):
                    if a[at : at + 4096] != b[at : at + 4096]:
                        _append(found, big + at, min(big + at + 4096, size))
    return found


def _append(ranges: list[tuple[int, int]], start: int, end: int) -> None:
    if ranges and ranges[-1][1] == start:
        ranges[-1] = (ranges[-1][0], end)
    else:
        ranges.append((start, end))


def data_ranges(fd: int, size: int) -> Iterator[tuple[int, int]]:
    """(start, end) of what is not a hole in an open file."""
    at = 0
    while at < size:
        try:
            start = os.lseek(fd, at, os.SEEK_DATA)
        except OSError:
            return
        end = min(os.lseek(fd, start, os.SEEK_HOLE), size)
        yield start, end
        at = end


def copy_sparse(source: Path, target: Path) -> None:
    """Copy a file's data; holes stay holes."""
    with open(source, "rb") as old, open(target, "wb") as new:
        size = os.fstat(old.fileno()).st_size
        for start, end in data_ranges(old.fileno(), size):
            os.lseek(new.fileno(), start, os.SEEK_SET)
            at = start
            while at < end:
                done = os.sendfile(new.fileno(), old.fileno(), at, min(end - at, 64 << 20))
                if not done:
                    break
                at += done
        os.truncate(new.fileno(), size)


def _write_pieces(base: Base, raw: Path, ranges: list[tuple[int, int]], *, shuffled: bool) -> None:
    """Write these ranges of the raw disk into the image, with qemu-io, in pieces; each a write of its own."""
    rng = random.Random(_seed(base) + 1)
    most = 8 * M if base.size <= 64 * M and not shuffled else M
    pieces = []
    for start, end in ranges:
        at = start
        while at < end:
            length = min(rng.choice((16 * K, 64 * K, 256 * K)) if shuffled else most, end - at)
            pieces.append((at, length))
            at += length
    if shuffled:
        rng.shuffle(pieces)
    store = raw.with_name("pieces")
    store.mkdir(exist_ok=True)
    commands = []
    with open(raw, "rb") as file:
        for number, (at, length) in enumerate(pieces):
            (store / str(number)).write_bytes(os.pread(file.fileno(), length, at))
            commands.append(f"write -q -s {store.name}/{number} {at} {length}")
    qemu_io(base, commands, Path(IMAGE))
    shutil.rmtree(store)


def qemu_io(base: Base, commands: list[str], image: Path, *, timeout: float = 600) -> str:
    """Run commands on the image in one qemu-io; what it printed. RuntimeError when it could not open the image."""
    tool = find_qemu_io() or "qemu-io"
    done = subprocess.run(
        [tool, "-t", "unsafe", *source_arguments(image, base.passphrase)],
        input="\n".join([*commands, "quit", ""]), capture_output=True, text=True, errors="replace",
        cwd=image.parent, timeout=timeout, check=False,
    )  # fmt: skip
    if "can't open" in done.stderr or (done.returncode and "failed" not in done.stdout + done.stderr):
        raise RuntimeError(done.stderr.strip()[-300:] or f"exit {done.returncode}")
    return done.stdout + done.stderr


def _truth(base: Base, folder: Path) -> dict[str, int]:
    (folder / "truth").mkdir()
    listed = json.loads(run_img("info", "-U", "--output=json", IMAGE))
    views = {ACTIVE: 0} | {str(each["id"]): 0 for each in listed.get("snapshots", [])}
    for view in views:
        target = folder / "truth" / f"{view}.raw"
        pick = [] if view == ACTIVE else ["-l", f"snapshot.id={view}"]
        run_img_long("convert", *pick, *source_arguments(Path(IMAGE), base.passphrase), "-O", "raw", str(target))
        views[view] = target.stat().st_size
    with Editor(folder / IMAGE) as editor:  # qemu-img reads a snapshot taken before a resize with today's length
        for entry in editor.snapshots():
            ident = editor.read(entry.id_offset, entry.id_length).decode()
            if entry.extra_length >= 16:
                views[ident] = min(views[ident], editor.number(entry.offset + SNAPSHOT_FIELDS["disk_size"][0]))
    return views
