"""Train a task's model until the epochs end, a metric is reached or the time is spent; kept as `tt.save` does."""

from __future__ import annotations

import ast
import copy
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, get_args, get_type_hints

from torch import nn
from torch.fx import GraphModule

from trimtab.artifact import load, save
from trimtab.core import Fit, Task
from trimtab.errors import RunError, TaskError
from trimtab.files import older
from trimtab.graph.capture import capture
from trimtab.measure.quality import value
from trimtab.report import words
from trimtab.report.terminal import Progress
from trimtab.tasks.check import check, check_model
from trimtab.train.keep import Keep
from trimtab.train.loop import Step, score, training

TRAIN_PHASES = {"training": 60.0}
TOLD_EVERY_SECONDS, LOGGED_EVERY_SECONDS = 0.1, 1.0
Log = Callable[[int, Mapping[str, float]], None]
KINDS = (bool, int, float, str, type(None))
SECONDS = {"s": 1, "m": 60, "h": 3600}


@dataclass(frozen=True)
class Trained:
    """A model that was trained, as a graph, and the folder that keeps it.

    metric: on the select split. steps: how many it took, in all. why: what ended the training.
    """

    graph: GraphModule
    folder: Path
    metric: float
    steps: int
    why: str


def train(
    model: nn.Module,
    task: Task,
    *,
    settings: Fit | None = None,
    until: tuple[str, float] | None = None,
    budget: float | None = None,
    output: str | Path | None = None,
    quiet: bool = False,
    log: Log | None = None,
) -> Trained:
    """Train a copy of `model` on `task.train`, and write it to a folder that `tt.load` opens.

    Killed, it goes on from the last epoch when it is called again; SIGTERM loses no step.

    Args:
        model: left as it was.
        task: data, loss, metric.
        settings: default: the task's `fit`.
        until: (the metric's name, a value): stop after the epoch that reaches it on the select split.
        budget: stop when this many seconds are spent, of this call.
        output: the folder to write (default `runs/<task name>-trained`); it must not exist. Until it does, the
            checkpoints are beside it, in `<name>.checkpoint`.
        quiet: show no progress.
        log: (steps, figures), about once a second and after each epoch; `track.tracked_training` makes one.

    Raises:
        TaskError: data, model, settings or `until` cannot be used, or the loss became NaN.
        RunError: the folder exists, or the checkpoint is of another run.
    """
    settings = settings or task.fit or Fit()
    folder = Path(output or f"runs/{task.name}-trained")
    _refuse(task, until, budget, folder)
    check(task)
    check_model(model, task)
    inputs = task.select.batch(slice(0, 2)).inputs
    capture(model, inputs)  # what cannot become a graph is refused before it is trained
    ready, state = copy.deepcopy(model), folder.with_name(f"{folder.name}.checkpoint")
    with Progress(quiet=quiet, phases=TRAIN_PHASES) as show:
        show.phase("training")
        with training(ready, task, settings, checkpoint=Keep(state)) as steps:
            taken, why = _watched(steps, ready, task, settings, show, _Ends(until, budget, log))
        ready.zero_grad()
        graph = capture(ready.eval(), inputs)
        reached = _on_select(graph, task)
    save(graph, folder)
    for age in range(Keep(state).versions):
        older(state, age).unlink(missing_ok=True)
    return Trained(graph, folder, reached, taken, why)


def trained_by(folder: Path, task: Task) -> tuple[GraphModule, Task]:
    """The saved model in `folder`, and `task` for a model that is trained: what `optimize` goes on from.

    Raises:
        ArtifactError: the folder is damaged, or holds no model.
    """
    return load(folder).graph, replace(task, fit=None)


def parse_until(text: str | None) -> tuple[str, float] | None:
    """`accuracy=0.9` as (name, value).

    >>> parse_until("accuracy=0.9")
    ('accuracy', 0.9)

    Raises:
        TaskError: it is no such pair.
    """
    if text is None:
        return None
    name, _, value = text.partition("=")
    try:
        return name.strip(), float(value)
    except ValueError as error:
        raise TaskError(f"Cannot read --until {text}: give METRIC=VALUE, e.g. accuracy=0.9.") from error


def kinds_of_settings() -> dict[str, tuple[type, ...]]:
    """What each setting of `Fit` may be, from its annotation and its default; where a float may be, so may an integer.

    >>> kinds_of_settings()["epochs"], kinds_of_settings()["recompute"], kinds_of_settings()["nan"]
    ((<class 'int'>,), (<class 'bool'>, <class 'int'>, <class 'float'>), (<class 'str'>,))
    """
    found = {}
    hints = get_type_hints(Fit)
    for field in fields(Fit):
        hint = hints[field.name]
        told = {one if isinstance(one, type) else type(one) for one in (field.default, *(get_args(hint) or (hint,)))}
        told |= {int} if float in told else set()
        found[field.name] = tuple(kind for kind in KINDS if kind in told)
    return found


