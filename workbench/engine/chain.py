"""Opening an image and the files it names: backing chain and external data file, each through the gate."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from formats.foreign import disk_format
from formats.qcow2.header import field as header_field
from formats.qcow2.limits import MAX_BACKING_CHAIN, MAX_L1_SIZE
from workbench.engine.faults import Fault
from workbench.engine.gate import Gate, OpenRequest, resolve_name
from workbench.engine.layers import Layer, MissingLayer, Qcow2Layer, RawLayer
from workbench.engine.metadata import Metadata, Region, load_metadata
from workbench.engine.opening import require_openable
from workbench.errors import CorruptError, ImageError, PassphraseError, QwbError, UnsupportedError
from workbench.storage.base import Storage
from workbench.storage.file import FileStorage
from workbench.storage.locks import LockMode, acquire

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from formats.qcow2.snapshots import Snapshot
    from workbench.engine.crypto.ciphers import SectorCipher

_NAME = header_field("backing_file_offset", "backing_file_size")

RAW_NAMES = ("raw", "file", "host_device")


@dataclass(slots=True)
class Opening:
    """How a chain is to be opened, and what is found on the way.

    tolerant: what cannot be opened becomes a Fault in `problems` and the rest can be browsed; else it raises.
    """

    gate: Gate
    writable: bool = False
    force_share: bool = False
    lock: bool = True
    tolerant: bool = False
    secret: bytes | None = None
    problems: list[Fault] = field(default_factory=list)

    def problem(self, code: str, error: QwbError, base: str, offset: int = _NAME[0], length: int = _NAME[1]) -> None:
        """Record an error about a file that `base` names as a fault of `base`, or raise it."""
        if not self.tolerant:
            raise error
        what = error.what if error.path in (None, base) else f"{error.path}: {error.what}"
        self.problems.append(Fault(code, what, offset, length))


def open_file(path: str, opening: Opening, *, writable: bool = False) -> Storage:
    """A file with QEMU's locks on it."""
    storage = FileStorage.open(path, writable=writable)
    if opening.lock:
        mode = LockMode.WRITE if writable else LockMode.FORCE_READ if opening.force_share else LockMode.READ
        try:
            acquire(storage, mode)
        except BaseException:
            storage.close()
            raise
    return storage


def probe_format(storage: Storage) -> str:
    """qcow2, raw, or the name of another known format, from a file's first bytes."""
    return disk_format(storage.read(0, 128)) or "raw"


def open_top(storage: Storage, opening: Opening, snapshot: str | None) -> Qcow2Layer:
    """The image itself. Raises as `require_openable` does, unless tolerant: then only without a readable geometry."""
    meta = load_metadata(storage)
    if opening.tolerant:
        if meta.geometry is None:
            require_openable(meta)
        refused = [fault for fault in meta.faults if fault.refusal]
        opening.problems.extend(refused)
    else:
        require_openable(meta, writable=opening.writable)
    return _qcow2_layer(meta, opening, 0, snapshot)


def open_chain(top: Qcow2Layer, opening: Opening, stack: ExitStack) -> list[Layer]:
    """`top` and everything under it. What gets opened is closed by `stack`."""
    layers: list[Layer] = [top]
    seen = {_identity(top.path): top.path}
    while isinstance(here := layers[-1], Qcow2Layer):
        if not here.meta.backing_name:
            break
        try:
            below = _open_backing(here.meta, opening, len(layers) - 1, seen)
        except QwbError as error:
            opening.problem(_code_of(error), error, here.path)
            layers.append(MissingLayer(here.meta.backing_name, here.size, error))
            break
        if below is None:
            break
        stack.callback(below.close)
        layers.append(below)
    return layers


def open_under(path: str, form: str | None, opening: Opening, stack: ExitStack) -> list[Layer]:
    """The chain that a new image with the backing file `path` will have under it. What gets opened is closed by `stack`.

    form: the backing format, None to look. Raises as `open_chain` does.
    """
    storage = open_file(path, opening)
    stack.callback(storage.close)
    layer = _backing_layer(storage, form, opening, 1)
    stack.callback(layer.close)
    layers = open_chain(layer, opening, stack) if isinstance(layer, Qcow2Layer) else [layer]
    if len(layers) >= MAX_BACKING_CHAIN:
        raise ImageError(f"the backing chain has more than {MAX_BACKING_CHAIN} files", path=path)
    return layers


class _Cycle(ImageError):
    """A backing chain that comes back to a file it has."""


def _code_of(error: QwbError) -> str:
    return "BACKING-CYCLE" if isinstance(error, _Cycle) else "BACKING-UNAVAILABLE"


def _tell_of(error: QwbError, subject: str, path: str, base: str, hint: str) -> None:
    """Let the error of opening a file that `base` names be told of `base`: it is not the image that is missing."""
    if isinstance(error.__cause__, FileNotFoundError):
        error.what, error.hint = f"{subject} is missing: there is no {path}", hint
    else:
        error.what, error.hint = f"{subject} cannot be opened: {path}: {error.what}", error.hint or hint
    error.path = base


def _identity(path: str) -> object:
    """What tells one file from another, whatever its name."""
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return path
    return (status.st_dev, status.st_ino)


