"""The texts as they stand in the Markdown files beside this module.

A section is `## key: Title`, then `*specification section*`, then paragraphs. A paragraph that begins with `Here:`,
`Here if zero:`, `Here if set:`, `Limits:` or `QEMU:` belongs to that part; the others say what the thing is. `{name}` and
`{name:form}` in a `Here` paragraph stand for facts (see `workbench.teach.filling`).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Final

_HEADING: Final = re.compile(r"^## (\S+): (.+)$")
_LABEL: Final = re.compile(r"^(Here if zero|Here if set|Here|Limits|QEMU): ")


@dataclass(frozen=True, slots=True)
class Section:
    """One explanation as written. here: (condition, template) in order; condition is "", "zero" or "set"."""

    key: str
    title: str
    what: str
    here: tuple[tuple[str, str], ...]
    limits: str
    qemu: str
    spec: str
    source: str


@cache
def sections() -> dict[str, Section]:
    """All sections by key. ValueError when a file is malformed or a key occurs twice (a mistake in the package)."""
    found: dict[str, Section] = {}
    for file in sorted(resources.files(__package__).iterdir(), key=lambda each: each.name):
        if not file.name.endswith(".md"):
            continue
        for section in parse(file.read_text("utf-8"), file.name):
            if section.key in found:
                raise ValueError(f"{file.name}: second section {section.key!r}")
            found[section.key] = section
    return found


def keys() -> tuple[str, ...]:
    """Every key that has a text of its own."""
    return tuple(sections())


def parse(text: str, source: str) -> list[Section]:
    """The sections of one file. ValueError names the file and the heading that cannot be read."""
    found = []
    for chunk in re.split(r"(?m)^(?=## )", text)[1:]:
        first, _, body = chunk.partition("\n")
        heading = _HEADING.match(first)
        if heading is None:
            raise ValueError(f"{source}: not a section heading: {first!r}")
        found.append(_section(heading[1], heading[2].strip(), body, source))
    return found


def _section(key: str, title: str, body: str, source: str) -> Section:
    parts: dict[str, list[str]] = {"what": [], "Limits": [], "QEMU": []}
    here: list[tuple[str, str]] = []
    spec = ""
    for paragraph in re.split(r"\n\s*\n", body.strip()):
        text = " ".join(paragraph.split())
        label = _LABEL.match(text)
        if label is None and text.startswith("*") and text.endswith("*") and not spec:
            spec = text.strip("*")
        elif label is None:
            parts["what"].append(text)
        elif label[1].startswith("Here"):
            here.append((label[1][8:], text[label.end() :]))
        else:
            parts[label[1]].append(text[label.end() :])
    joined = {name: "\n\n".join(lines) for name, lines in parts.items()}
    return Section(key, title, joined["what"], tuple(here), joined["Limits"], joined["QEMU"], spec, source)
