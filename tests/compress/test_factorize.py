"""Low rank: two layers that are their product, optimal on the data, cheaper, and refused where they are not."""

from __future__ import annotations

import copy
import itertools
import json

import cattrs
import pytest
import torch
from torch import Tensor, nn

import trimtab as tt
from tests.compress.test_prune import captured
from tests.compress.test_quantize import task_of
from trimtab.compress.factorize import Factorize, FactorizePlan
from trimtab.core import Tools
from trimtab.errors import PlanError
from trimtab.graph.capture import capture
from trimtab.graph.cost import macs
from trimtab.train.loop import predict


class Convs(nn.Module):
    """[B, 4, 13, 12] -> [B, 5]: strides, padding, dilation, a grouped layer and a one-dimensional one."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Conv2d(4, 24, 3, stride=(2, 1), padding=(0, 1))
        self.two = nn.Conv2d(24, 16, (3, 2), padding=(2, 1), dilation=(2, 1), bias=False)
        self.grouped = nn.Conv2d(16, 16, 3, padding=1, groups=2)
        self.flat = nn.Conv1d(16, 20, 5, stride=2, padding=2)
        self.head = nn.Linear(20, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.grouped(torch.relu(self.two(torch.relu(self.one(x))))))
        return self.head(torch.relu(self.flat(x.flatten(2))).mean(2))


def convs() -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    return Convs().eval(), torch.randn(4, 4, 13, 12)


WEIGHTS = {
    "channel": (("one.weight", 6), ("two.weight", 7), ("flat.weight", 9)),
    "space": (("one.weight", 5), ("two.weight", 7)),
}


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("conv", WEIGHTS)
def test_macs_are_those_of_the_graph_and_more_rank_keeps_more(conv, weighted: bool) -> None:
    module, x = convs()
    graph = capture(module, (x,))
    task, energies = task_of(x), []
    for more in (0, 3):
        ranks = tuple((name, rank + more) for name, rank in WEIGHTS[conv])
        method = Factorize(ranks=ranks, conv=conv, weighted=weighted, samples=64)
        plan = method.plan(graph, task)
        back = cattrs.structure(json.loads(json.dumps(cattrs.unstructure(plan))), FactorizePlan)
        result = method.apply(graph, back, Tools(task=task))  # compares it with the graph of the products
        assert [one.rank for one in plan.factors] == [rank for _, rank in ranks]
        assert macs(result) == plan.macs - sum(one.macs_before - one.macs_after for one in plan.factors)
        assert macs(graph) == plan.macs
        assert f"({macs(result) / macs(graph):.1%} left)" in str(plan)
        assert predict(result, x[:1]).shape == (1, 5)
        energies.append([one.energy for one in plan.factors])
    assert all(less < more for less, more in zip(*energies, strict=True))


@pytest.mark.parametrize("conv", WEIGHTS)
def test_a_layer_of_low_rank_is_kept_exactly(conv) -> None:
    module, x = convs()
    graph = capture(module, (x,))
    method = Factorize(ranks=WEIGHTS[conv], conv=conv)
    low = method.apply(graph, method.plan(graph))
    with torch.no_grad():  # the products, put back as plain weights
        for name, _ in WEIGHTS[conv]:
            first, second = low.get_parameter(f"{name}_first"), low.get_parameter(f"{name}_second")
            if conv == "space":
                product = torch.einsum("riaz,orzb->oiab", first, second)
            else:
                product = (second.flatten(1) @ first.flatten(1)).reshape(graph.get_parameter(name).shape)
            graph.get_parameter(name).copy_(product)
    plan = method.plan(graph)
    assert all(one.energy == pytest.approx(1, abs=1e-6) for one in plan.factors)
    assert torch.allclose(method.apply(graph, plan)(x), graph(x), atol=1e-5)


def test_by_the_data_no_other_layers_of_this_rank_are_nearer() -> None:
    torch.manual_seed(0)
    x = torch.randn(512, 6) @ torch.randn(6, 24) + 0.1 * torch.randn(512, 24) + 2
    graph = capture(nn.Sequential(nn.Linear(24, 20)), (x[:4],))
    y = torch.arange(512) % 5
    task = tt.Task.of("t", train=(x, y), select=(x + 9, y), verify=(x - 9, y))
    wanted, errors = predict(graph, x).double(), {}
    for weighted in (False, True):
        method = Factorize(ranks=(("0.weight", 4),), weighted=weighted, samples=512)
        plan = method.plan(graph, task)
        errors[weighted] = float((predict(method.apply(graph, plan, Tools(task=task)), x) - wanted).square().sum())
    assert errors[True] < 0.5 * errors[False]
    # Eckart and Young (1936), for the outputs less their mean
    centred = wanted - wanted.mean(0)
    least = float(torch.linalg.svdvals(centred)[4:].square().sum())
    rounding = 1e-6  # of the answers, which are in fp32
    assert (1 - rounding) * least <= errors[True] < 1.02 * least
    assert 1 - plan.factors[0].energy == pytest.approx(least / float(centred.square().sum()), rel=0.02)


def test_energy_is_kept_and_what_would_be_dearer_stays() -> None:
    graph, _ = copy.deepcopy(captured("mlp"))
    method = Factorize(energy=0.5, step=2)
    plan = method.plan(graph)
    assert plan.factors
    for one in plan.factors:
        assert one.energy >= 0.5
        assert one.rank % 2 == 0
        assert one.macs_after < one.macs_before
        values = torch.linalg.svdvals(graph.get_parameter(one.weight).detach().double()).square()
        assert float(values[: one.rank - 2].sum() / values.sum()) < 0.5
    assert macs(method.apply(graph, plan)) < macs(graph)
    more = Factorize(energy=0.87, step=1).plan(graph)
    assert len(more.factors) < len(plan.factors)
    assert any("of its energy, would cost 1." in skip.why for skip in more.skipped)


@pytest.mark.parametrize("share", [0.8, 0.6])
def test_a_budget_is_met_and_lost_energy_is_the_least(share: float) -> None:
    graph, _ = copy.deepcopy(captured("mlp"))
    method = Factorize(macs=share, step=1)
    plan = method.plan(graph)
    result = method.apply(graph, plan)
    assert share * 0.85 * macs(graph) < macs(result) <= share * macs(graph)
    spent = macs(result)
    lost = sum(1 - one.energy for one in plan.factors)
    # every other choice of ranks that costs no more loses no less
    weights = [name for name, p in graph.named_parameters() if p.ndim == 2]
    options = []
    for name in weights:
        matrix = graph.get_parameter(name).detach().double()
        squares = torch.linalg.svdvals(matrix).square()
        tails = [(sum(matrix.shape) * r, float(squares[r:].sum() / squares.sum())) for r in range(1, min(matrix.shape))]
        options.append([(matrix.numel(), 0.0), *tails])
    best = min(
        sum(loss for _, loss in choice)
        for choice in itertools.product(*options)
        if sum(cost for cost, _ in choice) <= spent
    )
    assert lost == pytest.approx(best, abs=1e-9)


def test_what_was_left_alone_says_why() -> None:
    module, x = convs()
    graph = capture(module, (x,))
    why = {skip.what: skip.why for skip in Factorize(ranks=(("one.weight", 4),)).plan(graph).skipped}
    assert why["grouped.weight"] == "it has 2 groups, each a layer of its own"
    assert why["head.weight"] == "ranks does not name it"
    spatial = {skip.what: skip.why for skip in Factorize(macs=0.7, step=1, conv="space").plan(graph).skipped}
    assert spatial["flat.weight"] == "by space, its kernel has but one dim"
    assert "the budget is met best where it stays whole" in spatial.values()


def test_both_halves_train_and_a_frozen_layer_stays_frozen() -> None:
    module, x = convs()
    module.get_parameter("flat.weight").requires_grad_(False)
    graph = capture(module, (x,))
    method = Factorize(ranks=(("one.weight", 4), ("flat.weight", 8)))
    result = method.apply(graph, method.plan(graph))
    result(x).square().sum().backward()
    grads = {name: p.grad is not None for name, p in result.named_parameters()}
    assert grads["one.weight_first"]
    assert grads["one.weight_second"]
    assert not grads["flat.weight_first"]
    assert "one.weight" not in grads


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, r"needs one of energy, macs and ranks.*got energy=None"),
        ({"energy": 0.9, "macs": 0.5}, "needs one of energy, macs and ranks"),
        ({"energy": 1.0}, r"energy=1\) is no share: give 0 < energy < 1"),
        ({"macs": 0.0}, r"macs=0\) is no share"),
        ({"energy": 0.9, "step": 0}, r"conv is 'channel' or 'space', step is 1 or more"),
        ({"energy": 0.9, "conv": "time"}, r"conv='time', step=8\)"),
    ],
)
def test_nonsense_is_refused(settings, message: str) -> None:
    with pytest.raises(PlanError, match=message):
        Factorize(**settings)


def test_what_cannot_be_done_is_refused_before_any_work() -> None:
    graph, _ = copy.deepcopy(captured("mlp"))
    for rank, message in (
        (17, r"rank 17 of 'layers.0.weight' is over its full rank, 16 of \(32, 16\). Give 1 ... 10"),
        (0, "is over its full rank"),
        (11, r"rank 11 makes 'layers.0.weight' dearer, 528 MACs where it has 512. Give a rank of 10 or less"),
    ):
        with pytest.raises(PlanError, match=message):
            Factorize(ranks=(("layers.0.weight", rank),)).plan(graph)
    with pytest.raises(
        PlanError, match=r"names 'nose.weight', which is no layer that low rank fits; these are: layers.0"
    ):
        Factorize(ranks=(("nose.weight", 3),)).plan(graph)
    with pytest.raises(PlanError, match=r"macs=0.01\) cannot be met: with the least ranks 0\.\d+ of the MACs are left"):
        Factorize(macs=0.01).plan(graph)
    with pytest.raises(
        PlanError, match=r"No layer becomes cheaper by low rank: ask for less energy.*\n  layers.0.weight: rank"
    ):
        Factorize(energy=0.999).plan(graph)
    with pytest.raises(PlanError, match="needs data to calibrate on; got no task"):
        Factorize(energy=0.5, weighted=True).plan(graph)
    method = Factorize(energy=0.5, step=1)
    with pytest.raises(
        PlanError, match=r"another graph: layers.0.weight should be a linear layer \(32, 16\) at linear"
    ):
        method.apply(copy.deepcopy(captured("conv")[0]), method.plan(graph))
    with torch.no_grad():
        graph.get_parameter("layers.0.weight")[0, 0] = float("nan")
    with pytest.raises(PlanError, match=r"'layers.0.weight' holds NaN"):
        method.plan(graph)
