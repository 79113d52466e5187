"""Distillation: a graph learns to answer as a teacher does, by default the original it was made from.

What is learned is a sum of objectives (`objectives.py`, with papers and formulas), by default the teacher's soft
answers (Hinton, Vinyals and Dean 2015), for teacher and student on the same augmented batch. What differs: the labels
are not used at all unless `Labels` is among the objectives, so unlabelled inputs do.
Cost: `epochs` over the training inputs, each step that of training the student and a forward pass of the teacher.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from trimtab.compress.calibration import require_floats
from trimtab.compress.objectives import (
    Labels,
    Logits,
    Objective,
    Outputs,
    Positioned,
    Relations,
    SelfAttention,
    projected_dim,
)
from trimtab.compress.taps import Tap, attention_taps, value_tap, with_taps
from trimtab.compress.zeros import keeping_zeros, take_weights_
from trimtab.core import Fit, Skip, Task, Tools
from trimtab.errors import PlanError
from trimtab.graph.capture import capture
from trimtab.graph.modes import kept_norms
from trimtab.tasks.check import check_model, fingerprint_weights
from trimtab.train.further import further, hand_learned_on_, learn_further, shown_settings
from trimtab.train.loop import num_steps, predict
from trimtab.train.precision import channels_last_

MIN_RELATED = 3


@dataclass(frozen=True)
class DistillPlan:
    """What will be trained and how; `steps` in all."""

    settings: Fit
    objectives: tuple[Objective, ...]
    steps: int
    skipped: tuple[Skip, ...] = ()
    keep_norms: bool = False

    def rows(self) -> list[dict[str, Any]]:
        """The settings, one a row."""
        values: dict[str, Any] = {**shown_settings(self.settings), "steps": self.steps}
        if self.keep_norms:
            values["keep_norms"] = True
        objectives = [{"setting": "objective", "value": _words(objective)} for objective in self.objectives]
        return [{"setting": key, "value": value} for key, value in values.items()] + objectives


@dataclass(frozen=True)
class Distill:
    """Learn from a teacher's answers on the training inputs.

    Args:
        epochs: over `task.train`.
        lr: the highest learning rate; default: found by short trials, and what training harms is left as it was
            (`train/further.py`). Batch size and the rest are those of the task's `fit`.
        objectives: what is learned, each with its weight in the sum; default: the teacher's soft answers (`Logits()`),
            or its outputs (`Outputs()`) where the task's targets are real numbers.
        teacher: a module or graph; default: the original, `tools.original`. Where an objective reads a teacher at
            positions, it is captured first.
        keep_norms: BatchNorm normalizes by its running statistics and leaves them as they are. For inputs of another
            kind than those that will be served, whose statistics would take their place.

    Example:
        >>> from trimtab.compress.objectives import Features
        >>> Distill(epochs=2, objectives=(Logits(temperature=4), Features(at=("relu_3",), weight=0.1))).name
        'distill 2 epochs'
    """

    epochs: int = 4
    lr: float | None = None
    objectives: tuple[Objective, ...] | None = None
    teacher: nn.Module | None = None
    keep_norms: bool = False

    def __post_init__(self) -> None:
        if self.epochs < 1 or (self.lr is not None and self.lr <= 0):
            raise PlanError(f"Distill needs epochs >= 1 and lr > 0; got epochs={self.epochs}, lr={self.lr}.")
        given = (Logits(),) if self.objectives is None else self.objectives
        known = isinstance(given, tuple) and all(isinstance(one, Objective) for one in given)
        if not known or all(isinstance(one, Labels) for one in given):
            raise PlanError(
                "Distill needs a tuple of objectives, one of them or more about a teacher, e.g. (Logits(), Labels(0.5))"
                f"; got {self.objectives!r}. What learns from labels alone is FineTune."
            )

    @property
    def name(self) -> str:
        return "distill" if self.epochs == Distill.epochs else f"distill {self.epochs} epoch{'s' * (self.epochs > 1)}"

    def plan(self, graph: GraphModule | nn.Module, task: Task) -> DistillPlan:
        """The settings that `apply` will train with.

        Raises:
            PlanError: a position that the graph or the given teacher does not have, values or outputs that cannot be
                compared, batches too small to relate, or norms to be kept of what is no graph.
        """
        require_floats(graph, "Distill")
        if self.keep_norms and not isinstance(graph, GraphModule):
            raise PlanError(
                f"keep_norms is about the BatchNorms of a graph, and a {type(graph).__name__} was given. "
                "Give trimtab.capture(model, example_inputs)."
            )
        settings = further(task, epochs=self.epochs, lr=self.lr)
        objectives = self.objectives or answers(task)
        plan = DistillPlan(settings, objectives, num_steps(task, settings), keep_norms=self.keep_norms)
        # The original is not known yet; a graph is at least compared with itself.
        lesson_of(graph, self._teacher(graph, plan, task), plan, task)
        return plan

    def apply(self, graph: GraphModule, plan: DistillPlan, tools: Tools) -> GraphModule:
        """A copy of `graph` that learned from the teacher, in eval mode; zeros of sparse weights stay zeros.

        Raises:
            PlanError: as for `plan`; or there is no task or teacher to learn from.
        """
        if tools.task is None or (tools.original is None and self.teacher is None):
            raise PlanError(
                "Distill needs the task and the original to learn from; got "
                f"Tools(task={tools.task and tools.task.name!r}, original={type(tools.original).__name__}). "
                "Give both (or Distill(teacher=...)), or use FineTune, which learns from labels."
            )
        normed = kept_norms(graph) if plan.keep_norms and isinstance(graph, GraphModule) else graph
        student = keeping_zeros(normed)
        trained = taught(student, self._teacher(tools.original, plan, tools.task), plan, tools)
        result = take_weights_(copy.deepcopy(graph), trained.state_dict())
        hand_learned_on_(trained, result)
        return result

    def _teacher(self, original: nn.Module | None, plan: DistillPlan, task: Task) -> nn.Module:
        if self.teacher is None:
            assert original is not None
            return original
        if any(isinstance(one, Logits | Outputs) for one in plan.objectives):
            check_model(self.teacher, task)
        return self.teacher


def answers(task: Task, temperature: float = Logits.temperature) -> tuple[Objective, ...]:
    """What a teacher's answers are learned by: as probabilities of classes, or as they are where targets are real."""
    return (Outputs(),) if task.train.targets.is_floating_point() else (Logits(temperature),)


