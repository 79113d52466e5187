"""Who did it: layers from plans, coverage from the runtime, sensitivities, and the timeline from a log."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import trimtab as tt
from tests import small
from trimtab.attribute import attribution, timeline
from trimtab.compress.build import Stage
from trimtab.compress.dynamic import Dynamic
from trimtab.compress.factorize import Factorize
from trimtab.compress.qat import QAT
from trimtab.core import Tools
from trimtab.runtimes import RUNTIMES
from trimtab.runtimes.evaluate import Exported


def staged(method, graph, task) -> tuple[Stage, torch.fx.GraphModule]:
    import cattrs

    from trimtab.compress.build import settings_of

    plan = method.plan(graph, task)
    stage = Stage(method.name, settings_of(method), cattrs.unstructure(plan), plan.skipped, 0.0)
    return stage, method.apply(graph, plan, Tools(task=task, original=graph))


def test_each_step_is_attributed_to_its_layers(tmp_path: Path) -> None:
    _, task = small.make()
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
    graph = tt.capture(model, task.select.batch(slice(0, 2)).inputs)
    recipe = tt.Recipe((tt.Prune(ratio=0.5), tt.Quantize(samples=64)))
    cut, pruned = staged(recipe.methods[0], graph, task)
    rounded, quantized = staged(recipe.methods[1], pruned, task)
    RUNTIMES["onnxruntime"].export(quantized, tmp_path, precision="int8", batch_size=1, threads=1)
    file = Exported("onnxruntime", "int8", tmp_path)
    found = attribution(recipe, (cut, rounded), file, task, [graph, pruned].__getitem__)

    assert [(one["step"], one["layer"], one["what"]) for one in found["layers"]] == [
        ("prune .5", "0", "32 to 16 channels"),
        ("int8", "linear", "weights in 8 bits")
        if found["layers"][1]["what"].startswith("weights in 8")
        else ("int8", "linear", "weights in 7 bits"),
        ("int8", "linear_1", found["layers"][2]["what"]),
    ]
    assert found["layers"][0]["macs_freed"] == 16 * 64 + 16 * 10
    assert [(one["layer"], one["state"]) for one in found["coverage"]["layers"]] == [
        ("linear", "int8"),
        ("linear_1", "int8"),
    ]
    assert sum(found["coverage"]["running"].values()) == 2
    assert {one["layer"] for one in found["sensitivity"]} == {"linear", "linear_1"}
    assert found["sensitivity"][0]["error"] >= found["sensitivity"][1]["error"] > 0


def chain() -> tuple[nn.Module, tt.Task]:
    """Linear layers of which the last sums over 8 numbers alone."""
    _, task = small.make()
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 8), nn.ReLU(), nn.Linear(8, 10)), task


@pytest.mark.parametrize(
    ("method", "precision", "how", "kept"),
    [
        (tt.Quantize(samples=64), "int8", "calibrated", None),
        (QAT(epochs=1, lr=1e-3, start=tt.Quantize(samples=64)), "int8", "trained", None),
        (Dynamic(), "int8d", "at run time", "its sums have fewer than 16 terms"),
    ],
)
def test_each_kind_of_integers_has_its_map(
    method: Any, precision: Any, how: str, kept: str | None, tmp_path: Path
) -> None:
    model, task = chain()
    graph = tt.capture(model, task.select.batch(slice(0, 2)).inputs)
    stage, integer = staged(method, graph, task)
    RUNTIMES["onnxruntime"].export(integer, tmp_path, precision=precision, batch_size=1, threads=1)
    file = Exported("onnxruntime", precision, tmp_path)
    found = attribution(tt.Recipe((method,)), (stage,), file, task, lambda _: graph)

    layers = [(one["layer"], one["state"], one["why"]) for one in found["coverage"]["layers"]]
    last = ("linear_2", "float", kept) if kept else ("linear_2", "int8", "")
    assert layers == [("linear", "int8", ""), ("linear_1", "int8", ""), last]
    assert found["coverage"]["how"] == how
    assert sum(found["coverage"]["running"].values()) == (2 if kept else 3), "the runtime says so too"
    rows = [(one["step"], one["layer"]) for one in found["layers"]]
    assert rows == [(method.name, layer) for layer, state, _ in layers if state == "int8"]
    assert all(re.fullmatch("weights in [78] bits", one["what"]) for one in found["layers"])
    measured = {one["layer"] for one in found["sensitivity"]}
    assert measured == (set() if kept else {"linear", "linear_1", "linear_2"}), "ranges at run time tell nothing before"


def test_low_rank_tells_what_it_did_to_each_layer() -> None:
    model, task = chain()
    graph = tt.capture(model, task.select.batch(slice(0, 2)).inputs)
    method = Factorize(ranks=(("0.weight", 8),))
    stage, _ = staged(method, graph, task)
    file = Exported("eager", "fp32", Path())
    found = attribution(tt.Recipe((method,)), (stage,), file, task, lambda _: graph)
    (row,) = found["layers"]
    values = torch.linalg.svdvals(model[0].weight.detach()).square()  # type: ignore[index]
    assert (row["step"], row["layer"], row["what"]) == (method.name, "0", "rank 32 to 8")
    assert row["macs_freed"] == 64 * 32 - 8 * (64 + 32)
    assert row["lost"] == pytest.approx(float(values[8:].sum() / values.sum()), rel=1e-4)
    assert (found["coverage"], found["sensitivity"]) == (None, [])


def test_without_integers_there_is_no_coverage_and_no_sensitivity() -> None:
    found = attribution(tt.Recipe(), (), Exported("eager", "fp32", Path()), small.make()[1], lambda _: None)
    assert found == {"layers": [], "coverage": None, "sensitivity": []}


LOG = """2026-01-01 10:00:00 ended original
2026-01-01 10:00:05 ended files/original-eager-fp32
2026-01-01 10:00:09 warning: accuracy: on 600 verify samples
2026-01-01 10:00:20 ended free
2026-01-01 09:59:00 ended built/int8-1
2026-01-01 10:00:30 ended trials/int8-1-onnxruntime-int8
2026-01-01 10:00:31 ended choice
2026-01-01 10:01:00 ended evidence
"""


def test_the_timeline_has_each_step_and_bears_a_clock_that_jumps_back(tmp_path: Path) -> None:
    (tmp_path / "log.txt").write_text(LOG)
    rows = timeline(tmp_path / "log.txt")
    assert [(row["kind"], row["start_s"], row["end_s"]) for row in rows] == [
        ("training and capture", 0, 0),
        ("exporting", 0, 5),
        ("free baselines", pytest.approx(9), 20),
        ("compressing", 20, 20),
        ("timing trials", 20, 30),
        ("verdict", 31, 60),
    ]
    assert timeline(tmp_path / "nowhere") == []
