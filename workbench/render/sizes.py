"""Numbers for people."""

from __future__ import annotations

from workbench.units import format_size


def size_with_bytes(size: int) -> str:
    """`64 MiB (67108864 bytes)`; small sizes plainly `512 bytes`."""
    return f"{size} bytes" if size < 1024 else f"{format_size(size)} ({size} bytes)"


def count(number: int, noun: str, plural: str | None = None) -> str:
    """`1 entry`, `2 entries`, `16,777,216 clusters`."""
    if number == 1:
        return f"1 {noun}"
    if plural is None:
        plural = noun[:-1] + "ies" if noun.endswith("y") and noun[-2:-1] not in "aeiou" else noun + "s"
    return f"{number:,} {plural}"


def span(start: int, length: int) -> str:
    """A byte range `0x10000..0x1ffff`, its end included; an empty one is just its start."""
    return f"{start:#x}..{start + length - 1:#x}" if length > 0 else f"{start:#x}"


def duration(nanoseconds: int) -> str:
    """A running time as `HH:MM:SS.mmm` (hours may exceed 24)."""
    seconds, rest = divmod(nanoseconds, 10**9)
    return f"{seconds // 3600:02}:{seconds // 60 % 60:02}:{seconds % 60:02}.{rest // 10**6:03}"


def date(seconds: int) -> str:
    """`2023-11-14 22:13:20 UTC` of seconds since 1970."""
    import datetime

    return datetime.datetime.fromtimestamp(seconds, datetime.UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
