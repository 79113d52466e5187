"""What a student may learn from a teacher: one value each, and the losses behind them. `Distill` adds them up.

* `Logits`: Hinton, Vinyals and Dean 2015, "Distilling the Knowledge in a Neural Network".
* `Outputs`: the squared error of the outputs, for regression and embeddings.
* `Features`: Romero et al. 2015, "FitNets". Differs: the error is relative to the teacher's power, so that one weight
  serves positions of any scale; and where shapes agree, as in a model and its compressed copy, nothing is projected.
* `Relations`: Park et al. 2019, "Relational Knowledge Distillation". Differs: all from one Gram matrix, in fp32.
* `SpatialAttention`: Zagoruyko and Komodakis 2017, "Paying More Attention to Attention".
* `SelfAttention`: Wang et al. 2020, "MiniLM": attention distributions and relations of values. Differs: at any layers,
  not the last alone; where the numbers of heads differ, both are averaged over heads.
* `Labels`: the task's own loss, mixed in. Nothing else here looks at a label.

A position is the name of a node of the captured graph (`[node.name for node in graph.graph.nodes]`); pruning keeps the
names. Cost: that of the losses; `Relations` takes B^3 numbers for a batch of B.
"""

# Annotations are types here, not strings: cattrs tells the values apart by the Literal of `kind`.
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from trimtab.errors import PlanError

Shape = Sequence[int | None]  # None: a dim that is known only at run time, as the batch is
ALIKE = "Give positions of the same resolution, or Relations(...), which compares samples and not their values."


@dataclass(frozen=True)
class Logits:
    """T^2 * KL(softmax(teacher / T) || softmax(student / T)), a mean over the samples (and positions).

    Args:
        temperature: T; above 1, the classes that the teacher thinks unlikely count for more.
        dim: of the outputs, the one that holds the classes; -1 for tokens [B, T, V].
        weight: of this objective in the sum.
    """

    temperature: float = 2.0
    dim: int = 1
    weight: float = 1.0
    kind: Literal["logits"] = "logits"

    def __post_init__(self) -> None:
        _refuse_nonsense(self)
        if self.temperature <= 0:
            raise PlanError(f"Logits needs temperature > 0; got {self}.")
        if self.dim == 0:
            raise PlanError("Logits needs the dim of the classes, and dim 0 is the batch; give 1, or -1 for the last.")

    def loss(self, student: Tensor, teacher: Tensor) -> Tensor:
        """One number, from outputs of one shape."""
        return distillation_loss(student, teacher, temperature=self.temperature, dim=self.dim)


@dataclass(frozen=True)
class Outputs:
    """The mean squared error of the outputs.

    Args:
        weight: of this objective in the sum.
    """

    weight: float = 1.0
    kind: Literal["outputs"] = "outputs"

    def __post_init__(self) -> None:
        _refuse_nonsense(self)

    def loss(self, student: Tensor, teacher: Tensor) -> Tensor:
        """One number, from outputs of one shape."""
        return F.mse_loss(student.float(), teacher.float())


@dataclass(frozen=True)
class Features:
    """|student - teacher|^2 / |teacher|^2 of the values at some positions.

    Where the two differ in one dim, a projection along it, learned beside the student and dropped afterwards, makes
    the student's value comparable.

    Args:
        at: names of nodes of the student's graph.
        teacher_at: the teacher's, one for each; default: the same names.
        weight: of this objective in the sum; its positions are averaged.
    """

    at: tuple[str, ...]
    teacher_at: tuple[str, ...] = ()
    weight: float = 1.0
    kind: Literal["features"] = "features"

    def __post_init__(self) -> None:
        _refuse_nonsense(self, needs_positions=True)

    def loss(self, student: Tensor, teacher: Tensor) -> Tensor:
        """One number, from values of one shape."""
        student, teacher = student.float(), teacher.float()
        return (student - teacher).square().mean() / teacher.square().mean().clamp_min(1e-12)

    def misfit(self, student: Shape, teacher: Shape) -> str | None:
        """Why values of these shapes cannot be compared."""
        differ = projected_dim(student, teacher)
        if len(student) != len(teacher) or len(differ) > 1:
            return f"they may differ in one dim, which a projection learns. {ALIKE}"
        return None


