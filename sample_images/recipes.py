"""Damage recipes: each takes a healthy base image and breaks one thing in it, the way incidents do.

``make("l2-entry-unaligned", folder)`` builds the base in `folder` and damages it. Recipes are deterministic.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from sample_images.bases import BASES
from sample_images.editor import Editor

Damage = Callable[[Editor], None]


@dataclass(frozen=True, slots=True)
class Recipe:
    """One kind of damage: the base it starts from, what is wrong afterwards, and the function that does it."""

    name: str
    base: str
    title: str
    what_is_wrong: str
    tags: frozenset[str]
    apply: Damage

    @property
    def secret(self) -> str | None:
        """The passphrase of the image, when its base is encrypted."""
        return BASES[self.base].secret


RECIPES: dict[str, Recipe] = {}


def recipe(name: str, base: str, title: str, wrong: str, tags: str = "") -> Callable[[Damage], Damage]:
    """Register the decorated function as a recipe; `tags` are words."""

    def register(function: Damage) -> Damage:
        add(name, base, title, wrong, tags, function)
        return function

    return register


def add(name: str, base: str, title: str, wrong: str, tags: str, function: Damage) -> None:
    """Register a recipe; raises ValueError for a name used twice or an unknown base."""
    if name in RECIPES or base not in BASES:
        raise ValueError(f"recipe {name} on {base}: name used twice, or no such base")
    RECIPES[name] = Recipe(name, base, title, wrong, frozenset(tags.split()), function)


def damage(recipe: Recipe, image: Path) -> None:
    """Apply a recipe to a copy of its base image."""
    with Editor(image) as editor:
        recipe.apply(editor)


def make(name: str, folder: Path) -> Path:
    """Build the damaged image of recipe `name` in `folder`; returns its path. Raises QemuMissing, QemuFailed."""
    chosen = RECIPES[name]
    image = BASES[chosen.base].build(folder)
    damage(chosen, image)
    return image


def _load() -> None:
    from sample_images import (  # noqa: F401 - they register their recipes when imported
        recipes_bitmaps,
        recipes_header,
        recipes_mapping,
        recipes_overlaps,
        recipes_refcounts,
        recipes_snapshots,
    )


_load()
