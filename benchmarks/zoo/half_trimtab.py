"""trimtab's half: capture, cut 30 % of the channels of every group, and try what the result must be able to do."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from trimtab.compress.prune import Prune
from trimtab.graph.capture import capture
from trimtab.graph.cost import macs
from trimtab.graph.dims import groups
from trimtab.graph.save import load_graph, save_graph
from trimtab.runtimes.onnxfile import onnx_model
from trimtab.runtimes.onnxruntime import OnnxRuntime
from zoo.steps import TOLERANCE, Failed, Steps, check_agrees, check_cut, num_params, train_one_step

RATIO = 0.3
COLUMNS = ("exports", "cut", "exact", "trains", "reloads", "onnxruntime")
QUICK = COLUMNS[:4]


def warm_up() -> None:
    """Let PyTorch load what capturing and exporting need, once for all models."""
    onnx_model(capture(nn.Linear(2, 2), (torch.zeros(2, 2),)))


def measure(
    module: nn.Module, inputs: tuple[Tensor, ...], *, setting: str, record: dict[str, Any], save: Callable[..., None]
) -> None:
    """Fill `record` for one model: per column True or why not, sizes before and after, what was skipped.

    The setting "quick" ends after training, which takes a third of the time.
    """
    steps = Steps(record, QUICK if setting == "quick" else COLUMNS, save)
    graph = steps.run("exports", lambda: capture(module, inputs))
    if graph is None:
        return
    record["params"], record["macs"] = [num_params(graph)], [macs(graph)]
    pruned = _cut(graph, steps)
    if pruned is None:
        return
    record["params"].append(num_params(pruned))
    record["macs"].append(macs(pruned))
    with torch.no_grad():
        expected = pruned(*inputs)
    steps.run("trains", lambda: train_one_step(pruned, inputs))
    if setting == "quick":
        return
    with tempfile.TemporaryDirectory() as folder:
        steps.run("reloads", lambda: _reload(pruned, inputs, expected, Path(folder)))
        steps.run("onnxruntime", lambda: _onnxruntime(pruned, inputs, expected, Path(folder)))


def _cut(graph: GraphModule, steps: Steps) -> GraphModule | None:
    method = Prune(RATIO, round_to=1)
    record = steps.record
    found = steps.run("cut", lambda: groups(graph))
    if found is None:
        return None
    record["groups"] = [len(found.cuttable), len(found.skipped)]
    record["skipped"] = [[skip.what, skip.why] for skip in found.skipped]
    plan = steps.run("cut", lambda: method.plan(graph))
    if plan is None:
        return None
    record["groups"] = [len(plan.cuts), len(plan.skipped)]
    record["through means"] = plan.through_means
    record["skipped"] = [[skip.what, skip.why] for skip in plan.skipped]
    # `apply` compares every cut with the masked original, in eval and train mode.
    pruned = steps.run("exact", lambda: method.apply(graph, plan))
    if pruned is None:
        record["columns"]["cut"] = "the cut was refused, see exact"
        steps.save(record)
        return None
    steps.run("cut", lambda: check_cut(num_params(graph), num_params(pruned)))
    return pruned


def _reload(graph: GraphModule, inputs: tuple[Tensor, ...], expected: Tensor, folder: Path) -> None:
    save_graph(graph, folder)
    with torch.no_grad():
        if not torch.equal(load_graph(folder)(*inputs), expected):
            raise Failed("the loaded graph gives other bits")


def _onnxruntime(graph: GraphModule, inputs: tuple[Tensor, ...], expected: Tensor, folder: Path) -> None:
    runtime = OnnxRuntime()
    runtime.export(graph, folder, precision="fp32", batch_size=inputs[0].shape[0], threads=1)
    call = runtime.load(folder, precision="fp32", threads=1, exact=True)
    check_agrees(call(tuple(x.numpy() for x in inputs)), expected, tolerance=TOLERANCE, what="ONNX Runtime")
