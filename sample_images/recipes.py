"""Damage recipes: each takes a healthy base image and breaks one thing in it, the way incidents do.

``make("l2-entry-unaligned", folder)`` builds the base in `folder` and damages it. Recipes are deterministic.
"""

from __future__ import annotations

from pathlib import Path

from sample_images import (
    recipes_bitmaps,
    recipes_header,
    recipes_mapping,
    recipes_overlaps,
    recipes_refcounts,
    recipes_snapshots,
)
from sample_images.bases import BASES
from sample_images.editor import Editor
from sample_images.recipe import Recipe

RECIPES: dict[str, Recipe] = (
    recipes_bitmaps.FOUND
    | recipes_header.FOUND
    | recipes_mapping.FOUND
    | recipes_overlaps.FOUND
    | recipes_refcounts.FOUND
    | recipes_snapshots.FOUND
)


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
