"""Importance: every measure is what its formula says, and ranks what matters above what does not."""

from __future__ import annotations

import copy
import dataclasses

import pytest
import torch
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.nn import functional as F

from tests.compress.test_prune import captured
from tests.compress.test_quantize import task_of
from tests.graph.test_dims import Forward
from trimtab.compress.calibration import batches
from trimtab.compress.importance import MEASURES, NEED_DATA, Scores, importances
from trimtab.compress.prune import Prune
from trimtab.core import Fit, Task
from trimtab.errors import PlanError
from trimtab.graph.capture import capture
from trimtab.graph.dims import groups
from trimtab.graph.fisher import attach_fisher_, fisher_of
from trimtab.train.loop import fit


def given(name: str) -> tuple[GraphModule, Task]:
    graph, x = captured(name)
    return copy.deepcopy(graph), task_of(x)


def scored(graph: GraphModule, task: Task, measure: str) -> dict[str, Scores]:
    return importances(graph, list(groups(graph).cuttable), measure, task=task, data=task.train)


def linear_net(*, seed: int = 0) -> tuple[GraphModule, Task]:
    torch.manual_seed(seed)
    module = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 5)).eval()
    return capture(module, (torch.randn(2, 6),)), task_of(torch.randn(4, 6))


def hidden(graph: GraphModule, x: Tensor) -> Tensor:
    return F.relu(F.linear(x, graph.get_parameter("0.weight"), graph.get_parameter("0.bias")))


@pytest.mark.parametrize("measure", MEASURES)
@pytest.mark.parametrize("name", ["mlp", "conv", "resnet"])
def test_one_finite_number_for_each_channel(measure: str, name: str) -> None:
    graph, task = given(name)
    before = {key: value.clone() for key, value in graph.state_dict().items()}
    found = scored(graph, task, measure)
    for group in groups(graph).cuttable:
        scores = found[group.name]
        assert scores.values.shape == (group.size,)
        assert scores.values.dtype == torch.float64
        assert (scores.values >= 0).all()
        assert scores.values.sum() > 0
        assert scores.by.startswith((measure, "magnitude"))
    again = scored(graph, task, measure)
    assert all(torch.equal(found[key].values, again[key].values) for key in found)
    assert all(torch.equal(value, graph.state_dict()[key]) for key, value in before.items())
    assert all(p.grad is None and p.requires_grad for p in graph.parameters())


@pytest.mark.parametrize("measure", [measure for measure in MEASURES if measure != "bn_scale"])
def test_a_channel_that_nothing_reads_matters_least(measure: str) -> None:
    graph, task = linear_net()
    with torch.no_grad():
        graph.get_parameter("2.weight")[:, 3] = 0
        graph.get_parameter("0.weight")[3] *= 0.01
    values = scored(graph, task, measure)["0"].values
    assert int(values.argmin()) == 3


def test_taylor_is_the_slope_of_the_loss_as_the_channel_fades() -> None:
    graph, task = linear_net()
    graph = graph.double()
    task = dataclasses.replace(task, train=dataclasses.replace(task.train, inputs=(task.train.inputs[0].double(),)))
    own = scored(graph, task, "taylor")["0"].values
    step = 1e-6
    slopes = torch.zeros(8, dtype=torch.float64)
    for batch in batches(task.train):
        h = hidden(graph, batch.inputs[0])
        for channel in range(8):
            losses = []
            for sign in (1, -1):
                faded = h.clone()
                faded[:, channel] *= 1 + sign * step
                out = F.linear(faded, graph.get_parameter("2.weight"), graph.get_parameter("2.bias"))
                losses.append(float(task.loss(out, batch.targets).detach()))
            slopes[channel] += abs(losses[0] - losses[1]) / (2 * step) / len(batches(task.train))
    torch.testing.assert_close(own, slopes, rtol=1e-3, atol=1e-7)


def test_fisher_stands_near_the_sum_over_samples_where_gradients_are_independent() -> None:
    graph, task = linear_net()
    own = scored(graph, task, "fisher")["0"].values
    weight = graph.get_parameter("2.weight")
    exact = torch.zeros(8)
    for x, y in zip(task.train.inputs[0], task.train.targets, strict=True):
        (grad,) = torch.autograd.grad(task.loss(graph(x[None]), y[None]), weight)
        exact += (grad * weight).square().sum(0).detach() / 2 / len(task.train)
    assert torch.corrcoef(torch.stack([own.float(), exact]))[0, 1] > 0.9
    assert 0.3 < float(own.sum() / exact.sum()) < 3


