"""What versions of a model will cost: by the times of layers, which are measured as they are needed and then kept."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn
from torch.fx import GraphModule

from trimtab import forecast
from trimtab.compress.factorize import Factorize
from trimtab.compress.layertime import Layer
from trimtab.compress.prune import Prune
from trimtab.core import Target, Tools
from trimtab.forecast import Forecast, served_in_floats, staircase_file
from trimtab.graph.capture import capture
from trimtab.graph.cost import macs, num_parameters

SERVED = ("onnxruntime", "fp32")


@pytest.fixture
def timed(monkeypatch) -> list[str]:
    """The layers that were timed; a time is a hundredth of the larger width, as if a narrow one saved nothing."""
    found: list[str] = []

    def in_runtime(runtime, *, kept, **_):
        def clock(layer: Layer) -> float:
            def measure() -> float:
                found.append(layer.key)
                return max(max(value.shape) for value in layer.values.values()) / 100

            return kept(layer.key, measure)

        return clock

    monkeypatch.setattr(forecast, "in_runtime", in_runtime)
    return found


# Of the numbers that the layers and ReLUs of `net` give, those that `cut` leaves.
BETWEEN = (2 * 2 * 200 + 8) / (2 * 2 * 400 + 8)


def net() -> GraphModule:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(64, 400), nn.ReLU(), nn.Linear(400, 400), nn.ReLU(), nn.Linear(400, 8))
    return capture(module.eval(), (torch.randn(2, 64),))


def cut(graph: GraphModule, ratio: float = 0.5) -> GraphModule:
    method = Prune(ratio=ratio)
    return method.apply(graph, method.plan(graph))


def made(graph: GraphModule, folder: Path, **changed) -> Forecast:
    settings = {"minimise": "latency_ms", "target": Target(), "file": folder / "stairs.db"}
    return Forecast(graph, **(settings | changed))


def test_latency_follows_the_layers_and_they_are_timed_once(tmp_path: Path, timed) -> None:
    graph = net()
    own = made(graph, tmp_path)
    assert own.share(graph, SERVED, 12.0) == pytest.approx(1)
    assert own.share(cut(graph), SERVED, 12.0) == pytest.approx(0.5)
    assert own.share(cut(graph), SERVED, 24.0) == pytest.approx(0.25 + 0.5 * BETWEEN), "so does what lies between them"
    assert len(set(timed)) == len(timed) == 6
    again = made(graph, tmp_path)
    assert again.share(cut(graph), SERVED, 12.0) == pytest.approx(0.5)
    assert len(timed) == 6


def test_layers_that_pay_nothing_are_foreseen_to_be_slower(tmp_path: Path, timed) -> None:
    graph = net()
    method = Factorize(macs=0.7)
    thin = method.apply(graph, method.plan(graph, None), Tools())
    assert macs(thin) < macs(graph)
    assert made(graph, tmp_path).share(thin, SERVED, 12.0) > 1, "two layers for one, each as slow as the one was"


def test_without_time_multiply_accumulates_tell(tmp_path: Path, timed) -> None:
    graph = net()
    own = made(graph, tmp_path, seconds=lambda: 0.0)
    small = cut(graph)
    assert own.share(small, SERVED, 12.0) == pytest.approx(macs(small) / macs(graph))
    assert timed == []


def test_more_time_makes_a_forecast_better(tmp_path: Path, timed) -> None:
    graph = net()
    allowed = [0.0]
    own = made(graph, tmp_path, seconds=lambda: allowed[0])
    small = cut(graph)
    assert own.share(small, SERVED, 24.0) == pytest.approx(macs(small) / macs(graph))
    allowed[0] = 60.0
    assert own.share(small, SERVED, 24.0) == pytest.approx(0.25 + 0.5 * BETWEEN)


def test_size_follows_the_parameters_and_nothing_is_timed(tmp_path: Path, timed) -> None:
    graph = net()
    small = cut(graph)
    own = made(graph, tmp_path, minimise="size_bytes")
    assert own.share(small, SERVED, 1.0) == pytest.approx(num_parameters(small) / num_parameters(graph))
    assert timed == []
    assert not (tmp_path / "stairs.db").exists()


def test_the_plot_shows_what_was_timed_and_times_nothing(tmp_path: Path, timed) -> None:
    graph = net()
    small = cut(graph)
    assert made(graph, tmp_path).stairs(small, SERVED) == []
    made(graph, tmp_path).share(small, SERVED, 12.0)
    before = list(timed)
    rows = made(graph, tmp_path).stairs(small, SERVED)
    assert timed == before
    assert [row["layer"] for row in rows] == ["linear", "linear_1", "linear_2"]
    assert all(row["widths"] == [50.0, 100.0] and row["chosen"] == 50.0 for row in rows)
    assert rows[0]["ms"] == [2.0, 4.0]
    assert all(row["pay"] == [50.0, 100.0] for row in rows), "each is faster than all that are wider"


def test_runs_of_one_folder_share_the_times(tmp_path: Path) -> None:
    assert staircase_file(tmp_path / "a") == staircase_file(tmp_path / "b")
    assert served_in_floats("openvino", "int8") == ("openvino", "fp32")
    assert served_in_floats("openvino", "bf16") == ("openvino", "bf16")
