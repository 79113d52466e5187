"""From a recipe to measured trials: built, screened, exported, checked and raced, each step committed as it ends."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.fx import GraphModule

from trimtab.artifact import save
from trimtab.compress.build import Built, Stage, build, key
from trimtab.core import (
    Candidate,
    Drop,
    Goal,
    Method,
    Outcome,
    Plan,
    Precision,
    Recipe,
    Skip,
    Target,
    Task,
    Tools,
    Trial,
)
from trimtab.diagnose.examine import hopeless
from trimtab.errors import MetricError, PlanError, RunError, RuntimeFailed, TaskError
from trimtab.files import write_atomic
from trimtab.graph.capture import capture
from trimtab.graph.save import load_graph, save_graph
from trimtab.measure.machine import same_machine, stamp
from trimtab.measure.provable import unprovable
from trimtab.measure.quality import Scores, graded, held_against, value
from trimtab.measure.verdict import SURE, chance_of_all
from trimtab.report.evidence import described
from trimtab.report.terminal import Progress
from trimtab.runtimes import RUNTIMES, supported
from trimtab.runtimes.coverage import coverage, fallbacks
from trimtab.runtimes.evaluate import Exported, export_checked
from trimtab.runtimes.formats import FORMATS
from trimtab.runtimes.trial import Bench, arrays, try_free, try_one
from trimtab.search.space import FREE_PRECISIONS, best_free, candidates, eligible, unrecovered, worth_trying
from trimtab.search.study import Study
from trimtab.train.loop import fit, predict, score
from trimtab.train.precision import pick_precision

FAILURES = "failures"
HOPELESS = 0.05


@dataclass(frozen=True)
class Job:
    """What every step needs: the question, the run's folder, and somebody to tell."""

    task: Task
    target: Target
    goal: Goal
    held: Study
    show: Progress
    command: str
    watch: Callable[[], None] | None = None

    def step(self, done: int, total: int, text: str) -> None:
        """Tell of progress; `watch` may raise, to end what lasts too long."""
        self.show.step(done, total, text)
        if self.watch:
            self.watch()

    def chance(self, trial: Trial) -> float:
        """How likely the trial's quality is to be proven on `verify`, 0 ... 1."""
        return chance_of_all((trial.select, *trial.also), num_verify=len(self.task.verify))


@dataclass(frozen=True)
class Tried:
    """What came of one recipe: its quality on `select` as a graph, its trials, what was left out."""

    recipe: Recipe
    screen: tuple[Drop, ...] = ()
    trials: tuple[Trial, ...] = ()
    skipped: tuple[Skip, ...] = ()
    stages: tuple[Stage, ...] = ()
    folder: Path | None = None


def pinned(held: Study, model: nn.Module, task: Task) -> Task:
    """The task with its training precision measured once, so that a resumed run trains as it began.

    What the task is goes into the folder too, for who watches the run.
    """
    held.once("task", lambda: described(task), dict[str, Any])
    if task.fit is None or task.fit.precision != "auto":
        return task
    batch = task.train.batch(slice(0, task.fit.batch_size)).inputs
    precision = held.once("precision", lambda: pick_precision(model, batch), str)
    return replace(task, fit=replace(task.fit, precision=precision))  # type: ignore[arg-type]


def prepare(job: Job, model: nn.Module) -> Built:
    """The model as one graph, trained if the task says how."""

    def make(folder: Path) -> None:
        save_graph(trained(model, job.task, job.show, checkpoint=job.held.folder / "training"), folder)

    folder = job.held.once_folder("original", make)
    return Built(load_graph(folder), folder, ())


def trained(model: nn.Module, task: Task, show: Progress, *, checkpoint: Path | None = None) -> GraphModule:
    """`model` as a graph, trained first if the task says how."""
    show.phase("training" if task.fit else "capture")
    ready = fit(model, task, report=show.step, checkpoint=checkpoint) if task.fit else model
    return capture(ready, task.select.batch(slice(0, 2)).inputs)


@dataclass(frozen=True)
class Shrunk:
    """What a method made of a model: its plan; and, unless it was a dry run, the graph and the folder that keeps it.

    before and after: the metric on the select split.
    """

    plan: Plan
    before: float
    after: float | None = None
    graph: GraphModule | None = None
    folder: Path | None = None


