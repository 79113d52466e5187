"""Bits of each weight: the knapsack against all choices, the bound that holds, what is said, what is refused."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from tests.compress.test_quantize import task_of
from trimtab.compress.bits import cheapest
from trimtab.compress.sensitivity import relative_error
from trimtab.compress.weightonly import WeightOnly
from trimtab.core import Target, Tools
from trimtab.errors import PlanError
from trimtab.graph.capture import capture
from trimtab.graph.packed import precision_of
from trimtab.runtimes import RUNTIMES
from trimtab.runtimes.evaluate import export_checked


@pytest.mark.parametrize("seed", range(8))
def test_the_knapsack_is_the_best_of_all_choices(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    costs = torch.randint(1, 40, (8,), generator=generator).tolist()
    gains = torch.rand(8, generator=generator).tolist()
    need = 0.4 * sum(gains)
    found = cheapest(costs, gains, need)
    sets = [{place for place in range(8) if picked[place]} for picked in itertools.product((False, True), repeat=8)]
    enough = [one for one in sets if sum(gains[place] for place in one) >= 1.01 * need]
    assert sum(gains[place] for place in found) >= need
    assert sum(costs[place] for place in found) <= min(sum(costs[place] for place in one) for one in enough)


def test_all_are_taken_where_all_are_not_enough() -> None:
    assert cheapest([1, 2], [0.1, 0.1], 1.0) == {0, 1}


class Spiked(nn.Module):
    """In each row of the second layer one weight is far larger than the others, which 4 bits then lose.

    The third sums over what all positions have in common, so its errors add up.
    """

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 16, 1), nn.Linear(16, 5)
        with torch.no_grad():
            self.b.weight[:, 0] *= 60

    def forward(self, x: Tensor) -> Tensor:
        return self.c(torch.relu(self.b(torch.relu(self.a(x)))).mean((2, 3)))  # type: ignore[no-any-return]


def spiked() -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    return Spiked().eval(), torch.randn(4, 3, 8, 8)


def test_the_layers_that_cost_most_get_eight_bits_and_the_bound_holds() -> None:
    module, x = spiked()
    graph, task = capture(module, (x,)), task_of(x)
    plain = WeightOnly("int4").plan(graph, task)
    broken = relative_error(graph, WeightOnly("int4").apply(graph, plain, Tools()), task.select)
    method = WeightOnly("int4", most_error=broken / 3)
    plan = method.plan(graph, task)
    assert {row["layer"]: row["bits"] for row in plan.rows()} == {"a": 4, "b": 8, "c": 8}
    assert [skip.what for skip in plan.skipped] == ["int4w of conv2d_1", "int4w of linear"]
    assert f"4 bits everywhere move the outputs by {broken:.2g} of their variance" in plan.skipped[0].why
    mixed = method.apply(graph, plan, Tools())
    assert relative_error(graph, mixed, task.select) <= broken / 3
    assert precision_of(mixed) == "int4w"


def test_nothing_is_wide_where_the_bound_is_met() -> None:
    module, x = spiked()
    graph, task = capture(module, (x,)), task_of(x)
    assert WeightOnly("int4", most_error=10.0).plan(graph, task) == WeightOnly("int4").plan(graph, task)


def test_a_bound_that_eight_bits_miss_is_refused() -> None:
    module, x = spiked()
    with pytest.raises(PlanError, match=r"8 bits in every layer move .* more than most_error=1e-12"):
        WeightOnly("int4", most_error=1e-12).plan(capture(module, (x,)), task_of(x))


@pytest.mark.parametrize("settings", [{"format": "int8", "most_error": 0.1}, {"most_error": 0.0}])
def test_a_bound_that_chooses_nothing_is_refused(settings: dict[str, object]) -> None:
    with pytest.raises(PlanError, match="chooses between 4 and 8 bits"):
        WeightOnly(**settings)  # type: ignore[arg-type]


@pytest.mark.parametrize("runtime", ["eager", "onnxruntime", "openvino"])
def test_runtimes_read_both_widths_from_one_file(runtime: str, tmp_path: Path) -> None:
    module, x = spiked()
    graph, task = capture(module, (x,)), task_of(x)
    method = WeightOnly("int4", most_error=0.05)
    plan = method.plan(graph, task)
    assert {row["bits"] for row in plan.rows()} == {4, 8}
    mixed = method.apply(graph, plan, Tools())
    target = Target(runtimes=(runtime,))
    export_checked(mixed, RUNTIMES[runtime], tmp_path, precision="int4w", inputs=(x.numpy(),), target=target)
