"""One model's cells: every step of every candidate, made once, kept with its seconds, and shared by all strategies."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import cattrs

from trimtab.attempt import Job, bench_of, free_baselines, prepare
from trimtab.compress.build import Built
from trimtab.core import Goal, Outcome, Target, Task, Trial
from trimtab.files import read_json, write_json
from trimtab.report.terminal import Progress
from trimtab.runtimes.trial import Bench
from trimtab.search.ending import lost
from trimtab.search.halving import hypervolume
from trimtab.search.space import gained
from trimtab.search.study import Study

T = TypeVar("T")
SHARED = ("built", "screens", "files", "trials", "failures")
SECONDS = "seconds"
WORST = (1.0, 1.0)  # the cost of the best free baseline, and all of the loss that is allowed


@dataclass(frozen=True)
class Ground:
    """A model with its task, measured baselines, and the folder of its cells."""

    folder: Path
    job: Job
    original: Built
    bench: Bench
    free: list[Trial]

    def job_of(self, strategy: str, *, forgetful: bool = False) -> Job:
        """A job of a strategy's own, over the shared cells. forgetful: it never asks what it has seen before."""
        return replace(self.job, held=Cells(self.folder / "runs" / strategy, self.folder, forgetful=forgetful))


def ground(folder: Path, task: Task, model: Any, *, searched: Task, target: Target, goal: Goal) -> Ground:
    """The original, trained as `task` says, and its free baselines on `searched`, which candidates are made on."""
    folder.mkdir(parents=True, exist_ok=True)
    held = Study(folder)
    job = Job(task, target, goal, held, Progress(quiet=True), "scripts/bench search_cost")
    original = prepare(job, model)
    job = replace(job, task=searched)
    bench = bench_of(job, original)
    free, _ = free_baselines(job, bench, original, tuple(target.runtimes or ()))
    return Ground(folder, job, original, bench, free)


class Cells(Study):
    """A strategy's folder: its dear steps are links to the shared ones; `used` has what it asked for, in order.

    A cell counts as ended only once the strategy itself has asked for it. With each use stands the time that the
    strategy's own work has taken so far, the making of cells left out.
    """

    def __init__(self, folder: Path, shared: Path, *, forgetful: bool = False) -> None:
        super().__init__(folder)
        self._shared, self._forgetful = shared, forgetful
        self.used: list[tuple[str, float]] = []
        self._names: set[str] = set()
        self._began, self._made, self._inner = time.perf_counter(), 0.0, [0.0]
        folder.mkdir(parents=True)
        for name in SHARED:
            (shared / name).mkdir(exist_ok=True)
            (folder / name).symlink_to((shared / name).resolve())

    def has(self, name: str) -> bool:
        """Whether this strategy has asked for the step."""
        if name.split("/")[0] not in SHARED:
            return super().has(name)
        return not self._forgetful and name in self._names

    def once(self, name: str, make: Callable[[], T], kind: type[T]) -> T:
        """The step's value; made if no strategy has asked for it yet."""
        value = super().once(name, lambda: self._timed(name, make), kind)
        self._use(name)
        return value

    def once_folder(self, name: str, make: Callable[[Path], Any]) -> Path:
        """The step's folder; made if no strategy has asked for it yet."""
        folder = super().once_folder(name, lambda scratch: self._timed(name, lambda: make(scratch)))
        self._use(name)
        return folder

    def _use(self, name: str) -> None:
        if name.split("/")[0] in SHARED and name not in self._names:
            self._names.add(name)
            self.used.append((name, time.perf_counter() - self._began - self._made))

    def _timed(self, name: str, make: Callable[[], T]) -> T:
        began = time.perf_counter()
        self._inner.append(0.0)
        try:
            return make()
        finally:
            whole, inner = time.perf_counter() - began, self._inner.pop()
            self._inner[-1] += whole
            self._made += whole - inner
            if name.split("/")[0] in SHARED:
                write_json(self._shared / SECONDS / f"{name.replace('/', ' ')}.json", round(whole - inner, 3))


@dataclass(frozen=True)
class Step:
    """Where a strategy stood after an evaluation: how many there were, seconds so far, the hypervolume."""

    evaluations: int
    seconds: float
    hypervolume: float


def curve(shared: Path, used: Sequence[tuple[str, float]]) -> list[Step]:
    """What a strategy had reached after each evaluation.

    An evaluation is a graph that was scored, with the first file of it that was raced; every further file is one more.
    """
    points: list[tuple[float, float]] = []
    steps: list[Step] = []
    seconds, number, unclaimed = 0.0, 0, set[str]()
    for name, own in used:
        kind, _, key = name.partition("/")
        if kind == "files":
            continue  # counted with its trial, of which no file is asked for where the trial is known
        seconds += _seconds(shared, name) + (_seconds(shared, f"files/{key}") if kind == "trials" else 0.0)
        if kind == "screens":
            number += 1
            unclaimed.add(key)
        elif kind == "trials":
            recipe = max((one for one in unclaimed if key.startswith(f"{one}-")), key=len, default=None)
            number += recipe is None
            unclaimed.discard(recipe or "")
            points += _points(shared / f"{name}.json")
        else:
            continue
        steps.append(Step(number, seconds + own, hypervolume(points, WORST)))
    return steps


def _seconds(shared: Path, name: str) -> float:
    made = shared / SECONDS / f"{name.replace('/', ' ')}.json"
    return float(read_json(made)) if made.exists() else 0.0


def _points(file: Path) -> list[tuple[float, float]]:
    """Cost and loss of a trial that was measured; a gain in quality counts as no loss."""
    trial = cattrs.structure(read_json(file), Outcome).trial
    return [(1 / gained(trial), max(0.0, lost((trial.select, *trial.also))))] if trial else []
