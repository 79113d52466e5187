"""Training that goes on with a model that has learned already: at a rate found for it, and never to its harm.

The right rate of AdamW differs a hundredfold from model to model: of MiniLM with a quarter of its channels cut, two
steps at 1e-3 leave a cosine of 0.58 to the original where 0.95 was before them; a small CNN that lost three quarters of
its channels wants 3e-3 or more (`scripts/bench recovery_rate`). Which it is, no number of the model tells, but a few
steps do: a range test (Smith, "Cyclical Learning Rates for Training Neural Networks", 2017). What differs: each rate
begins anew, and is judged on `select`. The largest that about keeps the loss is taken, and not the one whose loss is
least: after few steps that is too small a rate (Wu et al., "Understanding Short-Horizon Bias in Stochastic
Meta-Optimization", 2018).
"""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any, Literal, TypeVar

import cattrs
import torch
from torch import nn

from trimtab.core import Fit, Split, Task
from trimtab.errors import TaskError
from trimtab.files import read_json, write_json
from trimtab.graph.fisher import kept_with
from trimtab.tasks.check import evaluating
from trimtab.train.gradient import Objective
from trimtab.train.loop import Report, fit, num_steps, task_loss_of
from trimtab.train.precision import autocast, pick_precision

Precision = Literal["auto", "fp32", "bf16", "fp16", "fp8"]  # of `Fit`
M = TypeVar("M", bound=nn.Module)
# Those that are tried: down from the first until one is harmless, or up from it as long as they are.
RATES, HIGHER = (1e-3, 3e-4, 1e-4, 3e-5, 1e-5), (3e-3, 1e-2)
FEWEST_STEPS, MOST_STEPS, PART = 4, 64, 8  # of a trial: an eighth of all, within these
MOST_JUDGED = 256  # samples of `select` that a trial is judged by
EPOCH_STEPS, LEAST_BATCH = 16, 16
USUAL_TRIALS = 3  # until the rate is found
_KEY = "trimtab.learned"


@dataclass(frozen=True)
class Learned:
    """How a model went on learning.

    lr: the rate that was chosen. tried: (rate, loss after a few steps) of each trial. before, after: the loss without
    training, and at its end. Losses are of samples of `select`; None is no number. kept: False if what was learned was
    thrown away.
    """

    lr: float
    precision: Precision
    tried: tuple[tuple[float, float | None], ...]
    before: float
    after: float | None = None
    kept: bool = True

    def why_undone(self) -> str:
        """For people, where nothing of it was kept."""
        end = "to no number" if self.after is None else f"from {self.before:.3g} to {self.after:.3g}"
        return f"learning at {self.lr:g}, the rate that was found, raised the loss on select {end}: it was undone"


