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
from torch.optim import AdamW

from trimtab.core import Fit, Metric, Split, Task
from trimtab.errors import TaskError
from trimtab.measure.quality import scores
from trimtab.tasks.check import evaluating, fingerprint_split
from trimtab.train.checkpoint import (
    Checkpoint,
    describe_model,
    load_checkpoint,
    restore_,
    save_checkpoint,
    tensors_of,
)
from trimtab.train.integers import IntegerWeight
from trimtab.train.precision import (
    autocast,
    breaks_in_channels_last,
    channels_first,
    channels_last_,
    lay_out_,
    pick_precision,
)
from trimtab.train.schedule import warmup_cosine

# (model, inputs, targets [B, ...]) -> the loss, a single number
Objective = Callable[[nn.Module, tuple[Tensor, ...], Tensor], Tensor]
Report = Callable[[int, int, str], None]
M = TypeVar("M", bound=nn.Module)
REPORT_EVERY_SECONDS = 0.1


@dataclass(frozen=True)
class Step:
    """A step that was taken; steps and epochs count from 0. Reading `loss` waits for the step's end."""

    index: int
    total: int
    epoch: int
    loss: Tensor
    lr: float
    samples_per_second: float
    seconds_left: float


@contextlib.contextmanager
def training(
    model: nn.Module,
    task: Task,
    settings: Fit | None = None,
    *,
    objective: Objective | None = None,
    checkpoint: Path | None = None,
) -> Iterator[Iterator[Step]]:
    """Train `model`, in place, one step for each that is asked for.

    Args:
        model: returns one tensor; its modes and memory layout come back at the end.
        task: `train`, `loss` and `augment` are used, nothing else. An epoch leaves out the samples beyond the last
            full batch, others each time.
        settings: default: the task's `fit`.
        objective: (model, inputs, targets) -> loss; default: the task's loss on the model's outputs.
        checkpoint: a file written after each epoch. If it is there, the run goes on from it, bit-exactly.

    Raises:
        TaskError: the loss is NaN or inf; or nothing in the model can be trained.
        RunError: the checkpoint is damaged or of another run.

    Example:
        >>> from trimtab.tasks.make import task_from_pairs
        >>> x, y = torch.randn(30, 4), torch.arange(30) % 3
        >>> task = task_from_pairs("toy", (x[:10], y[:10]), (x[10:20], y[10:20]), (x[20:], y[20:]))
        >>> with training(nn.Linear(4, 3), task, Fit(epochs=2, batch_size=5)) as steps:
        ...     [step.epoch for step in steps]
        [0, 0, 1, 1]
    """
    modes = [(part, part.training) for part in model.modules()]
    relaid = channels_last_(model, task.train.inputs)
    steps = _steps(model, task, settings or task.fit or Fit(), objective or _task_loss(task), checkpoint)
    try:
        yield steps
    finally:
        steps.close()
        if relaid:
            lay_out_(model, torch.contiguous_format)
        for part, mode in modes:
            part.training = mode


