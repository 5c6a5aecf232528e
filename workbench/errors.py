"""What can go wrong, as data: each error says what, where (file, offset, table, index) and what to do next.

Wording for people is made in one place, `__str__`: one line, `FILE: what (where); next`.
"""

from __future__ import annotations


class QwbError(Exception):
    """Base of every error that the workbench raises on purpose.

    what: one clause, no full stop.  path: file the error is about.  offset: host byte offset in that file.
    table/index: which table and which entry in it.  hint: what to do next.
    """

    def __init__(
        self,
        what: str,
        *,
        path: str | None = None,
        offset: int | None = None,
        table: str | None = None,
        index: int | None = None,
        hint: str | None = None,
    ) -> None:
        super().__init__(what)
        self.what = what
        self.path = path
        self.offset = offset
        self.table = table
        self.index = index
        self.hint = hint

    def __str__(self) -> str:
        where = []
        if self.table is not None:
            where.append(self.table if self.index is None else f"{self.table}[{self.index}]")
        if self.offset is not None:
            where.append(f"at {self.offset:#x}")
        text = self.what + (f" ({' '.join(where)})" if where else "")
        if self.path:
            text = f"{self.path}: {text}"
        return f"{text}; {self.hint}" if self.hint else text


class StorageError(QwbError):
    """The file could not be read, written or locked."""


class LockedError(StorageError):
    """Another process holds the image; `held` names the QEMU permissions in the way."""

    def __init__(
        self, what: str, *, held: tuple[str, ...] = (), path: str | None = None, hint: str | None = None
    ) -> None:
        super().__init__(what, path=path, hint=hint)
        self.held = held


class ImageError(QwbError):
    """The image cannot be opened or used as a qcow2 driver would use it."""


class NotQcow2Error(ImageError):
    """The file does not start with the qcow2 magic."""


class UnsupportedError(ImageError):
    """The image uses a feature or value that is unknown or beyond a documented limit."""


class CorruptError(ImageError):
    """Metadata contradicts the specification at a place the driver had to use."""


class PassphraseError(ImageError):
    """An encrypted image needs a passphrase, or the one given opens no key slot."""


class GateRefused(ImageError):
    """A backing or data file was not opened because the caller's gate said no (or its name is not a plain path)."""


class ArgumentError(QwbError):
    """The caller asked for something that makes no sense here (bad address, bad option value)."""
