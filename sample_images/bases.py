"""Base images: healthy qcow2 images over the whole feature list, each built by real QEMU tools under a name.

``BASES["v3-64k"].build(folder)`` leaves ``image.qcow2`` and its companions in `folder`. Run QEMU tools with that folder
as the working directory: QEMU looks there for an external data file.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from sample_images.kit import Kit

Maker = Callable[[Kit], None]


@dataclass(frozen=True, slots=True)
class Base:
    """One healthy image: how it is built and what it is for. `secret` is its passphrase when encrypted."""

    name: str
    description: str
    tags: frozenset[str]
    make: Maker
    secret: str | None = None

    def build(self, folder: Path, stem: str = "image") -> Path:
        """Build ``STEM.qcow2`` (and companions ``STEM-…``) in `folder`; raises QemuMissing, QemuFailed."""
        folder.mkdir(parents=True, exist_ok=True)
        kit = Kit(folder, stem, self.secret)
        self.make(kit)
        return kit.path


BASES: dict[str, Base] = {}


def add(name: str, description: str, tags: str, make: Maker, secret: str | None = None) -> None:
    """Register a base; `tags` are words."""
    if name in BASES:
        raise ValueError(f"base {name} is defined twice")
    BASES[name] = Base(name, description, frozenset(tags.split()), make, secret)


def _load() -> None:
    # The modules register their bases when imported; here so that importing this one is enough.
    from sample_images import bases_chains, bases_crypto, bases_features, bases_layout  # noqa: F401


_load()