def shrink(model: nn.Module, task: Task, method: Method, folder: Path | None, show: Progress) -> Shrunk:
    """Train if the task says how, plan, and if there is a folder, apply `method` and write the result, whole or not.

    Raises:
        RunError: the folder exists already.
        PlanError: the method refuses.
    """
    if folder is not None and folder.exists():  # before hours of training, not after
        raise RunError(f"{folder} exists already, and nothing is overwritten. Remove it, or choose another folder.")
    graph = trained(model, task, show)
    show.phase("planning")
    plan = method.plan(graph, task)
    before = value(task.metric, score(graph, task.select, task.metric))
    if folder is None:
        return Shrunk(plan, before)
    show.phase("applying")
    result = method.apply(graph, plan, Tools(task=task, original=graph, report=show.step))
    save(result, folder, plans=[(method, plan)])
    return Shrunk(plan, before, value(task.metric, score(result, task.select, task.metric)), result, folder)


def bench_of(job: Job, original: Built) -> Bench:
    """The original's scores on `select`, in eager fp32, which every trial is held against.

    What they show that no trial could prove, and whether anything is predicted to gain at all, is told now, before any
    is made.

    Raises:
        RunError: the run was begun on another machine.
    """
    _require_machine(job.held)
    reference = _graded(job.task, job.goal, original)
    num = job.target.batch_size
    batch = job.task.select.batch(torch.arange(num) % len(job.task.select)).inputs
    unmet = job.held.once("unmet", lambda: list(hopeless(original.graph, batch, job.target, job.goal)), list[str])
    for warning in (*unprovable(job.task, job.goal, reference, job.task.select), *unmet):
        job.show.warn(warning)
        job.held.log(f"warning: {warning}")
    return Bench(job.task, job.target, job.goal, reference)


def _require_machine(held: Study) -> None:
    """Refuse to go on with a run on another machine: latencies are compared only within one.

    Raises:
        RunError: the run's latencies were taken elsewhere.
    """
    before, here = held.once("machine", stamp, dict[str, Any]), stamp()
    if not same_machine(before, here):
        raise RunError(
            f"{held.folder} was measured on {before['cpu']}, {before['cores']} cores, and this is {here['cpu']}, "
            f"{here['cores']} cores: latencies of two machines say nothing of each other. Go on where it began, or "
            "choose another folder with --run FOLDER."
        )


def free_baselines(job: Job, bench: Bench, original: Built, runtimes: tuple[str, ...]) -> tuple[list[Trial], Tried]:
    """The original in every runtime at every precision that costs nothing; eager fp32, the reference, always."""
    job.show.phase("free baselines")
    files: dict[str, Exported] = {}
    skipped: list[Skip] = []
    pairs = [(name, precision) for name in dict.fromkeys(("eager", *runtimes)) for precision in FREE_PRECISIONS]
    for place, (name, precision) in enumerate(pairs):
        candidate = Candidate(Recipe(), name, precision)
        job.show.step(place, 2 * len(pairs), f"exporting {candidate.name}")
        if why := supported(name, precision):
            skipped.append(Skip(candidate.name, why))
            continue
        try:
            own = _export(job, original, candidate)
            files[own.folder.name] = own
        except RuntimeFailed as error:
            skipped.append(Skip(candidate.name, _brief(error)))
    if not any(file.runtime in runtimes for file in files.values()):
        told = [skip for skip in skipped if any(f"({name} " in skip.what for name in runtimes)]
        reasons = "".join(f"\n  {skip.what}: {skip.why}" for skip in told)
        raise RuntimeFailed(f"The model runs in none of the runtimes that the target allows.{reasons}\nAllow others.")
    job.show.step(len(pairs), 2 * len(pairs), f"timing {len(files)} baselines in turn")
    outcomes = job.held.once("free", lambda: try_free(bench, files), list[Outcome])
    skipped += [skip for outcome in outcomes for skip in outcome.skipped]
    free = [outcome.trial for outcome in outcomes if outcome.trial]
    return free, Tried(Recipe(), skipped=tuple(skipped), folder=original.folder)


