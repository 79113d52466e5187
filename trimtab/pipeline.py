"""The conductor: from a model and a task to the cheapest version that keeps what must stay true, with the proof.

The main path, in order: check, train, capture, measure what is free, search, choose, judge, ship.
Every step that has ended is kept in the run's folder; the same call goes on from there.
"""

from __future__ import annotations

import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import cattrs
import numpy as np
from torch import nn

from trimtab.artifact import Loaded, load_artifact
from trimtab.attempt import Job, Shrunk, Tried, attempt, bench_of, free_baselines, pinned, prepare, shrink
from trimtab.compress.build import Built, key
from trimtab.compress.recipes import recipes_to_try
from trimtab.core import Artifact, Goal, Method, Recipe, Skip, Target, Task, Trial
from trimtab.files import read_array, write_array, write_atomic
from trimtab.graph.capture import capture
from trimtab.prove import REPORT_FILE, prove, ship
from trimtab.report.html import page
from trimtab.report.terminal import PRUNE_PHASES, Progress
from trimtab.report.words import metric
from trimtab.runtimes.evaluate import usable
from trimtab.runtimes.trial import Bench
from trimtab.search.space import best_free, choose
from trimtab.search.study import study
from trimtab.tasks.bounds import check_bounds
from trimtab.tasks.check import check, check_model, fingerprint, fingerprint_weights


def optimize(
    model: nn.Module,
    task: Task,
    *,
    target: Target = Target(),  # noqa: B008 - frozen
    goal: Goal = Goal(),  # noqa: B008 - frozen
    run: str | Path | None = None,
    recipes: tuple[Recipe, ...] | None = None,
    quiet: bool = False,
    command: str = "trimtab.optimize(...)",
) -> Artifact:
    """Find the cheapest version of `model` that keeps the goal's quality, prove it, and write it to the run's folder.

    Args:
        model: takes the task's inputs by position and returns one tensor. Trained first if `task.fit` says how.
        task: data, loss, metric.
        target: where it will run.
        goal: what to minimise and what to keep.
        run: the folder of this run (default `runs/<task name>`); a killed run goes on from there.
        recipes: what to try instead of the default space.
        quiet: show no progress.
        command: what the report names as the way to make this result again.

    Returns:
        The artifact with its verdict: PASS, FAIL or INCONCLUSIVE. The best effort is written in every case.

    Raises:
        TrimtabError: the input cannot be used; the message says what to do.
    """
    tried = recipes_to_try(recipes)
    check(task)
    check_model(model, task)
    check_bounds(task, goal)
    capture(model, task.select.batch(slice(0, 2)).inputs)  # what cannot become a graph is refused before it is trained
    runtimes = tuple(usable(target))
    folder = Path(run) if run else Path("runs") / task.name
    identity: dict[str, Any] = {
        "trimtab": version("trimtab"),
        "task": task.name,
        "data": fingerprint(task),
        "model": fingerprint_weights(model, values=task.fit is None),
        "target": cattrs.unstructure(target),
        "goal": cattrs.unstructure(goal),
        "recipes": [key(recipe) for recipe in tried],
    }
    with study(folder, identity) as held, Progress(quiet=quiet) as show:
        if not held.has("artifact"):
            job = Job(pinned(held, model, task), target, goal, held, show, command)
            original = prepare(job, model)
            bench = bench_of(job, original)
            free, freely = free_baselines(job, bench, original, runtimes)
            ended = [freely, *_search(job, bench, original, free, tried)]
            choice = held.once("choice", lambda: _choose(job, free, ended), Trial)
            proof = held.once("evidence", lambda: prove(job, free, ended, choice), dict[str, Any])
            ship(job, original, free, ended, choice, proof)
    return load_artifact(folder / "artifact").artifact


