"""Calibration: which samples, which layers, and rows that times the weights give the layer's outputs."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor, nn

from tests.compress.test_quantize import task_of
from tests.graph.test_dims import Forward
from trimtab.compress.calibration import (
    Layer,
    batches,
    calibration,
    chunked,
    grams,
    input_rows,
    layer_of,
    output_rows,
    pick,
    require_fitting,
    watch,
    watch_outputs,
    with_one,
)
from trimtab.core import Split
from trimtab.errors import PlanError
from trimtab.graph.capture import capture, get_tensor

LAYERS: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
    "linear": (nn.Linear(6, 4), (6,)),
    "linear of a sequence": (nn.Linear(6, 4, bias=False), (7, 6)),
    "conv": (nn.Conv2d(6, 4, 3, stride=2, padding=1), (6, 9, 8)),
    "conv, dilated, in groups": (nn.Conv2d(6, 4, (3, 2), dilation=2, groups=2, padding=(2, 0)), (6, 9, 8)),
    "conv 1d": (nn.Conv1d(6, 4, 5, stride=2, padding=2), (6, 11)),
    "conv 3d": (nn.Conv3d(2, 4, 2), (2, 4, 5, 3)),
    "product": (
        Forward(lambda m, x: torch.addmm(m.b.weight[0], x, m.w.weight), w=nn.Embedding(6, 4), b=nn.Embedding(1, 4)),
        (6,),
    ),
    "product without a sum": (Forward(lambda m, x: x @ m.w.weight, w=nn.Embedding(6, 4)), (7, 6)),
}


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("few", [False, True])
def test_rows_times_the_weights_are_the_outputs(name: str, few: bool) -> None:
    module, shape = LAYERS[name]
    x = torch.randn(3, *shape)
    graph = capture(module.eval(), (x,))
    found = [layer for node in graph.graph.nodes if (layer := layer_of(graph, node))]
    if name == "product":
        assert not found, "what is added is computed, so it is no bias"
        return
    (layer,) = found
    weight, y = get_tensor(graph, layer.weight), graph(x)
    picked = pick(layer, y, 6 if few else 10_000)
    rows = with_one(layer, input_rows(layer, x, tuple(weight.shape[2:]), picked))
    matrix = layer.matrix(weight).mT
    if layer.bias:
        bias = get_tensor(graph, layer.bias).reshape(layer.num_groups, 1, -1)
        matrix = torch.cat([matrix, bias], dim=1)
    wanted = output_rows(layer, y, picked)
    assert len(wanted[0]) <= 12 if few else wanted.numel() == y.numel()
    torch.testing.assert_close(rows @ matrix, wanted, rtol=1e-4, atol=1e-5)
    assert torch.equal(layer.weight_of(layer.matrix(weight), weight.shape), weight)


def test_a_gram_is_the_sum_over_all_batches() -> None:
    conv = nn.Conv2d(4, 4, 3, padding=1, groups=2)
    task = task_of(torch.randn(4, 4, 5, 5))
    graph = capture(conv.eval(), (torch.randn(2, 4, 5, 5),))
    layer = next(layer for node in graph.graph.nodes if (layer := layer_of(graph, node)))
    data = batches(task.train, 10)
    own = grams(graph, [layer], data)[layer.node]
    rows = torch.cat([input_rows(layer, b.inputs[0], (3, 3), torch.arange(25)) for b in data], dim=1)
    rows = with_one(layer, rows).double()
    assert rows.shape[1] < 8192, "all rows are taken"
    torch.testing.assert_close(own, rows.mT @ rows, rtol=1e-5, atol=1e-4)


def test_columns_say_which_features_a_channel_has() -> None:
    layer = Layer("conv", "input", "w", None, num_groups=2, stride=(1, 1))
    weight = torch.zeros(4, 3, 2, 1)
    table = torch.tensor([[0, 3], [1, 4], [2, 5]])
    first, second = layer.columns(table, 6, weight) or []
    assert first.tolist() == second.tolist() == [[0, 1], [2, 3], [4, 5]]
    assert layer.columns(torch.tensor([[0], [3]]), 6, weight) is None


def test_shared_and_computed_weights_are_no_layers() -> None:
    twice = Forward(lambda m, x: m.a(torch.relu(m.a(x))), a=nn.Linear(6, 6))
    computed = Forward(lambda m, x: torch.nn.functional.linear(x, m.a.weight * 2), a=nn.Linear(6, 6))
    for module in (twice, computed):
        graph = capture(module.eval(), (torch.randn(2, 6),))
        assert [layer_of(graph, node) for node in graph.graph.nodes if layer_of(graph, node)] == []


def test_watching_shows_what_goes_in_and_changes_nothing() -> None:
    graph = capture(nn.Sequential(nn.ReLU(inplace=True), nn.Linear(6, 3)).eval(), (torch.randn(2, 6),))
    task = task_of(torch.randn(4, 6))
    before, seen = task.train.inputs[0].clone(), []
    watch(graph, ["linear"], batches(task.train), lambda node, values: seen.append(values["input"]))
    assert torch.equal(torch.cat(seen), before.relu())
    assert torch.equal(task.train.inputs[0], before)


def test_watching_outputs_shows_inputs_and_what_layers_give() -> None:
    module = nn.Sequential(nn.Linear(6, 3), nn.Tanh()).eval()
    graph, task = capture(module, (torch.randn(2, 6),)), task_of(torch.randn(4, 6))
    first = next(iter(graph.graph.nodes)).name
    seen: dict[str, list[torch.Tensor]] = {first: [], "linear": []}
    watch_outputs(graph, seen, batches(task.train), lambda node, value: seen[node.name].append(value))
    assert torch.equal(torch.cat(seen[first]), task.train.inputs[0])
    assert torch.allclose(torch.cat(seen["linear"]), module[0](task.train.inputs[0]))


def test_samples_that_the_graph_cannot_take_are_refused() -> None:
    graph = capture(nn.Linear(6, 3).eval(), (torch.randn(2, 6),))
    require_fitting(graph, task_of(torch.randn(4, 6)).train)
    for wrong, said in [
        (torch.randn(32, 7), r"a sample is \[7\] torch\.float32, and the graph takes \[6\] torch\.float32"),
        (torch.randn(32, 6, 6), r"a sample is \[6, 6\] torch\.float32"),
        (torch.randn(32, 6).double(), r"a sample is \[6\] torch\.float64"),
    ]:
        with pytest.raises(PlanError, match=said):
            require_fitting(graph, Split((wrong,), torch.arange(32)))
    with pytest.raises(PlanError, match=r"a sample is \[6\] torch\.float32, \[6\] torch\.float32, and"):
        require_fitting(graph, Split((torch.randn(32, 6), torch.randn(32, 6)), torch.arange(32)))


def test_samples_are_spread_over_the_split() -> None:
    task = task_of(torch.randn(4, 6))
    num = len(task.train)
    data = calibration(task, num // 2, purpose="This")
    assert len(data) == num // 2
    assert torch.equal(data.inputs[0][-1], task.train.inputs[0][-1])
    assert len(calibration(task, 10**6, purpose="This")) == num
    pieces = batches(data, 1000)
    assert len(pieces) == 2
    assert sum(map(len, pieces)) == len(data)


def test_refuses_no_data_and_too_little() -> None:
    task = task_of(torch.randn(4, 6))
    with pytest.raises(PlanError, match=r"This needs data to calibrate on; got no task\. Give plan"):
        calibration(None, 64, purpose="This")
    with pytest.raises(PlanError, match=r"needs 16 calibration samples or more; got 8 \(samples=8"):
        calibration(task, 8, purpose="This")
    with pytest.raises(PlanError, match=r"split that has them, or nothing\.$"):
        calibration(task, 8, purpose="This", instead="nothing")
    same = dataclasses.replace(task, train=Split((torch.ones(32, 6),), torch.arange(32)))
    with pytest.raises(PlanError, match="This found the same values in all 32 calibration samples"):
        calibration(same, 64, purpose="This")
    small = dataclasses.replace(task, train=task.train.batch(slice(0, 10)))
    with pytest.raises(PlanError, match=r"got 10 .*10 in the train split.*Give samples=256"):
        calibration(small, 256, purpose="This")


def test_runs_fit_the_limit() -> None:
    sizes = {"a": 3, "b": 3, "c": 5, "d": 1}
    assert chunked(list(sizes), sizes.__getitem__, 7) == [["a", "b"], ["c", "d"]]
    assert chunked(["a"], sizes.__getitem__, 1) == [["a"]]
    assert isinstance(torch.zeros(1), Tensor)
