"""The proof: the verify split is opened, once, for the finalists that were named; the best that passes is shipped."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import cattrs
from torch.fx import GraphModule

from trimtab.artifact import BUNDLE, Parts, save_artifact, save_bundle
from trimtab.attempt import Job, Tried, attempt, exported, failed
from trimtab.attribute import attribution, timeline
from trimtab.compress.build import Built, key
from trimtab.core import Recipe, Skip, Split, Trial
from trimtab.errors import MetricError, RuntimeFailed
from trimtab.files import read_json, write_atomic
from trimtab.forecast import Forecast, served_in_floats, staircase_file
from trimtab.graph.save import load_graph
from trimtab.measure.quality import Scores, graded, held_against
from trimtab.measure.verdict import in_order, judge
from trimtab.report.evidence import BEST_FREE, CHOSEN, REFERENCE, Contender, Story, assemble, in_turn, steps
from trimtab.report.html import page
from trimtab.runtimes.evaluate import Exported, Raced, gain_over, measurements, race
from trimtab.runtimes.profile import profile
from trimtab.runtimes.trial import FREE, Bench, arrays
from trimtab.search.ending import ending
from trimtab.search.space import best_free, cost, finalists
from trimtab.search.study import IDENTITY_FILE, LOG_FILE

FINAL_ROUNDS = 24
FINALIST = "finalist"  # the role of each until it is decided, with its place
REPORT_FILE = "report.html"
NUM_SAMPLE = 5
REFERENCE_IN = ("eager", "fp32")


def name_finalists(job: Job, free: list[Trial], ended: list[Tried]) -> list[Trial]:
    """What is put before the verdict, in that order; the best free baseline if nothing was made."""
    trials = [trial for tried in ended for trial in tried.trials]
    return finalists(trials, job.chance) if trials else [best_free(free, job.goal, job.target)]


def stepwise(
    job: Job, bench: Bench, original: Built, free: list[Trial], ended: list[Tried], choice: Trial
) -> list[Tried]:
    """What the chosen recipe gives after each of its steps, where that was not tried: nothing is chosen by it."""
    tried, at = _of(ended, choice), served_in_floats(choice.runtime, choice.precision)
    methods = tried.recipe.methods if tried else ()
    measured = [*free, *(trial for one in ended for trial in one.trials)]
    known = {one.recipe.name for one in ended if one.trials}
    between = (Recipe(methods[:end]) for end in range(1, len(methods)))
    return [
        attempt(job, bench, original, measured, recipe, only=at, hopeless=0.0)
        for recipe in between
        if recipe.name not in known
    ]


def prove(
    job: Job, free: list[Trial], ended: list[Tried], named: list[Trial], by_step: Callable[[Trial], Sequence[Tried]]
) -> dict[str, Any]:
    """Judge the finalists on `verify` against the original in eager fp32 and the best free baseline: the evidence.

    They and their order were committed before the seal is broken, so nothing seen here can change them. by_step: what
    the steps of the one that is shipped gave, for the account of each.
    """
    job.show.phase("verdict")
    task, target, goal = job.task, job.target, job.goal
    roles = [f"{FINALIST} {place + 1}" for place in range(len(named))]
    picked = _beside(job, free) | dict(zip(roles, named, strict=True))
    files = {role: exported(job, trial) for role, trial in picked.items()}
    split = task.verify.open(f"the verdict on {', then '.join(trial.candidate for trial in named)}")
    raced = race(files, arrays(split), target=target, rounds=FINAL_ROUNDS, minimise=goal.minimise, report=job.show.step)
    scored, raised = _scored(job, picked, raced, split)
    gains = {
        role: gain_over(raced[BEST_FREE], raced[role], files=(files[BEST_FREE], files[role]), minimise=goal.minimise)
        for role in scored
    }
    contenders = {
        role: Contender(
            role,
            picked[role].candidate,
            raced[role].answers,
            scores,
            measurements(raced[role], files[role], target),
            raced[role].timing,
            gains[role],
            raced[role].others_cores,
        )
        for role, scores in scored.items()
    }
    last = [contenders.pop(role) for role in roles if role in scored]
    against = contenders[REFERENCE].scores
    drops = [held_against(task, goal, split, against, one.scores) for one in last]
    verdicts = [judge(own, gains[one.role], minimise=goal.minimise) for own, one in zip(drops, last, strict=True)]
    shipped, num_tested = in_order(verdicts)
    choice, verdict = named[shipped], verdicts[shipped]
    two = {BEST_FREE: files[BEST_FREE], CHOSEN: files[roles[shipped]]}
    more = {
        **_profiled(job, two, split),
        "finalists": in_turn(named[: len(last)], last, verdicts, shipped=shipped, num_tested=num_tested),
    }
    story = _story(job, free, ended, choice, more, by_step(choice))
    end = ending(choice, story.trials, story.steps, verdict, minimise=goal.minimise)
    story = replace(story, attribution={**story.attribution, "search": end}, skipped=(*story.skipped, *raised))
    return assemble(story, [*contenders.values(), replace(last[shipped], role=CHOSEN)], verdict, split=split)


def _scored(
    job: Job, picked: Mapping[str, Trial], raced: Mapping[str, Raced], split: Split
) -> tuple[dict[str, Scores], list[Skip]]:
    """Every contender's scores, up to the first of the further finalists whose answers the user's metric raises at.

    Raises:
        MetricError: it raises at those of the first finalist, or of what that is held against.
    """
    scored: dict[str, Scores] = {}
    for role, trial in picked.items():
        try:
            scored[role] = graded(job.task, job.goal, raced[role].answers, split)
        except MetricError as error:
            if f"{FINALIST} 1" not in scored:
                raise
            return scored, [failed(job.held, f"finalist {trial.candidate}", trial.id, error)]
    return scored, []


def _profiled(job: Job, files: Mapping[str, Exported], split: Split) -> dict[str, Any]:
    """What the files cost in other cases, for the page; nothing if one cannot be served so: it decides nothing."""
    try:
        found = profile(files, arrays(split), target=job.target, report=job.show.step)
    except RuntimeFailed as error:
        job.show.warn(f"other batch sizes and threads were not measured: {error}")
        job.held.log(f"warning: not profiled: {error}")
        return {}
    return {"profile": cattrs.unstructure(found)}


def _beside(job: Job, free: list[Trial]) -> dict[str, Trial]:
    """What the finalists are held against: the reference for quality, the best free baseline for the gain."""
    return {
        REFERENCE: next(trial for trial in free if (trial.runtime, trial.precision) == REFERENCE_IN),
        BEST_FREE: best_free(free, job.goal, job.target),
    }


def _story(
    job: Job, free: list[Trial], ended: list[Tried], choice: Trial, more: dict[str, Any], between: Sequence[Tried]
) -> Story:
    tried, identity = _of(ended, choice), read_json(job.held.folder / IDENTITY_FILE)
    recipe = tried.recipe if tried else Recipe()
    names = [FREE, *(Recipe(recipe.methods[: end + 1]).name for end in range(len(recipe.methods)))]
    trials = (*free, *(trial for tried in ended for trial in tried.trials))
    known = [*ended, *between]
    of_steps = (*free, *(trial for one in known for trial in one.trials))
    metrics = {FREE: free[0].select.baseline}
    metrics |= {one.recipe.name: one.screen[0].candidate for one in known if one.screen}
    seconds = {one.recipe.name: one.stages[-1].seconds for one in known if one.stages}
    by_latency = job.goal.minimise == "latency_ms"
    raced_against = cost(best_free(free, job.goal, job.target), "latency_ms") if by_latency else None
    return Story(
        task=job.task,
        target=job.target,
        goal=job.goal,
        trials=trials,
        steps=steps(names, metrics, seconds, of_steps, runtime=choice.runtime, baseline_ms=raced_against),
        skipped=tuple(dict.fromkeys(skip for tried in ended for skip in tried.skipped)),
        command=job.command,
        folder=str(job.held.folder),
        recipe=tuple({"method": s.method, "settings": s.settings} for s in (tried.stages if tried else ())),
        data=identity["data"],
        seed=identity.get("seed"),
        attribution={
            **more,
            **_attribution(job, tried, choice),
            "staircase": _stairs(job, tried, choice),
            "timeline": timeline(job.held.folder / LOG_FILE),
        },
    )


def _attribution(job: Job, tried: Tried | None, choice: Trial) -> dict[str, Any]:
    """What each step did to each layer; empty if the choice is the original."""
    if tried is None or not tried.stages:
        return {}
    methods = tried.recipe.methods

    def before(place: int) -> GraphModule:
        folder = f"built/{key(Recipe(methods[:place]))}" if place else "original"
        return load_graph(job.held.folder / folder)

    return attribution(tried.recipe, tried.stages, exported(job, choice), job.task, before)


def _stairs(job: Job, tried: Tried | None, choice: Trial) -> list[dict[str, Any]]:
    """The layers' times at the widths that a search has timed in the chosen runtime; empty if none has."""
    file = staircase_file(job.held.folder)
    if tried is None or tried.folder is None or not file.exists():
        return []
    original = load_graph(job.held.folder / "original")
    known = Forecast(original, minimise=job.goal.minimise, target=job.target, file=file, seconds=lambda: 0.0)
    return known.stairs(load_graph(tried.folder), served_in_floats(choice.runtime, choice.precision))


