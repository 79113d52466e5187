"""A task and its model before anything is spent on them: data, export, where the time is, what could be done, the cost.

What one look can tell in about a minute. Nothing is trained, nothing is written, and the verify split stays sealed.
"""

from __future__ import annotations

import copy
import math
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.fx import GraphModule

from trimtab.compress.recipes import recipes_to_try
from trimtab.core import Fit, Goal, Split, Target, Task
from trimtab.diagnose.families import BY_HAND, Family, families
from trimtab.diagnose.roofline import Peaks, Place, peaks, roofline
from trimtab.errors import CaptureError, RuntimeFailed, TaskError
from trimtab.graph.capture import capture
from trimtab.graph.cost import for_one_sample, macs, num_parameters
from trimtab.measure.machine import stamp
from trimtab.measure.provable import unprovable
from trimtab.measure.quality import graded
from trimtab.runtimes import RUNTIMES
from trimtab.runtimes.base import Runtime
from trimtab.runtimes.evaluate import usable
from trimtab.tasks.bounds import check_bounds
from trimtab.tasks.check import check, check_model
from trimtab.train.further import further, samples_tried
from trimtab.train.loop import predict

# After so long no further runtime is tried, so that the whole stays under a minute.
EXPORTS_UNTIL_S, LEAST_EXPORTS = 30.0, 2
SLOW_TO_EXPORT = ("inductor",)
ANSWER_S, CHUNK = 6.0, 16
STEPS_S = 3.0
STEPS, STEP_SAMPLES, RACE_S, BIG_IMBALANCE, LARGE_VALUE = 4, 8, 10.0, 10, 30.0
PREDICTED, LEAST_GAIN = ("latency_ms", "size_bytes"), 1.05
ADAM_COPIES = 4  # weights, gradients and two moments


@dataclass(frozen=True)
class Intake:
    """Whether a runtime takes the model as it is, in fp32; None if it was not tried. seconds: of the export."""

    runtime: str
    takes: bool | None
    seconds: float
    why: str = ""


@dataclass(frozen=True)
class Needs:
    """What trying all default recipes would take: seconds in all, of which training; and memory while training."""

    seconds: float
    training_s: float
    memory_bytes: int


@dataclass(frozen=True)
class Examination:
    """What one look at a task tells. problems: what stops it; warnings: what is worth knowing before it starts.

    operations: how often the graph has each.
    """

    task: str
    machine: dict[str, Any]
    data: dict[str, Any]
    problems: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    params: int = 0
    macs: int = 0
    operations: tuple[tuple[str, int], ...] = ()
    peaks: Peaks | None = None
    places: tuple[Place, ...] = ()
    runtimes: tuple[Intake, ...] = ()
    families: tuple[Family, ...] = ()
    needs: Needs | None = None
    seconds: float = 0.0


def examine(
    model: nn.Module,
    task: Task,
    *,
    target: Target = Target(),  # noqa: B008 - frozen
    goal: Goal = Goal(),  # noqa: B008 - frozen
    report: Callable[[str], None] = lambda _: None,
) -> Examination:
    """Look at a model and its task.

    Args:
        model: as `optimize` takes it; it is not trained here, so that quality is judged only if it comes trained.
        task: data, loss, metric.
        target: where it will run.
        goal: what must stay true.
        report: is told what is looked at.

    Raises:
        RuntimeMissing: the target names a runtime that is not installed.
        GoalError: the target or the goal names what does not exist.
    """
    began, machine = time.perf_counter(), stamp()
    allowed = usable(target)
    check_bounds(task, goal)
    report("data")
    data, warnings = _data(task)
    graph, problems = _captured(model, task)
    if graph is None:
        return Examination(task.name, machine, data, problems, warnings, seconds=time.perf_counter() - began)
    report("time and bytes")
    batch = task.select.batch(torch.arange(target.batch_size) % len(task.select)).inputs
    best = peaks(threads=target.threads)
    places = roofline(graph, batch, best, threads=target.threads)
    report("methods")
    could = families(graph, places, target, machine["features"], minimise=goal.minimise)
    report("runtimes")
    intakes = _intakes(graph, allowed, target, until=began + EXPORTS_UNTIL_S)
    if intakes and not any(one.takes is not False for one in intakes):
        problems += ("none of the allowed runtimes takes the model",)
    if task.fit is None:  # else it comes untrained, and its answers tell nothing
        report("what can be proven")
        few, answers = _answers(graph, task)
        warnings += unprovable(task, goal, graded(task, goal, answers, few), few)
    warnings += _unmet(could, goal)
    report("cost of a search")
    return Examination(
        task.name, machine, data, problems, warnings, num_parameters(graph), macs(graph), _operations(graph), best,
        places, intakes, could, _needs(graph, task, intakes, goal.minimise), time.perf_counter() - began,
    )  # fmt: skip


