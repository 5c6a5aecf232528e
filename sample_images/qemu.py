"""The real ``qemu-img`` and ``qemu-io``: found, and run with one-line errors.

Only the builders of sample images and the tests against QEMU use them; the workbench itself never does.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

ENV_IMG = "QWB_QEMU_IMG"
ENV_IO = "QWB_QEMU_IO"
TIMEOUT_SECONDS = 60
TRANSIENT = "Unable to get accurate CPU usage"
"""What QEMU says when it cannot time its key derivation on a busy machine; the next try mostly can."""
TRIES = 5


class QemuMissing(RuntimeError):
    """No ``qemu-img``/``qemu-io`` on this machine."""


class QemuFailed(RuntimeError):
    """A QEMU tool exited with an error; the message is its command line and what it printed."""


@cache
def find_qemu_img() -> str | None:
    """The path of ``qemu-img`` (``$QWB_QEMU_IMG``, then ``$PATH``), or None."""
    return os.environ.get(ENV_IMG) or shutil.which("qemu-img")


@cache
def find_qemu_io() -> str | None:
    """The path of ``qemu-io`` (``$QWB_QEMU_IO``, then ``$PATH``), or None."""
    return os.environ.get(ENV_IO) or shutil.which("qemu-io")


@cache
def qemu_version() -> tuple[int, ...]:
    """The version of ``qemu-img`` as numbers, for example ``(7, 2, 22)``; raises QemuMissing."""
    words = run_img("--version").split()
    return tuple(int(part) for part in words[2].split("-")[0].split("(")[0].split(".") if part.isdigit())


def run_img(*args: str | Path, cwd: Path | None = None) -> str:
    """Run ``qemu-img`` and return what it printed; raises QemuMissing, QemuFailed."""
    return _run(_need(find_qemu_img(), "qemu-img"), args, cwd)


def run_io(*args: str | Path, cwd: Path | None = None) -> str:
    """Run ``qemu-io`` and return what it printed; raises QemuMissing, QemuFailed (also when a command in it failed)."""
    out = _run(_need(find_qemu_io(), "qemu-io"), args, cwd)
    if "failed" in out or "error" in out.lower():
        raise QemuFailed(f"qemu-io {' '.join(map(str, args))}: {out.strip()}")
    return out


@dataclass(frozen=True, slots=True)
class Verdict:
    """What ``qemu-img check --output=json`` said: exit code, and the JSON (None when it could not check)."""

    code: int
    report: dict[str, Any] | None
    message: str

    @property
    def corruptions(self) -> int:
        return int((self.report or {}).get("corruptions", 0))

    @property
    def leaks(self) -> int:
        return int((self.report or {}).get("leaks", 0))


def check(
    path: Path, *, secret: str | None = None, repair: str | None = None, timeout: float = TIMEOUT_SECONDS
) -> Verdict:
    """Let ``qemu-img check`` judge `path` (with ``-r REPAIR`` when given, which writes); raises QemuMissing,
    subprocess.TimeoutExpired.

    It runs in the image's folder, because QEMU looks for an external data file there and not beside the image.
    """
    command = [_need(find_qemu_img(), "qemu-img"), "check", "--output=json"]
    if repair:
        command += ["-r", repair]
    command += source_arguments(path, secret)
    done = subprocess.run(
        command, capture_output=True, text=True, errors="replace", cwd=path.parent, timeout=timeout, check=False
    )
    try:
        report = json.loads(done.stdout) if done.stdout.strip() else None
    except json.JSONDecodeError:
        report = None
    return Verdict(done.returncode, report, done.stderr.strip())


def source_arguments(path: Path, secret: str | None = None) -> list[str]:
    """The arguments that name a qcow2 image to a QEMU tool, with its passphrase when it has one."""
    if secret is None:
        return ["-f", "qcow2", str(path.name)]
    return [
        "--object",
        f"secret,id=sec0,data={secret}",
        "--image-opts",
        f"driver=qcow2,encrypt.key-secret=sec0,file.filename={path.name}",
    ]


def _need(tool: str | None, name: str) -> str:
    if tool is None:
        raise QemuMissing(f"{name} not found: install the package qemu-utils")
    return tool


def _run(tool: str, args: tuple[str | Path, ...], cwd: Path | None) -> str:
    command = [tool, *map(str, args)]
    for _ in range(TRIES):
        done = subprocess.run(
            command, capture_output=True, text=True, errors="replace", cwd=cwd, timeout=TIMEOUT_SECONDS, check=False
        )
        if TRANSIENT not in done.stderr:
            break
    if done.returncode != 0:
        text = (done.stderr or done.stdout).strip()
        raise QemuFailed(f"{' '.join(command)} (exit {done.returncode}): {text}")
    return done.stdout
