"""Raw disks with a real file system and real files in them, made by mkfs and its companions without mounting anything.

Each kind can be made, and changed a little afterwards (what a guest writes after a snapshot). Deterministic as far as
the tools allow: the same files, the same identifiers; NTFS keeps a random serial number.
"""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from sample_images.kit import noise, text

SOURCES = ("/usr/lib/python3", "/usr/lib/python3.11", "/usr/share/perl5", "/usr/share/doc", "/usr/share/zoneinfo")
_BLOCK = 8 << 20
_UUID = "0f0e0d0c-0b0a-4908-8706-050403020100"
_ENVIRONMENT = {"E2FSPROGS_FAKE_TIME": "1700000000", "SOURCE_DATE_EPOCH": "1700000000", "MTOOLS_SKIP_CHECK": "1"}
_SMALL_XFS = {"TEST_DIR": "1", "TEST_DEV": "1", "QA_CHECK_FS": "1"}
"""What makes mkfs.xfs accept less than 300 MiB."""


@dataclass(frozen=True, slots=True)
class FileSystem:
    """One kind. tools: programs it needs.  make: (raw file of its full size, files).  change: the same, with files to add."""

    name: str
    tools: tuple[str, ...]
    make: Callable[[Path, Mapping[str, Path]], None]
    change: Callable[[Path, Mapping[str, Path]], None]

    @property
    def missing(self) -> str | None:
        """The reason why it cannot be made here, or None."""
        absent = [tool for tool in self.tools if find(tool) is None]
        return f"{' and '.join(absent)} not found" if absent else None


