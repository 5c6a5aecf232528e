"""Work off the interface's thread: short reads and long jobs, with progress and cancel. Results come back on the loop."""

from __future__ import annotations

import asyncio
import threading
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from dataclasses import dataclass, field
from typing import Any, Final

from workbench.errors import QwbError

Failure: Final = (QwbError, OSError, ValueError, MemoryError, ArithmeticError, LookupError, TypeError)


class Cancelled(Exception):
    """Raised inside a job that was told to stop."""


@dataclass(slots=True)
class Job:
    """Something that runs and can be stopped. done/total: in the job's own unit; total 0 while unknown."""

    title: str
    long: bool = False
    done: int = 0
    total: int = 0
    note: str = ""
    _stop: threading.Event = field(default_factory=threading.Event)
    finished: bool = False

    def cancel(self) -> None:
        """Ask it to stop; it does so at its next step."""
        self._stop.set()

    @property
    def cancelled(self) -> bool:
        return self._stop.is_set()

    def step(self, done: int, total: int, note: str = "") -> None:
        """Say how far it is; raises Cancelled when it should stop."""
        self.done, self.total, self.note = done, total, note
        if self._stop.is_set():
            raise Cancelled


class Background:
    """A few threads shared by everything that one image shows. `pending` counts what has not come back yet.

    Two threads serve short reads, so that no long job ever stands in the way of a page of hex.
    """

    def __init__(self) -> None:
        self._short = ThreadPoolExecutor(2, thread_name_prefix="qwb-read")
        self._long = ThreadPoolExecutor(2, thread_name_prefix="qwb-job")
        self.jobs: list[Job] = []
        self.pending = 0
        self.closed = False
        self.over: Callable[[], None] = lambda: None
        """Called when a long job has ended, after its own callback."""
        self._idle = asyncio.Event()
        self._idle.set()

    def submit(
        self,
        work: Callable[[Job], Any],
        done: Callable[[Any], None],
        failed: Callable[[Exception], None] | None = None,
        *,
        title: str = "reading",
        long: bool = False,
    ) -> Job:
        """Run `work(job)` in a thread; then `done(result)`, or `failed(error)`, on the event loop.

        What `work` may fail with: the workbench's own errors and what damaged data makes of arithmetic (see Failure).
        A cancelled job calls neither.
        """
        job = Job(title, long)
        if self.closed:  # a timer that fires while the image is being closed
            job.cancel()
            return job
        loop = asyncio.get_running_loop()
        context = copy_context()  # what is called back may make widgets, which need to know their app
        self.pending += 1
        self._idle.clear()
        if long:
            self.jobs.append(job)

        def finish(result: Any, error: Exception | None) -> None:
            job.finished = True
            if job in self.jobs:
                self.jobs.remove(job)
            try:
                if not self.closed and not job.cancelled:
                    if error is None:
                        done(result)
                    elif failed is not None:
                        failed(error)
                if long and not self.closed:
                    self.over()
            finally:
                self.pending -= 1
                if self.pending == 0:
                    self._idle.set()

        def run() -> None:
            result, error = None, None
            try:
                if not job.cancelled:
                    result = work(job)
            except Cancelled:
                job.cancel()
            except Failure as caught:
                error = caught
            if not loop.is_closed():
                try:
                    loop.call_soon_threadsafe(finish, result, error, context=context)
                except RuntimeError:  # the loop closed in between: the program is ending
                    return

        (self._long if long else self._short).submit(run)
        return job

    @property
    def busy(self) -> Job | None:
        """The oldest long job that still runs."""
        return next((job for job in self.jobs if not job.finished), None)

    async def idle(self) -> None:
        """Wait until everything asked for has come back (and what that asked for in turn)."""
        while self.pending:
            await self._idle.wait()
            await asyncio.sleep(0)

    def close(self) -> None:
        """Stop everything; nothing is called back any more."""
        self.closed = True
        for job in self.jobs:
            job.cancel()
        self._short.shutdown(wait=False, cancel_futures=True)
        self._long.shutdown(wait=False, cancel_futures=True)


BLOCK: Final = 1 << 16


class Pages:
    """Bytes of one source (a file, the virtual disk) in blocks of 64 KiB, read in the background, few kept.

    `peek` never waits: it gives what is there and asks for the rest. `changed` is called when more has come.
    """

    def __init__(
        self,
        background: Background,
        read: Callable[[int, int], bytes],
        changed: Callable[[], None],
        *,
        limit: int = 128,
        title: str = "reading",
    ) -> None:
        self._background, self._read, self._changed, self._limit, self._title = background, read, changed, limit, title
        self._blocks: OrderedDict[int, bytes] = OrderedDict()
        self._asked: set[int] = set()
        self._generation = 0
        self.errors: dict[int, str] = {}

    def peek(self, offset: int, length: int) -> bytes | None:
        """The bytes, shorter only where the source ends; None while some of them are being read."""
        first, last = offset // BLOCK, (offset + max(length, 1) - 1) // BLOCK
        parts: list[bytes] = []
        missing = False
        for number in range(first, last + 1):
            block = self._blocks.get(number)
            if block is None:
                self._ask(number)
                missing = True
            else:
                self._blocks.move_to_end(number)
                parts.append(block)
        if missing:
            return None
        start = offset - first * BLOCK
        return b"".join(parts)[start : start + length]

    def error_at(self, offset: int) -> str:
        """Why the block with `offset` could not be read; empty when it could."""
        return self.errors.get(offset // BLOCK, "")

    def forget(self) -> None:
        """Drop everything, for a source that changed."""
        self._generation += 1
        self._blocks.clear()
        self._asked.clear()
        self.errors.clear()

    def _ask(self, number: int) -> None:
        if number in self._asked:
            return
        self._asked.add(number)
        generation = self._generation

        def done(data: bytes) -> None:
            if generation != self._generation:
                return
            self._asked.discard(number)
            self._blocks[number] = data
            while len(self._blocks) > self._limit:
                self._blocks.popitem(last=False)
            self._changed()

        def failed(error: Exception) -> None:
            if generation == self._generation:
                if len(self.errors) > 1024:
                    self.errors.clear()
                self.errors[number] = error.what if isinstance(error, QwbError) else str(error)
                done(b"")

        self._background.submit(lambda _job: self._read(number * BLOCK, BLOCK), done, failed, title=self._title)
