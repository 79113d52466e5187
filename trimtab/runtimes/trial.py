"""Trials: what a file does on `select`, in its runtime, beside the best free baseline."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from trimtab.core import Goal, Outcome, Skip, Split, Target, Task, Trial
from trimtab.errors import MetricError
from trimtab.measure.quality import Scores, graded, held_against
from trimtab.runtimes.evaluate import Exported, gain_over, measurements, race

TRIAL_ROUNDS = 8
FREE = "original"


@dataclass(frozen=True)
class Bench:
    """What every trial is held against: the original's scores on `select`, in eager fp32."""

    task: Task
    target: Target
    goal: Goal
    reference: Scores


def arrays(split: Split) -> tuple[np.ndarray, ...]:
    """The split's inputs as NumPy arrays, each [N, ...]."""
    return tuple(x.numpy() for x in split.inputs)


def try_free(bench: Bench, files: Mapping[str, Exported]) -> list[Outcome]:
    """The original in every runtime and precision that costs nothing, all timed in one race."""
    split = bench.task.select
    started = time.perf_counter()
    minimise = bench.goal.minimise
    raced = race(files, arrays(split), target=bench.target, rounds=TRIAL_ROUNDS, minimise=minimise)
    outcomes = []
    for name, exported in files.items():
        try:
            own = graded(bench.task, bench.goal, raced[name].answers, split)
            drops = held_against(bench.task, bench.goal, split, bench.reference, own)
        except MetricError as error:
            outcomes.append(Outcome(skipped=(Skip(f"{FREE} ({exported.runtime} {exported.precision})", str(error)),)))
            continue
        outcomes.append(
            Outcome(
                Trial(
                    id=name,
                    candidate=f"{exported.runtime} {exported.precision}",
                    recipe=FREE,
                    runtime=exported.runtime,
                    precision=exported.precision,
                    select=drops[0],
                    measurements=measurements(raced[name], exported, bench.target),
                    gain=None,
                    seconds=(time.perf_counter() - started) / len(files),
                    folder=str(exported.folder.name),
                    free=True,
                    also=drops[1:],
                )
            )
        )
    return outcomes


def try_one(bench: Bench, free: Exported, own: Exported, *, recipe: str) -> Trial:
    """One candidate's file: its quality on `select`, and its race against the best free baseline.

    Raises:
        MetricError: a metric raised on its answers, or is not what it declares.
    """
    split = bench.task.select
    started = time.perf_counter()
    files = {"free": free, "own": own}
    minimise = bench.goal.minimise
    raced = race(files, arrays(split), target=bench.target, rounds=TRIAL_ROUNDS, minimise=minimise, asked={"own"})
    own_scores = graded(bench.task, bench.goal, raced["own"].answers, split)
    drops = held_against(bench.task, bench.goal, split, bench.reference, own_scores)
    return Trial(
        id=own.folder.name,
        candidate=f"{recipe} ({own.runtime} {own.precision})",
        recipe=recipe,
        runtime=own.runtime,
        precision=own.precision,
        select=drops[0],
        measurements=measurements(raced["own"], own, bench.target),
        gain=gain_over(raced["free"], raced["own"], files=(free, own), minimise=minimise),
        seconds=time.perf_counter() - started,
        folder=own.folder.name,
        also=drops[1:],
    )
