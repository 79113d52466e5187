"""The training loop: a generator of steps that the caller iterates; `fit` runs it to its end.

All randomness of a step (its place in the shuffle, augmentation, dropout) is seeded by the settings' seed and the
step's number: the global generator is neither read nor moved, and a resumed run is bit-identical to one that was
never interrupted (on the same machine, with the same number of threads).
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import math
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from trimtab.core import Fit, Metric, Split, Task
from trimtab.errors import TaskError
from trimtab.graph.fisher import attach_fisher_, fisher
from trimtab.measure.quality import scores
from trimtab.optim import find_optimizer
from trimtab.optim.base import Optimizer, changed
from trimtab.optim.schedule_free import ScheduleFree, recalibrate_
from trimtab.optim.second_moments import second_moments
from trimtab.tasks.check import evaluating, fingerprint_split
from trimtab.train.average import Average, average_of
from trimtab.train.batches import gathered
from trimtab.train.checkpoint import Checkpoint, describe_model, restore_, tensors_of, values_of
from trimtab.train.gradient import Gradient, Lent, Objective, scaler_for, take_
from trimtab.train.infobatch import InfoBatch
from trimtab.train.integers import IntegerWeight
from trimtab.train.keep import ENDED_BY_SIGTERM, Keep, Keeper, terminating
from trimtab.train.precision import (
    autocast,
    breaks_in_channels_last,
    channels_first,
    channels_last_,
    lay_out_,
    pick_precision,
)
from trimtab.train.recompute import recomputing
from trimtab.train.schedule import find_schedule

Report = Callable[[int, int, str], None]
M = TypeVar("M", bound=nn.Module)
REPORT_EVERY_SECONDS = 0.1
MOST_SKIPPED = 10
STATISTICS_BATCHES, CALIBRATION_BATCHES = 50, 8


@dataclass(frozen=True)
class Step:
    """A step that was taken; steps and epochs count from 0. Reading `loss` waits for the step's end.

    skipped: how many batches were left out until now, this one included (`Fit.nan`). ends_epoch: whether its epoch
    ends with it. total: with `Fit.prune_samples`, the most that there can be.
    """

    index: int
    total: int
    epoch: int
    loss: Tensor
    lr: float
    samples_per_second: float
    seconds_left: float
    skipped: int = 0
    ends_epoch: bool = False


@contextlib.contextmanager
def training(
    model: nn.Module,
    task: Task,
    settings: Fit | None = None,
    *,
    objective: Objective | None = None,
    checkpoint: Path | Keep | None = None,
) -> Iterator[Iterator[Step]]:
    """Train `model`, in place, one step for each that is asked for.

    Args:
        model: returns one tensor; its modes and memory layout come back at the end. If the settings ask for an average
            of the weights, the end of the `with` makes it the model's weights. The squares of gradients that the
            optimizer knows stay with it (`graph/fisher.py`): `Prune(importance="fisher")` takes them.
        task: `train`, `loss`, `weigh` and `augment` are used, nothing else. An epoch leaves out the samples beyond the
            last full batch, others each time; an optimizer that wants all data at once leaves out none.
        settings: default: the task's `fit`.
        objective: (model, inputs, targets) -> loss; default: the task's loss on the model's outputs.
        checkpoint: a file written after each epoch or five minutes, the one before it kept beside it; `Keep` says it
            otherwise. If it is there, the run goes on from it, bit-exactly. SIGTERM is then put off to the end of the
            step: the state is written, and the process exits with 143.

    Raises:
        TaskError: the loss is NaN or inf; or the settings do not go together.
        OptimizerError: nothing in the model can be trained, or the optimizer has no such setting.
        RunError: the checkpoint is damaged and so is the one before, or it is of another run.

    Example:
        >>> from trimtab.tasks.make import task_from_pairs
        >>> x, y = torch.randn(30, 4), torch.arange(30) % 3
        >>> task = task_from_pairs("toy", (x[:10], y[:10]), (x[10:20], y[10:20]), (x[20:], y[20:]))
        >>> with training(nn.Linear(4, 3), task, Fit(epochs=2, batch_size=5)) as steps:
        ...     [step.epoch for step in steps]
        [0, 0, 1, 1]
    """
    settings = settings or task.fit or Fit()
    keep = Keep(checkpoint) if isinstance(checkpoint, Path) else checkpoint
    modes = [(part, part.training) for part in model.modules()]
    relaid = channels_last_(model, task.train.inputs)
    with contextlib.ExitStack() as stack:
        if settings.recompute:
            budget = 0.0 if settings.recompute is True else settings.recompute
            stack.enter_context(recomputing(model, budget, _first_part(task, settings, objective)))
        asked = stack.enter_context(terminating()) if keep else lambda: False
        run = _Run(model, task, settings, objective)
        steps = _steps(run, keep, asked)
        try:
            yield steps
            steps.close()
            run.settle_()
        finally:
            steps.close()
            run.release_()
            if relaid:
                lay_out_(model, torch.contiguous_format)
            for part, mode in modes:
                part.training = mode
        run.hand_on_()
        if asked():
            raise SystemExit(ENDED_BY_SIGTERM)


def fit(
    model: M,
    task: Task,
    settings: Fit | None = None,
    *,
    objective: Objective | None = None,
    report: Report | None = None,
    checkpoint: Path | Keep | None = None,
) -> M:
    """A trained copy of `model`, in eval mode: `training` run to its end.

    Args:
        model: left as it was.
        task: as for `training`; so are settings, objective and checkpoint.
        settings: default: the task's `fit`.
        objective: default: the task's loss.
        report: (steps done, steps in all, text), called at most ten times a second.
        checkpoint: default: none.

    Raises:
        TaskError: as for `training`.
        RunError: as for `training`.
    """
    trained, told = copy.deepcopy(model), 0.0
    settings = settings or task.fit or Fit()
    with training(trained, task, settings, objective=objective, checkpoint=checkpoint) as steps:
        for step in steps:
            done, now = step.index + 1, time.monotonic()
            if report and (now - told >= REPORT_EVERY_SECONDS or done == step.total):
                text = f"epoch {step.epoch + 1}/{settings.epochs}, loss {float(step.loss):.3f}"
                report(done, step.total, f"{text}, {step.samples_per_second:,.0f} samples/s")
                told = now
    trained.zero_grad()
    return trained.eval()


def num_steps(task: Task, settings: Fit) -> int:
    """The number of steps that training `task` with `settings` takes; with `prune_samples`, the most it can be."""
    num = len(task.train)
    per_epoch = 1 if optimizer_of(settings).full_batch else num // min(settings.batch_size, num)
    return settings.epochs * per_epoch


def optimizer_of(settings: Fit) -> Optimizer:
    """The optimizer that `settings` names or holds, with their learning rate and decay.

    Raises:
        OptimizerError: there is none of that name, or it has no such setting.

    Example:
        >>> optimizer_of(Fit(optimizer="sgd", lr=0.1)).lr
        0.1
    """
    named = settings.optimizer
    found: Optimizer = find_optimizer(named) if isinstance(named, str) else named
    return changed(found, lr=settings.lr, weight_decay=settings.weight_decay)


def predict(model: nn.Module, inputs: Tensor | tuple[Tensor, ...], *, batch_size: int = 500) -> Tensor:
    """The model's outputs [N, ...] in eval mode, batch by batch, without gradients."""
    many = inputs if isinstance(inputs, tuple) else (inputs,)
    with evaluating(model), torch.inference_mode():
        outputs = [
            model(*(x[start : start + batch_size] for x in many)) for start in range(0, len(many[0]), batch_size)
        ]
    # Joined outside: the result is an ordinary tensor, which a loss may use.
    return torch.cat(outputs)


