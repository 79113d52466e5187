"""From recipe to graph: stages are shared, kept and read again; keys tell settings apart."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.fx import GraphModule

from tests.compress.test_quantize import task_of
from tests.nets import net
from trimtab.compress.build import Built, build, key
from trimtab.compress.distill import Distill
from trimtab.compress.prune import Prune
from trimtab.compress.quantize import Quantize
from trimtab.core import Fit, Recipe, Skip, Task, Tools
from trimtab.errors import PlanError
from trimtab.graph.capture import capture
from trimtab.graph.save import load_graph, save_graph


@dataclass(frozen=True)
class ScalePlan:
    """Which factor."""

    factor: float
    skipped: tuple[Skip, ...] = (Skip("biases", "they stay"),)

    def rows(self) -> list[dict[str, Any]]:
        return [{"factor": self.factor}]


@dataclass(frozen=True)
class Scale:
    """A method for tests: it multiplies every weight, and tells `seen` what it was given."""

    factor: float

    @property
    def name(self) -> str:
        return f"scale {self.factor:g}"

    def plan(self, graph: GraphModule, task: Task) -> ScalePlan:
        if self.factor == 0:
            raise PlanError("Nothing would be left.")
        return ScalePlan(self.factor)

    def apply(self, graph: GraphModule, plan: ScalePlan, tools: Tools) -> GraphModule:
        assert tools.report is not None
        tools.report(0, 1, f"{self.name} in {tools.folder}")
        assert tools.task is not None
        assert tools.original is not None
        result = capture(graph, tools.task.select.batch(slice(0, 2)).inputs)
        with torch.no_grad():
            for parameter in result.parameters():
                parameter.mul_(plan.factor)
        return result


@dataclass
class Bench:
    """An original in a folder, and what the methods told while they worked."""

    folder: Path
    original: Built
    task: Task
    told: list[str]

    def build(self, *methods: Any) -> Built:
        tools = Tools(report=lambda done, total, text: self.told.append(text), folder=str(self.folder / "work"))
        return build(Recipe(methods), self.original, self.task, once_folder=self.once_folder, tools=tools)

    def once_folder(self, name: str, make: Callable[[Path], Any]) -> Path:
        folder = self.folder / name
        if not folder.exists():
            folder.mkdir(parents=True)
            make(folder)
        return folder


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    module, x = net("mlp")
    graph = capture(module, (x,))
    save_graph(graph, tmp_path)
    return Bench(tmp_path, Built(graph, tmp_path, ()), task_of(x), [])


def test_the_empty_recipe_is_the_original(bench: Bench) -> None:
    assert bench.build() is bench.original


def test_methods_are_applied_in_order_and_each_stage_is_kept(bench: Bench) -> None:
    built = bench.build(Scale(2.0), Scale(3.0))
    for name, parameter in bench.original.graph.named_parameters():
        assert torch.equal(built.graph.get_parameter(name), parameter * 2 * 3)
    assert [stage.method for stage in built.stages] == ["scale 2", "scale 3"]
    assert [stage.settings for stage in built.stages] == [{"factor": 2.0}, {"factor": 3.0}]
    assert [stage.plan["factor"] for stage in built.stages] == [2.0, 3.0]
    assert built.stages[0].skipped == (Skip("biases", "they stay"),)
    assert all(stage.seconds >= 0 for stage in built.stages)
    stored = json.loads((built.folder / "plan.json").read_text())
    assert (stored["method"], stored["plan"]["factor"]) == ("scale 3", 3.0)


def test_recipes_that_begin_alike_share_their_stages_and_nothing_is_made_twice(bench: Bench) -> None:
    first = bench.build(Scale(2.0), Scale(3.0))
    second = bench.build(Scale(2.0), Scale(5.0))
    again = bench.build(Scale(2.0), Scale(3.0))
    assert [text.partition(" in ")[0] for text in bench.told] == ["scale 2", "scale 3", "scale 5"]
    assert second.stages[0] == first.stages[0]
    assert again.stages == first.stages
    assert all(torch.equal(a, b) for a, b in zip(again.graph.parameters(), first.graph.parameters(), strict=True))


def test_what_was_made_before_is_read_only_where_it_is_needed(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []

    def loaded(folder: Path) -> GraphModule:
        read.append(folder.name.rpartition("-")[0])
        return load_graph(folder)

    monkeypatch.setattr("trimtab.compress.build.load_graph", loaded)
    bench.build(Scale(2.0), Scale(3.0))
    assert read == ["scale-2", "scale-2-scale-3"]
    bench.build(Scale(2.0), Scale(3.0))
    assert read[2:] == ["scale-2-scale-3"]


def test_each_stage_has_a_folder_of_its_own_for_checkpoints(bench: Bench) -> None:
    bench.build(Scale(2.0), Scale(3.0))
    stems = [Recipe((Scale(2.0),)), Recipe((Scale(2.0), Scale(3.0)))]
    assert [text.partition(" in ")[2] for text in bench.told] == [f"{bench.folder}/work/{key(stem)}" for stem in stems]
    assert not list((bench.folder / "work").glob("*")), "checkpoints go once their stage has ended"


def test_a_method_that_refuses_stops_the_recipe_but_keeps_what_came_before(bench: Bench) -> None:
    with pytest.raises(PlanError, match="Nothing would be left"):
        bench.build(Scale(2.0), Scale(0.0))
    assert (bench.folder / "built" / key(Recipe((Scale(2.0),))) / "plan.json").exists()


def test_what_is_built_is_what_the_methods_make(bench: Bench) -> None:
    prune, quantize = Prune(0.5), Quantize(samples=64)
    built = bench.build(prune, quantize)
    graph = bench.original.graph
    cut = prune.apply(graph, prune.plan(graph), Tools())
    want = quantize.apply(cut, quantize.plan(cut, bench.task), Tools())
    x = bench.task.select.inputs[0]
    assert torch.equal(built.graph(x), want(x))


def test_distillation_learns_from_the_original_and_not_from_the_cut_graph(bench: Bench) -> None:
    bench.task = Task(**{**vars(bench.task), "fit": Fit(epochs=1, batch_size=32, precision="fp32")})
    built = bench.build(Prune(0.5), Distill(epochs=40, lr=1e-2))
    cut = bench.build(Prune(0.5))
    x = bench.task.train.inputs[0]
    want = bench.original.graph(x)
    near, far = (nn.functional.mse_loss(one.graph(x), want) for one in (built, cut))
    assert near < 0.5 * far


def test_keys_are_readable_and_tell_settings_apart() -> None:
    recipes = [
        Recipe((Prune(0.5),)),
        Recipe((Prune(0.5, round_to=1),)),
        Recipe((Prune(0.5), Quantize())),
        Recipe((Quantize(), Prune(0.5))),
        Recipe((Scale(0.5),)),
        Recipe(()),
    ]
    keys = [key(recipe) for recipe in recipes]
    assert len(set(keys)) == len(keys)
    assert keys[2].startswith("prune-.5-int8-")
    assert keys[5].startswith("original-")
    assert key(Recipe((Prune(0.5),))) == keys[0]
    assert all("/" not in name and " " not in name and not name.startswith(".") for name in keys)
