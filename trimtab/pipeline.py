"""The conductor: from a model and a task to the cheapest version that keeps what must stay true, with the proof.

The main path, in order: check, train, capture, measure what is free, search, choose, judge, ship.
Every step that has ended is kept in the run's folder; the same call goes on from there.
"""

from __future__ import annotations

import platform
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import cattrs
import numpy as np
from torch import nn

from trimtab.artifact import Loaded, load_artifact
from trimtab.attempt import Job, Shrunk, bench_of, free_baselines, pinned, prepare, shrink
from trimtab.compress.build import key
from trimtab.compress.recipes import recipes_to_try
from trimtab.core import Artifact, Goal, Method, Recipe, Search, Target, Task, Trial
from trimtab.explore import Asked, explore, require_search, require_shared
from trimtab.files import read_array, write_array, write_atomic
from trimtab.graph.capture import capture
from trimtab.prove import REPORT_FILE, name_finalists, prove, ship, stepwise
from trimtab.report.html import page
from trimtab.report.shown import check_show
from trimtab.report.terminal import PRUNE_PHASES, Progress
from trimtab.runtimes.evaluate import usable
from trimtab.search.study import CHOICE, study
from trimtab.tasks.bounds import check_bounds
from trimtab.tasks.check import check, check_model, fingerprint, fingerprint_weights
from trimtab.tasks.code import fingerprint_of, fingerprints_of_code


def optimize(
    model: nn.Module,
    task: Task,
    *,
    target: Target = Target(),  # noqa: B008 - frozen
    goal: Goal = Goal(),  # noqa: B008 - frozen
    run: str | Path | None = None,
    recipes: tuple[Recipe, ...] | None = None,
    quiet: bool = False,
    search: Search = Search(),  # noqa: B008 - frozen
) -> Artifact:
    """Find the cheapest version of `model` that keeps the goal's quality, prove it, and write it to the run's folder.

    Args:
        model: takes the task's inputs by position and returns one tensor. Trained first if `task.fit` says how.
        task: data, loss, metric.
        target: where it will run.
        goal: what to minimise and what to keep.
        run: the folder of this run (default `runs/<task name>`); a killed run goes on from there.
        recipes: what to try, and nothing else, instead of the default recipes and the search after them.
        quiet: show no progress.
        search: where its trials are kept, how many, with which seed. It begins after the default recipes, if the
            goal gives minutes or this a number of trials.

    Returns:
        The artifact with its verdict: PASS, FAIL or INCONCLUSIVE. The best effort is written in every case.

    Raises:
        TrimtabError: the input cannot be used; the message says what to do.
    """
    require_search(search, recipes)
    check(task)
    check_model(model, task)
    check_bounds(task, goal)
    check_show(task)
    graph = capture(model, task.select.batch(slice(0, 2)).inputs)  # refused before it is trained, if it is no graph
    tried = recipes_to_try(recipes, graph, goal.minimise)
    runtimes = tuple(usable(target))
    folder = Path(run) if run else Path("runs") / task.name
    shared, own = _identity(model, str(graph.graph), task, target, goal)
    own |= {"recipes": [key(recipe) for recipe in tried], "seed": search.seed}
    asked = Asked(search, shared, samples=recipes is None)
    require_shared(asked)
    budget = {"minutes": goal.minutes, "trials": search.trials}
    with study(folder, shared | own, until=budget) as held, Progress(quiet=quiet) as show:
        if not held.has("artifact"):
            job = Job(pinned(held, model, task), target, goal, held, show, search.command)
            original = prepare(job, model)
            bench = bench_of(job, original)
            free, freely = free_baselines(job, bench, original, runtimes)
            ended = [freely, *explore(job, bench, original, free, tried, asked)]
            named = held.once(CHOICE, lambda: name_finalists(job, free, ended), list[Trial])
            by_step = partial(stepwise, job, bench, original, free, ended)
            proof = held.once("evidence", lambda: prove(job, free, ended, named, by_step), dict[str, Any])
            ship(job, original, free, ended, named, proof)
    return load_artifact(folder / "artifact").artifact


def _identity(
    model: nn.Module, graph: str, task: Task, target: Target, goal: Goal
) -> tuple[dict[str, Any], dict[str, Any]]:
    """What a run is of: what all processes of one search must agree on, and what is this run's own."""
    shared = {
        "trimtab": version("trimtab"),
        "task": task.name,
        "data": fingerprint(task),
        "model": fingerprint_weights(model, values=task.fit is None, graph=graph),
        "target": cattrs.unstructure(replace(target, price_per_hour=None, watts=None)),
        "goal": cattrs.unstructure(replace(goal, minutes=None)),
        "python": ".".join(platform.python_version_tuple()[:2]),  # another one compiles the same source otherwise
        **fingerprints_of_code(task),
    }
    stated = {"price_per_hour": target.price_per_hour, "watts": target.watts}
    return shared, {**stated, "code of show": fingerprint_of(task.show)}


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