@dataclass(frozen=True)
class Relations:
    """How far apart the samples of a batch are, and at what angles, as smooth L1 distances from the teacher's.

    Distances are in units of their mean over the batch; the angle of three samples is measured at the middle one.

    Args:
        at: names of nodes of the student's graph; default: the outputs.
        teacher_at: the teacher's, one for each; default: the same names. Shapes may differ.
        distance: weight of the distances.
        angle: weight of the angles.
        weight: of this objective in the sum; its positions are averaged.
    """

    at: tuple[str, ...] = ()
    teacher_at: tuple[str, ...] = ()
    distance: float = 1.0
    angle: float = 2.0
    weight: float = 1.0
    kind: Literal["relations"] = "relations"

    def __post_init__(self) -> None:
        _refuse_nonsense(self)
        if min(self.distance, self.angle) < 0 or self.distance + self.angle == 0:
            raise PlanError(f"Relations needs distance >= 0 and angle >= 0, not both 0; got {self}.")

    def loss(self, student: Tensor, teacher: Tensor) -> Tensor:
        """One number, from values [B, ...] of any two shapes."""
        distance, angle = relation_losses(student, teacher)
        return self.distance * distance + self.angle * angle

    def misfit(self, student: Shape, teacher: Shape) -> str | None:
        """Why values of these shapes cannot be compared."""
        if min(len(student), len(teacher)) < 2:
            return "a value [B, ...] was expected, more than one number a sample."
        return None


@dataclass(frozen=True)
class SpatialAttention:
    """The distance of two maps of where a layer looks: the mean square over channels, flattened, of length 1.

    Args:
        at: names of nodes of the student's graph, with values [B, C, ...].
        teacher_at: the teacher's, one for each; default: the same names. Channels may differ.
        weight: of this objective in the sum; its positions are averaged.
    """

    at: tuple[str, ...]
    teacher_at: tuple[str, ...] = ()
    weight: float = 1.0
    kind: Literal["spatial attention"] = "spatial attention"

    def __post_init__(self) -> None:
        _refuse_nonsense(self, needs_positions=True)

    def loss(self, student: Tensor, teacher: Tensor) -> Tensor:
        """One number, from values [B, C, ...] that may differ in C."""
        difference = spatial_map(student) - spatial_map(teacher)
        return difference.square().sum(1).mean()

    def misfit(self, student: Shape, teacher: Shape) -> str | None:
        """Why values of these shapes cannot be compared."""
        if min(len(student), len(teacher)) < 3 or list(student[2:]) != list(teacher[2:]):
            return f"values [B, C, ...] that differ in C alone were expected. {ALIKE}"
        return None


@dataclass(frozen=True)
class SelfAttention:
    """KL(teacher || student) of what each token attends to, and of how alike the values of two tokens are; their mean.

    Args:
        at: names of nodes of the student's graph that call `scaled_dot_product_attention`, or the softmax of one.
        teacher_at: the teacher's, one for each; default: the same names.
        weight: of this objective in the sum; its positions are averaged.
    """

    at: tuple[str, ...]
    teacher_at: tuple[str, ...] = ()
    weight: float = 1.0
    kind: Literal["self-attention"] = "self-attention"

    def __post_init__(self) -> None:
        _refuse_nonsense(self, needs_positions=True)

    def loss(self, student: Tensor, teacher: Tensor) -> Tensor:
        """One number, from log-probabilities [B, H, T, S] that may differ in H."""
        if student.shape[1] != teacher.shape[1]:
            student, teacher = (x.exp().mean(1, keepdim=True).clamp_min(1e-12).log() for x in (student, teacher))
        return F.kl_div(student, teacher, reduction="none", log_target=True).sum(-1).mean()

    def misfit(self, student: Shape, teacher: Shape) -> str | None:
        """Why values of these shapes cannot be compared."""
        if len(student) != 4 or len(teacher) != 4 or list(student[2:]) != list(teacher[2:]):
            return (
                "attention [B, H, T, S] that differs in the heads H alone was expected. Give attention over one length."
            )
        return None