class Heard(nn.Module):
    """A model that tells its output, and on request what its taps read; with projections if it learns."""

    def __init__(self, model: nn.Module, taps: Sequence[Tap], projections: nn.ModuleDict | None = None) -> None:
        super().__init__()
        self.model = with_taps(model, taps) if taps and isinstance(model, GraphModule) else copy.deepcopy(model)
        self.projections = projections or nn.ModuleDict()
        self.num_taps = len(taps)

    def values(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """(output, one value a tap)."""
        found = self.model(*inputs)
        return found if self.num_taps else (found,)

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.values(*inputs)[0]


@dataclass(frozen=True)
class Pair:
    """A student's and a teacher's tap that are compared; `project` is the dim that a projection makes alike."""

    student: Tap
    teacher: Tap
    project: int | None = None


@dataclass(frozen=True)
class Lesson:
    """Who learns what from whom: everything was checked. pairs: of each objective; none means the outputs."""

    graph: nn.Module
    teacher: nn.Module
    task: Task
    plan: DistillPlan
    pairs: tuple[tuple[Pair, ...], ...]

    def student(self) -> Heard:
        """A copy of the graph that learns, with fresh projections."""
        pairs = [pair for group in self.pairs for pair in group]
        projections = nn.ModuleDict()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.plan.settings.seed)
            for place, pair in enumerate(pairs):
                if pair.project is not None:
                    own, theirs = (int(tap.shape[pair.project] or 0) for tap in (pair.student, pair.teacher))
                    projections[str(place)] = nn.Linear(own, theirs, bias=False)
        return Heard(self.graph, [pair.student for pair in pairs], projections)

    def objective(self) -> Callable[[Any, tuple[Tensor, ...], Tensor], Tensor]:
        """(student, inputs, targets) -> the weighted sum; works on a copy of the teacher, in eval mode."""
        pairs = [pair for group in self.pairs for pair in group]
        teacher = Heard(self.teacher, [pair.teacher for pair in pairs]).eval()
        channels_last_(teacher, self.task.train.inputs)

        def lesson(student: Heard, inputs: tuple[Tensor, ...], targets: Tensor) -> Tensor:
            # no_grad and not inference_mode: the loss saves these outputs for its backward pass.
            with torch.no_grad():
                wanted = teacher.values(*inputs)
            said = student.values(*inputs)
            projected = [_projected(student, place, pair, said[place + 1]) for place, pair in enumerate(pairs)]
            losses, first = [], 0
            for objective, group in zip(self.plan.objectives, self.pairs, strict=True):
                if isinstance(objective, Labels):
                    losses.append(objective.weight * self.task.loss(said[0].float(), targets))
                elif not group:
                    losses.append(objective.weight * objective.loss(said[0], wanted[0]))
                else:
                    places = range(first, first + len(group))
                    parts = [objective.loss(projected[place], wanted[place + 1]) for place in places]
                    losses.append(objective.weight * torch.stack(parts).mean())
                first += len(group)
            return torch.stack(losses).sum() if len(losses) > 1 else losses[0]

        # A checkpoint belongs to what was learned from whom.
        what = " + ".join(_words(objective) for objective in self.plan.objectives)
        how = ", norms kept" * self.plan.keep_norms
        lesson.__name__ = f"{what} of {fingerprint_weights(self.teacher, values=True)[:16]}{how}"
        return lesson