def attempt(
    job: Job,
    bench: Bench,
    original: Built,
    measured: list[Trial],
    recipe: Recipe,
    *,
    only: tuple[str, Precision] | None = None,
    hopeless: float = HOPELESS,
) -> Tried:
    """One recipe in every runtime worth trying; what has no chance left is not exported.

    Args:
        job: the run.
        bench: what quality is held against.
        original: the captured model.
        measured: every trial so far, the free baselines included.
        recipe: what to try.
        only: the runtime and the precision to serve it in, if not all that are worth it.
        hopeless: the chance to pass below which a recipe is not exported; at 0 it is made whatever others showed.

    Raises:
        RunError: the run's folder cannot be written.
    """
    held = job.held
    if hopeless and (needless := nothing_to_recover(job, recipe)):
        return Tried(recipe, skipped=(needless,))
    precisions, left_out = worthwhile(job, measured, recipe, only)
    ways = candidates([recipe], precisions)
    unserved = tuple(Skip(way.name, why) for way in ways if (why := supported(way.runtime, way.precision)))
    if len(unserved) == len(ways):
        return Tried(recipe, skipped=(*left_out, *unserved))
    try:
        built = _built(job, original, recipe)
    except PlanError as error:
        return Tried(recipe, skipped=(Skip(recipe.name, str(error)),))
    except TaskError as error:  # what it learned came to no number, say
        return Tried(recipe, skipped=(failed(held, recipe.name, key(recipe), error),))
    skipped = tuple(skip for stage in built.stages for skip in stage.skipped)
    try:
        screen = tuple(held.once(f"screens/{key(recipe)}", lambda: _screen(bench, built), list[Drop]))
    except MetricError as error:
        return Tried(
            recipe, (), (), (*skipped, failed(held, recipe.name, key(recipe), error)), built.stages, built.folder
        )
    tried = Tried(recipe, screen, (), skipped, built.stages, built.folder)
    if chance_of_all(screen, num_verify=len(job.task.verify)) < hopeless:
        worst = min(screen, key=lambda drop: chance_of_all((drop,), num_verify=len(job.task.verify)))
        why = (
            f"{worst.what} {worst.candidate:.3g} on select, {-worst.diff:.3g} under the original's with "
            f"{worst.margin:.3g} allowed: no chance left, so it was not exported"
        )
        return replace(tried, skipped=(*skipped, Skip(recipe.name, why)))
    free = [trial for trial in measured if trial.free]
    outcomes = [_outcome(job, bench, built, free, candidate) for candidate in ways]
    return replace(
        tried,
        trials=tuple(outcome.trial for outcome in outcomes if outcome.trial),
        skipped=(*skipped, *left_out, *(skip for outcome in outcomes for skip in outcome.skipped)),
    )


def worthwhile(
    job: Job, measured: Sequence[Trial], recipe: Recipe, only: tuple[str, Precision] | None = None
) -> tuple[dict[str, Precision], tuple[Skip, ...]]:
    """The runtimes that `recipe` is worth serving in, each with its precision, and why others are not.

    only: the one to decide on, with the precision there, if not all.
    """
    free = [trial for trial in measured if trial.free]
    found = [trial for trial in measured if not trial.free]
    precisions, left_out = worth_trying(recipe, eligible(free, job.target), found, job.goal.minimise)
    if only is None:
        return precisions, left_out
    told = tuple(skip for skip in left_out if skip.what.split()[-1] == only[0])
    return ({only[0]: only[1]} if only[0] in precisions else {}), told


def serving(job: Job, free: Sequence[Trial]) -> dict[str, tuple[str, ...]]:
    """Precision -> the allowed runtimes that serve in it here, in which the model runs."""
    there = {(trial.runtime, trial.precision) for trial in eligible(free, job.target)}
    runtimes = {name for name, _ in there}
    able: dict[str, tuple[str, ...]] = {
        precision: tuple(
            name
            for name in names
            if ((name, precision) in there if precision in FREE_PRECISIONS else name in runtimes)
            and supported(name, precision) is None
        )
        for precision, names in FORMATS.items()
    }
    return {precision: names for precision, names in able.items() if names}


def nothing_to_recover(job: Job, recipe: Recipe) -> Skip | None:
    """Why training to recover is left out: the same recipe without it was screened, and is sure enough as it is."""
    cheaper = unrecovered(recipe)
    if cheaper is None or not job.held.has(name := f"screens/{key(cheaper)}"):
        return None
    chance = chance_of_all(job.held.read(name, list[Drop]), num_verify=len(job.task.verify))
    why = f"{cheaper.name} keeps the quality with a chance of {chance:.2f}: there is nothing to recover by training"
    return Skip(recipe.name, why) if chance >= SURE else None


