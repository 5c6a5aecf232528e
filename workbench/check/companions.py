"""The files that an image names: backing chain and external data file. qemu-img opens them too before it checks.

Only plain local files are opened, read-only; what a name means otherwise (network, json:) is reported, not followed.
"""

from __future__ import annotations

import os
from pathlib import Path

from formats.qcow2 import limits
from formats.qcow2.header import field
from workbench.check.census import WINDOW
from workbench.check.findings import FindingLog
from workbench.check.result import Cancel, CheckResult, ProgressSink
from workbench.check.run import check
from workbench.engine.metadata import Metadata, load_metadata
from workbench.engine.opening import refusal_of
from workbench.errors import StorageError
from workbench.storage.base import Storage
from workbench.storage.file import FileStorage
from workbench.storage.identity import written_later
from workbench.units import many

_KNOWN = {
    "raw", "qcow2", "qcow", "qed", "vdi", "vmdk", "vpc", "vhdx", "dmg", "bochs", "cloop", "parallels", "luks", "file",
    "host_device",
}  # fmt: skip


def check_file(
    storage: Storage,
    *,
    fast: bool = False,
    deep: bool = False,
    progress: ProgressSink | None = None,
    cancel: Cancel | None = None,
    window: int = WINDOW,
    threads: int = 1,
    known: CheckResult | None = None,
) -> CheckResult:
    """Check an image and look whether its companions can be opened, as `qemu-img check` would have to.

    A companion that cannot be opened makes the exit code 1, as there; the image itself is checked all the same.
    The rest as in `check`.
    """
    meta = load_metadata(storage)
    log = FindingLog()
    aborted = companions(meta, log)
    return check(
        meta, fast=fast, deep=deep, progress=progress, cancel=cancel, window=window, threads=threads, log=log,
        aborted=aborted, known=known,
    )  # fmt: skip


def companions(meta: Metadata, log: FindingLog) -> str | None:
    """Log what is wrong with backing chain and data file; returns why QEMU could not open the image, or None."""
    reason = _data_file(meta, log)
    seen = {_identity(meta.storage.path)}
    current, path = meta, meta.storage.path
    for _ in range(limits.MAX_BACKING_CHAIN):
        name = current.backing_name
        if name is None:
            return reason
        place = field("backing_file_offset", "backing_file_size") if current is meta else (0, 0)
        if _is_protocol(name):
            log.add("BACKING-NOT-FOLLOWED", *place, numbers={"what": f"backing file {name!r} was not opened"})
            return reason
        target = os.path.join(os.path.dirname(path), name.removeprefix("file:"))
        identity = _identity(target)
        if identity in seen:
            why = f"the backing chain runs in a circle: {target!r} is part of it already"
            log.add("BACKING-CYCLE", *place, numbers={"what": why})
            return reason or why
        seen.add(identity)
        declared = current.backing_format
        if declared is not None and declared not in _KNOWN:
            why = f"backing file {name!r}: unknown format {declared!r}"
            log.add("BACKING-MISSING", *place, numbers={"what": why})
            return reason or why
        try:
            storage = FileStorage.open(target)
        except StorageError as error:
            of = "" if current is meta else f" of {path}"
            missing = isinstance(error.__cause__, FileNotFoundError)
            why = f"the backing file {name!r}{of} " + (
                f"is missing: there is no {target}" if missing else f"cannot be opened: {error}"
            )
            log.add("BACKING-MISSING", *place, numbers={"what": why, "missing": name if missing else ""})
            return reason or why
        later = written_later(target, path)
        if later:
            of = "this image" if current is meta else path
            what = f"the backing file {name!r} was written {_span(later)} after {of} last was"
            log.add("BACKING-YOUNGER", *place, numbers={"what": what})
        with storage:
            lower = load_metadata(storage)
            if declared not in (None, "qcow2") or (declared is None and not lower.is_qcow2):
                return reason
            refusal = refusal_of(lower)
            if refusal is not None:
                why = f"backing file {name!r} cannot be opened: {refusal.what}"
                log.add("BACKING-MISSING", *place, numbers={"what": why})
                return reason or why
            _ = lower.backing_format, lower.backing_name  # read while the file is open
            current, path = lower, target
    return reason


def _data_file(meta: Metadata, log: FindingLog) -> str | None:
    name = meta.data_file_name
    if meta.geometry is None or not meta.header.has("data_file"):
        return None
    if name is None:
        return "the image does not name its external data file"
    if _is_protocol(name):
        log.add(
            "BACKING-NOT-FOLLOWED",
            *field("incompatible_features"),
            numbers={"what": f"data file {name!r} was not opened"},
        )
        return None
    try:
        FileStorage.open(name).close()
    except StorageError as error:
        missing = isinstance(error.__cause__, FileNotFoundError)
        how = "is missing" if missing else f"cannot be opened: {error}"
        why = f"the external data file {name!r} {how}"
        numbers = {"what": why, "missing": name if missing else ""}
        log.add("DATA-FILE-MISSING", *field("incompatible_features"), numbers=numbers)
        return why
    return None


def _span(seconds: int) -> str:
    """A time in its largest unit."""
    length, noun = next((each for each in ((86400, "day"), (3600, "hour")) if seconds >= 2 * each[0]), (60, "minute"))
    return many(seconds // length, noun)


def _is_protocol(name: str) -> bool:
    """Whether QEMU would read a protocol into the name: `word:` before the first slash."""
    head = name.split("/", 1)[0]
    return ":" in head and not name.startswith("file:")


def _identity(path: str) -> object:
    try:
        found = os.stat(path)
    except OSError:
        return Path(path).absolute()
    return found.st_dev, found.st_ino


__all__ = ["check_file", "companions"]