def fit(
    model: M,
    task: Task,
    settings: Fit | None = None,
    *,
    objective: Objective | None = None,
    report: Report | None = None,
    checkpoint: Path | None = None,
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
    """The number of steps that training `task` with `settings` takes."""
    num = len(task.train)
    return settings.epochs * (num // min(settings.batch_size, num))


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


def _steps(
    model: nn.Module, task: Task, settings: Fit, objective: Objective, checkpoint: Path | None
) -> Generator[Step, None, None]:
    num, batch_size = len(task.train), min(settings.batch_size, len(task.train))
    per_epoch, total = num // batch_size, num_steps(task, settings)
    optimizer = _optimizer(model, settings)
    identity = _identity(model, task, settings, objective) if checkpoint else {}
    first, precision = 0, ""
    # Images are often channels last by where they come from, whatever the weights are.
    lay = channels_first if breaks_in_channels_last(model) else tuple
    if checkpoint and checkpoint.exists():
        found = load_checkpoint(checkpoint, identity)
        restore_(model, optimizer, found.tensors)
        first, precision = found.step, found.precision
    elif settings.precision == "auto":
        precision = pick_precision(model, lay(task.train.batch(slice(0, batch_size)).inputs))
    precision = precision or settings.precision
    cast = autocast(precision)
    integer = any(isinstance(parameter, IntegerWeight) for parameter in model.parameters())
    model.train()
    began, last = time.perf_counter(), None
    for index in range(first, total):
        epoch, at = divmod(index, per_epoch)
        if index == first or at == 0:
            order = torch.randperm(num, generator=_generator(settings, "order", epoch))
            # All at once: one by one, from a cold cache, each takes 1 % of a step of a millisecond.
            seeds = iter([_seed(settings, "dropout", number) for number in range(index, index + per_epoch - at)])
        lr = settings.lr * warmup_cosine(index, total, warmup=settings.warmup)
        batch = _augmented(task, task.train.batch(order[at * batch_size : (at + 1) * batch_size]), settings, index)
        for group in optimizer.param_groups:
            group["lr"] = lr
        optimizer.zero_grad()
        loss = _forward(objective, model, Split(lay(batch.inputs), batch.targets), next(seeds), cast)
        loss.backward()
        _update(optimizer, _seed(settings, "rounding", index) if integer else None)
        # The step before is looked at, not this one: on an accelerator that does not stall the queue.
        _refuse_nan(last)
        spent = (time.perf_counter() - began) / (index + 1 - first)
        last = Step(index, total, epoch, loss.detach(), lr, batch_size / spent, spent * (total - index - 1))
        if at == per_epoch - 1:
            _refuse_nan(last)
            if checkpoint:
                state = tensors_of(model, optimizer)
                save_checkpoint(checkpoint, Checkpoint(index + 1, precision, identity, state))
        yield last


def _augmented(task: Task, batch: Split, settings: Fit, index: int) -> Split:
    if task.augment is None:
        return batch
    return Split(task.augment(batch.inputs, _generator(settings, "augment", index)), batch.targets)


def _task_loss(task: Task) -> Objective:
    def task_loss(model: nn.Module, inputs: tuple[Tensor, ...], targets: Tensor) -> Tensor:
        return task.loss(model(*inputs).float(), targets)

    return task_loss


def _optimizer(model: nn.Module, settings: Fit) -> AdamW:
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not trainable:
        raise TaskError(
            f"{type(model).__name__} has no parameter to train: none has requires_grad. "
            "Call model.requires_grad_() or bring a model with weights."
        )
    # Decay pulls weights to zero; biases and norm scales have no reason to be there.
    groups = [
        {"params": [p for p in trainable if p.ndim > 1], "weight_decay": settings.weight_decay},
        {"params": [p for p in trainable if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return AdamW([group for group in groups if group["params"]], lr=settings.lr, fused=True)


def _identity(model: nn.Module, task: Task, settings: Fit, objective: Objective) -> dict[str, str]:
    name = getattr(objective, "__name__", type(objective).__name__)
    model_says = describe_model(model)
    return {**model_says, "fit": str(settings), "data": fingerprint_split(task.train), "objective": name}


def _seed(settings: Fit, purpose: str, number: int) -> int:
    digest = hashlib.blake2b(f"{settings.seed} {purpose} {number}".encode(), digest_size=8).digest()
    return int.from_bytes(digest) >> 1


def _generator(settings: Fit, purpose: str, number: int) -> torch.Generator:
    return torch.Generator().manual_seed(_seed(settings, purpose, number))


def _forward(
    objective: Objective, model: nn.Module, batch: Split, seed: int, cast: contextlib.AbstractContextManager[Any]
) -> Tensor:
    # Dropout draws from the global generator and takes no other: it is lent our seed and then put back. By hand, as
    # `torch.random.fork_rng` takes 1 % of a step of a millisecond; so does `autocast` if it is made anew each time.
    state = torch.default_generator.get_state()
    torch.default_generator.manual_seed(seed)
    try:
        with cast:
            return objective(model, batch.inputs, batch.targets)
    finally:
        torch.default_generator.set_state(state)


def _update(optimizer: AdamW, seed: int | None) -> None:
    if seed is None:
        optimizer.step()
        return
    # Integer weights are rounded by chance, by draws from the global generator: as for dropout.
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        optimizer.step()


def _refuse_nan(step: Step | None) -> None:
    if step and not math.isfinite(float(step.loss)):
        raise TaskError(
            f"The loss became {float(step.loss)} at step {step.index} of {step.total} (epoch {step.epoch}), at a "
            f"learning rate of {step.lr:.3g}. Train with a smaller one, e.g. Fit(lr={step.lr / 10:.1g}), or a longer "
            "warm-up."
        )
