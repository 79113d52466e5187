"""The process that `verify_resume` starts: trains a task by its name, and may die of SIGKILL on the way.

python -m trimtab.teach.child TASK CHECKPOINT STEPS (kill | go on | PRECISION) THREADS
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from trimtab.core import Fit
from trimtab.tasks.resolve import resolve
from trimtab.teach.verify import records_file
from trimtab.train.keep import Keep
from trimtab.train.loop import training


def main(name: str, path: Path, steps: int, how: str) -> None:
    """Take 2 * `steps` steps, those before a kill included."""
    model, task = resolve(name)
    settings = task.fit or Fit()
    if how not in ("kill", "go on"):
        settings = dataclasses.replace(settings, precision=how)  # type: ignore[arg-type]
    seen: dict[str, Any] = {}

    def look(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        seen["inputs"] = _hash(seen.get("inputs", ""), *inputs)
        seen["generator"] = _hash(seen.get("generator", ""), torch.get_rng_state())

    def watched(model: nn.Module, inputs: tuple[Tensor, ...], targets: Tensor) -> Tensor:
        seen["targets"] = _hash(seen.get("targets", ""), targets)
        look(model, inputs)
        return task.loss(model(*inputs).float(), targets)

    if settings.prune_samples:  # which needs the task's own objective
        model.register_forward_pre_hook(look)
    objective = None if settings.prune_samples else watched
    with (
        records_file(path).open("a") as file,
        training(model, task, settings, objective=objective, checkpoint=Keep(path, every=steps)) as taken,
    ):
        for step in taken:
            record = {"step": step.index, **seen, "loss": float(step.loss).hex()}
            print(json.dumps(record), file=file, flush=True)
            seen.clear()
            if how == "kill" and step.index + 1 == steps:
                os.kill(os.getpid(), signal.SIGKILL)
            if step.index + 1 == 2 * steps:
                return


def _hash(before: str, *tensors: Tensor) -> str:
    digest = hashlib.sha256(before.encode())
    for tensor in tensors:
        digest.update(tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


if __name__ == "__main__":
    torch.set_num_threads(int(sys.argv[5]))
    main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), sys.argv[4])