@dataclass(frozen=True)
class Labels:
    """The task's own loss, on the outputs and the task's targets.

    Args:
        weight: of this objective in the sum.
    """

    weight: float = 1.0
    kind: Literal["labels"] = "labels"

    def __post_init__(self) -> None:
        _refuse_nonsense(self)


Objective = Logits | Outputs | Features | Relations | SpatialAttention | SelfAttention | Labels
Positioned = Features | Relations | SpatialAttention | SelfAttention


def _refuse_nonsense(objective: Objective, *, needs_positions: bool = False) -> None:
    if objective.weight <= 0:
        raise PlanError(f"{type(objective).__name__} needs weight > 0; got {objective}. Leave it out instead.")
    if not isinstance(objective, Features | Relations | SpatialAttention | SelfAttention):
        return
    for field in ("at", "teacher_at"):
        if not isinstance(getattr(objective, field), tuple):
            raise PlanError(f"{type(objective).__name__} needs {field} as a tuple of node names; got {objective}.")
    if needs_positions and not objective.at:
        raise PlanError(f"{type(objective).__name__} needs a position or more, at=('name of a node', ...).")
    if objective.teacher_at and len(objective.teacher_at) != len(objective.at):
        raise PlanError(
            f"{type(objective).__name__} needs one teacher's position for each of the student's; got "
            f"at={objective.at} and teacher_at={objective.teacher_at}."
        )


def projected_dim(student: Shape, teacher: Shape) -> list[int]:
    """The dims beyond the first in which two shapes differ."""
    return [d for d, (s, t) in enumerate(zip(student, teacher, strict=False)) if d and s != t]


def distillation_loss(student: Tensor, teacher: Tensor, *, temperature: float, dim: int = 1) -> Tensor:
    """T^2 * KL(softmax(teacher / T) || softmax(student / T)), a mean over the samples.

    Args:
        student: logits [B, K, ...].
        teacher: logits of the same shape.
        temperature: T; the factor T^2 keeps the gradient's size as T changes.
        dim: the one that holds the K classes.
    """
    log_p = F.log_softmax(teacher.float() / temperature, dim=dim)
    log_q = F.log_softmax(student.float() / temperature, dim=dim)
    divergence = F.kl_div(log_q, log_p, reduction="none", log_target=True).sum(dim)
    return divergence.mean() * temperature**2


def relation_losses(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Smooth L1 distances between the two batches' relative distances, and between their angles.

    Args:
        student: [B, ...], B >= 3.
        teacher: [B, ...], of any other shape.

    Returns:
        Means over the B (B - 1) pairs and the B (B - 1) (B - 2) triplets of different samples.
    """
    # Differences of nearly equal sums: bf16 would leave nothing of them.
    with torch.autocast(student.device.type, enabled=False):
        (near, angles), (wanted_near, wanted_angles) = (_relations(x.float().flatten(1)) for x in (student, teacher))
        different = ~torch.eye(len(student), dtype=torch.bool, device=student.device)
        triplets = different[:, :, None] & different[None] & different[:, None, :]
        distance = F.smooth_l1_loss(near[different], wanted_near[different])
        return distance, F.smooth_l1_loss(angles[triplets], wanted_angles[triplets])


def _relations(x: Tensor) -> tuple[Tensor, Tensor]:
    """Relative distances [B, B], and cosines [B, B, B] at the middle sample; what repeats a sample means nothing."""
    x = x - x.mean(0)
    gram = x @ x.T
    square = gram.diagonal()
    apart = (square[:, None] + square[None] - 2 * gram).clamp_min(0)
    # The root's slope at 0 is infinite.
    lengths = (apart + 1e-12 * apart.detach().mean().clamp_min(1e-12)).sqrt()
    num = len(x) * (len(x) - 1)
    mean = (lengths.sum() - lengths.diagonal().sum()) / num
    # <x_i - x_j, x_k - x_j> at [i, j, k]
    inner = gram[:, None, :] - gram[:, :, None] - gram[None] + square[None, :, None]
    return lengths / mean, inner / (lengths[:, :, None] * lengths[None])


def spatial_map(x: Tensor) -> Tensor:
    """Values [B, C, ...] -> where they are large, [B, positions] of length 1."""
    return F.normalize(x.float().square().mean(1).flatten(1), dim=1)
