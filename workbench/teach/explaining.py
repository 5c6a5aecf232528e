"""From a schema path and facts to an explanation."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from formats.qcow2.entries import is_compressed
from workbench.teach.filling import Facts, UnknownFactError, fill
from workbench.teach.here import HERE
from workbench.teach.texts import sections

_ENTRY: Final = re.compile(
    r"(?:^|\.)(l1|l2|refcount-table|bitmap-table)\.(?:entries\.)?(?:row\.)?(entry|subclusters)(\..+)?$"
)
_INDEX: Final = re.compile(r"\[\d+\]|@0x[0-9a-f]+")
_MARKUP: Final = re.compile(r"`([^`]*)`|\*\*")

_ALIASES: Final = {
    "file": "image",
    "backing": "backing-name",
    "layer": "backing-chain",
    "key-slot": "luks.key_slots.slot",
    "incompatible_features": "header.incompatible_features",
    "compatible_features": "header.compatible_features",
    "autoclear_features": "header.autoclear_features",
    "bitmap-flags": "bitmap.flags",
    "entry.l1": "l1-entry",
    "entry.l2-data": "l2-entry",
    "entry.l2-zero": "l2-entry",
    "entry.l2-unallocated": "l2-entry",
    "entry.l2-extended": "l2-entry-extended",
    "entry.l2-compressed": "l2-entry-compressed",
    "entry.refcount-table": "refcount-table-entry",
    "entry.refcount-block": "refcount-block.refcounts",
    "entry.bitmap-table": "bitmap-table-entry",
}


@dataclass(frozen=True, slots=True)
class Explanation:
    """One thing explained; every part is Markdown and may be empty but title and what.

    key: the section the text came from.  here: what the value means in this image.  limits: the format's and QEMU's.
    qemu: what QEMU does with it.  spec: section of the specification.
    """

    key: str
    title: str
    what: str
    here: str = ""
    limits: str = ""
    qemu: str = ""
    spec: str = ""

    @property
    def paragraphs(self) -> tuple[tuple[str, str], ...]:
        """(label, text without markup) of the parts that are there; the label is empty, Here, Limits or QEMU."""
        return tuple((label, _MARKUP.sub(r"\1", text)) for label, text in self._parts())

    def _parts(self) -> Iterator[tuple[str, str]]:
        for label, text in (("", self.what), ("Here", self.here), ("Limits", self.limits), ("QEMU", self.qemu)):
            if text:
                yield label, text

    def markdown(self) -> str:
        """The whole text as one Markdown document."""
        parts = [f"## {self.title}", *(f"**{label}.** {text}" if label else text for label, text in self._parts())]
        if self.spec:
            parts.append(f"*Specification: {self.spec}*")
        return "\n\n".join(parts)


def explain(schema: str, facts: Mapping[str, object] | None = None) -> Explanation:
    """The explanation for a schema path or the word of a structure. Never fails: an unknown path gets the nearest text.

    facts: from `facts_of`, `facts_of_table`, `facts_of_node`, merged; sentences whose facts are missing are left out.
    """
    known: Facts = facts or {}
    section = sections()[resolve(schema, known)]
    return Explanation(
        section.key, section.title, section.what, _here(section.key, known), section.limits, section.qemu, section.spec
    )


def resolve(schema: str, facts: Mapping[str, object] | None = None) -> str:
    """Key of the text for that path: exact, by entry layout, by its last components, or of the nearest parent."""
    known = sections()
    path = _INDEX.sub("", schema).removeprefix("structure.")
    for candidate in _candidates(path, facts or {}):
        if candidate in known:
            return candidate
    return "unknown"


def _candidates(schema: str, facts: Facts) -> Iterator[str]:
    if schema in _ALIASES:
        yield _ALIASES[schema]
    if schema.startswith("unreadable") or ".unreadable" in schema:
        yield "unreadable"
    if schema == "gap" or schema.endswith(".gap"):
        yield "gap"
    entry = _ENTRY.search(schema)
    if entry is not None:
        yield from _entry_keys(entry[1], entry[2], entry[3] or "", facts)
    head, _, rest = schema.partition(".")
    if head in _ALIASES and rest:
        yield f"{_ALIASES[head]}.{rest}"
    parts = schema.split(".")
    for start in range(len(parts)):
        yield ".".join(parts[start:])
    for stop in range(len(parts) - 1, 0, -1):
        yield ".".join(parts[:stop])
        if head in _ALIASES:
            yield _ALIASES[head]


def _entry_keys(table: str, part: str, bit: str, facts: Facts) -> Iterator[str]:
    """Keys of a table entry's layout; which of the three L2 layouts applies is told by the word and the image."""
    if part == "subclusters":
        yield f"subcluster-bitmap{bit}"
        return
    if table != "l2":
        yield f"{table}-entry{bit}"
        return
    word = facts.get("word", facts.get("value"))
    compressed = isinstance(word, int) and is_compressed(word)
    if compressed or bit in (".sectors", ".reserved"):
        yield f"l2-entry-compressed{bit}"
    elif facts.get("extended_l2"):
        yield f"l2-entry-extended{bit}"
    yield f"l2-entry{bit}"


def _here(key: str, facts: Facts) -> str:
    """What the value means in this image: the templates whose facts are known, then what a function computes."""
    sentences = []
    value = facts.get("value")
    for condition, template in sections()[key].here:
        if condition and (value is None or bool(value) is not (condition == "set")):
            continue
        try:
            sentences.append(fill(template, facts))
        except UnknownFactError:
            continue
    compute = HERE.get(key)
    if compute is not None:
        with suppress(UnknownFactError):
            sentences.append(compute(facts))
    return " ".join(each for each in sentences if each)
