"""L2 tables read ahead by helper threads, in order, in a few buffers that are used again and again."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from queue import SimpleQueue
from typing import TYPE_CHECKING, Final

import numpy as np

from workbench.check.passes_l2 import L2Pass
from workbench.check.tables import Batch, L2Set, read_batch
from workbench.engine.metadata import Metadata
from workbench.errors import StorageError
from workbench.units import Geometry

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from workbench.check.passes_l2 import Flags

_BUFFERS_PER_THREAD: Final = 2
_TRIAL: Final = 4
_SLOW: Final = 0.004
"""Seconds per batch above which the storage is slow enough for threads to pay: from the page cache they only cost."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """One batch. error: why there is none; runs: tables that are one run (L2Pass.find_runs)."""

    rows: NDArray[np.intp]
    batch: Batch | None
    runs: Flags | None
    error: StorageError | None = None


class Pipeline:
    """Iterating gives the batches in order."""

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
        self.threads = threads
        self.stopped = False

    def __iter__(self) -> Iterator[Loaded]:
        if not self.batches:
            return
        buffer, alone = self._buffer(), 0.0
        for number, rows in enumerate(self.batches):
            if number >= _TRIAL and self.threads and alone > _SLOW * number:
                self.batches = self.batches[number:]
                yield from self._threaded()
                return
            started = time.perf_counter()
            loaded = self._load(rows, buffer)
            alone += time.perf_counter() - started
            yield loaded

    def _buffer(self) -> NDArray[np.uint8]:
        most = max(int(rows.size) for rows in self.batches[:1])
        return np.empty(most * self.geometry.cluster_size, dtype=np.uint8)

    def _load(self, rows: NDArray[np.intp], buffer: NDArray[np.uint8]) -> Loaded:
        try:
            batch = read_batch(self.meta, self.tables, rows, self.geometry, buffer)
        except StorageError as error:
            return Loaded(rows, None, None, error)
        return Loaded(rows, batch, self.work.find_runs(batch))

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
