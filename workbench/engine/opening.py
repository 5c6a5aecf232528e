"""The strict open: the tolerant load's faults, refused where QEMU's driver refuses, with a one-line reason."""

from __future__ import annotations

from formats.qcow2.header import field
from workbench.engine.faults import Fault, Refusal
from workbench.engine.metadata import Metadata
from workbench.errors import ImageError, NotQcow2Error, UnsupportedError

_UNSUPPORTED = {"HEADER-VERSION", "HEADER-CLUSTER-BITS", "FEATURE-UNKNOWN", "HEADER-CRYPT-METHOD", "COMPRESSION-TYPE"}


def refusal_of(meta: Metadata, *, for_check: bool = False) -> Fault | None:
    """The first fault for which QEMU would not open the image; None when it opens.

    for_check: as `qemu-img check` opens it, which lets pass what it can count (no refcount table, short snapshot entries).
    """
    level = Refusal.ALWAYS if for_check else Refusal.OPEN
    return next((fault for fault in meta.faults if fault.refusal >= level), None)


def require_openable(meta: Metadata, *, for_check: bool = False, writable: bool = False) -> None:
    """Raise NotQcow2Error, UnsupportedError or ImageError when QEMU would refuse to open the image."""
    path = meta.storage.path
    fault = refusal_of(meta, for_check=for_check)
    if fault is not None:
        kind = ImageError
        if fault.code in ("HEADER-MAGIC", "FILE-EMPTY"):
            kind = NotQcow2Error
        elif fault.code in _UNSUPPORTED:
            kind = UnsupportedError
        hint: str | None = f"see `qwb check {path}` and `qwb problems {fault.code}`"
        if meta.foreign is not None:
            kind, hint = NotQcow2Error, meta.foreign.advice
        elif kind is NotQcow2Error:
            hint = None
        raise kind(fault.what, path=path, offset=fault.offset, hint=hint)
    if writable and meta.header.has("corrupt"):
        raise ImageError(
            "the image is marked corrupt and cannot be opened for writing",
            path=path,
            offset=field("incompatible_features")[0],
            hint=f"see `qwb check {path}`",
        )