def _built(job: Job, original: Built, recipe: Recipe) -> Built:
    tools = Tools(report=job.step, folder=str(job.held.folder / "work"))
    return build(recipe, original, job.task, once_folder=job.held.once_folder, tools=tools)


def built_graph(job: Job, original: Built, recipe: Recipe) -> GraphModule:
    """The recipe's graph; nothing is scored.

    Raises:
        PlanError: a method refuses.
    """
    return _built(job, original, recipe).graph


def screened(job: Job, bench: Bench, original: Built, recipe: Recipe) -> tuple[GraphModule, list[Drop]]:
    """The recipe's graph, and what it keeps of the quality on `select`; nothing is exported.

    Raises:
        PlanError: a method refuses.
        MetricError: the user's metric raised, or is not what it declares.
    """
    built = _built(job, original, recipe)
    return built.graph, job.held.once(f"screens/{key(recipe)}", lambda: _screen(bench, built), list[Drop])


def _screen(bench: Bench, built: Built) -> list[Drop]:
    own = _graded(bench.task, bench.goal, built)
    return list(held_against(bench.task, bench.goal, bench.task.select, bench.reference, own))


def _graded(task: Task, goal: Goal, built: Built) -> Scores:
    return graded(task, goal, predict(built.graph, task.select.inputs), task.select)


def failed(held: Study, what: str, name: str, error: TaskError) -> Skip:
    """A trial that metric or training ended: its traceback is kept in the run's folder, and the search goes on."""
    path = held.folder / FAILURES / f"{name}.txt"
    write_atomic(path, "".join(traceback.format_exception(error)).encode())
    return Skip(what, f"{error} The traceback is in {FAILURES}/{path.name}.")


def _outcome(job: Job, bench: Bench, built: Built, free: list[Trial], candidate: Candidate) -> Outcome:
    def make() -> Outcome:
        if why := supported(candidate.runtime, candidate.precision):
            return Outcome(skipped=(Skip(candidate.name, why),))
        try:
            job.step(0, 2, f"exporting {candidate.name}")
            own = _export(job, built, candidate)
            baseline = exported(job, best_free(free, job.goal, job.target))
            job.step(1, 2, f"timing {candidate.name}")
            return Outcome(try_one(bench, baseline, own, recipe=candidate.recipe.name), _fallbacks(built, own))
        except RuntimeFailed as error:
            return Outcome(skipped=(Skip(candidate.name, _brief(error)),))
        except MetricError as error:
            return Outcome(skipped=(failed(job.held, candidate.name, _file_name(candidate), error),))

    return job.held.once(f"trials/{_file_name(candidate)}", make, Outcome)


def _fallbacks(built: Built, own: Exported) -> tuple[Skip, ...]:
    """The quantized layers that the runtime runs in floating point all the same."""
    if own.precision in FREE_PRECISIONS:
        return ()
    return fallbacks(built.graph, coverage(own.runtime, own.folder, precision=own.precision), own.precision)


def _brief(error: RuntimeFailed) -> str:
    """A reason short enough for a table: of a long traceback, what it begins and ends with."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines) if len(lines) <= 3 else f"{lines[0]} ... {lines[-1]}"


def _export(job: Job, built: Built, candidate: Candidate) -> Exported:
    """The candidate's file, checked against its graph."""
    inputs = arrays(job.task.select.batch(slice(0, 64)))

    def make(folder: Path) -> None:
        runtime = RUNTIMES[candidate.runtime]
        export_checked(built.graph, runtime, folder, precision=candidate.precision, inputs=inputs, target=job.target)

    folder = job.held.once_folder(f"files/{_file_name(candidate)}", make)
    return Exported(candidate.runtime, candidate.precision, folder)


def exported(job: Job, trial: Trial) -> Exported:
    """The file that a trial measured."""
    return Exported(trial.runtime, trial.precision, job.held.folder / "files" / trial.folder)


def _file_name(candidate: Candidate) -> str:
    return f"{key(candidate.recipe)}-{candidate.runtime}-{candidate.precision}"
