"""Sample images: small real qcow2 files, healthy and damaged, with a manifest that says what each shows.

>>> from sample_images import load_manifest
>>> [sample.name for sample in load_manifest() if sample.healthy][:2]
['plain', 'tiny-clusters']
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

IMAGES = Path(__file__).parent / "images"
MANIFEST = Path(__file__).parent / "manifest.json"


@dataclass(frozen=True, slots=True)
class Check:
    """What ``qemu-img check`` said of a sample when it was built: exit code, and its counts."""

    exit_code: int
    corruptions: int
    leaks: int


@dataclass(frozen=True, slots=True)
class Sample:
    """One sample image. `wrong` is None when it is healthy; `sha256` has a hash for the image and each companion."""

    name: str
    file: str
    title: str
    shows: str
    wrong: str | None
    look_at: str
    passphrase: str | None
    companions: tuple[str, ...]
    base: str
    recipe: str | None
    sha256: dict[str, str]
    check: Check

    @property
    def healthy(self) -> bool:
        return self.wrong is None

    @property
    def path(self) -> Path:
        """Where the image lies in the installed package; do not write there, `copy_out` first."""
        return IMAGES / self.file

    @property
    def files(self) -> tuple[str, ...]:
        """The image's file name and those of its companions (backing files, data files)."""
        return (self.file, *self.companions)


def load_manifest() -> tuple[Sample, ...]:
    """Every shipped sample, healthy ones first."""
    samples = []
    for entry in json.loads(MANIFEST.read_text(encoding="utf-8"))["samples"]:
        fields = dict(entry)
        fields["companions"] = tuple(fields["companions"])
        fields["check"] = Check(**fields["check"])
        samples.append(Sample(**fields))
    return tuple(samples)


def find_sample(name: str) -> Sample:
    """The sample called `name` (``plain`` or ``plain.qcow2``); raises KeyError."""
    for sample in load_manifest():
        if name in (sample.name, sample.file):
            return sample
    raise KeyError(f"no sample image is called {name!r}")


def sample_path(name: str) -> Path:
    """Path of a sample in the installed package, to read only; raises KeyError."""
    return find_sample(name).path


def copy_out(name: str, dest: Path) -> Path:
    """Copy a sample and its companions to `dest`: a folder, or a path for the image itself. Returns the image's path.

    Companions keep their names, because the image refers to them. Raises KeyError for an unknown sample,
    FileExistsError when a file would be overwritten, and OSError.
    """
    sample = find_sample(name)
    image = dest / sample.file if dest.is_dir() else dest
    targets = {sample.file: image} | {each: image.parent / each for each in sample.companions}
    for target in targets.values():
        if target.exists():
            raise FileExistsError(f"{target} exists already")
    for source, target in targets.items():
        shutil.copyfile(IMAGES / source, target)
    return image
