"""L2 tables read ahead by helper threads, in order, in a few buffers that are used again and again."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from queue import SimpleQueue
from typing import Final

import numpy as np
from numpy.typing import NDArray

from workbench.check.passes_l2 import Flags, L2Pass
from workbench.check.tables import Batch, L2Set, read_batch
from workbench.engine.metadata import Metadata
from workbench.errors import StorageError
from workbench.units import Geometry

_BUFFERS_PER_THREAD: Final = 2
Loaded = tuple[NDArray[np.intp], Batch, Flags] | tuple[NDArray[np.intp], StorageError]


class Pipeline:
    """Iterating gives, for each batch in order: (rows, batch, runs), or (rows, StorageError). Close it when done early."""

    def __init__(
        self,
        meta: Metadata,
        work: L2Pass,
        tables: L2Set,
        geometry: Geometry,
        batches: list[NDArray[np.intp]],
        threads: int,
    ) -> None:
        self.meta, self.work, self.tables, self.geometry = meta, work, tables, geometry
        self.batches = batches
        self.threads = min(threads, len(batches) // 4)
        self.stopped = False

    def __iter__(self) -> Iterator[Loaded]:
        if self.threads < 1:
            buffer: NDArray[np.uint8] | None = None
            for rows in self.batches:
                if buffer is None:
                    buffer = self._buffer()
                yield self._load(rows, buffer)
            return
        yield from self._threaded()

    def _buffer(self) -> NDArray[np.uint8]:
        most = max(int(rows.size) for rows in self.batches[:1])
        return np.empty(most * self.geometry.cluster_size, dtype=np.uint8)

    def _load(self, rows: NDArray[np.intp], buffer: NDArray[np.uint8]) -> Loaded:
        try:
            batch = read_batch(self.meta, self.tables, rows, self.geometry, buffer)
        except StorageError as error:
            return rows, error
        return rows, batch, self.work.find_runs(batch)

    def _threaded(self) -> Iterator[Loaded]:
        free: SimpleQueue[NDArray[np.uint8]] = SimpleQueue()
        for _ in range(self.threads * _BUFFERS_PER_THREAD):
            free.put(self._buffer())
        ready: list[Loaded | BaseException | None] = [None] * len(self.batches)
        used: dict[int, NDArray[np.uint8]] = {}
        arrived = threading.Condition()
        numbers = iter(range(len(self.batches)))

        def work() -> None:
            while True:
                buffer = free.get()
                with arrived:
                    number = next(numbers, None)
                if number is None or self.stopped:
                    return
                try:
                    done: Loaded | BaseException = self._load(self.batches[number], buffer)
                except BaseException as error:  # noqa: BLE001 - raised again where the batch is asked for
                    done = error
                with arrived:
                    used[number] = buffer
                    ready[number] = done
                    arrived.notify()

        pool = [threading.Thread(target=work, name=f"check-{number}", daemon=True) for number in range(self.threads)]
        for thread in pool:
            thread.start()
        try:
            for number in range(len(self.batches)):
                with arrived:
                    while ready[number] is None:
                        arrived.wait()
                    done, ready[number] = ready[number], None
                if isinstance(done, BaseException):
                    raise done
                assert done is not None
                yield done
                free.put(used.pop(number))
        finally:
            self.stopped = True
            for _ in pool:
                free.put(np.empty(0, dtype=np.uint8))
            for thread in pool:
                thread.join()
