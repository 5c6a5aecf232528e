"""Explanations as data: one short lesson for every field of every structure, keyed by its schema path.

The texts are Markdown files beside this module. A lesson is a `## schema.path` heading with paragraphs; a paragraph may
start with `Here:`, `Limits:` or `QEMU:`. `{name}` takes a number or text of the image at hand (see `explain`).
"""

from __future__ import annotations

import string
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any, Final

LABELS: Final = ("Here", "Limits", "QEMU", "Follow")


@dataclass(frozen=True, slots=True)
class Lesson:
    """paragraphs: (label, template); the label is empty or one of LABELS.  title: for people."""

    key: str
    title: str
    paragraphs: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Told:
    """A lesson with this image's numbers in it."""

    title: str
    paragraphs: tuple[tuple[str, str], ...]


def parse_lessons(text: str) -> dict[str, Lesson]:
    """Lessons of one Markdown file. ValueError for a key that comes twice."""
    found: dict[str, Lesson] = {}
    for block in ("\n" + text).split("\n## ")[1:]:
        head, _, body = block.partition("\n")
        key, _, title = head.strip().partition(" ")
        paragraphs = []
        for raw in body.split("\n\n"):
            paragraph = " ".join(raw.split())
            if not paragraph:
                continue
            label, colon, rest = paragraph.partition(":")
            paragraphs.append((label, rest.strip()) if colon and label in LABELS else ("", paragraph))
        if key in found:
            raise ValueError(f"lesson {key} comes twice")
        found[key] = Lesson(key, title.strip() or key, tuple(paragraphs))
    return found


@cache
def lessons() -> dict[str, Lesson]:
    """Every lesson by key."""
    found: dict[str, Lesson] = {}
    for entry in sorted(resources.files(__package__).iterdir(), key=lambda each: each.name):
        if entry.name.endswith(".md"):
            for key, lesson in parse_lessons(entry.read_text(encoding="utf-8")).items():
                if key in found:
                    raise ValueError(f"lesson {key} comes twice")
                found[key] = lesson
    return found


class _Filler(string.Formatter):
    """`{name}` from the facts; a paragraph that needs a fact which is not there is left out."""

    def get_value(self, key: int | str, args: Any, kwargs: Mapping[str, Any]) -> Any:
        if key not in kwargs:
            raise KeyError(key)
        return kwargs[str(key)]


def fill(template: str, facts: Mapping[str, Any]) -> str | None:
    """The template with facts in it, None when one is missing."""
    try:
        return _Filler().vformat(template, (), facts)
    except (KeyError, ValueError, TypeError):
        return None


def explain(key: str, facts: Mapping[str, Any]) -> Told | None:
    """The lesson `key` (or the nearest one above it in the schema) told with `facts`; None when there is none.

    Paragraphs whose facts are missing are left out, so a damaged image never shows holes.
    """
    lesson = lessons().get(key)
    if lesson is None:
        return None
    told = [(label, text) for label, template in lesson.paragraphs if (text := fill(template, facts)) is not None]
    return Told(fill(lesson.title, facts) or lesson.key, tuple(told))

from workbench.teach.explaining import Explanation, explain, resolve
from workbench.teach.facts import facts_of, facts_of_node, facts_of_table
from workbench.teach.texts import Section, keys, sections

__all__ = [
    "Explanation",
    "Section",
    "explain",
    "facts_of",
    "facts_of_node",
    "facts_of_table",
    "keys",
    "resolve",
    "sections",
]
