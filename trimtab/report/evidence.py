"""The evidence: everything that was decided and measured, as one plain JSON value that page and terminal show."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any

import cattrs
import numpy as np

from trimtab.core import Goal, Measurement, Metric, Ratio, Skip, Split, Target, Task, Trial, Verdict
from trimtab.measure import proportions
from trimtab.measure.machine import stamp, versions
from trimtab.measure.quality import Scores, value
from trimtab.measure.speed import Timing
from trimtab.report.shown import examples

FORMAT = 1
REFERENCE, BEST_FREE, CHOSEN = "reference", "best_free", "chosen"


@dataclass(frozen=True)
class Contender:
    """One line of the final table: the file's answers on `verify` [N, ...], their scores, and its measurements."""

    role: str
    name: str
    answers: np.ndarray
    scores: Scores
    measurements: tuple[Measurement, ...]
    timing: Timing
    gain: Ratio | None
    others_cores: float | None = None


@dataclass(frozen=True)
class Story:
    """How the run came to its choice. recipe: method and settings of each step; data: the hash of the task's data.

    seed: of what the search tried, if there was one. attribution: more parts of the evidence: `finalists`, `layers`,
    `coverage`, `sensitivity`, `staircase`, `timeline`, `profile`.
    """

    task: Task
    target: Target
    goal: Goal
    trials: tuple[Trial, ...]
    steps: tuple[Mapping[str, Any], ...]
    skipped: tuple[Skip, ...]
    command: str
    folder: str
    recipe: tuple[Mapping[str, Any], ...] = ()
    data: str = ""
    seed: int | None = None
    attribution: Mapping[str, Any] = field(default_factory=dict)


def assemble(story: Story, contenders: Sequence[Contender], verdict: Verdict, *, split: Split) -> dict[str, Any]:
    """The evidence of one run.

    Args:
        story: how it came to its choice.
        contenders: reference, best free, chosen.
        verdict: on the chosen one.
        split: the verify split; some of its samples are shown with the answers before and after.
    """
    task = story.task
    by_role = {contender.role: contender for contender in contenders}
    return {
        "format": FORMAT,
        "trimtab": version("trimtab"),
        "task": described(task) | {"data": story.data},
        "target": cattrs.unstructure(story.target),
        "goal": cattrs.unstructure(story.goal),
        "machine": stamp(),
        "versions": versions(),
        "verdict": cattrs.unstructure(verdict),
        "rows": [_row(contender, task.metric, verdict) for contender in contenders],
        "trials": cattrs.unstructure(story.trials),
        "recipe": list(story.recipe),
        "steps": list(story.steps),
        "skipped": cattrs.unstructure(story.skipped),
        "latency_samples": {contender.role: list(contender.timing.samples_ms) for contender in contenders},
        "latency_blocks": {contender.role: list(contender.timing.block_medians) for contender in contenders},
        "bounds": _bounds(story, by_role[CHOSEN].name, verdict),
        "outcomes": {contender.role: contender.scores[task.metric.name].tolist() for contender in contenders},
        "more_outcomes": {
            contender.role: {name: own.tolist() for name, own in contender.scores.items() if name != task.metric.name}
            for contender in contenders
        },
        "examples": examples(
            task,
            [by_role[role].answers for role in (REFERENCE, CHOSEN)],
            [by_role[role].scores[task.metric.name] for role in (REFERENCE, CHOSEN)],
            split,
        ),
        **story.attribution,
        "reproduce": {
            "command": story.command,
            "training_seed": task.fit.seed if task.fit else None,  # None: it came trained
            "search_seed": story.seed,
        },
        "paths": {
            "artifact": f"{story.folder}/artifact",
            "evidence": f"{story.folder}/artifact/evidence.json",
            "report": f"{story.folder}/report.html",
            "bundle": f"{story.folder}/bundle",
        },
    }


def described(task: Task) -> dict[str, Any]:
    """What a page says of a task."""
    return {
        "name": task.name,
        "metric": task.metric.name,
        "binary": task.metric.binary,
        "num_train": len(task.train),
        "num_select": len(task.select),
        "num_verify": len(task.verify),
        "num_inputs": len(task.train.inputs),
        "labels": list(task.labels),
    }


