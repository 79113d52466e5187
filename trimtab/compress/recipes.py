"""The recipes that are tried by default: pruning, with and without distillation, int8 or not."""

from __future__ import annotations

from trimtab.compress.distill import Distill
from trimtab.compress.prune import Prune
from trimtab.compress.quantize import Quantize
from trimtab.core import Method, Recipe

RATIOS = (0.3, 0.5)


def default_recipes() -> tuple[Recipe, ...]:
    """The hand-written space, cheap recipes first; each int8 recipe directly after the same without int8."""
    stems: list[tuple[Method, ...]] = [()]
    stems += [(Prune(ratio=ratio),) for ratio in RATIOS]
    stems += [(Prune(ratio=ratio), Distill()) for ratio in RATIOS]
    integers: tuple[Method, ...] = (Quantize(),)
    recipes = [Recipe(methods) for stem in stems for methods in (stem, stem + integers)]
    return tuple(recipe for recipe in recipes if recipe.methods)