def _answers(graph: GraphModule, task: Task) -> tuple[Split, torch.Tensor]:
    """As many of the first select samples as there is time for, and the graph's answers to them."""
    began, answers, num = time.perf_counter(), [], 0
    while num < len(task.select) and (num < CHUNK or time.perf_counter() - began < ANSWER_S):
        answers.append(predict(graph, tuple(x[num : num + CHUNK] for x in task.select.inputs)))
        num += CHUNK
    return task.select.batch(slice(0, num)), torch.cat(answers)


def _captured(model: nn.Module, task: Task) -> tuple[GraphModule | None, tuple[str, ...]]:
    """The graph, or why there is none; and what is wrong with data or model."""
    problems: list[str] = []
    for refuse in (lambda: check(task), lambda: check_model(model, task)):
        try:
            refuse()
        except TaskError as error:
            problems.append(str(error))
    try:
        return capture(model, task.select.batch(slice(0, 2)).inputs), tuple(problems)
    except CaptureError as error:
        return None, (*problems, str(error))


def _data(task: Task) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Counts and ranges, and what looks odd in train."""
    found: dict[str, Any] = {"train": len(task.train), "select": len(task.select), "verify": len(task.verify)}
    odd = []
    for place, x in enumerate(task.train.inputs):
        values = x[:1024].double() if x.is_floating_point() else None
        if values is None or not values.numel():
            continue
        mean, std = float(values.mean()), float(values.std())
        found[f"input {place}"] = f"mean {mean:.3g}, deviation {std:.3g}"
        if std > LARGE_VALUE or abs(mean) > LARGE_VALUE:
            odd.append(f"input {place} has values as large as {float(values.abs().max()):.3g}: scale them to about 1")
        if std == 0:
            odd.append(f"input {place} is {mean:g} everywhere in the first {len(values)} training samples")
    targets = task.train.targets
    if targets.ndim == 1 and not targets.is_floating_point() and len(targets):
        counts = torch.bincount(targets.clamp(min=0))
        rarest, most = int(counts.min()), int(counts.max())
        found["classes"] = f"{len(counts)}, of {rarest:,} to {most:,} training samples"
        if most > BIG_IMBALANCE * max(rarest, 1):
            share = most / len(targets)
            odd.append(
                f"classes have {rarest:,} to {most:,} training samples: always answering the most common is right on "
                f"{share:.0%}; bound the rare ones with Bound(per_class=True)"
            )
    return found, tuple(odd)


def hopeless(graph: GraphModule, batch: tuple[torch.Tensor, ...], target: Target, goal: Goal) -> tuple[str, ...]:
    """The warning that nothing is predicted to reach the goal, or none; some seconds.

    Args:
        graph: captured, with weights of 32 bits.
        batch: of as many samples as the target takes at once, [B, ...] each.
        target: where it will run.
        goal: what is minimised.
    """
    if goal.minimise not in PREDICTED:
        return ()
    places = roofline(graph, batch, peaks(threads=target.threads), threads=target.threads)
    return _unmet(families(graph, places, target, stamp()["features"], minimise=goal.minimise), goal)


def _unmet(could: tuple[Family, ...], goal: Goal) -> tuple[str, ...]:
    """Whether nothing that the search tries reaches what is minimised, and what that has to be asked for would."""
    if goal.minimise not in PREDICTED:
        return ()
    gains = [(family.latency if goal.minimise == "latency_ms" else family.size) or (1.0, 1.0) for family in could]
    most = max((gain[1] for family, gain in zip(could, gains, strict=True) if not family.unsearched), default=1.0)
    if most >= LEAST_GAIN:
        return ()
    by_hand = "".join(
        f"; {family.name} might, up to {gain[1]:.2f}x: {family.unsearched}"
        for family, gain in zip(could, gains, strict=True)
        if family.name in BY_HAND and gain[1] >= LEAST_GAIN
    )
    return (
        f"no family of methods that the search tries is predicted to gain more than {most:.2f}x in {goal.minimise}: "
        f"trimtab doctor tells why; allow more runtimes, or minimise something else{by_hand}",
    )


def _intakes(graph: GraphModule, allowed: dict[str, Runtime], target: Target, *, until: float) -> tuple[Intake, ...]:
    """Export to each runtime, the quick ones first, while there is time."""
    named = target.runtimes or ()
    found: list[Intake] = []
    for name in sorted(allowed, key=lambda name: (name in SLOW_TO_EXPORT, list(RUNTIMES).index(name))):
        late = time.perf_counter() > until and len(found) >= LEAST_EXPORTS
        if late or (name in SLOW_TO_EXPORT and name not in named):
            found.append(Intake(name, None, 0.0, f"not tried, to stay quick: ask for it alone, --runtimes {name}"))
            continue
        began = time.perf_counter()
        with tempfile.TemporaryDirectory(prefix="doctor-") as folder:
            try:
                allowed[name].export(
                    graph, Path(folder), precision="fp32", batch_size=target.batch_size, threads=target.threads
                )
                found.append(Intake(name, takes=True, seconds=time.perf_counter() - began))
            except RuntimeFailed as error:
                found.append(
                    Intake(name, takes=False, seconds=time.perf_counter() - began, why=str(error).splitlines()[0])
                )
    return tuple(found)


def _operations(graph: GraphModule) -> tuple[tuple[str, int], ...]:
    counts = Counter(
        str(node.target).removeprefix("aten.").split(".")[0] for node in graph.graph.nodes if node.op == "call_function"
    )
    return tuple(counts.most_common())


def _needs(graph: GraphModule, task: Task, intakes: tuple[Intake, ...], minimise: str) -> Needs | None:
    """Reckoned from one training step and the exports; None if the loss cannot be computed."""
    fit = task.fit or Fit()
    few = task.train.batch(slice(0, min(STEP_SAMPLES, len(task.train))))
    try:
        per_sample = _step_seconds(copy.deepcopy(graph), task, few) / len(few)
    except Exception:  # noqa: BLE001 - the user's loss may raise anything, and the search will tell of it
        return None
    recipes = recipes_to_try(None, graph, minimise)
    samples = sum(_samples(method, task) for recipe in recipes for method in recipe.methods)
    samples += task.fit.epochs * len(task.train) if task.fit else 0
    training = samples * per_sample * 4 / 3  # a teacher answers too: one forward pass beside three
    exports = [one.seconds for one in intakes if one.takes]
    num = 2 + len(recipes)
    seconds = training + num * sum(exports) + num * max(1, len(exports)) * RACE_S
    weights = sum(p.numel() * p.element_size() for p in graph.parameters())
    values = sum(
        value.element_size() * _per_sample(value)
        for node in graph.graph.nodes
        if node.op == "call_function" and isinstance(value := node.meta.get("val"), torch.Tensor)
    )
    return Needs(seconds, training, (ADAM_COPIES + 1) * weights + fit.batch_size * values)


def _step_seconds(student: GraphModule, task: Task, few: Split) -> float:
    """Of one forward and backward pass: the least of a few, as what disturbs only adds."""
    times: list[float] = []
    while len(times) < STEPS and sum(times) < STEPS_S:
        began = time.perf_counter()
        task.loss(student(*few.inputs), few.targets).backward()
        times.append(time.perf_counter() - began)
    return min(times)


def _per_sample(value: torch.Tensor) -> int:
    return math.prod(map(for_one_sample, value.shape))


def _samples(method: Any, task: Task) -> int:
    """How many samples a method learns from, those of finding its rate with them."""
    if not (epochs := getattr(method, "epochs", 0)):
        return 0
    return epochs * len(task.train) + samples_tried(task, further(task, epochs=epochs, lr=method.lr))
