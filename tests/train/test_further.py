from __future__ import annotations

import copy
import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tests.train.toy import FIT, same_weights, toy_net, toy_task
from trimtab.compress.build import Built, Stage, build
from trimtab.compress.distill import Distill
from trimtab.compress.finetune import FineTune
from trimtab.core import Fit, Recipe, Task, Tools
from trimtab.errors import TaskError
from trimtab.graph.capture import capture
from trimtab.train import further as module
from trimtab.train.further import (
    HIGHER,
    RATES,
    USUAL_TRIALS,
    further,
    learn_further,
    learned_of,
    samples_tried,
    tried_rates,
)
from trimtab.train.loop import fit, num_steps, score

OPEN = dataclasses.replace(FIT, lr=None, optimizer="adamw")


@pytest.fixture(scope="module")
def learned() -> nn.Module:
    return fit(toy_net(), toy_task())


def only(monkeypatch: pytest.MonkeyPatch, *rates: float) -> None:
    """Try these and no others."""
    monkeypatch.setattr(module, "RATES", rates)
    monkeypatch.setattr(module, "HIGHER", ())


def stage_of(method: Any, model: nn.Module, folder: Path) -> Stage:
    """The stage of a recipe of this method alone."""
    task = toy_task()
    original = Built(capture(model, task.train.batch(slice(0, 2)).inputs), folder / "original", ())

    def once_folder(name: str, make: Callable[[Path], None]) -> Path:
        (folder / name).mkdir(parents=True)
        make(folder / name)
        return folder / name

    return build(Recipe((method,)), original, task, once_folder=once_folder, tools=Tools()).stages[-1]


