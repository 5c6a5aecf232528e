"""Running QEMU's tools: what they say is passed on, and a hiccup of a busy machine is tried again."""

from __future__ import annotations

from pathlib import Path

import pytest

from sample_images import qemu


def tool(folder: Path, script: str) -> str:
    path = folder / "tool"
    path.write_text(f"#!/bin/sh\necho run >> {folder}/runs\n{script}\n")
    path.chmod(0o755)
    return str(path)


def runs(folder: Path) -> int:
    return len((folder / "runs").read_text().splitlines())


def test_a_hiccup_in_timing_the_key_derivation_is_tried_again(tmp_path: Path) -> None:
    failing = f'[ $(wc -l < {tmp_path}/runs) -lt 3 ] && {{ echo "{qemu.TRANSIENT}" >&2; exit 1; }}\necho made'
    assert qemu._run(tool(tmp_path, failing), (), None) == "made\n"
    assert runs(tmp_path) == 3


def test_any_other_failure_is_told_at_once(tmp_path: Path) -> None:
    with pytest.raises(qemu.QemuFailed, match="no such luck"):
        qemu._run(tool(tmp_path, "echo no such luck >&2; exit 1"), (), None)
    assert runs(tmp_path) == 1
