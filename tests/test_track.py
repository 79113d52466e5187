"""A run in TensorBoard and MLflow: what was sent is read back with their own readers; and what is refused."""

from __future__ import annotations

import contextlib
import importlib.util
import re
import sys
import tomllib
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.report import sample
from tests.test_watch import add_trial, begin
from tests.train.toy import FIT, toy_net, toy_task
from trimtab import track
from trimtab.cli import main
from trimtab.errors import RunError
from trimtab.files import read_json, write_json
from trimtab.teach.train import train
from trimtab.track import TRACKERS, Follower, require_trackers, tracked, tracked_training

ROOT = Path(__file__).parents[1]


class Recorder:
    """Stands for a tracker."""

    def __init__(self, folder: Path, note: dict[str, str]) -> None:
        self.note = note
        self.trials: list[tuple[int, str]] = []
        self.words: list[str] = []
        self.figures: list[Mapping[str, float]] = []
        self.closed = False

    def trial(self, place: int, facts: Mapping[str, str], figures: Mapping[str, float]) -> None:
        self.trials.append((place, facts["candidate"]))
        self.figures.append(figures)

    def verdict(self, facts: Mapping[str, str], figures: Mapping[str, float], page: Path) -> None:
        self.words.append(facts["verdict"])

    def close(self) -> None:
        self.closed = True


def test_each_trial_is_sent_once_also_by_a_run_that_is_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Recorder] = []

    def record(folder: Path, note: dict[str, str]) -> Recorder:
        made.append(Recorder(folder, note))
        return made[-1]

    monkeypatch.setattr(track, "TensorBoard", record)
    first = Follower(tmp_path, "tensorboard")
    first.sync()
    assert made == [], "there is no run yet"
    begin(tmp_path)
    first.sync()
    add_trial(tmp_path, 7)
    first.sync()
    first.sync()
    assert [place for place, _ in made[0].trials] == list(range(6))
    assert made[0].figures[5]["accuracy"] == 0.879
    assert made[0].figures[5]["gain"] == pytest.approx(0.613 / 0.468)
    second = Follower(tmp_path, "tensorboard")
    add_trial(tmp_path, 12)
    second.sync()
    write_json(tmp_path / "evidence.json", sample.evidence())
    second.sync()
    second.sync()
    second.close()
    assert made[1].trials[0] == (6, "prune .5 + distill + int8 (openvino int8)")
    assert (made[1].words, made[1].closed) == (["PASS"], True)
    assert len(read_json(tmp_path / "tracked-tensorboard.json")["sent"]) == 14


def test_a_tracker_that_is_gone_costs_no_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Gone(Recorder):
        def trial(self, place: int, facts: Mapping[str, str], figures: Mapping[str, float]) -> None:
            raise ConnectionError("the server is down")

    monkeypatch.setattr(track, "TensorBoard", Gone)
    monkeypatch.setattr(track, "require_trackers", lambda names: None)
    begin(tmp_path)
    add_trial(tmp_path, 7)
    with (
        pytest.warns(RuntimeWarning, match="not all was logged to tensorboard: ConnectionError: the server is down"),
        tracked(tmp_path, ["tensorboard"]),
    ):
        pass


def test_what_is_not_installed_or_not_known_is_refused_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *_: None)
    for name in TRACKERS:
        told = rf'{name} is not installed.*pip install "trimtab\[{name}\]"'
        with pytest.raises(RunError, match=told), tracked(tmp_path, [name]):
            raise AssertionError("no work is done")
    with pytest.raises(RunError, match="no tracker 'wandb'; give tensorboard or mlflow"):
        require_trackers(["wandb:here"])
    run = tmp_path / "run"
    monkeypatch.setattr(sys, "argv", ["trimtab", "optimize", "fashion", "--track", "mlflow", "--run", str(run)])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 3
    assert 'pip install "trimtab[mlflow]"' in " ".join(capsys.readouterr().err.split())
    assert not run.exists()


def test_what_is_told_to_be_installed_is_what_these_tests_use() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for name in TRACKERS:
        (package,) = extras[name]
        assert package in extras["dev"], "what is told is what is tested, and no other package of that name"
        assert re.search(rf"(?m)^{package}==", (ROOT / "constraints.txt").read_text())


def ended_run(folder: Path) -> Path:
    begin(folder)
    add_trial(folder, 7)
    write_json(folder / "evidence.json", sample.evidence())
    (folder / "report.html").write_text("the page")
    return folder


