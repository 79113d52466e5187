"""Torch-Pruning 1.6.1 cuts one net: run in its own environment, told by a JSON file, answers with weights.

    python -m quality.peer JOB.json      (PYTHONPATH: the repository and its folder benchmarks)

The job names net, weights, calibration samples, and for each cut importance, ratio and the file for the result. The
widths are those that trimtab's uniform allocation has at the ratio, (1 - ratio) x width to the nearest channel: the
tool itself rounds down, which would leave it fewer.
"""

from __future__ import annotations

import copy
import json
import math
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional as F

from quality.nets import NETS


def widths(module: nn.Module, ratio: float) -> dict[nn.Module, float]:
    """The ratio for each layer with which Torch-Pruning keeps (1 - ratio) x width to the nearest channel."""
    found: dict[nn.Module, float] = {}
    for part in module.modules():
        if isinstance(part, nn.Conv2d | nn.Linear):
            width = part.weight.shape[0]
            found[part] = 1 - (math.floor((1 - ratio) * width + 0.5) + 0.5) / width
    return found


def pruned(module: nn.Module, importance: str, ratio: float, samples: dict[str, torch.Tensor]) -> nn.Module:
    """A copy of `module`, cut by Torch-Pruning in one step, its head left alone."""
    import torch_pruning as tp

    module = copy.deepcopy(module).eval()
    measure = {"magnitude": tp.importance.GroupMagnitudeImportance, "taylor": tp.importance.GroupTaylorImportance}
    pruner = tp.pruner.BasePruner(
        module,
        samples["inputs"][:1],
        importance=measure[importance](),
        pruning_ratio=ratio,
        pruning_ratio_dict=widths(module, ratio),
        ignored_layers=[module.head],
        iterative_steps=1,
        round_to=None,
    )
    if importance == "taylor":
        F.cross_entropy(module(samples["inputs"]), samples["targets"]).backward()
    pruner.step()
    module.zero_grad()
    return module


def main() -> None:
    job: dict[str, Any] = json.loads(Path(sys.argv[1]).read_text())
    torch.set_num_threads(1)
    module = NETS[job["net"]]()
    module.load_state_dict(load_file(job["weights"]))
    samples = load_file(job["samples"])
    for cut in job["cuts"]:
        state = pruned(module, cut["importance"], cut["ratio"], samples).state_dict()
        save_file({name: tensor.contiguous() for name, tensor in state.items()}, cut["out"])


if __name__ == "__main__":
    main()
