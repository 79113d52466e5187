"""What a search ends in: the candidates that none beats; where nothing passed, what cost most and what to try next."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from decimal import ROUND_CEILING, Context, Decimal
from itertools import pairwise
from typing import Any

from trimtab.core import Drop, Trial, Verdict
from trimtab.search.halving import front
from trimtab.search.space import LEARNING, cost, gained


def lost(drops: Sequence[Drop]) -> float:
    """The quality lost, in units of what may be lost, by the bound that suffers most; negative where it rose.

    >>> lost([Drop(0.9, 0.88, -0.02, -0.03, -0.01, 0.01, 500, 0.95, "given")])
    2.0
    """
    return max(-drop.diff / (drop.margin or 1e-9) for drop in drops)


def pareto(trials: Sequence[Trial], minimise: str) -> tuple[str, ...]:
    """The ids of the trials that no other beats in cost without losing more on `select`, cheapest first.

    Cost is what the goal minimises: of candidates by their gain over the best free baseline, in one race with it; of
    the free baselines against the cheapest of them.
    """
    cheapest = min((cost(trial, minimise) for trial in trials if trial.free), default=1.0)
    points = [
        (cost(one, minimise) / cheapest if one.free else 1 / gained(one), lost((one.select, *one.also)))
        for one in trials
    ]
    return tuple(trials[at].id for at in sorted(front(points), key=lambda at: points[at]))


def costliest(steps: Sequence[Mapping[str, Any]]) -> tuple[str, float] | None:
    """The step after which the metric on `select` fell most, and by how much; None if it never fell."""
    falls = [
        (before["metric"] - after["metric"], after["step"])
        for before, after in pairwise(steps)
        if before["metric"] is not None and after["metric"] is not None
    ]
    fall, step = max(falls, default=(0.0, ""))
    return (str(step), float(fall)) if fall > 0 else None


def next_thing(verdict: Verdict, steps: Sequence[Mapping[str, Any]]) -> str:
    """The cheapest thing to try where nothing passed; nothing to say on PASS."""
    if verdict.word == "PASS":
        return ""
    if verdict.more_samples:
        return f"Bring about {verdict.more_samples:,} more verify samples: nothing has to be made again."
    # A quality that is lost is what is lacking, as long as the gain is not ruled out.
    lacking = verdict.gain.low if verdict.word == "INCONCLUSIVE" else verdict.gain.high
    if lacking <= 1:
        return "Give the search more time (--minutes) or more runtimes: what was found is no cheaper for sure."
    most = costliest(steps)
    if verdict.word == "INCONCLUSIVE":
        return _on_the_margin(verdict, most[0] if most else "")
    worst = _worst(verdict, "FAIL")
    learns = any(str(step["step"]).startswith(LEARNING) for step in steps)
    where = f" {most[0]!r} cost most." if most else ""
    if most and not learns:
        return f"Train after {most[0]!r} to recover what it lost (Distill), or take less away there."
    allow = f" Or allow {_enough(worst)}, which this one would have passed."
    return f"Recover for longer (--minutes), or take less away.{where}{allow}"


def _on_the_margin(verdict: Verdict, most: str) -> str:
    """What decides where the gain is sure and the loss so near to what is allowed that no number of samples does."""
    others = sum(held.word == "INCONCLUSIVE" for held in verdict.bounds) - 1
    rest = f", with {others} more bound{'s' if others > 1 else ''} open" if others > 0 else ""
    where = f" at {most!r}, which cost most" if most else ""
    return (
        f"Allow a little more ({_enough(_worst(verdict, 'INCONCLUSIVE'))} would have passed{rest}), or take less away"
        f"{where}: the loss sits on the margin, where no number of samples decides."
    )


def _worst(verdict: Verdict, word: str) -> Drop:
    """Of the bounds of that word the one that suffers most."""
    drops = [held.drop for held in verdict.bounds if held.word == word] or [verdict.drop]
    return max(drops, key=lambda drop: lost((drop,)))


def _enough(drop: Drop) -> str:
    """The loss that would have had to be allowed, in two digits, rounded up: rounded down it would not have been.

    >>> _enough(Drop(0.9, 0.88, -0.02, -0.0301, -0.01, 0.01, 500, 0.95, "given", "F1"))
    'a loss of 0.031 in F1'
    """
    up = Context(prec=2, rounding=ROUND_CEILING).plus(Decimal(repr(float(-drop.low))))
    return f"a loss of {float(up):g} in {drop.what or 'the metric'}"


def ending(
    choice: Trial, trials: Sequence[Trial], steps: Sequence[Mapping[str, Any]], verdict: Verdict, *, minimise: str
) -> dict[str, Any]:
    """The part of the evidence that says how the search ended.

    candidates: of how many the choice is the best, which makes it look better on `select` than it is. Therefore the
    estimate that counts is that of `verify`; both are there.
    """
    most = costliest(steps)
    return {
        "candidates": len({trial.recipe for trial in trials if not trial.free}),
        "pareto": list(pareto(trials, minimise)),
        "nearest_miss": verdict.word == "FAIL",
        "select_diff": choice.select.diff,
        "verify_diff": verdict.drop.diff,
        "costliest": {"step": most[0], "metric_lost": most[1]} if most else None,
        "next": next_thing(verdict, steps),
    }
