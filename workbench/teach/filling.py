"""Filling numbers into sentences: a formatter that knows names and a few forms, nothing else.

`{name}` gives whole numbers with thousands separators. Forms: `hex` 0x50000, `size` 64 KiB, `both` 65,536 bytes (64 KiB),
`code` a string from the image, made harmless and set as code.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

from workbench.units import format_size

Facts = Mapping[str, object]
PLACEHOLDER: Final = re.compile(r"\{([a-z][a-z0-9_]*)(?::([a-z]+))?\}")
_LONGEST: Final = 200


class UnknownFactError(LookupError):
    """A sentence needs a number that was not given. The sentence is then left out."""


def number(facts: Facts, name: str) -> int:
    """The fact as an int. UnknownFactError when it is not there or is no number."""
    value = facts.get(name)
    if isinstance(value, bool):
        return int(value)
    if not isinstance(value, int):
        raise UnknownFactError(name)
    return value


def fill(template: str, facts: Facts) -> str:
    """`template` with its placeholders filled. UnknownFactError when one is not known."""

    def put(match: re.Match[str]) -> str:
        name, form = match[1], match[2] or ""
        if facts.get(name) is None:
            raise UnknownFactError(name)
        return shown(facts[name], form)

    return PLACEHOLDER.sub(put, template)


def shown(value: object, form: str = "") -> str:
    """A fact as text in one of the forms above. UnknownFactError when the form wants a number and it is none."""
    if form == "code" or isinstance(value, bytes):
        return code(value)
    if isinstance(value, int) and not isinstance(value, bool):
        if form == "hex":
            return f"{value:#x}"
        if form == "size":
            return size(value)
        if form == "both":
            return both(value)
        return f"{value:,}"
    if form:
        raise UnknownFactError(form)  # a number was wanted
    return code(value)


def size(value: int) -> str:
    """`64 KiB`; exact in bytes where rounding would mislead."""
    return format_size(value)


def both(value: int) -> str:
    """`65,536 bytes (64 KiB)`."""
    return f"{value:,} bytes" if value < 1024 else f"{value:,} bytes ({format_size(value)})"


def span(start: int, length: int) -> str:
    """`0x0 … 0xffff` for a byte range; both ends included."""
    return f"{start:#x} … {start + max(length, 1) - 1:#x}"


def code(value: object) -> str:
    """A string out of an image as a Markdown code span: no control characters, no way out of the span."""
    text = value.hex(" ") if isinstance(value, bytes) else str(value)
    safe = "".join(each if each.isprintable() else f"\\x{ord(each):02x}" for each in text[:_LONGEST])
    safe = safe.replace("`", "'")
    return f"`{safe}{'…' if len(text) > _LONGEST else ''}`" if safe else "(empty)"
