"""The recipes that are tried by default: pruning, with and without distillation, int8 or not."""

from __future__ import annotations

from trimtab.compress.distill import Distill
from trimtab.compress.order import refuse_order
from trimtab.compress.prune import Prune
from trimtab.compress.quantize import Quantize
from trimtab.core import Method, Recipe

RATIOS = (0.25, 0.5)


def default_recipes() -> tuple[Recipe, ...]:
    """The hand-written space, cheap recipes first; each int8 recipe directly after the same without int8.

    Channels go by "obs", which re-solves the layers that read them: docs/benchmarks/prune_quality.md.
    """
    recovery = Distill(epochs=2, lr=1e-3)  # short and gentle: after the cut the layers fit already
    cuts = [Prune(ratio=ratio, importance="obs") for ratio in RATIOS]
    stems: list[tuple[Method, ...]] = [(), *((cut,) for cut in cuts), *((cut, recovery) for cut in cuts)]
    integers: tuple[Method, ...] = (Quantize(),)
    recipes = [Recipe(methods) for stem in stems for methods in (stem, stem + integers)]
    return tuple(recipe for recipe in recipes if recipe.methods)


def recipes_to_try(asked: tuple[Recipe, ...] | None) -> tuple[Recipe, ...]:
    """Those that were asked for, else the default ones.

    Raises:
        PlanError: the order of one cannot work.
    """
    for recipe in asked or ():
        refuse_order(recipe)
    return default_recipes() if asked is None else asked
