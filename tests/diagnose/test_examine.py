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
from trimtab.compress.recipes import default_picks, recipe_of
from trimtab.compress.sharing import ShareBlocks
from trimtab.core import Skip, Tools
from trimtab.diagnose import examine as examine_module
from trimtab.diagnose.examine import Examination, examine, hopeless
from trimtab.diagnose.families import BY_HAND, Family
from trimtab.graph.capture import capture
from trimtab.measure.size import size_bytes
from trimtab.report.examined import examined, reasons
from trimtab.runtimes import RUNTIMES
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
        for recipe in map(recipe_of, default_picks("latency_ms", linear=True, residual=True))
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
    assert "no family of methods that the search tries is predicted to gain more than" in told[0]
    assert "by hand" not in told[0], "nothing that the search does not try is faster"
    wide = nn.Sequential(nn.Linear(64, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 10))
    graph = capture(wide.eval(), (torch.randn(2, 64),))
    assert hopeless(graph, (torch.randn(2, 64),), target, tt.Goal("size_bytes")) == ()
    assert hopeless(graph, (torch.randn(2, 64),), target, tt.Goal("memory_bytes")) == ()


class Scaled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(64, 64))

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(x * self.weight)


def test_a_goal_that_only_what_is_asked_for_by_hand_reaches_names_that_method(tmp_path: Path) -> None:
    module = nn.Sequential(Scaled(), Scaled())
    batch = (torch.randn(2, 64, 64),)
    graph = capture(module.eval(), batch)
    (told,) = hopeless(graph, batch, small.TARGET, tt.Goal("size_bytes"))
    assert "no family of methods that the search tries is predicted to gain more than 1.00x in size_bytes" in told
    assert "share blocks might, up to 2.00x: ask for it by hand: recipes=(tt.Recipe((ShareBlocks(num=1),)),)" in told
    plan = ShareBlocks(num=1).plan(graph)  # and what is named does it, in the file that the goal is about
    shared = ShareBlocks(num=1).apply(graph, plan, Tools())
    sizes = []
    for name, one in (("before", graph), ("after", shared)):
        (tmp_path / name).mkdir()
        RUNTIMES["onnxruntime"].export(one, tmp_path / name, precision="fp32", batch_size=1, threads=1)
        sizes.append(size_bytes(tmp_path / name))
    assert sizes[0] / sizes[1] == pytest.approx(2, rel=0.1)


def test_what_the_search_tries_is_not_made_up_for_by_what_it_does_not() -> None:
    goal = tt.Goal("size_bytes")
    palette = Family("palette", ("linear",), size=(4.0, 8.0), unsearched=BY_HAND["palette"])
    prune = Family("prune", ("0",), size=(1.0, 1.02))
    (told,) = examine_module._unmet((palette, prune), goal)
    assert "more than 1.02x in size_bytes" in told
    assert "palette might, up to 8.00x: ask for it by hand: Palette(), then tt.save(..., coded=True)" in told
    left_out = Family("weights in 4 bits", ("linear",), size=(1.0, 7.0), unsearched="no runtime at hand has int4w")
    assert "weights in 4 bits" not in examine_module._unmet((left_out, prune), goal)[0], "nothing asks for it by hand"
    assert examine_module._unmet((palette, replace(prune, size=(1.0, 1.2))), goal) == ()


class Decomposed(nn.Module):
    """Ends in an operation that ONNX has no form of."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(64, 100)

    def forward(self, x: Tensor) -> Tensor:
        return torch.linalg.svdvals(self.first(x).reshape(-1, 10, 10))


@pytest.mark.parametrize(("runtimes", "problems"), [(("onnxruntime",), 1), (("eager", "onnxruntime", "openvino"), 0)])
def test_a_runtime_that_does_not_take_the_model_is_told_with_the_operation(
    runtimes: tuple[str, ...], problems: int
) -> None:
    _, task = digits()
    found = examine(Decomposed(), task, target=tt.Target(runtimes=runtimes))
    assert {one.runtime: one.takes for one in found.runtimes} == {name: name == "eager" for name in runtimes}
    for one in found.runtimes:
        assert ("aten._linalg_svd" in one.why) == (one.takes is False), one
    assert found.problems == ("none of the allowed runtimes takes the model",) * problems
    console = Console(width=400, record=True, file=io.StringIO())
    examined(found, console=console)
    line = next(line for line in console.export_text().splitlines() if line.startswith("onnxruntime"))
    assert line.split()[1] == "no"
    assert "aten._linalg_svd" in line


def test_the_terminal_says_what_the_search_leaves_out(seen: Examination) -> None:
    console = Console(width=400, record=True, file=io.StringIO())
    examined(seen, console=console)
    lines = {line[:12].strip(): line for line in console.export_text().splitlines()}
    assert "not tried by the search: ask for it by hand: Palette()" in lines["palette"]
    assert "not tried by the search" not in lines["prune"]
