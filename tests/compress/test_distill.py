from __future__ import annotations

import copy
import dataclasses
import json

import cattrs
import pytest
import torch
from torch import nn
from torch.fx import GraphModule

from tests.train.toy import FIT, same_weights, toy_net, toy_task
from trimtab.compress.build import key
from trimtab.compress.distill import Distill, DistillPlan, lesson_of
from trimtab.compress.objectives import (
    Features,
    Labels,
    Logits,
    Outputs,
    Relations,
    SelfAttention,
    SpatialAttention,
    distillation_loss,
)
from trimtab.compress.prune import Prune
from trimtab.compress.taps import value_tap, with_taps
from trimtab.core import Recipe, Task, Tools
from trimtab.errors import PlanError, RunError, TaskError
from trimtab.graph.capture import capture
from trimtab.train import loop
from trimtab.train.loop import fit, predict, score
from trimtab.train.precision import channels_last_


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
    student = toy_net().eval()
    lesson = lesson_of(student, teacher, Distill(objectives=(Logits(4.0),)).plan(student, task), task)
    loss = lesson.objective()(lesson.student(), task.train.inputs, task.train.targets)
    assert float(loss.detach()) == pytest.approx(0, abs=1e-5)
    assert teacher.training
    assert teacher[0].weight.is_contiguous()
    assert all(torch.equal(before[name], tensor) for name, tensor in teacher.state_dict().items())


def test_the_plan_is_data_and_says_what_will_happen():
    method = Distill(epochs=3, lr=0.01, objectives=(Logits(3.0), Relations(), Labels(0.5)))
    plan = method.plan(toy_net(), toy_task())
    assert plan.settings == dataclasses.replace(FIT, epochs=3, lr=0.01)
    assert plan.steps == 18
    assert cattrs.structure(json.loads(json.dumps(cattrs.unstructure(plan))), DistillPlan) == plan
    assert {"setting": "steps", "value": 18} in plan.rows()
    assert {"setting": "objective", "value": "Labels(weight=0.5)"} in plan.rows()
    assert plan.skipped == ()
    assert Distill().name == "distill"


def test_the_same_plan_gives_the_same_weights_also_after_a_stop(tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "REPORT_EVERY_SECONDS", 0)
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
    assert sorted(file.name for file in tmp_path.iterdir()) == ["distill.rate.json", "distill.safetensors"]
    assert same_weights(whole, Distill().apply(toy_net(seed=1), plan, kept))  # type: ignore[arg-type]


def test_outputs_of_different_shapes_are_refused():
    task = toy_task()
    teacher = nn.Sequential(nn.Flatten(), nn.Linear(64, 6))
    with pytest.raises(PlanError, match=r"the graph's are \(5,\) a sample, the original's \(6,\)"):
        Distill().apply(toy_net(), Distill().plan(teacher, task), Tools(task=task, original=teacher))  # type: ignore[arg-type]
    with pytest.raises(PlanError, match=r"\(classes, or tokens of the vocabulary: 5 and 6\)\. Give the graph"):
        Distill(teacher=teacher).plan(toy_net(), task)


def test_an_original_without_classes_is_refused():
    task, one = toy_task(), nn.Sequential(nn.Flatten(), nn.Linear(64, 1))
    with pytest.raises(PlanError, match=r"K >= 2 classes in dim 1, but the original's outputs are \(1,\)"):
        Distill().apply(one, Distill().plan(one, task), Tools(task=task, original=one))  # type: ignore[arg-type]


def test_without_an_original_or_a_task_there_is_nothing_to_learn_from():
    plan = Distill().plan(toy_net(), toy_task())
    with pytest.raises(PlanError, match=r"got Tools\(task='toy', original=NoneType\)"):
        Distill().apply(toy_net(), plan, Tools(task=toy_task()))  # type: ignore[arg-type]
    with pytest.raises(PlanError, match=r"got Tools\(task=None, original=Sequential\)"):
        Distill().apply(toy_net(), plan, Tools(original=toy_net()))  # type: ignore[arg-type]


@pytest.mark.parametrize("wrong", [{"epochs": 0}, {"lr": 0.0}])
def test_settings_without_sense_are_refused(wrong):
    with pytest.raises(PlanError, match="Distill needs epochs >= 1"):
        Distill(**wrong)


@pytest.mark.parametrize("wrong", [(), (Labels(),), [Logits()], ("logits",)])
def test_objectives_without_a_teacher_or_of_another_kind_are_refused(wrong):
    with pytest.raises(PlanError, match=r"needs a tuple of objectives, one of them or more about a teacher"):
        Distill(objectives=wrong)


def graph_of(module: nn.Module) -> GraphModule:
    return capture(module, toy_task().train.batch(slice(0, 2)).inputs)