def score(model: nn.Module, split: Split, metric: Metric) -> np.ndarray:
    """The metric of each sample, float64 [N], whose mean is the model's quality on `split`; see `Metric.aggregate`.

    Raises:
        MetricError: the metric raised, or is not what it declares.
    """
    return scores(metric, predict(model, split.inputs), split.targets)


class _Run:
    """What a run of `settings` on `task` is made of, and its state."""

    def __init__(self, model: nn.Module, task: Task, settings: Fit, objective: Objective | None) -> None:
        self.model, self.task, self.settings = model, task, settings
        self.of_task, self.objective = objective is None, objective or task_loss_of(task)
        self.chosen = optimizer_of(settings)
        _refuse_pairs(settings, self.chosen, objective)
        self.pruning: InfoBatch | None = None
        if settings.prune_samples:
            self.objective = self.pruning = InfoBatch(task, settings.prune_samples, settings.epochs)
        self.schedule = find_schedule(settings.schedule or self.chosen.schedule)
        self.part = min(settings.batch_size, len(task.train))
        self.batch_size = len(task.train) if self.chosen.full_batch else self.part
        self.per_epoch, self.total = len(task.train) // self.batch_size, num_steps(task, settings)
        self.optimizer = self.chosen.build(model)
        if isinstance(self.optimizer, ScheduleFree):
            self.optimizer.calibration = self._calibration
        self.integer = any(isinstance(parameter, IntegerWeight) for parameter in model.parameters())
        self.average: Average | None = average_of(model, settings, self.total)
        # Images are often channels last by where they come from, whatever the weights are.
        self.lay = channels_first if breaks_in_channels_last(model) else tuple
        self.precision, self.first, self.taken, self.skipped, self.in_a_row = "", 0, 0, 0, 0
        self.epoch, self.at = 0, 0  # of the next step: the epoch, and how many steps of it were taken

    def begin_(self, keeper: Keeper | None) -> Gradient:
        """Go on from a checkpoint, if there is one; returns how gradients are made."""
        model, settings = self.model, self.settings
        found = keeper.found() if keeper else None
        if found:
            self.first = self.taken = found.step
            self.precision = found.precision
        elif settings.precision == "auto":
            self.precision = pick_precision(model, self.lay(self.task.train.batch(slice(0, self.part)).inputs))
        self.precision = self.precision or settings.precision
        self.scaler = scaler_for(self.precision)
        if found:
            restore_(model, self.optimizer, found)
            self._restore_own_(found)
        parts = min(settings.accumulate, self.part) * -(-self.batch_size // self.part)
        return Gradient(self.objective, autocast(self.precision), parts, self.task.weigh, self.scaler)

    def checkpoint(self, identity: dict[str, str]) -> Checkpoint:
        """The state as it is, copied."""
        tensors, values = tensors_of(self.model, self.optimizer), values_of(self.model, self.optimizer)
        if self.average:
            tensors |= {f"average.{name}": tensor.clone() for name, tensor in self.average.tensors.items()}
        if self.pruning:
            tensors |= self.pruning.tensors()
        values |= {"skipped": self.skipped, "scaler": self.scaler.state_dict() if self.scaler else {}}
        values |= {"epoch": self.epoch, "at": self.at}
        return Checkpoint(self.taken, self.precision, identity, tensors, values)

    def _restore_own_(self, found: Checkpoint) -> None:
        if self.average:
            for name, tensor in self.average.tensors.items():
                tensor.copy_(found.tensors[f"average.{name}"])
        if self.scaler:
            self.scaler.load_state_dict(found.values["scaler"])
        if self.pruning:
            self.pruning.restore_(found.tensors)
        self.skipped, self.epoch, self.at = (found.values[key] for key in ("skipped", "epoch", "at"))

    def batch(self, rows: Tensor, index: int) -> Split:
        """The samples `rows`, [B], as the batch of step `index`: augmented and laid out."""
        if self.pruning:
            self.pruning.take_(rows)
        batch = gathered(self.task.train, rows)
        if self.task.augment is None:
            return batch if self.lay is tuple else Split(self.lay(batch.inputs), batch.targets)
        inputs = self.task.augment(batch.inputs, _generator(self.settings, "augment", index))
        return Split(self.lay(inputs), batch.targets)

    def shuffled(self, epoch: int) -> Tensor:
        """All samples in the order of `epoch`, [N]."""
        return torch.randperm(len(self.task.train), generator=_generator(self.settings, "order", epoch))

    def batches(self) -> tuple[Tensor, ...]:
        """Which samples the batches of this epoch hold, each [B]: full ones, or what is left if that fills none."""
        if not self.pruning:
            order = self.shuffled(self.epoch)
        elif self.at:
            order = self.pruning.order
        else:
            generator = _generator(self.settings, "prune", self.epoch)
            order = self.pruning.draw_(self.epoch, self.shuffled(self.epoch), generator)
        size = min(self.batch_size, len(order))
        return order[: len(order) // size * size].split(size)

    def _calibration(self, num: int = CALIBRATION_BATCHES) -> Iterator[tuple[Tensor, ...]]:
        order = self.shuffled(self.settings.epochs)
        for start in range(0, len(order) - self.part + 1, self.part)[:num]:
            yield self.lay(self.task.train.batch(order[start : start + self.part]).inputs)

    def release_(self) -> None:
        """Leave weights that can be used, and that no forward pass switches any more."""
        if isinstance(self.optimizer, ScheduleFree):
            self.optimizer.finish()

    def settle_(self) -> None:
        """Make the average the model's weights, and its statistics those of these weights."""
        if self.chosen.full_batch and self.taken:
            # A line search also looks at points that are far off, and BatchNorm took their statistics in.
            recalibrate_(self.model, self._calibration())
        if self.average and self.taken and self.average.put_(self.taken - 1):
            recalibrate_(self.model, self._calibration(STATISTICS_BATCHES))

    def hand_on_(self) -> None:
        """Leave with the model the Fisher diagonal that the optimizer's state holds, if it is of the task's own loss.

        The mean gradient of B samples, squared and times B, stands for one sample's.
        """
        moments = {} if self.integer or not self.of_task else second_moments(self.optimizer)
        squares = {name: moments[p] * self.batch_size for name, p in self.model.named_parameters() if p in moments}
        by = f"the training's {type(self.chosen).__name__}"
        attach_fisher_(self.model, fisher(self.model, squares, by) if squares else None)


def _steps(run: _Run, keep: Keep | None, asked: Callable[[], bool]) -> Generator[Step, None, None]:
    settings, model, optimizer, total = run.settings, run.model, run.optimizer, run.total
    identity = _identity(run) if keep else {}
    keeper = Keeper(keep, identity) if keep else None
    gradient = run.begin_(keeper)
    called: Any = torch.compile(model) if settings.compile else model
    model.train()
    began, last = time.perf_counter(), None
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    try:
        while run.epoch < settings.epochs:
            batches, index = run.batches(), run.taken
            num, epoch, before = len(batches), run.epoch, run.epoch * run.per_epoch
            total = index - run.at + num + run.total - before - run.per_epoch
            # All at once: one by one, from a cold cache, each takes 1 % of a step of a millisecond.
            seeds = [_seed(settings, "dropout", n) for n in range(index - run.at, index - run.at + num)]
            for at in range(run.at, num):
                lr = run.chosen.lr * run.schedule(before + at * run.per_epoch // num, run.total, warmup=settings.warmup)
                for group in optimizer.param_groups:
                    group["lr"] = lr
                for parameter in parameters:
                    parameter.grad = None  # what `zero_grad` comes to, which takes 1 % of a step of a millisecond
                loss = _taken(run, gradient, called, run.batch(batches[at], run.taken), seeds[at])
                # The step before is looked at, not this one: on an accelerator that does not stall the queue.
                _refuse_nan(run, last, batches[at - 1])
                run.taken, ends = run.taken + 1, at + 1 == num
                run.epoch, run.at = (epoch + 1, 0) if ends else (epoch, at + 1)
                spent = (time.perf_counter() - began) / (run.taken - run.first)
                left, rate = spent * (total - run.taken), run.batch_size / spent
                last = Step(run.taken - 1, total, epoch, loss, lr, rate, left, run.skipped, ends)
                due = keeper and (asked() or run.epoch == settings.epochs or keeper.due(run.taken, epoch_ended=ends))
                if ends or due:
                    _refuse_nan(run, last, batches[at])
                if keeper and due:
                    keeper.save(run.taken, lambda: run.checkpoint(identity))
                if asked():
                    raise SystemExit(ENDED_BY_SIGTERM)
                yield last
    finally:
        if keeper:
            keeper.close()


def _taken(run: _Run, gradient: Gradient, called: nn.Module, batch: Split, seed: int) -> Tensor:
    """Take a step; returns its loss."""
    skip = run.settings.nan == "skip"
    kept = [buffer.clone() for buffer in run.model.buffers()] if skip else []
    # Integer weights are rounded by chance, by draws from the global generator: as for dropout.
    chance = Lent(_seed(run.settings, "rounding", run.taken)) if run.integer else contextlib.nullcontext()
    if run.chosen.full_batch:

        def closure() -> Tensor:
            run.optimizer.zero_grad()
            return gradient.add_(called, batch, seed)

        with chance:
            first: Any = run.optimizer.step(closure)  # type: ignore[arg-type]
        return first.detach()  # type: ignore[no-any-return]
    if isinstance(run.optimizer, ScheduleFree):
        run.optimizer.train()  # an objective need not go through the model's own forward pass
    loss = gradient.add_(called, batch, seed)
    with chance:
        took = take_(run.optimizer, run.settings, run.scaler, usable=not skip or math.isfinite(float(loss)))
    if took:
        run.in_a_row = 0
    else:
        run.skipped, run.in_a_row = run.skipped + 1, run.in_a_row + 1
        for buffer, before in zip(run.model.buffers(), kept, strict=True):
            buffer.copy_(before)
    if run.average:
        run.average.update_(run.taken)
    return loss


def _first_part(task: Task, settings: Fit, objective: Objective | None) -> Callable[[nn.Module], Tensor]:
    """The loss of as many samples as one part of a batch has, of a model."""
    num = -(-min(settings.batch_size, len(task.train)) // settings.accumulate)
    batch, of = gathered(task.train, torch.arange(num)), objective or task_loss_of(task)

    def forward(model: nn.Module) -> Tensor:
        with autocast(settings.precision):
            return of(model, batch.inputs, batch.targets)

    return forward


def task_loss_of(task: Task) -> Objective:
    """The task's own loss of a model's outputs, as an objective."""

    def task_loss(model: nn.Module, inputs: tuple[Tensor, ...], targets: Tensor) -> Tensor:
        return task.loss(model(*inputs).float(), targets)

    return task_loss


def _refuse_pairs(settings: Fit, chosen: Optimizer, objective: Objective | None) -> None:
    """Refuse settings that an optimizer of another kind has no meaning for.

    Raises:
        TaskError: names the pair.
    """
    name, averages = type(chosen).__name__, settings.ema or settings.tail
    if settings.prune_samples and (objective or chosen.full_batch):
        other = f"{name} takes all data at once" if chosen.full_batch else "here another objective is trained for"
        raise TaskError(
            f"Fit(prune_samples={settings.prune_samples:g}) leaves samples out by their loss in the task's sense, and "
            f"{other}: leave it out."
        )
    if chosen.full_batch and (
        settings.clip or settings.nan == "skip" or settings.precision in ("fp16", "fp8") or averages
    ):
        raise TaskError(
            f"{name} searches along a line on all data; clip, nan='skip', precision='fp16' or 'fp8', ema and tail are "
            "for steps on batches, and one was given: leave them out, or take another optimizer."
        )
    if chosen.schedule == "constant" and not chosen.full_batch and averages:
        raise TaskError(f"{name} averages the weights by itself: leave ema and tail out, or take another optimizer.")


def _identity(run: _Run) -> dict[str, str]:
    name = getattr(run.objective, "__name__", type(run.objective).__name__)
    settings = "; ".join(f"{key}={value!r}" for key, value in vars(run.settings).items())
    data = fingerprint_split(run.task.train)
    return {**describe_model(run.model), "fit": settings, "data": data, "objective": name}


def _seed(settings: Fit, purpose: str, number: int) -> int:
    digest = hashlib.blake2b(f"{settings.seed} {purpose} {number}".encode(), digest_size=8).digest()
    return int.from_bytes(digest) >> 1


def _generator(settings: Fit, purpose: str, number: int) -> torch.Generator:
    return torch.Generator().manual_seed(_seed(settings, purpose, number))


def _refuse_nan(run: _Run, step: Step | None, rows: Tensor) -> None:
    if step is None or (math.isfinite(float(step.loss)) and run.in_a_row < MOST_SKIPPED):
        return
    where = f"at step {step.index} of {step.total} (epoch {step.epoch}), at a learning rate of {step.lr:.3g}"
    if run.in_a_row >= MOST_SKIPPED:
        raise TaskError(
            f"{run.in_a_row} batches in a row were left out, their loss or gradient being no number, the last "
            f"{where}: "
            f"single batches are not to blame. Train with a smaller learning rate, e.g. Fit(lr={step.lr / 10:.1g})."
        )
    if run.settings.nan == "skip":
        return
    raise TaskError(f"The loss became {float(step.loss)} {where}. {_mend(run, step, rows)}")


def _mend(run: _Run, step: Step, rows: Tensor) -> str:
    batch = run.batch(rows, step.index)
    bad = torch.zeros(len(rows), dtype=torch.bool)
    for tensor in (*batch.inputs, batch.targets):
        bad |= ~tensor.isfinite().reshape(len(rows), -1).all(1)
    if bad.any():
        return (
            f"{int(bad.sum())} of the batch's {len(bad)} samples hold NaN or inf, as they are or as `augment` makes "
            f"them, e.g. train[{int(rows[bad][0])}]. Mend the data, or leave such batches out: Fit(nan='skip')."
        )
    return (
        f"The batch itself is finite. Train with a smaller learning rate, e.g. Fit(lr={step.lr / 10:.1g}), or a longer "
        "warm-up, or clip the gradients: Fit(clip=1)."
    )
