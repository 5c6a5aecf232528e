"""What base images are made with: one folder, one image name, the real QEMU tools, and guest content worth mapping."""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path

from sample_images.editor import Editor
from sample_images.qemu import QemuFailed, run_img, run_io, source_arguments

K, M = 1 << 10, 1 << 20
PASSPHRASE = "open sesame"
SNAPSHOT_DATE = 1_700_000_000  # seconds since 1970, so that builds repeat

_WORDS = [
    "cluster",
    "table",
    "offset",
    "guest",
    "host",
    "entry",
    "refcount",
    "block",
    "snapshot",
    "backing",
    "bitmap",
    "header",
    "sector",
    "image",
    "disk",
    "write",
    "read",
    "leak",
    "copy",
    "zero",
    "data",
    "lost",
    "found",
    "orphan",
    "repair",
    "undo",
    "plan",
    "check",
    "census",
    "owner",
    "range",
]


def text(length: int, seed: int) -> bytes:
    """`length` bytes of readable text, the same for the same seed: compresses to about a third."""
    rng = random.Random(seed)
    parts: list[str] = []
    size = 0
    while size < length:
        line = f"{size:08x} " + " ".join(rng.choices(_WORDS, k=9)) + f" {rng.getrandbits(40):010x}\n"
        parts.append(line)
        size += len(line)
    return "".join(parts).encode()[:length]


def noise(length: int, seed: int) -> bytes:
    """`length` random bytes, the same for the same seed: do not compress."""
    return random.Random(seed).randbytes(length)


@dataclass(slots=True)
class Kit:
    """The folder and file name a base image is built under."""

    folder: Path
    stem: str = "image"
    secret: str | None = None

    @property
    def path(self) -> Path:
        return self.folder / f"{self.stem}.qcow2"

    def beside(self, suffix: str) -> str:
        """The file name of a companion, for example ``image-base.raw``."""
        return f"{self.stem}-{suffix}"

    def create(self, size: int | str, *options: str, name: str | None = None) -> None:
        """``qemu-img create`` with `options` such as ``cluster_size=4k``; `size` in bytes."""
        command: list[str] = ["create", "-q", "-f", "qcow2"]
        if self.secret is not None:
            command[1:1] = ["--object", f"secret,id=sec0,data={self.secret}"]
            options = (*options, "encrypt.key-secret=sec0")
        if options:
            command += ["-o", ",".join(options)]
        for attempt in range(8):
            try:
                run_img(*command, name or self.path.name, str(size), cwd=self.folder)
                return
            except QemuFailed as error:
                # QEMU measures how fast the key derivation is, and gives up when the clock of CPU time is too coarse.
                if "accurate CPU usage" not in str(error) or attempt == 7:
                    raise

    def create_over(self, backing: str, fmt: str | None, *options: str, size: int | None = None) -> None:
        """``qemu-img create`` over a backing file (`fmt` None: leave the format out of the header by hand later)."""
        command = ["create", "-q", "-f", "qcow2", "-b", backing, "-F", fmt or "raw"]
        if options:
            command += ["-o", ",".join(options)]
        command.append(self.path.name)
        if size is not None:
            command.append(str(size))
        run_img(*command, cwd=self.folder)

    def io(self, *commands: str, name: str | None = None) -> None:
        """Run qemu-io commands on the image (or on companion `name`, qcow2)."""
        source = ["-f", "qcow2", name] if name else source_arguments(self.path, self.secret)
        flags = [part for command in commands for part in ("-c", command)]
        run_io(*flags, *source, cwd=self.folder)

    def img(self, *args: str) -> None:
        """Run ``qemu-img`` in the image's folder."""
        run_img(*args, cwd=self.folder)

    def raw(self, suffix: str, content: bytes, size: int | None = None) -> str:
        """Write a raw companion file; returns its name."""
        name = self.beside(suffix)
        (self.folder / name).write_bytes(content)
        if size is not None:
            with open(self.folder / name, "r+b") as file:
                file.truncate(size)
        return name

    def write(self, offset: int, content: bytes, *, compressed: bool = False, name: str | None = None) -> None:
        """Write bytes at a guest offset through qemu-io."""
        source = self.folder / ".content"
        source.write_bytes(content)
        self.io(f"write -q {'-c ' if compressed else ''}-s .content {offset} {len(content)}", name=name)
        source.unlink()

    def snapshot(self, name: str) -> None:
        """``qemu-img snapshot -c`` with a fixed date."""
        source = source_arguments(self.path, self.secret) if self.secret is not None else [self.path.name]
        options, target = source[:-1], source[-1]
        self.img("snapshot", *options, "-c", name, target)
        with self.edit() as editor:
            for index, entry in enumerate(editor.snapshots()):
                editor.set_snapshot(entry, "date_sec", SNAPSHOT_DATE + 3600 * index)
                editor.set_snapshot(entry, "date_nsec", 0)

    def edit(self) -> Editor:
        """The image, open for byte surgery."""
        return Editor(self.path)

    def fill(self, cluster: int, *, zeros: bool = True, compressed: bool = True, name: str | None = None) -> None:
        """The standard content of a disk of at least 48 clusters: text, patterns, partial clusters, zeros, compression.

        Guest clusters: 0-3 text, 5 a partly written pattern, 8-10 pattern, 9 zeroed while allocated, 12-13 zeroed
        while unallocated, 16-19 compressed text, 20 noise, 24 a few bytes across a cluster border.
        """
        source, other = self.folder / ".text", self.folder / ".noise"
        source.write_bytes(text(4 * cluster, 1))
        other.write_bytes(noise(cluster, 2))
        commands = [
            f"write -q -s .text 0 {4 * cluster}",
            f"write -q -P 0xa5 {5 * cluster} {max(512, cluster // 2)}",
            f"write -q -P 0x5a {8 * cluster} {3 * cluster}",
            f"write -q -s .noise {20 * cluster} {cluster}",
            f"write -q -P 0x33 {25 * cluster - 512} 1024",
        ]
        if zeros:
            commands += [f"write -q -z {9 * cluster} {cluster}", f"write -q -z {12 * cluster} {2 * cluster}"]
        if compressed:
            commands += [f"write -q -c -s .text {at * cluster} {cluster}" for at in range(16, 20)]
        self.io(*commands, name=name)
        source.unlink()
        other.unlink()