def unfinished(task: dict[str, Any], asked: Mapping[str, Any], trials: list[Any], skipped: list[Any]) -> dict[str, Any]:
    """The evidence of a run that still lasts: the parts that are known, with no verdict; for the page alone.

    Args:
        task: as `described`.
        asked: what the run was asked, as its folder keeps it.
        trials: those that ended, as plain values.
        skipped: the like.
    """
    return {
        "format": FORMAT,
        "trimtab": asked["trimtab"],
        "task": task,
        "target": asked["target"],
        "goal": asked["goal"],
        "machine": stamp(),
        "versions": versions(),
        "verdict": None,
        "rows": [],
        "trials": trials,
        "steps": [],
        "skipped": skipped,
        "latency_samples": {},
        "examples": [],
    }


def _bounds(story: Story, chosen: str, verdict: Verdict) -> list[dict[str, Any]]:
    """Each thing that had to stay true: what select told of it, what verify told, and whether it holds."""
    trial = next((trial for trial in story.trials if trial.candidate == chosen), None)
    select = {drop.what: drop for drop in (trial.select, *trial.also)} if trial else {}
    return [
        {
            "what": held.drop.what,
            "percent": held.drop.method == proportions.METHOD,
            "select": cattrs.unstructure(select[held.drop.what]) if held.drop.what in select else None,
            "verify": cattrs.unstructure(held.drop),
            "word": held.word,
            "more_samples": held.more_samples,
        }
        for held in verdict.bounds
    ]


def in_turn(
    trials: Sequence[Trial],
    contenders: Sequence[Contender],
    verdicts: Sequence[Verdict],
    *,
    shipped: int,
    num_tested: int,
) -> list[dict[str, Any]]:
    """The finalists in the order in which they were tested; of those that were, what their verdicts follow from."""
    rows = []
    for place, (trial, contender, verdict) in enumerate(zip(trials, contenders, verdicts, strict=True)):
        row: dict[str, Any] = {"id": trial.id, "candidate": trial.candidate, "shipped": place == shipped}
        row |= {"select": cattrs.unstructure(trial.select), "gain_on_select": cattrs.unstructure(trial.gain)}
        row["verdict"] = cattrs.unstructure(verdict) if place < num_tested else None
        if row["verdict"]:
            row["outcomes"] = {name: scores.tolist() for name, scores in contender.scores.items()}
            row["latency_blocks"] = list(contender.timing.block_medians)
        rows.append(row)
    return rows


def _row(contender: Contender, metric: Metric, verdict: Verdict) -> dict[str, Any]:
    chosen = contender.role == CHOSEN
    named = {m.quantity: cattrs.unstructure(m) for m in contender.measurements}
    return {
        "role": contender.role,
        "name": contender.name,
        "metric": value(metric, contender.scores[metric.name]),
        "metric_low": verdict.drop.low if chosen else None,
        "metric_high": verdict.drop.high if chosen else None,
        "latency": named["latency_ms"],
        "size": named["size_bytes"],
        "memory": named["memory_bytes"],
        "gain": cattrs.unstructure(contender.gain) if contender.gain else None,
        "word": verdict.word if chosen else None,
        "disturbed": contender.timing.disturbed,
        "jumps": contender.timing.jumps,
        "leaps": contender.timing.leaps,
        "others_cores": contender.others_cores,
        "more": {name: m for name, m in named.items() if name not in ("latency_ms", "size_bytes", "memory_bytes")},
    }


def steps(
    names: Sequence[str],
    metrics: Mapping[str, float],
    seconds: Mapping[str, float],
    trials: Sequence[Trial],
    *,
    runtime: str,
    baseline_ms: float | None = None,
) -> tuple[dict[str, Any], ...]:
    """What each step of the chosen recipe cost and gained; `names` are the recipes up to each step, in order.

    Latency and size are of the step's own file in the chosen runtime, where one was measured. Each was measured in a
    race of its own; given the latency of the baseline that all raced against, theirs are that over their gain, so that
    a machine that was busier in one race does not show as a step's fault. `alone` is the same for a later step by
    itself on the original, where a recipe of that one step was tried: gains alone and together do not multiply.
    """

    def measured(name: str) -> dict[str, Any]:
        own = [trial for trial in trials if trial.recipe == name and trial.runtime == runtime]
        named = {m.quantity: m.value for m in own[0].measurements} if own else {}
        if own and own[0].gain and baseline_ms is not None:
            named["latency_ms"] = baseline_ms / own[0].gain.value
        return {"metric": metrics.get(name)} | {key: named.get(key) for key in ("latency_ms", "size_bytes")}

    rows: list[dict[str, Any]] = []
    for place, name in enumerate(names):
        step = name.rpartition(" + ")[2]
        alone = measured(step) if place > 1 and metrics.get(step) is not None else None
        rows.append({"step": step, **measured(name), "seconds": seconds.get(name, 0.0), "alone": alone})
    return tuple(rows)