def prune(
    model: nn.Module,
    task: Task,
    method: Method,
    *,
    output: str | Path | None = None,
    dry_run: bool = False,
    quiet: bool = False,
) -> Shrunk:
    """Plan what `method` (e.g. a `Prune`) takes out of `model`, and write the smaller model to a folder.

    Args:
        model: trained first if `task.fit` says how.
        task: data, loss, metric.
        method: what to do, with its settings.
        output: the folder to write (default `runs/<task name>-pruned`); it must not exist.
        dry_run: plan only.
        quiet: show no progress.

    Raises:
        TrimtabError: the input cannot be used, or nothing can be cut; the message says what to do.
    """
    check(task)
    check_model(model, task)
    folder = None if dry_run else Path(output or f"runs/{task.name}-pruned")
    with Progress(quiet=quiet, phases=PRUNE_PHASES) as show:
        return shrink(model, task, method, folder, show)


def run(artifact: str | Path, *, input: tuple[Path, ...], output: Path | None = None) -> tuple[Loaded, np.ndarray]:
    """The answers of an artifact to the arrays in .npy files, [B, ...]; written to `output` too if that is given.

    Raises:
        ArtifactError: the artifact is damaged, or a file holds no array.
        RuntimeFailed: the arrays do not fit the model.
    """
    loaded = load_artifact(artifact)
    answers = loaded.run(*(read_array(path) for path in input))
    if output is not None:
        write_array(output, answers)
    return loaded, answers


def rewrite_report(run: Path, *, output: Path | None = None) -> tuple[Path, dict[str, Any]]:
    """Write the page of a run that has ended, from its evidence; returns where it is and the evidence.

    Of an artifact it is written beside the folder: what is added inside would be taken for damage.

    Raises:
        ArtifactError: the run holds no finished artifact, or it is damaged.
    """
    inner = run / "artifact"
    evidence = dict(load_artifact(inner if inner.is_dir() else run).artifact.evidence)
    path = output or (run if inner.is_dir() else run.resolve().parent) / REPORT_FILE
    write_atomic(path, page(evidence).encode())
    return path, evidence


def _search(job: Job, bench: Bench, original: Built, free: list[Trial], recipes: tuple[Recipe, ...]) -> list[Tried]:
    """Try one recipe after the other, until all are tried or the budget is spent."""
    started = time.monotonic()
    ended: list[Tried] = []
    for place, recipe in enumerate(recipes):
        if job.goal.minutes is not None and _too_late(job, recipe, time.monotonic() - started):
            late = Skip(recipe.name, f"the budget of {job.goal.minutes:g} minutes was spent")
            ended.append(Tried(recipe, skipped=(late,)))
            continue
        job.show.trial(place, len(recipes), recipe.name)
        ended.append(attempt(job, bench, original, [*free, *_trials(ended)], recipe))
        _tell_best(job, ended)
    if not any(tried.trials for tried in ended):
        ended += _nearest_miss(job, bench, original, free, ended)
    return ended


def _too_late(job: Job, recipe: Recipe, seconds: float) -> bool:
    """Whether the budget leaves no time to begin `recipe`; what a killed run had ended of it costs nothing."""
    assert job.goal.minutes is not None
    return not job.held.has(f"screens/{key(recipe)}") and (job.held.has("choice") or seconds > 60 * job.goal.minutes)


def _nearest_miss(job: Job, bench: Bench, original: Built, free: list[Trial], ended: list[Tried]) -> list[Tried]:
    """If nothing had a chance, what came nearest is exported all the same: the best effort is always saved."""
    screened = [tried for tried in ended if tried.screen]
    if not screened:
        return []
    nearest = max(screened, key=lambda tried: min(drop.diff / (drop.margin or 1e-9) for drop in tried.screen))
    return [attempt(job, bench, original, free, nearest.recipe, hopeless=0.0)]


def _choose(job: Job, free: list[Trial], ended: list[Tried]) -> Trial:
    trials = _trials(ended)
    return choose(trials, job.chance) if trials else best_free(free, job.goal, job.target)


def _trials(ended: list[Tried]) -> list[Trial]:
    return [trial for tried in ended for trial in tried.trials]


def _tell_best(job: Job, ended: list[Tried]) -> None:
    trials = _trials(ended)
    if trials:
        best = choose(trials, job.chance)
        times = f", {best.gain.value:.2f}x" if best.gain else ""
        quality = metric(best.select.candidate, percent=job.task.metric.binary)
        job.show.best(f"{best.candidate}: {quality}{times}")
