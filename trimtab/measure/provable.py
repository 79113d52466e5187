"""What no candidate could prove, known before any is tried: too few verify samples for so small a loss."""

from __future__ import annotations

import numpy as np

from trimtab.core import Goal, Split, Task
from trimtab.measure.quality import Scores, margin_of
from trimtab.measure.resample import Floats
from trimtab.measure.stats import Kept, held_by
from trimtab.tasks.bounds import Asked, asked

MOST_TIMES_MORE = 64
FEW_RESAMPLES = 199
FEWEST = 2


def unprovable(task: Task, goal: Goal, reference: Scores, split: Split) -> tuple[str, ...]:
    """The bounds that even a model which answers exactly as the original would not pass, each with what would help.

    Args:
        task: its verify split is counted, not read.
        goal: what must stay true.
        reference: the original's scores on `split`, as `graded` gives them.
        split: of select, or a part of it; verify is taken to be alike.
    """
    told = []
    for one in asked(task, goal, split):
        scores = reference[one.what]
        if len(scores) < FEWEST:
            continue  # too few to tell anything by
        allowed = margin_of(one)
        margin = allowed.of(_value(one, scores)) if isinstance(allowed, Kept) else allowed
        num = max(2, round(float(one.mask.float().mean()) * len(task.verify)))
        if margin == 0:
            told.append(
                f"{one.what}: no loss at all is allowed, so that only a model which is better for sure can pass. Allow "
                "a little, e.g. keep=0.99."
            )
        elif (reach := _reach(one, scores, num, goal)) > margin:
            told.append(
                f"{one.what}: on {num:,} verify samples, even a model that answers exactly as the original is only "
                f"proven to lose at most {reach:.3g}, and {margin:.3g} is allowed. "
                f"{_mend(one, scores, num, margin, goal)}"
            )
    return tuple(told)


def _value(one: Asked, scores: Floats) -> float:
    means = scores.mean(0)
    return float(one.metric.aggregate(means) if one.metric.aggregate else means)


def _reach(one: Asked, scores: Floats, num: int, goal: Goal) -> float:
    """How much worse an equal model may be, for all that `num` samples can tell."""
    same = scores[np.arange(num) % len(scores)]
    margin = margin_of(one)
    equal = held_by(one.metric, same, same, margin=margin, confidence=goal.confidence, num_resamples=FEW_RESAMPLES)
    return -equal.low


def _mend(one: Asked, scores: Floats, num: int, margin: float, goal: Goal) -> str:
    more = num
    while more < MOST_TIMES_MORE * num:
        more *= 2
        if _reach(one, scores, more, goal) <= margin:
            return f"Some {more:,} such samples would do for an equal model; or allow more."
    return "Allow more: no number of samples that could be had would do."