def learned(method: Distill, student: nn.Module, teacher: nn.Module, task: Task | None = None, **tools) -> GraphModule:
    task = task or toy_task()
    plan = method.plan(student, task)
    return method.apply(student, plan, Tools(task=task, original=teacher, **tools))  # type: ignore[arg-type]


def test_a_narrower_student_learns_features_through_a_projection_that_is_dropped():
    task = toy_task()
    teacher, student = graph_of(fit(toy_net(), task)), graph_of(toy_net(seed=1, width=4))
    method = Distill(epochs=16, lr=1e-2, objectives=(Features(at=("relu",)),), teacher=teacher)
    result = learned(method, student, student)
    assert result.state_dict().keys() == student.state_dict().keys()
    assert result.code == student.code
    assert not same_weights(result, student)
    assert torch.equal(result.get_parameter("5.weight"), student.get_parameter("5.weight")), "nothing reaches the head"

    def unexplained(graph: GraphModule) -> float:
        """What is left of the teacher's features after the best projection from the graph's."""
        values = []
        for one in (graph, teacher):
            features = with_taps(one, [value_tap(one, "relu", whose="graph")])(task.select.inputs[0])[1]
            values.append(features.movedim(1, -1).flatten(0, 2).detach())
        own, theirs = values
        left = theirs - own @ torch.linalg.lstsq(own, theirs).solution
        return float(left.square().mean() / theirs.square().mean())

    assert unexplained(result) < unexplained(student)


def test_a_pruned_graph_learns_from_its_original_at_the_same_names():
    task, original = toy_task(), graph_of(fit(toy_net(), toy_task()))
    cut = Prune(ratio=0.5, importance="magnitude")
    pruned = cut.apply(original, cut.plan(original, task), Tools(task=task))
    objectives = (Logits(), Features(at=("relu", "batch_norm"), weight=0.1), SpatialAttention(at=("relu",)))
    result = learned(Distill(epochs=4, objectives=objectives), pruned, original)
    answers = [predict(model, task.select.inputs) for model in (original, pruned, result)]
    before, after = (float(Logits(1.0).loss(one, answers[0])) for one in answers[1:])
    assert after < 0.7 * before


def test_norms_that_are_kept_do_not_take_the_statistics_of_strange_inputs():
    task, original = toy_task(), graph_of(fit(toy_net(), toy_task()))
    cut = Prune(ratio=0.5, importance="magnitude")
    pruned = cut.apply(original, cut.plan(original, task), Tools(task=task))
    strange = dataclasses.replace(task.train, inputs=(3 * task.train.inputs[0] + 2,))
    tools = Tools(task=dataclasses.replace(task, train=strange), original=original)  # type: ignore[arg-type]
    wanted, before = predict(original, task.select.inputs), dict(pruned.named_buffers())
    found = {}
    for keep in (True, False):
        method = Distill(epochs=2, lr=1e-3, keep_norms=keep)
        result = method.apply(pruned, method.plan(pruned, task), tools)
        kept = all(torch.equal(value, before[name]) for name, value in result.named_buffers())
        assert kept is keep
        assert [str(node.args) for node in result.graph.nodes] == [str(node.args) for node in pruned.graph.nodes]
        found[keep] = float(Logits(1.0).loss(predict(result, task.select.inputs), wanted))
    assert found[True] < found[False]
    with pytest.raises(PlanError, match=r"Give trimtab.capture"):
        Distill(keep_norms=True).plan(toy_net(), task)


def test_embeddings_are_learned_by_outputs_and_relations():
    x = torch.randn(120, 6)
    torch.manual_seed(0)
    teacher = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))
    y = teacher(x).detach()
    parts = {name: (x[at], y[at]) for name, at in {"train": slice(80), "select": slice(80, 100)}.items()}
    task = Task.of("embed", **parts, verify=(x[100:], y[100:]), loss=nn.functional.mse_loss, fit=FIT)
    student = nn.Sequential(nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 3))
    for objectives in ((Outputs(),), (Relations(),), (Outputs(), Relations(weight=0.1))):
        result = learned(Distill(epochs=6, lr=2e-2, objectives=objectives), student, teacher, task)
        losses = [
            sum(float(one.loss(predict(model, x[100:]), y[100:])) for one in objectives) for model in (student, result)
        ]
        assert losses[1] < 0.7 * losses[0]
    assert Distill().plan(student, task).objectives == (Outputs(),), "what suits the task is the default"
    assert Distill().plan(toy_net(), toy_task()).objectives == (Logits(),)
    with pytest.raises(PlanError, match=r"the task's targets are real numbers. Use Outputs\(\) or FineTune"):
        Distill(objectives=(Logits(),)).plan(student, task)


