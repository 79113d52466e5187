"""Fine-tuning: a graph goes on learning from the labels, with the task's own loss.

The plain alternative to distillation, for tasks without classes or an original to learn from.
Cost: `epochs` over the training data.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn
from torch.fx import GraphModule

from trimtab.compress.calibration import require_floats
from trimtab.compress.zeros import keeping_zeros, take_weights_
from trimtab.core import Fit, Skip, Task, Tools
from trimtab.errors import PlanError
from trimtab.train.further import further, hand_learned_on_, learn_further, shown_settings
from trimtab.train.loop import num_steps


@dataclass(frozen=True)
class FineTunePlan:
    """What will be trained and how; `steps` in all."""

    settings: Fit
    steps: int
    skipped: tuple[Skip, ...] = ()

    def rows(self) -> list[dict[str, Any]]:
        """The settings, one a row."""
        values = {**shown_settings(self.settings), "steps": self.steps}
        return [{"setting": key, "value": value} for key, value in values.items()]


@dataclass(frozen=True)
class FineTune:
    """Go on training on `task.train` with the task's loss.

    Args:
        epochs: over `task.train`.
        lr: the highest learning rate; default: found by short trials, and what training harms is left as it was
            (`train/further.py`). Batch size and the rest are those of the task's `fit`.
    """

    epochs: int = 3
    lr: float | None = None

    def __post_init__(self) -> None:
        if self.epochs < 1 or (self.lr is not None and self.lr <= 0):
            raise PlanError(f"FineTune needs epochs >= 1 and lr > 0; got {self}.")

    @property
    def name(self) -> str:
        return "fine-tune"

    def plan(self, graph: GraphModule | nn.Module, task: Task) -> FineTunePlan:
        """The settings that `apply` will train with.

        Raises:
            PlanError: the graph holds integers.
        """
        require_floats(graph, "FineTune")
        settings = further(task, epochs=self.epochs, lr=self.lr)
        return FineTunePlan(settings, num_steps(task, settings))

    def apply(self, graph: GraphModule, plan: FineTunePlan, tools: Tools) -> GraphModule:
        """A copy of `graph` that was trained further, in eval mode; zeros of sparse weights stay zeros.

        Raises:
            PlanError: there is no task to learn from.
        """
        if tools.task is None:
            raise PlanError("FineTune needs the task to learn from; got Tools(task=None). Give Tools(task=...).")
        checkpoint = Path(tools.folder) / "finetune.safetensors" if tools.folder else None
        student = keeping_zeros(graph)
        trained = learn_further(student, tools.task, plan.settings, report=tools.report, checkpoint=checkpoint)
        result = take_weights_(copy.deepcopy(graph), trained.state_dict())
        hand_learned_on_(trained, result)
        return result
