from __future__ import annotations

import dataclasses

import pytest
import torch

import trimtab as tt
from tests.train.toy import FIT, same_weights, toy_net, toy_task
from trimtab.core import Fit
from trimtab.errors import RunError, TaskError
from trimtab.pipeline import prune
from trimtab.teach.train import kinds_of_settings, parse_settings, parse_until, seconds_of, train, trained_by
from trimtab.train.keep import ENDED_BY_SIGTERM
from trimtab.train.loop import fit, predict


def test_it_trains_as_fit_does_and_the_folder_gives_the_model_back(tmp_path):
    model, task = toy_net(), toy_task()
    trained = train(model, task, output=tmp_path / "t", quiet=True)
    assert (trained.steps, trained.why) == (24, "the 4 epochs ended")
    x = task.select.inputs
    torch.testing.assert_close(predict(trained.graph, x), predict(fit(model, task), x), rtol=1e-5, atol=1e-5)
    graph, ready = trained_by(tmp_path / "t", task)
    assert torch.equal(predict(graph, x), predict(trained.graph, x))
    assert ready.fit is None
    assert tt.score(graph, task.select, task.metric).mean() == trained.metric
    assert [path.name for path in tmp_path.iterdir()] == ["t"]


def test_it_stops_after_the_epoch_that_reaches_the_metric_or_when_the_time_is_spent(tmp_path):
    settings = dataclasses.replace(FIT, epochs=50)
    trained = train(
        toy_net(), toy_task(), settings=settings, until=("accuracy", 0.6), output=tmp_path / "a", quiet=True
    )
    assert trained.metric >= 0.6
    assert trained.steps < 300
    assert trained.steps % 6 == 0
    assert trained.why == "accuracy 0.6 was reached"
    spent = train(toy_net(), toy_task(), settings=settings, budget=1e-9, output=tmp_path / "b", quiet=True)
    assert (spent.steps, spent.why) == (1, "the budget of 0.0 s was spent")


def test_stopped_it_goes_on_where_it_was(tmp_path, monkeypatch):
    def stop(*_: object) -> str:
        raise SystemExit(ENDED_BY_SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr("trimtab.teach.train._text", lambda step, *_: stop() if step.index >= 13 else "")
        patch.setattr("trimtab.teach.train.TOLD_EVERY_SECONDS", 0)
        with pytest.raises(SystemExit):
            train(toy_net(), toy_task(), output=tmp_path / "t", quiet=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["t.checkpoint", "t.checkpoint.1"]
    resumed = train(toy_net(), toy_task(), output=tmp_path / "t", quiet=True)
    whole = train(toy_net(), toy_task(), output=tmp_path / "w", quiet=True)
    assert same_weights(resumed.graph, whole.graph)


def test_progress_tells_loss_metric_pace_and_time_left(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("trimtab.report.terminal.QUIET_SECONDS", 0)
    train(toy_net(), toy_task(), output=tmp_path / "t")
    said = capsys.readouterr().err
    assert "best so far: epoch 1/4, accuracy " in said
    last = next(line for line in said.splitlines() if "(24 of 24)" in line)
    assert "epoch 4/4, loss 0." in last
    assert all(word in last for word in (", accuracy ", " samples/s, ", "0:00 left"))


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"until": ("f1", 0.9)}, "needs a metric of that name; the task toy judges by accuracy: give accuracy=VALUE"),
        ({"budget": 0}, "A budget of 0 seconds leaves no time to train"),
    ],
)
def test_what_cannot_be_done_is_refused_before_any_work(tmp_path, given, says):
    with pytest.raises(TaskError, match=says):
        train(toy_net(), toy_task(), output=tmp_path / "t", **given)
    with pytest.raises(RunError, match="exists already, and nothing is overwritten"):
        train(toy_net(), toy_task(), output=tmp_path)


def test_flags_that_cannot_be_read_say_how_they_are_written():
    assert (parse_until(None), seconds_of(None)) == (None, None)
    with pytest.raises(TaskError, match=r"Cannot read --until 0\.9: give METRIC=VALUE, e\.g\. accuracy=0\.9"):
        parse_until("0.9")
    for text in ("10", "m", ""):
        with pytest.raises(TaskError, match=f"Cannot read --budget {text}: give a number and s, m or h"):
            seconds_of(text)


def test_any_setting_of_fit_can_be_given_by_name():
    given = ["recompute=0.5", "recompute=True", "nan=skip", "ema=0.99", "schedule=None", "epochs=3", "compile=False"]
    settings = dataclasses.replace(Fit(), **parse_settings(given))
    assert settings == Fit(recompute=True, nan="skip", ema=0.99, epochs=3)
    assert set(kinds_of_settings()) == {field.name for field in dataclasses.fields(Fit)}


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ("clop=1", "Cannot read --set clop=1: give NAME=VALUE, e.g. recompute=0.5; the names are epochs, lr, .*clip"),
        ("clip", "Cannot read --set clip: give NAME=VALUE"),
        ("clip=", "Cannot read --set clip=: give NAME=VALUE"),
        ("clip=one", "Cannot read --set clip=one: clip takes int or float or None"),
        ("epochs=1.5", "Cannot read --set epochs=1.5: epochs takes int"),
    ],
)
def test_a_setting_that_fit_does_not_have_is_refused(given, says):
    with pytest.raises(TaskError, match=says):
        parse_settings([given])


def test_compression_gets_the_averaged_weights_and_the_squares_of_the_gradients(tmp_path):
    task = dataclasses.replace(toy_task(), fit=dataclasses.replace(FIT, ema=0.8))
    train(toy_net(), task, output=tmp_path / "t", quiet=True)
    graph, ready = trained_by(tmp_path / "t", task)
    assert torch.equal(graph.get_parameter("5.weight"), fit(toy_net(), task)[5].weight)
    shrunk = prune(graph, ready, tt.Prune(0.5, importance="fisher", round_to=1), dry_run=True, quiet=True)
    assert {row["importance by"] for row in shrunk.plan.rows()} == {"fisher, the training's AdamW"}
