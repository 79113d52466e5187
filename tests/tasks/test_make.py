from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from trimtab.core import Fit, Metric, Split, Task
from trimtab.errors import SealError, TaskError
from trimtab.tasks.metrics import correct


def pairs(num: int = 6, *, seed: int = 0) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    rng = np.random.default_rng(seed)
    return {name: (rng.normal(size=(num, 3)), np.arange(num) % 3) for name in ("train", "select", "verify")}


def test_numpy_arrays_become_what_networks_and_cross_entropy_take():
    task = Task.of("toy", **pairs())
    assert task.train.inputs[0].dtype == torch.float32
    assert task.train.targets.dtype == torch.int64
    assert (task.loss, task.metric.name, task.metric.binary, task.fit) == (F.cross_entropy, "accuracy", True, None)
    assert len(task.train) == len(task.select) == len(task.verify) == 6


def test_settings_replace_the_defaults():
    metric = Metric("closeness", lambda outputs, targets: -(outputs - targets).abs())
    given = {name: (x, x[:, 0]) for name, (x, _) in pairs().items()}
    task = Task.of("toy", **given, loss=F.mse_loss, metric=metric, fit=Fit(epochs=2))
    assert (task.loss, task.metric, task.fit) == (F.mse_loss, metric, Fit(epochs=2))
    assert task.train.targets.dtype == torch.float32


def test_several_inputs_stay_several():
    given = {name: ((x, x.astype("int32")), y) for name, (x, y) in pairs().items()}
    assert [x.dtype for x in Task.of("toy", **given).train.inputs] == [torch.float32, torch.int32]


def test_a_split_can_be_given_as_it_is():
    given = {name: Split((torch.tensor(x).float(),), torch.tensor(y)) for name, (x, y) in pairs().items()}
    assert torch.equal(Task.of("toy", **given).select.targets, given["select"].targets)


def test_making_a_task_leaves_the_seal_whole_and_the_seal_breaks_once():
    task = Task.of("toy", **pairs())
    assert len(task.verify.open("the verdict")) == 6
    with pytest.raises(SealError):
        task.verify.open("once more")


@pytest.mark.parametrize(
    ("pair", "says"),
    [
        (np.zeros(3), "train must be a pair"),
        ((np.array(["a", "b"]), np.zeros(2)), "train's inputs must be numbers"),
        ((np.zeros((2, 2)), 3), "train's targets must have one entry a sample"),
    ],
)
def test_what_is_no_pair_of_arrays_is_refused(pair, says):
    with pytest.raises(TaskError, match=says):
        Task.of("toy", **{**pairs(), "train": pair})


def test_correct_is_one_where_the_largest_output_is_the_label():
    outputs = torch.tensor([[0.1, 0.9], [0.8, 0.2], [0.3, 0.7]])
    assert correct(outputs, torch.tensor([1, 1, 1])).tolist() == [1, 0, 1]
