"""Trials: what a file does on `select`, in its runtime, beside the best free baseline."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch

from trimtab.core import Drop, Goal, Metric, Split, Target, Task, Trial
from trimtab.measure.stats import non_inferiority
from trimtab.runtimes.evaluate import Exported, gain_over, measurements, race

TRIAL_ROUNDS = 8
FREE = "original"


@dataclass(frozen=True)
class Bench:
    """What every trial is held against: the original's scores on `select` [N], in eager fp32."""

    task: Task
    target: Target
    goal: Goal
    reference: np.ndarray


def arrays(split: Split) -> tuple[np.ndarray, ...]:
    """The split's inputs as NumPy arrays, each [N, ...]."""
    return tuple(x.numpy() for x in split.inputs)


def scores(metric: Metric, outputs: np.ndarray, targets: torch.Tensor) -> np.ndarray:
    """The metric of each sample, [N]."""
    return metric.per_sample(torch.from_numpy(outputs), targets).double().numpy()


def held_against(reference: np.ndarray, candidate: np.ndarray, *, metric: Metric, goal: Goal) -> Drop:
    """How the candidate's scores [N] compare with the reference's [N], under the goal's margin and confidence."""
    margin = goal.drop if goal.drop is not None else (1 - goal.keep) * abs(float(reference.mean()))
    return non_inferiority(reference, candidate, margin=margin, confidence=goal.confidence, binary=metric.binary)


def try_free(bench: Bench, files: Mapping[str, Exported]) -> list[Trial]:
    """The original in every runtime and precision that costs nothing, all timed in one race."""
    split = bench.task.select
    started = time.perf_counter()
    raced = race(files, arrays(split), target=bench.target, rounds=TRIAL_ROUNDS)
    trials = []
    for name, exported in files.items():
        own = scores(bench.task.metric, raced[name].answers, split.targets)
        trials.append(
            Trial(
                id=name,
                candidate=f"{exported.runtime} {exported.precision}",
                recipe=FREE,
                runtime=exported.runtime,
                precision=exported.precision,
                select=held_against(bench.reference, own, metric=bench.task.metric, goal=bench.goal),
                measurements=measurements(raced[name], exported),
                gain=None,
                seconds=(time.perf_counter() - started) / len(files),
                folder=str(exported.folder.name),
                free=True,
            )
        )
    return trials


def try_one(bench: Bench, free: Exported, own: Exported, *, recipe: str) -> Trial:
    """One candidate's file: its quality on `select`, and its race against the best free baseline."""
    split = bench.task.select
    started = time.perf_counter()
    files = {"free": free, "own": own}
    raced = race(files, arrays(split), target=bench.target, rounds=TRIAL_ROUNDS, asked={"own"})
    own_scores = scores(bench.task.metric, raced["own"].answers, split.targets)
    return Trial(
        id=own.folder.name,
        candidate=f"{recipe} ({own.runtime} {own.precision})",
        recipe=recipe,
        runtime=own.runtime,
        precision=own.precision,
        select=held_against(bench.reference, own_scores, metric=bench.task.metric, goal=bench.goal),
        measurements=measurements(raced["own"], own),
        gain=gain_over(raced["free"], raced["own"], files=(free, own), minimise=bench.goal.minimise),
        seconds=time.perf_counter() - started,
        folder=own.folder.name,
    )
