"""The first search space, written by hand: which recipe, in which runtime, at which precision; and the choice."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import combinations, pairwise
from typing import TypeVar, get_args

from trimtab.core import Candidate, Goal, Precision, Recipe, Skip, Target, Trial

T = TypeVar("T")
RISK = 0.2
# How many are put before the verdict; the least chance of those after the first, and what each must gain over the one
# before it, which is beyond what two races differ by.
FINALISTS, LEAST_CHANCE, STEP_UP = 3, 0.1, 1.05
EVEN = 0.5  # the least chance of what another process found and is made here too
LEARNING = ("distill", "fine-tune")
# The precisions that are a matter of how a graph is served; a method brings the others about.
FREE_PRECISIONS: tuple[Precision, ...] = ("fp32", "bf16")
QUANTIZED: tuple[Precision, ...] = tuple(
    precision for precision in get_args(Precision) if precision not in FREE_PRECISIONS
)
SLOW, SLOW_INTEGERS, SLOW_TRIAL = 1.25, 1.5, 1.1


def candidates(recipes: Iterable[Recipe], precisions: Mapping[str, Precision]) -> list[Candidate]:
    """Every recipe in every runtime of `precisions` (runtime -> its best free precision).

    A recipe that quantizes is served in what it quantizes to.
    """
    return [
        Candidate(recipe, runtime, quantized_to(recipe) or precision)
        for recipe in recipes
        for runtime, precision in precisions.items()
    ]


def quantized_to(recipe: Recipe) -> Precision | None:
    """The precision that the recipe ends in, or None for floats: the first word of its last quantizing method.

    >>> quantized_to(Recipe()) is None
    True
    """
    words = [method.name.split()[0] for method in recipe.methods]
    return next((precision for word in reversed(words) for precision in QUANTIZED if precision == word), None)


def unrecovered(recipe: Recipe) -> Recipe | None:
    """The recipe without the steps that recover quality by training; None if it has no such step, or nothing else."""
    left = tuple(method for method in recipe.methods if not method.name.startswith(LEARNING))
    return Recipe(left) if left and left != recipe.methods else None


def worth_trying(
    recipe: Recipe, free: Iterable[Trial], measured: Iterable[Trial], minimise: str
) -> tuple[dict[str, Precision], tuple[Skip, ...]]:
    """The runtimes to try `recipe` in, each with its precision, and those left out with the reason.

    Floats go where a free baseline costs at most 1.25 times the best one, integers where it costs at most 1.5 times,
    since they may gain more in one runtime than in another. Where a recipe of the same kind was tried before, the
    first of them tells more: where it cost over 1.1 times the best, its kind is tried no more.

    Args:
        recipe: what is to be served.
        free: the free baselines that the target allows.
        measured: trials that have ended.
        minimise: what counts as cost.
    """
    costs = {trial.id: cost(trial, minimise) for trial in free}
    ranked = sorted(free, key=lambda trial: costs[trial.id])
    precisions: dict[str, Precision] = {}
    for trial in ranked:
        precisions.setdefault(trial.runtime, trial.precision)
    to = quantized_to(recipe)
    kind, limit = (to, SLOW_INTEGERS) if to else ("floating-point", SLOW)
    same = [trial for trial in measured if (trial.precision if trial.precision in QUANTIZED else None) == to]
    first = [trial for trial in same if trial.recipe == same[0].recipe]
    slow = _slow(ranked, costs, limit, f"in {minimise} its best free baseline")
    slow |= _slow(first, {trial.id: 1 / gained(trial) for trial in first}, SLOW_TRIAL, f"its first {kind} trial")
    kept = {runtime: precision for runtime, precision in precisions.items() if runtime not in slow}
    return kept, tuple(slow.values())


def _slow(trials: Sequence[Trial], costs: Mapping[str, float], limit: float, what: str) -> dict[str, Skip]:
    lowest: dict[str, float] = {}
    for trial in trials:
        lowest[trial.runtime] = min(costs[trial.id], lowest.get(trial.runtime, float("inf")))
    best = min(lowest.values(), default=0.0)
    return {
        runtime: Skip(f"search in {runtime}", f"{what} costs {value / best:.1f} times the best one")
        for runtime, value in lowest.items()
        if value > limit * best
    }


def gained(trial: Trial) -> float:
    """How many times better than the best free baseline; measured in one race with it, so comparable between trials.

    Latencies of two races are not: the machine may have been busier in one of them.
    """
    return trial.gain.value if trial.gain else 1.0


def surely_gains(trial: Trial) -> bool:
    """Whether all of its gain's interval is above 1."""
    return trial.gain is not None and trial.gain.low > 1


