"""Distillation: a graph learns to answer as the original does.

Hinton, Vinyals and Dean 2015, "Distilling the Knowledge in a Neural Network". The loss is
T^2 * KL(softmax(teacher / T) || softmax(student / T)), a mean over the batch, for teacher and student on the same
augmented batch. What differs: the labels are not used at all, so unlabelled inputs do.
Cost: `epochs` over the training inputs, each step that of training the student and a forward pass of the teacher.
"""

from __future__ import annotations

import copy
import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.nn import functional as F

from trimtab.core import Fit, Skip, Task, Tools
from trimtab.errors import PlanError
from trimtab.train.loop import fit, num_steps, predict
from trimtab.train.precision import channels_last_


@dataclass(frozen=True)
class DistillPlan:
    """What will be trained and how; `steps` in all."""

    settings: Fit
    temperature: float
    steps: int
    skipped: tuple[Skip, ...] = ()

    def rows(self) -> list[dict[str, Any]]:
        """The settings, one a row."""
        values = {**dataclasses.asdict(self.settings), "temperature": self.temperature, "steps": self.steps}
        return [{"setting": key, "value": value} for key, value in values.items()]


@dataclass(frozen=True)
class Distill:
    """Learn from the original's outputs on the training inputs.

    Args:
        epochs: over `task.train`.
        lr: the highest learning rate; batch size and the rest are those of the task's `fit`.
        temperature: above 1, the classes that the original thinks unlikely count for more.
    """

    epochs: int = 4
    lr: float = 2e-3
    temperature: float = 2.0

    def __post_init__(self) -> None:
        if self.epochs < 1 or self.lr <= 0 or self.temperature <= 0:
            raise PlanError(f"Distill needs epochs >= 1, lr > 0 and temperature > 0; got {self}.")

    @property
    def name(self) -> str:
        return "distill"

    def plan(self, graph: GraphModule | nn.Module, task: Task) -> DistillPlan:
        """The settings that `apply` will train with."""
        settings = dataclasses.replace(task.fit or Fit(), epochs=self.epochs, lr=self.lr)
        return DistillPlan(settings, self.temperature, num_steps(task, settings))

    def apply(self, graph: GraphModule, plan: DistillPlan, tools: Tools) -> GraphModule:
        """A copy of `graph` that learned from `tools.original`, in eval mode.

        Raises:
            PlanError: there is no task or original to learn from, or its outputs are not the graph's in shape.
        """
        if tools.task is None or tools.original is None:
            raise PlanError(
                "Distill needs the task and the original to learn from; got "
                f"Tools(task={tools.task and tools.task.name!r}, original={type(tools.original).__name__}). "
                "Give both, or use FineTune, which learns from labels."
            )
        check_teacher(graph, tools.original, tools.task, who="Distill", instead="FineTune")
        objective = soft_targets(tools.original, plan.temperature, example_inputs=tools.task.train.inputs)
        checkpoint = Path(tools.folder) / "distill.safetensors" if tools.folder else None
        return fit(graph, tools.task, plan.settings, objective=objective, report=tools.report, checkpoint=checkpoint)


def distillation_loss(student: Tensor, teacher: Tensor, *, temperature: float) -> Tensor:
    """T^2 * KL(softmax(teacher / T) || softmax(student / T)), a mean over the samples.

    Args:
        student: logits [B, K, ...].
        teacher: logits of the same shape.
        temperature: T; the factor T^2 keeps the gradient's size as T changes.
    """
    log_p = F.log_softmax(teacher.float() / temperature, dim=1)
    log_q = F.log_softmax(student.float() / temperature, dim=1)
    divergence = F.kl_div(log_q, log_p, reduction="none", log_target=True).sum(1)
    return divergence.mean() * temperature**2


def soft_targets(teacher: nn.Module, temperature: float, *, example_inputs: tuple[Tensor, ...]) -> Any:
    """The objective of learning from `teacher`; works on a copy of it, in eval mode."""
    teacher = copy.deepcopy(teacher).eval()
    channels_last_(teacher, example_inputs)

    def soft_target_loss(model: nn.Module, inputs: tuple[Tensor, ...], targets: Tensor) -> Tensor:
        # no_grad and not inference_mode: the loss saves these outputs for its backward pass.
        with torch.no_grad():
            wanted = teacher(*inputs)
        return distillation_loss(model(*inputs), wanted, temperature=temperature)

    return soft_target_loss


def check_teacher(student: nn.Module, teacher: nn.Module, task: Task, *, who: str, instead: str) -> None:
    """Refuse an original that `student` cannot learn classes from.

    Args:
        student: what learns.
        teacher: the original.
        task: gives two inputs, and the kind of targets.
        who: the method that asks, for the message.
        instead: what learns from labels with the task's own loss.

    Raises:
        PlanError: the outputs differ in shape, or are not the probabilities of classes.
    """
    sample = task.train.batch(slice(0, 2))
    learns, teaches = (tuple(predict(model, sample.inputs).shape[1:]) for model in (student, teacher))
    if learns != teaches:
        raise PlanError(
            f"{who} cannot match outputs of different shapes: the graph's are {learns} a sample, the original's "
            f"{teaches}. Give the graph the original's outputs."
        )
    if task.train.targets.is_floating_point():
        raise PlanError(
            f"{who} compares the probabilities of classes, but the task's targets are real numbers. "
            f"Use {instead}, which learns from them with the task's own loss."
        )
    if not teaches or teaches[0] < 2:
        raise PlanError(
            f"{who} compares the probabilities of K >= 2 classes, but the original's outputs are {teaches} a "
            f"sample. Use {instead}, which learns from labels with the task's own loss."
        )
