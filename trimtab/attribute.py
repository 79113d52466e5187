"""Who did it: what each step of the chosen recipe did to each layer, what runs on integers, and when the run did what.

Read from the plans, the runtime's own optimised graph and the run's log; measured is only how sensitive each layer is
to being quantized, on a few select samples. Nothing here takes part in choosing or judging.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

import cattrs
from torch.fx import GraphModule

from trimtab.compress.build import Stage
from trimtab.compress.dynamic import Dynamic
from trimtab.compress.equalize import equalized
from trimtab.compress.packing import PackPlan
from trimtab.compress.qat import QAT
from trimtab.compress.quantize import Quantize, QuantizePlan
from trimtab.compress.sensitivity import NUM_PROBED, sensitivities
from trimtab.core import Recipe, Task
from trimtab.errors import RuntimeFailed
from trimtab.graph.fold import fold_batchnorm
from trimtab.runtimes.coverage import READERS, coverage
from trimtab.runtimes.evaluate import Exported

LINE = re.compile(r"^(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d) (?:ended )?(\S+)")
INTEGERS_OF = re.compile(r"^int8d? of ")
KINDS = {
    "original": "training and capture",
    "files": "exporting",
    "free": "free baselines",
    "built": "compressing",
    "screens": "screening",
    "trials": "timing trials",
    "evidence": "verdict",
}


def attribution(
    recipe: Recipe, stages: Sequence[Stage], file: Exported, task: Task, graph_before: Callable[[int], GraphModule]
) -> dict[str, Any]:
    """The evidence of layers: `layers`, `coverage` and `sensitivity`, as plain values; what is unknown is empty.

    Args:
        recipe: the chosen one.
        stages: what each of its methods did.
        file: the chosen file.
        task: gives a few select samples.
        graph_before: place of a method in the recipe -> the graph that it was given.
    """
    found: dict[str, Any] = {
        "layers": [row for stage in stages for row in _rows(stage)],
        "coverage": None,
        "sensitivity": [],
    }
    for place, (method, stage) in enumerate(zip(recipe.methods, stages, strict=True)):
        if isinstance(method, Quantize | QAT):
            trained = isinstance(method, QAT)
            plan = cattrs.structure(stage.plan["start"] if trained else stage.plan, QuantizePlan)
            graph = equalized(fold_batchnorm(graph_before(place)), plan.factors)
            planned = {weight.layer for weight in plan.weights}
            found["coverage"] = _coverage(graph, planned, stage, file, how="trained" if trained else "calibrated")
            data = task.select.batch(slice(0, NUM_PROBED))
            probed = sensitivities(graph, plan.activations, plan.weights, plan.biases, data)
            found["sensitivity"] = cattrs.unstructure(probed)
        elif isinstance(method, Dynamic):  # its ranges are unknown before it runs, so nothing is known of sensitivities
            planned = {weight.layer for weight in cattrs.structure(stage.plan, PackPlan).weights}
            graph = fold_batchnorm(graph_before(place))
            found["coverage"] = _coverage(graph, planned, stage, file, how="at run time")
    return found


def _rows(stage: Stage) -> list[dict[str, Any]]:
    """What one step did to each layer."""
    rows = []
    for cut in stage.plan.get("cuts", ()):
        what = f"{cut['size']} to {len(cut['kept'])} channels"
        rows.append(_row(stage, cut["group"], what, cut["macs_freed"], cut["ms_freed"], cut["importance_lost"]))
    for one in stage.plan.get("dropped", ()):
        rows.append(_row(stage, one["block"]["name"], "dropped", one["macs_freed"], None, one["change"]))
    for one in stage.plan.get("factors", ()):
        if "full_rank" in one:  # else it is what a channel is scaled by
            what, freed = f"rank {one['full_rank']} to {one['rank']}", one["macs_before"] - one["macs_after"]
            rows.append(_row(stage, one["weight"].removesuffix(".weight"), what, freed, None, 1 - one["energy"]))
    for weight in stage.plan.get("start", stage.plan).get("weights", ()):
        if isinstance(weight, dict) and "bits" in weight:
            rows.append(_row(stage, weight["layer"], f"weights in {weight['bits']} bits"))
    return rows


def _row(
    stage: Stage, layer: str, what: str, macs: int | None = None, ms: float | None = None, lost: float | None = None
) -> dict[str, Any]:
    return {"step": stage.method, "layer": layer, "what": what, "macs_freed": macs, "ms_freed": ms, "lost": lost}


def _coverage(
    graph: GraphModule, planned: Collection[str], stage: Stage, file: Exported, *, how: str
) -> dict[str, Any]:
    """Every layer in graph order: on integers, kept in floating point by the plan with the reason.

    how: the ranges of activations were found: "calibrated", "trained" or "at run time".
    """
    why = {INTEGERS_OF.sub("", skip.what): skip.why for skip in stage.skipped}
    order = [node.name for node in graph.graph.nodes if node.name in planned or node.name in why]
    layers = [
        {"layer": name, "state": "int8" if name in planned else "float", "why": why.get(name, "")} for name in order
    ]
    running, floating = {}, {}
    if file.runtime in READERS:
        try:
            told = coverage(file.runtime, file.folder, precision=file.precision)
            running, floating = dict(told.running), dict(told.floating)
        except RuntimeFailed:  # it does not tell; what was planned is shown alone
            pass
    return {"runtime": file.runtime, "how": how, "layers": layers, "running": running, "floating": floating}


def timeline(log: Path) -> list[dict[str, Any]]:
    """What the run did when, in seconds since its log begins, from the moments at which steps ended.

    A step counts from the end of the one before it; time in which no process ran counts with the step after it.
    """
    ends: list[tuple[str, float]] = []
    for line in log.read_text(encoding="utf-8").splitlines() if log.exists() else []:
        if found := LINE.match(line):
            ends.append((found[2], time.mktime(time.strptime(found[1], "%Y-%m-%d %H:%M:%S"))))
    rows, before = [], ends[0][1] if ends else 0.0
    began = before
    for name, at in ends:
        at = max(at, before)  # the clock may have been set back meanwhile
        kind, _, what = name.partition("/")
        if kind in KINDS:
            rows.append({"kind": KINDS[kind], "what": what or kind, "start_s": before - began, "end_s": at - began})
        before = at
    return rows
