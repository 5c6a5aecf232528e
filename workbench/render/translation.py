"""A guest offset's way through the tables, in words with the arithmetic filled in, and as JSON."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from typing import Any

from formats.qcow2.entries import PointerTable, is_compressed, offset_of
from workbench.engine.explain import Outcome, Step, StepKind, Translation
from workbench.engine.metadata import Metadata
from workbench.render.sizes import count, span
from workbench.render.text import quoted
from workbench.units import format_size

_TITLES = {
    StepKind.RANGE: "Is it on the disk?",
    StepKind.L1_INDEX: "Which L1 entry?",
    StepKind.L1_ENTRY: "Read the L1 entry",
    StepKind.L2_INDEX: "Which L2 entry?",
    StepKind.L2_ENTRY: "Read the L2 entry",
    StepKind.SUBCLUSTER: "Which subcluster?",
    StepKind.COMPRESSED: "Decode the compressed descriptor",
    StepKind.DATA: "Add the offset in the cluster",
    StepKind.DECRYPT: "Decrypt the sector",
}


class LineSort(Enum):
    """What a line of a translation is."""

    ANSWER = "answer"
    STEP = "step"
    TEXT = "text"
    BYTES = "bytes"


@dataclass(frozen=True, slots=True)
class TranslationLine:
    """text without a line end.  step: index into the translation's steps, -1 for lines that belong to none."""

    text: str
    sort: LineSort = LineSort.TEXT
    step: int = -1


def step_title(step: Step) -> str:
    """The question that the step answers."""
    return _TITLES[step.kind]


def step_lines(meta: Metadata, step: Step) -> list[str]:
    """The step's arithmetic with the numbers filled in."""
    return _WORDING[step.kind](meta, step)


def _range_lines(meta: Metadata, step: Step) -> list[str]:
    n = step.numbers
    sign, answer = ("<", "yes") if step.result else ("≥", "no, the disk ends before it")
    return [f"{n['guest']:#x} {sign} virtual size {n['size']:#x} ({format_size(n['size'])}): {answer}"]


def _l1_index_lines(meta: Metadata, step: Step) -> list[str]:
    assert meta.geometry is not None
    n, geometry = step.numbers, meta.geometry
    each = f"{geometry.l2_entries} entries × {format_size(geometry.cluster_size)}"
    return [
        f"one L2 table describes {each} = {format_size(n['coverage'])} of the disk",
        f"L1 index = {_division(n['guest'], n['coverage'])}",
    ]


def _l2_index_lines(meta: Metadata, step: Step) -> list[str]:
    n = step.numbers
    within_table = n["guest"] % (n["cluster_size"] * n["entries"])
    return [f"L2 index = {_division(within_table, n['cluster_size'])} in the cluster"]


def _division(value: int, by: int) -> str:
    return f"{value:#x} ÷ {by:#x} = {value // by}, remainder {value % by:#x}"


def _entry_lines(meta: Metadata, step: Step) -> list[str]:
    n = step.numbers
    at = step.where.offset if step.where else 0
    raw = " ".join(f"{word:#018x}" for word in step.words)
    lines = [f"it is at {n['table']:#x} + {n['index']} × {n['size']} = {at:#x} and holds {raw}"]
    word = step.words[0]
    if word and not is_compressed(word):
        mask = PointerTable.L1.offset_mask  # L2 entries have the same field
        lines.append(f"{word:#018x} & {mask:#018x} = {offset_of(word):#x}")
    return [*lines, f"that is: {_entry_meaning(meta, step)}"]


def _entry_meaning(meta: Metadata, step: Step) -> str:
    from workbench.engine.tables import Run, l1_table, l2_table
    from workbench.render.entries import run_words

    table = l1_table(meta) if step.kind is StepKind.L1_ENTRY else l2_table(meta, 0, 0)
    return run_words(meta, table, Run(step.numbers["index"], 1, step.words))


def _subcluster_lines(meta: Metadata, step: Step) -> list[str]:
    n, number = step.numbers, step.result
    state = ", ".join(name for name, key in (("data", "allocated"), ("zero", "zero")) if n[key]) or "unallocated"
    return [
        f"subcluster = {_division(n['within'], n['size'])}",
        f"bitmap {step.words[1]:#018x}: bit {number} (data) is {n['allocated']}, bit {32 + number} (zero) is {n['zero']}",
        f"that is: {state}",
    ]


def _compressed_lines(meta: Metadata, step: Step) -> list[str]:
    n, bits = step.numbers, step.numbers["offset_bits"]
    word = step.words[0]
    more = n["sectors"] - 1
    return [
        f"host offset = bits 0-{bits - 1}: {word:#018x} & {(1 << bits) - 1:#x} = {n['offset']:#x}",
        f"further sectors of 512 bytes = bits {bits}-61: ({word:#018x} >> {bits}) & {(1 << (62 - bits)) - 1:#x} = {more}",
        f"length = (1 + {more}) × 512 - {n['offset']:#x} mod 512 = {count(n['length'], 'byte')}, at most",
        f"unpacked, it is the whole cluster of {format_size(meta.geometry.cluster_size if meta.geometry else 0)}",
    ]


