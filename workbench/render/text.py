"""Text from images made safe for a terminal: names in a file are written by strangers."""

from __future__ import annotations

import unicodedata

_UNSAFE = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}


def printable(text: str, *, keep: str = "") -> str:
    """`text` with control, format and undecodable characters as escapes (`\\x1b`, `\\udc80` → `\\x80`).

    keep: characters to let through (for example "\\n"). The result can be encoded and cannot steer a terminal.
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(c if c in keep or unicodedata.category(c) not in _UNSAFE else _escape(c) for c in text)


def _escape(char: str) -> str:
    code = ord(char)
    if 0xDC80 <= code <= 0xDCFF:  # a byte that was no UTF-8
        return f"\\x{code - 0xDC00:02x}"
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def quoted(text: str) -> str:
    """A name in double quotes, escaped."""
    return '"' + printable(text.replace("\\", "\\\\")).replace('"', '\\"') + '"'


def clip(text: str, width: int) -> str:
    """`text` in at most `width` columns, cut with an ellipsis."""
    return text if len(text) <= width else text[: max(0, width - 1)] + "…"


def ascii_column(data: bytes) -> str:
    """One character a byte, dots for what is not printable ASCII."""
    return "".join(chr(b) if 32 <= b < 127 else "." for b in data)
