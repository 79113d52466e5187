"""What every method promises, one table row per method and network."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cattrs
import pytest
import torch
from torch import Tensor
from torch.fx import GraphModule

import trimtab as tt
from tests.compress.test_quantize import task_of
from tests.nets import NETS, net
from trimtab.compress.build import key
from trimtab.compress.objectives import Features, Labels, Logits, Outputs, Relations, SpatialAttention
from trimtab.compress.recipes import default_picks, recipe_of
from trimtab.core import Fit, Method, Recipe, Skip, Task, Tools
from trimtab.errors import PlanError
from trimtab.graph.capture import capture
from trimtab.graph.packed import precision_of
from trimtab.graph.save import load_graph, save_graph
from trimtab.runtimes import RUNTIMES
from trimtab.runtimes.base import is_quantized
from trimtab.runtimes.check import require_agreement

FIT = Fit(epochs=1, batch_size=32, precision="fp32")
OBJECTIVES = (
    Logits(temperature=3.0, weight=0.5),
    Outputs(weight=0.1),
    Features(at=("relu", "relu_1")),
    Relations(at=("relu_1",)),
    SpatialAttention(at=("relu",)),
    Labels(weight=0.3),
)
METHODS: dict[str, Callable[[], Method]] = {
    "prune": lambda: tt.Prune(ratio=0.5),
    "prune exactly": lambda: tt.Prune(ratio=0.3, round_to=1),
    "prune by obs": lambda: tt.Prune(ratio=0.5, importance="obs", samples=64),
    "prune as measured": lambda: tt.Prune(ratio=0.5, importance="obs", allocation="measured", samples=64),
    "prune by taylor": lambda: tt.Prune(ratio=0.5, importance="taylor", samples=64),
    "prune by fisher, globally": lambda: tt.Prune(ratio=0.4, importance="fisher", allocation="global", round_to=4),
    "prune by activation, compensated": lambda: tt.Prune(ratio=0.5, importance="activation", compensate=True),
    "prune by bn_scale to a budget": lambda: tt.Prune(
        budget=tt.Budget(macs=0.6, params=0.8), importance="bn_scale", round_to=2
    ),
    "sparsify": lambda: tt.Sparsify(0.5),
    "sparsify by activation, compensated": lambda: tt.Sparsify(
        0.5, importance="activation", samples=64, compensate=True
    ),
    "palette": lambda: tt.Palette(3),
    "palette, weighted, compensated, trained": lambda: tt.Palette(
        3, weighted=True, compensate=True, samples=64, epochs=1
    ),
    "low rank": lambda: tt.Factorize(macs=0.6, step=2, conv="space"),
    "low rank, weighted": lambda: tt.Factorize(energy=0.6, step=1, weighted=True, samples=64),
    "share blocks": lambda: tt.ShareBlocks(2, by="outputs"),
    "drop blocks": lambda: tt.DropBlocks(ratio=0.5, samples=64),
    "distill": lambda: tt.Distill(epochs=1, lr=1e-3),
    "distill all but attention": lambda: tt.Distill(epochs=1, lr=1e-3, objectives=OBJECTIVES),
    "fine-tune": lambda: tt.FineTune(epochs=1, lr=1e-3),
    "quantize": lambda: tt.Quantize(samples=64),
    "qat": lambda: tt.QAT(epochs=1, start=tt.Quantize(samples=64)),
    "qat by labels, 4 bits": lambda: tt.QAT(
        epochs=1, lr=2e-3, start=tt.Quantize(samples=64, weight_bits=4), learn_from="labels"
    ),
    "dynamic": lambda: tt.Dynamic(min_features=8),
    "int8 weights": lambda: tt.WeightOnly("int8"),
    "int4 weights in groups, with zeros": lambda: tt.WeightOnly("int4", group_size=8, symmetric=False),
    "int4 weights by gptq": lambda: tt.WeightOnly("int4", rounding="gptq", samples=64),
    "int4 and int8 weights": lambda: tt.WeightOnly("int4", most_error=0.02),
    "nf4 weights": lambda: tt.WeightOnly("nf4"),
    "fp8 weights": lambda: tt.WeightOnly("fp8"),
    "fp16 weights": lambda: tt.WeightOnly("fp16"),
    "quantize, rounding learned": lambda: tt.Quantize(samples=64, rounding="learned"),
    "quantize, equalized": lambda: tt.Quantize(samples=64, equalize=True),
}
ROWS = [
    ("prune", "resnet"),
    ("prune", "mlp"),
    ("prune exactly", "conv"),
    ("prune by obs", "resnet"),
    ("prune as measured", "resnet"),
    ("prune by taylor", "conv"),
    ("prune by fisher, globally", "mlp"),
    ("prune by activation, compensated", "conv"),
    ("prune by bn_scale to a budget", "resnet"),
    ("sparsify", "conv"),
    ("sparsify by activation, compensated", "mlp"),
    ("palette", "resnet"),
    ("palette, weighted, compensated, trained", "mlp"),
    ("low rank", "resnet"),
    ("low rank, weighted", "conv"),
    ("share blocks", "twins"),
    ("drop blocks", "resnet"),
    ("distill", "conv"),
    ("distill", "mlp"),
    ("distill all but attention", "conv"),
    ("fine-tune", "resnet"),
    ("quantize", "mlp"),
    ("quantize", "conv"),
    ("quantize", "resnet"),
    ("qat", "mlp"),
    ("qat", "resnet"),
    ("qat by labels, 4 bits", "conv"),
    ("dynamic", "mlp"),
    ("int8 weights", "mlp"),
    ("int4 weights in groups, with zeros", "mlp"),
    ("int4 weights by gptq", "conv"),
    ("nf4 weights", "conv"),
    ("fp8 weights", "mlp"),
    ("fp16 weights", "mlp"),
    ("quantize, rounding learned", "conv"),
    ("quantize, equalized", "resnet"),
]
# What learns from data alone has no structure to replay, so its plan fits any graph.
LEARNING = ("distill", "distill all but attention", "fine-tune")
# Ranges found at run time are those of a batch, so an answer moves a little with what else is in it.
OF_A_BATCH = ("dynamic",)
# After these the graph reads other parameters than before.
FEWER = ("drop blocks", "low rank", "share blocks")


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Nets this small gain nothing from more threads, and lose much where other work runs beside the tests."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@dataclass(frozen=True)
class Row:
    """One method, the graph and the task it was given, and what it made of them."""

    method_name: str
    net: str
    make: Callable[[], Method]
    graph: GraphModule
    task: Task
    plan: Any
    result: GraphModule
    x: Tensor

    def tools(self, **changed: Any) -> Tools:
        return Tools(**{"task": self.task, "original": self.graph, **changed})


def given(name: str) -> tuple[GraphModule, Task, Tensor]:
    module, x = net(name)
    return capture(module, (x,)), dataclasses.replace(task_of(x), fit=FIT), x


@pytest.fixture(scope="module", params=ROWS, ids="-".join)
def row(request: pytest.FixtureRequest) -> Row:
    method_name, net_name = request.param
    graph, task, x = given(net_name)
    method = METHODS[method_name]()
    plan = method.plan(graph, task)
    result = method.apply(graph, plan, Tools(task=task, original=graph))
    return Row(method_name, net_name, METHODS[method_name], graph, task, plan, result, x)


def same_bits(one: GraphModule, other: GraphModule) -> bool:
    a, b = one.state_dict(), other.state_dict()
    if a.keys() != b.keys() or one.code != other.code:
        return False
    return all(torch.equal(value, b[name]) and value.dtype == b[name].dtype for name, value in a.items())


def test_method_and_plan_are_frozen_values(row: Row) -> None:
    method = row.make()
    assert method == row.make()
    assert hash(method) == hash(row.make())
    assert method.name
    for value in (method, row.plan):
        for field in dataclasses.fields(value):
            with pytest.raises(dataclasses.FrozenInstanceError):
                setattr(value, field.name, None)


def test_planning_again_gives_the_same_plan(row: Row) -> None:
    assert row.make().plan(row.graph, row.task) == row.plan


def test_the_plan_goes_through_json_and_comes_back_equal(row: Row) -> None:
    text = json.dumps(cattrs.unstructure(row.plan), allow_nan=False)
    assert cattrs.structure(json.loads(text), type(row.plan)) == row.plan


def test_the_plan_says_what_it_does_and_what_it_left_alone(row: Row) -> None:
    assert isinstance(row.plan.skipped, tuple)
    assert all(isinstance(skip, Skip) and skip.what and skip.why for skip in row.plan.skipped)
    rows = row.plan.rows()
    assert rows
    assert len({tuple(line) for line in rows}) == 1, "every row has the same columns"
    assert json.loads(json.dumps(rows, allow_nan=False)) == rows


def test_the_graph_that_was_given_is_untouched(row: Row) -> None:
    fresh, _, x = given(row.net)
    assert same_bits(row.graph, fresh)
    assert not row.graph.training
    assert all(p.grad is None and p.requires_grad for p in row.graph.parameters())
    assert torch.equal(row.graph(x), fresh(x))
    shared = {p.data_ptr() for p in row.graph.parameters()} & {p.data_ptr() for p in row.result.parameters()}
    assert not shared, "the result stands on its own weights"


def test_the_plan_as_json_applied_to_a_fresh_graph_gives_the_same_bits(row: Row) -> None:
    fresh, task, _ = given(row.net)
    plan = cattrs.structure(json.loads(json.dumps(cattrs.unstructure(row.plan))), type(row.plan))
    again = row.make().apply(fresh, plan, Tools(task=task, original=fresh))
    assert same_bits(again, row.result)


def test_the_result_answers_for_any_batch_in_eval_mode(row: Row) -> None:
    assert not row.result.training
    whole = row.result(row.x)
    assert whole.shape == row.graph(row.x).shape
    assert whole.isfinite().all()
    near = 0.1 * float(whole.detach().abs().max()) if row.method_name in OF_A_BATCH else 1e-5
    assert torch.allclose(row.result(row.x[:1]), whole[:1], atol=near)
    assert not torch.equal(whole, row.graph(row.x)), "it did something"


def test_the_result_is_saved_and_loaded_bit_for_bit(row: Row, tmp_path: Path) -> None:
    save_graph(row.result, tmp_path)
    back = load_graph(tmp_path)
    assert same_bits(back, row.result)
    assert torch.equal(back(row.x), row.result(row.x))


def test_the_result_trains_on_unless_it_is_integers(row: Row, tmp_path: Path) -> None:
    save_graph(row.result, tmp_path)
    model = load_graph(tmp_path).train()
    if is_quantized(row.result):
        assert isinstance(row.make(), tt.Quantize | tt.QAT | tt.Dynamic | tt.WeightOnly)
        return
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    torch.nn.functional.cross_entropy(model(row.x), torch.arange(len(row.x)) % 5).backward()
    torch.optim.SGD(model.parameters(), lr=0.1).step()
    original = dict(row.graph.named_parameters()).keys()
    new = {name.removesuffix("_first").removesuffix("_second") for name in before.keys() - original}
    assert new == {one.weight for one in getattr(row.plan, "factors", ())}, "layers in two have new weights"
    assert before.keys() == original or row.method_name.startswith(FEWER)
    for name, p in model.named_parameters():
        assert p.isfinite().all(), name
        assert p.grad is not None, name
    assert any(not torch.equal(p, before[name]) for name, p in model.named_parameters())


def test_the_result_exports_and_the_file_answers_as_it_does(row: Row, tmp_path: Path) -> None:
    precision = precision_of(row.result) or "fp32"
    runtime = RUNTIMES["onnxruntime"]
    runtime.export(row.result, tmp_path, precision=precision, batch_size=1, threads=1)
    inputs = (row.task.select.inputs[0][:16].numpy(),)
    agreement = require_agreement(row.result, runtime, tmp_path, precision=precision, inputs=inputs)
    assert agreement.n == 16


@pytest.mark.parametrize("other", NETS)
def test_a_plan_for_another_graph_is_refused(row: Row, other: str) -> None:
    if row.method_name in LEARNING or other == row.net:
        return
    graph, task, _ = given(other)
    with pytest.raises(PlanError, match="another graph"):
        row.make().apply(graph, row.plan, Tools(task=task, original=graph))


def test_a_plan_for_the_graph_before_it_was_cut_is_refused(row: Row) -> None:
    if row.method_name in LEARNING:
        return
    cutter = tt.Prune(ratio=0.5)
    cut = cutter.apply(row.graph, cutter.plan(row.graph, row.task), row.tools())
    with pytest.raises(PlanError, match="another graph"):
        row.make().apply(cut, row.plan, row.tools())


def test_different_settings_have_different_keys(row: Row) -> None:
    method = row.make()
    number = next(f.name for f in dataclasses.fields(method) if isinstance(getattr(method, f.name), int | float))
    other = dataclasses.replace(method, **{number: getattr(method, number) * 1.5})  # type: ignore[type-var]
    assert key(Recipe((method,))) == key(Recipe((row.make(),)))
    assert key(Recipe((other,))) != key(Recipe((method,)))


def test_every_method_has_a_row() -> None:
    made = {type(METHODS[name]()) for name, _ in ROWS}
    public = {getattr(tt, name) for name in tt.__all__ if {"plan", "apply"} <= set(dir(getattr(tt, name)))}
    assert made == public
    first = map(recipe_of, default_picks("latency_ms", linear=False, residual=True))
    assert {type(method) for recipe in first for method in recipe.methods} <= made
