from __future__ import annotations

import dataclasses
import json

import pytest
import torch
from torch import nn

from tests.train.toy import FIT, same_weights, toy_net, toy_task
from trimtab.compress.distill import Distill, distillation_loss, soft_targets
from trimtab.core import Tools
from trimtab.errors import PlanError
from trimtab.train.loop import fit, predict, score


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


def test_a_student_learns_the_teachers_answers_without_any_label():
    task = toy_task()
    teacher, student = fit(toy_net(), task), toy_net(seed=1, width=4)
    wrong = dataclasses.replace(task.train, targets=task.train.targets.roll(1))
    method = Distill(epochs=8, lr=1e-2)
    plan = method.plan(student, task)
    before = {name: tensor.clone() for name, tensor in student.state_dict().items()}
    tools = Tools(task=dataclasses.replace(task, train=wrong), original=teacher)  # type: ignore[arg-type]
    learned = method.apply(student, plan, tools)  # type: ignore[arg-type]
    agrees = predict(learned, task.select.inputs).argmax(1) == predict(teacher, task.select.inputs).argmax(1)
    assert agrees.double().mean() > 0.9
    assert score(learned, task.select, task.metric).mean() > 0.9
    assert all(torch.equal(before[name], tensor) for name, tensor in student.state_dict().items())
    assert not learned.training


def test_the_teacher_is_heard_in_eval_mode_and_left_alone():
    task, teacher = toy_task(), toy_net().train()
    before = {name: tensor.clone() for name, tensor in teacher.state_dict().items()}
    objective = soft_targets(teacher, 4.0, example_inputs=task.train.inputs)
    student = toy_net().eval()
    loss = objective(student, task.train.inputs, task.train.targets)
    assert float(loss.detach()) == pytest.approx(0, abs=1e-5)
    assert teacher.training
    assert teacher[0].weight.is_contiguous()
    assert all(torch.equal(before[name], tensor) for name, tensor in teacher.state_dict().items())


def test_the_plan_is_data_and_says_what_will_happen():
    plan = Distill(epochs=3, lr=0.01, temperature=2.0).plan(toy_net(), toy_task())
    assert plan.settings == dataclasses.replace(FIT, epochs=3, lr=0.01)
    assert plan.steps == 18
    assert json.loads(json.dumps(dataclasses.asdict(plan)))["temperature"] == 2.0
    assert {"setting": "steps", "value": 18} in plan.rows()
    assert plan.skipped == ()
    assert Distill().name == "distill"


def test_the_same_plan_gives_the_same_weights_also_after_a_stop(tmp_path):
    task, teacher = toy_task(), toy_net()
    plan = Distill(epochs=2).plan(teacher, task)
    tools = Tools(task=task, original=teacher)  # type: ignore[arg-type]
    whole = Distill().apply(toy_net(seed=1), plan, tools)  # type: ignore[arg-type]

    def stop(done: int, total: int, text: str) -> None:
        if done > 6:
            raise KeyboardInterrupt

    kept = dataclasses.replace(tools, folder=str(tmp_path))
    with pytest.raises(KeyboardInterrupt):
        Distill().apply(toy_net(seed=1), plan, dataclasses.replace(kept, report=stop))  # type: ignore[arg-type]
    assert [file.name for file in tmp_path.iterdir()] == ["distill.safetensors"]
    assert same_weights(whole, Distill().apply(toy_net(seed=1), plan, kept))  # type: ignore[arg-type]


def test_outputs_of_different_shapes_are_refused():
    task = toy_task()
    teacher = nn.Sequential(nn.Flatten(), nn.Linear(64, 6))
    with pytest.raises(PlanError, match=r"the graph's are \(5,\) a sample, the original's \(6,\)"):
        Distill().apply(toy_net(), Distill().plan(teacher, task), Tools(task=task, original=teacher))  # type: ignore[arg-type]


def test_an_original_without_classes_is_refused():
    task, one = toy_task(), nn.Sequential(nn.Flatten(), nn.Linear(64, 1))
    with pytest.raises(PlanError, match=r"K >= 2 classes, but the original's outputs are \(1,\)"):
        Distill().apply(one, Distill().plan(one, task), Tools(task=task, original=one))  # type: ignore[arg-type]


def test_without_an_original_or_a_task_there_is_nothing_to_learn_from():
    plan = Distill().plan(toy_net(), toy_task())
    with pytest.raises(PlanError, match=r"got Tools\(task='toy', original=NoneType\)"):
        Distill().apply(toy_net(), plan, Tools(task=toy_task()))  # type: ignore[arg-type]
    with pytest.raises(PlanError, match=r"got Tools\(task=None, original=Sequential\)"):
        Distill().apply(toy_net(), plan, Tools(original=toy_net()))  # type: ignore[arg-type]


@pytest.mark.parametrize("wrong", [{"epochs": 0}, {"lr": 0.0}, {"temperature": -1.0}])
def test_settings_without_sense_are_refused(wrong):
    with pytest.raises(PlanError, match="Distill needs epochs >= 1"):
        Distill(**wrong)