def stiff(model: nn.Module, factor: float) -> nn.Module:
    """The same function, of weights `factor` times as small: a rate does `factor` times as much to it."""

    class Stiff(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.last = copy.deepcopy(model[-1])
            self.first = copy.deepcopy(model[:-1])
            with torch.no_grad():
                self.last.weight /= factor

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return nn.functional.linear(self.first(x), self.last.weight * factor, self.last.bias)

    return Stiff().eval()


def test_a_model_of_sensitive_weights_gets_a_smaller_rate(learned):
    task = toy_task()

    def as_learned(model: nn.Module, inputs: tuple[torch.Tensor, ...], targets: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            wanted = learned(*inputs)
        return (model(*inputs) - wanted).square().mean()

    fresh, near = toy_net(seed=2), copy.deepcopy(learned)
    with torch.no_grad():
        near[-1].bias += 0.3
    plain, sensitive = (tried_rates(one, task, OPEN, objective=as_learned) for one in (fresh, stiff(near, 10)))
    assert plain.lr >= RATES[0]
    assert sensitive.lr < plain.lr
    assert [rate for rate, _ in sensitive.tried] == list(RATES[: len(sensitive.tried)])
    assert dict(sensitive.tried)[sensitive.lr] <= 2 * sensitive.before


def test_the_largest_rate_is_taken_that_does_not_do_much_harm_at_first(monkeypatch):
    taken: dict[str, float] = {}

    def ladder(harmful_from: float, loss: float, epochs: int = 8) -> list[float]:
        monkeypatch.setattr(module, "fit", lambda model, task, settings, **_: settings.lr)
        monkeypatch.setattr(
            module, "_loss", lambda lr, *_: 1.0 if isinstance(lr, nn.Module) or lr < harmful_from else loss
        )
        found = tried_rates(toy_net(), toy_task(), dataclasses.replace(OPEN, epochs=epochs))
        taken["lr"] = found.lr
        return [lr for lr, _ in found.tried]

    assert ladder(2e-4, 2.1) == [1e-3, 3e-4, 1e-4]
    assert taken["lr"] == 1e-4
    assert ladder(2e-3, 2.1) == [1e-3, 3e-3]
    assert taken["lr"] == 1e-3
    assert ladder(9.0, 2.1) == [1e-3, 3e-3, 1e-2]
    assert taken["lr"] == 1e-2
    assert ladder(0.0, 2.1) == list(RATES)
    assert taken["lr"] == RATES[-1]
    assert ladder(2e-4, 1.9) == [1e-3, 3e-3, 1e-2], "what doubles the loss in the first eighth may yet be made good"
    assert ladder(2e-4, 1.9, epochs=1) == [1e-3, 3e-4, 1e-4], "but not by as few steps as the trial had"


def test_it_trains_as_fit_does_at_the_rate_that_was_found(learned):
    task, student = toy_task(), toy_net(seed=2)
    result = learn_further(student, task, OPEN)
    told = learned_of(result)
    assert told.kept
    assert told.after < told.before
    assert same_weights(result, fit(student, task, dataclasses.replace(OPEN, lr=told.lr)))
    given = dataclasses.replace(OPEN, lr=3e-3)
    assert same_weights(learn_further(student, task, given), fit(student, task, given))
    assert learned_of(learn_further(student, task, given)) is None


def test_what_training_harms_is_left_as_it_was(learned, monkeypatch):
    only(monkeypatch, 3.0)
    result = learn_further(learned, toy_task(), OPEN)
    told = learned_of(result)
    assert not told.kept
    assert told.after > told.before
    assert same_weights(result, learned)
    assert not result.training


def test_a_rate_at_which_the_loss_is_no_number_is_not_chosen(monkeypatch):
    only(monkeypatch, 1e30, 1e-3)
    found = tried_rates(nn.Sequential(nn.Flatten(), nn.Linear(64, 5)), toy_task(), OPEN)
    assert found.lr == 1e-3
    assert found.tried[0] == (1e30, None)
    json.dumps(dataclasses.asdict(found), allow_nan=False)
    only(monkeypatch, 1e30)
    with pytest.raises(TaskError, match="smaller learning rate"):
        learn_further(nn.Sequential(nn.Flatten(), nn.Linear(64, 5)), toy_task(), OPEN)


def test_a_trial_is_short(monkeypatch):
    taken: list[int] = []

    def counted(model: nn.Module, task: Task, settings: Fit, **kwargs: object) -> nn.Module:
        taken.append(num_steps(task, settings))
        return fit(model, task, settings, **kwargs)

    monkeypatch.setattr(module, "fit", counted)
    for epochs in (1, 4, 40):
        tried_rates(toy_net(), toy_task(), dataclasses.replace(OPEN, epochs=epochs))
        settings = dataclasses.replace(OPEN, epochs=epochs)
        assert max(taken) <= max(12, num_steps(toy_task(), settings) // 4)
        assert samples_tried(toy_task(), settings) == USUAL_TRIALS * max(taken) * settings.batch_size
        assert samples_tried(toy_task(), dataclasses.replace(settings, lr=0.1)) == 0
        taken.clear()


def test_the_model_and_the_global_generator_are_left_alone():
    model = toy_net().train()
    before, state = copy.deepcopy(model), torch.get_rng_state()
    learn_further(model, toy_task(), dataclasses.replace(OPEN, epochs=1))
    assert same_weights(model, before)
    assert model.training
    assert torch.equal(torch.get_rng_state(), state)


def test_without_settings_of_the_task_little_data_is_many_steps():
    task = dataclasses.replace(toy_task(), fit=None)
    assert further(task, epochs=2, lr=1e-4) == Fit(epochs=2, lr=1e-4, batch_size=16)
    assert further(toy_task(), epochs=2, lr=None) == dataclasses.replace(FIT, epochs=2, lr=None)
    large = dataclasses.replace(task, train=task.train.batch(torch.arange(5000) % 100))
    assert further(large, epochs=1, lr=None).batch_size == Fit.batch_size


def test_what_was_undone_is_told_among_what_was_skipped(learned, tmp_path, monkeypatch):
    only(monkeypatch, 3.0)
    stage = stage_of(FineTune(epochs=1), learned, tmp_path)
    assert [skip.what for skip in stage.skipped] == ["fine-tune"]
    assert "learning at 3, the rate that was found, raised the loss on select from" in stage.skipped[0].why


def test_a_plan_says_that_its_rate_is_left_open():
    for lr, told in ((None, "found by short trials"), (0.01, 0.01)):
        rows = FineTune(lr=lr).plan(toy_net(), toy_task()).rows()
        assert {"setting": "lr", "value": told} in rows


@pytest.mark.parametrize("method", [Distill(epochs=1), FineTune(epochs=1)])
def test_what_was_chosen_is_kept_with_the_stage(learned, method, tmp_path):
    told = stage_of(method, learned, tmp_path).plan["learned"]
    assert told["lr"] in (*RATES, *HIGHER)
    assert told["tried"]


def test_a_cut_model_is_never_worse_for_having_learned(learned):
    task = toy_task()
    graph = capture(learned, task.train.batch(slice(0, 2)).inputs)
    method = Distill(epochs=2)
    cut = copy.deepcopy(graph)
    with torch.no_grad():
        for parameter in cut.parameters():
            parameter += 0.02 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
    mended = method.apply(cut, method.plan(cut, task), Tools(task=task, original=graph))
    before, after = (score(model, task.select, task.metric).mean() for model in (cut, mended))
    assert after >= before - 0.02
    assert learned_of(mended).after <= learned_of(mended).before or not learned_of(mended).kept