def find(tool: str) -> str | None:
    """The path of a program that may live in /sbin."""
    return shutil.which(tool, path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")


def run(*command: str | Path, stdin: str = "", small: bool = False) -> str:
    """Run a file-system tool; its output. RuntimeError, in one line, when it fails."""
    where = find(str(command[0])) or str(command[0])
    done = subprocess.run(
        [where, *map(str, command[1:])],
        input=stdin, capture_output=True, text=True, errors="replace", check=False,
        env={**os.environ, **_ENVIRONMENT, **(_SMALL_XFS if small else {})},
    )  # fmt: skip
    if done.returncode:
        raise RuntimeError(f"{' '.join(map(str, command))[:200]}: {(done.stderr or done.stdout).strip()[-300:]}")
    return done.stdout


def collect(folder: Path, size: int, seed: int, *, biggest: int = 4 << 20) -> dict[str, Path]:
    """About `size` bytes of real files (name in the guest -> file); what is missing is made up in `folder`."""
    rng = random.Random(seed)
    found = sorted(
        each
        for source in SOURCES
        for each in Path(source).rglob("*")
        if each.is_file() and not each.is_symlink() and not set(str(each)) & set(" \t'\"\\:") and str(each).isascii()
    )
    rng.shuffle(found)
    chosen: dict[str, Path] = {}
    left = size
    for each in found:
        length = each.stat().st_size
        if 0 < length <= min(left, biggest):
            chosen[f"f{len(chosen):04d}-{each.name[:24]}"] = each
            left -= length
        if left < 4096 or len(chosen) >= 1200:
            break
    while left > 64 << 10:
        length = min(left, biggest)
        path = folder / f"made-{seed}-{left}"
        with open(path, "wb") as file:
            file.write(text(min(length // 2, _BLOCK), seed + left))
            while file.tell() < length:
                file.write(noise(min(_BLOCK, length - file.tell()), seed + file.tell()))
        chosen[path.name] = path
        left -= length
    return chosen


def _make_ext4(raw: Path, files: Mapping[str, Path]) -> None:
    tree = raw.with_name("tree")
    shutil.rmtree(tree, ignore_errors=True)
    for number, (name, source) in enumerate(files.items()):
        folder = tree / f"d{number % 7}"
        folder.mkdir(parents=True, exist_ok=True)
        os.symlink(source, folder / name) if source.stat().st_size > 64 << 20 else shutil.copyfile(
            source, folder / name
        )
    run("mke2fs", "-q", "-F", "-t", "ext4", "-U", _UUID, "-E", f"hash_seed={_UUID}", "-d", tree, raw)
    shutil.rmtree(tree)


def _change_ext4(raw: Path, files: Mapping[str, Path]) -> None:
    run("debugfs", "-w", "-f", "-", raw, stdin="".join(f"write {each} new-{name}\n" for name, each in files.items()))


def _make_xfs(raw: Path, files: Mapping[str, Path]) -> None:
    lines = ["/", "0 0", "d--755 0 0"]
    groups: dict[int, list[str]] = {}
    for number, (name, source) in enumerate(files.items()):
        groups.setdefault(number % 7, []).append(f"  {name} ---644 0 0 {source}")
    for number, entries in groups.items():
        lines += [f" d{number} d--755 0 0", *entries, " $"]
    proto = raw.with_name("proto")
    proto.write_text("\n".join([*lines, "$", "$"]) + "\n")
    small = raw.stat().st_size < 300 << 20
    run("mkfs.xfs", "-q", "-f", "-m", f"uuid={_UUID}", "-p", proto, raw, small=small)
    proto.unlink()


def _make_ntfs(raw: Path, files: Mapping[str, Path]) -> None:
    run("mkfs.ntfs", "-Q", "-F", "-q", "-s", "512", "-p", "0", "-H", "16", "-S", "63", raw)
    _change_ntfs(raw, files)


def _change_ntfs(raw: Path, files: Mapping[str, Path]) -> None:
    for name, source in list(files.items())[:60]:
        run("ntfscp", "-q", "-f", raw, source, name)


def _make_fat(raw: Path, files: Mapping[str, Path]) -> None:
    run("mkfs.vfat", "-i", "12345678", raw)
    run("mmd", "-i", raw, "::lib")
    run("mcopy", "-i", raw, "-o", *dict.fromkeys(files.values()), "::lib")


def _change_fat(raw: Path, files: Mapping[str, Path]) -> None:
    # A folder of its own: the root directory of FAT16 holds 512 slots, and long names need several.
    folder = f"::{zlib.crc32(chr(0).join(files).encode()):08x}"
    run("mmd", "-i", raw, folder)
    run("mcopy", "-i", raw, "-o", *dict.fromkeys(files.values()), folder)


def scribble(raw: Path, files: Mapping[str, Path]) -> None:
    """Write the files' bytes over places all over the disk: a change for what cannot be changed without mounting."""
    size = raw.stat().st_size
    rng = random.Random(len(files))
    with open(raw, "r+b") as file:
        for source in files.values():
            data = source.read_bytes()
            file.seek(rng.randrange(max(1, (size - len(data)) // 512)) * 512)
            file.write(data)


FILE_SYSTEMS: Mapping[str, FileSystem] = {
    each.name: each
    for each in (
        FileSystem("ext4", ("mke2fs", "debugfs"), _make_ext4, _change_ext4),
        FileSystem("xfs", ("mkfs.xfs",), _make_xfs, scribble),
        FileSystem("ntfs", ("mkfs.ntfs", "ntfscp"), _make_ntfs, _change_ntfs),
        FileSystem("fat", ("mkfs.vfat", "mcopy", "mmd"), _make_fat, _change_fat),
    )
}


def make_raw(raw: Path, kind: str, size: int, data: int, seed: int) -> None:
    """A raw disk of `size` bytes (sparse): a file system with about `data` bytes of files, or `none`: patterns."""
    raw.unlink(missing_ok=True)
    with open(raw, "wb") as file:
        file.truncate(size)
    if kind == "none":
        _patterns(raw, size, data, seed)
        return
    with open(raw, "r+b") as file:
        file.truncate(size // 4096 * 4096)
    extra = raw.with_name("made")
    extra.mkdir(exist_ok=True)
    FILE_SYSTEMS[kind].make(raw, collect(extra, data, seed, biggest=max(4 << 20, data // 8)))
    shutil.rmtree(extra)
    with open(raw, "r+b") as file:
        file.truncate(size)


def change_raw(raw: Path, kind: str, data: int, seed: int) -> None:
    """What a guest does later: about `data` bytes more."""
    extra = raw.with_name("made")
    extra.mkdir(exist_ok=True)
    files = collect(extra, data, seed, biggest=max(8 << 10, data // 6))
    (scribble if kind == "none" else FILE_SYSTEMS[kind].change)(raw, files)
    shutil.rmtree(extra)


def _patterns(raw: Path, size: int, data: int, seed: int) -> None:
    """Text, noise and constant bytes in pieces of all sizes, all over the disk."""
    rng = random.Random(seed)
    block = {"text": text(1 << 20, seed), "noise": noise(1 << 20, seed)}
    with open(raw, "r+b") as file:
        while data > 0:
            length = min(rng.choice((512, 4096, 12 << 10, 64 << 10, 200 << 10, 1 << 20)), size, max(data, 512))
            at = rng.randrange((size - length) // 512 + 1) * 512
            how = rng.choice(("text", "noise", "noise", "byte"))
            file.seek(at)
            file.write(bytes((rng.randrange(1, 256),)) * length if how == "byte" else block[how][:length])
            data -= length