@pytest.mark.skipif(importlib.util.find_spec("tensorboard") is None, reason="pip install tensorboard")
@pytest.mark.filterwarnings("ignore")
def test_tensorboard_reads_what_was_sent(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with tracked(ended_run(tmp_path), ["tensorboard"]):
        pass
    read = EventAccumulator(str(tmp_path / "tensorboard"))
    read.Reload()
    latencies = [(event.step, event.value) for event in read.Scalars("trial/latency_ms")]
    expected = [trial["measurements"][0]["value"] for trial in sample.evidence()["trials"]]
    assert latencies == [(place, pytest.approx(value)) for place, value in enumerate(expected)]
    assert read.Scalars("verdict/gain")[0].value == pytest.approx(0.613 / 0.211)
    (verdict,) = read.Tensors("verdict/text_summary")
    assert b"PASS: Quality holds" in verdict.tensor_proto.string_val[0]


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("mlflow") is None, reason="pip install mlflow-skinny")
@pytest.mark.filterwarnings("ignore")
def test_mlflow_reads_what_was_sent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mlflow.tracking import MlflowClient

    monkeypatch.chdir(tmp_path)  # where MLflow puts artifacts beside a database
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    run = ended_run(tmp_path / "run")
    for _ in range(2):  # the second time there is nothing to send
        with tracked(run, [f"mlflow:{uri}"]):
            pass
    client = MlflowClient(tracking_uri=uri)
    experiment = client.get_experiment_by_name("trimtab-fashion")
    runs = client.search_runs([experiment.experiment_id], max_results=100)
    (parent,) = (one for one in runs if "mlflow.parentRunId" not in one.data.tags)
    children = [one for one in runs if one.data.tags.get("mlflow.parentRunId") == parent.info.run_id]
    assert len(children) == len(sample.evidence()["trials"])
    assert parent.data.tags["verdict"] == "PASS"
    assert parent.info.status == "FINISHED"
    assert len(client.get_metric_history(parent.info.run_id, "trial.latency_ms")) == len(children)
    assert [file.path for file in client.list_artifacts(parent.info.run_id)] == ["report.html"]
    one = next(child for child in children if child.data.params["candidate"] == "prune .3 (openvino bf16)")
    assert one.data.metrics["accuracy"] == pytest.approx(0.879)
    assert one.data.params["precision"] == "bf16"


def test_a_training_tells_its_figures_after_each_epoch_and_a_resumed_one_goes_on_in_its_note(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[tuple[int, Mapping[str, float]]] = []
    notes: list[dict[str, str]] = []

    class Training(Recorder):
        def settings(self, facts: Mapping[str, str]) -> None:
            notes.append(dict(self.note))
            self.note["settings"] = facts["batch_size"]

        def step(self, index: int, figures: Mapping[str, float]) -> None:
            told.append((index, figures))
            if len(told) == 3:
                raise KeyboardInterrupt

    monkeypatch.setattr(track, "TensorBoard", Training)
    monkeypatch.setattr(track, "require_trackers", lambda _: None)
    model, task, folder = toy_net(), toy_task(), tmp_path / "t"
    for ends in (pytest.raises(KeyboardInterrupt), contextlib.nullcontext()):
        with ends, tracked_training(folder, task, FIT, ["tensorboard"]) as log:
            train(model, task, output=folder, quiet=True, log=log)
    assert [index for index, _ in told] == [6, 12, 18, 24]
    assert all(set(figures) == {"loss", "lr", "samples_per_second", "accuracy"} for _, figures in told)
    assert notes == [{}, {"settings": "16"}]
    assert [path.name for path in tmp_path.iterdir()] == ["t"]
    with tracked_training(folder, task, FIT, []) as log:
        assert log is None


@pytest.mark.skipif(importlib.util.find_spec("tensorboard") is None, reason="pip install tensorboard")
@pytest.mark.filterwarnings("ignore")
def test_tensorboard_reads_a_training(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder, task = tmp_path / "t", toy_task()
    with tracked_training(folder, task, FIT, ["tensorboard"]) as log:
        trained = train(toy_net(), task, output=folder, quiet=True, log=log)
    read = EventAccumulator(str(tmp_path / "t.tensorboard"))
    read.Reload()
    events = read.Scalars("train/accuracy")
    assert [event.step for event in events] == [6, 12, 18, 24]
    assert events[-1].value == pytest.approx(trained.metric)


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("mlflow") is None, reason="pip install mlflow-skinny")
@pytest.mark.filterwarnings("ignore")
def test_mlflow_reads_a_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mlflow.tracking import MlflowClient

    monkeypatch.chdir(tmp_path)
    folder, task, uri = tmp_path / "t", toy_task(), f"sqlite:///{tmp_path}/mlflow.db"
    with tracked_training(folder, task, FIT, [f"mlflow:{uri}"]) as log:
        trained = train(toy_net(), task, output=folder, quiet=True, log=log)
    client = MlflowClient(tracking_uri=uri)
    experiment = client.get_experiment_by_name("trimtab-toy")
    (run,) = client.search_runs([experiment.experiment_id])
    history = client.get_metric_history(run.info.run_id, "accuracy")
    assert [point.step for point in history] == [6, 12, 18, 24]
    assert history[-1].value == pytest.approx(trained.metric)
    assert (run.data.tags["batch_size"], run.info.status) == ("16", "FINISHED")
