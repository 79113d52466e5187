"""The first search space, written by hand: which recipe, in which runtime, at which precision; and the choice."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from trimtab.core import Candidate, Goal, Precision, Recipe, Skip, Target, Trial

ENOUGH_CHANCE = 0.8
SLOW_RUNTIME = 1.5


def candidates(recipes: Iterable[Recipe], precisions: Mapping[str, Precision]) -> list[Candidate]:
    """Every recipe in every runtime of `precisions` (runtime -> its best free precision).

    A recipe that quantizes is served in int8.
    """
    return [
        Candidate(recipe, runtime, "int8" if quantizes(recipe) else precision)
        for recipe in recipes
        for runtime, precision in precisions.items()
    ]


def quantizes(recipe: Recipe) -> bool:
    """Whether the recipe ends in integers."""
    return any(method.name == "int8" for method in recipe.methods)


def worth_trying(free: Iterable[Trial], minimise: str) -> tuple[dict[str, Precision], tuple[Skip, ...]]:
    """The runtimes to search in, each with its best free precision, and those left out.

    A runtime whose best free baseline costs over 1.5 times the best of all is left out: the same operators
    would have to gain that much more there.
    """
    ranked = sorted(free, key=lambda trial: cost(trial, minimise))
    best = cost(ranked[0], minimise)
    kept: dict[str, Precision] = {}
    skipped: dict[str, Skip] = {}
    for trial in ranked:
        if trial.runtime in kept or trial.runtime in skipped:
            continue
        times = cost(trial, minimise) / best
        if times <= SLOW_RUNTIME:
            kept[trial.runtime] = trial.precision  # type: ignore[assignment]
        else:
            why = f"its best free baseline costs {times:.1f} times the best free one's {minimise}"
            skipped[trial.runtime] = Skip(f"search in {trial.runtime}", why)
    return kept, tuple(skipped.values())


def best_free(free: Iterable[Trial], goal: Goal, target: Target) -> Trial:
    """The cheapest baseline that the target allows and that keeps the quality: what a result has to beat."""
    allowed = eligible(free, target)
    keeping = [trial for trial in allowed if trial.select.diff >= -trial.select.margin]
    return min(keeping or allowed, key=lambda trial: cost(trial, goal.minimise))


def eligible(free: Iterable[Trial], target: Target) -> list[Trial]:
    """The baselines in runtimes that the target allows; the reference in eager may be there for quality alone."""
    return [trial for trial in free if target.runtimes is None or trial.runtime in target.runtimes]


def cost(trial: Trial, minimise: str) -> float:
    """What the goal minimises, as this trial measured it."""
    return next(m.value for m in trial.measurements if m.quantity == minimise)


def choose(trials: list[Trial], goal: Goal, chance: Callable[[Trial], float]) -> Trial:
    """The trial to put before the verdict: the cheapest of those that are likely to pass, else the likeliest.

    Args:
        trials: at least one, measured on `select`.
        goal: what to minimise.
        chance: how likely a trial's quality is to be proven on `verify`, 0 ... 1.
    """
    better = [trial for trial in trials if trial.gain is not None and trial.gain.low > 1] or trials
    likely = [trial for trial in better if chance(trial) >= ENOUGH_CHANCE]
    if likely:
        return min(likely, key=lambda trial: cost(trial, goal.minimise))
    return max(better, key=chance)