def best_free(free: Iterable[Trial], goal: Goal, target: Target) -> Trial:
    """The cheapest baseline that the target allows and that keeps the quality: what a result has to beat."""
    allowed = eligible(free, target)
    keeping = [trial for trial in allowed if all(d.diff >= -d.margin for d in (trial.select, *trial.also))]
    return min(keeping or allowed, key=lambda trial: cost(trial, goal.minimise))


def eligible(free: Iterable[Trial], target: Target) -> list[Trial]:
    """The baselines in runtimes that the target allows; the reference in eager may be there for quality alone."""
    return [trial for trial in free if target.runtimes is None or trial.runtime in target.runtimes]


def cost(trial: Trial, minimise: str) -> float:
    """What the goal minimises, as this trial measured it."""
    return next(m.value for m in trial.measurements if m.quantity == minimise)


def choose(trials: list[Trial], chance: Callable[[Trial], float]) -> Trial:
    """Of those that are likely to pass the one that gains most, else the likeliest.

    The best of k recipes looks better than it is. So each must be likely enough that all k together mislead with a
    probability of at most `RISK` (the union bound): its chance must be 1 - RISK / k or more.

    Args:
        trials: at least one, measured on `select`.
        chance: how likely a trial's quality is to be proven on `verify`, 0 ... 1.
    """
    better = [trial for trial in trials if surely_gains(trial)] or trials
    enough = 1 - RISK / len({trial.recipe for trial in better})
    likely = [trial for trial in better if chance(trial) >= enough]
    return max(likely, key=gained) if likely else max(better, key=chance)


def worth_adopting(
    found: Sequence[tuple[float, float, T]], trials: list[Trial], chance: Callable[[Trial], float]
) -> list[T]:
    """Of what others found, that which is to be made here too: none, one or two that gain more than the choice here.

    It is what gains most among those likely enough to be chosen, and what gains most among all that may well pass; for
    the latter alone is often no choice, and would hide one. Of equals the first.

    Args:
        found: (how many times better than the best free baseline, chance to pass, what) in order.
        trials: those of this process.
        chance: as for `choose`.

    >>> worth_adopting([(9.0, 0.6, "bold"), (8.0, 0.99, "safe"), (7.0, 0.99, "safer")], [], lambda trial: 1.0)
    ['safe', 'bold']
    """
    best = gained(choose(trials, chance)) if trials else 0.0
    enough = 1 - RISK / (2 + len({trial.recipe for trial in trials}))  # as `choose` will ask for, with both
    chosen: list[tuple[float, float, T]] = []
    for least in (enough, EVEN):
        better = [one for one in found if one[0] > best and one[1] >= least]
        top = max(better, key=lambda one: one[0], default=None)
        if top and top not in chosen:
            chosen.append(top)
    return [what for _, _, what in chosen]


def finalists(trials: list[Trial], chance: Callable[[Trial], float], *, most: int = FINALISTS) -> list[Trial]:
    """What is put before the verdict, in the order in which it is tested: the choice, then bolder ones.

    Each is tested only if all before it passed, which costs the first nothing (`measure.verdict.in_order`). After it
    come those that gain more for less chance: of all such sequences the one with the largest logarithm of the gain to
    be expected, as if they passed or not independently of each other.

    Args:
        trials: at least one, measured on `select`.
        chance: how likely a trial's quality is to be proven on `verify`, 0 ... 1.
        most: how many at most.
    """
    first = choose(trials, chance)
    bolder: list[Trial] = []
    for trial in sorted(trials, key=gained, reverse=True):
        more = surely_gains(trial) and gained(trial) > gained(first)
        if more and chance(trial) > max([LEAST_CHANCE, *(chance(one) for one in bolder)]):
            bolder.append(trial)
    sequences = [
        (first, *after)
        for num in range(most)
        for after in combinations(reversed(bolder), num)
        if all(gained(more) >= STEP_UP * gained(less) for less, more in pairwise((first, *after)))
    ]
    best = max(sequences, key=lambda sequence: _expected(sequence, chance))
    return list(best)


def _expected(sequence: Sequence[Trial], chance: Callable[[Trial], float]) -> float:
    """The logarithm of the gain to be expected beyond the first one's, given that the first passes."""
    total, reached = 0.0, 1.0
    for less, more in pairwise(sequence):
        reached *= chance(more)
        total += reached * (math.log(gained(more)) - math.log(gained(less)))
    return total
