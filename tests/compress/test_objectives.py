"""Objectives agree with their definitions, written slowly; values without sense are refused."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch.nn import functional as F

from trimtab.compress.objectives import (
    Features,
    Labels,
    Logits,
    Outputs,
    Relations,
    SelfAttention,
    SpatialAttention,
    distillation_loss,
    relation_losses,
)
from trimtab.errors import PlanError


def slow_loss(student: torch.Tensor, teacher: torch.Tensor, temperature: float) -> float:
    """T^2 * KL by its definition, one sample and class at a time, in double precision."""
    total = 0.0
    for s, t in zip(student.double(), teacher.double(), strict=True):
        q, p = ((x / temperature).exp() / (x / temperature).exp().sum() for x in (s, t))
        total += sum(float(a * (a / b).log()) for a, b in zip(p, q, strict=True))
    return temperature**2 * total / len(student)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_the_loss_agrees_with_its_definition(temperature):
    student, teacher = torch.randn(2, 7, 5)
    assert float(distillation_loss(student, teacher, temperature=temperature)) == pytest.approx(
        slow_loss(student, teacher, temperature), rel=1e-5
    )
    assert float(distillation_loss(teacher, teacher + 3, temperature=temperature)) == pytest.approx(0, abs=1e-5)


def test_the_gradient_keeps_its_size_as_the_temperature_rises():
    student, teacher = torch.randn(2, 100, 5)
    norms = []
    for temperature in (8.0, 32.0):
        x = student.clone().requires_grad_()
        distillation_loss(x, teacher, temperature=temperature).backward()
        norms.append(float(x.grad.norm()))
    assert norms[0] == pytest.approx(norms[1], rel=0.2)


def test_classes_may_stand_in_any_dim():
    student, teacher = torch.randn(2, 4, 6, 5)
    last = Logits(dim=-1).loss(student, teacher)
    assert float(last) == pytest.approx(float(Logits().loss(student.mT, teacher.mT)), rel=1e-6)
    assert float(last) == pytest.approx(slow_loss(student.flatten(0, 1), teacher.flatten(0, 1), 2.0), rel=1e-5)


def slow_relations(x: torch.Tensor) -> tuple[dict, dict]:
    """Relative distances of pairs, cosines of triplets, by their definition in double precision."""
    rows = x.double().flatten(1)
    pairs = list(itertools.permutations(range(len(rows)), 2))
    apart = {(i, j): float((rows[i] - rows[j]).norm()) for i, j in pairs}
    mean = sum(apart.values()) / len(apart)
    angles = {
        (i, j, k): float(F.cosine_similarity(rows[i] - rows[j], rows[k] - rows[j], dim=0))
        for i, j, k in itertools.permutations(range(len(rows)), 3)
    }
    return {pair: value / mean for pair, value in apart.items()}, angles


def huber(one: dict, other: dict) -> float:
    differences = [abs(one[at] - other[at]) for at in one]
    return sum(d * d / 2 if d < 1 else d - 0.5 for d in differences) / len(differences)


def test_relations_agree_with_their_definition():
    student, teacher = torch.randn(6, 4, 3) + 5, torch.randn(6, 7) - 3
    distance, angle = relation_losses(student, teacher)
    (near, angles), (wanted_near, wanted_angles) = slow_relations(student), slow_relations(teacher)
    assert float(distance) == pytest.approx(huber(near, wanted_near), rel=1e-4)
    assert float(angle) == pytest.approx(huber(angles, wanted_angles), rel=1e-4)
    both = Relations(distance=2.0, angle=3.0).loss(student, teacher)
    assert float(both) == pytest.approx(2 * float(distance) + 3 * float(angle))


def test_relations_do_not_change_with_place_and_size_and_have_a_gradient_where_samples_repeat():
    x = torch.randn(5, 4, requires_grad=True)
    assert float(Relations().loss(x.detach(), 3 * x.detach() + 7)) == pytest.approx(0, abs=1e-6)
    twice = torch.cat([x[:1], x])
    Relations().loss(twice, torch.randn(6, 4)).backward()
    assert x.grad is not None
    assert x.grad.isfinite().all()


def test_features_are_compared_in_units_of_the_teachers():
    student, teacher = torch.randn(2, 4, 3, 5)
    wanted = float((student - teacher).square().sum() / teacher.square().sum())
    for scale in (1, 1000):
        assert float(Features(at=("a",)).loss(scale * student, scale * teacher)) == pytest.approx(wanted, rel=1e-5)
    assert float(Outputs().loss(student, teacher)) == pytest.approx(float((student - teacher).square().mean()))


def test_maps_of_attention_agree_with_their_definition():
    student, teacher = torch.randn(2, 4, 3, 3), torch.randn(2, 6, 3, 3)
    total = 0.0
    for s, t in zip(student, teacher, strict=True):
        maps = [x.double().pow(2).sum(0).flatten() for x in (s, t)]
        total += float((maps[0] / maps[0].norm() - maps[1] / maps[1].norm()).pow(2).sum())
    assert float(SpatialAttention(at=("a",)).loss(student, teacher)) == pytest.approx(total / 2, rel=1e-5)


def test_self_attention_is_compared_head_by_head_or_averaged_over_heads():
    student, teacher = torch.randn(2, 2, 4, 3, 5).softmax(-1)
    divergence = (teacher * (teacher / student).log()).sum(-1).mean()
    one = SelfAttention(at=("a",))
    assert float(one.loss(student.log(), teacher.log())) == pytest.approx(float(divergence), rel=1e-4)
    mean = teacher.mean(1, keepdim=True)
    divergence = (mean * (mean / student[:, :1]).log()).sum(-1).mean()
    assert float(one.loss(student[:, :1].log(), teacher.log())) == pytest.approx(float(divergence), rel=1e-4)


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda: Logits(temperature=0), "Logits needs temperature > 0"),
        (lambda: Logits(dim=0), "Logits needs the dim of the classes, and dim 0 is the batch"),
        (lambda: Outputs(weight=0), r"Outputs needs weight > 0; .* Leave it out instead"),
        (lambda: Labels(weight=-1), "Labels needs weight > 0"),
        (lambda: Features(at=()), "Features needs a position or more"),
        (lambda: SpatialAttention(at=()), "SpatialAttention needs a position or more"),
        (lambda: SelfAttention(at=()), "SelfAttention needs a position or more"),
        (lambda: Features(at="relu"), "Features needs at as a tuple of node names"),  # type: ignore[arg-type]
        (lambda: Features(at=("a", "b"), teacher_at=("a",)), "one teacher's position for each of the student's"),
        (lambda: Relations(distance=0, angle=0), "Relations needs distance >= 0 and angle >= 0, not both 0"),
    ],
)
def test_values_without_sense_are_refused(make, why):
    with pytest.raises(PlanError, match=why):
        make()


def test_shapes_that_misfit_are_told():
    features, where, words = Features(at=("a",)), SpatialAttention(at=("a",)), SelfAttention(at=("a",))
    assert features.misfit((None, 4, 8, 8), (None, 6, 8, 8)) is None
    assert "one dim" in str(features.misfit((None, 4, 8, 8), (None, 6, 4, 4)))
    assert "one dim" in str(features.misfit((None, 4), (None, 4, 1)))
    assert where.misfit((None, 4, 8, 8), (None, 6, 8, 8)) is None
    assert "differ in C alone" in str(where.misfit((None, 4), (None, 4)))
    assert words.misfit((None, 2, 7, 7), (None, 4, 7, 7)) is None
    assert "heads H alone" in str(words.misfit((None, 2, 7, 7), (None, 2, 7, 9)))
    assert "more than one number" in str(Relations().misfit((None,), (None, 3)))
