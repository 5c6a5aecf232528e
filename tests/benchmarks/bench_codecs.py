"""Throughput and size of cluster compression and encryption, against zlib as QEMU uses it.

Run: python -m tests.benchmarks.bench_codecs

Corpora are made of this machine's own files: Python sources (text), shared libraries (code), and both mixed with zeros.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sysconfig
import time
import zlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TypeVar

from workbench.engine import codecs
from workbench.engine.crypto.ciphers import SectorCipher, parse_spec

T = TypeVar("T")
R = TypeVar("R")


def gather(pattern: str, root: Path, size: int) -> bytes:
    """Up to `size` bytes of the files that match, in name order."""
    found = bytearray()
    for path in sorted(root.rglob(pattern)):
        if path.is_file() and not path.is_symlink():
            found += path.read_bytes()
        if len(found) >= size:
            break
    return bytes(found[:size])


def clusters(data: bytes, size: int) -> list[bytes]:
    return [data[start : start + size] for start in range(0, len(data) // size * size, size)]


def as_qemu(data: bytes) -> bytes:
    """What QEMU makes of a cluster: zlib level 6, 4 KiB window, memory level 9."""
    packer = zlib.compressobj(zlib.Z_DEFAULT_COMPRESSION, zlib.DEFLATED, -12, 9)
    return packer.compress(data) + packer.flush()


def packed_by(kind: int, data: bytes) -> bytes | None:
    return codecs.compress(data, kind)


def by_zlib(size: int, data: bytes) -> bytes:
    return zlib.decompressobj(-15).decompress(data, size)


def by_us(size: int, data: bytes) -> bytes:
    return codecs.decompress(data, size, 0)


def timed(work: Callable[[T], R], items: Sequence[T], threads: int, rounds: int) -> tuple[float, list[R]]:
    """Median seconds over `rounds`, and the results of the last one."""
    seconds: list[float] = []
    results: list[R] = []
    for _ in range(rounds):
        start = time.perf_counter()
        if threads == 1:
            results = [work(item) for item in items]
        else:
            with ThreadPoolExecutor(threads) as pool:
                results = list(pool.map(work, items, chunksize=16))
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds), results


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--mib", type=int, default=16, help="size of each corpus")
    options.add_argument("--cluster", type=int, default=65536)
    options.add_argument("--rounds", type=int, default=3)
    given = options.parse_args()
    size = given.mib << 20
    text = gather("*.py", Path(sysconfig.get_path("stdlib")), size)
    code = gather("*.so*", Path("/usr/lib"), size)
    for name, data in {"text": text, "code": code, "mixed": text[: size // 2] + code[: size // 2]}.items():
        items = clusters(data, given.cluster)
        print(f"\n{name}: {len(items)} clusters of {given.cluster} bytes")
        total = len(items) * given.cluster / 1e6
        base_time, base = timed(as_qemu, items, 2, given.rounds)
        base_size = sum(map(len, base))
        print(f"  {'zlib as QEMU, 2 threads':34} {total / base_time:7.0f} MB/s  {base_size:10} bytes")
        for label, kind, threads in (("deflate", 0, 1), ("deflate", 0, 2), ("zstd", 1, 1), ("zstd", 1, 2)):
            spent, packed = timed(partial(packed_by, kind), items, threads, given.rounds)
            length = sum(len(one) if one is not None else given.cluster for one in packed)
            print(
                f"  {f'compress {label}, {threads} thread(s)':34} {total / spent:7.0f} MB/s  {length:10} bytes"
                f"  {base_time / spent:5.2f}x speed  {length / base_size:5.3f}x size"
            )
            if kind == 0:
                work = [one for one in base if len(one) < given.cluster]
                plain_time, _ = timed(partial(by_zlib, given.cluster), work, threads, given.rounds)
                spent, _ = timed(partial(by_us, given.cluster), work, threads, given.rounds)
                amount = len(work) * given.cluster / 1e6
                print(
                    f"  {f'decompress deflate, {threads} thread(s)':34} {amount / spent:7.0f} MB/s"
                    f"  {plain_time / spent:5.2f}x zlib"
                )
    print("\nencryption, runs of 64 KiB and 2 MiB")
    for mode, key_bytes in (("xts-plain64", 64), ("cbc-essiv:sha256", 32), ("cbc-plain64", 16)):
        cipher = SectorCipher(parse_spec("aes", mode, key_bytes), os.urandom(key_bytes))
        for run in (65536, 2 << 20):
            count = (64 << 20) // run
            row = []
            for step in (cipher.encrypt, cipher.decrypt):
                spent, _ = timed(partial(step, os.urandom(run)), range(count), 1, given.rounds)
                row.append(count * run / spent / 1e6)
            print(f"  aes {mode:18} {run:8}  encrypt {row[0]:6.0f} MB/s  decrypt {row[1]:6.0f} MB/s")


if __name__ == "__main__":
    main()
