"""Optimal Brain Surgeon for channels: agrees with refitting the layer without each of them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tests.compress.test_quantize import task_of
from trimtab.compress import saliency
from trimtab.compress.allocate import Budget
from trimtab.compress.calibration import batches, input_rows, layer_of
from trimtab.compress.prune import Prune
from trimtab.compress.saliency import saliencies
from trimtab.compress.sensitivity import relative_error
from trimtab.core import Split, Tools
from trimtab.graph.capture import capture
from trimtab.graph.cost import macs
from trimtab.graph.dims import groups


def refit_error(x: Tensor, y: Tensor, columns: list[int]) -> float:
    """The squared error that is left when y is fitted on all columns of x but some, with a constant."""
    kept = [c for c in range(x.shape[1]) if c not in columns]
    rows = torch.cat([x[:, kept], torch.ones(len(x), 1, dtype=x.dtype)], dim=1)
    return float((rows @ torch.linalg.lstsq(rows, y).solution - y).square().sum() / y.square().sum())


def net_of(conv: bool) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    if conv:
        return nn.Sequential(nn.Conv2d(2, 6, 3), nn.ReLU(), nn.Conv2d(6, 4, 2)).eval(), torch.randn(64, 2, 6, 6)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 5)).eval(), torch.randn(256, 6)


def test_the_first_to_go_costs_what_a_refit_leaves(monkeypatch) -> None:
    monkeypatch.setattr(saliency, "DAMPENING", 1e-9)
    for conv in (False, True):
        module, x = net_of(conv)
        graph = capture(module, (x[:2],))
        data = batches(Split((x,), torch.zeros(len(x))))
        own = saliencies(graph, list(groups(graph).cuttable), data)["0"].values
        layer = [found for node in graph.graph.nodes if (found := layer_of(graph, node))][1]
        h = module[1](module[0](x)).detach()
        y = module(x).detach()
        if conv:
            rows = input_rows(layer, h, (2, 2), torch.arange(9))[0].double()
            y = y.flatten(2).permute(0, 2, 1).reshape(len(rows), -1)
        else:
            rows = h.double()
        each = rows.shape[1] // len(own)
        errors = [refit_error(rows, y.double(), list(range(c * each, (c + 1) * each))) for c in range(len(own))]
        first = int(torch.tensor(errors).argmin())
        assert int(own.argmin()) == first
        torch.testing.assert_close(float(own[first]), errors[first], rtol=1e-2, atol=1e-6)


def test_of_two_that_carry_the_same_only_one_is_cheap(monkeypatch) -> None:
    monkeypatch.setattr(saliency, "DAMPENING", 1e-6)
    module, x = net_of(conv=False)
    with torch.no_grad():
        module[0].weight[5], module[0].bias[5] = module[0].weight[2], module[0].bias[2]
    graph = capture(module, (x[:2],))
    own = saliencies(graph, list(groups(graph).cuttable), batches(Split((x,), torch.zeros(len(x)))))["0"].values
    twins, others = own[[2, 5]].sort().values, own[[c for c in range(8) if c not in (2, 5)]]
    assert twins[0] == own.min() < 0.2 * others.min()
    assert twins[1] >= others.min()


def test_groups_in_runs_of_little_memory_score_the_same(monkeypatch) -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 9), nn.ReLU(), nn.Linear(9, 5)).eval()
    task = task_of(torch.randn(4, 6))
    graph = capture(module, (torch.randn(2, 6),))
    found = list(groups(graph).cuttable)
    whole = saliencies(graph, found, batches(task.train))
    monkeypatch.setattr(saliency, "GRAM_NUMBERS", 1)
    apart = saliencies(graph, found, batches(task.train))
    assert set(whole) == set(apart) == {"0", "2"}
    assert all(torch.equal(whole[name].values, apart[name].values) for name in whole)


def test_what_is_too_large_to_solve_is_left_out(monkeypatch) -> None:
    module, x = net_of(conv=False)
    graph = capture(module, (x[:2],))
    monkeypatch.setattr(saliency, "MAX_FEATURES", 4)
    assert saliencies(graph, list(groups(graph).cuttable), batches(Split((x,), torch.zeros(len(x))))) == {}


def test_the_curve_is_how_far_the_outputs_move_with_the_rest_refitted() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 1)).eval()
    x, judged = torch.randn(256, 6), Split((torch.randn(48, 6),), torch.zeros(48))
    graph = capture(module, (x[:2],))
    data = batches(Split((x,), torch.zeros(len(x))))
    own = saliencies(graph, list(groups(graph).cuttable), data, judge=judged)["0"]
    assert [left for left, _ in own.curve] == [7, 6, 5, 4, 3, 2, 1]
    with_one = lambda x: torch.cat([module[1](module[0](x)), torch.ones(len(x), 1)], 1).detach().double()  # noqa: E731
    rows, seen = with_one(x), with_one(judged.inputs[0])
    h = rows.T @ rows
    h = h + saliency.DAMPENING * h.diagonal().mean() * torch.eye(9, dtype=h.dtype)
    weight = torch.cat([module[2].weight[0], module[2].bias]).detach().double()
    exact = seen @ weight
    for left, error in own.curve:
        kept = [*own.values.argsort(descending=True)[:left].sort().values.tolist(), 8]
        refitted = torch.linalg.solve(h[kept][:, kept], h[kept] @ weight)
        off = float((seen[:, kept] @ refitted - exact).square().sum() / (exact - exact.mean()).square().sum())
        torch.testing.assert_close(error, off, rtol=2e-2, atol=1e-6)


class TwoWays(nn.Module):
    """[B, 6] -> [B, 4]: two ways of like nets, one of which hardly counts."""

    def __init__(self) -> None:
        super().__init__()
        self.loud, self.quiet = (nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 4)) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        return self.loud(x) + 0.01 * self.quiet(x)


def test_a_budget_takes_channels_where_the_outputs_hardly_move() -> None:
    torch.manual_seed(0)
    module, x = TwoWays().eval(), torch.randn(2, 6)
    plan = Prune(budget=Budget(macs=0.6), importance="obs", samples=64, round_to=1).plan(
        capture(module, (x,)), task_of(x)
    )
    cuts = {one.group: len(one.kept) for one in plan.cuts}
    assert cuts["quiet.0"] <= 3
    assert cuts.get("loud.0", 16) == 16


def test_as_measured_frees_what_uniform_does_and_moves_the_outputs_less() -> None:
    torch.manual_seed(0)
    module, x = TwoWays().eval(), torch.randn(2, 6)
    graph, task = capture(module, (x,)), task_of(x)
    left, moved = {}, {}
    for allocation in ("uniform", "measured"):
        method = Prune(0.25, importance="obs", allocation=allocation, samples=64, round_to=1)
        pruned = method.apply(graph, method.plan(graph, task), Tools(task=task))
        left[allocation], moved[allocation] = macs(pruned), relative_error(graph, pruned, task.select)
    assert left["measured"] <= left["uniform"]
    assert moved["measured"] < 0.1 * moved["uniform"]
