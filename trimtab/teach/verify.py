"""Whether training a task can be resumed bit for bit: killed by the system, read back in a new process, compared.

Three processes: one takes k steps, writes its checkpoint and dies of SIGKILL; a second goes on to 2 k; a third takes
2 k without a break. What each step saw (targets, inputs, the generator that dropout draws from), its loss, and at the
end every tensor of model, optimizer and average have to be equal.
Cost: 4 k steps, and the start of three processes.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors.torch import load_file

from trimtab.core import Fit
from trimtab.errors import RunError, TaskError
from trimtab.tasks.resolve import resolve
from trimtab.train.loop import num_steps

SAID_AT_MOST = 2000
# What a step's record holds, in the order in which one thing causes the next.
MEANINGS = {
    "targets": "the targets of its batch: the sampler took other samples, or the task gives them in another order",
    "inputs": "the inputs of its batch: `augment` must draw from the generator that it is given and from no other",
    "generator": "the state of torch's generator, from which dropout draws",
    "loss": "its loss: the model or the loss draws from another generator, or computes otherwise in another process",
}


@dataclass(frozen=True)
class Resumed:
    """What came of it: `difference` is None where everything was equal, bit for bit; `tensors` were compared."""

    steps: int
    tensors: int
    difference: str | None


def verify_resume(task: str, *, steps: int = 10) -> Resumed:
    """Train `task`'s model for `steps` steps, kill it, resume it in a new process, and compare after as many more.

    Args:
        task: a name that `resolve` knows; a new process makes model and task from it.
        steps: k, up to half of those that the task's `fit` asks for.

    Raises:
        TaskError: there is no such task, or it has too few steps.
        RunError: a process failed; tells what it said.
    """
    model, described = resolve(task)
    settings = described.fit or Fit()
    if not 1 <= steps <= num_steps(described, settings) // 2:
        raise TaskError(
            f"steps={steps} cannot be verified: the training of {described.name} has "
            f"{num_steps(described, settings)} steps, and half of them are taken after the kill. Give 1 to "
            f"{num_steps(described, settings) // 2}."
        )
    del model, described
    with tempfile.TemporaryDirectory(prefix="verify-resume-") as name:
        folder = Path(name)
        broken, whole = folder / "broken", folder / "whole"
        _child(task, broken, steps, "kill", expected=-signal.SIGKILL)
        _child(task, broken, steps, "go on")
        _child(task, whole, steps, _precision(broken))
        found, tensors = _difference(broken, whole, steps)
    return Resumed(steps, tensors, found)


def _child(task: str, path: Path, steps: int, how: str, *, expected: int = 0) -> None:
    threads = str(torch.get_num_threads())
    command = [sys.executable, "-m", "trimtab.teach.child", task, str(path), str(steps), how, threads]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != expected:
        raise RunError(
            f"The process that trains {task} ended with {done.returncode}, and {expected} was expected. It said:\n"
            f"{done.stderr.strip()[-SAID_AT_MOST:] or 'nothing'}\nTrain it with `trimtab train {task}` to see more."
        )


def _precision(path: Path) -> str:
    with safetensors.safe_open(path, framework="pt") as file:
        return str(json.loads(file.metadata()["note"])["precision"])


def _difference(broken: Path, whole: Path, steps: int) -> tuple[str | None, int]:
    """The first thing that differs, and how many tensors there are."""
    one, other = load_file(broken), load_file(whole)
    for first, second in zip(records(broken)[-steps:], records(whole)[-steps:], strict=True):
        for key, meaning in MEANINGS.items():
            if first.get(key) != second.get(key):
                return f"step {first['step']} differs in {meaning}", len(other)
    return _first_tensor(one, other), len(other)


def _first_tensor(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> str | None:
    for name in sorted(one.keys() | other.keys()):
        if name not in one or name not in other:
            return f"the tensor {name} is in one of the two alone"
        # as bytes: NaN equals itself there, and -0 is not 0
        if not torch.equal(_bytes(one[name]), _bytes(other[name])):
            apart = float((one[name].double() - other[name].double()).abs().max())
            return f"the tensor {name} differs, by {apart:.3g} at most"
    return None


def _bytes(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous().reshape(-1).view(torch.uint8)


def records_file(path: Path) -> Path:
    """Where the process that writes its checkpoint to `path` keeps what its steps saw, a line of JSON each."""
    return path.with_name(f"{path.name}.steps")


def records(path: Path) -> Sequence[dict[str, Any]]:
    """What the steps saw, in order."""
    return [json.loads(line) for line in records_file(path).read_text().splitlines()]
