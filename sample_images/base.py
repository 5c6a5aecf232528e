"""One base image, and how the files of bases name theirs."""

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


class Bases(dict[str, Base]):
    """Bases by name, in order."""

    def add(self, name: str, description: str, tags: str, make: Maker, secret: str | None = None) -> None:
        """One more; `tags` are words. Raises ValueError for a name used twice."""
        if name in self:
            raise ValueError(f"base {name} is defined twice")
        self[name] = Base(name, description, frozenset(tags.split()), make, secret)
