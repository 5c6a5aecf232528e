"""Hex dumps: offset, bytes, text; runs of equal lines folded."""

from __future__ import annotations

from collections.abc import Iterator

from workbench.render.text import ascii_column


def hex_bytes(data: bytes, limit: int = 8) -> str:
    """The first `limit` bytes in hex, pairs separated by blanks, with an ellipsis when there are more."""
    shown = data[:limit].hex(" ")
    return f"{shown} …" if len(data) > limit else shown


def hexdump(data: bytes, base: int = 0, *, width: int = 16, fold: bool = True) -> Iterator[str]:
    """Lines of `width` bytes from offset `base`; repeated equal lines become one `*` line that counts them."""
    digits = max(8, len(f"{base + max(0, len(data) - 1):x}"))
    columns = width * 3 + (width - 1) // 8
    previous: bytes | None = None
    folded = 0
    for at in range(0, len(data), width):
        row = data[at : at + width]
        last = at + width >= len(data)
        if fold and row == previous and not last:
            folded += 1
            continue
        if folded:
            yield f"{'*':>{digits}}  {folded:,} equal line{'s' if folded > 1 else ''} of {width} bytes"
            folded = 0
        parts = [row[i : i + 8].hex(" ") for i in range(0, len(row), 8)]
        yield f"{base + at:0{digits}x}  {'  '.join(parts):<{columns}} |{ascii_column(row)}|"
        previous = row
