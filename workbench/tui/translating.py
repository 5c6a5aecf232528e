"""An address translation as lines with links, through the layers that may be opened. Reads: runs in a worker."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from workbench.engine.explain import Outcome, StepKind, Translation, explain_guest, stored_bytes
from workbench.engine.layers import Layer, MissingLayer, Qcow2Layer, RawLayer
from workbench.engine.metadata import Metadata
from workbench.render.translation import LineSort, translation_lines
from workbench.tui.widgets.lines import TextLine

GO_ON: Final = "go-on"
"""Target of the line that leads into a backing file that is not open yet."""
IN_FILE: Final = "in-file "
"""Beginning of targets in another file: then its address there, a space, and its path."""


def translate(meta: Metadata, guest: int, snapshot: int | None, chain: Sequence[Layer] = ()) -> list[TextLine]:
    """Lines for guest byte `guest`. chain: the open layers, the image itself first; empty while none is open."""
    told = explain_guest(meta, guest, snapshot)
    lines = list(_one(meta, told, snapshot))
    for layer in chain[1:]:
        if told.outcome is not Outcome.UNALLOCATED:
            return lines
        lines += [TextLine(""), TextLine(f"In the backing file {Path(layer.path).name}:", "accent")]
        if isinstance(layer, RawLayer):
            return [*lines, *_raw(layer, guest)]
        if isinstance(layer, MissingLayer):
            return [*lines, TextLine(f"   it cannot be opened: {layer.error.what}", "bad")]
        assert isinstance(layer, Qcow2Layer)
        told = explain_guest(layer.meta, guest)
        lines += _one(layer.meta, told, None, layer.path)
    if told.outcome is Outcome.UNALLOCATED and told.backing is not None:
        lines.append(TextLine("   Enter here asks whether that may be opened, and goes on in it", "link", GO_ON))
    return lines


def _raw(layer: RawLayer, guest: int) -> Iterator[TextLine]:
    if guest >= layer.size:
        yield TextLine(f"   a raw file of {layer.size:#x} bytes, which end before: reads as zeros", "good")
        return
    yield TextLine("   a raw file: guest offset and file offset are the same")
    yield TextLine(
        f"=> stored at offset {guest:#x} of {Path(layer.path).name}", "good", _in_file(layer.path, f"{guest:#x}")
    )


def _one(meta: Metadata, told: Translation, snapshot: int | None, path: str = "") -> Iterator[TextLine]:
    """The way through one image. path: of the layer, empty for the image itself."""
    targets = step_targets(told, f"snapshot:{snapshot}/" if snapshot is not None else "")
    answer = host_target(told)
    if path:
        targets = {number: _in_file(path, target) for number, target in targets.items()}
        answer = _in_file(path, answer) if answer else ""
    style = "bad" if told.problem else "good"
    for line in translation_lines(meta, told, stored_bytes(meta, told)):
        if line.sort is LineSort.STEP:
            yield TextLine(line.text, "accent", targets.get(line.step, ""))
        elif line.sort in (LineSort.ANSWER, LineSort.BYTES):
            yield TextLine(line.text.removeprefix("=> "), style if line.sort is LineSort.ANSWER else "", answer)
        else:
            yield TextLine(line.text)


def _in_file(path: str, address: str) -> str:
    return f"{IN_FILE}{address} {path}"


def host_target(told: Translation) -> str:
    """Address of the host bytes that hold a guest byte; empty when this file has none."""
    if told.external or told.outcome is Outcome.BROKEN:
        return ""
    return f"{told.host:#x}" if told.host is not None else f"{told.run.offset:#x}" if told.run is not None else ""


def step_targets(told: Translation, prefix: str) -> dict[int, str]:
    """Step number -> address of what the step looks at. prefix: of the snapshot whose tables are meant."""
    found: dict[int, str] = {}
    l1_index = 0
    for number, step in enumerate(told.steps):
        if step.kind is StepKind.RANGE:
            found[number] = "header.size" if not prefix else prefix.rstrip("/")
        elif step.kind is StepKind.L1_INDEX:
            l1_index = step.result
            found[number] = f"{prefix}l1"
        elif step.kind is StepKind.L1_ENTRY:
            found[number] = f"{prefix}l1:{l1_index}"
        elif step.kind is StepKind.L2_INDEX:
            found[number] = f"{prefix}l2:{l1_index}"
        elif step.kind is StepKind.L2_ENTRY:
            found[number] = f"{prefix}l2:{l1_index}.{step.numbers['index']}"
        elif step.kind is StepKind.DECRYPT and step.numbers["method"] == 2:
            found[number] = "luks"
        elif step.kind is StepKind.DATA:
            found[number] = host_target(told)
        elif step.where is not None:
            found[number] = f"{step.where.offset:#x}"
    return {number: target for number, target in found.items() if target}
