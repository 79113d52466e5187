"""The whole look at a task: a sound one, and ones with problems; and what the terminal shows of it."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path

import cattrs
import pytest
import torch
from rich.console import Console
from torch import Tensor, nn

import trimtab as tt
from tests import small
from trimtab.compress.recipes import default_recipes
from trimtab.core import Skip
from trimtab.diagnose import examine as examine_module
from trimtab.diagnose.examine import Examination, examine, hopeless
from trimtab.diagnose.families import Family
from trimtab.graph.capture import capture
from trimtab.report.examined import examined, reasons
from trimtab.train.further import further, samples_tried


def digits() -> tuple[nn.Module, tt.Task]:
    """Narrow, and said to be trained."""
    _, task = small.make()
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
    return model, replace(task, fit=None)


@pytest.fixture(scope="module")
def seen() -> Examination:
    told: list[str] = []
    goal = tt.Goal(drop=0.001)
    found = examine(*digits(), target=small.TARGET, goal=goal, report=told.append)
    assert told == ["data", "time and bytes", "methods", "runtimes", "what can be proven", "cost of a search"]
    return found


def test_a_sound_task_has_no_problems_and_every_part_is_filled(seen: Examination) -> None:
    assert seen.problems == ()
    assert (seen.params, seen.macs) == (64 * 32 + 32 + 32 * 10 + 10, 64 * 32 + 32 * 10)
    assert dict(seen.operations) == {"linear": 2, "relu": 1}
    assert [(one.runtime, one.takes) for one in seen.runtimes] == [("onnxruntime", True)]
    assert seen.data["verify"] == 600
    assert {family.name for family in seen.families} >= {"prune", "int8", "low rank"}
    assert seen.needs is not None
    assert 0 < seen.needs.training_s < seen.needs.seconds
    assert seen.needs.memory_bytes > 16 * seen.params
    assert json.loads(json.dumps(cattrs.unstructure(seen)))["needs"]["seconds"] > 0


def test_what_finding_rates_takes_is_part_of_the_time_for_training(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(examine_module, "_step_seconds", lambda student, task, few: float(len(few)))  # a second each
    model, task = digits()
    epochs = [
        method.epochs
        for recipe in default_recipes("latency_ms", linear=True)
        for method in recipe.methods
        if hasattr(method, "epochs")
    ]
    original = task.fit.epochs if task.fit else 0
    needs = examine(model, task, target=small.TARGET).needs
    assert needs is not None
    alone = 4 / 3 * len(task.train) * (sum(epochs) + original)
    trials = 4 / 3 * sum(samples_tried(task, further(task, epochs=one, lr=None)) for one in epochs)
    assert trials > 0
    assert needs.training_s == pytest.approx(alone + trials)


def test_a_bound_that_nothing_can_prove_is_told_before_the_search(seen: Examination) -> None:
    (told,) = (warning for warning in seen.warnings if warning.startswith("accuracy: "))
    assert "0.001 is allowed" in told
    assert "such samples would do" in told


def test_the_verify_split_stays_sealed() -> None:
    model, task = digits()
    examine(model, task, target=small.TARGET)
    assert len(task.verify.open("the test")) == 600


def test_the_terminal_shows_every_part(seen: Examination) -> None:
    console = Console(width=160, record=True, file=io.StringIO())
    examined(seen, console=console)
    text = console.export_text()
    for words in (
        "warning: accuracy",
        "onnxruntime",
        "Where the time is",
        "bound by",
        "prune",
        "a search over the default",
    ):
        assert words in text


class Branching(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x[:, :10] if x.sum() > 0 else -x[:, :10]


def test_what_does_not_export_and_what_is_wrong_with_data_is_told_and_nothing_more() -> None:
    _, task = digits()
    inputs = task.train.inputs[0].clone()
    inputs[3, 0] = float("nan")
    broken = replace(task, train=replace(task.train, inputs=(inputs,)))
    found = examine(Branching(), broken, target=small.TARGET)
    assert any("hold NaN in 1 of 897 samples" in problem for problem in found.problems)
    assert any("control flow" in problem for problem in found.problems)
    assert found.places == ()
    console = Console(width=100, record=True, file=io.StringIO())
    examined(found, console=console)
    assert console.export_text().count("problem: ") == len(found.problems) == 2


def test_odd_data_is_told() -> None:
    model, task = digits()
    keep = torch.cat([(task.train.targets == 0).nonzero()[:, 0], (task.train.targets == 1).nonzero()[:2, 0]])
    few = task.train.batch(keep)
    odd = replace(task, train=replace(few, inputs=(255 * few.inputs[0],)))
    told = " ".join(examine(model, odd, target=small.TARGET).warnings)
    assert "scale them to about 1" in told
    assert "always answering the most common is right on 9" in told


def test_a_task_that_trains_first_is_not_judged_by_an_untrained_model() -> None:
    model, task = small.make()
    model = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
    found = examine(model, task, target=small.TARGET, goal=tt.Goal(drop=1e-6))
    assert found.warnings == ()


def test_reasons_are_grouped_with_the_most_frequent_first() -> None:
    skips = (Skip("a", "odd"), Skip("b", "shared"), Skip("c", "shared"), *(Skip(str(i), f"why {i}") for i in range(9)))
    told = reasons(Family("prune", skipped=skips))
    assert told.startswith("b and 1 more (shared); a (odd); ")
    assert told.endswith("5 more reasons, see --json")


def test_optimize_warns_of_it_and_writes_it_to_the_log(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from trimtab.attempt import Job, bench_of
    from trimtab.compress.build import Built
    from trimtab.report.terminal import Progress
    from trimtab.search.study import study

    model, task = digits()
    graph = tt.capture(model, task.select.batch(slice(0, 2)).inputs)
    with study(tmp_path / "run", {}) as held, Progress() as show:
        bench_of(Job(task, small.TARGET, tt.Goal(drop=0.001), held, show, ""), Built(graph, tmp_path, ()))
    assert "warning: accuracy: on 600 verify samples" in capsys.readouterr().err
    assert "warning: accuracy: on 600 verify samples" in (tmp_path / "run" / "log.txt").read_text()


def test_a_run_that_was_measured_elsewhere_is_not_gone_on_with(tmp_path: Path) -> None:
    from trimtab.attempt import Job, bench_of
    from trimtab.compress.build import Built
    from trimtab.errors import RunError
    from trimtab.files import read_json, write_json
    from trimtab.report.terminal import Progress
    from trimtab.search.study import study

    model, task = digits()
    built = Built(tt.capture(model, task.select.batch(slice(0, 2)).inputs), tmp_path, ())
    with study(tmp_path / "run", {}) as held, Progress(quiet=True) as show:
        job = Job(task, small.TARGET, tt.Goal(), held, show, "")
        bench_of(job, built)
        bench_of(job, built)
        write_json(tmp_path / "run" / "machine.json", read_json(tmp_path / "run" / "machine.json") | {"cores": 96})
        with pytest.raises(RunError, match=r"96 cores, and this is .* Go on where it began"):
            bench_of(job, built)


def test_a_goal_that_nothing_reaches_is_told_and_one_that_something_does_is_not() -> None:
    module = nn.Sequential(nn.Conv2d(1, 1, 3), nn.ReLU(), nn.Flatten())
    batch = (torch.randn(2, 1, 12, 12),)
    graph = capture(module.eval(), batch)
    target = tt.Target(runtimes=("eager",))
    told = hopeless(graph, batch, target, tt.Goal("latency_ms"))
    assert len(told) == 1
    assert "no family of methods is predicted to gain more than" in told[0]
    wide = nn.Sequential(nn.Linear(64, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 10))
    graph = capture(wide.eval(), (torch.randn(2, 64),))
    assert hopeless(graph, (torch.randn(2, 64),), target, tt.Goal("size_bytes")) == ()
    assert hopeless(graph, (torch.randn(2, 64),), target, tt.Goal("memory_bytes")) == ()