def test_bn_scale_is_gamma_and_says_where_there_is_none() -> None:
    graph, task = given("conv")
    found = scored(graph, task, "bn_scale")
    gamma = graph.get_parameter("features.1.weight").detach().double().abs()
    torch.testing.assert_close(found["features.0"].values, gamma / gamma.mean())
    mlp, task = given("mlp")
    assert {scores.by for scores in scored(mlp, task, "bn_scale").values()} == {"magnitude, as no BatchNorm scales it"}


def test_activation_is_the_weights_times_the_norm_of_what_they_multiply() -> None:
    graph, task = linear_net()
    norms = hidden(graph, task.train.inputs[0]).double().norm(dim=0)
    expected = norms * graph.get_parameter("2.weight").detach().double().abs().sum(0)
    own = scored(graph, task, "activation")["0"].values
    torch.testing.assert_close(own, expected / expected.mean(), rtol=1e-5, atol=1e-8)


def test_inside_attention_every_measure_has_a_number() -> None:
    def attend(m: nn.Module, x: Tensor) -> Tensor:
        q, k, v = (part(x).view(x.shape[0], 7, 2, 4).transpose(1, 2) for part in (m.q, m.k, m.v))
        return m.o(F.scaled_dot_product_attention(q, k, v, scale=0.5).transpose(1, 2).flatten(2)).mean(1)

    parts = {name: nn.Linear(6, 8) for name in "qkv"} | {"o": nn.Linear(8, 5)}
    graph = capture(Forward(attend, **parts).eval(), (torch.randn(2, 7, 6),))
    task = task_of(torch.randn(4, 7, 6))
    assert len(groups(graph).cuttable) == 3
    for measure in MEASURES:
        for name, scores in scored(graph, task, measure).items():
            assert scores.values.sum() > 0, (measure, name)
    by = {scores.by for scores in scored(graph, task, "obs").values()}
    assert by == {"obs", "activation, as no layer that reads it can be solved"}


@pytest.mark.parametrize("measure", NEED_DATA)
def test_refuses_values_that_are_not_finite(measure: str) -> None:
    graph, task = linear_net()
    poisoned = dataclasses.replace(task.train, inputs=(task.train.inputs[0] * torch.inf,))
    with pytest.raises(PlanError, match=rf"importance of 0 by '{measure}' is NaN or infinite.*Check the data"):
        scored(graph, dataclasses.replace(task, train=poisoned), measure)


def test_without_values_all_channels_are_alike() -> None:
    graph, task = linear_net()
    found = scored(graph.to("meta"), task, "magnitude")
    assert found["0"].values.tolist() == [1.0] * 8
    assert "meta device" in found["0"].by


def trained_net(optimizer: str = "adamw") -> tuple[GraphModule, Task]:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 5))
    task = task_of(torch.randn(4, 6))
    trained = fit(module, task, Fit(epochs=3, batch_size=8, precision="fp32", optimizer=optimizer))
    return capture(trained, (torch.randn(2, 6),)), task


def test_fisher_takes_the_squares_that_training_left_and_looks_at_no_data() -> None:
    graph, task = trained_net()
    handed = fisher_of(graph)
    assert handed is not None
    blind = dataclasses.replace(task, loss=lambda outputs, targets: outputs.sum() * torch.nan)
    own = importances(graph, list(groups(graph).cuttable), "fisher", task=blind, data=task.train)["0"]
    weight, square = graph.get_parameter("2.weight").detach().double(), handed.squares["2.weight"].double()
    torch.testing.assert_close(own.values, (weight.square() * square).sum(0) / 2)
    assert own.by == "fisher, the training's AdamW"
    plan = Prune(0.5, importance="fisher", round_to=1).plan(graph, task)
    assert plan.rows()[0]["importance by"] == "fisher, the training's AdamW"


def test_fisher_looks_at_data_and_says_why_where_the_weights_have_changed_or_have_no_squares() -> None:
    graph, task = trained_net()
    with torch.no_grad():
        graph.get_parameter("0.weight").mul_(2)
    changed = scored(graph, task, "fisher")["0"]
    assert changed.by == "fisher, of samples, as 0.weight has changed since the training"
    attach_fisher_(graph, None)
    assert torch.equal(scored(graph, task, "fisher")["0"].values, changed.values)
    soap, task = trained_net("soap")
    assert scored(soap, task, "fisher")["0"].by == (
        "fisher, of samples, as the training's SOAP kept no squares of 2.weight"
    )