def further(task: Task, *, epochs: int, lr: float | None) -> Fit:
    """The task's settings for a training that goes on: AdamW, whatever the model was trained with.

    Where the task has none, batches are so small that an epoch has 16 steps: little data is to be a few steps, too.
    """
    size = min(Fit.batch_size, max(LEAST_BATCH, len(task.train) // EPOCH_STEPS))
    given = task.fit or Fit(batch_size=size)
    return dataclasses.replace(given, epochs=epochs, lr=lr, optimizer="adamw", schedule=None)


def shown_settings(settings: Fit) -> dict[str, Any]:
    """The settings for people: a rate that is left open says so."""
    rate = "found by short trials" if settings.lr is None else settings.lr
    return {**dataclasses.asdict(settings), "lr": rate}


def learn_further(
    model: M,
    task: Task,
    settings: Fit,
    *,
    objective: Objective | None = None,
    report: Report | None = None,
    checkpoint: Path | None = None,
) -> M:
    """`fit`; where the settings leave the rate open, at one found by short trials, and undone if it did harm.

    It is the largest that at most doubles the loss on `select` in the first eighth of the steps, or in 64; where a
    trial is more than an eighth, as it has 4 steps at least, less is let pass. `learned_of` tells of it.

    Args:
        model: left as it was.
        task: as for `fit`; so are objective and report.
        settings: `lr=None` leaves the rate open.
        objective: default: the task's loss.
        report: default: none.
        checkpoint: as for `fit`; what the trials found is kept beside it.

    Raises:
        TaskError: as for `fit`.
    """
    if settings.lr is not None:
        return fit(model, task, settings, objective=objective, report=report, checkpoint=checkpoint)
    file = checkpoint.with_suffix(".rate.json") if checkpoint else None
    if file and file.exists():
        found = cattrs.structure(read_json(file), Learned)
    else:
        found = tried_rates(model, task, settings, objective=objective, report=report)
        if file:
            write_json(file, cattrs.unstructure(found))
    chosen: Any = dataclasses.replace(settings, lr=found.lr, precision=found.precision)
    trained = fit(model, task, chosen, objective=objective, report=report, checkpoint=checkpoint)
    after = _loss(trained, task, chosen, objective)
    kept = after <= found.before  # not, if it is no number
    result = trained if kept else copy.deepcopy(model).eval()
    kept_with(result)[_KEY] = dataclasses.replace(found, after=after if math.isfinite(after) else None, kept=kept)
    return result


def learned_of(model: nn.Module) -> Learned | None:
    """How it was that the model went on learning, if `learn_further` chose the rate."""
    return kept_with(model).get(_KEY)


def hand_learned_on_(trained: nn.Module, model: nn.Module) -> None:
    """Leave with `model`, which was made of `trained`, how that went on learning, and nothing from before."""
    kept_with(model).pop(_KEY, None)
    if learned := learned_of(trained):
        kept_with(model)[_KEY] = learned


def tried_rates(
    model: nn.Module, task: Task, settings: Fit, *, objective: Objective | None = None, report: Report | None = None
) -> Learned:
    """The largest rate that does not do much harm in its first steps. Arguments: `learn_further`."""
    first = task.train.batch(slice(0, min(settings.batch_size, len(task.train))))
    precision = pick_precision(model, first.inputs) if settings.precision == "auto" else settings.precision
    settings = dataclasses.replace(settings, precision=precision)
    before = _loss(model, task, settings, objective)
    few, short = _shortened(task, settings)
    steps = num_steps(task, settings)
    most = before * (1 + min(1.0, (steps / num_steps(few, short) - 1) / (PART - 1)))
    losses: dict[float, float] = {}

    def harmless(lr: float) -> bool:
        if report:
            told = ", ".join(f"{rate:g}: {loss:.3g}" for rate, loss in losses.items()) or "the first"
            report(0, steps, f"rate {lr:g} is tried (loss {before:.3g}; {told})")
        try:
            trial = fit(model, few, dataclasses.replace(short, lr=lr), objective=objective)
            losses[lr] = _loss(trial, task, short, objective)
        except TaskError:
            losses[lr] = math.nan  # this rate was too large by far
        return losses[lr] <= most

    chosen = next(filter(harmless, RATES), RATES[-1])
    if chosen == RATES[0]:
        chosen = ([RATES[0], *takewhile(harmless, HIGHER)])[-1]
    tried = tuple((rate, loss if math.isfinite(loss) else None) for rate, loss in losses.items())
    return Learned(chosen, precision, tried, before)


def _shortened(task: Task, settings: Fit) -> tuple[Task, Fit]:
    """A trial: fewer samples, or fewer epochs of few."""
    steps = min(MOST_STEPS, max(FEWEST_STEPS, num_steps(task, settings) // PART))
    size = min(settings.batch_size, len(task.train))
    num = min(len(task.train), steps * size)
    order = torch.randperm(len(task.train), generator=torch.Generator().manual_seed(settings.seed))
    few = dataclasses.replace(task, train=task.train.batch(order[:num].sort().values))
    epochs = min(settings.epochs, -(-steps // (num // size)))
    return few, dataclasses.replace(settings, epochs=epochs)


def samples_tried(task: Task, settings: Fit) -> int:
    """About how many samples are learned from until the rate is found; none where the settings name one."""
    if settings.lr is not None:
        return 0
    few, short = _shortened(task, settings)
    return USUAL_TRIALS * num_steps(few, short) * min(settings.batch_size, len(few.train))


def _loss(model: nn.Module, task: Task, settings: Fit, objective: Objective | None) -> float:
    """The mean loss of samples of `select`, in eval mode, without augmentation."""
    of: Callable[[Any, tuple[Any, ...], Any], Any] = objective or task_loss_of(task)
    num = min(MOST_JUDGED, len(task.select))
    rows = torch.arange(num) * len(task.select) // num
    losses = []
    with evaluating(model), torch.no_grad(), autocast(settings.precision):
        for part in rows.split(settings.batch_size):
            batch: Split = task.select.batch(part)
            losses.append(float(of(model, batch.inputs, batch.targets)) * len(part))
    return sum(losses) / num