def test_labels_are_heard_only_if_they_are_asked_for():
    task, teacher, student = toy_task(), fit(toy_net(), toy_task()), toy_net(seed=1)
    wrong = dataclasses.replace(task, train=dataclasses.replace(task.train, targets=task.train.targets.roll(1).clone()))
    method = Distill(epochs=1)
    assert same_weights(learned(method, student, teacher, task), learned(method, student, teacher, wrong))
    mixed = dataclasses.replace(method, objectives=(Logits(), Labels(0.5)))
    assert not same_weights(learned(mixed, student, teacher, task), learned(mixed, student, teacher, wrong))


def test_the_same_after_a_stop_with_projections_and_not_with_another_teacher(tmp_path):
    teacher, student = graph_of(toy_net()), graph_of(toy_net(seed=1, width=4))
    method = Distill(epochs=2, objectives=(Logits(), Features(at=("relu",))), teacher=teacher)
    whole = learned(method, student, student)

    def stop(done: int, total: int, text: str) -> None:
        if done > 6:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        learned(method, student, student, folder=str(tmp_path), report=stop)
    other = dataclasses.replace(method, teacher=graph_of(toy_net(seed=2)))
    with pytest.raises(RunError, match="its objective is Logits"):
        learned(other, student, student, folder=str(tmp_path))
    assert same_weights(whole, learned(method, student, student, folder=str(tmp_path)))


def test_the_default_is_what_soft_answers_alone_give():
    task, teacher, student = toy_task(), fit(toy_net(), toy_task()), toy_net(seed=1)
    method, heard = Distill(epochs=2, lr=2e-3), copy.deepcopy(teacher).eval()
    channels_last_(heard, task.train.inputs)

    def objective(model: nn.Module, inputs: tuple[torch.Tensor, ...], targets: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            wanted = heard(*inputs)
        return distillation_loss(model(*inputs), wanted, temperature=2.0)

    plain = fit(student, task, method.plan(student, task).settings, objective=objective)
    assert same_weights(learned(method, student, teacher), plain)


def test_a_given_teacher_goes_before_the_original_and_into_the_key():
    task, teacher, student = toy_task(), fit(toy_net(), toy_task()), toy_net(seed=1)
    method = Distill(epochs=1, teacher=teacher)
    assert same_weights(learned(method, student, student), learned(Distill(epochs=1), student, teacher))
    keys = {key(Recipe((Distill(epochs=1, teacher=one),))) for one in (None, teacher, toy_net(seed=2))}
    assert len(keys) == 3
    same = fit(toy_net(), task)
    assert key(Recipe((method,))) == key(Recipe((Distill(epochs=1, teacher=same),)))


def test_a_teacher_that_the_task_does_not_fit_is_refused():
    with pytest.raises(TaskError, match="The task's inputs do not fit the model"):
        Distill(teacher=nn.Linear(3, 5)).plan(toy_net(), toy_task())
    with pytest.raises(PlanError, match=r"the graph's are \(5,\) a sample, the original's \(6,\)\. Give"):
        Distill(objectives=(Outputs(),), teacher=nn.Sequential(nn.Flatten(), nn.Linear(64, 6))).plan(
            toy_net(), toy_task()
        )


def test_positions_that_are_not_there_are_refused_with_those_near():
    graph, task = graph_of(toy_net()), toy_task()
    with pytest.raises(PlanError, match=r"The graph has no position 'relu_1'; near it: relu"):
        Distill(objectives=(Features(at=("relu_1",)),)).plan(graph, task)
    with pytest.raises(PlanError, match=r"The teacher has no position 'conv'; near it: conv2d"):
        Distill(objectives=(Features(at=("relu",), teacher_at=("conv",)),)).plan(graph, task)
    with pytest.raises(
        PlanError, match=r"names positions of a graph, and a Sequential was given. Give trimtab.capture"
    ):
        Distill(objectives=(Features(at=("relu",)),)).plan(toy_net(), task)


def test_values_that_cannot_be_compared_are_refused():
    task, graph = toy_task(), graph_of(toy_net())
    strided = nn.Sequential(nn.Conv2d(1, 6, 3, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(54, 5))
    for objective in (Features(at=("relu",)), SpatialAttention(at=("relu",))):
        with pytest.raises(
            PlanError, match=r"'relu' with the teacher's 'relu', of shapes \[B, 8, 8, 8\] and \[B, 6, 3, 3\]"
        ):
            Distill(objectives=(objective,), teacher=strided).plan(graph, task)
    assert Distill(objectives=(Relations(at=("relu",)),), teacher=strided).plan(graph, task).steps == 24
    with pytest.raises(PlanError, match=r"'relu' is aten.relu.default, no attention; attention is at: no node"):
        Distill(objectives=(SelfAttention(at=("relu",)),)).plan(graph, task)


def test_too_few_samples_to_relate_are_refused():
    task = dataclasses.replace(toy_task(), fit=dataclasses.replace(FIT, batch_size=2))
    with pytest.raises(PlanError, match="the samples of a batch, 3 or more; the batches hold 2"):
        Distill(objectives=(Relations(),)).plan(toy_net(), task)
