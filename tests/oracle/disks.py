"""Disks for the commands that read whole ones: the same and other contents, stored in every way, in a folder of their own."""

from __future__ import annotations

import contextlib
import io
import random
import subprocess
from pathlib import Path
from typing import Final

from sample_images.qemu import run_img, run_io
from workbench.cli.common import EXIT_BUG
from workbench.cli.main import main

MIB: Final = 1 << 20
C: Final = 1 << 16
Said = tuple[int, str, str]
"""(exit code, stdout, stderr)."""


def qemu(*words: object, cwd: Path) -> Said:
    """What qemu-img says."""
    done = subprocess.run(["qemu-img", *map(str, words)], capture_output=True, timeout=120, cwd=cwd, check=False)
    return done.returncode, done.stdout.decode(), done.stderr.decode()


def qwb(*words: object) -> Said:
    """What our command says, run in this process as `qwb` runs it; bugs are raised."""
    out, err = io.StringIO(), io.StringIO()
    code: object = 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main([str(word) for word in words])
        except SystemExit as end:
            code = end.code
    assert isinstance(code, int) and code != EXIT_BUG, err.getvalue()
    return code, out.getvalue(), err.getvalue()


def content() -> bytearray:
    """1 MiB: data, zeros, a half-zero cluster, data in the last sectors."""
    data = bytearray(MIB)
    noise = random.Random(7)
    data[: 3 * C] = noise.randbytes(3 * C)
    data[5 * C : 5 * C + C // 2] = noise.randbytes(C // 2)
    data[9 * C : 11 * C] = b"packs well " * (2 * C // 11) + bytes(2 * C % 11)
    data[MIB - 1024 :] = noise.randbytes(1024)
    return data


def build(folder: Path) -> list[str]:
    """Make the disks; their names, in which `.raw` and `.qcow2` tell the format."""
    data = content()
    other = bytearray(data)
    other[9 * C + 700] ^= 1
    raws = {
        "data": data,
        "other": other,
        "zeros": bytes(MIB),
        "longer-zeros": data + bytes(C),
        "longer-data": data + bytes(C) + b"x" * 512,
        "shorter": data[: 10 * C],
        "odd": data[:1000],
        "odd-longer": bytes(data[:1000]) + bytes(3000),
        "empty": b"",
        "words": b"a raw disk may begin with words\n" * 4096,
    }
    for name, what in raws.items():
        (folder / f"{name}.raw").write_bytes(what)
    (folder / "hole.raw").touch()
    with open(folder / "hole.raw", "r+b") as file:
        file.truncate(MIB)
    with open(folder / "sparse.raw", "wb") as file:  # as data.raw, with holes
        file.truncate(MIB)
        for start in range(0, MIB, 4096):
            if any(data[start : start + 4096]):
                file.seek(start)
                file.write(data[start : start + 4096])

    def copied(name: str, *options: str, source: str = "data.raw") -> None:
        run_img("convert", "-f", source.rpartition(".")[2], "-O", "qcow2", *options, source, name, cwd=folder)

    copied("data.qcow2")
    copied("full.qcow2", "-S", "0")
    copied("small-clusters.qcow2", "-o", "cluster_size=4k")
    copied("packed.qcow2", "-c")
    copied("packed-zstd.qcow2", "-c", "-o", "compression_type=zstd")
    copied("old.qcow2", "-o", "compat=0.10")
    copied("subclusters.qcow2", "-o", "extended_l2=on")
    copied("other.qcow2", source="other.raw")
    copied("longer.qcow2", source="longer-data.raw")
    copied("bits.qcow2", "-o", "refcount_bits=1,preallocation=metadata")

    def made(name: str, *words: str, commands: tuple[str, ...] = ()) -> None:
        run_img("create", "-q", "-f", "qcow2", *words[:-1], name, words[-1], cwd=folder)
        for command in commands:
            run_io("-f", "qcow2", "-c", command, name, cwd=folder)

    made("blank.qcow2", "1M")
    made("blank-10m.qcow2", "10M")
    made("blank-10m-4k.qcow2", "-o", "cluster_size=4k", "10M")
    made("none.qcow2", "0")
    made("reserved.qcow2", "-o", "preallocation=metadata", "1M")
    made("zeroed.qcow2", "1M", commands=("write -z 0 512k", "write -P 0 512k 128k", "write -z -u 512k 64k"))
    made("backwards.qcow2", "1M", commands=tuple(f"write -P 5 {n * C} {C}" for n in reversed(range(16))))
    made("forwards.qcow2", "1M", commands=(f"write -P 5 0 {MIB}",))
    over = ("-F", "raw", "-b", "data.raw")
    made("overlay.qcow2", *over, "1M")
    made("overlay-zero.qcow2", *over, "1M", commands=(f"write -z {9 * C} {2 * C}",))
    made("overlay-long.qcow2", *over, "1536k", commands=("write -P 0 1280k 64k",))
    made("overlay-short.qcow2", *over, "640k")
    made("overlay-two.qcow2", "-F", "qcow2", "-b", "overlay-long.qcow2", "2M", commands=("write -P 9 1700k 64k",))
    made("subclusters-over.qcow2", "-o", "extended_l2=on", *over, "1M", commands=(f"write -P 1 {5 * C + 4096} 2k",))
    return sorted(each.name for each in folder.iterdir())
