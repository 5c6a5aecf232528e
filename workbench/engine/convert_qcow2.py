"""Copying a disk into a new qcow2 image, plain or compressed: threads read ahead, one thread writes in guest order."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

from formats.qcow2.entries import ClusterType
from workbench.engine.ahead import in_order
from workbench.engine.convert import CopyResult, Piece, Progress, Source, readable, unpacked_start
from workbench.engine.create import CreateOptions, create_file
from workbench.engine.image import Image
from workbench.engine.layers import Layer, Qcow2Layer
from workbench.engine.reading import flatten
from workbench.engine.target import open_target
from workbench.errors import ArgumentError, QwbError

CHUNK: Final = 4 << 20
"""Guest bytes that are read as one job and handed to the writer at once; a multiple of every cluster size."""


def convert_to_qcow2(
    source: Source,
    path: Path,
    *,
    options: dict[str, Any] | None = None,
    compress: bool = False,
    salvage: bool = False,
    progress: Progress | None = None,
    cancel: Callable[[], bool] | None = None,
) -> CopyResult:
    """Write the disk as a new qcow2 image; `path` appears (or changes) only when all is copied.

    options: fields of CreateOptions but size and backing file.  compress: every cluster that shrinks.  salvage: as
    `copy_out`. Clusters that are all zeros are left unallocated.
    Raises ArgumentError for options that contradict each other, and what `copy_out` and `open_target` raise.
    """
    chosen = dict(options or {})
    if chosen.get("backing_file"):
        raise ArgumentError("a conversion has no backing file: all data is copied")
    chosen["size"] = source.size
    wanted = CreateOptions(**chosen)
    wanted.check()
    if compress and wanted.data_file:
        raise ArgumentError("compressed clusters cannot be in an image with an external data file")
    result = CopyResult()
    with open_target(path, source.paths) as target:
        draft = target.storage.path
        if not target.fresh:
            raise ArgumentError("a qcow2 image is written to a file, not to a device", path=str(path))
        create_file(draft, wanted, inputs=[*source.paths, path])
        with Image.open(draft, writable=True) as image:
            for start, buffer in _read_ahead(source, result, salvage, progress, cancel):
                for low, high in _used(buffer, image.geometry.cluster_size):
                    part = buffer[low:high]
                    if compress:
                        image.write_compressed(start + low, part)
                    else:
                        image.write(start + low, part)
    result.settle()
    if progress is not None:
        progress(source.size, source.size)
    return result


def _chunks(layers: Sequence[Layer], size: int, salvage: CopyResult | None) -> Iterator[tuple[int, list[Piece]]]:
    """(guest offset, pieces with data) of every CHUNK that has any."""
    here, pieces = 0, list[Piece]()
    for flat in flatten(layers, 0, size, places=True):
        for start, length, layer, kind, host in readable(layers, flat, salvage):
            at, end = start, start + length
            while at < end:
                if at // CHUNK != here:
                    if pieces:
                        yield here * CHUNK, pieces
                    here, pieces = at // CHUNK, []
                stop = min(end, (here + 1) * CHUNK)
                fixed = kind == ClusterType.COMPRESSED or host < 0
                pieces.append(Piece(at, stop - at, layer, kind, host if fixed else host + at - start))
                at = stop
    if pieces:
        yield here * CHUNK, pieces


def _read_ahead(
    source: Source,
    result: CopyResult,
    salvage: bool,
    progress: Progress | None,
    cancel: Callable[[], bool] | None,
) -> Iterator[tuple[int, memoryview]]:
    """(guest offset, content) of the chunks with data, in order, some of them being read while one is written."""
    for layer in source.layers:
        if isinstance(layer, Qcow2Layer):
            layer.cipher()

    def work(chunk: tuple[int, list[Piece]]) -> memoryview:
        start, pieces = chunk
        return _fill(source.layers, start, min(CHUNK, source.size - start), pieces, result, salvage)

    chunks = in_order(
        _chunks(source.layers, source.size, result if salvage else None),
        work,
        cancel=cancel,
        path=source.layers[0].path,
    )
    with contextlib.closing(chunks) as done:
        for (start, pieces), buffer in done:
            result.data += sum(piece.length for piece in pieces)
            if progress is not None:
                progress(start, source.size)
            yield start, buffer


def _fill(
    layers: Sequence[Layer], start: int, length: int, pieces: list[Piece], result: CopyResult, salvage: bool
) -> memoryview:
    """One chunk's content."""
    buffer = memoryview(bytearray(length))
    for piece in pieces:
        layer = layers[piece.layer]
        at = piece.start - start
        try:
            layer.read_run(piece.start, piece.kind, piece.host, buffer[at : at + piece.length])
        except QwbError as error:
            if not salvage:
                raise
            got = unpacked_start(layer, piece.kind, piece.host, piece.start, piece.length)
            result.lose(piece.start + len(got), piece.length - len(got), str(error))
            buffer[at : at + piece.length] = got + bytes(piece.length - len(got))
    return buffer


def _used(buffer: memoryview, cluster: int) -> list[tuple[int, int]]:
    """(start, end) of the stretches of clusters that are not all zeros."""
    import numpy as np

    whole = len(buffer) // cluster
    words = np.frombuffer(buffer[: whole * cluster], dtype=np.uint64).reshape(whole, cluster // 8)
    used = words[:, 0] != 0
    maybe = np.flatnonzero(~used)
    if len(maybe):
        used[maybe] = words[maybe].any(axis=1)
    flags = used.tolist()
    if whole * cluster < len(buffer):
        flags.append(any(buffer[whole * cluster :]))
    edges = np.flatnonzero(np.diff(np.array([False, *flags, False]).astype(np.int8))).reshape(-1, 2)
    return [(low * cluster, min(high * cluster, len(buffer))) for low, high in edges.tolist()]
