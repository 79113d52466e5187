"""A task from arrays: tensors of the right kinds, classification by default, checked."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from trimtab.core import Sealed, Split, Task
from trimtab.errors import TaskError
from trimtab.tasks.check import check
from trimtab.tasks.metrics import ACCURACY


def task_from_pairs(name: str, train: Any, select: Any, verify: Any, **settings: Any) -> Task:
    """A checked task from (inputs, targets) pairs; see `core.Task` for the settings.

    Args:
        name: what the task is called in tables and reports.
        train: (inputs [N, ...], or a tuple of them; targets [N, ...]), as tensors or NumPy arrays.
        select: the like, for choosing.
        verify: the like, for the verdict alone: it is sealed here.
        settings: `loss` (default: cross-entropy), `metric` (default: accuracy), `fit`, `augment`, `labels`.

    Raises:
        TaskError: the data cannot be used; the message names the split and the mend.

    Example:
        >>> x, y = np.random.rand(30, 4).astype("float32"), np.arange(30) % 3
        >>> task = task_from_pairs("toy", (x[:10], y[:10]), (x[10:20], y[10:20]), (x[20:], y[20:]))
        >>> len(task.train), task.metric.name, task.train.targets.dtype
        (10, 'accuracy', torch.int64)
    """
    pairs = {"train": train, "select": select, "verify": verify}
    splits = {key: _split(key, pair) for key, pair in pairs.items()}
    defaults: dict[str, Any] = {"loss": F.cross_entropy, "metric": ACCURACY}
    task = Task(name, splits["train"], splits["select"], Sealed(splits["verify"]), **{**defaults, **settings})
    check(task)
    return task


def _split(name: str, pair: Any) -> Split:
    if isinstance(pair, Split):
        pair = (pair.inputs, pair.targets)
    if not isinstance(pair, tuple | list) or len(pair) != 2:
        raise TaskError(f"{name} must be a pair (inputs, targets); got {type(pair).__name__}.")
    inputs, targets = pair
    many = inputs if isinstance(inputs, tuple) else (inputs,)
    return Split(tuple(_tensor(f"{name}'s inputs", x) for x in many), _whole(_tensor(f"{name}'s targets", targets)))


def _tensor(what: str, value: Any) -> Tensor:
    if isinstance(value, Tensor):
        tensor = value.detach()
    else:
        array = np.asarray(value)
        if array.dtype.kind not in "biuf":
            raise TaskError(f"{what} must be numbers; got {type(value).__name__} of {array.dtype}. Encode them first.")
        tensor = torch.tensor(array)
    if tensor.ndim == 0:
        raise TaskError(f"{what} must have one entry a sample, [N, ...]; got a single number.")
    # Networks are float32; NumPy's default of float64 would be refused by their first layer.
    return tensor.float() if tensor.dtype == torch.float64 else tensor


def _whole(targets: Tensor) -> Tensor:
    whole = not targets.is_floating_point() and not targets.is_complex()
    return targets.long() if whole else targets