def _projected(student: Heard, place: int, pair: Pair, value: Tensor) -> Tensor:
    if pair.project is None:
        return value
    return student.projections[str(place)](value.movedim(pair.project, -1)).movedim(-1, pair.project)


def taught(
    student: nn.Module, teacher: nn.Module, plan: DistillPlan, tools: Tools, *, who: str = "Distill", instead: str = ""
) -> nn.Module:
    """A copy of `student` that learned what `plan` says.

    Args:
        student: a graph where an objective names positions.
        teacher: what it learns from.
        plan: the objectives, and the settings of the training.
        tools: gives the task; its folder keeps a checkpoint after each epoch or five minutes.
        who: the method that asks, for messages and for the checkpoint's name.
        instead: as for `check_teacher`.

    Raises:
        PlanError: as for `Distill.plan`.
    """
    assert tools.task is not None
    lesson = lesson_of(student, teacher, plan, tools.task, who=who, instead=instead)
    checkpoint = Path(tools.folder) / f"{who.lower()}.safetensors" if tools.folder else None
    trained = learn_further(
        lesson.student(),
        tools.task,
        plan.settings,
        objective=lesson.objective(),
        report=tools.report,
        checkpoint=checkpoint,
    )
    hand_learned_on_(trained, trained.model)
    return trained.model


def lesson_of(
    graph: nn.Module, teacher: nn.Module, plan: DistillPlan, task: Task, *, who: str = "Distill", instead: str = ""
) -> Lesson:
    """Who learns what from whom, checked. Arguments and errors: `taught`."""
    for objective in plan.objectives:
        if isinstance(objective, Logits):
            mend = instead or "Outputs() or FineTune"
            check_teacher(graph, teacher, task, who=who, instead=mend, dim=objective.dim)
        elif isinstance(objective, Outputs):
            _check_outputs(graph, teacher, task, who=who, dim=None)
    related = min(plan.settings.batch_size, len(task.train))
    if related < MIN_RELATED and any(isinstance(objective, Relations) for objective in plan.objectives):
        raise PlanError(
            f"Relations compares the samples of a batch, {MIN_RELATED} or more; the batches hold {related}. "
            "Give the task a Fit with a larger batch_size."
        )
    named = [objective for objective in plan.objectives if isinstance(objective, Positioned) and objective.at]
    if not named:
        return Lesson(graph, teacher, task, plan, ((),) * len(plan.objectives))
    if not isinstance(graph, GraphModule):
        raise PlanError(
            f"{_words(named[0])} names positions of a graph, and a {type(graph).__name__} was given. "
            "Give trimtab.capture(model, example_inputs)."
        )
    if not isinstance(teacher, GraphModule):
        teacher = capture(teacher, task.train.batch(slice(0, 2)).inputs)
    pairs = tuple(_pairs(graph, teacher, one) if one in named else () for one in plan.objectives)
    return Lesson(graph, teacher, task, plan, pairs)