def _data_lines(meta: Metadata, step: Step) -> list[str]:
    n = step.numbers
    return [f"host offset = {n['offset']:#x} + {n['within']:#x} = {step.result:#x}"]


def _decrypt_lines(meta: Metadata, step: Step) -> list[str]:
    n = step.numbers
    legacy = n["method"] == 1
    cipher, numbered = ("AES-128-CBC", "guest") if legacy else ("the LUKS header's cipher", "host")
    return [
        f"stored encrypted with {cipher}, in sectors of {n['size']} bytes that are numbered by {numbered} offset",
        f"sector = {_division(n['offset'], n['size'])}",
    ]


_WORDING = {
    StepKind.RANGE: _range_lines,
    StepKind.L1_INDEX: _l1_index_lines,
    StepKind.L1_ENTRY: _entry_lines,
    StepKind.L2_INDEX: _l2_index_lines,
    StepKind.L2_ENTRY: _entry_lines,
    StepKind.SUBCLUSTER: _subcluster_lines,
    StepKind.COMPRESSED: _compressed_lines,
    StepKind.DATA: _data_lines,
    StepKind.DECRYPT: _decrypt_lines,
}


def outcome_words(found: Translation) -> str:
    """The translation's end in one sentence."""
    if found.outcome is Outcome.DATA:
        where = f"host offset {found.host:#x}"
        return f"stored at {where}" + (f" of the external data file {quoted(found.external)}" if found.external else "")
    if found.outcome is Outcome.COMPRESSED and found.run is not None:
        return f"compressed, in host bytes {span(found.run.offset, found.run.length)}"
    if found.outcome is Outcome.ZERO:
        return "reads as zeros (zero flag)"
    if found.outcome is Outcome.BEYOND_END:
        return "beyond the end of the virtual disk"
    if found.outcome is Outcome.BROKEN:
        return f"BROKEN: {found.problem}"
    if found.backing is not None:
        return f"not in this image: read from the backing file {quoted(found.backing)} at the same offset"
    return "not allocated: reads as zeros"


def title_words(meta: Metadata, found: Translation) -> str:
    """The offset, whose view of the disk is meant, and the end, in one line."""
    if found.snapshot is not None:
        view = f" of snapshot {found.snapshot} ({quoted(meta.snapshots[found.snapshot].name)})"
    else:
        view = ""
    return f"guest offset {found.guest:#x} ({found.guest}){view}: {outcome_words(found)}"


def translation_lines(meta: Metadata, found: Translation, stored: bytes = b"") -> Iterator[TranslationLine]:
    """The whole way of a guest offset. stored: the first bytes of the place it ends at, as the file holds them."""
    yield TranslationLine(title_words(meta, found), LineSort.ANSWER)
    for number, step in enumerate(found.steps):
        yield TranslationLine("")
        yield TranslationLine(f"{number + 1}. {step_title(step)}", LineSort.STEP, number)
        for line in step_lines(meta, step):
            yield TranslationLine(f"   {line}", step=number)
    yield TranslationLine("")
    yield TranslationLine(f"=> {outcome_words(found)}", LineSort.ANSWER)
    if stored:
        text = "".join(chr(value) if 32 <= value < 127 else "·" for value in stored)
        how = _stored_how(meta, found)
        yield TranslationLine(f"   first bytes there{how}: {stored.hex(' ')}  {text}", LineSort.BYTES)


def _stored_how(meta: Metadata, found: Translation) -> str:
    if found.outcome is Outcome.COMPRESSED:
        return ", still compressed"
    return ", still encrypted" if meta.header.crypt_method else ""


def translation_json(meta: Metadata, found: Translation) -> dict[str, Any]:
    """guest, outcome, steps with numbers; host, length, data-file, backing, problem where they apply."""
    out: dict[str, Any] = {"guest": found.guest, "outcome": found.outcome.value}
    if found.snapshot is not None:
        out["snapshot"] = found.snapshot
    if found.host is not None:
        out["host"] = found.host
    if found.run is not None:
        out |= {"host": found.run.offset, "length": found.run.length}
    for key, value in (("data-file", found.external), ("backing", found.backing), ("problem", found.problem)):
        if value is not None:
            out[key] = value
    out["steps"] = [
        {
            "step": step.kind.value,
            **{key.replace("_", "-"): value for key, value in step.numbers.items()},
            "result": step.result,
            **({"at": step.where.offset} if step.where else {}),
            **({"raw": [f"{word:016x}" for word in step.words]} if step.words else {}),
            "text": step_lines(meta, step),
        }
        for step in found.steps
    ]
    return out
