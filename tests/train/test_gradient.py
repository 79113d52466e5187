from __future__ import annotations

import contextlib
import copy
import dataclasses
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from tests.train.toy import FIT, same_weights, toy_net, toy_task
from trimtab.core import Fit, Split, Task
from trimtab.errors import TaskError
from trimtab.train.gradient import Gradient
from trimtab.train.loop import fit, score, training

PLAIN = contextlib.nullcontext()


def mean_loss(model, inputs, targets):
    return F.cross_entropy(model(*inputs), targets)


def grads(model: nn.Module) -> list[torch.Tensor]:
    return [p.grad for p in model.parameters() if p.grad is not None]


@pytest.mark.parametrize("parts", [2, 3, 7, 16])
def test_a_batch_in_parts_has_the_gradient_of_the_whole(parts):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 5)).double()
    batch = toy_task().train.batch(slice(0, 16))
    batch = Split((batch.inputs[0].double(),), batch.targets)
    parted = copy.deepcopy(model)
    whole = Gradient(mean_loss, PLAIN).add_(model, batch, 0)
    loss = Gradient(mean_loss, PLAIN, parts=parts).add_(parted, batch, 0)
    torch.testing.assert_close(loss.double(), whole, rtol=1e-6, atol=1e-6)
    for one, other in zip(grads(parted), grads(model), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


def test_a_mean_over_tokens_is_weighed_by_tokens():
    torch.manual_seed(0)
    model = nn.Embedding(7, 7).double()
    tokens, targets = torch.randint(7, (6, 5)), torch.randint(7, (6, 5))
    targets[0, 1:], targets[1], targets[4, 3:] = -100, -100, -100  # padding, a whole row of it too
    token_loss = lambda m, inputs, t: F.cross_entropy(m(*inputs).flatten(0, 1), t.flatten())  # noqa: E731
    num_tokens = lambda t: (t != -100).sum()  # noqa: E731
    parted = copy.deepcopy(model)
    Gradient(token_loss, PLAIN).add_(model, Split((tokens,), targets), 0)
    Gradient(token_loss, PLAIN, parts=6, weigh=num_tokens).add_(parted, Split((tokens,), targets), 0)
    torch.testing.assert_close(parted.weight.grad, model.weight.grad, rtol=1e-12, atol=1e-12)


def test_fit_in_parts_learns_as_in_whole_with_the_weights_of_the_task():
    task = dataclasses.replace(toy_task(), augment=None)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 5))
    told: list[int] = []
    weighed = dataclasses.replace(task, weigh=lambda targets: told.append(len(targets)) or len(targets))
    parted = fit(model, weighed, dataclasses.replace(FIT, accumulate=3))
    assert told[:3] == [5, 5, 6]
    torch.testing.assert_close(parted[1].weight, fit(model, task)[1].weight, rtol=1e-4, atol=1e-5)


def test_clipping_is_by_the_norm_of_all_gradients():
    task = dataclasses.replace(toy_task(), augment=None)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 5))
    with training(copy.deepcopy(model), task, dataclasses.replace(FIT, clip=0.01)) as steps:
        run = steps.gi_frame.f_locals["run"]
        for _ in range(3):
            next(steps)
            norm = math.sqrt(sum(float(p.grad.square().sum()) for p in run.model.parameters()))
            assert norm == pytest.approx(0.01, rel=1e-4)


def test_fp16_learns_with_a_scale_that_survives_a_checkpoint(tmp_path):
    task, settings = toy_task(), dataclasses.replace(FIT, precision="fp16")
    whole = fit(toy_net(), task, settings)
    assert score(whole, task.select, task.metric).mean() > 0.9
    path = tmp_path / "fit.safetensors"
    with training(toy_net(), task, settings, checkpoint=path) as steps:
        for _ in range(13):
            next(steps)
    assert same_weights(fit(toy_net(), task, settings, checkpoint=path), whole)


def poisoned(task: Task, *, sample: int = 40) -> Task:
    x = task.train.inputs[0].clone()
    x[sample, 0, 3, 3] = math.nan
    return dataclasses.replace(task, train=Split((x,), task.train.targets))


def test_a_corrupted_batch_is_named_with_its_sample():
    with pytest.raises(TaskError, match=r"became nan at step \d+ of 24 .* 1 of the batch's 16 samples hold NaN or inf"):
        fit(toy_net(), poisoned(toy_task()))
    with pytest.raises(TaskError, match=r"train\[40\]\. Mend the data, or leave such batches out: Fit\(nan='skip'\)"):
        fit(toy_net(), poisoned(toy_task()))


def test_a_corrupted_batch_is_left_out_and_counted():
    task = toy_task()
    model = toy_net()
    with training(model, poisoned(task), dataclasses.replace(FIT, nan="skip")) as steps:
        taken = list(steps)
    bad = [step.index for step in taken if not math.isfinite(step.loss)]
    assert 3 <= len(bad) <= 4 == FIT.epochs  # an epoch leaves out the samples beyond the last full batch
    assert taken[-1].skipped == len(bad)
    assert all(tensor.isfinite().all() for tensor in model.state_dict().values())
    assert score(model, task.select, task.metric).mean() > 0.9


def test_a_run_in_which_every_batch_is_left_out_stops():
    failing = lambda model, inputs, targets: model(*inputs).sum() * math.nan  # noqa: E731
    with pytest.raises(TaskError, match=r"10 batches in a row were left out.* single batches are not to blame"):
        fit(toy_net(), toy_task(), dataclasses.replace(FIT, nan="skip"), objective=failing)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"accumulate": 0}, "cuts a batch of 128 into parts: give 1 to 128"),
        ({"accumulate": 129}, "give 1 to 128"),
        ({"clip": 0}, "the largest norm of a gradient: give more than 0"),
        ({"precision": "int8"}, "takes precision 'auto', 'fp32', 'bf16', 'fp16' or 'fp8'"),
        ({"nan": "ignore"}, "nan 'stop' or 'skip'; got"),
        ({"ema": 1.0}, r"Fit\(ema=1\) is out of range"),
        ({"tail": 1.5}, r"Fit\(tail=1.5\) is out of range"),
        ({"ema": 0.9, "tail": 0.5}, "averages the weights in one way: give ema=0.9 or tail=0.5"),
    ],
)
def test_settings_that_make_no_sense_are_refused(wrong, says):
    with pytest.raises(TaskError, match=says):
        Fit(**wrong)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")  # torch's own, where it compiles
def test_a_compiled_model_learns_as_it_does_without():
    task = dataclasses.replace(toy_task(), augment=None)
    model = toy_net()
    del model[4]  # compiled dropout draws other masks
    compiled = fit(model, task, dataclasses.replace(FIT, compile=True))
    assert type(compiled) is type(model)
    for one, other in zip(compiled.parameters(), fit(model, task).parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-2, atol=1e-2)
