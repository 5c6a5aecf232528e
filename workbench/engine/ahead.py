"""Jobs done ahead on threads, their results in order: while one is being used, the next ones are read or unpacked."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Final, TypeVar

from workbench.errors import QwbError

Job = TypeVar("Job")
Result = TypeVar("Result")

_AHEAD: Final = 4


class Cancelled(QwbError):
    """The caller's `cancel` said stop."""


def in_order(
    jobs: Iterable[Job],
    work: Callable[[Job], Result],
    *,
    threads: int | None = None,
    cancel: Callable[[], bool] | None = None,
    path: str | None = None,
) -> Generator[tuple[Job, Result], None, None]:
    """(job, what `work` made of it), job by job; a bounded number of jobs is worked on in advance.

    path: for the message of Cancelled, which is raised before a job is begun when `cancel` says so. What `work` and
    `jobs` raise comes out in its turn. Closing the generator lets go of what was not begun.
    """
    workers = threads or min(4, max(2, os.cpu_count() or 2))
    pending: deque[tuple[Job, Future[Result]]] = deque()
    with ThreadPoolExecutor(workers, thread_name_prefix="qwb-ahead") as pool:
        try:
            for job in jobs:
                if cancel is not None and cancel():
                    raise Cancelled("stopped", path=path)
                pending.append((job, pool.submit(work, job)))
                if len(pending) > workers + _AHEAD:
                    done, future = pending.popleft()
                    yield done, future.result()
            while pending:
                done, future = pending.popleft()
                yield done, future.result()
        finally:
            for _, future in pending:
                future.cancel()
