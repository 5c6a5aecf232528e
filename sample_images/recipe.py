"""One damage recipe, and how the files of recipes name theirs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

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


class Recipes(dict[str, Recipe]):
    """Recipes by name, in order."""

    def recipe(self, name: str, base: str, title: str, wrong: str, tags: str = "") -> Callable[[Damage], Damage]:
        """The decorated function is a recipe; `tags` are words."""

        def register(function: Damage) -> Damage:
            self.add(name, base, title, wrong, tags, function)
            return function

        return register

    def add(self, name: str, base: str, title: str, wrong: str, tags: str, function: Damage) -> None:
        """One more; raises ValueError for a name used twice or an unknown base."""
        if name in self or base not in BASES:
            raise ValueError(f"recipe {name} on {base}: name used twice, or no such base")
        self[name] = Recipe(name, base, title, wrong, frozenset(tags.split()), function)