def parse_settings(texts: Sequence[str]) -> dict[str, Any]:
    """Settings of `Fit` by name.

    >>> parse_settings(["recompute=0.5", "nan=skip", "accumulate=4"])
    {'recompute': 0.5, 'nan': 'skip', 'accumulate': 4}

    Raises:
        TaskError: one is no such pair, or `Fit` has no such setting.
    """
    kinds = kinds_of_settings()
    found = {}
    for text in texts:
        name, equals, value = (part.strip() for part in text.partition("="))
        if name not in kinds or not equals or not value:
            raise TaskError(
                f"Cannot read --set {text}: give NAME=VALUE, e.g. recompute=0.5; the names are {', '.join(kinds)}."
            )
        try:
            found[name] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            found[name] = value  # a word
        if type(found[name]) not in kinds[name]:
            told = " or ".join("None" if kind is type(None) else kind.__name__ for kind in kinds[name])
            raise TaskError(f"Cannot read --set {text}: {name} takes {told}.")
    return found


def seconds_of(text: str | None) -> float | None:
    """A length of time, in seconds.

    >>> seconds_of("90s"), seconds_of("10m"), seconds_of("1.5h")
    (90.0, 600.0, 5400.0)

    Raises:
        TaskError: it is no number with a unit.
    """
    if text is None:
        return None
    try:
        return float(text[:-1]) * SECONDS[text[-1:]]
    except (ValueError, KeyError) as error:
        raise TaskError(f"Cannot read --budget {text}: give a number and s, m or h, e.g. 90s, 10m or 2h.") from error


@dataclass(frozen=True)
class _Ends:
    until: tuple[str, float] | None
    budget: float | None
    log: Log | None


def _watched(
    steps: Iterator[Step], model: nn.Module, task: Task, settings: Fit, show: Progress, ends: _Ends
) -> tuple[int, str]:
    """Take the steps, telling how it goes, until something ends them; returns how many there were, and why."""
    began = told = logged = time.monotonic()
    reached, taken = "", 0
    best: float | None = None
    for step in steps:
        taken, now = step.index + 1, time.monotonic()
        if step.index + 1 == step.total or now - told >= TOLD_EVERY_SECONDS:
            show.step(taken, step.total, _text(step, settings, reached))
            told = now
        figures: dict[str, Any] = {"loss": step.loss, "lr": step.lr, "samples_per_second": step.samples_per_second}
        if step.ends_epoch:
            quality = _on_select(model, task)
            reached = f", {task.metric.name} {quality:.4g}"
            figures[task.metric.name] = quality
        if ends.log and (step.ends_epoch or now - logged >= LOGGED_EVERY_SECONDS):
            ends.log(taken, {name: float(value) for name, value in figures.items()})
            logged = now
        if step.ends_epoch:
            if best is None or quality > best:
                best = quality
                show.best(f"epoch {step.epoch + 1}/{settings.epochs}{reached}")
            if ends.until and quality >= ends.until[1]:
                return taken, f"{task.metric.name} {ends.until[1]:g} was reached"
        if ends.budget is not None and now - began >= ends.budget:
            return taken, f"the budget of {words.duration(ends.budget)} was spent"
    return taken, f"the {settings.epochs} epochs ended"


def _text(step: Step, settings: Fit, reached: str) -> str:
    left = words.clock(step.seconds_left)
    skipped = f", {step.skipped} batches left out" if step.skipped else ""
    return (
        f"epoch {step.epoch + 1}/{settings.epochs}, loss {float(step.loss):.3f}{reached}, "
        f"{step.samples_per_second:,.0f} samples/s, {left} left{skipped}"
    )


def _on_select(model: nn.Module, task: Task) -> float:
    return value(task.metric, score(model, task.select, task.metric))


def _refuse(task: Task, until: tuple[str, float] | None, budget: float | None, folder: Path) -> None:
    """Refuse what cannot be done, before any work."""
    if folder.exists():
        raise RunError(f"{folder} exists already, and nothing is overwritten. Remove it, or choose another folder.")
    if budget is not None and budget <= 0:
        raise TaskError(f"A budget of {budget:g} seconds leaves no time to train: give more than 0.")
    if until and until[0] != task.metric.name:
        raise TaskError(
            f"Training until {until[0]}={until[1]:g} needs a metric of that name; the task {task.name} judges by "
            f"{task.metric.name}: give {task.metric.name}=VALUE."
        )