def _open_backing(meta: Metadata, opening: Opening, depth: int, seen: dict[object, str]) -> Layer | None:
    """The next layer, None when the gate says to go on without it."""
    base, name = meta.storage.path, meta.backing_name
    assert name is not None
    hint = "name it with --backing PATH, or look without it: --no-backing"
    request = OpenRequest("backing", name, resolve_name(name, base, "backing"), base, meta.backing_format, depth)
    path = opening.gate(request)
    if path is None:
        return None
    identity = _identity(os.fspath(path))
    if identity in seen:
        raise _Cycle(f"backing file {os.fspath(path)!r} is part of this chain already", path=base, hint=hint)
    if depth + 1 >= MAX_BACKING_CHAIN:
        raise ImageError(f"the backing chain has more than {MAX_BACKING_CHAIN} files", path=base, hint=hint)
    seen[identity] = os.fspath(path)
    try:
        storage = open_file(os.fspath(path), opening)
    except QwbError as error:
        _tell_of(error, f"the backing file {name!r}", os.fspath(path), base, hint)
        raise
    try:
        return _backing_layer(storage, meta.backing_format, opening, depth + 1)
    except BaseException:
        storage.close()
        raise


def _backing_layer(storage: Storage, stored: str | None, opening: Opening, depth: int) -> Layer:
    form = stored or probe_format(storage)
    if form in RAW_NAMES:
        return RawLayer(storage)
    if form != "qcow2":
        raise UnsupportedError(f"backing format {form[:32]!r} is not supported", path=storage.path)
    meta = load_metadata(storage)
    require_openable(meta)
    return _qcow2_layer(meta, opening, depth, None)


def _qcow2_layer(meta: Metadata, opening: Opening, depth: int, snapshot: str | None) -> Qcow2Layer:
    data, data_error = _data_storage(meta, opening, depth)
    entry = meta.snapshots[meta.snapshot_index(snapshot)] if snapshot is not None else None
    l1 = meta.l1 if entry is None else snapshot_l1(meta, entry)
    assert meta.geometry is not None
    said = meta.header.size if entry is None or entry.disk_size is None else entry.disk_size
    size = min(said, MAX_L1_SIZE // 8 * meta.geometry.l2_coverage)  # a damaged size: nothing behind it can be mapped
    return Qcow2Layer(meta, data, l1=l1, size=size, data_error=data_error, unlock=_unlocker(meta, opening))


def _data_storage(meta: Metadata, opening: Opening, depth: int) -> tuple[Storage | None, QwbError | None]:
    """Where plain clusters are: the image itself, or the external data file (None, with the reason, when missing)."""
    if not meta.header.has("data_file"):
        return meta.storage, None
    base, name = meta.storage.path, meta.data_file_name or ""
    writable = opening.writable and depth == 0
    resolved = resolve_name(name, base, "data") if name else None
    if resolved is not None and not resolved.exists():
        # QEMU looks in the working directory only. A data file that moved along with its image is still the right one.
        beside = resolve_name(name, base, "backing")
        resolved = beside if beside is not None and beside.exists() else resolved
    try:
        path = opening.gate(OpenRequest("data", name, resolved, base, "raw", depth))
        if path is None:
            return None, ImageError("the external data file was not opened, its data cannot be read", path=base)
        try:
            return open_file(os.fspath(path), opening, writable=writable), None
        except QwbError as error:
            hint = "it is looked for in the working directory and beside the image"
            _tell_of(error, f"the external data file {name!r}", os.fspath(path), base, hint)
            raise
    except QwbError as error:
        opening.problem("DATA-FILE-UNAVAILABLE", error, base, *header_field("incompatible_features"))
        return None, error


def snapshot_l1(meta: Metadata, entry: Snapshot) -> NDArray[np.uint64]:
    """A snapshot's L1 table, native uint64. CorruptError when its place or size makes no sense."""
    assert meta.geometry is not None
    size = entry.l1_size * 8
    if entry.l1_table_offset % meta.geometry.cluster_size or size > MAX_L1_SIZE:
        what = f"snapshot {entry.name!r}: L1 table at {entry.l1_table_offset:#x} of {size} bytes makes no sense"
        raise CorruptError(what, path=meta.storage.path, offset=entry.offset, table="snapshot table")
    return meta.read_words(Region(entry.l1_table_offset, size), MAX_L1_SIZE)


def _unlocker(meta: Metadata, opening: Opening) -> Callable[[], SectorCipher] | None:
    """How to get the cipher of an encrypted image when it is first needed; None when it is not encrypted."""
    method = meta.header.crypt_method
    if method == 0:
        return None

    def unlock() -> SectorCipher:
        path, secret = meta.storage.path, opening.secret
        if secret is None:
            raise PassphraseError("the image is encrypted", path=path, hint="give its passphrase: --secret-file FILE")
        if method == 1:
            from workbench.engine.crypto.legacy import legacy_cipher

            return legacy_cipher(secret)
        from workbench.engine.crypto.luks import unlock as unlock_luks

        header, pointer = meta.luks, meta.encryption
        if header is None or pointer is None:
            raise ImageError("the LUKS header cannot be found", path=path, hint=f"see `qwb check {path}`")
        start, room = pointer.offset, pointer.length

        def material(offset: int, length: int) -> bytes:
            return meta.storage.read(start + offset, max(0, min(length, room - offset)))

        return unlock_luks(header, material, secret, path=path).cipher()

    return unlock
