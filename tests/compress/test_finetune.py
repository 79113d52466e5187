from __future__ import annotations

import dataclasses
import json

import pytest

from tests.train.toy import FIT, same_weights, toy_net, toy_task
from trimtab.compress.finetune import FineTune
from trimtab.core import Tools
from trimtab.errors import PlanError
from trimtab.train.loop import score


def test_it_learns_from_the_labels_and_leaves_the_graph_alone(tmp_path):
    task, model = toy_task(), toy_net()
    method = FineTune(epochs=4, lr=1e-2)
    tools = Tools(task=task, folder=str(tmp_path))
    learned = method.apply(model, method.plan(model, task), tools)  # type: ignore[arg-type]
    assert score(learned, task.select, task.metric).mean() > 0.9
    assert same_weights(model, toy_net())
    assert sorted(file.name for file in tmp_path.iterdir()) == ["finetune.safetensors", "finetune.safetensors.1"]


def test_the_plan_is_data():
    plan = FineTune(epochs=3, lr=0.01).plan(toy_net(), toy_task())
    assert plan.settings == dataclasses.replace(FIT, epochs=3, lr=0.01)
    assert json.loads(json.dumps(dataclasses.asdict(plan)))["steps"] == 18
    assert {"setting": "lr", "value": 0.01} in plan.rows()
    assert (plan.skipped, FineTune().name) == ((), "fine-tune")


def test_without_a_task_there_is_nothing_to_learn_from():
    with pytest.raises(PlanError, match="FineTune needs the task"):
        FineTune().apply(toy_net(), FineTune().plan(toy_net(), toy_task()), Tools())  # type: ignore[arg-type]


@pytest.mark.parametrize("wrong", [{"epochs": 0}, {"lr": -1.0}])
def test_settings_without_sense_are_refused(wrong):
    with pytest.raises(PlanError, match="FineTune needs epochs >= 1"):
        FineTune(**wrong)