def _of(ended: list[Tried], choice: Trial) -> Tried | None:
    return next((tried for tried in ended if choice.id in {trial.id for trial in tried.trials}), None)


def ship(
    job: Job, original: Built, free: list[Trial], ended: list[Tried], named: list[Trial], proof: dict[str, Any]
) -> None:
    """Write report, evidence bundle and, last, the artifact."""
    shipped = next(row["id"] for row in proof["finalists"] if row["shipped"])
    choice = next(trial for trial in named if trial.id == shipped)
    tried = _of(ended, choice)
    plans = cattrs.unstructure(tried.stages if tried else ())
    files = {role: exported(job, trial) for role, trial in (_beside(job, free) | {CHOSEN: choice}).items()}
    papers = [job.held.folder / name for name in (IDENTITY_FILE, LOG_FILE)]
    write_atomic(job.held.folder / REPORT_FILE, page(proof).encode())
    parts = Parts(
        name=choice.candidate,
        runtime=choice.runtime,
        precision=choice.precision,
        target=job.target,
        runtime_folder=exported(job, choice).folder,
        graph_folder=tried.folder if tried and tried.folder else original.folder,
        plans=plans,
        samples=arrays(job.task.select.batch(slice(0, NUM_SAMPLE))),
        evidence=proof,
    )
    job.held.once_folder(
        BUNDLE, lambda folder: save_bundle(folder, evidence=proof, plans=plans, contenders=files, papers=papers)
    )
    job.held.once_folder("artifact", lambda folder: save_artifact(folder, parts))