def _pairs(graph: GraphModule, teacher: GraphModule, objective: Any) -> tuple[Pair, ...]:
    names = zip(objective.at, objective.teacher_at or objective.at, strict=True)
    return tuple(pair for own, theirs in names for pair in _compared(graph, teacher, objective, own, theirs))


def _compared(
    graph: GraphModule, teacher: GraphModule, objective: Positioned, own: str, theirs: str
) -> tuple[Pair, ...]:
    taps = attention_taps if isinstance(objective, SelfAttention) else _value_taps
    students, teachers = taps(graph, own, whose="graph"), taps(teacher, theirs, whose="teacher")
    found = []
    # A softmax has no values beside it: what both have is compared.
    for student, other in zip(students, teachers, strict=False):
        if why := objective.misfit(student.shape, other.shape):
            shapes = " and ".join(str(["B", *tap.shape[1:]]).replace("'", "") for tap in (student, other))
            raise PlanError(
                f"{type(objective).__name__} cannot compare the graph's {own!r} with the teacher's {theirs!r}, of "
                f"shapes {shapes}: {why}"
            )
        differs = [] if isinstance(objective, Relations) else projected_dim(student.shape, other.shape)
        found.append(Pair(student, other, differs[0] if differs and objective.kind == "features" else None))
    return tuple(found)


def _value_taps(graph: GraphModule, name: str, *, whose: str) -> tuple[Tap, ...]:
    return (value_tap(graph, name, whose=whose),)


def check_teacher(student: nn.Module, teacher: nn.Module, task: Task, *, who: str, instead: str, dim: int = 1) -> None:
    """Refuse a teacher that `student` cannot learn classes from.

    Args:
        student: what learns.
        teacher: what it learns from.
        task: gives two inputs, and the kind of targets.
        who: the method that asks, for the message.
        instead: what learns from labels with the task's own loss.
        dim: of the outputs, the one that holds the classes.

    Raises:
        PlanError: the outputs differ in shape, or are not the probabilities of classes.
    """
    teaches = _check_outputs(student, teacher, task, who=who, dim=dim)
    if task.train.targets.is_floating_point():
        raise PlanError(
            f"{who} compares the probabilities of classes, but the task's targets are real numbers. "
            f"Use {instead}, which learns from them with the task's own loss."
        )
    classes = teaches[dim - (dim > 0)] if -len(teaches) <= dim <= len(teaches) and dim else 0
    if classes < 2:
        raise PlanError(
            f"{who} compares the probabilities of K >= 2 classes in dim {dim}, but the original's outputs are "
            f"{teaches} a sample. Use {instead}, which learns from labels with the task's own loss."
        )


def _check_outputs(student: nn.Module, teacher: nn.Module, task: Task, *, who: str, dim: int | None) -> tuple[int, ...]:
    sample = task.train.batch(slice(0, 2))
    learns, teaches = (tuple(predict(model, sample.inputs).shape) for model in (student, teacher))
    if learns == teaches:
        return teaches[1:]
    counts = ""
    if dim is not None and len(learns) == len(teaches) > dim:
        counts = f" (classes, or tokens of the vocabulary: {learns[dim]} and {teaches[dim]})"
    raise PlanError(
        f"{who} cannot match outputs of different shapes: the graph's are {learns[1:]} a sample, the original's "
        f"{teaches[1:]}{counts}. Give the graph the original's outputs, or a teacher with the graph's."
    )


def _words(objective: Objective) -> str:
    return str(objective).replace(f", kind={objective.kind!r}", "")
