"""Methods after one another: every ordered pair and the sensible triples, on four kinds of network that ship.

Apply, check, train a step, save, reload, export, run; what cannot follow what is refused before anything is done.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.fx import GraphModule

import trimtab as tt
from tests.contracts.composed import NAMES, Kind, kind
from trimtab.compress.build import Built, build
from trimtab.compress.objectives import Logits
from trimtab.compress.order import clash, refuse_order
from trimtab.core import Method, Recipe, Tools
from trimtab.errors import PlanError
from trimtab.graph.capture import capture
from trimtab.graph.cost import num_parameters
from trimtab.graph.packed import precision_of
from trimtab.graph.save import load_graph, save_graph
from trimtab.runtimes import RUNTIMES
from trimtab.runtimes.check import require_agreement

METHODS: dict[str, Callable[[str], Method]] = {
    "prune": lambda net: tt.Prune(ratio=0.5, round_to=4),
    "drop": lambda net: tt.DropBlocks(1, samples=16),
    "share": lambda net: tt.ShareBlocks(1),
    "factorize": lambda net: tt.Factorize(energy=0.5, step=1),
    "distill": lambda net: tt.Distill(
        epochs=1, lr=1e-3, objectives=(Logits(dim=1 if net in ("cnn", "encoder") else -1),)
    ),
    "fine-tune": lambda net: tt.FineTune(epochs=1, lr=1e-3),
    "sparsify": lambda net: tt.Sparsify(0.5),
    "palette": lambda net: tt.Palette(3),
    "quantize": lambda net: tt.Quantize(samples=16),
    "qat": lambda net: tt.QAT(epochs=1, start=tt.Quantize(samples=16)),
    "dynamic": lambda net: tt.Dynamic(min_features=4),
    "int8 weights": lambda net: tt.WeightOnly("int8"),
}
INTEGERS = ("quantize", "qat", "dynamic", "int8 weights")
# earlier -> what would undo it
UNDONE = {
    **dict.fromkeys(INTEGERS, tuple(METHODS)),
    "palette": ("factorize", "distill", "fine-tune", "qat"),
    "sparsify": ("factorize", "qat"),
}
PAIRS = list(itertools.product(METHODS, METHODS))
GOOD = [pair for pair in PAIRS if pair[1] not in UNDONE.get(pair[0], ())]
TRIPLES = [
    ("prune", "distill", "quantize"),
    ("drop", "distill", "dynamic"),
    ("share", "distill", "int8 weights"),
    ("factorize", "distill", "quantize"),
    ("prune", "sparsify", "palette"),
    ("sparsify", "distill", "palette"),
    ("prune", "factorize", "fine-tune"),
    ("drop", "prune", "qat"),
    ("factorize", "share", "palette"),
]
# What a network has nothing for after a step: refused with the reason. Energy gives the encoder's layers unequal ranks.
NOTHING = {("encoder", ("factorize", "share")): "0 with another of the same names and shapes"}
QUICK = [
    ("cnn", ("sparsify", "distill")),
    ("encoder", ("factorize", "quantize")),
    ("reader", ("prune", "fine-tune")),
    ("decoder", ("share", "palette")),
]


@functools.cache
def whole(net: str) -> tuple[Kind, GraphModule]:
    found = kind(net)
    return found, capture(found.module, found.example)


@functools.cache
def made(net: str, names: tuple[str, ...]) -> GraphModule:
    """What a recipe makes of a network; what begins alike is made once."""
    given, original = whole(net)
    if not names:
        return original
    before, method = made(net, names[:-1]), METHODS[names[-1]](net)
    plan = method.plan(before, given.task)
    assert plan.rows()
    return method.apply(before, plan, Tools(task=given.task, original=original))


def require_sound(net: str, names: tuple[str, ...], folder: Path, *, served: bool = True) -> None:
    """The result answers, is saved and loaded bit for bit, trains a step unless it holds integers, and is served."""
    given, original = whole(net)
    if why := NOTHING.get((net, names[:2])):
        with pytest.raises(PlanError, match=why):
            made(net, names)
        return
    result = made(net, names)
    refuse_order(Recipe(tuple(METHODS[name](net) for name in names)))
    answers = result(*given.example)
    assert answers.shape == original(*given.example).shape
    assert answers.isfinite().all()
    assert num_parameters(result) <= num_parameters(original)
    save_graph(result, folder / "graph")
    back = load_graph(folder / "graph")
    assert torch.equal(back(*given.example), answers)
    precision = precision_of(result) or "fp32"
    assert (precision == "fp32") == (not set(names) & set(INTEGERS))
    if precision == "fp32":
        before = {name: p.detach().clone() for name, p in back.named_parameters()}
        batch = given.task.train.batch(slice(0, 8))
        given.task.loss(back.train()(*batch.inputs), batch.targets).backward()
        torch.optim.SGD(back.parameters(), lr=0.05).step()
        assert all(p.isfinite().all() for p in back.parameters())
        assert any(not torch.equal(p, before[name]) for name, p in back.named_parameters())
    if not served:
        return
    runtime = RUNTIMES["onnxruntime"]
    (folder / "file").mkdir()
    runtime.export(result, folder / "file", precision=precision, batch_size=1, threads=1)
    inputs = tuple(x[:4].numpy() for x in given.task.select.inputs)
    agreement = require_agreement(result, runtime, folder / "file", precision=precision, inputs=inputs)
    assert agreement.n == 4


@pytest.mark.parametrize(("net", "names"), QUICK, ids=str)
def test_a_pair_on_each_kind_of_network(net: str, names: tuple[str, ...], tmp_path: Path) -> None:
    require_sound(net, names, tmp_path, served=net == "cnn")


@pytest.mark.slow
@pytest.mark.parametrize("net", NAMES)
@pytest.mark.parametrize("names", GOOD + TRIPLES, ids=" + ".join)
def test_every_pair_and_sensible_triples(net: str, names: tuple[str, ...], tmp_path: Path) -> None:
    require_sound(net, names, tmp_path, served=False)


# Writing the file takes most of the time: each on one network, in turn.
@pytest.mark.slow
@pytest.mark.parametrize(("place", "names"), list(enumerate(GOOD + TRIPLES)), ids=str)
def test_each_of_them_is_served(place: int, names: tuple[str, ...], tmp_path: Path) -> None:
    require_sound(NAMES[place % len(NAMES)], names, tmp_path)


def test_what_undoes_what_is_exactly_what_is_refused() -> None:
    refused = {pair for pair in PAIRS if clash(*(METHODS[name]("cnn") for name in pair))}
    assert refused == set(PAIRS) - set(GOOD)


@pytest.mark.parametrize(
    ("recipe", "words"),
    [
        ((tt.Quantize(), tt.Prune(ratio=0.5)), "'prune .*' after 'int8': integers can no longer be cut"),
        ((tt.Quantize(), tt.Distill()), "QAT trains with the rounding in place"),
        ((tt.Prune(ratio=0.5), tt.Palette(), tt.FineTune()), r"moves the shared numbers apart; Palette\(epochs=...\)"),
        ((tt.Palette(), tt.Prune(ratio=0.5, importance="obs")), "a value of its own again; put the palette after it"),
        ((tt.Sparsify(0.5), tt.QAT()), "fills the zeros in; take Quantize, which keeps them"),
        ((tt.Sparsify(0.5), tt.Prune(ratio=0.5, compensate=True)), "fills the zeros in; put the zeros after it"),
    ],
    ids=str,
)
def test_an_order_that_cannot_work_is_refused_before_any_work(recipe: tuple[Method, ...], words: str) -> None:
    def never(name: str, make: Any) -> Path:
        raise AssertionError(name)

    given, original = whole("cnn")
    with pytest.raises(PlanError, match=f"^The recipe .* cannot work: .*{words}"):
        build(Recipe(recipe), Built(original, Path(), ()), given.task, once_folder=never, tools=Tools())


def test_a_search_refuses_such_a_recipe_before_it_begins(tmp_path: Path) -> None:
    recipe = Recipe((tt.Quantize(), tt.Prune(ratio=0.5)))
    given = kind("cnn")
    with pytest.raises(PlanError, match="cannot work"):
        tt.optimize(given.module, given.task, recipes=(recipe,), run=tmp_path / "run", quiet=True)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", [name for name in METHODS if name not in INTEGERS])
def test_a_quantized_graph_is_refused_by_the_method_itself(name: str) -> None:
    given, _ = whole("cnn")
    with pytest.raises(PlanError, match=r"the graph holds int8w weights already, .* before quantization"):
        METHODS[name]("cnn").plan(made("cnn", ("int8 weights",)), given.task)


@pytest.mark.parametrize("name", ["distill", "fine-tune"])
def test_training_keeps_zeros_and_moves_the_rest(name: str) -> None:
    sparse, trained = made("cnn", ("sparsify",)), made("cnn", ("sparsify", name))
    after = dict(trained.named_parameters())
    moved = []
    for key, before in sparse.named_parameters():
        if before.ndim > 1:
            assert torch.equal(before == 0, after[key] == 0)
            assert float((before == 0).double().mean()) == 0.5
            moved.append(not torch.equal(before, after[key]))
    assert moved
    assert all(moved)
